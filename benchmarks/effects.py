"""What each difference from the published code is worth: docs/reproduction.md's table, a row a command.

    python scripts/effects.py --rows kl --data_name UCMerced --weights mobilenet_v2-imagenet.pth
    python scripts/effects.py --weights ...       every row; what is done is not run again

Each row trains our defaults and the same with one setting changed, on several seeds, and compares codes seed by
seed. A cell is the three scripts, run as a user would; it can be stopped and started at any time. Writes
<output_dir>/<data_name>/effects.csv, where rows made before stay, and prints the rows asked for.
"""

from __future__ import annotations

import csv
import io
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

import hamming
from benchmarks.cells import add_cell_flags, claim, folder_name, pretrain, run_cells, train_and_test
from engine.checkpoint import load_checkpoint
from engine.cli import ArgumentParser, positive_int, run
from engine.files import atomic_file
from test import measure, read_codes
from utils import InputError, resolve_path

# row -> variant -> (flags of autoencoder.py, flags of train.py). The first variant of a row is our default.
ROWS: dict[str, dict[str, tuple[list, list]]] = {
    "encoder": {"dual": ([], []), "unisource": (["--encoder", "unisource"], []),
                "no second source": (["--source2", "none"], [])},
    "init": {"he": ([], []), "torch": (["--init", "torch"], [])},
    "autoencoder_epoch": {"loss": ([], []), "last": (["--select", "last"], []),
                          "test_map": (["--select", "test_map"], [])},
    "hash_epoch": {"last": ([], []), "loss": ([], ["--select", "loss"]),
                   "test_map": ([], ["--select", "test_map", "--eval_frequency", 1])},
    "kl": {"mean": ([], []), "batchmean": ([], ["--kl", "batchmean"])},
    "targets": {"epoch": ([], []), "once": ([], ["--targets", "once"])},
    "centres": {"trained": ([], []), "fixed": ([], ["--centres", "fixed"])},
    "lambda0": {"5": ([], []), "0": ([], ["--lambda0", 0])},
    "clusters": {"16": ([], []), "8": ([], ["--n_clusters", 8]), "32": ([], ["--n_clusters", 32]),
                 "64": ([], ["--n_clusters", 64])},
    "batch_norm": {"auto": ([], []), "adapt": ([], ["--batch_norm", "adapt"])},
    "all": {"ours": ([], []), "published": (["--preset", "published"], ["--preset", "published"]),
            "published, frozen batch norm": (["--preset", "published"],  # AlexNet, the published network, has none
                                             ["--preset", "published", "--batch_norm", "frozen"])},
}
TIES = "ties"  # a row of its own kind: the codes of the default cells, ranked in four ways


def parse_arguments():
    parser = ArgumentParser(prog="effects.py", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", default=[*ROWS, TIES], choices=[*ROWS, TIES],
                        help="rows to make; encoder needs a second source")
    parser.add_argument("--hash_bit", type=positive_int, default=32, help="length of the codes")
    add_cell_flags(parser, "runs/effects")
    parser.add_argument("--seeds", type=int, nargs="+", default=[13, 14, 15], help="one run each")
    args = parser.parse_args()
    args.rows, args.seeds = list(dict.fromkeys(args.rows)), list(dict.fromkeys(args.seeds))
    return args


def comparison(default: dict[int, float], other: dict[int, float], seeds: list[int]) -> str:
    """Mean (max - min) of a variant and its difference from the default in points, mean and [each seed]."""
    values = list(other.values())
    text = f"{statistics.mean(values):.3f} ({max(values) - min(values):.3f})"
    if len(values) < len(seeds):
        text += f" of {len(values)} seeds"
    both = [seed for seed in seeds if seed in default and seed in other]
    if default is other or not both:
        return text
    differences = [100 * (other[seed] - default[seed]) for seed in both]
    signs = " ".join(f"{difference:+.1f}" for difference in differences)
    return f"{text}, {statistics.mean(differences):+.1f} [{signs}]"


def print_rows(records: list[dict[str, Any]], rows: list[str], seeds: list[int]) -> None:
    """Markdown: a line a variant."""
    print("| row | variant | codes: mAP@R mean (max - min), points to the first variant [each seed] | latents |")
    print("|---|---|---|---|")
    for row in rows:
        variants = list(ROWS[row]) if row != TIES else hamming.TIES
        values = {(variant, name): {record["seed"]: record[name] for record in records
                                    if (record["row"], record["variant"]) == (row, variant)}
                  for variant in variants for name in ("map", "latent_map")}
        for variant in variants:
            if values[variant, "map"]:
                cells = [comparison(values[variants[0], name], values[variant, name], seeds)
                         for name in ("map", "latent_map")]
                stage1 = any(first for first, _ in ROWS.get(row, {}).values())  # else latents cannot differ
                print(f"| {row} | {variant} | {cells[0]} | {cells[1] if stage1 else ''} |")


