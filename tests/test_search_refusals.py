"""search.py: what cannot be is one sentence that says what to do, and nothing is lost."""

import os
import shutil

import pytest
from PIL import Image
from rasterio.transform import from_origin

from archive import Archive
from raster_helpers import ramp, raster
from script_helpers import refused as refused_of
from search_helpers import CPU, add_to, names_in, pictures, png, save_model, search


def refused(capsys, *arguments):
    return refused_of(capsys, "search.py", *arguments)


@pytest.fixture
def archive(searched, tmp_path):
    """A copy of an archive of twelve images, which may be changed."""
    shutil.copytree(searched / "archive", tmp_path / "archive")
    return tmp_path / "archive"


@pytest.fixture
def empty(archive):
    """An archive of which everything was removed."""
    with Archive(archive) as opened, opened.writing():
        opened.remove(range(12))
    return archive


@pytest.fixture
def files(tmp_path):
    """Files that are no image to search for, by name."""
    (tmp_path / "own.png").write_bytes(png(1))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.png").write_bytes(b"<html>not found</html>")
    (tmp_path / "cut.png").write_bytes(png(2)[:300])
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.png").write_bytes(png(3))
    for bands in (2, 5, 13):
        (tmp_path / f"{bands}.tif").write_bytes(raster(ramp("uint8", bands)))
    (tmp_path / "deep.tif").write_bytes(raster(ramp("float32", 3, high=9000)))
    return tmp_path


# ------------------------------------------------------------ find


@pytest.mark.parametrize(("words", "parts"), [
    (["--query", "{}/none.png"], ["none.png is no file"]),
    (["--query", "{}/folder"], ["folder is no file"]),
    (["--query", ""], ["an empty path"]),
    (["--query", "{}/empty.png"], ["1 of 1 queries cannot be read", "empty.png ("]),
    (["--query", "{}/own.png", "{}/page.png", "{}/cut.png"],
     ["2 of 3 queries cannot be read", "page.png (", "cut.png ("]),
    (["--query", "{}/notes.txt"], ["notes.txt is no folder and no zip"]),
    (["--query", "{}/2.tif"], ["2.tif", "2 bands", "--bands"]),
    (["--query", "{}/13.tif"], ["13.tif", "13 bands", "--bands"]),
    (["--query", "{}/13.tif", "--bands", "1,2,99"], ["13.tif", "99"]),
    (["--query", "{}/13.tif", "--bands", "1,2"], ["--bands", "1,2", "one band, or three"]),
    (["--query", "{}/13.tif", "--bands", ""], ["--bands", "one band, or three"]),
    (["--query", "{}/deep.tif"], ["deep.tif", "--range"]),
    (["--query", "{}/deep.tif", "--range", "9"], ["--range", "9"]),
    (["--query", "{}/deep.tif", "--range", "9,1"], ["--range"]),
    (["--query", "{}/own.png", "--bands", "1"], ["own.png", "--bands"]),
    (["--name", "sea/999"], ["no item of", "is called sea/999"]),
    (["--name", "sea/*"], ["is called sea/*"]),
    (["--name", "01"], ["is called 01; it has ", "sea/001"]),
    (["--name", "sea/001", "--within_km", 5], ["sea/001 has no place", "--around LAT,LON"]),
    (["--at", "48.1,11.5"], ["lies at LAT,LON 48.1,11.5: none has a place, which GeoTIFFs"]),
    (["--at", "91,0"], ["latitudes reach from -90 to 90"]),
    (["--at", "nan,0"], ["nan,0 is no LAT,LON"]),
    (["--at", "48"], ["invalid LAT,LON value: '48'"]),
    (["--name", "sea/001", "--around", "48,11"], ["--around does nothing without --within_km"]),
    (["--name", "sea/001", "--within_km", -1], ["-1 is not a number"]),
    (["--name", "sea/001", "--within_km", "nan"], ["nan is not a number"]),
    (["--name", "sea/001", "--top", 0], ["0 is not a whole number of at least 1"]),
    (["--name", "sea/001", "--bands", "1"], ["--bands does nothing without --query"]),
    (["--name", "sea/001", "--range", "1,2"], ["--range does nothing without --query"]),
    (["--name", "sea/001", "--plain"], ["--plain does nothing without --query"]),
    (["--at", "48,11", "--amp"], ["--amp does nothing without --query"]),
    (["--at", "48,11", "--name", "sea/001"], ["not allowed with argument"]),
    ([], ["one of the arguments --query --name --at is required"]),
])
def test_a_search_that_cannot_be(capsys, searched, files, words, parts):
    words = [str(word).replace("{}", str(files)) for word in words]
    line = refused(capsys, "find", "--archive", searched / "archive", *words)
    assert all(part in line for part in parts), line
    assert "--range1" not in line and "--bands1" not in line


