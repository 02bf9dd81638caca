"""What --preset best is made of: a head that learns first, what stage 1 leaves to stage 2."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
import torchvision

import helpers
from data_loader import DataConfig, ImageLoader, load_dataset
from engine.cli import PRESETS, Compute, run
from engine.loop import Run
from helpers import QUICK, SMALL, call, read_results, script_module, stage1_flags
from image_helpers import expects
from loss import label_spread, soft_assignment, target_distribution
from myautoencoder.features import apply_network, dataset_features
from network import rebuild_autoencoder
from script_helpers import (
    AUTOENCODER,
    HEAD,
    done,
    epochs_of,
    load,
    quick_flags,
    read_log,
    refused,
    stage1_of,
)

CPU = Compute(torch.device("cpu"), batch_size=16, workers=1)
HEAD_ALONE = ["--max_epoch", "none"]
BOTH = ["--max_epoch", 1, "--targets", "once", "--select", "loss"]


def train(capsys, trained, output, *flags):
    return done(capsys, "train.py", *quick_flags(trained), *HEAD, *flags, "--output_dir", output)[0]


@pytest.fixture(scope="module")
def folder_of(trained, tmp_path_factory):
    """`folder_of(*flags)`: a run with a head that ended well, made once; not to be changed."""
    made = {}

    def run_of(*flags):
        if flags not in made:
            folder = tmp_path_factory.mktemp("run")
            command = ["train.py", *quick_flags(trained), *HEAD, *flags, "--output_dir", folder]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("sys.argv", [str(word) for word in command])
                assert run(script_module("train.py").main) == 0
            made[flags] = folder
        return made[flags]

    return run_of


def dataset_of(checkpoint):
    return load_dataset(DataConfig(**checkpoint["data"]))


# ---------------------------------------------------------------- the head


def test_the_head_learns_first_and_the_backbone_is_frozen(folder_of, tmp_path, capsys):
    head, both = folder_of(*HEAD_ALONE), folder_of("--max_epoch", 0)
    assert epochs_of(head) == [("head epoch", epoch) for epoch in range(4)]
    assert epochs_of(both) == [*epochs_of(head), ("epoch", 0)]
    log = read_log(head)
    assert log[-1]["divergence"] < log[0]["divergence"]
    first, then = (load(folder / "mrhash.pth") for folder in (head, both))
    assert (first["phase"], first["epoch"]) == ("head epoch", 3)
    assert (then["phase"], then["epoch"]) == ("epoch", 0)
    moved = [not torch.equal(first["model"][name], then["model"][name])
             for name in first["model"] if "backbone" in name]
    assert any(moved)  # fine-tuned in epoch 0
    # What train.py says of the codes, of the features it kept, is what test.py finds in the images.
    done(capsys, "test.py", "--pretrain_path", head / "mrhash.pth", "--output_dir", tmp_path,
         *SMALL)
    assert read_results(tmp_path)["map"] == pytest.approx(log[-1]["map"])


def test_the_lines_of_the_head_say_so(trained, tmp_path, capsys):
    out = train(capsys, trained, tmp_path, "--max_epoch", 0)
    lines = [line.split(":")[0] for line in out.splitlines() if "epoch" in line.split(":")[0]]
    assert lines[:5] == [*(f"head epoch {epoch}/3" for epoch in range(4)), "epoch 0/0"]
    assert f"wrote {tmp_path / 'mrhash.pth'} (epoch 0)" in out


def test_the_rates_of_the_head_fall_along_a_cosine_and_then_start_anew(
        trained, tmp_path, capsys, monkeypatch):
    seen, finish = [], Run.finish_epoch

    def watch(self, *arguments):
        seen.append([group["lr"] for group in self.optimizer.param_groups])
        finish(self, *arguments)

    monkeypatch.setattr(Run, "finish_epoch", watch)
    train(capsys, trained, tmp_path, "--max_epoch", 0)
    cosine = [0.001 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]
    assert [fast for _, fast in seen] == pytest.approx([*cosine, 0.001], rel=1e-12)


@pytest.mark.parametrize("stop", [
    ("head epoch", 1), ("epoch", 0), pytest.param(("head epoch", 3), marks=pytest.mark.slow)])
def test_a_run_stopped_in_or_after_the_head_ends_as_an_uninterrupted_one(
        trained, folder_of, tmp_path, capsys, monkeypatch, stop):
    whole, finish = folder_of(*BOTH), Run.finish_epoch

    def save_and_stop(self, *arguments):
        finish(self, *arguments)
        if (self._phase, self._epoch) == stop:
            self._save()
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "finish_epoch", save_and_stop)
    code, _, _ = call(capsys, "train.py", *quick_flags(trained), *HEAD, *BOTH,
                      "--output_dir", tmp_path)
    assert code == 130 and epochs_of(tmp_path)[-1] == stop
    monkeypatch.undo()
    out = train(capsys, trained, tmp_path, *BOTH, "--resume")
    assert f"resuming {tmp_path} after {stop[0]} {stop[1]}\n" in out
    assert (tmp_path / "mrhash.pth").read_bytes() == (whole / "mrhash.pth").read_bytes()
    assert epochs_of(tmp_path) == epochs_of(whole)


def test_random_weights_are_calibrated_whatever_the_cache_knows(trained, tmp_path, capsys):
    """With --weights none the backbone's statistics depend on no cache of its features."""
    for name, cache in (("cold", tmp_path / "cache"), ("warm", tmp_path / "cache"),
                        ("none", "none")):
        train(capsys, trained, tmp_path / name, "--cache_dir", cache, *HEAD_ALONE)
    cold, warm, none = ((tmp_path / name / "mrhash.pth").read_bytes()
                        for name in ("cold", "warm", "none"))
    assert cold == warm == none


