"""EuroSAT from zips and folders, with either second source."""

import io

import numpy as np
import pytest
from PIL import Image

from datasets.eurosat import decode_swir
from image_helpers import CLASSES, SCENES, complaint, geotiff, load, noise, scenes, stored, tree
from raster_helpers import ramp, raster, seen


def test_eurosat_is_the_same_from_zip_and_from_both_unpacked_folders(tmp_path):
    tree(tmp_path / "a" / "EuroSAT.zip", scenes(prefix="2750/"))
    tree(tmp_path / "b" / "2750", scenes())
    tree(tmp_path / "c" / "EuroSAT" / "2750", scenes())
    tree(tmp_path / "d" / "eurosat" / "2750", scenes())  # where torchvision unpacks it
    found = [load(tmp_path / place) for place in "abcd"]
    for dataset in found:
        assert dataset.names == sorted(SCENES)
        assert dataset.class_names == list(CLASSES)
        assert [f"{CLASSES[label]}/" for label in dataset.labels] == [
            name[:name.index("/") + 1] for name in dataset.names]
        assert dataset.fingerprint == found[0].fingerprint
        for part in ("train", "database", "query"):
            assert np.array_equal(getattr(dataset, part), getattr(found[0], part))
        for row, name in enumerate(dataset.names):
            expected = np.asarray(Image.open(io.BytesIO(scenes(names=[name])[f"{name}.jpg"])))
            assert np.array_equal(dataset.source1.read(row), expected)
            assert dataset.source1.size(row) == (8, 8)


def test_eurosat_vhr_is_paired_by_name_with_another_extension(eurosat):
    tree(eurosat / "EuroSAT_VHR", scenes(".png", kind="PNG", size=16))
    dataset = load(eurosat, source2="vhr")
    assert dataset.source_names == ("Sentinel-2 RGB", "vhr")
    for row, name in enumerate(dataset.names):
        assert np.array_equal(dataset.source2.read(row), noise(name + ".png", 16, 16, 3))


def test_second_source_of_eurosat_when_nothing_is_said(eurosat):
    assert load(eurosat).source2 is None
    bands = {f"{name}.tif": b"x" for name in SCENES}
    tree(eurosat / "EuroSAT_MS", bands)
    assert load(eurosat).source_names[1] == "swir"
    tree(eurosat / "EuroSAT_VHR", scenes())
    assert load(eurosat).source_names[1] == "vhr"
    assert load(eurosat, source2="SWIR").source_names[1] == "swir"
    alone = load(eurosat, source2="none")
    assert alone.source2 is None and len(alone.sources) == 1 and alone.source_names[1] == "none"


def test_swir_shows_b12_b8a_b04_of_a_13_band_geotiff(eurosat):
    generator = np.random.default_rng(0)
    numbers = {name: generator.integers(0, 6000, (13, 5, 7), dtype=np.uint16) for name in SCENES}
    for name, bands in numbers.items():
        geotiff(eurosat / "EuroSAT_MS" / f"{name}.tif", bands)
    dataset = load(eurosat, source2="swir")
    for row, name in enumerate(dataset.names):
        # In the files B8A is the 13th and last band, B12 the 12th, B04 the 4th.
        wanted = numbers[name][[11, 12, 3]].transpose(1, 2, 0) * (255 / 4000)
        shown = dataset.source2.read(row)
        assert shown.dtype == np.uint8 and dataset.source2.size(row) == shown.shape[:2] == (5, 7)
        assert np.abs(shown - np.minimum(wanted, 255)).max() <= 0.5 + 1e-4
        assert (shown[wanted > 255] == 255).all() and (wanted > 255).any()


def test_swir_as_reflectance_is_the_swir_of_its_digital_numbers():
    numbers = ramp(np.uint16, bands=13, high=6000)
    expected = decode_swir(raster(numbers))
    wanted = numbers[[11, 12, 3]] * (255 / 4000)
    assert np.abs(expected - seen(np.minimum(wanted, 255))).max() <= 0.5 + 1e-4
    for dtype in (np.int16, np.float32, np.float64):  # digital numbers, whatever their type
        assert np.array_equal(decode_swir(raster(numbers.astype(dtype))), expected)
    for dtype in (np.float32, np.float64):
        reflectance = (numbers / 10_000).astype(dtype)
        shown = decode_swir(raster(reflectance)).astype(int)
        assert np.abs(shown - expected).max() <= 1 and shown.max() == 255  # 1: halves of rounding


def test_dark_water_in_digital_numbers_is_no_reflectance():
    numbers = ramp(np.uint16, bands=13, high=2000)
    numbers[[11, 12, 3]] = ramp(np.uint16, high=9)
    expected = decode_swir(raster(numbers))
    assert expected.max() == 1
    holed = numbers.astype(np.float32)
    assert np.array_equal(decode_swir(raster(holed)), expected)
    # Neither nodata nor NaN is a digital number.
    reflectance = (numbers / 10_000).astype(np.float32)
    reflectance[1, 0, 0], reflectance[2, 0, 0] = 5000, np.nan
    assert np.abs(decode_swir(raster(reflectance, nodata=5000)).astype(int) - expected).max() <= 1


def test_swir_nodata_and_nan_are_black_and_change_no_other_pixel():
    reflectance = (ramp(np.uint16, bands=13, high=3900) / 10_000).astype(np.float32)
    expected = decode_swir(raster(reflectance)).copy()
    for hole, options in ((np.nan, {}), (np.inf, {}), (-9999, {"nodata": -9999}),
                          (1e20, {"nodata": 1e20})):
        holed = reflectance.copy()
        holed[:, 1, 2:4] = hole
        holed[3, 2, 0] = hole  # of the red band alone
        expected[1, 2:4] = expected[2, 0, 2] = 0
        assert np.array_equal(decode_swir(raster(holed, **options)), expected)
    empty = np.full((13, 4, 6), np.nan, np.float32)
    assert not decode_swir(raster(empty)).any()
    dark = np.zeros((13, 4, 6), np.int16)
    dark[:, 0, 0] = -5
    assert not decode_swir(raster(dark)).any()


def test_swir_of_another_type_is_one_sentence():
    for dtype in (np.uint8, np.int8, np.uint32, np.int32):
        with pytest.raises(ValueError, match=f"^{np.dtype(dtype)} pixels, expected digital numb"):
            decode_swir(raster(ramp(dtype, bands=13, high=100)))


def test_missing_second_source_says_what_to_get(eurosat):
    complaint(lambda: load(eurosat, source2="vhr"), "EuroSAT_VHR", str(eurosat))
    complaint(lambda: load(eurosat, source2="swir"), "EuroSAT_MS.zip", "zenodo.org")
    complaint(lambda: load(eurosat, source2="sar"), "sar", "vhr, swir or none")
    complaint(lambda: load(eurosat, source1="pan"), "--source1")


def test_eurosat_scene_missing_from_the_second_source_is_named(eurosat):
    tree(eurosat / "EuroSAT_VHR", scenes(names=SCENES[1:]))
    complaint(lambda: load(eurosat, source2="vhr"), "Forest/Forest_1", "EuroSAT_VHR")


def test_geotiff_of_12_bands_is_named(eurosat):
    for number, name in enumerate(SCENES):
        bands = 12 if number == 4 else 13
        geotiff(eurosat / "EuroSAT_MS" / f"{name}.tif", np.ones((bands, 4, 4), np.uint16))
    complaint(stored(load(eurosat, source2="swir"), 1), "1 of 36", "Forest/Forest_5.tif",
              "12 bands, expected 13")
