"""The equations of both stages (Sun et al., TGRS 2022): pseudo multi-labels and the two losses.

    latent --k-means--> centres --soft_assignment--> q --target_distribution--> p
    stage 1: MSE(x2', x2) + lambda1 * MSE(x1', x1)
    stage 2: KL(p || q_image) + KL(p || q_feature) + lambda0 * (reconstruction errors)

A step of stage 2, with target (B, C) of the batch and what MrHash gives for it:

    code, q_image, q_feature, reconstructions = mrhash(images, features)
    loss, _, _ = multi_semantic_loss(target, q_image, q_feature, reconstructions, features)
    loss.backward()
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans, vq
from scipy.spatial.distance import cdist
from torch import Tensor

from utils import InputError

# ---------------------------------------------------------------- pseudo multi-labels


def cluster_centres(latent: np.ndarray, n_clusters: int, starts: int = 20, seed: int = 0
                    ) -> np.ndarray:
    """k-means centres with the least squared error of several greedy k-means++ starts.

    Args:
        latent: float (N, D), finite.
        n_clusters: C.
        starts: number of independent starts.
        seed: decides all of them.
    Returns:
        float32 (C, D).
    Raises:
        InputError: fewer distinct points than clusters.

    """
    # Not scikit-learn's: its threads add up in changing order, and a run must repeat to the byte.
    # float64: scipy's running means lose digits in float32, and the result depended on the order.
    points = np.ascontiguousarray(latent, dtype=np.float64)
    distinct = len(np.unique(points, axis=0))
    if distinct < n_clusters:
        raise InputError(f"{n_clusters} clusters need at least as many distinct latents, found "
                         f"{distinct}: lower --n_clusters or use more images")
    best, least_error = None, np.inf
    stands_still = 1e-6 * np.sqrt(points.var(axis=0).sum())  # whatever the latents' own size is
    for start in range(starts):
        guess = _first_centres(points, n_clusters, np.random.default_rng([seed, start]))
        centres, _ = kmeans(points, guess, thresh=stands_still)  # Lloyd's iterations
        if len(centres) < n_clusters:
            continue  # a cluster ran empty
        error = float(np.square(vq(points, centres)[1]).sum())
        if error < least_error:
            best, least_error = centres, error
    if best is None:
        raise InputError(
            f"every k-means start lost a cluster: lower --n_clusters ({n_clusters})")
    return best.astype(np.float32)


def _first_centres(points: np.ndarray, n_clusters: int, generator: np.random.Generator
                   ) -> np.ndarray:
    """Greedy k-means++: points drawn by squared distance, each the best of some candidates.

    Args:
        points: float64 (N, D), at least n_clusters of them distinct.
        n_clusters: C.
        generator: draws.
    Returns:
        float64 (C, D).

    Arthur & Vassilvitskii, "k-means++", SODA 2007; as many candidates as in scikit-learn.
    """
    candidates = 2 + int(np.log(n_clusters))
    chosen = [generator.integers(len(points))]
    squared = cdist(points[chosen], points, "sqeuclidean")[0]  # to the nearest that is chosen
    for _ in range(n_clusters - 1):
        drawn = generator.choice(len(points), candidates, p=squared / squared.sum())
        with_each = np.minimum(squared, cdist(points[drawn], points, "sqeuclidean"))
        best = with_each.sum(axis=1).argmin()
        chosen.append(drawn[best])
        squared = with_each[best]
    return points[chosen]


def soft_assignment(latent: Tensor, centres: Tensor, alpha: float = 1.0) -> Tensor:
    """The probability function: a Student-t kernel between latents and centres, rows normalised.

    q_ij = (1 + |z_i - c_j|^2 / alpha)^(-(alpha + 1) / 2) / sum_j' (the same)

    Args:
        latent: z, float (N, D).
        centres: c, float (C, D).
        alpha: degrees of freedom, > 0.
    Returns:
        q, float (N, C), rows sum to 1.

    van der Maaten & Hinton, JMLR 2008; for clusters Xie et al., ICML 2016, eq. 1.
    """
    squared = (latent[:, None, :] - centres[None, :, :]).square().sum(dim=2)
    return _student_t(squared, alpha)


def degrees_of_freedom(alpha: float | None, latent_dim: int) -> float:
    """`alpha` of soft_assignment where it is given, else that of a space of latent_dim dimensions:
    one less (van der Maaten, AISTATS 2009).
    """
    return max(1.0, latent_dim - 1.0) if alpha is None else alpha


def _student_t(squared: Tensor, alpha: float) -> Tensor:
    """The kernel of squared distances (N, C), rows normalised."""
    # Through logarithms: with a large alpha the powers of far centres would leave float32.
    return torch.softmax(torch.log1p(squared / alpha) * (-(alpha + 1) / 2), dim=1)


def label_spread(q: Tensor) -> float:
    """Among how many clusters a label is spread: exp of the mean entropy of its row.

    Args:
        q: float (N, C), rows sum to 1.
    Returns:
        1 (each image belongs to one cluster) to C (to all of them alike).
    """
    return float(torch.special.entr(q).sum(dim=1).mean().exp())


def latent_scale(latent: Tensor, centres: Tensor, alpha: float, share: float) -> float:
    """The factor on latents and centres that spreads labels over a share of the clusters.

    What the perplexity is to t-SNE (van der Maaten & Hinton, JMLR 2008), but one factor for all.

    Args:
        latent: float (N, D).
        centres: float (C, D).
        alpha: of `soft_assignment`.
        share: label_spread / C that is wanted, in (1 / C, 1).
    Returns:
        the factor, found by bisection.
    Raises:
        InputError: no factor does: a share of 1 / C is a single label, 1 says nothing at all, and
            a kernel with heavy tails, that is a small alpha, cannot be sharp.
    """
    if share * len(centres) <= 1:
        raise InputError(f"a label cannot be spread over {share:g} of {len(centres)} clusters, "
                         "that is one or less: raise --label_spread or --n_clusters")
    squared = torch.cdist(latent, centres).square()
    low, high = 1e-4, 1e4
    for _ in range(50):
        middle = (low * high) ** 0.5
        reached = label_spread(_student_t(squared * middle**2, alpha)) / len(centres)
        if reached > share:
            low = middle
        else:
            high = middle
    if abs(reached - share) > 0.01:
        raise InputError(f"labels cannot be spread over {share:g} of {len(centres)} clusters with "
                         f"alpha {alpha:g}, the nearest is {reached:.3f}: change --label_spread or "
                         "--alpha")
    return middle


def target_distribution(q: Tensor) -> Tensor:
    """The pseudo multi-labels: q sharpened and freed of cluster size, rows normalised.

    p_ij = (q_ij^2 / sum_i q_ij) / sum_j' (the same), over the whole training set.

    Args:
        q: float (N, C); an empty cluster under a sharp kernel, a column of zeros, stays one.
    Returns:
        p, float (N, C), rows sum to 1.

    Xie et al., ICML 2016, eq. 3.
    """
    mass = q.sum(dim=0, keepdim=True).clamp_min(torch.finfo(q.dtype).tiny)
    weight = q.square() / mass
    return weight / weight.sum(dim=1, keepdim=True)


def single_labels(p: Tensor) -> Tensor:
    """One pseudo label in place of many: p (N, C) -> one-hot (N, C) of each row's largest entry."""
    return F.one_hot(p.argmax(dim=1), p.shape[1]).to(p.dtype)


