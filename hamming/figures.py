"""What an evaluation looks like: figures as PNG, and the numbers behind each as CSV.

Every value is the mean over queries of the expectation over all orders of tied items. A folder that
is not there is made. Each file appears whole or not at all. Functions that draw names return the
characters that no font of this machine has: boxes in the PNG, whole in the CSV.
"""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text

from .fonts import families_for, quiet
from .histograms import Histograms
from .metrics import best_ap, expected_ap, precision_curve, precision_recall, worst_ap
from .names import as_text, to_draw

LINES = ("-", "--", ":", "-.")  # of the first ten methods, the next ten, ...
MARKERS = "osv^Dx"
MOST_BARS = 60  # more classes than this are in the CSV alone
LONGEST = 30  # characters of the name of a class
# The same figure is the same file, whenever it is made.
UNDATED = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
FORMATS = tuple(UNDATED)


def write_figures(
    histograms: Histograms, R: int, query_labels: np.ndarray, class_names: Sequence[str] | None,
    folder: Path,
) -> str:
    """precision_recall, precision_at_rank and ap_per_class, each .png and .csv.

    A query that has no item within a radius counts with precision 0 there; `answered` is the share
    of queries that have one.

    Args:
        histograms: of Q queries.
        R: rank of the cut.
        query_labels: integers (Q,) or 0/1 (Q, C).
        class_names: by class number, where they are known.
        folder: where the files go.
    Returns:
        the characters of class names that no font has.
    """
    ranks = ranks_to_show(int(histograms.items[0].sum()), R)
    recall, precision = _curve(histograms, ranks)
    _write_csv(folder / "precision_at_rank.csv", ("rank", "precision", "recall"),
               zip(ranks, precision, recall, strict=True))
    bits = histograms.items.shape[1] - 1
    figure, axes = _axes(5, 4, f"Precision against rank, {bits} bits", "rank k", "precision at k")
    axes.plot(ranks, precision)
    axes.axvline(R, color="grey", linestyle="--", label=f"R = {R:,}")
    axes.set(xscale="log", ylim=(0, 1.02))
    axes.legend()
    _write_figure(folder / "precision_at_rank", figure)
    _write_radii(histograms, recall, precision, folder)
    return _write_classes(histograms, R, query_labels, class_names, folder)


def _write_radii(
    histograms: Histograms, recall_by_rank: np.ndarray, precision_by_rank: np.ndarray, folder: Path
) -> None:
    """precision_recall.png and .csv: the CSV by Hamming radius, the PNG by rank, too."""
    bits = histograms.items.shape[1] - 1
    precision, recall = (values.mean(axis=0) for values in precision_recall(histograms))
    answered = (histograms.items.cumsum(axis=1) > 0).mean(axis=0)
    _write_csv(folder / "precision_recall.csv", ("radius", "precision", "recall", "answered"),
               zip(range(bits + 1), precision, recall, answered, strict=True))
    figure, axes = _axes(5, 4, f"Precision and recall, {bits} bits", "recall", "precision")
    axes.plot(recall_by_rank, precision_by_rank, label="the first k of the ranking")
    axes.plot(recall, precision, ".", label="all within a Hamming radius")
    if bits >= 2:
        axes.plot(recall[2], precision[2], "o", fillstyle="none", label="radius 2")
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend()
    _write_figure(folder / "precision_recall", figure)


def _write_classes(
    histograms: Histograms, R: int, query_labels: np.ndarray, class_names: Sequence[str] | None,
    folder: Path,
) -> str:
    """ap_per_class.png and .csv: AP@R of the queries of each class, and its least and greatest."""
    values = expected_ap(histograms, R), worst_ap(histograms, R), best_ap(histograms, R)
    rows = []
    for label, queries in classes_of(np.asarray(query_labels)).items():
        known = class_names is not None and 0 <= label < len(class_names)
        name = as_text(class_names[label]) if known else f"class {label}"
        rows.append((label, name, int(queries.sum()), *(ap[queries].mean() for ap in values)))
    _write_csv(folder / "ap_per_class.csv",
               ("class", "name", "queries", "ap", "ap_min", "ap_max"), rows)

    shown = "each class"
    if len(rows) > MOST_BARS:
        shown = f"the {MOST_BARS} of {len(rows):,} classes where it is lowest"
    rows = sorted(sorted(rows, key=lambda row: row[3])[:MOST_BARS])
    figure, axes = _axes(7, 1.4 + 0.25 * len(rows),
                         f"AP@{R:,} of {shown}, {histograms.items.shape[1] - 1} bits",
                         "expected AP\nblack: worst to best order of ties", "")
    middle, places = np.array([row[3] for row in rows]), range(len(rows))
    reach = np.abs(np.array([row[4:] for row in rows]).T - middle)
    axes.barh(places, middle, xerr=reach, color="tab:blue", alpha=0.7,
              error_kw={"elinewidth": 1, "ecolor": "black"})
    names = [f"{to_draw(row[1], LONGEST)} ({row[2]})" for row in rows]
    axes.set_yticks(places, [name.replace("$", r"\$") for name in names])  # $ starts a formula
    axes.axvline(values[0].mean(), color="grey", linestyle="--")
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.02))
    return _write_figure(folder / "ap_per_class", figure)


