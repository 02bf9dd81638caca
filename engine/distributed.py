"""The ranks that torchrun started: which one this is, what its share is, how shares are put together.

A script that was started plainly is the only rank, and none of this does anything then. What ranks tell each other
(tables, features, decisions) goes through main memory with gloo, which every machine has; only the sums of gradients
go from card to card, with NCCL. Files are written by rank 0 alone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from utils import rank, world_size


@contextlib.contextmanager
def meeting() -> Iterator[None]:
    """Turn what the libraries say when a rank has gone into a ConnectionError of one line."""
    try:
        yield
    except RuntimeError as error:
        # gloo raises plain RuntimeErrors, as everything else does that may go wrong in between.
        if not (isinstance(error, distributed.DistError)
                or any(word in str(error) for word in ("gloo", "NCCL", "TCPStore"))):
            raise
        told = str(error).splitlines()[0][:120]
        raise ConnectionError(f"another rank ended or cannot be reached ({told}): see its message") from None


@contextlib.contextmanager
def all_ranks() -> Iterator[None]:
    """Join the other ranks. Only rank 0 prints while this lasts."""
    if world_size() == 1:
        yield
        return
    with meeting():
        store, number, total = next(distributed.rendezvous("env://"))
        if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
            # torchrun gives ranks that it restarts the store of those that died, with their addresses in it. On several
            # machines restarts are not counted alike: there it must not be shared (docs/scale.md).
            store = distributed.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store)
        # Ranks may wait long for the first one to decode images; one that died ends the job at once.
        distributed.init_process_group("gloo", store=store, rank=number, world_size=total, timeout=timedelta(days=1))
    try:
        with open(os.devnull, "w") as nowhere, meeting():
            with contextlib.redirect_stdout(nowhere) if rank() else contextlib.nullcontext():
                yield
            distributed.barrier()
    finally:
        _groups.clear()
        distributed.destroy_process_group()


@contextlib.contextmanager
def first_rank_first() -> Iterator[None]:
    """Rank 0 goes through the body before the others, who then find what it left in the cache."""
    if world_size() == 1:
        yield
        return
    if rank():
        wait_for_all()
    yield
    if not rank():
        wait_for_all()


def wait_for_all() -> None:
    """Until every rank has come here."""
    if world_size() > 1:
        distributed.barrier()


# ---------------------------------------------------------------- what ranks tell each other


def from_first(value: Any) -> Any:
    """What rank 0 has, on every rank: plain values, arrays and tensors in main memory."""
    if world_size() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def largest(*values: int) -> tuple[int, ...]:
    """The largest of every rank's first value, of their second, and so on."""
    if world_size() == 1:
        return values
    most = torch.tensor(values)
    distributed.all_reduce(most, distributed.ReduceOp.MAX)
    return tuple(most.tolist())


def sum_over_ranks(values: np.ndarray) -> np.ndarray:
    """The sum of every rank's array (same shape and dtype), on every rank."""
    if world_size() == 1:
        return values
    total = torch.from_numpy(np.array(values))
    distributed.all_reduce(total)
    return total.numpy()


def own_part(length: int) -> slice:
    """This rank's share of 0..length-1: contiguous, of equal size but for one item."""
    ends = [length * number // world_size() for number in (rank(), rank() + 1)]
    return slice(*ends)


def in_turns(own: Iterable[np.ndarray], lengths: list[int]) -> Iterator[np.ndarray]:
    """All batches, in order, on every rank, of which each rank makes every `world_size()`-th, from its own on.

    Args:
        own: the batches of this rank, float32 (length, dim). lengths: of all batches; the first is the longest.
    """
    if world_size() == 1:
        yield from own
        return
    own, buffers = iter(own), None
    for first in range(0, len(lengths), world_size()):
        mine = next(own) if first + rank() < len(lengths) else None
        if buffers is None:  # rank 0 has the first batch, and with it knows how wide they are
            width = from_first(mine.shape[1] if rank() == 0 else None)
            buffers = [torch.zeros(lengths[0], width) for _ in range(world_size())]
        filled = torch.zeros_like(buffers[0])
        if mine is not None:
            filled[:len(mine)] = torch.from_numpy(mine)
        distributed.all_gather(buffers, filled)
        for length, batch in zip(lengths[first:first + world_size()], buffers, strict=False):
            yield batch[:length].numpy().copy()


def gathered(own: Tensor, length: int) -> Tensor:
    """(length, ...) on every rank, of which each gives the rows of its `own_part`; on the device of `own`."""
    if world_size() == 1:
        return own
    whole = torch.zeros(length, *own.shape[1:], dtype=own.dtype)
    whole[own_part(length)] = own.cpu()
    distributed.all_reduce(whole)  # of zeros and one number: exact
    return whole.to(own.device)


# ---------------------------------------------------------------- training together


@dataclass(frozen=True)
class Share:
    """A rank's rows of a batch of `total`. Where rows are fewer than ranks, some ranks have one that does not count."""

    total: int
    part: slice
    counts: bool

    @staticmethod
    def of(total: int) -> Share:
        part = own_part(total)
        return Share(total, part, True) if part.stop > part.start else Share(total, slice(0, 1), False)

    def __len__(self) -> int:
        """How many rows of this rank count."""
        return (self.part.stop - self.part.start) * self.counts

    @property
    def weight(self) -> float:
        """The factor on the mean loss of this rank's rows: then the mean over ranks is the mean over all rows."""
        return len(self) * world_size() / self.total


_share: Share | None = None  # of the step in hand
_groups: dict[str, Any] = {}  # by kind of device


@contextlib.contextmanager
def step_of(total: int) -> Iterator[Share]:
    """One training step on a batch of `total` rows, shared by the ranks."""
    global _share
    _share = Share.of(total)
    try:
        yield _share
    finally:
        _share = None


def share_in_hand() -> Share | None:
    """The share of the step in hand; None outside a step and where there is one rank."""
    return _share if world_size() > 1 else None


def group_of(device: torch.device) -> Any:
    """The process group that sums what lies on `device`: NCCL where each rank has a card of its own, else gloo."""
    if device.type not in _groups:
        too_few = device.type != "cuda" or int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > torch.cuda.device_count()
        backend = "gloo" if largest(int(too_few)) == (1,) else "nccl"
        # A step takes seconds; what takes long is waited for in the default group.
        _groups[device.type] = distributed.new_group(backend=backend, timeout=timedelta(minutes=30))
    return _groups[device.type]


def trained_together(network: nn.Module, device: torch.device, some_unused: bool = False) -> nn.Module:
    """`network`, whose gradients become the mean over the ranks, and which begins as rank 0's.

    Args:
        some_unused: whether parameters that ask for a gradient may get none.
    """
    if world_size() == 1:
        return network
    # Buffers are equal anyway: normalisation looks at the whole batch (layers.py).
    return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None,
                                   process_group=group_of(device), broadcast_buffers=False,
                                   gradient_as_bucket_view=True, find_unused_parameters=some_unused)


def of_each_rank(values: Tensor) -> Tensor:
    """Every rank's tensor, (ranks, ...), on the device of `values`."""
    parts = [torch.empty_like(values) for _ in range(world_size())]
    distributed.all_gather(parts, values, group=group_of(values.device))
    return torch.stack(parts)
