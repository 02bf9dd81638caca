"""Pretraining the autoencoder in epochs a second: as such scripts are written with care, and ours.

Same network, loss, optimiser and features, which are drawn. An epoch is measured together with the
mAP of the latents that goes with it: after every epoch as published, after every 20th with our
defaults. Beside them stand the matrix products of an epoch alone, which no float32 loop can do
without.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.speed.common import (
    Measured,
    UnsavedRun,
    add_measuring_flags,
    in_rounds,
    median,
    spread,
    timed,
    write_record,
)
from benchmarks.speed.plain import feature_loader, plain_autoencoder_epoch, plain_latent_map
from benchmarks.tables import heading, row
from engine.cli import number
from engine.epoch import ShuffledEpoch
from myautoencoder.autoencoder import latent_map, train_one_epoch
from network import MultisourceAutoencoder
from utils import InputError, setup_device

CLASSES = 10
# The defaults of autoencoder.py, as published.
BATCH, LATENT, LAMBDA1, RATE = 512, 64, 0.1, 0.001
EVERY = 20  # epochs between two looks at the mAP, our default
PLAIN, OURS = "plain loop, mAP after every epoch", "ours"
OFTEN = "ours, mAP after every epoch (--select test_map)"
AMP = "ours, `--amp` (bfloat16)"
PRODUCTS = "the matrix products alone"


def add_flags(parser: argparse.ArgumentParser) -> None:
    whole, add = number(int, 1), parser.add_argument
    add("--images", type=whole, default=26000,
        help="images to train on, which are the database; EuroSAT has 26,000")
    add("--queries", type=whole, default=1000, help="images that ask; EuroSAT has 1,000")
    add("--width", type=whole, default=2048,
        help="of the features of each of two sources; ResNet-50's is 2,048")
    add("--epochs", type=whole, default=3, help="epochs of which a measurement is the mean")
    add("--encoder", choices=("dual", "unisource"), default="dual",
        help="dual, our default where there are two sources, or unisource, as published")
    add("--amp", action="store_true", help="also measure ours in bfloat16")
    add_measuring_flags(parser, "autoencoder")


@dataclass(frozen=True)
class DrawnDataset:
    """What `latent_map` wants to know of a dataset: int64 labels (N,), and rows."""

    labels: np.ndarray
    database: np.ndarray
    query: np.ndarray

    @property
    def database_labels(self) -> np.ndarray:
        return self.labels[self.database]


def draw_features(images: int, queries: int, width: int) -> tuple[list[np.ndarray], DrawnDataset]:
    """Features of two sources, float32 (images + queries, width), and whose they are.

    Classes are centres in a space of 16 dimensions, seen by each source in its own way, with noise;
    no value is negative, as behind a ReLU.
    """
    draw = np.random.default_rng(0)
    labels = np.arange(images + queries, dtype=np.int64) % CLASSES
    scenes = draw.standard_normal((CLASSES, 16), dtype=np.float32)[labels]
    scenes = scenes + draw.standard_normal(scenes.shape, dtype=np.float32)
    features = []
    for _ in range(2):
        seen = scenes @ draw.standard_normal((16, width), dtype=np.float32) / 4
        noise = draw.standard_normal((len(labels), width), dtype=np.float32)
        features.append(np.maximum(seen + noise, 0))
    rows = np.arange(images + queries)
    return features, DrawnDataset(labels, rows[:images], rows[images:])


# ---------------------------------------------------------------- the loops


class Training:
    """One network and its optimiser, trained by one of the loops."""

    fused = False

    def __init__(self, features: list[np.ndarray], dataset: DrawnDataset, encoder: str,
                 device: torch.device) -> None:
        torch.manual_seed(0)
        self.arrays, self.dataset, self.device = features, dataset, device
        self.R = len(dataset.database) // CLASSES
        widths = [x.shape[1] for x in features]
        self.model = MultisourceAutoencoder(widths, LATENT, encoder).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=RATE, fused=self.fused)

    def epoch(self) -> None:
        raise NotImplementedError

    def monitor(self) -> float:
        raise NotImplementedError


class Plain(Training):
    """Features stay on the CPU and come through a DataLoader, row by row."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        rows = self.dataset.query, self.dataset.database
        self.parts = [[torch.from_numpy(x[part]) for x in self.arrays] for part in rows]
        self.labels = [np.eye(CLASSES, dtype=np.float32)[self.dataset.labels[part]]
                       for part in rows]
        self.loader = feature_loader(self.parts[1], BATCH, shuffle=True)

    def epoch(self) -> None:
        plain_autoencoder_epoch(self.model, self.loader, self.optimizer, LAMBDA1, self.device)

    def monitor(self) -> float:
        return plain_latent_map(self.model, self.parts, self.labels, self.R, self.device)


