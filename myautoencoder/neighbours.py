"""What the autoencoder sees of features: of one length, and averaged over their neighbours.

On a CPU every pair is compared up to APPROXIMATE_FROM training images, and from there on those
that an index of faiss proposes, in time that grows with the power 1.5 of the images, not 2
(docs/scale.md has the seconds and what is missed). Accelerators always compare every pair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils import InputError

APPROXIMATE_FROM = 50_000  # training images; a minute on two cores
# The index: points turned to their DIRECTIONS of largest variance lie in 2 sqrt(M) lists, of which
# the PROBED nearest are looked through for as many neighbours as are wanted and SPARE ones.
DIRECTIONS, PROBED, SPARE = 256, 32, 31


def prepare_features(arrays: Sequence[np.ndarray], train: np.ndarray, settings: dict[str, Any],
                     device: torch.device) -> list[np.ndarray]:
    """What the autoencoder sees of features: as they are, of one length, averaged over neighbours.

    Averaging over nearest neighbours takes away what is particular to an image and keeps what its
    kind has in common, as database augmentation does in retrieval (Arandjelovic & Zisserman, CVPR
    2012). Neighbours are training images, the image itself left out; near is a large sum of the
    cosines of all sources, centred. Of mutual neighbours each is among the nearest of the other, so
    that images between two kinds do not draw them together (Qin et al., "Hello neighbor", CVPR
    2011). Another round finds neighbours among the averages, and averages those.

    Args:
        arrays: one float32 (N, d) a source.
        train: int64 (M,), rows that give means and neighbours.
        settings: feature_norm "none" or "unit" (centred, each row of root mean square 1),
            neighbours (0: none), averaging "nearest" or "mutual", and averaging_rounds; a setting
            that is absent is the first of these, or one round.
        device: where to compute.
    Returns:
        arrays of the same shapes; the given ones where nothing is to be done.
    Raises:
        InputError: fewer training images than neighbours.
    """
    norm, neighbours = settings.get("feature_norm", "none"), settings.get("neighbours", 0)
    if norm == "none" and neighbours == 0:
        return list(arrays)
    if neighbours >= len(train):
        raise InputError(f"--neighbours {neighbours} needs more training images than that, found "
                         f"{len(train):,}: lower it")
    kept = torch.from_numpy(train).to(device)
    prepared = list(arrays)
    for _ in range(settings.get("averaging_rounds", 1) if neighbours else 1):
        if neighbours:
            points = torch.cat([_unit(x, kept) for x in prepared], dim=1)
            near = _nearest(points, kept, neighbours)
            mutual = settings.get("averaging", "nearest") == "mutual"
            weights = _mutual(points, near) if mutual else torch.ones_like(near, dtype=torch.float)
            del points
        for number, x in enumerate(prepared):  # one source at a time: they may be large
            unit = norm == "unit"
            features = _unit(x, kept) if unit else torch.from_numpy(np.array(x)).to(device)
            if neighbours:
                features += F.embedding_bag(near, features, mode="sum", per_sample_weights=weights)
                features /= 1 + weights.sum(dim=1, keepdim=True)
            if unit:
                features = F.normalize(features) * features.shape[1] ** 0.5
            prepared[number] = features.cpu().numpy()
    return prepared


def automatic_neighbours(count: int) -> int:
    """How many neighbours suit `count` training images: a third of the root, at most 100.

    The root is usual for k nearest neighbours; the third was chosen on UC Merced (docs/best.md).
    """
    return min(100, round(math.sqrt(count) / 3))


def _unit(x: np.ndarray, kept: Tensor) -> Tensor:
    """Features (N, d) minus the mean of the rows `kept`, each of length 1, on their device."""
    features = torch.from_numpy(np.array(x)).to(kept.device)
    features -= features[kept].mean(dim=0)
    return F.normalize(features, out=features)


def _nearest(points: Tensor, kept: Tensor, count: int) -> Tensor:
    """For each of the points (N, d) the `count` rows among those kept with the largest product."""
    if points.device.type == "cpu" and len(kept) >= APPROXIMATE_FROM:
        return _nearest_of_proposed(points, kept, count)
    return _nearest_of_all(points, kept, torch.arange(len(points), device=points.device), count)


def _nearest_of_all(points: Tensor, kept: Tensor, rows: Tensor, count: int) -> Tensor:
    """_nearest of some rows, int64 (n,): exact, every one of those kept is compared."""
    position = torch.full((len(points),), -1, device=points.device)
    position[kept] = torch.arange(len(kept), device=points.device)
    among, found = points[kept].T, []
    size = max(1, 2**25 // len(kept))  # rows at once: 128 MiB of products
    for part in rows.split(size):
        products = points[part] @ among
        own = position[part] >= 0
        products[own.nonzero()[:, 0], position[part][own]] = -torch.inf
        found.append(kept[products.topk(count, dim=1).indices])
    return torch.cat(found)


def _nearest_of_proposed(points: Tensor, kept: Tensor, count: int) -> Tensor:
    """_nearest, compared with what an index proposes: about one neighbour in a hundred is missed.

    The same whatever the number of threads.
    """
    seen = points @ _main_directions(points[kept[:: len(kept) // 20_000 + 1]])
    index = _index_of(seen[kept].numpy())
    proposed = min(count + SPARE, len(kept))  # one of them may be the image itself
    near, short = torch.empty(len(points), count, dtype=torch.int64), []
    for rows in torch.arange(len(points)).split(_rows_at_once(points, proposed)):
        found = torch.from_numpy(index.search(seen[rows].numpy(), proposed)[1])
        candidates = kept[found]  # where nothing was found, -1, this is any row: left out below
        products = torch.bmm(points[candidates], points[rows][:, :, None])[:, :, 0]
        products[(found < 0) | (candidates == rows[:, None])] = -torch.inf
        best = products.topk(count, dim=1)
        near[rows] = candidates.gather(1, best.indices)
        short.append(rows[best.values[:, -1] == -torch.inf])
    rows = torch.cat(short)  # their lists held too few
    if len(rows):
        near[rows] = _nearest_of_all(points, kept, rows, count)
    return near


def _rows_at_once(points: Tensor, count: int) -> int:
    """How many points may be looked at with `count` others each: 128 MiB of coordinates."""
    return max(1, 2**25 // (count * points.shape[1]))


def _mutual(points: Tensor, near: Tensor) -> Tensor:
    """1 where a point would be among the neighbours of its neighbour, too, else 0: float32 (N, k).

    Args:
        points: (N, d), all that are asked of.
        near: int64 (N, k), what _nearest found, of all points.
    """
    rows = torch.arange(len(points), device=points.device)
    products = torch.cat([(points[part, None] * points[near[part]]).sum(dim=2)
                          for part in rows.split(_rows_at_once(points, near.shape[1]))])
    farthest = products.amin(dim=1)  # the same sums one way and the other, so ties count
    return (products >= farthest[near]).float()


def _main_directions(points: Tensor) -> Tensor:
    """The DIRECTIONS in which points (n, d) have the largest squares, float32 (d, k)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the last bits of the sums depend on how many share them
    try:
        directions = torch.linalg.eigh(points.T @ points).eigenvectors
    finally:
        torch.set_num_threads(threads)
    return directions[:, -DIRECTIONS:].contiguous()


def _index_of(points: np.ndarray) -> Any:
    """An inverted file of faiss of points, float32 (M, k), for the largest products."""
    import faiss

    width, lists = points.shape[1], round(2 * math.sqrt(len(points)))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists,
                               faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid = 64  # of which k-means sees a sample, by a fixed seed
    index.cp.min_points_per_centroid = 1  # else it warns where there are few
    index.train(points)
    index.add(points)
    index.nprobe = PROBED
    return index
