"""Stage 3: hash the images, rank them by Hamming distance, and measure.

    python test.py --hash_bit 32 --pretrain_path runs/mrhash_eurosat_32bit/mrhash.pth
    python test.py --codes runs/mrhash_eurosat_32bit/codes.npz --R 1900     codes of any method
    torchrun --nproc_per_node 4 test.py --codes archive_codes --hash_bit 64     ranks share the work

mAP is the expectation over all orders of items at the same distance (hamming/), not the accident of
one sort. The numbers go to <output_dir>/results.json, by default beside the model.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import hamming
from data_loader import MODULES, ImageLoader, inherit_dataset
from datasets.base import PairedDataset
from engine import cli, network_flags
from engine.checkpoint import load_checkpoint
from engine.cli import ArgumentParser, Compute, number
from engine.data_flags import add_data_flags
from engine.distributed import own_part, sum_over_ranks
from engine.files import atomic_file, write_json, writing
from engine.monitor import choose_R
from engine.outputs import check_outputs
from hamming.pictures import neighbour_picture, some_neighbours
from myautoencoder.features import (
    FeatureExtractor,
    apply_network,
    hash_features,
    mean_of_views,
)
from network import rebuild_hash_network
from utils import InputError, collapse_warning, rank, resolve_path, warn, warn_of_boxes


def main() -> None:
    """Every rank computes, rank 0 writes."""
    args = parse_arguments()
    compute = cli.setup(args)  # device
    started = time.time()
    output_dir = check_outputs(args)

    # ------------------------------------------------------------ codes
    if args.codes is not None:
        dataset, content = None, hamming.read_codes(resolve_path(args.codes), args.hash_bit, args.T)
    else:
        dataset, content = hash_dataset(args, compute)
    if rank() == 0:
        save_codes(args, content, output_dir)
        if args.picture:
            draw_neighbours(content, dataset, resolve_path(args.picture))
    warn_of_constant_bits(content)

    # ------------------------------------------------------------ ranking
    if "query_labels" not in content:
        more = "" if args.save_codes else "; --save_codes FILE keeps the codes"
        print(f"these images have no labels, so there is no mAP to compute{more}")
        return
    R = choose_R(args.R, content["database_labels"])
    histograms = count_distances(content, str(compute.device))
    both = args.preset == "published"
    stable = rank_stably(content, R) if both or args.ties == "stable" else None
    results = hamming.summarise(histograms, R, args.ties, stable)
    if both:
        results["map_stable"] = float(stable["ap"].mean())
    if args.views > 1:
        results["views"] = args.views
    results["seconds"] = round(time.time() - started, 3)

    # ------------------------------------------------------------ save
    if rank() == 0:
        write_json(output_dir / "results.json", results)
        print(summary(results) + remark(results))
        print(f"wrote {output_dir / 'results.json'}")
        if args.figures:
            from hamming.figures import write_figures  # here, because matplotlib takes its time

            folder = resolve_path(args.figures)
            with writing(folder):
                boxes = write_figures(histograms, R, content["query_labels"],
                                      content.get("class_names"), folder)
            print(f"wrote the figures and their numbers to {folder}")
            warn_of_boxes(boxes)


# ---------------------------------------------------------------- codes


def hash_dataset(args: argparse.Namespace, compute: Compute
                 ) -> tuple[PairedDataset, dict[str, Any]]:
    """Codes, labels and names of the images a trained model belongs to, as in codes.npz.

    Raises:
        InputError: no such model, flags that contradict it, other images than its own, or
            --figures without labels.
    """
    path = resolve_path(args.pretrain_path)
    checkpoint = load_checkpoint(path, "mrhash-1")
    network = checkpoint["network"]
    bits = network["hash_bit"]
    if args.hash_bit not in (None, bits):
        raise InputError(f"--hash_bit {args.hash_bit} contradicts {path}, which gives {bits} bits: "
                         "leave the flag out or name the other model")
    hash_network = rebuild_hash_network(checkpoint, path)
    dataset, _ = inherit_dataset(args, checkpoint, compute.cache_dir, second=False)
    print(dataset.describe(second=False))
    if args.figures and dataset.labels is None:
        raise InputError("--figures needs labels, and these images have none: leave it out")
    label = dataset.file_label(0)
    # A backbone that stayed frozen in training has seen the images already.
    extractor = FeatureExtractor(hash_network.backbone, compute, network.get("views", 1))
    known = extractor.cached(dataset.source1, label, args.views)
    if known is not None:
        print("the frozen backbone's features are in the cache: hashing those")
        hash_network.to(compute.device)
    else:
        loader = ImageLoader(dataset.source1, label, hash_network.backbone.preprocessing, compute,
                             resident=False)  # each image is needed once
        if compute.compile:
            hash_network.backbone.compile_for(compute.device)
    threshold = network["threshold"] if args.T is None else args.T
    content: dict[str, Any] = {"hash_bit": bits}
    for part, rows in (("database", dataset.database), ("query", dataset.query)):
        if known is not None:
            outputs = hash_features(hash_network, known, rows, compute)
        else:
            outputs = apply_network(hash_network, loader, rows, compute, f"{part} codes",
                                    args.views)
        means = (mean_of_views(values, args.views) for values in outputs)
        content[f"{part}_codes"] = np.concatenate([hamming.pack_codes(x, threshold) for x in means])
        content[f"{part}_paths"] = np.array([dataset.names[row] for row in rows])
        if dataset.labels is not None:
            content[f"{part}_labels"] = dataset.labels[rows]
    if dataset.labels is not None:
        content["class_names"] = np.array(dataset.class_names)
    return dataset, content


def warn_of_constant_bits(content: dict[str, Any]) -> None:
    """A warning where bits of the database's codes are constant."""
    if rank() == 0:
        constant = hamming.constant_bits(content["database_codes"], content["hash_bit"])
        if constant:
            warn(collapse_warning(constant, content["hash_bit"]))


