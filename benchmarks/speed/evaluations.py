"""mAP as the field evaluates it, and the distances alone, for codes that are ranked.

Imports little: a measurement is a process of its own, whose memory is told.
"""

from __future__ import annotations

import statistics
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch


def published_style(query: np.ndarray, database: np.ndarray, query_labels: np.ndarray,
                    database_labels: np.ndarray, R: int) -> float:
    """mAP@R as this field's scripts do it: one similarity matrix, one argsort down its columns.

    Args:
        query: codes -1/+1, float32 (Q, K).
        database: the same, (N, K).
        query_labels: one-hot (Q, C).
        database_labels: one-hot (N, C).
        R: the cut.
    """
    return map_by_matrix(np.dot(database, query.T), query_labels, database_labels, R)


def map_by_matrix(similarity: np.ndarray, query_labels: np.ndarray, database_labels: np.ndarray,
                  R: int) -> float:
    """mAP@R of a similarity matrix (N, Q), labels as above."""
    order = np.argsort(-similarity, axis=0)
    return statistics.fmean(_ap(database_labels[order[:R, column]], query_labels[column])
                            for column in range(len(query_labels)))


def query_by_query(query: np.ndarray, database: np.ndarray, query_labels: np.ndarray,
                   database_labels: np.ndarray, R: int) -> float:
    """mAP@R as others do it: distances and argsort of one query after the other."""
    scores = []
    for code, label in zip(query, query_labels, strict=True):
        distances = 0.5 * (len(code) - np.dot(database, code))
        scores.append(_ap(database_labels[np.argsort(distances)[:R]], label))
    return statistics.fmean(scores)


def _ap(labels: np.ndarray, label: np.ndarray) -> float:
    relevant = labels @ label > 0
    hits = relevant.sum()
    precision = np.cumsum(relevant) / np.arange(1, len(relevant) + 1)
    return float((precision * relevant).sum() / hits) if hits else 0.0


def distances_alone(query: np.ndarray, database: np.ndarray) -> int:
    """Every distance of packed 64-bit codes by XOR and popcount, on all threads: the floor.

    Returns:
        the sum over the first eight queries of each thread, to check that it does what it should;
        the other distances are used for nothing.
    """
    query, database = query.view(np.uint64)[:, 0], database.view(np.uint64)[:, 0]

    def one_thread(queries: np.ndarray) -> int:
        shape, total = (8, 16384), 0
        different, distances = np.empty(shape, np.uint64), np.empty(shape, np.uint8)
        for first in range(0, len(database), shape[1]):
            part = np.array(database[first:first + shape[1]])
            for start in range(0, len(queries), shape[0]):
                some = queries[start:start + shape[0], None]
                here = slice(len(some)), slice(len(part))
                np.bitwise_xor(some, part, out=different[here])
                np.bitwise_count(different[here], out=distances[here])
                if start == 0:
                    total += int(distances[here].sum())
        return total

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(one_thread, np.array_split(query, threads)))
