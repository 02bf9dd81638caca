"""What compare.py says of its cells: the tables, the numbers behind them, the pictures."""

from __future__ import annotations

import statistics
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import tables
from benchmarks.cells import Key, Record
from benchmarks.deep import DEEP
from benchmarks.intervals import FEW
from benchmarks.latex import latex_table
from benchmarks.methods import TITLES, TRAINED
from benchmarks.per_query import UNREADABLE, QueryPrecision, histograms_of
from datasets.base import PairedDataset
from engine.files import atomic_file, write_json
from engine.run import environment
from hamming.figures import curve_of, write_comparison, write_curves

Records = Mapping[Key, Record]


# ---------------------------------------------------------------- the tables


def by_seed(records: Records, name: str, bits: int | None) -> dict[int, float]:
    """seed -> mAP of the codes; bits None: of what they were made from, features or latents."""
    if bits is not None:
        return {key[2]: record["map"] for key, record in records.items() if key[:2] == (name, bits)}
    values = {}
    for (method, length, seed), record in records.items():
        if method == name:
            values[seed] = record["map"] if length is None else record.get("latent_map")
    return {seed: value for seed, value in values.items() if value is not None}


def map_table(records: Records, lengths: Sequence[int], seeds: int,
              precision: QueryPrecision | None = None) -> str:
    """Markdown: a row a method, mAP@R of floats and of codes; * where a cell has warnings.

    Args:
        records: (method, bits, seed) -> what is known of the cell.
        lengths: of the codes.
        seeds: how many there should be.
        precision: gives intervals; None for none.
    """
    lines = [tables.heading("method", "floats", *(f"{bits} bits" for bits in lengths))]
    for name in dict.fromkeys(key[0] for key in records):
        cells = []
        for bits in (None, *lengths):
            values = by_seed(records, name, bits)
            sure = precision.interval(name, bits) if precision else None
            cells.append(tables.over_seeds(list(values.values()), seeds, sure))
            if any(record.get("warnings") for key, record in records.items()
                   if key[:2] == (name, bits)):
                cells[-1] += " *"
        lines.append(tables.row(TITLES[name], *cells))
    return "\n".join(lines)


def difference_table(records: Records, lengths: Sequence[int], reference: str,
                     precision: QueryPrecision) -> str:
    """Markdown: each method minus `reference`, an ablation minus what it changes, if it is there.
    """
    lines = [tables.heading("method", "minus", *(f"{bits} bits" for bits in lengths or ["no"]))]
    names = dict.fromkeys(key[0] for key in records)
    for name in names:
        base = TRAINED[name].base if name in TRAINED else None
        other = base if base in names else reference
        found = [precision.difference(name, other, bits) for bits in lengths or [None]]
        if name != other and any(found):
            cells = (tables.in_points(*apart) if apart else "" for apart in found)
            lines.append(tables.row(TITLES[name], TITLES[other], *cells))
    return "\n".join(lines) if len(lines) > 1 else ""


def warning_list(records: Records) -> str:
    """Markdown: what the cells that are marked in the table warned of; empty without any."""
    seeds: dict[tuple[str, int | None, str], list[int]] = {}
    for (name, bits, seed), record in records.items():
        for text in record.get("warnings", []):
            seeds.setdefault((name, bits, text), []).append(seed)
    lines = []
    for (name, bits, text), found in seeds.items():
        of = f"seed{'s' * (len(found) > 1)} {', '.join(map(str, found))}"
        lines.append(f"* {TITLES[name]}, {bits} bits, {of}: {text}")
    return "\n".join(["", "Marked with *:", "", *lines, ""]) if lines else ""


# ---------------------------------------------------------------- all of it


def report(args: Namespace, folder: Path, datasets: Mapping[int, PairedDataset],
           records: Records) -> None:
    """Print the tables, and write them, their numbers and the pictures into `folder`."""
    order = {name: number for number, name in enumerate(TITLES)}
    records = dict(sorted(records.items(), key=lambda item: (
        order[item[0][0]], item[0][1] or 0, item[0][2])))
    dataset = next(iter(datasets.values()))
    precision = QueryPrecision(folder, datasets, records)
    text = _text(args, dataset, records, precision)
    print(f"\n{text}")
    with atomic_file(folder / "compare.md") as file:
        file.write(text.encode())
    lines = [_line(dataset.name, key, record, precision) for key, record in records.items()]
    tables.write_csv(folder / "compare.csv", [
        {**line, "warnings": "; ".join(line.get("warnings", []))} for line in lines])
    apart = _all_differences(records, precision)
    tables.write_csv(folder / "differences.csv", apart)
    precision.write_csv(folder / "query_ap.csv")
    write_json(folder / "compare.json", {"settings": vars(args), "environment": environment(),
                                         "cells": lines, "differences": apart})
    title = args.title or f"{dataset.name}, {args.seeds} seed{'s' * (args.seeds > 1)}"
    with atomic_file(folder / "compare.tex") as file:
        caption = f"{args.title}. {dataset.describe()}" if args.title else dataset.describe()
        if len(dataset.query) < FEW:
            caption += ", so few queries that intervals are hints"
        file.write(latex_table(records, caption, precision).encode())
    _draw_maps(folder, records, title, precision, args.format)
    _draw_curves(args, folder, dataset.name, records)
    print(f"wrote compare.md, .tex, .csv, .json, differences.csv, query_ap.csv and figures to "
          f"{folder}")


