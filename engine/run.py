"""A run that trains: its folder, which no other run may enter, what it keeps there, how it stops and goes on.

Where torchrun started several ranks they are one run: rank 0 holds the folder and writes, all read.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.checkpoint import load_checkpoint, load_state, reason_of, save_checkpoint
from engine.distributed import first_rank_first, largest, rank, world_size
from engine.files import at_end, atomic_file, check_writable, lock, write_json, writing
from hamming import CodeError
from utils import ROOT, InputError, warn


class Stopped(KeyboardInterrupt):
    """A signal asked the script to end; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Run:
    """One output folder: config.json, log.jsonl, last.pth and the result beside them."""

    SAVE_EVERY = 30.0  # seconds: what a killed run can lose, or more where saving takes long
    RESULTS = ("autoencoder.pth", "mrhash.pth")

    def __init__(self, folder: Path, result: str, settings: dict[str, Any], resume: bool,
                 overwrite: bool, harmless: set[str]) -> None:
        """Lock `folder` until the script ends; with `resume`, load last.pth and check that it had the same settings.

        Nothing in it is replaced or removed before `start`, so that a bad flag beside --overwrite loses nothing.

        Args:
            result: name of the file that the finished run writes. settings: plain values that describe
                the run. harmless: the keys among them that may differ when a run is resumed.
        Raises:
            InputError: another process works in the folder, it holds a run and neither flag says what to do,
                the settings differ, or it cannot be written.
        """
        self.folder, self.settings, self.result = folder, settings, result
        self.seconds = 0.0  # that the run took before it was resumed
        self.state: dict[str, Any] | None = None
        self.asked: int | None = None  # the signal that asked to stop
        self._deferring = False
        self._warned: set[str] = set()
        self._saved, self._cost = time.monotonic(), 0.0  # when last.pth was written, and how long that took
        self._began_with: dict[str, Any] = {}
        self.log_path = folder / "log.jsonl"
        with first_rank_first():
            self._enter(result, resume, overwrite, harmless)

    def _enter(self, result: str, resume: bool, overwrite: bool, harmless: set[str]) -> None:
        folder = self.folder
        if rank() == 0:
            check_writable(folder, "--output_dir")  # said now, not after the work
            at_end.enter_context(lock(folder / ".lock", f"another run is writing in {folder}: wait until it is done, "
                                      "or choose another --output_dir"))
        elif not (folder / ".lock").exists():
            raise InputError(f"this machine does not see the {folder} of rank 0: name an --output_dir that all "
                             "machines share")
        last, done = folder / "last.pth", folder / result
        foreign = [name for name in self.RESULTS if name != result and (folder / name).exists()]
        if foreign:
            raise InputError(f"{folder} holds {foreign[0]}, the result of another script: choose another --output_dir")
        if resume and last.exists():
            self.state = self._load(last)
            self._compare(self.state["settings"], harmless)
            print(f"resuming {folder} {self._place()}")
        elif resume and done.exists():
            raise InputError(f"{folder} holds a finished {result} and no last.pth to go on from: add --overwrite to "
                             "make it again, or choose another --output_dir")
        elif (last.exists() or done.exists()) and not overwrite:
            raise InputError(f"{folder} already holds a run: add --resume to continue it, --overwrite "
                             "to replace it, or choose another --output_dir")
        elif resume:
            print(f"nothing to resume in {folder}, starting from the beginning")

    def _load(self, path: Path) -> dict[str, Any]:
        state = load_checkpoint(path, "mrhash-training-1")
        if state["result"] != self.result:
            raise InputError(f"{path} was left by the run that makes {state['result'][:40]!r}, not {self.result}: "
                             "choose another --output_dir")
        return state

    def _compare(self, before: dict[str, Any], harmless: set[str]) -> None:
        # As text: a file may hold anything, and some things cannot be compared.
        before, now = ({key: repr(value) for key, value in some.items()} for some in (before, self.settings))
        differing = [f"{key} was {before[key][:200]}, now {now[key][:200]}" if key in before and key in now else
                     f"{key} is {'not known any more' if key in before else 'not known to the code that began it'}"
                     for key in sorted((before.keys() | now.keys()) - harmless) if before.get(key) != now.get(key)]
        if differing:
            raise InputError(f"cannot resume {self.folder} with other settings: {'; '.join(differing)}")

    def _place(self) -> str:
        """How far last.pth has come."""
        epoch, within = self.state["epoch"], self.state["within"]
        return (f"after epoch {epoch}" if within is None else
                f"in epoch {epoch + 1}, after batch {within.get('step', '?')}")

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Load the state of a resumed run. Raises InputError when last.pth does not fit."""
        with self.fitting():
            kept = self.state["best"]["model"]
            if kept:
                load_state(model, kept)  # a trial, for the end of the run
            load_state(model, self.state["model"])
            optimizer.load_state_dict(self.state["optimizer"])

    @contextlib.contextmanager
    def fitting(self) -> Iterator[None]:
        """What is taken from last.pth in the body either fits, or InputError says that it does not."""
        try:
            yield
        except Exception as error:  # a state of something else gives exceptions of any kind
            raise InputError(f"{self.folder / 'last.pth'} does not fit its own settings ({reason_of(error)}): "
                             "--overwrite begins again") from None

    def began_with(self, name: str, value: str | Tensor, what: str) -> None:
        """Remember what the run began with beside its settings: the content of a file, or numbers of the images.

        Args:
            name: a word for it. value: text, or a float tensor, which may differ by some rounding. what: for people.
        Raises:
            InputError: the run that is resumed began with another.
        """
        before = self.state["began_with"].get(name) if self.state is not None else value
        if isinstance(value, Tensor):
            same = isinstance(before, Tensor) and before.shape == value.shape and torch.allclose(
                before, value, rtol=0.02, atol=1e-6)
        else:
            same = before == value if isinstance(before, str) else False
        if not same:
            raise InputError(f"cannot resume {self.folder}: {what} are not those that it began with")
        self._began_with[name] = before  # to the bit what it was

    def start(self) -> None:
        """Write config.json and the log so far; what an earlier run left goes. Called when all else is ready.

        From now on Ctrl-C and SIGTERM are noticed, see `deferring`.
        """
        if rank() == 0:
            self._begin_files()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is signal.SIG_IGN:  # a shell that runs it in the background wants it so
                    continue
                at_end.callback(signal.signal, number, signal.signal(number, self._on_signal))

    def _begin_files(self) -> None:
        for stale in self.folder.glob(".*.part"):  # of a killed run: no other one is in here
            stale.unlink(missing_ok=True)
        write_json(self.folder / "config.json", {**self.settings, "environment": environment()})
        kept = []
        if self.state is not None and self.log_path.exists():
            kept = [record for record in read_log(self.log_path) if record["epoch"] <= self.state["epoch"]]
            self.seconds = max((record["seconds"] for record in kept), default=0.0)
        else:
            for stale in ("last.pth", self.result):
                (self.folder / stale).unlink(missing_ok=True)
        with atomic_file(self.log_path) as file:
            file.write("".join(json.dumps(record) + "\n" for record in kept).encode())

    def first_epoch(self, first: int = 0) -> int:
        """The epoch to start with: `first`, or the one after the last finished epoch."""
        if self.state is None:
            return first
        if self.state["epoch"] + 1 < first:
            raise InputError(f"{self.folder / 'last.pth'} says that epoch {self.state['epoch']} is done, and the first "
                             f"one is {first}: it is damaged")
        return self.state["epoch"] + 1

    def check_not_past(self, last: int, flag: str, first: int = 0) -> None:
        """Raise InputError where the run that is resumed has gone beyond epoch `last`, which `flag` asks for."""
        next_one = self.first_epoch(first)
        begun = next_one if self.state is not None and self.state["within"] is not None else next_one - 1
        if begun > last:
            raise InputError(f"{self.folder} has come to epoch {begun} already: {flag} cannot undo it")

    def log(self, record: dict[str, Any]) -> None:
        """Append one JSON object to log.jsonl."""
        if rank():
            return
        with writing(self.log_path), open(self.log_path, "a") as file:
            file.write(json.dumps(record) + "\n")

    def save(self, epoch: int, within: dict[str, Any] | None = None, *, model: nn.Module,
             optimizer: torch.optim.Optimizer, best: dict[str, Any], **state: Any) -> None:
        """Write last.pth: all that a resumed run needs to end as an uninterrupted one.

        Args:
            epoch: the last finished one. within: how far the next one has come (`step` and what goes with it), or
                None. best: score, epoch and model that would be kept so far.
        Raises:
            InputError: weights that are not finite; the last.pth before, which is good, stays.
        """
        self.check_weights(model, epoch + (within is not None))
        if rank():
            return
        begun = time.monotonic()
        settings = {key: value for key, value in self.settings.items() if key not in ("resume", "overwrite")}
        kept = {"epoch": epoch, "within": within, "settings": settings, "result": self.result, "best": best,
                "began_with": self._began_with, **state}
        save_checkpoint(self.folder / "last.pth", {"format": "mrhash-training-1", **kept,
                                                   "model": model.state_dict(), "optimizer": optimizer.state_dict()})
        self.state = kept
        self._saved = time.monotonic()
        self._cost = self._saved - begun

    def check_weights(self, model: nn.Module, epoch: int) -> None:
        """Raise InputError, which tells of the last good state, where weights are not finite."""
        if not all(bool(value.isfinite().all()) for value in model.state_dict().values()):
            raise InputError(f"the weights are not finite any more in epoch {epoch}: {self._advice()}")

    @contextlib.contextmanager
    def measuring(self, epoch: int) -> Iterator[None]:
        """Finite weights can still give latents and codes that are not: then the body's CodeError is told as such."""
        try:
            yield
        except CodeError as error:
            raise InputError(f"epoch {epoch} cannot be measured ({str(error).rstrip('.')}): {self._advice()}") from None

    def due(self) -> bool:
        """Whether it is time to save again: seldom enough that saving takes no more than a fiftieth of the time."""
        return time.monotonic() - self._saved > max(self.SAVE_EVERY, 50 * self._cost)

    def wants_saving(self) -> bool:
        """Whether to save now: `due`, or `asked` to stop. Ranks agree: all are asked when one is, and due as rank 0."""
        asked, due = largest(self.asked or 0, int(rank() == 0 and self.due()))
        self.asked = asked or None
        return bool(asked or due)

    def _advice(self) -> str:
        good = "nothing was saved before" if self.state is None else (
            f"the last good state, {self._place()}, is {self.folder / 'last.pth'}")
        return f"begin again with a lower --lr; {good}"

    def warn_once(self, kind: str, text: str) -> None:
        """A warning on stderr, the first time that something of this kind is noticed."""
        if kind not in self._warned:
            self._warned.add(kind)
            warn(text)

    # ------------------------------------------------------------ stopping

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Of several ranks none may go while the others wait for it: they agree after a step.
        if not (self._deferring or world_size() > 1) or self.asked is not None:
            raise Stopped(number)
        self.asked = number
        print("stopping when this step is done and saved; once more stops at once", file=sys.stderr)

    @contextlib.contextmanager
    def deferring(self) -> Iterator[None]:
        """While this lasts, a first Ctrl-C or SIGTERM only sets `asked`, and a second one stops the script anywhere.

        Where everything is saved, `stop_if_asked` stops it.
        """
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def stop_if_asked(self) -> None:
        if self.asked is not None:
            raise Stopped(self.asked)

    @contextlib.contextmanager
    def saving(self, save: Callable[[], None]) -> Iterator[None]:
        """Call `save` when Ctrl-C or SIGTERM ends the body, which changes nothing itself."""
        try:
            yield
        except KeyboardInterrupt:
            save()
            raise


