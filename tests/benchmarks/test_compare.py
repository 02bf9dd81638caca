"""The table: baselines held to what is known of them, cells that are made once, failures that stay alone."""

import csv
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.linalg
import torch

import hamming
from benchmarks import baselines, cells
from engine.cli import ArgumentParser, run
from helpers import ROOT, call, script_module
from utils import InputError


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(300, 20, generator=generator, dtype=torch.float64) * torch.linspace(5, 0.5, 20) + 3


# ------------------------------------------------------------------------ baselines


def test_pcah_projects_on_scipys_principal_directions(features):
    centred = (features - features.mean(dim=0)).numpy()
    directions = scipy.linalg.svd(centred, full_matrices=False)[2][:7].T
    expected = np.abs(centred @ directions)
    np.testing.assert_allclose(np.abs(baselines.pcah(features, 7, 0)(features).numpy()), expected, rtol=1e-8, atol=1e-8)


def test_the_rotation_of_itq_is_orthogonal_and_its_error_never_rises(features):
    projected = baselines.pcah(features, 12, 0)(features)
    rotation, errors = baselines.itq_rotation(projected, seed=3)
    torch.testing.assert_close(rotation.T @ rotation, torch.eye(12, dtype=torch.float64))
    assert len(errors) == 50 and errors[-1] < errors[0]
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(errors))
    # The codes that itq gives are those of this rotation.
    torch.testing.assert_close(baselines.itq(features, 12, 3)(features), projected @ rotation)


def test_itq_finds_the_rotation_of_a_hidden_cube():
    generator = np.random.default_rng(0)
    cube = generator.choice([-1.0, 1.0], size=(500, 6))
    turned, _ = np.linalg.qr(generator.standard_normal((6, 6)))
    errors = [baselines.itq_rotation(torch.from_numpy(cube @ turned), seed)[1][-1] for seed in range(10)]
    assert min(errors) < 1e-9  # from some of the starts: it is a local search
    assert errors[0] < np.square(np.sign(cube @ turned) - cube @ turned).sum()


def test_lsh_bits_differ_as_often_as_the_angle_says():
    """Charikar: the probability is angle / pi."""
    train = torch.cat([torch.eye(3, dtype=torch.float64), -torch.eye(3, dtype=torch.float64)])  # mean 0
    points = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [-1, 0, 0]], dtype=torch.float64)
    bits = baselines.lsh(train, 4000, 5)(points) >= 0
    shares = [(bits[0] != bits[other]).double().mean().item() for other in (1, 2, 3)]
    assert shares == pytest.approx([0.25, 0.5, 1], abs=0.03)
    assert not torch.equal(baselines.lsh(train, 8, 5)(points), baselines.lsh(train, 8, 6)(points))


