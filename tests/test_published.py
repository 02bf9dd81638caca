"""What "as published" means, held against numbers written down here: settings, schedules, targets, files."""

import csv
import json
import pickle
import random

import numpy as np
import pytest
import torch

import hamming
import loss
from benchmarks import cells
from data_loader import DataConfig, load_dataset
from engine import cli as options
from engine.cli import run
from helpers import QUICK, ROOT, SMALL, call, script_module, stage1_flags, stage2_flags
from network import rebuild_autoencoder
from utils import InputError, seed_everything

# Sun et al., TGRS 2022, and the code published with it.
PUBLISHED = {
    "autoencoder.py": {
        "data_name": "eurosat", "feature_backbone": "resnet50", "feature_weights": "imagenet", "feature_norm": "none",
        "neighbours": 0, "encoder": "unisource", "init": "torch", "select": "test_map", "latent_dim": 64,
        "lambda1": 0.1, "lr": 0.001, "batch_size": 512, "epoch": 200, "data_hash": 0, "image_size": 224, "seed": 13},
    "train.py": {
        "model_type": "alexnet", "weights": "imagenet", "hash_bit": 32, "n_clusters": 16, "lambda0": 5.0, "lr": 0.001,
        "multi_lr": 0.01, "max_epoch": 50, "workers": 4, "batch_size": 128, "eval_frequency": 5, "T": 0.0,
        "alpha": 1.0, "label_spread": 0, "pseudo_labels": "multi", "kl": "mean", "targets": "epoch",
        "autoencoder": "trained", "centres": "trained", "head_width": 0, "head_epochs": 0, "select": "last",
        "batch_norm": "adapt", "image_size": 224, "seed": 13},
    "test.py": {"ties": "stable", "batch_size": 128, "gen_similarity_matrix": 0},
}
NEEDED = {"autoencoder.py": [], "train.py": ["--pretrained_dp_path", "x"], "test.py": ["--pretrain_path", "x"]}
FILES = {"autoencoder.py": "myautoencoder/autoencoder.py", "train.py": "train.py", "test.py": "test.py"}


@pytest.mark.parametrize("name", FILES)
def test_the_preset_is_what_was_published_whatever_our_defaults_are(name):
    parse = script_module(FILES[name]).parse_arguments
    args = vars(parse([*NEEDED[name], "--preset", "published"]))
    assert {key: args[key] for key in PUBLISHED[name]} == PUBLISHED[name]
    # and nothing else is touched
    ours = vars(parse(NEEDED[name]))
    assert {key for key in args if args[key] != ours[key]} - {"preset"} <= options.PRESETS["published"][name].keys()


def test_our_defaults_differ_from_the_preset_where_the_documents_say():
    differing = {}
    for name in FILES:
        parse = script_module(FILES[name]).parse_arguments
        args, ours = (vars(parse([*NEEDED[name], *more])) for more in (["--preset", "published"], []))
        differing |= {f"{name} {key}": (args[key], ours[key]) for key in args.keys() - {"preset"}
                      if args[key] != ours[key]}
    assert differing == {
        "autoencoder.py encoder": ("unisource", None), "autoencoder.py init": ("torch", "he"),
        "autoencoder.py select": ("test_map", "loss"), "train.py batch_norm": ("adapt", "auto"),
        "test.py ties": ("stable", "expected")}


def test_a_flag_beside_the_preset_wins_before_and_after_it():
    parse = script_module("train.py").parse_arguments
    for flags in (["--preset", "published", "--lr", "0.5"], ["--lr", "0.5", "--preset", "published"]):
        args = parse(["--pretrained_dp_path", "x", *flags])
        assert (args.lr, args.max_epoch, args.batch_norm) == (0.5, 50, "adapt")


