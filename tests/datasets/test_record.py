"""What a checkpoint keeps of its images: what has become of them is counted."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from datasets.base import PairedDataset
from datasets.record import changes, image_record, of_content, other_content
from image_helpers import Arrays, complaint

NAMES = ["a/1", "a/2", "b/1", "b/2", "c/1"]


def pixels(*values):
    return [np.full((2, 2, 3), value, np.uint8) for value in values]


DATASET = PairedDataset(
    "five", NAMES, Arrays(pixels(1, 2, 3, 4, 5)), Arrays(pixels(6, 7, 8, 9, 10)),
    np.array([0, 0, 1, 1, 2]), ["a", "b", "c"], train=np.array([0, 2, 4]),
    database=np.array([0, 2, 4]), query=np.array([1, 3]), source_names=("x", "y"))
RECORD = image_record(DATASET, None)


def test_a_record_is_numbers_one_an_image():
    assert sorted(RECORD) == ["labels", "names", "parts", "source1", "source2"]
    assert all(value.dtype == torch.int64 and value.shape == (5,) for value in RECORD.values())
    assert RECORD["parts"].tolist() == [3, 4, 3, 4, 3]  # train 1, database 2, query 4
    assert sorted(of_content(RECORD)) == ["images of source 1", "images of source 2"]
    assert torch.equal(of_content(RECORD)["images of source 2"], RECORD["source2"])


def test_the_same_images_are_no_change_also_when_classes_are_numbered_otherwise():
    assert changes(RECORD, DATASET) == "" == other_content(RECORD, DATASET, None)
    turned = replace(DATASET, labels=2 - DATASET.labels, class_names=["c", "b", "a"])
    assert changes(RECORD, turned) == ""


@pytest.mark.parametrize(("other", "words"), [
    ({"names": ["a/1", "a/3", "b/1", "b/2", "d/1"]}, "of 5 images 2 added, 2 removed"),
    ({"labels": np.array([0, 1, 1, 1, 2])}, "of 5 images 1 with another label"),
    ({"labels": None, "class_names": []}, "of 5 images 5 with another label"),
    ({"labels": np.eye(5, 3, dtype=np.uint8)}, "of 5 images 4 with another label"),
    ({"query": np.array([1, 4]), "train": np.array([0, 2, 3])},
     "of 5 images 2 in another part of the split"),
    ({"names": ["a/2", "a/1", "b/1", "b/2", "x"], "labels": np.array([0, 2, 1, 1, 2])},
     "of 5 images 1 added, 1 removed, 1 with another label, 2 in another part of the split")])
def test_what_was_added_removed_relabelled_and_split_otherwise_is_counted(other, words):
    assert changes(RECORD, replace(DATASET, **other)) == words


def test_several_labels_an_image_are_compared_too():
    several = replace(DATASET, labels=np.array([[1, 1, 0]] * 5, np.uint8))
    record = image_record(several, None)
    assert changes(record, several) == ""
    labels = several.labels.copy()
    labels[3] = 0, 1, 1
    assert changes(record, replace(several, labels=labels)) == "of 5 images 1 with another label"


def test_other_content_is_counted_by_source():
    other = replace(DATASET, source2=Arrays(pixels(6, 0, 8, 9, 0)))
    assert other_content(RECORD, other, None) == "2 of 5 images of source 2"
    other = replace(other, source1=Arrays(pixels(0, 2, 3, 4, 5)))
    assert other_content(RECORD, other, None) == (
        "1 of 5 images of source 1 and 2 of 5 images of source 2")
    assert other_content(RECORD, replace(DATASET, source2=None), None) == ""


def test_names_that_are_no_text_have_a_place_in_it():
    odd = replace(DATASET, names=["a/\udce9", *NAMES[1:]])
    assert changes(RECORD, odd) == "of 5 images 1 added, 1 removed"
    assert changes(image_record(odd, None), odd) == ""


@pytest.mark.parametrize("name", ["names", "labels", "parts", "source1"])
@pytest.mark.parametrize("value", [
    torch.zeros(4, dtype=torch.int64), torch.zeros(5), torch.zeros((), dtype=torch.int64),
    torch.zeros(5, 1, dtype=torch.int64), torch.zeros(5, dtype=torch.int64).to_sparse(),
    torch.zeros(5, dtype=torch.int64, device="meta"), None])
def test_a_damaged_record_is_one_sentence(name, value):
    record = {**RECORD, name: value}
    if value is None:
        del record[name]
    if name == "source1" and value is None:
        assert changes(record, DATASET) == "" == other_content(record, DATASET, None)
        return
    complaint(lambda: changes(record, DATASET), "of its images is damaged")
    complaint(lambda: other_content(record, DATASET, None), "of its images is damaged")
