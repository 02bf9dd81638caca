"""The places that images are to show, and those of georeferenced images."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.warp import transform

from datasets.bandfiles import band_files, called_after_folders
from datasets.choice import shared_depth
from datasets.containers import open_container
from datasets.names import files_by_name, folder_of
from datasets.rasters import driver_of, open_raster
from utils import InputError, first_few, progress, sha256_of

WGS84 = CRS.from_epsg(4326)
LEAST, LARGEST = 1, 1_000_000  # metres of a place
LONGEST = 200  # bytes of a name; file systems allow 255 of its last part, and some are added
AXIS, SQUARED = 6378137.0, 0.00669437999014  # of WGS84: larger half axis, eccentricity


@dataclass(frozen=True)
class Footprint:
    """The grid of pixels that an image is to have.

    name: of the image, with its folders, without extension. crs: coordinate system.
    transform: pixels (column, row) -> crs. height, width: pixels.
    """

    name: str
    crs: CRS
    transform: Affine
    height: int
    width: int

    def points(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates in `crs` of a net of (steps + 1) x (steps + 1) points, corners included.

        Returns:
            x and y, float64 (steps + 1, steps + 1); rows run down the image.
        """
        rows, columns = np.mgrid[0:steps + 1, 0:steps + 1] / steps
        return self.transform * (columns * self.width, rows * self.height)

    def centre(self) -> tuple[float, float]:
        """Latitude and longitude of the middle, degrees."""
        x, y = self.transform * (self.width / 2, self.height / 2)
        (longitude,), (latitude,) = transform(self.crs, WGS84, [x], [y])
        return latitude, (longitude + 180) % 360 - 180

    def metres(self) -> float:
        """How wide the image is on the ground."""
        ends = [self.transform * (column, self.height / 2) for column in (0, self.width)]
        x, y = zip(*ends, strict=True)
        points = zip(*transform(self.crs, WGS84, x, y), strict=True)
        return math.dist(*(_in_space(longitude, latitude) for longitude, latitude in points))

    def key(self) -> str:
        """Changes with any corner, with the coordinate system and with the pixels."""
        return sha256_of(self.crs.to_string(), *(f"{value:.9g}" for value in self.transform),
                         self.height, self.width)[:12]


def _in_space(longitude: float, latitude: float) -> tuple[float, float, float]:
    """Metres from the middle of the earth, of a point on WGS84's ellipsoid."""
    turn, sine = math.radians(longitude), math.sin(math.radians(latitude))
    across = AXIS / math.sqrt(1 - SQUARED * sine ** 2)
    out = across * math.cos(math.radians(latitude))
    return out * math.cos(turn), out * math.sin(turn), across * (1 - SQUARED) * sine


# ---------------------------------------------------------------- of images


def footprints_of_images(path: Path, size: int, include: Sequence[str] = (),
                         exclude: Sequence[str] = (), limit: int | None = None
                         ) -> tuple[list[Footprint], dict[str, str]]:
    """Where the images of a folder or zip lie.

    Args:
        path: of TIFF or JPEG 2000 files with coordinate system and transform; of scenes of one
            file a band, the first one counts.
        size: pixels of the longer side of what is to be collected.
        include, exclude: globs, as the scripts have them.
        limit: how many are looked at, evenly spaced; None: all.
    Returns:
        footprints, and the names of images without a place, with the reason; sorted by name.
    Raises:
        InputError: no images, or two of one name.
    """
    container = open_container(path, include, exclude)
    scenes = band_files(container)
    if scenes:
        files = {scene: min(bands.values()) for scene, bands in scenes.items()}
        keys = [folder_of(scene) for scene in files] if called_after_folders(files) else list(files)
    else:
        files = files_by_name(container)
        keys = list(files)
    # Of all images, those that are left out too: a name is the same whichever are chosen.
    depth = shared_depth([*keys, *container.choice.unwanted])
    names = [key.split("/", depth)[depth] for key in keys]
    found, without = [], {}
    chosen = some_of(sorted(zip(names, files.values(), strict=True)), limit)
    for name, file in progress(chosen, "places"):
        try:
            if reason := reason_against_name(name):
                raise ValueError(reason)
            found.append(_footprint(name, container.read_bytes(file), size))
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            without[name] = " ".join(str(error).split())
    return found, without


def reason_against_name(name: str) -> str:
    """Why an image cannot be called so below a folder; empty: it can."""
    parts = name.split("/")
    if any(part in ("", "..") or part.startswith(".") for part in parts):
        return "its name leads elsewhere, or is hidden"
    if parts[0] == "collect.csv":
        return "its name is that of the table"
    if not name.isprintable():
        return "its name has characters that cannot be shown"
    if len(name.encode()) > LONGEST:
        return f"its name is longer than {LONGEST} bytes"
    return ""


def some_of(items: Sequence[Any], limit: int | None) -> list[Any]:
    """At most so many, evenly spaced."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[row] for row in np.linspace(0, len(items) - 1, limit).round().astype(int)]


def _footprint(name: str, data: bytes, size: int) -> Footprint:
    """Of the bytes of an image. Raises ValueError: it has no place, or cannot be read."""
    if driver_of(data) is None:
        raise ValueError("no GeoTIFF or JPEG 2000 file")
    with open_raster(data) as raster:
        file = raster.pages[0]
        crs, grid, height, width = file.crs, file.transform, file.height, file.width
    if crs is None or grid.is_identity:
        raise ValueError("no coordinate system, or no transform")
    scale = size / max(height, width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    footprint = Footprint(name, crs, grid * Affine.scale(width / columns, height / rows), rows,
                          columns)
    if grid.is_degenerate or not _is_on_earth(footprint):
        raise ValueError("its coordinates are not on earth")
    return footprint


def _is_on_earth(footprint: Footprint) -> bool:
    """Whether its coordinates are of a place; those of a local system are not."""
    try:
        found = footprint.centre()
    except Exception:  # GDAL raises many kinds for points that cannot be on earth
        return False
    return (all(map(math.isfinite, found)) and abs(found[0]) <= 90
            and footprint.metres() >= LEAST)


# ---------------------------------------------------------------- of both


def reject_unfit(footprints: Sequence[Footprint], without: Mapping[str, str], path: Path) -> None:
    """Raise InputError where no place is there, or one is larger than any service should draw."""
    if not footprints:
        raise InputError(f"none of the {len(without):,} images of {path} has a place on earth, "
                         f"such as {first_few(list(without))}: expected GeoTIFFs with coordinate "
                         "system and transform; of EuroSAT those of EuroSAT_MS.zip (13 bands) "
                         "have them, the JPEGs have not (https://zenodo.org/records/7711810)")
    files = {f"{footprint.name}.{kind}" for footprint in footprints for kind in ("tif", "jpg")}
    within = [footprint.name for footprint in footprints
              if not files.isdisjoint(map(str, PurePosixPath(footprint.name).parents))]
    if within:
        raise InputError(f"{first_few(within)} would lie in a folder that has the name of another "
                         "image's file: call one of them otherwise")
    large = [footprint.name for footprint in footprints if footprint.metres() > LARGEST]
    if large:
        raise InputError(f"{len(large):,} places are wider than {LARGEST / 1000:,.0f} km: "
                         f"{first_few(large)}")
