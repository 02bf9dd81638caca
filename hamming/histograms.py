"""How many items, and how many relevant ones, lie at each distance from each query."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .checks import Array, as_array, require, usable_device, whole_number
from .codes import MAX_BITS, check_codes
from .distances import (
    CHUNK,
    exact_product,
    label_tensor,
    label_words,
    labels_in_common,
    signs_of,
    word_distances,
    words_in_common,
    words_of,
)
from .labels import check_label_type, check_labels, check_same_kind
from .threads import Scratch, Threads

Chunks = Iterator[tuple[np.ndarray, np.ndarray]]
WORD_BLOCK, PRODUCT_BLOCK = 32, 512  # queries at a time: on the CPU, elsewhere


@dataclass
class Histograms:
    """Tables by distance 0..K. Tables of parts of a database add up, for the same queries.

    Args:
        items: int64 (Q, K+1), database items at each distance from each query.
        relevant: int64 (Q, K+1), those of them that share a label with it.
    """

    items: np.ndarray
    relevant: np.ndarray

    def __post_init__(self) -> None:
        self.items, self.relevant = as_array(self.items), as_array(self.relevant)
        shapes = self.items.shape, self.relevant.shape
        require(len(shapes[0]) == 2 and shapes[0] == shapes[1],
                f"histograms have shapes {shapes[0]} and {shapes[1]}, expected (Q, K+1) for both.")

    def __add__(self, other: Histograms) -> Histograms:
        require(self.items.shape == other.items.shape,
                f"histograms of shapes {self.items.shape} and {other.items.shape} do not add up: "
                "count each shard with the same queries and hash_bit.")
        return Histograms(self.items + other.items, self.relevant + other.relevant)


@torch.inference_mode()
def distance_histograms(
    query_codes: Array, database_codes: Array | Iterable[tuple[Array, Array]],
    query_labels: Array, database_labels: Array | None, hash_bit: int,
    device: str | torch.device = "cpu",
) -> Histograms:
    """Count items and relevant items at each distance from each query, the same on every device.

    The database is read once, 16,384 items at a time, on the CPU by as many threads as torch uses.
    Memory: 48 Q (K+1) bytes for the table, and some 10 MB a thread (on a GPU some 160 MB); nothing
    grows with N.

    Args:
        query_codes: packed, uint8 (Q, ceil(K/8)).
        database_codes: packed, uint8 (N, ceil(K/8)), which may be memory-mapped, or an iterator of
            parts (codes, labels). N = 0, say of a shard, gives zeros.
        query_labels: integers (Q,) or 0/1 (Q, C).
        database_labels: integers (N,) or 0/1 (N, C); None with an iterator.
        hash_bit: K.
        device: anything but a CPU counts by matrix products.
    Raises:
        CodeError: codes or labels of another shape, type or value; no such device.
    """
    hash_bit, device = whole_number(hash_bit, "hash_bit", most=MAX_BITS), usable_device(device)
    query = check_codes(query_codes, hash_bit, "query codes")
    targets = check_labels(query_labels, len(query), "query labels")
    chunks = _chunks(database_codes, database_labels, targets, hash_bit)
    if device.type == "cpu":
        table = _count_words(query, targets, hash_bit, chunks)
    else:
        table = _count_products(query, targets, hash_bit, chunks, device)
    irrelevant, relevant = np.split(table, 2, axis=1)
    return Histograms(irrelevant + relevant, relevant.copy())


def _chunks(codes: Any, labels: Any, targets: np.ndarray, hash_bit: int) -> Chunks:
    """The database, checked, in pieces: codes (M, ceil(K/8)) and labels (M,) or (M, C)."""
    parts = codes if labels is None else [(codes, labels)]
    require(isinstance(parts, Iterable) and not isinstance(parts, Array),
            "database labels are missing: give them, or give the database as an iterator of "
            "(codes, labels).")
    for part in parts:
        require(isinstance(part, (tuple, list)) and len(part) == 2,
                f"the database yields a {type(part).__name__}, expected pairs (codes, labels).")
        codes, labels = as_array(part[0]), as_array(part[1])
        # An empty slice checks shapes and types without reading a memory-mapped file.
        check_codes(codes[:0] if codes.ndim else codes, hash_bit, "database codes")
        check_label_type(labels, len(codes), "database labels")
        for start in range(0, len(codes), CHUNK):
            chunk = check_codes(codes[start : start + CHUNK], hash_bit, "database codes")
            theirs = check_labels(labels[start : start + CHUNK], len(chunk), "database labels")
            check_same_kind(targets, theirs)
            yield chunk, theirs


def _count_words(
    query: np.ndarray, targets: np.ndarray, hash_bit: int, chunks: Chunks
) -> np.ndarray:
    """int64 (Q, 2 (K+1)): irrelevant items at each distance, then relevant ones. On the CPU."""
    # Queries sorted by class, and chunks too: what is relevant to a class is then one rectangle.
    order = np.arange(len(query)) if targets.ndim == 2 else np.argsort(targets, kind="stable")
    counter = _WordCounter(query[order], targets[order], hash_bit)
    with Threads() as threads:
        for codes, labels in chunks:
            counter.add(codes, labels, threads)
    table = np.empty_like(counter.table)
    table[order] = counter.table
    return table


class _WordCounter:
    """The table of `_count_words`, to which chunks of the database are added."""

    def __init__(self, query: np.ndarray, targets: np.ndarray, hash_bit: int) -> None:
        self.query = words_of(query)
        self.half = hash_bit + 1
        self.table = np.zeros((len(query), 2 * self.half), np.int64)
        # A pair's key: row of the query in its block, relevant or not, distance. All of a block's
        # keys are counted by one bincount of small integers.
        block = min(WORD_BLOCK, 2**15 // (2 * self.half))  # keys are int16
        blocks = [slice(first, first + block) for first in range(0, len(query), block)]
        self.start = np.arange(0, block * 2 * self.half, 2 * self.half, dtype=np.int16)[:, None]
        self.scratch = Scratch()
        if targets.ndim == 1:
            self.classes, numbers = np.unique(targets, return_inverse=True)
            self.jobs = [(rows, _rows_by_class(numbers[rows])) for rows in blocks]
        else:
            self.targets = label_words(targets)
            self.jobs = [(rows, []) for rows in blocks]

    def add(self, codes: np.ndarray, labels: np.ndarray, threads: Threads) -> None:
        """Count the items of a chunk."""
        if labels.ndim == 1:
            order = np.argsort(labels, kind="stable")
            codes, labels = codes[order], labels[order]
            low = np.searchsorted(labels, self.classes, "left").tolist()
            high = np.searchsorted(labels, self.classes, "right").tolist()
        else:
            labels = label_words(labels)
        words = words_of(codes)

        def count(job: tuple[slice, list[tuple[int, slice]]]) -> None:
            rows, by_class = job
            table = self.table[rows]
            start = self.start[: len(table)]
            keys = word_distances(self.query[:, rows], words, self.scratch, start)
            for number, own in by_class:
                keys[own, low[number] : high[number]] += self.half
            if not by_class:
                relevant = words_in_common(self.targets[:, rows], labels, self.scratch)
                shift = self.scratch.array("shift", relevant.shape, np.int16)
                keys += np.multiply(relevant, np.int16(self.half), out=shift)
            keys = torch.from_numpy(keys.reshape(-1))  # numpy's bincount would copy them to int64
            table += torch.bincount(keys, minlength=table.size).numpy().reshape(table.shape)

        threads.each(count, self.jobs)


def _rows_by_class(numbers: np.ndarray) -> list[tuple[int, slice]]:
    """Each class in a block of queries sorted by class, and its rows."""
    classes, first = np.unique(numbers, return_index=True)
    ends = [*first[1:].tolist(), len(numbers)]
    rows = [slice(a, b) for a, b in zip(first.tolist(), ends, strict=True)]
    return list(zip(classes.tolist(), rows, strict=True))


def _count_products(
    query: np.ndarray, targets: np.ndarray, hash_bit: int, chunks: Chunks, device: torch.device
) -> np.ndarray:
    """The table of `_count_words` on any device of torch."""
    own_signs, own_labels = signs_of(query, hash_bit, device), label_tensor(targets, device)
    bins = 2 * (hash_bit + 1)
    block = min(PRODUCT_BLOCK, 2**24 // bins)  # keys are float32, exact up to 2^24
    start = torch.arange(block, device=device, dtype=torch.float32)[:, None] * bins
    table = torch.zeros(len(query), bins, dtype=torch.int64, device=device)
    for codes, labels in chunks:
        signs, theirs = signs_of(codes, hash_bit, device), label_tensor(labels, device)
        for first in range(0, len(query), block):
            rows = slice(first, first + block)
            counts = table[rows]
            # The product of two codes is K - 2 distances.
            keys = exact_product(own_signs[rows], signs).mul_(-0.5).add_(hash_bit / 2)
            keys.add_(labels_in_common(own_labels[rows], theirs), alpha=hash_bit + 1)
            keys.add_(start[: len(counts)])
            counts += torch.bincount(keys.int().view(-1), minlength=counts.numel()).view_as(counts)
    return table.cpu().numpy()
