"""The table: MrHash, its ablations and the classical methods on one split and the same frozen features.

    python compare.py --data_name UCMerced --hash_bit 16 32 64 128 --seeds 3

Every cell is the three scripts, run as a user would, or a baseline on the same frozen features of source 1. A cell that
is done is read, not run again: stop it, start it again, add methods or lengths; a failed cell is reported and
does not stop the others. Labels are used to measure, never to choose. Written to <output_dir>/<dataset>:
compare.md (the table), compare.csv (every cell), compare.json, map_by_bits.png, precision_recall.png and .csv.
"""

from __future__ import annotations

import csv
import io
import statistics
import sys
import threading
import time
import zipfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import hamming
from benchmarks.baselines import BASELINES
from benchmarks.cells import (
    add_cell_flags,
    check_settings,
    claim,
    folder_name,
    pretrain,
    read_json,
    run_cells,
    train_and_test,
)
from data_loader import DATASETS, DataConfig, PairedDataset, choose_R, load_dataset, load_readable
from engine.cli import ArgumentParser, non_negative_int, positive_int, run
from engine.files import atomic_file, write_json
from engine.run import environment
from hamming.figures import curve_of, write_comparison, write_curves
from myautoencoder.features import dataset_features
from utils import InputError, resolve_path, setup_device


class Method(NamedTuple):
    """A row that is trained: its name in the table, flags beside those of the table, what it needs."""

    title: str
    first: Sequence[object] = ()  # of autoencoder.py
    second: Sequence[object] = ()  # of train.py
    pairs: bool = False  # whether it makes sense with a second source only
    ablation: bool = True  # at the lengths of --ablation_bit


BEST = ["--preset", "best"]
TRAINED = {
    "mrhash": Method("MrHash", ablation=False),
    "mrhash-none": Method("MrHash, no second source", ["--source2", "none"], pairs=True),
    "mrhash-unisource": Method("MrHash, unisource encoder", ["--encoder", "unisource"], pairs=True),
    "mrhash-single": Method("MrHash, single pseudo labels", [], ["--pseudo_labels", "single"]),
    "mrhash-frozen": Method("MrHash, backbone frozen", [], ["--multi_lr", 0]),
    "best": Method("MrHash, `--preset best`", BEST, BEST, ablation=False),
    "best-none": Method("best, no second source", [*BEST, "--source2", "none"], BEST, pairs=True),
    "best-unisource": Method("best, unisource encoder", [*BEST, "--encoder", "unisource"], BEST, pairs=True),
    "best-single": Method("best, single pseudo labels", BEST, [*BEST, "--pseudo_labels", "single"]),
    "best-no-neighbours": Method("best, features not averaged", [*BEST, "--neighbours", 0], BEST),
    "best-no-norm": Method("best, features not normalised", [*BEST, "--feature_norm", "none"], BEST),
    "best-flat": Method("best, probability function as published", BEST, [*BEST, "--alpha", 1, "--label_spread", 0]),
    "best-16": Method("best, 16 clusters", BEST, [*BEST, "--n_clusters", 16]),
    "best-64": Method("best, 64 clusters", BEST, [*BEST, "--n_clusters", 64]),
    "best-no-head": Method("best, no hidden layer", BEST, [*BEST, "--head_width", 0]),
    "best-mean": Method("best, divergence averaged over clusters too", BEST, [*BEST, "--kl", "mean"]),
    "best-learning": Method("best, autoencoder, centres and targets trained as published", BEST,
                            [*BEST, "--autoencoder", "trained", "--centres", "trained", "--targets", "epoch"]),
}
FLOATS = ("float", "float-both")  # level lines: no codes
TITLES = {"float": "float features, centred cosine", "float-both": "float features of both sources", "lsh": "LSH",
          "pcah": "PCAH", "sh": "spectral hashing", "itq": "ITQ",
          **{name: method.title for name, method in TRAINED.items()}}
USUAL = [*list(TITLES)[:6], *list(TRAINED)[:6]]
PAIRED = {"float-both", *(name for name, method in TRAINED.items() if method.pairs)}
OWN = ("best",)  # presets that bring the size of their run with them