def test_the_preset_runs_through_all_three_scripts(trained, tmp_path, capsys):
    folder, _ = trained
    preset = ["--preset", "published"]
    code, _, error = call(capsys, "myautoencoder/autoencoder.py", *preset, *stage1_flags(folder), "--output_dir",
                          tmp_path / "ae")
    assert code == 0 and "labels of the test queries, as published" in error
    config = json.loads((tmp_path / "ae" / "config.json").read_text())
    assert (config["preset"], config["encoder"], config["init"]) == ("published", "unisource", "torch")
    log = [json.loads(line) for line in (tmp_path / "ae" / "log.jsonl").read_text().splitlines()]
    kept = torch.load(tmp_path / "ae" / "autoencoder.pth", weights_only=True)
    assert kept["epoch"] == max(log, key=lambda record: record["latent_map"])["epoch"]
    code, _, error = call(capsys, "train.py", *preset, *stage2_flags(tmp_path / "ae" / "autoencoder.pth"),
                          "--output_dir", tmp_path / "mr")
    assert code == 0, error
    code, _, error = call(capsys, "test.py", *preset, "--pretrain_path", tmp_path / "mr" / "mrhash.pth",
                          "--save_codes", tmp_path / "codes.npz", *SMALL)
    assert code == 0, error
    results = json.loads((tmp_path / "mr" / "results.json").read_text())
    codes = np.load(tmp_path / "codes.npz")
    bits = {part: np.unpackbits(codes[f"{part}_codes"], axis=1)[:, :12] for part in ("query", "database")}
    order = np.argsort((bits["query"][:, None] != bits["database"]).sum(axis=2), axis=1, kind="stable")[:, :13]
    hits = codes["database_labels"][order] == codes["query_labels"][:, None]
    precision = hits.cumsum(axis=1) / np.arange(1, 14)
    expected = ((precision * hits).sum(axis=1) / np.maximum(hits.sum(axis=1), 1)).mean()
    assert results["ties"] == "stable"
    assert results["map"] == pytest.approx(expected, rel=1e-12)


# ------------------------------------------------------------------------ schedules


def rates(monkeypatch, capsys, name, flags):
    """The rates of each parameter group in each epoch, as the script gives them to its optimiser."""
    module, seen = script_module(name), []

    def one_epoch(model, *others):
        optimizer = next(value for value in others if isinstance(value, torch.optim.Adam))
        seen.append([group["lr"] for group in optimizer.param_groups])
        return 1.0

    monkeypatch.setattr(module, "train_one_epoch", one_epoch)
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


def test_the_autoencoder_trains_200_epochs_halving_its_rate_every_40(trained, tmp_path, capsys, monkeypatch):
    flags = without(stage1_flags(trained[0]), "--epoch")
    seen = rates(monkeypatch, capsys, "myautoencoder/autoencoder.py",
                 [*flags, "--eval_frequency", 0, "--output_dir", tmp_path])
    expected = [0.001] * 40 + [0.0005] * 40 + [0.00025] * 40 + [0.000125] * 40 + [0.0000625] * 40
    assert [group for group, in seen] == pytest.approx(expected, rel=1e-12)


def test_the_hash_network_trains_51_epochs_with_a_hundredth_for_the_backbone(trained, tmp_path, capsys, monkeypatch):
    flags = without(stage2_flags(trained[0] / "ae" / "autoencoder.pth"), "--max_epoch", "--multi_lr",
                    "--eval_frequency")
    seen = rates(monkeypatch, capsys, "train.py", [*flags, *QUICK, "--eval_frequency", 0, "--output_dir", tmp_path])
    steps = [0.001, 0.0007, 0.00049, 0.000343, 0.0002401]
    expected = [rate for rate in steps for _ in range(10)] + [0.00016807]
    assert len(seen) == 51
    assert [fast for _, fast in seen] == pytest.approx(expected, rel=1e-12)
    assert [slow for slow, _ in seen] == pytest.approx([rate / 100 for rate in expected], rel=1e-12)


def test_the_seeds_are_13_14_15():
    seed_everything(13)
    found = random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002
    expected = (random.Random(13).random(), np.random.RandomState(14).random(),
                torch.rand(1, generator=torch.Generator().manual_seed(15)).item())
    assert found == expected