# ---------------------------------------------------------------- ranking


def count_distances(content: dict[str, Any], device: str) -> hamming.Histograms:
    """The tables that all metrics come from; each rank counts its part of the database."""
    part = own_part(len(content["database_codes"]))
    counts = hamming.distance_histograms(
        content["query_codes"], content["database_codes"][part], content["query_labels"],
        content["database_labels"][part], content["hash_bit"], device)
    return hamming.Histograms(sum_over_ranks(counts.items), sum_over_ranks(counts.relevant))


def rank_stably(content: dict[str, Any], R: int) -> dict[str, np.ndarray]:
    """Metrics of --ties stable, float64 (Q,) each; each rank sorts for its part of the queries."""
    queries = content["query_codes"], content["query_labels"]
    part = own_part(len(queries[0]))
    own = hamming.stable_metrics(queries[0][part], content["database_codes"], queries[1][part],
                                 content["database_labels"], content["hash_bit"], R)
    metrics = {}
    for name, values in own.items():
        whole = np.zeros(len(queries[0]))
        whole[part] = values
        metrics[name] = sum_over_ranks(whole)
    return metrics


def summary(results: dict[str, Any]) -> str:
    """results.json in a line."""
    stable = f"; stable {results['map_stable']:.4f}" if "map_stable" in results else ""
    views = f" of {results['views']} views" if "views" in results else ""
    return (f"mAP@{results['R']} {results['map']:.4f} (ties: {results['ties']}{stable}; any order "
            f"gives {results['map_min']:.4f} to {results['map_max']:.4f}; chance "
            f"{results['map_chance']:.4f}), {results['hash_bit']} bits{views}, "
            f"{results['num_query']:,} queries, {results['num_database']:,} in the database")


def remark(results: dict[str, Any]) -> str:
    """A line more where so few queries or ranks are looked at that the mAP says little."""
    R, queries = results["R"], results["num_query"]
    reasons = []
    if R < 5:
        reasons.append("of each ranking only the nearest image counts" if R == 1 else
                       f"of each ranking only the first {R} images count")
    if queries < 10:
        reasons.append("there is one query" if queries == 1 else
                       f"each of the {queries} queries can change it by {1 / queries:.2f}")
    return f"\nthis mAP says little: {', and '.join(reasons)}" if reasons else ""


# ---------------------------------------------------------------- output


