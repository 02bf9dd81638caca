"""The phases of stage 2, what the hash network sees in each, and what its codes are worth.

The head alone may learn first, on what the frozen backbone makes of the images; then the whole
network learns, on augmented images.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

import hamming
from data_loader import ImageLoader
from datasets.base import PairedDataset
from datasets.transforms import turned_each
from engine.cli import Compute
from engine.epoch import ShuffledEpoch
from engine.loop import Run
from engine.run import read_log
from myautoencoder.features import FeatureExtractor, apply_network, calibrate, hash_features
from network import Backbone, HashNetwork, MrHash
from utils import InputError, collapse_warning, cosine_decay, epoch_seed, step_decay, warn


def drawn_views(epoch: ShuffledEpoch, count: int) -> Iterator[Tensor]:
    """A view below `count` for each row of each batch of an epoch, int64 (B,) each."""
    if count == 1:  # nothing is drawn, as before there were views
        return (torch.zeros_like(batch) for batch in epoch.batches)
    drawn = torch.randint(count, (epoch.count,), generator=epoch.generator)
    return iter(drawn.split([len(batch) for batch in epoch.batches]))


class TrainingImages:
    """Random crops, flips and turns of the training images; any image for codes."""

    def __init__(self, loader: ImageLoader, train: np.ndarray, compute: Compute, views: int = 1
                 ) -> None:
        """Keep what is needed.

        Args:
            loader: the images.
            train: int64 (n,), rows of those that train.
            compute: how codes are computed.
            views: of how many turns and flips one is drawn.
        """
        self.loader, self.compute, self.count = loader, compute, views
        self.train = torch.from_numpy(train)

    def views(self, epoch: ShuffledEpoch, first: int) -> Iterator[Tensor]:
        """float32 (b, 3, S, S): this rank's views of each step from number `first` on."""
        batches = [self.train[batch] for batch in epoch.batches]
        turns = list(drawn_views(epoch, self.count))
        images = self.loader.training_views(batches, epoch.parts, first, epoch.generator)
        for crops, turn, part in zip(images, turns[first:], epoch.parts[first:], strict=True):
            yield crops if self.count == 1 else turned_each(crops, turn[part])

    def outputs(self, network: HashNetwork, rows: np.ndarray) -> Iterator[np.ndarray]:
        """h, float32 (B, K), of the images of these rows, batch by batch, in eval mode."""
        return apply_network(network, self.loader, rows, self.compute, "codes")


