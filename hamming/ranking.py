"""Explicit rankings: nearest items, and metrics of a sort that breaks ties."""

from __future__ import annotations

import numpy as np

from .checks import Array, as_array, require, whole_number
from .codes import MAX_BITS, check_codes
from .distances import (
    CHUNK,
    label_words,
    word_distances,
    words_in_common,
    words_of,
)
from .labels import check_labels, check_same_kind
from .threads import Scratch, Threads

STABLE_METRICS = ("ap", "ap_strict", "ap_all", "recall", "precision_at_1", "precision_at_10",
                  "precision_at_100")


def nearest(
    query_codes: Array, database_codes: Array, hash_bit: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest database items of each query, exact, ties by database index. On the CPU.

    Args:
        query_codes: packed, uint8 (Q, ceil(K/8)).
        database_codes: packed, uint8 (N, ceil(K/8)); a memory-mapped one is read once, in chunks.
        hash_bit: K.
        k: at most N.
    Returns:
        indices int64 (Q, k) and distances int32 (Q, k), nearest first.
    Raises:
        CodeError: codes of another shape, type or value, or k that is not within 1..N.
    """
    return nearest_and_ties(query_codes, database_codes, hash_bit, k)[:2]


def nearest_and_ties(
    query_codes: Array, database_codes: Array, hash_bit: int, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `nearest`; also how many items of the database share the last distance, int64 (Q,)."""
    hash_bit = whole_number(hash_bit, "hash_bit", most=MAX_BITS)
    query = words_of(check_codes(query_codes, hash_bit, "query codes"))
    database = as_array(database_codes)
    check_codes(database[:0] if database.ndim else database, hash_bit, "database codes")
    k, count = whole_number(k, "k", most=len(database)), query.shape[1]
    size = CHUNK * max(1, 8 // max(1, count))  # of a few queries larger chunks stay in the cache
    scratch = Scratch()
    found: dict[int, list[_Nearest]] = {}  # by the first item of a part of the database

    def look_through(part: range) -> None:
        own = [_Nearest(k, hash_bit) for _ in range(count)]
        for first in part:
            chunk = check_codes(database[first : first + size], hash_bit, "database codes")
            words = words_of(chunk)
            for start in range(0, count, 4):
                rows = slice(start, start + 4)
                for best, row in zip(own[rows], word_distances(query[:, rows], words, scratch),
                                     strict=True):
                    best.add(row, first)
        found[part.start] = own

    with Threads() as threads:
        starts = range(0, len(database), size)
        share = -(-len(starts) // threads.count)
        threads.each(look_through, [starts[at : at + share]
                                    for at in range(0, len(starts), share)])
    indices, distances = np.zeros((count, k), np.int64), np.zeros((count, k), np.int32)
    ties = np.zeros(count, np.int64)
    for query_number in range(count):
        parts = [found[start][query_number] for start in sorted(found)]
        near = np.concatenate([part.distances for part in parts])
        order = np.argsort(near, kind="stable")[:k]
        indices[query_number] = np.concatenate([part.indices for part in parts])[order]
        distances[query_number] = near[order]
        ties[query_number] = sum(part.counts[near[order[-1]]] for part in parts)
    return indices, distances, ties


class _Nearest:
    """The k nearest items to one query so far."""

    def __init__(self, k: int, hash_bit: int) -> None:
        self.k, self.limit = k, hash_bit
        self.indices, self.distances = np.zeros(0, np.int64), np.zeros(0, np.int16)
        self.counts = np.zeros(hash_bit + 1, np.int64)  # right for distances up to the limit

    def add(self, new: np.ndarray, first: int) -> None:
        """Items from number `first` on, at the distances `new`."""
        close = np.flatnonzero(new <= self.limit)
        if not len(close):
            return
        near = new[close]
        self.counts += np.bincount(near, minlength=len(self.counts))
        if len(self.distances) == self.k:  # ties are counted, but do not get in
            close, near = close[near < self.limit], near[near < self.limit]
        both = np.concatenate([self.distances, near])
        order = np.argsort(both, kind="stable")[: self.k]
        self.indices = np.concatenate([self.indices, close + first])[order]
        self.distances = both[order]
        if len(order) == self.k:
            self.limit = int(self.distances[-1])


def stable_metrics(
    query_codes: Array, database_codes: Array, query_labels: Array, database_labels: Array,
    hash_bit: int, R: int,
) -> dict[str, np.ndarray]:
    """Metrics of the order of `numpy.argsort(distances, kind="stable")`. On the CPU.

    Memory for each of the N items: the code once more and 8 bytes (3 C with 0/1 labels), and for
    each thread up to 26 bytes.

    Args:
        query_codes: packed, uint8 (Q, ceil(K/8)).
        database_codes: packed, uint8 (N, ceil(K/8)).
        query_labels: integers (Q,) or 0/1 (Q, C).
        database_labels: integers (N,) or 0/1 (N, C).
        hash_bit: K.
        R: rank of the cut.
    Returns:
        float64 (Q,) each: `ap` (AP@R, published denominator), `ap_strict`, `ap_all` (R = N),
        `recall` at R, and `precision_at_1`, `_10`, `_100`.
    Raises:
        CodeError: codes or labels of another shape, type or value, or an empty database.
    """
    hash_bit, R = whole_number(hash_bit, "hash_bit", most=MAX_BITS), whole_number(R, "R")
    query = words_of(check_codes(query_codes, hash_bit, "query codes"))
    words = words_of(check_codes(database_codes, hash_bit, "database codes"))
    count, number = query.shape[1], words.shape[1]
    targets = check_labels(query_labels, count, "query labels")
    labels = check_labels(database_labels, number, "database labels")
    check_same_kind(targets, labels)
    require(number, "there are no database codes, expected at least one.")
    single = labels.ndim == 1
    if not single:
        targets, labels = label_words(targets), label_words(labels)
    table, scratch = np.zeros((count, len(STABLE_METRICS))), Scratch()

    def measure(row: int) -> None:
        order = _stable_order(query[:, row : row + 1], words, hash_bit, scratch)
        if single:
            relevant = labels == targets[row]
        else:
            relevant = words_in_common(targets[:, row : row + 1], labels, scratch)[0]
        table[row] = _metrics_of_ranks(np.flatnonzero(relevant[order]) + 1, R, number)

    with Threads() as threads:
        threads.each(measure, range(count))
    return dict(zip(STABLE_METRICS, table.T, strict=True))


def _stable_order(
    query: np.ndarray, words: np.ndarray, hash_bit: int, scratch: Scratch
) -> np.ndarray:
    """Indices (N,) of all items by their distance from one query, words (V, 1)."""
    number = words.shape[1]
    # Integers of 8 and 16 bits are what numpy sorts by radix, stable and in one or two passes.
    dtype = np.uint8 if hash_bit < 256 else np.int16
    distances = scratch.array("distances of all", (number,), dtype)
    for first in range(0, number, CHUNK):
        part = slice(first, first + CHUNK)
        distances[part] = word_distances(query, words[:, part], scratch)
    return np.argsort(distances, kind="stable")


def _metrics_of_ranks(ranks: np.ndarray, R: int, number: int) -> tuple[float, ...]:
    """STABLE_METRICS of one ranking of `number` items, from the ranks of the relevant ones."""
    precisions, total = np.arange(1, len(ranks) + 1) / ranks, max(1, len(ranks))
    hits, *within = np.searchsorted(ranks, [R, 1, 10, 100], side="right").tolist()
    top = precisions[:hits].sum()
    at = [found / min(k, number) for found, k in zip(within, (1, 10, 100), strict=True)]
    return (top / max(1, hits), top / min(R, total), precisions.sum() / total, hits / total, *at)


def ranked_ap(
    relevance: Array, R: int, strict: bool = False, num_relevant: Array | None = None
) -> np.ndarray:
    """AP@R of explicit rankings.

    Args:
        relevance: bool (Q, at least R, or N), item by item in the order of the ranking.
        R: rank of the cut.
        strict: divide by min(R, num_relevant) instead of the hits within the top R.
        num_relevant: (Q,), relevant items of the whole database; for `strict` alone.
    Returns:
        float64 (Q,).
    Raises:
        CodeError: relevance of another shape, R below 1, or num_relevant is missing.
    """
    relevance = as_array(relevance)
    require(relevance.ndim == 2, f"relevance has shape {relevance.shape}, expected (Q, R).")
    require(relevance.dtype.kind in "biuf", f"relevance is {relevance.dtype}, expected numbers.")
    require(not strict or num_relevant is not None,
            "num_relevant is missing: strict AP divides by min(R, num_relevant).")
    relevance = relevance[:, : whole_number(R, "R")]
    ranks = np.arange(1, relevance.shape[1] + 1)
    ap, size = np.zeros(len(relevance)), max(1, 2**20 // max(1, len(ranks)))
    for start in range(0, len(relevance), size):
        block = relevance[start : start + size] != 0
        hits = np.cumsum(block, axis=1, dtype=np.float64)
        ap[start : start + size] = (hits / ranks * block).sum(axis=1)
    found = (relevance != 0).sum(axis=1)
    if strict:
        total = as_array(num_relevant)
        require(total.dtype.kind in "iu" and total.shape == found.shape and (total >= found).all(),
                "num_relevant has to be one whole number a query, no less than its hits.")
        found = np.minimum(len(ranks), total)
    return ap / np.maximum(found, 1)
