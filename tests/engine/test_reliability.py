"""Runs that are killed, stopped, crowded or short of disk, and end right: docs/reliability.md lists these promises."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine import cache as growing_array
from engine import run as runs
from engine.files import at_end, atomic_file
from helpers import QUICK, ROOT, call, make_pairs, stage1_flags, stage2_flags
from network import Backbone
from utils import InputError

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


# ------------------------------------------------------------------------ stopped by a signal


def at_step(number, action):
    """What a script is prepared with, so that it does `action` in its so-manieth training step."""
    return f"""{OFTEN}
import os, signal, itertools
steps, see = itertools.count(1), runs.LossWatch.see
def acting(self, step, loss):
    see(self, step, loss)
    if next(steps) == {number}:
        {action}
runs.LossWatch.see = acting
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize(("stage", "step", "place"), [
    ("autoencoder", 7, "after epoch 1"),  # it saves whole epochs of five steps, which take milliseconds
    ("train", 3, "in epoch -2, after batch 3"), ("train", 10, "in epoch -1, after batch 5"),
    ("train-once", 7, "in epoch 1, after batch 2")])
def test_a_signal_saves_the_step_and_says_how_to_go_on(trained, zygote, uninterrupted, name, code, stage, step, place):
    folder, whole, _ = uninterrupted(stage)
    command, output = command_in(folder, stages(trained[0])[stage]), folder.with_suffix(".txt")
    shutil.rmtree(folder, ignore_errors=True)
    prepare = at_step(step, f"os.kill(os.getpid(), signal.{name})").replace("lambda self: True", "lambda self: False")
    found, text = zygote.run(output, *command, prepare=prepare)
    assert found == code and "Traceback" not in text, text
    assert text.splitlines()[-2:] == ["stopping when this step is done and saved; once more stops at once",
                                      "interrupted; the same command with --resume goes on from what was saved"]
    found, text = zygote.run(output, *command)
    assert found == 0 and f"resuming {folder / 'run'} {place}" in text, text
    assert_same_run(folder, whole)


def test_a_second_signal_does_not_wait_and_loses_nothing_saved(trained, zygote, uninterrupted):
    folder, whole, _ = uninterrupted("train-once")
    command, output = command_in(folder, stages(trained[0])["train-once"]), folder.with_suffix(".txt")
    shutil.rmtree(folder, ignore_errors=True)
    twice = "os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGINT)"
    code, text = zygote.run(output, *command, prepare=at_step(3, twice))
    assert code == 130 and text.splitlines()[-1].startswith("interrupted;"), text
    code, text = zygote.run(output, *command)
    assert code == 0 and "in epoch 0, after batch 2" in text, text  # what was saved before
    assert_same_run(folder, whole)


def test_a_signal_while_codes_are_measured_saves_the_epoch(trained, zygote, uninterrupted):
    folder, whole, _ = uninterrupted("train-once")
    command, output = command_in(folder, stages(trained[0])["train-once"]), folder.with_suffix(".txt")
    shutil.rmtree(folder, ignore_errors=True)
    prepare = """
import hamming, os, signal
hamming.evaluate = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)
"""
    code, text = zygote.run(output, *command, prepare=prepare)
    assert code == 130 and text.splitlines()[-1].startswith("interrupted; the same command with --resume"), text
    code, text = zygote.run(output, *command)
    assert code == 0 and "in epoch 0, after batch 5" in text, text  # of 5: nothing is lost
    assert_same_run(folder, whole)


def test_a_signal_while_features_are_extracted_keeps_those_that_are_there(trained, zygote, uninterrupted):
    folder, whole, _ = uninterrupted("autoencoder")
    command, output = command_in(folder, stages(trained[0])["autoencoder"]), folder.with_suffix(".txt")
    shutil.rmtree(folder, ignore_errors=True)
    prepare = f"""{OFTEN}
import os, signal, itertools
calls, append = itertools.count(1), growing_array.GrowingArray.append
def acting(self, *rows, **options):
    append(self, *rows, **options)
    if "features" in str(self.path) and next(calls) == 3:
        os.kill(os.getpid(), signal.SIGINT)
growing_array.GrowingArray.append = acting
"""
    code, text = zygote.run(output, *command, prepare=prepare)
    assert code == 130 and text.splitlines()[-1].startswith("interrupted; the same command with --resume"), text
    code, text = zygote.run(output, *command)
    assert code == 0 and "go on after 24 of 42 images" in text, text  # batches of 8
    assert_same_run(folder, whole)