def test_places_where_nothing_lies(capsys, tmp_path, hash_model):
    grid = {"crs": "EPSG:32632", "transform": from_origin(5e5, 5.5e6, 10, 10)}
    (tmp_path / "a.tif").write_bytes(raster(ramp("uint8"), **grid))
    add_to(tmp_path / "archive", hash_model, tmp_path / "a.tif")
    line = refused(capsys, "find", "--archive", tmp_path / "archive", "--at", "-10.5,20")
    assert line.endswith("lies at LAT,LON -10.5,20.0: they lie between the latitudes 49.65 and "
                         "49.65 and the longitudes 9.00 and 9.00")


def test_rerank_needs_outputs_that_were_kept(capsys, tmp_path, hash_model):
    add_to(tmp_path / "archive", hash_model, pictures(tmp_path / "images", 3))
    find = ["find", "--archive", tmp_path / "archive", "--name", "sea/001"]
    assert "was begun without --keep_outputs" in refused(capsys, *find, "--rerank")
    add = ["add", "--archive", tmp_path / "archive", "--images", tmp_path / "images", *CPU]
    assert "was begun without --keep_outputs" in refused(capsys, *add, "--keep_outputs")


def test_more_answers_than_there_are_items(capsys, searched):
    code, out, _ = search(capsys, "find", "--archive", searched / "archive", "--name", "sea/001",
                          "--top", 1000)
    assert code == 0 and out.startswith("sea/001: 11 of 11 items") and out.count("\n") == 12


# ------------------------------------------------------------ what is written


@pytest.mark.parametrize("name", ["items.sqlite", "codes.npy", "outputs.npy", "model.pth", ".lock",
                                  "new.csv", "link"])
@pytest.mark.parametrize("flag", ["csv", "geojson", "picture"])
def test_no_output_replaces_the_archive(capsys, archive, name, flag):
    if name == "link":
        (archive.parent / name).symlink_to(archive / "codes.npy")
    path = archive.parent / "link" if name == "link" else archive / name
    before = {entry.name: entry.read_bytes() for entry in archive.iterdir()}
    line = refused(capsys, "find", "--archive", archive, "--name", "sea/001", f"--{flag}", path)
    assert f"--{flag} {path} lies in the archive" in line
    assert {entry.name: entry.read_bytes() for entry in archive.iterdir()} == before


@pytest.mark.parametrize(("words", "part"), [
    (["--query", "{}/own.png", "--picture", "{}/own.png"], "is searched for: name another"),
    (["--name", "sea/001", "--csv", "{}/a", "--geojson", "{}/a"], "is what --csv writes, too"),
    (["--name", "sea/001", "--csv", "{}/folder"], "is no plain file"),
    (["--name", "sea/001", "--csv", "/dev/null"], "is no plain file"),
    (["--name", "sea/001", "--csv", "{}/notes.txt/a.csv"], "notes.txt is a file"),
    (["--name", "sea/001", "--geojson", "/proc/nowhere/a.json"], "--geojson /proc/nowhere cannot"),
    (["--name", "sea/001", "--csv", ""], "an empty path"),
    (["--name", "sea/001", "--page", ""], "an empty path"),
    (["--name", "sea/001", "--page", "{}/notes.txt"], "notes.txt is a file"),
    (["--name", "sea/001", "--page", "{}/archive"], "something else than the page of an archive"),
])
def test_an_output_that_cannot_be_written(capsys, archive, files, words, part):
    before = (files / "own.png").read_bytes()
    words = [word.replace("{}", str(files)) for word in words]
    assert part in refused(capsys, "find", "--archive", archive, *words, "--top", "3")
    assert (files / "own.png").read_bytes() == before and (files / "notes.txt").is_file()


