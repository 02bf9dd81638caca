"""search.py: every command goes well once, and all that cannot be is one sentence."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from rasterio.transform import from_origin

from raster_helpers import raster
from search_helpers import CPU, add_to, names_in, picture, pictures, png, save_model, search

GRID = {"crs": "EPSG:32632", "transform": from_origin(5e5, 5.5e6, 10, 10)}


def done(capsys, *arguments):
    """It ends well; what it printed, and its warnings."""
    code, out, error = search(capsys, *arguments)
    assert code == 0, out + error
    return out, error


def refused(capsys, *arguments):
    """The one line that it ends with, exit code 2."""
    code, _, error = search(capsys, *arguments)
    lines = [line for line in error.strip().splitlines() if not line.startswith("warning:")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in error, error
    return lines[0]


@pytest.fixture(scope="session")
def places(tmp_path_factory, hash_model, zygote):
    """Nine tiles of a scene with a CRS: scene.tif, and archive/ of it. Nobody changes it."""
    folder = tmp_path_factory.mktemp("places")
    scene = np.concatenate([np.concatenate([np.asarray(picture(3 * row + column, 16, 16))
                                            for column in range(3)], axis=1) for row in range(3)])
    (folder / "scene.tif").write_bytes(raster(scene.transpose(2, 0, 1), **GRID))
    code, text = zygote.run(folder / "out.txt", "search.py", "add", "--archive", folder / "archive",
                            "--images", folder / "scene.tif", "--tile", 16, "--pretrain_path",
                            hash_model, *CPU)
    assert code == 0 and "added 9 images" in text, text
    return folder


@pytest.fixture
def archive(searched, tmp_path):
    """A copy of an archive of twelve images, which may be changed."""
    shutil.copytree(searched / "archive", tmp_path / "archive")
    return tmp_path / "archive"


# ------------------------------------------------------------ what goes well


def test_add_says_what_it_did_and_needs_the_model_once(capsys, tmp_path, hash_model):
    pictures(tmp_path / "images", 6)
    add = ["add", "--archive", tmp_path / "new" / "archive", *CPU, "--images"]
    out, error = done(capsys, *add, tmp_path / "images", "--pretrain_path", hash_model)
    assert "6 images, read as they are\n" in out and "added 6 images" in out and not error
    out, _ = done(capsys, *add, tmp_path / "images", tmp_path / "images" / "sea" / "001.png")
    assert "added 0 images" in out and "there already: 7" in out and "archive has 6" in out
    assert "under another name (001 is sea/001)" in out


def test_files_are_searched_and_all_is_written_that_is_asked_for(capsys, tmp_path, searched):
    (tmp_path / "own.png").write_bytes(png(4))  # sea/004
    outputs = {"csv": "a.csv", "geojson": "a.json", "picture": "a.png"}
    flags = [word for flag, name in outputs.items() for word in (f"--{flag}", tmp_path / name)]
    out, error = done(capsys, "find", "--archive", searched / "archive", "--top", 3, "--query",
                      tmp_path / "own.png", searched / "images" / "town" / "002.png", *flags, *CPU)
    assert not error
    head, nearest, *_ = out.splitlines()
    assert head == "own.png: 3 of 12 items, by 20 bits" and nearest == "     0  sea/004"
    assert all(f"wrote {tmp_path / name}" in out for name in outputs.values())

    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [row["query"] for row in rows] == ["own.png"] * 3 + ["002.png"] * 3
    assert [row["rank"] for row in rows] == ["1", "2", "3"] * 2
    assert [int(row["distance"]) for row in rows[:3]] == sorted(
        int(row["distance"]) for row in rows[:3])
    assert rows[0]["name"] == "sea/004" and rows[0]["class"] == "sea" and rows[0]["latitude"] == ""
    assert rows[0]["file"] == str(searched / "images" / "sea" / "004.png")
    assert names_in(searched / "archive")[int(rows[1]["number"])] == rows[1]["name"]

    features = json.loads((tmp_path / "a.json").read_text())["features"]
    assert [feature["geometry"] for feature in features] == [None] * 6
    assert [str(feature["properties"]["distance"]) for feature in features] == [
        row["distance"] for row in rows]
    assert Image.open(tmp_path / "a.png").width > 4 * 100


def test_items_are_searched_by_name_and_are_not_their_own_neighbours(capsys, searched):
    out, _ = done(capsys, "find", "--archive", searched / "archive", "--name", "sea/001", "sea/004",
                  "--top", 100)
    assert "sea/001: 11 of 11 items" in out and "sea/004: 11 of 11 items" in out
    first, second = out.split("\n\n")
    assert "  sea/001" not in first and "  sea/001" in second


def test_rerank_orders_by_the_cosine(capsys, searched):
    out, _ = done(capsys, "find", "--archive", searched / "archive", "--name", "sea/001",
                  "--rerank")
    assert "by 20 bits and the cosine of the outputs" in out.splitlines()[0]
    cosines = [float(line.split()[1]) for line in out.splitlines()[1:]]
    assert len(cosines) == 11 and cosines == sorted(cosines, reverse=True) and cosines[0] < 1


def test_the_tile_that_holds_a_place_is_searched(capsys, places, tmp_path):
    at = "49.65038,9.00332"  # the middle of the scene: 240 m east and south of its corner
    out, _ = done(capsys, "find", "--archive", places / "archive", "--at", at, "--csv",
                  tmp_path / "a.csv", "--geojson", tmp_path / "a.json")
    assert out.startswith("scene/16_16: 8 of 8 items")
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert all(abs(float(row["latitude"]) - 49.65) < 0.01 for row in rows)
    assert f"{places / 'scene.tif'}[column 0, row 16, 16 x 16]" in {row["file"] for row in rows}
    feature, = (feature for feature in json.loads((tmp_path / "a.json").read_text())["features"]
                if feature["properties"]["name"] == "scene/0_0")
    west, north = feature["geometry"]["coordinates"][0][0]
    assert abs(west - 9) < 0.003 and abs(north - 49.65) < 0.003

    out, _ = done(capsys, "find", "--archive", places / "archive", "--at", at, "--within_km", 0.17)
    assert out.startswith("scene/16_16: 4 of 4 items")  # those beside it, not those at the corners
    out, _ = done(capsys, "find", "--archive", places / "archive", "--name", "scene/0_0",
                  "--within_km", 1, "--around", "-10,20")
    assert out.startswith("scene/0_0: no other item lies within reach")


def test_a_picture_of_answers_of_different_lengths_shows_all(capsys, places, tmp_path):
    done(capsys, "find", "--archive", places / "archive", "--name", "scene/0_0", "scene/16_16",
         "--within_km", 0.17, "--picture", tmp_path / "both.png")
    done(capsys, "find", "--archive", places / "archive", "--name", "scene/16_16",
         "--within_km", 0.17, "--picture", tmp_path / "four.png")
    assert Image.open(tmp_path / "both.png").width == Image.open(tmp_path / "four.png").width


def test_info_tells_what_is_there_and_what_has_gone(capsys, archive, tmp_path, hash_model):
    images = pictures(tmp_path / "more", 3, first=20)
    add_to(archive, hash_model, images)
    shutil.rmtree(images)
    out, _ = done(capsys, "info", "--archive", archive)
    assert "15 items, 20 bits each; 0 with a place, 15 in 3 class folders" in out
    assert f"3 from {images} (not there now)" in out
    assert "the codes and the real-valued outputs of all items are there" in out


def test_info_warns_of_bits_that_tell_nothing(capsys, tmp_path, hash_model):
    (tmp_path / "a.png").write_bytes(png(1))
    add_to(tmp_path / "archive", hash_model, tmp_path / "a.png")
    info = ["info", "--archive", tmp_path / "archive"]
    assert done(capsys, *info)[1].startswith("warning: all 20 bits are the same")
    add_to(tmp_path / "archive", hash_model, pictures(tmp_path / "images", 2))
    assert "all 20 bits" not in done(capsys, *info)[1]
    done(capsys, "remove", "--archive", tmp_path / "archive", "--name", "*/*")
    assert "all 20 bits" in done(capsys, *info)[1], "removed items count no more"


def test_items_are_removed_by_name_and_by_glob(capsys, archive):
    out, _ = done(capsys, "remove", "--archive", archive, "--name", "sea/*", "town/002")
    assert "removed 5 items" in out and "has 7" in out
    assert {name.split("/")[0] for name in names_in(archive).values()} == {"field", "town"}
    assert "no item" in refused(capsys, "remove", "--archive", archive, "--name", "sea/*")


def test_a_name_with_the_letters_of_a_glob_removes_that_item_alone(
        capsys, archive, hash_model, tmp_path):
    for name, seed in (("a[1]", 50), ("a1", 51)):
        (tmp_path / f"{name}.png").write_bytes(png(seed))
        add_to(archive, hash_model, tmp_path / f"{name}.png")
    done(capsys, "find", "--archive", archive, "--name", "a[1]")
    out, _ = done(capsys, "remove", "--archive", archive, "--name", "a[1]")
    assert "removed 1 items" in out and "a1" in names_in(archive).values()


def test_export_writes_each_of_its_kinds(capsys, archive, tmp_path):
    out, _ = done(capsys, "export", "--archive", archive, "--faiss", tmp_path / "i", "--kind",
                  "flat", "--npz", tmp_path / "c.npz", "--geojson", tmp_path / "g.json")
    assert out.count("wrote") == 3 and (tmp_path / "i").stat().st_size > 36
    assert np.load(tmp_path / "c.npz")["database_codes"].shape == (12, 3)
    assert len(json.loads((tmp_path / "g.json").read_text())["features"]) == 12


def test_names_that_are_no_text_are_shown_and_found(capsys, tmp_path, hash_model, archive):
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(png(50))
    done(capsys, "add", "--archive", archive, "--images", tmp_path / os.fsdecode(b"caf\xe9.png"),
         *CPU)
    assert r"caf\xe9" in names_in(archive).values()
    for name in (r"caf\xe9", os.fsdecode(b"caf\xe9")):
        out, _ = done(capsys, "find", "--archive", archive, "--name", name, "--csv",
                      tmp_path / "a.csv", "--geojson", tmp_path / "a.json")
        assert out.startswith(r"caf\xe9: 12 of 12")
    out, _ = done(capsys, "find", "--archive", archive, "--query",
                  tmp_path / os.fsdecode(b"caf\xe9.png"), "--csv", tmp_path / "a.csv", "--picture",
                  tmp_path / "a.png", "--geojson", tmp_path / "a.json", *CPU)
    row = next(csv.DictReader((tmp_path / "a.csv").open()))
    assert row["query"] == r"caf\xe9.png" and row["file"].endswith(r"caf\xe9.png")
    assert row["name"] == r"caf\xe9" and row["distance"] == "0"
    feature = json.loads((tmp_path / "a.json").read_text())["features"][0]
    assert feature["properties"]["file"] == row["file"] and (tmp_path / "a.png").exists()
    done(capsys, "export", "--archive", archive, "--geojson", tmp_path / "g.json", "--npz",
         tmp_path / "c.npz")
    done(capsys, "info", "--archive", archive)


def test_the_sensor_of_the_training_is_simulated_unless_plain_is_said(capsys, tmp_path):
    model = save_model(tmp_path / "ucm.pth", data_name="UCMerced")
    (tmp_path / "a.png").write_bytes(png(1, height=256, width=256))
    add = ["add", "--pretrain_path", model, "--images", tmp_path / "a.png", *CPU]
    out, _ = done(capsys, *add, "--archive", tmp_path / "one")
    assert "read through the simulated sensor of UCMerced ms" in out
    out, _ = done(capsys, *add, "--archive", tmp_path / "two", "--plain")
    assert "read as they are" in out
    line = refused(capsys, *add, "--archive", tmp_path / "three", "--bands", "1")
    assert "through the simulated sensor" in line and "add --plain" in line
    line = refused(capsys, *add, "--archive", tmp_path / "three", "--tile", 64)
    assert "cut with --plain" in line


def test_images_and_queries_are_read_as_those_before_unless_flags_say_otherwise(
        capsys, tmp_path, hash_model):
    numbers = np.arange(3 * 24 * 32, dtype=np.uint16).reshape(3, 24, 32)
    for name in "abc":
        scaled = (numbers * (1 + ord(name) % 3)).astype(np.uint16)
        (tmp_path / f"{name}.tif").write_bytes(raster(scaled))
    archive = tmp_path / "archive"
    add, find = ["add", "--archive", archive, *CPU], ["find", "--archive", archive, *CPU]
    out, warnings = done(capsys, *add, "--pretrain_path", hash_model, "--images",
                         tmp_path / "a.tif", "--bands", "3,2,1", "--range", "0,3000")
    assert "read bands 3,2,1, range 0,3000" in out and "are read as they are" in warnings
    out, warnings = done(capsys, *add, "--images", tmp_path / "b.tif")
    assert "read bands 3,2,1, range 0,3000" in out and "are read" not in warnings
    out, _ = done(capsys, *find, "--query", tmp_path / "b.tif")
    assert out.splitlines()[0] == "queries are read bands 3,2,1, range 0,3000"
    assert out.splitlines()[2].split() == ["0", "b"]
    for flags in ([*add, "--images", tmp_path / "a.tif", tmp_path / "b.tif"],
                  [*find, "--query", tmp_path / "a.tif"]):
        line = refused(capsys, *flags, "--range", "2%,98%")
        assert "--range 2%,98% would be drawn from" in line
    # Of images that were read in several ways queries cannot follow all.
    out, warnings = done(capsys, *add, "--images", tmp_path / "c.tif", "--as_trained")
    assert "read as they are" in out
    assert "archive, or of the training, are read bands 3,2,1, range 0,3000" in warnings
    out, _ = done(capsys, *find, "--query", tmp_path / "c.tif")
    assert out.splitlines()[0] == "queries are read as they are"
    assert out.splitlines()[2].split() == ["0", "c"]
    assert "or as they are" in done(capsys, "info", "--archive", archive)[0]
    done(capsys, "remove", "--archive", archive, "--name", "c")
    out, _ = done(capsys, *find, "--query", tmp_path / "b.tif")
    assert out.splitlines()[2].split() == ["0", "b"]
    assert " or " not in done(capsys, "info", "--archive", archive)[0]


def test_images_far_larger_than_what_the_network_sees_are_told_of(capsys, tmp_path, hash_model):
    (tmp_path / "scene.png").write_bytes(png(1, height=200, width=200))
    _, warnings = done(capsys, "add", "--archive", tmp_path / "a", "--pretrain_path", hash_model,
                       "--images", tmp_path / "scene.png", *CPU)
    assert "1 images are more than 4 times as large" in warnings and "--tile" in warnings


def test_an_npz_without_labels_is_told_of(capsys, places, tmp_path):
    _, warnings = done(capsys, "export", "--archive", places / "archive", "--npz",
                       tmp_path / "a.npz")
    assert "the .npz has no labels" in warnings


def test_no_image_is_replaced_by_a_table_or_a_picture(capsys, searched, tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    find = ["find", "--archive", searched / "archive", "--name", "field/000"]
    line = refused(capsys, *find, "--csv", tmp_path / "a.png")
    assert "is there and no .csv file" in line
    assert (tmp_path / "a.png").read_bytes() == png(1)
    image = searched / "images" / "field" / "000.png"
    for flags in ([*find, "--picture", image],
                  ["export", "--archive", searched / "archive", "--faiss", image]):
        assert "is an image of the archive" in refused(capsys, *flags)
    assert image.read_bytes() == png(0)
    (tmp_path / "field").symlink_to(image.parent)
    assert "is an image" in refused(capsys, *find, "--picture", tmp_path / "field" / "000.png")
    # Another file there, whose name is a part of an image's.
    other = searched / "images" / "field" / "00.png"
    other.write_bytes(png(1))
    done(capsys, *find, "--picture", other)
    other.unlink()


def test_a_page_shows_no_answers_that_it_cannot_find_itself(capsys, places, tmp_path):
    find = ["find", "--archive", places / "archive", "--name", "scene/0_0", "--page",
            tmp_path / "p"]
    for flags in (["--rerank"], ["--within_km", "5"]):
        assert "--page shows what is nearest of all" in refused(capsys, *find, *flags)
    line = refused(capsys, "page", "--archive", places / "archive", "--output",
                   places / "archive" / "page")
    assert "lies in the archive" in line


def test_names_of_any_bytes_stay_on_their_line_and_are_read_again(capsys, tmp_path, hash_model):
    folders = [tmp_path / "images" / "two\nlines", tmp_path / "images" / os.fsdecode(b"caf\xe9")]
    for number, folder in enumerate(folders):
        folder.mkdir(parents=True)
        (folder / f"a\n{number}.png").write_bytes(png(number))
    archive = tmp_path / "archive"
    done(capsys, "add", "--archive", archive, "--pretrain_path", hash_model, "--images",
         tmp_path / "images", *CPU)
    name, = (name for name in names_in(archive).values() if name.startswith("two"))
    out, _ = done(capsys, "find", "--archive", archive, "--name", name, "--picture",
                  tmp_path / "p.png")
    assert len(out.splitlines()) == 3
    done(capsys, "page", "--archive", archive, "--output", tmp_path / "page")
    # An image that has changed since is not shown as what it was.
    (folders[0] / "a\n0.png").write_bytes(png(5, height=9, width=9))
    assert "9 x 9 pixels now" in refused(capsys, "page", "--archive", archive, "--output",
                                         tmp_path / "page")


def test_tiles_leave_no_gaps(capsys, places, tmp_path, hash_model):
    line = refused(capsys, "add", "--archive", tmp_path / "a", "--pretrain_path", hash_model,
                   "--images", places / "scene.tif", "--tile", 16, "--stride", 17, *CPU)
    assert "would leave gaps" in line
