"""Cells of a table: the three scripts run as a user would, each once; a finished cell is read, not run again."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engine.checkpoint import load_checkpoint
from engine.cli import image_side, non_negative_int, positive_int
from engine.files import at_end, check_writable, lock
from myautoencoder import autoencoder
from train import parse_arguments
from utils import ROOT, InputError


def add_cell_flags(parser: ArgumentParser, output_dir: str) -> None:
    """Flags of every script that fills a table: the data, the backbone, the size of the runs."""
    parser.add_argument("--data_name", default="UCMerced", help="any dataset with labels")
    parser.add_argument("--data_dir", default="data", help="where it lies")
    parser.add_argument("--source1", help="as for autoencoder.py; pairs need it")
    parser.add_argument("--source2", help="as for autoencoder.py; pairs need it for a second view")
    parser.add_argument("--split_dir", help="published lists, if any")
    parser.add_argument("--max_per_class", type=positive_int, help="use at most so many images of each class")
    parser.add_argument("--skip_bad", action="store_true", help="as for autoencoder.py: leave out unreadable images")
    parser.add_argument("--backbone", default="mobilenet_v2", help="for the features and for the hash network")
    parser.add_argument("--weights", default="imagenet", help="of the backbone, as for train.py --weights")
    parser.add_argument("--image_size", type=image_side, default=224, help="for the hash network")
    parser.add_argument("--max_epoch", type=non_negative_int, default=50, help="as for train.py")
    parser.add_argument("--batch_size", type=positive_int, default=128,
                        help="as for train.py; a small one makes more steps of few epochs")
    parser.add_argument("--jobs", type=positive_int, default=1,
                        help="cells at once: several fill one GPU, or one core each")
    parser.add_argument("--amp", action="store_true", help="bfloat16 in train.py")
    parser.add_argument("--cache_dir", default="cache", help="as for train.py")
    parser.add_argument("--output_dir", default=output_dir, help="where the cells and the tables go")


def claim(folder: Path) -> None:
    """Keep other tables out of `folder` until the script ends. Raises InputError: it is taken, or cannot be written."""
    check_writable(folder, "--output_dir")
    at_end.enter_context(lock(folder / ".lock", f"another table is made in {folder}: wait until it is done, or choose "
                              "another --output_dir"))


def folder_name(flags: Iterable[object]) -> str:
    """A readable name for a set of flags: kl-batchmean, default for none."""
    return "-".join(str(flag).lstrip("-") for flag in flags) or "default"


def run_script(log: Path, jobs: int, *command: object) -> None:
    """Run one of our scripts; its output goes to `log`. Raises RuntimeError when it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    tqdm.write(shlex.join(["+", "python", *map(str, command)]))
    environment = dict(os.environ)
    if jobs > 1:  # else each process would start a thread for every core
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    with open(log, "w") as file:
        done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, stdout=file, check=False,
                              stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
        raise RuntimeError(f"exit {done.returncode}: {lines[-1]}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises InputError when the file holds something else."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): remove its folder, and it is made again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged (no object): remove its folder, and it is made again")
    return content


def check_settings(cell: Path, wanted: dict[str, Any]) -> None:
    """Raise InputError when a finished cell was made with other settings than are asked for now.

    A setting that config.json does not know is younger than the cell, which then had its default.
    """
    config = read_json(cell / "config.json")
    differing = [f"{name} {config[name]}, not {value}" for name, value in wanted.items()
                 if name in config and str(config[name]).lower() != str(value).lower()]
    if differing:
        raise InputError(f"{cell} was made with {'; '.join(differing)}: choose another --output_dir")


# What may differ between a finished cell and the command that would make it: places, and how it is computed.
PLACES = {"data_dir", "pretrained_dp_path", "output_dir", "cache_dir", "resume", "overwrite", "workers", "device",
          "eval_frequency", "preset", "skip_bad"}


def settings_of(parsed: Namespace) -> dict[str, Any]:
    """What a cell's config.json must say if the parsed command made it; alpha None is auto, else None is inherited."""
    return {name: value for name, value in vars(parsed).items()
            if name not in PLACES and (value is not None or name == "alpha")}