SAME = ("row", "variant", "bits", "seed", "image_size", "epochs", "batch_size")


def write_csv(path: Path, records: list[dict[str, Any]]) -> None:
    """Write the records; those that the file holds already stay, unless they are made anew."""
    records = [{name: round(value, 6) if isinstance(value, float) else value for name, value in record.items()}
               for record in records]
    if path.exists():
        made = {tuple(str(record.get(name)) for name in SAME) for record in records}
        with open(path, newline="") as file:
            records = [*(record for record in csv.DictReader(file)
                         if tuple(str(record.get(name)) for name in SAME) not in made), *records]
    order = {row: number for number, row in enumerate([*ROWS, TIES])}
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for record in records for name in record)), restval="",
                            lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(records, key=lambda record: order.get(record["row"], len(order))))
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())
    print(f"wrote {path}")


def maps_by_ties(cell: Path, R: int) -> dict[str, float]:
    """mAP@R of the codes of a cell in each way of treating ties."""
    content = read_codes(cell / "codes.npz", None, None)
    return {ties: measure(content, R, ties, "cpu")[0]["map"] for ties in hamming.TIES}


def main() -> None:
    args = parse_arguments()
    folder = resolve_path(args.output_dir) / args.data_name.lower()
    claim(folder)
    wanted = [(row, variant, *flags) for row in args.rows
              for variant, flags in ROWS.get(row, {"default": ([], [])}).items()]

    # A pretraining, or a cell, that several rows share is made once.
    stage1 = {(folder_name(first), seed): first for _, _, first, _ in wanted for seed in args.seeds}
    # The defaults first: they fill the cache of images and features that the others share.
    order = sorted(stage1, key=lambda key: key[0] != "default")
    firsts = [key for key in order if key[0] == "default"]
    pretrained, failed = {}, []
    for keys in (firsts[:1], firsts[1:], order[len(firsts):]):
        cells = [(f"autoencoder {name}, seed {seed}",
                  partial(pretrain, args, folder / f"autoencoder-{name}-{seed}", seed, stage1[name, seed]))
                 for name, seed in keys]
        done, lost = run_cells(args.jobs, cells)
        pretrained.update(zip(keys, done, strict=True))
        failed += lost

    if "encoder" in args.rows:
        path = next((path for (name, _), path in pretrained.items() if name == "default" and path), None)
        if path is not None and load_checkpoint(path, "mrhash-autoencoder-1")["network"]["encoder"] != "dual":
            failed.append("row encoder: there is no second source")
            wanted = [variant for variant in wanted if variant[0] != "encoder"]

    size = f"{args.hash_bit}bit-{args.image_size}px-{args.max_epoch}-{args.batch_size}"
    stage2 = {}
    for _, _, first, second in wanted:
        for seed in args.seeds:
            path = pretrained[folder_name(first), seed]
            if path is not None:
                stage2[folder_name(first), folder_name(second), seed] = (path, second)
    cells = [(f"autoencoder {first}, train {second}, seed {seed}",
              partial(train_and_test, args, folder / f"{first}--{second}-{size}-{seed}", path, args.hash_bit, seed,
                      flags)) for (first, second, seed), (path, flags) in stage2.items()]
    done, lost = run_cells(args.jobs, cells)
    results = dict(zip(stage2, done, strict=True))

    records = []
    for row, variant, first, second in wanted:
        for seed in args.seeds:
            found = results.get((folder_name(first), folder_name(second), seed))
            if found is not None and row != TIES:
                records.append({"data": args.data_name, "row": row, "variant": variant, **found})
            elif found is not None:
                cell = folder / f"default--default-{size}-{seed}"
                tied, broken = run_cells(1, [(f"ties of {cell.name}", partial(maps_by_ties, cell, found["R"]))])
                records += [{"data": args.data_name, "row": row, "variant": ties, **found, "map": value}
                            for ties, value in (tied[0] or {}).items()]
                lost += broken
    if records:
        write_csv(folder / "effects.csv", records)
        print_rows(records, args.rows, args.seeds)
    if failed + lost:
        raise InputError(f"{len(failed + lost)} of the cells failed; what is done stays done: "
                         f"{'; '.join(failed + lost)}")


if __name__ == "__main__":
    sys.exit(run(main))
