"""Folders of one's own, paired by name."""

import numpy as np
import pytest

from image_helpers import CLASSES, SCENES, complaint, hollow, load, noise, pairs, scenes, tree


def test_pairs_match_by_name_whatever_the_extension(tmp_path):
    tree(tmp_path / "one", scenes(".png", kind="PNG"))
    tree(tmp_path / "two.zip", scenes(".bmp", kind="BMP", size=12))  # a zip is as good as a folder
    dataset = pairs(tmp_path, source2=str(tmp_path / "two.zip"))
    assert dataset.names == sorted(SCENES) and dataset.class_names == list(CLASSES)
    assert dataset.source_names == ("one", "two.zip")
    for row, name in enumerate(dataset.names):
        assert np.array_equal(dataset.source1.read(row), noise(name + ".png", 8, 8, 3))
        assert np.array_equal(dataset.source2.read(row), noise(name + ".bmp", 12, 12, 3))
    assert pairs(tmp_path).source2 is None and pairs(tmp_path, source2="none").source2 is None


def test_flat_pairs_have_no_labels_and_still_a_split(tmp_path):
    tree(tmp_path / "one", hollow(f"scene {number}.v2" for number in range(50)))
    dataset = pairs(tmp_path)
    assert dataset.labels is None and dataset.class_names == []
    assert "no labels" in dataset.describe()
    assert dataset.names[0] == "scene 0.v2"
    assert len(dataset.query) == 5 and len(dataset.database) == 45
    assert len(pairs(tmp_path, max_per_class=30).names) == 30


def test_pairs_without_folders_or_images_say_so(tmp_path):
    complaint(lambda: load(tmp_path, data_name="pairs"), "--source1")
    complaint(lambda: pairs(tmp_path), str(tmp_path / "one"), "does not exist")
    tree(tmp_path / "one", {"notes.txt": b"x"})
    complaint(lambda: pairs(tmp_path), str(tmp_path / "one"), "no image")


@pytest.mark.parametrize("lacking", ["one", "two"])
def test_images_without_partner_are_counted_and_named_with_their_folder(tmp_path, lacking):
    for folder in ("one", "two"):
        tree(tmp_path / folder, hollow(SCENES[5:] if folder == lacking else SCENES))
    having = "two" if lacking == "one" else "one"
    complaint(lambda: pairs(tmp_path, source2=str(tmp_path / "two")),
              f"5 images of {tmp_path / having}",
              "Forest/Forest_1, Forest/Forest_2, Forest/Forest_3 and 2 more",
              f"in {tmp_path / lacking}")


def test_two_files_of_one_name_are_an_error(tmp_path):
    tree(tmp_path / "one", hollow(["a/x", "a/y"]) | hollow(["a/x"], ".png"))
    complaint(lambda: pairs(tmp_path), "a/x.jpg", "a/x.png")
    tree(tmp_path / "EuroSAT.zip", hollow(["2750/a/x", "copy/a/x"]))
    complaint(lambda: load(tmp_path), "2750/a/x.jpg", "copy/a/x.jpg")


def test_some_images_outside_class_folders_are_an_error(tmp_path):
    tree(tmp_path / "one", hollow(["a/x", "b/y", "stray"]))
    complaint(lambda: pairs(tmp_path), "1 do not: stray")
