"""Images resized, cropped and flipped in batches on the device.

Every resize of a Pillow image is a small matrix per axis (a filter as wide as the step down), so
"resize 256, crop, resize 224, flip" is two matrix products per image: exact, batched, and the same
on any device. Boxes are drawn on the CPU, so all devices see the same augmentations.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.preprocessing import Preprocessing

CPU = torch.device("cpu")


def scaled_size(height: int, width: int, views: Preprocessing) -> tuple[int, int]:
    """(height, width) after the first resize, torchvision's: the shorter side becomes `side`."""
    side = views.side
    if views.squash:
        return side, side
    if height <= width:
        return side, int(side * width / height)
    return int(side * height / width), side


def turned(images: Tensor, view: int) -> Tensor:
    """One of the eight turns and flips of square images (B, 3, S, S): satellites know no "up".

    `view` 0 is the image as it is. Of the first 2 the other is upside down; the first 4 are the
    quarter turns, the last 4 those of the mirror image.
    """
    if view & 4:
        images = images.flip(3)
    return images.rot90(2 * (view & 1) + bool(view & 2), (2, 3))


def turned_each(images: Tensor, views: Tensor) -> Tensor:
    """Each of the images (B, 3, S, S) in its own view, int64 (B,), as `turned` numbers them.

    `views` in main memory, so that no device is waited for.
    """
    found = torch.empty_like(images)
    for view in views.unique().tolist():
        rows = to_device((views == view).nonzero()[:, 0], images.device)
        found[rows] = turned(images[rows], view)
    return found


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`, without waiting for what the device has still to do."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)  # pageable memory would wait
    return tensor.to(device)


def axis_matrix(spans: tuple[Tensor, Tensor, Tensor, Tensor], count: int, width: int,
                device: torch.device = CPU, bicubic: bool = False) -> Tensor:
    """Rows of the matrix by which Pillow resizes one axis, with its bilinear or bicubic filter.

    Args:
        spans: start, (B,), the first pixel of the source interval, outside of which no pixel is
            looked at, as after a crop; extent, (B,), pixels of that interval; length, (B,), pixels
            it is resized to; first, (B,), the first output pixel wanted.
        count: output pixels wanted.
        width: columns, at least start + extent.
        device: of the result.
        bicubic: else bilinear.
    Returns:
        float32 (B, count, width); each row sums to 1.
    """
    # Four short vectors travel, not the matrices: those are as large as the images.
    start, extent, length, first = (to_device(value.float(), device)[:, None, None]
                                    for value in spans)
    step = extent / length
    reach = step.clamp(min=1.0)  # a step down averages over the step, a step up interpolates
    centre = start + (first + torch.arange(count, device=device)[:, None] + 0.5) * step
    pixel = torch.arange(width, device=device)
    distance = (pixel + 0.5 - centre).abs() / reach
    weight = _cubic(distance) if bicubic else (1 - distance).clamp(min=0)
    weight = weight * ((pixel >= start) & (pixel < start + extent))
    # Rows past an image that is smaller than others of its batch are empty, never used: 0, not NaN.
    return weight / weight.sum(dim=-1, keepdim=True).clamp(min=1e-12)


def _cubic(distance: Tensor) -> Tensor:
    """The cubic convolution of Keys (1981) with a = -1/2, as Pillow has it."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def random_crops(heights: Tensor, widths: Tensor, generator: torch.Generator
                 ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes distributed as torchvision's RandomResizedCrop (scale 0.08..1, ratio 3/4..4/3).

    Args:
        heights: (B,) int64, of the images.
        widths: (B,) int64.
        generator: of the CPU.
    Returns:
        top, left, height, width, each (B,) int64.
    """
    draws = torch.rand(len(heights), 12, 2, generator=generator, dtype=torch.float64)
    area = (heights * widths)[:, None] * (0.08 + 0.92 * draws[:, :10, 0])
    ratio = torch.exp((2 * draws[:, :10, 1] - 1) * math.log(4 / 3))
    wide = torch.round(torch.sqrt(area * ratio)).long()
    high = torch.round(torch.sqrt(area / ratio)).long()
    fits = (wide > 0) & (wide <= widths[:, None]) & (high > 0) & (high <= heights[:, None])
    chosen = fits.int().argmax(dim=1, keepdim=True)  # the first attempt that fits
    found = fits.any(dim=1)
    # Ten misses: the largest centred box whose ratio is allowed.
    fallback_width = torch.minimum(widths, torch.round(heights * 4 / 3).long())
    fallback_height = torch.minimum(heights, torch.round(widths * 4 / 3).long())
    width = torch.where(found, wide.gather(1, chosen)[:, 0], fallback_width)
    height = torch.where(found, high.gather(1, chosen)[:, 0], fallback_height)
    free_rows, free_columns = heights - height, widths - width
    top = torch.where(found, (draws[:, 10, 0] * (free_rows + 1)).long(), free_rows // 2)
    left = torch.where(found, (draws[:, 10, 1] * (free_columns + 1)).long(), free_columns // 2)
    return top, left, height, width


class Transform:
    """uint8 batches of a store -> normalised float32 (B, 3, S, S), channels last, on their device.

    Images come padded, (B, C, H, W), with their valid (height, width) in `sizes`, int64 (B, 2).
    """

    def __init__(self, views: Preprocessing) -> None:
        """views: how the network expects images."""
        self.views, self.image_size = views, views.image_size
        self.bicubic = views.interpolation == "bicubic"
        self._statistics: dict[torch.device, Tensor] = {}  # mean and std, where they were needed

    def test(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Resize, CenterCrop, normalise, as torchvision does on Pillow images."""
        sizes = _one_if_equal(sizes)
        scaled = self._scaled(sizes)
        # Python's round, as torchvision: halves go to the even neighbour.
        first = torch.round((scaled - self.image_size).double() / 2).long()
        zero = torch.zeros(len(sizes), dtype=torch.long)
        vertical, horizontal = (
            axis_matrix((zero, sizes[:, axis], scaled[:, axis], first[:, axis]), self.image_size,
                        images.shape[2 + axis], images.device, self.bicubic)
            for axis in (0, 1))
        return self._apply(images, vertical, horizontal)

    def draw(self, sizes: Tensor, generator: torch.Generator) -> Tensor:
        """What `train` is to do with images of these sizes.

        Returns:
            top, left, height, width, flipped; int64 (B, 5).
        """
        boxes = random_crops(*self._scaled(sizes).unbind(1), generator)
        flipped = torch.rand(len(sizes), generator=generator) < 0.5
        return torch.stack((*boxes, flipped.long()), dim=1)

    def train(self, images: Tensor, sizes: Tensor, drawn: Tensor) -> Tensor:
        """Resize, RandomResizedCrop, RandomHorizontalFlip, normalise; with what `draw` gave."""
        top, left, height, width, flipped = to_device(drawn, images.device).unbind(1)
        vertical = self._crop_matrix(images, sizes, 0, top, height)
        horizontal = self._crop_matrix(images, sizes, 1, left, width)
        horizontal = torch.where(flipped[:, None, None] > 0, horizontal.flip(1), horizontal)
        return self._apply(images, vertical, horizontal)

    def _crop_matrix(self, images: Tensor, sizes: Tensor, axis: int, start: Tensor, extent: Tensor
                     ) -> Tensor:
        """Resize, crop and resize of one axis as one matrix an image, (B, S, H or W)."""
        scaled = self._scaled(sizes)
        longest, stored = int(scaled[:, axis].max()), images.shape[2 + axis]
        full = torch.full_like(start, self.image_size)
        crop = axis_matrix((start, extent, full, torch.zeros_like(start)), self.image_size,
                           longest, images.device, self.bicubic)
        if torch.equal(scaled, sizes):  # the first resize leaves all of them as they are
            return crop if longest == stored else F.pad(crop, (0, stored - longest))
        lengths = _one_if_equal(torch.stack((sizes[:, axis], scaled[:, axis]), dim=1))
        zero = torch.zeros(len(lengths), dtype=torch.long)
        return crop @ axis_matrix((zero, lengths[:, 0], lengths[:, 1], zero), longest, stored,
                                  images.device, self.bicubic)

    def _scaled(self, sizes: Tensor) -> Tensor:
        """(B, 2) sizes after the first resize; those of images that have had theirs stay."""
        if self.views.squash:
            return torch.full_like(sizes, self.views.side)
        return self.views.side * sizes // sizes.min(dim=1, keepdim=True).values

    def _apply(self, images: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
        pixels = images.float()
        batch, channels, height, width = pixels.shape
        pixels = pixels.reshape(batch, channels * height, width) @ horizontal.transpose(1, 2)
        if self.bicubic:
            pixels = pixels.clamp(0, 255)  # it overshoots at edges; Pillow stores 8 bits
        pixels = vertical[:, None] @ pixels.reshape(batch, channels, height, self.image_size)
        if self.bicubic:
            pixels = pixels.clamp(0, 255)
        if images.device not in self._statistics:
            statistics = torch.tensor((self.views.mean, self.views.std)) * 255
            self._statistics[images.device] = statistics[:, :, None, None].to(images.device)
        mean, std = self._statistics[images.device]
        # A panchromatic image has one channel: broadcasting repeats it for three.
        return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)


def _one_if_equal(rows: Tensor) -> Tensor:
    """One row in place of B equal ones: the matrices made of them then broadcast."""
    return rows[:1] if bool((rows == rows[:1]).all()) else rows
