"""Sums over all orders of tied items, for rankings cut at R: what the metrics are made of."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# 0, H_1, ..., H_64
_HARMONIC = np.cumsum(np.concatenate([[0.0], 1 / np.arange(1.0, 65.0)]))


class Cut(NamedTuple):
    """Histograms cut at R, float64: the groups of ties wholly inside, and the one astride R."""

    items: np.ndarray  # (B, K+1): n of the groups inside, 0 for the others
    relevant: np.ndarray  # (B, K+1): their r
    before: np.ndarray  # (B, K+1): c, the items before them
    hits: np.ndarray  # (B, K+1): h, the hits before them
    n: np.ndarray  # (B,), as all below: the straddling group, 0 where R falls between two groups
    r: np.ndarray
    c: np.ndarray
    h: np.ndarray
    s: np.ndarray  # R - c, the slots of the straddling group inside the cut
    fewest: np.ndarray  # how many of its r hits these slots can hold
    most: np.ndarray
    R: np.ndarray  # min(R, N)
    total: np.ndarray  # relevant items, inside or not


def cut_at(items: np.ndarray, relevant: np.ndarray, R: int) -> Cut:
    """Cut tables int64 (B, K+1) at rank R."""
    ends = np.cumsum(items, axis=1)
    R = np.minimum(R, ends[:, -1])
    inside = ends <= R[:, None]  # True, ..., True, False, ...
    n_in, r_in = np.where(inside, items, 0), np.where(inside, relevant, 0)
    # The group after those inside; where all are, the empty column behind the last.
    straddling = inside.sum(axis=1, keepdims=True)
    n = np.take_along_axis(np.pad(items, ((0, 0), (0, 1))), straddling, axis=1)[:, 0]
    r = np.take_along_axis(np.pad(relevant, ((0, 0), (0, 1))), straddling, axis=1)[:, 0]
    c, h = n_in.sum(axis=1), r_in.sum(axis=1)
    s = R - c
    before, hits = np.cumsum(n_in, axis=1) - n_in, np.cumsum(r_in, axis=1) - r_in
    fewest, most = np.maximum(0, s - (n - r)), np.minimum(s, r)
    parts = n_in, r_in, before, hits, n, r, c, h, s, fewest, most, R, relevant.sum(axis=1)
    return Cut(*(np.asarray(part, np.float64) for part in parts))


def reciprocals(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Sum of 1/i for i in low+1..high, whole numbers of any size, to full relative precision.

    A table up to 64, then H_m = log u + 1/(24 u^2) - 7/(960 u^4) + 31/(8064 u^6) + const, u = m +
    1/2 (DeTemple 1993). A difference of two digammas would lose the digits that c (H_c+n - H_c)
    needs.
    """
    start, end = np.minimum(low, 64).astype(int), np.minimum(high, 64).astype(int)
    low, high = np.maximum(low, 64) + 0.5, np.maximum(high, 64) + 0.5
    a, b = low**-2, high**-2
    tail = (b - a) / 24 - 7 / 960 * (b**2 - a**2) + 31 / 8064 * (b**3 - a**3)
    return _HARMONIC[end] - _HARMONIC[start] + np.log1p((high - low) / low) + tail


def tied_sums(n: np.ndarray, c: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What hits among n tied ranks, after c items with h hits, add to the sum of the precisions.

    Rank c+t is a hit with probability x/n, then (t-1)(x-1)/(n-1) hits are expected before it in the
    group: sum over t of x/n (h + 1 + (t-1)(x-1)/(n-1)) / (c+t), and t-1 = (c+t) - (c+1).

    Returns:
        (one, two): x hits are expected to add one * x + two * x(x-1).
    """
    span = reciprocals(c, c + n)
    return (h + 1) * span / np.maximum(n, 1), (n - (c + 1) * span) / np.maximum(n * (n - 1), 1)


def run_sum(start: np.ndarray, count: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Sum of the precisions at hits on all of the ranks start+1..start+count, after h hits."""
    return count + (h - start) * reciprocals(start, start + count)


def inverse_hits(cut: Cut) -> tuple[np.ndarray, np.ndarray]:
    """P(h+x > 0) and the sum of P(x)/(h+x) over h+x > 0, x ~ Hypergeometric(n, r, s): both (B,)."""
    mode = np.floor((cut.r + 1) * (cut.s + 1) / (cut.n + 2))
    # Farther than `reach` from the mean lies less than 2 exp(-40) of the mass (Bernstein's
    # inequality, which Hoeffding 1963 carries over to draws without replacement; s or n - s draws
    # deviate alike).
    variance = np.minimum(cut.s, cut.n - cut.s) * cut.r * (cut.n - cut.r)
    variance = variance / np.maximum(cut.n, 1) ** 2
    reach = np.ceil(40 / 3 + np.sqrt((40 / 3) ** 2 + 80 * variance)) + 2
    up, down = np.minimum(cut.most - mode, reach), np.minimum(mode - cut.fewest, reach)
    some, inverse = np.zeros_like(mode), np.zeros_like(mode)
    size = max(1, int(2**18 // (1 + (up + down).max(initial=0))))
    for start in range(0, len(mode), size):
        b = slice(start, start + size)
        n, r, s, h, x = (part[b, None] for part in (cut.n, cut.r, cut.s, cut.h, mode))
        # Weights from the mode outwards, by ratios of neighbours: factorials would cost digits. The
        # ratio at an end of the support is 0, and keeps all that follows at 0.
        above, below = x + np.arange(up[b].max()), x - np.arange(down[b].max())
        hits = h + np.concatenate([x, above + 1, below - 1], axis=1)
        above = (r - above) * (s - above) / ((above + 1) * (n - r - s + above + 1))
        below = below * (n - r - s + below) / ((r - below + 1) * (s - below + 1))
        weight = [np.ones_like(x), np.cumprod(above, axis=1), np.cumprod(below, axis=1)]
        weight = np.concatenate(weight, axis=1)
        weight = np.where(hits > 0, weight, 0) / weight.sum(axis=1, keepdims=True)
        some[b], inverse[b] = weight.sum(axis=1), (weight / np.maximum(hits, 1)).sum(axis=1)
    return some, inverse
