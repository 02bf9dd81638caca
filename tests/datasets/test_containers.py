"""Folders and zips: what is taken, what is left out and said, what is refused."""

import os
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

import utils
from data_loader import DataConfig, load_dataset
from datasets.containers import Folder, Zip, open_container
from datasets.sources import ImageFiles
from image_helpers import complaint, encoded, hollow, noise, tree


@pytest.fixture(autouse=True)
def nothing_was_said():
    utils.warn_once.cache_clear()
    utils.print_once.cache_clear()


@pytest.fixture(params=["folder", "zip"])
def place(request, tmp_path):
    """Where a tree of files is put: a folder, or a zip."""
    return tmp_path / ("one" if request.param == "folder" else "one.zip")


# ------------------------------------------------------------ left out


def test_files_left_out_are_counted_by_their_ending(place, capsys):
    images = hollow(f"a/{number}" for number in range(3))
    others = hollow([f"a/{number}" for number in range(48)], ".HEIC") | hollow(
        ["a/notes", "b"], ".txt") | {"a/no_ending": b"x"}
    litter = {".hidden/a.jpg": b"x", "a/.b.heic": b"x", "Thumbs.db": b"x", "a/desktop.ini": b"x",
              "__MACOSX/a/._1.jpg": b"x"}
    container = open_container(tree(place, images | others | litter))
    assert sorted(container.files) == sorted(images)
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == (
        f"warning: {place}: 51 files left out (48 .heic, 2 .txt, 1 without ending)\n")
    open_container(place)  # of a table's next seed
    assert capsys.readouterr().err == ""


def test_many_endings_are_summed_up(tmp_path, capsys):
    endings = [f".x{number}" for number in range(9)]
    tree(tmp_path / "one", {"1.png": b"x"} | {f"1{ending}": b"x" for ending in endings})
    open_container(tmp_path / "one")
    assert "9 files left out (1 .x" in (text := capsys.readouterr().err) and "3 others)" in text


def test_readmes_and_world_files_are_told_without_a_warning(place, capsys):
    tree(place, {"1.tif": b"x", "1.tfw": b"x", "1.tif.aux.xml": b"x", "README.md": b"x"})
    open_container(place)
    captured = capsys.readouterr()
    assert captured.err == "" and captured.out.startswith(f"{place}: 3 files left out (")


def test_nothing_is_said_where_nothing_is_left_out(place, capsys):
    open_container(tree(place, {"a/1.png": b"x", ".DS_Store": b"x"}))
    assert capsys.readouterr() == ("", "")


def test_a_container_without_images_says_what_it_has(place):
    tree(place, {"a/1.heic": b"x", "a/2.heic": b"x"})
    complaint(lambda: open_container(place), str(place), "holds no image (.bmp, .gif,",
              "it has 2 files left out (2 .heic)")


@pytest.mark.parametrize(("ending", "kind"), [
    (".gif", "GIF"), (".jfif", "JPEG"), (".jpe", "JPEG"), (".JPEG", "JPEG"), (".webp", "WEBP")])
def test_every_ending_of_a_kind_that_is_read_is_taken(tmp_path, ending, kind):
    flat = np.full((6, 9, 3), 77, np.uint8)
    Image.fromarray(flat).save(tmp_path / f"a{ending}", kind)
    source = ImageFiles(open_container(tmp_path), [f"a{ending}"])
    assert source.size(0) == (6, 9) and np.abs(source.read(0).astype(int) - 77).max() <= 2


def test_jpeg_2000_is_listed(tmp_path):
    tree(tmp_path / "one", {"a.jp2": b"x", "b.j2k": b"x"})
    assert list(open_container(tmp_path / "one").files) == ["a.jp2", "b.j2k"]


# ------------------------------------------------------------ globs


