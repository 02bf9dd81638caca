"""Counting at each distance, by words and by products, against plain counts."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hamming
import hamming.histograms
from hamming import Histograms
from helpers_hamming import C, L, assert_sentence, assert_tables, make_data, plain_tables

count = hamming.distance_histograms


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.fixture(params=["words", "cpu", pytest.param("cuda", marks=needs_cuda)])
def counter(request, monkeypatch):
    """Both ways of counting: by words, and by products as on other devices, here too."""
    if request.param != "words":
        device = torch.device(request.param)
        monkeypatch.setattr(hamming.histograms, "_count_words", lambda *arguments:
                            hamming.histograms._count_products(*arguments, device))


@pytest.mark.usefixtures("counter")
@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("bits", [1, 8, 12, 33, 64, 1000, 1024])
def test_histograms_equal_plain_counts(bits, multi, monkeypatch):
    data, distances, relevance = make_data(bits, multi=multi)
    want = plain_tables(distances, relevance, bits)
    assert_tables(hamming.distance_histograms(*data, bits), *want)
    for block, chunk in ((1, 60), (3, 7), (100, 1000)):
        monkeypatch.setattr(hamming.histograms, "WORD_BLOCK", block)
        monkeypatch.setattr(hamming.histograms, "PRODUCT_BLOCK", block)
        monkeypatch.setattr(hamming.histograms, "CHUNK", chunk)
        assert_tables(hamming.distance_histograms(*data, bits), *want)


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
    assert_tables(hamming.distance_histograms(*arrays), *want)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hamming.histograms, "WORD_BLOCK", data.draw(st.integers(1, 50)))
        patch.setattr(hamming.histograms, "CHUNK", data.draw(st.integers(1, 90)))
        assert_tables(hamming.distance_histograms(*arrays), *want)
    if N:
        k = data.draw(st.integers(1, N), "k")
        order = np.argsort(distances, axis=1, kind="stable")
        indices, found = hamming.nearest(packed[:Q], packed[Q:], bits, k)
        np.testing.assert_array_equal(indices, order[:, :k])
        np.testing.assert_array_equal(found, np.take_along_axis(distances, order, axis=1)[:, :k])


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
def test_histograms_are_exact_at_extreme_distances_and_blocks(monkeypatch):
    # 1024 bits, 9000 queries: keys would pass 2^24 (inexact in float32) without a limit on blocks.
    monkeypatch.setattr(hamming.histograms, "WORD_BLOCK", 9000)
    monkeypatch.setattr(hamming.histograms, "PRODUCT_BLOCK", 9000)
    query = np.zeros((9000, 128), np.uint8)
    query[::2] = 255
    database = np.full((3, 128), 255, np.uint8)
    histograms = hamming.distance_histograms(
        query, database, np.zeros(9000, int), np.array([0, 0, 1]), 1024)
    assert (histograms.items[::2, 0] == 3).all() and (histograms.items[1::2, 1024] == 3).all()
    assert (histograms.relevant[::2, 0] == 2).all() and (histograms.relevant[1::2, 1024] == 2).all()
    assert histograms.items.sum() == 27000


@pytest.mark.usefixtures("counter")
def test_odd_bits_are_exact_far_down_a_block(monkeypatch):
    # 63 bits: half a distance is no whole number, and 2^24 / 128 rows of keys come close to 2^24.
    monkeypatch.setattr(hamming.histograms, "WORD_BLOCK", 10**6)
    monkeypatch.setattr(hamming.histograms, "PRODUCT_BLOCK", 10**6)
    rng = np.random.default_rng(0)
    codes = rng.random((40_010, 63)) < 0.5
    packed = np.packbits(codes, axis=1)
    labels = rng.integers(0, 2, 40_010)
    histograms = hamming.distance_histograms(
        packed[:40_000], packed[40_000:], labels[:40_000], labels[40_000:], 63)
    distances = np.stack([(codes[:40_000] != item).sum(1) for item in codes[40_000:]], axis=1)
    relevance = labels[:40_000, None] == labels[40_000:]
    assert_tables(histograms, *plain_tables(distances, relevance, 63))


@pytest.mark.usefixtures("counter")
def test_autocast_does_not_round_distances():
    data, distances, relevance = make_data(1000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        histograms = hamming.distance_histograms(*data, 1000)
    assert_tables(histograms, *plain_tables(distances, relevance, 1000))


@pytest.mark.parametrize("multi", [False, True])
def test_memory_mapped_iterated_and_sharded_databases(tmp_path, monkeypatch, multi):
    data, distances, relevance = make_data(33, multi=multi)
    want = plain_tables(distances, relevance, 33)
    np.save(tmp_path / "codes.npy", data[1])
    np.save(tmp_path / "labels.npy", data[3])
    mapped = [np.load(tmp_path / name, mmap_mode="r") for name in ("codes.npy", "labels.npy")]
    monkeypatch.setattr(hamming.histograms, "CHUNK", 11)
    assert_tables(hamming.distance_histograms(data[0], mapped[0], data[2], mapped[1], 33), *want)
    assert hamming.nearest(data[0], mapped[0], 33, 3)[0].shape == (7, 3)
    parts = ((data[1][a : a + 25], data[3][a : a + 25]) for a in range(0, 60, 25))
    assert_tables(hamming.distance_histograms(data[0], parts, data[2], None, 33), *want)
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


@pytest.mark.parametrize(("call", "message"), [
    (lambda: count(C, C, L, None, 16), "labels are missing"),
    (lambda: count(C, iter([C]), L, None, 16), "yields a ndarray, expected pairs"),
    (lambda: count(C, np.zeros((0, 3), np.uint8), L, L[:0], 16), r"database codes have shape"),
    (lambda: count(C, np.zeros((10, 2), np.uint8), L, np.zeros(15, int), 16),
     "database labels have shape .15,., expected .10,."),
    (lambda: count(C, C, L, L, 16, device="meta"), "try 'cpu'"),
    (lambda: Histograms(C, C[:2]), r"expected \(Q, K\+1\) for both"),
    (lambda: Histograms(C, C) + Histograms(C[:2], C[:2]), "do not add up"),
])
def test_bad_input_is_one_clear_sentence(call, message, monkeypatch):
    monkeypatch.setattr(hamming.histograms, "CHUNK", 10)  # ten codes and ten of more labels fit
    assert_sentence(call, message)
