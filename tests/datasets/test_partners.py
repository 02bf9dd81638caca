"""Scenes without an image in the second source: refused, or left out with --skip_unpaired."""

import numpy as np
import pytest

from data_loader import DataConfig, load_dataset
from datasets.partners import Unpaired
from image_helpers import (
    SCENES,
    complaint,
    hollow,
    lists,
    noise,
    pairs,
    published,
    rows_named,
    scenes,
    tree,
)
from myautoencoder.images import load_usable

LACKING = ("Forest/Forest_2", "Highway/Highway_11", "River/River_1", "River/River_7")
THERE = [name for name in SCENES if name not in LACKING]


def usable(root, **settings):
    """The dataset and the config of a run with --skip_unpaired on the folders one and two."""
    given = {"source1": str(root / "one"), "source2": str(root / "two"), **settings}
    return load_usable(DataConfig("pairs", skip_unpaired=True, **given), False, 1)


def assert_split_as_whole(dataset, whole, lacking=LACKING):
    """The parts are those of all scenes, but for the lacking ones; so are the labels."""
    label_of = dict(zip(whole.names, whole.labels, strict=True))
    for part in ("train", "database", "query"):
        assert rows_named(dataset, part) == [name for name in rows_named(whole, part)
                                             if name not in lacking]
    assert [label_of[name] for name in dataset.names] == dataset.labels.tolist()
    assert dataset.class_names == whole.class_names


@pytest.fixture
def one(tmp_path):
    """All scenes in source 1."""
    tree(tmp_path / "one", hollow(SCENES))
    return tmp_path


def test_scenes_without_partner_are_left_out_and_all_others_stay_where_they_were(tmp_path):
    tree(tmp_path / "one", scenes(".png", kind="PNG"))
    tree(tmp_path / "two", scenes(".bmp", names=[*THERE, "Forest/Forest_99"], kind="BMP", size=12))
    dataset, config = usable(tmp_path)
    assert config.skip == LACKING and dataset.names == sorted(THERE)
    for row, name in enumerate(dataset.names):
        assert np.array_equal(dataset.source1.read(row), noise(name + ".png", 8, 8, 3))
        assert np.array_equal(dataset.source2.read(row), noise(name + ".bmp", 12, 12, 3))
    assert_split_as_whole(dataset, pairs(tmp_path))
    assert dataset.remarks == [
        f"4 of 36 scenes of {tmp_path / 'one'} have no partner in {tmp_path / 'two'} and are left "
        "out: Forest/Forest_2, Highway/Highway_11, River/River_1 and 1 more; 1 of 33 images of "
        f"{tmp_path / 'two'} have no scene in {tmp_path / 'one'} and are not used: "
        "Forest/Forest_99"]


def test_nothing_is_said_where_nothing_lacks(one):
    tree(one / "two", hollow(SCENES))
    dataset, config = usable(one)
    assert dataset.remarks == [] and config.skip == () and len(dataset.names) == 36


def test_images_of_source_2_without_a_scene_are_refused_or_not_used(one):
    tree(one / "two", hollow([*SCENES, "River/River_99"]))
    complaint(lambda: pairs(one, source2=str(one / "two")), f"1 images of {one / 'two'} have no "
              f"partner of the same name in {one / 'one'}: River/River_99", "--skip_unpaired")
    dataset, config = usable(one)
    assert config.skip == () and dataset.source2.files == dataset.source1.files
    (remark,) = dataset.remarks
    assert remark.startswith(f"1 of 37 images of {one / 'two'} have no scene in")


def test_without_the_flag_the_error_says_how_to_go_on_and_knows_all_scenes(one):
    tree(one / "two", hollow(THERE))
    with pytest.raises(Unpaired) as caught:
        pairs(one, source2=str(one / "two"))
    assert caught.value.scenes == LACKING
    assert str(caught.value).endswith("--exclude leaves images out; autoencoder.py "
                                      "--skip_unpaired goes on without them")


