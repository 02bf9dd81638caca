"""List files: who trains, who is in the database, who asks, with which labels; errors in them."""

import io

import numpy as np
import pytest
from PIL import Image

from image_helpers import (
    CLASSES,
    PUBLISHED_COLUMN,
    SCENES,
    complaint,
    hollow,
    lists,
    load,
    one_hot,
    pairs,
    published,
    rows_named,
    scenes,
    tree,
)


def test_published_lists_keep_order_prefix_and_numbering(eurosat, tmp_path):
    order = np.random.default_rng(0).permutation(len(SCENES))
    names = [SCENES[number] for number in order]
    split = lists(tmp_path / "split", train=map(published, names[6:]),
                  database=[published(name, "/other/place/") for name in names[30:5:-1]],
                  test=map(published, names[:6]))
    dataset = load(eurosat, split_dir=split)
    assert rows_named(dataset, "train") == names[6:]
    assert rows_named(dataset, "database") == names[30:5:-1]
    assert rows_named(dataset, "query") == names[:6]
    assert dataset.labels.dtype == np.int64
    assert dataset.class_names == ["River", "Forest", "Highway"]
    for name, label in zip(dataset.names, dataset.labels, strict=True):
        assert dataset.class_names[label] == name.split("/")[0]


def test_lists_name_a_part_of_the_images(eurosat, tmp_path):
    split = lists(tmp_path / "split", database=map(published, SCENES[20:30]),
                  test=map(published, SCENES[3:5]))
    dataset = load(eurosat, split_dir=split)
    assert sorted(dataset.names) == sorted(SCENES[20:30] + SCENES[3:5])
    assert rows_named(dataset, "train") == rows_named(dataset, "database") == SCENES[20:30]
    for row, name in enumerate(dataset.names):
        expected = np.asarray(Image.open(io.BytesIO(scenes(names=[name])[f"{name}.jpg"])))
        assert np.array_equal(dataset.source1.read(row), expected)


def test_max_per_class_shortens_lists_in_their_order(eurosat, tmp_path):
    names = SCENES[::-1]
    split = lists(tmp_path / "split", train=map(published, names[5:]),
                  test=map(published, names[:5]))
    dataset = load(eurosat, split_dir=split, max_per_class=4)
    chosen = rows_named(dataset, "train")
    assert np.bincount(dataset.labels[dataset.train]).tolist() == [4, 4, 4]
    assert chosen == [name for name in names if name in chosen] == rows_named(dataset, "database")
    assert len(dataset.query) == 4


def test_lists_without_labels_take_those_of_the_folders(eurosat, tmp_path):
    split = lists(tmp_path / "split", train=[f"x/{name}.jpg" for name in SCENES[4:]],
                  test=[f"x/{name}.jpg" for name in SCENES[:4]])
    dataset = load(eurosat, split_dir=split)
    assert dataset.class_names == list(CLASSES)
    folders = [name.split("/")[0] for name in dataset.names]
    assert [CLASSES[label] for label in dataset.labels] == folders


def test_multi_hot_labels_belong_to_their_images(tmp_path):
    tree(tmp_path / "one", hollow(f"{number}" for number in range(6)))
    given = {"4": "1 1 0", "2": "0 1 0", "0": "0 0 1", "5": "1 1 1"}
    split = lists(tmp_path / "split",
                  train=[f"{name}.jpg {given[name]}" for name in ("4", "2", "0")],
                  test=[f"5.png {given['5']}"])
    dataset = pairs(tmp_path, split_dir=split)
    assert dataset.labels.dtype == np.uint8 and len(dataset.class_names) == 3
    for name, label in zip(dataset.names, dataset.labels, strict=True):
        assert " ".join(map(str, label)) == given[name]


def test_lists_of_paths_with_spaces_and_a_byte_order_mark(tmp_path):
    tree(tmp_path / "one", hollow(["farm land/a 1", "farm land/a 2", "water/b 1"]))
    split = lists(tmp_path / "split", train=["\ufefffarm land/a 1.jpg 1 0", "water/b 1.jpg 0 1"],
                  test=["farm land/a 2.jpg 1 0"])
    dataset = pairs(tmp_path, split_dir=split)
    assert rows_named(dataset, "train") == ["farm land/a 1", "water/b 1"]
    assert dataset.class_names == ["farm land", "water"]


