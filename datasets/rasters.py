"""TIFF and JPEG 2000 files, read by rasterio: which bands they have, and the numbers in them."""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
import struct
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from datasets.measured import Band, Numbers, with_shared_nodata
from utils import InputError

# What no scene needs, and a file made to fill the memory claims.
MOST_PIXELS = 64_000_000
MOST_ELONGATED = 32  # the longer side, by the shorter one
MOST_BLOCK = 1 << 30  # bytes that are unpacked at once
MOST_PAGES = 256
MOST_BANDS = 2048  # of a page
ORIENTATION, EXTRA_SAMPLE = 274, 338  # tags of TIFF
# How a file starts, whatever its name says -> the one driver that may open it: others could be
# told by the file to read from other files and addresses.
DRIVERS = {b"II*\0": "GTiff", b"MM\0*": "GTiff", b"II+\0": "GTiff", b"MM\0+": "GTiff",
           b"\0\0\0\x0cjP  \r\n\x87\n": "JP2OpenJPEG", b"\xff\x4f\xff\x51": "JP2OpenJPEG"}

warnings.filterwarnings("ignore", message="Dataset has no geotransform")  # fine for scenes
logging.getLogger("rasterio").setLevel(logging.CRITICAL)  # what matters is raised


class TooLarge(ValueError):
    """More than an image may be; the message ends with an advice to cut it."""


def check_shape(height: int, width: int) -> None:
    """Raise ValueError for what no scene is, before memory is taken for its pixels."""
    if height * width > MOST_PIXELS:
        raise TooLarge(f"{width:,} x {height:,} pixels, more than {MOST_PIXELS:,}: "
                       "cut it into scenes")
    if max(height, width) > MOST_ELONGATED * min(height, width):
        raise ValueError(f"{width:,} x {height:,} pixels, too elongated for a scene")


