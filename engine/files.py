"""Files that appear whole or not at all, and locks."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from utils import InputError, warn

at_end = contextlib.ExitStack()  # what a script holds until it ends: locks, handlers of signals

ADVICE = {errno.ENOSPC: "free some space", errno.EDQUOT: "free some of your quota",
          errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
          errno.EACCES: "ask for the right to, or name another place",
          errno.EROFS: "name another place"}
WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


def sentence_of(error: OSError) -> str:
    """What the system said, which file it is about, and what to do."""
    file = f"{error.filename}: " if error.filename else ""
    reason = " ".join((error.strerror or str(error)).split())
    advice = f" ({ADVICE[error.errno]})" if error.errno in ADVICE else ""
    return f"{file}{reason[:1].lower()}{reason[1:]}{advice}"


def check_writable(folder: Path, flag: str) -> None:
    """Make `folder` and see that a file can be written there.

    Raises:
        InputError: it cannot; the message names `flag`.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{flag} {folder} is a file, expected a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"?")
    except OSError as error:
        raise InputError(f"{flag} {folder} cannot be written: {sentence_of(error)}") from None


@contextlib.contextmanager
def lock(path: Path, taken: str, patient: bool = False) -> Iterator[None]:
    """Hold the file `path` alone; the system lets it go when the process ends, however it ends.

    Args:
        path: of the lock file.
        taken: what to say when another process holds it.
        patient: wait then, instead of raising InputError.
    """
    held = filelock.FileLock(path)
    try:
        try:
            held.acquire(timeout=0)
        except filelock.Timeout:
            with contextlib.suppress(OSError):
                holder = path.read_text().strip()  # some versions of filelock empty it as they look
                taken += f" ({holder})" if holder else ""
            if not patient:
                raise InputError(taken) from None
            print(taken)
            held.acquire()
        with contextlib.suppress(OSError):  # for the message above; a full disk does not matter
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in WITHOUT_LOCKS:
            raise
        warn(f"{path.parent} lies on a file system without locks: see yourself that no two runs "
             "work in it")
    try:
        yield
    finally:
        held.release()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says against writing `path` into an InputError that names it."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename2 = None
        raise InputError(f"{path} could not be written: {sentence_of(error)}; what was saved "
                         "before is whole") from None


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[io.BufferedWriter]:
    """Open a binary file that appears under `path` only when it is whole.

    Written aside in the same folder, flushed, synced, renamed, with the mode a plain open() gives.
    When the body raises, what stood at `path` before stays as it was. A link stays a link: what it
    points to is replaced.

    Raises:
        InputError: the system refuses: a full disk, a folder that is closed to us.
    """
    with writing(path):
        path = Path(os.path.realpath(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.",
                                             suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(aside, 0o666 & ~umask)
            rename(Path(aside), path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(aside)
            raise


def rename(aside: Path, path: Path) -> None:
    """Put a whole and synced file in the place of `path`, also if power fails now."""
    os.replace(aside, path)
    if os.name == "posix":  # elsewhere folders cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    with atomic_file(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())
