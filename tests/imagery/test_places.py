"""Footprints, distances and GeoJSON, held against values worked out by pencil."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.io import MemoryFile

from imagery.places import (
    EARTH_KM,
    boxes_around,
    boxes_of,
    centre_of,
    contains,
    distance_km,
    geometry_of,
    place_of,
    ring_of,
)

A = 6378137.0  # the larger half axis of WGS84, metres
SIDE = 10
ROUND_45_NORTH = 4984944.378 * 0.9996  # UTM: the meridian from the equator to 45 degrees, scaled
FIJI = (179.0, -16.0, -179.5, -16.0, -179.5, -17.0, 179.0, -17.0)
BERLIN, PARIS, SYDNEY = (52.52, 13.405), (48.8566, 2.3522), (-33.8688, 151.2093)


def placed(crs, grid, window=None, **options):
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", count=1, height=SIDE, width=SIDE, dtype="uint8", crs=crs,
                         transform=grid, **options) as file:
            file.write(np.ones((1, SIDE, SIDE), np.uint8))
        with memory.open() as file:
            return place_of(file, window)


def test_a_footprint_in_utm():
    """Half a zone east of its border lies the meridian, 500 km from the false origin."""
    grid = Affine(10, 0, 500_000, 0, -10, ROUND_45_NORTH)
    crs, corners = placed("EPSG:32633", grid)
    assert crs == "EPSG:32633"
    assert corners[:2] == pytest.approx((15, 45), abs=1e-8)
    # 100 m on the ellipsoid: its radius in the prime vertical and along the meridian at 45 degrees.
    squared = 1 - 0.00669437999 / 2
    east = math.degrees(100 / 0.9996 / (A / math.sqrt(squared) * math.cos(math.pi / 4)))
    south = math.degrees(100 / 0.9996 / (A * (1 - 0.00669437999) / squared**1.5))
    assert corners[2] - 15 == pytest.approx(east, rel=1e-4)
    assert 45 - corners[7] == pytest.approx(south, rel=1e-4)
    assert corners[6] == pytest.approx(15, abs=1e-8)


def test_a_window_in_web_mercator():
    """x = a longitude, y = a ln tan(45 degrees + latitude / 2)."""
    metres = A * math.radians(1)
    grid = Affine(metres, 0, 20 * metres, 0, -metres, 10 * metres)
    _, corners = placed("EPSG:3857", grid, window=(2, 4, 3, 5))

    def latitude(y):
        return math.degrees(2 * math.atan(math.exp(math.radians(y))) - math.pi / 2)

    expected = (22, latitude(6), 25, latitude(6), 25, latitude(1), 22, latitude(1))
    assert corners == pytest.approx(expected, abs=1e-9)


def test_corners_are_those_of_the_image_however_it_lies():
    south_up = placed("EPSG:4326", Affine(0.1, 0, 11, 0, 0.2, 47))[1]
    assert south_up == pytest.approx((11, 47, 12, 47, 12, 49, 11, 49))
    turned = placed("EPSG:4326", Affine(0, 0.1, 11, 0.1, 0, 47))[1]  # columns go north
    assert turned == pytest.approx((11, 47, 11, 48, 12, 48, 12, 47))
    diamond = placed("EPSG:4326", Affine(0.1, 0.1, 11, 0.1, -0.1, 47))[1]
    assert diamond == pytest.approx((11, 47, 12, 48, 13, 47, 12, 46))
    for corners in (south_up, turned, diamond):
        latitude, longitude = centre_of(corners)
        assert contains(corners, latitude, longitude)
    assert contains(diamond, 47, 12) and not contains(diamond, 47.6, 11.3)  # in its box alone


def test_control_points_stand_in_for_a_grid():
    points = [GroundControlPoint(row, column, 11 + column / 10, 48 - row / 5)
              for row, column in ((0, 0), (0, 10), (10, 0), (10, 10))]
    assert placed("EPSG:4326", None, gcps=points)[1] == pytest.approx(
        (11, 48, 12, 48, 12, 46, 11, 46))


LOCAL = rasterio.crs.CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')


@pytest.mark.parametrize(("crs", "grid"), [
    (None, Affine(1, 0, 5, 0, -1, 5)),
    ("EPSG:4326", None),
    (LOCAL, Affine(1, 0, 0, 0, -1, 0)),
    ("EPSG:32633", Affine(1e7, 0, 5e7, 0, -1e7, 9e9)),  # beyond the earth
    ("EPSG:4326", Affine(36, 0, -180, 0, -18, 90)),  # all of it
    ("EPSG:3413", Affine(1000, 0, -5000, 0, -1000, 5000)),  # the pole in the middle
], ids=["no CRS", "no grid", "a local CRS", "beyond", "the globe", "a pole"])
def test_no_place_where_corners_tell_none(crs, grid):
    assert placed(crs, grid) is None


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.floats(-9900, -100), st.floats(100, 9900), st.sampled_from(["EPSG:3413", "EPSG:3031"]))
def test_a_footprint_around_a_pole_has_no_place(left, top, crs):
    assert placed(crs, Affine(1000, 0, left, 0, -1000, top)) is None


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.floats(0, 2 * math.pi), st.sampled_from([3e4, 1e5, 2e6]),
       st.sampled_from(["EPSG:3413", "EPSG:3031"]))
def test_beside_a_pole_all_meridians_can_be_told(angle, metres, crs):
    grid = Affine(1000, 0, metres * math.cos(angle), 0, -1000, metres * math.sin(angle))
    _, corners = placed(crs, grid)
    steps = np.diff(ring_of(corners), axis=0)
    assert abs(steps[:, 0]).max() < 90


# ------------------------------------------------------------ the date line


def test_a_footprint_across_the_date_line():
    """In a Mercator around 150 degrees east, which has no jump there."""
    metres = A * math.radians(0.1)
    grid = Affine(metres, 0, 290 * metres, 0, -metres, 5 * metres)
    _, corners = placed("EPSG:3832", grid)
    assert [x for x, _ in ring_of(corners, 180)] == pytest.approx([179, 180, 180, 179])
    _, corners = placed("EPSG:3832", Affine(metres, 0, 295 * metres, 0, -metres, 5 * metres))
    assert corners[::2] == pytest.approx((179.5, -179.5, -179.5, 179.5))
    assert placed("EPSG:4326", Affine(0.1, 0, 359.5, 0, -0.1, 1))[1][::2] == pytest.approx(
        (-0.5, 0.5, 0.5, -0.5))  # grids that count to 360


@pytest.mark.parametrize("turn", range(4))
def test_both_sides_of_the_date_line(turn):
    """Whichever corner comes first."""
    corners = FIJI[2 * turn:] + FIJI[:2 * turn]
    assert sorted(boxes_of(corners)) == [(-180, -179.5, -17, -16), (179, 180, -17, -16)]
    latitude, longitude = centre_of(corners)
    assert (latitude, longitude) == pytest.approx((-16.5, 179.75))
    inside = (179, 179.9, 180, -180, -179.9, -179.5)
    assert all(contains(corners, -16.5, longitude) for longitude in inside)
    outside = (178.9, -179.4, 0, 0.25, -0.25, 90, -90)
    assert not any(contains(corners, -16.5, longitude) for longitude in outside)
    assert not contains(corners, -15.9, 180) and contains(corners, -16, 180)


def test_the_centre_is_a_longitude():
    assert centre_of((-179.9, 1, -179.7, 1, -179.7, 0, -179.9, 0)) == pytest.approx((0.5, -179.8))
    assert centre_of((179.9, 1, -179.7, 1, -179.7, 0, 179.9, 0)) == pytest.approx((0.5, -179.9))


# ------------------------------------------------------------ distances


@pytest.mark.parametrize(("here", "there", "km"), [  # great circles, as gazetteers have them
    (BERLIN, PARIS, 878), (BERLIN, SYDNEY, 16_094),
    ((0, 0), (0, 180), math.pi * EARTH_KM), ((90, 0), (-90, 77), math.pi * EARTH_KM),
    ((0, 179.5), (0, -179.5), math.radians(1) * EARTH_KM), ((90, 12), (90, 99), 0)])
def test_distances(here, there, km):
    for one, other in ((here, there), (there, here)):
        assert distance_km(*one, other) == pytest.approx(km, rel=1e-3, abs=1e-9)


def reached(latitude, longitude, km, bearing):
    """Where one is after so many kilometres on a great circle."""
    phi, angle = math.radians(latitude), km / EARTH_KM
    sine = (math.sin(phi) * math.cos(angle)
            + math.cos(phi) * math.sin(angle) * math.cos(bearing))
    sine = min(1.0, max(-1.0, sine))
    east = math.atan2(math.sin(bearing) * math.sin(angle) * math.cos(phi),
                      math.cos(angle) - math.sin(phi) * sine)
    return math.degrees(math.asin(sine)), (longitude + math.degrees(east) + 180) % 360 - 180


LATITUDES, LONGITUDES = st.floats(-90, 90), st.floats(-180, 180)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(LATITUDES, LONGITUDES, st.floats(0.001, 21_000), st.floats(0, 2 * math.pi),
       st.floats(0, 1))
def test_every_point_within_reach_lies_in_a_box(latitude, longitude, km, bearing, share):
    way = share * km * (1 - 1e-9)
    at, along = reached(latitude, longitude, way, bearing)
    if way < math.pi * EARTH_KM:
        assert distance_km(latitude, longitude, (at, along)) == pytest.approx(way, abs=1e-3)
    near = 1e-7  # of degrees: where arcs of 90 degrees lose digits
    assert any(west - near <= along <= east + near and south - near <= at <= north + near
               for west, east, south, north in boxes_around(latitude, longitude, km))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.floats(0, 89.99), LONGITUDES, st.floats(-1e-9, 1e-9), st.sampled_from([1, -1]))
def test_reaching_a_pole_is_reaching_all_meridians(latitude, longitude, more, side):
    km = math.radians(90 - latitude + more) * EARTH_KM
    boxes = boxes_around(side * latitude, longitude, km)
    assert [box[:2] for box in boxes] == [(-180, 180)]


def test_boxes_are_no_larger_than_need_be():
    """At 60 degrees north a degree of longitude is half as long as one of latitude."""
    km = math.radians(1) * EARTH_KM
    (west, east, south, north), = boxes_around(60, 10, km)
    assert (south, north) == pytest.approx((59, 61)) and east - west == pytest.approx(4, rel=0.001)
    around = boxes_around(0, 179.5, km)
    assert sorted(around) == [pytest.approx((-180, -179.5, -1, 1)),
                              pytest.approx((178.5, 180, -1, 1))]


# ------------------------------------------------------------ GeoJSON


def area(ring):
    """Of a closed ring, in square degrees; above 0: counter-clockwise."""
    return sum(x * to_y - to_x * y for (x, y), (to_x, to_y)
               in pairwise(ring)) / 2


def rings(geometry):
    assert json.loads(json.dumps(geometry, allow_nan=False)) == geometry
    if geometry["type"] == "Polygon":
        return geometry["coordinates"]
    assert geometry["type"] == "MultiPolygon"
    return [ring for ring, in geometry["coordinates"]]


def test_a_footprint_as_geojson():
    """The corners of an image go round clockwise."""
    assert geometry_of((11, 48, 12, 48, 12, 47, 11, 47)) == {
        "type": "Polygon", "coordinates": [[[11, 47], [12, 47], [12, 48], [11, 48], [11, 47]]]}
    assert geometry_of(None) is None


def test_it_is_cut_at_the_date_line():
    geometry = geometry_of(FIJI)
    west, east = sorted(rings(geometry), reverse=True)
    assert {tuple(point) for point in west} == {(179, -16), (180, -16), (180, -17), (179, -17)}
    assert {tuple(point) for point in east} == {(-180, -16), (-179.5, -16), (-179.5, -17),
                                                (-180, -17)}
    assert area(west) == 1 and area(east) == 0.5


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.floats(-180, 180), st.floats(-80, 80), st.floats(0.01, 4), st.floats(0.01, 4),
       st.floats(0, 2 * math.pi), st.booleans())
def test_any_footprint_is_valid_geojson(longitude, latitude, width, height, turn, mirrored):
    turning = Affine.translation(longitude, latitude) * Affine.rotation(math.degrees(turn))
    box = [(-width, height), (width, height), (width, -height), (-width, -height)]
    corners = []
    for point in box[::-1] if mirrored else box:
        x, y = turning * point
        corners += [(x + 180) % 360 - 180, y]
    parts = rings(geometry_of(tuple(corners)))
    for ring in parts:
        assert ring[0] == ring[-1] and len(ring) >= 4
        assert area(ring) >= 0 and np.abs(np.array(ring)[:, 0]).max() <= 180
    assert sum(map(area, parts)) == pytest.approx(4 * width * height, abs=1e-9)
    crossing = min(abs(x) for x, _ in ring_of(tuple(corners))) > 100 and any(
        abs(x) > 180 for x, _ in ring_of(tuple(corners)))
    assert (len(parts) == 2) == crossing