def spy_on_epochs(monkeypatch, spy):
    """train.py's train_one_epoch becomes `spy(original, run, network, epoch, *others)`."""
    load_module = helpers.script_module

    def loaded(name):
        module = load_module(name)
        if name == "train.py":
            original = module.train_one_epoch
            monkeypatch.setattr(module, "train_one_epoch", lambda *args: spy(original, *args))
        return module

    monkeypatch.setattr(helpers, "script_module", loaded)


def test_the_head_sees_the_features_of_its_own_images(trained, tmp_path, capsys, monkeypatch):
    seen = []

    def spy(original, run, network, epoch, *others):
        views = torch.cat(list(epoch._views(epoch, 0)))
        seen.append((network.hash_network.backbone, torch.cat(epoch.batches), views))
        return original(run, network, epoch, *others)

    spy_on_epochs(monkeypatch, spy)
    train(capsys, trained, tmp_path, *HEAD_ALONE)
    backbone, order, views = seen[0]
    assert sorted(order.tolist()) == list(range(39)) and not torch.equal(order, seen[1][1])
    dataset = dataset_of(load(stage1_of(trained)))
    loader = ImageLoader(dataset.source1, dataset.file_label(0), expects(32), CPU)
    made = np.concatenate(list(apply_network(backbone, loader, dataset.train, CPU, "features")))
    torch.testing.assert_close(views, torch.from_numpy(made)[order], rtol=1e-3, atol=1e-4)
    assert made.std(axis=0).max() > 0.01  # images differ


def test_the_best_epoch_is_one_of_the_last_phase(trained, tmp_path, capsys, monkeypatch):
    """Losses of the head, without augmentation, are smaller and do not compare with the others."""
    losses = iter([0.1, 0.05, 0.2, 0.3, 0.8, 0.7, 0.9, 0.1, 0.05, 0.2, 0.3])

    def spy(original, *args):
        return original(*args) | {"loss": next(losses)}

    spy_on_epochs(monkeypatch, spy)
    train(capsys, trained, tmp_path / "both", "--max_epoch", 2, "--select", "loss")
    kept = load(tmp_path / "both" / "mrhash.pth")
    assert (kept["phase"], kept["epoch"]) == ("epoch", 1)
    train(capsys, trained, tmp_path / "head", *HEAD_ALONE, "--select", "loss")
    kept = load(tmp_path / "head" / "mrhash.pth")
    assert (kept["phase"], kept["epoch"]) == ("head epoch", 1)