class Ours(Training):
    """Features lie on the device."""

    fused, amp = True, False

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.features: list[Tensor] = [torch.from_numpy(x[self.dataset.database]).to(self.device)
                                       for x in self.arrays]
        self.run = UnsavedRun(self.optimizer, self.device)

    def epoch(self) -> None:
        steps = ShuffledEpoch(len(self.features[0]), BATCH, 0, self.device).steps()
        train_one_epoch(self.run, self.model, steps, self.features, LAMBDA1, self.amp)

    def monitor(self) -> float:
        return latent_map(self.model, self.arrays, self.dataset, self.R, False)


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


# ---------------------------------------------------------------- side by side


def check(found: float, expected: float) -> None:
    """Both monitors measure the same latents. Raises InputError where they do not agree."""
    if not abs(found - expected) <= 1e-3:
        raise InputError(f"our mAP of the latents is {found}, in the usual style it is {expected}: "
                         "one of the two is wrong")


def measured(epoch: float, look: float, every: int) -> Measured:
    """A measurement: seconds of an epoch and of a look at the mAP, one in `every` epochs."""
    seconds = epoch + look / every
    return {"seconds": seconds, "epochs_per_second": 1 / seconds, "epoch_seconds": epoch,
            "monitor_seconds": look}


def measure(args: argparse.Namespace) -> Iterator[str]:
    """Measure all methods; the table, line by line."""
    device = setup_device(args.device)
    args.device = str(device)
    if min(args.images, args.queries) < CLASSES:
        raise InputError(f"--images {args.images} --queries {args.queries}: at least {CLASSES} of "
                         "each, one a class")
    given = *draw_features(args.images, args.queries, args.width), args.encoder, device
    plain, ours = Plain(*given), Ours(*given)
    check(ours.monitor(), plain.monitor())  # both are the network that seed 0 gives
    trainings = [plain, ours]
    if args.amp:
        trainings.append(OursInBfloat16(*given))
    for training in trainings:
        training.epoch()  # starts the device's libraries

    def one(training: Training, every: int) -> Measured:
        seconds, _ = timed(lambda: [training.epoch() for _ in range(args.epochs)], device)
        return measured(seconds / args.epochs, timed(training.monitor, device)[0], every)

    steps = -(-args.images // BATCH)
    methods: dict[str, Callable[[], Measured]] = {
        PLAIN: lambda: one(plain, 1), OURS: lambda: one(ours, EVERY), OFTEN: lambda: one(ours, 1)}
    if args.amp:
        methods[AMP] = lambda: one(trainings[-1], EVERY)
    methods[PRODUCTS] = lambda: measured(
        timed(lambda: products(ours.model, steps, device), device)[0], 0.0, 1)
    runs = in_rounds(methods, args.repeat)
    write_record(args, runs)
    yield (f"{args.images:,} images and {args.queries:,} queries, two sources of {args.width:,} "
           f"values, {args.encoder} encoder, batches of {BATCH}, {device}\n")
    yield from table(runs)


def table(runs: Mapping[str, Sequence[Measured]]) -> Iterator[str]:
    """Markdown."""
    yield heading("method", "epochs/s: median (least - most)", "divided by the plain loop",
                  "seconds an epoch alone", "seconds to measure mAP once")
    base = median(runs[PLAIN], "epochs_per_second")
    for name, of in runs.items():
        yield row(name, spread(of, "epochs_per_second", 3),
                  f"{median(of, 'epochs_per_second') / base:.2f}",
                  f"{median(of, 'epoch_seconds'):.3f}", f"{median(of, 'monitor_seconds'):.3f}")
