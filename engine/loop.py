"""The walk over epochs and steps: where a run saves, resumes, stops, and watches its loss.

    run = Run(folder, "mrhash.pth", settings, args.resume, args.overwrite)
    run.attach(model, optimizer, {})                  # a resumed run gets its weights back
    for epoch in run.epochs("epoch", 50):             # goes on where last.pth stands
        meters = run.meters("loss")
        for step in run.steps(ShuffledEpoch(...)):    # saves, stops and resumes between steps
            ...
            meters.update([loss], step.count)
        run.finish_epoch(meters.averages())           # log.jsonl, last.pth, the best so far
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.checkpoint import copy_state, differing, load_state
from engine.distributed import largest, share_buffers, sum_over_ranks
from engine.epoch import Meters, ShuffledEpoch, Step
from engine.run import RunFolder
from engine.stopping import StopSignals
from hamming import CodeError
from utils import InputError, progress, rank, warn, world_size


class Run:
    """A run that trains. Rank 0 writes; the others walk along."""

    SAVE_EVERY = 30.0  # seconds: what a killed run can lose, or more where saving takes long
    LOOK_EVERY = 50  # steps between two looks at a loss for which the device must be waited for

    def __init__(self, folder: Path, result: str, settings: dict[str, Any], resume: bool,
                 overwrite: bool, places: Set[str] = frozenset()) -> None:
        """Enter the folder, as `RunFolder` does."""
        self.folder = RunFolder(folder, result, settings, resume, overwrite, places)
        self.finished: dict[str, int] = {}  # by phase: how many epochs are done
        self.best: dict[str, Any] = dict(phase=None, score=-math.inf, epoch=None, model=None)
        self._state = self.folder.state  # of last.pth
        self._unfinished: dict[str, Any] | None = None  # where last.pth stands inside an epoch
        self._remembered: dict[str, Tensor] = {}
        self._phase, self._epoch, self._step, self._steps = "", 0, 0, 0
        self._meters: Meters | None = None
        self._signals = StopSignals()
        self._warned: set[str] = set()
        self._started: float | None = None
        self._saved, self._save_cost = time.monotonic(), 0.0
        if self._state is not None:
            self.finished, self._unfinished = self._state["finished"], self._state["unfinished"]
            self.best, self._remembered = self._state["best"], self._state["remembered"]
            with self.folder.fitting():
                print(f"resuming {folder} {self._place()}")

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer,
               began_with: dict[str, str | Tensor]) -> None:
        """Say what is trained; a resumed run gets the weights of last.pth.

        Args:
            model, optimizer: what is saved.
            began_with: by name, what the run depends on beside its settings: a hash of a file, or
                int64 (N,), a checksum an image.
        Raises:
            InputError: last.pth does not fit, or began with something else.
        """
        self.model, self.optimizer, self._began_with = model, optimizer, began_with
        self.device = next(model.parameters()).device
        if self._state is None:
            return
        before = self._state["began_with"]
        for name, value in began_with.items():
            found = differing(name, before.get(name), value)
            if found:
                raise InputError(f"cannot resume {self.folder.path}: {found} are not those that it "
                                 "began with")
        with self.folder.fitting():
            if self.best["model"] is not None:
                load_state(model, self.best["model"])  # a trial, for the end of the run
            load_state(model, self._state["model"])
            optimizer.load_state_dict(self._state["optimizer"])
            for name, value in self._remembered.items():
                self._remembered[name] = value.to(self.device)

    def epochs(self, phase: str, count: int) -> Iterator[int]:
        """The epochs 0..count-1 of a phase that are not finished yet.

        Args:
            phase: what its epochs are called, such as "head epoch".
            count: of epochs.
        Raises:
            InputError: the run that is resumed has come further already.
        """
        first = self.finished.get(phase, 0)
        begun = first + (self._unfinished is not None and self._unfinished["phase"] == phase)
        if begun > count:
            raise InputError(f"{self.folder.path} has come to {phase} {begun - 1} already, more "
                             f"than {count} in all: ask for more, or begin again with --overwrite")
        self._phase = phase if count else self._phase
        for epoch in range(first, count):
            if self._started is None:
                self._begin()  # not before: nothing is written where there is nothing to do
            self._epoch, self._last_epoch = epoch, epoch == count - 1
            self.label = f"{phase} {epoch}/{count - 1}"  # counted from 0, as published
            yield epoch

    def steps(self, epoch: ShuffledEpoch) -> Iterator[Step]:
        """The steps of the epoch that are not done yet; saves, stops and resumes between them.

        Raises:
            InputError: the loss is not finite any more.
            Stopped: Ctrl-C or SIGTERM came, and all is saved.
        """
        self._step, self._steps = self._resume_inside(len(epoch)), len(epoch)
        started, rows_before = time.time(), self._meters.rows
        bar = progress(epoch.steps(self._step), self.label, len(epoch), self._step)
        self._signals.deferred = True  # Ctrl-C waits for the end of the step
        try:
            for step in bar:
                yield step
                self._step += 1
                self._watch()
                if self._wants_saving():
                    self._save()
                    self._signals.raise_if_asked()
            self._watch(end=True)
            share_buffers(self.model)
        finally:
            self._signals.deferred = False
        rows = float(sum_over_ranks(np.array(self._meters.rows - rows_before)))
        self._rate = rows / max(time.time() - started, 1e-9)  # images a second
        if self._wants_saving() and self._signals.asked:
            self._save()
            self._signals.raise_if_asked()

    def meters(self, *names: str) -> Meters:
        """Means of this epoch; the first one is the loss that is watched."""
        self._meters = Meters(names, self.device)
        return self._meters

    def remember(self, name: str, make: Callable[[], Tensor], each_epoch: bool) -> Tensor:
        """A tensor that is made at the start of an epoch, and kept when the run is resumed in it.

        Args:
            name: a word for it.
            make: makes it, on the device.
            each_epoch: make it anew in each epoch, or once in the run.
        """
        if name not in self._remembered or (each_epoch and self._unfinished is None):
            self._remembered[name] = make()
        return self._remembered[name]

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """For the body, which measures and changes nothing: Ctrl-C saves the epoch before.

        Raises:
            InputError: weights, latents or codes that are not finite.
        """
        self._check_weights()
        try:
            yield
        except CodeError as error:
            raise InputError(f"{self.label} cannot be measured ({str(error).rstrip('.')}): "
                             f"{self.folder.advice()}") from None
        except KeyboardInterrupt:
            if world_size() == 1:  # ranks stop together, or without saving
                self._save()
            raise

    def finish_epoch(self, stats: dict[str, Any], score: float | None = None) -> None:
        """Log the epoch, keep its weights if they are the best so far, and save when it is time.

        Args:
            stats: plain values for log.jsonl; images_per_second and seconds are added.
            score: larger is better, compared within the phase; None keeps the last weights.
        Raises:
            InputError: weights that are not finite; the last.pth before, which is good, stays.
        """
        self._check_weights()
        if score is not None and (self._phase != self.best["phase"] or score > self.best["score"]):
            self.best = {"phase": self._phase, "score": score, "epoch": self._epoch,
                         "model": copy_state(self.model)}
        self.finished[self._phase] = self._epoch + 1
        self._unfinished, self._step = None, 0
        stats |= {"images_per_second": round(self._rate, 1),
                  "seconds": round(time.time() - self._started, 2)}
        self.folder.log({"phase": self._phase, "epoch": self._epoch, **stats})
        # Many an epoch takes less time than writing it to disk.
        if self._wants_saving() or self._last_epoch:
            self._save()
            self._signals.raise_if_asked()

    def kept(self) -> tuple[str, int, dict[str, Tensor]]:
        """The phase and epoch that count, the best or else the last, and its weights."""
        if self.best["model"] is None:
            return self._phase, self.finished[self._phase] - 1, copy_state(self.model)
        return self.best["phase"], self.best["epoch"], self.best["model"]

    def save_result(self, content: dict[str, Any]) -> None:
        """Write the result: `content`, and the epoch that is kept with its weights."""
        phase, epoch, weights = self.kept()
        self.folder.save_result(content | {"phase": phase, "epoch": epoch, "model": weights})
        print(f"wrote {self.folder.path / self.folder.result} ({phase} {epoch})")

    def warn_once(self, kind: str, text: str) -> None:
        """A warning on stderr, the first time that something of this kind is noticed."""
        if kind not in self._warned:
            self._warned.add(kind)
            warn(text)

    # ------------------------------------------------------------ saving and resuming

    def _begin(self) -> None:
        """When all else is ready: the folder becomes this run's, signals are noticed."""
        seconds = self.folder.begin(sum(self.finished.values()))
        self._started = time.time() - seconds  # as if it had never been interrupted
        self._signals.install()

    def _resume_inside(self, steps: int) -> int:
        """Take up the epoch in which last.pth was saved; returns the step to go on with."""
        unfinished, self._unfinished = self._unfinished, None
        if unfinished is None:
            return 0
        with self.folder.fitting():
            if not 0 <= unfinished["step"] <= steps:
                raise ValueError(f"{unfinished['step']} of {steps} steps")
            if unfinished["sums"].shape != self._meters.sums.shape:
                raise ValueError("other sums")
            if rank() == 0:  # the sums are those of all ranks
                self._meters.sums.copy_(unfinished["sums"])
                self._meters.rows = int(unfinished["rows"])
                torch.set_rng_state(unfinished["random"])
                if self.device.type == "cuda" and "random_cuda" in unfinished:
                    torch.cuda.set_rng_state(unfinished["random_cuda"], self.device)
        return int(unfinished["step"])

    def _inside(self) -> dict[str, Any] | None:
        """How far the epoch in hand has come, for last.pth; None between epochs."""
        if self._step == 0:
            return None
        sums, rows = self._meters.sums, torch.tensor(self._meters.rows)
        inside = {"phase": self._phase, "step": self._step,
                  "sums": torch.from_numpy(sum_over_ranks(sums.cpu().numpy())),
                  "rows": int(sum_over_ranks(rows.numpy())), "random": torch.get_rng_state()}
        if self.device.type == "cuda":
            inside["random_cuda"] = torch.cuda.get_rng_state(self.device)
        return inside

    def _save(self) -> None:
        """Write last.pth: all that a resumed run needs to end as an uninterrupted one."""
        self._check_weights()
        begun = time.monotonic()
        remembered = {name: value.cpu() for name, value in self._remembered.items()}
        self.folder.save({
            "finished": self.finished, "unfinished": self._inside(),
            "began_with": self._began_with, "remembered": remembered, "best": self.best,
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()})
        self._saved = time.monotonic()
        self._save_cost = self._saved - begun

    def _wants_saving(self) -> bool:
        """Whether to save now; ranks agree: all are asked when one is, and due when rank 0 is."""
        # Saving takes no more than a fiftieth of the time.
        wait = max(self.SAVE_EVERY, 50 * self._save_cost)
        due = rank() == 0 and time.monotonic() - self._saved > wait
        asked, due = largest(self._signals.asked or 0, int(due))
        self._signals.asked = asked or None
        return bool(asked or due)

    def _place(self) -> str:
        """How far last.pth has come, for messages."""
        inside = self._state["unfinished"]
        done = [f"after {phase} {count - 1}" for phase, count in self._state["finished"].items()]
        if inside is None:
            return done[-1]
        number = self._state["finished"].get(inside["phase"], 0)
        return f"in {inside['phase']} {number}, after batch {inside['step']}"

    # ------------------------------------------------------------ watching

    def _watch(self, end: bool = False) -> None:
        """Raises InputError where the loss is not finite; sums stay so, so it can look seldom."""
        if not (end or self.device.type == "cpu" or self._step % self.LOOK_EVERY == 0):
            return
        if not math.isfinite(float(self._meters.sums[0])):
            raise InputError(f"the loss is not finite in {self._phase} {self._epoch}, batch "
                             f"{self._step} of {self._steps}: {self.folder.advice()}")

    def _check_weights(self) -> None:
        if not all(bool(value.isfinite().all()) for value in self.model.state_dict().values()):
            raise InputError(f"the weights are not finite any more in {self._phase} {self._epoch}: "
                             f"{self.folder.advice()}")