@pytest.mark.parametrize(("include", "exclude", "taken"), [
    ([], ["*_mask.png"], ["a/1.png", "b/1.png", "masks/c/1.png"]),
    ([], ["masks/*", "*_mask.*"], ["a/1.png", "b/1.png"]),
    (["a/*", "b/*"], ["1.png"], ["a/1_mask.png", "b/1_mask.png"]),
    (["1.png"], [], ["a/1.png", "b/1.png", "masks/c/1.png"])])
def test_globs_choose_by_relative_path_and_by_name(place, capsys, include, exclude, taken):
    tree(place, hollow(["a/1", "a/1_mask", "b/1", "b/1_mask", "masks/c/1"], ".png"))
    container = open_container(place, include, exclude)
    assert sorted(container.files) == taken
    said = f"{place}: {5 - len(taken)} images left out by --include and --exclude\n"
    assert capsys.readouterr().out == said
    assert not container.folders & {"masks", "masks/c"} or "masks/c/1.png" in taken


def test_a_folder_that_globs_empty_is_no_empty_class(tmp_path):
    tree(tmp_path / "one", hollow(["a/1", "a/2", "b/1", "b/2", "masks/1"], ".png"))
    (tmp_path / "one" / "empty").mkdir()
    assert open_container(tmp_path / "one", exclude=["masks/*"]).folders >= {"empty"}
    assert "masks" not in open_container(tmp_path / "one", exclude=["masks/*"]).folders


def test_globs_that_leave_nothing_are_named(place):
    tree(place, hollow(["a/1"]))
    complaint(lambda: open_container(place, include=["*.tiff"]), "holds no image",
              "1 image left out by --include and --exclude")


# ------------------------------------------------------------ links


def test_links_to_class_folders_are_followed(tmp_path, capsys):
    tree(tmp_path / "store" / "forest", hollow(["1", "deep/2"]))
    tree(tmp_path / "one" / "river", hollow(["1"]))
    (tmp_path / "one" / "forest").symlink_to(tmp_path / "store" / "forest")
    folder = open_container(tmp_path / "one")
    assert list(folder.files) == ["forest/1.jpg", "forest/deep/2.jpg", "river/1.jpg"]
    assert folder.folders == {"forest", "forest/deep", "river"}
    assert folder.read_bytes("forest/deep/2.jpg") == b"x"
    assert capsys.readouterr() == ("", "")


def test_loops_end_and_no_folder_is_taken_twice(tmp_path, capsys):
    tree(tmp_path / "one", hollow(["b/1", "b/2"]))
    (tmp_path / "one" / "a").symlink_to(tmp_path / "one" / "b")  # comes before b
    (tmp_path / "one" / "b" / "self").symlink_to(tmp_path / "one")
    (tmp_path / "one" / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "one" / "c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "one" / "c")
    tree(tmp_path / "elsewhere", hollow(["9"]))
    assert list(open_container(tmp_path / "one").files) == ["b/1.jpg", "b/2.jpg", "c/9.jpg"]
    assert "4 folders that links lead to again, or that lie above" in capsys.readouterr().err


def test_a_folder_that_two_links_lead_to_is_taken_once(tmp_path, capsys):
    tree(tmp_path / "store", hollow(["x/1", "x/deep/2"]))
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a").symlink_to(tmp_path / "store" / "x" / "deep")
    (tmp_path / "one" / "b").symlink_to(tmp_path / "store" / "x")
    assert list(open_container(tmp_path / "one").files) == ["a/2.jpg", "b/1.jpg"]
    assert "1 folder that links lead to again" in capsys.readouterr().err


def test_dead_links_are_counted(tmp_path, capsys):
    tree(tmp_path / "one", hollow(["a/1", "a/2"]))
    for name in ("a/3.jpg", "a/4.jpg", "b"):
        (tmp_path / "one" / name).symlink_to(tmp_path / "gone" / name)
    (tmp_path / "one" / "a" / "round").symlink_to("round")
    assert len(open_container(tmp_path / "one").files) == 2
    assert capsys.readouterr().err == f"warning: {tmp_path / 'one'}: 4 dead links\n"


def test_pipes_and_links_to_them_are_passed_by(tmp_path):
    tree(tmp_path / "one", hollow(["1"]))
    os.mkfifo(tmp_path / "one" / "2.jpg")
    (tmp_path / "one" / "3.jpg").symlink_to(tmp_path / "one" / "2.jpg")
    assert list(open_container(tmp_path / "one").files) == ["1.jpg"]


def test_links_to_images_are_images(tmp_path):
    tree(tmp_path / "store", {"1.png": encoded(noise("a", 4, 4, 3))})
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "x.png").symlink_to(tmp_path / "store" / "1.png")
    assert open_container(tmp_path / "one").files == {
        "x.png": (tmp_path / "store" / "1.png").stat().st_size}


