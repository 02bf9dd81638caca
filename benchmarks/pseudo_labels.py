"""What pseudo multi-labels are worth before any hash network sees them: mAP of latents and of their assignments.

    python scripts/pseudo_labels.py runs/autoencoder_*/autoencoder.pth --n_clusters 8 16 32 64

For each autoencoder and number of clusters, a line of Markdown: mAP@R of the latents; of the soft assignments q of
queries and database, both by Euclidean distance; and how sharp assignments and targets are, as the number of clusters
among which a label is spread, exp of the mean entropy: 1 is a single label, n_clusters says nothing at all. Codes
are trained to agree with these labels, so what is lost here no hash network can know. Labels are only measured with.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

import hamming
from data_loader import DataConfig, load_dataset
from engine.checkpoint import load_checkpoint
from engine.cli import ArgumentParser, non_negative_int, positive_int, run
from loss import cluster_centres, soft_assignment, target_distribution
from myautoencoder.features import dataset_features, prepare_features
from network import rebuild_autoencoder
from utils import InputError, resolve_path, setup_device


def spread(labels: torch.Tensor) -> float:
    """exp(mean entropy) of the rows of (N, C)."""
    return float(torch.special.entr(labels).sum(dim=1).mean().exp())


def main() -> None:
    parser = ArgumentParser(prog="pseudo_labels.py", description=__doc__.splitlines()[0])
    parser.add_argument("autoencoders", nargs="+", help="autoencoder.pth files whose images have labels")
    parser.add_argument("--n_clusters", type=positive_int, nargs="+", default=[16], help="as for train.py")
    parser.add_argument("--seed", type=non_negative_int, default=13, help="of k-means, as for train.py")
    parser.add_argument("--data_dir", help="when the images lie elsewhere now")
    parser.add_argument("--cache_dir", default="cache", help="as for train.py")
    args = parser.parse_args()
    device = setup_device("auto")
    lines = ["| autoencoder | clusters | mAP of latents | mAP of assignments | clusters a label: q | p |",
             "|---|---|---|---|---|---|"]
    for name in args.autoencoders:
        path = resolve_path(name)
        stage1 = load_checkpoint(path, "mrhash-autoencoder-1")
        data = {**stage1["data"], **({"data_dir": args.data_dir} if args.data_dir else {})}
        dataset = load_dataset(DataConfig(**data))
        if dataset.labels is None:
            raise InputError(f"the images of {path} have no labels, so there is nothing to measure")
        arrays, _ = dataset_features(dataset, stage1["features"], stage1["features"]["feature_weights"], device, 128, 4,
                                     args.cache_dir, stage1["features"].get("files", [None, None]))
        arrays = prepare_features(arrays, dataset.train, stage1["features"], device)
        autoencoder = rebuild_autoencoder(stage1, path).to(device)
        latent = autoencoder.encode_all([torch.from_numpy(np.array(x)).to(device) for x in arrays]).cpu()
        labels = dataset.labels[dataset.query], dataset.labels[dataset.database]
        R = hamming.smallest_class(labels[1])

        def value(x: torch.Tensor, dataset=dataset, labels=labels, R=R) -> float:
            return hamming.float_map(x[dataset.query].numpy(), x[dataset.database].numpy(), *labels, R=R)

        for clusters in args.n_clusters:
            training = latent[dataset.train]
            centres = torch.from_numpy(cluster_centres(training.numpy(), clusters, 20, args.seed))
            q = soft_assignment(training, centres)
            lines.append(f"| {path.parent.name} | {clusters} | {value(latent):.3f} | "
                         f"{value(soft_assignment(latent, centres)):.3f} | {spread(q):.1f} | "
                         f"{spread(target_distribution(q)):.1f} |")
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(run(main))