# ------------------------------------------------------------------------ settings of a resumed run


@pytest.fixture(scope="module")
def half_done(trained, zygote, tmp_path_factory):
    """A function that copies a run of train.py, stopped in its second epoch, and gives folder and flags."""
    folder = tmp_path_factory.mktemp("half")
    flags = ["train.py", *stage2_flags(trained[0] / "ae" / "autoencoder.pth"), "--batch_size", 8, "--model_type",
             "mobilenet_v3_small", "--max_epoch", 1]
    code, text = zygote.run(folder / "out.txt", *flags, "--output_dir", folder / "run",
                            prepare=at_step(7, "os.kill(os.getpid(), signal.SIGINT)"))
    assert code == 130, text

    def copied(place):
        shutil.copytree(folder / "run", place)
        return flags[1:]
    return copied


def everything(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_resuming_with_other_settings_lists_all_that_differ_and_changes_nothing(half_done, tmp_path, capsys):
    flags = half_done(tmp_path / "run")
    before = everything(tmp_path / "run")
    code, _, error = call(capsys, "train.py", *flags, "--resume", "--output_dir", tmp_path / "run", "--lr", 0.5,
                          "--seed", 14, "--kl", "batchmean", "--batch_size", 16)
    assert code == 2 and len(error.splitlines()) == 1
    for difference in ("batch_size was 8, now 16", "kl was 'mean', now 'batchmean'", "lr was 0.001, now 0.5",
                       "seed was 13, now 14"):
        assert difference in error
    assert error.count(" was ") == 4
    assert everything(tmp_path / "run") == before


def test_more_epochs_and_other_places_are_no_other_settings(half_done, tmp_path, capsys, trained):
    flags = half_done(tmp_path / "run")
    shutil.copytree(trained[0] / "ae", tmp_path / "moved")
    code, out, error = call(capsys, "train.py", *flags, "--resume", "--output_dir", tmp_path / "run", "--max_epoch", 2,
                            "--device", "cpu", "--workers", 1, "--cache_dir", tmp_path / "cache",
                            "--pretrained_dp_path", tmp_path / "moved" / "autoencoder.pth")
    assert code == 0 and "resuming" in out, error
    assert [record["epoch"] for record in without_times(tmp_path / "run" / "log.jsonl")] == [0, 1, 2]


@pytest.mark.parametrize(("last", "fits"), [(2, True), (1, True), (0, False)])
def test_fewer_epochs_than_were_begun_are_refused(half_done, tmp_path, capsys, last, fits):
    flags = half_done(tmp_path / "run")  # within epoch 1
    before = everything(tmp_path / "run")
    code, _, error = call(capsys, "train.py", *flags, "--resume", "--output_dir", tmp_path / "run", "--max_epoch", last)
    if fits:
        assert code == 0, error
    else:
        assert code == 2 and "has come to epoch 1 already: --max_epoch 0 cannot undo it" in error
        assert everything(tmp_path / "run") == before


def test_fewer_epochs_than_the_autoencoder_has_are_refused(trained, tmp_path, capsys):
    shutil.copytree(trained[0] / "ae", tmp_path / "ae")
    before = everything(tmp_path / "ae")
    code, _, error = call(capsys, "myautoencoder/autoencoder.py", *stage1_flags(trained[0]), "--epoch", 3, "--resume",
                          "--output_dir", tmp_path / "ae")
    assert code == 2 and "has come to epoch 5 already: --epoch 3 cannot undo it" in error
    assert everything(tmp_path / "ae") == before


def test_more_epochs_are_no_longer_harmless_where_the_last_one_was_chosen_by_its_map(trained, tmp_path, capsys):
    flags = [*stage2_flags(trained[0] / "ae" / "autoencoder.pth"), *QUICK, "--select", "test_map", "--eval_frequency",
             2, "--output_dir", tmp_path / "run"]
    assert call(capsys, "train.py", *flags, "--max_epoch", 1)[0] == 0
    code, _, error = call(capsys, "train.py", *flags, "--max_epoch", 2, "--resume")
    assert code == 2 and "was to end with epoch 1, whose mAP counts for --select test_map" in error
    assert call(capsys, "train.py", *flags, "--max_epoch", 2, "--overwrite")[0] == 0
    code, _, error = call(capsys, "train.py", *flags, "--max_epoch", 3, "--resume")  # epoch 2 is evaluated anyway
    assert code == 0, error


def test_a_resumed_run_insists_on_the_very_autoencoder_it_began_with(half_done, tmp_path, capsys, trained):
    flags = half_done(tmp_path / "run")
    for change in ("weights", "features"):
        other = torch.load(trained[0] / "ae" / "autoencoder.pth", weights_only=True)
        if change == "weights":
            other["model"]["fuse.bias"][0] += 1e-6
        else:
            other["features"]["feature_norm"] = "unit"
        torch.save(other, tmp_path / "other.pth")
        code, _, error = call(capsys, "train.py", *flags, "--resume", "--output_dir", tmp_path / "run",
                              "--pretrained_dp_path", tmp_path / "other.pth")
        assert code == 2 and "cannot resume" in error and "pretrained was" in error, error


def test_a_resumed_run_insists_on_the_weights_of_its_backbone(trained, tmp_path, capsys):
    weights = Backbone("resnet18", "none", 32).model.state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    flags = [*stage2_flags(trained[0] / "ae" / "autoencoder.pth"), "--weights", tmp_path / "weights.pth",
             "--output_dir", tmp_path / "run"]
    assert call(capsys, "train.py", *flags, "--max_epoch", 0)[0] == 0
    weights["conv1.weight"][0, 0, 0, 0] += 1
    torch.save(weights, tmp_path / "weights.pth")
    code, _, error = call(capsys, "train.py", *flags, "--max_epoch", 1, "--resume")
    assert code == 2 and "cannot resume" in error and "weights.pth are not those that it began with" in error


@pytest.fixture
def own_pairs(tmp_path, capsys):
    """Images of this test alone, and an autoencoder of them that is not through."""
    make_pairs(tmp_path)
    code, _, error = call(capsys, "myautoencoder/autoencoder.py", *stage1_flags(tmp_path), "--epoch", 2, "--output_dir",
                          tmp_path / "ae")
    assert code == 0, error
    return tmp_path


@pytest.mark.parametrize(("view", "source"), [("coarse", 1), ("fine", 2)])
def test_a_run_does_not_go_on_with_an_image_exchanged(own_pairs, capsys, view, source):
    path = next((own_pairs / view / "sea").iterdir())
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    code, _, error = call(capsys, "myautoencoder/autoencoder.py", *stage1_flags(own_pairs), "--resume", "--output_dir",
                          own_pairs / "ae")
    assert code == 2 and f"the images of source {source}, or their features, are not those" in error


def test_a_run_goes_on_with_its_images_at_another_place(own_pairs, capsys):
    (own_pairs / "elsewhere").mkdir()
    for view in ("coarse", "fine"):
        shutil.copytree(own_pairs / view, own_pairs / "elsewhere" / view)  # other dates, too
        shutil.rmtree(own_pairs / view)
    code, out, error = call(capsys, "myautoencoder/autoencoder.py", *stage1_flags(own_pairs / "elsewhere"), "--resume",
                            "--output_dir", own_pairs / "ae")
    assert code == 0 and "resuming" in out, error
    code, out, error = call(capsys, "train.py", *stage2_flags(own_pairs / "ae" / "autoencoder.pth"), "--max_epoch", 0,
                            "--source1", own_pairs / "elsewhere" / "coarse", "--source2",
                            own_pairs / "elsewhere" / "fine", "--output_dir", own_pairs / "mr")
    assert code == 0, error


@pytest.mark.parametrize("left", ["last.pth", "mrhash.pth"])
def test_a_folder_with_a_run_is_neither_written_over_nor_taken_for_another_one(half_done, tmp_path, capsys, left):
    flags = half_done(tmp_path / "run")
    for path in (tmp_path / "run").iterdir():
        path.rename(path.with_name(left)) if path.name == "last.pth" else path.unlink()
    before = everything(tmp_path / "run")
    code, _, error = call(capsys, "train.py", *flags, "--output_dir", tmp_path / "run")
    assert code == 2 and "already holds a run: add --resume to continue it, --overwrite" in error
    if left == "mrhash.pth":
        code, _, error = call(capsys, "train.py", *flags, "--resume", "--output_dir", tmp_path / "run")
        assert code == 2 and "no last.pth to go on from: add --overwrite" in error
    # A bad flag beside --overwrite loses nothing.
    code, _, error = call(capsys, "train.py", *flags, "--overwrite", "--n_clusters", 99, "--output_dir",
                          tmp_path / "run")
    assert code == 2 and "n_clusters" in error
    assert everything(tmp_path / "run") == before


def test_a_setting_that_only_one_of_two_versions_knows_is_a_difference(half_done, tmp_path, capsys):
    flags = half_done(tmp_path / "run")
    state = torch.load(tmp_path / "run" / "last.pth", weights_only=True)
    state["settings"] |= {"old_flag": 3}
    del state["settings"]["kl"]
    torch.save(state, tmp_path / "run" / "last.pth")
    code, _, error = call(capsys, "train.py", *flags, "--resume", "--output_dir", tmp_path / "run")
    assert code == 2 and "kl is not known to the code that began it; old_flag is not known any more" in error


def test_what_a_killed_run_left_half_written_goes(half_done, tmp_path, capsys):
    flags = half_done(tmp_path / "run")
    (tmp_path / "run" / ".last.pth.abcdefgh.part").write_bytes(b"half of it")
    code, _, error = call(capsys, "train.py", *flags, "--resume", "--output_dir", tmp_path / "run")
    assert code == 0, error
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        ".lock", "config.json", "last.pth", "log.jsonl", "mrhash.pth"]


