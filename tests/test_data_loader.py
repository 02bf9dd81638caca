"""The entrance to images: data sets by name, and their images in batches."""

from types import ModuleType

import numpy as np
import pytest
import torch

import data_loader
from data_loader import (
    DataConfig,
    ImageLoader,
    config_of,
    inherit_dataset,
    load_dataset,
    moved_places,
)
from datasets.base import OWN_IMAGES
from datasets.record import image_record
from datasets.transforms import Transform
from engine.cli import ArgumentParser, Compute
from engine.data_flags import add_data_flags
from engine.monitor import choose_R
from image_helpers import (
    SCENES,
    Arrays,
    batch_of,
    complaint,
    expects,
    flags,
    hollow,
    load,
    noise,
    pairs,
    picture,
    scenes,
    tree,
)
from utils import ROOT

# ------------------------------------------------------------ data sets


def test_unknown_data_name_lists_the_known_ones(tmp_path):
    complaint(lambda: load(tmp_path, data_name="EuroSTAT"), "EuroSTAT",
              "EuroSAT, DSRSID, UCMerced", "demo", "folder")


@pytest.mark.parametrize(("data_name", "parts"), [
    ("EuroSAT", ["EuroSAT_RGB.zip", "zenodo.org/records/7711810", "--data_dir"]),
    ("UCMerced", ["UCMerced_LandUse.zip", "weegee.vision.ucmerced.edu", "--data_dir"]),
    ("DSRSID", ["DSRSID.mat", "MUL", "PAN", "--data_dir"]),
])
def test_missing_dataset_says_what_to_get_and_where_to_put_it(tmp_path, data_name, parts):
    complaint(lambda: load(tmp_path / "nowhere", data_name=data_name), str(tmp_path / "nowhere"),
              *parts)


def test_R_is_the_smallest_class_of_the_database(tmp_path):
    for kind, count in (("a", 30), ("b", 21), ("c", 25)):
        tree(tmp_path / "one", hollow(f"{kind}/{number}" for number in range(count)))
    dataset = pairs(tmp_path)
    assert np.bincount(dataset.labels[dataset.database]).tolist() == [28, 19, 23]
    labels = dataset.labels[dataset.database]
    assert choose_R(None, labels) == 19 and choose_R(70, labels) == 70
    complaint(lambda: choose_R(71, labels), "71", "70")


@pytest.fixture
def example(monkeypatch):
    """The data set that docs/data.md adds, with its line in the table."""
    text = (ROOT / "docs" / "data.md").read_text()
    module = ModuleType("sen12")
    exec(text.split("```python\n")[1].split("```")[0], module.__dict__)
    monkeypatch.setitem(data_loader.MODULES, "SEN12", module)


def test_a_new_data_set_is_one_file_and_one_line(tmp_path, example):
    complaint(lambda: load(tmp_path, data_name="sen12"), "SEN12 was not found", "or name the")
    names = [f"{kind}/{number}" for kind in "ab" for number in range(40)]
    tree(tmp_path / "SEN12_optical.zip", scenes(".png", "deep/", names, "PNG"))
    alone = load(tmp_path, data_name="sen12")
    assert alone.name == "SEN12" and alone.class_names == ["a", "b"] and alone.source2 is None
    complaint(lambda: load(tmp_path, data_name="sen12", source2="radar"), "radar was not found")
    tree(tmp_path / "SEN12_radar", scenes(".tif", "", names, "TIFF"))
    dataset = load(tmp_path, data_name="Sen12")
    assert dataset.source_names == ("optical", "radar") and "256x256" in dataset.describe()
    assert dataset.source2.channels == 1 and dataset.source2.size(0) == (8, 8)
    for row, name in enumerate(dataset.names):
        assert np.array_equal(dataset.source1.read(row), noise(f"{name}.png", 8, 8, 3))
        assert np.array_equal(dataset.source2.read(row), noise(f"{name}.tif", 8, 8, 3)[..., :1])


def test_the_file_of_a_data_set_says_how_many_queries_a_class_has(tmp_path, example, monkeypatch):
    tree(tmp_path / "SEN12_optical", hollow(f"{kind}/{n}" for kind in "ab" for n in range(40)))
    monkeypatch.setattr(data_loader.MODULES["SEN12"], "QUERIES_PER_CLASS", 3)
    dataset = load(tmp_path, data_name="SEN12")
    assert np.bincount(dataset.labels[dataset.query]).tolist() == [3, 3]
    monkeypatch.delattr(data_loader.MODULES["SEN12"], "QUERIES_PER_CLASS")
    dataset = load(tmp_path, data_name="SEN12")
    assert np.bincount(dataset.labels[dataset.query]).tolist() == [4, 4]  # a tenth


