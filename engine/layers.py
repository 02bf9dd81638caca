"""Layers that depend on the whole batch, also where the ranks of torchrun share it.

Dropout draws for all images of a batch and takes the part of its own; batch normalisation averages over all of them. So
several ranks train to what one would have made of the same batches, but for rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torchvision.ops import StochasticDepth

from engine.distributed import of_each_rank, share_in_hand


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


class _Normalised(torch.autograd.Function):
    """Batch normalisation over the rows of all ranks, with one exchange there and one back."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, counts: bool
                ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (B, C, H, W) float32, of rows that count or not -> the same shape; mean, variance (C,), how many values."""
        own = torch.full((1,), x.numel() / x.shape[1] * counts, device=x.device)
        variances, means = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        numbers, means, variances = of_each_rank(torch.cat([own, means, variances])).double().split(
            [1, len(weight), len(weight)], dim=1)
        # Chan et al., 1979: sums of squares would lose digits where a mean is large.
        shares = numbers / numbers.sum()
        mean = (shares * means).sum(dim=0)
        variance = (shares * (variances + (means - mean).square())).sum(dim=0).float()
        mean, number = mean.float(), numbers.sum().float()
        context.save_for_backward(x, weight, mean, variance, number)
        context.eps, context.counts = eps, counts
        context.mark_non_differentiable(mean, variance, number)
        return nn.functional.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance, number

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, number = context.saved_tensors
        scale = torch.rsqrt(variance + context.eps)
        centred = x - mean[:, None, None]
        of_bias = gradient.sum(dim=(0, 2, 3))
        of_weight = (gradient * centred).sum(dim=(0, 2, 3)) * scale
        # Mean and variance depend on each row that counts: what all outputs lose by it.
        by_bias, by_weight = of_each_rank(torch.stack([of_bias, of_weight])).sum(dim=0) / number * context.counts
        of_x = gradient - by_bias[:, None, None] - centred * (by_weight * scale)[:, None, None]
        return of_x * (weight * scale)[:, None, None], of_weight, of_bias, None, None


class SharedBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d whose mean and variance, in a training step, are those of all ranks together.

    torch's SyncBatchNorm does that on CUDA only.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        share = share_in_hand()
        if share is None or not self.training:
            return super().forward(x)
        made, mean, variance, number = _Normalised.apply(x.float(), self.weight, self.bias, self.eps, share.counts)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            factor = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, factor)
            self.running_var.lerp_(variance * number / (number - 1).clamp(min=1), factor)
        return made.to(x.dtype)


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
