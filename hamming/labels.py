"""Labels: class numbers (N,), or 0/1 (N, C) where an item may have several classes."""

from __future__ import annotations

from collections import Counter

import numpy as np

from .checks import Array, as_array, require


def check_labels(labels: Array, n: int, what: str = "labels") -> np.ndarray:
    """Labels in the one type that the rest works with.

    Args:
        labels: integers (n,), or 0/1 of any type (n, C).
        n: how many items there are.
        what: names the labels in the message of an error.
    Returns:
        int64 (n,) or bool (n, C).
    Raises:
        CodeError: another shape, type or value.
    """
    labels = check_label_type(labels, n, what)
    if labels.ndim == 2:
        require(((labels == 0) | (labels == 1)).all(),
                f"{what} in two dimensions are not all 0 or 1: class numbers go in (N,).")
        return labels.astype(bool)
    require(labels.dtype != np.uint64 or not (labels >= 2**63).any(),
            f"{what} go beyond 2^63, expected class numbers of 64 bits with a sign.")
    return labels.astype(np.int64)


def check_label_type(labels: Array, n: int, what: str = "labels") -> np.ndarray:
    """Labels as numpy, if shape and type are possible; reads no value.

    Args:
        labels: integers (n,), or 0/1 of any type (n, C); they may be memory-mapped.
        n: how many items there are.
        what: names the labels in the message of an error.
    Raises:
        CodeError: another shape or type.
    """
    labels = as_array(labels)
    require(labels.ndim in (1, 2) and len(labels) == n,
            f"{what} have shape {labels.shape}, expected ({n},) or ({n}, C): a row for each code.")
    require(labels.dtype.kind in ("iu" if labels.ndim == 1 else "biuf"),
            f"{what} of shape {labels.shape} have type {labels.dtype}, expected integers (N,) or "
            "0/1 (N, C).")
    return labels


def check_same_kind(query: np.ndarray, database: np.ndarray) -> None:
    """Raise CodeError unless both are class numbers, or both 0/1 of as many classes."""
    require(query.shape[1:] == database.shape[1:],
            f"query labels have shape {query.shape} and database labels {database.shape}: "
            "expected (N,) for both, or (N, C) with the same C.")


def smallest_class(labels: Array) -> int:
    """Size of the smallest class that occurs: the usual R.

    Args:
        labels: integers (N,) or 0/1 (N, C); they may be memory-mapped.
    Raises:
        CodeError: another shape or type, or no item has a label.
    """
    labels = as_array(labels)
    check_label_type(labels, len(labels) if labels.ndim else 1)
    sizes: Counter[int] = Counter()
    for start in range(0, len(labels), 65536):
        block = labels[start : start + 65536]
        block = check_labels(block, len(block))
        numbers = block if block.ndim == 1 else np.nonzero(block)[1]
        classes, counts = np.unique(numbers, return_counts=True)
        sizes.update(dict(zip(classes.tolist(), counts.tolist(), strict=True)))
    require(sizes, "labels name no class: expected at least one item with a label.")
    return min(sizes.values())
