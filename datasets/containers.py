"""Where files lie: folders and zips of images, listed once, read one file at a time."""

from __future__ import annotations

import os
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.checksums import Status, file_checksums, status_of
from datasets.choice import IMAGE_SUFFIXES, Choice, is_hidden, is_litter
from utils import InputError

REPEATED = "folder{} that links lead to again, or that lie above"
MOST_BYTES = 1 << 30  # more than any scene needs, and what a file made to fill the memory claims
# First bytes of archives that are not read in place.
ARCHIVES = {b"\x1f\x8b": "gzip (.gz, .tar.gz, .tgz)", b"7z\xbc\xaf\x27\x1c": "7z",
            b"Rar!\x1a\x07": "rar", b"BZh": "bzip2 (.bz2, .tar.bz2)",
            b"\xfd7zXZ\0": "xz (.tar.xz)", b"\x28\xb5\x2f\xfd": "zstd (.tar.zst)"}


def _check_size(size: int) -> None:
    if size > MOST_BYTES:
        raise ValueError(f"{size:,} bytes, more than any image needs")


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
        self._hidden: list[str] = []  # folders
        place = os.path.realpath(root)
        self._seen = set(map(str, Path(place).parents))  # real paths
        self._list("", place)
        # Links come last: of a folder and a link to it, the folder is the one that is taken.
        while self._links:
            waiting, self._links = sorted(self._links), []
            for name, place in waiting:
                self._list(name, place)
        self.folders -= {""}
        names = [*sorted(self._status), *self._names_in_hidden_folders()]
        self.files = {name: self._status[name][0]
                      for name in self.choice.choose(names, self.folders)}
        self.folders -= self.choice.emptied_folders()

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
                if is_litter(entry.name):
                    continue
                hidden = is_hidden(entry.name)
                try:
                    status = entry.stat()
                except OSError:
                    if not hidden:
                        self.choice.unusable["dead link{}"] += 1
                    continue
                if entry.is_file():
                    self._status[name] = status_of(status)
                elif hidden:
                    self._hidden += [name] if entry.is_dir(follow_symlinks=False) else []
                elif entry.is_dir() and entry.is_symlink():
                    self._links.append((name, os.path.realpath(entry.path)))
                elif entry.is_dir():
                    waiting.append((name, os.path.join(place, entry.name)))

    def _names_in_hidden_folders(self) -> list[str]:
        """Files that are only counted: no link is followed, and what links lead to is passed."""
        names = []
        for hidden in self._hidden:
            for place, folders, files in os.walk(self.root / hidden):
                if os.path.realpath(place) in self._seen:
                    folders.clear()
                    continue
                folders[:] = [name for name in folders if not is_litter(name)]
                above = Path(place).relative_to(self.root).as_posix()
                names += [f"{above}/{name}" for name in files]
        return names

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

    files: path in the zip, with slashes -> size in bytes. folders: those that are members
    themselves.
    """

    def __init__(self, root: Path, include: Sequence[str] = (), exclude: Sequence[str] = ()
                 ) -> None:
        self.root = root
        self.folders: set[str] = set()
        self.choice = Choice(include, exclude)
        members: dict[str, zipfile.ZipInfo] = {}
        twice = set()
        for member in _directory(root):
            # Some programs write `./a/1.png`, or a backslash where a slash belongs.
            raw = member.filename.replace("\\", "/")
            name = "/".join(part for part in raw.split("/") if part not in ("", "."))
            if raw.endswith("/"):
                self.folders |= {name} - {""}
            elif members.setdefault(name, member) is not member:
                twice.add(name)
        chosen = self.choice.choose(members, self.folders)
        if doubled := sorted(twice.intersection(chosen)):
            raise InputError(f"{root} has two members named {doubled[0][:200]}")
        locked = [name for name in chosen if members[name].flag_bits & 1]
        if locked:
            raise InputError(f"{root} needs a password for {len(locked):,} images, such as "
                             f"{locked[0][:200]}: unpack it and name the folder")
        self._members = {name: members[name].filename for name in chosen}
        self.files = {name: members[name].file_size for name in chosen}
        self._checksums = {name: members[name].CRC for name in chosen}
        self.folders -= self.choice.emptied_folders()
        self._local = threading.local()  # one open archive a thread: decoding runs in several

    def read_bytes(self, name: str) -> bytes:
        """Raises BadZipFile where the content does not have the checksum of the directory."""
        claimed = self.files[name]
        _check_size(claimed)
        if not hasattr(self._local, "archive"):
            self._local.archive = zipfile.ZipFile(self.root)
        with self._local.archive.open(self._members[name]) as member:
            return member.read(claimed)  # read() alone unpacks all there is, whatever it claims

    def checksums(self, names: Sequence[str], cache_dir: Path | None) -> np.ndarray:
        """As Folder.checksums; the directory of a zip has them, so that nothing is read."""
        return np.array([self._checksums[name] for name in names], dtype=np.int64)


def _directory(root: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(root) as archive:
            return archive.infolist()
    except OSError:
        raise
    except Exception as error:  # zipfile raises many kinds for a damaged file
        raise InputError(f"{root} is not a whole zip file ({error}): download it again") from None


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
    """Raise InputError for an archive of another kind, a single image, and what is no zip."""
    with open(path, "rb") as file:
        head = file.read(512)
    kinds = [kind for start, kind in ARCHIVES.items() if head.startswith(start)]
    if head[257:262] == b"ustar":
        kinds = ["tar"]
    if kinds:
        raise InputError(f"{path} is an archive of the kind {kinds[0]}, which is not read in "
                         "place: unpack it and name the folder, or pack it as a zip")
    if head.startswith(b"PK") or zipfile.is_zipfile(path):
        return
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise InputError(f"{path} is a single file, expected a folder or a zip of images: name "
                         "the folder that holds it")
    if path.suffix.lower() != ".zip":
        raise InputError(f"{path} is no folder and no zip of images: name the folder that holds "
                         "the images, or a zip of them")
