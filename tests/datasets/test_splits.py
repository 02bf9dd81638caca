"""Who trains, who is in the database, who asks: by seed or by folders, and errors."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from engine.monitor import choose_R
from image_helpers import (
    CLASSES,
    SCENES,
    complaint,
    hollow,
    lists,
    load,
    pairs,
    published,
    rows_named,
    scenes,
    tree,
)

# ------------------------------------------------------------ by seed


@pytest.mark.parametrize(("data_name", "folder", "each", "queries"), [
    ("EuroSAT", "2750", 1100, 100),  # published
    ("UCMerced", "UCMerced_LandUse", 130, 10),
    ("EuroSAT", "2750", 57, 5),  # a tenth of the smallest class
    ("EuroSAT", "2750", 3, 1),
])
def test_default_split_takes_the_published_queries_or_a_tenth(
        tmp_path, data_name, folder, each, queries):
    tree(tmp_path / f"{folder}.zip" if each > 1000 else tmp_path / folder,
         hollow([f"A/{number}" for number in range(each)]
                + [f"B/{number}" for number in range(each + 7)]))
    if each > 1000:
        (tmp_path / f"{folder}.zip").rename(tmp_path / "EuroSAT.zip")
    dataset = load(tmp_path, data_name=data_name)
    assert np.bincount(dataset.labels[dataset.query]).tolist() == [queries, queries]
    assert np.array_equal(dataset.train, dataset.database)
    rows = np.concatenate((dataset.database, dataset.query))
    # Disjoint, and nothing is left out.
    assert np.array_equal(np.sort(rows), np.arange(2 * each + 7))
    assert choose_R(None, dataset.labels[dataset.database]) == each - queries


def test_split_depends_on_the_seed_alone(eurosat):
    first, same, other = (load(eurosat, split_seed=seed) for seed in (13, 13, 14))
    assert np.array_equal(first.query, same.query) and first.fingerprint == same.fingerprint
    assert not np.array_equal(first.query, other.query) and first.fingerprint != other.fingerprint


def test_max_per_class_limits_every_class_and_its_images_follow(eurosat):
    dataset = load(eurosat, max_per_class=5)
    assert np.bincount(dataset.labels).tolist() == [5, 5, 5] and len(dataset.query) == 3
    for row, name in enumerate(dataset.names):
        expected = np.asarray(Image.open(io.BytesIO(scenes(names=[name])[f"{name}.jpg"])))
        assert np.array_equal(dataset.source1.read(row), expected)
        assert CLASSES[dataset.labels[row]] == name.split("/")[0]
    assert set(dataset.names) != set(load(eurosat, max_per_class=5, split_seed=14).names)
    assert len(load(eurosat, max_per_class=500).names) == len(SCENES)


# ------------------------------------------------------------ by folders


def test_folders_called_train_val_and_test_are_a_split_and_no_classes(tmp_path):
    names = [f"{part}/{kind}/{number}" for part, count in (("Train", 6), ("val", 2), ("TEST", 3))
             for kind in ("Forest", "River") for number in range(count)]
    tree(tmp_path / "one", hollow(names))
    dataset = pairs(tmp_path, split="folders")
    assert dataset.class_names == ["Forest", "River"] and dataset.remarks == []
    for part, folders in (("train", ["Train"]), ("database", ["Train", "val"]),
                          ("query", ["TEST"])):
        expected = sorted(name for name in names if name.split("/")[0] in folders)
        assert rows_named(dataset, part) == expected
        own = [dataset.class_names[label] for label in dataset.labels[getattr(dataset, part)]]
        assert own == [name.split("/")[1] for name in expected]
    pooled = pairs(tmp_path)
    assert pooled.class_names == ["Forest", "River"] and len(pooled.names) == 22
    assert len(pooled.query) == 2  # a tenth of each class of eleven
    assert any("--split folders" in remark for remark in pooled.remarks)


@pytest.mark.parametrize(("words", "parts"), [
    (("train", "test"), (["train"], ["train"], ["test"])),
    (("training", "validation"), (["training"], ["training"], ["validation"])),
    (("valid", "query"), (["valid"], ["valid"], ["query"]))])
@pytest.mark.parametrize("form", ["top/{word}/{kind}/{number}", "{kind}/{word}/{number}",
                                  "{word}/images/{kind}/{number}"])
def test_two_of_the_folders_are_enough_at_the_top_or_within_classes(tmp_path, words, parts, form):
    tree(tmp_path / "one", hollow(
        form.format(word=word, kind=kind, number=number)
        for word in words for kind in "ab" for number in range(3)))
    dataset = pairs(tmp_path, split="folders")
    assert dataset.class_names == ["a", "b"]
    assert pairs(tmp_path, split="folders", class_depth=1).fingerprint == dataset.fingerprint
    for part, folders in zip(("train", "database", "query"), parts, strict=True):
        names = rows_named(dataset, part)
        assert len(names) == 6 and all(folders[0] in name.split("/") for name in names)


def test_split_folders_without_classes_have_no_labels(tmp_path):
    tree(tmp_path / "one", hollow(f"{part}/images/{number}" for part in ("train", "test")
                                  for number in range(4)))
    dataset = pairs(tmp_path, split="folders")
    assert dataset.labels is None and len(dataset.query) == 4
    assert "no classes" in dataset.remarks[0]


def test_max_per_class_limits_each_class_of_each_split_folder(tmp_path):
    tree(tmp_path / "one", hollow(f"{part}/{kind}/{number}" for part in ("train", "val", "test")
                                  for kind in "ab" for number in range(5)))
    dataset = pairs(tmp_path, split="folders", max_per_class=2)
    assert [len(dataset.train), len(dataset.database), len(dataset.query)] == [4, 8, 4]
    assert set(dataset.train) < set(dataset.database)


def test_a_class_called_test_is_a_class(tmp_path):
    tree(tmp_path / "one", hollow(f"{kind}/{number}" for kind in ("test", "train", "water")
                                  for number in range(3)))
    dataset = pairs(tmp_path)
    assert dataset.class_names == ["test", "train", "water"] and dataset.remarks == []
    complaint(lambda: pairs(tmp_path, split="folders"), "do not lie in folders called train")


def test_two_splits_at_once_are_an_error(eurosat):
    complaint(lambda: load(eurosat, split="folders"), "--split folders", "EuroSAT")
    complaint(lambda: load(eurosat, split="folders", split_dir="x"), "--split_dir", "leave one")


# ------------------------------------------------------------ what is wrong is said in one line


def test_one_class_or_one_image_is_an_error(tmp_path, eurosat):
    tree(tmp_path / "one", hollow(["a/1", "a/2", "a/3"]))
    complaint(lambda: pairs(tmp_path, class_depth=1), "fewer folders than --class_depth 1")
    river = [published(name) for name in SCENES if name.startswith("River")]
    split = lists(tmp_path / "split", train=river[1:], test=river[:1])
    complaint(lambda: load(eurosat, split_dir=split), "one class only")
    tree(tmp_path / "one", hollow(["b/1"]))
    complaint(lambda: pairs(tmp_path), "1 classes", "fewer than 2 images: b")
    shutil.rmtree(tmp_path / "one")
    tree(tmp_path / "one", hollow(["alone"]))
    complaint(lambda: pairs(tmp_path), "1 image only")