# ---------------------------------------------------------------- losses


def reconstruction_loss(reconstructions: Sequence[Tensor], features: Sequence[Tensor],
                        lambda1: float) -> Tensor:
    """Stage 1: MSE(x2', x2) + lambda1 * MSE(x1', x1); with one source only, MSE(x1', x1).

    Args:
        reconstructions: [x1', x2'] or [x1'], float (B, d) each.
        features: [x1, x2] or [x1], of the same shapes.
        lambda1: weight of the first source beside the second.
    Returns:
        scalar.
    """
    first = F.mse_loss(reconstructions[0], features[0])
    if len(features) == 1:
        return first
    return F.mse_loss(reconstructions[1], features[1]) + lambda1 * first


def multi_semantic_loss(target: Tensor, q_image: Tensor, q_feature: Tensor | None,
                        reconstructions: Sequence[Tensor], features: Sequence[Tensor],
                        lambda0: float = 5.0, kl: str = "mean") -> tuple[Tensor, Tensor, Tensor]:
    """Stage 2: KL(p || q_image) + KL(p || q_feature) + lambda0 * sum of MSE(x', x).

    Args:
        target: p, float (B, C), constant.
        q_image: float (B, C), of the images' codes.
        q_feature: float (B, C), of the latents; None where the autoencoder does not learn.
        reconstructions: one (B, d) a source; empty where the autoencoder does not learn.
        features: the same shapes.
        lambda0: weight of the reconstruction.
        kl: "mean" averages the divergences over the batch *and* the clusters, as published
            (torch's `reduction="mean"` of 2022); "batchmean" over the batch only, the divergence
            proper, which weighs C times more.
    Returns:
        loss, divergence, reconstruction error; scalars.
    """
    # Not reduction="mean": torch warns that it will change its meaning.
    count = target.numel() if kl == "mean" else len(target)
    tiny = torch.finfo(target.dtype).tiny  # a sharp kernel makes zeros of far centres
    divergence = sum(F.kl_div(q.clamp_min(tiny).log(), target, reduction="sum") / count
                     for q in (q_image, q_feature) if q is not None)
    error = torch.zeros_like(divergence)
    for made, given in zip(reconstructions, features, strict=True):
        error = error + F.mse_loss(made, given)
    return divergence + lambda0 * error, divergence, error