def test_a_last_pth_of_the_other_script_is_refused(half_done, tmp_path, capsys, trained):
    half_done(tmp_path / "run")
    code, _, error = call(capsys, "myautoencoder/autoencoder.py", *stage1_flags(trained[0]), "--resume", "--output_dir",
                          tmp_path / "run")
    assert code == 2 and "left by the run that makes 'mrhash.pth', not autoencoder.pth" in error


@pytest.mark.parametrize(("name", "value"), [
    ("within", {"step": 99}), ("within", {}), ("target", torch.zeros(1, 1)), ("target", None), ("optimizer", {}),
    ("model", {"centres": torch.zeros(4, 64)}), ("model", {}), ("best", {"score": 0.0, "epoch": 0, "model": {"a": 1}})])
def test_a_last_pth_that_does_not_fit_is_one_sentence(half_done, tmp_path, capsys, name, value):
    flags = half_done(tmp_path / "run")
    state = torch.load(tmp_path / "run" / "last.pth", weights_only=True)
    state[name] = value
    torch.save(state, tmp_path / "run" / "last.pth")
    before = everything(tmp_path / "run")
    code, _, error = call(capsys, "train.py", *flags, "--resume", "--output_dir", tmp_path / "run")
    assert code == 2 and "last.pth does not fit its own settings" in error and len(error.splitlines()) == 1, error
    if name != "within":  # it is looked at last
        assert everything(tmp_path / "run") == before


