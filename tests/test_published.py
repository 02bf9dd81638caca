"""What "as published" means, held against numbers written down here: settings, schedules, labels.

Sun et al., TGRS 2022, and the code published with it.
"""

import json
import random
import re

import numpy as np
import pytest
import torch

import hamming
import loss
from data_loader import DataConfig, load_dataset
from datasets import dsrsid
from engine.cli import PRESETS, Compute
from engine.loop import Run
from helpers import ROOT, SMALL, read_results, script_module, stage1_flags
from hostile_helpers import small_mat
from myautoencoder import stage1 as stage1_module
from myautoencoder.features import dataset_features
from network import rebuild_autoencoder
from script_helpers import (
    AUTOENCODER,
    done,
    load,
    quick_flags,
    read_log,
    stage1_of,
)
from utils import seed_everything

PUBLISHED = {
    "autoencoder.py": {
        "data_name": "eurosat", "feature_backbone": "resnet50", "feature_weights": "imagenet",
        "feature_norm": "none", "neighbours": 0, "encoder": "unisource", "init": "torch",
        "select": "test_map", "latent_dim": 64, "lambda1": 0.1, "lr": 0.001, "batch_size": 512,
        "epoch": 200, "data_hash": 0, "image_size": 224, "seed": 13},
    "train.py": {
        "model_type": "alexnet", "weights": "imagenet", "hash_bit": 32, "n_clusters": 16,
        "lambda0": 5.0, "lr": 0.001, "multi_lr": 0.01, "max_epoch": 50, "workers": 4,
        "batch_size": 128, "eval_frequency": 5, "T": 0.0, "alpha": 1.0, "label_spread": 0,
        "pseudo_labels": "multi", "kl": "mean", "targets": "epoch", "autoencoder": "trained",
        "centres": "trained", "head_width": 0, "head_epochs": 0, "select": "last",
        "batch_norm": "adapt", "image_size": 224, "seed": 13},
    "test.py": {"ties": "expected", "batch_size": 128, "gen_similarity_matrix": 0},
}
NEEDED = {"autoencoder.py": [], "train.py": ["--pretrained_dp_path", "x"],
          "test.py": ["--pretrain_path", "x"]}
FILES = {"autoencoder.py": AUTOENCODER, "train.py": "train.py", "test.py": "test.py"}

# ---------------------------------------------------------------- settings


def parse(name, *flags):
    return vars(script_module(FILES[name]).parse_arguments([*NEEDED[name], *flags]))


@pytest.mark.parametrize("name", FILES)
def test_the_preset_is_what_was_published_whatever_our_defaults_are(name):
    args = parse(name, "--preset", "published")
    assert {key: args[key] for key in PUBLISHED[name]} == PUBLISHED[name]
    # and nothing else is touched
    ours = parse(name)
    touched = {key for key in args if args[key] != ours[key]} - {"preset"}
    assert touched <= PRESETS["published"][name].keys()


def test_our_defaults_differ_from_the_preset_where_the_documents_say():
    differing = {}
    for name in FILES:
        args, ours = parse(name, "--preset", "published"), parse(name)
        differing |= {f"{name} {key}": (args[key], ours[key]) for key in args.keys() - {"preset"}
                      if args[key] != ours[key]}
    assert differing == {
        "autoencoder.py encoder": ("unisource", None), "autoencoder.py init": ("torch", "he"),
        "autoencoder.py select": ("test_map", "loss"), "train.py batch_norm": ("adapt", "auto"),
        "train.py views": (1, None), "train.py alpha": (1.0, None),
        "train.py label_spread": (0.0, 0.2)}


def test_a_flag_beside_the_preset_wins_before_and_after_it():
    for flags in (["--preset", "published", "--lr", "0.5"],
                  ["--lr", "0.5", "--preset", "published"]):
        args = parse("train.py", *flags)
        assert (args["lr"], args["max_epoch"], args["batch_norm"]) == (0.5, 50, "adapt")