def parse_arguments(arguments: Sequence[str] | None = None) -> Namespace:
    parser = ArgumentParser(prog="compare.py", description=__doc__.splitlines()[0])
    parser.add_argument("--hash_bit", type=positive_int, nargs="+", default=[16, 32, 64, 128],
                        help="lengths of the codes")
    parser.add_argument("--ablation_bit", type=positive_int, nargs="*",
                        help="lengths at which ablations are made (default: those of --hash_bit); each is a training")
    parser.add_argument("--methods", nargs="+", choices=list(TITLES), default=USUAL, metavar="METHOD",
                        help=f"rows, of {', '.join(TITLES)} (default: those of the paper's kind, and best)")
    parser.add_argument("--seeds", type=positive_int, default=3,
                        help="how many runs of each cell; a seed draws the split (where no lists give it), the initial "
                             "weights, the clusters, order and crops")
    parser.add_argument("--first_seed", type=non_negative_int, default=13, help="they are this one and the next")
    parser.add_argument("--curve_bit", type=positive_int,
                        help="length whose precision and recall are drawn (default: 64, or the longest)")
    add_cell_flags(parser, "runs/compare")
    args = parser.parse_args(arguments)
    args.hash_bit = sorted(set(args.hash_bit))
    args.ablation_bit = args.hash_bit if args.ablation_bit is None else sorted(set(args.ablation_bit))
    args.methods = [name for name in TITLES if name in args.methods]
    for bits in args.hash_bit + args.ablation_bit:
        if bits > 1024:
            parser.error(f"argument --hash_bit: {bits} is more than 1024")
    if args.curve_bit is None:
        args.curve_bit = 64 if 64 in args.hash_bit else args.hash_bit[-1]
    elif args.curve_bit not in args.hash_bit:
        parser.error(f"argument --curve_bit: {args.curve_bit} is not among --hash_bit")
    return args


# ---------------------------------------------------------------- baselines


class Baselines:
    """The classical methods of each seed's split; features are read once, and only if a cell is missing."""

    def __init__(self, args: Namespace, folder: Path, datasets: dict[int, PairedDataset], R: dict[int, int]) -> None:
        self.args, self.folder, self.datasets, self.R = args, folder, datasets, R
        self.features = cache(self._features)

    def _features(self, seed: int, both: bool) -> list[np.ndarray]:
        """Frozen features of source 1, or of both: float32 (N, d), rows as in the dataset."""
        dataset, args = self.datasets[seed], self.args
        settings = {"feature_backbone": args.backbone, "feature_weights": args.weights, "image_size": 224, "amp": False}
        return dataset_features(dataset if both else replace(dataset, source2=None), settings, args.weights,
                                setup_device("auto"), 128, 4, args.cache_dir)[0]

    def settings(self, name: str, seed: int) -> dict[str, Any]:
        flags = ["backbone", "weights", "data_name", "source1", "split_dir", "max_per_class"]
        return {**{flag: getattr(self.args, flag) for flag in flags + ["source2"] * (name == "float-both")},
                "seed": seed, "fingerprint": self.datasets[seed].fingerprint}

    def folder_of(self, name: str, bits: int | None, seed: int) -> Path:
        return self.folder / (f"{name}-{seed}" if bits is None else f"{name}-{bits}bit-{seed}")

    def cell(self, name: str, bits: int | None, seed: int) -> dict[str, Any]:
        """The method's codes and their evaluation, made now or read; floats have neither bits nor codes."""
        cell = self.folder_of(name, bits, seed)
        if (cell / "results.json").exists():
            check_settings(cell, self.settings(name, seed))
        else:
            self._make(cell, name, bits, seed)
        results = read_json(cell / "results.json")
        return {"bits": bits, "seed": seed, "cell": cell.name,
                **{key: results[key] for key in ("map", "map_min", "map_max", "R") if key in results},
                "chance": results["map_chance"], "train_seconds": results["seconds"]}

    def _make(self, cell: Path, name: str, bits: int | None, seed: int) -> None:
        dataset, begun = self.datasets[seed], time.time()
        sources = [torch.from_numpy(np.array(x)).double() for x in self.features(seed, name == "float-both")]
        x = sources[0]
        query, database = torch.from_numpy(dataset.query), torch.from_numpy(dataset.database)
        labels = dataset.labels[dataset.query], dataset.labels[dataset.database]
        train = x[torch.from_numpy(dataset.train)]
        device = str(setup_device("auto"))
        cell.mkdir(parents=True, exist_ok=True)
        write_json(cell / "config.json", {**self.settings(name, seed), "environment": environment()})
        if bits is None:
            # Of both: the mean of the two cosines.
            unit = torch.cat([torch.nn.functional.normalize(part - part[torch.from_numpy(dataset.train)].mean(dim=0))
                              for part in sources], dim=1).float().numpy()
            results = {"map": hamming.float_map(unit[dataset.query], unit[dataset.database], *labels, R=self.R[seed],
                                                device=device),
                       "map_chance": float(np.mean(chance_of(labels, self.R[seed]))), "R": self.R[seed]}
        else:
            encode = BASELINES[name](train, bits, seed)
            codes = [hamming.pack_codes(encode(x[rows]).numpy()) for rows in (query, database)]
            results = hamming.evaluate(*codes, *labels, hash_bit=bits, R=self.R[seed], device=device)
            with atomic_file(cell / "codes.npz") as file:
                np.savez(file, query_codes=codes[0], database_codes=codes[1], query_labels=labels[0],
                         database_labels=labels[1], hash_bit=bits)
        write_json(cell / "results.json", {**results, "seconds": round(time.time() - begun, 2)})


