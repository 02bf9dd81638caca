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

import torch
from tqdm import tqdm

from utils import ROOT, positive_int


def add_cell_flags(parser: ArgumentParser, output_dir: str) -> None:
    """Flags of every script that fills a table: the data, the backbone, the size of the runs."""
    parser.add_argument("--data_name", default="UCMerced", help="any dataset with labels")
    parser.add_argument("--data_dir", default="data", help="where it lies")
    parser.add_argument("--source1", help="as for autoencoder.py; pairs need it")
    parser.add_argument("--source2", help="as for autoencoder.py; pairs need it for a second view")
    parser.add_argument("--split_dir", help="published lists, if any")
    parser.add_argument("--max_per_class", type=positive_int, help="use at most so many images of each class")
    parser.add_argument("--backbone", default="mobilenet_v2", help="for the features and for the hash network")
    parser.add_argument("--weights", default="imagenet", help="of the backbone, as for train.py --weights")
    parser.add_argument("--image_size", type=positive_int, default=224, help="for the hash network")
    parser.add_argument("--max_epoch", type=int, default=50, help="as for train.py")
    parser.add_argument("--batch_size", type=positive_int, default=128,
                        help="as for train.py; a small one makes more steps of few epochs")
    parser.add_argument("--jobs", type=positive_int, default=1,
                        help="cells at once: several fill one GPU, or one core each")
    parser.add_argument("--amp", action="store_true", help="bfloat16 in train.py")
    parser.add_argument("--cache_dir", default="cache", help="as for train.py")
    parser.add_argument("--output_dir", default=output_dir, help="where the cells and the tables go")


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


def check_settings(cell: Path, wanted: dict[str, Any]) -> None:
    """Raise RuntimeError when a finished cell was made with other settings than are asked for now."""
    config = json.loads((cell / "config.json").read_text())
    differing = [f"{name} {config.get(name)}, not {value}" for name, value in wanted.items()
                 if str(config.get(name)).lower() != str(value).lower()]
    if differing:
        raise RuntimeError(f"{cell} was made with {'; '.join(differing)}: choose another --output_dir")


def pretrain(args: Namespace, cell: Path, seed: int, flags: Iterable[object] = ()) -> Path:
    """autoencoder.py into `cell`, with `flags` beside those of the table; returns its autoencoder.pth."""
    result = cell / "autoencoder.pth"
    if result.exists():
        check_settings(cell, {"data_name": args.data_name, "split_dir": args.split_dir, "seed": seed,
                              "max_per_class": args.max_per_class, "feature_backbone": args.backbone,
                              "feature_weights": args.weights})
    else:
        choices = [part for name in ("source1", "source2", "split_dir", "max_per_class")
                   if getattr(args, name) is not None for part in (f"--{name}", getattr(args, name))]
        run_script(cell / "output.txt", args.jobs, "myautoencoder/autoencoder.py", "--data_name", args.data_name,
                   "--data_dir", args.data_dir, *choices, "--feature_backbone", args.backbone,
                   "--feature_weights", args.weights, "--seed", seed, "--cache_dir", args.cache_dir,
                   "--output_dir", cell, "--resume", "--eval_frequency", 0, *flags)
    return result


def train_and_test(args: Namespace, cell: Path, pretrained: Path, bits: int, seed: int,
                   flags: Iterable[object] = (), sized: bool = True) -> dict[str, Any]:
    """train.py and test.py into `cell`; returns what the table wants to know of the finished cell.

    sized: whether the size of the run (--image_size, --max_epoch, --batch_size) is the table's; a preset has its own.
    """
    size = {name: getattr(args, name) for name in ("image_size", "max_epoch", "batch_size")} if sized else {}
    if (cell / "results.json").exists():
        check_settings(cell, {"model_type": args.backbone, "weights": args.weights, **size, "seed": seed,
                              "hash_bit": bits, "amp": args.amp})
    else:
        run_script(cell / "train.txt", args.jobs, "train.py", "--hash_bit", bits, "--pretrained_dp_path",
                   pretrained, "--model_type", args.backbone, "--weights", args.weights,
                   *(part for name, value in size.items() for part in (f"--{name}", value)),
                   "--eval_frequency", 0, "--seed", seed, "--cache_dir", args.cache_dir, "--output_dir", cell,
                   "--resume", *(["--amp"] if args.amp else []), *flags)
        run_script(cell / "test.txt", args.jobs, "test.py", "--hash_bit", bits, "--pretrain_path",
                   cell / "mrhash.pth", "--cache_dir", args.cache_dir, "--save_codes", cell / "codes.npz")
        (cell / "last.pth").unlink(missing_ok=True)  # the optimiser's state of a finished run
    results = json.loads((cell / "results.json").read_text())
    config = json.loads((cell / "config.json").read_text())
    last = json.loads((cell / "log.jsonl").read_text().splitlines()[-1])
    return {"bits": bits, "seed": seed, "cell": cell.name, "map": results["map"], "map_min": results["map_min"],
            "map_max": results["map_max"], "chance": results["map_chance"], "R": results["R"],
            "latent_map": torch.load(pretrained, weights_only=True)["latent_map"],
            "image_size": config["image_size"],
            "epochs": config["max_epoch"] + 1 + config.get("head_epochs", 0),
            "batch_size": config["batch_size"], "train_seconds": last["seconds"],
            "device": config["environment"]["cuda"] or "cpu", "commit": config["environment"]["git_commit"]}


def run_cells(jobs: int, cells: list[tuple[str, Callable[[], Any]]]) -> tuple[list[Any], list[str]]:
    """Call every cell, `jobs` at once; a failed one gives None and a line, and does not stop the others.

    What a cell may fail by: its script, bad input, files that are missing or of another make.
    """
    failed: list[str] = []

    def attempt(cell: tuple[str, Callable[[], Any]]) -> Any:
        try:
            return cell[1]()
        except (RuntimeError, ValueError, KeyError, OSError) as error:
            failed.append(f"{cell[0]}: {error}")
            return None

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(attempt, cells)), failed
