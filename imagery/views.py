"""Which part of a source shows a place, and at which of its resolutions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from rasterio import DatasetReader
from rasterio.warp import transform
from rasterio.windows import Window

from imagery.footprints import Footprint
from utils import InputError

NET = 16  # steps along an image at which its place in another system is worked out
MOST_PIXELS = 64_000_000  # that one image may be made from
TORN = 100  # times further than others do neighbours lie from each other across an edge of a map


class Source(Protocol):
    """Pictures of the earth at several resolutions: services.Tiles or rasters.Raster.

    label: what messages and collect.csv call it, without any key. key: changes with what it is.
    bands, dtype: of its pixels. date: when they were taken, or "". factors: by how much its levels
    are coarser than the finest, from 1. remote: whether it is read block by block, at a rate.
    at_once: pixels of a side, up to which small blocks are read together. requests: that one such
    block takes. world: whether columns go around the earth, in Web Mercator.
    """

    label: str
    key: str
    bands: int
    dtype: str
    date: str
    factors: list[int]
    remote: bool
    at_once: int
    requests: int
    world: bool

    def level(self, factor: int) -> DatasetReader:
        """The open raster of a level."""

    def zoom(self, factor: int) -> str:
        """What collect.csv calls a level."""

    def read(self, factor: int, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Pixels of a window, (bands, H, W), and where there is imagery, bool (H, W)."""


class OutOfReach(ValueError):
    """A place that the imagery's coordinate system cannot tell; the message says why."""


@dataclass(frozen=True)
class View:
    """The part of a source that shows a place.

    factor: of the level. columns, rows: float (NET + 1, NET + 1), the place's net in pixels of the
    level; columns may leave it where it goes around the earth. scale: pixels of the level by one
    of the image. window: whole pixels (column, row, width, height) around it, of those there are.
    """

    factor: int
    columns: np.ndarray
    rows: np.ndarray
    scale: float
    window: tuple[int, int, int, int]


def view_of(source: Source, footprint: Footprint) -> View:
    """Which level of a source, and which part of it, shows a place.

    The coarsest level that is at least as fine as the image, as far as there is one.

    Args:
        source: what is looked at.
        footprint: the place.
    Raises:
        OutOfReach: the place is not in the source's coordinate system, as near the poles in Web
            Mercator.
        InputError: too many pixels would have to be read.
    """
    finest = source.level(1)
    x, y = footprint.points(NET)
    try:
        x, y = transform(footprint.crs, finest.crs, x.ravel(), y.ravel())
    except Exception:  # GDAL raises many kinds for points that have no place in a system
        raise OutOfReach(f"it lies outside of {finest.crs.to_string()[:40]}") from None
    columns, rows = ~finest.transform * (np.array(x), np.array(y))
    if not np.isfinite(columns).all() or not np.isfinite(rows).all() or (
            source.world and (rows.min() < 0 or rows.max() > finest.height)):
        raise OutOfReach("Web Mercator ends at 85.05 degrees" if source.world else
                         f"it lies outside of {finest.crs.to_string()[:40]}")
    columns, rows = (values.reshape(NET + 1, NET + 1) for values in (columns, rows))
    if source.world:  # the shorter way around the earth
        middle = columns[NET // 2, NET // 2]
        half = finest.width / 2
        columns = middle + (columns - middle + half) % finest.width - half
    elif _is_torn(columns, rows):
        raise OutOfReach(f"{finest.crs.to_string()[:40]} is cut there, as at the date line")
    scale = math.sqrt(_area(columns, rows) / (footprint.height * footprint.width))
    if not scale:
        raise OutOfReach("it is too small for the source's coordinate system")
    factor = max(factor for factor in source.factors if factor <= max(1.0, scale * 1.0001))
    level = source.level(factor)
    columns = columns * (level.width / finest.width)
    rows = rows * (level.height / finest.height)
    scale /= factor
    window = _window(columns, rows, 2 * math.ceil(max(1.0, scale)) + 2, level, source.world)
    if window[2] * window[3] > MOST_PIXELS:
        advice = "lower --zoom" if source.world else "give it overviews (gdaladdo)"
        raise InputError(f"{footprint.name} needs {window[2]:,} x {window[3]:,} pixels of "
                         f"{source.label}: {advice}, or name smaller places")
    return View(factor, columns, rows, scale, window)


def _area(columns: np.ndarray, rows: np.ndarray) -> float:
    """Of the quadrangle of the corners of a net."""
    corners = [(0, 0), (0, -1), (-1, -1), (-1, 0)]
    x = np.array([columns[corner] for corner in corners])
    y = np.array([rows[corner] for corner in corners])
    return abs(float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))) / 2


def _is_torn(columns: np.ndarray, rows: np.ndarray) -> bool:
    """Whether neighbours in a net lie far apart, as on both edges of a map of the earth."""
    for axis in (0, 1):
        steps = np.hypot(np.diff(columns, axis=axis), np.diff(rows, axis=axis))
        if steps.max() > TORN * np.median(steps):
            return True
    return False


def _window(columns: np.ndarray, rows: np.ndarray, margin: int, level: DatasetReader, world: bool
            ) -> tuple[int, int, int, int]:
    """Column, row, width and height of what lies within the level; 0 wide or high: nothing."""
    left, top = math.floor(columns.min()) - margin, math.floor(rows.min()) - margin
    right, bottom = math.ceil(columns.max()) + margin, math.ceil(rows.max()) + margin
    if not world:
        left, right = max(left, 0), min(right, level.width)
    top, bottom = max(top, 0), min(bottom, level.height)
    return left, top, max(0, right - left), max(0, bottom - top)


def blocks_of(source: Source, view: View) -> Iterator[tuple[int, int, int, int]]:
    """The parts to read, each at once: blocks of what lies afar; of a file all that is needed.

    Yields:
        column, row, width, height; within the level but for columns around the earth.
    """
    level = source.level(view.factor)
    left, top, width, height = view.window
    if not width or not height:
        return
    if not source.remote:
        yield view.window
        return
    right, bottom = left + width, top + height
    high, wide = (side * max(1, source.at_once // side) for side in level.block_shapes[0])
    for row, column in itertools.product(range(top // high, math.ceil(bottom / high)),
                                         range(left // wide, math.ceil(right / wide))):
        x, y = column * wide, row * high
        end = x + wide if source.world else min(x + wide, level.width)
        yield x, y, end - x, min(high, level.height - y)
