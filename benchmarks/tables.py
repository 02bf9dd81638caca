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


def over_seeds(values: Sequence[float], wanted: int, sure: tuple[float, float] | None = None
               ) -> str:
    """Mean [interval] (max - min) of one value a seed; how many seeds, if some are missing."""
    if not values:
        return ""
    text = f"{statistics.mean(values):.3f}"
    if sure:
        text += f" [{sure[0]:.3f}, {sure[1]:.3f}]"
    if len(values) > 1:
        text += f" ({max(values) - min(values):.3f})"
    if len(values) < wanted:
        text += f", {len(values)} of {wanted} seeds"
    return text


def in_points(apart: Mapping[int, float], sure: tuple[float, float]) -> str:
    """Differences of mAP (a seed each) in points: mean [interval], each seed."""
    text = (f"{100 * statistics.mean(apart.values()):+.1f} "
            f"[{100 * sure[0]:+.1f}, {100 * sure[1]:+.1f}]")
    if len(apart) > 1:
        text += f", {' '.join(f'{100 * value:+.1f}' for value in apart.values())}"
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
