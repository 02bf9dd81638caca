"""The folder of a run: whose it is, with which settings it goes on, what stands in its log."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from engine import run as engine_run
from engine.files import at_end
from engine.run import RunFolder, read_log
from helpers import QUICK, call, make_pairs, stage1_flags, stage2_flags
from hostile_helpers import FUZZ, damage
from network import load_backbone
from run_helpers import everything
from utils import InputError

QUICK_FEATURES = ["--feature_backbone", QUICK[1]]


@pytest.fixture(autouse=True)
def locks_let_go():
    yield
    at_end.close()


def entered(folder, settings, result="r.pth", resume=False, overwrite=False):
    """A run's folder, let go of at once."""
    try:
        return RunFolder(folder, result, settings, resume, overwrite)
    finally:
        at_end.close()


def begun(folder, settings, epochs=2, result="r.pth"):
    """A folder as a run leaves it after some epochs."""
    run = entered(folder, settings, result)
    run.begin(0)
    for epoch in range(epochs):
        run.log({"epoch": epoch, "seconds": 1.5 * epoch})
    run.save({"finished": {"epoch": epochs}, "unfinished": None, "began_with": {},
              "remembered": {}, "model": {}, "optimizer": {},
              "best": {"phase": None, "score": 0.0, "epoch": None, "model": None}})
    return run


# ------------------------------------------------------------ whose it is


def test_a_run_in_a_folder_keeps_a_second_one_out(tmp_path):
    first = RunFolder(tmp_path, "r.pth", {}, False, False)
    with pytest.raises(InputError, match=f"another run is writing in {first.path}: wait until"):
        RunFolder(tmp_path, "r.pth", {}, False, True)
    at_end.close()
    RunFolder(tmp_path, "r.pth", {}, False, False)


@pytest.mark.parametrize("left", ["last.pth", "r.pth"])
def test_a_folder_with_a_run_is_neither_written_over_nor_taken_for_another_one(tmp_path, left):
    begun(tmp_path, {"lr": 1})
    (tmp_path / "last.pth").rename(tmp_path / left)
    before = everything(tmp_path)
    with pytest.raises(InputError, match="already holds a run: add --resume to continue it, "
                                         "--overwrite to replace it"):
        entered(tmp_path, {"lr": 1})
    if left == "r.pth":
        with pytest.raises(InputError, match=r"no last\.pth to go on from: add --overwrite"):
            entered(tmp_path, {"lr": 1}, resume=True)
    run = entered(tmp_path, {"lr": 2}, overwrite=True)
    assert everything(tmp_path) == before  # until all else is checked
    run.begin(0)
    assert sorted(everything(tmp_path)) == ["config.json", "log.jsonl"]
    assert (tmp_path / "log.jsonl").read_bytes() == b""


def test_a_bad_flag_beside_overwrite_loses_nothing(half_done, tmp_path, capsys):
    before = everything(tmp_path / "run")
    code, _, error = call(capsys, "train.py", *half_done, "--overwrite", "--n_clusters", 99)
    assert code == 2 and "n_clusters" in error
    assert everything(tmp_path / "run") == before


@pytest.mark.parametrize("more", [[], ["--resume"], ["--overwrite"]])
def test_a_folder_of_the_other_script_is_left_alone(trained, tmp_path, capsys, more):
    for result, name, flags in (
            ("ae", "train.py", stage2_flags(trained[0] / "ae" / "autoencoder.pth")),
            ("mr", "myautoencoder/autoencoder.py", stage1_flags(trained[0]))):
        shutil.copytree(trained[0] / result, tmp_path / result)
        (tmp_path / result / "last.pth").unlink()
        before = everything(tmp_path / result)
        code, _, error = call(capsys, name, *flags, *more, "--output_dir", tmp_path / result)
        assert code == 2, error
        assert "the result of another script: choose another --output_dir" in error
        assert everything(tmp_path / result) == before


@pytest.mark.parametrize("more", [{"resume": True}, {"overwrite": True}])
def test_a_last_pth_of_the_other_script_is_refused(tmp_path, more):
    begun(tmp_path, {}, result="mrhash.pth")
    with pytest.raises(InputError, match=r"makes 'mrhash\.pth', not autoencoder"):
        entered(tmp_path, {}, "autoencoder.pth", **more)


def test_a_last_pth_that_is_damaged_may_be_replaced(tmp_path):
    (tmp_path / "last.pth").write_bytes(b"cut short")
    entered(tmp_path, {}, "autoencoder.pth", overwrite=True)


def test_a_rank_that_cannot_see_the_folder_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_run, "rank", lambda: 1)
    with pytest.raises(InputError, match="name an --output_dir that all machines share"):
        RunFolder(tmp_path, "r.pth", {}, False, False)


# ------------------------------------------------------------ with which settings it goes on