def test_lists_find_images_at_different_depths(tmp_path):
    tree(tmp_path / "one", hollow(["city/a", "land/wet/b", "land/wet/c"]))
    split = lists(tmp_path / "split", train=["x/city/a.jpg", "x/land/wet/b.jpg"],
                  test=["y/z/land/wet/c.jpg"])
    assert rows_named(pairs(tmp_path, split_dir=split), "train") == ["city/a", "land/wet/b"]


def test_a_dot_in_a_name_that_is_listed_without_ending_is_no_ending(tmp_path):
    tree(tmp_path / "one", hollow(["a/20", "a/20.5", "b/v1.1", "b/3", "c/4"]))
    split = lists(tmp_path / "split", train=["a/20.5 1 0", "a/20.jpg 1 0", "b/v1.1 0 1"],
                  test=["b/3 0 1"])
    dataset = pairs(tmp_path, split_dir=split)
    assert rows_named(dataset, "train") == ["a/20.5", "a/20", "b/v1.1"]


# ------------------------------------------------------------ what is wrong is said in one line


@pytest.mark.parametrize("part", ["train", "database"])
def test_queries_inside_training_or_database_are_an_error(eurosat, tmp_path, part):
    parts = {"train": SCENES[10:], "database": SCENES[10:], "test": SCENES[:10]}
    parts[part] = SCENES[6:]
    split = lists(tmp_path / "split",
                  **{name: map(published, items) for name, items in parts.items()})
    complaint(lambda: load(eurosat, split_dir=split), f"4 queries are also in the {part} set",
              "Forest/Forest_10", "and 1 more")


def bad_split(eurosat, train, test=None, **more):
    split = lists(eurosat / "split", train=train, test=test or [published(SCENES[0])], **more)
    return lambda: load(eurosat, split_dir=split)


def test_list_with_unknown_images_names_them(eurosat):
    train = [published(name) for name in [*SCENES[1:], "Forest/Forest_98", "River/River_99"]]
    complaint(bad_split(eurosat, train), "train.txt lists 2 images",
              "Forest/Forest_98, River/River_99")
    complaint(bad_split(eurosat, ["/ 0 1 0"]), "train.txt lists 1 images")


def test_list_with_an_image_twice_names_it(eurosat):
    train = [published(SCENES[1]), published(SCENES[2]), published(SCENES[1], "elsewhere/")]
    complaint(bad_split(eurosat, train), "train.txt lists 1 images twice: Forest/Forest_2")


@pytest.mark.parametrize("label", ["0 2 0", "0 0 0", "0 one 0", "0.5 0 0"])
def test_list_with_a_bad_label_names_the_line(eurosat, label):
    train = [published(SCENES[1]), "", f"{SCENES[2]}.jpg {label}"]
    complaint(bad_split(eurosat, train), "train.txt, line 3", "Forest/Forest_3.jpg")


def test_lists_with_labels_of_different_lengths_are_an_error(eurosat):
    complaint(bad_split(eurosat, [published(SCENES[1]), f"{SCENES[2]}.jpg 0 1"]),
              "train.txt, line 2", "2 label values", "3")
    complaint(bad_split(eurosat, [f"{name}.jpg" for name in SCENES[1:]]), "different lengths")
    complaint(bad_split(eurosat, [f"{name}.jpg 1 0" for name in SCENES[1:]]), "different lengths")