@pytest.mark.parametrize("more", [[], ["--resume"], ["--overwrite"]])
def test_a_folder_of_the_other_script_is_left_alone(trained, tmp_path, capsys, more):
    for result, name, flags in (
            ("ae", "train.py", stage2_flags(trained[0] / "ae" / "autoencoder.pth")),
            ("mr", "myautoencoder/autoencoder.py", stage1_flags(trained[0]))):
        shutil.copytree(trained[0] / result, tmp_path / result)
        (tmp_path / result / "last.pth").unlink()
        before = everything(tmp_path / result)
        code, _, error = call(capsys, name, *flags, *more, "--output_dir", tmp_path / result)
        assert code == 2 and "the result of another script: choose another --output_dir" in error
        assert everything(tmp_path / result) == before


def test_a_last_pth_of_an_impossible_epoch_is_one_sentence(half_done, tmp_path, capsys):
    flags = half_done(tmp_path / "run")
    state = torch.load(tmp_path / "run" / "last.pth", weights_only=True)
    torch.save({**state, "epoch": -999}, tmp_path / "run" / "last.pth")
    code, _, error = call(capsys, "train.py", *flags, "--resume", "--output_dir", tmp_path / "run")
    assert code == 2 and "says that epoch -999 is done, and the first one is 0: it is damaged" in error