def test_resuming_with_other_settings_lists_all_that_differ_and_changes_nothing(
        half_done, tmp_path, capsys):
    before = everything(tmp_path / "run")
    code, _, error = call(capsys, "train.py", *half_done, "--resume", "--lr", 0.5, "--seed", 14,
                          "--kl", "batchmean", "--batch_size", 16)
    assert code == 2 and len(error.splitlines()) == 1
    for difference in ("batch_size was 8, now 16", "kl was 'mean', now 'batchmean'",
                       "lr was 0.001, now 0.5", "seed was 13, now 14"):
        assert difference in error
    assert error.count(" was ") == 4
    assert everything(tmp_path / "run") == before


def test_more_epochs_and_other_places_are_no_other_settings(half_done, tmp_path, capsys, trained):
    for name in ("ae", "coarse", "fine"):
        shutil.copytree(trained[0] / name, tmp_path / "moved" / name)
    code, out, error = call(capsys, "train.py", *half_done, "--resume", "--max_epoch", 2,
                            "--device", "cpu", "--workers", 1, "--cache_dir", tmp_path / "cache",
                            "--pretrained_dp_path", tmp_path / "moved" / "ae" / "autoencoder.pth",
                            "--source1", tmp_path / "moved" / "coarse",
                            "--source2", tmp_path / "moved" / "fine")
    assert code == 0 and "resuming" in out, error
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert [(record["phase"], record["epoch"]) for record in log] == [
        ("epoch", 0), ("epoch", 1), ("epoch", 2)]


def test_a_setting_that_only_one_of_two_versions_knows_is_a_difference(tmp_path):
    begun(tmp_path, {"old_flag": 3, "lr": 0.1})
    with pytest.raises(InputError, match="kl is not known to the code that began it; old_flag is "
                                         "not known any more"):
        entered(tmp_path, {"lr": 0.1, "kl": "mean"}, resume=True)


def test_another_split_is_said_in_words(tmp_path):
    begun(tmp_path, {"fingerprint": "abc"})
    with pytest.raises(InputError, match=r"settings: the images, their labels or their split "
                                         r"are others$"):
        entered(tmp_path, {"fingerprint": "abd"}, resume=True)


def test_resume_and_overwrite_are_refused_together_where_there_is_a_run_to_resume(tmp_path):
    begun(tmp_path, {"lr": 1})
    before = everything(tmp_path)
    with pytest.raises(InputError, match=r"last\.pth is there to go on from: give --resume .* not "
                                         "both"):
        entered(tmp_path, {"lr": 1}, resume=True, overwrite=True)
    assert everything(tmp_path) == before
    (tmp_path / "last.pth").rename(tmp_path / "r.pth")  # a finished run of a table: made again
    assert entered(tmp_path, {"lr": 1}, resume=True, overwrite=True).state is None


def test_nothing_to_resume_is_a_new_run(tmp_path, capsys):
    assert entered(tmp_path, {}, resume=True).state is None
    assert "nothing to resume" in capsys.readouterr().out


# ------------------------------------------------------------ with which content it goes on


def test_a_resumed_run_insists_on_the_very_autoencoder_it_began_with(half_done, tmp_path, capsys,
                                                                     trained):
    for change in ("weights", "features"):
        other = torch.load(trained[0] / "ae" / "autoencoder.pth", weights_only=True)
        if change == "weights":
            other["model"]["fuse.bias"][0] += 1e-6
        else:
            other["features"]["feature_norm"] = "unit"
        torch.save(other, tmp_path / "other.pth")
        code, _, error = call(capsys, "train.py", *half_done, "--resume", "--pretrained_dp_path",
                              tmp_path / "other.pth")
        assert code == 2 and "cannot resume" in error and "pretrained was" in error, error


def test_a_resumed_run_insists_on_the_weights_of_its_backbone(trained, tmp_path, capsys):
    weights = load_backbone("shufflenet_v2_x0_5", "none", 32).model.state_dict()
    weights |= {"fc.weight": torch.zeros(1000, 1024), "fc.bias": torch.zeros(1000)}
    torch.save(weights, tmp_path / "weights.pth")
    flags = [*stage2_flags(trained[0] / "ae" / "autoencoder.pth"), *QUICK, "--weights",
             tmp_path / "weights.pth", "--output_dir", tmp_path / "run"]
    code, _, error = call(capsys, "train.py", *flags, "--max_epoch", 0)
    assert code == 0, error
    weights["conv1.0.weight"][0, 0, 0, 0] += 1
    torch.save(weights, tmp_path / "weights.pth")
    code, _, error = call(capsys, "train.py", *flags, "--max_epoch", 1, "--resume")
    assert code == 2 and "the weights are not those that it began with" in error


