"""Scenes that are left out on demand, and the stages after, which leave out the same."""

import shutil

import pytest

from data_loader import DataConfig, inherit_dataset, load_dataset
from image_helpers import SCENES, complaint, flags, rows_named, scenes, tree
from myautoencoder.images import load_usable

LACKING = ("Forest/Forest_2", "River/River_7")


@pytest.fixture
def known(tmp_path):
    """What a checkpoint keeps of EuroSAT with VHR images, of which two lack and one is too many."""
    tree(tmp_path / "EuroSAT", scenes())
    there = [name for name in SCENES if name not in LACKING]
    tree(tmp_path / "EuroSAT_VHR", scenes(".png", names=[*there, "River/River_99"], kind="PNG"))
    config = DataConfig("EuroSAT", str(tmp_path), source2="vhr", skip_unpaired=True)
    dataset, config = load_usable(config, False, 1)
    return {"data": config.as_dict(), "fingerprint": dataset.fingerprint}


def vhr(folder, name):
    return folder / "EuroSAT_VHR" / f"{name}.png"


def test_partners_that_have_come_since_change_nothing(tmp_path, known):
    before, _ = inherit_dataset(flags(), known)
    tree(tmp_path / "EuroSAT_VHR", scenes(".png", names=[*LACKING, "Forest/F_9"], kind="PNG"))
    dataset, config = inherit_dataset(flags(), known)
    assert config.skip == LACKING and len(dataset.names) == 34
    assert dataset.names == before.names and dataset.source2.files == before.source2.files
    assert [file.partition(".")[0] for file in dataset.source2.files] == dataset.names


def test_an_image_that_has_vanished_since_is_an_error(tmp_path, known):
    vhr(tmp_path, "Forest/Forest_5").unlink()
    complaint(lambda: inherit_dataset(flags(), known), f"1 images of {tmp_path / 'EuroSAT'} have "
              f"no partner of the same name in {tmp_path / 'EuroSAT_VHR'}: Forest/Forest_5")


def test_without_the_second_source_the_same_scenes_are_left_out(tmp_path, known):
    shutil.rmtree(tmp_path / "EuroSAT_VHR")
    complaint(lambda: inherit_dataset(flags(), known), "--source2 vhr was not found")
    dataset, _ = inherit_dataset(flags(), known, second=False)
    whole = load_dataset(DataConfig("EuroSAT", str(tmp_path), source2="none"))
    assert dataset.fingerprint == known["fingerprint"]
    assert rows_named(dataset, "query") == [name for name in rows_named(whole, "query")
                                            if name not in LACKING]


def test_an_odd_flag_in_a_checkpoint_is_damage(known):
    known["data"]["skip_unpaired"] = "yes"
    complaint(lambda: inherit_dataset(flags(), known), "the checkpoint's skip_unpaired is 'yes'")


def test_what_lacks_and_what_cannot_be_read_are_left_out_together(tmp_path, known, capsys):
    vhr(tmp_path, "Highway/Highway_3").write_bytes(b"<html>not found</html>")
    config = DataConfig("EuroSAT", str(tmp_path), source2="vhr", skip_unpaired=True)
    dataset, config = load_usable(config, True, 2)
    assert "1 of 34 scenes are left out, because an image cannot be read" in capsys.readouterr().err
    assert config.skip == ("Forest/Forest_2", "Highway/Highway_3", "River/River_7")
    assert len(dataset.names) == 33 and "2 of 36 scenes of" in dataset.remarks[0]


def test_an_image_under_another_class_is_no_image_that_lacks(tmp_path, known):
    vhr(tmp_path, "Forest/Forest_5").rename(vhr(tmp_path, "River/Forest_5"))
    config = DataConfig("EuroSAT", str(tmp_path), source2="vhr", skip_unpaired=True)
    complaint(lambda: load_usable(config, False, 1), "1 images lie in one class folder",
              "Forest/Forest_5 and River/Forest_5")
