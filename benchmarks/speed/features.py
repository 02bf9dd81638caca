"""Extraction of frozen features in images a second: a plain loop with a DataLoader, and ours.

Same images, backbone and weights. Every image was read once before the clock starts, so that all
methods find the files in the system's memory, and every network has seen a batch of each size that
comes. Starting and ending the workers of the plain loop counts, as does whatever ours does between
files and features.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.speed.common import (
    Measured,
    add_image_flags,
    add_measuring_flags,
    in_rounds,
    load_images,
    median,
    spread,
    timed,
    write_record,
)
from benchmarks.speed.plain import Reading, plain_outputs
from benchmarks.tables import heading, row
from data_loader import ImageLoader
from datasets.base import PairedDataset
from engine.cli import Compute, number
from myautoencoder.features import apply_network, calibrate
from network import Backbone, load_backbone
from utils import LARGEST_SIDE, InputError, setup_device

PLAIN, ALONE = "plain loop", "plain loop, its network alone"
FILES, DECODED = "ours, from files", "ours, decoded before"
GREY = 1 / 255 / 0.224  # a grey value, normalised by the least of the usual deviations
# Between features of the same image. It is about 0 between those of others; and random weights, or
# bfloat16, make much of the grey values to which Pillow rounds and ours does not: MobileNetV2 with
# weights `none` comes to 0.5.
LEAST_COSINE = 0.2


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_image_flags(parser)
    add = parser.add_argument
    add("--feature_backbone", default="resnet50", help="as for autoencoder.py")
    add("--feature_weights", default="none",
        help="as for autoencoder.py; the speed does not depend on them")
    add("--image_size", type=number(int, 1, LARGEST_SIDE), default=224, help="side of the crop")
    add("--batch_size", type=number(int, 1), default=128, help="images a batch, in all methods")
    add("--workers", type=number(int, 1), default=4,
        help="processes of the DataLoader, and threads that decode for ours")
    add("--amp", action="store_true", help="also measure ours in bfloat16")
    add("--compile", action="store_true", help="also measure ours with torch.compile")
    add_measuring_flags(parser, "features")


# ---------------------------------------------------------------- what must agree


def similarity(found: np.ndarray, expected: np.ndarray) -> float:
    """Mean cosine between rows of features, float32 (N, d), each less the mean row of `expected`.

    Not centred, the features of any two images would agree: after a ReLU all are positive.
    """
    a, b = (torch.from_numpy(x - expected.mean(axis=0)) for x in (found, expected))
    return float(F.cosine_similarity(a, b).mean())


def check(name: str, found: np.ndarray, expected: np.ndarray) -> float:
    """The similarity of a method's features to the plain loop's.

    Raises:
        InputError: they are of other images.
    """
    cosine = similarity(found, expected)
    if not cosine >= LEAST_COSINE:
        raise InputError(f"'{name}' found features whose mean cosine with those of the plain loop "
                         f"is {cosine:.3f}, expected at least {LEAST_COSINE}: one of the two is "
                         "wrong")
    return cosine


def check_views(ours: np.ndarray, plain: np.ndarray) -> None:
    """What networks see, averaged over blocks of pixels, differs by rounding alone.

    Raises:
        InputError: it differs by more.
    """
    most = float(abs(ours - plain).max())
    if not most <= GREY:
        raise InputError("the images as ours and the plain loop show them to a network differ by "
                         f"{most / GREY:.2f} grey values, expected at most 1: one of the two is "
                         "wrong")


# ---------------------------------------------------------------- the methods


class Extraction:
    """One backbone, and each way of running it over the same images."""

    def __init__(self, args: argparse.Namespace, dataset: PairedDataset, device: torch.device
                 ) -> None:
        self.dataset, self.count = dataset, len(dataset.source1)
        self.untouched = load_images(args).source1
        self.compute = Compute(device, args.batch_size, args.workers)
        torch.manual_seed(0)
        self.backbone: Backbone = load_backbone(args.feature_backbone, args.feature_weights,
                                                args.image_size)
        self.reading = Reading(self.backbone.preprocessing, args.batch_size, args.workers, device)
        self.decoded = self.open()
        if self.backbone.needs_calibration:
            calibrate(self.backbone, self.decoded)
        usual = copy.deepcopy(self.backbone)
        self.usual = usual.to(device, memory_format=torch.contiguous_format).eval()
        self.compiled = copy.deepcopy(self.backbone)
        self.compiled.compile()  # when it is first called
        size = min(args.batch_size, self.count)
        self.batch = torch.randn(size, 3, args.image_size, args.image_size, device=device)
        self.sizes = [size] * (self.count // size)
        if self.count % size:
            self.sizes.append(self.count % size)

    def open(self) -> ImageLoader:
        """The images, decoded anew."""
        return ImageLoader(self.dataset.source1, self.dataset.file_label(0),
                           self.reading.views, self.compute)

    def run(self, name: str, rows: np.ndarray) -> np.ndarray | None:
        """One method, by its name, over these rows; None where it makes no features."""
        if name == PLAIN:
            return plain_outputs(self.usual, self.untouched, rows, self.reading)
        if name == ALONE:
            self.alone(self.sizes)
            return None
        network = self.compiled if "compile" in name else self.backbone
        loader = self.open() if name == FILES else self.decoded
        return self.ours(network, loader, rows, "bfloat16" in name)

    @torch.no_grad()
    def alone(self, sizes: Sequence[int]) -> None:
        """The plain loop's network, on batches of these sizes that lie on the device."""
        for size in sizes:
            self.usual(self.batch[:size])

    def ours(self, network: nn.Module, loader: ImageLoader, rows: np.ndarray, amp: bool
             ) -> np.ndarray:
        compute = replace(self.compute, amp=amp)
        return np.concatenate(list(apply_network(network, loader, rows, compute, "features")))

    def warm_up(self, names: Sequence[str]) -> dict[str, float]:
        """Check the views, and show each network a batch of each size; seconds of each of ours."""
        few = np.arange(self.sizes[0] + (self.sizes[-1] if len(self.sizes) > 1 else 0))
        blocks = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten())
        check_views(self.ours(blocks, self.decoded, few, False),
                    plain_outputs(blocks, self.untouched, few, self.reading))
        self.alone(sorted(set(self.sizes)))
        return {name: timed(lambda name=name: self.run(name, few), self.compute.device)[0]
                for name in names if name not in (PLAIN, ALONE, FILES)}