def test_spectral_hashing_takes_the_slowest_waves_of_the_box():
    """A box of sides 4 and 1.9: half waves of frequency 1/4, 2/4 along the first, then 1/1.9 along the second."""
    grid = torch.cartesian_prod(torch.linspace(0, 4, 41, dtype=torch.float64), torch.linspace(0, 1.9, 20,
                                                                                              dtype=torch.float64))
    encode = baselines.spectral(grid, 2, 0)
    values = encode(grid)
    x = grid[:, 0] / 4
    for column, wave in ((0, 1), (1, 2)):
        expected = torch.cos(torch.pi * wave * x)
        sign = 1 if torch.allclose(values[:, column], expected) else (-1) ** wave  # a component's sign is free
        torch.testing.assert_close(values[:, column], sign * expected, atol=1e-9, rtol=0)
    shorter = grid * torch.tensor([1.0, 3.9 / 1.9])  # sides 4 and 3.9: now the second side comes second
    values = baselines.spectral(shorter, 2, 0)(shorter)
    torch.testing.assert_close(values[:, 1].abs(), torch.cos(torch.pi * grid[:, 1] / 1.9).abs(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["pcah", "sh", "itq"])
def test_more_bits_than_directions_are_refused(features, name):
    with pytest.raises(InputError, match="at most 20 bits"):
        baselines.BASELINES[name](features, 21, 0)
    with pytest.raises(InputError, match="at most 9 bits"):
        baselines.BASELINES[name](features[:10], 10, 0)


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_the_mean_of_the_training_features_does_not_matter(features, name):
    encode, moved = (baselines.BASELINES[name](x[:200], 10, 1) for x in (features, features + 1000))
    torch.testing.assert_close(moved(features + 1000), encode(features), rtol=1e-5, atol=1e-6)


def test_a_feature_that_does_not_vary_makes_no_bit_of_spectral_hashing():
    x = torch.zeros(50, 3, dtype=torch.float64)
    x[:, 1] = torch.linspace(-1, 1, 50)
    values = baselines.spectral(x, 3, 0)(x)
    assert torch.isfinite(values).all() and (values.std(dim=0) > 0.3).all()


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_codes_of_new_images_do_not_depend_on_which_others_come_with_them(features, name):
    encode = baselines.BASELINES[name](features[:200], 10, 1)
    torch.testing.assert_close(encode(features)[200:203], encode(features[200:203]))
    values = encode(features[200:])
    assert values.shape == (100, 10) and 0.2 < (values >= 0).double().mean() < 0.8


# ------------------------------------------------------------------------ the table, with invented cells


@pytest.fixture
def table(trained, tmp_path, capsys, monkeypatch):
    """compare.py whose trained cells are invented: `table("--methods", ...)` gives exit code, output, error, rows."""
    compare = script_module("compare.py")
    made = {"pretrained": [], "cells": [], "unlucky": lambda name, bits, seed: False, "pair": ["--source2",
                                                                                           trained[0] / "fine"]}

    def pretrain(args, cell, seed, flags, fingerprint):
        made["pretrained"].append(cell.name)
        if made["unlucky"](cell.name, None, seed):
            raise RuntimeError("exit 2: no luck")
        return cell

    def train_and_test(args, cell, pretrained, bits, seed, flags, sized):
        made["cells"].append(cell.name)
        if made["unlucky"](cell.name, bits, seed):
            raise RuntimeError("exit 2: no luck")
        value = 0.5 + bits / 1000 + 0.01 * (seed - 13) + 0.1 * ("best" in cell.name)
        return {"bits": bits, "seed": seed, "map": value, "map_min": 0.1, "map_max": 0.9, "chance": 0.3, "R": 13,
                "latent_map": 0.6, "train_seconds": 1}

    monkeypatch.setattr(compare, "pretrain", pretrain)
    monkeypatch.setattr(compare, "train_and_test", train_and_test)

    def call_table(*flags):
        made["pretrained"].clear()
        made["cells"].clear()
        words = ["compare.py", "--data_name", "pairs", "--source1", trained[0] / "coarse", *made["pair"], "--backbone",
                 "squeezenet1_1", "--weights", "none", "--cache_dir", tmp_path / "cache", "--output_dir", tmp_path,
                 "--max_epoch", 0, "--image_size", 64, *flags]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        try:
            code = run(compare.main)
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        path = tmp_path / "pairs" / "compare.csv"
        rows = list(csv.DictReader(path.open(newline=""))) if path.exists() else []
        return code, captured.out, captured.err, rows

    call_table.made, call_table.folder = made, tmp_path / "pairs"
    return call_table


def test_every_method_lengths_and_seeds_are_in_the_table(table):
    code, out, error, rows = table("--hash_bit", 16, 8, "--ablation_bit", 8, "--seeds", 2, "--methods", "mrhash",
                                   "mrhash-single", "best", "lsh", "float")
    assert code == 0, error
    cells = {(row["method"], row["bits"], row["seed"]) for row in rows}
    assert cells == {*((name, bits, seed) for name in ("mrhash", "best", "lsh") for bits in ("8", "16")
                       for seed in ("13", "14")),
                     *((name, bits, seed) for name, bits in (("mrhash-single", "8"), ("float", ""))
                       for seed in ("13", "14"))}
    # A pretraining that two methods share is made once.
    assert sorted(table.made["pretrained"]) == [f"autoencoder-{name}-{seed}" for name in ("default", "preset-best")
                                                for seed in (13, 14)]
    assert "default--pseudo_labels-single-64px-0-128-8bit-13" in table.made["cells"]
    assert "preset-best--preset-best-16bit-14" in table.made["cells"]  # the preset brings its size
    assert "| MrHash | 0.600 (0.000) | 0.513 (0.010) | 0.521 (0.010) |" in out
    assert "| MrHash, single pseudo labels | 0.600 (0.000) | 0.513 (0.010) |  |" in out
    assert "[20/20]" in out
    written = (table.folder / "compare.md").read_text()
    assert written in out and "mAP@13" in written and "2 seeds" in written
    content = json.loads((table.folder / "compare.json").read_text())
    assert len(content["cells"]) == 16 and content["settings"]["seeds"] == 2
    for name in ("map_by_bits.png", "precision_recall.png"):
        assert (table.folder / name).stat().st_size > 5000
    curve = list(csv.DictReader((table.folder / "precision_recall.csv").open(newline="")))
    assert {row["method"] for row in curve} == {"LSH"} and float(curve[-1]["recall"]) == 1


def test_a_failed_cell_leaves_the_others_and_a_failed_autoencoder_its_own(table):
    table.made["unlucky"] = lambda name, bits, seed: (bits, seed) == (8, 14) or name == "autoencoder-preset-best-13"
    flags = ["--hash_bit", 8, 16, "--ablation_bit", 8, "--seeds", 2, "--methods", "mrhash", "best", "itq"]
    code, out, error, rows = table(*flags)
    assert code == 2 and "Traceback" not in error
    assert "5 of the cells failed" in error and "no luck" in error and "its autoencoder failed" in error
    assert "| MrHash | 0.600 (0.000) | 0.508, 1 of 2 seeds | 0.521 (0.010) |" in out
    assert len([row for row in rows if row["method"] == "itq"]) == 4
    table.made["unlucky"] = lambda name, bits, seed: False
    code, _, error, rows = table(*flags)
    assert code == 0 and len(rows) == 12, error


def test_without_a_second_source_what_needs_one_is_left_out(table):
    table.made["pair"] = []
    code, out, error, rows = table("--hash_bit", 8, "--seeds", 1, "--methods", "float-both", "mrhash", "mrhash-none",
                                   "mrhash-unisource", "best-none", "best-unisource")
    assert code == 0, error
    assert ("left out, there is no second source: float-both, mrhash-none, mrhash-unisource, best-none, "
            "best-unisource") in out
    assert {row["method"] for row in rows} == {"mrhash"} and "one seed" in out


def test_baselines_are_measured_as_test_py_measures(table, capsys):
    code, _, error, rows = table("--hash_bit", 8, "--seeds", 1, "--methods", "itq", "sh", "pcah", "float")
    assert code == 0, error
    for row in rows[1:]:
        found = table.folder / f"{row['method']}-8bit-13"
        code, _, error = call(capsys, "test.py", "--codes", found / "codes.npz", "--output_dir", found / "again")
        assert code == 0, error
        results = json.loads((found / "again" / "results.json").read_text())
        assert results["map"] == pytest.approx(float(row["map"]), abs=1e-6)
        assert results["map_chance"] == pytest.approx(float(row["chance"]), abs=1e-6)
    # The level line: centred by the training features, ranked by cosine.
    features = np.load(next((table.folder.parent / "cache" / "features").glob("*.npy"))).astype(np.float64)
    from data_loader import DataConfig, load_dataset
    words = json.loads((table.folder / "compare.json").read_text())["settings"]
    dataset = load_dataset(DataConfig("pairs", "data", words["source1"], words["source2"], None, None, 13))
    unit = features - features[dataset.train].mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    order = np.argsort(-(unit[dataset.query] @ unit[dataset.database].T), axis=1)[:, :13]
    hits = dataset.labels[dataset.database][order] == dataset.labels[dataset.query][:, None]
    ap = (hits.cumsum(axis=1) / np.arange(1, 14) * hits).sum(axis=1) / np.maximum(hits.sum(axis=1), 1)
    assert float(rows[0]["map"]) == pytest.approx(ap.mean(), abs=2e-6)
    assert rows[0]["method"] == "float" and rows[0]["chance"] == rows[1]["chance"]
    # Both sources: the mean of their cosines.
    code, _, error, both = table("--hash_bit", 8, "--seeds", 1, "--methods", "float-both")
    assert code == 0, error
    files = (table.folder.parent / "cache" / "features").glob("*.npy")
    cosines = np.zeros((len(dataset.query), len(dataset.database)))
    for features in map(np.load, files):
        unit = features - features[dataset.train].mean(axis=0)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        cosines += unit[dataset.query] @ unit[dataset.database].T
    order = np.argsort(-cosines, axis=1)[:, :13]
    hits = dataset.labels[dataset.database][order] == dataset.labels[dataset.query][:, None]
    ap = (hits.cumsum(axis=1) / np.arange(1, 14) * hits).sum(axis=1) / np.maximum(hits.sum(axis=1), 1)
    assert float(both[0]["map"]) == pytest.approx(ap.mean(), abs=1e-5)
    made = (table.folder / "itq-8bit-13" / "codes.npz").stat().st_mtime_ns
    assert table("--hash_bit", 8, "--seeds", 1, "--methods", "itq")[0] == 0
    assert (table.folder / "itq-8bit-13" / "codes.npz").stat().st_mtime_ns == made
    # Other weights are another table, and so are other images.
    code, _, error, _ = table("--hash_bit", 8, "--seeds", 1, "--methods", "itq", "--backbone", "resnet18")
    assert code == 2 and "was made with backbone squeezenet1_1, not resnet18: choose another --output_dir" in error
    table.made["pair"] = ["--source1", words["source2"], "--source2", words["source1"]]
    code, _, error, _ = table("--hash_bit", 8, "--seeds", 1, "--methods", "itq")
    assert code == 2 and "itq-8bit-13 was made with source1" in error
    # A damaged cell is named; codes that are gone cost their curve alone.
    table.made["pair"] = ["--source2", words["source2"]]
    (table.folder / "sh-8bit-13" / "results.json").write_text("[]")
    (table.folder / "itq-8bit-13" / "codes.npz").write_bytes(b"PK")
    (table.folder / "pcah-8bit-13" / "codes.npz").unlink()
    code, _, error, rows = table("--hash_bit", 8, "--seeds", 1, "--methods", "itq", "sh", "pcah", "lsh")
    assert code == 2 and error.count("no curve of") == 2 and "Traceback" not in error
    assert "sh-8bit-13/results.json is damaged (no object): remove its folder" in error
    assert [row["method"] for row in rows] == ["lsh", "pcah", "itq"]


def test_baselines_learn_from_the_training_images_alone(table, monkeypatch):
    seen = []

    def itq(train, bits, seed):
        seen.append(train)
        return baselines.lsh(train, bits, seed)

    monkeypatch.setitem(baselines.BASELINES, "itq", itq)
    assert table("--hash_bit", 8, "--seeds", 1, "--methods", "itq")[0] == 0
    features = np.load(next((table.folder.parent / "cache" / "features").glob("*.npy")))
    assert seen[0].shape == (39, features.shape[1])
    rows = {row.tobytes() for row in features}
    assert {row.tobytes() for row in seen[0].float().numpy()} < rows


def test_an_ablation_without_a_length_is_not_prepared(table):
    code, _, error, _ = table("--hash_bit", 8, "--ablation_bit", "--seeds", 1, "--methods", "mrhash", "best-no-norm")
    assert code == 0, error
    assert table.made["pretrained"] == ["autoencoder-default-13"]


def test_recall_and_precision_of_a_ranking_with_classes_of_unlike_size():
    from hamming.figures import curve_of
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 256, (40, 1), dtype=np.uint8), generator.integers(0, 256, (6, 1), dtype=np.uint8)
    labels = np.repeat([0, 1], [30, 10]), np.array([0, 1, 0, 1, 1, 0])
    recall, precision = curve_of(hamming.distance_histograms(codes[1], codes[0], labels[1], labels[0], hash_bit=8))
    assert recall[-1] == pytest.approx(1) and precision[-1] == pytest.approx((0.75 + 0.25) / 2)
    nearest = []
    for code, label in zip(codes[1], labels[1], strict=True):
        distance = np.unpackbits(codes[0] ^ code, axis=1).sum(axis=1)
        tied = labels[0][distance == distance.min()] == label
        nearest.append((tied.mean(), tied.mean() / (labels[0] == label).sum()))
    assert (precision[0], recall[0]) == pytest.approx(tuple(np.mean(nearest, axis=0)))


