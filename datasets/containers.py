"""Where files lie: folders and zips of images, listed once, read one file at a time."""

from __future__ import annotations

import os
import threading
import zipfile
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import numpy as np

from datasets.checksums import Status, file_checksums, status_of
from utils import InputError, print_once, warn_once

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp",
                  ".gif", ".jp2", ".j2k"}
# What lies beside images and is none: it is told, but no reason to warn.
COMPANIONS = {".txt", ".md", ".json", ".csv", ".xml", ".tfw", ".prj", ".ovr", ".pdf", ".html"}
LITTER = {"__MACOSX", "Thumbs.db", "desktop.ini"}  # of the system's own; not even counted
REPEATED = "folder{} that links lead to again, or that lie above"
MOST_BYTES = 1 << 30  # more than any scene needs, and what a file made to fill the memory claims
# First bytes of archives that are not read in place.
ARCHIVES = {b"\x1f\x8b": "gzip (.gz, .tar.gz, .tgz)", b"7z\xbc\xaf\x27\x1c": "7z",
            b"Rar!\x1a\x07": "rar", b"BZh": "bzip2 (.bz2, .tar.bz2)",
            b"\xfd7zXZ\0": "xz (.tar.xz)", b"\x28\xb5\x2f\xfd": "zstd (.tar.zst)"}


def _is_litter(name: str) -> bool:
    """What macOS, Windows and editors leave: `__MACOSX/._a.jpg`, `.a.jpg`, `Thumbs.db`."""
    return any(part.startswith(".") or part in LITTER for part in name.split("/"))


def _check_size(size: int) -> None:
    if size > MOST_BYTES:
        raise ValueError(f"{size:,} bytes, more than any image needs")