# ------------------------------------------------------------ by rule and by table


@pytest.fixture
def sensors(tmp_path):
    """a/S2_<n> and b/S2_<n> of 0 to 11; S1_<n> in one folder, without 4 and 7, with 99."""
    tree(tmp_path / "one", hollow(f"{'ab'[n % 2]}/S2_{n}" for n in range(12)))
    tree(tmp_path / "two", hollow((f"S1_{n}" for n in [*range(12), 99] if n not in (4, 7)), ".tif"))
    return tmp_path


def numbers(dataset):
    return [[file.rpartition("_")[2].partition(".")[0] for file in source.files]
            for source in dataset.sources]


def test_what_lacks_a_partner_by_the_rule_is_left_out_under_its_own_name(sensors):
    complaint(lambda: pairs(sensors, source2=str(sensors / "two"), pair_by=r"S[12]_(\d+)"),
              "2 images of", "no partner", "a/S2_4, b/S2_7; autoencoder.py --skip_unpaired")
    dataset, config = usable(sensors, pair_by=r"S[12]_(\d+)")
    assert config.skip == ("a/S2_4", "b/S2_7") and len(dataset.names) == 10
    first, second = numbers(dataset)
    assert first == second == ["0", "10", "2", "6", "8", "1", "11", "3", "5", "9"]
    assert "1 of 11 images" in dataset.remarks[0] and "not used: S1_99" in dataset.remarks[0]
    assert_split_as_whole(dataset, pairs(sensors), config.skip)


def test_rows_of_a_table_whose_second_image_is_not_there_are_left_out(sensors):
    rows = [f"{'ab'[n % 2]}/S2_{n}.jpg,S1_{n}.tif\n" for n in range(10)]
    tree(sensors, {"pairs.csv": "".join(["optical,radar\n", *rows]).encode()})
    table = {"pairs": str(sensors / "pairs.csv")}
    complaint(lambda: pairs(sensors, source2=str(sensors / "two"), **table), "line 6: 'S1_4.tif' "
              "is not in", "such as S1_", "; autoencoder.py --skip_unpaired")
    dataset, config = usable(sensors, **table)
    assert config.skip == ("a/S2_4", "b/S2_7") and numbers(dataset) == [list("02681359")] * 2
    assert [remark.partition(" are")[0] for remark in dataset.remarks] == [
        f"2 of 12 images of {sensors / 'one'}", f"3 of 11 images of {sensors / 'two'}",
        f"2 of 10 scenes of pairs.csv have no image in {sensors / 'two'} and"]
    assert_split_as_whole(dataset, pairs(sensors, **table), config.skip)


@pytest.mark.parametrize("text", ["a/S2_0.jpg,S1_0.tif\na/S2_4.jpg,S1_4.tif\na/S2_77.jpg,S1_1.tif",
                                  "a/S2_0.jpg,x/S1.tif\na/S2_2.jpg,x/S1.tif"])
def test_a_table_that_is_wrong_stays_an_error(sensors, text):
    tree(sensors, {"pairs.csv": text.encode()})
    message = complaint(lambda: usable(sensors, pairs=str(sensors / "pairs.csv")), "is not in")
    assert "--skip_unpaired" not in message and ("S2_77" in text) == ("'a/S2_77.jpg'" in message)


# ------------------------------------------------------------ what is wrong and not lacking


def test_an_image_in_another_class_folder_is_an_error_beside_those_that_lack(one):
    tree(one / "two", hollow([*THERE, "Forest/River_7"]))
    complaint(lambda: usable(one), "1 images lie in one class folder in",
              "and in another in", ": River/River_7 and Forest/River_7")


def test_a_file_name_of_several_classes_tells_no_wrong_class(tmp_path):
    tree(tmp_path / "one", hollow(f"{kind}/{n}" for kind in "ab" for n in range(6)))
    tree(tmp_path / "two", hollow([*(f"a/{n}" for n in range(5)), *(f"b/{n}" for n in range(6)),
                                   "c/5"]))
    dataset, config = usable(tmp_path)
    assert config.skip == ("a/5",) and len(dataset.names) == 11
    assert dataset.remarks[0].endswith("not used: c/5")


