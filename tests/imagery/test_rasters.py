"""Images out of rasters of any kind: where they lie, and what is not there."""

import numpy as np
import pytest
import rasterio
from rasterio import Affine

from imagery.cut import RESAMPLING, OutOfReach, cut, cut_of_first
from imagery.fetch import Pacer, gdal
from imagery.footprints import Footprint
from imagery.rasters import Raster
from imagery.table import _square
from place_helpers import (
    SIDE,
    assert_in_place,
    drawn,
    extent,
    on_grid,
    scene,
    write_raster,
)
from tile_server import scale_of, shift
from utils import InputError

PLACE = on_grid(32633, 400_003, 5_400_004)
SCALE = scale_of(PLACE)
AROUND = extent(PLACE, PLACE.crs, 10)


@pytest.fixture(autouse=True)
def environment():
    with gdal():
        yield


def opened(path, bands=None):
    return Raster(str(path), bands, Pacer(1000))


@pytest.mark.parametrize(("crs", "pixel"), [
    ("EPSG:32633", 10), ("EPSG:32633", 1.3), ("EPSG:32633", 37), ("EPSG:4326", 1e-4),
    ("EPSG:3035", 7), ("EPSG:3857", 14.9), ("EPSG:32632", 10)])
def test_a_raster_in_another_system(tmp_path, crs, pixel):
    for footprint in (PLACE, on_grid(32633, 400_003, 5_400_004, turn=25, height=19)):
        path, scale = scene(tmp_path, footprint, crs, pixel)
        found = cut(opened(path), footprint)
        assert found.pixels.dtype == np.uint8
        assert_in_place(found, footprint, scale)


def test_a_raster_in_utm_south(tmp_path):
    footprint = on_grid(32756, 320_000, 6_200_000)
    path, scale = scene(tmp_path, footprint, pixel=6)
    assert_in_place(cut(opened(path), footprint), footprint, scale)


@pytest.mark.parametrize("grid", [
    Affine(10, 0, 399_800, 0, 10, 5_399_500),  # rows run north
    Affine(7, 0, 399_900, 0, -7, 5_400_300) * Affine.rotation(20)], ids=["south up", "turned"])
def test_a_raster_however_it_lies(tmp_path, grid):
    path = write_raster(tmp_path / "a.tif", drawn(PLACE.crs, grid, 150, 150, SCALE), PLACE.crs,
                        grid)
    assert_in_place(cut(opened(path), PLACE), PLACE, SCALE)


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint16", "int16", "int32"])
def test_numbers_keep_their_type(tmp_path, dtype):
    grid, height, width = AROUND
    pixels = drawn(PLACE.crs, grid, height, width, SCALE).astype(dtype) * 100
    path = write_raster(tmp_path / "a.tif", pixels, PLACE.crs, grid)
    found = cut(opened(path), PLACE)
    assert found.pixels.dtype == dtype
    found.pixels = found.pixels / 100
    assert_in_place(found, PLACE, SCALE)


def test_overviews_stand_in_for_finer_pixels(tmp_path):
    grid, height, width = extent(PLACE, PLACE.crs, 1.3)
    pixels = drawn(PLACE.crs, grid, height, width, SCALE).astype("float32")
    for number, (overviews, factor) in enumerate([((2, 4, 8), 4), ((3, 6), 6), ((2,), 2),
                                                  ((16,), 1)]):
        path = write_raster(tmp_path / f"{number}.tif", pixels, PLACE.crs, grid, overviews)
        found = cut(opened(path), PLACE)
        assert found.view.factor == factor and found.source.zoom(1) == ""
        assert_in_place(found, PLACE, SCALE)


def test_bands_and_their_order(tmp_path):
    path, scale = scene(tmp_path, PLACE)
    found = cut(opened(path, [3, 1, 2]), PLACE)
    found.pixels = found.pixels[[1, 2, 0]]
    assert_in_place(found, PLACE, scale)


# ------------------------------------------------------------ what is not there


FINER = extent(PLACE, PLACE.crs, 7)  # off the grid of the place, so that neighbours have a part
HOLE = np.zeros(FINER[1:], bool)
HOLE[40:44, 40:46] = True


def holed(path, hole=HOLE, dtype="uint8", **options):
    """A raster with a hole; nodata, NaN or alpha tells of it."""
    grid, height, width = FINER
    pixels = drawn(PLACE.crs, grid, height, width, SCALE).astype(dtype)
    if "nodata" in options:
        pixels[:, hole] = options["nodata"]
    else:
        options["alpha"] = np.where(hole, 0, 255)
    return write_raster(path, pixels, PLACE.crs, grid, **options)


