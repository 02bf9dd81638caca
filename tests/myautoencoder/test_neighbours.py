"""What the autoencoder sees of features: averages over neighbours, exact and by an index."""

import math

import faiss
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from myautoencoder import neighbours
from myautoencoder.neighbours import prepare_features
from utils import InputError

CPU = torch.device("cpu")


def plain_prepare(arrays, train, norm, count, mutual=False):
    """One round by its definition, image by image."""
    units = []
    for x in arrays:
        centred = x.astype(np.float64) - x[train].astype(np.float64).mean(axis=0)
        units.append(centred / np.linalg.norm(centred, axis=1, keepdims=True))
    joined = np.concatenate(units, axis=1)
    near = []
    for i in range(len(joined)):
        others = [j for j in train if j != i]
        near.append(sorted(others, key=lambda j, i=i: -joined[i] @ joined[j])[:count])
    if mutual:  # a query is in nobody's list, but would be if it were in the database
        near = [[j for j in near[i]
                 if joined[i] @ joined[j] >= min(joined[k] @ joined[j] for k in near[j]) - 1e-9]
                for i in range(len(joined))]
    results = []
    for x, unit in zip(arrays, units, strict=True):
        seen = unit if norm == "unit" else x.astype(np.float64)
        rows = []
        for i in range(len(x)):
            row = np.mean([seen[i], *seen[near[i]]], axis=0)
            if norm == "unit":
                row = row / np.linalg.norm(row) * math.sqrt(x.shape[1])
            rows.append(row)
        results.append(np.array(rows))
    return results


@pytest.mark.parametrize("norm", ["none", "unit"])
@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("mutual", [False, True])
@pytest.mark.parametrize("rounds", [1, 2])
def test_features_are_averaged_over_the_nearest_training_images(norm, count, mutual, rounds):
    generator = np.random.default_rng(0)
    arrays = [generator.normal(2, 1, (12, 5)).astype(np.float32),
              generator.normal(0, 3, (12, 4)).astype(np.float32)]
    train = np.array([9, 0, 1, 2, 4, 5, 7, 11])  # not in order, queries in between
    settings = {"feature_norm": norm, "neighbours": count, "averaging_rounds": rounds,
                "averaging": "mutual" if mutual else "nearest"}
    got = prepare_features(arrays, train, settings, CPU)
    wanted = arrays
    for _ in range(rounds if count else 1):
        wanted = plain_prepare(wanted, train, norm, count, mutual)
    for ours, plain in zip(got, wanted, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5)
    if norm == "unit":
        np.testing.assert_allclose((got[0] ** 2).mean(axis=1), 1, rtol=1e-5)


def test_an_image_between_two_kinds_is_no_mutual_neighbour():
    angles = np.array([0, 3, 6, 9, 180, 183, 186, 189, 80], np.float32) * np.pi / 180
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    settings = {"neighbours": 3, "averaging": "mutual"}
    alone = prepare_features([x], np.arange(9), settings, CPU)[0]
    np.testing.assert_array_equal(alone[8], x[8])  # its neighbours have nearer ones
    np.testing.assert_allclose(alone[0], x[:4].mean(axis=0), rtol=1e-5)
    drawn = prepare_features([x], np.arange(9), {"neighbours": 3}, CPU)[0]
    assert np.abs(drawn[8] - x[8]).max() > 0.1


def test_images_that_are_alike_are_mutual_neighbours():
    x = np.repeat(np.eye(3, dtype=np.float32), [4, 4, 4], axis=0)
    settings = {"neighbours": 3, "averaging": "mutual"}
    np.testing.assert_allclose(prepare_features([x], np.arange(12), settings, CPU)[0], x, atol=1e-6)


def test_neighbours_are_the_same_in_small_chunks(monkeypatch):
    points = F.normalize(torch.randn(50, 6, generator=torch.Generator().manual_seed(0)))
    kept = torch.arange(0, 50, 2)
    whole = neighbours._nearest(points, kept, 3)
    split = torch.Tensor.split
    monkeypatch.setattr(torch.Tensor, "split", lambda self, size, dim=0: split(self, min(size, 7)))
    assert torch.equal(neighbours._nearest(points, kept, 3), whole)
    assert not (whole == torch.arange(50)[:, None]).any() and (whole % 2 == 0).all()


