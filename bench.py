"""Speed and memory, measured: each sub-command compares things side by side in one run.

    python bench.py ranking                                     the table of docs/ranking.md, some minutes
    python bench.py ranking --sizes 75000x5000x64 --repeat 5    one size
    python bench.py ranking --device cuda                       the same with a GPU beside

`ranking`: ours against the evaluation as the field writes it, and against the distances alone, which nothing that
looks at every pair can undercut. Every measurement is a process of its own, one after the other, methods in turn, so
that peak memory is its own and a noisy minute hits all of them. Numbers also go to a JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hamming
from utils import ArgumentParser, InputError, positive_int, resolve_path, run, write_json

RANKING_SIZES = ("75000x5000x64", "1000000x1000x64", "10000000x1000x64")
CLASSES = 8  # as DSRSID has
LARGEST_MATRIX = 4e8  # pairs; the published style needs 16 bytes for each


# ---------------------------------------------------------------- the field's evaluations


def published_style(query: np.ndarray, database: np.ndarray, query_labels: np.ndarray,
                    database_labels: np.ndarray, R: int) -> float:
    """mAP@R as this field's scripts do it: one similarity matrix, one argsort down its columns.

    Codes -1/+1 float32 (Q, K) and (N, K), labels one-hot (Q, C) and (N, C).
    """
    similarity = np.dot(database, query.T)
    order = np.argsort(-similarity, axis=0)
    return statistics.fmean(_ap(database_labels[order[:R, column]], query_labels[column])
                            for column in range(len(query)))


def query_by_query(query: np.ndarray, database: np.ndarray, query_labels: np.ndarray,
                   database_labels: np.ndarray, R: int) -> float:
    """mAP@R as others do it: distances and argsort of one query after the other. Inputs as above."""
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


# ---------------------------------------------------------------- ranking: data and measurement


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


def _memory(which: str) -> float:
    """MB of this process, "now" or its "peak"."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux: what it has been so far
        return peak
    return peak if which == "peak" else pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _measure(name: str, folder: Path, bits: int, R: int) -> dict[str, float]:
    """Run one method in this process: seconds, the value, MB at the process's peak, and how much more that is
    than the process held, codes and libraries included, before the method ran."""
    method = _methods(folder, bits, R)[name]()
    torch.zeros(1) + 1  # starts what torch starts at first use
    before = _memory("now")
    started = time.perf_counter()
    value = method()
    seconds = time.perf_counter() - started
    peak = _memory("peak")
    result = {"seconds": seconds, "value": value, "peak_mb": peak, "more_mb": max(0.0, peak - before)}
    if "cuda" in name:
        result["device_mb"] = torch.cuda.max_memory_allocated() / 1e6
    return result


def _in_a_process(*arguments: Any) -> dict[str, float]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, *arguments).result()
        except (BrokenProcessPool, MemoryError):
            raise InputError(f"'{arguments[0]}' ended without a result, most likely for want of memory: "
                             "choose smaller --sizes") from None


def _check(name: str, value: float, bounds: dict[str, float]) -> None:
    """What is compared must do the same: a sort of any kind lies between the worst and best order."""
    low, high = ((bounds["map_min"], bounds["map_max"]) if "argsort" in name or "stable" in name
                 else (bounds["map"], bounds["map"]))
    if not low - 1e-9 <= value <= high + 1e-9:
        raise InputError(f"'{name}' found mAP {value}, expected {low} to {high}: one of the two is wrong")