@pytest.fixture(scope="module")
def own_run(tmp_path_factory, zygote):
    """Images, and an autoencoder of them that is not through."""
    folder = tmp_path_factory.mktemp("own")
    make_pairs(folder)
    code, text = zygote.run(folder / "out.txt", "myautoencoder/autoencoder.py",
                            *stage1_flags(folder), *QUICK_FEATURES, "--epoch", 2, "--output_dir",
                            folder / "ae")
    assert code == 0, text
    return folder


def at_another_place(own_run, tmp_path):
    """A copy of images and run, and the command that goes on with it there."""
    shutil.copytree(own_run, tmp_path, dirs_exist_ok=True)
    return ["myautoencoder/autoencoder.py", *stage1_flags(tmp_path), *QUICK_FEATURES, "--resume",
            "--output_dir", tmp_path / "ae"]


@pytest.mark.parametrize(("view", "source"), [("coarse", 1), ("fine", 2)])
def test_a_run_does_not_go_on_with_an_image_exchanged(own_run, tmp_path, capsys, view, source):
    command = at_another_place(own_run, tmp_path)
    path = next((tmp_path / view / "sea").iterdir())
    status, pixels = path.stat(), np.array(Image.open(path))
    pixels[3, 4, 0] ^= 1  # hardly to be seen in the features
    Image.fromarray(pixels).save(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    code, _, error = call(capsys, *command)
    assert code == 2, error
    assert f"1 of 42 images of source {source} are not those that it began with" in error


def test_a_run_goes_on_with_its_images_at_another_place(own_run, tmp_path, capsys):
    command = at_another_place(own_run, tmp_path)
    os.utime(next((tmp_path / "coarse" / "sea").iterdir()))  # dates may be others, too
    with zipfile.ZipFile(tmp_path / "coarse.zip", "w") as archive:
        for path in (tmp_path / "coarse").rglob("*.bmp"):
            archive.write(path, path.relative_to(tmp_path / "coarse"))
    code, out, error = call(capsys, *command, "--source1", tmp_path / "coarse.zip")
    assert code == 0 and "resuming" in out, error


# ------------------------------------------------------------ what it writes


def test_the_log_goes_on_after_the_epochs_that_are_finished(tmp_path):
    begun(tmp_path, {"lr": 1}, epochs=2)
    with open(tmp_path / "log.jsonl", "a") as file:  # of an epoch that was not saved, and a crash
        file.write('{"epoch": 2, "seconds": 9}\n{"epo')
    run = entered(tmp_path, {"lr": 1, "max_epoch": 9}, resume=True)
    assert run.begin(2) == 1.5  # seconds
    assert [record["epoch"] for record in read_log(tmp_path / "log.jsonl")] == [0, 1]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["lr"] == 1 and config["max_epoch"] == 9
    assert {"python", "torch", "threads", "ranks", "git_commit"} <= config["environment"].keys()


def test_what_a_killed_run_left_half_written_goes_when_the_next_one_begins(tmp_path):
    begun(tmp_path, {})
    (tmp_path / ".last.pth.abcdefgh.part").write_bytes(b"half of it")
    run = entered(tmp_path, {}, resume=True)
    assert (tmp_path / ".last.pth.abcdefgh.part").exists()
    run.begin(2)
    assert sorted(everything(tmp_path)) == ["config.json", "last.pth", "log.jsonl"]


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    run = entered(tmp_path, {})
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(InputError, match=r"log\.jsonl could not be written: is a directory"):
        run.log({"epoch": 0})


def test_how_a_run_was_begun_or_replaced_is_no_setting_of_its_last_pth(tmp_path):
    begun(tmp_path, {"lr": 1, "resume": False, "overwrite": True})
    settings = torch.load(tmp_path / "last.pth", weights_only=True)["settings"]
    assert settings == {"lr": 1}


def test_advice_names_the_last_good_state_where_there_is_one(tmp_path):
    run = entered(tmp_path, {})
    assert run.advice().endswith("nothing was saved before")
    run = begun(tmp_path, {})
    assert run.advice() == ("begin again with a lower --lr; the last good state is "
                            f"{tmp_path / 'last.pth'}")


def test_lines_of_a_log_that_are_no_records_are_left_out(tmp_path):
    good = {"epoch": 3, "seconds": 1.5}
    lines = ["[" * 200_000, '{"epoch": 1, "seconds": "abc"}', '{"epoch": 1, "seconds": null}',
             '{"epoch": 1}', "[]", json.dumps(good), '{"epoch": 4, "sec']
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    assert read_log(tmp_path / "log.jsonl") == [good]


@FUZZ
@given(data=st.data())
def test_a_damaged_log_does_not_keep_a_run_from_going_on(tmp_path_factory, data):
    path = Path(tmp_path_factory.getbasetemp()) / "log.jsonl"
    whole = (b'{"epoch": 0, "loss": 1.0, "seconds": 2}\n'
             b'{"epoch": 1, "loss": 0.5, "seconds": 4}\n')
    path.write_bytes(damage(data, whole))
    assert all(record["seconds"] is not None for record in read_log(path))
