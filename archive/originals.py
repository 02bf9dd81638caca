"""The images of an archive, read again from where they came from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from archive.images import SEPARATOR, Unlisted
from archive.items import Item
from archive.reading import Reading
from archive.tiles import Scene
from datasets.containers import Zip
from datasets.store import unreadable_because
from utils import InputError


class Originals:
    """Zips and scenes stay open between images."""

    def __init__(self) -> None:
        self._open: dict[tuple[Path, str], Any] = {}

    def read(self, item: Item) -> np.ndarray:
        """An item's image, uint8 (H, W, C). Raises InputError: it is not there any more."""
        try:
            pixels = self._read(item)
            if pixels.shape[:2] != (item.height, item.width):
                raise ValueError(f"it has {pixels.shape[1]} x {pixels.shape[0]} pixels now, and "
                                 f"had {item.width} x {item.height}")
            return pixels
        except Exception as error:
            place = item.path / item.member.replace(SEPARATOR, ", ") if item.member else item.path
            raise InputError(f"{item.name} cannot be read again from {place} "
                             f"({unreadable_because(error)}): put it back where it lay when it "
                             "was added") from None

    def _read(self, item: Item) -> np.ndarray:
        reading = Reading.of_text(item.reading)
        if item.window is not None:
            side = item.window[2]
            scene = self._kept(item, lambda: Scene(item.path, reading, side, side))
            return scene.pixels(item.window)[0]
        files = item.member.split(SEPARATOR)
        if item.path.is_file():
            container = self._kept(item, lambda: Zip(item.path))
            if not set(files) <= container.files.keys():
                raise ValueError("the zip has no such file now")
        else:
            container = Unlisted(item.path, files)
        file = files[0] if len(files) == 1 else tuple(files)
        return reading.source(container, [file]).read(0)

    def _kept(self, item: Item, open_it: Callable[[], Any]) -> Any:
        key = item.path, item.reading
        if key not in self._open:
            self._open[key] = open_it()
        return self._open[key]
