"""What an evaluation looks like: three figures as PNG, and the numbers behind each as CSV."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

import hamming
from engine.files import atomic_file

LINES = ("-", "--", ":", "-.")  # of the first ten methods, the next ten, ...
MOST_BARS = 60  # more classes than this are in the CSV alone


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    # repr of a float: the CSV holds every digit.
    writer.writerows([value.item() if isinstance(value, np.generic) else value for value in row]
                     for row in rows)
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())


def _write_png(path: Path, figure: Figure) -> None:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        # The font that comes with matplotlib; names in other scripts are boxes in the PNG, whole in the CSV.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    with atomic_file(path) as file:
        file.write(buffer.getbuffer())


def _axes(width: float, height: float, title: str, x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def write_comparison(maps: dict[str, dict[int | None, Sequence[float]]], folder: Path, R: int, title: str) -> None:
    """map_by_bits.png: mAP@R against the length of the codes, a line a method, with its spread over seeds.

    Args:
        maps: method -> bits -> one value a seed; bits None for a method that has no codes: a level line.
    """
    figure, axes = _axes(10, 5, title, "bits", f"mAP@{R:,}")
    lengths = sorted({bits for values in maps.values() for bits in values if bits is not None})
    for number, (method, values) in enumerate(maps.items()):
        colour = f"C{number % 10}"
        if None in values:
            axes.axhline(np.mean(values[None]), color="black", linestyle=LINES[(number + 1) % 4], label=method)
            continue
        known = sorted(values)
        middle = np.array([np.mean(values[bits]) for bits in known])
        reach = np.array([[np.mean(v) - min(v), max(v) - np.mean(v)] for v in (values[bits] for bits in known)]).T
        axes.errorbar(known, middle, yerr=np.maximum(reach, 0), color=colour, marker="osv^Dx"[number // 10 % 6],
                      linestyle=LINES[number // 10 % 4], markersize=4, capsize=3, label=method)
    axes.set(xscale="log")
    axes.set_xticks(lengths, [str(bits) for bits in lengths])
    axes.minorticks_off()
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    _write_png(folder / "map_by_bits.png", figure)


def write_curves(curves: dict[str, tuple[np.ndarray, np.ndarray]], folder: Path, title: str) -> None:
    """precision_recall.png and .csv: of the first k of the ranking, for each method (recall, precision) over k."""
    _write_csv(folder / "precision_recall.csv", ("method", "recall", "precision"),
               ((method, *point) for method, values in curves.items() for point in zip(*values, strict=True)))
    figure, axes = _axes(10, 5, title, "recall", "precision")
    for number, (method, (recall, precision)) in enumerate(curves.items()):
        axes.plot(recall, precision, color=f"C{number % 10}", label=method,
                  linestyle=LINES[number // 10 % 4])
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    _write_png(folder / "precision_recall.png", figure)


def curve_of(histograms: hamming.Histograms) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision of the first k of the ranking, means over queries, expected over ties; (points,) each."""
    ranks = ranks_to_show(int(histograms.items[0].sum()), 1)
    precision = hamming.precision_curve(histograms, ranks)
    relevant = np.maximum(histograms.relevant.sum(axis=1), 1)
    return (precision * ranks / relevant[:, None]).mean(axis=0), precision.mean(axis=0)


def ranks_to_show(number: int, R: int) -> list[int]:
    """Ranks 1..number, evenly on a logarithmic axis and every one of the first ten; R is among them."""
    spread = np.geomspace(1, number, 100).round().astype(int)
    return sorted({*range(1, min(10, number) + 1), *spread.tolist(), min(R, number), number})


def classes_of(labels: np.ndarray) -> dict[int, np.ndarray]:
    """The queries of each class that has any: class number -> bool (Q,). Labels (Q,) or 0/1 (Q, C)."""
    numbers = np.unique(labels) if labels.ndim == 1 else np.flatnonzero(np.any(labels, axis=0))
    return {int(number): labels == number if labels.ndim == 1 else labels[:, number] != 0
            for number in numbers}


