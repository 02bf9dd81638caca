"""Cells that the three scripts make: read when they are finished, and of the same settings."""

import json
import os
import re
import shutil
import signal
import sys
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from benchmarks import compare
from benchmarks import trained as cells
from data_loader import DataConfig, load_dataset
from myautoencoder import autoencoder
from utils import InputError


@pytest.fixture
def cell(trained, tmp_path, monkeypatch):
    """Flags of a table, a finished autoencoder and a finished cell; commands that would be run."""
    commands = []
    monkeypatch.setattr(cells, "run_script", lambda log, jobs, *command: commands.append(
        list(map(str, command))))
    args = compare.parse_arguments([str(word) for word in (
        "--data_name", "pairs", "--source1", trained[0] / "coarse", "--source2",
        trained[0] / "fine", "--backbone", "resnet18", "--weights", "none", "--image_size", 32,
        "--max_epoch", 2, "--batch_size", 16)])
    for name in ("ae", "mr"):
        shutil.copytree(trained[0] / name, tmp_path / name)
    return args, tmp_path, commands


# What the fixture's scripts were given and a table would not give.
FIRST = ["--image_size", 32, "--epoch", 6, "--batch_size", 16]
SECOND = ["--multi_lr", 1, "--n_clusters", 4, "--label_spread", 0.5]


def pretrain(args, folder, flags=FIRST, change=lambda dataset: dataset):
    checkpoint = torch.load(folder / "ae" / "autoencoder.pth", weights_only=True)
    dataset = load_dataset(DataConfig.of_checkpoint(checkpoint["data"]))
    return cells.pretrain(args, folder / "ae", 13, flags, change(dataset))


def train_and_test(args, folder, bits=12, seed=13, flags=SECOND):
    path = folder / "ae" / "autoencoder.pth"
    return cells.train_and_test(args, folder / "mr", path, bits, seed, flags, True)


def test_a_finished_cell_is_read(cell):
    args, folder, commands = cell
    pretrain(args, folder)
    record = train_and_test(args, folder)
    assert not commands and record["bits"] == 12 and record["epochs"] == 3
    results = json.loads((folder / "mr" / "results.json").read_text())
    assert (record["map"], record["chance"]) == (results["map"], results["map_chance"])


@pytest.mark.parametrize(("name", "value", "says"), [
    ("source1", "elsewhere", "source1"), ("backbone", "resnet34", "feature_backbone"),
    ("weights", "w.pth", "feature_weights"), ("max_per_class", 5, "max_per_class"),
    ("split_dir", "lists", "split_dir"), ("split", "folders", "split"),
    ("bands1", "4,3,2", "bands1"), ("exclude", ["*.png", "*.gif"], "exclude")])
def test_an_autoencoder_of_other_settings_is_not_read(cell, name, value, says):
    args, folder, _ = cell
    setattr(args, name, value)
    with pytest.raises(InputError, match=f"was made with .*{says}.*choose another --output_dir"):
        pretrain(args, folder)


@pytest.mark.parametrize(("name", "value"), [
    ("backbone", "resnet34"), ("weights", "w.pth"), ("image_size", 64), ("max_epoch", 3),
    ("batch_size", 8), ("amp", True)])
def test_a_cell_of_other_settings_is_not_read(cell, name, value):
    args, folder, _ = cell
    setattr(args, name, value)
    with pytest.raises(InputError, match="was made with"):
        train_and_test(args, folder)


def test_a_cell_of_another_preset_seed_or_split_is_not_read(cell):
    args, folder, _ = cell
    for bits, seed, more, says in (
            (12, 14, [], "seed 13, not 14"), (16, 13, [], "hash_bit 12, not 16"),
            (12, 13, ["--preset", "best"], "head_width 0, not 512"),
            (12, 13, ["--alpha", 3], "alpha None, not 3.0")):
        with pytest.raises(InputError, match=re.escape(says)):
            train_and_test(args, folder, bits, seed, [*SECOND, *more])
    config = json.loads((folder / "ae" / "config.json").read_text())
    for name, value in (("range1", "0,128"), ("max_per_class", 5), ("split_dir", "lists")):
        (folder / "ae" / "config.json").write_text(json.dumps({**config, name: value}))
        with pytest.raises(InputError, match=f"{name} {value}, not None"):
            pretrain(args, folder)
    (folder / "ae" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="neighbours 0, not None"):
        pretrain(args, folder, [*FIRST, "--preset", "best"])
    with pytest.raises(InputError, match=r"was made with fingerprint "):
        pretrain(args, folder, change=lambda found: replace(found, query=found.query[1:]))
    path = folder / "ae" / "autoencoder.pth"
    stage1 = torch.load(path, weights_only=True)
    torch.save({**stage1, "model": {name: x + 1 for name, x in stage1["model"].items()}}, path)
    with pytest.raises(InputError, match=r"pretrained \w+, not \w+:"):
        train_and_test(args, folder)
    torch.save({**stage1, "fingerprint": "other"}, path)
    with pytest.raises(InputError, match=r"fingerprint .* not other"):
        train_and_test(args, folder)