class FrozenFeatures:
    """The frozen backbone sees each view once, so that an epoch of the head takes seconds."""

    def __init__(self, features: np.ndarray, train: np.ndarray, compute: Compute, views: int = 1
                 ) -> None:
        """Keep what is needed.

        Args:
            features: float32 (N, V * dim), what the backbone makes of V views of each image.
            train: int64 (n,), rows of those that train.
            compute: how codes are computed.
            views: V.
        """
        self.features, self.compute = features[:, :features.shape[1] // views], compute
        self.train = torch.from_numpy(features[train]).to(compute.device)
        self.train = self.train.view(len(train), views, -1)

    def views(self, epoch: ShuffledEpoch, first: int) -> Iterator[Tensor]:
        """float32 (b, dim): this rank's features of each step from number `first` on."""
        turns = list(drawn_views(epoch, self.train.shape[1]))
        device = self.compute.device
        for number in range(first, len(epoch)):
            part = epoch.parts[number]
            yield self.train[epoch.batches[number][part].to(device),
                             turns[number][part].to(device)]

    def outputs(self, network: HashNetwork, rows: np.ndarray) -> Iterator[np.ndarray]:
        """h, float32 (B, K), of the images of these rows, batch by batch, in eval mode."""
        return hash_features(network, self.features, rows, self.compute)


@dataclass
class Phase:
    """Epochs of one kind.

    name: what they are called. count: how many. source: what the hash network sees. head_only:
    whether the backbone stays as it is.
    """

    name: str
    count: int
    source: TrainingImages | FrozenFeatures
    head_only: bool

    def rate(self, lr: float, epoch: int) -> float:
        """The learning rate: along a cosine to 0 for the head, published for the rest."""
        if self.head_only:
            return cosine_decay(lr, epoch, self.count)
        return step_decay(lr, epoch, 0.7, 10)

    def seed(self, seed: int, epoch: int) -> int:
        """The seed of an epoch; those of the head are counted from its end."""
        if self.head_only:
            return epoch_seed(seed, self.count - epoch, 1)
        return epoch_seed(seed, epoch)


def plan_phases(args: argparse.Namespace, backbone: Backbone, dataset: PairedDataset,
                loader: ImageLoader, compute: Compute) -> list[Phase]:
    """The head alone, where --head_epochs asks for it, then everything, unless told not to.

    Raises:
        InputError: batch normalisation that adapts would have to do so with one image.
    """
    # Of no epochs where there are to be none: a resumed run that has come to them says so.
    count = 0 if args.max_epoch is None else args.max_epoch + 1
    if count and min(compute.batch_size, len(dataset.train)) == 1 and _adapts(backbone):
        raise InputError(f"the batch normalisation of {backbone.name} adapts to the images of a "
                         f"batch, which is one image here (--batch_size {compute.batch_size}, "
                         f"{len(dataset.train):,} for training), expected at least two: raise "
                         "--batch_size or use more images, or add --batch_norm frozen")
    phases = []
    if args.head_epochs:
        if backbone.needs_calibration:  # features that come from the cache would leave it as it is
            calibrate(backbone, loader)
        extractor = FeatureExtractor(backbone, compute, args.views)
        seen = extractor.of_source(dataset.source1, dataset.file_label(0))
        source = FrozenFeatures(seen, dataset.train, compute, args.views)
        phases.append(Phase("head epoch", args.head_epochs, source, True))
    if args.compile:
        backbone.compile_for(compute.device)
    source = TrainingImages(loader, dataset.train, compute, args.views)
    phases.append(Phase("epoch", count, source, False))
    return phases


def _adapts(backbone: Backbone) -> bool:
    return not backbone.freeze_batch_norm and any(
        isinstance(layer, _BatchNorm) for layer in backbone.modules())


# ---------------------------------------------------------------- what the codes are worth


def measure_codes(network: HashNetwork, source: TrainingImages | FrozenFeatures,
                  dataset: PairedDataset, R: int, threshold: float) -> dict[str, Any]:
    """mAP@R over all orders of ties, and how many bits are the same for all of the database."""
    codes = [_codes(network, source, rows, threshold) for rows in (dataset.query, dataset.database)]
    bits = network.hash_layer.out_features
    labels = dataset.labels[dataset.query], dataset.database_labels
    device = str(network.hash_layer.weight.device)
    results = hamming.evaluate(*codes, *labels, hash_bit=bits, R=R, device=device)
    return {"map": results["map"], "constant_bits": hamming.constant_bits(codes[1], bits)}


def warn_of_constant_bits(run: Run, phases: list[Phase], model: MrHash, dataset: PairedDataset,
                          threshold: float) -> None:
    """At the end: a warning where bits of the codes of the weights that are kept are constant.

    Those of the head are hashed for it. Codes of images take a pass over all of them: of those it
    is known only where the epoch that is kept was measured. test.py counts them in any case.
    """
    name, epoch, weights = run.kept()
    network = model.hash_network
    bits = network.hash_layer.out_features
    phase, = (phase for phase in phases if phase.name == name)
    constant = None
    if phase.head_only:
        model.load_state_dict(weights)
        codes = _codes(network, phase.source, dataset.database, threshold)
        constant = hamming.constant_bits(codes, bits)
    elif (log := run.folder.path / "log.jsonl").exists():
        for record in read_log(log):
            if (record.get("phase"), record.get("epoch")) == (name, epoch):
                constant = record.get("constant_bits")
    if constant:
        warn(collapse_warning(constant, bits))


def _codes(network: HashNetwork, source: TrainingImages | FrozenFeatures, rows: np.ndarray,
           threshold: float) -> np.ndarray:
    """The packed codes of these images, uint8 (N, ceil(K/8))."""
    outputs = np.concatenate(list(source.outputs(network, rows)))
    return hamming.pack_codes(outputs, threshold)
