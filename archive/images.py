"""What is added to an archive: the images of folders and zips, and single files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from archive.items import Item, printable
from archive.reading import Reading
from datasets.choice import is_image
from datasets.containers import MOST_BYTES, Folder, Zip, open_container
from datasets.folders import view_of
from datasets.names import (
    files_by_name,
    folder_of,
    scene_key,
    split_folders,
    without_shared_folder,
)
from datasets.rasters import TooLarge, driver_of, open_raster
from imagery.places import Corners, place_of
from utils import sha256_of

SEPARATOR = "\0"  # between the files of one scene, one a band; no name has it


class Pictures(Protocol):
    """Images that come from one place, by number."""

    path: Path
    names: Sequence[str]
    reading: Reading

    def load(self, index: int) -> tuple[Item, np.ndarray] | None:
        """The image uint8 (H, W, C) and what is kept of it; None where there is no data."""


class Unlisted:
    """Files of a folder that need not be listed. As Folder, files: name -> size in bytes."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root = root
        self.files = {name: (root / name).stat().st_size for name in names}

    def read_bytes(self, name: str) -> bytes:
        if self.files[name] > MOST_BYTES:
            raise TooLarge(f"{self.files[name]:,} bytes, more than any image needs: cut it into "
                           "scenes")
        return (self.root / name).read_bytes()


class ImagesOf:
    """The images of a folder, a zip, or of one file."""

    def __init__(self, path: Path, reading: Reading) -> None:
        """List them, and look at the first.

        Args:
            path: of a folder, zip or image file.
            reading: how they are read.
        Raises:
            InputError: nothing is there, two of one name, or images that need other bands or
                another range.
        """
        if path.is_file() and is_image(path.name):
            self.path, container = path.parent, Unlisted(path.parent, [path.name])
            files: dict[str, str | tuple[str, ...]] = {scene_key(path.name): path.name}
            self._kinds: list[str | None] = [None]
        else:
            self.path, container = path, open_container(path)
            files, kinds = _files_of(container, reading)
            self._kinds = [kind and printable(kind) for kind in kinds]
        self.names = [printable(name) for name in files]
        self._files = list(files.values())
        self._source = reading.source(container, self._files)
        self._container = container
        self.reading = reading.resolved(self._source)

    def __len__(self) -> int:
        return len(self.names)

    def where(self, index: int) -> str:
        return self._source.where(index)

    def load(self, index: int) -> tuple[Item, np.ndarray]:
        pixels, file = self._source.read(index), self._files[index]
        files = [file] if isinstance(file, str) else list(file)
        crs, corners = _place_in(self._container.read_bytes(files[0])) or (None, None)
        item = Item(self.names[index], content_of(pixels, corners), self.path,
                    self.reading.text, SEPARATOR.join(files), None, *pixels.shape[:2],
                    self._kinds[index], crs, corners)
        return item, pixels


def _files_of(container: Folder | Zip, reading: Reading
              ) -> tuple[dict[str, str | tuple[str, ...]], list[str | None]]:
    """Name -> file, or files of one band each; and the class folder of each image, or None.

    As the data set `folder` has them, so that codes of both can be compared by name.
    """
    if reading.sensor is None:
        view = view_of(container, reading.bands, "")
        files, alone = view.files, view.alone
    else:
        found = files_by_name(container)
        files = dict(zip(without_shared_folder(list(found)), found.values(), strict=True))
        alone = False
    if alone:  # each scene has a folder of its own, which is no class
        return files, [None] * len(files)
    _, below = split_folders(list(files))  # train and test are no classes either
    return files, [folder_of(name).rpartition("/")[2] or None
                   for name in without_shared_folder(below)]


def _place_in(data: bytes) -> tuple[str, Corners] | None:
    """Where the image in a file lies."""
    if driver_of(data) is None:
        return None
    with open_raster(data) as raster:
        return place_of(raster.pages[0])


def content_of(pixels: np.ndarray, corners: Corners | None) -> bytes:
    """16 bytes that tell images apart: by pixels, and by place where they have one.

    To a centimetre: the same place computed in another way differs in its last digits.
    """
    place = corners and [round(value, 7) + 0.0 for value in corners]  # no -0.0
    return bytes.fromhex(sha256_of(str(pixels.shape), pixels, place))[:16]
