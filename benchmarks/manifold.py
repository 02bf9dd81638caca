"""Hashing by the manifold on which features lie: anchor graphs, and inductive manifold hashing.

As the other classical baselines (baselines.py): each learns from training features (N, d), float64,
and returns what turns features (M, d) into values (M, K), whose signs are the bits. No label takes
part. Distances are those of centred features of length 1, which rank as cosines do.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2
from torch import Tensor

from utils import InputError

TINY = 1e-12  # where nothing differs


class Anchors:
    """k-means centres of the training features, and how near any image is to the nearest."""

    def __init__(self, train: Tensor, bits: int, seed: int, count: int, nearest: int) -> None:
        """Of centred unit features.

        Args:
            train: float64 (N, d).
            bits: K, of which an eigenvector each.
            seed: of the first centres.
            count: how many centres, or as many as there are images.
            nearest: s, how many of them an image knows.
        Raises:
            InputError: too few for the bits.
        """
        count = min(count, len(train))
        if bits >= count or nearest >= count:
            raise InputError(f"{bits} bits need more than {max(bits, nearest)} anchors, and there "
                             f"are {count} for {len(train):,} training images: leave this method "
                             "out, or ask for fewer bits")
        self.mean, self.nearest = train.mean(dim=0), nearest
        unit = self.unit(train)
        generator = np.random.default_rng(seed)
        first = unit[torch.from_numpy(generator.choice(len(unit), count, replace=False))]
        with warnings.catch_warnings():  # of a cluster that runs empty: its centre stays
            warnings.simplefilter("ignore", UserWarning)
            found = kmeans2(unit.numpy(), first.numpy(), minit="matrix")[0]
        self.centres = torch.from_numpy(found)
        # The width of the kernel, as the authors of anchor graphs take it.
        farthest = torch.cdist(unit, self.centres).topk(nearest, largest=False)[0][:, -1]
        self.width = farthest.mean().clamp_min(TINY)

    def unit(self, x: Tensor) -> Tensor:
        """Centred by the training features, of length 1."""
        return F.normalize(x - self.mean)

    def shares(self, x: Tensor) -> Tensor:
        """(M, anchors): a Gaussian of the distances to the nearest anchors; rows sum to 1."""
        distance, which = torch.cdist(self.unit(x), self.centres).topk(self.nearest, largest=False)
        kernel = (-(distance / self.width).square()).softmax(dim=1)
        return torch.zeros(len(x), len(self.centres), dtype=x.dtype).scatter_(1, which, kernel)


def smoothest(graph: Tensor, count: int) -> Tensor:
    """What changes least along the edges of a graph, but for what is the same everywhere.

    Args:
        graph: W, float64 (n, n), symmetric, weights of the edges; D is its row sums.
        count: how many, fewer than n.
    Returns:
        as columns (n, count) the solutions y of W y = value D y with the largest values, the
        largest last.
    """
    root = graph.sum(dim=1).clamp_min(TINY).sqrt()
    constant = root / root.norm()  # its eigenvalue is 1, that of others too where there are parts
    inner = graph / root[:, None] / root - constant[:, None] * constant
    n = len(graph)
    _, vectors = scipy.linalg.eigh(inner.numpy(), subset_by_index=(n - count, n - 1))
    return torch.from_numpy(vectors) / root[:, None]


def agh(train: Tensor, bits: int, seed: int, count: int = 300, nearest: int = 5
        ) -> Callable[[Tensor], Tensor]:
    """Anchor graph hashing, one layer (Liu et al., "Hashing with Graphs", ICML 2011).

    Two images are as near as the anchors are that they share: A = Z D^-1 Z', with Z the shares of
    the images and D their sums. Its eigenvectors of largest eigenvalue but the constant one are the
    bits. They are those of Z' Z, as large as there are anchors, and known of any image by its
    shares (Nystroem). 300 anchors, of which an image shares the nearest 5, as in the paper for
    photographs (2 for digits).
    """
    anchors = Anchors(train, bits, seed, count, nearest)
    shares = anchors.shares(train)
    projection = smoothest(shares.T @ shares, bits)  # but for a scale, which no bit knows
    return lambda x: anchors.shares(x) @ projection


def imh(train: Tensor, bits: int, seed: int, count: int = 400, nearest: int = 5
        ) -> Callable[[Tensor], Tensor]:
    """Inductive manifold hashing with Laplacian eigenmaps (Shen et al., "Inductive Hashing on
    Manifolds", CVPR 2013; "Hashing on Nonlinear Manifolds", TIP 2015).

    The anchors are embedded by the graph of their nearest neighbours (Belkin & Niyogi, 2003), and
    any image lies at the mean of its nearest anchors, weighted; a bit says on which side of the
    mean of the training images. 400 anchors and the nearest 5, as in the paper.
    """
    anchors = Anchors(train, bits, seed, count, nearest)
    distance = torch.cdist(anchors.centres, anchors.centres).fill_diagonal_(0)
    farthest = distance.topk(nearest + 1, largest=False)[0][:, -1]  # the first is itself
    graph = (-(distance / farthest.mean().clamp_min(TINY)).square()).exp()
    graph = graph * (distance <= farthest[:, None])
    embedded = smoothest(torch.maximum(graph, graph.T).fill_diagonal_(0), bits)
    middle = (anchors.shares(train) @ embedded).mean(dim=0)
    return lambda x: anchors.shares(x) @ embedded - middle
