"""hamming.py against plain, independent code: fractions and enumeration of every order of ties."""

import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache
from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hamming
from hamming import CodeError, Histograms

# ------------------------------------------------------------------------ plain implementation


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


def as_histograms(tables):
    width = max(len(items) for items, _ in tables)
    both = np.zeros((2, len(tables), width), np.int64)
    for q, table in enumerate(tables):
        for part in (0, 1):
            both[part, q, : len(table[part])] = table[part]
    return Histograms(both[0], both[1])


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
    np.testing.assert_allclose(hamming._reciprocals(low, high), exact, rtol=3e-15)


# ------------------------------------------------------------------------ pencil examples


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
    np.testing.assert_allclose(curve[0], [1 / 2, 1 / 2, (1 + 1 / 3) / 3, 2 / 5, 2 / 6, 2 / 7, 2 / 7])
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


# ------------------------------------------------------------------------ codes


@pytest.mark.parametrize("bits", [1, 7, 8, 12, 33, 64, 1000, 1024])
def test_pack_and_unpack(bits):
    values = np.random.default_rng(bits).standard_normal((9, bits)).astype(np.float32)
    values[0] = 0  # h >= 0 is a one
    values[1] = -0.0
    want = np.packbits(values >= 0, axis=1)
    assert want.shape == (9, -(-bits // 8))
    for same in (values, torch.from_numpy(values), values >= 0, (values >= 0).astype(np.uint8),
                 np.where(values >= 0, 1, -1), torch.from_numpy(values).bfloat16()):
        packed = hamming.pack_codes(same)
        assert packed.dtype == np.uint8
        np.testing.assert_array_equal(packed, want)
    np.testing.assert_array_equal(hamming.unpack_codes(want, bits), values >= 0)
    np.testing.assert_array_equal(
        hamming.pack_codes(values, threshold=0.5), np.packbits(values >= 0.5, axis=1))
    assert hamming.unpack_codes(want, bits).dtype == np.uint8
    assert hamming.pack_codes(values[:0]).shape == (0, want.shape[1])


@pytest.mark.parametrize("bits", [1, 2, 8, 9, 64])
def test_anyones_codes_become_packed_ones(bits):
    truth = np.random.default_rng(bits).integers(0, 2, (50, bits)).astype(np.uint8)
    truth[0], truth[1, :] = 1, 0
    packed = np.packbits(truth, axis=1)
    signs = 2.0 * truth - 1
    for codes in (packed, *([truth] if bits > 1 else [])):
        got, found = hamming.as_codes(codes, bits)
        np.testing.assert_array_equal(got, packed)
        assert found == bits
    for codes in (signs, signs.astype(np.int8), signs * 0.3, torch.from_numpy(signs), truth == 1,
                  truth.astype(np.uint16)):
        got, found = hamming.as_codes(codes)
        np.testing.assert_array_equal(got, packed)
        assert found == bits and got.dtype == np.uint8
        np.testing.assert_array_equal(hamming.as_codes(codes, bits)[0], packed)
    np.testing.assert_array_equal(hamming.as_codes(truth * 1.0, threshold=0.5)[0], packed)
    halves = truth * 0.5 + (np.arange(bits) == 0) * 0.5  # 0, 1/2 and 1: no bits, and all >= 0
    if bits > 1:
        assert (hamming.unpack_codes(hamming.as_codes(halves)[0], bits) == 1).all()
    np.testing.assert_array_equal(hamming.as_codes(np.ones((3, bits)))[0], np.repeat(packed[:1], 3, 0))


def test_pack_blocks_and_the_signed_trap():
    bits = np.random.default_rng(0).integers(0, 2, (70000, 3)).astype(np.uint8)
    np.testing.assert_array_equal(hamming.pack_codes(bits), np.packbits(bits, axis=1))
    assert (hamming.pack_codes(bits[:5].astype(np.int64)) == 0b11100000).all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 1024), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_unpack_inverts_pack(bits, n, seed):
    codes = np.random.default_rng(seed).integers(0, 2, (n, bits)).astype(bool)
    np.testing.assert_array_equal(hamming.unpack_codes(hamming.pack_codes(codes), bits), codes)


# ------------------------------------------------------------------------ histograms and rankings


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


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.fixture(params=["words", "cpu", pytest.param("cuda", marks=needs_cuda)])
def counter(request, monkeypatch):
    """Both ways of counting: by words, and by products as on other devices, here on the CPU, too."""
    if request.param != "words":
        monkeypatch.setattr(hamming, "_WordCounter", lambda codes, labels, bits, block:
                            hamming._ProductCounter(codes, labels, bits, block,
                                                    torch.device(request.param)))


@pytest.mark.usefixtures("counter")
@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("bits", [1, 8, 12, 33, 64, 1000, 1024])
def test_histograms_equal_plain_counts(bits, multi):
    data, distances, relevance = make_data(bits, multi=multi)
    want = plain_tables(distances, relevance, bits)
    assert_tables(hamming.distance_histograms(*data, bits), *want)
    for query_block, database_chunk in ((1, 60), (3, 7), (100, 1000)):
        assert_tables(hamming.distance_histograms(
            *data, bits, query_block=query_block, database_chunk=database_chunk), *want)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_any_codes_and_labels_are_counted_as_plainly(data):
    bits = data.draw(st.one_of(st.integers(1, 80), st.integers(1, 1024)), "bits")
    Q, N = data.draw(st.integers(1, 40), "Q"), data.draw(st.integers(0, 70), "N")
    classes = data.draw(st.integers(0, 80), "labels an item may have")  # 0: one class number each
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    codes = rng.random((Q + N, bits)) < rng.random()
    if classes:
        labels = rng.random((Q + N, classes)) < rng.choice([0.02, 0.3, 1])
        relevance = (labels[:Q, None] & labels[None, Q:]).any(2)
    else:
        labels = rng.integers(-2, data.draw(st.integers(-1, 40)), Q + N)
        relevance = labels[:Q, None] == labels[None, Q:]
    distances = (codes[:Q, None] != codes[None, Q:]).sum(2)
    packed = np.packbits(codes, axis=1)
    arrays = packed[:Q], packed[Q:], labels[:Q], labels[Q:], bits
    want = plain_tables(distances, relevance, bits)
    sizes = {"query_block": data.draw(st.integers(1, 50)), "database_chunk": data.draw(st.integers(1, 90))}
    assert_tables(hamming.distance_histograms(*arrays), *want)
    assert_tables(hamming.distance_histograms(*arrays, **sizes), *want)
    if N:
        k = data.draw(st.integers(1, N), "k")
        order = np.argsort(distances, axis=1, kind="stable")
        indices, found = hamming.nearest(packed[:Q], packed[Q:], bits, k)
        np.testing.assert_array_equal(indices, order[:, :k])
        np.testing.assert_array_equal(found, np.take_along_axis(distances, order, axis=1)[:, :k])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same_and_leaves_torch_as_it_was(threads):
    data, distances, relevance = make_data(64, Q=150, N=2000)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert_tables(hamming.distance_histograms(*data, 64, database_chunk=300),
                      *plain_tables(distances, relevance, 64))
        indices, _ = hamming.nearest(*data[:2], 64, 20)
        stable = hamming.stable_metrics(*data, 64, 20)
        with pytest.raises(CodeError), hamming._Threads() as pool:
            pool.each(lambda job, scratch: hamming._require(job < 3, "job 3 or more"), range(100))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    order = np.argsort(distances, axis=1, kind="stable")
    np.testing.assert_array_equal(indices, order[:, :20])
    ranked = np.take_along_axis(relevance, order, axis=1)
    np.testing.assert_allclose(stable["ap"], hamming.ranked_ap(ranked, 20), rtol=1e-13)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def threads_of_a_new_thread():
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


@pytest.mark.usefixtures("three_threads")
def test_jobs_run_side_by_side_with_one_thread_of_torch_each():
    """A bincount of a large block must not call a team of threads; three jobs wait for each other."""
    seen, together = [], threading.Barrier(3)

    def job(number, scratch):
        together.wait(20)
        torch.zeros(10**6).sum()  # torch sets a thread up at its first parallel work
        seen.append((torch.get_num_threads(), id(scratch)))

    with hamming._Threads() as pool:
        assert threads_of_a_new_thread() == 3
        pool.each(job, range(9))
    assert [count for count, _ in seen] == [1] * 9
    assert len({scratch for _, scratch in seen}) == 3
    assert torch.get_num_threads() == threads_of_a_new_thread() == 3


@pytest.mark.usefixtures("three_threads")
def test_calls_that_overlap_leave_torch_as_it_was():
    data, distances, relevance = make_data(33)
    inside = threading.Barrier(2)

    def parts(wait_for):
        inside.wait(20)  # both are counting
        time.sleep(wait_for)
        yield data[1], data[3]

    def call(wait_for):
        return hamming.distance_histograms(data[0], parts(wait_for), data[2], None, 33)

    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(call, (0.05, 0.2)):
            assert_tables(found, *plain_tables(distances, relevance, 33))
    assert threads_of_a_new_thread() == 3


@pytest.mark.usefixtures("three_threads")
def test_after_an_error_in_one_job_the_others_are_dropped():
    done, first = [], []

    def job(number, scratch):
        first.append(scratch)
        # All but one thread fail, so the one that is waited for must hear of it.
        hamming._require(scratch is first[0] or number < 10, "this job fails.")
        time.sleep(0.01)
        done.append(number)

    with hamming._Threads() as pool:
        with pytest.raises(CodeError, match="this job fails"):
            pool.each(job, range(1000))
        pool.each(job, range(1, 4))  # and the threads are there for the next ones
    assert len(done) < 100 and sorted(done[-3:]) == [1, 2, 3]


def test_histograms_take_tensors_and_other_label_types():
    data, distances, relevance = make_data(12, multi=True)
    want = plain_tables(distances, relevance, 12)
    as_types = [torch.from_numpy(data[0]), data[1], data[2].astype(bool), data[3] * 1.0]
    assert_tables(hamming.distance_histograms(*as_types, 12), *want)
    data, distances, relevance = make_data(12)
    labels = [labels + 2**53 for labels in data[2:]]  # beyond float32 and float64
    assert_tables(hamming.distance_histograms(*data[:2], *labels, 12),
                  *plain_tables(distances, relevance, 12))
    neighbour = hamming.distance_histograms(*data[:2], labels[0], labels[0][:1].repeat(60) + 1, 12)
    assert neighbour.relevant.sum() == (labels[0] == labels[0][0] + 1).sum() * 60


@pytest.mark.usefixtures("counter")
def test_histograms_are_exact_at_extreme_distances_and_blocks():
    # 1024 bits, 9000 queries: keys would pass 2^24 (inexact in float32) without a limit on blocks.
    query = np.zeros((9000, 128), np.uint8)
    query[::2] = 255
    database = np.full((3, 128), 255, np.uint8)
    histograms = hamming.distance_histograms(
        query, database, np.zeros(9000, int), np.array([0, 0, 1]), 1024, query_block=9000)
    assert (histograms.items[::2, 0] == 3).all() and (histograms.items[1::2, 1024] == 3).all()
    assert (histograms.relevant[::2, 0] == 2).all() and (histograms.relevant[1::2, 1024] == 2).all()
    assert histograms.items.sum() == 27000


@pytest.mark.usefixtures("counter")
def test_odd_bits_are_exact_far_down_a_block():
    # 63 bits: half a distance is no whole number, and 2^24 / 128 rows of keys come close to 2^24.
    rng = np.random.default_rng(0)
    codes = rng.random((40_010, 63)) < 0.5
    packed = np.packbits(codes, axis=1)
    labels = rng.integers(0, 2, 40_010)
    histograms = hamming.distance_histograms(
        packed[:40_000], packed[40_000:], labels[:40_000], labels[40_000:], 63, query_block=10**6)
    distances = np.stack([(codes[:40_000] != item).sum(1) for item in codes[40_000:]], axis=1)
    assert_tables(histograms, *plain_tables(distances, labels[:40_000, None] == labels[40_000:], 63))


@pytest.mark.usefixtures("counter")
def test_autocast_does_not_round_distances():
    data, distances, relevance = make_data(1000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        histograms = hamming.distance_histograms(*data, 1000)
    assert_tables(histograms, *plain_tables(distances, relevance, 1000))


@pytest.mark.parametrize("multi", [False, True])
def test_memory_mapped_iterated_and_sharded_databases(tmp_path, multi):
    data, distances, relevance = make_data(33, multi=multi)
    want = plain_tables(distances, relevance, 33)
    np.save(tmp_path / "codes.npy", data[1])
    np.save(tmp_path / "labels.npy", data[3])
    mapped = [np.load(tmp_path / name, mmap_mode="r") for name in ("codes.npy", "labels.npy")]
    assert_tables(hamming.distance_histograms(
        data[0], mapped[0], data[2], mapped[1], 33, database_chunk=11), *want)
    assert hamming.nearest(data[0], mapped[0], 33, 3)[0].shape == (7, 3)
    parts = ((data[1][a : a + 25], data[3][a : a + 25]) for a in range(0, 60, 25))
    assert_tables(hamming.distance_histograms(
        data[0], parts, data[2], None, 33, database_chunk=10), *want)
    shards = [hamming.distance_histograms(data[0], data[1][a:b], data[2], data[3][a:b], 33)
              for a, b in ((0, 13), (13, 13), (13, 60))]
    assert_tables(shards[0] + shards[1] + shards[2], *want)
    assert shards[1].items.shape == (7, 34) and not shards[1].items.any()
    summed = hamming.summarise(shards[0] + shards[1] + shards[2], R=9)
    assert summed == hamming.evaluate(*data, 33, R=9)


def test_memory_does_not_grow_with_the_database():
    data, *_ = make_data(64)
    peaks = []
    for N in (20_000, 200_000):  # codes of 1.6 MB; as float32 signs 51 MB
        codes, labels = np.zeros((N, 8), np.uint8), np.zeros(N, int)
        tracemalloc.start()
        hamming.distance_histograms(data[0], codes, data[2], labels, 64)
        hamming.nearest(data[0], codes, 64, 10)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 1.2 * min(peaks)


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
    assert len(data[1]) > 2 * hamming._CHUNK
    order = np.argsort(distances, axis=1, kind="stable")
    got = hamming.stable_metrics(*data, 12, 50)
    ranked, total = np.take_along_axis(relevance, order, axis=1), relevance.sum(1)
    np.testing.assert_allclose(got["ap"], hamming.ranked_ap(ranked, 50), rtol=1e-13)
    np.testing.assert_allclose(
        got["ap_strict"], hamming.ranked_ap(ranked, 50, strict=True, num_relevant=total), rtol=1e-13)
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


@pytest.mark.parametrize("R", [1, 60, 100, 101])
def test_the_nearest_come_as_a_stable_sort_has_them(R):
    values = torch.randn(3, 100, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # ties, below 0 too
    values[0, :6] = torch.tensor([0.0, -0.0, torch.inf, 1e-45, -torch.inf, -1e-45])
    assert torch.equal(hamming._nearest_first(values, R), values.sort(stable=True).indices[:, :R])


# ------------------------------------------------------------------------ evaluate


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
        assert hamming.evaluate(*data, 12, R, ties=ties) == {**got, "map": got[key], "ties": ties}

    ranked = np.take_along_axis(relevance, np.argsort(distances, axis=1, kind="stable"), axis=1)
    rows, totals = [row.tolist() for row in ranked], relevance.sum(1)
    stable = hamming.evaluate(*data, 12, R, ties="stable")
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
    assert hamming.smallest_class(np.array([5, 5, -1, -1, -1, 9, 9])) == 2
    assert hamming.smallest_class(torch.tensor([[1, 0, 1], [1, 0, 0], [1, 0, 1]])) == 2
    assert hamming.smallest_class(np.arange(140000) // 70000) == 70000


def test_queries_without_relevant_items_score_zero_and_count():
    data, *_ = make_data(12)
    full = hamming.evaluate(*data, 12, 9)
    queries = np.concatenate([data[0], data[0]]), np.concatenate([data[2], np.full(7, 99)])
    for ties in hamming.TIES:
        full = hamming.evaluate(*data, 12, 9, ties=ties)
        half = hamming.evaluate(queries[0], data[1], queries[1], data[3], 12, 9, ties=ties)
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
            hamming.evaluate(*data, 12, 9, ties=ties)
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


# ------------------------------------------------------------------------ errors


C = np.zeros((3, 2), np.uint8)
L = np.array([0, 1, 1])
PADDED = np.full((3, 2), 1, np.uint8)
evaluate, count = hamming.evaluate, hamming.distance_histograms


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hamming.pack_codes(np.zeros(4)), r"shape \(4,\), expected \(N, K\)"),
        (lambda: hamming.pack_codes(np.zeros((4, 0))), "K from 1 to 1024"),
        (lambda: hamming.pack_codes(np.zeros((4, 1025))), "K from 1 to 1024"),
        (lambda: hamming.pack_codes(np.zeros((4, 2), complex)), "type complex128, expected floats"),
        (lambda: hamming.pack_codes(np.array([["a"]])), "type <U1, expected floats"),
        (lambda: hamming.pack_codes(np.array([[0, np.nan]])), "NaN or infinity"),
        (lambda: hamming.pack_codes(torch.tensor([[0, -torch.inf]])), "NaN or infinity"),
        (lambda: hamming.pack_codes(np.array([[0, 2]], np.uint8)), "up to 2, expected bits"),
        (lambda: hamming.pack_codes(np.zeros((1, 1)), float("nan")), "threshold is NaN"),
        (lambda: hamming.unpack_codes(C.astype(int), 12), "type int64, expected packed uint8"),
        (lambda: hamming.unpack_codes(C, 17), r"expected \(N, 3\) for 17 bits"),
        (lambda: hamming.unpack_codes(C[0], 16), r"shape \(2,\), expected \(N, 2\)"),
        (lambda: hamming.unpack_codes(PADDED, 12), "ones beyond bit 12"),
        (lambda: hamming.unpack_codes(C, 0), "hash_bit is 0, expected at least 1"),
        (lambda: hamming.unpack_codes(C, 1025), "hash_bit is 1025, expected at most 1024"),
        (lambda: hamming.unpack_codes(C, 12.0), "hash_bit is 12.0, expected a whole number"),
        (lambda: hamming.check_labels(L, 4, "my labels"), r"my labels have shape \(3,\)"),
        (lambda: hamming.check_labels(np.array(1), 1), r"shape \(\), expected \(1,\)"),
        (lambda: hamming.check_labels(L / 2, 3), "type float64, expected integers"),
        (lambda: hamming.check_labels(L == 1, 3), "type bool, expected integers"),
        (lambda: hamming.check_labels(L[:, None] + 1, 3), "not all 0 or 1"),
        (lambda: hamming.smallest_class(np.zeros((3, 2), int)), "labels name no class"),
        (lambda: hamming.smallest_class(np.zeros(0, int)), "labels name no class"),
        (lambda: evaluate(C, C, L, L, 16, ties="sort"), "'sort', expected"),
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
        (lambda: count(C, C, L, None, 16), "labels are missing"),
        (lambda: count(C, C, L, L, 16, query_block=0), "block"),
        (lambda: count(C, C, L, L, 16, database_chunk=0),
         "database_chunk is 0"),
        (lambda: hamming.nearest(C, C, 16, 4), "k is 4, expected at most 3"),
        (lambda: hamming.nearest(C, C, 16, 0), "k is 0, expected at least 1"),
        (lambda: hamming.nearest(C, PADDED, 12, 1), "database codes have ones"),
        (lambda: hamming.stable_metrics(C, C, L, L, 16, 0), "R is 0"),
        (lambda: hamming.stable_metrics(C, C[:0], L, L[:0], 16, 1), "no database codes"),
        (lambda: hamming.stable_metrics(C, C, L, np.eye(3), 16, 1), "expected .N,. for both"),
        (lambda: hamming.precision_curve(as_histograms(TABLES), [1, 0]), "a rank is 0"),
        (lambda: hamming.as_codes(C), "say how many bits they have"),
        (lambda: hamming.as_codes(C, 17, what="my codes"), r"my codes have shape .*\(N, 3\)"),
        (lambda: hamming.as_codes(C + 2, 2), "up to 2, expected bits"),
        (lambda: hamming.as_codes(C * 1.0, 16), r"expected \(N, 16\) for 16 bits, or packed uint8"),
        (lambda: hamming.as_codes(np.eye(2)), "nothing but 0 and 1, which are both >= 0"),
        (lambda: hamming.as_codes(np.eye(2, dtype=int)), "nothing but 0 and 1"),
        (lambda: hamming.as_codes(np.where(np.arange(9000) < 8900, 1.0, 0.0)[:, None]),
         "nothing but 0 and 1"),
        (lambda: hamming.as_codes(np.where(np.arange(9000) < 100, 0.0, 1.0)[:, None]),
         "nothing but 0 and 1"),
        (lambda: hamming.as_codes(np.zeros((2, 250), np.uint8), 2000), "at most 1024"),
        (lambda: hamming.as_codes(C * 1.0, True), "hash_bit is True, expected a whole number"),
        (lambda: hamming.as_codes(C * np.nan, what="my codes"), "my codes contain NaN"),
        (lambda: hamming.check_labels([[1], [1, 2]], 2), "no plain array"),
        (lambda: hamming.check_labels(np.full(3, 2**64 - 1, np.uint64), 3), "go beyond 2.63"),
        (lambda: hamming.check_labels(np.zeros((3, 2), complex), 3), "type complex128, expected int"),
        (lambda: count(C, iter([C]), L, None, 16), "yields a ndarray, expected pairs"),
        (lambda: count(C, np.zeros((0, 3), np.uint8), L, L[:0], 16), r"database codes have shape"),
        (lambda: count(C, np.zeros((10, 2), np.uint8), L, np.zeros(15, int), 16, database_chunk=10),
         "database labels have shape .15,., expected .10,."),
        (lambda: count(C, C, L, L, 16, device="meta"), "try 'cpu'"),
        (lambda: evaluate(torch.zeros(0, 2, dtype=torch.uint8), C, L[:0], L, 16), "no query codes"),
        (lambda: hamming.as_codes(C[0]), r"expected \(N, bytes\) or \(N, K\)"),
        (lambda: hamming.ranked_ap(C, 2, strict=True), "num_relevant is missing"),
        (lambda: hamming.ranked_ap(L, 2), r"relevance has shape \(3,\)"),
        (lambda: hamming.float_map(C, C[:, :1], L, L, 2), "database vectors have"),
        (lambda: hamming.float_map(C[:0], C, L[:0], L, 2), "query vectors have sha"),
        (lambda: hamming.float_map(C / 0.0, C, L, L, 2), "not all finite"),
        (lambda: hamming.float_map(C, C, L, L, 0), "R is 0"),
        (lambda: hamming.float_map(C, C, L, L[:2], 2), "database labels have shape"),
        (lambda: hamming.expected_ap(as_histograms(TABLES), 0), "R is 0"),
        (lambda: hamming.precision_within_radius(as_histograms(TABLES), -1), "radius is -1"),
        (lambda: hamming.summarise(as_histograms(TABLES), 2, "stable"), "give stable_metrics"),
        (lambda: hamming.summarise(Histograms(C[:0], C[:0]), 2), "no queries or no database"),
        (lambda: Histograms(C, C[:2]), r"expected \(Q, K\+1\) for both"),
        (lambda: Histograms(C, C) + Histograms(C[:2], C[:2]), "do not add up"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_bad_input_is_one_clear_sentence(call, message):
    with pytest.raises(CodeError, match=message) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and text.endswith((".", ").")) and len(text) < 250
