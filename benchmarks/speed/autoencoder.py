"""Pretraining the autoencoder in epochs a second: as published, as such scripts are written with care, and ours.

Same network, loss, optimiser and features, which are drawn. An epoch is measured together with the mAP of the
latents that goes with it: after every epoch as published, after every 20th with our defaults. Beside them stand the
matrix products of an epoch alone, which no float32 loop can do without.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.speed.common import (
    Run,
    add_measuring_flags,
    heading,
    in_turns,
    median,
    row,
    spread,
    timed,
    write_record,
)
from benchmarks.speed.plain import (
    PublishedItems,
    feature_loader,
    plain_autoencoder_epoch,
    plain_latent_map,
    published_autoencoder_epoch,
    published_latent_map,
)
from engine.cli import positive_int
from engine.run import LossWatch
from myautoencoder.autoencoder import latent_map, train_one_epoch
from network import MultisourceAutoencoder
from utils import InputError, setup_device

CLASSES = 10
BATCH, LATENT, LAMBDA1, RATE = 512, 64, 0.1, 0.001  # the defaults of autoencoder.py, as published
EVERY = 20  # epochs between two looks at the mAP, our default
PUBLISHED, PLAIN = "as published", "plain loop, mAP after every epoch"
OURS, OFTEN, AMP = "ours", "ours, mAP after every epoch (--select test_map)", "ours, `--amp` (bfloat16)"
PRODUCTS = "the matrix products alone"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=positive_int, default=26000,
                        help="images to train on, which are the database; EuroSAT has 26,000")
    parser.add_argument("--queries", type=positive_int, default=1000, help="images that ask; EuroSAT has 1,000")
    parser.add_argument("--width", type=positive_int, default=2048,
                        help="of the features of each of two sources; ResNet-50's is 2,048")
    parser.add_argument("--epochs", type=positive_int, default=3, help="epochs of which a measurement is the mean")
    parser.add_argument("--encoder", choices=("dual", "unisource"), default="dual",
                        help="dual, our default where there are two sources, or unisource, as published")
    parser.add_argument("--amp", action="store_true", help="also measure ours in bfloat16")
    add_measuring_flags(parser, "autoencoder")


def draw_features(images: int, queries: int, width: int) -> tuple[list[np.ndarray], SimpleNamespace]:
    """Features of two sources, float32 (images + queries, width), and what latent_map wants to know of a dataset.

    Classes are centres in a space of 16 dimensions, seen by each source in its own way, with noise; no value is
    negative, as behind a ReLU.
    """
    draw = np.random.default_rng(0)
    labels = np.arange(images + queries, dtype=np.int64) % CLASSES
    scenes = draw.standard_normal((CLASSES, 16), dtype=np.float32)[labels]
    scenes = scenes + draw.standard_normal(scenes.shape, dtype=np.float32)
    features = [np.maximum(scenes @ draw.standard_normal((16, width), dtype=np.float32) / 4
                           + draw.standard_normal((len(labels), width), dtype=np.float32), 0) for _ in range(2)]
    rows = np.arange(images + queries)
    return features, SimpleNamespace(database=rows[:images], query=rows[images:], labels=labels)


def check(found: float, expected: float) -> None:
    """Both monitors measure the same latents. Raises InputError where they do not agree."""
    if not abs(found - expected) <= 1e-3:
        raise InputError(f"our mAP of the latents is {found}, in the published style it is {expected}: one of the two "
                         "is wrong")


class Training:
    """One network and its optimiser, trained by one of the loops."""

    def __init__(self, features: list[np.ndarray], dataset: SimpleNamespace, encoder: str,
                 device: torch.device) -> None:
        torch.manual_seed(0)
        self.arrays, self.dataset, self.device = features, dataset, device
        self.R = len(dataset.database) // CLASSES
        self.model = MultisourceAutoencoder([x.shape[1] for x in features], LATENT, encoder).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=RATE)


class Published(Training):
    """To the letter: the monitor reconstructs everything, keeps what gradients would need, and measures recall, too."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        labels = np.eye(CLASSES, dtype=np.int8)[self.dataset.labels]
        self.query, self.database = (PublishedItems([x[rows] for x in self.arrays], labels[rows])
                                     for rows in (self.dataset.query, self.dataset.database))
        self.loader = DataLoader(self.database, batch_size=BATCH, shuffle=True)

    def epoch(self) -> None:
        published_autoencoder_epoch(self.model, self.loader, self.optimizer, LAMBDA1, self.device)

    def monitor(self) -> float:
        return published_latent_map(self.model, self.query, self.database, self.R, BATCH, self.device)[0]