def write_figures(histograms: hamming.Histograms, R: int, query_labels: np.ndarray,
                  class_names: Sequence[str] | None, folder: Path) -> None:
    """precision_recall, precision_at_rank and ap_per_class, each .png and .csv, in `folder`.

    Every value is the mean over queries of the expectation over all orders of tied items. A query that has
    no item within a radius counts with precision 0 there; `answered` is the share of queries that have one.

    Args:
        query_labels: (Q,) or 0/1 (Q, C). class_names: by class number, where they are known.
    """
    number = int(histograms.items[0].sum())
    bits = histograms.items.shape[1] - 1

    precision, recall = (values.mean(axis=0) for values in hamming.precision_recall(histograms))
    answered = (histograms.items.cumsum(axis=1) > 0).mean(axis=0)
    _write_csv(folder / "precision_recall.csv", ("radius", "precision", "recall", "answered"),
               zip(range(bits + 1), precision, recall, answered, strict=True))
    ranks = ranks_to_show(number, R)
    curves = hamming.precision_curve(histograms, ranks)
    relevant = np.maximum(histograms.relevant.sum(axis=1), 1)
    at_rank, recall_at_rank = curves.mean(axis=0), (curves * ranks / relevant[:, None]).mean(axis=0)
    _write_csv(folder / "precision_at_rank.csv", ("rank", "precision", "recall"),
               zip(ranks, at_rank, recall_at_rank, strict=True))

    figure, axes = _axes(5, 4, f"Precision and recall, {bits} bits", "recall", "precision")
    axes.plot(recall_at_rank, at_rank, label="the first k of the ranking")
    axes.plot(recall, precision, ".", label="all within a Hamming radius")
    if bits >= 2:
        axes.plot(recall[2], precision[2], "o", fillstyle="none", label="radius 2")
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend()
    _write_png(folder / "precision_recall.png", figure)

    figure, axes = _axes(5, 4, f"Precision against rank, {bits} bits", "rank k", "precision at k")
    axes.plot(ranks, at_rank)
    axes.axvline(R, color="grey", linestyle="--", label=f"R = {R:,}")
    axes.set(xscale="log", ylim=(0, 1.02))
    axes.legend()
    _write_png(folder / "precision_at_rank.png", figure)

    values = [metric(histograms, R) for metric in (hamming.expected_ap, hamming.worst_ap, hamming.best_ap)]
    rows = []
    for label, queries in classes_of(np.asarray(query_labels)).items():
        known = class_names is not None and 0 <= label < len(class_names)
        rows.append((label, str(class_names[label]) if known else f"class {label}", int(queries.sum()),
                     *(value[queries].mean() for value in values)))
    _write_csv(folder / "ap_per_class.csv", ("class", "name", "queries", "ap", "ap_min", "ap_max"), rows)
    shown = "each class"
    if len(rows) > MOST_BARS:
        shown = f"the {MOST_BARS} of {len(rows):,} classes where it is lowest"
    rows = sorted(sorted(rows, key=lambda row: row[3])[:MOST_BARS])
    figure, axes = _axes(6, 1.2 + 0.25 * len(rows), f"AP@{R:,} of {shown}, {bits} bits",
                         "expected AP; the line goes from the worst to the best order of ties", "")
    middle, places = np.array([row[3] for row in rows]), range(len(rows))
    reach = np.abs(np.array([row[4:] for row in rows]).T - middle)
    axes.barh(places, middle, xerr=reach, color="tab:blue", alpha=0.7,
              error_kw={"elinewidth": 1, "ecolor": "black"})
    # A dollar sign would start a formula.
    axes.set_yticks(places, [f"{row[1]} ({row[2]})".replace("$", r"\$") for row in rows])
    axes.axvline(values[0].mean(), color="grey", linestyle="--")
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.02))
    _write_png(folder / "ap_per_class.png", figure)
