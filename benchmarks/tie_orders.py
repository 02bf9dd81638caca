"""What the order of ties is worth: one file of codes, ranked by several sorts that are all "by Hamming distance".

    python scripts/tie_orders.py runs/*/codes.npz
    NPY_DISABLE_CPU_FEATURES="..." python scripts/tie_orders.py ...      as on an older CPU (docs/ranking.md)

Prints a Markdown table: mAP@R (R = smallest class) and precision at 10 of each order, expected, worst and best.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

import hamming
from engine.cli import ArgumentParser, run
from test import read_codes
from utils import InputError, resolve_path

SHUFFLES = 3


def _score(distances: np.ndarray, relevant: np.ndarray, R: int, sort: Callable[[np.ndarray], np.ndarray]
           ) -> tuple[float, float]:
    """mAP@R and precision at 10 where each row of distances (Q, N) is ranked by `sort`."""
    ranked = np.stack([relevance[sort(row)[:max(R, 10)]]
                       for row, relevance in zip(distances, relevant, strict=True)])
    return float(hamming.ranked_ap(ranked, R).mean()), float(ranked[:, :10].mean())


def rows_of(content: dict) -> list[tuple[str, float, float]]:
    """(order, mAP@R, precision at 10) for every order, from the content of a codes file."""
    bits = content["hash_bit"]
    query, database = (2 * hamming.unpack_codes(content[f"{part}_codes"], bits).astype(np.float32) - 1
                       for part in ("query", "database"))
    own, theirs = content["query_labels"], content["database_labels"]
    histograms = hamming.distance_histograms(content["query_codes"], content["database_codes"], own, theirs, bits)
    R = hamming.smallest_class(theirs)
    if not len(own):
        raise InputError("there are no queries in the codes, expected at least one")
    relevant = own[:, None] == theirs if own.ndim == 1 else own.astype(float) @ theirs.T > 0
    distances = (bits - query @ database.T) / 2
    at_10 = float(hamming.precision_at(histograms, 10).mean())
    rows = [("expected over all orders", float(hamming.expected_ap(histograms, R).mean()), at_10),
            ("worst order", float(hamming.worst_ap(histograms, R).mean()), float("nan")),
            ("best order", float(hamming.best_ap(histograms, R).mean()), float("nan"))]
    sorts = {
        "stable, database as stored": lambda row: np.argsort(row, kind="stable"),
        "stable, database reversed": lambda row: len(row) - 1 - np.argsort(row[::-1], kind="stable"),
        "numpy's default sort of the distances": np.argsort,
        "numpy's default sort of the similarities, read backwards": lambda row: np.argsort(-row)[::-1],
    }
    for seed in range(SHUFFLES):
        order = np.random.default_rng(seed).permutation(len(theirs))
        sorts[f"stable, database shuffled by seed {seed}"] = (
            lambda row, order=order: order[np.argsort(row[order], kind="stable")])
    return rows + [(name, *_score(distances, relevant, R, sort)) for name, sort in sorts.items()]


def main() -> None:
    parser = ArgumentParser(prog="tie_orders.py", description=__doc__.splitlines()[0])
    parser.add_argument("codes", nargs="+", help="codes.npz as written by test.py --save_codes, one or several")
    contents = [read_codes(resolve_path(path), None, None) for path in parser.parse_args().codes]
    contents.sort(key=lambda content: content["hash_bit"])
    tables = [rows_of(content) for content in contents]
    heads = [f"{content['hash_bit']} bits" for content in contents]
    print("| order of ties | " + " | ".join(f"mAP@R, {head} | P@10, {head}" for head in heads) + " |")
    print("|---" * (1 + 2 * len(heads)) + "|")
    for lines in zip(*tables, strict=True):
        cells = [f"{value:.3f}" if value == value else "" for line in lines for value in line[1:]]
        print(f"| {lines[0][0]} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    sys.exit(run(main))
