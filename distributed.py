"""The ranks that torchrun started: which one this is, what its share is, how shares are put together.

A script that was started plainly is the only rank, and none of this does anything then.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

import numpy as np
import torch
from torch import distributed


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", "0"))


def number_of_ranks() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def all_ranks() -> Iterator[None]:
    """Join the other ranks. Only rank 0 prints while this lasts."""
    if number_of_ranks() == 1:
        yield
        return
    # Tables travel, a few megabytes in main memory: gloo serves on every machine. Ranks may wait long for
    # the first one to decode images; one that died ends the job at once.
    distributed.init_process_group("gloo", timeout=timedelta(days=1))
    try:
        with open(os.devnull, "w") as nowhere:
            with contextlib.redirect_stdout(nowhere) if rank() else contextlib.nullcontext():
                yield
            distributed.barrier()
    finally:
        distributed.destroy_process_group()


@contextlib.contextmanager
def first_rank_first() -> Iterator[None]:
    """Rank 0 goes through the body before the others, who then find what it left in the cache."""
    if number_of_ranks() == 1:
        yield
        return
    if rank():
        distributed.barrier()
    yield
    if not rank():
        distributed.barrier()


def own_part(length: int) -> slice:
    """This rank's share of 0..length-1: contiguous, of equal size but for one item."""
    ends = [length * number // number_of_ranks() for number in (rank(), rank() + 1)]
    return slice(*ends)


def sum_over_ranks(values: np.ndarray) -> np.ndarray:
    """The sum of every rank's array (same shape and dtype), on every rank."""
    if number_of_ranks() == 1:
        return values
    total = torch.from_numpy(np.array(values))
    distributed.all_reduce(total)
    return total.numpy()
