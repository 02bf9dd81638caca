"""Layers that depend on the whole batch, also where the ranks of torchrun share it.

Dropout draws for all images of a batch and takes the part of its own; batch normalisation averages over all of them. So
several ranks train to what one would have made of the same batches, but for rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from distributed import share_in_hand, summed


def _kept(shape: tuple[int, ...], probability: float, like: Tensor) -> Tensor:
    """Noise of `shape` (B, ...) that keeps the mean: 0 or 1 / probability, this rank's rows of that for the batch."""
    share = share_in_hand()
    rows = shape[0] if share is None else share.total
    noise = torch.empty(rows, *shape[1:], dtype=like.dtype, device=like.device).bernoulli_(probability)
    return (noise if share is None else noise[share.part]).div_(probability)


class SharedDropout(nn.Dropout):
    """nn.Dropout; on a CPU it draws what that draws."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> the same shape."""
        return x * _kept(x.shape, 1 - self.p, x) if self.training and self.p else x


class SharedStochasticDepth(StochasticDepth):
    """torchvision's layer that leaves out a branch for some images (Huang et al., ECCV 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> the same shape."""
        if not self.training or not self.p or self.mode != "row":
            return super().forward(x)
        return x * _kept((len(x), *[1] * (x.ndim - 1)), 1 - self.p, x)


class SharedBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d whose mean and variance, in a training step, are those of all ranks together.

    torch's SyncBatchNorm does that on CUDA only.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        share = share_in_hand()
        if share is None or not self.training:
            return super().forward(x)
        count = share.total * x.shape[2] * x.shape[3]
        values = x.float()
        # In two rounds: the difference of two large sums would lose digits.
        mean = summed(values.sum(dim=(0, 2, 3)) * share.counts) / count
        centred = values - mean[:, None, None]
        variance = summed(centred.square().sum(dim=(0, 2, 3)) * share.counts) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            factor = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, factor)
            self.running_var.lerp_(variance * count / max(1, count - 1), factor)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def share_layers(network: nn.Module) -> None:
    """Put the layers above in the place of torch's and torchvision's, everywhere in `network`."""
    for name, layer in network.named_children():
        if type(layer) is nn.Dropout:
            setattr(network, name, SharedDropout(layer.p).train(layer.training))
        elif type(layer) is StochasticDepth:
            setattr(network, name, SharedStochasticDepth(layer.p, layer.mode).train(layer.training))
        elif type(layer) is nn.BatchNorm2d and layer.affine and layer.track_running_stats:
            shared = SharedBatchNorm2d(layer.num_features, layer.eps, layer.momentum)
            shared.load_state_dict(layer.state_dict())
            setattr(network, name, shared.train(layer.training))
        else:
            share_layers(layer)
