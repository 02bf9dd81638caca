"""Images decoded once into a uint8 store."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets.sources import ImageSource
from datasets.transforms import scaled_size
from engine.cache import cached_array, open_cached
from engine.preprocessing import Preprocessing
from utils import InputError, progress, sha256_of, warn_once

STORE_VERSION = 3  # another one makes all cached images useless
ROOM = 1 << 30  # bytes of a store that are no matter, however little of them its images fill
AHEAD = 64  # images decoded before they are asked for
# Images are black where half of them have hardly a pixel brighter than DARK of 255, and white where
# half have hardly one darker than 255 - DARK; SAMPLE of them are looked at.
FLAT = ("images of 16 bits, whose numbers fill a part of the range, can be stretched, all alike, "
        "for folder and pairs by --range1 2%,98%; masks can be left out by --exclude",
        "they can be left out by --exclude")
DARK, SAMPLE = 40, 500
MOST_REASON = 400  # characters of why an image cannot be read


class ImageStore:
    """All images of one source as uint8, padded to a common shape.

    Images larger than the first resize are stored resized (by Pillow, exactly as torchvision
    would); smaller ones are kept as they are and enlarged on the device, which is 16 times less to
    store and move for EuroSAT.
    """

    def __init__(self, images: np.ndarray, sizes: np.ndarray, key: str) -> None:
        """What `open` found.

        Args:
            images: (N, C, H, W) uint8, an array or a memory map.
            sizes: (N, 2) int64, the valid height and width of each.
            key: changes with the content.
        """
        self.images, self.sizes, self.key = images, sizes, key

    def __len__(self) -> int:
        return len(self.images)

    @staticmethod
    def open(source: ImageSource, label: str, views: Preprocessing, cache_dir: Path | None,
             workers: int = 4) -> ImageStore:
        """Decode every image of `source`, or map the store that an earlier run decoded.

        Args:
            source: N images.
            label: for the file name and the progress bar.
            views: says how large images are resized.
            cache_dir: where stores lie; None keeps this one in memory.
            workers: threads that decode.
        Raises:
            UnreadableImages: all images that cannot be read.
            InputError: images of very different shapes.
        """
        key = sha256_of(STORE_VERSION, source.stamp(cache_dir), views.side, views.interpolation,
                        views.squash)[:16]
        path = None if cache_dir is None else cache_dir / "images" / f"{label}-{key}.npy"
        decoding = _Decoding(source, label, views, workers)
        sizes = np.array(_made(path and path.with_suffix(".sizes.npy"), (len(source), 2), np.int64,
                               decoding.sizes_from))
        _check_room(source, label, sizes)
        decoding.sizes, decoding.largest = sizes, sizes.max(axis=0).tolist()
        shape = (len(source), source.channels, *decoding.largest)
        store = ImageStore(_made(path, shape, np.uint8, decoding.images_from), sizes, key)
        kept = _brightness_file(source, label, cache_dir)
        warn_if_flat(_made(kept, (len(store.sample()), 2), np.uint8, store.brightness_from), label,
                     source.value_range)
        return store

    def sample(self) -> np.ndarray:
        """The rows of up to SAMPLE images, evenly spaced; int64."""
        return np.unique(np.linspace(0, len(self) - 1, SAMPLE).round().astype(np.int64))

    def brightness_from(self, first: int) -> Iterator[np.ndarray]:
        """Of each image of the sample from `first` on, percentiles 1 and 99: uint8 (1, 2)."""
        for row in self.sample()[first:]:
            height, width = self.sizes[row]
            pixels = self.images[row][:, :height, :width]  # without what pads them
            yield np.percentile(pixels, (1, 99), method="lower")[None]


def _brightness_file(source: ImageSource, label: str, cache_dir: Path | None) -> Path | None:
    """Where the verdict on a source is kept: of all image sizes, also when only features are."""
    if cache_dir is None:
        return None
    key = sha256_of(STORE_VERSION, source.stamp(cache_dir))[:16]
    return cache_dir / "brightness" / f"{label}-{key}.npy"


def repeat_warning(source: ImageSource, label: str, cache_dir: Path) -> None:
    """Warn again of images whose features alone are used; an earlier run has looked at them."""
    path = _brightness_file(source, label, cache_dir)
    if path.exists():
        warn_if_flat(open_cached(path, min(len(source), SAMPLE)), label, source.value_range)


def warn_if_flat(brightness: np.ndarray, label: str, value_range: str | None,
                 advice: tuple[str, str] = FLAT) -> None:
    """A warning where half of the images are nearly black, or nearly white.

    Args:
        brightness: uint8 (n, 2), percentiles 1 and 99 of each image's pixels.
        label: what the warning calls the images.
        value_range: what became black and white, where the user said so.
        advice: on dark images, and on bright ones.
    """
    low, high = np.median(brightness, axis=0).astype(int)
    if high < DARK:
        found, what_to_do = f"brighter than {high}", advice[0]
    elif low > 255 - DARK:
        found, what_to_do = f"darker than {low}", advice[1]
    else:
        return
    if value_range:
        what_to_do = f"the range {value_range} leaves them so; 2%,98% is drawn from the images"
    warn_once(f"of {len(brightness):,} images of {label} that were looked at, at least half have "
              f"almost no pixel (1 %) {found} of 255: {what_to_do}")


def _made(path: Path | None, shape: tuple[int, ...], dtype: type,
          rows_from: Callable[[int], Iterable[np.ndarray]]) -> np.ndarray:
    """`cached_array`, or the same in memory where there is no path."""
    if path is not None:
        return cached_array(path, shape, dtype, rows_from)
    array, done = np.zeros(shape, dtype), 0
    for rows in rows_from(0):
        array[done:done + len(rows)] = rows
        done += len(rows)
    return array


def _check_room(source: ImageSource, label: str, sizes: np.ndarray) -> None:
    """Raise InputError when padding would take far more room than the images."""
    padded = len(sizes) * source.channels * math.prod(sizes.max(axis=0).tolist())
    filled = source.channels * int(sizes.prod(axis=1).sum())
    if padded > max(ROOM, 8 * filled):
        odd = source.where(int((sizes.max(axis=1) / sizes.min(axis=1)).argmax()))
        raise InputError(f"the images of {label} differ so much in shape that room for all of them "
                         f"would take {padded / 2**30:.0f} GiB, {padded // filled} times what they "
                         f"fill; the most elongated is {odd}: cut such images into scenes")


class _Decoding:
    """The way of the images of a source into a store: first their sizes, then their pixels."""

    def __init__(self, source: ImageSource, label: str, views: Preprocessing, workers: int
                 ) -> None:
        self.source, self.label, self.views, self.workers = source, label, views, workers
        # Known by the time of images_from:
        self.sizes, self.largest = np.zeros((0, 2), np.int64), [0, 0]

    def sizes_from(self, first: int) -> Iterator[np.ndarray]:
        """The size of each image in the store, (1, 2), from row `first` on."""
        for size in self._in_order(self._size, first, f"looking at {self.label}"):
            yield np.array([size])

    def images_from(self, first: int) -> Iterator[np.ndarray]:
        """Each image from row `first` on, padded: uint8 (1, C, H, W)."""
        for pixels in self._in_order(self._pixels, first, f"decoding {self.label}"):
            yield pixels[None]

    def _in_order(self, function: Callable[[int], Any], first: int, description: str
                  ) -> Iterator[Any]:
        """function(row) of the rows from `first` on. Raises UnreadableImages."""
        rows = range(first, len(self.source))
        try:
            yield from progress(ahead(function, rows, self.workers, AHEAD), description, len(rows))
        except InputError:
            raise
        except Exception:  # Pillow, GDAL and zlib raise many kinds for a damaged file
            bad = unreadable(self.source, self.label, self.workers)
            if not bad:
                raise
            raise UnreadableImages(bad, len(self.source)) from None

    def _size(self, row: int) -> tuple[int, int]:
        return stored_size(*self.source.size(row), self.views)

    def _pixels(self, row: int) -> np.ndarray:
        return padded(resized(self.source.read(row), self.views), self.largest)


def stored_size(height: int, width: int, views: Preprocessing) -> tuple[int, int]:
    """(height, width) of an image in a store: larger ones have had the network's first resize."""
    if min(height, width) > views.side:
        return scaled_size(height, width, views)
    return height, width


