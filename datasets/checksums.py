"""CRC-32 of whole files: read once, in threads, and remembered for as long as they stay the same.

A file is the same while its size, its times and its inode are: a copy that was given the old size
and date back still has another inode, or another time of change, which nobody can set.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from engine.files import atomic_file, lock
from utils import InputError, progress, sha256_of, warn

Status = tuple[int, int, int, int]  # size, time of the content, time of any change, inode
CHUNK = 1 << 20  # bytes in memory, a thread
THREADS = 8
TOGETHER = 64  # small files that a thread takes at once
# Seconds. A file that changed so shortly before it was looked at may change again without a trace:
# clocks of file systems are coarse. Its checksum is not remembered.
SETTLED = 2.0
NO_CHECKSUM = -1  # of a file that cannot be read, which decoding will name


def status_of(found: os.stat_result) -> Status:
    """What tells a file from an earlier one of its name."""
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def file_checksums(root: Path, files: Mapping[str, Status], cache_dir: Path | None) -> np.ndarray:
    """CRC-32 of the content of files.

    Args:
        root: the folder that they lie in.
        files: N relative paths, and the status of each before it is read.
        cache_dir: where checksums are remembered, one file a root; None reads all files.
    Returns:
        int64 (N,); NO_CHECKSUM where a file cannot be read.
    """
    memory = None if cache_dir is None else _memory_of(root, cache_dir)
    known = _recall(memory, files)
    if len(known) < len(files):
        with _alone(memory, root):
            if memory is not None:
                known = _recall(memory, files)  # another process may have been quicker
            started = time.time_ns()
            missing = [name for name in files if name not in known]
            found = _read_all(root, missing, sum(files[name][0] for name in missing))
            known |= found
            settled = [name for name, checksum in found.items() if checksum != NO_CHECKSUM
                       and files[name][2] < started - SETTLED * 1e9]
            if memory is not None and settled:
                _remember(memory, root, {name: (*files[name], found[name]) for name in settled})
    return np.array([known[name] for name in files], dtype=np.int64)


# ---------------------------------------------------------------- reading


def _read_all(root: Path, names: list[str], size: int) -> dict[str, int]:
    """The checksum of each of the files, which have `size` bytes in all."""
    blocks = [names[first:first + TOGETHER] for first in range(0, len(names), TOGETHER)]
    found: dict[str, int] = {}
    with ThreadPoolExecutor(THREADS) as pool, progress(
            None, f"checksums of {root.name}", size, in_bytes=True) as bar:

        def read(block: list[str]) -> list[int]:
            return [_checksum(root / name, bar) for name in block]

        for block, checksums in zip(blocks, pool.map(read, blocks), strict=True):
            found.update(zip(block, checksums, strict=True))
    return found


def _checksum(path: Path, bar: tqdm) -> int:
    checksum = 0
    try:
        with open(path, "rb", buffering=0) as file:
            while chunk := file.read(CHUNK):
                checksum = zlib.crc32(chunk, checksum)
                bar.update(len(chunk))
    except OSError:
        return NO_CHECKSUM
    return checksum


# ---------------------------------------------------------------- memory


def _memory_of(root: Path, cache_dir: Path) -> Path:
    return cache_dir / "checksums" / f"{sha256_of(os.path.realpath(root))[:16]}.json"


def _entries(memory: Path | None) -> dict[str, list]:
    """What the file says; nothing where it is not there or damaged: it is made again."""
    try:
        entries = json.loads(memory.read_bytes())["files"] if memory is not None else {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}
    return entries if isinstance(entries, dict) else {}


def _recall(memory: Path | None, files: Mapping[str, Status]) -> dict[str, int]:
    """The checksums of those files that have not changed since."""
    known = {}
    entries = _entries(memory)
    for name, status in files.items() if entries else ():
        entry = entries.get(name)
        if isinstance(entry, list) and len(entry) == 5 and tuple(entry[:4]) == status:
            checksum = entry[4]
            if type(checksum) is int and 0 <= checksum < 1 << 32:
                known[name] = checksum
    return known


def _remember(memory: Path, root: Path, found: Mapping[str, Iterable[int]]) -> None:
    """Add to the file; what it says of files that were not asked for stays."""
    content = {"root": str(root), "files": {**_entries(memory), **found}}
    try:
        with atomic_file(memory) as file:
            file.write(json.dumps(content).encode())
    except InputError as error:
        warn(f"all files of {root} are read again by the next run, for their checksums, unless "
             f"another --cache_dir is named: {error}")


def _alone(memory: Path | None, root: Path) -> AbstractContextManager[None]:
    """Hold the lock of the memory; another process that reads the same files is waited for."""
    if memory is not None:
        with suppress(OSError):
            memory.parent.mkdir(parents=True, exist_ok=True)
    if memory is None or not (memory.parent.is_dir() and os.access(memory.parent, os.W_OK)):
        return nullcontext()  # `_remember` says that it cannot be written
    return lock(memory.with_name(f".{memory.name}.lock"),
                f"another process reads {root}: waiting for its checksums", patient=True)
