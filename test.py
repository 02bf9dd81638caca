"""Stage 3: hash the images, rank them by Hamming distance, and measure.

    python test.py --hash_bit 32 --pretrain_path runs/mrhash_eurosat_32bit/mrhash.pth
    python test.py --codes runs/mrhash_eurosat_32bit/codes.npz --R 1900     codes of any method
    torchrun --nproc_per_node 4 test.py --codes archive_codes --hash_bit 64     each rank a part of the database

mAP is the expectation over all orders of items at the same distance (hamming.py), not the accident of one
sort. The numbers go to <output_dir>/results.json, by default beside the model.
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
from data_loader import PairedDataset, add_data_flags, choose_R, inherit_dataset
from datasets.store import ImageLoader, ImageStore
from engine.checkpoint import load_checkpoint
from engine.cli import ArgumentParser, add_run_flags, finite_float, parse_with_preset, positive_int, run
from engine.distributed import own_part, sum_over_ranks
from engine.files import atomic_file, check_writable, write_json
from hamming.files import load_npz
from hamming.pictures import neighbour_picture
from myautoencoder.features import apply_network, hash_features, known_features
from network import rebuild_hash_network
from utils import InputError, collapse_warning, rank, resolve_path, setup_device, warn


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(prog="test.py", description=__doc__.splitlines()[0])
    add_data_flags(parser, inherited=True)
    group = parser.add_argument_group("method")
    what = group.add_mutually_exclusive_group(required=True)
    what.add_argument("--pretrain_path", help="the mrhash.pth of train.py; it says which images and split")
    what.add_argument("--codes", help="evaluate anyone's codes without a model: an .npz with database_codes, "
                                      "query_codes, database_labels, query_labels and hash_bit, or, for "
                                      "archives larger than memory, a folder of .npy files of these names. "
                                      "Codes are packed (uint8, numpy.packbits order), or one value a bit")
    group.add_argument("--hash_bit", type=positive_int,
                       help="only checked: the model (or the file of codes) knows its length, except a folder "
                            "of packed codes without hash_bit.npy")
    group.add_argument("--R", type=positive_int,
                       help="mAP@R (default: the smallest class in the database, 1900 for EuroSAT)")
    group.add_argument("--T", type=finite_float, help="a bit is 1 where the output is >= T (default: as trained, 0). "
                                                "With --codes, for codes of one value a bit")
    group.add_argument("--ties", choices=hamming.TIES, default="expected",
                       help="how `map` treats equal distances: expected over all orders; stable as "
                            "numpy.argsort(kind='stable') to compare with other code; min and max as bounds")
    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", help="where results.json goes (default: beside the model or codes)")
    group.add_argument("--save_codes", help="write the codes, labels and names to this .npz")
    group.add_argument("--figures", help="write here, as PNG and as CSV: precision-recall curve, precision "
                                         "against rank, AP of each class")
    group.add_argument("--picture", help="write this PNG: queries with their ten nearest images")
    group.add_argument("--gen_similarity_matrix", type=int, choices=(0, 1), default=0,
                       help="1: write similarity.npy, database x query, 1 - 2 * distance / bits, float32, 4 bytes "
                            "for each pair; and codes.npz, its rows and columns: codes, labels and names")
    add_run_flags(parser, batch_size=128)
    return parse_with_preset(parser, arguments)


def hash_dataset(args: argparse.Namespace, device: Any) -> tuple[dict[str, Any], PairedDataset]:
    """Codes, labels and names of the images a trained model belongs to, as stored in codes.npz."""
    path = resolve_path(args.pretrain_path)
    checkpoint = load_checkpoint(path, "mrhash-1")
    network = checkpoint["network"]
    if args.hash_bit not in (None, network["hash_bit"]):
        raise InputError(f"--hash_bit {args.hash_bit} contradicts {path}, which gives {network['hash_bit']} "
                         "bits: leave the flag out or name the other model")
    hash_network = rebuild_hash_network(checkpoint, path)
    dataset, _ = inherit_dataset(args, checkpoint)
    print(dataset.describe())
    cache_dir = None if args.cache_dir == "none" else resolve_path(args.cache_dir)
    # A backbone that stood still in training (--max_epoch -1, --multi_lr 0) has seen the images already.
    known = known_features(dataset.source1, dataset.file_label(0), network["model_type"], hash_network.backbone,
                           network["image_size"], args.amp, cache_dir)
    if known is None:
        store = ImageStore.open(dataset.source1, dataset.file_label(0), network["image_size"], cache_dir,
                                args.workers)
        loader = ImageLoader(store, device, resident=False)  # each image is needed once
        if args.compile:
            hash_network.backbone.compile_for(device)
    else:
        print("hashing the features that the backbone's weights are known to give")
        hash_network.to(device)
    threshold = network["threshold"] if args.T is None else args.T
    content: dict[str, Any] = {"hash_bit": network["hash_bit"]}
    for part in ("database", "query"):
        rows = getattr(dataset, part)
        if known is None:
            outputs = apply_network(hash_network, loader, rows, network["image_size"], args.batch_size, args.amp,
                                    f"{part} codes")
        else:
            outputs = hash_features(hash_network, known, rows, args.batch_size, device)
        content[f"{part}_codes"] = np.concatenate([hamming.pack_codes(values, threshold) for values in outputs])
        content[f"{part}_paths"] = np.array([dataset.names[row] for row in rows])
        if dataset.labels is not None:
            content[f"{part}_labels"] = dataset.labels[rows]
    if dataset.labels is not None:
        content["class_names"] = np.array(dataset.class_names)
    return content, dataset


NEEDED = ("database_codes", "query_codes", "database_labels", "query_labels")
OPTIONAL = ("hash_bit", "class_names")  # names of images may stand beside them


def read_codes(path: Path, hash_bit: int | None, threshold: float | None) -> dict[str, Any]:
    """The arrays of a codes file or of a folder of .npy files; nothing in them is unpickled.

    Args:
        path: an .npz, or a folder, whose arrays are memory-mapped. hash_bit: None, or what the bits must be.
            threshold: for codes that are not packed; None is 0.
    Returns:
        the arrays, with packed `database_codes` and `query_codes` and `hash_bit` a plain int.
    Raises:
        InputError: not such a file, an array is missing, or the bits differ.
        CodeError: codes or labels of an impossible shape or type.
    """
    if not path.exists():
        raise InputError(f"no codes at {path}: expected an .npz as written by test.py --save_codes, or a folder "
                         "of .npy files")
    if path.suffix == ".npy":
        raise InputError(f"{path} is one array: give the folder that holds {', '.join(NEEDED)} as .npy files, or "
                         "an .npz")
    place = path
    content: dict[str, Any] = {}
    try:
        if path.is_dir():
            for name in (*NEEDED, *OPTIONAL):
                place = path / f"{name}.npy"
                if place.is_file():
                    content[name] = np.load(place, mmap_mode="r", allow_pickle=False)
        else:
            content = load_npz(path, (*NEEDED, *OPTIONAL))
        if not all(isinstance(array, np.ndarray) for array in content.values()):
            raise ValueError("an entry is no array")
    except Exception as error:  # numpy, zipfile and zlib raise many kinds for a damaged or foreign file
        reason = " ".join(str(error).split(". ")[0].split())
        kind = "a whole .npy" if path.is_dir() else "a whole .npz of plain arrays"
        raise InputError(f"{place} is not {kind} ({reason})") from None
    missing = [name for name in NEEDED if name not in content]
    if missing:
        raise InputError(f"{path} has no {', '.join(missing)}: expected {', '.join(NEEDED)}")
    if "class_names" in content and (content["class_names"].ndim != 1 or content["class_names"].dtype.kind != "U"):
        raise InputError(f"{path}: class_names are {content['class_names'].dtype} of shape "
                         f"{content['class_names'].shape}, expected one text for each class")
    stored = content.get("hash_bit")
    if stored is not None:
        if stored.size != 1 or stored.dtype.kind not in "iu":
            raise InputError(f"{path}: hash_bit is {stored!r}, expected one integer")
        stored = int(stored.reshape(()))
        if hash_bit not in (None, stored):
            raise InputError(f"--hash_bit {hash_bit} contradicts {path}, which holds {stored} bits")
    hash_bit = stored if stored is not None else hash_bit
    for part in ("database", "query"):
        codes = content[f"{part}_codes"]
        if codes.dtype.kind in "bu" and threshold is not None:
            raise InputError(f"--T is for codes of real numbers, and those of {path} are bits ({codes.dtype}): "
                             "leave it out")
        if hash_bit is None and codes.dtype == np.uint8:
            raise InputError(f"{path} does not say how many bits its codes have: add --hash_bit")
        content[f"{part}_codes"], hash_bit = hamming.as_codes(codes, hash_bit, threshold or 0.0, f"{part}_codes")
        # All of them, before a rank looks at its part alone.
        hamming.check_label_type(content[f"{part}_labels"], len(codes), f"{part}_labels")
    content["hash_bit"] = hash_bit
    return content


def measure(content: dict[str, Any], R: int, ties: str, device: str
            ) -> tuple[dict[str, Any], hamming.Histograms]:
    """results.json but the seconds, and the tables it comes from; the same for any number of ranks.

    Every rank counts its part of the database, and ranks its part of the queries where the order of an
    explicit sort is asked for.
    """
    queries = content["query_codes"], content["query_labels"]
    database = content["database_codes"], content["database_labels"]
    bits, part = content["hash_bit"], own_part(len(database[0]))
    counts = hamming.distance_histograms(queries[0], database[0][part], queries[1], database[1][part], bits,
                                         device)
    histograms = hamming.Histograms(sum_over_ranks(counts.items), sum_over_ranks(counts.relevant))
    stable = None
    if ties == "stable":
        part, stable = own_part(len(queries[0])), {}
        own = hamming.stable_metrics(queries[0][part], database[0], queries[1][part], database[1], bits, R)
        for name, values in own.items():
            stable[name] = np.zeros(len(queries[0]))
            stable[name][part] = values
            stable[name] = sum_over_ranks(stable[name])
    return hamming.summarise(histograms, R, ties, stable), histograms


def warn_of_collapse(content: dict[str, Any]) -> None:
    """A warning where bits of the database's codes are constant."""
    constant = hamming.constant_bits(content["database_codes"], content["hash_bit"]) if rank() == 0 else 0
    if constant:
        warn(collapse_warning(constant, content["hash_bit"]))