# ------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("data_name", ["folder", "pairs"])
def test_folders_of_ones_own_may_be_moved_and_what_is_in_them_may_not(tmp_path, data_name):
    tree(tmp_path / "old", hollow(SCENES))
    tree(tmp_path / "new", hollow(SCENES))
    tree(tmp_path / "other", hollow(SCENES[1:]))
    config = DataConfig(data_name, source1=str(tmp_path / "old"), source2="none")
    content = {"data": config.as_dict(), "fingerprint": load_dataset(config).fingerprint}
    dataset, moved = inherit_dataset(flags(source1=str(tmp_path / "new")), content)
    assert dataset.source1.container.root == tmp_path / "new"
    assert moved.source1 == str(tmp_path / "new") and "source1" in moved_places(config)
    text = complaint(lambda: inherit_dataset(flags(source1=str(tmp_path / "other")), content),
                     f"found in {tmp_path / 'other'} are not those of the checkpoint: it is of "
                     "an older version", "; name its own with --source1")
    assert "train again" not in text
    complaint(lambda: inherit_dataset(flags(data_name="EuroSAT"), content), "contradicts")


@pytest.fixture
def known(tmp_path):
    """Images, and what a checkpoint keeps of them."""
    tree(tmp_path / "one", scenes(".png", kind="PNG"))
    tree(tmp_path / "two", scenes(".tif", kind="TIFF"))
    config = DataConfig("pairs", source1=str(tmp_path / "one"), source2=str(tmp_path / "two"))
    dataset = load_dataset(config)
    return {"data": config.as_dict(), "fingerprint": dataset.fingerprint,
            "images": image_record(dataset, None)}


def test_other_images_than_those_of_a_checkpoint_are_counted(tmp_path, known):
    for place, suffix in (("one", "png"), ("two", "tif")):
        folder = tmp_path / place
        (folder / f"Forest/Forest_1.{suffix}").unlink()
        (folder / f"River/River_1.{suffix}").rename(folder / f"Forest/River_1.{suffix}")
        (folder / f"River/River_2.{suffix}").rename(folder / f"River/River_99.{suffix}")
    complaint(lambda: inherit_dataset(flags(), known),
              f"found in {tmp_path / 'one'} are not those of the checkpoint: of 36 images 2 added, "
              "3 removed", "; name its own with --source1")