def write_comparison(
    maps: dict[str, dict[int | None, tuple[float, float, float]]], folder: Path, R: int,
    title: str, formats: Sequence[str] = ("png",),
) -> None:
    """map_by_bits: mAP@R against the length of the codes, a line a method.

    Args:
        maps: method -> bits -> value, low and high end of its error bar; bits None for a method
            that has no codes: a level line.
        folder: where the file goes.
        R: rank of the cut, for the axis alone.
        title: of the figure.
        formats: png, pdf, svg; a file each.
    """
    figure, axes = _axes(10, 5, title, "bits", f"mAP@{R:,}")
    for number, (method, values) in enumerate(maps.items()):
        if None in values:
            axes.axhline(values[None][0], color="black", label=method,
                         linestyle=LINES[(number + 1) % len(LINES)])
            continue
        known = sorted(values)
        middle, low, high = np.array([values[bits] for bits in known]).T
        beside = 1.08 ** (number / max(1, len(maps) - 1) - 0.5)  # so that bars do not hide others
        bars = np.maximum([middle - low, high - middle], 0)
        axes.errorbar(np.array(known) * beside, middle, yerr=bars, label=method, capsize=2,
                      elinewidth=0.8, marker=MARKERS[number // 10 % len(MARKERS)], markersize=4,
                      **_style(number))
    lengths = sorted({bits for values in maps.values() for bits in values if bits is not None})
    axes.set(xscale="log")
    axes.set_xticks(lengths, [str(bits) for bits in lengths])
    axes.minorticks_off()
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    _write_figure(folder / "map_by_bits", figure, formats)


def write_curves(
    curves: dict[str, tuple[np.ndarray, np.ndarray]], folder: Path, title: str,
    formats: Sequence[str] = ("png",),
) -> None:
    """precision_recall and its .csv: of the first k of the ranking, a line a method.

    Args:
        curves: method -> recall and precision over k, as `curve_of` gives them.
        folder: where the files go.
        title: of the figure.
        formats: png, pdf, svg; a file each.
    """
    rows = []
    figure, axes = _axes(10, 5, title, "recall", "precision")
    for number, (method, (recall, precision)) in enumerate(curves.items()):
        rows += [(method, *point) for point in zip(recall, precision, strict=True)]
        axes.plot(recall, precision, label=method, **_style(number))
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    _write_csv(folder / "precision_recall.csv", ("method", "recall", "precision"), rows)
    _write_figure(folder / "precision_recall", figure, formats)


def curve_of(histograms: Histograms) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision of the first k of the ranking, means over queries: (points,) each."""
    return _curve(histograms, ranks_to_show(int(histograms.items[0].sum()), 1))


def _curve(histograms: Histograms, ranks: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    precision = precision_curve(histograms, ranks)
    relevant = np.maximum(histograms.relevant.sum(axis=1), 1)
    return (precision * ranks / relevant[:, None]).mean(axis=0), precision.mean(axis=0)


def ranks_to_show(number: int, R: int) -> list[int]:
    """Ranks 1..number, evenly on a logarithmic axis and every one of the first ten, and R."""
    spread = np.geomspace(1, number, 100).round().astype(int)
    return sorted({*range(1, min(10, number) + 1), *spread.tolist(), min(R, number), number})


def classes_of(labels: np.ndarray) -> dict[int, np.ndarray]:
    """The queries of each class that has any: class number -> bool (Q,).

    Args:
        labels: integers (Q,) or 0/1 (Q, C).
    """
    if labels.ndim == 1:
        return {int(number): labels == number for number in np.unique(labels)}
    numbers = np.flatnonzero(np.any(labels, axis=0))
    return {int(number): labels[:, number] != 0 for number in numbers}


def _axes(width: float, height: float, title: str, x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    plain = title.replace("$", r"\$")  # $ starts a formula
    axes = figure.add_subplot(title=plain, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def _style(number: int) -> dict[str, str]:
    """Ten colours with one kind of line, then with the next."""
    return {"color": f"C{number % 10}", "linestyle": LINES[number // 10 % len(LINES)]}


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        # repr of a float: the CSV holds every digit.
        writer.writerow([value.item() if isinstance(value, np.generic) else value
                         for value in row])
    _write_whole(path, table.getvalue().encode())


def _write_figure(stem: Path, figure: Figure, formats: Sequence[str] = ("png",)) -> str:
    """<stem>.png, ...; returns the characters that no font has."""
    texts = figure.findobj(Text)
    families, missing = families_for("".join(text.get_text() for text in texts))
    for text in texts:
        text.set_fontfamily(families)
    settings = {"font.family": families, "pdf.fonttype": 42, "svg.hashsalt": "mrhash"}
    for kind in formats:
        image = io.BytesIO()
        with warnings.catch_warnings(), quiet(), matplotlib.rc_context(settings):
            warnings.filterwarnings("ignore", "Glyph .* missing")
            figure.savefig(image, format=kind, dpi=150, metadata=UNDATED[kind])
        _write_whole(stem.with_name(f"{stem.name}.{kind}"), image.getvalue())
    for kind in set(FORMATS) - set(formats):  # of the last time
        stem.with_name(f"{stem.name}.{kind}").unlink(missing_ok=True)
    return missing


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file aside, then give it its name; a link stays, and its target is replaced."""
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