@pytest.mark.parametrize(("words", "part"), [
    ([], "say with --faiss, --npz or --geojson what is to be written"),
    (["--npz", "{}/c.npz", "--kind", "ivf"], "--kind does nothing without --faiss"),
    (["--faiss", "{}/i", "--kind", "ivf"], "too few for an index of the kind ivf"),
    (["--faiss", "{}/archive/codes.npy"], "lies in the archive"),
    (["--npz", "{}/archive/codes.npy"], "lies in the archive"),
    (["--geojson", "{}/folder"], "is no plain file")])
def test_an_export_that_cannot_be(capsys, archive, files, words, part):
    words = [word.replace("{}", str(files)) for word in words]
    assert part in refused(capsys, "export", "--archive", archive, *words)


@pytest.mark.parametrize("words", [
    ["find", "--query", "{}/own.png"], ["page", "--output", "{}/page"],
    ["export", "--npz", "{}/c.npz"], ["export", "--faiss", "{}/i"],
    ["export", "--geojson", "{}/g.json"]])
def test_an_archive_without_items_says_so(capsys, empty, files, words):
    command, *words = [word.replace("{}", str(files)) for word in words]
    assert "has no items: add some first" in refused(capsys, command, "--archive", empty, *words)
    code, out, error = search(capsys, "info", "--archive", empty)
    assert code == 0 and "0 items" in out and error == ""


@pytest.mark.parametrize("words", [
    ["find", "--name", "a"], ["page", "--output", "{}/page"], ["export", "--npz", "{}.npz"],
    ["info"], ["remove", "--name", "a"]])
def test_where_no_archive_is(capsys, tmp_path, words):
    command, *words = [word.replace("{}", str(tmp_path)) for word in words]
    for folder in (tmp_path, tmp_path / "nowhere"):
        line = refused(capsys, command, "--archive", folder, *words)
        assert f"{folder} is no archive, which has items.sqlite and codes.npy" in line
    assert not (tmp_path / "nowhere").exists()


# ------------------------------------------------------------ add


@pytest.mark.parametrize(("words", "parts"), [
    (["--images", "{}/none"], ["--images {}/none does not exist"]),
    (["--images", "{}/notes.txt"], ["notes.txt is no folder and no zip"]),
    (["--images", "{}/empty"], ["{}/empty holds no image"]),
    (["--images", "{}/own.png", "--stride", 8], ["--stride does nothing without --tile"]),
    (["--images", "{}/own.png", "--tile", 64], ["has 32 x 24 pixels, less than a tile"]),
    (["--images", "{}/folder", "--tile", 16], ["holds no scene (.tif, .tiff, .jp2)"]),
    (["--images", "{}/some.zip", "--tile", 16], ["is a zip, of which no windows"]),
    (["--images", "{}/notes.txt", "--tile", 16], ["notes.txt cannot be opened as a scene"]),
    (["--images", "{}/empty.png", "--tile", 16], ["empty.png cannot be opened as a scene"]),
    (["--images", "{}/own.png", "--tile", 4], ["4 is not a whole number from 8"]),
    (["--images", "{}/13.tif"], ["13.tif", "13 bands", "--bands"]),
    (["--images", "{}/13.tif", "--bands", "B04,B03,B02"], ["13.tif", "B04"]),
    (["--images", "{}/deep.tif"], ["deep.tif", "--range"]),
    (["--images", "{}/deep.tif", "--range", "0,1,2"], ["--range"]),
    (["--images", "{}/deep.tif", "--range", "0,1;0,1"], ["--range"]),
    (["--images", "{}/own.png", "--device", "abacus"], ["--device abacus cannot be used"]),
    (["--images", "{}/own.png", "--pretrain_path", "{}/other.pth"],
     ["{}/other.pth is not the model that made the codes of", "begin another archive"]),
    (["--images", "{}/own.png", "--pretrain_path", "{}/own.png"], ["is not a whole checkpoint"]),
    (["--images", "{}/own.png", "--pretrain_path", "{}/none.pth"], ["no checkpoint at"]),
])
def test_an_add_that_cannot_be(capsys, archive, files, words, parts):
    (files / "empty").mkdir()
    shutil.make_archive(files / "some", "zip", files / "folder")
    if any("other.pth" in str(word) for word in words):
        save_model(files / "other.pth", seed=1)
    words = [str(word).replace("{}", str(files)) for word in words]
    line = refused(capsys, "add", "--archive", archive, *words)
    assert all(part.replace("{}", str(files)) in line for part in parts), line
    assert "--range1" not in line and "--bands1" not in line
    assert len(names_in(archive)) == 12


