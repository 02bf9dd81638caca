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


def number_of_ranks() -> int:
    # All that torchrun sets, because other programs set one or the other.
    told = all(os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    return int(os.environ["WORLD_SIZE"]) if told else 1


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ["RANK"]) if number_of_ranks() > 1 else 0


@contextlib.contextmanager
def _meeting() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's
        raise ConnectionError(f"another rank ended or cannot be reached ({str(error).splitlines()[0][:120]}): "
                              "see its message") from None


@contextlib.contextmanager
def all_ranks() -> Iterator[None]:
    """Join the other ranks. Only rank 0 prints while this lasts."""
    if number_of_ranks() == 1:
        yield
        return
    # Tables travel, a few megabytes in main memory: gloo serves on every machine. Ranks may wait long for
    # the first one to decode images; one that died ends the job at once.
    with _meeting():
        distributed.init_process_group("gloo", timeout=timedelta(days=1))
    try:
        with open(os.devnull, "w") as nowhere:
            with contextlib.redirect_stdout(nowhere) if rank() else contextlib.nullcontext():
                yield
            _barrier()
    finally:
        distributed.destroy_process_group()


@contextlib.contextmanager
def first_rank_first() -> Iterator[None]:
    """Rank 0 goes through the body before the others, who then find what it left in the cache."""
    if number_of_ranks() == 1:
        yield
        return
    if rank():
        _barrier()
    yield
    if not rank():
        _barrier()


def _barrier() -> None:
    with _meeting():
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
    with _meeting():
        distributed.all_reduce(total)
    return total.numpy()
