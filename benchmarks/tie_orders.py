"""What the order of ties is worth: codes ranked by several sorts, all "by Hamming distance".

    python -m benchmarks.tie_orders runs/*/codes.npz
    NPY_DISABLE_CPU_FEATURES="..." python -m benchmarks.tie_orders ...      as on an older CPU

Prints a Markdown table (docs/ranking.md): mAP@R (R = smallest class) and precision at 10 of each
order, expected, worst and best.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import hamming
from benchmarks import tables
from engine.cli import ArgumentParser, run
from hamming.files import read_codes
from utils import InputError, resolve_path

SHUFFLES = 3
Sort = Callable[[np.ndarray], np.ndarray]  # distances of one query (N,) -> the ranking, rows (N,)


def orders(count: int) -> dict[str, Sort]:
    """Sorts of the distances to `count` items, by name."""
    sorts: dict[str, Sort] = {
        "stable, database as stored": lambda row: np.argsort(row, kind="stable"),
        "stable, database reversed":
            lambda row: count - 1 - np.argsort(row[::-1], kind="stable"),
        "numpy's default sort of the distances": np.argsort,
        "numpy's default sort of the similarities, read backwards":
            lambda row: np.argsort(-row)[::-1],
    }
    for seed in range(SHUFFLES):
        order = np.random.default_rng(seed).permutation(count)
        sorts[f"stable, database shuffled by seed {seed}"] = (
            lambda row, order=order: order[np.argsort(row[order], kind="stable")])
    return sorts


def values_of(content: dict[str, Any]) -> dict[str, tuple[float, float | None]]:
    """order -> mAP@R and precision at 10, from the content of a codes file."""
    bits = content["hash_bit"]
    codes = content["query_codes"], content["database_codes"]
    own, theirs = content["query_labels"], content["database_labels"]
    if not len(own):
        raise InputError("there are no queries in the codes, expected at least one")
    R = hamming.smallest_class(theirs)
    histograms = hamming.distance_histograms(*codes, own, theirs, bits)
    at_10 = float(hamming.precision_at(histograms, 10).mean())
    values: dict[str, tuple[float, float | None]] = {
        "expected over all orders": (float(hamming.expected_ap(histograms, R).mean()), at_10),
        "worst order": (float(hamming.worst_ap(histograms, R).mean()), None),
        "best order": (float(hamming.best_ap(histograms, R).mean()), None)}
    query, database = (2 * hamming.unpack_codes(part, bits).astype(np.float32) - 1
                       for part in codes)
    distances = (bits - query @ database.T) / 2
    relevant = own[:, None] == theirs if own.ndim == 1 else own.astype(float) @ theirs.T > 0
    for name, sort in orders(len(theirs)).items():
        ranked = np.stack([relevance[sort(row)[:max(R, 10)]]
                           for row, relevance in zip(distances, relevant, strict=True)])
        values[name] = (float(hamming.ranked_ap(ranked, R).mean()), float(ranked[:, :10].mean()))
    return values


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m benchmarks.tie_orders",
                            description=__doc__.splitlines()[0])
    parser.add_argument("codes", nargs="+",
                        help="codes.npz as written by test.py --save_codes, one or several")
    contents = {}
    for path in map(resolve_path, parser.parse_args(arguments).codes):
        contents[path] = read_codes(path, None, None)
    contents = dict(sorted(contents.items(), key=lambda item: item[1]["hash_bit"]))
    heads = [f"{content['hash_bit']} bits" for content in contents.values()]
    if len(set(heads)) < len(heads):  # of several seeds, say
        heads = [path.parent.name for path in contents]
    columns = [values_of(content) for content in contents.values()]
    print(tables.heading("order of ties", *(
        title for head in heads for title in (f"mAP@R, {head}", f"P@10, {head}"))))
    for name in columns[0]:
        cells = [value for column in columns for value in column[name]]
        print(tables.row(name, *("" if value is None else f"{value:.3f}" for value in cells)))


if __name__ == "__main__":
    sys.exit(run(main))
