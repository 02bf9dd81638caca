"""What stage 2 takes from stage 1: the autoencoder, the images, their features, the backbone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.base import PairedDataset
from engine.backbones import preprocessing_of
from engine.checkpoint import load_checkpoint
from engine.cli import Compute
from engine.distributed import from_first
from engine.weights import check_file
from loss import cluster_centres, latent_scale
from myautoencoder.feature_files import feature_files_of
from myautoencoder.features import dataset_features
from myautoencoder.neighbours import prepare_features
from network import MultisourceAutoencoder
from utils import InputError, rank, resolve_path, warn


def load_stage1(args: argparse.Namespace) -> tuple[dict[str, Any], Path]:
    """The checkpoint of --pretrained_dp_path, and where it lies.

    Flags of train.py that are None become those of stage 1: --views, with --preset best also
    --model_type and, for the same network, --weights, --normalise, --image_size.

    Raises:
        InputError: no such checkpoint, or a flag that contradicts it.
    """
    path = resolve_path(args.pretrained_dp_path)
    checkpoint = load_checkpoint(path, "mrhash-autoencoder-1")
    width = checkpoint["network"]["latent_dim"]
    if args.latent_dim not in (None, width):
        raise InputError(f"--latent_dim {args.latent_dim} contradicts {path}, whose latent has "
                         f"{width} values: leave the flag out")
    features = checkpoint["features"]
    plain = features.get("feature_norm", "none") == "none" and not features.get("neighbours")
    if args.preset == "best" and plain:
        warn(f"{path} was made without --preset best (features neither normalised nor averaged "
             "over neighbours), so codes will be worse than they could be")
    own = args.model_type in (None, features["feature_backbone"])
    known = args.feature_weights or features["feature_weights"]
    if args.weights is None:
        args.weights = known if own else "imagenet"
    if args.normalise is None and own and args.weights in (known, features["feature_weights"]):
        args.normalise = features.get("normalise")  # it belongs to the weights
    args.model_type = args.model_type or features["feature_backbone"]
    if args.views is None:
        args.views = features.get("views", 1)
    if args.model_type is None:
        raise InputError(f"{path} was made from files of features, which do not say from which "
                         "network: name one with --model_type and --weights")
    size = args.image_size or (features["image_size"] if own else None)
    args.image_size = preprocessing_of(args.model_type, size).image_size
    if args.weights not in ("imagenet", "none"):
        check_file(resolve_path(args.weights), args.model_type)
    return checkpoint, path


def training_features(args: argparse.Namespace, dataset: PairedDataset,
                      stage1: tuple[dict[str, Any], Path], compute: Compute) -> list[Tensor]:
    """The frozen features of the training images, as the autoencoder has seen them.

    Returns:
        float32 (n, d) a source, on the device.
    Raises:
        InputError: as dataset_features; other weights or files than those of stage 1.
    """
    checkpoint, path = stage1
    settings = checkpoint["features"]
    files = feature_files_of(checkpoint, path, [args.features1, args.features2])
    weights = args.feature_weights or settings["feature_weights"]
    arrays, _ = dataset_features(dataset, settings, weights, compute, files)
    arrays = prepare_features(arrays, dataset.train, settings, compute.device)
    return [torch.from_numpy(x[dataset.train]).to(compute.device) for x in arrays]


def make_centres(autoencoder: MultisourceAutoencoder, features: Sequence[Tensor], alpha: float,
                 args: argparse.Namespace) -> Tensor:
    """k-means centres of the latents, float32 (C, latent_dim).

    With --label_spread, the autoencoder's latent is centred and scaled, and the centres with it.
    """
    latent = autoencoder.encode_all(features).cpu()
    centres = None
    if rank() == 0:
        found = cluster_centres(latent.numpy(), args.n_clusters, starts=20, seed=args.seed)
        centres = torch.from_numpy(found)
    centres = from_first(centres)
    if args.label_spread:
        mean = latent.mean(dim=0)
        factor = latent_scale(latent, centres, alpha, args.label_spread)
        autoencoder.rescale(mean.to(features[0].device), factor)
        centres = (centres - mean) * factor
    return centres