# ------------------------------------------------------------------------ two processes


def wait_for(path, text, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.02)
    pytest.fail(f"no {text!r} in {path}: {path.read_text() if path.exists() else 'not there'}")


def test_a_second_run_is_kept_out_of_a_folder_until_the_first_one_ends_or_dies(trained, zygote, uninterrupted):
    folder, whole, _ = uninterrupted("train-once")
    command, output = command_in(folder, stages(trained[0])["train-once"]), folder.with_suffix(".txt")
    shutil.rmtree(folder, ignore_errors=True)
    sleeping = at_step(3, "print('asleep', flush=True); __import__('time').sleep(600)")
    pid = zygote.start(output, *command, prepare=sleeping)
    try:
        wait_for(output, "asleep")
        before = {path: path.read_bytes() for path in (folder / "run").iterdir()}
        for more in ([], ["--overwrite"]):
            code, text = zygote.run(folder.with_suffix(".2.txt"), *command, *more)
            assert code == 2 and f"another run is writing in {folder / 'run'}" in text and f"process {pid} on" in text
            assert len(text.strip().splitlines()) == 2, text  # what the data are, and the error
        assert {path: path.read_bytes() for path in (folder / "run").iterdir()} == before
    finally:
        os.kill(pid, signal.SIGKILL)
        zygote.wait(pid)
    code, text = zygote.run(output, *command)
    assert code == 0 and "resuming" in text, text
    assert_same_run(folder, whole)


def test_two_processes_that_need_the_same_cache_make_it_once(trained, zygote, uninterrupted):
    folder, whole, _ = uninterrupted("autoencoder")
    command = command_in(folder, stages(trained[0])["autoencoder"])
    shutil.rmtree(folder, ignore_errors=True)
    slowly = """
import growing_array, time
append = growing_array.GrowingArray.append
growing_array.GrowingArray.append = lambda self, *rows, **options: (
    time.sleep(0.01), print("added"), append(self, *rows, **options))
"""
    outputs = [folder.with_suffix(f".{number}.txt") for number in range(3)]
    pids = [zygote.start(output, *command, "--output_dir", folder / ("run" if number == 0 else f"run{number}"),
                         prepare=slowly) for number, output in enumerate(outputs)]
    assert [zygote.wait(pid) for pid in pids] == [0, 0, 0], [output.read_text() for output in outputs]
    assert any("another process makes" in output.read_text() for output in outputs)
    # Two views of 42 images, and their features in six batches each.
    assert sum(output.read_text().count("added") for output in outputs) == 2 * (42 + 6)
    for number in (1, 2):
        assert (folder / f"run{number}" / "autoencoder.pth").read_bytes() == (
            folder / "run" / "autoencoder.pth").read_bytes()
        shutil.rmtree(folder / f"run{number}")
    assert_same_run(folder, whole)


# ------------------------------------------------------------------------ files are whole or not there


def test_a_file_appears_whole_and_with_the_mode_of_any_other(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "new" / "file") as file:
            file.write(b"1234")
            assert not (tmp_path / "new" / "file").exists()
    finally:
        os.umask(before)
    assert (tmp_path / "new" / "file").read_bytes() == b"1234"
    assert (tmp_path / "new" / "file").stat().st_mode & 0o777 == 0o640
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


@pytest.mark.parametrize("when", ["body", "fsync", "replace"])
def test_what_goes_wrong_while_a_file_is_written_leaves_the_old_one(tmp_path, monkeypatch, when):
    (tmp_path / "file").write_text("old")

    def fail(*_, **__):
        raise OSError(28, "No space left on device", "somewhere")

    if when != "body":
        monkeypatch.setattr(os, when, fail)
    with pytest.raises(InputError) as caught, atomic_file(tmp_path / "file") as file:
        file.write(b"new")
        if when == "body":
            fail()
    assert str(caught.value) == (f"{tmp_path / 'file'} could not be written: no space left on device (free some "
                                 "space); what was saved before is whole")
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "old"


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    run = runs.Run(tmp_path, "r.pth", {}, False, False, set())
    try:
        run.log_path.mkdir()
        with pytest.raises(InputError, match=r"log\.jsonl could not be written: is a directory"):
            run.log({"epoch": 0})
    finally:
        at_end.close()


