"""Images decoded once into a uint8 store, and resized, cropped and flipped in batches on the device.

Every resize of a Pillow image is a small matrix per axis (the triangle filter, as wide as the step down),
so "resize 256, crop, resize 224, flip" is two matrix products per image: exact, batched, and the same
on any device. Boxes are drawn on the CPU, so all devices see the same augmentations.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.sources import ImageSource
from engine.cache import GrowingArray, finished, maker
from engine.distributed import Share, first_rank_first
from engine.files import atomic_file
from utils import InputError, progress, sha256_of, warn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STORE_VERSION = 1
CPU = torch.device("cpu")
ROOM = 1 << 30  # bytes of a store that are no matter, however little of them its images fill


def resize_side(image_size: int) -> int:
    """The shorter side before cropping: 256 for the published 224, in proportion for other sizes."""
    return round(image_size * 256 / 224)


def scaled_size(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) after torchvision's Resize(side): the shorter side becomes `side`."""
    if height <= width:
        return side, int(side * width / height)
    return int(side * height / width), side


# ---------------------------------------------------------------- the store


class ImageStore:
    """All images of one source as uint8, padded to a common shape.

    images: (N, C, H, W) uint8, an array or a memory map. sizes: (N, 2) int64, the valid height and width.
    side: the shorter side after the first resize. Images larger than that are already resized to it
    (by Pillow, exactly as torchvision would); smaller ones are kept as they are and enlarged on the
    device, which is 16 times less to store and move for EuroSAT. key: changes with the content.
    """

    def __init__(self, images: np.ndarray, sizes: np.ndarray, side: int, key: str) -> None:
        self.images, self.sizes, self.side, self.key = images, sizes, side, key

    def __len__(self) -> int:
        return len(self.images)

    @staticmethod
    def open(source: ImageSource, label: str, image_size: int, cache_dir: Path | None,
             workers: int = 4) -> ImageStore:
        """Decode every image of `source`, or map the store that an earlier run decoded.

        Args:
            source: N images. label: for the file name and the progress bar. image_size: side of the
                final crop. cache_dir: where stores lie, None to keep this one in memory.
            workers: decoding threads.
        Raises:
            InputError: images that cannot be read: how many, and the first ones.
        """
        side = resize_side(image_size)
        key = sha256_of(STORE_VERSION, source.stamp, side)[:16]
        if cache_dir is None:
            decoding = _Decoding(source, label, side, workers)
            images = np.zeros(decoding.shape, np.uint8)
            for row, pixels in decoding.rows(0):
                images[row] = pixels
            return ImageStore(images, decoding.sizes, side, key)
        path = cache_dir / "images" / f"{label}-{key}.npy"
        sizes_path = path.with_suffix(".sizes.npy")
        with first_rank_first(), maker(path) as wanted:
            if wanted:
                _make(_Decoding(source, label, side, workers), path, sizes_path)
        return ImageStore(finished(path, len(source)), np.array(finished(sizes_path, len(source))), side, key)


def _make(decoding: _Decoding, path: Path, sizes_path: Path) -> None:
    """Write a store, or what an earlier process left to do of it."""
    store = GrowingArray(path, decoding.shape, np.uint8)
    try:
        if store.done:
            print(f"decoding {decoding.label} goes on after {store.done:,} of {decoding.shape[0]:,} images")
        for _, pixels in decoding.rows(store.done):
            # After an unreadable one nothing counts as done, so that the next attempt finds it again.
            store.append(pixels[None], safe=not decoding.bad)
        with atomic_file(sizes_path) as file:  # the store is renamed last, so this one is whole when it exists
            np.save(file, decoding.sizes)
        store.finish()
    except UnreadableImages:
        store.discard()
        raise
    finally:
        store.close()


class UnreadableImages(InputError):
    """Images that cannot be read: how many, which (twenty of them), and what can be done."""

    def __init__(self, bad: dict[int, str], total: int) -> None:
        """bad: row -> name and reason."""
        super().__init__()
        self.lines, self.total = sorted(bad.values()), total

    def add(self, bad: dict[int, str], total: int) -> None:
        """Those of another source, too."""
        self.lines += sorted(bad.values())
        self.total += total

    def __str__(self) -> str:
        more = f" and {len(self.lines) - 20:,} more" if len(self.lines) > 20 else ""
        return (f"{len(self.lines):,} of {self.total:,} images cannot be read: {'; '.join(self.lines[:20])}{more}; "
                "replace or remove them, or begin with --skip_bad, which goes on without them")


