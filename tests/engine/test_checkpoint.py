"""Checkpoints: equal content is equal bytes; made to harm or damaged, they are one sentence."""

import copy
import pickle
import shutil
import zipfile
from argparse import Namespace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_loader import DataConfig, inherit_dataset
from datasets.base import PairedDataset
from datasets.record import changes, image_record, other_content
from engine.checkpoint import content_of, differing, load_checkpoint, save_checkpoint
from engine.files import at_end
from engine.loop import Run
from helpers import SMALL, call, stage2_flags
from hostile_helpers import FUZZ, Trap, damage, one_sentence
from image_helpers import Arrays
from myautoencoder.feature_files import feature_files_of
from network import MultisourceAutoencoder, rebuild_autoencoder, rebuild_hash_network

# ------------------------------------------------------------ content


def test_a_checkpoint_does_not_tell_whether_equal_words_were_one_object(tmp_path):
    word, same = "none", "".join(["no", "ne"])
    assert word is not same
    for name, second in (("a", word), ("b", same)):
        content = {"x": word, "y": [second, {"none": (second, 1)}], "z": torch.ones(2)}
        save_checkpoint(tmp_path / name, content)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = torch.load(tmp_path / "b", weights_only=True)
    assert loaded["x"] == "none" and loaded["y"] == ["none", {"none": ("none", 1)}]
    assert loaded["z"].tolist() == [1, 1]


def test_which_autoencoder_it_is_depends_on_weights_and_features_and_not_on_places(trained):
    stage1 = torch.load(trained[0] / "ae" / "autoencoder.pth", weights_only=True)
    known = content_of(stage1, stage1["model"])
    moved = {**stage1, "features": {**stage1["features"], "feature_weights": "elsewhere"}}
    assert content_of(moved, stage1["model"]) == known
    other = {**stage1, "features": {**stage1["features"], "neighbours": 3}}
    assert content_of(other, stage1["model"]) != known
    weights = {**stage1["model"], "fuse.bias": stage1["model"]["fuse.bias"] + 1e-6}
    assert content_of(stage1, weights) != known


ROWS = torch.tensor([4, 5, 6])


@pytest.mark.parametrize(("before", "now", "words"), [
    ("a", "a", ""), ("a", "b", "scenes"), (None, "a", "scenes"), (ROWS, "a", "scenes"),
    (ROWS, ROWS.clone(), ""), (ROWS, torch.tensor([4, 0, 0]), "2 of 3 scenes"),
    (ROWS, ROWS[:2], "the scenes"), (ROWS.double(), ROWS, "the scenes"), ("a", ROWS, "the scenes"),
    (ROWS.to_sparse(), ROWS, "the scenes"), (None, ROWS, "the scenes")])
def test_what_differs_is_said_in_words_and_rows_are_counted(before, now, words):
    assert differing("scenes", before, now) == words


# ------------------------------------------------------------ made to harm


@pytest.mark.filterwarnings("ignore")  # of torch, for a file that torch.save did not write
@pytest.mark.parametrize("flag", ["--pretrained_dp_path", "--weights", "--resume",
                                  "--pretrain_path"])
@pytest.mark.parametrize("kind", ["torch", "pickle", "torch, old"])
def test_a_malicious_checkpoint_runs_nothing(trained, tmp_path, capsys, flag, kind):
    stage1 = trained[0] / "ae" / "autoencoder.pth"
    content = {"format": "mrhash-autoencoder-1", "model": Trap(tmp_path / "sprung")}
    trap = tmp_path / "run" / "last.pth"
    trap.parent.mkdir()
    if kind == "pickle":
        trap.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, trap, _use_new_zipfile_serialization=kind == "torch")
    command = {"--pretrained_dp_path": ["train.py", *stage2_flags(trap)],
               "--weights": ["train.py", *stage2_flags(stage1), "--weights", trap],
               "--resume": ["train.py", *stage2_flags(stage1), "--resume"],
               "--pretrain_path": ["test.py", "--pretrain_path", trap, *SMALL]}[flag]
    output_dir = tmp_path / ("run" if flag == "--resume" else "other")
    code, _, error = call(capsys, *command, "--output_dir", output_dir)
    assert code == 2 and str(trap) in error and len(error.splitlines()) == 1, error
    assert not (tmp_path / "sprung").exists()
    # The trap works where it is opened without care.
    if kind == "pickle":
        pickle.loads(trap.read_bytes())
    else:
        torch.load(trap, weights_only=False)
    assert (tmp_path / "sprung").exists()


