"""Nearest items of archives: exact with ordered ties, and indices of faiss; an archive as a whole.

Drawn codes: CENTRES of them, each bit flipped with a chance of FLIPS, so that most items have near
neighbours, as codes of images have. Queries are drawn alike.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import hamming
from archive.export import faiss_index
from archive.folder import ITEMS, MODEL, Archive
from archive.items import Item, Items
from archive.queries import answers_to, queries_of_names
from benchmarks.speed.common import Measured, in_rounds, machine, memory, spread
from benchmarks.tables import heading, row
from engine.cli import number
from engine.files import write_json
from utils import InputError, resolve_path

CENTRES, FLIPS = 1000, 0.1
QUERIES, NEAREST = 64, 20
EXACT, FLAT, IVF, MULTIHASH = "hamming.nearest", "faiss flat", "faiss ivf", "faiss multihash"
OPEN, FIND = "an archive: open", "an archive: find one item's neighbours"
ROWS = 100_000  # drawn, and added to an archive, at once


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--sizes", type=number(int, 1000), nargs="+", default=[1_000_000, 10_000_000],
        metavar="ITEMS", help="how many codes")
    add("--bits", type=number(int, 8, 1024), default=64, help="of a code")
    add("--repeat", type=number(int, 1), default=5, help="measurements of each method")
    add("--archive", action="store_true",
        help="also an archive of each size: 150 bytes an item on the disk, minutes to make")
    add("--folder", help="where archives are made (default: the system's place for passing files)")
    add("--output", default="runs/bench/search.json", help="every single measurement")
    parser.set_defaults(device="cpu")


def draw_codes(count: int, bits: int, seed: int) -> np.ndarray:
    """Packed codes, uint8 (count, ceil(bits/8))."""
    centres = np.random.default_rng(0).random((CENTRES, bits)) < 0.5
    draw = np.random.default_rng(seed)
    codes = np.empty((count, -(-bits // 8)), np.uint8)
    for first in range(0, count, ROWS):
        chosen = centres[draw.integers(0, CENTRES, min(ROWS, count - first))]
        flips = draw.random(chosen.shape, dtype=np.float32) < FLIPS
        codes[first:first + ROWS] = hamming.pack_codes(chosen ^ flips)
    return codes


def searches(codes: np.ndarray, bits: int
             ) -> tuple[dict[str, Callable[[np.ndarray], np.ndarray]], dict[str, float]]:
    """Method -> what gives the distances (Q, NEAREST) of queries; and seconds to build each."""
    found: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        EXACT: lambda query: hamming.nearest(query, codes, bits, NEAREST)[1]}
    seconds = {EXACT: 0.0}
    for name, kind in ((FLAT, "flat"), (IVF, "ivf"), (MULTIHASH, "multihash")):
        started = time.perf_counter()
        index = faiss_index(codes, kind)
        seconds[name] = time.perf_counter() - started
        found[name] = lambda query, index=index: index.search(query, NEAREST)[0]
    return found, seconds


def recall(distances: np.ndarray, exact: np.ndarray) -> float:
    """The share of the NEAREST that were found; of items at one distance any will do."""
    # faiss fills up with a distance beyond all others what it has not found.
    return float((distances <= exact[:, -1:]).mean())


def measure_size(count: int, args: argparse.Namespace) -> dict[str, list[Measured]]:
    """Milliseconds of one query and of 16 together, and recall, of each method."""
    codes, queries = draw_codes(count, args.bits, 1), draw_codes(QUERIES, args.bits, 2)
    methods, built = searches(codes, args.bits)
    exact = methods[EXACT](queries)

    def one(name: str) -> Measured:
        method, times = methods[name], []
        for query in queries[:16]:
            started = time.perf_counter()
            method(query[None])
            times.append(time.perf_counter() - started)
        started = time.perf_counter()
        method(queries[:16])
        together = time.perf_counter() - started
        return {"one_ms": 1000 * float(np.median(times)), "sixteen_ms": 1000 * together,
                "recall": recall(method(queries), exact), "build_seconds": built[name]}

    return in_rounds({name: lambda name=name: one(name) for name in methods}, args.repeat,
                     f"{count:,}: ")


# ---------------------------------------------------------------- an archive as a whole


def make_archive(folder: Path, codes: np.ndarray, bits: int) -> None:
    """An archive of drawn codes, whose model and images are not there."""
    (folder / MODEL).touch()
    Items.create(folder / ITEMS, {"model": "drawn", "hash_bit": bits, "count": 0,
                                  "codes_checksum": 0, "outputs_checksum": None})
    with Archive(folder) as archive, archive.writing():
        for first in range(0, len(codes), ROWS):
            part = codes[first:first + ROWS]
            items = [Item(f"image_{number}", number.to_bytes(16, "little"), folder, "{}",
                          f"{number}.png", None, 64, 64)
                     for number in range(first, first + len(part))]
            archive.append(items, part)


def measure_archive(folder: Path, repeat: int) -> dict[str, list[Measured]]:
    """Milliseconds to open an archive, codes included, and to find what is near an item."""
    def opened() -> Measured:
        started = time.perf_counter()
        with Archive(folder) as archive:
            _ = len(archive.codes)
        return {"one_ms": 1000 * (time.perf_counter() - started)}

    def found() -> Measured:
        with Archive(folder) as archive:
            _ = len(archive.codes)
            started = time.perf_counter()
            query, = queries_of_names(archive, [f"image_{archive.count // 2}"])
            answer, = answers_to(archive, [query], NEAREST)
            seconds = time.perf_counter() - started
        if len(answer.items) != NEAREST:
            raise InputError(f"{len(answer.items)} items were found, expected {NEAREST}")
        return {"one_ms": 1000 * seconds, "peak_mb": memory("peak")}

    return in_rounds({OPEN: opened, FIND: found}, repeat)


def measure(args: argparse.Namespace) -> Iterator[str]:
    """Measure, and give the table line by line as soon as a size is done."""
    parent = resolve_path(args.folder) if args.folder is not None else None
    if parent is not None and not parent.is_dir():
        raise InputError(f"--folder {parent} is not a folder")
    record: dict[str, Any] = {"machine": machine("cpu"), "bits": args.bits, "sizes": {}}
    yield heading("items", "method", "ms, one query: median (least - most)", "ms, 16 together",
                  f"recall of the {NEAREST} nearest", "seconds to build")
    for count in args.sizes:
        runs = record["sizes"][count] = {}
        if args.archive:
            with tempfile.TemporaryDirectory(dir=parent) as name:
                started = time.perf_counter()
                make_archive(Path(name), draw_codes(count, args.bits, 1), args.bits)
                record[f"seconds to add {count}"] = time.perf_counter() - started
                runs |= measure_archive(Path(name), args.repeat)
        runs |= measure_size(count, args)
        write_json(args.output, record)
        yield from lines_of(count, runs)


def lines_of(count: int, runs: Mapping[str, list[Measured]]) -> Iterator[str]:
    """The lines of a size."""
    for name, of in runs.items():
        more = ["", "", ""]
        if "recall" in of[0]:
            more = [spread(of, "sixteen_ms", 1), f"{of[0]['recall']:.3f}",
                    f"{of[0]['build_seconds']:.1f}"]
        yield row(f"{count:,}", name, spread(of, "one_ms", 1), *more)