class _Decoding:
    """What becomes of the images of a source on their way into a store.

    shape: of the store. sizes: (N, 2), of each image in it. bad: row -> name and reason, of those found unreadable.
    """

    def __init__(self, source: ImageSource, label: str, side: int, workers: int) -> None:
        self.source, self.label, self.workers = source, label, workers
        self.bad: dict[int, str] = {}

        def size(row: int) -> tuple[int, int]:
            height, width = _attempt(lambda: source.size(row), self.bad, source, row) or (1, 1)
            return scaled_size(height, width, side) if min(height, width) > side else (height, width)

        self.sizes = np.array(list(ahead(size, range(len(source)), workers, 64)), dtype=np.int64)
        self.shape = (len(source), source.channels, *self.sizes.max(axis=0).tolist())
        padded, needed = math.prod(self.shape), source.channels * int(self.sizes.prod(axis=1).sum())
        if padded > max(ROOM, 8 * needed):
            odd = source.where(int((self.sizes.max(axis=1) / self.sizes.min(axis=1)).argmax()))
            raise InputError(f"the images of {label} differ so much in shape that room for all of them would take "
                             f"{padded / 2**30:.0f} GiB, {padded // needed} times what they fill; the most elongated "
                             f"is {odd}: cut such images into scenes")

    def rows(self, first: int) -> Iterator[tuple[int, np.ndarray]]:
        """Each row from `first` on, and its pixels, uint8 (C, H, W), padded. At the end raises UnreadableImages."""
        numbers, brightest = range(first, self.shape[0]), 0
        decoded = ahead(self._pixels, numbers, self.workers, 64)
        for row, pixels in zip(numbers, progress(decoded, f"decoding {self.label}", len(numbers)), strict=True):
            brightest = max(brightest, int(pixels.max()))
            yield row, pixels
        if self.bad:
            raise UnreadableImages(self.bad, self.shape[0])
        if first == 0 and brightest < 64:
            warn(f"no pixel of {self.label} is brighter than {brightest} of 255: if these are 16-bit images of a "
                 "sensor, whose digital numbers fill a part of the range, stretch all of them alike to 8 bits first")

    def _pixels(self, row: int) -> np.ndarray:
        padded = np.zeros(self.shape[1:], np.uint8)
        found = None if row in self.bad else _attempt(lambda: self.source.read(row), self.bad, self.source, row)
        if found is not None:
            height, width = self.sizes[row].tolist()
            if found.shape[:2] != (height, width):
                image = Image.fromarray(found[..., 0] if self.source.channels == 1 else found)
                found = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
                found = found.reshape(height, width, self.source.channels)
            padded[:, :height, :width] = found.transpose(2, 0, 1)
        return padded


def _attempt(read: Callable[[], Any], bad: dict[int, str], source: ImageSource, index: int) -> Any:
    """What `read` returns; None, with a line in `bad`, for an image that cannot be read."""
    try:
        return read()
    except InputError:
        raise
    except Exception as error:  # Pillow, GDAL and zlib raise many kinds for a damaged file
        reason = " ".join((error.strerror if isinstance(error, OSError) and error.strerror else str(error)).split())
        bad[index] = f"{source.where(index)} ({reason[:200] or type(error).__name__})"
        return None


def unreadable(source: ImageSource, label: str, workers: int = 4) -> dict[int, str]:
    """The images of a source that cannot be read: row -> name and reason."""
    bad: dict[int, str] = {}
    read = ahead(lambda row: _attempt(lambda: source.read(row), bad, source, row), range(len(source)), workers, 64)
    for _ in progress(read, f"reading {label}", len(source)):
        pass
    return bad