def test_a_cell_of_images_with_another_content_is_not_read(cell):
    args, folder, _ = cell
    args.cache_dir = "none"
    with pytest.raises(InputError, match=r"when 42 of 42 images of source 1 .*choose another"):
        pretrain(args, folder, change=lambda found: replace(found, source1=found.source2))


def test_a_cell_of_weights_with_another_content_is_not_read(cell):
    args, folder, _ = cell
    checkpoint = torch.load(folder / "ae" / "autoencoder.pth", weights_only=True)
    args.weights_content = checkpoint["features"]["content"]
    pretrain(args, folder)
    args.weights_content = "0123"
    with pytest.raises(InputError, match="was made when none had another content"):
        pretrain(args, folder)


def test_a_damaged_cell_is_named(cell):
    args, folder, _ = cell
    for name, content in (("log.jsonl", ""), ("config.json", ""), ("results.json", "[]")):
        before = (folder / "mr" / name).read_text()
        (folder / "mr" / name).write_text(content)
        with pytest.raises(InputError, match=f"{name} is damaged.*remove its folder"):
            train_and_test(args, folder)
        (folder / "mr" / name).write_text(before)
    (folder / "ae" / "autoencoder.pth").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"autoencoder\.pth is not a whole checkpoint"):
        train_and_test(args, folder)


def test_a_preset_brings_its_size_and_amp_is_passed_on(cell):
    args, folder, commands = cell
    args.amp = True
    (folder / "new").mkdir()
    for sized in (True, False):
        with pytest.raises(OSError):  # nothing is made: the script is not run
            cells.train_and_test(args, folder / "new", folder / "ae" / "autoencoder.pth", 12, 13,
                                 SECOND, sized)
        train, test = commands[-2:]
        assert train[0] == "train.py" and "--amp" in train and test[0] == "test.py"
        for flag in ("--image_size", "--max_epoch", "--batch_size"):
            assert (flag in train) == sized
        assert train[-6:] == [str(word) for word in SECOND]


def test_flags_of_ones_own_images_reach_the_script(cell):
    args, folder, commands = cell
    given = {"bands1": "4,3,2", "range2": "2%,98%", "pair_by": "(.*)_", "split": "folders",
             "class_depth": 2, "include": ["*.tif"], "exclude": ["*_mask.png", "labels/*"],
             "skip_bad": True, "skip_unpaired": True}
    for name, value in given.items():
        setattr(args, name, value)
    cells.pretrain(args, folder / "new", 13, [], "f")
    ((script, *words),) = commands
    parsed = vars(autoencoder.parse_arguments(words))
    assert script.endswith("autoencoder.py") and given.items() <= parsed.items()


def test_an_epoch_that_is_not_trained_is_not_counted(cell):
    args, folder, _ = cell
    path = folder / "mr" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "max_epoch": None, "head_epochs": 50}))
    record = train_and_test(args, folder, flags=[*SECOND, "--max_epoch", "none",
                                                 "--head_epochs", 50])
    assert record["epochs"] == 50
    with pytest.raises(InputError, match="max_epoch None, not 2"):
        train_and_test(args, folder, flags=[*SECOND, "--head_epochs", 50])


def test_a_cell_knows_what_its_scripts_warned_of_and_is_true_at_the_end(cell):
    args, folder, _ = cell
    assert train_and_test(args, folder)["warnings"] == []
    early = "warning: 9 of 12 bits are the same for all images and tell nothing: use fewer\n"
    last = "2 of 12 bits are the same for all images and tell nothing: use fewer"
    (folder / "ae" / "output.txt").write_text("warning: 3 images are black\n")
    (folder / "mr" / "train.txt").write_text(f"{early}warning: 3 images are black\nwarning: x\n")
    (folder / "mr" / "test.txt").write_text(f"warning: {last}\nmAP@13 0.5\n")
    assert train_and_test(args, folder)["warnings"] == ["3 images are black", "x", last]


def test_a_signal_to_the_table_alone_ends_its_scripts(tmp_path, monkeypatch):
    """SIGTERM; of Ctrl-C in a terminal the scripts know by themselves."""
    script = tmp_path / "script.py"
    script.write_text("import pathlib, time\npathlib.Path('%s').touch()\ntime.sleep(60)"
                      % (tmp_path / "begun"))
    monkeypatch.setattr(cells, "GRACE", 0.05)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(cells.run_script, tmp_path / "log.txt", 1, script)
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        monkeypatch.setattr(sys, "stdin", Namespace(isatty=lambda: True))
        cells.stop_scripts(signal.SIGINT)
        assert len(cells.running) == 1
        cells.stop_scripts(signal.SIGTERM)
        with pytest.raises(RuntimeError, match=f"exit -{int(signal.SIGTERM)}"):
            running.result(timeout=30)
    assert not cells.running


def test_what_a_script_says_lies_in_its_cell_and_its_last_line_is_told(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text("import os; print(os.environ['OMP_NUM_THREADS']); 1 / 0")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    log = tmp_path / "cell" / "output.txt"
    with pytest.raises(RuntimeError, match="exit 1: ZeroDivisionError: division by zero"):
        cells.run_script(log, 1000, script)
    # Of many jobs at once, each takes a core, not all.
    assert log.read_text().splitlines()[0] == "1" and os.path.exists(sys.executable)
