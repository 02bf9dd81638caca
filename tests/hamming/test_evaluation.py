"""All metrics at once against plain code."""

from fractions import Fraction

import numpy as np
import pytest
import torch

import hamming
from hamming import Histograms
from helpers_hamming import (
    PADDED,
    TABLES,
    C,
    L,
    as_histograms,
    assert_sentence,
    assert_tables,
    make_data,
    mean,
    plain_ap,
    plain_tables,
)

evaluate = hamming.evaluate


def with_ties(data, bits, R, ties):
    """What `evaluate` gives, for another treatment of ties."""
    stable = hamming.stable_metrics(*data, bits, R) if ties == "stable" else None
    return hamming.summarise(hamming.distance_histograms(*data, bits), R, ties, stable)


@pytest.mark.parametrize("multi", [False, True])
def test_evaluate(multi):
    data, distances, relevance = make_data(12, multi=multi)
    histograms = Histograms(*plain_tables(distances, relevance, 12))
    R = 9
    got = hamming.evaluate(*data, 12, R)
    want = {
        "hash_bit": 12, "R": 9, "ties": "expected", "num_query": 7, "num_database": 60,
        "map": hamming.expected_ap(histograms, R).mean(),
        "map_min": hamming.worst_ap(histograms, R).mean(),
        "map_max": hamming.best_ap(histograms, R).mean(),
        "map_strict": hamming.expected_ap(histograms, R, strict=True).mean(),
        "map_all": hamming.expected_ap(histograms, 60).mean(),
        "map_chance": hamming.chance_ap(histograms, R).mean(),
        "recall": hamming.recall_at(histograms, R).mean(),
        "precision_at": {str(k): hamming.precision_at(histograms, k).mean() for k in (1, 10, 100)},
        "precision_radius2": hamming.precision_within_radius(histograms, 2).mean(),
    }
    assert got == want
    assert {type(value) for value in got.values()} == {int, float, str, dict}
    assert {type(value) for value in got["precision_at"].values()} == {float}
    assert got["map_min"] < got["map"] < got["map_max"] and got["map_strict"] < got["map"]
    for ties, key in (("min", "map_min"), ("max", "map_max")):
        assert with_ties(data, 12, R, ties) == {**got, "map": got[key], "ties": ties}

    ranked = np.take_along_axis(relevance, np.argsort(distances, axis=1, kind="stable"), axis=1)
    rows, totals = [row.tolist() for row in ranked], relevance.sum(1)
    stable = with_ties(data, 12, R, "stable")
    assert stable["ties"] == "stable"
    for key, values in {
        "map": [plain_ap(row, R) for row in rows],
        "map_strict": [plain_ap(row, R, min(R, t)) for row, t in zip(rows, totals, strict=True)],
        "map_all": [plain_ap(row, 60) for row in rows],
        "recall": [Fraction(sum(row[:R]), max(1, int(t)))
                   for row, t in zip(rows, totals, strict=True)],
    }.items():
        assert stable[key] == pytest.approx(float(mean(values))), key
    for k in (1, 10, 100):
        assert stable["precision_at"][str(k)] == pytest.approx(ranked[:, :k].mean(1).mean())
    for key in ("map_min", "map_max", "map_chance", "precision_radius2", "R", "num_query"):
        assert stable[key] == got[key]
    assert stable.keys() == got.keys()
    assert stable["precision_at"].keys() == got["precision_at"].keys()
    assert got["map_min"] <= stable["map"] <= got["map_max"]


def test_R_is_the_smallest_class_by_default():
    data, *_ = make_data(12)
    assert hamming.evaluate(*data, 12)["R"] == np.unique(data[3], return_counts=True)[1].min()


