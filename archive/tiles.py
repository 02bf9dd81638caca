"""Scenes of any size, cut into tiles that are read one window at a time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from archive.images import content_of
from archive.items import Item, printable
from archive.places import place_of
from archive.reading import Reading
from datasets.colours import Unsuited, as_rgb, choose, to_uint8
from datasets.measured import Numbers
from datasets.ranges import drawn, parse_range, written
from datasets.rasters import Raster, require
from utils import InputError

# A scene is a file that the user names; a virtual one may point to others, as gdalbuildvrt makes
# it of the bands of a Sentinel-2 product.
DRIVERS = ["GTiff", "JP2OpenJPEG", "VRT", "PNG", "JPEG"]
SCENE_SUFFIXES = (".tif", ".tiff", ".jp2")
LEAST_VALID = 0.5  # of the pixels of a tile; those with less are left out


class Scene:
    """The tiles of one raster: side x side pixels, from the upper left, row by row.

    The last ones of a row and of a column are moved inwards, so that all of the scene is covered.
    """

    def __init__(self, path: Path, reading: Reading, side: int, stride: int, name: str = ""
                 ) -> None:
        """Look at a scene.

        Args:
            path: of a GeoTIFF, JPEG 2000, VRT, PNG or JPEG file.
            reading: which bands and which range; percentages are of up to 200 of its tiles.
            side: of a tile, pixels.
            stride: between two tiles, pixels.
            name: of the scene, before the place of the tile; left out: that of the file.
        Raises:
            InputError: no such raster, smaller than a tile, or it needs other bands or range.
        """
        self.path, self.reading = path, reading
        self._local = threading.local()  # one open file a thread: decoding runs in several
        raster = self._raster
        if reading.sensor is not None:
            raise InputError(f"--tile cuts images that are read as they are, and this model's are "
                             f"read {reading.describe()}: cut with --plain, or leave --tile out")
        height, width = raster.pages[0].shape
        if min(height, width) < side:
            raise InputError(f"{path} has {width} x {height} pixels, less than a tile of --tile "
                             f"{side}")
        self.windows = [(column, row, side, side) for row in _starts(height, side, stride)
                        for column in _starts(width, side, stride)]
        self.names = [f"{printable(name or path.stem)}/{row}_{column}"
                      for column, row, *_ in self.windows]
        self._choose_bands(raster)
        self._draw_range()

    def _choose_bands(self, raster: Raster) -> None:
        try:
            self._bands = choose(raster.bands, self.reading.bands)
            if any(raster.bands[band].colour == "palette" for band in self._bands):
                raise Unsuited("the numbers of a colour table, which have no order",
                               "save it in colours")
        except Unsuited as error:
            error.number = ""
            raise InputError(f"{self.path}: {error}") from None
        file = raster.pages[0]
        # Not each scene says which number means nothing; 0 in all bands does, then.
        flags = [file.mask_flag_enums[raster.bands[band].index - 1] for band in self._bands]
        self._zero_is_nodata = all("all_valid" in [flag.name for flag in found] for found in flags)

    def _draw_range(self) -> None:
        self._stretch = None
        if self.reading.value_range is not None:
            pairs = parse_range(self.reading.value_range, "--range")
            if len(pairs) not in (1, len(self._bands)):
                raise InputError(f"--range has {len(pairs)} pairs, but {self.path} shows "
                                 f"{len(self._bands)} bands: give one pair, or one for each")
            self._stretch = drawn(pairs, lambda index: [self._numbers(self.windows[index])],
                                  len(self.windows), "--range")
            self.reading = Reading(self.reading.bands, written(self._stretch))
        try:
            to_uint8(self._numbers(self.windows[len(self.windows) // 2]), self._stretch)
        except Unsuited as error:
            error.number = ""
            raise InputError(f"{self.path}: {error}") from None
        self.value_range = self.reading.value_range

    @property
    def _raster(self) -> Raster:
        if not hasattr(self._local, "raster"):
            rasterio = require("rasterio", "scenes")
            try:
                file = rasterio.open(self.path)
                if file.driver not in DRIVERS:
                    raise ValueError(f"a file of GDAL's {file.driver}")
            except Exception as error:  # rasterio raises many kinds for a damaged file
                raise InputError(f"{self.path} cannot be opened as a scene ({error}): expected a "
                                 "GeoTIFF, JPEG 2000, VRT, PNG or JPEG file") from None
            self._local.raster = Raster(1, None)
            self._local.raster.add(file)
        return self._local.raster

    def __len__(self) -> int:
        return len(self.windows)

    def where(self, index: int) -> str:
        column, row, *_ = self.windows[index]
        return f"{self.path}: tile at column {column}, row {row}"

    def _numbers(self, window: Sequence[int]) -> Numbers:
        from rasterio.windows import Window

        return self._raster.read(self._bands, Window(*window))

    def pixels(self, window: Sequence[int]) -> tuple[np.ndarray, float]:
        """A tile as uint8 (side, side, 3), and which share of it has data."""
        numbers = self._numbers(window)
        valid = numbers.valid
        if valid is None and self._zero_is_nodata:
            valid = numbers.values != 0
        share = 1.0 if valid is None else float(valid.any(axis=0).mean())
        return np.ascontiguousarray(as_rgb(to_uint8(numbers, self._stretch))), share

    def load(self, index: int) -> tuple[Item, np.ndarray] | None:
        window = self.windows[index]
        pixels, share = self.pixels(window)
        if share < LEAST_VALID:
            return None
        crs, corners = place_of(self._raster.pages[0], window) or (None, None)
        item = Item(self.names[index], content_of(pixels, corners), self.path, self.reading.text,
                    "", window, *pixels.shape[:2], None, crs, corners)
        return item, pixels


def _starts(length: int, side: int, stride: int) -> list[int]:
    """Where tiles begin along one axis, so that they reach its end."""
    starts = list(range(0, length - side + 1, stride))
    if starts[-1] + side < length:
        starts.append(length - side)
    return starts


def scenes_in(path: Path, reading: Reading, side: int, stride: int) -> list[Scene]:
    """The scenes that a path names: of a folder all its TIFF and JPEG 2000 files.

    Raises:
        InputError: as Scene; a zip, or a folder without such files.
    """
    if not path.is_dir():
        if path.suffix.lower() == ".zip":
            raise InputError(f"{path} is a zip, of which no windows can be read: unpack it, or "
                             "leave --tile out")
        return [Scene(path, reading, side, stride)]
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SCENE_SUFFIXES)
    if not files:
        raise InputError(f"{path} holds no scene ({', '.join(SCENE_SUFFIXES)}) to cut into tiles")
    names = [file.relative_to(path).with_suffix("").as_posix() for file in files]
    return [Scene(file, reading, side, stride, name)
            for file, name in zip(files, names, strict=True)]
