"""Tiles without data are left out; threads and memory."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio

from archive.reading import Reading
from archive.tiles import Scene
from datasets.eurosat import BANDS
from image_helpers import complaint
from raster_helpers import raster
from tile_helpers import assert_same, drawn, slices, tiles_of, written

# ------------------------------------------------------------ where there is no data


def half_empty(value, dtype="uint16", bands=3, seed=3):
    """Tiles of 16: the first has no data, of the second half, of the third a column less."""
    numbers = drawn(seed, bands, 16, 64, "uint16", 1000, 4000).astype(dtype)
    numbers[:, :, :24] = value
    numbers[:, :, 32:41] = value
    return numbers


def mask_of(numbers, value):
    return ((numbers != value).any(axis=0) * 255).astype(np.uint8)


KEPT = {(16, 0), (48, 0)}


@pytest.mark.parametrize(("value", "options"), [
    (0, {}), (7, {"nodata": 7}), (65535, {"nodata": 65535}), (9, {"mask": None})])
def test_tiles_without_data_are_left_out(tmp_path, value, options):
    numbers = half_empty(value)
    if "mask" in options:
        options = {"mask": mask_of(numbers, value)}
    scene = Scene(written(tmp_path / "a.tif", numbers, **options), Reading(None, "900,4000"),
                  16, 16)
    found = tiles_of(scene)
    assert found.keys() == KEPT
    stretched = np.clip((numbers - 900.0) * (255 / 3100), 0, 255).round()
    stretched[:, (numbers == value).all(axis=0)] = 0
    expected = slices(stretched.transpose(1, 2, 0), scene.windows)
    assert_same(found, {place: expected[place] for place in KEPT})


@pytest.mark.parametrize("options", [{}, {"nodata": 0}])
def test_percentages_are_of_what_is_there(tmp_path, options):
    numbers = half_empty(0)
    scene = Scene(written(tmp_path / "a.tif", numbers, **options), Reading(None, "2%,98%"), 16, 16)
    expected = [np.percentile(plane[plane > 0], [2, 98]) for plane in numbers]
    ends = [list(map(float, pair.split(","))) for pair in scene.reading.value_range.split(";")]
    np.testing.assert_allclose(ends, expected)


def test_0_is_a_number_where_another_one_says_no_data(tmp_path):
    path = written(tmp_path / "a.tif", half_empty(0), nodata=9)
    assert len(tiles_of(Scene(path, Reading(), 16, 16))) == 4


def test_0_in_one_band_is_data(tmp_path):
    numbers = drawn(4, 3, 16, 16)
    numbers[:2] = 0
    assert len(tiles_of(Scene(written(tmp_path / "a.tif", numbers), Reading(), 16, 16))) == 1


@pytest.mark.parametrize(("value", "options"), [
    (np.nan, {}), (np.inf, {}), (0, {}), (-9999, {"nodata": -9999})])
def test_floats(tmp_path, value, options):
    numbers = half_empty(value, "float32")
    path = written(tmp_path / "a.tif", numbers, **options)
    scene = Scene(path, Reading(None, "900,4000"), 16, 16)
    found = tiles_of(scene)
    assert found.keys() == KEPT
    assert (found[16, 0][:, :8] == 0).all() and (found[16, 0][:, 8:] > 0).all()
    complaint(lambda: Scene(path, Reading(), 16, 16), "float32 pixels", "--range 2%,98%")


@pytest.mark.parametrize("colour", [0, 255])
def test_alpha_says_where_there_is_no_data(tmp_path, colour):
    """Whatever colour lies under it."""
    numbers = np.concatenate([half_empty(0) // 20, half_empty(0, bands=1)]).astype(np.uint8)
    numbers[3] = (numbers[0] > 0) * 255
    numbers[:3, numbers[3] == 0] = colour
    path = tmp_path / "a.tif"
    path.write_bytes(raster(numbers, photometric="RGB", alpha="YES"))
    found = tiles_of(Scene(path, Reading(), 16, 16))
    assert found.keys() == KEPT
    np.testing.assert_array_equal(found[16, 0], numbers[:3, :, 16:32].transpose(1, 2, 0))


def test_a_measured_band_is_no_alpha(tmp_path):
    """GDAL marks the last of four bands of 8 bits as one."""
    numbers = drawn(5, 4, 16, 64)
    numbers[3] = np.random.default_rng(0).integers(0, 250, numbers[3].shape)
    numbers[3, :, :16] = 0  # near infrared of water
    path = tmp_path / "a.tif"
    path.write_bytes(raster(numbers, photometric="RGB", alpha="YES"))
    complaint(lambda: Scene(path, Reading(), 16, 16), "marked as alpha", "--bands 1,2,3")
    assert len(tiles_of(Scene(path, Reading("1,2,3"), 16, 16))) == 4


# ------------------------------------------------------------ threads and memory


def test_threads_read_the_same_pixels(tmp_path, monkeypatch):
    """Each with an open file of its own: one of GDAL's may be used by one thread at a time."""
    opened, used, reader = [], set(), rasterio.open

    def opening(*arguments, **options):
        opened.append(threading.get_ident())
        return reader(*arguments, **options)

    def load(index):
        used.add(threading.get_ident())
        return scene.load(index)

    numbers = drawn(9, 3, 256, 256)
    path = written(tmp_path / "a.tif", numbers, tiled=True, compress="deflate", blockxsize=64,
                   blockysize=64)
    monkeypatch.setattr(rasterio, "open", opening)
    scene = Scene(path, Reading(), 32, 16)
    with ThreadPoolExecutor(8, initializer=threading.Barrier(8).wait) as pool:
        loaded = list(pool.map(load, range(len(scene))))
    assert_same({item.window[:2]: pixels for item, pixels in loaded},
                slices(numbers.transpose(1, 2, 0), scene.windows))
    assert len(used) > 1 and sorted(opened) == sorted({*used, threading.get_ident()})


