"""Images in an HDF5 file as MATLAB 7.3 writes it, read one at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.checksums import file_checksums, status_of
from datasets.containers import MOST_BYTES
from datasets.pixels import check_shape
from datasets.rasters import require
from datasets.sources import ImageSource
from utils import InputError, sha256_of


@dataclass(frozen=True)
class Hdf5Array:
    """An array (N, bands, W, H), uint8, of images in a file: `shown` are the bands to be seen."""

    key: str
    bands: int
    shown: Sequence[int]


@contextlib.contextmanager
def open_hdf5(path: Path, expected: str) -> Iterator[Any]:
    """The file, open to read.

    Args:
        path: of the file.
        expected: what it is said not to be when it, or what the body takes from it, is damaged.
    Raises:
        InputError: as the body does, or it is damaged.
    """
    h5py = require("h5py", path.name)
    try:
        # A chunk may hold many images: a large chunk cache keeps it from being unpacked for each.
        with h5py.File(path, "r", rdcc_nbytes=64 << 20) as file:
            yield file
    except InputError:
        raise
    except Exception as error:  # h5py raises many kinds for a damaged file
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is not {expected} ({reason})") from None


def array_of(file: Any, key: str) -> Any:
    """The array `key`, which lies in this very file. Raises InputError where it does not."""
    h5py = require("h5py", "HDF5")
    links = file.id.links  # h5py's own `in` and `get` would follow a link to see where it leads
    if not links.exists(key.encode()):
        held = ", ".join(map(str, file)) or "nothing"
        raise InputError(f"{file.filename} has no {key}; it holds {held}")
    hard = links.get_info(key.encode()).type == h5py.h5l.TYPE_HARD
    data = file[key] if hard else None
    if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
        raise InputError(f"{file.filename}: {key} is a group, or lies in another file, "
                         "expected an array")
    return data


class Hdf5Images(ImageSource):
    """Images of an HDF5 file. MATLAB stores columns first: the last two axes are swapped."""

    def __init__(self, path: Path, array: Hdf5Array, rows: np.ndarray, expected: str) -> None:
        """Look at the array without reading it.

        Args:
            path: of the file.
            array: which of its arrays.
            rows: int64 (N,), of the images wanted.
            expected: as for open_hdf5.
        Raises:
            InputError: the array is missing, of another shape, or too large to be unpacked.
        """
        self.path, self.array, self.rows, self.expected = path, array, rows, expected
        self.channels = len(array.shown)
        self._checksum: np.ndarray | None = None
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open_hdf5(path, expected))
            self.data = array_of(file, array.key)
            self.file = stack.pop_all()  # open as long as this object lives
        self._check()

    def _check(self) -> None:
        data, key, bands = self.data, self.array.key, self.array.bands
        shape = data.shape or ()
        if len(shape) != 4 or shape[1] != bands or data.dtype != np.uint8:
            raise InputError(f"{self.path}: {key} is {data.dtype} {data.shape}, expected uint8 "
                             f"(N, {bands}, H, W)")
        try:
            check_shape(*shape[2:])
            chunk = int(np.prod(data.chunks or (1,), dtype=object))  # unpacked as a whole
            if chunk > MOST_BYTES:
                raise ValueError(f"{chunk:,} bytes, more than any image needs")
        except ValueError as error:
            raise InputError(f"{self.path}: {key} holds images of {error}") from None
        if len(self.rows) and self.rows.max() >= len(data):
            raise InputError(f"{self.path}: {key} holds {len(data):,} images, expected at least "
                             f"{self.rows.max() + 1:,}, as many as the other arrays")

    def checksums(self, cache_dir: Path | None) -> np.ndarray:
        """Of the whole file, for each of its images."""
        if self._checksum is None:
            status = {self.path.name: status_of(self.path.stat())}
            self._checksum = file_checksums(self.path.parent, status, cache_dir)
        return np.repeat(self._checksum, len(self.rows))

    def stamp(self, cache_dir: Path | None) -> str:
        return sha256_of(self.array.key, np.array(self.array.shown), self.path.stat().st_size,
                         self.checksums(cache_dir), self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, index: int) -> str:
        return f"{self.path}: {self.array.key}[{self.rows[index]}]"

    def read(self, index: int) -> np.ndarray:
        pixels = self.data[int(self.rows[index])].transpose(2, 1, 0)
        return np.ascontiguousarray(pixels[..., list(self.array.shown)])

    def size(self, index: int) -> tuple[int, int]:
        return self.data.shape[3], self.data.shape[2]

    def subset(self, rows: np.ndarray) -> Hdf5Images:
        return Hdf5Images(self.path, self.array, self.rows[rows], self.expected)
