"""What collect.py refuses: one sentence, exit code 2, and nothing is written."""

import re

import numpy as np
import pytest
import rasterio

from image_helpers import encoded, tree
from place_helpers import collect, image_at, on_grid, refused, write_raster, write_table
from tile_server import Scale, mercator


def points(folder, text="name,lat,lon\na,48.1,11\n"):
    return ["--table", write_table(folder / "places.csv", text), "--metres", 320, "--size", 32]


@pytest.mark.parametrize(("flags", "sentence"), [
    (["--service", "https://a.example/{z}/{x}/{y}", "--bands", "1"],
     "--bands is for --raster and --stac: leave it out"),
    (["--raster", "nowhere.tif"], "nowhere.tif is not there"),
    (["--raster", "imagery"], "imagery is a folder: name a raster in it"),
    (["--raster", "README.md"], "README.md cannot be opened: see that it is there"),
    (["--service", "nobody"], "--service nobody is not known"),
    (["--service", "https://a.example/{x}/{y}"], "must have {z}"),
    (["--service", "https://a.example/{z}/{x}/{y}?{NOT_SET_HERE}"], "NOT_SET_HERE, which is not"),
    (["--service", "https://a.example/{z}/{x}/{y}", "--include", "a"], "choose among --images"),
    (["--service", "arcgis"], "see that the terms above allow what you do, and add --yes"),
    (["--service", "arcgis", "--zoom", "20"], "--zoom 20 is beyond 19, the last one of server."),
    (["--service", "https://a.example/{z}/{x}/{y}", "--zoom", "22", "--metres", "20000"],
     "a needs 921,838 x 924,304 pixels of a.example: lower --zoom, or name smaller places")],
    ids=range(11))
def test_flags_that_do_not_go_together(capfd, tmp_path, flags, sentence):
    assert sentence in refused(capfd, tmp_path, *points(tmp_path), *flags)


def test_more_than_ten_thousand_tiles_need_a_yes(capfd, tmp_path):
    text = "name,lat,lon\n" + "".join(f"p{number},48,{3 * number}\n" for number in range(20))
    flags = ["--service", "http://127.0.0.1:9/{z}/{x}/{y}", "--zoom", 12, "--metres", 150_000]
    found = refused(capfd, tmp_path, *points(tmp_path, text), *flags)
    tiles = re.fullmatch(r"(\d\d,\d\d\d) tiles are more than 10,000: see that the terms allow it, "
                         "and add --yes", found)[1]
    code, out, _ = collect(capfd, tmp_path, *points(tmp_path, text), *flags, "--dry_run")
    assert code == 0 and f"{tiles} different tiles" in out  # to look is free


def test_images_are_asked_for_no_width_and_rasters_for_no_zoom(capfd, tmp_path):
    place = on_grid(32633, 400_000, 5_400_000)
    raster = image_at(tmp_path / "images" / "a.tif", place)
    images = ["--images", tmp_path / "images", "--raster", raster]
    assert "--metres is for --table" in refused(capfd, tmp_path, *images, "--metres", 5)
    assert "--zoom is for --service" in refused(capfd, tmp_path, *images, "--zoom", 5)
    assert "--tile_size is for --service" in refused(capfd, tmp_path, *images, "--tile_size", 256)
    assert "--bands 2,4: " in (text := refused(capfd, tmp_path, *images, "--bands", "2,4"))
    assert text.endswith("a.tif has 3 bands")
    for flags, sentence in ((["--bands", "0"], "0: bands are counted from 1"),
                            (["--bands", "red"], "invalid list of bands value: 'red'"),
                            (["--size", "4"], "4 is not a whole number from 8 to 4096"),
                            (["--per_second", "0"], "0 is not a number from 0.01 to 1000"),
                            (["--tile_size", "128"], "invalid choice: 128"),
                            (["--service", "usgs"], "not allowed with argument --raster")):
        assert sentence in refused(capfd, tmp_path, *images, *flags)
    tree(tmp_path / "flat", {"b.jpg": encoded(np.zeros((8, 8, 3), np.uint8), "JPEG")})
    text = refused(capfd, tmp_path, "--images", tmp_path / "flat", "--raster", raster)
    assert "none of the 1 images of" in text and "zenodo.org" in text
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert "was not made by collect.py" in refused(capfd, tmp_path, *images)