def test_list_labels_that_disagree_with_class_folders_are_an_error(eurosat):
    wrong = [published(name) for name in SCENES[1:]]
    wrong[20] = wrong[20].replace(one_hot(PUBLISHED_COLUMN["Highway"]),
                                  one_hot(PUBLISHED_COLUMN["River"]))
    complaint(bad_split(eurosat, wrong), "class folder")
    # Two folders in one column.
    merged = [published(name).replace(one_hot(2), one_hot(0)) for name in SCENES[1:]]
    complaint(bad_split(eurosat, merged), "class folder")
    # One folder in two columns.
    columns = {name: PUBLISHED_COLUMN[name.split("/")[0]] for name in SCENES}
    columns |= dict.fromkeys(SCENES[7:9], 3)
    divided = [f"{name}.jpg {one_hot(column, 4)}" for name, column in columns.items()]
    complaint(bad_split(eurosat, divided[1:], divided[:1]), "Forest/Forest_8", "class folder")


def test_two_lists_that_label_an_image_differently_are_an_error(eurosat):
    database = [f"{SCENES[1]}.jpg {one_hot(2)}"]
    complaint(bad_split(eurosat, [published(SCENES[1])], database=database), "different labels",
              SCENES[1])


def test_missing_or_empty_lists_are_an_error(eurosat):
    complaint(lambda: load(eurosat, split_dir=str(eurosat / "nowhere")), "nowhere", "test.txt")
    complaint(bad_split(eurosat, []), "train.txt is empty")
    only = lists(eurosat / "only", test=[published(SCENES[0])])
    complaint(lambda: load(eurosat, split_dir=only), "neither train.txt nor database.txt")


# ------------------------------------------------------------ separators and headers

EQUAL_LINES = ["{path} 1 0", "{path},1,0", "{path};1;0", "{path}\t1\t0", "{path}, 1, 0",
               "{path} ;1,0", '"{path}",1,0', "'{path}' 1 0", "{path},1,0,", "  {path} 1 0  "]


@pytest.mark.parametrize("line", EQUAL_LINES)
@pytest.mark.parametrize("path", ["field/a.jpg", "field/a 1, old; new.jpg", "x.png/field/a.jpg"])
def test_labels_are_read_whatever_separates_them_from_the_path(tmp_path, line, path):
    name = path.removesuffix(".jpg")
    tree(tmp_path / "one", hollow([name, "sea/b", "sea/c"]))
    split = lists(tmp_path / "split", train=[line.format(path=path), "sea/b.jpg 0 1"],
                  test=["sea/c.jpg 0 1"])
    dataset = pairs(tmp_path, split_dir=split)
    assert rows_named(dataset, "train") == [name, "sea/b"]
    assert dataset.labels[dataset.train].tolist() == [0, 1]
    folder = name.rpartition("/")[0].rpartition("/")[2]
    assert dataset.class_names == [folder, "sea"]


def test_multi_hot_labels_between_commas_are_those_of_their_images(tmp_path):
    tree(tmp_path / "one", hollow("abc"))
    split = lists(tmp_path / "split", train=["a.jpg,1,1,0", "b.jpg,0,0,1"], test=["c.jpg,0,1,1"])
    assert pairs(tmp_path, split_dir=split).labels.tolist() == [[1, 1, 0], [0, 0, 1], [0, 1, 1]]


@pytest.mark.parametrize("line", ["{}.jpg|0|1|0", "{}.jpg:0", "{}.jpg,Forest", "{}.jpg,3",
                                  "{}.jpg 0 1 0 # dark", "{}.jpg,[0,1,0]", "{}|0"])
def test_what_is_no_label_is_never_lost(eurosat, line):
    train = [line.format(name) for name in SCENES[1:]]
    complaint(bad_split(eurosat, train, [f"{SCENES[0]}.jpg"]), "train.txt", SCENES[1])


@pytest.mark.parametrize("header", ["image,label", "path", "name 0 1 2"])
def test_a_header_is_no_image(eurosat, header):
    plain = load(eurosat, split_dir=lists(eurosat / "plain", train=map(published, SCENES[4:]),
                                          test=map(published, SCENES[:4])))
    split = lists(eurosat / "split", train=[header, *map(published, SCENES[4:])],
                  test=[header, *map(published, SCENES[:4])])
    assert load(eurosat, split_dir=split).fingerprint == plain.fingerprint


