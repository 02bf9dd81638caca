"""A folder or zip of class folders, one source."""

import numpy as np
import pytest

import utils
from image_helpers import CLASSES, SCENES, complaint, hollow, load, noise, scenes, tree


def folder(path, **settings):
    return load(path.parent, data_name="folder", source1=str(path), **settings)


def test_a_folder_of_class_folders_is_a_data_set_called_after_it(tmp_path):
    tree(tmp_path / "Tiles of 2024", scenes(".png", kind="PNG"))
    dataset = folder(tmp_path / "Tiles of 2024")
    assert dataset.name == "Tiles of 2024" and dataset.file_label(0) == "Tiles-of-2024-images"
    assert dataset.names == sorted(SCENES) and dataset.class_names == list(CLASSES)
    assert dataset.source2 is None and dataset.source_names == ("images", "none")
    assert dataset.describe().startswith("Tiles of 2024: images, no second source; ")
    for row, name in enumerate(dataset.names):
        assert np.array_equal(dataset.source1.read(row), noise(name + ".png", 8, 8, 3))
    assert folder(tmp_path / "Tiles of 2024", source2="none").fingerprint == dataset.fingerprint


def test_a_zip_is_as_good_as_the_folder_and_called_after_its_stem(tmp_path):
    tree(tmp_path / "NWPU.v1", scenes())
    tree(tmp_path / "a" / "NWPU.v1.zip", scenes(prefix="NWPU/images/"))
    tree(tmp_path / "b" / "NWPU.v1", scenes(prefix="images/"))
    plain = folder(tmp_path / "NWPU.v1")
    for place in (tmp_path / "a" / "NWPU.v1.zip", tmp_path / "b" / ".." / "b" / "NWPU.v1"):
        dataset = folder(place)
        assert dataset.name == plain.name == "NWPU.v1"
        assert dataset.names == plain.names and dataset.fingerprint == plain.fingerprint
        assert np.array_equal(dataset.source1.read(7), plain.source1.read(7))


def test_the_class_is_the_folder_that_holds_the_image(tmp_path):
    tree(tmp_path / "one", hollow(f"{kind}/{number}" for kind in ("top/city", "top/land/wet")
                                  for number in range(3)))
    dataset = folder(tmp_path / "one")
    assert dataset.class_names == ["city", "wet"] and dataset.names[-1] == "land/wet/2"


def test_the_queries_are_a_tenth_of_the_smallest_class(tmp_path):
    for kind, count in (("a", 30), ("b", 47)):
        tree(tmp_path / "one", hollow(f"{kind}/{number}" for number in range(count)))
    dataset = folder(tmp_path / "one")
    assert np.bincount(dataset.labels[dataset.query]).tolist() == [3, 3]


def test_what_a_folder_cannot_be_is_said(tmp_path):
    complaint(lambda: load(tmp_path, data_name="folder"), "--source1 FOLDER")
    complaint(lambda: folder(tmp_path / "nowhere"), "nowhere does not exist")
    tree(tmp_path / "one", hollow(SCENES))
    complaint(lambda: folder(tmp_path / "one", source2="x"), "--source2 x", "one source", "pairs")
    tree(tmp_path / "single", hollow(["a/x/1", "a/y/2"]))
    complaint(lambda: folder(tmp_path / "single", class_depth=2), "fewer folders")


@pytest.mark.parametrize("form", ["{n}", "images/{n}", "top/images/{n}", "{half}/images/{n}"])
@pytest.mark.parametrize("place", ["one", "one.zip"])
def test_one_folder_of_images_is_no_class(tmp_path, form, place):
    tree(tmp_path / place, hollow(form.format(n=n, half=n % 2) for n in range(20)))
    dataset = folder(tmp_path / place)
    assert dataset.labels is None and len(dataset.query) == 2
    assert len(dataset.remarks) == ("/" in form)
    assert all("no classes" in remark for remark in dataset.remarks)


