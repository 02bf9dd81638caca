"""Tables as all benchmarks write them: lines of Markdown, and CSV files."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.files import atomic_file


def row(*cells: Any) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def heading(*cells: str) -> str:
    """The first two lines of a Markdown table."""
    return f"{row(*cells)}\n|{'---|' * len(cells)}"


def over_seeds(values: Sequence[float], wanted: int) -> str:
    """Mean (max - min) of one value a seed; how many seeds, if some of those wanted are missing."""
    if not values:
        return ""
    text = f"{statistics.mean(values):.3f}"
    if len(values) > 1:
        text += f" ({max(values) - min(values):.3f})"
    if len(values) < wanted:
        text += f", {len(values)} of {wanted} seeds"
    return text


def in_points(values: Mapping[int, float], base: Mapping[int, float]) -> str:
    """How far values (seed -> mAP) are above those of `base`, in points: mean [each seed]."""
    differences = [100 * (values[seed] - base[seed]) for seed in values if seed in base]
    if not differences:
        return ""
    text = f", {statistics.mean(differences):+.1f}"
    if len(differences) > 1:
        text += f" [{' '.join(f'{difference:+.1f}' for difference in differences)}]"
    return text


def rounded(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The records with floats of six digits: more would only differ from machine to machine."""
    return [{name: round(value, 6) if isinstance(value, float) else value
             for name, value in record.items()} for record in records]


def write_csv(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """A line a record; columns in the order in which they first come, empty where unknown."""
    columns = list(dict.fromkeys(name for record in records for name in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())