def require(module: str, purpose: str) -> Any:
    """A module that only some data sets need. Raises InputError: it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"reading {purpose} needs the package {module}: pip install {module}"
                         ) from None


def driver_of(data: bytes) -> str | None:
    """What rasterio calls the kind of a TIFF or JPEG 2000 file; None for any other file."""
    return next((driver for magic, driver in DRIVERS.items() if data[:16].startswith(magic)), None)


# ---------------------------------------------------------------- what the file says of itself


def tiff_tag(data: bytes, wanted: int) -> int | None:
    """The one number that a tag of 16 bits has on the first page of a TIFF; None: it has no such.

    For what rasterio leaves aside; Pillow does not open each TIFF.
    """
    if driver_of(data) != "GTiff":
        return None
    order, big = "<" if data[:2] == b"II" else ">", b"+" in data[2:4]  # BigTIFF
    size, head, entry = ("Q", 8, 20) if big else ("I", 2, 12)
    # Of a damaged file rasterio complains.
    with contextlib.suppress(struct.error, OverflowError):
        first, = struct.unpack_from(order + size, data, 8 if big else 4)
        entries, = struct.unpack_from(order + ("Q" if big else "H"), data, first)
        for place in range(first + head, first + head + min(entries, 4096) * entry, entry):
            tag, _, count, value = struct.unpack_from(f"{order}HH{size}H", data, place)
            if tag == wanted:
                return value if count == 1 else None
    return None


def turned(planes: np.ndarray, orientation: int) -> np.ndarray:
    """The upright image (..., H, W) of one that was stored in an EXIF orientation, 1 to 8."""
    if orientation >= 5:
        planes = planes.swapaxes(-1, -2)
    if orientation in (3, 4, 7, 8):
        planes = planes[..., ::-1, :]
    if orientation in (2, 3, 6, 7):
        planes = planes[..., ::-1]
    return planes


# ---------------------------------------------------------------- bands and their numbers


# What alpha may be described as; what is described otherwise is a measurement. For GDAL the last of
# four 8-bit bands is alpha, whatever it holds.
ALPHA = re.compile(r"(band[ _]?\d+)?|.*(alpha|mask).*", re.IGNORECASE)


def _colour(colour: str, description: str) -> str:
    return "undefined" if colour == "alpha" and not ALPHA.fullmatch(description) else colour


class Raster:
    """An open TIFF or JPEG 2000 file."""

    def __init__(self, orientation: int, space: str | None) -> None:
        """Without pages, which `add` brings.

        Args:
            orientation: as EXIF counts it.
            space: a colour space other than RGB that the numbers of the first bands are in.
        """
        self.orientation, self.space = orientation, space
        self.pages: list[Any] = []  # rasterio's datasets, all of one shape
        self.bands: list[Band] = []  # page after page

    def add(self, file: Any) -> None:
        """One more page, asked at once for its colours: later they may come with GDAL's complaint
        about something else."""
        for index, colour, name, dtype in zip(file.indexes, file.colorinterp, file.descriptions,
                                              file.dtypes, strict=True):
            name = (name or "").strip()
            band = Band(len(self.pages), index, _colour(colour.name, name), name, dtype)
            self.bands.append(band)
        self.pages.append(file)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the upright image."""
        height, width = self.pages[0].shape
        return (width, height) if self.orientation >= 5 else (height, width)

    def structure(self, band: int) -> dict[str, str]:
        """What GDAL says of the way a band, from 0, is stored."""
        chosen = self.bands[band]
        file = self.pages[chosen.page]
        return _structure(file) | file.tags(chosen.index, ns="IMAGE_STRUCTURE")

    def read(self, chosen: Sequence[int], window: Any = None) -> Numbers:
        """The numbers of the `chosen` bands, from 0, upright; of one image, as to their nodata.

        Args:
            chosen: rows of `bands`.
            window: a window of rasterio's, of the image as it is stored; None: all of it.
        Raises:
            ValueError: bands that cannot be put side by side, or a damaged file.
        """
        dtypes = sorted({self.bands[band].dtype for band in chosen})
        if len(dtypes) > 1 or dtypes[0].startswith("complex"):
            raise ValueError(f"{' and '.join(dtypes)} pixels, expected real numbers of one type")
        values: dict[Band, np.ndarray] = {}
        valid: dict[Band, np.ndarray] = {}
        bands = [self.bands[band] for band in chosen]
        for page in {band.page for band in bands}:
            wanted = sorted({band for band in bands if band.page == page},
                            key=lambda band: band.index)
            indexes = [band.index for band in wanted]
            planes, masks = _planes(self.pages[page], indexes, window)
            values.update(zip(wanted, planes, strict=True))
            valid.update({} if masks is None else zip(wanted, masks, strict=True))
        numbers = np.stack([values[band] for band in bands])
        known = None
        if valid:
            everywhere = np.ones(numbers.shape[1:], bool)
            known = turned(np.stack([valid.get(band, everywhere) for band in bands]),
                           self.orientation)
        structure = self.structure(chosen[0])
        # Above 8 bits it is how some files of an archive are packed, not how bright they are.
        depth = min(int(structure.get("NBITS", 8)), 8)
        # Of several bands, whatever the tag says, each is a measurement.
        grey = len([band for band in self.bands if band.colour != "alpha"]) == 1
        inverted = grey and structure.get("MINISWHITE") == "YES"
        found = Numbers(turned(numbers, self.orientation), known, depth, inverted)
        return with_shared_nodata([found])[0]

    def colour_table(self) -> np.ndarray:
        """Red, green and blue of each number in a palette image: uint8 (numbers, 3)."""
        colours = self.pages[0].colormap(1)
        table = np.zeros((max(colours) + 1, 3), np.uint8)
        for number, colour in colours.items():
            table[number] = colour[:3]
        return table


