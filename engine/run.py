"""A run's folder, which no other run may enter: config.json, log.jsonl, last.pth and the result.

Where torchrun started several ranks they are one run: rank 0 holds the folder and writes, all read.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.checkpoint import load_checkpoint, reason_of, save_checkpoint
from engine.distributed import first_rank_first
from engine.files import at_end, atomic_file, check_writable, lock, write_json, writing
from utils import ROOT, InputError, rank, world_size

RESULTS = ("autoencoder.pth", "mrhash.pth")
STATE = "mrhash-training-2"  # the format of last.pth

# Settings that may differ when a run is resumed: where things lie, how it is computed, how long.
# What lies there is compared by its content (`Run.attach`).
HARMLESS = {"output_dir", "preset", "resume", "overwrite", "device", "workers", "cache_dir",
            "data_dir", "split_dir", "pretrained_dp_path", "weights", "feature_weights",
            "features1", "features2", "epoch", "max_epoch"}


class AnotherScript(InputError):
    """A folder holds the run of another script."""


class RunFolder:
    """One output folder, locked until the script ends.

    Nothing in it is replaced or removed before `begin`, so that a bad flag beside --overwrite loses
    nothing.
    """

    def __init__(self, folder: Path, result: str, settings: dict[str, Any], resume: bool,
                 overwrite: bool, places: Set[str] = frozenset()) -> None:
        """Enter the folder; with `resume`, load last.pth and check that it had the same settings.

        Args:
            folder: made if it is not there.
            result: name of the file that the finished run writes.
            settings: plain values that describe the run.
            resume: go on with the run that lies there.
            overwrite: replace it.
            places: settings that say where images lie: a resumed run may have other ones.
        Raises:
            InputError: another process works in the folder, it holds a run and neither flag says
                what to do, the settings differ, or it cannot be written.
        """
        self.path, self.result, self.settings = folder, result, settings
        self._harmless = HARMLESS | places
        self.state: dict[str, Any] | None = None  # of last.pth, where the run is resumed
        with first_rank_first():
            self._lock()
            self._enter(resume, overwrite)

    def _lock(self) -> None:
        place = self.path / ".lock"
        if rank() == 0:
            check_writable(self.path, "--output_dir")  # said now, not after the work
            at_end.enter_context(lock(place, f"another run is writing in {self.path}: wait until "
                                      "it is done, or choose another --output_dir"))
        elif not place.exists():
            raise InputError(f"this machine does not see the {self.path} of rank 0: name an "
                             "--output_dir that all machines share")

    def _enter(self, resume: bool, overwrite: bool) -> None:
        last, done = self.path / "last.pth", self.path / self.result
        for name in RESULTS:
            if name != self.result and (self.path / name).exists():
                raise InputError(f"{self.path} holds {name}, the result of another script: choose "
                                 "another --output_dir")
        if last.exists() and overwrite and resume:
            raise InputError(f"{last} is there to go on from: give --resume to do so, or "
                             "--overwrite to begin again, not both")
        if last.exists() and overwrite:
            self._check_script(last)
        if resume and last.exists():
            self.state = self._load(last)
            self._compare(self.state["settings"])
        elif resume and done.exists() and not overwrite:
            raise InputError(f"{self.path} holds a finished {self.result} and no last.pth to go on "
                             "from: add --overwrite to make it again, or choose another "
                             "--output_dir")
        elif resume:
            print(f"nothing to resume in {self.path}, starting from the beginning")
        elif (last.exists() or done.exists()) and not overwrite:
            raise InputError(f"{self.path} already holds a run: add --resume to continue it, "
                             "--overwrite to replace it, or choose another --output_dir")

    def _load(self, path: Path) -> dict[str, Any]:
        state = load_checkpoint(path, STATE)
        if state["result"] != self.result:
            raise AnotherScript(f"{path} was left by the run that makes {state['result'][:40]!r}, "
                                f"not {self.result}: choose another --output_dir")
        return state

    def _check_script(self, path: Path) -> None:
        """What --overwrite replaces is a run of this script, or a last.pth that is damaged."""
        try:
            self._load(path)
        except AnotherScript:
            raise
        except InputError:
            pass

    def _compare(self, before: dict[str, Any]) -> None:
        """Raises InputError where settings that matter differ from those of last.pth."""
        differing = []
        for key in sorted((before.keys() | self.settings.keys()) - self._harmless):
            if key not in self.settings:
                differing.append(f"{key} is not known any more")
            elif key not in before:
                differing.append(f"{key} is not known to the code that began it")
            elif key == "fingerprint" and before[key] != self.settings[key]:
                differing.append("the images, their labels or their split are others")
            elif repr(before[key]) != repr(self.settings[key]):  # a file may hold anything
                differing.append(f"{key} was {before[key]!r:.200}, now {self.settings[key]!r:.200}")
        if differing:
            raise InputError(f"cannot resume {self.path} with other settings: "
                             f"{'; '.join(differing)}")

    def begin(self, epochs: int) -> float:
        """Write config.json and the log of the epochs that are finished; what was there goes.

        Returns:
            the seconds that those epochs took.
        """
        if rank():
            return 0.0
        self._tidy()
        write_json(self.path / "config.json", {**self.settings, "environment": environment()})
        log = self.path / "log.jsonl"
        kept = read_log(log)[:epochs] if self.state is not None and log.exists() else []
        if self.state is None:
            for stale in ("last.pth", self.result):
                (self.path / stale).unlink(missing_ok=True)
        with atomic_file(log) as file:
            for record in kept:
                file.write((json.dumps(record) + "\n").encode())
        return max((record["seconds"] for record in kept), default=0.0)

    def _tidy(self) -> None:
        """Remove what a killed run had begun to write: no other one is in here."""
        for stale in self.path.glob(".*.part"):
            stale.unlink(missing_ok=True)

    def log(self, record: dict[str, Any]) -> None:
        """Append one JSON object to log.jsonl."""
        if rank() == 0:
            path = self.path / "log.jsonl"
            with writing(path), open(path, "a") as file:
                file.write(json.dumps(record) + "\n")

    def save(self, state: dict[str, Any]) -> None:
        """Write last.pth. Raises InputError, and leaves the one before, where the disk is full."""
        if rank() == 0:
            settings = {key: value for key, value in self.settings.items()
                        if key not in ("resume", "overwrite")}
            save_checkpoint(self.path / "last.pth", {"format": STATE, "result": self.result,
                                                     "settings": settings, **state})

    @contextlib.contextmanager
    def fitting(self) -> Iterator[None]:
        """What is taken from last.pth in the body either fits, or InputError says it does not."""
        try:
            yield
        except Exception as error:  # a state of something else gives exceptions of any kind
            raise InputError(f"{self.path / 'last.pth'} does not fit its own settings "
                             f"({reason_of(error)}): --overwrite begins again") from None

    def advice(self) -> str:
        """What to do when training has gone wrong."""
        last = self.path / "last.pth"
        good = f"the last good state is {last}" if last.exists() else "nothing was saved before"
        return f"begin again with a lower --lr; {good}"

    def save_result(self, content: dict[str, Any]) -> None:
        """Write the result of the finished run."""
        if rank() == 0:
            self._tidy()
            save_checkpoint(self.path / self.result, content)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log.jsonl; a line that a crash cut short is left out."""
    records = []
    for line in path.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("seconds"), int | float):
                records.append(record)
    return records


def environment() -> dict[str, Any]:
    """Versions, git commit (with `+changes` for an unclean tree) and command, for config.json."""
    import scipy
    import torchvision

    commit = _git("rev-parse", "HEAD")
    if commit and _git("status", "--porcelain", "--untracked-files=no"):
        commit += "+changes"
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"python": sys.version.split()[0], "torch": torch.__version__,
            "torchvision": torchvision.__version__, "numpy": np.__version__,
            "scipy": scipy.__version__, "threads": torch.get_num_threads(), "ranks": world_size(),
            "cuda": card, "git_commit": commit or None, "command": sys.argv}


def _git(*command: str) -> str:
    try:
        return subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True,
                              timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