class Choice:
    """Which files of a container take part: images, of those the wanted ones; counts the others."""

    def __init__(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        """Globs; they are applied to the relative path and to the bare file name.

        Args:
            include: an image takes part only where one of them fits; empty: all images.
            exclude: an image does not take part where one of them fits.
        """
        self.include, self.exclude = include, exclude
        self.endings: Counter[str] = Counter()  # of files that are no images
        self.unwanted: set[str] = set()  # images that the globs leave out
        self.unusable: Counter[str] = Counter()  # such as "dead link{}", {} for an s

    def takes(self, name: str) -> bool:
        """Whether the file `name`, a relative POSIX path, is an image that takes part."""
        if _is_litter(name):
            return False
        excluded = self._fits(name, self.exclude)
        suffix = PurePosixPath(name).suffix.lower()
        if suffix not in IMAGE_SUFFIXES:
            self.endings.update([] if excluded else [suffix])
            return False
        if excluded or (self.include and not self._fits(name, self.include)):
            self.unwanted.add(name)
            return False
        return True

    @staticmethod
    def _fits(name: str, globs: Sequence[str]) -> bool:
        bare = name.rpartition("/")[2]
        return any(fnmatchcase(name, glob) or fnmatchcase(bare, glob) for glob in globs)

    def emptied_folders(self) -> set[str]:
        """Folders above images that the globs leave out: that they are empty is what was asked."""
        return {str(above) for name in self.unwanted for above in PurePosixPath(name).parents}

    def left_out(self) -> str:
        """How many files are left out, of which endings; empty where there are none."""
        parts = []
        if self.endings:
            count = self.endings.total()
            kinds = [f"{number:,} {ending or 'without ending'}"
                     for ending, number in self.endings.most_common(6)]
            others = count - sum(number for _, number in self.endings.most_common(6))
            kinds += [f"{others:,} others"] if others else []
            parts.append(f"{count:,} file{'s' * (count > 1)} left out ({', '.join(kinds)})")
        for what, number in sorted(self.unusable.items()):
            parts.append(f"{number:,} {what.format('s' * (number > 1))}")
        if self.include or self.exclude:
            count = len(self.unwanted)
            parts.append(f"{count:,} image{'s' * (count != 1)} left out by --include and --exclude")
        return ", ".join(parts)

    def tell(self, root: Path) -> None:
        """One line on what is left out: a warning where it may have been meant to take part."""
        text = self.left_out()
        if text:
            worrying = self.unusable or not self.endings.keys() <= COMPANIONS
            (warn_once if worrying else print_once)(f"{root}: {text}")


class Folder:
    """Image files below a folder. Links are followed; each folder is listed once, so loops end.

    files: relative POSIX path -> size in bytes. folders: relative paths of all folders.
    """

    def __init__(self, root: Path, include: Sequence[str] = (), exclude: Sequence[str] = ()
                 ) -> None:
        self.root = root
        self.folders: set[str] = set()
        self.choice = Choice(include, exclude)
        self._status: dict[str, Status] = {}
        self._checksums: dict[str, int] = {}
        self._links: list[tuple[str, str]] = []  # to folders: name and real path
        place = os.path.realpath(root)
        self._seen = set(map(str, Path(place).parents))  # real paths
        self._list("", place)
        # Links come last: of a folder and a link to it, the folder is the one that is taken.
        while self._links:
            waiting, self._links = sorted(self._links), []
            for name, place in waiting:
                self._list(name, place)
        self.folders -= {""}
        self.folders -= self.choice.emptied_folders()
        self.files = {name: self._status[name][0] for name in sorted(self._status)}

    def _list(self, folder: str, place: str) -> None:
        """Note what lies in a folder whose real path is `place`, and below it but for links."""
        waiting = [(folder, place)]
        while waiting:
            folder, place = waiting.pop()
            if place in self._seen:
                self.choice.unusable[REPEATED] += 1
                continue
            self._seen.add(place)
            self.folders.add(folder)
            try:
                entries = list(os.scandir(self.root / folder))
            except PermissionError:
                self.choice.unusable["folder{} that may not be read"] += 1
                continue
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if _is_litter(entry.name):
                    continue
                try:
                    status = entry.stat()
                except OSError:
                    self.choice.unusable["dead link{}"] += 1
                    continue
                if entry.is_file():
                    if self.choice.takes(name):
                        self._status[name] = status_of(status)
                elif entry.is_dir() and entry.is_symlink():
                    self._links.append((name, os.path.realpath(entry.path)))
                elif entry.is_dir():
                    waiting.append((name, os.path.join(place, entry.name)))

    def read_bytes(self, name: str) -> bytes:
        _check_size(self.files[name])
        return (self.root / name).read_bytes()

    def checksums(self, names: Sequence[str], cache_dir: Path | None) -> np.ndarray:
        """CRC-32 of the content of files.

        Args:
            names: N of `files`.
            cache_dir: where they are remembered; None reads all files in full.
        Returns:
            int64 (N,).
        """
        missing = {name: self._status[name] for name in names if name not in self._checksums}
        if missing:
            found = file_checksums(self.root, missing, cache_dir)
            self._checksums.update(zip(missing, found.tolist(), strict=True))
        return np.array([self._checksums[name] for name in names], dtype=np.int64)


class Zip:
    """Image files inside a zip, read in place, so that no member can land outside its folder.

    files: path in the zip -> size in bytes. folders: those that are members themselves.
    """

    def __init__(self, root: Path, include: Sequence[str] = (), exclude: Sequence[str] = ()
                 ) -> None:
        self.root = root
        self.files: dict[str, int] = {}
        self.folders: set[str] = set()
        self.choice = Choice(include, exclude)
        self._checksums: dict[str, int] = {}
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
            elif self.choice.takes(member.filename):
                if member.filename in self.files:
                    raise InputError(f"{root} has two members named {member.filename[:200]}")
                self.files[member.filename] = member.file_size
                self._checksums[member.filename] = member.CRC
        self.folders -= self.choice.emptied_folders()
        self._local = threading.local()  # one open archive a thread: decoding runs in several

    def read_bytes(self, name: str) -> bytes:
        """Raises BadZipFile where the content does not have the checksum of the directory."""
        claimed = self.files[name]
        _check_size(claimed)
        if not hasattr(self._local, "archive"):
            self._local.archive = zipfile.ZipFile(self.root)
        with self._local.archive.open(name) as member:
            return member.read(claimed)  # read() alone unpacks all there is, whatever it claims

    def checksums(self, names: Sequence[str], cache_dir: Path | None) -> np.ndarray:
        """As Folder.checksums; the directory of a zip has them, so that nothing is read."""
        return np.array([self._checksums[name] for name in names], dtype=np.int64)


def open_container(path: Path, include: Sequence[str] = (), exclude: Sequence[str] = ()
                   ) -> Folder | Zip:
    """A folder or a zip of images; says what is left out of it.

    Args:
        path: of the folder or zip.
        include, exclude: globs, as for Choice.
    Raises:
        InputError: it is neither, or holds no image that takes part.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist: expected a folder or a zip with images")
    if not path.is_dir() and not path.is_file():
        raise InputError(f"{path} is no folder and no file: expected a folder or a zip with images")
    if not path.is_dir():
        _reject_other_files(path)
    container = (Folder if path.is_dir() else Zip)(path, include, exclude)
    if not container.files:
        left_out = container.choice.left_out()
        more = f"; it has {left_out}" if left_out else ""
        raise InputError(f"{path} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}){more}")
    container.choice.tell(path)
    return container


def _reject_other_files(path: Path) -> None:
    """Raise InputError for an archive of another kind, and for a single image."""
    with open(path, "rb") as file:
        head = file.read(512)
    kinds = [kind for start, kind in ARCHIVES.items() if head.startswith(start)]
    if head[257:262] == b"ustar":
        kinds = ["tar"]
    if kinds:
        raise InputError(f"{path} is an archive of the kind {kinds[0]}, which is not read in "
                         "place: unpack it and name the folder, or pack it as a zip")
    if path.suffix.lower() in IMAGE_SUFFIXES and not zipfile.is_zipfile(path):
        raise InputError(f"{path} is a single file, expected a folder or a zip of images: name "
                         "the folder that holds it")
