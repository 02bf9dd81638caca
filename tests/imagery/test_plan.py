"""What a plan says, by pencil, and that a service is asked for just that."""

import re

import pytest
from rasterio import Affine
from rasterio.crs import CRS

from imagery.cut import Fixed
from imagery.fetch import Pacer, gdal
from imagery.footprints import Footprint
from imagery.plan import Plan, disk_megabytes, plan_of
from imagery.rasters import Raster
from imagery.services import Service, Tiles
from imagery.table import _square
from place_helpers import collect, scene, tiles_of, write_table
from tile_server import HALF, Scale, mercator, scale_of

TILE = 2 * HALF / 2 ** 14  # metres of Web Mercator


def squares(*corners):
    """Images of 256 pixels that are half as wide as a tile of zoom 14, by column and row of it."""
    pixel = TILE / 2 / 256
    found = []
    for column, row in corners:
        grid = Affine(pixel, 0, column * TILE - HALF, 0, -pixel, HALF - row * TILE)
        found.append(Footprint(f"{column}", CRS.from_epsg(3857), grid, 256, 256))
    return found


def test_a_plan_by_pencil():
    """On the equator a pixel of zoom 15 is 4.777 m, as large as those of the images.

    The images take one tile of zoom 15, but for a border of pixels around: 9 tiles. The second one
    is the first one's neighbour, and needs 3 more; the third one lies apart and off the grid of
    tiles by half of one: 4.
    """
    source = Tiles(Service("https://a.example/{z}/{x}/{y}", 22, ""), None, 256, None, Pacer(1))
    places = squares((8192, 8192), (8192.5, 8192), (9000.25, 8192.25))
    with gdal():
        plan = plan_of(Fixed([source]), places)
        assert (plan.images, plan.tiles, plan.beyond) == (3, 9 + 3 + 4, 0)
        pixel = 40_075_016.686 / 2 ** 15 / 256
        assert plan.resolution == pytest.approx((pixel, pixel), rel=1e-4)
        assert plan.wanted == pytest.approx(pixel, rel=1e-4) == pytest.approx(4.777, rel=1e-3)
        assert plan.megabytes(256) == pytest.approx(16 * 0.02)
        assert plan.megabytes(512) == pytest.approx(4 * 16 * 0.02)
        # At another zoom: 32 pixels of zoom 12, one tile each but where they lie at its edge.
        single = Tiles(Service("https://a.example/{z}/{x}/{y}", 22, ""), 12, 256, None, Pacer(1))
        assert plan_of(Fixed([single]), squares((8193, 8193))).tiles == 1
        pole = _square("pole", 89, 0, 640, 256)
        assert plan_of(Fixed([source]), [pole]) == Plan(0, 0, 1, None, None)
    assert disk_megabytes(places, "tif") == pytest.approx(3 * 256 * 256 * 3 * 0.75 / 1e6)
    assert disk_megabytes(places, "jpg") == pytest.approx(3 * 256 * 256 * 3 * 0.2 / 1e6)


def test_tiles_on_both_sides_of_the_date_line_are_counted_once(server):
    places = [_square(name, 0, longitude, 640, 64) for name, longitude in
              (("a", 179.999), ("b", -179.999), ("c", 180))]
    with gdal():
        plan = plan_of(Fixed([tiles_of(server, scale_of(places[0]))]), places)
    assert plan.tiles == 4


def test_a_raster_on_this_machine_needs_no_tiles(tmp_path):
    place = _square("place", 48.1, 11.5, 320, 32)
    with gdal():
        raster = Raster(str(scene(tmp_path, place, pixel=5)[0]), None, Pacer(1))
        plan = plan_of(Fixed([raster]), [place])
    assert plan.tiles == 0 and plan.resolution == pytest.approx((5, 5), rel=0.01)


def test_of_several_rasters_the_one_that_reaches_a_place_counts(tmp_path):
    near, far = _square("near", 48.1, 11.5, 320, 32), _square("far", 48.1, 11.9, 320, 32)
    with gdal():
        rasters = [Raster(str(scene(tmp_path, place, pixel=pixel, name=f"{place.name}.tif")[0]),
                          None, Pacer(1)) for place, pixel in ((near, 5), (far, 8))]
        rasters[1].remote = True
        plan = plan_of(Fixed(rasters), [near, far])
    assert plan.tiles >= 1 and plan.resolution == pytest.approx((5, 8), rel=0.01)


@pytest.mark.parametrize(("interleave", "requests"), [("pixel", 1), ("band", 3)])
def test_each_band_of_a_file_of_bands_apart_is_a_request(tmp_path, interleave, requests):
    place = _square("place", 48.1, 11.5, 320, 32)
    with gdal():
        path, _ = scene(tmp_path, place, pixel=5, tiled=True, blockxsize=256, blockysize=256,
                        interleave=interleave)
        raster = Raster(str(path), None, Pacer(1))
        raster.remote = True
        assert plan_of(Fixed([raster]), [place]).tiles == requests


def everything(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("flags", [[], ["--zoom", 16], ["--size", 64], ["--tile_size", 512]],
                         ids=str)
def test_a_dry_run_writes_nothing_and_says_what_then_comes(capfd, tmp_path, server, flags):
    """Neighbours that share tiles, one across the date line, one out of reach."""
    server.size = 512 if "--tile_size" in flags else 256
    rows = [(f"p{number}", 48.1, 11 + number / 300) for number in range(6)]
    rows += [("date", 1, 180), ("pole", 89, 0)]
    table = write_table(tmp_path / "places.csv", "name,lat,lon\n" + "".join(
        f"{name},{latitude},{longitude}\n" for name, latitude, longitude in rows))
    service = ["--table", table, "--metres", 320, "--service",
               server.template(Scale(*mercator(11, 48.1), 2.6)), "--size", 32, *flags]
    before = everything(tmp_path)
    code, dry, error = collect(capfd, tmp_path, *service, "--dry_run")
    assert code == 0 and not error and not server.asked
    assert everything(tmp_path) == before, "something was written"
    assert "places: 8; done: 0; to collect: 7; out of reach: 1\n" in dry
    code, out, error = collect(capfd, tmp_path, *service)
    assert code == 0 and not error and out.startswith(dry)
    tiles = int(re.search("([0-9]+) different tiles, each counted once; at 1000 a", dry)[1])
    assert tiles == len(server.asked) == len(set(server.paths))
    assert "7 of 8 images are in" in out
    code, again, _ = collect(capfd, tmp_path, *service)
    assert code == 0 and "places: 8; done: 8; to collect: 0\n" in again
    assert len(server.asked) == tiles


def test_it_says_that_its_pixels_are_larger_than_what_is_wanted(capfd, tmp_path, server):
    table = write_table(tmp_path / "places.csv", "name,lat,lon\na,48.1,11\n")
    flags = ["--table", table, "--metres", 320, "--service",
             server.template(Scale(*mercator(11, 48.1), 2.6)), "--dry_run"]
    _, out, _ = collect(capfd, tmp_path, *flags, "--size", 32, "--zoom", 12)
    assert "pixels of 26 m, for images of 32 pixels of 10 m" in out
    assert "a smaller --size loses nothing" in out
    _, out, _ = collect(capfd, tmp_path, *flags, "--size", 32)
    assert "pixels of 6.4 m" in out and "a smaller --size" not in out
    assert "terms: its terms are for you to know" in out
