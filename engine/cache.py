"""Large .npy files made once: `cached_array` pulls the rows, a killed process goes on later.

The rows so far lie in `.<name>.part`. How many of them are safe on the disk stands in
`.<name>.rows.part`, which is written after them. Rows are written, not mapped: a full disk then
gives an error, where a memory map would end the process.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from engine.distributed import from_first, wait_for_all
from engine.files import check_writable, lock, rename, write_json, writing
from utils import InputError, rank


def cached_array(path: Path, shape: tuple[int, ...], dtype: type,
                 rows_from: Callable[[int], Iterable[np.ndarray]], together: bool = False
                 ) -> np.ndarray:
    """The array at `path`, which is made first where it is not there yet.

    Two processes that want the same file: one makes it, the other waits. Of the ranks of torchrun
    the first one writes.

    Args:
        path: of the finished file; its name must say what is in it, it is not compared.
        shape: (N, ...).
        dtype: of the file.
        rows_from: number of a row -> blocks (n, ...) of the rows from there on, in order.
        together: all ranks walk through `rows_from`, because they share its work.
    Returns:
        the array, memory-mapped read-only.
    Raises:
        InputError: what rows_from raises (the rows made so far are then thrown away), a full disk,
            or a file at `path` that is damaged.
    """
    if from_first(path.exists()):
        return open_cached(path, shape[0])
    with _alone(path) if rank() == 0 else contextlib.nullcontext():
        if from_first(not path.exists()):
            part = _Part(path, shape, dtype) if rank() == 0 else None
            first = from_first(part.done if part else None)
            if rank() == 0 or together:
                _pull(part, rows_from, first, shape[0])
    wait_for_all()
    return open_cached(path, shape[0])


def open_cached(path: Path, rows: int) -> np.ndarray:
    """The finished array of so many rows at `path`, memory-mapped read-only.

    Raises:
        InputError: it is cut short, of other rows, or no array: a copy that broke off, say.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if len(array) != rows:
            raise ValueError(f"{len(array):,} rows, expected {rows:,}")
    except FileNotFoundError:
        raise InputError(f"rank {rank()} does not find {path}, which rank 0 has made: name a "
                         "--cache_dir that all machines share") from None
    except Exception as error:  # numpy raises many kinds for a damaged file
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path} is damaged ({reason}): remove it, and it is made again") from None
    return array


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of `path`; another process that makes it is waited for."""
    check_writable(path.parent, "--cache_dir:")
    taken = f"another process makes {path.name}: waiting for it"
    with lock(path.with_name(f".{path.name}.lock"), taken, patient=True):
        yield


def _pull(part: _Part | None, rows_from: Callable[[int], Iterable[np.ndarray]], first: int,
          count: int) -> None:
    """Walk through what is missing; `part` is None on the ranks that do not write."""
    try:
        if part and first:
            print(f"{part.path.name} goes on after {first:,} of {count:,} rows")
        for rows in rows_from(first) if first < count else ():
            if part:
                part.append(rows)
        if part:
            part.finish()
    except InputError:
        if part:
            part.discard()
        raise
    finally:
        if part:
            part.close()


class _Part:
    """The unfinished file: rows are appended, `finish` puts it where it belongs."""

    SAVE_EVERY = 5.0  # seconds between two looks at the disk: what a kill can cost

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: type) -> None:
        """Begin, or go on with what an earlier process left: `done` of the shape[0] rows."""
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        self.part = path.with_name(f".{path.name}.part")
        self.note = path.with_name(f".{path.name}.rows.part")
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {
            "descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False,
            "shape": shape})
        self._header = header.getvalue()
        self._row = int(np.prod(shape[1:])) * self.dtype.itemsize  # bytes
        self.done = self._rows_on_disk()
        with writing(path):
            self._file = open(self.part, "r+b" if self.done else "wb")  # noqa: SIM115 - see close()
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
        fits = (type(done) is int and 0 <= done <= self.shape[0]
                and size >= len(self._header) + done * self._row)
        return done if whole and fits else 0

    def append(self, rows: np.ndarray) -> None:
        """Add rows (n, *shape[1:]). Raises InputError: disk full."""
        with writing(self.path):
            self._file.write(np.ascontiguousarray(rows, self.dtype).data)
        self.done += len(rows)
        if time.monotonic() - self._saved > self.SAVE_EVERY:
            self._sync()
            write_json(self.note, {"rows": self.done})
            self._saved = time.monotonic()

    def _sync(self) -> None:
        with writing(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def finish(self) -> None:
        """The array is whole: from now on it stands at `path`."""
        assert self.done == self.shape[0], f"{self.done} rows of {self.shape[0]}"
        self._sync()
        self._file.close()
        self._tidy(keep=self.part)  # before: once the file stands there, nobody tidies up
        rename(self.part, self.path)

    def discard(self) -> None:
        """It came out wrong: nothing of it stays."""
        self.close()
        self._tidy()

    def _tidy(self, keep: Path | None = None) -> None:
        """Remove part and note, and what a killed process left of writing the note."""
        # Of the note, which begins with a dot, what was written aside begins with two.
        for stale in self.path.parent.glob(f".*{self.path.name}.*part"):
            if stale != keep:
                stale.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file; what was counted stays for the next attempt."""
        with contextlib.suppress(OSError):  # a full disk was reported already
            self._file.close()
