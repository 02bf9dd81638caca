"""What pseudo multi-labels are worth before any hash network sees them, as mAP.

    python -m benchmarks.pseudo_labels runs/autoencoder_*/autoencoder.pth --n_clusters 8 16 32 64

For each autoencoder and number of clusters, a line of Markdown (docs/reproduction.md): mAP@R of the
latents; of the soft assignments q of queries and database, both by Euclidean distance; and among
how many clusters labels and targets are spread (exp of the mean entropy): 1 is a single label,
n_clusters says nothing at all. What is lost here no hash network can know.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import hamming
from benchmarks import tables
from data_loader import load_dataset
from datasets.base import DataConfig, PairedDataset
from engine.checkpoint import load_checkpoint
from engine.cli import ArgumentParser, Compute, cache_folder, number, run
from engine.network_flags import add_label_flags
from loss import (
    cluster_centres,
    degrees_of_freedom,
    label_spread,
    latent_scale,
    soft_assignment,
    target_distribution,
)
from myautoencoder.features import dataset_features
from myautoencoder.neighbours import prepare_features
from network import rebuild_autoencoder
from utils import InputError, resolve_path, setup_device

STARTS = 20  # of k-means, as in train.py


def latents_of(path: Path, data_dir: str | None, compute: Compute) -> tuple[PairedDataset, Tensor]:
    """The images of an autoencoder and their latents (N, latent_dim).

    Raises:
        InputError: no labels; a file that is damaged, or of other images.
    """
    stage1 = load_checkpoint(path, "mrhash-autoencoder-1")
    settings = stage1["features"]
    moved = {"data_dir": data_dir} if data_dir else {}
    dataset = load_dataset(DataConfig(**{**stage1["data"], **moved}))
    if dataset.labels is None:
        raise InputError(f"the images of {path} have no labels, so there is nothing to measure")
    arrays, _ = dataset_features(dataset, settings, settings["feature_weights"], compute,
                                 files=settings.get("files", (None, None)))
    arrays = prepare_features(arrays, dataset.train, settings, compute.device)
    features = [torch.from_numpy(np.array(x)).to(compute.device) for x in arrays]
    autoencoder = rebuild_autoencoder(stage1, path).to(compute.device)
    return dataset, autoencoder.encode_all(features).cpu()


def lines_of(name: str, dataset: PairedDataset, latent: Tensor, args: argparse.Namespace
             ) -> Iterator[str]:
    """A line of the table for each number of clusters."""
    labels = dataset.labels[dataset.query], dataset.database_labels
    R = hamming.smallest_class(labels[1])

    def value(x: Tensor) -> float:
        query, database = x[dataset.query].numpy(), x[dataset.database].numpy()
        return hamming.float_map(query, database, *labels, R=R)

    training = latent[dataset.train]
    alpha = degrees_of_freedom(args.alpha, latent.shape[1])
    for count in args.n_clusters:
        centres = torch.from_numpy(cluster_centres(training.numpy(), count, STARTS, args.seed))
        factor = 1.0
        if args.label_spread:
            factor = latent_scale(training, centres, alpha, args.label_spread)
        q = soft_assignment(latent * factor, centres * factor, alpha)
        pseudo = q[dataset.train]
        yield tables.row(name, count, f"{value(latent):.3f}", f"{value(q):.3f}",
                         f"{label_spread(pseudo):.1f}",
                         f"{label_spread(target_distribution(pseudo)):.1f}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m benchmarks.pseudo_labels",
                            description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("autoencoders", nargs="+", help="autoencoder.pth files whose images have labels")
    add("--n_clusters", type=number(int, 1), nargs="+", default=[16], help="as for train.py")
    add_label_flags(parser)
    add("--seed", type=number(int, 0), default=13, help="of k-means, as for train.py")
    add("--data_dir", help="when the images lie elsewhere now")
    add("--cache_dir", default="cache", help="as for train.py")
    args = parser.parse_args(arguments)
    cache_dir = cache_folder(args)
    compute = Compute(setup_device("auto"), cache_dir=cache_dir)
    lines = [tables.heading("autoencoder", "clusters", "mAP of latents", "mAP of assignments",
                            "clusters a label: q", "p")]
    for path in map(resolve_path, args.autoencoders):
        dataset, latent = latents_of(path, args.data_dir, compute)
        lines += lines_of(path.parent.name, dataset, latent, args)
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(run(main))
