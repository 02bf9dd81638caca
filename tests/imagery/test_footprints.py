"""The places of images and tables, held against values worked out by pencil, and bad ones."""

import math
from itertools import pairwise

import numpy as np
import pytest
from rasterio import Affine
from rasterio.crs import CRS

from image_helpers import complaint, encoded, tree
from imagery.footprints import Footprint, footprints_of_images, reject_unfit
from imagery.table import footprints_of_table
from place_helpers import image_at, on_grid, write_raster, write_table

A = 6378137.0  # metres, the larger half axis of WGS84
WGS84 = CRS.from_epsg(4326)


# ------------------------------------------------------------ a footprint


@pytest.mark.parametrize(("latitude", "metres"), [
    (0, A * math.radians(0.01)),  # the equator is a circle
    # At 60 degrees: the radius of curvature a / sqrt(1 - e2 sin2) times cos, e2 = 0.00669438.
    (60, A / math.sqrt(1 - 0.00669437999 * 0.75) * 0.5 * math.radians(0.01))])
def test_how_wide_a_place_is(latitude, metres):
    assert metres == pytest.approx({0: 1113.19, 60: 558.00}[latitude], abs=0.01)
    for west in (15, 179.995, -180.002):
        footprint = Footprint("a", WGS84, Affine(0.001, 0, west, 0, -0.001, latitude + 0.002), 4,
                              10)
        assert footprint.metres() == pytest.approx(metres, rel=1e-6)
    # Columns that run north: a degree is 110,574 m long at the equator, 111,412 m at 60 degrees.
    turned = Footprint("a", WGS84, Affine(0, 0.001, 15, 0.001, 0, latitude - 0.005), 4, 10)
    along = {0: 1105.74, 60: 1114.12}[latitude]
    assert turned.metres() == pytest.approx(along, abs=0.02)


def test_a_utm_grid_is_a_little_shorter_than_the_ground():
    assert on_grid(32633, 500_000 - 160, 5_400_000).metres() == pytest.approx(
        320 / 0.9996, rel=1e-6)


def test_where_the_middle_is():
    assert Footprint("a", WGS84, Affine(0.5, 0, 179, 0, -0.25, 1), 4, 6).centre() == (
        pytest.approx(0.5), pytest.approx(-179.5))


# ------------------------------------------------------------ of images


def names_of(found):
    return [footprint.name for footprint in found]


def test_places_of_a_folder_and_of_a_zip(tmp_path):
    """EuroSAT's: classes below a folder that holds all; some images have no place."""
    files = {}
    for name in ("Forest/Forest_1", "Forest/Forest_2", "River/River_1"):
        path = image_at(tmp_path / "made.tif", on_grid(32632, 500_000 + 640 * len(files), 5e6), 13,
                        dtype="uint16")
        files[f"ds/ms/{name}.tif"] = path.read_bytes()
    files["ds/ms/River/River_2.jpg"] = encoded(np.zeros((8, 8, 3), np.uint8), "JPEG")
    for place in (tree(tmp_path / "a.zip", files), tree(tmp_path / "a", files)):
        found, without = footprints_of_images(place, 64)
        assert names_of(found) == ["Forest/Forest_1", "Forest/Forest_2", "River/River_1"]
        assert without == {"River/River_2": "no GeoTIFF or JPEG 2000 file"}
        assert [footprint.transform.c for footprint in found] == [500_000, 500_640, 501_280]
        assert found[0].crs == CRS.from_epsg(32632) and found[0].transform.a == 5
        # A name is the same whichever images are chosen.
        found, _ = footprints_of_images(place, 64, include=["Forest/*"], exclude=["*_2.tif"])
        assert names_of(found) == ["Forest/Forest_1"]


def test_the_longer_side_has_the_size_and_corners_stay(tmp_path):
    wide = on_grid(32633, 400_000, 5_400_000, turn=20, height=21, width=64)
    image_at(tmp_path / "images" / "a.tif", wide)
    image_at(tmp_path / "images" / "b.tif", on_grid(4326, 11, 48, pixel=1e-4, height=64, width=3))
    (a, b), without = footprints_of_images(tmp_path / "images", 100)
    assert (a.height, a.width) == (33, 100) and (b.height, b.width) == (100, 5) and not without
    for corner in ((0, 0), (1, 0), (0, 1), (1, 1)):
        assert a.transform * (corner[0] * 100, corner[1] * 33) == pytest.approx(
            wide.transform * (corner[0] * 64, corner[1] * 21))


def test_scenes_of_one_file_a_band_have_one_place(tmp_path):
    for scene in ("S1", "S2"):
        for band in ("B02", "B03", "B04"):
            image_at(tmp_path / "scenes" / scene / f"{scene}_{band}.tif",
                     on_grid(32633, 400_000, 5_400_000), 1)
    found, _ = footprints_of_images(tmp_path / "scenes", 32)
    assert names_of(found) == ["S1", "S2"]
    found, _ = footprints_of_images(tmp_path / "scenes", 32, include=["*S2*"])
    assert names_of(found) == ["S2"]


