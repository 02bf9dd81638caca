"""The table with invented trainings, and how its tests call what is run with python -m."""

import csv
from functools import partial

import numpy as np
import pytest

from benchmarks import compare, per_query
from engine.cli import run
from helpers import make_pairs


@pytest.fixture
def call_main(capsys):
    """`call_main(main, *words)`: exit code, stdout, stderr of a command, in this process."""
    def call_it(main, *words):
        try:
            code = run(partial(main, [str(word) for word in words]))
        except SystemExit as stop:  # argparse
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call_it


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """A folder of 42 pairs of images in three classes: coarse, fine."""
    folder = tmp_path_factory.mktemp("pairs")
    make_pairs(folder)
    return folder


@pytest.fixture
def table(pairs, tmp_path, call_main, monkeypatch):
    """compare whose trained cells are invented: each of their queries has the AP of the mean.

    `table("--methods", ...)` gives exit code, output, error and the rows of compare.csv.
    """
    made = {"pretrained": [], "cells": [], "unlucky": lambda name, bits, seed: False,
            "pair": ["--source2", pairs / "fine"], "ap": {}}
    read = per_query._read

    def pretrain(args, cell, seed, flags, dataset):
        made["pretrained"].append(cell.name)
        made["queries"] = len(dataset.query)
        if made["unlucky"](cell.name, None, seed):
            raise RuntimeError("exit 2: no luck")
        return {}

    def train_and_test(args, cell, pretrained, bits, seed, flags, sized):
        made["cells"].append(cell.name)
        if made["unlucky"](cell.name, bits, seed):
            raise RuntimeError("exit 2: no luck")
        value = 0.5 + bits / 1000 + 0.01 * (seed - 13) + 0.1 * ("best" in cell.name)
        value += {"batchmean": 0.02 * (seed - 13), "once": -0.1}.get(flags[-1] if flags else "", 0)
        made["ap"][cell.name] = np.full(made["queries"], value)
        return {"bits": bits, "seed": seed, "map": value, "map_min": 0.1, "map_max": 0.9,
                "chance": 0.3, "R": 13, "cell": cell.name, "train_seconds": 1,
                "latent_map": 0.6 + 0.01 * ("unisource" in cell.name)}

    def test_again(args, cell, trained, pretrained, bits, seed, flags):
        assert trained.name in made["cells"]
        return train_and_test(args, cell, pretrained, bits, seed, flags, False)

    monkeypatch.setattr(compare, "pretrain", pretrain)
    monkeypatch.setattr(compare, "test_again", test_again)
    monkeypatch.setattr(compare, "train_and_test", train_and_test)
    monkeypatch.setattr(per_query, "_read", lambda cell, *about: (
        made["ap"][cell.name] if cell.name in made["ap"] else read(cell, *about)))

    def call_table(*flags):
        made["pretrained"].clear()
        made["cells"].clear()
        result = call_main(
            compare.main, "--data_name", "pairs", "--source1", pairs / "coarse", *made["pair"],
            "--backbone", "squeezenet1_1", "--weights", "none", "--cache_dir", tmp_path / "cache",
            "--output_dir", tmp_path, "--max_epoch", 0, "--image_size", 64, *flags)
        alone = not made["pair"] or "none" in made["pair"]
        call_table.folder = tmp_path / ("coarse" if alone else "coarse_fine")
        path = call_table.folder / "compare.csv"
        rows = list(csv.DictReader(path.open(newline=""))) if path.exists() else []
        return *result, rows

    call_table.made, call_table.folder = made, tmp_path / "coarse_fine"
    return call_table
