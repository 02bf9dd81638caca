"""All metrics of codes at once, as plain Python numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .checks import Array, as_array, require, whole_number
from .histograms import Histograms, distance_histograms
from .labels import smallest_class
from .metrics import (
    best_ap,
    chance_ap,
    expected_ap,
    precision_at,
    precision_within_radius,
    recall_at,
    worst_ap,
)
from .ranking import stable_metrics

TIES = ("expected", "stable", "min", "max")
PRECISION_RANKS = (1, 10, 100)


def evaluate(  # noqa: PLR0913 - others call it by this signature
    query_codes: Array, database_codes: Array, query_labels: Array, database_labels: Array,
    hash_bit: int, R: int | None = None, ties: str = "expected",
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """All metrics, means over queries. For a database in parts, call `summarise`.

    Args:
        query_codes: packed, uint8 (Q, ceil(K/8)).
        database_codes: packed, uint8 (N, ceil(K/8)).
        query_labels: integers (Q,) or 0/1 (Q, C).
        database_labels: integers (N,) or 0/1 (N, C).
        hash_bit: K.
        R: rank of the cut; None is the size of the smallest class in the database.
        ties: expected over all orders, stable, min or max; as for `summarise`.
        device: as for `distance_histograms`.
    Returns:
        as `summarise`.
    Raises:
        CodeError: codes or labels of another shape, type or value, or none at all.
    """
    for what, codes in (("query", query_codes), ("database", database_codes)):
        require(as_array(codes).size, f"there are no {what} codes, expected at least one.")
    require(ties in TIES, f"ties is {ties!r}, expected one of {', '.join(TIES)}.")
    data = query_codes, database_codes, query_labels, database_labels, hash_bit
    R = smallest_class(database_labels) if R is None else whole_number(R, "R")
    stable = stable_metrics(*data, R) if ties == "stable" else None
    return summarise(distance_histograms(*data, device), R, ties, stable)


def summarise(
    histograms: Histograms, R: int, ties: str = "expected",
    stable: dict[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """All metrics, means over queries, from histograms.

    Args:
        histograms: of the whole database; those of its parts add up.
        R: rank of the cut.
        ties: what `map` is: expected over all orders of tied items, of the stable sort, or the
            least or greatest of any order. With stable, map_strict, map_all, recall and
            precision_at are of that sort, too; with min and max they stay expectations. The others
            are the same for all.
        stable: what `stable_metrics` gives, for ties="stable".
    Returns:
        map, map_min, map_max, map_strict, map_all (R = N), map_chance (of a random order), recall,
        precision_at (a dictionary), precision_radius2, and what they are of: hash_bit, R, ties,
        num_query, num_database.
    Raises:
        CodeError: no queries, no items, another `ties`, or `stable` is missing.
    """
    require(ties in TIES, f"ties is {ties!r}, expected one of {', '.join(TIES)}.")
    require(ties != "stable" or stable is not None,
            "ties is 'stable', which needs more than histograms: give stable_metrics.")
    require(histograms.items.any(),
            "there are no queries or no database items, expected at least one of each.")
    worst, best = worst_ap(histograms, R), best_ap(histograms, R)
    values = stable if ties == "stable" else _expected_metrics(histograms, R)
    # An expectation can lie beyond the bounds by the rounding of its last digit.
    ap = {"min": worst, "max": best}.get(ties, np.clip(values["ap"], worst, best))
    mean = {name: float(value.mean()) for name, value in values.items()}
    return {
        "hash_bit": histograms.items.shape[1] - 1,
        "R": int(R),
        "ties": ties,
        "map": float(ap.mean()),
        "map_min": float(worst.mean()),
        "map_max": float(best.mean()),
        "map_strict": mean["ap_strict"],
        "map_all": mean["ap_all"],
        "map_chance": float(chance_ap(histograms, R).mean()),
        "recall": mean["recall"],
        "precision_at": {str(k): mean[f"precision_at_{k}"] for k in PRECISION_RANKS},
        "precision_radius2": float(precision_within_radius(histograms, 2).mean()),
        "num_query": len(histograms.items),
        "num_database": int(histograms.items[0].sum()),
    }


def _expected_metrics(histograms: Histograms, R: int) -> dict[str, np.ndarray]:
    """What `stable_metrics` gives, expected over all orders of tied items: float64 (Q,) each."""
    number = int(histograms.items[0].sum())
    return {
        "ap": expected_ap(histograms, R),
        "ap_strict": expected_ap(histograms, R, strict=True),
        "ap_all": expected_ap(histograms, number),
        "recall": recall_at(histograms, R),
        **{f"precision_at_{k}": precision_at(histograms, k) for k in PRECISION_RANKS},
    }
