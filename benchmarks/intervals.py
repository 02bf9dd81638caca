"""How sure a mean average precision is: bootstrap intervals over the query images.

Images are drawn with replacement (Efron & Tibshirani, An Introduction to the Bootstrap, 1993). An
image that is a query of several seeds is drawn for all of them at once. What a training run itself
draws is not in it: that is the spread over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
FEW = 100  # queries: with fewer an interval is no more than a hint
BATCH = 2**20  # numbers at once, of each seed


def interval(names: Mapping[int, Sequence[str]], ap: Mapping[int, np.ndarray]
             ) -> tuple[float, float]:
    """The 95 % percentile interval of the mean over seeds of the mean AP.

    Args:
        names: seed -> the names of its Q queries.
        ap: seed -> float (Q,), a value for each of these queries. For a difference of two methods
            that is paired, the differences.
    """
    low, high = np.quantile(resampled_means(names, ap), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def resampled_means(names: Mapping[int, Sequence[str]], ap: Mapping[int, np.ndarray]
                    ) -> np.ndarray:
    """The mean in each resample, float64 (RESAMPLES,); the same images for the same names."""
    known, place = np.unique(np.concatenate([names[seed] for seed in ap]), return_inverse=True)
    values, there = np.zeros((2, len(ap), len(known)))
    ends = np.cumsum([len(own) for own in ap.values()])[:-1]
    for row, (own, columns) in enumerate(zip(ap.values(), np.split(place, ends), strict=True)):
        values[row, columns] = own
        there[row, columns] = 1
    generator, found = np.random.default_rng(0), []
    size = max(1, BATCH // len(known))
    for start in range(0, RESAMPLES, size):
        # How often each of them is drawn.
        drawn = generator.multinomial(len(known), np.full(len(known), 1 / len(known)),
                                      min(size, RESAMPLES - start))
        count = there @ drawn.T
        # A seed none of whose few queries was drawn says nothing.
        means = values @ drawn.T / np.where(count, count, np.nan)
        found.append(np.nanmean(means, axis=0))
    return np.concatenate(found)
