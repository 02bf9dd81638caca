"""Explicit rankings against numpy's sorts."""

import numpy as np
import pytest
import torch

import hamming
import hamming.ranking
from helpers_hamming import PADDED, C, L, assert_sentence, make_data, mean, plain_ap


def assert_stable(data, distances, relevance, bits, R):
    """stable_metrics against plain fractions of numpy's stable argsort."""
    order = np.argsort(distances, axis=1, kind="stable")
    rows = [row.tolist() for row in np.take_along_axis(relevance, order, axis=1)]
    totals, N = relevance.sum(1).tolist(), relevance.shape[1]
    got = hamming.stable_metrics(*data, bits, R)
    want = {
        "ap": [plain_ap(row, R) for row in rows],
        "ap_strict": [plain_ap(row, R, min(R, N, t)) for row, t in zip(rows, totals, strict=True)],
        "ap_all": [plain_ap(row, N) for row in rows],
        "recall": [sum(row[:R]) / max(1, t) for row, t in zip(rows, totals, strict=True)],
        **{f"precision_at_{k}": [sum(row[:k]) / min(k, N) for row in rows] for k in (1, 10, 100)},
    }
    assert got.keys() == want.keys()
    for name, values in want.items():
        np.testing.assert_allclose(got[name], np.array(values, float), atol=1e-13, err_msg=name)


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("bits", [1, 12, 64, 300, 1024])
def test_stable_order_is_numpys(bits, multi):
    data, distances, relevance = make_data(bits, multi=multi)
    for R in (1, 17, 60, 1000):
        assert_stable(data, distances, relevance, bits, R)


def test_stable_order_of_far_items_with_wide_codes():
    # Distances 256 and 0 are one and the same in 8 bits.
    database = np.array([[255] * 32, [0] * 32, [255] * 32], np.uint8)
    query, labels = np.zeros((1, 32), np.uint8), np.array([0, 1, 0])
    assert hamming.stable_metrics(query, database, [1], labels, 256, 3)["ap"] == [1]
    assert hamming.stable_metrics(query, database, [0], labels, 256, 3)["ap"] == [
        pytest.approx((1 / 2 + 2 / 3) / 2)]


def test_explicit_orders_over_chunks_of_the_database():
    data, distances, relevance = make_data(12, Q=9, N=40_000)
    assert len(data[1]) > 2 * hamming.ranking.CHUNK
    order = np.argsort(distances, axis=1, kind="stable")
    got = hamming.stable_metrics(*data, 12, 50)
    ranked, total = np.take_along_axis(relevance, order, axis=1), relevance.sum(1)
    np.testing.assert_allclose(got["ap"], hamming.ranked_ap(ranked, 50), rtol=1e-13)
    strict = hamming.ranked_ap(ranked, 50, strict=True, num_relevant=total)
    np.testing.assert_allclose(got["ap_strict"], strict, rtol=1e-13)
    for k in (1, 50, 20_000, 40_000):  # within the first chunk, past it, everything
        indices, found = hamming.nearest(data[0], data[1], 12, k)
        np.testing.assert_array_equal(indices, order[:, :k])
        np.testing.assert_array_equal(found, np.take_along_axis(distances, order, axis=1)[:, :k])
    assert hamming.nearest(data[0][:0], data[1], 12, 5)[0].shape == (0, 5)


@pytest.mark.parametrize("bits", [1, 12, 64, 1024])
@pytest.mark.parametrize("k", [1, 5, 60])
def test_nearest_equals_brute_force(bits, k):
    data, distances, _ = make_data(bits)
    indices, found = hamming.nearest(data[0], data[1], bits, k)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    assert indices.dtype == np.int64 and found.dtype == np.int32
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(found, np.take_along_axis(distances, order, axis=1))