def grown(path, rows):
    """An array of six rows at `path`, begun or gone on with, of which so many are added, each counted as safe."""
    array = growing_array.GrowingArray(path, (6, 2), np.int32)
    begun = array.done
    for row in range(begun, min(6, begun + rows)):
        array.append(np.full((1, 2), row))
    if array.done == 6:
        array.finish()
    array.close()
    return begun


def test_an_array_goes_on_with_rows_that_are_there_and_with_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(growing_array.GrowingArray, "SAVE_EVERY", -1.0)
    path = tmp_path / "a.npy"
    part, note = tmp_path / ".a.npy.part", tmp_path / ".a.npy.rows.part"
    for spoil in ("nothing", "rows that were not counted", "cut short", "another header", "odd count",
                  "count too large"):
        assert grown(path, 4) == 0
        whole = part.read_bytes()
        if spoil == "rows that were not counted":
            part.write_bytes(whole + b"\xff" * 12)
        elif spoil == "cut short":
            part.write_bytes(whole[:-1])
        elif spoil == "another header":
            part.write_bytes(whole[:20] + b"?" + whole[21:])
        elif spoil == "odd count":
            note.write_text('{"rows": "4"}')
        elif spoil == "count too large":
            note.write_text('{"rows": 7}')
        assert grown(path, 6) == (4 if spoil in ("nothing", "rows that were not counted") else 0), spoil
        assert np.array_equal(np.load(path), np.arange(6).repeat(2).reshape(6, 2)), spoil
        assert [file.name for file in tmp_path.iterdir()] == ["a.npy"]
        path.unlink()


def test_what_a_killed_process_left_in_the_cache_goes(tmp_path):
    path = tmp_path / "a.npy"
    litter = [tmp_path / name for name in ("..a.npy.rows.part.abcdefgh.part", ".a.sizes.npy.abcdefgh.part")]
    others = tmp_path / ".b.npy.part"
    grown(path, 3)
    for file in (*litter, others):
        file.touch()
    with growing_array.maker(path) as wanted:
        assert wanted and not any(file.exists() for file in litter)
        assert (tmp_path / ".a.npy.part").exists() and others.exists()
    path.touch()
    with growing_array.maker(path) as wanted:
        assert not wanted and not (tmp_path / ".a.npy.part").exists() and others.exists()


