"""Pseudo multi-labels and the multi-semantic hash loss (Sun et al., TGRS 2022).

    latent --k-means--> centres --soft_assignment--> q --target_distribution--> p
    loss = KL(p || q_image) + KL(p || q_feature) + lambda0 * (reconstruction errors)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans, kmeans2, vq
from torch import Tensor

from utils import InputError


def cluster_centres(latent: np.ndarray, n_clusters: int, starts: int = 20, seed: int = 0) -> np.ndarray:
    """k-means centres with the least squared error of several k-means++ starts.

    Args:
        latent: float (N, D), finite. n_clusters: C. starts: independent starts. seed: decides them all.
    Returns:
        float32 (C, D).
    Raises:
        InputError: fewer distinct points than clusters.
    """
    # float64: scipy's running means lose digits in float32, and the result would depend on the order.
    points = np.ascontiguousarray(latent, dtype=np.float64)
    distinct = len(np.unique(points, axis=0))
    if distinct < n_clusters:
        raise InputError(f"{n_clusters} clusters need at least as many distinct latents, found {distinct}: "
                         "lower --n_clusters or use more images")
    best, least = None, np.inf
    for start in range(starts):
        generator = np.random.default_rng([seed, start])
        guess, _ = kmeans2(points, n_clusters, iter=1, minit="++", missing="warn", rng=generator)
        centres, _ = kmeans(points, guess, thresh=1e-6)  # Lloyd's iterations until they stand still
        if len(centres) < n_clusters:
            continue  # a cluster ran empty
        error = float(np.square(vq(points, centres)[1]).sum())
        if error < least:
            best, least = centres, error
    if best is None:
        raise InputError(f"every k-means start lost a cluster: lower --n_clusters ({n_clusters})")
    return best.astype(np.float32)


def soft_assignment(latent: Tensor, centres: Tensor, alpha: float = 1.0) -> Tensor:
    """The probability function: a Student-t kernel between latents and centres, rows normalised.

    q_ij = (1 + |z_i - c_j|^2 / alpha)^(-(alpha + 1) / 2) / sum_j' (the same)

    Args:
        latent: float (N, D). centres: float (C, D). alpha: degrees of freedom, > 0.
    Returns:
        q, float (N, C), rows sum to 1.
    """
    return _student_t((latent[:, None, :] - centres[None, :, :]).square().sum(dim=2), alpha)


def _student_t(squared: Tensor, alpha: float) -> Tensor:
    """The kernel of squared distances (N, C), rows normalised."""
    # Through logarithms: with a large alpha the powers of far centres would leave the range of float32.
    return torch.softmax(torch.log1p(squared / alpha) * (-(alpha + 1) / 2), dim=1)


def label_spread(q: Tensor) -> float:
    """Among how many clusters a label is spread: exp of the mean entropy of the rows of q (N, C), 1 to C."""
    return float(torch.special.entr(q).sum(dim=1).mean().exp())


def latent_scale(latent: Tensor, centres: Tensor, alpha: float, share: float) -> float:
    """The factor on latents and centres that spreads the soft assignments over a share of the clusters.

    What the perplexity is to t-SNE (van der Maaten & Hinton, JMLR 2008), but one factor for all.

    Args:
        latent: float (N, D). centres: float (C, D). alpha: of `soft_assignment`. share: label_spread / C.
    Returns:
        the factor, found by bisection.
    Raises:
        InputError: no factor does: a share of 1 / C is a single label, 1 says nothing at all, and a
            kernel with heavy tails, that is a small alpha, cannot be sharp.
    """
    if share * len(centres) <= 1:
        raise InputError(f"a label cannot be spread over {share:g} of {len(centres)} clusters, that is one or less: "
                         "raise --label_spread or --n_clusters")
    squared = torch.cdist(latent, centres).square()
    low, high = 1e-4, 1e4
    for _ in range(50):
        middle = (low * high) ** 0.5
        reached = label_spread(_student_t(squared * middle**2, alpha)) / len(centres)
        low, high = (middle, high) if reached > share else (low, middle)
    if abs(reached - share) > 0.01:
        raise InputError(f"labels cannot be spread over {share:g} of {len(centres)} clusters with alpha {alpha:g}, the "
                         f"nearest is {reached:.3f}: change --label_spread or --alpha")
    return middle


def target_distribution(q: Tensor) -> Tensor:
    """The pseudo multi-labels: q sharpened and freed of cluster size, rows normalised.

    p_ij = (q_ij^2 / sum_i q_ij) / sum_j' (the same), over the whole training set.

    Args:
        q: float (N, C); a column without any mass, an empty cluster under a sharp kernel, gives a column of zeros.
    Returns:
        p, float (N, C), rows sum to 1.
    """
    weight = q.square() / q.sum(dim=0, keepdim=True).clamp_min(torch.finfo(q.dtype).tiny)
    return weight / weight.sum(dim=1, keepdim=True)


def single_labels(p: Tensor) -> Tensor:
    """One pseudo label each in place of many: the rows of p (N, C) as one-hot vectors of their largest entry."""
    return F.one_hot(p.argmax(dim=1), p.shape[1]).to(p.dtype)


def multi_semantic_loss(target: Tensor, q_image: Tensor, q_feature: Tensor | None,
                        reconstructions: Sequence[Tensor], features: Sequence[Tensor],
                        lambda0: float = 5.0, kl: str = "mean") -> tuple[Tensor, Tensor, Tensor]:
    """KL(p || q_image) + KL(p || q_feature) + lambda0 * sum of the reconstruction errors.

    Args:
        target: p, (B, C), constant. q_image, q_feature: (B, C). reconstructions, features: one (B, d) pair a
            source. Where the autoencoder does not learn, q_feature is None and they are empty. lambda0: weight of
            the reconstruction. kl: "mean" averages the divergences over the batch *and* the clusters, as
            published (torch's `reduction="mean"` of 2022); "batchmean" over the batch only, the divergence
            proper, which weighs C times more.
    Returns:
        loss, divergence, reconstruction error; scalars.
    """
    # By hand: torch announces that its own "mean" will come to mean "batchmean".
    count = target.numel() if kl == "mean" else len(target)
    least = torch.finfo(target.dtype).tiny  # a sharp kernel makes zeros of far centres
    divergence = sum(F.kl_div(q.clamp_min(least).log(), target, reduction="sum") / count
                     for q in (q_image, q_feature) if q is not None)
    error = sum((F.mse_loss(made, given) for made, given in zip(reconstructions, features, strict=True)),
                start=torch.zeros_like(divergence))
    return divergence + lambda0 * error, divergence, error


def reconstruction_loss(reconstructions: Sequence[Tensor], features: Sequence[Tensor], lambda1: float
                        ) -> Tensor:
    """MSE(x2', x2) + lambda1 * MSE(x1', x1); with one source only, MSE(x1', x1)."""
    first = F.mse_loss(reconstructions[0], features[0])
    if len(features) == 1:
        return first
    return F.mse_loss(reconstructions[1], features[1]) + lambda1 * first
