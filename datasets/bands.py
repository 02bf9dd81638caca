"""Which bands of the user's own files are seen, and which stretch makes 8 bits of them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from datasets.colours import (
    Stretch,
    Unsuited,
    as_rgb,
    listed,
    numbers_of,
    render,
    to_uint8,
)
from datasets.containers import Folder, Zip
from datasets.pixels import decode_rgb, deep_grey, header_size
from datasets.rasters import Numbers, driver_of, open_raster
from datasets.sources import RGB, Decoder, ImageFiles, ImageSource
from utils import InputError, progress, sha256_of

SAMPLE_IMAGES = 200  # evenly spaced ones, of which percentages are drawn
SAMPLE_PIXELS = 1 << 16  # of each band of one of them, evenly spaced
NO_RASTER = "no TIFF or JPEG 2000 file: --bands{number} and --range{number} are for these"


@dataclass(frozen=True)
class Limit:
    """One end of a stretch. percent: of the pixels are below, in place of the value itself."""

    value: float
    percent: bool


def parse_range(text: str, flag: str) -> list[tuple[Limit, Limit]]:
    """`LOW,HIGH`, numbers or percentages, or several such pairs with semicolons.

    Raises:
        InputError: another text, or ends that are not in order.
    """
    pairs = []
    for words in text.split(";"):
        ends = [_limit(word.strip()) for word in words.split(",")]
        if len(ends) != 2 or None in ends:
            raise InputError(f"{flag} {text} is not understood: expected LOW,HIGH such as 0,3000 "
                             "or 2%,98%, or such a pair for each band with ; between them")
        low, high = ends
        if low.percent == high.percent and not 0 < high.value - low.value < math.inf:
            raise InputError(f"{flag} {text}: the first of {words.strip()} must be below the "
                             "second")
        pairs.append((low, high))
    return pairs


def _limit(word: str) -> Limit | None:
    percent = word.endswith("%")
    try:
        value = float(word.removesuffix("%"))
    except ValueError:
        return None
    return Limit(value, percent) if math.isfinite(value) and not (
        percent and not 0 <= value <= 100) else None


def written(stretch: Stretch) -> str:
    """A stretch as `parse_range` reads it, to the last bit."""
    return ";".join(f"{low!r},{high!r}".replace(".0,", ",").removesuffix(".0")
                    for low, high in stretch)


@dataclass(frozen=True)
class View:
    """How the user's files become 8-bit images.

    bands: as `choose` takes them; None: all there are. stretch: None: 8 and 16 bits as they are.
    """

    bands: str | None = None
    stretch: Stretch | None = None

    @property
    def key(self) -> str:
        return f"bands {self.bands} stretch {self.stretch and written(self.stretch)}"

    def numbers(self, data: bytes) -> Numbers:
        """What is stored in the bands of a file that are seen.

        Raises:
            Unsuited: no such bands, or not a kind of file that has bands.
        """
        if driver_of(data):
            with open_raster(data) as raster:
                if any(band.colour == "palette" for band in raster.bands):
                    raise ValueError("numbers of a colour table, which have no order: leave out "
                                     "the range")
                return numbers_of(raster, self.bands)
        deep = deep_grey(data) if self.bands is None else None
        if deep is None:
            raise Unsuited("no TIFF or JPEG 2000 file", "bands and ranges are for these: leave out "
                           "--bands{number} and --range{number}")
        return deep

    def read(self, data: bytes) -> np.ndarray:
        """A file as uint8 (H, W, 3)."""
        if driver_of(data):
            return render(data, self.bands, self.stretch)
        if self == View():
            return decode_rgb(data)
        numbers = self.numbers(data)
        return as_rgb(to_uint8(numbers, self.stretch))