def test_a_bit_is_one_from_zero_on():
    codes = hamming.pack_codes(np.array([[0.0, -0.0, -1e-30, 1e-30, -1, 1, 0.5, -0.5]], np.float32))
    assert codes.tolist() == [[0b11010110]]


# ------------------------------------------------------------------------ targets, centres, divergence


def observed(capsys, monkeypatch, flags):
    """The targets of each epoch and the call of k-means of a run of train.py, and its centres before and after."""
    module, targets, kmeans = script_module("train.py"), [], []
    one_epoch, cluster = module.train_one_epoch, module.cluster_centres

    def watch_epoch(model, batches, views, resting, features, target, *others):
        targets.append(target.clone())
        return one_epoch(model, batches, views, resting, features, target, *others)

    def watch_kmeans(*arguments, **named):
        kmeans.append((arguments[1], named, cluster(*arguments, **named)))
        return kmeans[-1][2]

    monkeypatch.setattr(module, "train_one_epoch", watch_epoch)
    monkeypatch.setattr(module, "cluster_centres", watch_kmeans)
    monkeypatch.setattr("sys.argv", ["train.py", *map(str, flags)])
    module.main()
    capsys.readouterr()
    result = torch.load(flags[-1] / "mrhash.pth", weights_only=True)
    return targets, kmeans, result["model"]["centres"].numpy()


def test_targets_are_made_anew_each_epoch_or_once_and_centres_move_or_stay(trained, tmp_path, capsys, monkeypatch):
    stage2 = [*stage2_flags(trained[0] / "ae" / "autoencoder.pth"), *QUICK]
    targets, kmeans, centres = observed(capsys, monkeypatch, [*stage2, "--output_dir", tmp_path / "default"])
    assert len(targets) == 3 and not torch.equal(targets[0], targets[1]) and not torch.equal(targets[1], targets[2])
    (clusters, named, start), = kmeans
    assert (clusters, named["starts"]) == (4, 20)
    assert np.abs(centres - start).max() > 1e-4

    fixed, _, centres = observed(capsys, monkeypatch, [*stage2, "--targets", "once", "--centres", "fixed",
                                                       "--output_dir", tmp_path / "once"])
    np.testing.assert_array_equal(centres, start)
    assert all(torch.equal(target, targets[0]) for target in fixed)  # those of the first epoch

    # p of the latents and centres that training starts from, worked out here
    stage1 = torch.load(trained[0] / "ae" / "autoencoder.pth", weights_only=True)
    model = rebuild_autoencoder(stage1, tmp_path)
    dataset = load_dataset(DataConfig(**stage1["data"]))
    module = script_module("train.py")
    arrays, _ = module.dataset_features(dataset, stage1["features"], "none", torch.device("cpu"), 16, 1, "none")
    latent = model.encode_all([torch.from_numpy(x[dataset.train]) for x in arrays]).double().numpy()
    kernel = 1 / (1 + np.square(latent[:, None] - start[None]).sum(axis=2))
    q = kernel / kernel.sum(axis=1, keepdims=True)
    weight = q ** 2 / q.sum(axis=0)
    np.testing.assert_allclose(targets[0].numpy(), weight / weight.sum(axis=1, keepdims=True), rtol=1e-4, atol=1e-6)


def test_targets_made_once_survive_a_resume(trained, tmp_path, capsys):
    flags = [*stage2_flags(trained[0] / "ae" / "autoencoder.pth"), *QUICK, "--targets", "once"]
    assert call(capsys, "train.py", *flags, "--output_dir", tmp_path / "whole")[0] == 0
    assert call(capsys, "train.py", *flags, "--max_epoch", 0, "--output_dir", tmp_path / "cut")[0] == 0
    code, out, _ = call(capsys, "train.py", *flags, "--resume", "--output_dir", tmp_path / "cut")
    assert code == 0 and "resuming" in out
    assert (tmp_path / "cut" / "mrhash.pth").read_bytes() == (tmp_path / "whole" / "mrhash.pth").read_bytes()