@pytest.mark.parametrize(("flags", "message"), [
    (["--hash_bit", 1025], "1025 is more than 1024"), (["--methods", "magic"], "invalid choice: 'magic'"),
    (["--max_epoch", -1], "-1 is not a whole number >= 0"), (["--curve_bit", 5], "5 is not among --hash_bit"),
    (["--seeds", 0], "argument --seeds: 0"),
    (["--data_name", "UCMerced", "--data_dir", "nowhere"], "nowhere")])
def test_bad_flags_end_before_any_work(table, flags, message):
    code, _, error, _ = table(*flags)
    assert code == 2 and message in error and "Traceback" not in error and not table.made["pretrained"]


def test_the_time_left_is_told_from_cells_of_the_same_kind(capsys, monkeypatch, tmp_path):
    compare = script_module("compare.py")
    clock = iter([0, 10, 10, 40, 40, 40])
    monkeypatch.setattr(compare.time, "monotonic", lambda: next(clock))
    progress = compare.Progress(jobs=2)
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "results.json").touch()
    cells = [("quick", "new", "a", {"map": 0.5}), ("slow", "new", "b", {"map": 0.25}),
             ("read", "done", "c", {"map": 0.1, "train_seconds": 400}), ("slow", "new", "d", {}),
             ("read", "new", "e", {}), ("quick", "new", "f", {})]
    works = [progress.watch(kind, tmp_path / folder, name, lambda value=value: value)[1]
             for kind, folder, name, value in cells]
    for work in works[:3]:
        work()
    # To come: one quick (10 s), one slow (30 s), one of the kind that says that it took 400 s; two at a time.
    assert capsys.readouterr().out.splitlines() == [
        "[1/6] a: mAP 0.500, 10 s; about 5 s left, and read, slow, of which none is timed yet",
        "[2/6] b: mAP 0.250, 30 s; about 20 s left, and read, of which none is timed yet",
        "[3/6] c: mAP 0.100, 0 s; about 4 minutes left"]