@pytest.mark.parametrize("resampling", RESAMPLING)
@pytest.mark.parametrize("pixel", [2, 17])
def test_a_hole_touches_no_pixel_at_any_scale(tmp_path, pixel, resampling):
    grid, height, width = extent(PLACE, PLACE.crs, pixel)
    pixels = drawn(PLACE.crs, grid, height, width, SCALE).astype("float32")
    whole = write_raster(tmp_path / "whole.tif", pixels, PLACE.crs, grid)
    pixels[:, height // 2:height // 2 + 3, width // 2:width // 2 + 3] = np.nan
    part = write_raster(tmp_path / "part.tif", pixels, PLACE.crs, grid)
    found, expected = (cut(opened(path), PLACE, resampling) for path in (part, whole))
    assert 0 < (~found.valid).sum() < 200
    assert np.abs(found.pixels - expected.pixels)[:, found.valid].max() < 0.5  # of 255


@pytest.mark.parametrize(("dtype", "options"), [
    ("uint8", {}), ("uint8", {"nodata": 0}), ("uint16", {"nodata": 65535}),
    ("float32", {"nodata": np.nan}), ("float32", {"nodata": -9999}), ("int16", {"nodata": -1})],
    ids=str)
def test_a_hole_touches_no_other_pixel(tmp_path, dtype, options):
    """28 x 42 m are not there, and what two pixels of cubic convolution reach beside them."""
    found = cut(opened(holed(tmp_path / "a.tif", dtype=dtype, **options)), PLACE)
    assert 3 * 4 <= (~found.valid).sum() <= (3 + 5) * (5 + 5)
    assert not found.pixels[:, ~found.valid].any()
    whole = cut(opened(scene(tmp_path, PLACE, pixel=7, name="whole.tif")[0]), PLACE).pixels
    wrong = np.abs(found.pixels - whole.astype(float))[:, found.valid]
    assert wrong.max() <= 1


def test_a_dark_band_is_no_hole(tmp_path):
    """0 is nodata, but only where all bands have it: no blue is a colour."""
    grid, height, width = AROUND
    pixels = drawn(PLACE.crs, grid, height, width, SCALE)
    pixels[2] = 0
    path = write_raster(tmp_path / "a.tif", pixels, PLACE.crs, grid, nodata=0)
    assert_in_place(cut(opened(path), PLACE), PLACE, SCALE)


@pytest.mark.parametrize("nothing", [np.nan, np.inf, -9999])
def test_measured_numbers_must_all_be_there(tmp_path, nothing):
    """Each band of floats has its own gaps."""
    grid, height, width = FINER
    pixels = drawn(PLACE.crs, grid, height, width, SCALE).astype("float32")
    pixels[1, HOLE] = nothing
    found = cut(opened(write_raster(tmp_path / "a.tif", pixels, PLACE.crs, grid, nodata=-9999)),
                PLACE)
    assert 12 <= (~found.valid).sum() < 80 and np.isfinite(found.pixels).all()
    assert found.pixels.min() >= 0


@pytest.mark.parametrize(("beyond", "covered"), [(0, 1), (10, 31 / 32), (160, 0.5), (1000, 0)])
def test_a_place_over_the_edge(tmp_path, beyond, covered):
    """The raster begins at the place's western edge, or so many metres east of it."""
    west = PLACE.transform.c + beyond
    grid = Affine(10, 0, west, 0, -10, PLACE.transform.f)
    path = write_raster(tmp_path / "a.tif", drawn(PLACE.crs, grid, SIDE, SIDE, SCALE), PLACE.crs,
                        grid)
    found = cut(opened(path), PLACE)
    assert found.covered == pytest.approx(covered)
    if covered:
        steps = found.pixels[:2, found.valid]
        there = cut(opened(scene(tmp_path, PLACE, name="whole.tif")[0]), PLACE).pixels[:2]
        assert np.abs(steps - there[:, found.valid].astype(float)).max() <= 1


def test_the_next_rasters_fill_the_gaps(tmp_path):
    """Three strips, of which only the last one is whole; the first that has a pixel gives it."""
    grid, height, width = AROUND
    pixels = drawn(PLACE.crs, grid, height, width, SCALE)
    strips = []
    for number, wide in enumerate((width // 3, width // 2, width)):
        marked = pixels[:, :, :wide].copy()
        marked[2] = 40 * (number + 1)
        strips.append(opened(write_raster(tmp_path / f"{number}.tif", marked, PLACE.crs, grid)))
    found = cut_of_first(strips, PLACE)
    assert_in_place(found, PLACE, SCALE)
    assert found.source is strips[0]
    blue = found.pixels[2]
    assert [len(set(column)) for column in blue.T] == [1] * SIDE
    assert sorted(set(blue[0])) == [40, 80, 120] and (np.diff(blue[0].astype(int)) >= 0).all()
    assert cut_of_first(strips[:2], PLACE).covered < 1


def test_a_raster_far_away_does_not_hinder(tmp_path):
    here, scale = scene(tmp_path, PLACE)
    there, _ = scene(tmp_path, on_grid(32756, 320_000, 6_200_000), name="there.tif")
    found = cut_of_first([opened(there), opened(here)], PLACE)
    assert_in_place(found, PLACE, scale)
    assert found.source.label == str(here)


def test_gaps_are_filled_by_numbers_of_the_same_kind_alone(tmp_path):
    half = np.zeros_like(HOLE)
    half[:, :HOLE.shape[1] // 2] = True
    first = opened(holed(tmp_path / "a.tif", half))
    second = opened(scene(tmp_path, PLACE)[0], [1])
    with pytest.raises(InputError, match=r"has 3 bands of uint8, and .* 1 of uint8: choose equal"):
        cut_of_first([first, second], PLACE)


# ------------------------------------------------------------ all around the earth


def test_no_place_on_earth_is_an_error(tmp_path):
    """It is out of reach or not covered, whatever a coordinate system makes of it."""
    here = opened(scene(tmp_path, PLACE)[0])
    for latitude in (-89.9, -60, -1, 0, 45, 84.5, 90):
        for longitude in (-180, -165, -75, 0, 15, 105, 179.9):
            footprint = _square("far", latitude, longitude, 100_000, SIDE)
            try:
                assert cut(here, footprint).covered == 0
            except OutOfReach as error:
                assert "EPSG:32633" in str(error)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857"])
def test_a_map_of_the_earth_is_cut_at_the_date_line(tmp_path, crs):
    degrees = 1 if crs == "EPSG:4326" else 111_319.4907932
    grid = Affine(degrees / 10, 0, -180 * degrees, 0, -degrees / 10, 80 * degrees)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 1600, 3600)).astype("uint8")
    earth = opened(write_raster(tmp_path / "a.tif", pixels, crs, grid))
    with pytest.raises(OutOfReach, match=f"{crs} is cut there, as at the date line"):
        cut(earth, _square("place", -16.5, 180, 100_000, SIDE))
    beside = Footprint("place", PLACE.crs.from_epsg(4326), Affine(0.1, 0, 179, 0, -0.1, 1), 10, 10)
    assert cut(earth, beside).covered == 1


def test_a_place_of_too_many_pixels_is_refused(tmp_path):
    path = tmp_path / "fine.vrt"
    path.write_text(f"""<VRTDataset rasterXSize="200000" rasterYSize="200000">
<SRS>EPSG:32633</SRS><GeoTransform>{PLACE.transform.c}, 0.01, 0, {PLACE.transform.f}, 0, -0.01
</GeoTransform><VRTRasterBand dataType="Byte" band="1"/></VRTDataset>""")
    with pytest.raises(InputError, match=r"place needs 34,002 x 34,002 pixels of .*fine.vrt: give"):
        cut(opened(path), PLACE)
    corner = Footprint("place", PLACE.crs, PLACE.transform * Affine.translation(-31.9, -31.9), 32,
                       32)
    assert cut(opened(path), corner).covered < 0.01  # of which only those that are there count


def test_shift_sees_a_tenth_of_a_pixel(tmp_path):
    """The measure that these tests stand on."""
    path, scale = scene(tmp_path, PLACE, pixel=3.3)
    moved = Footprint("place", PLACE.crs, PLACE.transform * Affine.translation(0.1, -0.2), SIDE,
                      SIDE)
    east, north, _ = shift(cut(opened(path), moved).pixels, PLACE, scale)
    assert east == pytest.approx(0.1, abs=0.03) and north == pytest.approx(0.2, abs=0.03)


def test_what_lies_beside_a_raster_belongs_to_it(tmp_path):
    """A mask and overviews in files of their own."""
    place = on_grid(32633, 400_000, 5_400_000)
    path, _ = scene(tmp_path, place, pixel=2.5)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="NO"), rasterio.open(path, "r+") as file:
        mask = np.full(file.shape, 255, np.uint8)
        mask[:, :file.width // 2] = 0
        file.write_mask(mask)
    with rasterio.Env(TIFF_USE_OVR="YES"), rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4])
    assert path.with_name("scene.tif.msk").exists() and path.with_name("scene.tif.ovr").exists()
    with gdal():
        raster = Raster(str(path), None, Pacer(1))
        assert raster.factors == [1, 2, 4]
        assert 0.4 < cut(raster, place).covered < 0.6