def ahead(function: Callable[[Any], Any], items: Iterable[Any], workers: int, count: int) -> Iterator[Any]:
    """function(item) for each item, in their order, made by threads that are at most `count` items ahead."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; no one waits for what the device has still to do, as with pageable memory."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class ImageLoader:
    """Batches of a store on a device: from a resident copy where it fits, else fetched and copied ahead by a thread."""

    def __init__(self, store: ImageStore, device: torch.device, resident: bool | None = None) -> None:
        """resident: keep the whole store on the device; None decides for CUDA by a third of what is free."""
        self.store, self.device = store, device
        self.sizes = torch.from_numpy(store.sizes)
        if resident is None:
            resident = (device.type == "cuda"
                        and store.images.nbytes < torch.cuda.mem_get_info(device)[0] / 3)
        self.images = torch.from_numpy(np.array(store.images)).to(device) if resident else None
        # Copies have a stream of their own, so that they run beside the network.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" and not resident else None

    def batches(self, rows: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each (B,) int64 CPU tensor of rows: images uint8 (B, C, H, W) on the device, sizes (B, 2)."""
        if self.images is not None:
            for batch in rows:
                yield self.images[to_device(batch, self.device)], self.sizes[batch]
            return
        for images, sizes, copied in ahead(self._fetch, rows, workers=1, count=2):
            if copied is not None:
                torch.cuda.current_stream(self.device).wait_event(copied)
                images.record_stream(torch.cuda.current_stream(self.device))
            yield images, sizes

    def _fetch(self, batch: Tensor) -> tuple[Tensor, Tensor, torch.cuda.Event | None]:
        images = torch.from_numpy(self.store.images[batch.numpy()])
        if self._stream is None:
            return images.to(self.device), self.sizes[batch], None
        with torch.cuda.stream(self._stream):
            moved = to_device(images, self.device)
            return moved, self.sizes[batch], self._stream.record_event()


# ---------------------------------------------------------------- transforms


def axis_matrix(start: Tensor, extent: Tensor, length: Tensor, first: Tensor, count: int, width: int,
                device: torch.device = CPU) -> Tensor:
    """Rows of the matrix by which Pillow's bilinear filter resizes one axis.

    Args:
        start, extent: (B,) the source interval [start, start + extent), whole pixels; pixels outside it
            are not looked at, as after a crop. length: (B,) pixels it is resized to. first: (B,)
            the first of the `count` output pixels wanted. width: columns, at least start + extent.
    Returns:
        float32 (B, count, width) on `device`; each row sums to 1.
    """
    # Four short vectors travel, not the matrices: those are as large as the images.
    start, extent, length, first = (to_device(value.float(), device)[:, None, None]
                                    for value in (start, extent, length, first))
    step = extent / length
    reach = step.clamp(min=1.0)  # a step down averages over the step, a step up interpolates
    centre = start + (first + torch.arange(count, device=device)[:, None] + 0.5) * step
    pixel = torch.arange(width, device=device)
    weight = (1 - (pixel + 0.5 - centre).abs() / reach).clamp(min=0)
    weight = weight * ((pixel >= start) & (pixel < start + extent))
    # Rows past an image that is smaller than others of its batch are empty and never used: 0, not NaN.
    return weight / weight.sum(dim=-1, keepdim=True).clamp(min=1e-12)


