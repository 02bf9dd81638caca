"""The average precision of each query of the cells of a table, and how sure their means are."""

from __future__ import annotations

import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import hamming
from benchmarks import tables
from benchmarks.cells import Key, Record, read_json
from benchmarks.intervals import interval
from benchmarks.methods import TITLES
from datasets.base import PairedDataset

Column = tuple[str, "int | None"]  # method, bits
# What a codes.npz raises that is damaged or not there.
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile)


class QueryPrecision:
    """AP@R of each query, expected over ties, of the cells that can be read."""

    def __init__(self, folder: Path, datasets: Mapping[int, PairedDataset],
                 records: Mapping[Key, Record]) -> None:
        """Read them.

        Args:
            folder: of the table.
            datasets: seed -> images and split.
            records: (method, bits, seed) -> what is known of the cell.
        """
        self.names = {seed: [dataset.names[row] for row in dataset.query]
                      for seed, dataset in datasets.items()}
        self.columns: dict[Column, dict[int, np.ndarray]] = {}
        unknown = set()  # of some seed: an interval would be of other seeds than the mean
        for (name, bits, seed), record in records.items():
            ap = _read(folder / record["cell"], name, bits, record["R"])
            if ap is None or len(ap) != len(self.names[seed]):
                unknown.add((name, bits))
            else:
                self.columns.setdefault((name, bits), {})[seed] = ap
        for column in unknown:
            self.columns.pop(column, None)

    def interval(self, name: str, bits: int | None, seed: int | None = None
                 ) -> tuple[float, float] | None:
        """95 % interval of the mean over seeds, or of one seed; None where it is not known."""
        ap = self.columns.get((name, bits), {})
        if seed is not None:
            ap = {seed: ap[seed]} if seed in ap else {}
        return interval(self.names, ap) if ap else None

    def difference(self, name: str, other: str, bits: int | None
                   ) -> tuple[dict[int, float], tuple[float, float]] | None:
        """How far a method is above another one on the same queries.

        Returns:
            seed -> difference of the mAP, and the 95 % interval of their mean; None where no seed
            has both. A method without codes has the same value at each length.
        """
        first, second = (self.columns.get((method, bits)) or self.columns.get((method, None), {})
                         for method in (name, other))
        apart = {seed: first[seed] - second[seed] for seed in first if seed in second}
        if not apart:
            return None
        means = {seed: float(values.mean()) for seed, values in apart.items()}
        return means, interval(self.names, apart)

    def write_csv(self, path: Path) -> None:
        """A line a query and seed, a column a method and length."""
        lines = []
        for seed, names in self.names.items():
            for number, name in enumerate(names):
                line = {"seed": seed, "query": name}
                for (method, bits), ap in self.columns.items():
                    if seed in ap:
                        length = "" if bits is None else f" {bits}"
                        line[f"{method}{length}"] = float(ap[seed][number])
                lines.append(line)
        tables.write_csv(path, tables.rounded(lines))


def _read(cell: Path, name: str, bits: int | None, R: int) -> np.ndarray | None:
    """AP@R of each query of a finished cell, float64 (Q,); says why where it cannot be had."""
    if bits is None:
        ap = read_json(cell / "results.json").get("ap")
        if ap is None:
            print(f"no interval of {TITLES[name]}: {cell} is of an older version; remove it, and "
                  "it is made again", file=sys.stderr)
        return None if ap is None else np.array(ap)
    try:
        return hamming.expected_ap(histograms_of(cell, bits), R)
    except UNREADABLE as error:
        print(f"no interval of {TITLES[name]}: {cell / 'codes.npz'} cannot be read ({error})",
              file=sys.stderr)
        return None


def histograms_of(cell: Path, bits: int) -> hamming.Histograms:
    """The tables of the codes of a finished cell. Raises UNREADABLE."""
    with np.load(cell / "codes.npz") as content:
        return hamming.distance_histograms(
            content["query_codes"], content["database_codes"], content["query_labels"],
            content["database_labels"], hash_bit=bits)