def test_images_without_labels_cannot_be_compared(tmp_path, capsys):
    from PIL import Image
    for number in range(30):
        (tmp_path / "flat").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "flat" / f"{number}.png")
    code, _, error = call(capsys, "compare.py", "--data_name", "pairs", "--source1", tmp_path / "flat", "--output_dir",
                          tmp_path)
    assert code == 2 and "no labels, so there is nothing to compare" in error


# ------------------------------------------------------------------------ cells


@pytest.fixture
def cell(trained, tmp_path, monkeypatch):
    """Flags of a table, a finished autoencoder and a finished cell of it; `commands` that would be run."""
    commands = []
    monkeypatch.setattr(cells, "run_script", lambda log, jobs, *command: commands.append(list(map(str, command))))
    parser = ArgumentParser(prog="table")
    cells.add_cell_flags(parser, "runs")
    args = parser.parse_args([str(word) for word in (
        "--data_name", "pairs", "--source1", trained[0] / "coarse", "--source2", trained[0] / "fine", "--backbone",
        "resnet18", "--weights", "none", "--image_size", 32, "--max_epoch", 2, "--batch_size", 16)])
    for name in ("ae", "mr"):
        shutil.copytree(trained[0] / name, tmp_path / name)
    # What the fixture's scripts were given and a table would not give.
    cell_flags = {"ae": ["--image_size", 32, "--epoch", 6, "--batch_size", 16],
                  "mr": ["--multi_lr", 1, "--n_clusters", 4]}
    return args, tmp_path, cell_flags, commands


