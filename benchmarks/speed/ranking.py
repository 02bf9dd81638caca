"""Hamming ranking and mAP: ours, the evaluation as the field writes it, and the distances alone.

Nothing that looks at every pair can undercut the distances. Every measurement is a process of its own, one after
the other, methods in turn, so that peak memory is its own and a noisy minute hits all of them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hamming
from benchmarks.speed.common import Run, heading, in_a_process, in_turns, machine, median, memory, row, spread
from engine.cli import positive_int
from engine.files import write_json
from utils import InputError, resolve_path

SIZES = ("75000x5000x64", "1000000x1000x64", "10000000x1000x64")
CLASSES = 8  # as DSRSID has
LARGEST_MATRIX = 4e8  # pairs; the published style needs 16 bytes for each


# ---------------------------------------------------------------- the field's evaluations


def published_style(query: np.ndarray, database: np.ndarray, query_labels: np.ndarray,
                    database_labels: np.ndarray, R: int) -> float:
    """mAP@R as this field's scripts do it: one similarity matrix, one argsort down its columns.

    Codes -1/+1 float32 (Q, K) and (N, K), labels one-hot (Q, C) and (N, C).
    """
    return map_by_matrix(np.dot(database, query.T), query_labels, database_labels, R)


def map_by_matrix(similarity: np.ndarray, query_labels: np.ndarray, database_labels: np.ndarray, R: int) -> float:
    """mAP@R of a similarity matrix (N, Q), labels as above."""
    order = np.argsort(-similarity, axis=0)
    return statistics.fmean(_ap(database_labels[order[:R, column]], query_labels[column])
                            for column in range(len(query_labels)))


def query_by_query(query: np.ndarray, database: np.ndarray, query_labels: np.ndarray,
                   database_labels: np.ndarray, R: int) -> float:
    """mAP@R as others do it: distances and argsort of one query after the other. Inputs of `published_style`."""
    scores = []
    for code, label in zip(query, query_labels, strict=True):
        distances = 0.5 * (len(code) - np.dot(database, code))
        scores.append(_ap(database_labels[np.argsort(distances)[:R]], label))
    return statistics.fmean(scores)


def _ap(labels: np.ndarray, label: np.ndarray) -> float:
    relevant = labels @ label > 0
    hits = relevant.sum()
    precision = np.cumsum(relevant) / np.arange(1, len(relevant) + 1)
    return float((precision * relevant).sum() / hits) if hits else 0.0


def distances_alone(query: np.ndarray, database: np.ndarray) -> int:
    """Every distance of packed 64-bit codes by XOR and popcount, on all threads: the floor.

    Returns the sum over the first eight queries of each thread, to check that it does what it should; the
    other distances are used for nothing.
    """
    query, database = query.view(np.uint64)[:, 0], database.view(np.uint64)[:, 0]

    def one_thread(queries: np.ndarray) -> int:
        shape, total = (8, 16384), 0
        different, distances = np.empty(shape, np.uint64), np.empty(shape, np.uint8)
        for first in range(0, len(database), shape[1]):
            part = np.array(database[first:first + shape[1]])
            for start in range(0, len(queries), shape[0]):
                some = queries[start:start + shape[0], None]
                here = slice(len(some)), slice(len(part))
                np.bitwise_count(np.bitwise_xor(some, part, out=different[here]), out=distances[here])
                if start == 0:
                    total += int(distances[here].sum())
        return total

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(one_thread, np.array_split(query, threads)))


# ---------------------------------------------------------------- data and measurement


def write_codes(folder: Path, size: tuple[int, int, int], shuffle: bool) -> None:
    """Packed codes and labels of `size` (N, Q, K) as .npy: class centres with 30 % of the bits flipped.

    Sorted by class, as the field's databases are, unless `shuffle`; written a part at a time.
    """
    number, queries, bits = size
    draw = np.random.default_rng(0)
    centres = draw.integers(0, 2, (CLASSES, bits), dtype=np.uint8)
    for name, count in (("database", number), ("query", queries)):
        labels = np.arange(count, dtype=np.int64) * CLASSES // count
        if shuffle:
            draw.shuffle(labels)
        np.save(folder / f"{name}_labels.npy", labels)
        codes = np.lib.format.open_memmap(folder / f"{name}_codes.npy", mode="w+", dtype=np.uint8,
                                          shape=(count, -(-bits // 8)))
        for first in range(0, count, 100_000):
            part = labels[first:first + 100_000]
            flips = draw.random((len(part), bits), dtype=np.float32) < 0.3
            codes[first:first + 100_000] = hamming.pack_codes(centres[part] ^ flips)
        codes.flush()


def _methods(folder: Path, bits: int, R: int) -> dict[str, Callable[[], Callable[[], float]]]:
    """name -> a function that loads the data as this method takes it and returns the method, ready to run."""

    def load(mapped: bool) -> tuple[np.ndarray, ...]:
        return tuple(np.load(folder / f"{name}.npy", mmap_mode="r" if mapped else None)
                     for name in ("query_codes", "database_codes", "query_labels", "database_labels"))

    def plain(function: Callable[..., float]) -> Callable[[], float]:
        arrays = load(False)
        codes, labels = arrays[:2], arrays[2:]
        # As scripts of the field hold them: numbers, not bits.
        signs = [2 * hamming.unpack_codes(part, bits).astype(np.float32) - 1 for part in codes]
        hot = [np.eye(CLASSES, dtype=np.float32)[part] for part in labels]
        return lambda: function(*signs, *hot, R)

    def ours(device: str) -> Callable[[], float]:
        data = load(True)
        if device != "cpu":  # starting the device and its libraries is not ranking
            hamming.distance_histograms(*(part[:1] for part in data), bits, device)
        return lambda: float(hamming.expected_ap(
            hamming.distance_histograms(*data, bits, device), R).mean())

    def whole() -> Callable[[], float]:
        data = load(True)
        return lambda: hamming.evaluate(*data, bits, R)["map"]

    def stable() -> Callable[[], float]:
        data = load(True)
        return lambda: float(hamming.stable_metrics(*data, bits, R)["ap"].mean())

    def floor() -> Callable[[], float]:
        data = load(True)
        return lambda: float(distances_alone(*data[:2]))

    return {
        "matrix, argsort down the columns": lambda: plain(published_style),
        "query by query, argsort": lambda: plain(query_by_query),
        "ours": lambda: ours("cpu"),
        "ours, all of results.json": whole,
        "ours, --ties stable": stable,
        "ours on cuda": lambda: ours("cuda"),
        "distances alone": floor,
    }


def _measure(name: str, folder: Path, bits: int, R: int) -> Run:
    """Run one method in this process: seconds, the value, MB at the process's peak, and how much more that is
    than the process held, codes and libraries included, before the method ran."""
    method = _methods(folder, bits, R)[name]()
    torch.zeros(1) + 1  # starts what torch starts at first use
    before = memory("now")
    started = time.perf_counter()
    value = method()
    seconds = time.perf_counter() - started
    peak = memory("peak")
    result = {"seconds": seconds, "value": value, "peak_mb": peak, "more_mb": max(0.0, peak - before)}
    if "cuda" in name:
        result["device_mb"] = torch.cuda.max_memory_allocated() / 1e6
    return result


def _check(name: str, value: float, bounds: dict[str, float]) -> None:
    """What is compared must do the same: a sort of any kind lies between the worst and best order."""
    low, high = ((bounds["map_min"], bounds["map_max"]) if "argsort" in name or "stable" in name
                 else (bounds["map"], bounds["map"]))
    if not low - 1e-9 <= value <= high + 1e-9:
        raise InputError(f"'{name}' found mAP {value}, expected {low} to {high}: one of the two is wrong")


def measure(args: argparse.Namespace) -> Iterator[str]:
    """Measure, and give the table line by line as soon as a size is done."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no GPU here")
    parent = resolve_path(args.folder) if args.folder is not None else None
    if parent is not None and not parent.is_dir():
        raise InputError(f"--folder {parent} is not a folder")
    record: dict[str, Any] = {"machine": machine(args.device), "repeat": args.repeat,
                              "shuffle": args.shuffle, "sizes": {}}
    yield heading("database x queries x bits", "method", "seconds: median (least - most)", "divided by ours",
                  "MB more than the codes", "MB of the process")
    for size in args.sizes or [_size(text) for text in SIZES]:
        number, queries, bits = size
        R = number // CLASSES
        title = f"{number:,} x {queries:,} x {bits}"
        # 64-bit words are what the floor is written for.
        wanted = [*(("matrix, argsort down the columns", "query by query, argsort")
                    if number * queries <= LARGEST_MATRIX else ()), "ours",
                  *(("ours on cuda",) if args.device == "cuda" else ()), "ours, all of results.json",
                  *(("ours, --ties stable",) if number * queries <= LARGEST_MATRIX else ()),
                  *(("distances alone",) if bits == 64 else ())]
        with tempfile.TemporaryDirectory(dir=parent) as name:
            folder = Path(name)
            write_codes(folder, size, args.shuffle)
            data = [np.load(folder / f"{part}.npy", mmap_mode="r") for part in
                    ("query_codes", "database_codes", "query_labels", "database_labels")]
            bounds = hamming.evaluate(*data, bits, R)

            def one(name: str, place: tuple[Path, int, int] = (folder, bits, R),
                    bounds: dict[str, float] = bounds) -> Run:
                run = in_a_process(name, "--sizes", _measure, name, *place)
                if name != "distances alone":
                    _check(name, run["value"], bounds)
                return run

            runs = in_turns({name: lambda name=name: one(name) for name in wanted}, args.repeat, f"{title}: ")
        record["sizes"]["x".join(map(str, size))] = runs
        write_json(args.output, record)
        for name, of in runs.items():
            more, peak = (max(run[key] for run in of) for key in ("more_mb", "peak_mb"))
            device = f" (+ {of[0]['device_mb']:,.0f} on the card)" if "device_mb" in of[0] else ""
            yield row(title, name, spread(of, "seconds", 2),
                      f"{median(of, 'seconds') / median(runs['ours'], 'seconds'):.2f}",
                      f"{more:,.0f}{device}", f"{peak:,.0f}")


