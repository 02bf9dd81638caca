"""Cells that are trained: the three scripts, run as a user would, each once."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.cells import Record, check_settings, damaged, read_json, warnings_in
from datasets.base import OWN_IMAGES, PairedDataset
from datasets.record import other_content
from engine.checkpoint import content_of, load_checkpoint
from engine.cli import cache_folder
from myautoencoder import autoencoder
from train import parse_arguments
from utils import ROOT, InputError

STAGE1 = "mrhash-autoencoder-1"  # the format of autoencoder.pth

# What may differ between a finished cell and the command that would make it: places, and how it is
# computed.
PLACES = {"data_dir", "pretrained_dp_path", "output_dir", "cache_dir", "resume", "overwrite",
          "workers", "device", "eval_frequency", "preset", "skip_bad", "skip_unpaired"}
# Where None is a choice: all of stage 1 but what depends on the images; of stage 2 auto and none,
# since elsewhere it is "as stage 1".
RESOLVED, WORDS = {"encoder", "R"}, {"alpha", "max_epoch"}

GRACE = 2  # seconds
running: set[subprocess.Popen] = set()  # the scripts that this process has started


def settings_of(parsed: Namespace, chosen: Container[str]) -> dict[str, Any]:
    """What a cell's config.json must say if the parsed command made it.

    chosen: settings for which None counts.
    """
    return {name: value for name, value in vars(parsed).items()
            if name not in PLACES and (value is not None or name in chosen)}


def run_script(log: Path, jobs: int, *command: object) -> None:
    """Run one of our scripts; its output goes to `log`. Raises RuntimeError when it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    tqdm.write(shlex.join(["+", "python", *map(str, command)]))
    environment = dict(os.environ)
    if jobs > 1:  # else each process would start a thread for every core
        threads = max(1, (os.cpu_count() or 1) // jobs)
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    with open(log, "w") as file, subprocess.Popen(
            [sys.executable, *map(str, command)], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
            env=environment) as process:
        running.add(process)
        process.wait()
        running.discard(process)
    if process.returncode:
        lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
        raise RuntimeError(f"exit {process.returncode}: {lines[-1]}")


def stop_scripts(number: int) -> None:
    """Pass on the signal that stopped the table, so that it need not wait for its scripts.

    Args:
        number: of the signal.
    """
    if number == signal.SIGINT and sys.stdin and sys.stdin.isatty():
        return  # a terminal sends Ctrl-C to the scripts too, and a second one would not save
    for process in list(running):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)  # whoever signals the whole group has told it already
        process.send_signal(number)


def pretrain(args: Namespace, cell: Path, seed: int, flags: Iterable[object],
             dataset: PairedDataset) -> Record:
    """autoencoder.py into `cell`, whose autoencoder.pth train_and_test then takes.

    Args:
        args: of the table.
        cell: a folder.
        seed: as for autoencoder.py.
        flags: beside those of the table.
        dataset: the images, which a finished cell must have had.
    Raises:
        RuntimeError: the script failed.
        InputError: a finished cell has other settings, or is damaged.
    """
    command = ["--data_name", args.data_name, "--data_dir", args.data_dir]
    for name in ("source1", "source2", "split_dir", "max_per_class", "split", *OWN_IMAGES):
        value = getattr(args, name)
        if value is not None:
            command += [f"--{name}", *(value if isinstance(value, list) else [value])]
    command += ["--feature_backbone", args.backbone, "--feature_weights", args.weights]
    command += [f"--{flag}" for flag in ("skip_bad", "skip_unpaired") if getattr(args, flag)]
    command += ["--seed", seed, "--cache_dir", args.cache_dir, "--output_dir", cell, "--resume",
                "--eval_frequency", 0, *flags]
    if (cell / "autoencoder.pth").exists():
        parsed = autoencoder.parse_arguments([str(word) for word in command])
        chosen = vars(parsed).keys() - RESOLVED
        check_settings(cell, {**settings_of(parsed, chosen), "fingerprint": dataset.fingerprint},
                       vars(autoencoder.parse_arguments([])))
        checkpoint = load_checkpoint(cell / "autoencoder.pth", STAGE1)
        if args.weights_content not in (None, checkpoint["features"]["content"]):
            raise InputError(f"{cell} was made when {args.weights} had another content: choose "
                             "another --output_dir")
        record = checkpoint.get("images")  # older: none
        other = record and other_content(record, dataset, cache_folder(args))
        if other:
            raise InputError(f"{cell} was made when {other} had another content: choose another "
                             "--output_dir")
    else:
        run_script(cell / "output.txt", args.jobs, "myautoencoder/autoencoder.py", *command)
    return {}


