"""collect.py from end to end: what it leaves is what stage 1 reads, and what it refuses."""

import csv
import io
import json
import re
import time

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio import Affine

from data_loader import DataConfig, load_dataset
from helpers import QUICK
from image_helpers import encoded, tree
from place_helpers import (
    collect,
    drawn,
    image_at,
    on_grid,
    read_image,
    refused,
    write_raster,
    write_table,
)
from script_helpers import AUTOENCODER, done
from tile_server import Answer, Scale, mercator, scale_of, shift

CLASSES = ("Forest", "Highway", "River")
POINTS = "name,lat,lon\na,48.1,11\nb,48.1,11.02\n"
SCALE = Scale(*mercator(11, 48.1), 2.6)


def points(folder, text=POINTS):
    return ["--table", write_table(folder / "places.csv", text), "--metres", 320, "--size", 32]


def lines_of(folder):
    with open(folder / "out" / "collect.csv", newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------ what becomes of it


def test_an_image_and_its_line(capfd, tmp_path, server):
    code, out, error = collect(capfd, tmp_path, *points(tmp_path), "--service",
                               server.template(SCALE))
    assert (code, error) == (0, "") and f"2 of 2 images are in {tmp_path / 'out'}" in out
    pixels, place = read_image(tmp_path / "out" / "a.tif")
    assert place.centre() == pytest.approx((48.1, 11), abs=1e-7)
    assert (place.height, place.width) == (32, 32) and place.metres() == pytest.approx(320, 1e-3)
    assert max(map(abs, shift(pixels, place, SCALE)[:2])) < 0.1
    line = lines_of(tmp_path)[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", line.pop("day"))
    assert line == {
        "name": "a", "status": "collected", "file": "a.tif", "latitude": "48.100000",
        "longitude": "11.000000", "metres": "320.0", "source": f"127.0.0.1:{server.port}",
        "zoom": "14", "resolution": "6.38", "date": "", "covered": "1.000", "note": "",
        "footprint": place.key(), "bytes": str((tmp_path / "out" / "a.tif").stat().st_size)}
    kept = json.loads((tmp_path / "out" / ".collect.json").read_text())
    assert kept["size"] == 32 and kept["zoom"] is None
    assert re.fullmatch("[0-9a-f]{16}", kept["service"])


def test_jpeg(capfd, tmp_path, server):
    code, _, error = collect(capfd, tmp_path, *points(tmp_path), "--service",
                             server.template(SCALE), "--format", "jpg")
    assert (code, error) == (0, "")
    with Image.open(tmp_path / "out" / "a.jpg") as image:
        pixels = np.asarray(image).transpose(2, 0, 1)
    plain = tmp_path / "plain"
    plain.mkdir()
    collect(capfd, plain, *points(plain), "--service", server.template(SCALE))
    as_tiff = read_image(plain / "out" / "a.tif")[0]
    assert np.abs(pixels - as_tiff.astype(int)).mean() < 2


def test_it_goes_on_with_more_places_and_keeps_to_its_settings(capfd, tmp_path, server):
    service = ["--service", server.template(SCALE)]
    assert collect(capfd, tmp_path, *points(tmp_path), *service, "--limit", 1)[0] == 0
    assert [line["name"] for line in lines_of(tmp_path)] == ["a"]
    before = (tmp_path / "out" / "a.tif").stat().st_mtime_ns
    more = points(tmp_path, POINTS + "c/d,48.1,11.04\n")
    code, out, _ = collect(capfd, tmp_path, *more, *service)
    assert code == 0 and "places: 3; done: 1; to collect: 2\n" in out
    assert [line["file"] for line in lines_of(tmp_path)] == ["a.tif", "b.tif", "c/d.tif"]
    assert (tmp_path / "out" / "a.tif").stat().st_mtime_ns == before
    (tmp_path / "out" / "b.tif").unlink()
    assert collect(capfd, tmp_path, *more, *service)[0] == 0
    assert (tmp_path / "out" / "b.tif").exists()
    for flags, name in ((["--size", 64], "size"), (["--zoom", 14], "zoom"),
                        (["--format", "jpg"], "format"), (["--resampling", "nearest"], "resampl")):
        text = refused(capfd, tmp_path, *more, *service, *flags)
        assert f"was collected with another --{name}" in text
    moved = points(tmp_path, POINTS.replace("48.1,11.02", "48.2,11.02"))
    text = refused(capfd, tmp_path, *moved, *service)
    assert ("b was collected at 48.100000, 11.020000, 320.0 m wide, and its place is another one "
            "now, at 48.20") in text
    raster = image_at(tmp_path / "scene.tif", on_grid(32632, 648_000, 5_330_000))
    text = refused(capfd, tmp_path, *more, "--raster", raster)
    assert "was collected with another --" in text and "raster" in text and "service" in text


def test_images_without_a_place_are_noted(capfd, tmp_path, server):
    place = on_grid(32632, 648_000, 5_330_000)
    image_at(tmp_path / "images" / "a" / "1.tif", place)
    tree(tmp_path / "images", {"b/2.jpg": encoded(np.zeros((8, 8, 3), np.uint8), "JPEG")})
    code, out, _ = collect(capfd, tmp_path, "--images", tmp_path / "images", "--size", 32,
                           "--service", server.template(scale_of(place)))
    assert code == 0 and "1 left out, no place: b/2" in out
    assert [(line["name"], line["status"]) for line in lines_of(tmp_path)] == [
        ("a/1", "collected"), ("b/2", "no place")]
    pixels, found = read_image(tmp_path / "out" / "a" / "1.tif")
    assert found.crs == place.crs and found.transform == place.transform
    assert max(map(abs, shift(pixels, place, scale_of(place))[:2])) < 0.1


# ------------------------------------------------------------ what stage 1 reads


def textures(metres, pixel):
    """Green, grey and blue stripes, 300 m wide each, whose grain is 5 m: (3, side, side)."""
    side = round(metres / pixel)
    x = (np.arange(side) + 0.5) * pixel
    kind = (x // 300).astype(int) % 3
    colours = np.array([(60, 140, 60), (140, 140, 140), (40, 60, 140)])[kind]
    grain = 30 * np.sin(x[:, None] / 5 * 2 * np.pi / (1 + kind)) * np.cos(x / 5)
    return np.clip(colours.T[:, None, :] + grain, 1, 255).astype(np.uint8)


def test_a_scene_of_10_m_and_one_of_60_cm_become_pairs(capfd, tmp_path):
    """Tiles of 160 m, in class folders; the finer scene is cut at the same places."""
    west, north, metres = 400_000, 5_400_000, 900
    fine = textures(metres, 0.6)
    write_raster(tmp_path / "fine.tif", fine, "EPSG:32633",
                 Affine(0.6, 0, west, 0, -0.6, north), overviews=(2, 4))
    coarse = textures(metres, 10)
    for number in range(25):
        row, column = divmod(number, 5)
        kind = "abc"[column // 2]
        grid = Affine(10, 0, west + 160 * column + 20, 0, -10, north - 160 * row - 20)
        path = tmp_path / "coarse" / kind / f"{number:02d}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_raster(path, coarse[:, 16 * row + 2:16 * row + 18, 16 * column + 2:16 * column + 18],
                     "EPSG:32633", grid)
    code, out, error = collect(capfd, tmp_path, "--images", tmp_path / "coarse", "--raster",
                               tmp_path / "fine.tif", "--size", 64)
    assert (code, error) == (0, "") and "25 of 25 images are in" in out
    assert "pixels of 2.4 m, for images of 64 pixels of 2.5 m" in out
    pixels, place = read_image(tmp_path / "out" / "b" / "12.tif")
    assert place.transform == Affine(2.5, 0, west + 340, 0, -2.5, north - 340)
    with rasterio.open(tmp_path / "fine.tif") as file:
        column, row = 340 / 0.6, 340 / 0.6
        there = file.read(window=rasterio.windows.Window(column, row, 160 / 0.6, 160 / 0.6))
    assert np.abs(pixels.mean(axis=(1, 2)) - there.mean(axis=(1, 2))).max() < 1
    out, _ = done(capfd, AUTOENCODER, "--data_name", "pairs", "--source1", tmp_path / "coarse",
                  "--source2", tmp_path / "out", "--feature_backbone", QUICK[1],
                  "--feature_weights", "none", "--image_size", 32, "--epoch", 1, "--batch_size", 8,
                  "--cache_dir", "none", "--device", "cpu", "--output_dir", tmp_path / "run")
    assert (tmp_path / "run" / "autoencoder.pth").exists() and "coarse" in out
    assert "warning" not in out


def test_eurosat_finds_its_second_satellite(capfd, tmp_path, server):
    """EuroSAT_MS.zip -> data/EuroSAT_VHR, which --source2 vhr reads beside EuroSAT.zip."""
    multispectral, colours = {}, {}
    for number, name in enumerate(f"{kind}/{kind}_{number}" for kind in CLASSES
                                  for number in range(1, 5)):
        place = on_grid(32632, 648_000 + 640 * number, 5_330_000, height=64, width=64)
        path = image_at(tmp_path / "made.tif", place, 13, dtype="uint16")
        multispectral[f"EuroSAT_MS/{name}.tif"] = path.read_bytes()
        colours[f"2750/{name}.jpg"] = encoded(np.full((64, 64, 3), 7 * number, np.uint8), "JPEG")
    data = tmp_path / "data"
    tree(data / "EuroSAT_MS.zip", multispectral)
    tree(data / "EuroSAT.zip", colours)
    scale = scale_of(place, 60)
    for flags in (["--include", "Forest/*"], []):  # a look at one class first
        code, out, error = collect(capfd, tmp_path, "--images", data / "EuroSAT_MS.zip", "--size",
                                   128, "--service", server.template(scale), "--output",
                                   data / "EuroSAT_VHR", *flags)
        assert (code, error) == (0, ""), error
    assert "12 of 12 images are in" in out
    dataset = load_dataset(DataConfig(data_dir=str(data), data_name="EuroSAT", source2="vhr"))
    assert dataset.source_names == ("Sentinel-2 RGB", "vhr") and len(dataset.names) == 12
    assert list(dataset.class_names) == list(CLASSES)
    for row, name in enumerate(dataset.names):
        shown = dataset.source2.read(row)
        with rasterio.open(io.BytesIO(multispectral[f"EuroSAT_MS/{name}.tif"])) as file:
            place = on_grid(32632, file.transform.c, file.transform.f, 5, height=128, width=128)
        assert shown.shape == (128, 128, 3)
        # In pixels of 5 m. Some lie where the colours turn back, so that one pixel tells little.
        assert max(map(abs, shift(shown.transpose(2, 0, 1), place, scale)[:2])) < 0.1, name


# ------------------------------------------------------------ several rasters, other numbers


def test_rasters_fill_each_others_gaps_and_the_line_says_which_was_first(capfd, tmp_path):
    place = on_grid(32633, 400_000, 5_400_000)
    image_at(tmp_path / "images" / "a.tif", place)
    scale = scale_of(place)
    for name, west in (("west", 399_000), ("east", 400_100)):
        grid = Affine(5, 0, west, 0, -5, 5_400_500)
        write_raster(tmp_path / f"{name}.tif", drawn(place.crs, grid, 300, 230, scale), place.crs,
                     grid)
    flags = ["--images", tmp_path / "images", "--size", 32]
    code, _, error = collect(capfd, tmp_path, *flags, "--raster", tmp_path / "west.tif",
                             tmp_path / "east.tif")
    assert (code, error) == (0, "")
    line, = lines_of(tmp_path)
    assert line["source"].endswith("west.tif") and line["status"] == "collected"
    pixels, found = read_image(tmp_path / "out" / "a.tif")
    assert max(map(abs, shift(pixels, found, scale)[:2])) < 0.1
    code, out, _ = collect(capfd, tmp_path / "east", *flags, "--raster", tmp_path / "east.tif")
    assert code == 2 and "1 left out, no imagery: a (71% of it is covered)" in out


def test_a_place_with_a_twentieth_missing_is_collected_and_with_more_is_not(capfd, tmp_path):
    place = on_grid(32633, 400_000, 5_400_000, height=40, width=40)
    for name, missing in (("a", 80), ("b", 81)):  # of 1600
        image_at(tmp_path / name / "images" / "a.tif", place)
        pixels = drawn(place.crs, place.transform, 40, 40, scale_of(place)).astype("float32")
        pixels.reshape(3, -1)[:, :missing] = np.nan
        write_raster(tmp_path / name / "scene.tif", pixels, place.crs, place.transform)
        code, _, _ = collect(capfd, tmp_path / name, "--images", tmp_path / name / "images",
                             "--raster", tmp_path / name / "scene.tif", "--size", 40,
                             "--resampling", "nearest")
        assert code == (0 if missing == 80 else 2)
    assert lines_of(tmp_path / "a")[0]["covered"] == "0.950"
    assert lines_of(tmp_path / "a")[0]["status"] == "collected"
    line, = lines_of(tmp_path / "b")
    assert (line["status"], line["note"]) == ("no imagery", "94% of it is covered")


# ------------------------------------------------------------ what a service has not


def test_what_had_no_imagery_is_tried_again_when_told_and_elsewhere(capfd, tmp_path, server):
    """The first service has tiles west of 11.01 degrees alone; a second one fills its gap."""
    tiles = ["--service", server.template(SCALE)]
    half = int((11.01 + 180) / 360 * 2 ** 14)
    server.answers = lambda path, before: (
        Answer(status=404) if int(path.split("/")[-2]) >= half else None)
    assert collect(capfd, tmp_path, *points(tmp_path), *tiles)[0] == 0
    assert [line["status"] for line in lines_of(tmp_path)] == ["collected", "no imagery"]
    asked = len(server.asked)
    server.answers = lambda path, before: None
    code, out, _ = collect(capfd, tmp_path, *points(tmp_path), *tiles)
    assert code == 0 and "places: 2; done: 2; to collect: 0\n" in out
    assert len(server.asked) == asked
    assert collect(capfd, tmp_path, *points(tmp_path), *tiles, "--retry")[0] == 0
    assert [line["status"] for line in lines_of(tmp_path)] == ["collected"] * 2
    both, nothing = tmp_path / "both", "http://127.0.0.1:{}/none/{{z}}/{{x}}/{{y}}"
    code, out, _ = collect(capfd, both, *points(tmp_path), "--service",
                           nothing.format(server.port), server.template(SCALE))
    assert code == 0 and out.count("terms: ") == 2
    for name in "ab":
        file = f"out/{name}.tif"
        assert (both / file).read_bytes() == (tmp_path / file).read_bytes()


def test_a_service_that_has_nothing_at_all_is_not_asked_for_long(capfd, tmp_path, server):
    server.answers = lambda path, before: Answer(status=404)
    rows = "".join(f"p{number:02},48.1,{11 + number / 50}\n" for number in range(14))
    code, _, error = collect(capfd, tmp_path, *points(tmp_path, "name,lat,lon\n" + rows),
                               "--service", server.template(SCALE))
    assert code == 2 and error == (
        f"error: 127.0.0.1:{server.port} has no imagery of the first 10 places, such as p09 (0% of "
        "it is covered): lower --zoom where it was given, or name another source; --retry tries "
        "them again\n")
    assert len(lines_of(tmp_path)) == 10


def test_a_limit_looks_at_places_from_all_over(capfd, tmp_path, server):
    rows = "".join(f"p{number:02},48.1,{11 + number / 50}\n" for number in range(11))
    assert collect(capfd, tmp_path, *points(tmp_path, "name,lat,lon\n" + rows), "--limit", 3,
                   "--service", server.template(SCALE))[0] == 0
    assert [line["name"] for line in lines_of(tmp_path)] == ["p00", "p05", "p10"]


def test_how_far_it_is_is_said_where_no_bar_can_be_seen(capfd, tmp_path, server, monkeypatch):
    monkeypatch.setattr(time, "monotonic", iter(range(0, 10**6, 200)).__next__)
    rows = "".join(f"p{number:02},48.1,{11 + number / 50}\n" for number in range(6))
    _, out, _ = collect(capfd, tmp_path, *points(tmp_path, "name,lat,lon\n" + rows),
                        "--service", server.template(SCALE))
    assert "1 collected\n" in out and "5 collected\n" in out


def test_an_image_of_one_colour_is_none_unless_it_shows_classes(capfd, tmp_path):
    place = on_grid(32633, 400_000, 5_400_000)
    raster = image_at(tmp_path / "scene.tif", place)
    with rasterio.open(raster, "r+") as file:
        file.write(np.full((3, 32, 24), 7, np.uint8), window=rasterio.windows.Window(0, 0, 24, 32))
    image_at(tmp_path / "images" / "a.tif", place)
    flags = ["--images", tmp_path / "images", "--size", 32, "--raster", raster]
    code, out, _ = collect(capfd, tmp_path, *flags, "--resampling", "cubic")
    assert code == 2 and "1 left out, no imagery: a (nearly all of one colour)" in out
    code, _, error = collect(capfd, tmp_path / "classes", *flags, "--resampling", "nearest")
    assert (code, error) == (0, "")
    with rasterio.open(raster) as file:
        assert (read_image(tmp_path / "classes" / "out" / "a.tif")[0] == file.read()).all()
