"""What compare.py says of its cells: the table, the numbers behind it, the pictures."""

from __future__ import annotations

import statistics
import sys
import zipfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import hamming
from benchmarks import tables
from benchmarks.cells import Key, Record
from benchmarks.methods import TITLES, TRAINED
from datasets.base import PairedDataset
from engine.files import atomic_file, write_json
from engine.run import environment
from hamming.figures import curve_of, write_comparison, write_curves

Records = Mapping[Key, Record]


def by_seed(records: Records, name: str, bits: int | None) -> dict[int, float]:
    """seed -> mAP of the codes; bits None: of what they were made from, features or latents."""
    if bits is not None:
        return {key[2]: record["map"] for key, record in records.items() if key[:2] == (name, bits)}
    values = {}
    for (method, length, seed), record in records.items():
        if method == name:
            values[seed] = record["map"] if length is None else record.get("latent_map")
    return {seed: value for seed, value in values.items() if value is not None}


def map_table(records: Records, lengths: Sequence[int], seeds: int, differences: bool) -> str:
    """Markdown: a row a method, mAP@R of floats and of codes; * where a cell has warnings.

    Args:
        records: (method, bits, seed) -> what is known of the cell.
        lengths: of the codes.
        seeds: how many there should be.
        differences: whether an ablation also says how far it is from the method it changes.
    """
    lines = [tables.heading("method", "floats", *(f"{bits} bits" for bits in lengths))]
    for name in dict.fromkeys(key[0] for key in records):
        cells = []
        for bits in (None, *lengths):
            values = by_seed(records, name, bits)
            cells.append(tables.over_seeds(list(values.values()), seeds))
            if differences and name in TRAINED and TRAINED[name].base is not None:
                base = TRAINED[name].base
                # Of the same autoencoder the latents cannot differ.
                if bits is not None or TRAINED[name].first != TRAINED[base].first:
                    cells[-1] += tables.in_points(values, by_seed(records, base, bits))
            if any(record.get("warnings") for key, record in records.items()
                   if key[:2] == (name, bits)):
                cells[-1] += " *"
        lines.append(tables.row(TITLES[name], *cells))
    return "\n".join(lines)


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


def report(args: Namespace, folder: Path, datasets: Mapping[int, PairedDataset],
           records: Records) -> None:
    """Print the table, and write compare.md, .csv, .json and the pictures into `folder`."""
    order = {name: number for number, name in enumerate(TITLES)}
    records = dict(sorted(records.items(), key=lambda item: (
        order[item[0][0]], item[0][1] or 0, item[0][2])))
    dataset = next(iter(datasets.values()))
    text = _text(args, dataset, records)
    print(f"\n{text}")
    with atomic_file(folder / "compare.md") as file:
        file.write(text.encode())
    rows = tables.rounded({"data": dataset.name, "method": name, "title": TITLES[name], **record}
                          for (name, _, _), record in records.items())
    tables.write_csv(folder / "compare.csv", [
        {**line, "warnings": "; ".join(line.get("warnings", []))} for line in rows])
    write_json(folder / "compare.json",
               {"settings": vars(args), "environment": environment(), "cells": rows})
    _draw_maps(args, folder, dataset.name, records)
    _draw_curves(args, folder, dataset.name, records)
    print(f"wrote compare.md, .csv, .json and figures to {folder}")


def _text(args: Namespace, dataset: PairedDataset, records: Records) -> str:
    lengths = sorted({bits for _, bits, _ in records if bits is not None})
    R = " and ".join(map(str, sorted({record["R"] for record in records.values()})))
    chance = statistics.mean(record["chance"] for record in records.values())
    seeds = "one seed" if args.seeds == 1 else f"mean over {args.seeds} seeds (max - min)"
    if args.differences:
        seeds += ", points to the method that is changed: mean [each seed]"
    return (f"{dataset.describe()}\n\nmAP@{R}, expected over ties, {seeds}; chance {chance:.3f}."
            f"\n\n{map_table(records, lengths, args.seeds, args.differences)}\n"
            f"{warning_list(records)}")


def _draw_maps(args: Namespace, folder: Path, data: str, records: Records) -> None:
    """map_by_bits.png."""
    maps: dict[str, dict[int | None, list[float]]] = {}
    for (name, bits, _), record in records.items():
        of_method = maps.setdefault(_plain(name), {})
        of_method.setdefault(bits, []).append(record["map"])
    R = min(record["R"] for record in records.values())
    write_comparison(maps, folder, R, f"{data}, {args.seeds} seed{'s' * (args.seeds > 1)}")


def _draw_curves(args: Namespace, folder: Path, data: str, records: Records) -> None:
    """precision_recall.png and .csv, of the codes of one length and the first seed."""
    curves = {}
    for (name, bits, seed), record in records.items():
        path = folder / record["cell"] / "codes.npz"
        if bits != args.curve_bit or seed != args.first_seed:
            continue
        try:
            with np.load(path) as content:
                curves[_plain(name)] = curve_of(hamming.distance_histograms(
                    content["query_codes"], content["database_codes"], content["query_labels"],
                    content["database_labels"], hash_bit=bits))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            print(f"no curve of {TITLES[name]}: {path} cannot be read ({error})", file=sys.stderr)
    if curves:
        write_curves(curves, folder, f"{data}, {args.curve_bit} bits, seed {args.first_seed}")


def _plain(name: str) -> str:
    return TITLES[name].replace("`", "")