@pytest.mark.parametrize(("bits", "N"), [(1, 60), (12, 60), (12, 300_000), (300, 40_000)])
def test_ties_of_the_last_distance_are_counted(bits, N):
    """Over the chunks of several threads, too: of few queries a chunk has 8 x CHUNK items."""
    data, distances, _ = make_data(bits, Q=3, N=N)
    for k in (1, 7, 60):
        indices, found, ties = hamming.nearest_and_ties(data[0], data[1], bits, k)
        order = np.argsort(distances, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(indices, order)
        last = np.take_along_axis(distances, order, axis=1)[:, -1:]
        np.testing.assert_array_equal(ties, (distances == last).sum(axis=1))
        np.testing.assert_array_equal(found[:, -1:], last)


@pytest.mark.parametrize("multi", [False, True])
def test_float_map_equals_plain_numpy(multi):
    data, _, relevance = make_data(8, Q=20, N=300, multi=multi)
    rng = np.random.default_rng(3)
    # Whole numbers: distances are exact in float32, and tie often.
    query, database = rng.integers(-3, 4, (20, 4)), rng.integers(-3, 4, (300, 4))
    database -= np.rint(database.mean(0)).astype(int)
    database[0] -= database.sum(0)  # mean exactly 0
    squared = ((query[:, None] - database[None]) ** 2).sum(2)
    order = np.argsort(squared, axis=1, kind="stable")
    ranked = np.take_along_axis(relevance, order, axis=1)
    for R in (1, 37, 1000):
        want = float(mean(plain_ap(row.tolist(), R) for row in ranked))
        for kind in (np.float64, np.float32, int):
            got = hamming.float_map(query.astype(kind), torch.from_numpy(database.astype(kind)),
                                    data[2], data[3], R)
            assert got == pytest.approx(want, abs=1e-12)
    # Far from the origin, as features after ReLU are: centring keeps float32 exact enough.
    far = rng.standard_normal((320, 6)) + 1e4
    squared = ((far[:20, None] - far[None, 20:]) ** 2).sum(2)
    ranked = np.take_along_axis(relevance, np.argsort(squared, axis=1), axis=1)
    want = float(mean(plain_ap(row.tolist(), 50) for row in ranked))
    assert hamming.float_map(far[:20], far[20:], data[2], data[3], 50) == pytest.approx(want)


@pytest.mark.parametrize("scale", [1e300, 1e36, 1e20, 1e-20, 1e-36, 1e-300])
def test_float_map_is_the_same_in_any_unit(scale):
    """Squares of such numbers are beyond float32, and some beyond float64."""
    data, *_ = make_data(8, Q=20, N=300)
    rng = np.random.default_rng(3)
    query, database = rng.standard_normal((20, 4)), rng.standard_normal((300, 4))
    want = hamming.float_map(query, database, data[2], data[3], 50)
    assert hamming.float_map(query * scale, database * scale, data[2], data[3], 50) == want
    # Queries a long way off, where the nearest are those that lie farthest in their direction.
    order = np.argsort(-database.sum(axis=1))
    want = float(mean(plain_ap(row.tolist(), 50) for row in data[2][:, None] == data[3][order]))
    far = np.full((20, 4), 1e18)
    assert hamming.float_map(far, database, data[2], data[3], 50) == pytest.approx(want)
    with pytest.raises(hamming.CodeError, match="expected both of about the same size"):
        hamming.float_map(far * 1e20, database, data[2], data[3], 50)


@pytest.mark.parametrize("R", [1, 60, 100, 101])
def test_the_nearest_come_as_a_stable_sort_has_them(R):
    values = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    values = values.round(decimals=1)  # ties, below 0 too
    values[0, :6] = torch.tensor([0.0, -0.0, torch.inf, 1e-45, -torch.inf, -1e-45])
    want = values.sort(stable=True).indices[:, :R]
    assert torch.equal(hamming.vectors._nearest_first(values, R), want)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(("call", "message"), [
    (lambda: hamming.nearest(C, C, 16, 4), "k is 4, expected at most 3"),
    (lambda: hamming.nearest(C, C, 16, 0), "k is 0, expected at least 1"),
    (lambda: hamming.nearest(C, PADDED, 12, 1), "database codes have ones"),
    (lambda: hamming.stable_metrics(C, C, L, L, 16, 0), "R is 0"),
    (lambda: hamming.stable_metrics(C, C[:0], L, L[:0], 16, 1), "no database codes"),
    (lambda: hamming.stable_metrics(C, C, L, np.eye(3), 16, 1), "expected .N,. for both"),
    (lambda: hamming.ranked_ap(C, 2, strict=True), "num_relevant is missing"),
    (lambda: hamming.ranked_ap(C, 2, True, [1, 1]), "no less than its hits"),
    (lambda: hamming.ranked_ap(np.ones((3, 2)), 2, True, [2, 1, 2]), "no less than its hits"),
    (lambda: hamming.ranked_ap(C, 2, True, [2.5, 2, 2]), "no less than its hits"),
    (lambda: hamming.ranked_ap([["a"]], 2), "expected numbers"),
    (lambda: hamming.ranked_ap(L, 2), r"relevance has shape \(3,\)"),
    (lambda: hamming.float_map(C, C[:, :1], L, L, 2), "database vectors have"),
    (lambda: hamming.float_map(C[:0], C, L[:0], L, 2), "query vectors have sha"),
    (lambda: hamming.float_map(C / 0.0, C, L, L, 2), "not all finite"),
    (lambda: hamming.float_map(C, C, L, L, 0), "R is 0"),
    (lambda: hamming.float_map(C, C, L, L[:2], 2), "database labels have shape"),
])
def test_bad_input_is_one_clear_sentence(call, message):
    assert_sentence(call, message)
