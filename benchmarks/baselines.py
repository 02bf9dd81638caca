"""Classical hashing of frozen features, to stand beside learnt codes.

LSH, PCAH, spectral hashing and ITQ; AGH and IMH are in manifold.py. Each learns from training
features and returns a function that turns features (M, d) into values (M, K); bit k is 1 where
value k is >= 0. None looks at a label. Everything is computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from benchmarks.manifold import agh, imh
from utils import InputError

Encoder = Callable[[Tensor], Tensor]


def principal_directions(train: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The directions along which features vary most.

    Args:
        train: float64 (N, d).
        count: how many directions.
    Returns:
        mean (d,), and the directions as columns (d, count), largest variance first.
    Raises:
        InputError: fewer dimensions or images than directions.
    """
    most = min(train.shape[0] - 1, train.shape[1])
    if count > most:
        raise InputError(f"{count} principal directions need as many dimensions and one image "
                         f"more, found {train.shape[1]} dimensions and {train.shape[0]:,} images: "
                         f"ask for at most {most} bits")
    mean = train.mean(dim=0)
    centred = train - mean
    d = centred.shape[1]
    covariance = (centred.T @ centred).numpy()
    _, directions = scipy.linalg.eigh(covariance, subset_by_index=(d - count, d - 1))
    return mean, torch.from_numpy(directions[:, ::-1].copy())


def lsh(train: Tensor, bits: int, seed: int) -> Encoder:
    """Signs of random projections of centred features (Charikar, STOC 2002)."""
    mean = train.mean(dim=0)
    draw = np.random.default_rng([seed, bits])
    directions = torch.from_numpy(draw.standard_normal((train.shape[1], bits)))
    return lambda x: (x - mean) @ directions


def pcah(train: Tensor, bits: int, seed: int) -> Encoder:
    """Signs of the first principal components (as in Gong & Lazebnik, CVPR 2011).

    Nothing is drawn.
    """
    mean, directions = principal_directions(train, bits)
    return lambda x: (x - mean) @ directions


def itq_rotation(projected: Tensor, seed: int, iterations: int = 50
                 ) -> tuple[Tensor, list[float]]:
    """The rotation of iterative quantisation (Gong & Lazebnik, CVPR 2011).

    From a random rotation R, in turn the codes B = sign(V R) and the R that minimises |B - V R|^2,
    by the singular vectors of B' V.

    Args:
        projected: V, float64 (N, K), centred.
        seed: of the first rotation.
        iterations: the paper's 50.
    Returns:
        R (K, K), orthogonal, and the quantisation error of each iteration, which never rises.
    """
    bits = projected.shape[1]
    start = np.random.default_rng([seed, bits]).standard_normal((bits, bits))
    rotation, errors = torch.linalg.qr(torch.from_numpy(start))[0], []
    for _ in range(iterations):
        rotated = projected @ rotation
        codes = torch.where(rotated >= 0, 1.0, -1.0).to(rotated.dtype)
        errors.append(float((codes - rotated).square().sum()))
        left, _, right = torch.linalg.svd(codes.T @ projected)
        rotation = (left @ right).T
    return rotation, errors


def itq(train: Tensor, bits: int, seed: int) -> Encoder:
    """Signs of rotated principal components (Gong & Lazebnik, CVPR 2011)."""
    mean, directions = principal_directions(train, bits)
    rotation, _ = itq_rotation((train - mean) @ directions, seed)
    turned = directions @ rotation
    return lambda x: (x - mean) @ turned


def spectral(train: Tensor, bits: int, seed: int) -> Encoder:
    """Spectral hashing (Weiss, Torralba & Fergus, NIPS 2008). Nothing is drawn.

    The features are taken as uniform in a box along the principal components. There the
    eigenfunctions of the graph Laplacian are known: cosines of m = 1, 2, ... half waves across one
    side of length l, with eigenvalues that grow with m / l. The K of least eigenvalue are the bits.
    """
    mean, directions = principal_directions(train, bits)
    projected = (train - mean) @ directions
    low = projected.amin(dim=0)
    least = torch.finfo(train.dtype).tiny  # where nothing varies
    length = (projected.amax(dim=0) - low).clamp_min(least)
    waves = torch.arange(1, bits + 1, dtype=train.dtype)
    # (component, wave); the eigenvalues grow with its square, which orders the same.
    frequency = waves[None, :] / length[:, None]
    order = frequency.flatten().argsort(stable=True)[:bits]
    component, wave = order // bits, waves[order % bits]

    def encode(x: Tensor) -> Tensor:
        place = ((x - mean) @ directions - low) / length  # 0 to 1 across the box
        return torch.cos(torch.pi * wave * place[:, component])

    return encode


BASELINES: dict[str, Callable[[Tensor, int, int], Encoder]] = {
    "lsh": lsh, "pcah": pcah, "sh": spectral, "agh": agh, "imh": imh, "itq": itq}