def test_batchmean_weighs_the_divergence_by_the_number_of_clusters(trained, tmp_path, capsys):
    flags = [*stage2_flags(trained[0] / "ae" / "autoencoder.pth"), "--lr", 0, "--max_epoch", 0]
    found = {}
    for kl in ("mean", "batchmean"):
        assert call(capsys, "train.py", *flags, "--kl", kl, "--output_dir", tmp_path / kl)[0] == 0
        found[kl] = json.loads((tmp_path / kl / "log.jsonl").read_text())
    assert found["batchmean"]["divergence"] == pytest.approx(4 * found["mean"]["divergence"], rel=1e-5)
    assert found["batchmean"]["reconstruction"] == pytest.approx(found["mean"]["reconstruction"], rel=1e-6)
    for record in found.values():
        assert record["loss"] == pytest.approx(record["divergence"] + 5 * record["reconstruction"], rel=1e-5)


def dec_gradients(latent, centres, target):
    """Gradient of sum_ij p_ij log(p_ij / q_ij) for z and c, a = 1: Xie et al., ICML 2016, equations 4 and 5."""
    to_z, to_c = np.zeros_like(latent), np.zeros_like(centres)
    for i, z in enumerate(latent):
        kernel = np.array([1 / (1 + np.sum((z - c) ** 2)) for c in centres])
        q = kernel / kernel.sum()
        for j, c in enumerate(centres):
            to_z[i] += 2 * kernel[j] * (target[i, j] - q[j]) * (z - c)
            to_c[j] -= 2 * kernel[j] * (target[i, j] - q[j]) * (z - c)
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
    (to_image, to_c1), (to_feature, to_c2) = (dec_gradients(z, centres, target) for z in (image, feature))
    for tensor, expected in zip(tensors, (to_image, to_feature, to_c1 + to_c2), strict=True):
        np.testing.assert_allclose(tensor.grad.numpy(), expected / count, rtol=1e-10, atol=1e-14)


# ------------------------------------------------------------------------ the authors' files


@pytest.fixture(scope="module")
def authors(trained, tmp_path_factory):
    """Lists as the authors write them, of files that lie elsewhere, and pickles of features in their order."""
    folder, lists = trained[0], tmp_path_factory.mktemp("authors")
    dataset = load_dataset(DataConfig("pairs", source1=str(folder / "coarse"), source2=str(folder / "fine")))
    generator = np.random.default_rng(1)
    order = {"train": generator.permutation(dataset.train), "test": generator.permutation(dataset.query)}
    order["database"] = generator.permutation(order["train"])
    for part, rows in order.items():
        lines = [f"/home/author/data/images/{dataset.names[row]}.jpg "
                 + " ".join(str(int(label == dataset.labels[row])) for label in (2, 0, 1)) for row in rows]
        (lists / f"{part}.txt").write_text("\n".join(lines) + "\n")
    module = script_module("train.py")
    settings = {"feature_backbone": "resnet18", "image_size": 32, "amp": False}
    arrays, _ = module.dataset_features(dataset, settings, "none", torch.device("cpu"), 16, 1, "none")
    rows = np.concatenate([order["train"], order["test"]])
    labels = np.array([1, 2, 0])[dataset.labels[rows]]  # the number of the column
    for number, values in enumerate(arrays, 1):
        content = {"data": np.asarray(values)[rows].astype(np.float64), "labels": labels}
        (lists / f"source{number}.pkl").write_bytes(pickle.dumps(content))
    return folder, lists


