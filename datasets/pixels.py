"""The bytes of an image file as uint8 pixels (H, W, C)."""

from __future__ import annotations

import io
import logging
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

# What Pillow may take a file for, whatever its name says: for some other kinds it starts a program
# (PostScript).
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")
# What no scene needs, and a file made to fill the memory claims.
MOST_PIXELS = 64_000_000
MOST_ELONGATED = 32  # the longer side, by the shorter one

# Once and for all, because decoding runs in several threads: what is odd about a file that can be
# read all the same (metadata), and sizes, for which there is a lower limit here, and an error.
warnings.filterwarnings("ignore", module="PIL")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
logging.getLogger("PIL").setLevel(logging.CRITICAL)  # says the same again, on stderr


def check_shape(height: int, width: int) -> None:
    """Raise ValueError for what no scene is, before memory is taken for its pixels."""
    if height * width > MOST_PIXELS:
        raise ValueError(f"{width:,} x {height:,} pixels, more than {MOST_PIXELS:,}: "
                         "cut it into scenes")
    if max(height, width) > MOST_ELONGATED * min(height, width):
        raise ValueError(f"{width:,} x {height:,} pixels, too elongated for a scene")


def _identify(data: bytes) -> Image.Image:
    """The image of which only the header was read."""
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except UnidentifiedImageError:  # its own message names a memory address
        raise ValueError(f"no image of a known kind ({', '.join(IMAGE_FORMATS)})") from None
    check_shape(image.height, image.width)
    return image


def open_rgb(data: bytes) -> Image.Image:
    """Any 8 or 16 bit image as RGB: without alpha, grey repeated, of 16 bits the upper 8."""
    image = _identify(data)
    image.load()
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit pixels, expected 8 or 16 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels, expected 8 or 16 bits")
    return image.convert("RGB")


def decode_rgb(data: bytes) -> np.ndarray:
    """An image file as uint8 (H, W, 3)."""
    return np.asarray(open_rgb(data))


def header_size(data: bytes) -> tuple[int, int]:
    """(height, width) of an image file."""
    with _identify(data) as image:
        return image.height, image.width