def chance_of(labels: tuple[np.ndarray, np.ndarray], R: int) -> np.ndarray:
    """AP@R of a random order, for each query: that of codes which are all alike."""
    alike = [np.zeros((len(part), 1), np.uint8) for part in labels]
    return hamming.chance_ap(hamming.distance_histograms(*alike, *labels, hash_bit=1), R)


# ---------------------------------------------------------------- cells


class Progress:
    """Says what is done and, from the mean time of the cells of each kind so far, how long the rest will take.

    A cell that is only read counts with the seconds it says it took, where it says so.
    """

    def __init__(self, jobs: int) -> None:
        self.waiting: list[str] = []  # kinds of the cells to be made
        self.jobs, self.total, self.count = jobs, 0, 0
        self.times: dict[str, list[float]] = {}
        self.lock = threading.Lock()

    def watch(self, kind: str, cell: Path, name: str, work: Callable[[], Any]) -> tuple[str, Callable[[], Any]]:
        """Expect the cell: returns its name and `work` with a line printed behind it; what it raises is passed on.

        kind: cells of one kind take about as long as each other. cell: its folder, which tells if it is done.
        """
        done = (cell / "results.json").exists() or (cell / "autoencoder.pth").exists()
        self.total += 1
        if not done:
            self.waiting.append(kind)
        return name, partial(self._run, kind, done, name, work)

    def _run(self, kind: str, done: bool, name: str, work: Callable[[], Any]) -> Any:
        begun = time.monotonic()
        try:
            value = work()
        except Exception:
            self._tell(kind, done, name, "failed", time.monotonic() - begun, 0)
            raise
        self._tell(kind, done, name, f"mAP {value['map']:.3f}" if "map" in value else "done", time.monotonic() - begun,
                   value.get("train_seconds", 0))
        return value

    def _tell(self, kind: str, done: bool, name: str, found: str, seconds: float, said: float) -> None:
        with self.lock:
            if not done:
                self.waiting.remove(kind)
            self.count += 1
            if found != "failed" and max(seconds, said) > 1:
                self.times.setdefault(kind, []).append(max(seconds, said))
            tqdm.write(f"[{self.count}/{self.total}] {name}: {found}, {seconds:.0f} s{self._left()}")

    def _left(self) -> str:
        timed = [statistics.mean(self.times[kind]) for kind in self.waiting if kind in self.times]
        unknown = ", ".join(sorted(set(self.waiting) - set(self.times)))
        if not timed:
            return ""
        seconds = sum(timed) / self.jobs
        return (f"; about {seconds / 60:.0f} minutes left" if seconds > 90 else f"; about {seconds:.0f} s left") + (
            f", and {unknown}, of which none is timed yet" if unknown else "")