def test_features_as_published_are_not_touched_and_not_copied():
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    assert prepare_features([x], np.arange(4), {}, CPU)[0] is x
    plain = {"feature_norm": "none", "neighbours": 0}
    assert prepare_features([x], np.arange(4), plain, CPU)[0] is x


@pytest.mark.parametrize(("images", "count"), [
    (1, 0), (3, 1), (1890, 14), (26_000, 54), (90_000, 100), (590_000, 100)])
def test_automatic_neighbours_grow_with_the_root_of_the_images(images, count):
    assert neighbours.automatic_neighbours(images) == count


def test_more_neighbours_than_training_images_are_refused():
    x = np.zeros((5, 3), np.float32)
    with pytest.raises(InputError, match=r"--neighbours 4 needs more training images .* found 4"):
        prepare_features([x], np.arange(4), {"neighbours": 4}, CPU)


# ------------------------------------------------------------------------ many images


def clustered(count=3000, width=64):
    """Features of 30 kinds, and the rows that train: not in order, queries in between."""
    generator = np.random.default_rng(0)
    kinds = generator.normal(size=(30, width))
    x = kinds[generator.integers(30, size=count)] + 0.5 * generator.normal(size=(count, width))
    return x.astype(np.float32), generator.permutation(count)[: count * 4 // 5]


def nearest(x, train, count, monkeypatch, limit):
    monkeypatch.setattr(neighbours, "APPROXIMATE_FROM", limit)
    kept = torch.from_numpy(train)
    return neighbours._nearest(neighbours._unit(x, kept), kept, count).numpy()


def recall(found, exact):
    shared = [len(set(one) & set(other)) for one, other in zip(found, exact, strict=True)]
    return sum(shared) / exact.size


@pytest.mark.parametrize("directions", [16, 256])  # fewer and more than the features have
def test_an_index_finds_the_neighbours_of_many_images(directions, monkeypatch):
    x, train = clustered()
    exact = nearest(x, train, 10, monkeypatch, len(train) + 1)
    monkeypatch.setattr(neighbours, "DIRECTIONS", directions)
    found = nearest(x, train, 10, monkeypatch, len(train))
    assert recall(found, exact) > (0.75 if directions == 16 else 0.97)
    assert np.isin(found, train).all()
    assert not (found == np.arange(len(x))[:, None]).any()
    assert all(len(set(row)) == 10 for row in found)


def test_below_the_limit_and_off_the_cpu_every_pair_is_compared(monkeypatch):
    x, train = clustered(200)
    monkeypatch.setattr(neighbours, "_nearest_of_proposed", None)
    nearest(x, train, 3, monkeypatch, len(train) + 1)
    monkeypatch.setattr(neighbours, "APPROXIMATE_FROM", 1)
    points = torch.empty(4, 2, device="meta")
    monkeypatch.setattr(neighbours, "_nearest_of_all", lambda points, *others: points)
    assert neighbours._nearest(points, torch.arange(4), 3) is points


def test_the_number_of_threads_changes_no_bit(monkeypatch):
    x, train = clustered()
    monkeypatch.setattr(neighbours, "APPROXIMATE_FROM", 1000)
    settings, given = {"feature_norm": "unit", "neighbours": 10}, torch.get_num_threads()
    centred, results = torch.from_numpy(x - x.mean(axis=0)), []
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            faiss.omp_set_num_threads(threads)
            results.append((prepare_features([x], train, settings, CPU)[0].tobytes(),
                            neighbours._main_directions(centred).numpy().tobytes()))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(given)
        faiss.omp_set_num_threads(given)
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("count", [3, 99])
def test_where_an_index_finds_too_few_every_pair_is_compared(count, monkeypatch):
    x, train = clustered(125, 8)  # 100 train
    x[train[0]] = x[train[1]]  # an image that is there twice is not itself
    exact = nearest(x, train, count, monkeypatch, 101)
    monkeypatch.setattr(neighbours, "PROBED", 1)
    found = nearest(x, train, count, monkeypatch, 100)
    assert not (found == np.arange(125)[:, None]).any() and np.isin(found, train).all()
    assert all(len(set(row)) == count for row in found)
    assert train[1] in found[train[0]] and train[0] in found[train[1]]
    if count == 99:  # no list has as many
        assert (found == exact).all()
