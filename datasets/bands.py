"""The user's own files as images of 8 bits: chosen bands, one file a band, a stretch."""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from datasets.colours import (
    NO_RANGE,
    WHICH_BANDS,
    Stretch,
    Unsuited,
    alpha_between,
    as_rgb,
    numbers_of,
    render,
    to_uint8,
)
from datasets.containers import Folder, Zip
from datasets.measured import Numbers, with_shared_nodata
from datasets.pixels import grey_numbers, header_size
from datasets.ranges import Limit, drawn, parse_range, written
from datasets.rasters import driver_of, open_raster
from datasets.sources import RGB, Decoder, ImageFiles, ImageSource
from utils import InputError, sha256_of


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
                return numbers_of(raster, self.bands)
        grey = grey_numbers(data) if self.bands is None else None
        if grey is None:
            raise Unsuited("--bands and --range are for TIFF and JPEG 2000 files and for grey "
                           "images, which this is not", NO_RANGE)
        return grey

    def read(self, data: bytes) -> np.ndarray:
        """A file as uint8 (H, W, 3)."""
        if driver_of(data):
            return render(data, self.bands, self.stretch)
        return as_rgb(to_uint8(self.numbers(data), self.stretch))


# ---------------------------------------------------------------- one file a band


class BandFiles(ImageSource):
    """Scenes of which each band is a file of its own; brought to the largest band's shape.

    The smaller ones are enlarged bilinearly, after they have become 8 bits.
    """

    def __init__(self, container: Folder | Zip, scenes: Sequence[tuple[str, ...]],
                 stretch: Stretch | None = None) -> None:
        """scenes: names of the one or three files of each. stretch: as in View."""
        self.container, self.scenes, self.stretch = container, list(scenes), stretch
        self.value_range = stretch and written(stretch)

    def __len__(self) -> int:
        return len(self.scenes)

    def stamp(self, cache_dir: Path | None) -> str:
        """Changes with the content of the files, with their order and with the stretch."""
        sizes = np.array([self.container.files[name] for name in self._names], np.int64)
        return sha256_of("one file a band", self.value_range, len(self), sizes,
                         self.container.checksums(self._names, cache_dir))

    def checksums(self, cache_dir: Path | None) -> np.ndarray:
        """One of the content of each scene, int64 (N,)."""
        of_files = iter(self.container.checksums(self._names, cache_dir).tolist())
        return np.array([zlib.crc32(repr([next(of_files) for _ in scene]).encode())
                         for scene in self.scenes], np.int64)

    @property
    def _names(self) -> list[str]:
        return [name for scene in self.scenes for name in scene]

    def where(self, index: int) -> str:
        return f"{self.container.root}: {', '.join(self.scenes[index])}"

    def numbers(self, index: int) -> list[Numbers]:
        """What is stored in the files of a scene, one band each.

        Raises:
            Unsuited: a scene of two or more than three files, or files of several bands.
        """
        scene = self.scenes[index]
        if len(scene) not in (1, 3):
            raise Unsuited(f"{len(scene)} files for the bands of a scene", WHICH_BANDS)
        found = []
        for name in scene:
            numbers = View().numbers(self.container.read_bytes(name))
            if len(numbers.values) != 1:
                raise Unsuited(f"{name} has {len(numbers.values)} bands, expected one in each file "
                               "of a scene", "leave out --bands{number} or the files of more bands")
            found.append(numbers)
        return with_shared_nodata(found)

    def read(self, index: int) -> np.ndarray:
        numbers = self.numbers(index)
        pairs = [None] * len(numbers) if self.stretch is None else self.stretch
        if len(pairs) == 1:
            pairs = [*pairs] * len(numbers)
        planes = [to_uint8(one, pair and [pair])[0]
                  for one, pair in zip(numbers, pairs, strict=True)]
        height, width = max((plane.shape for plane in planes), key=math.prod)
        return as_rgb(np.stack([_enlarged(plane, height, width) for plane in planes]))

    def size(self, index: int) -> tuple[int, int]:
        sizes = [header_size(self.container.read_bytes(name)) for name in self.scenes[index]]
        return max(sizes, key=math.prod)

    def subset(self, rows: np.ndarray) -> BandFiles:
        return BandFiles(self.container, [self.scenes[row] for row in rows], self.stretch)


