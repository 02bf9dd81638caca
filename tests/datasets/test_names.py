"""Names of scenes and the classes that folders tell."""

import numpy as np
import pytest

from datasets.containers import open_container
from datasets.names import (
    class_labels,
    class_remarks,
    files_by_name,
    mask_warning,
    scene_key,
    split_folders,
    without_shared_folder,
)
from image_helpers import complaint, hollow, tree


@pytest.mark.parametrize(("path", "depth", "name"), [
    ("2750/Forest/a.jpg", 2, "Forest/a"), ("Forest/a.jpg", 0, "Forest/a"),
    ("x\\Forest\\a.v2.tif", 2, "Forest/a.v2"), ("./Forest/a", 0, "Forest/a"),
    ("/x//a.jpg", 0, "x/a"),
    ("a.jpg|0|1", 0, "a.jpg|0|1"),  # as it stands: what follows an extension may be a label
    ("Wa\u0308lder/u\u0308.png", 0, "W\u00e4lder/\u00fc")])
def test_a_name_is_the_end_of_the_path_without_extension_in_nfc(path, depth, name):
    assert scene_key(path, depth) == name


@pytest.mark.parametrize(("names", "expected"), [
    (["a/b/1", "a/b/2"], ["1", "2"]), (["top/a/1", "top/b/1"], ["a/1", "b/1"]),
    (["a/1", "ab/1"], ["a/1", "ab/1"]), (["t/a/1", "t/a/x/1", "t/b/1"], ["a/1", "a/x/1", "b/1"]),
    (["t/1", "t/a/1"], ["1", "a/1"]), (["1", "2"], ["1", "2"]), (["1", "a/1"], ["1", "a/1"])])
def test_folders_that_hold_everything_are_no_part_of_a_name(names, expected):
    assert without_shared_folder(names) == expected


@pytest.mark.parametrize(("names", "parts", "below"), [
    (["train/a/1", "Test/a/1"], ["train", "test"], ["a/1", "a/1"]),
    (["a/valid/1", "b/query/1"], ["val", "test"], ["a/1", "b/1"]),
    (["train/1", "val/1"], ["train", "val"], ["1", "1"]),
    (["train/1", "training/1"], None, None), (["train/1", "cars/1"], None, None),
    (["train/1", "1"], None, None), (["1", "2"], None, None)])
def test_folders_of_a_split_are_told_where_all_images_lie_in_them(names, parts, below):
    found, rest = split_folders(names)
    assert (found is None if parts is None else found.tolist() == parts)
    assert rest == (below or names)


def test_the_class_is_the_folder_that_holds_the_image_or_the_one_at_a_depth():
    names = ["city/dense/1", "city/park/1", "land/park/1", "land/park/2"]
    labels, classes = class_labels(names)
    assert classes == ["dense", "park"] and labels.tolist() == [0, 1, 1, 1]
    labels, classes = class_labels(names, 1)
    assert classes == ["city", "land"] and labels.tolist() == [0, 0, 1, 1]
    assert labels.dtype == np.int64 and class_labels(["1", "2"]) == (None, [])
    text = complaint(lambda: class_labels([*names, "sea/1"], 2), "--class_depth 2: sea/1")
    assert "--exclude" not in text  # which not all data sets take


def test_two_images_of_one_name_in_two_forms_of_unicode_are_told_apart(tmp_path):
    tree(tmp_path / "one.zip", hollow(["\u00e9", "e\u0301"]))
    complaint(lambda: files_by_name(open_container(tmp_path / "one.zip")), "two images named",
              "one name in two forms of Unicode")
    tree(tmp_path / "two", hollow(["a"]) | hollow(["a"], ".png"))
    text = complaint(lambda: files_by_name(open_container(tmp_path / "two")), "a.jpg and ")
    assert "Unicode" not in text


def test_classes_in_several_places_are_named():
    assert class_remarks(["a/1", "b/1"]) == []
    (several,) = class_remarks(["x/a/1", "y/a/1", "x/b/1"])
    assert several.startswith("a lies in 2 folders: one class; --class_depth N")
    (inside,) = class_remarks(["a/1", "a/old/1", "b/1"])
    assert "a/old" in inside and "--class_depth 1" in inside


@pytest.mark.parametrize(("names", "part"), [
    (["a/1", "a/1_mask", "a/2", "b/2-GT"], "take part: a/1_mask; --exclude '*_mask.*'"),
    (["images/a/1", "masks/a/1", "images/a/2"], "--exclude 'masks/*'"),
    (["x/1", "x/labels/1"], "--exclude '*/labels/*'"),
    (["a/1", "a/mask_1", "b/1_mask", "gt/1"], "1 images lie in folders"), (["labels/1"], None),
    (["Forest/Forest_1", "b/1.label2"], None)])
def test_masks_that_take_part_are_told(names, part):
    text = mask_warning(names)
    assert text is None if part is None else part in text