def draw_neighbours(content: dict[str, Any], dataset: PairedDataset, path: Path, rows: int = 6) -> None:
    """The picture: queries spread over the list (so over the classes), ten nearest images each."""
    chosen = np.linspace(0, len(dataset.query) - 1, min(rows, len(dataset.query))).round().astype(int)
    nearest, distances = hamming.nearest(content["query_codes"][chosen], content["database_codes"],
                                         content["hash_bit"], min(10, len(dataset.database)))
    relevant = None
    if dataset.labels is not None:
        theirs = dataset.labels[dataset.database][nearest]
        own = dataset.labels[dataset.query][chosen][:, None]
        relevant = theirs == own if dataset.labels.ndim == 1 else ((theirs > 0) & (own > 0)).any(axis=2)
    captions = [f"{dataset.names[dataset.query[query]]}   distances {', '.join(map(str, row))} of "
                f"{content['hash_bit']} bits" for query, row in zip(chosen, distances.tolist(), strict=True)]
    neighbour_picture(dataset.source1, dataset.query[chosen], dataset.database[nearest], relevant, captions,
                      path)


def write_similarity(content: dict[str, Any], path: Path) -> None:
    """similarity.npy: float32 (database, query), 1 for equal codes, -1 for opposite ones."""
    bits = content["hash_bit"]
    query = 1 - 2 * hamming.unpack_codes(content["query_codes"], bits).astype(np.float32)
    with atomic_file(path) as file:
        shape = (len(content["database_codes"]), len(query))
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for start in range(0, shape[0], 4096):
            rows = hamming.unpack_codes(content["database_codes"][start:start + 4096], bits)
            file.write(((1 - 2 * rows.astype(np.float32)) @ query.T / bits).astype("<f4").tobytes())