# ------------------------------------------------------------ what is neither


@pytest.mark.parametrize(("name", "mode", "kind"), [
    ("a.tar.gz", "w:gz", "gzip (.gz, .tar.gz"), ("a.tar", "w", "kind tar,"),
    ("a.tar.bz2", "w:bz2", "bzip2"), ("a.tar.xz", "w:xz", "xz")])
def test_archives_of_another_kind_are_called_what_they_are(tmp_path, name, mode, kind):
    tree(tmp_path / "one", hollow(["a/1"]))
    with tarfile.open(tmp_path / name, mode) as archive:
        archive.add(tmp_path / "one", "one")
    complaint(lambda: open_container(tmp_path / name), name, kind, "unpack it and name the folder")


@pytest.mark.parametrize(("start", "kind"), [
    (b"7z\xbc\xaf\x27\x1c\0\4", "7z"), (b"Rar!\x1a\x07\x01\0", "rar")])
def test_archives_of_another_kind_are_known_by_content(tmp_path, start, kind):
    (tmp_path / "scenes.zip").write_bytes(start)
    complaint(lambda: open_container(tmp_path / "scenes.zip"), f"of the kind {kind},", "unpack it")


def test_a_lone_image_is_not_called_a_damaged_zip(tmp_path):
    (tmp_path / "a.tif").write_bytes(encoded(noise("a", 4, 4, 3), "TIFF"))
    text = complaint(lambda: open_container(tmp_path / "a.tif"), "a.tif is a single file",
                     "name the folder that holds it")
    assert "zip file" not in text
    complaint(lambda: load_dataset(DataConfig("folder", source1=str(tmp_path / "a.tif"))),
              "a.tif is a single file")


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.zip")
    complaint(lambda: open_container(tmp_path / "pipe.zip"), "no folder and no file")


# ------------------------------------------------------------ zips


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_whose_directory_has_a_wrong_checksum_is_not_read(tmp_path, packing):
    data, path = encoded(noise("a", 16, 16, 3)), tmp_path / "one.zip"
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("a.png", data)
        checksum = archive.getinfo("a.png").CRC.to_bytes(4, "little")
    whole = Zip(path)
    assert whole.read_bytes("a.png") == data
    assert whole.checksums(["a.png"], None).tolist() == [int.from_bytes(checksum, "little")]
    path.write_bytes(path.read_bytes().replace(checksum, b"\1\2\3\4"))
    false = Zip(path)
    assert false.checksums(["a.png"], None).tolist() == [0x04030201]
    with pytest.raises(zipfile.BadZipFile, match="Bad CRC-32"):
        false.read_bytes("a.png")


# ------------------------------------------------------------ Pillow's own words


def test_the_log_of_pillow_stays_quiet(tmp_path, caplog):
    data = encoded(noise("a", 16, 16, 3), "TIFF")
    samples = b"\x15\x01\x03\0\x01\0\0\0"  # the tag SamplesPerPixel, before its value
    assert data.count(samples + b"\x03") == 1
    (tmp_path / "a.tif").write_bytes(data.replace(samples + b"\x03", samples + b"\x63"))
    source = ImageFiles(Folder(tmp_path), ["a.tif"])
    with pytest.raises(Exception):  # noqa: B017 - of many kinds; the store names it
        source.read(0)
    assert caplog.records == []
