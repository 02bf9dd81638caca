"""Make the README's results: every cell is the three scripts, run as a user would, on several seeds.

    python scripts/results.py --data_name UCMerced --weights mobilenet_v2.pth --backbone mobilenet_v2

Cells that are done are not run again, so it can be stopped and started; a failed cell is reported and does
not stop the others. LSH and ITQ on the same frozen features and split stand beside each MrHash cell.
Writes <output_dir>/results.csv and prints a table of means over seeds, with the spread (max - min).
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

import hamming
from cells import add_cell_flags, pretrain, run_cells, train_and_test
from data_loader import DataConfig, load_dataset
from features import dataset_features
from utils import ArgumentParser, InputError, positive_int, resolve_path, run, write_json

VARIANTS = {"dual": ["--encoder", "dual"], "unisource": ["--encoder", "unisource"], "none": ["--source2", "none"]}


def parse_arguments():
    parser = ArgumentParser(prog="results.py", description=__doc__.splitlines()[0])
    add_cell_flags(parser, "runs/results")
    parser.add_argument("--hash_bit", type=positive_int, nargs="+", default=[16, 32, 64, 128],
                        help="lengths for the first variant")
    parser.add_argument("--ablation_bit", type=positive_int, default=32, help="length for the other variants")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS),
                        help="dual and unisource encoders; none leaves the second source out")
    return parser.parse_args()


def lsh(features: np.ndarray, bits: int, generator: np.random.Generator) -> np.ndarray:
    """Signs of random projections of centred features (Charikar, STOC 2002); float (N, bits)."""
    return features @ generator.standard_normal((features.shape[1], bits)).astype(np.float32)


def itq(features: np.ndarray, bits: int, generator: np.random.Generator, train: np.ndarray) -> np.ndarray:
    """Iterative quantisation of the first principal components (Gong & Lazebnik, CVPR 2011)."""
    _, _, directions = np.linalg.svd(features[train], full_matrices=False)
    projected = features @ directions[:bits].T
    rotation, _ = np.linalg.qr(generator.standard_normal((bits, bits)))
    for _ in range(50):
        left, _, right = np.linalg.svd(np.sign(projected[train] @ rotation).T @ projected[train])
        rotation = (left @ right).T
    return projected @ rotation


def baselines(args, folder: Path, pretrained: Path, seed: int) -> list[dict]:
    """Float features, LSH and ITQ on the frozen features of source 1, on the split of `pretrained`."""
    path = folder / f"baselines-{'-'.join(map(str, args.hash_bit))}-{seed}.json"
    if path.exists():
        return json.loads(path.read_text())
    checkpoint = torch.load(pretrained, weights_only=True)
    dataset = load_dataset(DataConfig(**checkpoint["data"]))
    arrays, _ = dataset_features(dataset, checkpoint["features"], args.weights, torch.device("cpu"), 128, 4,
                                 args.cache_dir)
    features = np.array(arrays[0]) - arrays[0][dataset.train].mean(axis=0)
    labels = dataset.labels[dataset.query], dataset.labels[dataset.database]
    R = hamming.smallest_class(labels[1])
    base = {"data": args.data_name, "seed": seed, "R": R}
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    rows = [{**base, "method": "float features, centred cosine", "bits": "", "map": hamming.float_map(
        unit[dataset.query], unit[dataset.database], *labels, R=R)}]
    for bits in args.hash_bit:
        generator = np.random.default_rng([seed, bits])
        for name, values in (("LSH", lsh(features, bits, generator)),
                             ("ITQ", itq(features, bits, generator, dataset.train))):
            query, database = values[dataset.query], values[dataset.database]
            results = hamming.evaluate(hamming.pack_codes(query), hamming.pack_codes(database), *labels,
                                       hash_bit=bits, R=R)
            rows.append({**base, "method": name, "bits": bits, "map": results["map"],
                         "map_min": results["map_min"], "map_max": results["map_max"],
                         "chance": results["map_chance"]})
    write_json(path, rows)
    return rows


def table(rows: list[dict]) -> str:
    """Markdown: mean mAP (and max - min over seeds) by method and bits."""
    lengths = sorted({row["bits"] for row in rows if row["bits"]})
    lines = ["| method | " + " | ".join(map(str, lengths)) + " |", "|---" * (len(lengths) + 1) + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for bits in lengths:
            values = [row["map"] for row in rows if row["method"] == method and row["bits"] in (bits, "")]
            cells.append(f"{statistics.mean(values):.3f} ({max(values) - min(values):.3f})" if values else "")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    args = parse_arguments()
    folder = resolve_path(args.output_dir) / args.data_name.lower()

    def autoencoder(variant: str, seed: int) -> tuple:
        return f"autoencoder {variant}, seed {seed}", partial(
            pretrain, args, folder / f"autoencoder-{variant}-{seed}", seed, VARIANTS[variant])

    def cell(variant: str, bits: int, seed: int) -> tuple:
        name = f"{variant}-{bits}bit-{args.image_size}px-{args.max_epoch}-{args.batch_size}-{seed}"
        return name, partial(train_and_test, args, folder / name, pretrained[variant, seed], bits, seed)

    pairs = [(variant, seed) for variant in args.variants for seed in args.seeds]
    # The first pretraining alone: it fills the cache of images and features that the others share.
    first, failed = run_cells(1, [autoencoder(*pairs[0])])
    others, lost = run_cells(args.jobs, [autoencoder(*pair) for pair in pairs[1:]])
    pretrained = {pair: path for pair, path in zip(pairs, first + others, strict=True) if path}
    cells = [(variant, bits, seed) for variant, seed in pretrained
             for bits in (args.hash_bit if variant == args.variants[0] else [args.ablation_bit])]
    done, lost_cells = run_cells(args.jobs, [cell(*key) for key in cells])
    rows = [{"data": args.data_name, "method": f"MrHash {key[0]}", **record}
            for key, record in zip(cells, done, strict=True) if record]
    first_pairs = [pair for pair in pretrained if pair[0] == args.variants[0]]
    compared, lost_baselines = run_cells(1, [(f"baselines, seed {pair[1]}", partial(
        baselines, args, folder, pretrained[pair], pair[1])) for pair in first_pairs])
    rows += [row for record in compared for row in record or []]
    failed += lost + lost_cells + lost_baselines
    if not rows:
        raise InputError(f"no cell was made: {'; '.join(failed)}")
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open(folder / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    print(table(rows))
    latents = {row["method"]: [] for row in rows if "latent_map" in row}
    for row in rows:
        if "latent_map" in row and row["bits"] == args.ablation_bit:
            latents[row["method"]].append(row["latent_map"])
    for method, values in latents.items():
        if values:
            print(f"latents of {method}: {statistics.mean(values):.3f} ({max(values) - min(values):.3f})")
    print(f"wrote {folder / 'results.csv'}")
    if failed:
        raise InputError(f"{len(failed)} of the cells failed; what is done stays done: {'; '.join(failed)}")


if __name__ == "__main__":
    sys.exit(run(main))