def fill(args: Namespace, folder: Path, datasets: dict[int, PairedDataset], methods: Sequence[str],
         records: dict[tuple[str, int | None, int], dict[str, Any]]) -> list[str]:
    """Make or read every cell; records (method, bits, seed) -> numbers are filled as they come. Returns what failed."""
    R = {seed: choose_R(None, dataset.labels[dataset.database]) for seed, dataset in datasets.items()}
    classical = Baselines(args, folder, datasets, R)
    trained = [(seed, name) for seed in datasets for name in methods if name in TRAINED]
    stage1: dict[tuple[str, int], Sequence[object]] = {}
    compared = [(name, bits, seed) for seed in datasets for name in methods if name not in TRAINED
                for bits in ([None] if name in FLOATS else args.hash_bit)]
    hashed = [(name, bits, seed) for seed, name in trained
              for bits in (args.ablation_bit if TRAINED[name].ablation else args.hash_bit)]
    for name, _, seed in hashed:
        stage1.setdefault((folder_name(TRAINED[name].first), seed), TRAINED[name].first)
    progress = Progress(args.jobs)
    pretrained: dict[tuple[str, int], Path] = {}

    def keep(key: tuple[str, int | None, int], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        records[key] = work()
        return records[key]

    def pretrain_cell(cell: Path, slug: str, seed: int) -> dict[str, Any]:
        pretrained[slug, seed] = pretrain(args, cell, seed, stage1[slug, seed], fingerprint=datasets[seed].fingerprint)
        return {}

    def hash_cell(cell: Path, name: str, bits: int, seed: int) -> dict[str, Any]:
        method = TRAINED[name]
        slug = folder_name(method.first)
        if (slug, seed) not in pretrained:
            raise RuntimeError("its autoencoder failed")
        return train_and_test(args, cell, pretrained[slug, seed], bits, seed, method.second, not name.startswith(OWN))

    baselines = [progress.watch("baseline", classical.folder_of(*key), title(key),
                                partial(keep, key, partial(classical.cell, *key))) for key in compared]
    first = []
    for slug, seed in stage1:
        cell = folder / f"autoencoder-{slug}-{seed}"
        first.append(progress.watch("autoencoder", cell, f"autoencoder {slug}, seed {seed}",
                                    partial(pretrain_cell, cell, slug, seed)))
    second = []
    for name, bits, seed in hashed:
        method = TRAINED[name]
        size = "" if name.startswith(OWN) else f"{args.image_size}px-{args.max_epoch}-{args.batch_size}-"
        cell = folder / f"{folder_name(method.first)}--{folder_name(method.second)}-{size}{bits}bit-{seed}"
        key = name, bits, seed
        second.append(progress.watch(name.split("-")[0], cell, title(key), partial(keep, key,
                                                                                   partial(hash_cell, cell, *key))))
    failed = run_cells(1, baselines)[1]
    # The first autoencoder alone: it fills the cache of images and features that the others share.
    for cells, jobs in ((first[:1], 1), (first[1:], args.jobs), (second, args.jobs)):
        failed += run_cells(jobs, cells)[1]
    return failed


def title(key: tuple[str, int | None, int]) -> str:
    """A cell in words."""
    name, bits, seed = key
    return TITLES[name] + ("" if bits is None else f", {bits} bits") + f", seed {seed}"


# ---------------------------------------------------------------- report


def in_words(values: Sequence[float], wanted: int) -> str:
    """Mean (max - min) over seeds; how many of them, if some are missing."""
    if not values:
        return ""
    text = f"{statistics.mean(values):.3f}" + (f" ({max(values) - min(values):.3f})" if len(values) > 1 else "")
    return text + (f", {len(values)} of {wanted} seeds" if len(values) < wanted else "")


def table(records: dict[tuple[str, int | None, int], dict[str, Any]], lengths: Sequence[int], seeds: int) -> str:
    """Markdown: a row a method, mAP@R; before the codes what they were made from, features or latents."""
    lines = ["| method | floats | " + " | ".join(f"{bits} bits" for bits in lengths) + " |",
             "|---" * (len(lengths) + 2) + "|"]
    for name in dict.fromkeys(key[0] for key in records):
        own = {key: record for key, record in records.items() if key[0] == name}
        floats = {key[2]: record["map"] if key[1] is None else record.get("latent_map") for key, record in own.items()}
        cells = [in_words([value for value in floats.values() if value is not None], seeds)]
        cells += [in_words([record["map"] for key, record in own.items() if key[1] == bits], seeds) for bits in lengths]
        lines.append(f"| {TITLES[name]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(args: Namespace, folder: Path, datasets: dict[int, PairedDataset],
           records: dict[tuple[str, int | None, int], dict[str, Any]]) -> None:
    """Print the table and write it with its numbers and figures."""
    order = {name: number for number, name in enumerate(TITLES)}
    records = dict(sorted(records.items(), key=lambda item: (order[item[0][0]], item[0][1] or 0, item[0][2])))
    lengths = sorted({key[1] for key in records if key[1] is not None})
    first = next(iter(datasets.values()))
    R = sorted({record["R"] for record in records.values()})
    chance = statistics.mean(record["chance"] for record in records.values())
    seeds = f"mean over {len(datasets)} seeds (max - min)" if len(datasets) > 1 else "one seed"
    text = (f"{first.describe()}\n\nmAP@{' and '.join(map(str, R))}, expected over ties, {seeds}; chance {chance:.3f}."
            f"\n\n{table(records, lengths, len(datasets))}\n")
    print(f"\n{text}")
    rows = [{"data": first.name, "method": name, "title": TITLES[name],
             **{key: round(value, 6) if isinstance(value, float) else value for key, value in record.items()}}
            for (name, _, _), record in records.items()]
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = io.StringIO()
    writer = csv.DictWriter(lines, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    for path, content in (("compare.csv", lines.getvalue()), ("compare.md", text)):
        with atomic_file(folder / path) as file:
            file.write(content.encode())
    write_json(folder / "compare.json", {"settings": vars(args), "environment": environment(), "cells": rows})
    maps: dict[str, dict[int | None, list[float]]] = {}
    for (name, bits, _), record in records.items():
        maps.setdefault(TITLES[name].replace("`", ""), {}).setdefault(bits, []).append(record["map"])
    caption = f"{first.name}, {len(datasets)} seed{'s' * (len(datasets) > 1)}"
    write_comparison(maps, folder, R[0], caption)
    curves = {}
    for (name, bits, seed), record in records.items():
        if bits == args.curve_bit and seed == args.first_seed and "cell" in record:
            path = folder / record["cell"] / "codes.npz"
            try:
                with np.load(path) as content:
                    curves[TITLES[name].replace("`", "")] = curve_of(hamming.distance_histograms(
                        content["query_codes"], content["database_codes"], content["query_labels"],
                        content["database_labels"], hash_bit=bits))
            except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
                print(f"no curve of {TITLES[name]}: {path} cannot be read ({error})", file=sys.stderr)
    if curves:
        write_curves(curves, folder, f"{first.name}, {args.curve_bit} bits, seed {args.first_seed}")
    print(f"wrote compare.md, .csv, .json and figures to {folder}")


def main() -> None:
    args = parse_arguments()
    name = DATASETS.get(args.data_name.lower(), args.data_name)
    configs = {seed: DataConfig(name, args.data_dir, args.source1, args.source2, args.split_dir, args.max_per_class,
                                seed) for seed in range(args.first_seed, args.first_seed + args.seeds)}
    datasets = {seed: load_readable(config, 4)[0] if args.skip_bad else load_dataset(config)
                for seed, config in configs.items()}
    first = datasets[args.first_seed]
    if first.labels is None:
        raise InputError("these images have no labels, so there is nothing to compare: class sub-folders give labels")
    methods = [method for method in args.methods if method not in PAIRED or first.source2 is not None]
    if len(methods) < len(args.methods):
        left_out = ", ".join(method for method in args.methods if method not in methods)
        print(f"left out, there is no second source: {left_out}")
    folder = resolve_path(args.output_dir) / first.name.lower()
    print(first.describe())
    claim(folder)
    records: dict[tuple[str, int | None, int], dict[str, Any]] = {}
    try:
        failed = fill(args, folder, datasets, methods, records)
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here", file=sys.stderr)
        raise
    finally:
        if records:
            report(args, folder, datasets, records)
    if failed:
        raise InputError(f"{len(failed)} of the cells failed; what is done stays done: {'; '.join(failed)}")


if __name__ == "__main__":
    sys.exit(run(main))