@pytest.mark.parametrize("name", FILES)
def test_the_documented_settings_are_those_of_the_preset(name):
    text = (ROOT / "docs" / "reproduction.md").read_text()
    section = re.search(rf"\*\*Stage \d, `{re.escape(name)}`.\*\*(.*?)\n\*\*", text, re.S)[1]
    differing = dict(re.findall(r"^\| `--(\w+)` \| (\S+) \|", section, re.M))
    same = section[section.index("The same: "):].split("\n\n")[0]
    documented = differing | dict(re.findall(r"`--(\w+)\s+(\S+)`", same))
    assert documented == {key: str(value) for key, value in PRESETS["published"][name].items()}


def test_the_preset_runs_through_all_three_scripts(trained, tmp_path, capsys):
    preset = ["--preset", "published"]
    _, error = done(capsys, AUTOENCODER, *preset, *stage1_flags(trained[0]), "--cache_dir",
                    trained[0] / "cache", "--output_dir", tmp_path / "ae")
    assert "labels of the test queries, as published" in error
    config = json.loads((tmp_path / "ae" / "config.json").read_text())
    assert (config["preset"], config["encoder"], config["init"]) == (
        "published", "unisource", "torch")
    best = max(read_log(tmp_path / "ae"), key=lambda record: record["latent_map"])
    assert load(tmp_path / "ae" / "autoencoder.pth")["epoch"] == best["epoch"]
    said, _ = done(capsys, "train.py", *preset, *quick_flags(trained), "--pretrained_dp_path",
                   tmp_path / "ae" / "autoencoder.pth", "--output_dir", tmp_path / "mr")
    # The same mAP of the same order in both scripts, and the stable one beside it.
    model = ["--pretrain_path", tmp_path / "mr" / "mrhash.pth", *SMALL]
    out, _ = done(capsys, "test.py", *preset, *model)
    results = read_results(tmp_path / "mr")
    assert f"mAP@13 {results['map']:.4f} (ties: expected" in said.splitlines()[-2]
    done(capsys, "test.py", *model, "--ties", "stable", "--output_dir", tmp_path / "stable")
    stable = read_results(tmp_path / "stable")["map"]
    assert results["ties"] == "expected" and results["map_stable"] == stable != results["map"]
    assert f"mAP@13 {results['map']:.4f} (ties: expected; stable {stable:.4f}; any" in out


def test_stage_1_of_dsrsid_is_selected_by_map_at_1900_or_all_that_there_are(tmp_path, capsys):
    assert dsrsid.PUBLISHED_STAGE1_R == 1900
    small_mat(tmp_path / "DSRSID.mat")
    flags = ["--preset", "published", "--data_name", "dsrsid", "--data_dir", tmp_path, "--epoch", 1,
             "--feature_backbone", "resnet18", "--feature_weights", "none", "--image_size", 32,
             "--cache_dir", "none", "--output_dir", tmp_path / "ae"]
    for more in ([], ["--R", 5, "--overwrite"]):
        out, _ = done(capsys, AUTOENCODER, *flags, *more)
        counts = re.search(r"(\d+) database", out)
        assert f"latent mAP@{more[1] if more else counts[1]} " in out


# ---------------------------------------------------------------- schedules


def rates(monkeypatch, capsys, name, flags):
    """The rates of each parameter group in each epoch, as the script sets them; none trains."""
    module, seen = script_module(name), []

    def one_epoch(run, *others):
        seen.append([group["lr"] for group in run.optimizer.param_groups])
        run._rate = 0.0
        return {"loss": 1.0, "divergence": 1.0}

    monkeypatch.setattr(module, "train_one_epoch", one_epoch)
    monkeypatch.setattr(Run, "_check_weights", lambda self: None)  # they stay, and it takes time
    monkeypatch.setattr("sys.argv", [name, *map(str, flags)])
    module.main()
    capsys.readouterr()
    return seen


def without(flags, *names):
    flags = list(flags)
    for name in names:
        position = flags.index(name)
        del flags[position:position + 2]
    return flags