def test_images_of_other_content_are_warned_of_and_counted_by_source(tmp_path, known, capsys):
    inherit_dataset(flags(), known)
    assert capsys.readouterr().err == ""
    for name in ("one/Forest/Forest_1.png", "two/Forest/Forest_1.tif", "two/River/River_1.tif"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    dataset, _ = inherit_dataset(flags(), known)
    assert capsys.readouterr().err == (
        "warning: 1 of 36 images of source 1 and 2 of 36 images of source 2 have another content "
        "than when the checkpoint was made, under the same names\n")
    assert len(dataset.names) == 36


def test_a_zip_of_the_images_is_as_good_as_their_folder(tmp_path, known, capsys):
    tree(tmp_path / "packed.zip", scenes(".png", kind="PNG"))
    inherit_dataset(flags(source1=str(tmp_path / "packed.zip")), known)
    assert capsys.readouterr().err == ""


def test_where_it_is_not_needed_the_second_source_may_be_gone(tmp_path, known):
    (tmp_path / "two").rename(tmp_path / "moved")
    complaint(lambda: inherit_dataset(flags(), known), f"{tmp_path / 'two'} is not there",
              "name its new place with --source2")
    dataset, config = inherit_dataset(flags(), known, second=False)
    assert dataset.source2 is None and config.source2 == str(tmp_path / "two")
    assert dataset.fingerprint == known["fingerprint"]


@pytest.mark.parametrize("data_name", ["EuroSAT", "UCMerced", "samples", "demo"])
def test_no_data_set_needs_its_second_source_to_find_the_first(tmp_path, data_name):
    if data_name == "UCMerced":
        tree(tmp_path / "UCMerced_LandUse", hollow(SCENES))
    for name in ("EuroSAT", "EuroSAT_VHR") if data_name == "EuroSAT" else ():
        tree(tmp_path / name, hollow(SCENES))
    config = DataConfig(data_name, str(tmp_path))
    whole = load_dataset(config)
    known = {"data": config.as_dict() | {"source2": whole.source_names[1]},
             "fingerprint": whole.fingerprint}
    dataset, _ = inherit_dataset(flags(data_dir=str(tmp_path)), known, second=False)
    assert whole.source2 is not None and dataset.source2 is None
    assert dataset.file_label(0) == whole.file_label(0)


@pytest.mark.parametrize(("name", "value"), [
    ("skip", 5), ("skip", "abc"), ("source1", [1]), ("max_per_class", 0.5)])
def test_odd_settings_in_a_checkpoint_are_damage(known, name, value):
    known["data"][name] = value
    complaint(lambda: inherit_dataset(flags(), known), f"the checkpoint's {name} is", "damaged")


def test_what_has_seen_two_sources_is_not_trained_on_with_one(known):
    complaint(lambda: inherit_dataset(flags(source2="none"), known), "--source2 none contradicts")
    assert inherit_dataset(flags(source2="none"), known, second=False)[0].source2 is None


def test_sources_that_are_no_folders_are_not_places():
    assert moved_places(DataConfig("EuroSAT")) == moved_places(DataConfig("demo")) == {"split_dir"}
    assert moved_places(DataConfig("pairs")) == {"split_dir", "source1", "source2", "pairs"}
    assert moved_places(DataConfig("folder")) == {"split_dir", "source1"}


# ------------------------------------------------------------ flags and older checkpoints


@pytest.mark.parametrize(("data_name", "flag", "value", "takers"), [
    ("EuroSAT", "bands1", "4,3,2", "pairs and folder"), ("demo", "exclude", ("*",), "pairs and"),
    ("UCMerced", "class_depth", 1, "pairs and folder"), ("folder", "pair_by", "(.)", "pairs,"),
    ("folder", "range2", "0,1", "pairs,")])
def test_a_flag_that_a_data_set_has_no_use_for_is_an_error(tmp_path, data_name, flag, value,
                                                           takers):
    complaint(lambda: load(tmp_path, data_name=data_name, **{flag: value}), f"--{flag} is for",
              takers, f"not for {data_name}")


def parsed(*words):
    parser = ArgumentParser()
    add_data_flags(parser, data_loader.MODULES, inherited=False)
    return parser.parse_args(words)


def test_every_flag_of_the_images_reaches_the_config():
    config = config_of(parsed(
        "--data_name", "PAIRS", "--source1", "a", "--source2", "b", "--bands1", "4,3,2",
        "--bands2", "1", "--range1", "0,9", "--range2", "2%,98%", "--pair_by", "(.)", "--pairs",
        "c.csv", "--include", "*.tif", "*.jp2", "--exclude", "*_mask.png", "--class_depth", "2",
        "--split", "folders", "--max_per_class", "5"), seed=7)
    assert config == DataConfig(
        "pairs", "data", "a", "b", None, 5, 7, (), "4,3,2", "1", "0,9", "2%,98%", "(.)", "c.csv",
        ("*.tif", "*.jp2"), ("*_mask.png",), 2, "folders")
    assert config_of(parsed()) == DataConfig()


def test_stage_2_may_move_places_and_takes_the_rest_from_the_checkpoint():
    parser = ArgumentParser()
    add_data_flags(parser, data_loader.MODULES, inherited=True)
    assert vars(parser.parse_args([])) == vars(flags())


@pytest.mark.parametrize("flag", ["bands2", "range2", "pair_by", "pairs"])
def test_a_flag_for_two_sources_needs_a_second_one(flag):
    complaint(lambda: config_of(parsed("--data_name", "pairs", "--source1", "a", f"--{flag}", "x")),
              f"--{flag} needs a second source")


def test_a_checkpoint_without_the_younger_settings_is_read(tmp_path):
    tree(tmp_path / "one", hollow(SCENES))
    config = DataConfig("folder", source1=str(tmp_path / "one"), source2="none")
    content = {"data": config.as_dict(), "fingerprint": load_dataset(config).fingerprint}
    for name in ("skip", "split", *OWN_IMAGES):
        del content["data"][name]
    dataset, found = inherit_dataset(flags(), content)
    assert found == config and len(dataset.names) == len(SCENES)


@pytest.mark.parametrize(("name", "value"), [
    ("skip", 5), ("skip", [5]), ("include", "*"), ("include", None), ("exclude", [None]),
    ("bands1", 4), ("range2", ["0"]), ("pair_by", True), ("pair_by", "("), ("pairs", 1),
    ("pairs", "nowhere"), ("class_depth", True), ("class_depth", 0), ("class_depth", 2**70),
    ("split", None), ("split", "x"), ("max_per_class", -1), ("source1", 3)])
def test_settings_of_a_checkpoint_that_cannot_be_are_one_sentence(tmp_path, name, value):
    tree(tmp_path / "one", hollow(SCENES))
    config = DataConfig("pairs", source1=str(tmp_path / "one"), source2=str(tmp_path / "one"))
    content = {"data": config.as_dict() | {name: value}, "fingerprint": "f"}
    complaint(lambda: inherit_dataset(flags(), content), name)


def test_a_table_of_pairs_may_be_moved(tmp_path):
    tree(tmp_path / "one", hollow(SCENES))
    rows = "".join(f"{name}.jpg,{name}.jpg\n" for name in SCENES[6:])
    tree(tmp_path, {"old.csv": rows.encode(), "new/new.csv": rows.encode()})
    config = DataConfig("pairs", source1=str(tmp_path / "one"), source2=str(tmp_path / "one"),
                        pairs=str(tmp_path / "old.csv"))
    content = {"data": config.as_dict(), "fingerprint": load_dataset(config).fingerprint}
    (tmp_path / "old.csv").unlink()
    complaint(lambda: inherit_dataset(flags(), content), "old.csv is not there")
    dataset, moved = inherit_dataset(flags(pairs=str(tmp_path / "new" / "new.csv")), content)
    assert dataset.names == sorted(SCENES[6:]) and moved.pairs.endswith("new.csv")


# ------------------------------------------------------------ images in batches


def compute(cache_dir=None):
    return Compute(torch.device("cpu"), workers=2, cache_dir=cache_dir)


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_streaming_gives_the_batches_of_a_resident_store(tmp_path, place):
    source = Arrays([picture(seed, 20 + seed, 30) for seed in range(11)])
    how = compute(tmp_path if place == "disk" else None)
    loaders = [ImageLoader(source, "test", expects(32), how, resident)
               for resident in (False, True)]
    assert [loader.count for loader in loaders] == [11, 11]
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    for rows in (order.split(3), order.split(11), order[:1].split(1), ()):
        streamed, resident = (list(loader.batches(iter(rows))) for loader in loaders)
        assert len(streamed) == len(resident) == len(rows)
        for batch, one, other in zip(rows, streamed, resident, strict=True):
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
            for row, pixels, (height, width) in zip(batch.tolist(), *one, strict=True):
                shown = pixels[:, :height, :width].permute(1, 2, 0)
                assert np.array_equal(shown, source.arrays[row])


def test_test_views_are_those_of_the_rows_asked_for():
    source = Arrays([picture(seed, 40, 50) for seed in range(5)])
    loader = ImageLoader(source, "test", expects(32), compute())
    one, two = loader.test_views(torch.tensor([4, 0, 2]).split(2))
    expected = Transform(expects(32)).test(*batch_of(loader.store))
    assert torch.equal(torch.cat((one, two)), expected[[4, 0, 2]])


def test_views_of_later_batches_and_of_shares_are_those_of_an_uninterrupted_epoch():
    source = Arrays([picture(seed, 40, 50) for seed in range(11)])
    loader, batches = ImageLoader(source, "test", expects(32), compute()), torch.arange(11).split(4)

    def views(first, *shares):
        generator = torch.Generator().manual_seed(0)
        return list(loader.training_views(batches, shares, first, generator))

    every = [slice(0, len(batch)) for batch in batches]
    whole, rest, share = views(0, *every), views(1, *every), views(0, *[slice(1, 3)] * 3)
    assert [len(view) for view in whole] == [4, 4, 3] and len(rest) == 2
    assert all(map(torch.equal, whole[1:], rest))
    assert all(torch.equal(view[1:3], part) for view, part in zip(whole, share, strict=True))
    assert not torch.equal(whole[0], whole[1])