def test_a_finished_cell_is_read(cell):
    args, folder, flags, commands = cell
    path = cells.pretrain(args, folder / "ae", 13, flags["ae"])
    record = cells.train_and_test(args, folder / "mr", path, 12, 13, flags["mr"])
    assert not commands and record["bits"] == 12
    assert record["map"] == json.loads((folder / "mr" / "results.json").read_text())["map"]


@pytest.mark.parametrize(("name", "value", "says"), [
    ("source1", "elsewhere", "source1"), ("backbone", "resnet34", "feature_backbone"),
    ("weights", "w.pth", "feature_weights"), ("max_per_class", 5, "max_per_class"),
    ("split_dir", "lists", "split_dir")])
def test_an_autoencoder_of_other_settings_is_not_read(cell, name, value, says):
    args, folder, flags, _ = cell
    setattr(args, name, value)
    with pytest.raises(InputError, match=f"was made with .*{says}.*choose another --output_dir"):
        cells.pretrain(args, folder / "ae", 13, flags["ae"])


@pytest.mark.parametrize(("name", "value"), [
    ("backbone", "resnet34"), ("weights", "w.pth"), ("image_size", 64), ("max_epoch", 3), ("batch_size", 8),
    ("amp", True)])
def test_a_cell_of_other_settings_is_not_read(cell, name, value):
    args, folder, flags, _ = cell
    setattr(args, name, value)
    with pytest.raises(InputError, match="was made with"):
        cells.train_and_test(args, folder / "mr", folder / "ae" / "autoencoder.pth", 12, 13, flags["mr"])


