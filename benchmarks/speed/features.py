"""Extraction of frozen features in images a second: a plain loop with a DataLoader, and ours.

Same images, backbone and weights. Every image was read once before the clock starts, so that all methods find the
files in the system's memory, and every network has seen a batch of each size that comes. Starting and ending the
workers of the plain loop counts, as does whatever ours does between files and features.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.speed.common import (
    Run,
    add_image_flags,
    add_measuring_flags,
    heading,
    in_turns,
    load_images,
    median,
    row,
    spread,
    timed,
    write_record,
)
from benchmarks.speed.plain import plain_outputs
from datasets.store import IMAGENET_STD, ImageLoader, ImageStore
from engine.cli import image_side, positive_int
from myautoencoder.features import apply_network, calibrate
from network import Backbone
from utils import InputError, setup_device

PLAIN, ALONE, FILES, DECODED = ("plain loop", "plain loop, its network alone", "ours, from files",
                                "ours, decoded before")
GREY = 1 / 255 / min(IMAGENET_STD)  # a grey value, normalised
# Between features of the same image. It is about 0 between those of others; and random weights, or bfloat16, make
# much of the grey values to which Pillow rounds and ours does not: MobileNetV2 with weights `none` comes to 0.5.
LEAST_COSINE = 0.2


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_image_flags(parser)
    parser.add_argument("--feature_backbone", default="resnet50", help="as for autoencoder.py")
    parser.add_argument("--feature_weights", default="none",
                        help="as for autoencoder.py; the speed does not depend on them")
    parser.add_argument("--image_size", type=image_side, default=224, help="side of the crop")
    parser.add_argument("--batch_size", type=positive_int, default=128, help="images a batch, in all methods")
    parser.add_argument("--workers", type=positive_int, default=4,
                        help="processes of the DataLoader, and threads that decode for ours")
    parser.add_argument("--amp", action="store_true", help="also measure ours in bfloat16")
    parser.add_argument("--compile", action="store_true", help="also measure ours with torch.compile")
    add_measuring_flags(parser, "features")


def similarity(found: np.ndarray, expected: np.ndarray) -> float:
    """Mean cosine between rows of features, float32 (N, d), each less the mean row of `expected`.

    Not centred, the features of any two images would agree: after a ReLU all are positive.
    """
    a, b = (torch.from_numpy(x - expected.mean(axis=0)) for x in (found, expected))
    return float(F.cosine_similarity(a, b).mean())


def check(name: str, found: np.ndarray, expected: np.ndarray) -> float:
    """The similarity of a method's features to the plain loop's. Raises InputError where they are of other images."""
    cosine = similarity(found, expected)
    if not cosine >= LEAST_COSINE:
        raise InputError(f"'{name}' found features whose mean cosine with those of the plain loop is {cosine:.3f}, "
                         f"expected at least {LEAST_COSINE}: one of the two is wrong")
    return cosine


def check_views(ours: np.ndarray, plain: np.ndarray) -> None:
    """What networks see, averaged over blocks of pixels, differs by rounding alone. Raises InputError otherwise."""
    most = float(abs(ours - plain).max())
    if not most <= GREY:
        raise InputError(f"the images as ours and the plain loop show them to a network differ by {most / GREY:.2f} "
                         "grey values, expected at most 1: one of the two is wrong")


def measure(args: argparse.Namespace) -> Iterator[str]:
    """Measure all methods; the table, line by line."""
    device = setup_device(args.device)
    args.device = str(device)
    dataset = load_images(args)
    source, untouched = dataset.source1, load_images(args).source1
    count = len(source)

    def opened() -> ImageLoader:
        store = ImageStore.open(source, dataset.file_label(0), args.image_size, None, args.workers)
        return ImageLoader(store, device)

    # ------------------------------------------------------------ networks
    decoded = opened()
    torch.manual_seed(0)
    backbone = Backbone(args.feature_backbone, args.feature_weights, args.image_size)
    if backbone.needs_calibration:
        calibrate(backbone, decoded, args.image_size)
    usual = copy.deepcopy(backbone).to(device, memory_format=torch.contiguous_format).eval()
    batch = torch.randn(min(args.batch_size, count), 3, args.image_size, args.image_size, device=device)
    sizes = [len(batch)] * (count // len(batch)) + [count % len(batch)] * (count % len(batch) > 0)

    @torch.no_grad()
    def alone(sizes: list[int]) -> None:
        for size in sizes:
            usual(batch[:size])

    def plain(network: nn.Module, rows: np.ndarray) -> np.ndarray:
        return plain_outputs(network, untouched, rows, args.image_size, args.batch_size, args.workers, device)

    def ours(network: nn.Module, loader: ImageLoader, amp: bool, rows: np.ndarray) -> np.ndarray:
        return np.concatenate(list(apply_network(network, loader, rows, args.image_size, args.batch_size, amp,
                                                 "features")))

    # ------------------------------------------------------------ methods, warmed up
    rows = np.arange(count)
    methods: dict[str, Callable[[], np.ndarray | None]] = {
        PLAIN: lambda: plain(usual, rows),
        ALONE: lambda: alone(sizes),
        FILES: lambda: ours(backbone, opened(), False, rows),
        DECODED: lambda: ours(backbone, decoded, False, rows),
    }
    variants = {DECODED: (backbone, False)}
    if args.amp:
        variants["ours, bfloat16"] = backbone, True
    compiled = copy.deepcopy(backbone)
    compiled.compile()  # when it is first called
    if args.compile:
        variants["ours, torch.compile"] = compiled, False
    if args.amp and args.compile:
        variants["ours, bfloat16, torch.compile"] = compiled, True
    few = rows[:sizes[0] + (sizes[-1] if len(sizes) > 1 else 0)]  # one batch of each size
    blocks = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten())
    check_views(ours(blocks, decoded, False, few), plain(blocks, few))
    alone(sorted(set(sizes)))
    first = {}  # seconds until the first batches are done
    for name, (network, amp) in variants.items():
        methods[name] = lambda network=network, amp=amp: ours(network, decoded, amp, rows)
        first[name], _ = timed(lambda network=network, amp=amp: ours(network, decoded, amp, few), device)

    # ------------------------------------------------------------ in turns
    expected = None  # the plain loop's features of this round

    def one(name: str) -> Run:
        nonlocal expected
        seconds, found = timed(methods[name], device)
        run: Run = {"seconds": seconds, "images_per_second": count / seconds}
        if name == PLAIN:
            expected = found
        elif found is not None:
            run["cosine"] = check(name, found, expected)
        if "compile" in name:
            run["compile_seconds"] = first[name]
        return run

    runs = in_turns({name: lambda name=name: one(name) for name in methods}, args.repeat)
    write_record(args, runs)
    yield (f"{args.feature_backbone}, {count:,} images of {dataset.source_names[0]}, {args.image_size} pixels, batches "
           f"of {args.batch_size}, {device}\n")
    yield heading("method", "images/s: median (least - most)", "divided by the plain loop",
                  "divided by its network alone", "cosine with the plain loop's features", "seconds to compile")
    for name, of in runs.items():
        rate = median(of, "images_per_second")
        yield row(name, spread(of, "images_per_second", 1),
                  *(f"{rate / median(runs[base], 'images_per_second'):.2f}" for base in (PLAIN, ALONE)),
                  f"{median(of, 'cosine'):.3f}" if "cosine" in of[0] else "",
                  f"{first[name]:.1f}" if "compile" in name else "")
