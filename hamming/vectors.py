"""Rankings of real vectors, to hold codes against."""

from __future__ import annotations

import numpy as np
import torch

from .checks import Array, as_array, require, usable_device, whole_number
from .distances import exact_product, label_tensor, labels_in_common
from .labels import check_labels, check_same_kind
from .ranking import ranked_ap


def float_map(
    query: Array, database: Array, query_labels: Array, database_labels: Array, R: int,
    device: str | torch.device = "cpu",
) -> float:
    """mAP@R of real vectors: the mean of `float_ap`, which see."""
    return float(float_ap(query, database, query_labels, database_labels, R, device).mean())


@torch.inference_mode()
def float_ap(
    query: Array, database: Array, query_labels: Array, database_labels: Array, R: int,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """AP@R (published denominator) of real vectors by Euclidean distance, ties by database index.

    Distances are float32 matrix products of vectors centred on the database mean: items whose
    distances differ by less than float32 rounding may swap places. Vectors may be of any size. For
    cosine, normalise them first.

    Args:
        query: real numbers (Q, D).
        database: real numbers (N, D).
        query_labels: integers (Q,) or 0/1 (Q, C).
        database_labels: integers (N,) or 0/1 (N, C).
        R: rank of the cut.
        device: where the products are made.
    Returns:
        float64 (Q,).
    Raises:
        CodeError: vectors or labels of another shape, type or value; queries that lie so far from
            the database that float32 does not reach; no such device.
    """
    R, device = whole_number(R, "R"), usable_device(device)
    query, database = as_array(query), as_array(database)
    _check_vectors(query, database)
    targets = check_labels(query_labels, len(query), "query labels")
    labels = check_labels(database_labels, len(database), "database labels")
    check_same_kind(targets, labels)
    targets, labels = label_tensor(targets, device), label_tensor(labels, device)
    unit = _unit_of(database)
    # |q - d|^2 ranks as |d|^2 / 2 - q d; centring keeps both terms small, so float32 loses less.
    vectors = database * unit
    centre = vectors.mean(axis=0)
    vectors -= centre
    vectors = torch.from_numpy(vectors.astype(np.float32)).to(device)
    half_norms = vectors.square().sum(1) / 2
    found, size = [], max(1, 2**22 // len(database))
    for start in range(0, len(query), size):
        block = (query[start : start + size] * unit - centre).astype(np.float32)
        products = exact_product(torch.from_numpy(block).to(device), vectors)
        order = _nearest_first(half_norms - products, R)
        relevance = labels_in_common(targets[start : start + size], labels).gather(1, order)
        found.append(ranked_ap(relevance, R))
    return np.concatenate(found)


def _check_vectors(query: np.ndarray, database: np.ndarray) -> None:
    for what, values in (("query", query), ("database", database)):
        require(values.ndim == 2 and len(values) and values.shape[1:] == query.shape[1:],
                f"{what} vectors have shape {values.shape}, expected (N, D) with N >= 1, same D.")
        require(values.dtype.kind in "fiu" and np.isfinite(values).all(),
                f"{what} vectors ({values.dtype}) are not all finite real numbers.")
    require(_largest(query) * _unit_of(database) < 1e30,
            f"query vectors go up to {_largest(query):.3g} and database vectors to "
            f"{_largest(database):.3g}, expected both of about the same size.")


def _unit_of(values: np.ndarray) -> np.float64:
    """The factor that brings numbers to about 1, so that no square leaves the range of float32.

    A power of 2, which changes no digit.
    """
    return np.float64(2.0) ** np.clip(-np.frexp(_largest(values))[1], -1000, 1000)


def _largest(values: np.ndarray) -> float:
    """The largest absolute value of real numbers."""
    return max(abs(float(values.min())), abs(float(values.max())))


def _nearest_first(distances: torch.Tensor, R: int) -> torch.Tensor:
    """Indices (Q, min(R, N)) of the least of float32 distances (Q, N), in order, ties by index."""
    if distances.device.type == "mps":  # has no selection among integers of 64 bits
        return distances.sort(stable=True).indices[:, :R]
    # A float's bits, read as an integer, order as the float does; of negative ones the other way
    # round. With the index behind them no two keys are equal, and the R least can be selected: a
    # third of the time of a sort.
    bits = (distances + 0.0).view(torch.int32)  # -0.0 is 0.0
    keys = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long() << 32
    keys |= torch.arange(distances.shape[1], device=distances.device)
    return keys.topk(min(R, distances.shape[1]), largest=False, sorted=True).indices