def resized(pixels: np.ndarray, views: Preprocessing) -> np.ndarray:
    """An image (H, W, C) as a store keeps it, of `stored_size`; uint8."""
    height, width = stored_size(*pixels.shape[:2], views)
    if pixels.shape[:2] == (height, width):
        return pixels
    channels = pixels.shape[2]
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    image = image.resize((width, height), Image.Resampling[views.interpolation.upper()])
    return np.asarray(image).reshape(height, width, channels)


def padded(pixels: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """An image (H, W, C) in the upper left of zeros (C, *size)."""
    height, width, channels = pixels.shape
    whole = np.zeros((channels, *size), np.uint8)
    whole[:, :height, :width] = pixels.transpose(2, 0, 1)
    return whole


# ---------------------------------------------------------------- images that cannot be read


class UnreadableImages(InputError):
    """Images that cannot be read: how many, which (twenty of them), and what can be done."""

    def __init__(self, bad: dict[int, str], total: int) -> None:
        """bad: row -> name and reason. total: images looked at."""
        super().__init__()
        self.lines, self.total = sorted(bad.values()), total

    def add(self, bad: dict[int, str], total: int) -> None:
        """Those of another source, too."""
        self.lines += sorted(bad.values())
        self.total += total

    def __str__(self) -> str:
        more = f" and {len(self.lines) - 20:,} more" if len(self.lines) > 20 else ""
        return (f"{len(self.lines):,} of {self.total:,} images cannot be read: "
                f"{'; '.join(self.lines[:20])}{more}; replace or remove them, or begin with "
                "--skip_bad, which goes on without them")


def unreadable_because(error: Exception) -> str:
    """On one line, why an image cannot be read; Pillow, GDAL and zlib raise many kinds."""
    text = str(getattr(error, "strerror", None) or error)
    return " ".join(text.split())[:MOST_REASON] or type(error).__name__


def unreadable(source: ImageSource, label: str, workers: int = 4) -> dict[int, str]:
    """The images of a source that cannot be read.

    Args:
        source: N images, all of which are read.
        label: for the progress bar.
        workers: threads that decode.
    Returns:
        row -> name and reason.
    """
    def reason(row: int) -> str | None:
        try:
            source.read(row)
        except InputError:
            raise
        except Exception as error:
            return unreadable_because(error)
        return None

    rows = range(len(source))
    reasons = progress(ahead(reason, rows, workers, AHEAD), f"reading {label}", len(rows))
    return {row: f"{source.where(row)} ({text})" for row, text in zip(rows, reasons, strict=True)
            if text is not None}


def ahead(function: Callable[[Any], Any], items: Iterable[Any], workers: int, count: int
          ) -> Iterator[Any]:
    """function(item) for each item, in order, made by threads at most `count` items ahead."""
    with ThreadPoolExecutor(workers) as pool:
        pending: deque = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > count:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