def _text(args: Namespace, dataset: PairedDataset, records: Records, precision: QueryPrecision
          ) -> str:
    """compare.md."""
    lengths = sorted({bits for _, bits, _ in records if bits is not None})
    R = " and ".join(map(str, sorted({record["R"] for record in records.values()})))
    chance = statistics.mean(record["chance"] for record in records.values())
    queries = len(dataset.query)
    seeds = "one seed" if args.seeds == 1 else f"mean over {args.seeds} seeds"
    spread = " (max - min over seeds)" if args.seeds > 1 else ""
    few = " †" if queries < FEW else ""
    parts = [f"# {args.title}\n"] if args.title else []
    parts += [f"{dataset.describe()}\n",
              f"mAP@{R}{few}, expected over ties, {seeds} [95 % bootstrap interval over queries]"
              f"{spread}; chance {chance:.3f}.\n"]
    if few:
        parts.append(f"† {queries} queries, fewer than {FEW}: the intervals are hints.\n")
    parts += [map_table(records, lengths, args.seeds, precision), warning_list(records)]
    if any(name in DEEP for name, _, _ in records):
        parts.append(f"The deep baselines learn from {args.views} turns and flips of each image, "
                     "MrHash from as many as its own flags say.\n")
    apart = difference_table(records, lengths, args.against, precision)
    if apart:
        parts += ["Points of mAP on the same queries, mean [95 % interval], then each seed:\n",
                  apart, ""]
    return "\n".join(parts)


def _line(data: str, key: Key, record: Record, precision: QueryPrecision) -> Record:
    """A cell as a line of compare.csv."""
    name, bits, seed = key
    low, high = precision.interval(name, bits, seed) or (None, None)
    line, = tables.rounded([{
        "data": data, "method": name, "title": TITLES[name], **record,
        "queries": len(precision.names[seed]), "map_low": low, "map_high": high}])
    return line


def _all_differences(records: Records, precision: QueryPrecision) -> list[Record]:
    """Each pair of methods at each length: how far the first is above the second, in mAP."""
    names = list(dict.fromkeys(key[0] for key in records))
    lengths = sorted({bits for _, bits, _ in records if bits is not None})
    lines = []
    for number, name in enumerate(names):
        for other in names[number + 1:]:
            for bits in lengths or [None]:
                found = precision.difference(name, other, bits)
                if found:
                    means, (low, high) = found
                    lines.append({"method": name, "minus": other, "bits": bits,
                                  "difference": statistics.mean(means.values()), "low": low,
                                  "high": high, **{f"seed {seed}": value
                                                   for seed, value in means.items()}})
    return tables.rounded(lines)


# ---------------------------------------------------------------- pictures


def _draw_maps(folder: Path, records: Records, title: str, precision: QueryPrecision,
               formats: Sequence[str]) -> None:
    """map_by_bits."""
    maps: dict[str, dict[int | None, tuple[float, float, float]]] = {}
    for name, bits in dict.fromkeys(key[:2] for key in records):
        values = [record["map"] for key, record in records.items() if key[:2] == (name, bits)]
        middle = statistics.mean(values)
        low, high = precision.interval(name, bits) or (middle, middle)
        maps.setdefault(_plain(name), {})[bits] = middle, low, high
    R = min(record["R"] for record in records.values())
    write_comparison(maps, folder, R, title, formats)


def _draw_curves(args: Namespace, folder: Path, data: str, records: Records) -> None:
    """precision_recall and its .csv, of the codes of one length and the first seed."""
    for path in folder.glob("precision_recall.*"):  # of an older table, perhaps of other methods
        path.unlink()
    curves = {}
    for (name, bits, seed), record in records.items():
        if bits != args.curve_bit or seed != args.first_seed:
            continue
        try:
            curves[_plain(name)] = curve_of(histograms_of(folder / record["cell"], bits))
        except UNREADABLE as error:
            print(f"no curve of {TITLES[name]}: its codes cannot be read ({error})",
                  file=sys.stderr)
    if curves:
        title = f"{args.title or data}, {args.curve_bit} bits, seed {args.first_seed}"
        write_curves(curves, folder, title, args.format)


def _plain(name: str) -> str:
    return TITLES[name].replace("`", "")