def random_crops(heights: Tensor, widths: Tensor, generator: torch.Generator
                 ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes with the distribution of torchvision's RandomResizedCrop (scale 0.08..1, ratio 3/4..4/3).

    Args:
        heights, widths: (B,) int64 image sizes. generator: of the CPU.
    Returns:
        top, left, height, width, each (B,) int64.
    """
    draws = torch.rand(len(heights), 12, 2, generator=generator, dtype=torch.float64)
    area = (heights * widths)[:, None] * (0.08 + 0.92 * draws[:, :10, 0])
    bound = math.log(4 / 3)
    ratio = torch.exp((2 * draws[:, :10, 1] - 1) * bound)
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
    top = torch.where(found, (draws[:, 10, 0] * (heights - height + 1)).long(), (heights - height) // 2)
    left = torch.where(found, (draws[:, 10, 1] * (widths - width + 1)).long(), (widths - width) // 2)
    return top, left, height, width


class Transform:
    """uint8 batches of a store -> normalised float32 (B, 3, S, S), channels last, on their device."""

    def __init__(self, image_size: int, side: int) -> None:
        self.image_size, self.side = image_size, side
        self._statistics: dict[torch.device, Tensor] = {}  # of ImageNet, where they were needed

    def _scaled(self, sizes: Tensor) -> Tensor:
        """(B, 2) sizes after the first resize, see `scaled_size`; stored images that have had theirs keep it."""
        return self.side * sizes // sizes.min(dim=1, keepdim=True).values

    def test(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Resize(side), CenterCrop(image_size), normalise, as torchvision does on Pillow images."""
        sizes = self._shared(sizes)
        scaled = self._scaled(sizes)
        # Python's round, as torchvision: halves go to the even neighbour.
        first = torch.round((scaled - self.image_size).double() / 2).long()
        zero = torch.zeros(len(sizes), dtype=torch.long)
        matrices = [axis_matrix(zero, sizes[:, axis], scaled[:, axis], first[:, axis], self.image_size,
                                images.shape[2 + axis], images.device) for axis in (0, 1)]
        return self._apply(images, *matrices)

    def draw(self, sizes: Tensor, generator: torch.Generator) -> Tensor:
        """What `train` takes of images of these sizes (B, 2): top, left, height, width, flipped; int64 (B, 5)."""
        boxes = random_crops(*self._scaled(sizes).unbind(1), generator)
        flipped = torch.rand(len(sizes), generator=generator) < 0.5
        return torch.stack((*boxes, flipped.long()), dim=1)

    def train(self, images: Tensor, sizes: Tensor, drawn: Tensor) -> Tensor:
        """Resize(side), RandomResizedCrop(image_size), RandomHorizontalFlip, normalise; with what `draw` gave."""
        scaled = self._scaled(sizes)
        top, left, height, width, flipped = to_device(drawn, images.device).unbind(1)
        matrices = []
        for axis, (start, extent) in enumerate(((top, height), (left, width))):
            longest = int(scaled[:, axis].max())
            full = torch.full_like(start, self.image_size)
            crop = axis_matrix(start, extent, full, torch.zeros_like(start), self.image_size, longest,
                               images.device)
            if not torch.equal(scaled, sizes):
                shared = self._shared(torch.stack((sizes[:, axis], scaled[:, axis]), dim=1))
                zero = torch.zeros(len(shared), dtype=torch.long)
                crop = crop @ axis_matrix(zero, shared[:, 0], shared[:, 1], zero, longest,
                                          images.shape[2 + axis], images.device)
            elif longest < images.shape[2 + axis]:
                crop = torch.nn.functional.pad(crop, (0, images.shape[2 + axis] - longest))
            matrices.append(crop)
        matrices[1] = torch.where(flipped[:, None, None] > 0, matrices[1].flip(1), matrices[1])
        return self._apply(images, *matrices)

    @staticmethod
    def _shared(rows: Tensor) -> Tensor:
        """One row in place of B equal ones: the matrices then broadcast."""
        return rows[:1] if bool((rows == rows[:1]).all()) else rows

    def _apply(self, images: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
        pixels = images.float()
        batch, channels, height, width = pixels.shape
        pixels = pixels.reshape(batch, channels * height, width) @ horizontal.transpose(1, 2)
        pixels = vertical[:, None] @ pixels.reshape(batch, channels, height, self.image_size)
        if images.device not in self._statistics:
            statistics = torch.tensor((IMAGENET_MEAN, IMAGENET_STD)) * 255
            self._statistics[images.device] = statistics[:, :, None, None].to(images.device)
        mean, std = self._statistics[images.device]
        # A panchromatic image has one channel: broadcasting repeats it for the ImageNet network.
        return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)


def training_views(loader: ImageLoader, transform: Transform, batches: Sequence[Tensor], first: int,
                   generator: torch.Generator) -> Iterator[Tensor]:
    """What the hash network sees of each batch of rows, from number `first` on: views of `Transform.train`.

    Args:
        batches: int64 (B,), all those of the epoch. generator: draws for each of them in turn, also for those before
            `first`, and for all images of a batch, also where a rank gets the views of its share alone.
    """
    shares = [Share.of(len(batch)).part for batch in batches]
    images = loader.batches(batch[part] for batch, part in zip(batches[first:], shares[first:], strict=True))
    for number, (batch, part) in enumerate(zip(batches, shares, strict=True)):
        drawn = transform.draw(loader.sizes[batch], generator)
        if number >= first:
            pixels, sizes = next(images)
            yield transform.train(pixels, sizes, drawn[part])
