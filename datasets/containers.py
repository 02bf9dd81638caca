"""Where files lie: folders and zips of images, listed once, read one file at a time."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from utils import InputError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
MOST_BYTES = 1 << 30  # more than any scene needs, and what a file made to fill the memory claims


def _is_image(name: str) -> bool:
    """By its suffix; what macOS and editors leave (`__MACOSX/._a.jpg`, `.a.jpg`) is none."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden


def _check_size(size: int) -> None:
    if size > MOST_BYTES:
        raise ValueError(f"{size:,} bytes, more than any image needs")


class Folder:
    """Image files below a folder.

    files: relative POSIX path -> (size, time of change). folders: relative paths of all folders.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, tuple[int, int]] = {}
        self.folders: set[str] = set()
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.is_dir():
                self.folders.add(name)
            elif _is_image(name) and path.is_file():
                status = path.stat()
                self.files[name] = (status.st_size, status.st_mtime_ns)

    def read_bytes(self, name: str) -> bytes:
        _check_size(self.files[name][0])
        return (self.root / name).read_bytes()


class Zip:
    """Image files inside a zip, read in place, so that no member can land outside its folder.

    files: path in the zip -> (size, checksum). folders: those that are members themselves.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, tuple[int, int]] = {}
        self.folders: set[str] = set()
        try:
            with zipfile.ZipFile(root) as archive:
                members = archive.infolist()
        except OSError:
            raise
        except Exception as error:  # zipfile raises many kinds for a damaged file
            raise InputError(f"{root} is not a whole zip file ({error}): download it again"
                             ) from None
        for member in members:
            if member.is_dir():
                self.folders.add(member.filename.rstrip("/"))
            elif _is_image(member.filename):
                if member.filename in self.files:
                    raise InputError(f"{root} has two members named {member.filename[:200]}")
                self.files[member.filename] = (member.file_size, member.CRC)
        self._local = threading.local()  # one open archive a thread: decoding runs in several

    def read_bytes(self, name: str) -> bytes:
        claimed, _ = self.files[name]
        _check_size(claimed)
        if not hasattr(self._local, "archive"):
            self._local.archive = zipfile.ZipFile(self.root)
        with self._local.archive.open(name) as member:
            return member.read(claimed)  # read() alone unpacks all there is, whatever it claims


def open_container(path: Path, include: Sequence[str] = (), exclude: Sequence[str] = ()
                   ) -> Folder | Zip:
    """A folder or a zip of images. Raises InputError when it is neither or holds no image."""
    # STAND-IN of helper C for include and exclude: helper A's open_container replaces it.
    if not path.exists():
        raise InputError(f"{path} does not exist: expected a folder or a zip with images")
    container = Folder(path) if path.is_dir() else Zip(path)
    for name in list(container.files):
        unwanted = include and not any(fnmatch(name, pattern) for pattern in include)
        if unwanted or any(fnmatch(name, pattern) for pattern in exclude):
            del container.files[name]
    if not container.files:
        raise InputError(f"{path} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return container