def _enlarged(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    if plane.shape == (height, width):
        return plane
    image = Image.fromarray(np.ascontiguousarray(plane))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


# ---------------------------------------------------------------- what the user asked for


def open_view(container: Folder | Zip, files: Sequence[str] | Sequence[tuple[str, ...]],
              bands: str | None = None, value_range: str | None = None, number: int = 1
              ) -> ImageSource:
    """The user's own files as a source of images, looked at before all of them are decoded.

    Args:
        container: where they lie.
        files: a name for each scene, or a tuple of names, one file a band.
        bands: what --bands says, see `choose`; for tuples it has chosen the files already.
        value_range: what --range says, see `parse_range`.
        number: of the source, 1 or 2, as the flags have it.
    Returns:
        A source. Its `value_range` has numbers where percentages were asked for.
    Raises:
        InputError: flags that cannot be understood, or files that need others.
    """
    pairs = None if value_range is None else parse_range(value_range, f"--range{number}")
    words = [] if bands is None else [word.strip() for word in bands.split(",")]
    if bands is not None and (len(words) not in (1, 3) or "" in words):
        raise InputError(f"--bands{number} {bands}: expected one band, or three with commas "
                         "between them, by number (from 1) or description")
    if files and not isinstance(files[0], str):
        source_with = partial(BandFiles, container, files)
        numbers, rows = source_with().numbers, [0]
    else:
        source_with = partial(_image_files, container, files, bands)
        rows = list({PurePosixPath(name).suffix: row  # the first of each kind
                     for row, name in reversed(list(enumerate(files)))}.values())

        def numbers(row: int) -> list[Numbers]:
            return [View(bands).numbers(container.read_bytes(files[row]))]

    for row in rows:
        _look_at(source_with(), row, numbers, pairs, number)
        if bands is None and isinstance(files[row], str):
            _reject_measured_alpha(source_with(), row, number)
    return source_with(pairs and drawn(pairs, numbers, len(files), f"--range{number}"))


def _image_files(container: Folder | Zip, files: Sequence[str], bands: str | None,
                 stretch: Stretch | None = None) -> ImageFiles:
    view = View(bands, stretch)
    decoder = RGB if view == View() else Decoder(view.read, key=view.key)
    source = ImageFiles(container, files, decoder)
    source.value_range = stretch and written(stretch)
    return source


def _look_at(source: ImageSource, row: int, numbers: Callable[[int], list[Numbers]],
             pairs: list[tuple[Limit, Limit]] | None, number: int) -> None:
    """Raise InputError when a file needs other flags than were given."""
    try:
        if pairs is None:
            source.read(row)
            return
        count = sum(len(one.values) for one in numbers(row))
    except Unsuited as error:
        raise InputError(f"{source.where(row)}: {error}: {error.advice.format(number=number)}"
                         ) from None
    except InputError:
        raise
    except Exception:  # it is named with all others that are damaged when they are decoded
        return
    if len(pairs) not in (1, count):
        raise InputError(f"--range{number} has {len(pairs)} pairs, but {source.where(row)} shows "
                         f"{count} band{'s' if count > 1 else ''}: give one pair, or one for each")


def _reject_measured_alpha(source: ImageFiles, row: int, number: int) -> None:
    """Raise InputError where the band that is marked as alpha is none: a fourth channel, as a rule.

    rasterio and GDAL mark the last of four 8-bit bands so, whatever is in it.
    """
    data = source.container.read_bytes(source.files[row])
    between = 0.0
    with contextlib.suppress(ValueError):  # a damaged file is named when it is decoded
        between = alpha_between(data)
    if between > 0.5:
        raise InputError(f"{source.where(row)}: a band is marked as alpha, but {between:.0%} of it "
                         "lies between its least and greatest value, as in what a sensor measures: "
                         f"say which bands are to be seen, as in --bands{number} 1,2,3")
