"""Rows that are appended to a .npy file, and mapped when they are read."""

from __future__ import annotations

import io
import os
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from engine.files import atomic_file, writing


class GrowingArray:
    """A .npy file (N, W) that grows; N stands in the database beside it, with a checksum.

    Rows are written and synced before they are counted, so a killed process leaves at most rows
    that nobody counts, and the next one writes over them. numpy.load reads the file, too, at any
    moment.
    """

    def __init__(self, path: Path, width: int, dtype: type) -> None:
        """path: of the file. width: W. dtype: of the file."""
        self.path, self.width, self.dtype = path, width, np.dtype(dtype)
        self._header = len(self._header_for(0))

    def _header_for(self, count: int) -> bytes:
        """numpy leaves room for any number of rows, so that the length stays the same."""
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {
            "descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False,
            "shape": (count, self.width)})
        return header.getvalue()

    def append(self, count: int, rows: np.ndarray) -> None:
        """Write rows (n, W) behind the first `count` ones. Raises InputError: disk full."""
        data = np.ascontiguousarray(rows, self.dtype).tobytes()
        if not self.path.exists():
            with atomic_file(self.path) as file:
                file.write(self._header_for(0))
        with writing(self.path), open(self.path, "r+b") as file:
            self._tell(file, count)  # a killed process may have told of rows that now go
            file.seek(self._header + count * self.width * self.dtype.itemsize)
            file.write(data)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())  # the rows are there before the header tells of them
            self._tell(file, count + len(rows))
            os.fsync(file.fileno())

    def _tell(self, file: BinaryIO, count: int) -> None:
        file.seek(0)
        file.write(self._header_for(count))
        file.flush()

    def load(self, count: int) -> np.ndarray | None:
        """The first `count` rows, memory-mapped read-only; None where the file has fewer."""
        if count == 0:
            return np.zeros((0, self.width), self.dtype)
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < self._header + count * self.width * self.dtype.itemsize:
            return None
        return np.memmap(self.path, self.dtype, "r", self._header, (count, self.width))

    def checksum(self, rows: np.ndarray, before: int = 0) -> int:
        """CRC-32 of rows (n, W) that follow others of checksum `before`."""
        return zlib.crc32(np.ascontiguousarray(rows, self.dtype).data, before)