def test_feature_files_lead_to_the_same_autoencoder_as_the_images(authors, tmp_path, capsys):
    folder, lists = authors
    flags = [*stage1_flags(folder), "--split_dir", lists]
    files = ["--features1", lists / "source1.pkl", "--features2", lists / "source2.pkl"]
    # With both files no backbone is needed: its weights may be nowhere.
    for name, more in (("images", []), ("files", [*files, "--feature_weights", "nowhere.pth"]),
                       ("second", [*files[2:], "--source2", "none"])):
        code, out, error = call(capsys, "myautoencoder/autoencoder.py", *flags, *more, "--output_dir", tmp_path / name)
        assert code == 0, error
        assert ("features of source 2: 42 x 512" in out) == (name != "images")
    results = {name: torch.load(tmp_path / name / "autoencoder.pth", weights_only=True)
               for name in ("images", "files", "second")}
    for name in ("files", "second"):
        assert results[name]["network"] == results["images"]["network"]  # a dual encoder
        for key, value in results["images"]["model"].items():
            torch.testing.assert_close(results[name]["model"][key], value, rtol=0, atol=0)

    # train.py takes the same files, or the same content in a new place, and no other
    stage2 = [*stage2_flags(tmp_path / "files" / "autoencoder.pth"), *QUICK, "--max_epoch", 0]
    assert call(capsys, "train.py", *stage2, "--output_dir", tmp_path / "mr")[0] == 0
    moved = tmp_path / "moved.npz"
    np.savez(moved, **pickle.loads((lists / "source1.pkl").read_bytes()))
    assert call(capsys, "train.py", *stage2, "--features1", moved, "--output_dir", tmp_path / "mr2")[0] == 0
    assert (tmp_path / "mr2" / "mrhash.pth").read_bytes() == (tmp_path / "mr" / "mrhash.pth").read_bytes()
    code, _, error = call(capsys, "train.py", *stage2, "--features1", lists / "source2.pkl", "--output_dir",
                          tmp_path / "mr3")
    assert code == 2 and "not the content that the autoencoder was trained on" in error
    stage2 = stage2_flags(tmp_path / "images" / "autoencoder.pth")
    code, _, error = call(capsys, "train.py", *stage2, "--features1", moved, "--output_dir", tmp_path / "mr4")
    assert code == 2 and "has no file of features for source 1" in error


def test_a_resumed_run_insists_on_its_features_but_not_on_their_place(authors, tmp_path, capsys):
    folder, lists = authors
    content = {number: pickle.loads((lists / f"source{number}.pkl").read_bytes()) for number in (1, 2)}
    for number in (1, 2):
        np.savez(tmp_path / f"{number}.npz", **content[number])
    stage1 = [*stage1_flags(folder), "--split_dir", lists]
    flags = [*stage1, "--features1", tmp_path / "1.npz", "--output_dir", tmp_path / "ae"]
    assert call(capsys, "myautoencoder/autoencoder.py", *flags, "--features2", tmp_path / "2.npz", "--epoch", 2)[0] == 0
    before = (tmp_path / "ae" / "autoencoder.pth").read_bytes()

    # the same settings in other words are no difference; another content is
    more = [*flags, "--features2", tmp_path / "2.npz", "--resume"]
    words = ["--preset", "published", "--encoder", "dual", "--init", "he", "--select", "loss"]
    assert call(capsys, "myautoencoder/autoencoder.py", *more, "--epoch", 2, *words)[0] == 0
    np.savez(tmp_path / "2.npz", data=content[2]["data"] + 1, labels=content[2]["labels"])
    code, _, error = call(capsys, "myautoencoder/autoencoder.py", *more, "--epoch", 4)
    assert code == 2 and "the weights or feature files are not those that it began with" in error
    np.savez(tmp_path / "2.npz", **content[2])

    # --overwrite beside a bad flag loses nothing
    code, _, error = call(capsys, "myautoencoder/autoencoder.py", *flags, "--features2", "no.npz", "--overwrite")
    assert code == 2 and "no features at" in error
    assert (tmp_path / "ae" / "autoencoder.pth").read_bytes() == before and (tmp_path / "ae" / "last.pth").exists()

    # stage 2: files that moved, in a run that is resumed; one source from images, one from a file
    stage2 = [*stage2_flags(tmp_path / "ae" / "autoencoder.pth"), *QUICK, "--output_dir", tmp_path / "mr"]
    assert call(capsys, "train.py", *stage2, "--max_epoch", 0)[0] == 0
    (tmp_path / "2.npz").rename(tmp_path / "moved.npz")
    code, _, error = call(capsys, "train.py", *stage2, "--resume")
    assert code == 2 and "which are not there now: name their new place with --features2" in error
    code, out, error = call(capsys, "train.py", *stage2, "--resume", "--features2", tmp_path / "moved.npz", "--preset",
                            "published", "--batch_norm", "auto")
    assert code == 0 and "resuming" in out, error

    mixed = [*stage1, "--source2", "none", "--epoch", 1, "--output_dir", tmp_path / "mixed"]
    assert call(capsys, "myautoencoder/autoencoder.py", *mixed, "--features2", tmp_path / "moved.npz")[0] == 0
    code, _, error = call(capsys, "train.py", *stage2_flags(tmp_path / "mixed" / "autoencoder.pth"), "--features2",
                          tmp_path / "1.npz", "--output_dir", tmp_path / "mr2")
    assert code == 2 and "not the content that the autoencoder was trained on" in error
    code, _, error = call(capsys, "train.py", *stage2_flags(tmp_path / "mixed" / "autoencoder.pth"), "--features1",
                          tmp_path / "1.npz", "--output_dir", tmp_path / "mr2")
    assert code == 2 and "has no file of features for source 1" in error


