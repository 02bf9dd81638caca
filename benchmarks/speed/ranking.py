"""Hamming ranking and mAP: ours, the evaluation as the field writes it, and the distances alone.

Nothing that looks at every pair can undercut the distances. Every measurement is a process of its
own, one after the other, methods in turn, so that peak memory is its own and a noisy minute hits
all of them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hamming
from benchmarks.speed.common import (
    Measured,
    in_a_process,
    in_rounds,
    machine,
    median,
    memory,
    spread,
)
from benchmarks.speed.evaluations import distances_alone, published_style, query_by_query
from benchmarks.tables import heading, row
from engine.cli import number
from engine.files import write_json
from utils import InputError, resolve_path

SIZES = ("75000x5000x64", "1000000x1000x64", "10000000x1000x64")
CLASSES = 8  # as DSRSID has
LARGEST_MATRIX = 4e8  # pairs; the published style needs 16 bytes for each
MATRIX, QUERIES = "matrix, argsort down the columns", "query by query, argsort"
OURS, CUDA = "ours", "ours on cuda"
WHOLE, STABLE = "ours, all of results.json", "ours, --ties stable"
FLOOR = "distances alone"


@dataclass(frozen=True)
class Size:
    """Codes in the database, queries, bits."""

    database: int
    queries: int
    bits: int

    @property
    def R(self) -> int:
        return self.database // CLASSES

    def __str__(self) -> str:
        return f"{self.database}x{self.queries}x{self.bits}"


def size_of(text: str) -> Size:
    """An argparse type: DATABASExQUERIESxBITS."""
    try:
        database, queries, bits = (int(part) for part in text.lower().split("x"))
    except ValueError:
        database = queries = bits = 0
    if min(database, queries) < CLASSES or not 1 <= bits <= hamming.MAX_BITS:
        raise argparse.ArgumentTypeError(
            f"{text} is not DATABASExQUERIESxBITS, such as {SIZES[0]} (at least {CLASSES} of each, "
            f"1 to {hamming.MAX_BITS} bits)")
    return Size(database, queries, bits)


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--sizes", type=size_of, nargs="+", metavar="NxQxK",
        help="DATABASExQUERIESxBITS; above 400 million pairs the field's evaluations are left out, "
             f"for they need 16 bytes a pair (default: {' '.join(SIZES)})")
    add("--repeat", type=number(int, 1), default=3,
        help="measurements of each method; more on a machine that others use")
    add("--shuffle", action="store_true",
        help="codes in random order, not sorted by class as the field's lists are: ours then has "
             "to sort as it reads")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: also measure a GPU")
    add("--folder", help="where the codes are drawn, 160 MB for 10 million (default: the system's "
                         "place for passing files)")
    add("--output", default="runs/bench/ranking.json", help="every single measurement")


# ---------------------------------------------------------------- data


def write_codes(folder: Path, size: Size, shuffle: bool) -> None:
    """Packed codes and labels as .npy: class centres with 30 % of the bits flipped.

    Sorted by class, as the field's databases are, unless `shuffle`; written a part at a time.
    """
    draw = np.random.default_rng(0)
    centres = draw.integers(0, 2, (CLASSES, size.bits), dtype=np.uint8)
    for name, count in (("database", size.database), ("query", size.queries)):
        labels = np.arange(count, dtype=np.int64) * CLASSES // count
        if shuffle:
            draw.shuffle(labels)
        np.save(folder / f"{name}_labels.npy", labels)
        codes = np.lib.format.open_memmap(folder / f"{name}_codes.npy", mode="w+", dtype=np.uint8,
                                          shape=(count, -(-size.bits // 8)))
        for first in range(0, count, 100_000):
            part = labels[first:first + 100_000]
            flips = draw.random((len(part), size.bits), dtype=np.float32) < 0.3
            codes[first:first + 100_000] = hamming.pack_codes(centres[part] ^ flips)
        codes.flush()


def read_codes(folder: Path, mapped: bool) -> list[np.ndarray]:
    """What write_codes wrote: codes of queries and database, labels of both."""
    names = "query_codes", "database_codes", "query_labels", "database_labels"
    return [np.load(folder / f"{name}.npy", mmap_mode="r" if mapped else None) for name in names]


# ---------------------------------------------------------------- methods


def prepare(name: str, folder: Path, size: Size) -> Callable[[], float]:
    """A method, ready to run on the data in `folder`, which it holds as it takes them."""
    bits, R = size.bits, size.R
    if name in (MATRIX, QUERIES):
        arrays = read_codes(folder, False)
        # As scripts of the field hold them: numbers, not bits.
        signs = [2 * hamming.unpack_codes(part, bits).astype(np.float32) - 1 for part in arrays[:2]]
        hot = [np.eye(CLASSES, dtype=np.float32)[part] for part in arrays[2:]]
        function = published_style if name == MATRIX else query_by_query
        return lambda: function(*signs, *hot, R)
    data = read_codes(folder, True)
    if name == WHOLE:
        return lambda: hamming.evaluate(*data, bits, R)["map"]
    if name == STABLE:
        return lambda: float(hamming.stable_metrics(*data, bits, R)["ap"].mean())
    if name == FLOOR:
        return lambda: float(distances_alone(*data[:2]))
    device = "cuda" if name == CUDA else "cpu"
    if name == CUDA:  # starting the device and its libraries is not ranking
        hamming.distance_histograms(*(part[:1] for part in data), bits, device)
    return lambda: float(hamming.expected_ap(
        hamming.distance_histograms(*data, bits, device), R).mean())


def measure_one(name: str, folder: Path, size: Size) -> Measured:
    """Run one method in this process.

    Returns:
        seconds, the value, MB at the process's peak, and how much more that is than the process
        held, codes and libraries included, before the method ran.
    """
    method = prepare(name, folder, size)
    torch.zeros(1) + 1  # starts what torch starts at first use
    before = memory("now")
    started = time.perf_counter()
    value = method()
    seconds = time.perf_counter() - started
    peak = memory("peak")
    run = {"seconds": seconds, "value": value, "peak_mb": peak, "more_mb": max(0.0, peak - before)}
    if name == CUDA:
        run["device_mb"] = torch.cuda.max_memory_allocated() / 1e6
    return run


def check(name: str, value: float, bounds: Mapping[str, float]) -> None:
    """What is compared must do the same: a sort of any kind lies between worst and best order.

    Raises:
        InputError: it does not.
    """
    low = high = bounds["map"]
    if name in (MATRIX, QUERIES, STABLE):
        low, high = bounds["map_min"], bounds["map_max"]
    if not low - 1e-9 <= value <= high + 1e-9:
        raise InputError(f"'{name}' found mAP {value}, expected {low} to {high}: one of the two is "
                         "wrong")


def names_of(size: Size, device: str) -> list[str]:
    """The methods that are measured for a size."""
    small = size.database * size.queries <= LARGEST_MATRIX
    names = [MATRIX, QUERIES] if small else []
    names.append(OURS)
    if device == "cuda":
        names.append(CUDA)
    names.append(WHOLE)
    if small:
        names.append(STABLE)
    if size.bits == 64:  # a word, for which the floor is written
        names.append(FLOOR)
    return names


# ---------------------------------------------------------------- side by side


def measure_size(size: Size, args: argparse.Namespace, parent: Path | None
                 ) -> dict[str, list[Measured]]:
    """Every measurement of every method for one size."""
    with tempfile.TemporaryDirectory(dir=parent) as name:
        folder = Path(name)
        write_codes(folder, size, args.shuffle)
        bounds = hamming.evaluate(*read_codes(folder, True), size.bits, size.R)

        def one(name: str) -> Measured:
            run = in_a_process(name, "--sizes", measure_one, name, folder, size)
            if name != FLOOR:
                check(name, run["value"], bounds)
            return run

        methods = {name: lambda name=name: one(name) for name in names_of(size, args.device)}
        return in_rounds(methods, args.repeat, f"{size}: ")


def measure(args: argparse.Namespace) -> Iterator[str]:
    """Measure, and give the table line by line as soon as a size is done."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no GPU here")
    parent = resolve_path(args.folder) if args.folder is not None else None
    if parent is not None and not parent.is_dir():
        raise InputError(f"--folder {parent} is not a folder")
    record: dict[str, Any] = {"machine": machine(args.device), "repeat": args.repeat,
                              "shuffle": args.shuffle, "sizes": {}}
    yield heading("database x queries x bits", "method", "seconds: median (least - most)",
                  "divided by ours", "MB more than the codes", "MB of the process")
    for size in args.sizes or map(size_of, SIZES):
        runs = record["sizes"][str(size)] = measure_size(size, args, parent)
        write_json(args.output, record)
        title = f"{size.database:,} x {size.queries:,} x {size.bits}"
        for name, of in runs.items():
            yield line_of(title, name, of, runs[OURS])


def line_of(title: str, name: str, of: Sequence[Measured], ours: Sequence[Measured]) -> str:
    """A line of the table."""
    more, peak = (max(run[key] for run in of) for key in ("more_mb", "peak_mb"))
    card = f" (+ {of[0]['device_mb']:,.0f} on the card)" if "device_mb" in of[0] else ""
    return row(title, name, spread(of, "seconds", 2),
               f"{median(of, 'seconds') / median(ours, 'seconds'):.2f}", f"{more:,.0f}{card}",
               f"{peak:,.0f}")
