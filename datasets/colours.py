"""From the numbers of a TIFF or JPEG 2000 file to 8-bit colours: which bands, and which stretch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from datasets.measured import Band, Numbers
from datasets.rasters import EXTRA_SAMPLE, Raster, driver_of, open_raster, tiff_tag

SPACES = {"CMYK": "CMYK", "YCbCr": "YCbCr", "CIELAB": "LAB"}  # GDAL's name -> Pillow's
# What three bands may be described as; they are shown in this order, whichever they lie in.
COLOURS = (("red", "green", "blue"), ("r", "g", "b"), ("b04", "b03", "b02"), ("b4", "b3", "b2"))
MULTIPLIED = 1  # EXTRA_SAMPLE: the colours were multiplied by alpha
Stretch = Sequence[tuple[float, float]]  # for each band what becomes 0 and what becomes 255


class Unsuited(ValueError):
    """An image that becomes three 8-bit bands only when the user says how.

    advice: what to say, with a place for the {number} of the source. number: of the source, where
    the flags are for it; only then the advice is given.
    """

    def __init__(self, found: str, advice: str, number: int | None = None) -> None:
        super().__init__(found)
        self.found, self.advice, self.number = found, advice, number

    def __str__(self) -> str:
        if self.number is None:
            return self.found
        return f"{self.found}: {self.advice.format(number=self.number)}"


WHICH_BANDS = "choose one or three of them, as with --bands{number} 3,2,1 or --bands{number} 1,1,2"
NO_RANGE = "leave out --bands{number} and --range{number}"
WHICH_RANGE = ("say which values become black and white with --range{number} LOW,HIGH or "
               "--range{number} 2%,98%")


def listed(bands: Sequence[Band]) -> str:
    """The bands of a file in words: number, description or colour where known, type."""
    known = {"undefined": "", "gray": ""}
    words = [f"{number} {band.name or known.get(band.colour, band.colour)}".strip()
             + f" ({band.dtype})" for number, band in enumerate(bands, start=1)]
    more = f" and {len(words) - 30} more" if len(words) > 30 else ""
    return f"{len(words)} band{'s' if len(words) > 1 else ''}: {', '.join(words[:30])}{more}"


def _one(bands: Sequence[Band], word: str) -> int:
    named = [row for row, band in enumerate(bands) if band.name.lower() == word.lower()]
    if len(named) == 1:
        return named[0]
    if not named and word.isdecimal() and 1 <= int(word) <= len(bands):
        return int(word) - 1
    raise Unsuited(f"{'several bands are' if named else 'no band is'} called {word} among "
                   f"{listed(bands)}", WHICH_BANDS)


def choose(bands: Sequence[Band], words: str | None = None) -> list[int]:
    """The rows of `bands` that are shown: one, or three for red, green and blue.

    Args:
        bands: those of a file.
        words: numbers from 1 or descriptions, with commas; None takes all there are but alpha, in
            the order of `COLOURS` where they are described so.
    Raises:
        Unsuited: bands that are not there, or more than three of which none was chosen.
    """
    if words is not None:
        return [_one(bands, word.strip()) for word in words.split(",")]
    shown = [row for row, band in enumerate(bands) if band.colour != "alpha"]
    if len(shown) not in (1, 3):
        raise Unsuited(f"{listed(bands)}; expected one or three beside alpha", WHICH_BANDS)
    return _in_order_of_colours(bands, shown) if len(shown) == 3 else shown


def _in_order_of_colours(bands: Sequence[Band], shown: list[int]) -> list[int]:
    for words in ([bands[row].name.lower() for row in shown], [bands[row].colour for row in shown]):
        for colours in COLOURS:
            if sorted(words) == sorted(colours):
                return [shown[words.index(colour)] for colour in colours]
    return shown


def to_uint8(numbers: Numbers, stretch: Stretch | None = None) -> np.ndarray:
    """The numbers of some bands as uint8 (bands, H, W); nodata becomes 0.

    Without a stretch 8 bits are taken as they are, and of 16 bits the upper 8.

    Args:
        numbers: of an image.
        stretch: a pair for each band, or one for all; linear, clipped, rounded.
    Raises:
        Unsuited: neither 8 nor 16 bits, and no stretch.
    """
    values, valid, depth = numbers.values, numbers.valid, numbers.depth
    if stretch is not None:
        pixels = _stretched(values, stretch)
    elif values.dtype == np.uint8:
        # Those of fewer bits, too, reach from black to white.
        pixels = values if depth == 8 else np.rint(
            np.minimum(values * (255 / (2**depth - 1)), 255)).astype(np.uint8)
    elif values.dtype == np.uint16:
        pixels = (values >> 8).astype(np.uint8)
    else:
        raise Unsuited(f"{values.dtype} pixels{_limits(numbers)}, expected unsigned 8 or 16 bits",
                       WHICH_RANGE)
    if numbers.inverted:
        pixels = 255 - pixels
    if valid is not None:
        pixels = np.where(valid, pixels, np.uint8(0))
    return pixels


def _stretched(values: np.ndarray, stretch: Stretch) -> np.ndarray:
    if len(stretch) not in (1, len(values)):
        raise ValueError(f"{len(values)} bands, but a range for {len(stretch)}")
    pixels = np.empty(values.shape, np.uint8)
    for band, plane in enumerate(values):
        low, high = stretch[band % len(stretch)]
        scaled = (plane.astype(np.float64) - low) * (255 / (high - low))
        pixels[band] = np.rint(np.clip(np.nan_to_num(scaled), 0, 255))
    return pixels


def _limits(numbers: Numbers) -> str:
    values = numbers.values if numbers.valid is None else numbers.values[numbers.valid]
    return f" from {values.min():.6g} to {values.max():.6g}" if values.size else ", all nodata"


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """One or three bands (bands, H, W) as colours (H, W, 3), a view: grey is repeated."""
    return np.broadcast_to(pixels, (3, *pixels.shape[1:])).transpose(1, 2, 0)


def numbers_of(raster: Raster, bands: str | None = None) -> Numbers:
    """The numbers of the bands that are to be shown. Raises Unsuited: see `choose`, or colours."""
    if raster.space and bands is None:
        raise Unsuited(f"{raster.space} colours", "save the images as RGB")
    chosen = choose(raster.bands, bands)
    if any(raster.bands[band].colour == "palette" for band in chosen):
        raise Unsuited("the numbers of a colour table, which have no order", NO_RANGE)
    return raster.read(chosen)


def alpha_between(data: bytes) -> float:
    """The share of a file's alpha band that is between its least and its greatest value.

    Alpha cuts out a shape, or lies over all; 0 for a file without.
    """
    if driver_of(data) is None:
        return 0.0
    with open_raster(data) as raster:
        rows = [row for row, band in enumerate(raster.bands) if band.colour == "alpha"]
        if not rows:
            return 0.0
        alpha = raster.read(rows[:1]).values
    return float(((alpha > alpha.min()) & (alpha < alpha.max())).mean())


def render(data: bytes, bands: str | None = None, stretch: Stretch | None = None) -> np.ndarray:
    """A TIFF or JPEG 2000 file as uint8 (H, W, 3).

    Args:
        data: the bytes of the file.
        bands: see `choose`.
        stretch: see `to_uint8`.
    Raises:
        Unsuited: an image for which `bands` or `stretch` must be given.
        ValueError: damaged, or too large.
    """
    with open_raster(data) as raster:
        colours = [band.colour for band in raster.bands]
        if bands is None and stretch is None:
            if raster.space in SPACES and len(raster.pages) == 1:
                return _from_space(raster, SPACES[raster.space])
            if colours in (["palette"], ["palette", "alpha"]):
                return _from_palette(raster)
            if "alpha" in colours and tiff_tag(data, EXTRA_SAMPLE) == MULTIPLIED:
                alpha = to_uint8(raster.read([colours.index("alpha")]))
                return as_rgb(_unmultiplied(to_uint8(numbers_of(raster)), alpha))
        pixels = to_uint8(numbers_of(raster, bands), stretch)
    return as_rgb(pixels)


def _from_space(raster: Raster, mode: str) -> np.ndarray:
    bands = Image.new(mode, (1, 1)).getbands()
    pixels = np.ascontiguousarray(to_uint8(raster.read(range(len(bands)))))
    if mode == "LAB":
        pixels[1:] ^= 128  # signed in TIFF, from 0 in Pillow
    image = Image.merge(mode, [Image.fromarray(plane) for plane in pixels])
    return np.asarray(image.convert("RGB"))


def _from_palette(raster: Raster) -> np.ndarray:
    numbers, table = raster.read([0]), raster.colour_table()
    pixels = table[np.minimum(numbers.values[0], len(table) - 1)]
    return pixels if numbers.valid is None else pixels * numbers.valid[0][..., None]


def _unmultiplied(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The colours that were multiplied by alpha / 255."""
    return np.minimum(pixels * 255.0 / np.maximum(alpha, 1), 255).astype(np.uint8)