class LossWatch:
    """Notices the first loss of an epoch that is not finite, without waiting for the device at every step."""

    EVERY = 50  # steps between two looks at a device that would have to be waited for

    def __init__(self, run: Run, epoch: int, steps: int, device: torch.device) -> None:
        """steps: that the epoch has, for the message."""
        self.run, self.epoch, self.steps = run, epoch, steps
        self.first = torch.full((), -1, device=device)

    def see(self, step: int, loss: Tensor) -> None:
        """Take note of the loss of `step` (from 0). Raises InputError, at the latest some steps after a bad one."""
        self.first = torch.where((self.first < 0) & ~loss.detach().isfinite(), step, self.first)
        if loss.device.type == "cpu" or step % self.EVERY == 0:
            self.check()

    def check(self) -> None:
        """Raises InputError where a loss was not finite: epoch, batch, and what was saved before."""
        first = int(self.first)
        if first >= 0:
            raise InputError(f"the loss is not finite in epoch {self.epoch}, batch {first + 1} of {self.steps}: "
                             f"{self.run._advice()}")


def put(value: Tensor, place: Tensor) -> Tensor:
    """`place`, filled with a saved value. Raises ValueError where that has another shape (copy_ might stretch it)."""
    if value.shape != place.shape:
        raise ValueError(f"a tensor of {tuple(value.shape)}, expected {tuple(place.shape)}")
    return place.copy_(value)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """What dropout draws from here on: the state of torch's generator, and of the device's."""
    states = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Back to the states that `random_states` took; one of another kind of device is left out."""
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log.jsonl, with epoch and seconds; a line that a crash cut short is left out."""
    records = []
    for line in path.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and type(record.get("epoch")) is int and isinstance(
                    record.get("seconds"), (int, float)):
                records.append(record)
    return records


def environment() -> dict[str, Any]:
    """Versions, git commit (with `+changes` for an unclean tree) and the command, for config.json."""
    import scipy
    import torchvision

    def git(*command: str) -> str:
        try:
            return subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True,
                                  timeout=10, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return ""

    commit = git("rev-parse", "HEAD")
    if commit and git("status", "--porcelain", "--untracked-files=no"):
        commit += "+changes"
    return {"python": sys.version.split()[0], "torch": torch.__version__,
            "torchvision": torchvision.__version__, "numpy": np.__version__,
            "scipy": scipy.__version__, "threads": torch.get_num_threads(), "ranks": world_size(),
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "git_commit": commit or None, "command": sys.argv}
