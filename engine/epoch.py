"""What an epoch is made of: the steps in their drawn order, and the means over its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.distributed import own_part, sum_over_ranks
from utils import rank, world_size


@dataclass(frozen=True)
class Step:
    """This rank's share of one training step.

    rows: int64 (b,), numbers among the training images, on the device.
    views: float32 (b, ...), what the network sees of them, or None.
    count: for how many rows of the batch the mean loss of these rows stands; ranks add it up.
    weight: the factor on that loss: then DistributedDataParallel's mean over the ranks is the mean
        over the whole batch, also where the shares are not equal.
    """

    rows: Tensor
    views: Tensor | None
    count: int
    weight: float


def split_rows(rows: Tensor, size: int) -> list[Tensor]:
    """Rows in batches of `size`; a last one of a single row joins the one before.

    Batch normalisation that adapts cannot work with one row.
    """
    batches = list(rows.split(size))
    if len(batches) > 1 and size > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


class ShuffledEpoch:
    """One pass over the training rows in an order drawn from a seed, in batches that ranks share.

    Crops, order and dropout depend on the seed alone, so that a resumed run draws what the
    uninterrupted one drew.

    batches: int64 (B,) each, on the CPU; the same on every rank.
    parts: this rank's slice of each batch. A batch that is too small to give each rank two rows,
        which batch normalisation needs, goes to all of them whole.
    generator: drew the order, and draws what `views` needs.
    """

    def __init__(self, count: int, batch_size: int, seed: int, device: torch.device,
                 views: Callable[[ShuffledEpoch, int], Iterator[Tensor]] | None = None) -> None:
        """Draw the order.

        Args:
            count: N, the training rows.
            batch_size: of all ranks together.
            seed: of this epoch.
            device: where rows are needed.
            views: epoch, number of the first step -> views of the steps from there on.
        """
        torch.manual_seed(seed + rank())  # dropout differs by rank
        self.generator = torch.Generator().manual_seed(seed)
        self.count, self.device, self._views = count, device, views
        self.batches = split_rows(torch.randperm(count, generator=self.generator), batch_size)
        self.parts = [slice(0, len(batch)) if self._is_small(batch) else own_part(len(batch))
                      for batch in self.batches]

    def __len__(self) -> int:
        return len(self.batches)

    def steps(self, first: int = 0) -> Iterator[Step]:
        """The steps from number `first` on."""
        views = self._views(self, first) if self._views else None
        for batch, part in zip(self.batches[first:], self.parts[first:], strict=True):
            rows = batch[part].to(self.device)
            own = own_part(len(batch))
            count = own.stop - own.start
            weight = 1.0 if self._is_small(batch) else count * world_size() / len(batch)
            yield Step(rows, next(views) if views else None, count, weight)

    @staticmethod
    def _is_small(batch: Tensor) -> bool:
        return len(batch) < 2 * world_size()


class Meters:
    """Means over the rows of an epoch, summed on the device: .item() would wait for each step."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = names
        self.sums = torch.zeros(len(names), device=device)
        self.rows = 0  # that were seen so far, by this rank

    def update(self, values: Sequence[Tensor], count: int) -> None:
        """Take note of one step: scalars, each a mean over `count` rows."""
        self.sums += torch.stack(list(values)).detach() * count
        self.rows += count

    def averages(self) -> dict[str, float]:
        """The means, over all ranks."""
        rows = int(sum_over_ranks(torch.tensor(self.rows).numpy()))
        sums = sum_over_ranks(self.sums.cpu().numpy()).tolist()
        return {name: value / rows for name, value in zip(self.names, sums, strict=True)}