def test_a_checkpoint_does_not_say_where_something_is_written(trained, tmp_path, capsys):
    content = torch.load(trained[0] / "ae" / "autoencoder.pth", weights_only=True)
    content["data"] |= {"data_name": "demo", "data_dir": str(tmp_path / "chosen"),
                        "source1": None, "source2": "fine"}
    save_checkpoint(tmp_path / "evil.pth", content)
    code, _, error = call(capsys, "train.py", *stage2_flags(tmp_path / "evil.pth"),
                          "--output_dir", tmp_path / "out")
    assert code == 2 and "say with --data_dir where they are" in error
    assert not (tmp_path / "chosen").exists()


def test_a_checkpoint_that_is_a_bomb_is_refused(tmp_path):
    content = {"format": "mrhash-1", "model": {"w": torch.zeros(1 << 22)}}
    save_checkpoint(tmp_path / "a.pth", content)
    with zipfile.ZipFile(tmp_path / "a.pth") as whole, zipfile.ZipFile(
            tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    assert (tmp_path / "bomb.pth").stat().st_size < 1 << 15
    with one_sentence("bomb.pth", "compressed"):
        load_checkpoint(tmp_path / "bomb.pth", "mrhash-1")


@pytest.mark.parametrize(("part", "name", "value"), [
    ("network", "feature_dims", [10**6, 10**6]), ("network", "latent_dim", 10**7),
    ("features", "image_size", 30_000), ("features", "amp", 1), ("features", "neighbours", -3),
    ("features", "neighbours", 1.5), ("features", "feature_norm", "x"),
    ("features", "normalise", [0.5]), ("features", "normalise", [0.5, -1.0]),
    ("features", "normalise", ["0", "1"]), ("features", "normalise", [0.0, float("nan")]),
    ("features", "feature_weights", None), ("data", "skip", 5), ("data", "split_seed", -1),
    ("data", "data_name", "nothing")])
def test_a_checkpoint_that_asks_for_what_cannot_be_is_one_sentence(trained, tmp_path, capsys, part,
                                                                   name, value):
    content = torch.load(trained[0] / "ae" / "autoencoder.pth", weights_only=True)
    content[part][name] = value
    save_checkpoint(tmp_path / "odd.pth", content)
    code, _, error = call(capsys, "train.py", *stage2_flags(tmp_path / "odd.pth"), "--output_dir",
                          tmp_path / "out")
    assert code == 2 and len(error.splitlines()) == 1, error


@pytest.mark.parametrize(("name", "value"), [
    ("image_size", 30_000), ("hash_bit", 10**6), ("threshold", float("nan")),
    ("threshold", 10**400), ("head_width", -1), ("model_type", "x")])
def test_a_trained_model_that_asks_for_what_cannot_be_is_one_sentence(trained, tmp_path, capsys,
                                                                      name, value):
    content = torch.load(trained[0] / "mr" / "mrhash.pth", weights_only=True)
    content["network"][name] = value
    save_checkpoint(tmp_path / "odd.pth", content)
    code, _, error = call(capsys, "test.py", "--pretrain_path", tmp_path / "odd.pth", *SMALL)
    assert code == 2 and len(error.splitlines()) == 1, error


# ------------------------------------------------------------ odd or damaged by chance

MODEL = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
ODD = [None, True, -1, 0, 2**70, float("nan"), "", "x\ny", "../x", [], [None], {}, {"a": 1}, (),
       torch.zeros(0), torch.full((2,), torch.nan), torch.zeros(2, dtype=torch.complex64),
       torch.zeros(3, dtype=torch.bool), torch.zeros(2, 2).to_sparse(),
       torch.zeros((), device="meta")]


SCENES = PairedDataset("three", ["a", "b", "c"], Arrays([np.zeros((2, 2, 3), np.uint8)] * 3), None,
                       np.array([0, 1, 0]), ["x", "y"], np.array([0, 1]), np.array([0, 1]),
                       np.array([2]), ("one", "none"))


def small_checkpoints():
    """A small file of each kind, by its `format`."""
    autoencoder = MultisourceAutoencoder([4, 3], 2)
    data = DataConfig("pairs", source1="one", source2="two").as_dict()
    features = {"feature_backbone": "resnet18", "feature_weights": "none", "image_size": 32,
                "content": "c", "amp": False, "files": [None, None]}
    network = {"model_type": "squeezenet1_1", "hash_bit": 8, "image_size": 32, "threshold": 0.0,
               "head_width": 0}
    yield {"format": "mrhash-autoencoder-1", "network": autoencoder.settings(), "data": data,
           "fingerprint": "f", "model": autoencoder.state_dict(), "features": features,
           "images": image_record(SCENES, None)}
    yield {"format": "mrhash-1", "network": network, "data": data, "fingerprint": "f",
           "model": MODEL.state_dict()}
    yield {"format": "mrhash-training-2", "finished": {"epoch": 3}, "settings": {"lr": 0.1},
           "unfinished": {"phase": "epoch", "step": 2, "sums": torch.zeros(1), "rows": 8,
                          "random": torch.get_rng_state()},
           "result": "r.pth", "began_with": {"images": ROWS, "weights": "w"},
           "remembered": {"target": torch.ones(2)}, "model": MODEL.state_dict(),
           "optimizer": torch.optim.Adam(MODEL.parameters()).state_dict(),
           "best": {"phase": "epoch", "score": 0.5, "epoch": 2, "model": MODEL.state_dict()}}


CHECKPOINTS = {content["format"]: copy.deepcopy(content) for content in small_checkpoints()}


def resume(path, folder):
    """Begin with a last.pth; what the epoch in hand says is looked at as far as it is checked."""
    (folder / "run").mkdir(exist_ok=True)
    shutil.copy(path, folder / "run" / "last.pth")
    try:
        run = Run(folder / "run", "r.pth", {"lr": 0.1}, True, False)
        model = copy.deepcopy(MODEL)
        run.attach(model, torch.optim.Adam(model.parameters()),
                   {"images": ROWS, "weights": "w"})
        run.meters("loss")
        run._resume_inside(9)
    finally:
        at_end.close()


def use(path, kind, folder):
    """What the scripts do with a checkpoint before they compute."""
    if kind == "mrhash-training-2":
        resume(path, folder)
        return
    content = load_checkpoint(path, kind)
    if kind == "mrhash-autoencoder-1":
        rebuild_autoencoder(content, path)
        feature_files_of(content, path, [None, None])
        for said in (changes, partial(other_content, cache_dir=None)):
            said(content.get("images", image_record(SCENES, None)), SCENES)
        names = ("data_name", "data_dir", "source1", "source2", "split_dir", "max_per_class",
                 "pairs")
        inherit_dataset(Namespace(**dict.fromkeys(names)), content)
    else:
        rebuild_hash_network(content, path)


def test_a_whole_checkpoint_of_each_kind_is_used(tmp_path):
    said = {"mrhash-autoencoder-1": "is not there", "mrhash-1": "does not fit",
            "mrhash-training-2": None}  # how far the small files lead
    for kind, content in CHECKPOINTS.items():
        save_checkpoint(tmp_path / "whole.pth", content)
        with one_sentence(*filter(None, [said[kind]])):
            use(tmp_path / "whole.pth", kind, tmp_path)


@pytest.mark.filterwarnings("ignore")  # torch warns of what it finds odd
@pytest.mark.parametrize("kind", CHECKPOINTS)
@FUZZ
@given(data=st.data())
def test_checkpoints_with_odd_entries_are_one_sentence(tmp_path_factory, kind, data):
    content = copy.deepcopy(CHECKPOINTS[kind])
    for _ in range(data.draw(st.integers(1, 2))):
        place = content
        while True:
            key = data.draw(st.sampled_from(sorted(place)))
            inside = isinstance(place[key], dict) and place[key]
            if not inside or data.draw(st.integers(0, 3)) == 0:
                break
            place = place[key]
        if data.draw(st.booleans()):
            place[key] = copy.deepcopy(data.draw(st.sampled_from(ODD)))
        else:
            del place[key]
    folder = tmp_path_factory.getbasetemp()
    save_checkpoint(folder / "odd.pth", content)
    with one_sentence():
        use(folder / "odd.pth", kind, folder)


@pytest.mark.filterwarnings("ignore")  # torch warns of what it finds odd
@pytest.mark.parametrize("kind", CHECKPOINTS)
@FUZZ
@given(data=st.data())
def test_checkpoints_with_damaged_bytes_are_one_sentence(tmp_path_factory, kind, data):
    folder = tmp_path_factory.getbasetemp()
    save_checkpoint(folder / "whole.pth", CHECKPOINTS[kind])
    if data.draw(st.booleans()):  # with checksums that fit: what comes is for torch to refuse
        with zipfile.ZipFile(folder / "whole.pth") as whole:
            members = {name: whole.read(name) for name in whole.namelist()}
        with zipfile.ZipFile(folder / "damaged.pth", "w") as file:
            for name, raw in members.items():
                file.writestr(name, damage(data, raw) if name.endswith("data.pkl") else raw)
    else:
        raw = (folder / "whole.pth").read_bytes()
        (folder / "damaged.pth").write_bytes(damage(data, raw))
    with one_sentence():
        use(folder / "damaged.pth", kind, folder)