def test_a_class_in_several_folders_is_one_class_with_a_remark(tmp_path):
    tree(tmp_path / "one", hollow(f"{place}/{kind}/{n}" for place in ("alps", "rhine", "elbe")
                                  for kind in ("Forest", "River") for n in range(4)))
    dataset = folder(tmp_path / "one")
    assert dataset.class_names == ["Forest", "River"] and len(set(dataset.names)) == 24
    assert np.bincount(dataset.labels).tolist() == [12, 12]
    assert dataset.remarks == ["Forest lies in 3 folders, River lies in 3 folders: one class; "
                               "--class_depth N takes the N-th folder from the top instead"]
    places = folder(tmp_path / "one", class_depth=1)
    assert places.class_names == ["alps", "elbe", "rhine"] and places.remarks == []
    for row, name in enumerate(places.names):
        assert places.class_names[places.labels[row]] == name.split("/")[0]


def test_globs_choose_images_and_may_empty_folders(tmp_path):
    tree(tmp_path / "one", hollow(SCENES) | hollow((f"{name}_mask" for name in SCENES), ".png")
         | hollow(["labels/1", "labels/2"], ".png"))
    complaint(lambda: folder(tmp_path / "one", exclude=("*_mask.png",), class_depth=2), "fewer")
    for chosen in ({"exclude": ("*_mask.png", "labels/*")}, {"include": ("*.jpg",)}):
        dataset = folder(tmp_path / "one", **chosen)
        assert dataset.names == sorted(SCENES) and dataset.class_names == list(CLASSES)


def test_a_glob_that_fits_nothing_is_named_once(tmp_path, capsys):
    tree(tmp_path / "one", hollow(SCENES))
    (tmp_path / "one" / "empty").mkdir()
    utils.warn_once.cache_clear()
    for _ in range(2):  # seeds
        folder(tmp_path / "one", exclude=("masks/*", "empty/*", "Forest_1.jpg"))
    assert capsys.readouterr().err == (
        f"warning: --exclude masks/* fits nothing in {tmp_path / 'one'}\n")
    load(tmp_path, data_name="pairs", source1=str(tmp_path / "one"), exclude=("*_a.jpg",),
         source2=str(tree(tmp_path / "two", hollow([*SCENES, "Forest/1_a"]))))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("place", ["one", "one.zip"])
def test_a_folder_of_other_files_is_no_empty_class(tmp_path, place):
    tree(tmp_path / place, hollow(f"images/{n}" for n in range(20)) | {"notes/1.xml": b"x"})
    assert folder(tmp_path / place).labels is None
    tree(tmp_path / "a" / place, scenes() | {"notes/1.xml": b"x"})
    assert folder(tmp_path / "a" / place).class_names == list(CLASSES)


def test_an_empty_folder_counts_beside_several_classes_alone(tmp_path):
    tree(tmp_path / "one", hollow(f"images/{n}" for n in range(20)))
    tree(tmp_path / "two", hollow(SCENES) | {"Sea/.DS_Store": b"x"})
    (tmp_path / "one" / "notes").mkdir()
    assert folder(tmp_path / "one").labels is None
    complaint(lambda: folder(tmp_path / "two"), "1 class folders", "hold no image: Sea; add the "
              "images or remove the folders, or leave them out with --exclude")
    assert folder(tmp_path / "two", exclude=("Sea/*",)).class_names == list(CLASSES)


def test_images_without_a_class_are_called_by_their_paths(tmp_path):
    tree(tmp_path / "one", hollow(f"top/train/{name}" for name in SCENES)
         | hollow(f"top/test/{n}" for n in range(5)))
    complaint(lambda: folder(tmp_path / "one"), "5 do not: top/test/0, top/test/1, top/test/2 and",
              "--exclude leaves images out")
    assert folder(tmp_path / "one", exclude=("test/*",)).class_names == list(CLASSES)
    tree(tmp_path / "two", hollow([*SCENES, "x"]))
    complaint(lambda: folder(tmp_path / "two"), "1 do not: x; --exclude")