def train_and_test(args: Namespace, cell: Path, pretrained: Path, bits: int, seed: int,
                   flags: Iterable[object], sized: bool) -> Record:
    """train.py and test.py into `cell`; returns what the table wants to know of it.

    Args:
        args: of the table.
        cell: a folder.
        pretrained: the autoencoder.pth.
        bits, seed: as for train.py.
        flags: beside those of the table.
        sized: whether --image_size, --max_epoch and --batch_size are the table's.
    Raises:
        RuntimeError: a script failed.
        InputError: a finished cell has other settings, or is damaged.
    """
    command = ["--hash_bit", bits, "--pretrained_dp_path", pretrained, "--model_type",
               args.backbone, "--weights", args.weights]
    if sized:
        command += ["--image_size", args.image_size, "--max_epoch", args.max_epoch,
                    "--batch_size", args.batch_size]
    command += ["--eval_frequency", 0, "--seed", seed, "--cache_dir", args.cache_dir,
                "--output_dir", cell, "--resume"]
    if args.amp:
        command.append("--amp")
    command += flags
    trained = (cell / "mrhash.pth").exists() and not (cell / "last.pth").exists()
    tested = (cell / "results.json").exists()
    if trained or tested:
        wanted = settings_of(parse_arguments([str(word) for word in command]), WORDS)
        stage1 = load_checkpoint(pretrained, STAGE1)
        wanted |= {"fingerprint": stage1["fingerprint"],
                   "pretrained": content_of(stage1, stage1["model"])}
        check_settings(cell, wanted, vars(parse_arguments(["--pretrained_dp_path", "x"])))
    if not trained and not tested:
        run_script(cell / "train.txt", args.jobs, "train.py", *command)
    if not tested:
        _test(args, cell / "mrhash.pth", cell, bits, [])
        (cell / "last.pth").unlink(missing_ok=True)  # the optimiser's state of a finished run
    return _record(cell, cell, pretrained, bits, seed)


def test_again(args: Namespace, cell: Path, trained: Path, pretrained: Path, bits: int, seed: int,
               flags: Iterable[object]) -> Record:
    """test.py into `cell` with other flags; the rest as train_and_test.

    Args:
        args: of the table.
        cell: a folder in `trained`, so that one does not outlive the other.
        trained: the folder of train_and_test, whose mrhash.pth is hashed with.
        pretrained, bits, seed: as there.
        flags: of test.py.
    """
    if not (cell / "results.json").exists():
        _test(args, trained / "mrhash.pth", cell, bits, flags)
    record = _record(cell, trained, pretrained, bits, seed)
    return {**record, "cell": f"{trained.name}/{cell.name}"}


def _test(args: Namespace, model: Path, cell: Path, bits: int, flags: Iterable[object]) -> None:
    """test.py with a trained model; results and codes go into `cell`."""
    run_script(cell / "test.txt", args.jobs, "test.py", "--hash_bit", bits, "--pretrain_path",
               model, "--cache_dir", args.cache_dir, "--output_dir", cell, "--save_codes",
               cell / "codes.npz", *flags)


def _warnings(cell: Path, trained: Path, stage1: Path) -> list[str]:
    """What the three scripts warned of and is still true at the end."""
    said = warnings_in(stage1 / "output.txt") + warnings_in(trained / "train.txt")
    # Of constant bits test.py knows, which train.py sees on the way.
    said = [text for text in said if "the same for all images" not in text]
    return list(dict.fromkeys(said + warnings_in(cell / "test.txt")))


def _record(cell: Path, trained: Path, pretrained: Path, bits: int, seed: int) -> Record:
    """What the files of a finished cell say, and of the cell whose network it takes."""
    results = read_json(cell / "results.json", "map", "R", "map_chance", "map_min", "map_max")
    config = read_json(trained / "config.json", "environment", "image_size", "batch_size")
    log = trained / "log.jsonl"
    try:
        last = json.loads(log.read_text().splitlines()[-1])
    except (IndexError, ValueError):
        raise damaged(log, "its last line is no record") from None
    epochs = config.get("head_epochs", 0)
    if config.get("max_epoch") is not None:
        epochs += config["max_epoch"] + 1
    return {"bits": bits, "seed": seed, "cell": cell.name,
            "map": results["map"], "R": results["R"], "chance": results["map_chance"],
            "train_seconds": last["seconds"],
            "map_min": results["map_min"], "map_max": results["map_max"],
            "latent_map": load_checkpoint(pretrained, STAGE1)["latent_map"],
            "image_size": config["image_size"], "epochs": epochs,
            "batch_size": config["batch_size"],
            "warnings": _warnings(cell, trained, pretrained.parent),
            "device": config["environment"]["cuda"] or "cpu",
            "commit": config["environment"]["git_commit"]}