def test_rasters_that_cannot_be_used(capfd, tmp_path):
    place = on_grid(32633, 400_000, 5_400_000)
    image_at(tmp_path / "images" / "a.tif", place)
    images = ["--images", tmp_path / "images", "--size", 32, "--raster"]
    flat = np.ones((3, 8, 8), np.uint8)
    nowhere = write_raster(tmp_path / "nowhere.tif", flat, None, place.transform)
    assert "has no coordinate system or no transform" in refused(capfd, tmp_path, *images, nowhere)
    classes = write_raster(tmp_path / "classes.tif", flat[:1], place.crs, place.transform,
                           photometric="palette")
    with rasterio.open(classes, "r+") as file:
        file.write_colormap(1, {1: (10, 20, 30, 255)})
    assert "has a palette, whose numbers cannot" in refused(capfd, tmp_path, *images, classes)
    text = """<VRTDataset rasterXSize="8" rasterYSize="8"><SRS>EPSG:32633</SRS><GeoTransform>
4e5,10,0,54e5,0,-10</GeoTransform><VRTRasterBand dataType="Byte" band="1"/><VRTRasterBand
dataType="Float32" band="2"/></VRTDataset>"""
    (tmp_path / "mixed.vrt").write_text(text)
    found = refused(capfd, tmp_path, *images, tmp_path / "mixed.vrt")
    assert "mixed.vrt are of several types: choose some with --bands" in found
    whole = image_at(tmp_path / "whole.tif", place, compress="deflate")
    data = whole.read_bytes()
    whole.write_bytes(data[:-2000] + bytes(2000))
    code, _, error = collect(capfd, tmp_path, *images, whole)
    assert code == 2 and error.count("\n") == 1 and "whole.tif cannot be read: " in error
    measured = image_at(tmp_path / "measured.tif", place, dtype="uint16")
    code, _, error = collect(capfd, tmp_path / "other", *images, measured, "--format", "jpg")
    assert code == 2 and "these are 3 of uint16: use --format tif" in error


def test_where_an_image_lies_may_not_change_in_any_way(capfd, tmp_path, server):
    """A box of the same middle and width, but higher."""
    box = "name,west,south,east,north\na,11,{},11.01,{}\n"
    flags = ["--size", 32, "--service", server.template(Scale(*mercator(11, 48.1), 20))]
    table = write_table(tmp_path / "places.csv", box.format(48.10, 48.11))
    assert collect(capfd, tmp_path, "--table", table, *flags)[0] == 0
    write_table(table, box.format(48.09, 48.12))
    code, _, error = collect(capfd, tmp_path, "--table", table, *flags)
    assert code == 2 and "and its place is another one now" in error


def test_what_is_collected_is_no_place_to_collect(capfd, tmp_path):
    place = on_grid(32633, 400_000, 5_400_000)
    raster = image_at(tmp_path / "images" / "a.tif", place)
    text = refused(capfd, tmp_path, "--images", tmp_path, "--raster", raster)
    assert "lies within --images, which would take what is collected for places" in text


def test_a_key_appears_not_even_where_the_template_is_none(capfd, tmp_path):
    text = refused(capfd, tmp_path, *points(tmp_path), "--service",
                   "tiles.example/{z}/{x}/{y}.png?key=SECRET123")
    assert "is not known" in text and "SECRET" not in text


@pytest.mark.parametrize(("value", "said"), [("a b", "TILES_KEY has characters"),
                                             ("a#b", "TILES_KEY has characters")])
def test_keys_that_no_address_may_have(capfd, tmp_path, monkeypatch, value, said):
    monkeypatch.setenv("TILES_KEY", value)
    text = refused(capfd, tmp_path, *points(tmp_path), "--service",
                   "https://a.example/{z}/{x}/{y}?key={TILES_KEY}")
    assert said in text and value not in text
    text = refused(capfd, tmp_path, *points(tmp_path), "--service", "https://a.example/${z}/${x}")
    assert "write {x}, not ${x}" in text


def test_complex_numbers_are_refused(capfd, tmp_path):
    place = on_grid(32633, 400_000, 5_400_000)
    image_at(tmp_path / "images" / "a.tif", place)
    radar = image_at(tmp_path / "radar.tif", place, 1, dtype="complex64")
    text = refused(capfd, tmp_path, "--images", tmp_path / "images", "--raster", radar)
    assert "radar.tif has complex numbers, expected real ones" in text