def test_a_cell_of_another_preset_seed_or_split_is_not_read(cell):
    args, folder, flags, _ = cell
    path = folder / "ae" / "autoencoder.pth"
    for bits, seed, more, says in ((12, 14, [], "seed 13, not 14"), (16, 13, [], "hash_bit 12, not 16"),
                                   (12, 13, ["--preset", "best"], "label_spread 0.0, not 0.2"),
                                   (12, 13, ["--alpha", 3], "alpha 1.0, not 3.0")):
        with pytest.raises(InputError, match=re.escape(says)):
            cells.train_and_test(args, folder / "mr", path, bits, seed, [*flags["mr"], *more])
    with pytest.raises(InputError, match="neighbours 0, not 10"):
        cells.pretrain(args, folder / "ae", 13, [*flags["ae"], "--preset", "best"])
    with pytest.raises(InputError, match=r"fingerprint .* not other"):
        cells.pretrain(args, folder / "ae", 13, flags["ae"], fingerprint="other")
    checkpoint = torch.load(path, weights_only=True)
    torch.save({**checkpoint, "fingerprint": "other"}, path)
    with pytest.raises(InputError, match=r"fingerprint .* not other"):
        cells.train_and_test(args, folder / "mr", path, 12, 13, flags["mr"])


def test_a_damaged_cell_is_named(cell):
    args, folder, flags, _ = cell
    for name, content in (("log.jsonl", ""), ("config.json", ""), ("results.json", "[]")):
        before = (folder / "mr" / name).read_text()
        (folder / "mr" / name).write_text(content)
        with pytest.raises(InputError, match=f"{name} is damaged.*remove its folder"):
            cells.train_and_test(args, folder / "mr", folder / "ae" / "autoencoder.pth", 12, 13, flags["mr"])
        (folder / "mr" / name).write_text(before)
    (folder / "ae" / "autoencoder.pth").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"autoencoder\.pth is not a whole checkpoint"):
        cells.train_and_test(args, folder / "mr", folder / "ae" / "autoencoder.pth", 12, 13, flags["mr"])


def test_a_preset_brings_its_size_and_amp_is_passed_on(cell):
    args, folder, flags, commands = cell
    args.amp = True
    for sized in (True, False):
        (folder / "new").mkdir(exist_ok=True)
        with pytest.raises(OSError):  # nothing is made: the script is not run
            cells.train_and_test(args, folder / "new", folder / "ae" / "autoencoder.pth", 12, 13, flags["mr"], sized)
        train, test = commands[-2:]
        assert train[0] == "train.py" and "--amp" in train and test[0] == "test.py"
        assert ("--image_size" in train, "--max_epoch" in train, "--batch_size" in train) == (sized,) * 3
        assert train[-4:] == ["--multi_lr", "1", "--n_clusters", "4"]


def test_whatever_breaks_in_a_cell_the_others_are_made():
    def broken():
        raise IndexError("list index out of range")
    done, failed = cells.run_cells(2, [("a", lambda: 1), ("b", broken), ("c", lambda: 3)])
    assert done == [1, None, 3] and failed == ["b: IndexError('list index out of range')"]


# ------------------------------------------------------------------------ the table, as people run it


def test_a_table_of_pairs_is_killed_and_continued(trained, tmp_path, capsys):
    command = ["compare.py", "--data_name", "pairs", "--source1", trained[0] / "coarse", "--source2",
               trained[0] / "fine", "--backbone", "resnet18", "--weights", "none", "--hash_bit", 8, "--seeds", 1,
               "--methods", "float", "itq", "best", "--cache_dir", tmp_path / "cache", "--output_dir", tmp_path]
    command = [sys.executable, *map(str, command)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)

    def pretrained():
        return list((tmp_path / "pairs").glob("autoencoder-*-13/autoencoder.pth"))

    for _ in range(600):
        if pretrained() or first.poll() is not None:
            break
        time.sleep(0.1)
    assert first.poll() is None and len(pretrained()) == 1
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "pairs" / "compare.csv").exists()

    second = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert "+ python myautoencoder" not in second.stdout and second.stdout.count("+ python train.py") == 1
    with open(tmp_path / "pairs" / "compare.csv", newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["float", "itq", "best"]
    assert float(rows["best"]["map"]) > float(rows["best"]["chance"]) + 0.15
    cell = tmp_path / "pairs" / rows["best"]["cell"]
    assert json.loads((cell / "results.json").read_text())["map"] == pytest.approx(float(rows["best"]["map"]), abs=1e-6)
    code, again, _ = call(capsys, *command[1:])
    assert "+ python" not in again and code == 0
    assert again.splitlines()[-8:] == second.stdout.splitlines()[-8:]
