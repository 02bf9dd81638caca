"""Anchor graphs and manifolds held to their definitions."""

import numpy as np
import pytest
import scipy.linalg
import torch

from benchmarks.manifold import Anchors, agh, imh, smoothest
from utils import InputError


def features(count=150, dim=6):
    generator = np.random.default_rng(0)
    return torch.from_numpy(generator.standard_normal((count, dim)) + 2)


def parts(kinds):
    """240 features around far corners, and which."""
    generator = np.random.default_rng(0)
    labels = np.arange(240) % kinds
    corners = 10 * np.eye(kinds)[labels]
    return torch.from_numpy(corners + 0.1 * generator.standard_normal(corners.shape)), labels


def test_shares_by_pencil():
    """Anchors at right angles: an image between two of them shares both alike, and no third."""
    train = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]], dtype=torch.float64)
    anchors = Anchors(train, 2, 0, 4, nearest=2)
    order = torch.cdist(train, anchors.centres).argmin(dim=1)
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    shares = anchors.shares(torch.tensor([[3.0, 3.0], [5.0, 0.1]], dtype=torch.float64))[:, order]
    assert shares[0].tolist() == pytest.approx([0.5, 0.5, 0, 0])
    assert shares[1, 0] > 0.5 and float(shares[1].sum()) == pytest.approx(1)
    # Each of the four is on an anchor, and sqrt 2 from its second.
    assert float(anchors.width) == pytest.approx(2 ** 0.5)
    unit = torch.tensor([5.0, 0.1], dtype=torch.float64) / np.hypot(5, 0.1)
    kernel = torch.exp(-(torch.cdist(unit[None], train[:2])[0] ** 2) / 2)
    torch.testing.assert_close(shares[1, :2], kernel / kernel.sum())


def test_smoothest_solves_the_eigenproblem_of_the_graph_without_the_constant():
    generator = np.random.default_rng(0)
    graph = generator.random((12, 12))
    graph += graph.T
    degree = np.diag(graph.sum(axis=1))
    vectors = smoothest(torch.from_numpy(graph), 3)
    _, directions = scipy.linalg.eigh(graph, degree)  # the last is the constant
    cosines = np.abs(directions[:, -4:-1].T @ degree @ vectors.numpy())
    np.testing.assert_allclose(cosines, np.eye(3), atol=1e-8)


def test_agh_gives_the_eigenvectors_of_the_whole_anchor_graph():
    train = features()
    anchors = Anchors(train, 4, 3, 40, 5)
    shares = anchors.shares(train).numpy()
    graph = shares / shares.sum(axis=0) @ shares.T
    np.testing.assert_allclose(graph.sum(axis=1), 1)
    expected = scipy.linalg.eigh(graph)[1][:, -5:-1]  # the last is the constant
    found = agh(train, 4, 3, count=40)(train).numpy()
    found /= np.linalg.norm(found, axis=0)
    np.testing.assert_allclose(np.abs(expected.T @ found), np.eye(4), atol=1e-7)


def test_imh_puts_an_anchor_among_its_nearest_and_an_image_between_them():
    train = features()
    encode, anchors = imh(train, 3, 3, count=30), Anchors(train, 3, 3, 30, 5)
    values = encode(train)
    torch.testing.assert_close(values.mean(dim=0), torch.zeros(3, dtype=torch.float64))
    # Of all that the anchors can be embedded to, the shares give the images.
    placed = torch.linalg.lstsq(anchors.shares(train), values).solution
    torch.testing.assert_close(anchors.shares(train) @ placed, values)
    # Anchors and their nearest lie nearer than any two: smooth along the graph.
    near = torch.cdist(anchors.centres, anchors.centres).topk(6, largest=False)[1][:, 1:]
    apart = torch.cdist(placed, placed)
    assert apart.gather(1, near).mean() < 0.8 * apart.mean()


@pytest.mark.parametrize("method", [agh, imh])
@pytest.mark.parametrize("kinds", [2, 4])
def test_parts_that_lie_apart_have_codes_of_their_own(method, kinds):
    """Also where the graph falls into parts, of which each has an eigenvalue of 1."""
    train, labels = parts(kinds)
    bits = method(train, kinds - 1, 13, count=40)(train).numpy()
    middles = np.stack([bits[labels == kind].mean(axis=0) for kind in range(kinds)])
    inside = max(np.abs(bits[labels == kind] - middles[kind]).max() for kind in range(kinds))
    between = min(np.linalg.norm(middles[a] - middles[b])
                  for a in range(kinds) for b in range(a))
    assert inside < 0.01 * between
    if kinds == 2:
        assert len({(bits[labels == kind] >= 0).tobytes() for kind in range(2)}) == 2


@pytest.mark.parametrize("method", [agh, imh])
def test_the_seed_decides_the_anchors(method):
    train = features()
    one, again, other = (method(train, 8, seed, count=30)(train) for seed in (13, 13, 14))
    assert torch.equal(one, again) and not torch.allclose(one, other)


@pytest.mark.parametrize("method", [agh, imh])
def test_more_bits_than_anchors_are_refused(method):
    with pytest.raises(InputError, match="30 bits need more than 30 anchors, and there are 30"):
        method(features(30), 30, 0)
    with pytest.raises(InputError, match="2 bits need more than 5 anchors, and there are 4"):
        method(features(4), 2, 0)


@pytest.mark.parametrize("method", [agh, imh])
def test_features_that_are_all_the_same_make_bits_that_are(method):
    values = method(torch.ones(20, 3, dtype=torch.float64), 4, 0)(features(5, 3))
    assert torch.isfinite(values).all()
