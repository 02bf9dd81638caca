"""What several benchmarks need: flags, images, methods in turn, a process of one's own, memory."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from engine.cli import number
from engine.files import write_json
from utils import InputError

if TYPE_CHECKING:
    from datasets.base import PairedDataset
    from engine.epoch import Meters, Step

Measured = dict[str, Any]  # one measurement: seconds, and what else there is to say of it


# ---------------------------------------------------------------- flags and images


def add_measuring_flags(parser: argparse.ArgumentParser, command: str) -> None:
    """--device, --repeat and --output of a sub-command."""
    parser.add_argument("--device", default="auto", help="auto takes cuda, then mps, then cpu")
    parser.add_argument("--repeat", type=number(int, 1), default=3,
                        help="measurements of each method; more on a machine that others use")
    parser.add_argument("--output", default=f"runs/bench/{command}.json",
                        help="every single measurement")


def add_image_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that choose the images, those of the demo unless others are named."""
    from data_loader import MODULES
    from engine.data_flags import add_data_flags

    add_data_flags(parser, MODULES, inherited=False)
    parser.set_defaults(data_name="demo")


def load_images(args: argparse.Namespace) -> PairedDataset:
    """The dataset of `add_image_flags`. Raises InputError as load_dataset."""
    from data_loader import config_of, load_dataset

    return load_dataset(config_of(args))


# ---------------------------------------------------------------- measuring


class UnsavedRun:
    """What train_one_epoch asks of its run, without a folder: nothing is saved or looked at."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.optimizer, self.device = optimizer, device

    def meters(self, *names: str) -> Meters:
        from engine.epoch import Meters

        return Meters(names, self.device)

    def steps(self, epoch: Iterator[Step]) -> Iterator[Step]:
        return epoch


def in_rounds(methods: Mapping[str, Callable[[], Measured]], repeat: int, note: str = ""
              ) -> dict[str, list[Measured]]:
    """Call the methods one after the other, so that a noisy minute hits all of them.

    Args:
        methods: by name.
        repeat: rounds.
        note: what stands before their names on stderr.
    Returns:
        name -> its measurements.
    """
    runs: dict[str, list[Measured]] = {name: [] for name in methods}
    for _ in range(repeat):
        for name, method in methods.items():
            print(f"  {note}{name}", file=sys.stderr, flush=True)
            runs[name].append(method())
    return runs


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was asked to: the clock is read by the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def timed(function: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds that a call takes until its device is done, and what it returns."""
    synchronise(device)
    started = time.perf_counter()
    value = function()
    synchronise(device)
    return time.perf_counter() - started, value


def in_a_process(what: str, smaller: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments) in a new process, so that its memory is its own.

    Args:
        what: for the error: the method.
        smaller: for the error: the flags by which it needs less memory.
        function: of a module.
        arguments: can be pickled.
    Raises:
        InputError: of the function itself; or the process ended without a result.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_call, function, arguments).result()
        except (BrokenProcessPool, MemoryError):
            raise InputError(f"'{what}' ended without a result, most likely for want of memory: "
                             f"choose smaller {smaller}") from None


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    try:
        return function(*arguments)
    except InputError as error:  # its subclasses need not survive the way back
        raise InputError(str(error)) from None


def memory(which: str) -> float:
    """MB of this process, "now" or its "peak"."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux: what it has been so far
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / (1e6 if sys.platform == "darwin" else 1e3)
    # Not getrusage here: on Linux its peak is at least that of the process which started this one.
    field = {"now": "VmRSS:", "peak": "VmHWM:"}[which]
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


# ---------------------------------------------------------------- what is told


def median(runs: Sequence[Measured], key: str) -> float:
    """The median of one value of several measurements."""
    return statistics.median(run[key] for run in runs)


def spread(runs: Sequence[Measured], key: str, digits: int) -> str:
    """Its median (least - most)."""
    values = [run[key] for run in runs]
    return (f"{median(runs, key):,.{digits}f} ({min(values):,.{digits}f} - "
            f"{max(values):,.{digits}f})")


def machine(device: str | torch.device) -> dict[str, Any]:
    """What a number was measured on."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        named = next(line for line in lines if line.startswith("model name"))
        model = named.split(":", 1)[1].strip()
    except (OSError, StopIteration):
        pass
    card = torch.device(device).type == "cuda"
    return {"date": date.today().isoformat(), "cpu": model, "cores": os.cpu_count(),
            "threads": torch.get_num_threads(), "python": platform.python_version(),
            "numpy": np.__version__, "torch": torch.__version__,
            "device": torch.cuda.get_device_name(device) if card else None}


def write_record(args: argparse.Namespace, runs: Mapping[str, Any]) -> None:
    """The JSON file of a sub-command: machine, flags, and every measurement of each method."""
    settings = {name: value for name, value in vars(args).items()
                if name not in ("command", "output")}
    write_json(args.output, {"machine": machine(args.device), "settings": settings, "runs": runs})