def test_queries_without_relevant_items_score_zero_and_count():
    data, *_ = make_data(12)
    queries = np.concatenate([data[0], data[0]]), np.concatenate([data[2], np.full(7, 99)])
    for ties in hamming.TIES:
        full = with_ties(data, 12, 9, ties)
        half = with_ties((queries[0], data[1], queries[1], data[3]), 12, 9, ties)
        for key in ("map", "map_min", "map_max", "map_strict", "map_all", "recall", "map_chance",
                    "precision_radius2"):
            assert half[key] == pytest.approx(full[key] / 2), (ties, key)


def test_inputs_stay_as_they_are():
    for multi in (False, True):
        data, *_ = make_data(12, multi=multi)
        copies = [part.copy() for part in data]
        for part in data:
            part.flags.writeable = False  # a write would raise
        for ties in hamming.TIES:
            with_ties(data, 12, 9, ties)
        hamming.nearest(data[0], data[1], 12, 4)
        values = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
        before = values.clone()
        hamming.pack_codes(values)
        hamming.float_map(values, values, data[2][:5], data[2][:5], 3)
        assert torch.equal(values, before)
        for part, copy in zip(data, copies, strict=True):
            np.testing.assert_array_equal(part, copy)
    table = Histograms(np.array([[2, 3]]), np.array([[1, 1]]))
    copy = Histograms(table.items.copy(), table.relevant.copy())
    table.items.flags.writeable = table.relevant.flags.writeable = False
    hamming.summarise(table + table, 3)
    hamming.summarise(table, 3)
    assert_tables(table, copy.items, copy.relevant)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: hamming.summarise(as_histograms(TABLES), 2, "sort"), "'sort', expected"),
    (lambda: evaluate(C, C, L, L, 16, R=0), "R is 0, expected at least"),
    (lambda: evaluate(C, C, L, L, 16, R=2.5), "R is 2.5, expected a wh"),
    (lambda: evaluate(C[:0], C, L[:0], L, 16), "no query codes"),
    (lambda: evaluate(C, C[:0], L, L[:0], 16), "no database codes"),
    (lambda: evaluate(C, C, L[:2], L, 16), r"query labels have shape \(2"),
    (lambda: evaluate(C, C, L, L[:2], 16), "database labels have shape"),
    (lambda: evaluate(C, C[:2], L, L, 16), "database labels have shape"),
    (lambda: evaluate(C, C, L, np.eye(3), 16), "expected .N,. for both"),
    (lambda: evaluate(C, C, np.eye(3, 4), np.eye(3), 16), "with the same C"),
    (lambda: evaluate(C, C[:, :1], L, L, 16), "database codes have sh"),
    (lambda: evaluate(C, PADDED, L, L, 12), "database codes have ones"),
    (lambda: evaluate(PADDED, C, L, L, 12), "query codes have ones"),
    (lambda: evaluate(C, C, L, L, 16, device="tpu9"), "try 'cpu'"),
    (lambda: evaluate(torch.zeros(0, 2, dtype=torch.uint8), C, L[:0], L, 16), "no query codes"),
    (lambda: hamming.summarise(as_histograms(TABLES), 2, "stable"), "give stable_metrics"),
    (lambda: hamming.summarise(Histograms(C[:0], C[:0]), 2), "no queries or no database"),
])
def test_bad_input_is_one_clear_sentence(call, message):
    assert_sentence(call, message)


@pytest.mark.parametrize(("items", "relevant", "R"), [
    ([5, 3, 3, 1, 1, 0], [0, 0, 0, 1, 1, 0], 12),
    ([5, 5, 0, 0, 5, 0], [5, 4, 0, 0, 5, 0], 6),
    ([3, 1, 5, 4, 3, 5], [3, 0, 0, 4, 1, 0], 11),
    ([2, 2, 2, 1, 2, 2], [2, 2, 2, 0, 0, 2], 3)])
def test_rounding_takes_no_expectation_beyond_its_bounds(items, relevant, R):
    """All orders give the same AP here, and the sums differ in their last digit."""
    found = hamming.summarise(Histograms(np.array([items]), np.array([relevant])), R)
    assert found["map_min"] <= found["map"] <= found["map_max"]
