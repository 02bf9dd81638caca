"""The table: MrHash, its ablations and other methods on one split and the same features.

    python -m benchmarks.compare --data_name UCMerced --hash_bit 16 32 64 128 --seeds 3
    python -m benchmarks.compare --methods effects --hash_bit 32

Every cell is the three scripts, run as a user would, or a classical or deep baseline on the same
frozen features. A cell that is done is read, not run again: stop it, start it again, add methods or
lengths; a failed cell is reported and does not stop the others. Labels are used to measure, never
to choose (but by the rows whose names say so). Written to <output_dir>/<dataset>: compare.md (the
tables), .tex (for a paper), .csv (every cell), .json; differences.csv (each pair of methods on the
same queries), query_ap.csv (AP of each query), map_by_bits.png, precision_recall.png and .csv.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from argparse import _ArgumentGroup as Group
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.cells import Cell, Key, Record, claim, folder_name, run_cells
from benchmarks.classical import Classical
from benchmarks.methods import ALONE, GROUPS, PAIRED, TITLES, TRAINED, USUAL
from benchmarks.report import report
from benchmarks.trained import pretrain, stop_scripts, test_again, train_and_test
from data_loader import config_of
from datasets.base import PairedDataset
from datasets.store import unreadable
from engine.backbones import preprocessing_of
from engine.checkpoint import LIMITS
from engine.cli import ArgumentParser, number, run
from engine.data_flags import add_own_image_flags
from engine.network_flags import add_views_flag
from hamming.figures import FORMATS
from myautoencoder.images import load_usable
from network import load_backbone
from utils import LARGEST_SIDE, InputError, resolve_path

BITS = number(int, *LIMITS["hash_bit"])


def parse_arguments(arguments: Sequence[str] | None = None) -> Namespace:
    parser = ArgumentParser(prog="python -m benchmarks.compare",
                            description=__doc__.splitlines()[0])
    _add_table_flags(parser.add_argument_group("table"))
    _add_cell_flags(parser.add_argument_group("cells"))
    args = parser.parse_args(arguments)
    args.hash_bit = sorted(set(args.hash_bit))
    if args.ablation_bit is None:
        args.ablation_bit = args.hash_bit
    args.ablation_bit = sorted(set(args.ablation_bit))
    wanted = {name for word in args.methods for name in GROUPS.get(word, [word])}
    args.methods = [name for name in TITLES if name in wanted]
    if args.image_size is None:
        args.image_size = preprocessing_of(args.backbone).image_size
    if args.against not in (None, *args.methods):
        parser.error(f"argument --against: {args.against} is not among --methods")
    args.weights_content = None  # known where cells are to be made
    if args.curve_bit is None:
        args.curve_bit = 64 if 64 in args.hash_bit else args.hash_bit[-1]
    elif args.curve_bit not in args.hash_bit:
        parser.error(f"argument --curve_bit: {args.curve_bit} is not among --hash_bit")
    return args


def _add_table_flags(group: Group) -> None:
    add = group.add_argument
    add("--hash_bit", type=BITS, nargs="+", default=[16, 32, 64, 128], help="lengths of the codes")
    add("--ablation_bit", type=BITS, nargs="*",
        help="lengths at which ablations are made (default: those of --hash_bit); each is a "
             "training")
    add("--methods", nargs="+", choices=[*TITLES, *GROUPS], default=USUAL, metavar="METHOD",
        help=f"rows, of {', '.join(TITLES)}; effects: mrhash and all that change one setting of "
             "it; parts: best and all that change one")
    add("--seeds", type=number(int, 1), default=3,
        help="how many runs of each cell; a seed draws the split (where no lists give it), the "
             "initial weights, the clusters, order and crops")
    add("--first_seed", type=number(int, 0), default=13, help="they are this one and the next")
    add("--against", choices=TITLES, metavar="METHOD",
        help="the method from which the differences of the others are told (default: best, or the "
             "last row that is no ablation); an ablation is told from the method that it changes")
    add("--curve_bit", type=BITS,
        help="length whose precision and recall are drawn (default: 64, or the longest)")
    add("--format", nargs="+", choices=FORMATS, default=["png"], help="of the figures")
    add("--title", type=lambda text: " ".join(text.split()), help="of tables and figures, one line")


def _add_cell_flags(group: Group) -> None:
    """Flags of what cells are made of: the data, the backbone, the size of the runs."""
    whole = number(int, 1)
    add = group.add_argument
    add("--data_name", default="UCMerced", help="any dataset with labels")
    add("--data_dir", default="data", help="where it lies")
    add("--source1", help="as for autoencoder.py; pairs need it")
    add("--source2", help="as for autoencoder.py; pairs need it for a second view")
    add("--split_dir", help="published lists, if any")
    add("--max_per_class", type=whole, help="use at most so many images of each class")
    add_own_image_flags(group)
    add("--skip_bad", action="store_true",
        help="as for autoencoder.py: leave out unreadable images")
    add("--skip_unpaired", action="store_true",
        help="as for autoencoder.py: leave out scenes without a partner, and the rows that take no "
             "second source, which would see them")
    add("--backbone", default="efficientnet_lite0",
        help="for the features and for the hash network")
    add("--weights", default="imagenet", help="of the backbone, as for train.py --weights")
    add_views_flag(group, "that the deep baselines learn from (MrHash has its own)", 8)
    add("--image_size", type=number(int, 1, LARGEST_SIDE),
        help="for the hash network, where it is fine-tuned (default: the network's own)")
    add("--max_epoch", type=number(int, 0), default=50, help="as for train.py")
    add("--batch_size", type=whole, default=128,
        help="as for train.py; a small one makes more steps of few epochs")
    add("--jobs", type=whole, default=1, help="cells at once: several fill one GPU, or a core each")
    add("--amp", action="store_true", help="bfloat16 in train.py")
    add("--cache_dir", default="cache", help="as for train.py")
    add("--output_dir", default="runs/compare", help="where the cells and the tables go")


def trained_cells(args: Namespace, folder: Path, dataset: PairedDataset, seed: int,
                  methods: Sequence[str]) -> list[Cell]:
    """The cells of the trained methods on one seed; the autoencoders, which they share, first."""
    pretrained, trained, tested = {}, {}, []
    for name in methods:
        if name not in TRAINED:
            continue
        method = TRAINED[name]
        slug, other = folder_name(method.first), folder_name(method.second)
        size = f"{args.image_size}px-{args.max_epoch}-{args.batch_size}-" if method.sized else ""
        start = folder / f"autoencoder-{slug}-{seed}"
        for bits in args.hash_bit if method.base is None else args.ablation_bit:
            pretrained[start] = Cell(
                start, f"autoencoder {slug}, seed {seed}",
                partial(pretrain, args, start, seed, method.first, dataset))
            cell = folder / f"{slug}--{other}-{size}{bits}bit-{seed}"
            said = f"{method.title}, {bits} bits, seed {seed}"
            make = partial(train_and_test, args, cell, start / "autoencoder.pth", bits, seed,
                           method.second, method.sized)
            if not method.hashing:
                trained[cell] = Cell(cell, said, make, key=(name, bits, seed), after=start)
                continue
            trained.setdefault(cell, Cell(cell, f"the network of {said}", make, after=start))
            again = cell / folder_name(method.hashing)
            tested.append(Cell(
                again, said, partial(test_again, args, again, cell, start / "autoencoder.pth", bits,
                                     seed, method.hashing),
                key=(name, bits, seed), after=cell))
    return [*pretrained.values(), *trained.values(), *tested]


def plan(args: Namespace, folder: Path, datasets: Mapping[int, PairedDataset],
         methods: Sequence[str]) -> list[Cell]:
    """Every cell of the table, those that others start from before them."""
    cells = []
    for seed, dataset in datasets.items():
        cells += Classical(args, folder, dataset, seed).cells(methods)
    for seed, dataset in datasets.items():
        cells += trained_cells(args, folder, dataset, seed, methods)
    # All autoencoders before all that wait for one: a cell that waits holds one of the --jobs.
    return sorted(cells, key=lambda cell: cell.after is not None)


def load_datasets(args: Namespace) -> dict[int, PairedDataset]:
    """seed -> the images with the split of that seed. Raises InputError: they have no labels."""
    datasets = {}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        datasets[seed], _ = load_usable(config_of(args, seed), args.skip_bad, workers=4)
    if datasets[args.first_seed].labels is None:
        raise InputError("these images have no labels, so there is nothing to compare: class "
                         "sub-folders give labels")
    return datasets


def possible_methods(args: Namespace, dataset: PairedDataset) -> list[str]:
    """Those of --methods that fit the images; says which do not."""
    unfit, reason = set(), ""
    if dataset.source2 is None:
        unfit, reason = PAIRED, "there is no second source"
    elif args.skip_unpaired:
        unfit, reason = ALONE, "without the second source they would see other scenes"
    left_out = [name for name in args.methods if name in unfit]
    if left_out:
        print(f"left out, {reason}: {', '.join(left_out)}")
    if args.against in left_out:
        raise InputError(f"--against {args.against}: it is left out, {reason}")
    return [name for name in args.methods if name not in unfit]


def reference_of(methods: Sequence[str]) -> str | None:
    """From which of the rows the differences of the others are told: best, or the last that is no
    ablation, or the last.
    """
    whole = [name for name in methods if name not in TRAINED or TRAINED[name].base is None]
    return "best" if "best" in methods else next(reversed(whole or methods), None)


def check_needs(args: Namespace, cells: Sequence[Cell], dataset: PairedDataset) -> None:
    """Raise InputError, once and not a cell, where weights or packages for cells cannot be had.

    With cells to make, args.weights_content says which weights they are: those of finished ones,
    too.
    """
    if all((cell.folder / "results.json").exists() for cell in cells if cell.key):
        return
    backbone = load_backbone(args.backbone, args.weights)
    if args.image_size != backbone.preprocessing.image_size:
        load_backbone(args.backbone, args.weights, args.image_size)
    if args.weights != "none":  # those are drawn
        args.weights_content = backbone.digest
    for index, source in enumerate(dataset.sources):
        unreadable(source.subset(np.arange(1)), dataset.file_label(index))  # needs its packages


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    datasets = load_datasets(args)
    first = datasets[args.first_seed]
    methods = possible_methods(args, first)
    args.against = args.against or reference_of(methods)
    print(*first.remarks, first.describe(), sep="\n")
    folder = resolve_path(args.output_dir) / first.run_name
    claim(folder)
    cells = plan(args, folder, datasets, methods)
    if not any(cell.key for cell in cells):
        raise InputError("no row is left, so there is nothing to compare: name other --methods, or "
                         "lengths in --ablation_bit")
    check_needs(args, cells, first)
    records: dict[Key, Record] = {}
    try:
        failed = run_cells(cells, args.jobs, records, stop_scripts)
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here", file=sys.stderr)
        raise
    finally:
        if records:
            report(args, folder, datasets, records)
    if failed:
        raise InputError(f"{len(failed)} of the cells failed; what is done stays done: "
                         f"{'; '.join(failed)}")


if __name__ == "__main__":
    sys.exit(run(main))
