"""Command-line flags that several scripts share, and how a script inherits them from a checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_loader import DATASETS, DataConfig, PairedDataset, load_dataset
from demo_data import demo_folder
from hamming import smallest_class
from utils import InputError, non_negative_int, positive_int, resolve_path

# Every setting of the published code, also where ours is the same, so that ours can move and these stay.
# R is not among them: the default, the smallest class in the database, is 1900 and 9375 as published.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "published": {
        "autoencoder.py": {
            "feature_backbone": "resnet50", "feature_weights": "imagenet", "image_size": 224,
            "feature_norm": "none", "neighbours": 0, "encoder": "unisource", "init": "torch", "latent_dim": 64,
            "lambda1": 0.1, "lr": 0.001, "batch_size": 512, "epoch": 200, "select": "test_map", "data_hash": 0,
            "seed": 13},
        "train.py": {
            "model_type": "alexnet", "weights": "imagenet", "image_size": 224, "batch_norm": "adapt",
            "hash_bit": 32, "n_clusters": 16, "alpha": 1.0, "label_spread": 0.0, "pseudo_labels": "multi",
            "targets": "epoch", "autoencoder": "trained", "centres": "trained", "kl": "mean", "lambda0": 5.0,
            "head_width": 0, "head_epochs": 0, "lr": 0.001, "multi_lr": 0.01, "batch_size": 128, "max_epoch": 50,
            "eval_frequency": 5, "select": "last", "T": 0.0, "seed": 13},
        "test.py": {"ties": "stable", "batch_size": 128},
    },
    # Ours, not the paper's: docs/best.md says why each of them is there and what it is worth.
    "best": {
        "autoencoder.py": {"feature_norm": "unit", "neighbours": 10},
        "train.py": {"n_clusters": 32, "alpha": None, "label_spread": 0.2, "targets": "once", "autoencoder": "fixed",
                     "centres": "fixed", "kl": "batchmean", "head_width": 512, "head_epochs": 50, "max_epoch": -1},
        "test.py": {},
    },
}


def parse_with_preset(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse with a flag --preset, whose values take the place of the defaults: a flag given wins."""
    parser.add_argument("--preset", choices=tuple(PRESETS),
                        help="published: every setting as in the authors' code (docs/reproduction.md); best: ours "
                             "that rank best (docs/best.md). To be given to all three scripts; flags beside it win. "
                             "Left out: the paper's method with our defaults")
    args = parser.parse_args(arguments)
    if args.preset:
        parser.set_defaults(**PRESETS[args.preset][parser.prog])
        args = parser.parse_args(arguments)
    return args


def add_data_flags(parser: argparse.ArgumentParser, inherited: bool) -> argparse._ArgumentGroup:
    """Flags that choose the images. `inherited`: unset ones come from the checkpoint."""
    group = parser.add_argument_group("data" + (" (what is left out comes from the checkpoint)"
                                                if inherited else ""))
    names = ", ".join(DATASETS.values())
    group.add_argument("--data_name", "--dataset", default=None if inherited else "eurosat",
                       help=f"one of {names}; case does not matter. Start with demo, which needs no "
                            "download; use pairs for folders of your own")
    group.add_argument("--data_dir", default=None if inherited else "data",
                       help="where the dataset lies under its published name (zip or folder); relative "
                            "to the repository")
    group.add_argument("--source1", help="pairs: the folder whose images will be hashed; UCMerced, DSRSID: "
                                         "ms (default) or pan")
    group.add_argument("--source2", help="the second view, seen in training only. pairs: a folder; EuroSAT: "
                                         "vhr or swir; UCMerced, DSRSID: pan or ms; none to do without. "
                                         "Left out: the one that is there")
    group.add_argument("--split_dir", help="folder with train.txt, database.txt and test.txt as published "
                                           "(path and one-hot label a line); without it the queries are "
                                           "drawn by --seed")
    group.add_argument("--max_per_class", type=positive_int,
                       help="use at most so many images of each class, for a quick look")
    return group


def add_feature_file_flags(group: argparse._ArgumentGroup, inherited: bool) -> None:
    """--features1 and --features2. `inherited`: unset ones come from the checkpoint."""
    for number in (1, 2):
        group.add_argument(f"--features{number}", metavar="FILE", help=(
            f"only when the file of features of source {number} lies elsewhere now: the same file, new place"
            if inherited else
            f"take the features of source {number} from this pickle or .npz of data (N, d) and labels (N,), rows as "
            "in train.txt, then test.txt of --split_dir, instead of extracting them"
            + ("; the images of source 2 need not be there" if number == 2 else "")))