def test_an_epoch_that_is_over_cannot_be_undone(trained, folder_of, tmp_path, capsys):
    shutil.copytree(folder_of(*BOTH), tmp_path / "run")
    before = (tmp_path / "run" / "mrhash.pth").read_bytes()
    flags = [*quick_flags(trained), *HEAD, *BOTH, "--output_dir", tmp_path / "run", "--resume"]
    line = refused(capsys, "train.py", *flags, "--max_epoch", 0)
    assert "has come to epoch 1 already, more than 1 in all" in line
    line = refused(capsys, "train.py", *flags, *HEAD_ALONE)
    assert "has come to epoch 1 already" in line
    assert (tmp_path / "run" / "mrhash.pth").read_bytes() == before


def test_a_head_can_be_followed_by_fine_tuning_later(trained, folder_of, tmp_path, capsys):
    shutil.copytree(folder_of(*HEAD_ALONE), tmp_path / "later")
    train(capsys, trained, tmp_path / "later", "--max_epoch", 0, "--resume")
    assert (tmp_path / "later" / "mrhash.pth").read_bytes() == (
        folder_of("--max_epoch", 0) / "mrhash.pth").read_bytes()


# ---------------------------------------------------------------- labels


def test_a_fixed_autoencoder_stays_and_the_codes_do_not_notice(trained, tmp_path, capsys):
    """With targets made once and fixed centres it has no say: leaving it out changes no code."""
    models = {}
    for choice in ("trained", "fixed"):
        train(capsys, trained, tmp_path / choice, "--targets", "once", "--centres", "fixed",
              "--label_spread", 0, "--max_epoch", 0, "--autoencoder", choice)
        models[choice] = load(tmp_path / choice / "mrhash.pth")["model"]
    before = load(stage1_of(trained))["model"]
    for name, value in before.items():
        assert torch.equal(models["fixed"][f"autoencoder.{name}"], value)
    assert not torch.equal(models["trained"]["autoencoder.fuse.weight"], before["fuse.weight"])
    for name, value in models["fixed"].items():
        if not name.startswith("autoencoder."):
            assert torch.equal(models["trained"][name], value), name


def test_the_labels_of_a_run_are_spread_as_asked_and_the_latent_is_centred(
        trained, tmp_path, capsys):
    train(capsys, trained, tmp_path, *HEAD_ALONE, "--alpha", "auto", "--label_spread", 0.5,
          "--targets", "once", "--autoencoder", "fixed", "--centres", "fixed")
    last = load(tmp_path / "last.pth")
    stage1 = load(stage1_of(trained))
    stage1["model"] = {name.removeprefix("autoencoder."): value
                       for name, value in last["model"].items() if name.startswith("autoenc")}
    model, dataset = rebuild_autoencoder(stage1, tmp_path), dataset_of(stage1)
    arrays, _ = dataset_features(dataset, stage1["features"], "none", CPU)
    latent = model.encode_all([torch.from_numpy(x[dataset.train]) for x in arrays])
    assert latent.mean(dim=0).abs().max() < 1e-3 * latent.std()
    q = soft_assignment(latent, last["model"]["centres"], 63.0)
    assert label_spread(q) == pytest.approx(2, abs=0.05)
    torch.testing.assert_close(target_distribution(q), last["remembered"]["target"],
                               rtol=1e-3, atol=1e-4)