def main() -> None:
    """Every rank computes, rank 0 writes."""
    args = parse_arguments()
    device = setup_device(args.device)
    started = time.time()
    dataset = None
    for flag, is_folder in (("output_dir", True), ("figures", True), ("save_codes", False), ("picture", False)):
        path = getattr(args, flag) and resolve_path(getattr(args, flag))
        if path and path.exists() and path.is_dir() != is_folder:
            found, wanted = ("a file", "a folder") if is_folder else ("a folder", "a file")
            raise InputError(f"--{flag} {path} is {found}, expected {wanted}")
    if args.figures:
        try:
            from hamming.figures import write_figures
        except ImportError as error:
            raise InputError(f"--figures needs matplotlib ({error}): pip install -r requirements.txt") from None
    if args.codes is not None and args.picture:
        raise InputError("--picture needs the images: use it with --pretrain_path")
    path = resolve_path(args.pretrain_path if args.codes is None else args.codes)
    writes = rank() == 0
    if writes:  # what cannot be written is said now, not after the work
        for flag in ("output_dir", "figures", "save_codes", "picture"):
            if getattr(args, flag):
                place = resolve_path(getattr(args, flag))
                check_writable(place if flag in ("output_dir", "figures") else place.parent, f"--{flag}")
    output_dir = resolve_path(args.output_dir) if args.output_dir else path if path.is_dir() else path.parent
    if writes and path.exists():
        check_writable(output_dir, "--output_dir")
    if args.codes is not None:
        content = read_codes(path, args.hash_bit, args.T)
    else:
        content, dataset = hash_dataset(args, device)

    if args.gen_similarity_matrix and writes:
        write_similarity(content, output_dir / "similarity.npy")
        print(f"wrote {output_dir / 'similarity.npy'}")
        if args.codes is None and not args.save_codes:
            args.save_codes = output_dir / "codes.npz"  # the matrix' rows and columns, with their labels
    if args.save_codes and writes:
        buffer = io.BytesIO()
        np.savez(buffer, **content)
        with atomic_file(resolve_path(args.save_codes)) as file:
            file.write(buffer.getbuffer())
        print(f"wrote {resolve_path(args.save_codes)}")
    if args.picture and writes:
        draw_neighbours(content, dataset, resolve_path(args.picture))
        print(f"wrote {resolve_path(args.picture)}")
    if "query_labels" not in content:
        if args.figures:
            raise InputError("--figures needs labels, and these images have none: leave the flag out")
        print("these images have no labels, so there is no mAP to compute"
              + ("" if args.save_codes else "; --save_codes FILE keeps the codes"))
        warn_of_collapse(content)
        return

    R = choose_R(args.R, content["database_labels"])
    results, histograms = measure(content, R, args.ties, str(device))
    warn_of_collapse(content)
    results["seconds"] = round(time.time() - started, 3)
    if not writes:
        return
    write_json(output_dir / "results.json", results)
    print(f"mAP@{results['R']} {results['map']:.4f} (ties: {results['ties']}; any order gives "
          f"{results['map_min']:.4f} to {results['map_max']:.4f}; chance {results['map_chance']:.4f}), "
          f"{results['hash_bit']} bits, {results['num_query']:,} queries, {results['num_database']:,} in the "
          "database")
    print(f"wrote {output_dir / 'results.json'}")
    if args.figures:
        folder = resolve_path(args.figures)
        write_figures(histograms, R, content["query_labels"], content.get("class_names"), folder)
        print(f"wrote the figures and their numbers to {folder}")


if __name__ == "__main__":
    sys.exit(run(main, shared=True))
