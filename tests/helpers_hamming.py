"""Plain, independent code to hold hamming against: fractions, every order of ties."""

from fractions import Fraction
from functools import cache
from itertools import combinations, product

import numpy as np
import pytest

from hamming import CodeError, Histograms

C = np.zeros((3, 2), np.uint8)  # three packed codes of 16 bits
L = np.array([0, 1, 1])
PADDED = np.full((3, 2), 1, np.uint8)  # no codes of 12 bits

# (items, relevant) at distances 0, 1, ...: every trap has its line.
TABLES = [
    ([3, 0, 4, 2], [1, 0, 2, 1]),  # an empty distance between
    ([1, 1, 1, 1, 1], [0, 1, 0, 1, 1]),  # no ties at all
    ([7], [3]),  # all codes equal
    ([0, 0, 6], [0, 0, 6]),  # all relevant, all far
    ([4, 3], [0, 0]),  # nothing relevant
    ([4, 4], [0, 2]),  # no hit before the straddling group
    ([3, 5], [3, 1]),  # fewer hits in the cut are better
    ([2, 6, 1], [1, 5, 1]),  # some hits are sure to be inside the cut
    ([5, 3], [5, 3]),  # all relevant
    ([1, 8], [1, 4]),
    ([1], [1]),
]


def plain_ap(ranking, R, divisor=None):
    """AP@R of one ranking (0/1 list), as a fraction; divisor None = hits within the top R."""
    hits, total = 0, Fraction(0)
    for rank, relevant in enumerate(ranking[:R], 1):
        if relevant:
            hits += 1
            total += Fraction(hits, rank)
    divisor = hits if divisor is None else divisor
    return total / divisor if divisor else Fraction(0)


@cache
def group_orders(n, r):
    """All distinct, equally likely 0/1 sequences of a group of n tied items, r of them relevant."""
    return [tuple(int(i in chosen) for i in range(n)) for chosen in combinations(range(n), r)]


def rankings(items, relevant):
    groups = [group_orders(n, r) for n, r in zip(items, relevant, strict=True)]
    return [sum(order, ()) for order in product(*groups)]


def mean(values):
    values = list(values)
    return sum(values, Fraction(0)) / len(values)


def as_histograms(tables):
    width = max(len(items) for items, _ in tables)
    both = np.zeros((2, len(tables), width), np.int64)
    for q, table in enumerate(tables):
        for part in (0, 1):
            both[part, q, : len(table[part])] = table[part]
    return Histograms(both[0], both[1])


def make_data(bits, Q=7, N=60, multi=False, seed=0, classes=3):
    """Clustered packed codes with many ties and labels; the plain distances and relevance."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2, (classes, bits))
    names = rng.integers(0, classes, Q + N)
    codes = centres[names] ^ (rng.random((Q + N, bits)) < 0.2)
    labels = names * 7 - 3
    if multi:
        labels = (rng.random((Q + N, classes)) < 0.3).astype(np.int64)
    distances = (codes[:Q, None] != codes[None, Q:]).sum(2)
    query, database = labels[:Q, None], labels[None, Q:]
    relevance = (query & database).any(2) if multi else query == database
    packed = np.packbits(codes.astype(bool), axis=1)
    return (packed[:Q], packed[Q:], labels[:Q], labels[Q:]), distances, relevance


def plain_tables(distances, relevance, bits):
    items = [np.bincount(d, minlength=bits + 1) for d in distances]
    relevant = [np.bincount(d[r], minlength=bits + 1)
                for d, r in zip(distances, relevance, strict=True)]
    return np.array(items), np.array(relevant)


def assert_tables(histograms, items, relevant):
    assert histograms.items.dtype == histograms.relevant.dtype == np.int64
    np.testing.assert_array_equal(histograms.items, items)
    np.testing.assert_array_equal(histograms.relevant, relevant)


def assert_sentence(call, message):
    """The call is refused with one clear sentence in which the message stands."""
    with pytest.raises(CodeError, match=message) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and text.endswith((".", ").")) and len(text) < 250
