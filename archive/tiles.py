"""Scenes of any size, cut into tiles that are read one window at a time."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from archive.images import content_of
from archive.items import Item, printable
from archive.reading import Reading
from datasets.colours import WHICH_BANDS, Unsuited, as_rgb, choose, to_uint8
from datasets.measured import Numbers
from datasets.ranges import drawn, parse_range, written
from datasets.rasters import ORIENTATION, Raster, require, tiff_tag
from imagery.places import place_of
from utils import InputError

# A scene is a file that the user names; a virtual one may point to others, as gdalbuildvrt makes
# it of the bands of a Sentinel-2 product.
DRIVERS = ["GTiff", "JP2OpenJPEG", "VRT", "PNG", "JPEG"]
SCENE_SUFFIXES = (".tif", ".tiff", ".jp2")
LEAST_VALID = 0.5  # of the pixels of a tile; those with less are left out
MEASURED = 0.5  # of alpha between its least and greatest value: it is no alpha
# Megabytes that GDAL keeps of all open scenes; by default a twentieth of the machine's memory, in
# which a whole scene may well find room.
os.environ.setdefault("GDAL_CACHEMAX", "512")


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
        middle = self.windows[len(self.windows) // 2]
        self._choose_alpha(raster, middle)
        self._draw_range()
        self._look_at(middle)

    def _choose_bands(self, raster: Raster) -> None:
        try:
            self._bands = choose(raster.bands, self.reading.bands)
            if len(self._bands) not in (1, 3):
                raise Unsuited(f"{len(self._bands)} bands are chosen", WHICH_BANDS)
            if any(raster.bands[band].colour == "palette" for band in self._bands):
                raise Unsuited("the numbers of a colour table, which have no order",
                               "save it in colours")
        except Unsuited as error:
            raise self._refused(error) from None
        # Not each scene says which number means nothing; 0 in all bands does, then.
        file = raster.pages[0]
        flags = [file.mask_flag_enums[raster.bands[band].index - 1] for band in self._bands]
        self._zero_is_nodata = all({flag.name for flag in found} & {"all_valid", "alpha"}
                                   for found in flags)

    def _choose_alpha(self, raster: Raster, window: Sequence[int]) -> None:
        """Which band, if any, is 0 where there is no data."""
        self._alpha = [row for row, band in enumerate(raster.bands) if band.colour == "alpha"][:1]
        if not self._alpha:
            return
        between = 0.0
        with contextlib.suppress(Exception):  # a damaged tile is named when all are read
            alpha = self._read(self._alpha, window).values
            between = ((alpha > alpha.min()) & (alpha < alpha.max())).mean()
        if between > MEASURED:  # the last of four 8-bit bands is marked so, whatever is in it
            if self.reading.bands is None:
                raise InputError(f"{self.path}: a band is marked as alpha, but {between:.0%} of it "
                                 "lies between its least and greatest value, as in what a sensor "
                                 "measures: say which bands are to be seen, as in --bands 1,2,3")
            self._alpha = []

    def _refused(self, error: Exception) -> InputError:
        if isinstance(error, Unsuited):
            error.number = ""  # the flags have none
        return InputError(f"{self.path}: {error}")

    def _draw_range(self) -> None:
        self._stretch = None
        if self.reading.value_range is not None:
            pairs = parse_range(self.reading.value_range, "--range")
            if len(pairs) not in (1, len(self._bands)):
                raise InputError(f"--range has {len(pairs)} pairs, but {self.path} shows "
                                 f"{len(self._bands)} bands: give one pair, or one for each")
            self._stretch = drawn(pairs, lambda index: [self._measured(self.windows[index])],
                                  len(self.windows), "--range")
            self.reading = Reading(self.reading.bands, written(self._stretch))

    def _look_at(self, window: Sequence[int]) -> None:
        """Raise InputError where a tile needs other flags, as all of them do then."""
        try:
            to_uint8(self._numbers(window), self._stretch)
        except ValueError as error:
            raise self._refused(error) from None
        except Exception:  # a damaged tile is named with all others when they are read
            return

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
            self._local.raster = Raster(_orientation(self.path, file), None)
            self._local.raster.add(file)
        return self._local.raster

    def __len__(self) -> int:
        return len(self.windows)

    def where(self, index: int) -> str:
        column, row, *_ = self.windows[index]
        return f"{self.path}: tile at column {column}, row {row}"

    def _read(self, bands: Sequence[int], window: Sequence[int]) -> Numbers:
        from rasterio.windows import Window

        return self._raster.read(bands, Window(*window))

    def _numbers(self, window: Sequence[int]) -> Numbers:
        return self._read(self._bands, window)

    def _data(self, numbers: Numbers, window: Sequence[int]) -> np.ndarray | None:
        """Which pixels of a tile have data, bool (side, side); None: all."""
        valid = None if numbers.valid is None else numbers.valid.any(axis=0)
        if self._alpha:
            there = self._read(self._alpha, window).values[0] > 0
        elif self._zero_is_nodata:
            there = (numbers.values != 0).any(axis=0)
        else:
            return valid
        return there if valid is None else there & valid

    def _measured(self, window: Sequence[int]) -> Numbers:
        """The numbers of a tile; where it has no data, they are not valid."""
        numbers = self._numbers(window)
        data = self._data(numbers, window)
        if data is None:
            return numbers
        known = True if numbers.valid is None else numbers.valid
        return replace(numbers, valid=np.broadcast_to(data, numbers.values.shape) & known)

    def pixels(self, window: Sequence[int]) -> tuple[np.ndarray, float]:
        """A tile as uint8 (side, side, 3), and which share of it has data."""
        numbers = self._numbers(window)
        data = self._data(numbers, window)
        pixels = np.ascontiguousarray(as_rgb(to_uint8(numbers, self._stretch)))
        return pixels, 1.0 if data is None else float(data.mean())

    def load(self, index: int) -> tuple[Item, np.ndarray] | None:
        window = self.windows[index]
        pixels, share = self.pixels(window)
        if share < LEAST_VALID:
            return None
        crs, corners = place_of(self._raster.pages[0], window) or (None, None)
        item = Item(self.names[index], content_of(pixels, corners), self.path, self.reading.text,
                    "", window, *pixels.shape[:2], None, crs, corners)
        return item, pixels


def _orientation(path: Path, file: Any) -> int:
    """As EXIF counts it, 1 to 8; GDAL leaves an image as it is stored."""
    with open(path, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = tiff_tag(data, ORIENTATION)
    exif = file.tags().get("EXIF_Orientation", "")  # of a JPEG
    found = int(exif) if exif.isdecimal() else found
    return found if found in range(1, 9) else 1


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
