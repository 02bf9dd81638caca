"""Which files of a folder or a zip take part, and what is said of those that do not."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from os.path import commonprefix, splitext
from pathlib import Path, PurePosixPath

from utils import print_once, warn_once

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp",
                  ".gif", ".jp2", ".j2k"}
# What lies beside images and is none: it is told, but no reason to warn.
COMPANIONS = {".txt", ".md", ".json", ".csv", ".xml", ".tfw", ".prj", ".ovr", ".pdf", ".html"}
# Of systems and tools, with all that is below; not even counted. collect.py writes collect.csv.
LITTER = {"__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini", ".git", ".ipynb_checkpoints",
          "collect.csv"}


def is_litter(name: str) -> bool:
    """Whether a tool of the system left it: `__MACOSX/._a.jpg`, `a/._b.jpg`, `Thumbs.db`."""
    return any(part in LITTER or part.startswith("._") for part in name.split("/"))


def is_hidden(name: str) -> bool:
    """Whether it is hidden or lies in a hidden folder: `.a/1.png`, `a/.1.png`; not `../1.png`."""
    return any(part.startswith(".") and part != ".." for part in name.split("/"))


def is_image(name: str) -> bool:
    """Whether a file is called like an image."""
    return splitext(name)[1].lower() in IMAGE_SUFFIXES


def shared_depth(names: Collection[str]) -> int:
    """How many folders, from the top, hold all of the names."""
    # What the first and the last of sorted names share, all share.
    return commonprefix([min(names), max(names)]).count("/") if names else 0  # noqa: RUF071


class Choice:
    """Which files of a container take part: images, of those the wanted ones; counts the others."""

    def __init__(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        """Globs; they are applied to the relative path, to the path below the folder that holds
        all images, and to the bare file name, in NFC.

        Args:
            include: an image takes part only where one of them fits; empty: all images.
            exclude: an image does not take part where one of them fits.
        """
        self.include, self.exclude = include, exclude
        self.unused: set[str] = set()  # globs that fit nothing, with their flag
        self.endings: Counter[str] = Counter()  # of files that are no images
        self.beside: set[str] = set()  # folders that hold such files
        self.hidden = 0  # images
        self.unwanted: set[str] = set()  # images that the globs leave out
        self.unusable: Counter[str] = Counter()  # such as "dead link{}", {} for an s

    def choose(self, names: Iterable[str], folders: Collection[str]) -> list[str]:
        """The images that take part.

        Args:
            names: relative POSIX paths of all files.
            folders: of all folders, so that a glob for an empty one is not said to fit nothing.
        """
        names = [name for name in names if not is_litter(name)]
        images = [name for name in names if is_image(name) and not is_hidden(name)]
        depth = shared_depth(images)
        places = [*names, *(f"{folder}/" for folder in folders)]
        excluded = self._fitting("--exclude", self.exclude, places, depth)
        wanted = (self._fitting("--include", self.include, images, depth) if self.include
                  else set(images))
        chosen = [name for name in images if name in wanted and name not in excluded]
        self.unwanted = set(images) - set(chosen)
        for name in set(names) - set(images) - excluded:
            if is_image(name):
                self.hidden += 1
            elif not is_hidden(name):
                self.endings[splitext(name)[1].lower()] += 1
                self.beside.add(name.rpartition("/")[0])
        return chosen

    def _fitting(self, flag: str, globs: Sequence[str], names: Iterable[str], depth: int
                 ) -> set[str]:
        """Those that a glob fits, with or without the `depth` folders that hold all images."""
        plain = {glob: _plain(glob) for glob in globs}
        plain |= {glob: f"{form}*" for glob, form in plain.items() if form.endswith("/")}
        found, used = set(), set()
        for name in names if globs else ():
            parts = _plain(name).split("/")
            forms = {"/".join(parts[first:]) for first in range(depth + 1)} | {parts[-1]}
            fits = {glob for glob in globs if any(fnmatchcase(form, plain[glob]) for form in forms)}
            used |= fits
            found |= {name} if fits else set()
        self.unused |= {f"{flag} {glob}" for glob in globs if glob not in used}
        return found

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
        if self.hidden:
            parts.append(f"{self.hidden:,} image{'s' * (self.hidden > 1)} in hidden folders or of "
                         "hidden names")
        for what, number in sorted(self.unusable.items()):
            parts.append(f"{number:,} {what.format('s' * (number > 1))}")
        if self.unwanted:
            count = len(self.unwanted)
            parts.append(f"{count:,} image{'s' * (count > 1)} left out by --include and --exclude")
        return ", ".join(parts)

    def tell(self, root: Path) -> None:
        """One line on what is left out: a warning where it may have been meant to take part."""
        text = self.left_out()
        if text:
            worrying = self.unusable or self.hidden or not self.endings.keys() <= COMPANIONS
            (warn_once if worrying else print_once)(f"{root}: {text}")


def _plain(text: str) -> str:
    """In NFC and with slashes, as names of scenes are."""
    return unicodedata.normalize("NFC", text.replace("\\", "/"))
