"""Stage 2 by itself: what is kept, what is measured and said, what is refused."""

import json

import numpy as np
import pytest
import torch

import hamming
from helpers import SMALL, call, script_module
from script_helpers import (
    done,
    epochs_of,
    load,
    quick_flags,
    read_log,
    refused,
    stage1_of,
)

# ---------------------------------------------------------------- what is kept


def test_a_run_cut_short_and_resumed_ends_with_the_same_file(trained, tmp_path, capsys):
    flags = quick_flags(trained)
    done(capsys, "train.py", *flags, "--output_dir", tmp_path / "whole")
    flags += ["--output_dir", tmp_path / "cut"]
    done(capsys, "train.py", *flags, "--max_epoch", 0)
    line = refused(capsys, "train.py", *flags)
    assert "--resume" in line and "--overwrite" in line
    assert "lr was 0.001, now 0.5" in refused(capsys, "train.py", *flags, "--lr", 0.5, "--resume")
    out, _ = done(capsys, "train.py", *flags, "--resume")
    assert f"resuming {tmp_path / 'cut'} after epoch 0\n" in out
    whole, cut = (tmp_path / name / "mrhash.pth" for name in ("whole", "cut"))
    assert cut.read_bytes() == whole.read_bytes()
    assert epochs_of(tmp_path / "cut") == [("epoch", 0), ("epoch", 1), ("epoch", 2)]


def test_selection_by_test_map_warns_and_keeps_the_best_epoch(trained, tmp_path, capsys,
                                                              monkeypatch):
    maps = iter([0.2, 0.6, 0.4])
    monkeypatch.setattr(hamming, "evaluate", lambda *arguments, **named: {"map": next(maps)})
    _, error = done(capsys, "train.py", *quick_flags(trained), "--select", "test_map",
                    "--eval_frequency", 1, "--output_dir", tmp_path)
    assert "labels of the test queries" in error
    assert [record["map"] for record in read_log(tmp_path)] == [0.2, 0.6, 0.4]
    assert load(tmp_path / "mrhash.pth")["epoch"] == 1


def test_selection_by_loss_keeps_the_epoch_of_least_loss(trained, tmp_path, capsys):
    done(capsys, "train.py", *quick_flags(trained), "--select", "loss", "--lr", 0.02,
         "--output_dir", tmp_path)
    best = min(read_log(tmp_path), key=lambda record: record["loss"])
    assert load(tmp_path / "mrhash.pth")["epoch"] == best["epoch"]


def test_what_epochs_are_compared_by():
    score_of = script_module("train.py").score_of
    assert score_of({"loss": 2.0, "map": 0.5}, "loss") == -2
    assert score_of({"loss": 2.0, "map": 0.5}, "test_map") == 0.5
    assert score_of({"loss": 2.0}, "test_map") is None  # an epoch that was not measured
    assert score_of({"loss": 2.0, "map": 0.5}, "last") is None


def test_the_checkpoint_says_all_that_hashing_needs(trained):
    checkpoint = load(trained[0] / "mr" / "mrhash.pth")
    assert checkpoint["format"] == "mrhash-1" and checkpoint["select"] == "last"
    assert (checkpoint["phase"], checkpoint["epoch"]) == ("epoch", 2)
    network = checkpoint["network"]
    assert network.pop("autoencoder") == load(stage1_of(trained))["network"]
    assert network == {"model_type": "resnet18", "hash_bit": 12, "head_width": 0,
                       "image_size": 32, "normalise": None, "views": 1, "n_clusters": 4,
                       "threshold": 0.0}
    assert checkpoint["data"] == load(stage1_of(trained))["data"]


def test_a_backbone_rate_of_zero_leaves_the_backbone_as_it_was(trained, tmp_path, capsys):
    models = []
    for epochs in (0, 1):
        folder = tmp_path / str(epochs)
        done(capsys, "train.py", *quick_flags(trained), "--multi_lr", 0, "--batch_norm", "frozen",
             "--max_epoch", epochs, "--output_dir", folder)
        models.append(load(folder / "mrhash.pth")["model"])
    for name, value in models[0].items():
        same = torch.equal(value, models[1][name])
        assert same == name.startswith("hash_network.backbone."), name


# ---------------------------------------------------------------- what is measured and said


def test_bits_that_are_all_the_same_stand_in_the_line_of_the_epoch_and_in_the_log(
        trained, tmp_path, capsys):
    """With a threshold that tanh never reaches no code has a bit."""
    out, error = done(capsys, "train.py", *quick_flags(trained), "--T", 2, "--output_dir",
                      tmp_path)
    lines = [line for line in out.splitlines() if line.startswith("epoch ")]
    measured = ["; constant bits: 12), " in line for line in lines]
    assert measured == [True, False, True]
    log = read_log(tmp_path)
    assert [record.get("constant_bits") for record in log] == [12, None, 12]
    assert error.count("all 12 bits are the same for all images") == 1  # of the finished codes
    _, error = done(capsys, "train.py", *quick_flags(trained), "--T", 2, "--resume",
                    "--output_dir", tmp_path)  # nothing to do, and still true
    assert error.count("all 12 bits are the same for all images") == 1


def test_a_last_batch_of_one_image_joins_the_one_before(trained, tmp_path, capsys):
    flags = [*quick_flags(trained), "--batch_norm", "adapt", "--max_epoch", 0]
    done(capsys, "train.py", *flags, "--batch_size", 19, "--output_dir", tmp_path)  # 39 = 19 + 20
    line = refused(capsys, "train.py", *flags, "--batch_size", 1, "--output_dir", tmp_path / "one")
    assert "adapts to the images of a batch, which is one image here (--batch_size 1, 39" in line


