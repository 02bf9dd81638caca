"""Folders and zips: what is an image, which links are followed, what is refused."""

import os
import tarfile
import zipfile
import zlib

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


# ------------------------------------------------------------ kinds of images


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


def test_other_files_are_not_called_damaged_zips(tmp_path):
    for name, data in (("x.h5", b"\x89HDF\r\n\x1a\n"), ("x.py", b"print()"), ("x", b"")):
        (tmp_path / name).write_bytes(data)
        text = complaint(lambda name=name: open_container(tmp_path / name),
                         f"{name} is no folder and no zip of images")
        assert "download" not in text
    for name, data in (("x.zip", b"<html>"), ("y", b"PK\3\4")):
        (tmp_path / name).write_bytes(data)
        complaint(lambda name=name: open_container(tmp_path / name), f"{name} is not a whole zip")


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.zip")
    complaint(lambda: open_container(tmp_path / "pipe.zip"), "no folder and no file")


# ------------------------------------------------------------ zips


def zip_of(path, names):
    """Names as they are, which writestr would mend; the content is the name."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), b"" if name[-1] in "/\\" else name.encode())
    return path


@pytest.mark.parametrize("form", ["./{}", "././{}", ".//{}", "/{}", "{}"])
@pytest.mark.parametrize("separator", ["/", "\\"])
def test_names_of_members_are_brought_into_one_form(tmp_path, capsys, form, separator):
    plain = ["top/", "top/A/", "top/A/1.png", "top/B/1.png"]
    raw = [form.format(name).replace("/", separator) for name in plain]
    container = open_container(zip_of(tmp_path / "one.zip", [*raw, "./"]))
    assert list(container.files) == plain[2:] and container.folders == {"top", "top/A"}
    assert [container.read_bytes(name).decode() for name in plain[2:]] == raw[2:]
    assert container.checksums(plain[2:], None).tolist() == [
        zlib.crc32(name.encode()) for name in raw[2:]]
    assert capsys.readouterr() == ("", "")


def test_names_that_lead_out_of_the_zip_are_read_in_place(tmp_path, capsys):
    container = open_container(zip_of(tmp_path / "one.zip", ["../A/1.png", "A/../../2.png"]))
    assert list(container.files) == ["../A/1.png", "A/../../2.png"]
    assert container.read_bytes("../A/1.png") == b"../A/1.png" and capsys.readouterr().err == ""


def test_two_forms_of_one_name_are_refused_where_they_take_part(tmp_path):
    path = zip_of(tmp_path / "one.zip", ["A/1.png", ".\\A\\1.png", "A/2.png", "a.txt", "./a.txt"])
    complaint(lambda: open_container(path), "two members named A/1.png")
    assert list(open_container(path, exclude=["1.png"]).files) == ["A/2.png"]


def test_a_zip_with_a_password_is_refused_at_once(tmp_path):
    path = zip_of(tmp_path / "one.zip", ["A/1.png", "A/2.png"])
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1  # the flag of the first member
    path.write_bytes(data)
    complaint(lambda: open_container(path), "a password for 1 images, such as A/1.png: unpack it")
    assert list(open_container(path, exclude=["1.png"]).files) == ["A/2.png"]


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