def test_feature_files_need_the_lists_whose_order_they_have(authors, tmp_path, capsys):
    folder, lists = authors
    flags = [*stage1_flags(folder), "--features1", lists / "source1.pkl", "--output_dir", tmp_path / "ae"]
    code, _, error = call(capsys, "myautoencoder/autoencoder.py", *flags)
    assert code == 2 and "--split_dir" in error
    code, _, error = call(capsys, "myautoencoder/autoencoder.py", *flags, "--split_dir", lists, "--max_per_class", 3)
    assert code == 2 and "leave out --max_per_class" in error


def test_the_similarity_matrix_comes_with_the_codes_of_its_rows_and_columns(trained, tmp_path, capsys):
    model = ["--pretrain_path", trained[0] / "mr" / "mrhash.pth", "--gen_similarity_matrix", 1, *SMALL]
    assert call(capsys, "test.py", *model, "--output_dir", tmp_path)[0] == 0
    similarity = np.load(tmp_path / "similarity.npy", allow_pickle=False)
    with np.load(tmp_path / "codes.npz", allow_pickle=False) as codes:
        shape = len(codes["database_codes"]), len(codes["query_codes"])
        assert similarity.shape == shape == (len(codes["database_labels"]), len(codes["query_labels"])) == (39, 3)
    flags = ["--output_dir", tmp_path / "b", "--save_codes", tmp_path / "mine.npz"]
    assert call(capsys, "test.py", *model, *flags)[0] == 0
    assert (tmp_path / "mine.npz").exists() and not (tmp_path / "b" / "codes.npz").exists()
    flags = ["--codes", trained[0] / "codes.npz", "--gen_similarity_matrix", 1, "--output_dir", tmp_path / "c"]
    assert call(capsys, "test.py", *flags)[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "c" / "similarity.npy"), similarity)
    assert not (tmp_path / "c" / "codes.npz").exists()  # they are there already


@pytest.mark.parametrize("name", FILES)
def test_the_documented_settings_are_those_of_the_preset(name):
    lines = (ROOT / "docs" / "reproduction.md").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| stage") and f"`{name}`" in line)
    rows = {}
    for line in lines[start + 2:]:
        if not line.startswith("|"):
            break
        flag, published, *_ = (cell.strip() for cell in line.strip("|").split("|"))
        rows[flag.strip("`").removeprefix("--")] = published
    for key, value in options.PRESETS["published"][name].items():
        assert rows.pop(key) == str(value)
    assert set(rows) <= {"R"}


# ------------------------------------------------------------------------ the table of effects


def test_every_variant_of_the_effects_is_a_setting_that_the_scripts_know():
    effects = script_module("scripts/effects.py")
    parse = {name: script_module(FILES[name]).parse_arguments for name in ("autoencoder.py", "train.py")}
    for row, variants in effects.ROWS.items():
        (default, (first, second)), *others = variants.items()
        assert not first and not second, f"{row}: {default} is to be the default"
        for variant, (first, second) in others:
            changed = [vars(parse["autoencoder.py"]([str(flag) for flag in first])),
                       vars(parse["train.py"]([*NEEDED["train.py"], *map(str, second)]))]
            ours = [vars(parse["autoencoder.py"]([])), vars(parse["train.py"](NEEDED["train.py"]))]
            assert changed != ours, f"{row}: {variant} changes nothing"


