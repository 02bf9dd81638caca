"""Runs of the scripts that tests cut short: the commands, how to act inside them, comparisons."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import stage1_flags, stage2_flags

# Save at every occasion, so that each is one to go on from.
OFTEN = """
from engine.cache import _Part
from engine.loop import Run
Run.SAVE_EVERY = _Part.SAVE_EVERY = -1.0
Run._save_cost = property(lambda self: 0.0, lambda self, value: None)
"""
SELDOM = "from engine.loop import Run\nRun.SAVE_EVERY = 1e9\n"
CLOCK = ("seconds", "images_per_second")


def at_step(number, action, prepare=OFTEN):
    """Lines that have a script do `action` at the end of its so-manieth training step."""
    return f"""{prepare}
import itertools, os, signal, time
from engine.loop import Run
numbers, watch = itertools.count(1), Run._watch
def acting(self, end=False):
    watch(self, end)
    if not end and next(numbers) == {number}:
        {action}
Run._watch = acting
"""


SMALL_STEPS = ["--batch_size", 8, "--image_size", 32]
DROPOUT = ["--model_type", "mobilenet_v3_small"]  # a small network, and one that has dropout


def commands(folder):
    """What is cut short, by name; {} is where it works."""
    first = ["myautoencoder/autoencoder.py", *stage1_flags(folder), *SMALL_STEPS, "--epoch", 8]
    second = ["train.py", *stage2_flags(folder / "ae" / "autoencoder.pth"), *SMALL_STEPS,
              *DROPOUT, "--max_epoch", 1]
    places = ["--cache_dir", "{}/cache", "--output_dir", "{}/run"]
    return {
        "autoencoder": [*first, "--resume", *places],
        "train": [*second, "--head_epochs", 2, "--head_width", 8, "--resume", *places],
        "train-once": [*second, "--targets", "once", "--select", "loss", "--resume", *places],
        "test": ["test.py", "--pretrain_path", folder / "mr" / "mrhash.pth", "--device", "cpu",
                 "--save_codes", "{}/run/codes.npz", "--figures", "{}/run", *places],
    }


@dataclass
class Stage:
    """One script in a folder of its own, beside a run of it that nothing has cut short."""

    zygote: object
    command: list
    folder: Path  # where it works
    whole: Path  # of the run in one go
    seconds: float  # which that took

    @property
    def output(self):
        return self.folder.with_suffix(".txt")

    def begin_anew(self):
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, prepare="", limit=None):
        """Exit code and output."""
        return self.zygote.run(self.output, *self.command, prepare=prepare, limit=limit)

    def start(self, prepare=""):
        return self.zygote.start(self.output, *self.command, prepare=prepare)

    def assert_as_whole(self):
        """All files have the bytes of the run in one go, but for times and the command."""
        assert names_in(self.folder) == names_in(self.whole)
        for name in names_in(self.whole):
            if Path(name).name != "config.json":
                assert content_of(self.folder / name) == content_of(self.whole / name), name


def names_in(folder):
    # What a killed test.py had begun to write stays aside: nobody could tell it from another's.
    # Checksums of images that were just made are not remembered, by the clock.
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
                  and not path.name.endswith(".lock") and path.parent.name != "checksums"
                  and not (path.suffix == ".part" and (folder / "run" / "results.json").exists()))


def without_times(path):
    """The records of a log.jsonl, but for what the clock says."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        for key in CLOCK:
            del record[key]
    return records


def content_of(path):
    """What must be the same of a file that two runs wrote."""
    if path.name == "log.jsonl":
        return without_times(path)
    if path.name == "results.json":
        results = json.loads(path.read_text())
        return {key: value for key, value in results.items() if key not in CLOCK}
    return path.read_bytes()


def assert_whole(folder):
    """Whatever stands under its own name can be opened."""
    for path in folder.rglob("*"):
        if path.name.startswith("."):
            continue
        if path.suffix == ".pth":
            torch.load(path, weights_only=True)
        elif path.suffix in (".npy", ".npz"):
            np.load(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())


def everything(folder):
    """The bytes of all files of a run's folder by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def wait_for(path, text, seconds=60):
    """Until `text` stands in the file."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.02)
    pytest.fail(f"no {text!r} in {path}: {path.read_text() if path.exists() else 'not there'}")


def kill(zygote, pid, number=signal.SIGKILL):
    """End a script; returns its exit code."""
    os.kill(pid, number)
    return zygote.wait(pid)


def killed_at(place, number=1):
    """Lines that kill the process at the so-manieth call of a function of ours."""
    module, _, name = place.partition(":")
    return f"""
import itertools, os, signal
import {module} as module
owner, name = module, {name!r}
while "." in name:
    first, _, name = name.partition(".")
    owner = getattr(owner, first)
before, calls = getattr(owner, name), itertools.count(1)
def killed(*arguments, **options):
    if next(calls) == {number}:
        os.kill(os.getpid(), signal.SIGKILL)
    return before(*arguments, **options)
setattr(owner, name, killed)
"""


# ------------------------------------------------------------ short of disk


def assert_disk_full(code, text, folder):
    assert code == 2, text
    last = text.strip().splitlines()[-1]
    assert last.startswith("error: ") and str(folder) in last and text.count("error:") == 1, text
    assert "free some space" in last or "limit on the size of files" in last, text


@contextlib.contextmanager
def small_disk(folder, size):
    """`folder` on a disk of `size` bytes; skips where we may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def resize(folder, size):
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)