def measure(args: argparse.Namespace) -> Iterator[str]:
    """Measure all methods; the table, line by line."""
    device = setup_device(args.device)
    args.device = str(device)
    dataset = load_images(args)
    extraction = Extraction(args, dataset, device)
    names = [PLAIN, ALONE, FILES, DECODED]
    if args.amp:
        names.append("ours, bfloat16")
    if args.compile:
        names.append("ours, torch.compile")
    if args.amp and args.compile:
        names.append("ours, bfloat16, torch.compile")
    first = extraction.warm_up(names)  # seconds until the first batches are done
    rows = np.arange(extraction.count)
    expected = None  # the plain loop's features of this round

    def one(name: str) -> Measured:
        nonlocal expected
        seconds, found = timed(lambda: extraction.run(name, rows), device)
        run: Measured = {"seconds": seconds, "images_per_second": len(rows) / seconds}
        if name == PLAIN:
            expected = found
        elif found is not None:
            run["cosine"] = check(name, found, expected)
        if "compile" in name:
            run["compile_seconds"] = first[name]
        return run

    runs = in_rounds({name: lambda name=name: one(name) for name in names}, args.repeat)
    write_record(args, runs)
    yield (f"{args.feature_backbone}, {len(rows):,} images of {dataset.source_names[0]}, "
           f"{args.image_size} pixels, batches of {args.batch_size}, {device}\n")
    yield from table(runs)


def table(runs: Mapping[str, Sequence[Measured]]) -> Iterator[str]:
    """Markdown."""
    yield heading("method", "images/s: median (least - most)", "divided by the plain loop",
                  "divided by its network alone", "cosine with the plain loop's features",
                  "seconds to compile")
    bases = [median(runs[name], "images_per_second") for name in (PLAIN, ALONE)]
    for name, of in runs.items():
        rate = median(of, "images_per_second")
        yield row(name, spread(of, "images_per_second", 1), *(f"{rate / b:.2f}" for b in bases),
                  f"{median(of, 'cosine'):.3f}" if "cosine" in of[0] else "",
                  f"{of[0]['compile_seconds']:.1f}" if "compile" in name else "")