def test_the_autoencoder_trains_200_epochs_halving_its_rate_every_40(
        trained, tmp_path, capsys, monkeypatch):
    flags = without(stage1_flags(trained[0]), "--epoch")
    seen = rates(monkeypatch, capsys, AUTOENCODER,
                 [*flags, "--eval_frequency", 0, "--output_dir", tmp_path])
    steps = [0.001, 0.0005, 0.00025, 0.000125, 0.0000625]
    expected = [rate for rate in steps for _ in range(40)]
    assert [group for group, in seen] == pytest.approx(expected, rel=1e-12)


def test_the_hash_network_trains_51_epochs_with_a_hundredth_for_the_backbone(
        trained, tmp_path, capsys, monkeypatch):
    flags = without(quick_flags(trained), "--max_epoch", "--multi_lr", "--eval_frequency")
    flags += ["--targets", "once", "--eval_frequency", 0, "--output_dir", tmp_path]
    seen = rates(monkeypatch, capsys, "train.py", flags)
    steps = [0.001, 0.0007, 0.00049, 0.000343, 0.0002401]
    expected = [rate for rate in steps for _ in range(10)] + [0.00016807]
    assert len(seen) == 51
    assert [fast for _, fast in seen] == pytest.approx(expected, rel=1e-12)
    assert [slow for slow, _ in seen] == pytest.approx([r / 100 for r in expected], rel=1e-12)


def test_the_seeds_are_13_14_15():
    seed_everything(13)
    found = random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002
    generator = torch.Generator().manual_seed(15)
    expected = (random.Random(13).random(), np.random.RandomState(14).random(),
                torch.rand(1, generator=generator).item())
    assert found == expected


def test_a_bit_is_one_from_zero_on():
    outputs = np.array([[0.0, -0.0, -1e-30, 1e-30, -1, 1, 0.5, -0.5]], np.float32)
    assert hamming.pack_codes(outputs).tolist() == [[0b11010110]]


# ---------------------------------------------------------------- targets, centres, divergence


def observed(capsys, monkeypatch, flags):
    """A run of train.py: targets of each epoch, the call of k-means, the centres it ends with."""
    module, targets, kmeans = script_module("train.py"), [], []
    one_epoch, cluster = module.train_one_epoch, stage1_module.cluster_centres

    def watch_epoch(run, network, epoch, features, target, *others):
        targets.append(target.clone())
        return one_epoch(run, network, epoch, features, target, *others)

    def watch_kmeans(points, count, **named):
        kmeans.append((count, named, cluster(points, count, **named)))
        return kmeans[-1][2]

    with monkeypatch.context() as patch:
        patch.setattr(module, "train_one_epoch", watch_epoch)
        patch.setattr(stage1_module, "cluster_centres", watch_kmeans)
        patch.setattr("sys.argv", ["train.py", *map(str, flags)])
        module.main()
    capsys.readouterr()
    return targets, kmeans, load(flags[-1] / "mrhash.pth")["model"]["centres"].numpy()


def test_targets_are_made_anew_each_epoch_or_once_and_centres_move_or_stay(
        trained, tmp_path, capsys, monkeypatch):
    stage2 = [*quick_flags(trained), "--alpha", 1, "--label_spread", 0]
    targets, kmeans, centres = observed(
        capsys, monkeypatch, [*stage2, "--output_dir", tmp_path / "default"])
    assert len(targets) == 3
    assert not torch.equal(targets[0], targets[1]) and not torch.equal(targets[1], targets[2])
    (clusters, named, start), = kmeans
    assert (clusters, named["starts"]) == (4, 20)
    assert np.abs(centres - start).max() > 1e-4

    fixed, _, centres = observed(capsys, monkeypatch, [
        *stage2, "--targets", "once", "--centres", "fixed", "--output_dir", tmp_path / "once"])
    np.testing.assert_array_equal(centres, start)
    assert all(torch.equal(target, targets[0]) for target in fixed)  # those of the first epoch

    # p of the latents and centres that training starts from, worked out here
    stage1 = load(stage1_of(trained))
    dataset = load_dataset(DataConfig(**stage1["data"]))
    arrays, _ = dataset_features(dataset, stage1["features"], "none",
                                 Compute(torch.device("cpu"), batch_size=16))
    model = rebuild_autoencoder(stage1, tmp_path)
    latent = model.encode_all([torch.from_numpy(x[dataset.train]) for x in arrays])
    kernel = 1 / (1 + np.square(latent.double().numpy()[:, None] - start[None]).sum(axis=2))
    q = kernel / kernel.sum(axis=1, keepdims=True)
    weight = q ** 2 / q.sum(axis=0)
    expected = weight / weight.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(targets[0].numpy(), expected, rtol=1e-4, atol=1e-6)