class Plain(Training):
    """Features stay on the CPU and come through a DataLoader, row by row; nothing is computed that is not used."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.query, self.database = ([torch.from_numpy(x[rows]) for x in self.arrays]
                                     for rows in (self.dataset.query, self.dataset.database))
        self.loader = feature_loader(self.database, BATCH, shuffle=True)
        self.labels = np.eye(CLASSES, dtype=np.float32)[self.dataset.labels]

    def epoch(self) -> None:
        plain_autoencoder_epoch(self.model, self.loader, self.optimizer, LAMBDA1, self.device)

    def monitor(self) -> float:
        return plain_latent_map(self.model, self.query, self.database, self.labels[self.dataset.query],
                                self.labels[self.dataset.database], self.R, self.device)


class Ours(Training):
    """Features lie on the device."""

    amp = False

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=RATE, fused=True)
        self.features: list[Tensor] = [torch.from_numpy(x[self.dataset.database]).to(self.device) for x in self.arrays]

    def epoch(self) -> None:
        batches = torch.randperm(len(self.features[0])).to(self.device).split(BATCH)
        # Without a run: that would only be asked what was saved before a loss that is not finite.
        watch = LossWatch(None, 0, len(batches), self.device)
        train_one_epoch(self.model, self.features, batches, self.optimizer, LAMBDA1, self.amp, watch)

    def monitor(self) -> float:
        return latent_map(self.model, self.arrays, self.dataset, self.R, False, self.device)


class OursInBfloat16(Ours):
    amp = True


@torch.no_grad()
def products(model: MultisourceAutoencoder, steps: int, device: torch.device) -> None:
    """The matrix products of so many training steps, on drawn operands."""
    first = {branch[0] for branch in model.branches}
    operands = [(torch.randn(BATCH, layer.in_features, device=device),
                 torch.randn(BATCH, layer.out_features, device=device), layer)
                for layer in model.modules() if isinstance(layer, nn.Linear)]
    for _ in range(steps):
        for given, gradient, layer in operands:
            torch.addmm(layer.bias, given, layer.weight.t())
            gradient.t() @ given
            if layer not in first:  # the features need no gradient
                gradient @ layer.weight


def measure(args: argparse.Namespace) -> Iterator[str]:
    """Measure all methods; the table, line by line."""
    device = setup_device(args.device)
    args.device = str(device)
    if min(args.images, args.queries) < CLASSES:
        raise InputError(f"--images {args.images} --queries {args.queries}: at least {CLASSES} of each, one a class")
    features, dataset = draw_features(args.images, args.queries, args.width)
    given = features, dataset, args.encoder, device
    published, plain, ours = Published(*given), Plain(*given), Ours(*given)
    found = ours.monitor()  # all are the network that seed 0 gives
    for other in (published, plain):
        check(found, other.monitor())
    for training in (published, plain, ours):
        training.epoch()  # starts the device's libraries

    def one(training: Training, every: int) -> Run:
        seconds, _ = timed(lambda: [training.epoch() for _ in range(args.epochs)], device)
        look, _ = timed(training.monitor, device)
        epoch = seconds / args.epochs
        return {"seconds": epoch + look / every, "epochs_per_second": 1 / (epoch + look / every),
                "epoch_seconds": epoch, "monitor_seconds": look}

    def floor() -> Run:
        seconds, _ = timed(lambda: products(ours.model, steps, device), device)
        return {"seconds": seconds, "epochs_per_second": 1 / seconds, "epoch_seconds": seconds, "monitor_seconds": 0.0}

    steps = -(-args.images // BATCH)
    methods: dict[str, Callable[[], Run]] = {
        PUBLISHED: lambda: one(published, 1), PLAIN: lambda: one(plain, 1), OURS: lambda: one(ours, EVERY),
        OFTEN: lambda: one(ours, 1)}
    if args.amp:
        bfloat16 = OursInBfloat16(*given)
        bfloat16.epoch()
        methods[AMP] = lambda: one(bfloat16, EVERY)
    methods[PRODUCTS] = floor
    runs = in_turns(methods, args.repeat)
    write_record(args, runs)
    yield (f"{args.images:,} images and {args.queries:,} queries, two sources of {args.width:,} values, "
           f"{args.encoder} encoder, batches of {BATCH}, {device}\n")
    yield heading("method", "epochs/s: median (least - most)", "divided by as published", "divided by the plain loop",
                  "seconds an epoch alone", "seconds to measure mAP once")
    for name, of in runs.items():
        rate = median(of, "epochs_per_second")
        yield row(name, spread(of, "epochs_per_second", 3),
                  *(f"{rate / median(runs[other], 'epochs_per_second'):.2f}" for other in (PUBLISHED, PLAIN)),
                  f"{median(of, 'epoch_seconds'):.3f}", f"{median(of, 'monitor_seconds'):.3f}")