def pretrain(args: Namespace, cell: Path, seed: int, flags: Iterable[object] = (), **extra: Any) -> Path:
    """autoencoder.py into `cell`, with `flags` beside those of the table; returns its autoencoder.pth.

    extra: what else the config.json of a finished cell must say, such as the fingerprint of the data.
    """
    result = cell / "autoencoder.pth"
    choices = [part for name in ("source1", "source2", "split_dir", "max_per_class")
               if getattr(args, name) is not None for part in (f"--{name}", getattr(args, name))]
    command = ["--data_name", args.data_name, "--data_dir", args.data_dir, *choices, "--feature_backbone",
               args.backbone, "--feature_weights", args.weights, *(["--skip_bad"] if args.skip_bad else []),
               "--seed", seed, "--cache_dir", args.cache_dir,
               "--output_dir", cell, "--resume", "--eval_frequency", 0, *flags]
    if result.exists():
        parsed = autoencoder.parse_arguments([str(word) for word in command])
        check_settings(cell, {**settings_of(parsed), **extra})
    else:
        run_script(cell / "output.txt", args.jobs, "myautoencoder/autoencoder.py", *command)
    return result


def train_and_test(args: Namespace, cell: Path, pretrained: Path, bits: int, seed: int,
                   flags: Iterable[object] = (), sized: bool = True) -> dict[str, Any]:
    """train.py and test.py into `cell`; returns what the table wants to know of the finished cell.

    sized: whether the size of the run (--image_size, --max_epoch, --batch_size) is the table's; a preset has its own.
    """
    size = [part for name in ("image_size", "max_epoch", "batch_size") for part in (f"--{name}", getattr(args, name))]
    command = ["--hash_bit", bits, "--pretrained_dp_path", pretrained, "--model_type", args.backbone, "--weights",
               args.weights, *(size if sized else []), "--eval_frequency", 0, "--seed", seed, "--cache_dir",
               args.cache_dir, "--output_dir", cell, "--resume", *(["--amp"] if args.amp else []), *flags]
    trained = (cell / "mrhash.pth").exists() and not (cell / "last.pth").exists()
    if trained or (cell / "results.json").exists():
        fingerprint = load_checkpoint(pretrained, "mrhash-autoencoder-1")["fingerprint"]
        check_settings(cell, {**settings_of(parse_arguments([str(word) for word in command])),
                              "fingerprint": fingerprint})
    if not (cell / "results.json").exists():
        if not trained:
            run_script(cell / "train.txt", args.jobs, "train.py", *command)
        run_script(cell / "test.txt", args.jobs, "test.py", "--hash_bit", bits, "--pretrain_path",
                   cell / "mrhash.pth", "--cache_dir", args.cache_dir, "--save_codes", cell / "codes.npz")
        (cell / "last.pth").unlink(missing_ok=True)  # the optimiser's state of a finished run
    results, config = read_json(cell / "results.json"), read_json(cell / "config.json")
    try:
        last = json.loads((cell / "log.jsonl").read_text().splitlines()[-1])
    except (IndexError, ValueError):
        raise InputError(f"{cell / 'log.jsonl'} is damaged: remove its folder, and it is made again") from None
    return {"bits": bits, "seed": seed, "cell": cell.name, "map": results["map"], "map_min": results["map_min"],
            "map_max": results["map_max"], "chance": results["map_chance"], "R": results["R"],
            "latent_map": load_checkpoint(pretrained, "mrhash-autoencoder-1")["latent_map"],
            "image_size": config["image_size"],
            "epochs": config["max_epoch"] + 1 + config.get("head_epochs", 0),
            "batch_size": config["batch_size"], "train_seconds": last["seconds"],
            "device": config["environment"]["cuda"] or "cpu", "commit": config["environment"]["git_commit"]}


def run_cells(jobs: int, cells: list[tuple[str, Callable[[], Any]]]) -> tuple[list[Any], list[str]]:
    """Call every cell, `jobs` at once; a failed one gives None and a line, and does not stop the others."""
    failed: list[str] = []

    def attempt(cell: tuple[str, Callable[[], Any]]) -> Any:
        try:
            return cell[1]()
        except Exception as error:  # whatever it is, hours of other cells are not to be lost by it
            text = str(error) if isinstance(error, (RuntimeError, InputError, OSError)) else repr(error)
            failed.append(f"{cell[0]}: {text}")
            return None

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(attempt, cells)), failed