def _planes(file: Any, indexes: list[int], window: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Numbers (bands, H, W) and where they are valid, or None: everywhere."""
    values = file.read(indexes, window=window)
    masks = None
    # Alpha is no mask here: what lies under it has colours, and Pillow drops it, too.
    if any("all_valid" not in names and "alpha" not in names for names in
           ([flag.name for flag in file.mask_flag_enums[index - 1]] for index in indexes)):
        masks = file.read_masks(indexes, window=window) > 0
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        masks = finite if masks is None else finite & masks
    return values, masks


# ---------------------------------------------------------------- files


@contextlib.contextmanager
def open_raster(data: bytes) -> Iterator[Raster]:
    """The bytes of a TIFF or JPEG 2000 file, of which the header was read.

    Raises:
        ValueError: another kind of file, a damaged one, or what no scene is.
        InputError: rasterio is not installed.
    """
    driver = driver_of(data)
    if driver is None:
        raise ValueError("no TIFF or JPEG 2000 file")
    rasterio = require("rasterio", "TIFF and JPEG 2000 files")
    with contextlib.ExitStack() as stack:
        # One thread: those of JPEG 2000 would print GDAL's complaints.
        stack.enter_context(rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR",
                                         GDAL_NUM_THREADS="1"))
        memory = stack.enter_context(rasterio.io.MemoryFile(data))
        try:
            first = stack.enter_context(memory.open(driver=driver))
            _check(first)
            found = tiff_tag(data, ORIENTATION)
            orientation = found if found in range(1, 9) else 1
            raster = Raster(orientation, _space(first) if driver == "GTiff" else None)
            if raster.space:  # GDAL's own RGB of these takes the orientation strip by strip
                raw = rasterio.open(f"GTIFF_RAW:{memory.name}", driver="GTiff")
                raster.add(stack.enter_context(raw))
            else:
                raster.add(first)
            for page in _other_pages(first, memory.name, stack):
                raster.add(page)
            yield raster
        except (ValueError, MemoryError):
            raise
        except Exception as error:  # rasterio raises many kinds for a damaged file
            reason = str(error.__cause__ or error)
            for name in (memory.name, memory.name.rpartition("/")[2]):  # drawn anew each time
                reason = reason.replace(name, "file")
            raise ValueError(f"damaged: {reason}") from None


def _check(file: Any) -> None:
    check_shape(file.height, file.width)
    if file.count > MOST_BANDS:
        raise ValueError(f"{file.count:,} bands, more than any scene needs")
    pixelwise = _structure(file).get("INTERLEAVE") != "BAND"
    size = max(np.dtype(dtype.replace("complex_int16", "complex64")).itemsize
               for dtype in file.dtypes)
    block = max(height * width for height, width in file.block_shapes)
    if block * size * (file.count if pixelwise else 1) > MOST_BLOCK:
        raise ValueError("blocks of more than 1 GiB, more than any scene needs")


def _structure(file: Any) -> dict[str, str]:
    """How GDAL says a TIFF is stored; of a damaged JPEG 2000 file it would look for ever."""
    return file.tags(ns="IMAGE_STRUCTURE") if file.driver == "GTiff" else {}


def _space(first: Any) -> str | None:
    structure = _structure(first)
    known = structure.get("COMPRESSION") == "YCbCr JPEG"  # GDAL makes RGB of it, as it should
    return None if known else structure.get("SOURCE_COLOR_SPACE")


def _other_pages(first: Any, name: str, stack: contextlib.ExitStack) -> Iterator[Any]:
    """Those of the first one's shape; overviews, masks and thumbnails are left out."""
    rasterio = require("rasterio", "TIFF and JPEG 2000 files")
    numbers = [int(page.split(":")[1]) for page in first.subdatasets
               if page.startswith("GTIFF_DIR:")]
    if len(numbers) > MOST_PAGES:
        raise ValueError(f"{len(numbers):,} pages, more than any scene needs")
    for number in numbers:
        if number == 1:
            continue
        page = stack.enter_context(rasterio.open(f"GTIFF_DIR:{number}:{name}", driver="GTiff"))
        if page.height * page.width > first.height * first.width:
            raise ValueError(f"page {number} ({page.width} x {page.height} pixels) is larger than "
                             f"the first ({first.width} x {first.height}): save the pages as bands")
        if page.shape == first.shape:
            _check(page)
            yield page


def raster_size(data: bytes) -> tuple[int, int]:
    """(height, width) of the upright image in a TIFF or JPEG 2000 file."""
    with open_raster(data) as raster:
        return raster.shape