def add_run_flags(parser: argparse.ArgumentParser, batch_size: int) -> None:
    """Flags of how and where to compute."""
    group = parser.add_argument_group("run")
    group.add_argument("--batch_size", type=positive_int, default=batch_size,
                       help="images (or feature rows) a step; lower it when memory runs out")
    group.add_argument("--workers", type=positive_int, default=4,
                       help="threads that decode images the first time; raise it on a machine of many cores")
    group.add_argument("--device", default="auto", help="auto takes cuda, then mps, then cpu")
    group.add_argument("--amp", action="store_true",
                       help="bfloat16 where it is safe, slightly different numbers: about twice as fast on processors "
                            "and GPUs that have it, many times slower on others, which it says")
    group.add_argument("--compile", action="store_true",
                       help="torch.compile of the CNN: takes one or two minutes and, on a CPU, a C++ compiler; pays "
                            "from some ten thousand images on (docs/scale.md)")
    group.add_argument("--cache_dir", default="cache",
                       help="where decoded images and features are kept for the next run; none keeps "
                            "them in memory")


def add_training_flags(parser: argparse.ArgumentParser, output_dir: str) -> None:
    """Flags of a run that trains."""
    group = parser.add_argument_group("output")
    group.add_argument("--seed", type=non_negative_int, default=13,
                       help="fixes everything that is drawn; change it to see the spread of a result")
    group.add_argument("--output_dir", help=f"where the result goes (default: {output_dir})")
    group.add_argument("--resume", action="store_true",
                       help="continue the run in --output_dir from its last saved epoch, to the same result")
    group.add_argument("--overwrite", action="store_true", help="replace a run that lies in --output_dir")


def inherit_dataset(args: argparse.Namespace, checkpoint: dict[str, Any]) -> tuple[PairedDataset, DataConfig]:
    """The dataset that a checkpoint was trained on, wherever the flags say it lies now; and its config.

    Raises:
        InputError: a flag contradicts the checkpoint, or the images or their split are not the same.
    """
    known = {field.name: checkpoint["data"][field.name] for field in fields(DataConfig)
             if field.name in checkpoint["data"]}
    skip = known.get("skip", ())
    if not isinstance(skip, list | tuple):
        raise InputError(f"the checkpoint's list of scenes that are left out is {str(skip)[:40]}: it is damaged")
    config = DataConfig(**{**known, "skip": tuple(map(str, skip))})
    # Where things lie may have changed since: folders are not compared, their content is.
    places = {"data_dir"} | moved_places(config)
    moved = {}
    for name in ("data_name", "data_dir", "source1", "source2", "split_dir", "max_per_class"):
        value, known = getattr(args, name), getattr(config, name)
        if value is None:
            continue
        if name in places:
            moved[name] = value
        elif str(value).lower() != str(known).lower():
            raise InputError(f"--{name} {value} contradicts the checkpoint, which was trained with "
                             f"{known}: leave the flag out or train again")
    config = replace(config, **moved)
    if config.data_name == "demo" and args.data_dir is None and not demo_folder(
            resolve_path(config.data_dir), config.split_seed).is_dir():
        # A checkpoint from elsewhere must not decide where something is written.
        raise InputError(f"the scenes of the checkpoint are not in {resolve_path(config.data_dir)}: say with "
                         "--data_dir where they are, or are to be drawn")
    dataset = load_dataset(config)
    if dataset.fingerprint != checkpoint["fingerprint"]:
        folder = resolve_path(config.data_dir)
        raise InputError(f"the images, labels or split found in {folder} are not those of the checkpoint: "
                         "name the right --data_dir, or train again")
    return dataset, config


def moved_places(config: DataConfig) -> set[str]:
    """Flags that say where the images and lists of a run lie, which may change while their content does not."""
    return {"split_dir"} | ({"source1", "source2"} if config.data_name == "pairs" else set())


def feature_files_of(checkpoint: dict, path: Path, given: Sequence[str | None]) -> list[str | None]:
    """For each source its file of features, as `given` or as the checkpoint of stage 1 has it; None for images.

    Raises:
        InputError: a file is given for a source that had none, or is not there any more.
    """
    files = checkpoint["features"].get("files", [None, None])
    if not isinstance(files, list | tuple) or [type(file) in (str, type(None)) for file in files] != [True, True]:
        raise InputError(f"{path}: its files of features are {str(files)[:80]}, expected two names")
    for number, file in enumerate(given):
        if file is not None and files[number] is None:
            raise InputError(f"--features{number + 1} {file} contradicts {path}, which has no file of features for "
                             f"source {number + 1}: leave the flag out")
        if file is None and files[number] is not None and not resolve_path(files[number]).is_file():
            raise InputError(f"{path} was made from the features {files[number]}, which are not there now: name their "
                             f"new place with --features{number + 1}")
    return [new or old for new, old in zip(given, files, strict=True)]


def choose_R(given: int | None, labels: np.ndarray) -> int:
    """The cut of mAP@R: `given`, or the size of the smallest class in the database.

    Args:
        labels: the database's, (N,) or 0/1 (N, C).
    Raises:
        InputError: `given` is larger than the database.
    """
    if given is None:
        return smallest_class(labels)
    if given > len(labels):
        raise InputError(f"--R {given} is larger than the database of {len(labels):,} images")
    return given