def test_the_names_in_a_header_are_those_of_the_classes_in_all_lists(tmp_path):
    tree(tmp_path / "one", hollow("abc"))
    rows = {"train": ["file,wet,dry", "a.jpg,1,0", "b.jpg,0,1"], "test": ["c.jpg,0,1"]}
    dataset = pairs(tmp_path, split_dir=lists(tmp_path / "split", **rows))
    assert dataset.class_names == ["wet", "dry"]
    for header, parts in (("file,dry,wet", ["test.txt has the columns dry, wet", "wet, dry"]),
                          ("file,wet,dry,sea", ["test.txt names 3 columns", "have 2"])):
        split = lists(tmp_path / "other", **rows | {"test": [header, *rows["test"]]})
        complaint(lambda split=split: pairs(tmp_path, split_dir=split), *parts)


def test_a_first_line_that_may_be_an_image_is_no_header(tmp_path):
    tree(tmp_path / "one", hollow("abc"))
    split = lists(tmp_path / "split", train=["a 1 0", "b.jpg 0 1"], test=["c 0 1"])
    assert rows_named(pairs(tmp_path, split_dir=split), "train") == ["a", "b"]


@pytest.mark.parametrize("line", ["name", "v1.1", "x.ppm", "A_1 2 0", "# list", "name 1 0"])
def test_a_first_line_is_not_lost_because_it_is_odd(tmp_path, line):
    tree(tmp_path / "one", hollow(["name", "v1.1", "A_1", "b", "c"]))
    label = " 0 1" if line.endswith("0") else ""
    split = lists(tmp_path / "split", train=[line, f"b.jpg{label}"], test=[f"c.jpg{label}"])
    if line in ("name", "v1.1"):
        assert rows_named(pairs(tmp_path, split_dir=split), "train") == [line, "b"]
    elif line == "name 1 0":
        assert rows_named(pairs(tmp_path, split_dir=split), "train") == ["name", "b"]
    else:
        complaint(lambda: pairs(tmp_path, split_dir=split), "train.txt")


def test_names_of_classes_in_a_header_may_have_spaces(tmp_path):
    tree(tmp_path / "one", hollow("abc"))
    split = lists(tmp_path / "split", train=["", 'file,"Sea/Lake, wide",Dry land', "a.jpg,1,0",
                                             "b.jpg,0,1"], test=["c.jpg,0,1"])
    assert pairs(tmp_path, split_dir=split).class_names == ["Sea/Lake, wide", "Dry land"]


def test_a_header_further_down_is_an_error(eurosat):
    complaint(bad_split(eurosat, [published(SCENES[1]), "image,label"]), "train.txt, line 2")


def test_a_list_that_is_no_utf_8_is_one_sentence(eurosat, tmp_path):
    split = lists(tmp_path / "split", train=[published(SCENES[1])], test=[published(SCENES[20])])
    text = f"W\u00e4lder/{published(SCENES[1])}\n"
    for encoding in ("latin-1", "utf-16"):
        (tmp_path / "split" / "train.txt").write_bytes(text.encode(encoding))
        complaint(lambda: load(eurosat, split_dir=split), "train.txt is no UTF-8 text")
    (tmp_path / "split" / "train.txt").write_bytes(text.encode("utf-8-sig"))
    assert rows_named(load(eurosat, split_dir=split), "train") == [SCENES[1]]


def test_lists_name_images_in_either_form_of_an_umlaut(tmp_path):
    composed, decomposed = "W\u00e4lder/\u00fc", "Wa\u0308lder/u\u0308"
    tree(tmp_path / "one", hollow([f"{decomposed}1", f"{composed}2", "sea/a", "sea/b"]))
    split = lists(tmp_path / "split", train=[f"{composed}1.jpg 1 0", "sea/a.jpg 0 1"],
                  test=[f"{decomposed}2.jpg 1 0", "sea/b.jpg 0 1"])
    dataset = pairs(tmp_path, split_dir=split)
    assert dataset.class_names == ["W\u00e4lder", "sea"]
    assert rows_named(dataset, "query") == [f"{composed}2", "sea/b"]
