"""Where pixels come from: an image of a folder, zip or HDF5 file at a time, as uint8.

An ImageSource is one view of every scene (Sentinel-2, VHR, MS or PAN). The file of a data set says
which sources it has; store.py decodes each of them once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.containers import Folder, Zip
from datasets.pixels import decode_rgb, header_size
from utils import sha256_of


class ImageSource:
    """One view of N scenes.

    channels: 1 or 3. value_range: what becomes black and white, where the user said so (bands.py).
    """

    channels = 3
    value_range: str | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, index: int) -> np.ndarray:
        """The pixels of image `index`, uint8 (H, W, channels)."""
        raise NotImplementedError

    def size(self, index: int) -> tuple[int, int]:
        """Its (height, width)."""
        raise NotImplementedError

    def where(self, index: int) -> str:
        """What messages call it."""
        raise NotImplementedError

    def subset(self, rows: np.ndarray) -> ImageSource:
        """The same view of these scenes alone."""
        raise NotImplementedError

    def checksums(self, cache_dir: Path | None) -> np.ndarray:
        """A checksum of all bytes that each scene is made of.

        Args:
            cache_dir: where checksums are remembered; None reads everything.
        Returns:
            int64 (N,).
        """
        raise NotImplementedError

    def stamp(self, cache_dir: Path | None) -> str:
        """Cached pixels and features hang on it: a hash of content, order and way of reading.

        Names and places are no part of it, so a zip and what was unpacked from it have one stamp.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Decoder:
    """How the bytes of a file become an image.

    read: bytes -> uint8 (H, W, channels). channels: 1 or 3. size: (height, width) of all images, or
    what looks it up in the bytes of one. key: must change with the pixels that `read` gives for the
    same bytes, because cached pixels hang on it; by default the name of `read`.
    """

    read: Callable[[bytes], np.ndarray]
    channels: int = 3
    size: tuple[int, int] | Callable[[bytes], tuple[int, int]] = header_size
    key: str = ""


RGB = Decoder(decode_rgb)


class ImageFiles(ImageSource):
    """Images in a folder or zip, in the order of `files` (paths relative to the container)."""

    def __init__(self, container: Folder | Zip, files: Sequence[str], decoder: Decoder = RGB
                 ) -> None:
        self.container, self.files, self.decoder = container, list(files), decoder
        self.channels = decoder.channels

    def checksums(self, cache_dir: Path | None) -> np.ndarray:
        return self.container.checksums(self.files, cache_dir)

    def stamp(self, cache_dir: Path | None) -> str:
        sizes = np.array([self.container.files[name] for name in self.files], dtype=np.int64)
        return sha256_of(self.decoder.key or self.decoder.read.__name__, sizes,
                         self.checksums(cache_dir))

    def __len__(self) -> int:
        return len(self.files)

    def where(self, index: int) -> str:
        return f"{self.container.root}: {self.files[index]}"

    def read(self, index: int) -> np.ndarray:
        pixels = self.decoder.read(self.container.read_bytes(self.files[index]))
        announced = self.decoder.size
        if isinstance(announced, tuple) and pixels.shape[:2] != announced:
            raise ValueError(f"{pixels.shape[1]} x {pixels.shape[0]} pixels, expected "
                             f"{announced[1]} x {announced[0]}, as the data set announces")
        return pixels

    def size(self, index: int) -> tuple[int, int]:
        if isinstance(self.decoder.size, tuple):
            return self.decoder.size
        return self.decoder.size(self.container.read_bytes(self.files[index]))

    def subset(self, rows: np.ndarray) -> ImageFiles:
        part = ImageFiles(self.container, [self.files[row] for row in rows], self.decoder)
        part.value_range = self.value_range
        return part
