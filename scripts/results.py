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
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

import hamming
from data_loader import DataConfig, load_dataset
from features import dataset_features
from utils import ROOT, ArgumentParser, positive_int, resolve_path, run, write_json


def parse_arguments():
    parser = ArgumentParser(prog="results.py", description=__doc__.splitlines()[0])
    parser.add_argument("--data_name", default="UCMerced", help="any dataset with labels")
    parser.add_argument("--data_dir", default="data", help="where it lies")
    parser.add_argument("--split_dir", help="published lists, if any")
    parser.add_argument("--backbone", default="mobilenet_v2", help="for the features and for the hash network")
    parser.add_argument("--weights", default="imagenet", help="of the backbone, as for train.py --weights")
    parser.add_argument("--hash_bit", type=positive_int, nargs="+", default=[16, 32, 64, 128],
                        help="lengths for the first variant")
    parser.add_argument("--ablation_bit", type=positive_int, default=32, help="length for the other variants")
    parser.add_argument("--seeds", type=int, nargs="+", default=[13, 14, 15], help="one run each")
    parser.add_argument("--variants", nargs="+", default=["dual", "unisource", "none"],
                        choices=["dual", "unisource", "none"],
                        help="dual and unisource encoders; none leaves the second source out")
    parser.add_argument("--image_size", type=positive_int, default=224, help="for the hash network")
    parser.add_argument("--max_epoch", type=int, default=50, help="as for train.py")
    parser.add_argument("--batch_size", type=positive_int, default=128,
                        help="as for train.py; a small one makes more steps of few epochs")
    parser.add_argument("--jobs", type=positive_int, default=1, help="cells at once: several fill one GPU")
    parser.add_argument("--amp", action="store_true", help="bfloat16 in train.py")
    parser.add_argument("--cache_dir", default="cache", help="as for train.py")
    parser.add_argument("--output_dir", default="runs/results", help="where the cells and results.csv go")
    return parser.parse_args()


def script(log: Path, *command: object) -> None:
    """Run one of our scripts; its output goes to `log`. Raises RuntimeError when it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    print("+ python", *command, flush=True)
    with open(log, "w") as file:
        done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, stdout=file, check=False,
                              stderr=subprocess.STDOUT)
    if done.returncode:
        raise RuntimeError(f"exit {done.returncode}: {log.read_text().strip().splitlines()[-1]}")


def pretrain(args, folder: Path, variant: str, seed: int) -> Path:
    result = folder / f"autoencoder-{variant}-{seed}" / "autoencoder.pth"
    if not result.exists():
        flags = ["--source2", "none"] if variant == "none" else ["--encoder", variant]
        if args.split_dir:
            flags += ["--split_dir", args.split_dir]
        script(result.with_name("output.txt"), "myautoencoder/autoencoder.py", "--data_name", args.data_name,
               "--data_dir", args.data_dir, "--feature_backbone", args.backbone, "--feature_weights",
               args.weights, "--seed", seed, "--cache_dir", args.cache_dir, "--output_dir", result.parent,
               "--overwrite", "--eval_frequency", 0, *flags)
    return result


def train_and_test(args, folder: Path, pretrained: Path, variant: str, bits: int, seed: int) -> dict:
    cell = folder / f"{variant}-{bits}bit-{args.image_size}px-{args.max_epoch}-{args.batch_size}-{seed}"
    if not (cell / "results.json").exists():
        script(cell / "train.txt", "train.py", "--hash_bit", bits, "--pretrained_dp_path", pretrained,
               "--model_type", args.backbone, "--weights", args.weights, "--image_size", args.image_size,
               "--max_epoch", args.max_epoch, "--batch_size", args.batch_size, "--eval_frequency", 0,
               "--seed", seed, "--cache_dir", args.cache_dir, "--output_dir", cell, "--overwrite",
               *(["--amp"] if args.amp else []))
        script(cell / "test.txt", "test.py", "--hash_bit", bits, "--pretrain_path", cell / "mrhash.pth",
               "--cache_dir", args.cache_dir, "--save_codes", cell / "codes.npz")
        (cell / "last.pth").unlink()  # the optimiser's state of a finished run
    results = json.loads((cell / "results.json").read_text())
    last = json.loads((cell / "log.jsonl").read_text().splitlines()[-1])
    config = json.loads((cell / "config.json").read_text())
    latent = torch.load(pretrained, weights_only=True)["latent_map"]
    return {"data": args.data_name, "method": f"MrHash {variant}", "bits": bits, "seed": seed,
            "map": results["map"], "map_min": results["map_min"], "map_max": results["map_max"],
            "chance": results["map_chance"], "R": results["R"], "latent_map": latent,
            "image_size": args.image_size, "epochs": args.max_epoch + 1,
            "batch_size": args.batch_size,
            "train_seconds": last["seconds"], "device": config["environment"]["cuda"] or "cpu",
            "commit": config["environment"]["git_commit"]}


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


def baselines(args, folder: Path, pretrained: Path, variant: str, seed: int) -> list[dict]:
    """Float features, LSH and ITQ on the frozen features of source 1, on the split of `pretrained`."""
    path = folder / f"baselines-{seed}.json"
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
    rows: list[dict] = []
    failed: list[str] = []

    def attempt(name: str, function, *arguments):
        try:
            return function(args, folder, *arguments)
        except RuntimeError as error:
            failed.append(f"{name}: {error}")
            return None

    pairs = [(variant, seed) for variant in args.variants for seed in args.seeds]
    with ThreadPoolExecutor(args.jobs) as pool:
        # The first pretraining alone: it fills the cache of images and features that the others share.
        first = attempt("autoencoder", pretrain, *pairs[0])
        others = pool.map(lambda pair: attempt("autoencoder", pretrain, *pair), pairs[1:])
        pretrained = dict(zip(pairs, [first, *others], strict=True))
        cells = [(pretrained[pair], pair[0], bits, pair[1]) for pair in pairs if pretrained[pair]
                 for bits in (args.hash_bit if pair[0] == args.variants[0] else [args.ablation_bit])]
        done = pool.map(lambda cell: attempt("cell", train_and_test, *cell), cells)
        rows += [row for row in done if row]
    for seed in args.seeds:
        pair = (args.variants[0], seed)
        if pretrained[pair]:
            rows += attempt("baselines", baselines, pretrained[pair], *pair) or []
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
    for line in failed:
        print(f"failed {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run(main))
