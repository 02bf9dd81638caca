"""One place, cut out of imagery in any coordinate system: exactly the grid that is wanted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.warp import reproject
from rasterio.windows import Window
from scipy.ndimage import minimum_filter

from imagery.footprints import Footprint
from imagery.views import OutOfReach, Source, View, blocks_of, view_of
from utils import InputError

COVERED = 0.95  # share of an image that must be there
FLAT = 0.75  # share of pixels of exactly one colour from which on there is no imagery
# Web Mercator with the date line in its middle.
TURNED = CRS.from_proj4("+proj=merc +a=6378137 +b=6378137 +lat_ts=0 +lon_0=180 +x_0=0 +y_0=0 +k=1 "
                        "+units=m +nadgrids=@null +no_defs")
RESAMPLING = {"nearest": Resampling.nearest, "bilinear": Resampling.bilinear,
              "cubic": Resampling.cubic, "average": Resampling.average}


@dataclass
class Cut:
    """An image of a place.

    pixels: (bands, H, W), 0 where nothing is there. valid: bool (H, W). source, view: of the first
    source that shows something.
    """

    pixels: np.ndarray
    valid: np.ndarray
    source: Source
    view: View

    @property
    def covered(self) -> float:
        return float(self.valid.mean())


def is_flat(pixels: np.ndarray) -> bool:
    """Whether most pixels of (bands, ...) have exactly one colour: no camera sees that."""
    flat = pixels.reshape(len(pixels), -1)
    middle = flat.shape[1] // 2
    # What most pixels are is the median of each band.
    colour = np.partition(flat, middle, axis=1)[:, middle]
    return bool((flat == colour[:, None]).all(axis=0).mean() >= FLAT)


def cut(source: Source, footprint: Footprint, resampling: str = "auto") -> Cut:
    """The image of a place.

    Args:
        source: what it is cut out of.
        footprint: the place and its grid.
        resampling: of RESAMPLING; auto: the mean of all pixels that fall into one where these are
            twice as fine, else cubic.
    Raises:
        OutOfReach, InputError: as view_of.
        InputError, FetchError: as the source.
    """
    view = view_of(source, footprint)
    blocks = []
    for column, row, width, height in blocks_of(source, view):
        inside = column % source.level(view.factor).width if source.world else column
        blocks.append((column, row, *source.read(view.factor, Window(inside, row, width, height))))
    if not blocks:
        shape = (footprint.height, footprint.width)
        nothing = np.zeros((source.bands, *shape), np.uint8)
        return Cut(nothing, np.zeros(shape, bool), source, view)
    pixels, valid, left, top = _mosaic(blocks)
    crs, grid = _grid_of(source, view, left, top)
    if resampling == "auto":
        resampling = "average" if view.scale >= 2 else "cubic"
    shape = (footprint.height, footprint.width)
    target = {"dst_transform": footprint.transform, "dst_crs": footprint.crs,
              "src_transform": grid, "src_crs": crs}
    made = np.zeros((len(pixels), *shape), pixels.dtype)
    reproject(pixels, made, resampling=RESAMPLING[resampling], **target)
    there = np.zeros(shape, np.uint8)
    # A pixel that is not there takes away all those that it has a part in: cubic reaches twice as
    # far as bilinear.
    kernel = "bilinear" if resampling == "cubic" else resampling
    if resampling == "cubic" and not valid.all():
        valid = minimum_filter(valid, 2 * math.ceil(max(1.0, view.scale)) + 1)
    reproject(valid.astype(np.uint8) * 255, there, resampling=RESAMPLING[kernel], **target)
    made[:, there < 255] = 0
    return Cut(made, there == 255, source, view)


def _mosaic(blocks: Iterable[tuple]) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Blocks side by side: pixels (bands, H, W), valid (H, W), and the first column and row."""
    left, top = min(block[0] for block in blocks), min(block[1] for block in blocks)
    right = max(column + pixels.shape[2] for column, _, pixels, _ in blocks)
    bottom = max(row + pixels.shape[1] for _, row, pixels, _ in blocks)
    first = blocks[0][2]
    mosaic = np.zeros((len(first), bottom - top, right - left), first.dtype)
    valid = np.zeros(mosaic.shape[1:], bool)
    for column, row, pixels, there in blocks:
        place = (slice(row - top, row - top + pixels.shape[1]),
                 slice(column - left, column - left + pixels.shape[2]))
        mosaic[(slice(None), *place)] = np.where(there, pixels, 0)
        valid[place] = there
    return mosaic, valid, left, top


def _grid_of(source: Source, view: View, left: int, top: int) -> tuple[CRS, Affine]:
    """Coordinate system and transform of pixels that begin at a column and row of the level."""
    level = source.level(view.factor)
    grid = level.transform * Affine.translation(left, top)
    if not source.world or (view.columns.min() >= 0 and view.columns.max() <= level.width):
        return level.crs, grid
    # Across the date line: in a system that has it in the middle, half the earth to the west.
    half = level.width / 2 if view.columns.mean() > level.width / 2 else -level.width / 2
    return TURNED, grid * Affine.translation(-half, 0)


class Fixed:
    """Sources that are the same for all places; stac.Search finds others for each."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        more = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
        self.label = sources[0].label + more
        self.remote = any(source.remote for source in sources)
        self.key = " ".join(source.key for source in sources)

    def at(self, footprint: Footprint) -> Sequence[Source]:
        return self.sources


def cut_of_first(sources: Iterable[Source], footprint: Footprint, resampling: str = "auto"
                 ) -> Cut | None:
    """What the first source shows of a place, and in its gaps what the next ones show.

    Args:
        sources: the next one is asked where those before have gaps.
        footprint, resampling: as for cut.
    Raises:
        OutOfReach, InputError, FetchError: as cut; the first only where all sources say so.
        InputError: two sources of different bands.
    Returns:
        the image, or None: there is no source.
    """
    result, beyond = None, None
    for source in sources:
        try:
            found = cut(source, footprint, resampling)
        except OutOfReach as error:
            beyond = error
            continue
        if result is None or not result.valid.any():
            result = found
        elif found.valid.any():
            _fill(result, found)
        if result.valid.all():
            break
    if result is None and beyond is not None:
        raise beyond
    return result


def _fill(result: Cut, other: Cut) -> None:
    here, there = result.pixels, other.pixels
    if len(here) != len(there) or here.dtype != there.dtype:
        raise InputError(f"{result.source.label} has {len(here)} bands of {here.dtype}, and "
                         f"{other.source.label} {len(there)} of {there.dtype}: choose equal ones "
                         "with --bands, or collect from one alone")
    gap = other.valid & ~result.valid
    here[:, gap] = there[:, gap]
    result.valid |= gap
