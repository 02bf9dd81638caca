"""The user's own files as images of 8 bits: chosen bands, one file a band, a stretch."""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
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
    number: of the source, for the flags in messages.
    """

    bands: str | None = None
    stretch: Stretch | None = None
    number: int = 1

    @property
    def plain(self) -> bool:
        return self.bands is None and self.stretch is None

    @property
    def key(self) -> str:
        """Of images as they are that of RGB, with which they share cached pixels."""
        if self.plain:
            return RGB.read.__name__
        return f"bands {self.bands} stretch {self.stretch and written(self.stretch)}"

    def numbers(self, data: bytes) -> Numbers:
        """What is stored in the bands of a file that are seen.

        Raises:
            Unsuited: no such bands, or not a kind of file that has bands.
        """
        with self._flags_named():
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
        with self._flags_named():
            if self.plain:
                return RGB.read(data)
            if driver_of(data):
                return render(data, self.bands, self.stretch)
            return as_rgb(to_uint8(self.numbers(data), self.stretch))

    @contextlib.contextmanager
    def _flags_named(self) -> Iterator[None]:
        """Also a later image, of another kind than the first, says what it needs."""
        try:
            yield
        except Unsuited as error:
            error.number = self.number
            raise


# ---------------------------------------------------------------- one file a band


class BandFiles(ImageSource):
    """Scenes of which each band is a file of its own; brought to the largest band's shape.

    The smaller ones are enlarged bilinearly, after they have become 8 bits.
    """

    def __init__(self, container: Folder | Zip, scenes: Sequence[tuple[str, ...]],
                 stretch: Stretch | None = None, number: int = 1) -> None:
        """scenes: names of the one or three files of each. stretch, number: as in View."""
        self.container, self.scenes, self.stretch = container, list(scenes), stretch
        self.number = number
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
            raise Unsuited(f"{len(scene)} files for the bands of a scene", WHICH_BANDS, self.number)
        return with_shared_nodata([self._one_band(name) for name in scene])

    def _one_band(self, name: str) -> Numbers:
        with self._named(name):
            numbers = View(number=self.number).numbers(self.container.read_bytes(name))
            if len(numbers.values) != 1:
                raise Unsuited(f"{len(numbers.values)} bands, expected one in each file of a scene",
                               "leave out the files of more bands with --exclude")
        return numbers

    @contextlib.contextmanager
    def _named(self, name: str) -> Iterator[None]:
        """Of the files of a scene errors name the one that is to be replaced."""
        try:
            yield
        except InputError:
            raise
        except Unsuited as error:
            raise Unsuited(f"{name}: {error.found}", error.advice, self.number) from None
        except Exception as error:  # Pillow, GDAL and zlib raise many kinds for a damaged file
            raise ValueError(f"{name}: {getattr(error, 'strerror', None) or error}") from error

    def read(self, index: int) -> np.ndarray:
        scene, numbers = self.scenes[index], self.numbers(index)
        pairs = [None] * len(numbers) if self.stretch is None else self.stretch
        if len(pairs) == 1:
            pairs = [*pairs] * len(numbers)
        planes = []
        for name, one, pair in zip(scene, numbers, pairs, strict=True):
            with self._named(name):
                planes.append(to_uint8(one, pair and [pair])[0])
        height, width = max((plane.shape for plane in planes), key=math.prod)
        return as_rgb(np.stack([_enlarged(plane, height, width) for plane in planes]))

    def size(self, index: int) -> tuple[int, int]:
        sizes = []
        for name in self.scenes[index]:
            with self._named(name):
                sizes.append(header_size(self.container.read_bytes(name)))
        return max(sizes, key=math.prod)

    def subset(self, rows: np.ndarray) -> BandFiles:
        return BandFiles(self.container, [self.scenes[row] for row in rows], self.stretch,
                         self.number)


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
        source_with = partial(BandFiles, container, files, number=number)
        numbers, rows = source_with().numbers, [0]
    else:
        source_with = partial(_image_files, container, files, bands, number)
        rows = list({PurePosixPath(name).suffix: row  # the first of each kind
                     for row, name in reversed(list(enumerate(files)))}.values())

        def numbers(row: int) -> list[Numbers]:
            return [View(bands, number=number).numbers(container.read_bytes(files[row]))]

    for row in rows:
        _look_at(source_with(), row, numbers, pairs, number)
        if bands is None and isinstance(files[row], str):
            _reject_measured_alpha(source_with(), row, number)
    return source_with(pairs and drawn(pairs, numbers, len(files), f"--range{number}"))


def _image_files(container: Folder | Zip, files: Sequence[str], bands: str | None, number: int,
                 stretch: Stretch | None = None) -> ImageFiles:
    view = View(bands, stretch, number)
    source = ImageFiles(container, files, Decoder(view.read, key=view.key))
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
        raise InputError(f"{source.where(row)}: {error}") from None
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
    between = 0.0
    with contextlib.suppress(Exception):  # a damaged file is named when it is decoded
        between = alpha_between(source.container.read_bytes(source.files[row]))
    if between > 0.5:
        raise InputError(f"{source.where(row)}: a band is marked as alpha, but {between:.0%} of it "
                         "lies between its least and greatest value, as in what a sensor measures: "
                         f"say which bands are to be seen, as in --bands{number} 1,2,3")