def test_single_pseudo_labels_are_what_the_network_learns_from(trained, tmp_path, capsys):
    train(capsys, trained, tmp_path, *HEAD_ALONE, "--pseudo_labels", "single", "--targets", "once")
    target = load(tmp_path / "last.pth")["remembered"]["target"]
    assert sorted(target.unique().tolist()) == [0, 1] and (target.sum(dim=1) == 1).all()


# ---------------------------------------------------------------- the preset


def test_the_preset_runs_through_all_three_scripts_and_wins_over_labels_it_never_saw(
        trained, tmp_path, capsys):
    """No flag of train.py says which network: it is that of stage 1, with its weights and size."""
    torch.manual_seed(2)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "weights.pth")
    stage1 = [*stage1_flags(trained[0]), "--preset", "best", "--feature_weights",
              tmp_path / "weights.pth", "--cache_dir", tmp_path / "cache"]
    done(capsys, AUTOENCODER, *stage1, "--output_dir", tmp_path / "ae")
    features = load(tmp_path / "ae" / "autoencoder.pth")["features"]
    assert (features["neighbours"], features["feature_norm"]) == (2, "unit")

    train = ["--preset", "best", "--pretrained_dp_path", tmp_path / "ae" / "autoencoder.pth",
             "--hash_bit", 12, "--n_clusters", 6, "--batch_size", 16, "--eval_frequency", 0,
             *SMALL, "--cache_dir", tmp_path / "cache"]
    out, _ = done(capsys, "train.py", *train, "--output_dir", tmp_path / "mr")
    assert out.count("reusing features") == 3  # of the frozen network, also for the head
    config = json.loads((tmp_path / "mr" / "config.json").read_text())
    assert (config["targets"], config["head_epochs"], config["alpha"]) == ("once", 50, None)
    assert (config["model_type"], config["image_size"]) == ("resnet18", 32)
    assert config["weights"] == str(tmp_path / "weights.pth")
    assert load(tmp_path / "mr" / "mrhash.pth")["network"]["head_width"] == 512

    # The weights of stage 1 have moved: one flag says where they are, and for which of both.
    moved = (tmp_path / "weights.pth").rename(tmp_path / "moved.pth")
    elsewhere = ["--output_dir", tmp_path / "mr2", "--head_epochs", 1]
    assert "weights.pth" in refused(capsys, "train.py", *train, *elsewhere)
    done(capsys, "train.py", *train, *elsewhere, "--feature_weights", moved)
    config = json.loads((tmp_path / "mr2" / "config.json").read_text())
    assert (config["model_type"], config["weights"]) == ("resnet18", str(moved))

    done(capsys, "test.py", "--preset", "best", "--pretrain_path", tmp_path / "mr" / "mrhash.pth",
         *SMALL)
    results = read_results(tmp_path / "mr")
    assert results["map"] > results["map_chance"] + 0.15


def test_every_setting_of_the_presets_is_a_flag():
    needed = {"autoencoder.py": [], "train.py": ["--pretrained_dp_path", "x"],
              "test.py": ["--pretrain_path", "x"]}
    for preset, scripts in PRESETS.items():
        assert scripts.keys() == needed.keys()
        for name, settings in scripts.items():
            path = AUTOENCODER if name == "autoencoder.py" else name
            args = vars(script_module(path).parse_arguments([*needed[name], "--preset", preset]))
            assert {key: args.get(key, "no such flag") for key in settings} == settings


def test_a_network_named_beside_the_preset_is_that_one(trained, tmp_path, capsys):
    flags = ["--preset", "best", "--pretrained_dp_path", stage1_of(trained), *SMALL, *QUICK,
             "--weights", "none", "--n_clusters", 4, "--label_spread", 0.5, "--head_epochs", 1]
    done(capsys, "train.py", *flags, "--output_dir", tmp_path)
    network = load(tmp_path / "mrhash.pth")["network"]
    assert (network["model_type"], network["image_size"]) == (QUICK[1], 224)  # its own size
