"""Which files of a folder or zip take part, and what is said of the others."""

import unicodedata

import pytest

import utils
from datasets.containers import open_container
from image_helpers import complaint, hollow, tree


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
    litter = {"a/.b.heic": b"x", "Thumbs.db": b"x", "a/desktop.ini": b"x", ".DS_Store": b"x",
              "__MACOSX/a/._1.jpg": b"x", "a/._1.jpg": b"x", ".git/a/1.png": b"x",
              "a/.ipynb_checkpoints/1.jpg": b"x"}
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


def test_hidden_images_are_counted(place, capsys):
    images = hollow(["a/1", "a/2"])
    hidden = hollow([".C/1", ".C/deep/2", "a/.1"]) | {".C/notes.txt": b"x", ".C/.git/1.png": b"x"}
    assert list(open_container(tree(place, images | hidden)).files) == sorted(images)
    assert capsys.readouterr().err == (
        f"warning: {place}: 3 images in hidden folders or of hidden names\n")


def test_all_images_hidden_is_said(place):
    tree(place, hollow([".a/1"]))
    complaint(lambda: open_container(place), "no image", "has 1 image in hidden folders")


def test_a_link_to_what_a_hidden_folder_keeps_is_followed(tmp_path, capsys):
    tree(tmp_path / "one" / ".store", hollow(["x/1", "y/1", "z/1"]))
    (tmp_path / "one" / "a").symlink_to(".store/x")
    (tmp_path / "one" / ".b").symlink_to(".store/y")
    (tmp_path / "one" / ".dead.jpg").symlink_to(".dead.jpg")
    assert list(open_container(tmp_path / "one").files) == ["a/1.jpg"]
    assert ": 2 images in hidden folders or of hidden names\n" in capsys.readouterr().err


def test_a_container_without_images_says_what_it_has(place):
    tree(place, {"a/1.heic": b"x", "a/2.heic": b"x"})
    complaint(lambda: open_container(place), str(place), "holds no image (.bmp, .gif,",
              "it has 2 files left out (2 .heic)")


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


@pytest.mark.parametrize("glob", ["labels/*", "*/labels/*", "below/labels/*",
                                  "top/below/labels/*", "labels\\*"])
def test_globs_fit_with_and_without_the_folders_that_hold_all_images(place, glob):
    images = hollow(["top/below/a/1", "top/below/b/1", "top/below/labels/1"], ".png")
    container = open_container(tree(place, images | {"README.md": b"x"}), exclude=[glob])
    assert sorted(container.files) == ["top/below/a/1.png", "top/below/b/1.png"]
    container = open_container(place, include=[glob])
    assert list(container.files) == ["top/below/labels/1.png"]


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_globs_are_compared_in_one_form_of_unicode(place, forms):
    wood, glob = map(unicodedata.normalize, forms, ("W\u00e4lder", "W\u00e4lder/*"))
    tree(place, hollow([f"{wood}/1", "a/1"]))
    assert list(open_container(place, exclude=[glob]).files) == ["a/1.jpg"]


@pytest.mark.parametrize("glob", ["masks/", "top/masks/"])
def test_a_glob_that_ends_in_a_slash_is_all_of_a_folder(tmp_path, glob):
    root = tree(tmp_path / "x", hollow(["top/a/1", "top/masks/1"]))
    assert list(open_container(root, exclude=[glob]).files) == ["top/a/1.jpg"]


def test_a_glob_that_fits_nothing_is_known_and_nothing_is_counted(place, capsys):
    tree(place, hollow(["a/1", "a/2"]) | {"a/1.txt": b"x"})
    container = open_container(place, ["a/*", "b/*"], ["*.txt", "*_mask.png"])
    assert container.choice.unused == {"--include b/*", "--exclude *_mask.png"}
    assert capsys.readouterr() == ("", "")


def test_a_folder_that_globs_empty_is_no_empty_class(tmp_path):
    tree(tmp_path / "one", hollow(["a/1", "a/2", "b/1", "b/2", "masks/1"], ".png"))
    (tmp_path / "one" / "empty").mkdir()
    assert open_container(tmp_path / "one", exclude=["masks/*"]).folders >= {"empty"}
    assert "masks" not in open_container(tmp_path / "one", exclude=["masks/*"]).folders


def test_globs_that_leave_nothing_are_named(place):
    tree(place, hollow(["a/1"]))
    complaint(lambda: open_container(place, include=["*.tiff"]), "holds no image",
              "1 image left out by --include and --exclude")