def test_where_nothing_fits_both_sides_are_named(one):
    tree(one / "two", hollow(f"Wald/{number}" for number in range(5)))
    for flag in (True, False):
        config = DataConfig("pairs", source1=str(one / "one"), source2=str(one / "two"),
                            skip_unpaired=flag)
        text = complaint(lambda config=config: load_usable(config, False, 1),
                         f"all 36 images of {one / 'one'} have no partner of the same name in "
                         f"{one / 'two'}: Forest/Forest_1, ", " and 33 more here, ",
                         "0, 1, 2 and 2 more there; name the folder that shows the same scenes")
        assert "--skip_unpaired" not in text


def test_a_flag_for_two_sources_is_refused_where_there_is_one(one):
    for second in ("none", None):
        complaint(lambda second=second: usable(one, source2=second), "there is no second one")


# ------------------------------------------------------------ folders of which little is there yet


@pytest.mark.parametrize("above", ["", "vhr/2026/"])
def test_the_one_class_that_is_there_yet_is_no_folder_that_holds_everything(one, above):
    tree(one / "two", hollow(f"{above}{name}" for name in SCENES if name.startswith("River")))
    with pytest.raises(Unpaired) as caught:
        load_dataset(DataConfig("pairs", source1=str(one / "one"), source2=str(one / "two"),
                                skip_unpaired=True))
    assert caught.value.scenes == tuple(sorted(SCENES)[:24])
    complaint(lambda: usable(one), "images of one class only")


def test_class_folders_that_are_still_empty_in_source_2_are_no_error(one):
    tree(one / "two", hollow(name for name in SCENES if not name.startswith("River")))
    (one / "two" / "River").mkdir()
    complaint(lambda: pairs(one, source2=str(one / "two")), "hold no image: River")
    dataset, _ = usable(one)
    assert len(dataset.names) == 24 and dataset.class_names == ["Forest", "Highway", "River"]


# ------------------------------------------------------------ splits


def test_lists_may_name_scenes_that_are_left_out(one):
    tree(one / "two", hollow(THERE))
    parts = {"train": SCENES[5:20], "database": SCENES[5:30], "test": [*SCENES[:5], *SCENES[30:]]}
    split = lists(one / "split", **{part: map(published, names) for part, names in parts.items()})
    dataset, _ = usable(one, split_dir=split)
    assert_split_as_whole(dataset, pairs(one, split_dir=split))
    assert set(dataset.names) == set(THERE)


def test_max_per_class_chooses_before_scenes_are_left_out(one):
    tree(one / "two", hollow(THERE))
    dataset, _ = usable(one, max_per_class=8)
    assert_split_as_whole(dataset, pairs(one, max_per_class=8))


def test_folders_of_a_split_stay_that_where_one_of_them_has_no_images_yet(tmp_path):
    names = [f"{part}/{kind}/{part}-{kind}-{n}" for part in ("train", "val", "test")
             for kind in "ab" for n in range(3)]
    tree(tmp_path / "one", hollow(names))
    tree(tmp_path / "two", hollow(name for name in names if name[:3] != "val" and name[-1] != "1"))
    dataset, _ = usable(tmp_path, split="folders")
    whole = pairs(tmp_path, split="folders")
    assert_split_as_whole(dataset, whole, set(names) - set(dataset.names))
    assert [len(dataset.train), len(dataset.database), len(dataset.query)] == [4, 4, 4]


def test_a_part_of_which_nothing_is_left_is_one_sentence(one):
    query = rows_named(pairs(one), "query")
    tree(one / "two", hollow(name for name in SCENES if name not in query))
    complaint(lambda: usable(one), "without the 3 scenes of which an image is lacking",
              "pairs has none left for: query; add their images, or take another split")