def machine(device: str) -> dict[str, Any]:
    """What a number was measured on."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {"date": date.today().isoformat(), "cpu": model, "cores": os.cpu_count(),
            "threads": torch.get_num_threads(), "python": platform.python_version(),
            "numpy": np.__version__, "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if device == "cuda" else None}


def ranking(args: argparse.Namespace) -> Iterator[str]:
    """Measure, and give the table line by line as soon as a size is done."""
    record: dict[str, Any] = {"machine": machine(args.device), "repeat": args.repeat,
                              "shuffle": args.shuffle, "sizes": {}}
    yield ("| database x queries x bits | method | seconds: median (least - most) | divided by ours "
           "| MB more than the codes | MB of the process |")
    yield "|---|---|---|---|---|---|"
    for size in args.sizes:
        number, queries, bits = size
        R = number // CLASSES
        # 64-bit words are what the floor is written for.
        wanted = [*(("matrix, argsort down the columns", "query by query, argsort")
                    if number * queries <= LARGEST_MATRIX else ()), "ours",
                  *(("ours on cuda",) if args.device == "cuda" else ()), "ours, all of results.json",
                  *(("ours, --ties stable",) if number * queries <= LARGEST_MATRIX else ()),
                  *(("distances alone",) if bits == 64 else ())]
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            write_codes(Path(folder), size, args.shuffle)
            data = [np.load(Path(folder) / f"{name}.npy", mmap_mode="r") for name in
                    ("query_codes", "database_codes", "query_labels", "database_labels")]
            bounds = hamming.evaluate(*data, bits, R)
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in wanted}
            for _ in range(args.repeat):
                for name in wanted:
                    print(f"  {number:,} x {queries:,} x {bits}: {name}", file=sys.stderr, flush=True)
                    runs[name].append(_in_a_process(name, Path(folder), bits, R))
                    if name != "distances alone":
                        _check(name, runs[name][-1]["value"], bounds)
        record["sizes"]["x".join(map(str, size))] = runs
        write_json(args.output, record)
        typical = {name: statistics.median(run["seconds"] for run in of) for name, of in runs.items()}
        for name, of in runs.items():
            seconds = [run["seconds"] for run in of]
            more, peak = (max(run[key] for run in of) for key in ("more_mb", "peak_mb"))
            device = f" (+ {of[0]['device_mb']:,.0f} on the card)" if "device_mb" in of[0] else ""
            yield (f"| {number:,} x {queries:,} x {bits} | {name} | {typical[name]:.2f} "
                   f"({min(seconds):.2f} - {max(seconds):.2f}) | {typical[name] / typical['ours']:.2f} "
                   f"| {more:,.0f}{device} | {peak:,.0f} |")


# ---------------------------------------------------------------- command line


def _size(text: str) -> tuple[int, int, int]:
    try:
        number, queries, bits = (int(part) for part in text.lower().split("x"))
    except ValueError:
        number = queries = bits = 0
    if min(number, queries) < CLASSES or not 1 <= bits <= hamming.MAX_BITS:
        raise argparse.ArgumentTypeError(
            f"{text} is not DATABASExQUERIESxBITS, such as {RANKING_SIZES[0]} (at least {CLASSES} of each, "
            f"1 to {hamming.MAX_BITS} bits)")
    return number, queries, bits


def main() -> None:
    parser = ArgumentParser(prog="bench.py", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    rank = commands.add_parser("ranking", help="Hamming ranking and mAP: ours, the field's, and the floor")
    rank.add_argument("--sizes", type=_size, nargs="+", metavar="NxQxK",
                      help="DATABASExQUERIESxBITS; above 400 million pairs the field's evaluations are left "
                           f"out, for they need 16 bytes a pair (default: {' '.join(RANKING_SIZES)})")
    rank.add_argument("--repeat", type=positive_int, default=3,
                      help="measurements of each method; more on a machine that others use")
    rank.add_argument("--shuffle", action="store_true",
                      help="codes in random order, not sorted by class as the field's lists are: ours then has "
                           "to sort as it reads")
    rank.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: also measure a GPU")
    rank.add_argument("--folder", help="where the codes are drawn, 160 MB for 10 million "
                                       "(default: the system's place for passing files)")
    rank.add_argument("--output", default="runs/bench/ranking.json", help="every single measurement")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no GPU here")
    if args.folder is not None:
        args.folder = resolve_path(args.folder)
        if not args.folder.is_dir():
            raise InputError(f"--folder {args.folder} is not a folder")
    args.output = resolve_path(args.output)
    args.sizes = args.sizes or [_size(text) for text in RANKING_SIZES]
    for line in ranking(args):
        print(line, flush=True)
    print(json.dumps(machine(args.device)))
    print(f"wrote {args.output}")


if __name__ == "__main__":
    sys.exit(run(main))