def save_codes(args: argparse.Namespace, content: dict[str, Any], output_dir: Path) -> None:
    """What --save_codes and --gen_similarity_matrix ask for."""
    if args.gen_similarity_matrix:
        with atomic_file(output_dir / "similarity.npy") as file:
            hamming.write_similarity(content, file)
        print(f"wrote {output_dir / 'similarity.npy'}")
        if args.codes is None and not args.save_codes:
            # The rows and columns of the matrix, with their labels.
            args.save_codes = output_dir / "codes.npz"
    if args.save_codes:
        buffer = io.BytesIO()
        np.savez(buffer, **content)
        with atomic_file(resolve_path(args.save_codes)) as file:
            file.write(buffer.getbuffer())
        print(f"wrote {resolve_path(args.save_codes)}")


def draw_neighbours(content: dict[str, Any], dataset: PairedDataset, path: Path) -> None:
    """The picture: some queries with their nearest images."""
    found = some_neighbours(content)
    read = dataset.source1.read
    queries = [read(row) for row in dataset.query[found.queries]]
    nearest = [[read(row) for row in rows] for rows in dataset.database[found.nearest]]
    captions = found.captions([dataset.names[row] for row in dataset.query])
    names = [[dataset.names[row] for row in (query, *rows)] for query, rows in zip(
        dataset.query[found.queries], dataset.database[found.nearest], strict=True)]
    with atomic_file(path) as file:
        boxes = neighbour_picture(queries, nearest, found.relevant, captions, file, names)
    print(f"wrote {path}")
    warn_of_boxes(boxes)


# ---------------------------------------------------------------- flags


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(prog="test.py", description=__doc__.splitlines()[0])
    add_data_flags(parser, MODULES, inherited=True)
    add_method_flags(parser.add_argument_group("method"))
    add_output_flags(parser.add_argument_group("output"))
    cli.add_run_flags(parser, batch_size=128)
    return cli.parse_with_preset(parser, arguments)


def add_method_flags(group: argparse._ArgumentGroup) -> None:
    what = group.add_mutually_exclusive_group(required=True)
    what.add_argument("--pretrain_path",
                      help="the mrhash.pth of train.py; it says which images and split")
    what.add_argument("--codes",
                      help="evaluate anyone's codes without a model: an .npz with database_codes, "
                           "query_codes, database_labels, query_labels and hash_bit, or, for "
                           "archives larger than memory, a folder of .npy files of these names. "
                           "Codes are packed (uint8, numpy.packbits order), or one value a bit")
    group.add_argument("--hash_bit", type=number(int, 1),
                       help="only checked: the model (or the file of codes) knows its length, "
                            "except a folder of packed codes without hash_bit.npy")
    group.add_argument("--R", type=number(int, 1),
                       help="mAP@R (default: the smallest class in the database, 1900 for EuroSAT)")
    network_flags.add_views_flag(group, "whose outputs are averaged before their sign is taken", 1)
    group.add_argument("--T", type=number(float, -1e30, 1e30),
                       help="a bit is 1 where the output is >= T (default: as trained, 0). With "
                            "--codes, for codes of one value a bit")
    group.add_argument("--ties", choices=hamming.TIES, default="expected",
                       help="how `map` treats equal distances: expected over all orders; stable as "
                            "numpy.argsort(kind='stable') to compare with other code (--preset "
                            "published gives it beside the expected one); min and max as bounds")


def add_output_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--output_dir",
                       help="where results.json goes (default: beside the model or codes)")
    group.add_argument("--save_codes", help="write the codes, labels and names to this .npz")
    group.add_argument("--figures",
                       help="write here, as PNG and as CSV: precision-recall curve, precision "
                            "against rank, AP of each class")
    group.add_argument("--picture",
                       help="write this PNG: queries with their ten nearest images")
    group.add_argument("--gen_similarity_matrix", type=int, choices=(0, 1), default=0,
                       help="1: write similarity.npy, database x query, 1 - 2 * distance / bits, "
                            "float32, 4 bytes for each pair; and codes.npz, its rows and columns: "
                            "codes, labels and names")


if __name__ == "__main__":
    sys.exit(cli.run(main, shared=True))