LOCAL = CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')


@pytest.mark.parametrize(("crs", "grid"), [
    (None, Affine(1, 0, 5, 0, -1, 5)), ("EPSG:4326", None), (LOCAL, Affine(1, 0, 0, 0, -1, 0)),
    ("EPSG:32633", Affine(1e7, 0, 5e7, 0, -1e7, 9e9)), ("EPSG:4326", Affine(1, 0, 0, 0, -1, 200))],
    ids=["no CRS", "no grid", "a local CRS", "beyond", "200 degrees north"])
def test_images_without_a_place(tmp_path, crs, grid):
    (tmp_path / "images").mkdir()
    write_raster(tmp_path / "images" / "a.tif", np.ones((1, 8, 8), np.uint8), crs, grid)
    found, without = footprints_of_images(tmp_path / "images", 32)
    assert found == [] and list(without) == ["a"]
    complaint(lambda: reject_unfit(found, without, tmp_path), "none of the 1 images",
              "such as a: expected GeoTIFFs", "EuroSAT_MS.zip")


def test_a_damaged_image_is_named(tmp_path):
    path = image_at(tmp_path / "images" / "a.tif", on_grid(32633, 400_000, 5_400_000))
    path.write_bytes(path.read_bytes()[:60])
    found, without = footprints_of_images(tmp_path / "images", 32)
    assert not found and without["a"].startswith("damaged: ")


def test_places_as_large_as_a_continent_are_refused():
    large = on_grid(32633, 400_000, 5_400_000, pixel=40_000)
    complaint(lambda: reject_unfit([large], [], None), "1 places are wider than 1,000 km: place")


# ------------------------------------------------------------ of a table


def table(tmp_path, text, metres=640, size=64):
    return footprints_of_table(write_table(tmp_path / "places.csv", text), metres, size)


@pytest.mark.parametrize(("latitude", "longitude", "code"), [
    (48.1, 11.5, 32632), (-0.1, 11.5, 32732), (0, -180, 32601), (0, 180, 32660), (10, 179.9, 32660),
    (84.5, 20, 32661), (-81, 20, 32761)])
def test_a_point_becomes_a_square_around_it(tmp_path, latitude, longitude, code):
    place, = table(tmp_path, f"name,lat,lon\nA/1,{latitude},{longitude}\n")
    assert place.name == "A/1" and place.crs == CRS.from_epsg(code)
    assert (place.height, place.width) == (64, 64) and place.transform.a == 10
    turned = (longitude + 180) % 360 - 180
    assert place.centre() == pytest.approx((latitude, turned), abs=1e-7)
    assert place.metres() == pytest.approx(640, rel=0.01)


def test_a_box_has_pixels_that_are_square_on_the_ground(tmp_path):
    """At 60 degrees a degree of longitude is half as long as one of latitude."""
    text = "name;west;south;east;north\nb;10;59.99;10.04;60.01\na;179,5;0;-179,5;1\n"
    a, b = table(tmp_path, text.replace(",", "."), None, 100)
    assert (a.name, b.name) == ("a", "b") and b.crs == WGS84
    assert (b.height, b.width) == (100, 100) and (a.height, a.width) == (100, 100)
    assert b.transform * (100, 100) == pytest.approx((10.04, 59.99))
    assert a.transform * (0, 0) == (179.5, 1) and a.transform * (100, 100) == (180.5, 0)


@pytest.mark.parametrize("text", [
    "name,lat,lon\nA/1,48,11\n", "\ufeffName; Latitude ;LONGITUDE\r\n A/1 ; 48 ;11\r\n",
    "id\tlng\tlat\tnote\nA/1\t11\t48\t\"a\tb\"\n\n", "file,x,y,\nA/1.tif,11,48,\n",
    "image,lon,lat\nA\\1.jpg,11.0,48.00\n", "name;lat;lon\nA/1;48,000;11,0\n",
    "id,name,lat,lon,,\n7,A/1,48,11,,\n", 'name,lat,lon\n"A/1","48,0","11"\n'])
def test_tables_as_programs_write_them(tmp_path, text):
    place, = table(tmp_path, text)
    assert place.name == "A/1" and place.centre() == pytest.approx((48, 11), abs=1e-7)


