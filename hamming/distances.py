"""Hamming distances and common labels of all pairs of some queries and some items.

On the CPU a distance is XOR and popcount of whole machine words, some 16 thousand items at a time:
passes over a few megabytes that stay in the cache. Elsewhere it is a product of -1/+1 matrices.
Both are exact.
"""

from __future__ import annotations

import numpy as np
import torch

from .threads import Scratch

CHUNK = 16384  # database items at a time


def words_of(rows: np.ndarray) -> np.ndarray:
    """Bytes (N, W) as the fewest machine words, filled up with zeros: unsigned (V, N)."""
    width = rows.shape[1]
    size = min(8, 1 << max(0, width - 1).bit_length())  # the power of 2 that holds all bytes
    count = -(-width // size)
    if width == size and rows.flags.c_contiguous:
        return rows.view(f"u{size}").T
    padded = np.zeros((len(rows), count * size), np.uint8)
    padded[:, :width] = rows
    return np.ascontiguousarray(padded.view(f"u{size}").T)


def label_words(labels: np.ndarray) -> np.ndarray:
    """0/1 labels, bool (N, C), as words (V, N)."""
    return words_of(np.packbits(labels, axis=1))


def word_distances(
    query: np.ndarray, database: np.ndarray, scratch: Scratch, start: np.ndarray | int = 0
) -> np.ndarray:
    """Hamming distances of words.

    Args:
        query: words (V, B).
        database: words (V, M).
        scratch: where the result lies, until the thread's next call.
        start: int16 (B, 1), added to the distances of each query.
    Returns:
        int16 (B, M).
    """
    shape = query.shape[1], database.shape[1]
    different = scratch.array("different", shape, database.dtype)
    count = scratch.array("count", shape, np.uint8)
    distances = scratch.array("distances", shape, np.int16)
    for own, theirs in zip(query, database, strict=True):
        np.bitwise_xor(own[:, None], theirs, out=different)
        np.bitwise_count(different, out=count)
        start = np.add(count, start, out=distances)  # the next word is added to this one
    return distances


def words_in_common(query: np.ndarray, database: np.ndarray, scratch: Scratch) -> np.ndarray:
    """Whether items share a label, of label words (V, B) and (V, M): bool (B, M), in scratch."""
    shape = query.shape[1], database.shape[1]
    common = scratch.array("common", shape, database.dtype)
    some = scratch.array("some", shape, bool)
    relevant = scratch.array("relevant", shape, bool)
    relevant.fill(False)
    for own, theirs in zip(query, database, strict=True):
        np.bitwise_and(own[:, None], theirs, out=common)
        np.not_equal(common, 0, out=some)
        np.logical_or(relevant, some, out=relevant)
    return relevant


def exact_product(query: torch.Tensor, database: torch.Tensor) -> torch.Tensor:
    """query @ database.T of float32 (B, K) and (M, K): float32 (B, M), also under autocast."""
    # With out=, autocast cannot make this a half-precision product, which is inexact above 256
    # bits. TF32 does no harm to -1, 0 and 1: their products are exact and the sums are kept in
    # float32.
    out = torch.empty(len(query), len(database), device=query.device)
    return torch.mm(query, database.T, out=out)


def signs_of(codes: np.ndarray, hash_bit: int, device: torch.device) -> torch.Tensor:
    """Packed codes as float32 -1/+1 (N, K)."""
    bits = torch.from_numpy(np.unpackbits(codes, axis=1, count=hash_bit))
    return bits.to(device).float().mul_(2).sub_(1)


def label_tensor(labels: np.ndarray, device: torch.device) -> torch.Tensor:
    """Checked labels as int64 (N,) or float32 0/1 (N, C)."""
    return torch.from_numpy(labels if labels.ndim == 1 else labels.astype(np.float32)).to(device)


def labels_in_common(query: torch.Tensor, database: torch.Tensor) -> torch.Tensor:
    """Whether items share a label, of label tensors of B and M items: bool (B, M)."""
    if query.ndim == 1:
        return query[:, None] == database
    return exact_product(query, database) > 0
