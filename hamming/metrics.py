"""Metrics of histograms, each over all orders of tied items: the expectation, best, or worst.

R > N means R = N everywhere. A query that finds nothing relevant scores 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .checks import whole_number
from .histograms import Histograms
from .ties import Cut, cut_at, inverse_hits, reciprocals, run_sum, tied_sums


def expected_ap(histograms: Histograms, R: int, strict: bool = False) -> np.ndarray:
    """AP@R in expectation over all orders of tied items, exact up to rounding.

    The published AP divides by the hits within the top R, which is random where a group straddles
    the cut; the expectation is of the whole ratio.

    Args:
        histograms: of Q queries.
        R: rank of the cut.
        strict: divide by min(R, number relevant) instead.
    Returns:
        float64 (Q,).
    Raises:
        CodeError: R is no whole number from 1 on, as in all metrics.
    """
    return _each(histograms, R, _expected_strict_ap if strict else _expected_ap)


def _expected_strict_ap(cut: Cut) -> np.ndarray:
    mean = cut.s * cut.r / np.maximum(cut.n, 1)  # E[x], x hits in the s slots
    pairs = mean * (cut.s - 1) * (cut.r - 1) / np.maximum(cut.n - 1, 1)  # E[x(x-1)]
    one, two = tied_sums(cut.s, cut.c, cut.h)
    total = _expected_sum_inside(cut) + one * mean + two * pairs
    return total / np.maximum(np.minimum(cut.R, cut.total), 1)


def _expected_ap(cut: Cut) -> np.ndarray:
    inside = _expected_sum_inside(cut)
    mean = cut.s * cut.r / np.maximum(cut.n, 1)  # E[x], x hits in the s slots
    one, two = tied_sums(cut.s, cut.c, cut.h)
    # Given x, AP = (inside + one x + two x(x-1)) / (h+x) = two x + constant + rest / (h+x), where
    # rest = inside - h constant; without a hit, AP = 0. So E[1/(h+x)] is all it takes beyond E[x].
    constant = one - two * (1 + cut.h)
    some, inverse = inverse_hits(cut)
    return two * mean + constant * some + (inside - cut.h * constant) * inverse


def _expected_sum_inside(cut: Cut) -> np.ndarray:
    """Sum of the precisions at the hits of the groups wholly inside the cut, expected: (B,)."""
    one, two = tied_sums(cut.items, cut.before, cut.hits)
    return (cut.relevant * (one + (cut.relevant - 1) * two)).sum(axis=1)


def best_ap(histograms: Histograms, R: int) -> np.ndarray:
    """Largest AP@R (published denominator) over all orders of tied items: float64 (Q,)."""
    return _each(histograms, R, _best_ap)


def _best_ap(cut: Cut) -> np.ndarray:
    inside = run_sum(cut.before, cut.relevant, cut.hits).sum(axis=1)
    # Hits come first in their group, but how many, x, should the cut hold? AP is a mean of
    # precisions. One hit more appends (h+x+1) / (c+x+1) to them, which never falls with x. Once
    # that raises the mean, so does every hit after it: AP falls, then rises, and is largest at an
    # end.
    few, many = ((inside + run_sum(cut.c, x, cut.h)) / np.maximum(cut.h + x, 1)
                 for x in (cut.fewest, cut.most))
    return np.maximum(few, many)


def worst_ap(histograms: Histograms, R: int) -> np.ndarray:
    """Smallest AP@R (published denominator) over all orders of tied items: float64 (Q,)."""
    return _each(histograms, R, _worst_ap)


def _worst_ap(cut: Cut) -> np.ndarray:
    inside = run_sum(cut.before + cut.items - cut.relevant, cut.relevant, cut.hits).sum(axis=1)

    def ap(x: np.ndarray) -> np.ndarray:
        return (inside + run_sum(cut.R - x, x, cut.h)) / np.maximum(cut.h + x, 1)

    # Hits come last in their group and, x of them, last before the cut. One more goes to rank R-x
    # and gains (h+1) / (R-x), and 1/i at the ranks i = R-x+1..R after it: a gain that grows with x.
    # AP(x+1) is a mean of AP(x) and gain(x). Once gain(x) >= AP(x), AP(x+1) <= gain(x) < gain(x+1)
    # and it goes on rising: AP falls, then rises, and bisection finds the turn.
    low, high = cut.fewest, cut.most
    while (low < high).any():
        x = np.floor((low + high) / 2)
        gain = (cut.h + 1) / np.maximum(cut.R - x, 1) + reciprocals(cut.R - x, cut.R)
        rises = (gain >= ap(x)) | (low == high)
        low, high = np.where(rises, low, x + 1), np.where(rises, x, high)
    return ap(low)


def chance_ap(histograms: Histograms, R: int) -> np.ndarray:
    """Expected AP@R of a random order, all items tied: float64 (Q,). What any code has to beat."""
    totals = np.stack([histograms.items.sum(axis=1), histograms.relevant.sum(axis=1)], axis=1)
    # All queries of a class are alike: few different rows.
    rows, row = np.unique(totals, axis=0, return_inverse=True)
    return expected_ap(Histograms(rows[:, :1], rows[:, 1:]), R)[row.ravel()]


def recall_at(histograms: Histograms, R: int) -> np.ndarray:
    """Hits in the top R / all relevant items, expected over orders of ties: float64 (Q,)."""
    return _each(histograms, R, lambda cut: _expected_hits(cut) / np.maximum(cut.total, 1))


def precision_at(histograms: Histograms, k: int) -> np.ndarray:
    """Hits in the top k / min(k, N), expected over orders of ties: float64 (Q,)."""
    return _each(histograms, k, lambda cut: _expected_hits(cut) / np.maximum(cut.R, 1))


def _expected_hits(cut: Cut) -> np.ndarray:
    return cut.h + cut.s * cut.r / np.maximum(cut.n, 1)


def precision_curve(histograms: Histograms, ranks: Sequence[int]) -> np.ndarray:
    """`precision_at` every k of `ranks`: float64 (Q, len(ranks))."""
    ranks = np.array([whole_number(k, "a rank") for k in ranks], np.float64)
    curves = np.zeros((len(histograms.items), len(ranks)))
    # Hits expected within the top k are linear in k from one end of a group to the next.
    tables = zip(histograms.items, histograms.relevant, strict=True)
    for row, (items, relevant) in enumerate(tables):
        ends, hits = np.cumsum([0, *items]), np.cumsum([0, *relevant])
        curves[row] = np.interp(ranks, ends, hits) / np.clip(ranks, None, max(1, ends[-1]))
    return curves


def precision_recall(histograms: Histograms) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of the items within each Hamming radius 0..K: both float64 (Q, K+1).

    Precision is 0 where there are no items, recall where nothing is relevant.
    """
    items, relevant = histograms.items.cumsum(axis=1), histograms.relevant.cumsum(axis=1)
    return relevant / np.maximum(items, 1), relevant / np.maximum(relevant[:, -1:], 1)


def precision_within_radius(histograms: Histograms, radius: int = 2) -> np.ndarray:
    """Relevant items / items at distance <= radius, 0 where there are none: float64 (Q,)."""
    end = whole_number(radius, "radius", least=0) + 1
    items = histograms.items[:, :end].sum(axis=1)
    relevant = histograms.relevant[:, :end].sum(axis=1)
    return relevant / np.maximum(items, 1)


def _each(histograms: Histograms, R: int, metric: Callable[[Cut], np.ndarray]) -> np.ndarray:
    """A metric of each query (Q,), in blocks of queries so that the float64 tables stay small."""
    R, size = whole_number(R, "R"), max(1, 2**18 // histograms.items.shape[1])
    values = [np.zeros(0)]
    for start in range(0, len(histograms.items), size):
        rows = slice(start, start + size)
        values.append(metric(cut_at(histograms.items[rows], histograms.relevant[rows], R)))
    return np.concatenate(values)