@pytest.fixture
def table(trained, tmp_path, capsys, monkeypatch):
    """effects.py with cells that are invented: `table("kl", ...)` gives its output, its error and its CSV."""
    effects = script_module("scripts/effects.py")
    made = {"pretrained": [], "cells": [], "unlucky": lambda flags, seed: False, "encoder": "dual"}

    def pretrain(args, cell, seed, flags):
        made["pretrained"].append((cell.name, seed, *flags))
        cell.mkdir(parents=True, exist_ok=True)
        torch.save({"format": "mrhash-autoencoder-1", "network": {
            "encoder": made["encoder"], "feature_dims": [1], "latent_dim": 1}, "data": DataConfig().as_dict(),
            "fingerprint": "f", "model": {}, "features": {
                "feature_backbone": "b", "feature_weights": "w", "content": "c", "image_size": 32, "amp": False}},
            cell / "autoencoder.pth")
        return cell / "autoencoder.pth"

    def train_and_test(args, cell, path, bits, seed, flags):
        made["cells"].append((cell.name, path.parent.name, *flags))
        if made["unlucky"](flags, seed):
            raise RuntimeError("exit 2: error: out of luck")
        cell.mkdir(parents=True, exist_ok=True)
        (cell / "codes.npz").write_bytes((trained[0] / "codes.npz").read_bytes())
        gain = {"batchmean": 0.02 * (seed - 13), "once": -0.1}
        return {"bits": bits, "seed": seed, "map": 0.5 + 0.01 * seed + sum(gain.get(flag, 0) for flag in flags),
                "latent_map": 0.6, "R": 13, "image_size": 64, "epochs": 1, "batch_size": 32}

    monkeypatch.setattr(effects, "pretrain", pretrain)
    monkeypatch.setattr(effects, "train_and_test", train_and_test)

    def call_it(*flags):
        monkeypatch.setattr("sys.argv", ["effects.py", "--data_name", "demo", "--output_dir", str(tmp_path), *flags])
        code = run(effects.main)
        captured = capsys.readouterr()
        with open(tmp_path / "demo" / "effects.csv", newline="") as file:
            return code, captured.out, captured.err, list(csv.DictReader(file))

    call_it.made = made
    return call_it


def test_the_effects_are_compared_seed_by_seed(table):
    code, out, _, records = table("--rows", "kl", "targets", "encoder", "kl")
    assert code == 0
    assert "| kl | mean | 0.640 (0.020) |  |" in out
    assert "| kl | batchmean | 0.660 (0.060), +2.0 [+0.0 +2.0 +4.0] |  |" in out
    same = "+0.0 [+0.0 +0.0 +0.0] |"
    assert f"| encoder | unisource | 0.640 (0.020), {same} 0.600 (0.000), {same}" in out
    # what rows share is made once, and each autoencoder leads to its own cells
    pretrained, cells = table.made["pretrained"], table.made["cells"]
    assert len(pretrained) == len(set(pretrained)) == 9
    assert len(cells) == len(set(cells)) == 15
    assert ("autoencoder-source2-none-14", 14, "--source2", "none") in pretrained
    assert {path for name, path, *_ in cells if name.startswith("source2-none--")} == {
        f"autoencoder-source2-none-{seed}" for seed in (13, 14, 15)}
    assert len(records) == 6 + 6 + 9


def test_rows_made_before_stay_in_the_table_of_effects(table, trained):
    assert len(table("--rows", "kl", "targets")[3]) == 12
    assert len(table("--rows", "targets", "--hash_bit", "64")[3]) == 18
    _, out, _, records = table("--rows", "ties", "targets", "--seeds", "14")
    assert len(records) == 18 + 4 and "| targets | epoch | 0.640 (0.000) |" in out
    results = json.loads((trained[0] / "mr" / "results.json").read_text())
    for ties, key in (("expected", "map"), ("min", "map_min"), ("max", "map_max")):
        assert [float(record["map"]) for record in records if (record["row"], record["variant"]) == ("ties", ties)
                ] == pytest.approx([results[key]], abs=1e-6)


