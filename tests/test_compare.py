"""The table: baselines held to what is known of them, cells that are made once, failures that stay alone."""

import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.linalg
import torch

import baselines
from helpers import ROOT, call, script_module
from utils import InputError, run


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

    def pretrain(args, cell, seed, flags):
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
    code, out, error, rows = table("--hash_bit", 8, "--seeds", 1, "--methods", "mrhash", "mrhash-none",
                                   "mrhash-unisource", "best-none", "best-unisource")
    assert code == 0, error
    assert "left out, there is no second source: mrhash-none, mrhash-unisource, best-none, best-unisource" in out
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
    made = (table.folder / "itq-8bit-13" / "codes.npz").stat().st_mtime_ns
    assert table("--hash_bit", 8, "--seeds", 1, "--methods", "itq")[0] == 0
    assert (table.folder / "itq-8bit-13" / "codes.npz").stat().st_mtime_ns == made
    # Other weights are another table.
    code, _, error, _ = table("--hash_bit", 8, "--seeds", 1, "--methods", "itq", "--backbone", "resnet18")
    assert code == 2 and "was made with backbone squeezenet1_1, not resnet18: choose another --output_dir" in error


@pytest.mark.parametrize(("flags", "message"), [
    (["--hash_bit", 1025], "1025 is more than 1024"), (["--methods", "magic"], "invalid choice: 'magic'"),
    (["--curve_bit", 5], "5 is not among --hash_bit"), (["--seeds", 0], "0"),
    (["--data_name", "UCMerced", "--data_dir", "nowhere"], "nowhere")])
def test_bad_flags_end_before_any_work(table, flags, message):
    code, _, error, _ = table(*flags)
    assert code == 2 and message in error and "Traceback" not in error and not table.made["pretrained"]


def test_the_time_left_is_told_from_cells_of_the_same_kind(capsys, monkeypatch):
    compare = script_module("compare.py")
    clock = iter([0, 10, 10, 40, 40, 40])
    monkeypatch.setattr(compare.time, "monotonic", lambda: next(clock))
    progress = compare.Progress(["slow", "quick", "slow", "read", "quick", "read"], jobs=2)
    progress.watch("quick", "a", lambda: {"map": 0.5})
    progress.watch("slow", "b", lambda: {"map": 0.25})
    out = capsys.readouterr().out.splitlines()
    # Of those to come one is quick (10 s), one slow (30 s); the read one says that it took 400 s.
    progress.watch("read", "c", lambda: {"map": 0.1, "train_seconds": 400})
    out += capsys.readouterr().out.splitlines()
    assert out == ["[1/6] a: mAP 0.500, 10 s; about 5 s left, and read, slow, of which none is timed yet",
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


# ------------------------------------------------------------------------ the table, as people run it


def test_a_table_of_pairs_is_killed_and_continued(trained, tmp_path):
    command = ["compare.py", "--data_name", "pairs", "--source1", trained[0] / "coarse", "--source2",
               trained[0] / "fine", "--backbone", "resnet18", "--weights", "none", "--hash_bit", 8, "--seeds", 1,
               "--methods", "float", "itq", "mrhash", "best", "--image_size", 64, "--max_epoch", 0, "--cache_dir",
               tmp_path / "cache", "--output_dir", tmp_path]
    command = [sys.executable, *map(str, command)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
    finished = tmp_path / "pairs" / "autoencoder-default-13" / "autoencoder.pth"
    for _ in range(600):
        if finished.exists() or first.poll() is not None:
            break
        time.sleep(0.1)
    assert first.poll() is None and finished.exists()
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "pairs" / "compare.csv").exists()

    second = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert "autoencoder-default-13" not in "".join(line for line in second.stdout.splitlines(True)
                                                   if "+ python myautoencoder" in line)
    assert second.stdout.count("+ python train.py") == 2
    with open(tmp_path / "pairs" / "compare.csv", newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["float", "itq", "mrhash", "best"]
    assert float(rows["best"]["map"]) > float(rows["best"]["chance"]) + 0.15
    cell = tmp_path / "pairs" / rows["best"]["cell"]
    assert json.loads((cell / "results.json").read_text())["map"] == pytest.approx(float(rows["best"]["map"]), abs=1e-6)
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert "+ python" not in again.stdout and again.returncode == 0
    assert again.stdout.splitlines()[-8:] == second.stdout.splitlines()[-8:]