WALK = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from archive.reading import Reading
from archive.tiles import Scene
scene = Scene(Path(sys.argv[1]), Reading("B04,B03,B02", "0,3000"), 64, 64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with ThreadPoolExecutor(4) as pool:
    loaded = pool.map(scene.load, range(0, len(scene), int(sys.argv[2])))
    kept = sum(one is not None for one in loaded)
print(len(scene), kept, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
SCENE = 10_980  # pixels, the side of a granule of Sentinel-2
LITTLE_CACHE = "import os; os.environ['GDAL_CACHEMAX'] = '64'"


@pytest.mark.parametrize(("step", "prepare", "megabytes"), [
    pytest.param(61, LITTLE_CACHE, 200, id="some"),
    pytest.param(1, "", 900, id="all", marks=pytest.mark.slow)])
def test_a_whole_granule_takes_little_memory(tmp_path, zygote, step, prepare, megabytes):
    """3 GB of numbers, of which most are none."""
    path, script = tmp_path / "granule.tif", tmp_path / "walk.py"
    script.write_text(WALK)
    with rasterio.open(path, "w", driver="GTiff", height=SCENE, width=SCENE, count=13,
                       dtype="uint16", tiled=True, blockxsize=256, blockysize=256, nodata=0,
                       compress="deflate", SPARSE_OK="TRUE", BIGTIFF="YES") as file:
        window = rasterio.windows.Window(5120, 5120, 512, 512)
        file.write(np.full((13, 512, 512), 1500, np.uint16), window=window)
        for index, name in enumerate(BANDS, start=1):
            file.set_band_description(index, name)
    code, output = zygote.run(tmp_path / "out", script, path, step, prepare=prepare)
    assert code == 0, output
    count, kept, growth = map(int, output.split())
    assert count == 172**2 and (kept == 64 if step == 1 else kept > 0)
    assert growth * (1 if sys.platform == "darwin" else 1024) < megabytes * 1e6