def test_a_failed_cell_is_told_and_compared_with_nothing(table):
    table.made["unlucky"] = lambda flags, seed: "once" in flags and seed == 15
    code, out, error, records = table("--rows", "targets")
    assert code == 2 and "1 of the cells failed" in error and "out of luck" in error and "seed 15" in error
    assert "| targets | once | 0.535 (0.010) of 2 seeds, -10.0 [-10.0 -10.0] |" in out
    assert len(records) == 5
    table.made["unlucky"] = lambda flags, seed: "once" not in flags
    out = table("--rows", "targets", "--hash_bit", "16")[1]
    assert "| targets | once | 0.540 (0.020) |" in out and "epoch" not in out


def test_encoders_are_not_compared_without_a_second_source(table):
    table.made["encoder"] = "unisource"
    code, out, error, records = table("--rows", "encoder", "kl")
    assert code == 2 and "no second source" in error and "| encoder" not in out and len(records) == 6


def test_a_finished_cell_of_other_settings_is_not_taken_for_this_one(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "alexnet", "amp": False, "split_dir": None}))
    cells.check_settings(tmp_path, {"model_type": "alexnet", "amp": False, "split_dir": None})
    with pytest.raises(InputError, match="was made with model_type alexnet, not resnet18; amp False, not True"):
        cells.check_settings(tmp_path, {"model_type": "resnet18", "amp": True})


def test_the_table_of_pseudo_labels_measures_what_it_says(trained, tmp_path, capsys):
    path = trained[0] / "ae" / "autoencoder.pth"
    code, out, error = call(capsys, "scripts/pseudo_labels.py", path, "--n_clusters", 2, 5, "--cache_dir", "none")
    assert code == 0, error
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines()
            if line.startswith("| ae")]
    assert [row[1] for row in rows] == ["2", "5"]
    latent_map = torch.load(path, weights_only=True)["latent_map"]
    for _, clusters, latents, assignments, q, p in rows:
        assert latents == f"{latent_map:.3f}"
        assert 0 < float(assignments) <= 1
        assert 1 <= float(p) < float(q) <= float(clusters)  # targets are sharper than what they are made of
    module = script_module("scripts/pseudo_labels.py")
    # the line of 5 clusters again, from the features on, in plain numpy
    stage1 = torch.load(path, weights_only=True)
    dataset = load_dataset(DataConfig(**stage1["data"]))
    arrays, _ = module.dataset_features(dataset, stage1["features"], "none", torch.device("cpu"), 128, 1, "none")
    latent = rebuild_autoencoder(stage1, path).encode_all([torch.from_numpy(x) for x in arrays]).numpy()
    centres = loss.cluster_centres(latent[dataset.train], 5, 20, 13)
    kernel = 1 / (1 + np.square(latent[:, None].astype(float) - centres).sum(axis=2))
    q = kernel / kernel.sum(axis=1, keepdims=True)
    distances = np.square(q[dataset.query][:, None] - q[dataset.database]).sum(axis=2)
    order = np.argsort(distances, axis=1)[:, :13]
    hits = dataset.labels[dataset.database][order] == dataset.labels[dataset.query][:, None]
    precision = hits.cumsum(axis=1) / np.arange(1, 14)
    expected = ((precision * hits).sum(axis=1) / np.maximum(hits.sum(axis=1), 1)).mean()
    assert float(rows[1][3]) == pytest.approx(expected, abs=2e-3)
    entropy = -(q[dataset.train] * np.log(q[dataset.train])).sum(axis=1).mean()
    assert float(rows[1][4]) == pytest.approx(np.exp(entropy), abs=0.06)
    assert module.spread(torch.tensor([[0.5, 0.5, 0], [0.5, 0, 0.5]])) == pytest.approx(2)
    assert module.spread(torch.eye(3)) == pytest.approx(1)
