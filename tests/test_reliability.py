"""Runs that are killed, stopped, crowded or short of disk, and end right: docs/reliability.md lists these promises."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import stage1_flags, stage2_flags

OFTEN = ("import runs, growing_array; runs.Run.due = lambda self: True; "
         "growing_array.GrowingArray.SAVE_EVERY = -1.0")  # save at every occasion, so that each is one to go on from
CLOCK = ("seconds", "images_per_second")


def without_times(path):
    """The records of a log.jsonl, but for what the clock says."""
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCK}
            for line in path.read_text().splitlines()]


def content_of(path):
    """What must be the same of a file that two runs wrote."""
    if path.name == "log.jsonl":
        return without_times(path)
    if path.name == "results.json":
        return {key: value for key, value in json.loads(path.read_text()).items() if key not in CLOCK}
    return path.read_bytes()


def assert_same_run(one, other, stage=None):
    """Two folders hold the same files with the same bytes, but for times, the command and locks."""
    def files(folder):
        # What a killed test.py had begun to write stays aside: nobody could tell it from another one's.
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
                      and not path.name.endswith(".lock") and not (stage == "test" and path.suffix == ".part"))

    assert files(one) == files(other)
    for name in files(one):
        if Path(name).name != "config.json":  # it tells the command and the folder
            assert content_of(one / name) == content_of(other / name), name


def assert_whole(folder):
    """Whatever stands under its own name can be opened."""
    for path in folder.rglob("*"):
        if path.suffix == ".pth":
            torch.load(path, weights_only=True)
        elif path.suffix in (".npy", ".npz") and not path.name.startswith("."):
            np.load(path)
        elif path.suffix == ".json" and not path.name.startswith("."):
            json.loads(path.read_text())


# ------------------------------------------------------------------------ killed at any moment


def stages(folder):
    """What is killed: name and command, which works in the folder {}. The network is small and has dropout."""
    first = ["myautoencoder/autoencoder.py", *stage1_flags(folder), "--batch_size", 8, "--epoch", 12]
    second = ["train.py", *stage2_flags(folder / "ae" / "autoencoder.pth"), "--batch_size", 8, "--model_type",
              "mobilenet_v3_small", "--max_epoch", 1]
    places = ["--cache_dir", "{}/cache", "--output_dir", "{}/run"]
    return {
        "autoencoder": [*first, "--resume", *places],
        "train": [*second, "--head_epochs", 2, "--head_width", 8, "--resume", *places],
        "train-once": [*second, "--targets", "once", "--select", "loss", "--resume", *places],
        "test": ["test.py", "--pretrain_path", folder / "mr" / "mrhash.pth", "--device", "cpu", "--save_codes",
                 "{}/run/codes.npz", "--figures", "{}/run", *places],
    }


def command_in(folder, command):
    return [str(word).replace("{}", str(folder)) for word in command]


@pytest.fixture(scope="module")
def uninterrupted(trained, zygote, tmp_path_factory):
    """For a stage: where it is run, where the files of a run in one go lie now, and how long that took. Made once."""
    made = {}

    def run(stage):
        if stage not in made:
            folder = tmp_path_factory.mktemp("run")
            begun = time.monotonic()
            code, text = zygote.run(folder.with_suffix(".txt"), *command_in(folder, stages(trained[0])[stage]))
            assert code == 0, text
            seconds = time.monotonic() - begun
            # Aside, because the paths stand in its files: the other runs get the same ones.
            made[stage] = folder, folder.rename(folder.with_suffix(".whole")), seconds
        return made[stage]
    return run


def cut_to_pieces(stage, kills, trained, zygote, uninterrupted):
    """Kill a stage at random moments and go on each time, until it is through; all files must be as if nothing was."""
    folder, whole, seconds = uninterrupted(stage)
    command, output = command_in(folder, stages(trained[0])[stage]), folder.with_suffix(".txt")
    shutil.rmtree(folder, ignore_errors=True)
    moments = random.Random()  # any moment: a failure shows when it was
    log, killed = [], 0
    while True:
        pid = zygote.start(output, *command, prepare=OFTEN)
        if killed < kills:
            moment = moments.uniform(0, seconds)
            time.sleep(moment)
            os.kill(pid, signal.SIGKILL)
            log.append(f"{moment:.3f} s of {seconds:.3f}")
        code = zygote.wait(pid)
        assert code in (0, -signal.SIGKILL), (log, output.read_text())
        assert_whole(folder)
        if code == -signal.SIGKILL:
            killed += 1
        elif killed < kills:  # it was quicker than the kill: begin again, from nothing
            assert_same_run(folder, whole, stage)
            shutil.rmtree(folder)
        else:
            break
    assert_same_run(folder, whole, stage)
    return log


@pytest.mark.parametrize("stage", ["autoencoder", "train", "train-once", "test"])
def test_a_stage_killed_at_random_moments_ends_as_if_nothing_was(stage, trained, zygote, uninterrupted):
    cut_to_pieces(stage, 2, trained, zygote, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["autoencoder", "train", "train-once", "test"])
def test_a_stage_killed_fifty_times_ends_as_if_nothing_was(stage, trained, zygote, uninterrupted):
    print(cut_to_pieces(stage, 50, trained, zygote, uninterrupted))