@contextlib.contextmanager
def small_disk(folder, size):
    """`folder` on a disk of `size` bytes; skips where we may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True,
                          check=False)
    if done.returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def assert_disk_full(code, text, folder):
    assert code == 2, text
    last = text.strip().splitlines()[-1]
    assert last.startswith("error: ") and str(folder) in last and text.count("error:") == 1, text
    assert "free some space" in last or "limit on the size of files" in last, text


@pytest.mark.parametrize("stage", ["autoencoder", "train", "test"])
def test_a_limit_on_files_ends_in_a_sentence_and_the_run_goes_on_without_it(trained, zygote, uninterrupted, stage):
    folder, whole, _ = uninterrupted(stage)
    command, output = command_in(folder, stages(trained[0])[stage]), folder.with_suffix(".txt")
    shutil.rmtree(folder, ignore_errors=True)
    sizes = {path.stat().st_size for path in whole.rglob("*") if path.is_file()}
    limits = sorted(size - 1 for size in sizes if size > 8192)  # what is printed goes to a file, too
    assert len(limits) >= {"autoencoder": 5, "train": 3, "test": 3}[stage]
    for limit in limits:
        code, text = zygote.run(output, *command, prepare=OFTEN, limit=limit)
        assert_disk_full(code, text, folder)
        assert_whole(folder)
    code, text = zygote.run(output, *command, limit=limits[-1] + 1)
    assert code == 0, text
    assert_same_run(folder, whole)


@pytest.mark.parametrize("stage", ["autoencoder", "train"])
def test_a_full_disk_ends_in_a_sentence_and_the_run_goes_on_with_more_room(trained, zygote, uninterrupted, stage):
    folder, whole, _ = uninterrupted(stage)
    command, output = command_in(folder, stages(trained[0])[stage]), folder.with_suffix(".txt")
    shutil.rmtree(folder, ignore_errors=True)
    total = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    with small_disk(folder, total // 3):
        for share in (3, 2):
            subprocess.run(["mount", "-o", f"remount,size={total // share}", str(folder)], check=True)
            code, text = zygote.run(output, *command, prepare=OFTEN)
            assert_disk_full(code, text, folder)
            assert_whole(folder)
        subprocess.run(["mount", "-o", f"remount,size={3 * total}", str(folder)], check=True)
        code, text = zygote.run(output, *command)
        assert code == 0, text
        assert_same_run(folder, whole)


@pytest.mark.parametrize(("name", "flag"), [
    ("myautoencoder/autoencoder.py", "--output_dir"), ("train.py", "--output_dir"), ("test.py", "--output_dir"),
    ("test.py", "--save_codes"), ("test.py", "--figures"), ("test.py", "--picture")])
def test_a_place_that_cannot_be_written_is_said_before_the_work(trained, tmp_path, capsys, monkeypatch, name, flag):
    ours = trained[0]
    flags = {"myautoencoder/autoencoder.py": stage1_flags(ours),
             "train.py": stage2_flags(ours / "ae" / "autoencoder.pth"),
             "test.py": ["--pretrain_path", ours / "mr" / "mrhash.pth", "--cache_dir", "none"]}[name]
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr("image_store.ImageStore.open", lambda *_, **__: pytest.fail("images were read first"))
    for place, reason in ((tmp_path / "file" / "below", str(tmp_path / "file")), ("/proc/none/below", "/proc/none")):
        code, _, error = call(capsys, name, *flags, flag, place)
        assert code == 2 and flag in error and reason in error and len(error.splitlines()) == 1, error
    assert (tmp_path / "file").read_text() == "in the way"


# ------------------------------------------------------------------------ losses that are not finite, collapse


TOO_FAST = "import utils; utils.step_decay = lambda lr, epoch, *rest: lr if epoch < 1 else 1e30"


@pytest.mark.parametrize("stage", ["autoencoder", "train-once"])
def test_a_loss_that_is_not_finite_ends_the_run_at_its_batch_and_spares_the_state_before(
        trained, zygote, uninterrupted, stage):
    folder, whole, _ = uninterrupted(stage)
    command, output = command_in(folder, stages(trained[0])[stage]), folder.with_suffix(".txt")
    shutil.rmtree(folder, ignore_errors=True)
    code, text = zygote.run(output, *command, prepare=f"{OFTEN}\n{TOO_FAST}")
    assert code == 2 and text.count("error:") == 1, text
    last = text.strip().splitlines()[-1]
    assert "the loss is not finite in epoch 1, batch" in last or "weights are not finite any more in epoch 1" in last
    assert f"is {folder / 'run' / 'last.pth'}" in last and "lower --lr; the last good state" in last, last
    assert_whole(folder)
    # With the rate that it should have had, it ends as if nothing was.
    state = torch.load(folder / "run" / "last.pth", weights_only=True)
    if state["within"] is None:
        assert state["epoch"] == 0
        code, text = zygote.run(output, *command)
        assert code == 0, text
        assert_same_run(folder, whole)


def test_the_batch_of_the_first_loss_that_is_not_finite_is_named(tmp_path):
    class Device:
        folder, state = tmp_path, None
        _advice, _place = runs.Run._advice, runs.Run._place

    watch = runs.LossWatch(Device(), 7, 40, torch.device("cpu"))
    for step in range(11):
        watch.see(step, torch.tensor(1.0))
    watch.check()
    watch.first = torch.where(torch.tensor(True), 11, watch.first)  # as a device does that nobody waited for
    with pytest.raises(InputError, match=r"epoch 7, batch 12 of 40: begin again with a lower --lr; nothing was saved"):
        watch.see(12, torch.tensor(float("nan")))


def test_weights_that_are_not_finite_are_never_saved_over_good_ones(tmp_path):
    run = runs.Run(tmp_path, "r.pth", {}, False, False, set())
    try:
        model = torch.nn.Linear(2, 2)
        optimizer, best = torch.optim.Adam(model.parameters()), {"score": 0.0, "epoch": 0, "model": None}
        run.save(0, model=model, optimizer=optimizer, best=best)
        good = (tmp_path / "last.pth").read_bytes()
        torch.nn.init.constant_(model.bias, float("inf"))
        with pytest.raises(InputError, match=r"weights are not finite any more in epoch 1: .*the last good state, "
                                             r"after epoch 0, is .*last\.pth"):
            run.save(1, model=model, optimizer=optimizer, best=best)
        assert (tmp_path / "last.pth").read_bytes() == good
    finally:
        at_end.close()


@pytest.mark.parametrize("stage", [1, 2])
def test_an_epoch_that_cannot_be_measured_is_told_with_its_number_and_advice(trained, tmp_path, capsys, stage):
    """One step an epoch: its loss is finite, and what the weights that it leaves give is not."""
    command = {1: ["myautoencoder/autoencoder.py", *stage1_flags(trained[0]), "--lr", 1e9, "--lambda1", 1e9,
                   "--eval_frequency", 1, "--batch_size", 100],
               2: ["train.py", *stage2_flags(trained[0] / "ae" / "autoencoder.pth"), "--lr", 1e9, "--multi_lr", 1e9,
                   "--eval_frequency", 1, "--batch_size", 100]}[stage]
    code, _, error = call(capsys, *command, "--output_dir", tmp_path / "run")
    last = error.strip().splitlines()[-1]
    assert code == 2 and last.startswith("error: epoch 0 cannot be measured (") and "finite" in last, error
    assert "begin again with a lower --lr; nothing was saved before" in last


def test_empty_clusters_and_constant_bits_are_warned_of_once(trained, tmp_path, capsys):
    code, _, error = call(capsys, "train.py", *stage2_flags(trained[0] / "ae" / "autoencoder.pth"), "--n_clusters",
                          30, "--hash_bit", 64, "--lr", 0.3, "--multi_lr", 0, "--head_epochs", 3, "--max_epoch", -1,
                          "--output_dir", tmp_path / "run")
    assert code == 0, error
    warnings = [line for line in error.splitlines() if line.startswith("warning:")]
    clusters = [line for line in warnings if "of 30 clusters are empty" in line]
    bits = [line for line in warnings if "bits are the same for all images" in line]
    assert len(clusters) == len(bits) == 1 and len(warnings) == 2, error
    assert "lower --n_clusters" in clusters[0] and "use fewer --hash_bit or more --n_clusters" in bits[0]
    counted = [json.loads(line)["constant_bits"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(type(count) is int for count in counted) and max(counted) > 0
    code, _, error = call(capsys, "test.py", "--pretrain_path", tmp_path / "run" / "mrhash.pth", "--cache_dir", "none")
    assert code == 0 and error.count("bits are the same for all images") == 1, error


def test_codes_that_are_all_equal_are_warned_of(trained, tmp_path, capsys):
    content = dict(np.load(trained[0] / "codes.npz"))
    content["database_codes"][:] = content["database_codes"][0]
    np.savez(tmp_path / "codes.npz", **content)
    code, _, error = call(capsys, "test.py", "--codes", tmp_path / "codes.npz")
    assert code == 0 and "warning: all 12 bits are the same for all images, so that nothing can be ranked" in error


def test_every_test_that_the_table_of_promises_names_is_there():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text()))
    there = set(re.findall(r"^def (test_\w+)", "".join(
        path.read_text() for path in (ROOT / "tests").glob("test_*.py")), re.MULTILINE))
    assert len(named) > 50 and named <= there, named - there


def test_a_signal_that_the_shell_wants_ignored_is_ignored(trained, zygote, uninterrupted):
    folder, whole, _ = uninterrupted("train-once")
    command, output = command_in(folder, stages(trained[0])["train-once"]), folder.with_suffix(".txt")
    shutil.rmtree(folder, ignore_errors=True)
    prepare = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n" + at_step(
        3, "os.kill(os.getpid(), signal.SIGINT)")
    code, text = zygote.run(output, *command, prepare=prepare)
    assert code == 0, text
    assert_same_run(folder, whole)
