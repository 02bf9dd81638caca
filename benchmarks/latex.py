"""The table of maps for a paper: LaTeX, with the package booktabs."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.methods import TITLES
from benchmarks.per_query import Column, QueryPrecision

SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
           **{letter: f"\\{letter}" for letter in "&%$#_{}"}}


def latex_text(text: str) -> str:
    """Text as LaTeX prints it; `code` in typewriter, whose two hyphens stay two."""
    safe = "".join(SPECIAL.get(letter, letter) for letter in text)
    return re.sub("`([^`]*)`", lambda code: rf"\texttt{{{code[1].replace('--', '-{}-')}}}", safe)


def latex_table(records: Mapping[Any, Mapping[str, Any]], title: str, precision: QueryPrecision
                ) -> str:
    """A row a method, the mean mAP at each length with half of its interval, the best in bold.

    It is a table* environment, which spans both columns of a page.

    Args:
        records: (method, bits, seed) -> what is known of the cell.
        title: of the caption.
        precision: gives the intervals.
    """
    means: dict[Column, float] = {}
    for column in dict.fromkeys(key[:2] for key in records):
        means[column] = statistics.mean(
            record["map"] for key, record in records.items() if key[:2] == column)
    lengths = sorted({bits for _, bits in means if bits is not None})
    best = {bits: max(value for column, value in means.items() if column[1] == bits)
            for bits in lengths}
    floats = any(bits is None for _, bits in means)
    columns = [None, *lengths] if floats else lengths
    R = " and ".join(f"{R:,}" for R in sorted({record["R"] for record in records.values()}))
    seeds = len({key[2] for key in records})
    heads = ["floats" if bits is None else f"{bits} bits" for bits in columns]
    lines = [r"% \usepackage{booktabs}", r"\begin{table*}", r"\centering", r"\footnotesize",
             r"\setlength{\tabcolsep}{4pt}",
             rf"\begin{{tabular}}{{l{'c' * len(columns)}}}", r"\toprule",
             f"method & {' & '.join(heads)} \\\\", r"\midrule"]
    for name in dict.fromkeys(name for name, _ in means):
        cells = [latex_text(TITLES[name])]
        for bits in columns:
            value = means.get((name, bits))
            made = [record for key, record in records.items() if key[:2] == (name, bits)]
            cells.append("" if value is None else _cell(
                value, precision.interval(name, bits), value == best.get(bits)))
            if any(record.get("warnings") for record in made):
                cells[-1] += "$^*$"
            if 0 < len(made) < seeds:
                cells[-1] += rf" {{\scriptsize({len(made)} of {seeds} seeds)}}"
        lines.append(f"{' & '.join(cells)} \\\\")
    warned = any(record.get("warnings") for record in records.values())
    starred = r" $^*$ With a warning of the scripts." if warned else ""
    lines += [r"\bottomrule", r"\end{tabular}",
              rf"\caption{{{latex_text(title)}: mAP@{R}, expected over ties, mean of "
              rf"{seeds} seed{'s' * (seeds > 1)}, $\pm$ half of the 95\,\% bootstrap interval over "
              f"queries.{starred}}}", r"\label{tab:map}", r"\end{table*}", ""]
    return "\n".join(lines)


def _cell(value: float, sure: tuple[float, float] | None, bold: bool) -> str:
    text = f"{value:.3f}"
    if bold:
        text = rf"\textbf{{{text}}}"
    if sure:
        text += rf"{{\scriptsize$\,\pm\,${(sure[1] - sure[0]) / 2:.3f}}}"
    return text