def test_the_line_of_an_epoch(capsys):
    report = script_module("train.py").report
    stats = {"loss": 1.25, "divergence": 0.5, "images_per_second": 20.4}
    report("epoch 3/50", stats, 13)
    report("head epoch 0/4", {**stats, "map": 0.625, "constant_bits": 0}, 13)
    report("epoch 5/50", {**stats, "map": 0.625, "constant_bits": 2}, 13)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 3/50: loss 1.25000 (divergence 0.50000), 20 images/s",
        "head epoch 0/4: loss 1.25000 (divergence 0.50000), mAP@13 0.6250 (ties: expected), "
        "20 images/s",
        "epoch 5/50: loss 1.25000 (divergence 0.50000), mAP@13 0.6250 (ties: expected; constant "
        "bits: 2), 20 images/s"]


def test_the_map_of_the_last_epoch_is_that_of_test_py(trained):
    results = json.loads((trained[0] / "mr" / "results.json").read_text())
    assert read_log(trained[0] / "mr")[-1]["map"] == pytest.approx(results["map"], rel=1e-9)


def test_empty_clusters_are_warned_of_once(trained, tmp_path, capsys):
    _, error = done(capsys, "train.py", *quick_flags(trained), "--n_clusters", 30,
                    "--eval_frequency", 0, "--lr", 0.05, "--output_dir", tmp_path)
    assert error.count("\n") == 1
    assert "of 30 clusters are empty: no image belongs to them most" in error


def test_nothing_is_measured_when_nobody_asks(trained, tmp_path, capsys):
    out, _ = done(capsys, "train.py", *quick_flags(trained), "--max_epoch", 0,
                  "--eval_frequency", 0, "--output_dir", tmp_path)
    assert "mAP" not in out and "map" not in read_log(tmp_path)[0]


def test_amp_trains_in_bfloat16_and_keeps_weights_in_float32(trained, tmp_path, capsys):
    made = {}
    for name, more in (("float32", []), ("bfloat16", ["--amp"])):
        done(capsys, "train.py", *quick_flags(trained), *more, "--max_epoch", 0,
             "--eval_frequency", 0, "--output_dir", tmp_path / name)
        made[name] = read_log(tmp_path / name)[0]["loss"]
        weights = load(tmp_path / name / "mrhash.pth")["model"]
        assert weights["hash_network.hash_layer.weight"].dtype == torch.float32
    assert 0 < abs(made["bfloat16"] - made["float32"]) < 0.05 * made["float32"]


# ---------------------------------------------------------------- what is refused

BAD = [
    ([], "--pretrained_dp_path"),
    (["--lr", "1e38"], "1e38 is not a number from 0 to 1e+09"),
    (["--lr", "nan"], "nan is not a number from 0 to 1e+09"),
    (["--T", "nan"], "nan is not a number from -1e+30 to 1e+30"),
    (["--hash_bit", "2000"], "2000 is not a whole number from 1 to 1024"),
    (["--hash_bit", "0"], "0 is not a whole number from 1 to 1024"),
    (["--hash_bit", "many"], "invalid whole number value: 'many'"),
    (["--max_epoch", "-1"], "-1 is not a whole number of at least 0"),
    (["--max_epoch", "never"], "invalid whole number, or none, value: 'never'"),
    (["--max_epoch", "none"], "none trains nothing without --head_epochs"),
    (["--select", "test_map", "--eval_frequency", "0"], "test_map needs --eval_frequency above 0"),
    (["--label_spread", "1"], "1 is not a number from 0 to 0.999"),
    (["--alpha", "0"], "0 is not a number of at least 1e-06"),
    (["--alpha", "nan"], "nan is not a number of at least 1e-06"),
    (["--latent_dim", "32"], "contradicts"),
    (["--data_name", "UCMerced"], "contradicts the checkpoint"),
    (["--R", "9999"], "larger than the database"),
    (["--n_clusters", "40"], "n_clusters"),
    (["--label_spread", "0.1"], "cannot be spread over 0.1 of 4 clusters, that is one or less"),
    (["--model_type", "alexnot"], "no torchvision classification model"),
    (["--weights", "{text}"], "state-dict"),
    (["--pretrained_dp_path", "{tmp}/no.pth"], "expected a file made by autoencoder.py"),
    (["--pretrained_dp_path", "{text}"], "not a whole checkpoint"),
    (["--pretrained_dp_path", "{mr}"], "is mrhash-1, expected mrhash-autoencoder-1"),
]


@pytest.mark.parametrize(("flags", "message"), BAD, ids=[" ".join(flags) for flags, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(trained, tmp_path, capsys, flags, message):
    (tmp_path / "text").write_text("no weights")
    places = {"tmp": tmp_path, "text": tmp_path / "text", "mr": trained[0] / "mr" / "mrhash.pth"}
    known = quick_flags(trained) if flags else SMALL
    line = refused(capsys, "train.py", *known, "--output_dir", tmp_path / "o",
                   *(flag.format(**places) for flag in flags))
    assert message in line
    assert not (tmp_path / "o" / "last.pth").exists()


def test_clusters_are_drawn_by_the_seed_alone(trained, tmp_path, capsys):
    """Whatever the network is: centres are made before it."""
    centres = []
    for name, more in (("a", []), ("b", ["--model_type", "squeezenet1_1", "--hash_bit", 7])):
        flags = [*quick_flags(trained), "--centres", "fixed", "--max_epoch", 0, "--eval_frequency",
                 0, "--image_size", 64, *more, "--output_dir", tmp_path / name]
        assert call(capsys, "train.py", *flags)[0] == 0
        centres.append(load(tmp_path / name / "mrhash.pth")["model"]["centres"])
    np.testing.assert_array_equal(*centres)
