"""Metrics of histograms against fractions and enumeration of every order of ties."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hamming
from hamming import Histograms
from hamming.ties import reciprocals
from helpers_hamming import (
    TABLES,
    C,
    L,
    as_histograms,
    assert_sentence,
    group_orders,
    mean,
    plain_ap,
    rankings,
)


@pytest.mark.parametrize("R", [1, 2, 3, 4, 5, 6, 7, 8, 9, 20])
def test_metrics_equal_enumeration_of_all_orders(R):
    histograms = as_histograms(TABLES)
    got = {
        "expected": hamming.expected_ap(histograms, R),
        "strict": hamming.expected_ap(histograms, R, strict=True),
        "best": hamming.best_ap(histograms, R),
        "worst": hamming.worst_ap(histograms, R),
        "chance": hamming.chance_ap(histograms, R),
        "recall": hamming.recall_at(histograms, R),
        "precision": hamming.precision_at(histograms, R),
    }
    for q, (items, relevant) in enumerate(TABLES):
        orders, N, total = rankings(items, relevant), sum(items), sum(relevant)
        aps = [plain_ap(order, R) for order in orders]
        hits = mean(Fraction(sum(order[:R])) for order in orders)
        want = {
            "expected": mean(aps),
            "strict": mean(plain_ap(order, R, min(R, N, total)) for order in orders),
            "best": max(aps),
            "worst": min(aps),
            "chance": mean(plain_ap(order, R) for order in group_orders(N, total)),
            "recall": hits / total if total else 0,
            "precision": hits / min(R, N),
        }
        for name, value in want.items():
            assert got[name][q] == pytest.approx(float(value), abs=1e-14), (name, items, relevant)


tables = st.lists(
    st.integers(0, 4).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))),
    min_size=1, max_size=4,
).filter(lambda groups: sum(n for n, _ in groups) > 0)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(tables, st.integers(1, 18))
def test_any_small_table_equals_enumeration(groups, R):
    items, relevant = zip(*groups, strict=True)
    aps = [plain_ap(order, R) for order in rankings(items, relevant)]
    histograms = as_histograms([(items, relevant)])
    assert hamming.expected_ap(histograms, R)[0] == pytest.approx(float(mean(aps)), abs=1e-14)
    assert hamming.best_ap(histograms, R)[0] == pytest.approx(float(max(aps)), abs=1e-14)
    assert hamming.worst_ap(histograms, R)[0] == pytest.approx(float(min(aps)), abs=1e-14)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=6),
    st.integers(1, 200),
)
def test_extremes_try_every_number_of_hits_in_the_cut(groups, R):
    """Larger groups than can be enumerated: best and worst placement for every feasible x."""
    items = [max(pair) for pair in groups]
    relevant = [min(pair) for pair in groups]
    cut = max(0, min(R, sum(items)))
    first, last, before = [], [], 0
    for n, r in zip(items, relevant, strict=True):
        s = min(n, cut - before)
        choices = range(max(0, s - (n - r)), min(s, r) + 1)
        first.append([(1,) * x + (0,) * (s - x) for x in choices])
        last.append([(0,) * (s - x) + (1,) * x for x in choices])
        before += s
    best = max(plain_ap(sum(order, ()), R) for order in product(*first))
    worst = min(plain_ap(sum(order, ()), R) for order in product(*last))
    histograms = as_histograms([(items, relevant)])
    low, high = hamming.worst_ap(histograms, R)[0], hamming.best_ap(histograms, R)[0]
    assert (low, high) == pytest.approx((float(worst), float(best)), abs=1e-13)
    assert low - 1e-13 <= hamming.expected_ap(histograms, R)[0] <= high + 1e-13


def test_expectation_equals_mean_of_random_orders():
    rng = np.random.default_rng(0)
    items, relevant = [3, 40, 300, 700, 157], [2, 17, 90, 60, 11]
    R, histograms = 700, as_histograms([(items, relevant)])
    aps, strict = [], []
    for _ in range(40):
        orders = [
            rng.permuted(np.tile(np.arange(n) < r, (100, 1)), axis=1)
            for n, r in zip(items, relevant, strict=True)
        ]
        orders = np.concatenate(orders, axis=1)
        aps.append(hamming.ranked_ap(orders, R))
        strict.append(hamming.ranked_ap(orders, R, strict=True, num_relevant=np.full(100, 180)))
    for sample, want in (
        (aps, hamming.expected_ap(histograms, R)[0]),
        (strict, hamming.expected_ap(histograms, R, strict=True)[0]),
    ):
        sample = np.concatenate(sample)
        assert abs(sample.mean() - want) < 5 * sample.std() / np.sqrt(len(sample))
        assert sample.std() > 0


def test_large_straddling_group_equals_sums_over_its_hits():
    """Exact fractions over the whole hypergeometric support; the code sums only its middle."""
    n, r, s, c, h = 3000, 1200, 1100, 400, 150
    histograms = as_histograms([([c, n], [h, r])])
    weight, weights = Fraction(1), {}
    for x in range(min(r, s) + 1):
        weights[x] = weight
        weight *= Fraction((r - x) * (s - x), (x + 1) * (n - r - s + x + 1))
    inside = Fraction(h, c) * sum(
        (1 + Fraction((t - 1) * (h - 1), c - 1)) / t for t in range(1, c + 1))
    # The sum of DESIGN section 5 over t, split in two so that each x costs nothing.
    one = sum(Fraction(1, c + t) for t in range(1, s + 1))
    two = sum(Fraction(t - 1, c + t) for t in range(1, s + 1))
    total = sum(weights.values())
    want = sum(
        float(p / total) * float((inside + Fraction(x, s) * ((h + 1) * one
                                  + Fraction(x - 1, s - 1) * two)) / (h + x))
        for x, p in weights.items() if p / total > 1e-25
    )
    assert hamming.expected_ap(histograms, c + s)[0] == pytest.approx(want, rel=1e-12)


def test_no_digits_are_lost_in_huge_databases():
    # Groups of 1 and 2 far down a ranking of 10^9: exact precisions by hand.
    c, h = 10**9, 10**8
    histograms = Histograms(np.array([[c, 2, 1]]), np.array([[h, 1, 0]]))
    without = Histograms(np.array([[c, 2, 1]]), np.array([[h, 0, 0]]))
    N = c + 3
    got = (hamming.expected_ap(histograms, N) * (h + 1) - hamming.expected_ap(without, N) * h)[0]
    assert got == pytest.approx((h + 1) * (1 / (c + 1) + 1 / (c + 2)) / 2, abs=1e-6)
    low, high = np.array([0.0, 3, 60, 64, 1e9]), np.array([1.0, 200, 70, 64, 1e9 + 5])
    exact = [float(sum(Fraction(1, i) for i in range(int(a) + 1, int(b) + 1)))
             for a, b in zip(low, high, strict=True)]
    np.testing.assert_allclose(reciprocals(low, high), exact, rtol=3e-15)


def test_pencil_examples():
    # Ranking 1 0 1: precisions at the hits 1/1 and 2/3; mean 5/6. Four relevant items exist in all.
    ranking = np.array([[True, False, True]])
    assert hamming.ranked_ap(ranking, 3) == pytest.approx([5 / 6])
    assert hamming.ranked_ap(ranking, 2) == pytest.approx([1])
    assert hamming.ranked_ap(ranking, 3, strict=True, num_relevant=[4]) == pytest.approx([5 / 9])
    assert hamming.ranked_ap(ranking, 3, strict=True, num_relevant=[2]) == pytest.approx([5 / 6])
    # Two tied items, one relevant: first (AP 1) or second (AP 1/2), so 3/4; at R = 1: AP 1 or 0.
    histograms = as_histograms([([2], [1])])
    assert hamming.expected_ap(histograms, 2) == pytest.approx([3 / 4])
    assert hamming.expected_ap(histograms, 1) == pytest.approx([1 / 2])
    # A hit, then two of which one is relevant, R = 2: 1 0 -> 1, 1 1 -> 1. Strict: 1/2 or 1.
    histograms = as_histograms([([1, 2], [1, 1])])
    assert hamming.expected_ap(histograms, 2) == pytest.approx([1])
    assert hamming.expected_ap(histograms, 2, strict=True) == pytest.approx([3 / 4])
    # 0 0 and then a tied pair with one relevant item, R = 3: 0 0 1 -> 1/3, 0 0 0 -> 0.
    histograms = as_histograms([([2, 2], [0, 1])])
    assert hamming.expected_ap(histograms, 3) == pytest.approx([1 / 6])


def test_fewer_hits_in_the_cut_can_raise_the_published_ap():
    # R = 5 leaves the second group one slot. Best: 1 1 1 0, then 0 -> 1; a hit gives (3 + 4/5) / 4.
    histograms = as_histograms([([4, 5], [3, 1])])
    assert hamming.best_ap(histograms, 5) == pytest.approx([1])
    # Worst: 0 1 1 1, then 0 -> (1/2 + 2/3 + 3/4) / 3; a hit at rank 5 (4/5) would raise it.
    assert hamming.worst_ap(histograms, 5) == pytest.approx([(1 / 2 + 2 / 3 + 3 / 4) / 3])
    # Worst with more hits: 1 1 1 1, then 0 0 1 in three slots -> (4 + 5/7) / 5, not 1.
    assert hamming.worst_ap(as_histograms([([4, 5], [4, 1])]), 7) == pytest.approx([33 / 35])


def test_precision_within_radius():
    histograms = as_histograms([([1, 2, 3, 4], [1, 1, 0, 4]), ([0, 0, 0, 10], [0, 0, 0, 5])])
    np.testing.assert_allclose(hamming.precision_within_radius(histograms), [2 / 6, 0])
    np.testing.assert_allclose(hamming.precision_within_radius(histograms, 0), [1, 0])
    np.testing.assert_allclose(hamming.precision_within_radius(histograms, 9), [6 / 10, 5 / 10])


def test_precision_and_recall_by_radius_and_by_rank():
    # Pencil: 1 of 2 relevant at distance 0, nothing at 1, 1 of 3 at 2; two items at 3.
    histograms = as_histograms([([2, 0, 3, 2], [1, 0, 1, 0]), ([0, 4, 0, 3], [0, 0, 0, 0])])
    precision, recall = hamming.precision_recall(histograms)
    np.testing.assert_allclose(precision, [[1 / 2, 1 / 2, 2 / 5, 2 / 7], [0, 0, 0, 0]])
    np.testing.assert_allclose(recall, [[1 / 2, 1 / 2, 1, 1], [0, 0, 0, 0]])
    for radius in range(4):
        np.testing.assert_allclose(precision[:, radius],
                                   hamming.precision_within_radius(histograms, radius))
    ranks = [1, 2, 3, 5, 6, 7, 20]
    curve = hamming.precision_curve(histograms, ranks)
    want = [1 / 2, 1 / 2, (1 + 1 / 3) / 3, 2 / 5, 2 / 6, 2 / 7, 2 / 7]
    np.testing.assert_allclose(curve[0], want)
    empty = hamming.distance_histograms(C, C[:0], L, L[:0], 16)
    np.testing.assert_array_equal(hamming.precision_curve(empty, [1, 2]), np.zeros((3, 2)))
    tables = as_histograms(TABLES)
    for column, k in enumerate(ranks):
        np.testing.assert_allclose(hamming.precision_curve(tables, ranks)[:, column],
                                   hamming.precision_at(tables, k), atol=1e-15)


def test_blocks_of_queries_do_not_change_metrics():
    rng = np.random.default_rng(1)
    items = rng.integers(0, 30, (500, 9))
    histograms = Histograms(items, rng.integers(0, items + 1))
    whole = [metric(histograms, 60) for metric in (hamming.expected_ap, hamming.worst_ap)]
    parts = [Histograms(histograms.items[q : q + 1], histograms.relevant[q : q + 1])
             for q in range(500)]
    for metric, want in zip((hamming.expected_ap, hamming.worst_ap), whole, strict=True):
        np.testing.assert_allclose([metric(part, 60)[0] for part in parts], want, atol=1e-14)
    wide = Histograms(np.repeat(items, 70, axis=0), np.repeat(histograms.relevant, 70, axis=0))
    np.testing.assert_allclose(hamming.expected_ap(wide, 60), np.repeat(whole[0], 70), atol=1e-14)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: hamming.precision_curve(as_histograms(TABLES), [1, 0]), "a rank is 0"),
    (lambda: hamming.expected_ap(as_histograms(TABLES), 0), "R is 0"),
    (lambda: hamming.precision_within_radius(as_histograms(TABLES), -1), "radius is -1"),
])
def test_bad_input_is_one_clear_sentence(call, message):
    assert_sentence(call, message)
