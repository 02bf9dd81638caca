"""The ranks that torchrun started: what they tell each other, and how they train together.

A script that was started plainly is the only rank, and none of this does anything then. What ranks
tell each other (tables, features, decisions) goes through main memory with gloo, which every
machine has; only the sums of gradients go from card to card, with NCCL. Rank 0 alone writes files.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from utils import rank, world_size


@contextlib.contextmanager
def all_ranks() -> Iterator[None]:
    """Join the other ranks. Only rank 0 prints while this lasts.

    Raises:
        ConnectionError: another rank has gone.
    """
    if world_size() == 1:
        yield
        return
    with _sentence_for_lost_rank():
        store, number, total = next(distributed.rendezvous("env://"))
        if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
            # torchrun gives ranks that it restarts the store of those that died, with their
            # addresses in it. On several machines restarts are not counted alike: there it must
            # not be shared (docs/scale.md).
            restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT")
            store = distributed.PrefixStore(f"restart {restarts}", store)
        # Ranks may wait long for the first one to decode images; one that died ends the job.
        distributed.init_process_group("gloo", store=store, rank=number, world_size=total,
                                       timeout=timedelta(days=1))
        distributed.barrier()  # who fails at once would leave others that are not connected yet
    try:
        # backslashreplace: what is said here may be names of files that are no text.
        with (open(os.devnull, "w", errors="backslashreplace") as nowhere,
              _sentence_for_lost_rank()):
            with contextlib.redirect_stdout(nowhere) if rank() else contextlib.nullcontext():
                yield
            distributed.barrier()
    finally:
        _groups.clear()
        distributed.destroy_process_group()


@contextlib.contextmanager
def _sentence_for_lost_rank() -> Iterator[None]:
    """Turn what the libraries say when a rank has gone into a ConnectionError of one line."""
    try:
        yield
    except RuntimeError as error:
        # gloo raises plain RuntimeErrors, as everything else does that may go wrong in between.
        libraries = ("gloo", "NCCL", "TCPStore")
        if not isinstance(error, distributed.DistError) and not any(
                name in str(error) for name in libraries):
            raise
        told = str(error).splitlines()[0][:120]
        raise ConnectionError(f"another rank ended or cannot be reached ({told}): see its message"
                              ) from None


@contextlib.contextmanager
def first_rank_first() -> Iterator[None]:
    """Rank 0 goes through the body before the others, who then find what it left on the disk."""
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
    start = length * rank() // world_size()
    return slice(start, length * (rank() + 1) // world_size())


def in_turns(own: Iterable[np.ndarray], lengths: list[int]) -> Iterator[np.ndarray]:
    """All batches in order, on every rank, of which each rank makes every `world_size`-th.

    Args:
        own: the batches of this rank, float32 (length, dim), from number `rank` on.
        lengths: of all batches; the first is the longest.
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


def gathered(value: Any) -> list[Any]:
    """What all ranks have, in their order, on rank 0; nothing on the others. Plain values."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size() if rank() == 0 else None
    distributed.gather_object(value, values)
    return values or []


# ---------------------------------------------------------------- training together


def wrap_for_ranks(network: nn.Module, device: torch.device, some_unused: bool = False
                   ) -> nn.Module:
    """`network` in DistributedDataParallel: gradients become their mean over the ranks.

    Batch normalisation that adapts sees the rows of all ranks on CUDA (torch's SyncBatchNorm), and
    those of its own rank elsewhere.

    Args:
        network: its weights become those of rank 0.
        some_unused: whether parameters that ask for a gradient may get none.
    Returns:
        `network` itself where there is one rank.
    """
    if world_size() == 1:
        return network
    group = _group_of(device)
    if device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network, group)
    return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None,
                                   process_group=group, gradient_as_bucket_view=True,
                                   find_unused_parameters=some_unused)


def share_buffers(network: nn.Module) -> None:
    """Running statistics become those of rank 0, so that all ranks give an image the same code."""
    if world_size() > 1:
        for buffer in network.buffers():
            own = buffer.cpu()  # the group of gloo is for main memory
            distributed.broadcast(own, src=0)
            buffer.copy_(own)


_groups: dict[str, Any] = {}  # by kind of device


def _group_of(device: torch.device) -> Any:
    """The process group that sums what lies on `device`: NCCL where each rank has its own card."""
    if device.type not in _groups:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        too_few = device.type != "cuda" or local > torch.cuda.device_count()
        backend = "gloo" if largest(int(too_few)) == (1,) else "nccl"
        # A step takes seconds; what takes long is waited for in the default group.
        _groups[device.type] = distributed.new_group(backend=backend, timeout=timedelta(minutes=30))
    return _groups[device.type]
