"""A large .npy made row after row, which a killed run goes on with where it stopped.

The rows so far lie in `.<name>.part`; how many of them were safe on the disk stands in `.<name>.rows.part`, and is
written after them. A disk that is full is noticed as they are written, which a memory map would not survive.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from engine.distributed import rank
from engine.files import lock, rename, write_json, writing
from utils import InputError


@contextlib.contextmanager
def maker(path: Path) -> Iterator[bool]:
    """Whether `path` is still to be made, by this process alone: another one that makes it is waited for.

    Of the ranks of torchrun the first one goes in; the others come when it is done, or leave it out.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock(path.with_name(f".{path.name}.lock"), f"another process makes {path.name}: waiting for it",
                  patient=True):
            wanted = not path.exists()
            if wanted:
                _tidy(path, keep={place.name for place in _unfinished(path)})
            yield wanted
    else:
        _tidy(path)
        yield False


def _unfinished(path: Path) -> tuple[Path, Path]:
    """The rows so far, and the note that counts those that are safe."""
    return path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.rows.part")


def _tidy(path: Path, keep: Collection[str] = ()) -> None:
    """Remove what killed processes left beside `path`."""
    for stale in path.parent.glob(f".*{path.stem}.*part"):
        if stale.name not in keep:
            stale.unlink(missing_ok=True)


def finished(path: Path, rows: int) -> np.ndarray:
    """The array of so many rows that was finished at `path`, memory-mapped read-only.

    Raises:
        InputError: it is cut short, of other rows, or no array: a copy that broke off, a disk that failed.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if len(array) != rows:
            raise ValueError(f"{len(array):,} rows, expected {rows:,}")
    except Exception as error:  # numpy raises many kinds for a damaged file
        if rank() and isinstance(error, FileNotFoundError):
            raise InputError(f"rank {rank()} does not find {path}, which rank 0 has made: name a --cache_dir that all "
                             "machines share") from None
        raise InputError(f"{path} is damaged ({' '.join(str(error).split())[:120]}): remove it, and it is made "
                         "again") from None
    return array


class GrowingArray:
    """Rows are appended to it, and `finish` puts the file where it belongs. Use it inside `maker`."""

    SAVE_EVERY = 5.0  # seconds between two looks at the disk: what a kill can cost

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: type) -> None:
        """Begin, or go on with what an earlier process left: `done` of the shape[0] rows.

        path: of the finished file. Its name must say what is in it: what was left is taken as it is.
        """
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        self.part, self.note = _unfinished(path)
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {
            "descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape})
        self._header = header.getvalue()
        self._row = int(np.prod(shape[1:])) * self.dtype.itemsize
        self.done = self._rows_on_disk()
        with writing(path):
            self._file = open(self.part, "r+b" if self.done else "wb")  # noqa: SIM115 - lives as long as this object
            self._file.truncate(len(self._header) + self.done * self._row if self.done else 0)
            if not self.done:
                self._file.write(self._header)
            self._file.seek(0, os.SEEK_END)
        self._saved = time.monotonic()

    def _rows_on_disk(self) -> int:
        try:
            done = json.loads(self.note.read_text())["rows"]
            with open(self.part, "rb") as file:
                whole = file.read(len(self._header)) == self._header
            size = self.part.stat().st_size
        except (OSError, ValueError, TypeError, KeyError):
            return 0
        fits = type(done) is int and 0 <= done <= self.shape[0] and size >= len(self._header) + done * self._row
        return done if whole and fits else 0

    def append(self, rows: np.ndarray, safe: bool = True) -> None:
        """Add rows (n, *shape[1:]). safe: the next process may build upon them. Raises InputError: disk full."""
        with writing(self.path):
            self._file.write(np.ascontiguousarray(rows, self.dtype).data)
        self.done += len(rows)
        if safe and time.monotonic() - self._saved > self.SAVE_EVERY:
            self._sync()
            write_json(self.note, {"rows": self.done})
            self._saved = time.monotonic()

    def _sync(self) -> None:
        with writing(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def rows(self) -> np.ndarray:
        """All rows so far, memory-mapped read-only; for a look before `finish`."""
        self._sync()
        return np.memmap(self.part, self.dtype, "r", len(self._header), (self.done, *self.shape[1:]))

    def finish(self) -> None:
        """The array is whole: from now on it stands at `path`."""
        assert self.done == self.shape[0]
        self._sync()
        self._file.close()
        rename(self.part, self.path)
        self.note.unlink(missing_ok=True)

    def discard(self) -> None:
        """It came out wrong: nothing of it stays."""
        self.close()
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file; what was counted stays for the next attempt."""
        with contextlib.suppress(OSError):  # a full disk was reported already
            self._file.close()
