"""Where on earth an image lies: footprints in WGS84, distances, GeoJSON.

A footprint is `corners`: longitude and latitude, in degrees, of the upper left, upper right, lower
right and lower left corner of the image, eight numbers. It may lie across the date line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

EARTH_KM = 6371.0088  # mean radius
Corners = tuple[float, ...]


def place_of(file: Any, window: Sequence[int] | None = None) -> tuple[str, Corners] | None:
    """The coordinate system and the footprint of an open raster, or of a window of it.

    Args:
        file: a dataset of rasterio.
        window: column and row of the upper left pixel, width, height; None: all of it.
    Returns:
        the CRS as a string (EPSG:32633, or WKT), and corners; None where the file has no place, or
        one that four corners cannot tell: around a pole, or half around the earth.
    """
    from rasterio.transform import from_gcps, xy  # here, because most images need it not
    from rasterio.warp import transform

    crs, grid = file.crs, file.transform
    points, points_crs = file.gcps
    if crs is None and points:
        crs, grid = points_crs, from_gcps(points)
    if crs is None or grid.is_identity:
        return None
    column, row, width, height = window or (0, 0, file.width, file.height)
    rows = [row, row, row + height, row + height, row + height / 2]  # the last one: the centre
    columns = [column, column + width, column + width, column, column + width / 2]
    x, y = xy(grid, rows, columns, offset="ul")
    try:
        longitudes, latitudes = transform(crs, "EPSG:4326", x, y)
    except Exception:  # of GDAL's many kinds: a local system, or points that are not on earth
        return None
    points = []
    for longitude, latitude in zip(longitudes, latitudes, strict=True):
        if not (math.isfinite(longitude) and abs(latitude) <= 90):
            return None
        points += [(longitude + 180) % 360 - 180 if abs(longitude) > 180 else longitude, latitude]
    *corners, centre_longitude, centre_latitude = points
    if not contains(tuple(corners), centre_latitude, centre_longitude):
        return None
    return crs.to_string(), tuple(corners)


# ---------------------------------------------------------------- on the sphere


def _near(longitude: float, reference: float) -> float:
    """The same meridian, less than half a turn from `reference`."""
    return reference + (longitude - reference + 180) % 360 - 180


def ring_of(corners: Corners, reference: float | None = None) -> list[tuple[float, float]]:
    """The corners as (longitude, latitude), no jump between them; they may leave -180..180."""
    reference = corners[0] if reference is None else reference
    first = _near(corners[0], reference)
    return [(_near(corners[2 * place], first), corners[2 * place + 1]) for place in range(4)]


def centre_of(corners: Corners) -> tuple[float, float]:
    """Latitude and longitude of the middle of a footprint."""
    longitude, latitude = np.mean(ring_of(corners), axis=0).tolist()
    return latitude, (longitude + 180) % 360 - 180


def boxes_of(corners: Corners) -> list[tuple[float, float, float, float]]:
    """West, east, south, north around a footprint; two boxes where it lies across the date line."""
    ring = ring_of(corners)
    west, south = np.min(ring, axis=0).tolist()
    east, north = np.max(ring, axis=0).tolist()
    if west < -180:
        return [(west + 360, 180.0, south, north), (-180.0, east, south, north)]
    if east > 180:
        return [(west, 180.0, south, north), (-180.0, east - 360, south, north)]
    return [(west, east, south, north)]


def contains(corners: Corners, latitude: float, longitude: float) -> bool:
    """Whether a point lies in a footprint, its edges included."""
    ring = [(x - longitude, y - latitude) for x, y in ring_of(corners, longitude)]
    turns = []
    for (x, y), (to_x, to_y) in zip(ring, ring[1:] + ring[:1], strict=True):
        turns.append(x * to_y - to_x * y)  # which side of this edge the point lies on
    return all(turn >= 0 for turn in turns) or all(turn <= 0 for turn in turns)


def distance_km(latitude: float, longitude: float, other: tuple[float, float]) -> float:
    """Along a great circle of a sphere, to the (latitude, longitude) `other`."""
    there, here = math.radians(other[0]), math.radians(latitude)
    chord = (math.sin((there - here) / 2) ** 2 + math.cos(there) * math.cos(here)
             * math.sin(math.radians(other[1] - longitude) / 2) ** 2)
    return 2 * EARTH_KM * math.asin(min(1.0, math.sqrt(chord)))


def boxes_around(latitude: float, longitude: float, km: float
                 ) -> list[tuple[float, float, float, float]]:
    """Boxes as of `boxes_of` that hold all points within so many kilometres."""
    angle = km / EARTH_KM
    south, north = latitude - math.degrees(angle), latitude + math.degrees(angle)
    if south <= -90 or north >= 90:  # around a pole all meridians are near
        return [(-180.0, 180.0, max(south, -90.0), min(north, 90.0))]
    half = math.degrees(math.asin(min(1.0, math.sin(angle) / math.cos(math.radians(latitude)))))
    if half > 89:  # it all but touches a pole; boxes may be too large, but not too small
        return [(-180.0, 180.0, south, north)]
    return boxes_of((longitude - half, north, longitude + half, north, longitude + half, south,
                     longitude - half, south))


# ---------------------------------------------------------------- GeoJSON


def geometry_of(corners: Corners | None) -> dict[str, Any] | None:
    """A footprint as a geometry of GeoJSON (RFC 7946): counter-clockwise, cut at the date line."""
    if corners is None:
        return None
    ring = ring_of(corners)
    area = sum(x * to_y - to_x * y for (x, y), (to_x, to_y)
               in zip(ring, ring[1:] + ring[:1], strict=True))
    ring = ring if area > 0 else ring[::-1]
    west, east = min(ring)[0], max(ring)[0]
    if west >= -180 and east <= 180:
        return {"type": "Polygon", "coordinates": [_closed(ring)]}
    line, turn = (-180, 360) if west < -180 else (180, -360)
    inside = _cut(ring, line, keep_west=line == 180)
    outside = [(x + turn, y) for x, y in _cut(ring, line, keep_west=line == -180)]
    return {"type": "MultiPolygon", "coordinates": [[_closed(inside)], [_closed(outside)]]}


def _closed(ring: Sequence[tuple[float, float]]) -> list[list[float]]:
    return [list(point) for point in (*ring, ring[0])]


def _cut(ring: Sequence[tuple[float, float]], meridian: float, keep_west: bool
         ) -> list[tuple[float, float]]:
    """The part of a ring on one side of a meridian (Sutherland & Hodgman, CACM 1974)."""
    sign = 1 if keep_west else -1
    kept = []
    for (x, y), (to_x, to_y) in zip(ring, [*ring[1:], ring[0]], strict=True):
        inside, ends_inside = sign * (meridian - x) >= 0, sign * (meridian - to_x) >= 0
        if inside:
            kept.append((x, y))
        if inside != ends_inside:
            share = (meridian - x) / (to_x - x)
            kept.append((float(meridian), y + share * (to_y - y)))
    return kept