def test_an_add_without_a_model_begins_nothing(capsys, files):
    line = refused(capsys, "add", "--archive", files / "new", "--images", files / "own.png")
    assert "new is no archive yet: say with --pretrain_path which model" in line
    assert not (files / "new").exists()


def test_a_folder_of_images_is_no_place_for_an_archive(capsys, files, hash_model):
    line = refused(capsys, "add", "--archive", files / "folder", "--images", files / "own.png",
                   "--pretrain_path", hash_model, *CPU)
    assert "is no archive, but holds a.png: name a new or empty folder" in line


def test_a_file_of_a_whole_scene_is_told_to_be_cut_with_tile(capsys, archive, tmp_path):
    with open(tmp_path / "scene.tif", "wb") as file:
        file.truncate((1 << 30) + 1)
    Image.new("L", (9000, 8000)).save(tmp_path / "map.png", compress_level=1)
    for name in ("scene.tif", "map.png"):
        line = refused(capsys, "add", "--archive", archive, "--images", tmp_path / name, *CPU)
        assert name in line and line.count("cut it into scenes, with --tile") == 1
    os.unlink(tmp_path / "scene.tif")


# ------------------------------------------------------------ damage


def test_damage_of_the_database_is_one_sentence_for_every_command(capsys, archive, files):
    for raw in (b"", b"no database" * 500, (archive / "items.sqlite").read_bytes()[:20_000]):
        (archive / "items.sqlite").write_bytes(raw)
        for command, *words in (
                ["find", "--name", "sea/001"], ["page", "--output", files / "page"],
                ["export", "--npz", files / "c.npz"], ["info"], ["remove", "--name", "sea/001"],
                ["add", "--images", files / "own.png", *CPU]):
            line = refused(capsys, command, "--archive", archive, *words)
            assert "items.sqlite" in line and ("is damaged" in line or "I/O" in line)


def test_a_model_that_is_gone_or_damaged_leaves_what_needs_none(capsys, archive, files):
    find = ["find", "--archive", archive]
    for content in (None, b"half a model"):
        (archive / "model.pth").unlink()
        if content:
            (archive / "model.pth").write_bytes(content)
        line = refused(capsys, *find, "--query", files / "own.png", *CPU)
        assert f"{archive / 'model.pth'}" in line
        assert search(capsys, *find, "--name", "sea/001")[0] == 0
        (archive / "model.pth").touch()


def test_words_that_are_no_command(capsys):
    assert "invalid choice: 'look'" in refused(capsys, "look")
    assert "required: add|find|page|export|info|remove" in refused(capsys)
    assert "unrecognized arguments: --querry" in refused(
        capsys, "find", "--archive", "a", "--name", "b", "--querry", "c")