# ---------------------------------------------------------------- flags


def _size(text: str) -> tuple[int, int, int]:
    try:
        number, queries, bits = (int(part) for part in text.lower().split("x"))
    except ValueError:
        number = queries = bits = 0
    if min(number, queries) < CLASSES or not 1 <= bits <= hamming.MAX_BITS:
        raise argparse.ArgumentTypeError(
            f"{text} is not DATABASExQUERIESxBITS, such as {SIZES[0]} (at least {CLASSES} of each, "
            f"1 to {hamming.MAX_BITS} bits)")
    return number, queries, bits


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", type=_size, nargs="+", metavar="NxQxK",
                        help="DATABASExQUERIESxBITS; above 400 million pairs the field's evaluations are left "
                             f"out, for they need 16 bytes a pair (default: {' '.join(SIZES)})")
    parser.add_argument("--repeat", type=positive_int, default=3,
                        help="measurements of each method; more on a machine that others use")
    parser.add_argument("--shuffle", action="store_true",
                        help="codes in random order, not sorted by class as the field's lists are: ours then has "
                             "to sort as it reads")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: also measure a GPU")
    parser.add_argument("--folder", help="where the codes are drawn, 160 MB for 10 million "
                                         "(default: the system's place for passing files)")
    parser.add_argument("--output", default="runs/bench/ranking.json", help="every single measurement")