def test_targets_made_once_survive_a_resume(trained, tmp_path, capsys):
    flags = [*quick_flags(trained), "--targets", "once"]
    done(capsys, "train.py", *flags, "--output_dir", tmp_path / "whole")
    done(capsys, "train.py", *flags, "--max_epoch", 0, "--output_dir", tmp_path / "cut")
    out, _ = done(capsys, "train.py", *flags, "--resume", "--output_dir", tmp_path / "cut")
    assert "resuming" in out
    whole, cut = (tmp_path / name / "mrhash.pth" for name in ("whole", "cut"))
    assert cut.read_bytes() == whole.read_bytes()


def test_batchmean_weighs_the_divergence_by_the_number_of_clusters(trained, tmp_path, capsys):
    flags = [*quick_flags(trained), "--lr", 0, "--max_epoch", 0]
    found = {}
    for kl in ("mean", "batchmean"):
        done(capsys, "train.py", *flags, "--kl", kl, "--output_dir", tmp_path / kl)
        found[kl], = read_log(tmp_path / kl)
    mean, batchmean = found["mean"], found["batchmean"]
    assert batchmean["divergence"] == pytest.approx(4 * mean["divergence"], rel=1e-5)
    assert batchmean["reconstruction"] == pytest.approx(mean["reconstruction"], rel=1e-6)
    for record in found.values():
        total = record["divergence"] + 5 * record["reconstruction"]
        assert record["loss"] == pytest.approx(total, rel=1e-5)


def dec_gradients(latent, centres, target):
    """Gradients of sum_ij p_ij log(p_ij / q_ij) for z and c, a = 1.

    Xie et al., ICML 2016, equations 4 and 5.
    """
    to_z, to_c = np.zeros_like(latent), np.zeros_like(centres)
    for i, z in enumerate(latent):
        kernel = np.array([1 / (1 + np.sum((z - c) ** 2)) for c in centres])
        q = kernel / kernel.sum()
        for j, c in enumerate(centres):
            pull = 2 * kernel[j] * (target[i, j] - q[j]) * (z - c)
            to_z[i] += pull
            to_c[j] -= pull
    return to_z, to_c


@pytest.mark.parametrize("kl", ["mean", "batchmean"])
def test_both_divergences_pull_latents_and_centres_as_derived_by_hand(kl):
    generator = np.random.default_rng(8)
    image, feature, centres = (generator.normal(size=(count, 4)) for count in (6, 6, 5))
    target = generator.dirichlet(np.ones(5), size=6)
    tensors = [torch.from_numpy(x).requires_grad_() for x in (image, feature, centres)]
    x = torch.zeros(6, 2)
    q = [loss.soft_assignment(z, tensors[2]) for z in tensors[:2]]
    loss.multi_semantic_loss(torch.from_numpy(target), *q, [x], [x], kl=kl)[0].backward()
    count = 6 * 5 if kl == "mean" else 6
    to_image, to_c1 = dec_gradients(image, centres, target)
    to_feature, to_c2 = dec_gradients(feature, centres, target)
    for tensor, expected in zip(tensors, (to_image, to_feature, to_c1 + to_c2), strict=True):
        np.testing.assert_allclose(tensor.grad.numpy(), expected / count, rtol=1e-10, atol=1e-14)


def test_the_published_flags_are_accepted_by_their_published_names():
    assert parse("autoencoder.py", "--pretrained_type", "vgg16", "--laten_dim", "32",
                 "--dataset", "DSRSID")["feature_backbone"] == "vgg16"
    assert parse("train.py", "--laten_dim", "32")["latent_dim"] == 32
