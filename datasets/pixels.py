"""The bytes of an image file as uint8 pixels (H, W, C)."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from datasets.colours import render
from datasets.measured import Numbers
from datasets.rasters import check_shape, driver_of, open_raster, raster_size

# What Pillow may take a file for, whatever its name says: for some other kinds it starts a program
# (PostScript). TIFF and JPEG 2000 are rasterio's.
PILLOW_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF")
IMAGE_FORMATS = (*PILLOW_FORMATS, "TIFF", "JPEG 2000")
DEEP = ("I;16", "I;16B", "I;16L", "I")  # Pillow's names of 16-bit grey
ORIENTATION = 0x0112
UPRIGHT = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
           4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
           6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
           8: Image.Transpose.ROTATE_90}
# What tells of an orientation in a PNG, where Pillow finds it only after decoding all of it.
PNG_MARKS = (b"eXIf", b"Raw profile type exif", b"tiff:Orientation")

# Once and for all, because decoding runs in several threads: what is odd about a file that can be
# read all the same (metadata), and sizes, for which there is a lower limit here, and an error.
warnings.filterwarnings("ignore", module="PIL")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
logging.getLogger("PIL").setLevel(logging.CRITICAL)  # says the same again, on stderr


def _identify(data: bytes) -> Image.Image:
    """The image of which only the header was read."""
    try:
        image = Image.open(io.BytesIO(data), formats=PILLOW_FORMATS)
    except UnidentifiedImageError:  # its own message names a memory address
        raise ValueError(f"no image of a known kind ({', '.join(IMAGE_FORMATS)})") from None
    check_shape(image.height, image.width)
    return image


def _orientation(image: Image.Image, data: bytes) -> int:
    """As EXIF counts it, 1 to 8; 1 is upright."""
    if image.format == "PNG" and not any(mark in data for mark in PNG_MARKS):
        return 1
    found = None
    with contextlib.suppress(Exception):  # damaged metadata are no reason to refuse the pixels
        found = image.getexif().get(ORIENTATION)
    return found if found in UPRIGHT else 1


def _upright(data: bytes) -> Image.Image:
    """The pixels of a file of Pillow's, turned as its EXIF says; of several frames the first."""
    image = _identify(data)
    image.load()
    orientation = _orientation(image, data)
    return image if orientation == 1 else image.transpose(UPRIGHT[orientation])


def _deep_values(image: Image.Image) -> np.ndarray:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("32-bit pixels, expected 8 or 16 bits")
    return values.astype(np.uint16)


def open_rgb(data: bytes) -> Image.Image:
    """Any 8 or 16 bit image as RGB: without alpha, grey repeated, of 16 bits the upper 8."""
    if driver_of(data):
        return Image.fromarray(render(data))
    image = _upright(data)
    if image.mode in DEEP:
        image = Image.fromarray((_deep_values(image) >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels, expected 8 or 16 bits")
    return image.convert("RGB")


def decode_rgb(data: bytes) -> np.ndarray:
    """An image file as uint8 (H, W, 3)."""
    return render(data) if driver_of(data) else np.asarray(open_rgb(data))


def grey_numbers(data: bytes) -> Numbers | None:
    """The numbers of a grey image of Pillow's kinds, 8 or 16 bits; None: it has colours.

    Grey may well be stored as red, green and blue of equal numbers.
    """
    image = _upright(data)
    if image.mode in DEEP:
        return Numbers(_deep_values(image)[None])
    colours = np.array(image.convert("RGB")).transpose(2, 0, 1)
    return Numbers(colours[:1]) if (colours == colours[0]).all() else None


def band_count(data: bytes) -> int:
    """How many bands an image file has, beside alpha: of a palette, and of Pillow's, 1 or 3."""
    if driver_of(data):
        with open_raster(data) as raster:
            colours = [band.colour for band in raster.bands if band.colour != "alpha"]
            return 3 if colours == ["palette"] else len(colours)
    return 3 if grey_numbers(data) is None else 1


def header_size(data: bytes) -> tuple[int, int]:
    """(height, width) of the upright image in an image file."""
    if driver_of(data):
        return raster_size(data)
    with _identify(data) as image:
        height, width = image.height, image.width
        return (width, height) if _orientation(image, data) >= 5 else (height, width)