@pytest.mark.parametrize(("text", "metres", "parts"), [
    ("name,place\na,b\n", 640, ("has the columns name, place: expected name, lat, lon, or name",)),
    ("lat,lon\n1,2\n", 640, ("has the columns latitude, longitude: expected name",)),
    ("name,lat,lon\n", 640, ("holds no place: expected a first line",)),
    ("", 640, ("holds no place",)),
    ("name,lat,latitude,lon\na,1,1,1\n", 640, ("names a column twice: name, latitude, lati",)),
    ("name,lat,lon\na,1,1\n", None, ("has points: say with --metres how wide", "640")),
    ("name,west,south,east,north\na,1,1,2,2\n", 5, ("has boxes, to which --metres does not",)),
    ("name,lat,lon\nok,1,1\na,95,1\n", 640, ("line 3: the latitude is '95', expected degrees from "
                                             "-90 to 90",)),
    ("name,lat,lon\n\na,1,181\n", 640, ("line 3: the longitude is '181', expected degrees from "
                                        "-180 to 180",)),
    ("name,lat,lon\na,1,nan\n", 640, ("line 2: the longitude is 'nan'",)),
    ("name,lat,lon\na,48° N,1\n", 640, ("line 2: the latitude is '48° N'",)),
    ("name,lat,lon\na,1\n", 640, ("line 2: the longitude is ''",)),
    ("name,lat,lon\na,1,1\nb,1,1\na.tif,2,2\n", 640, ("line 4: the name a stands there twice",)),
    ("name,lat,lon\n../a,1,1\n", 640, ("line 2: '../a' cannot name an image",)),
    ("name,lat,lon\na/../../b,1,1\n", 640, ("line 2: 'a/../../b' cannot name an image",)),
    ("name,lat,lon\n..\\a,1,1\n", 640, (r"cannot name an image",)),
    ("name,lat,lon\n/etc/a,1,1\n", 640, ("line 2: '/etc/a' cannot name an image",)),
    ("name,lat,lon\n.hidden,1,1\n", 640, ("line 2: '.hidden' cannot name an image",)),
    ("name,lat,lon\n,1,1\n", 640, ("line 2: '' cannot name an image",)),
    ("name,lat,lon\na\x07b,1,1\n", 640, ("cannot name an image",)),
    ("name,west,south,east,north\na,1,2,2,1\n", None, ("line 2: a box from 1 to 2 degrees east and "
                                                       "from 2 to 1 north holds no place",)),
    ("name,west,south,east,north\na,-180,2,180,3\n", None, ("holds no place",)),
    ("name,west,south,east,north\na,3,2,1,3\n", None, ("holds no place",)),
    ("name,lat,lon\na,50,1,15,1\n", 640, ("line 2 has 5 values for 3 columns: put those with",)),
    ("name,lat,lon\ncollect.csv/a,1,1\n", 640, ("cannot name an image",)),
    ("name,lat,lon\na,5_0,1\n", 640, ("line 2: the latitude is '5_0'",)),
    ("name,west,south,east,north\na,1,2,1.000001,3\n", None, ("holds no place",)),
    ("name,lat,lon\n" + "a" * 201 + ",1,1\n", 640, ("cannot name an image",)),
    (f'name,lat,lon\n"a{"b" * 200_000}', 640, ("line 2 cannot be read (field larger than",))],
    ids=range(29))
def test_tables_that_cannot_be_used(tmp_path, text, metres, parts):
    complaint(lambda: table(tmp_path, text, metres), *parts)


def test_a_table_that_is_none(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"name,lat,lon\n\xff\xfe,1,1\n")
    complaint(lambda: footprints_of_table(tmp_path / "a.csv", 640, 64), "is no text in UTF-8")


def test_names_are_in_order(tmp_path):
    found = table(tmp_path, "name,lat,lon\n" + "".join(f"{name},1,1\n" for name in "cab"))
    assert all(one.name < other.name for one, other in pairwise(found))


@pytest.mark.parametrize("grid", [Affine(0, 0, 500_000, 0, 0, 5_500_000),
                                  Affine(1e-6, 0, 500_000, 0, -1e-6, 5_500_000)])
def test_an_image_of_nothing_is_no_place(tmp_path, grid):
    (tmp_path / "images").mkdir()
    write_raster(tmp_path / "images" / "a.tif", np.ones((1, 8, 8), np.uint8), "EPSG:32633", grid)
    found, without = footprints_of_images(tmp_path / "images", 32)
    assert not found and without["a"] in ("its coordinates are not on earth",
                                          "no coordinate system, or no transform")


def test_names_in_a_zip_cannot_lead_out_of_the_folder(tmp_path):
    data = image_at(tmp_path / "made.tif", on_grid(32633, 400_000, 5_400_000)).read_bytes()
    tree(tmp_path / "a.zip", {"k/../../../slipped/a.tif": data, "k/b.tif": data,
                              "k/" + "c" * 240 + ".tif": data})
    found, without = footprints_of_images(tmp_path / "a.zip", 32)
    assert names_of(found) == ["b"]
    assert sorted(reason[:8] for reason in without.values()) == ["its name"] * 2


def test_a_folder_cannot_have_the_name_of_a_file(tmp_path):
    found = table(tmp_path, "name,lat,lon\na,1,1\na.tif/b,1,1\n")
    complaint(lambda: reject_unfit(found, {}, tmp_path), "a.tif/b would lie in a folder that has")
