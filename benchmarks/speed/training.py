"""Training the hash network in images a second: the loop of train.py, fed in three ways.

The ceiling is one batch that lies on the device: nothing is loaded and nothing augmented. Ours
takes images decoded before and augments them on the device. The loader in the published style
decodes and augments each image whenever it is seen, in worker processes. Network, loss and
optimiser are the same, and so is the loop. Each measurement is a process of its own, so that its
memory is its own; the network has made some steps when the clock starts, and the first batch of the
measured ones has arrived (for the published style in its favour: its workers are then some batches
ahead). Of the memory of a worker, much is shared with the process.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.speed.common import (
    Measured,
    UnsavedRun,
    add_image_flags,
    add_measuring_flags,
    in_a_process,
    in_rounds,
    load_images,
    median,
    memory,
    spread,
    timed,
    write_record,
)
from benchmarks.speed.plain import PlainImages, Reading, plain_loader, train_transform
from benchmarks.tables import heading, row
from data_loader import ImageLoader
from datasets.base import PairedDataset
from engine.backbones import preprocessing_of
from engine.cli import Compute, number
from engine.epoch import Step
from loss import multi_semantic_loss
from network import HashNetwork, MrHash, MultisourceAutoencoder, load_backbone
from train import train_one_epoch
from utils import LARGEST_SIDE, setup_device

OURS, COMPILED = "ours", "ours, torch.compile"
CEILING = "ceiling: one batch, on the device already"
PUBLISHED = "published style loader"
CLUSTERS, LATENT, WIDTH = 16, 64, 2048  # defaults of the scripts; ResNet-50's features
WARM = 2  # steps before the clock: libraries choose their algorithms, torch.compile compiles


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_image_flags(parser)
    whole, add = number(int, 1), parser.add_argument
    add("--steps", type=whole, default=20, help="steps of a measurement")
    add("--batch_size", type=whole, default=128, help="images a step")
    add("--image_size", type=number(int, 1, LARGEST_SIDE), default=224, help="side of the crop")
    add("--model_type", default="alexnet", help="as for train.py")
    add("--weights", default="none", help="as for train.py; the speed does not depend on them")
    add("--hash_bit", type=number(int, 1, 1024), default=32, help="length of the codes")
    add("--workers", type=whole, default=4,
        help="processes of the DataLoader, and threads that decode for ours")
    add("--amp", action="store_true", help="bfloat16, in all methods")
    add("--compile", action="store_true", help="also measure ours with torch.compile")
    add_measuring_flags(parser, "training")


class HashTraining:
    """What train.py trains, with drawn features and targets; `run` is its loop over some steps."""

    def __init__(self, args: argparse.Namespace, dataset: PairedDataset, compiled: bool) -> None:
        self.amp, self.device = args.amp, torch.device(args.device)
        count, sources = len(dataset.train), len(dataset.sources)
        self.features = [torch.randn(count, WIDTH, device=self.device) for _ in range(sources)]
        self.target = torch.softmax(torch.randn(count, CLUSTERS, device=self.device), dim=1)
        backbone = load_backbone(args.model_type, args.weights, args.image_size)
        autoencoder = MultisourceAutoencoder([WIDTH] * sources, LATENT,
                                             "dual" if sources == 2 else "unisource")
        model = MrHash(HashNetwork(backbone, args.hash_bit), autoencoder,
                       torch.randn(CLUSTERS, LATENT))
        self.model = model.to(self.device, memory_format=torch.channels_last)
        if compiled:
            backbone.compile_for(self.device)
        optimizer = torch.optim.Adam(self.model.parameter_groups(0.001, 0.01), fused=True)
        self.unsaved = UnsavedRun(optimizer, self.device)

    def run(self, batches: Sequence[Tensor], views: Iterator[Tensor]) -> None:
        """Train on batches of rows, int64 on the device, and the views that belong to them."""
        steps = (Step(batch, view, len(batch), 1.0)
                 for batch, view in zip(batches, views, strict=True))
        train_one_epoch(self.unsaved, self.model, steps, self.features, self.target,
                        multi_semantic_loss, self.amp)


def views_of(name: str, args: argparse.Namespace, dataset: PairedDataset,
             batches: Sequence[Tensor], cache: Path) -> Iterator[Tensor]:
    """What the network sees, as one of the methods makes it.

    Args:
        name: of the method.
        args: of the sub-command.
        dataset: whose first source it is.
        batches: rows of the images, int64 on the CPU.
        cache: the folder of decoded images.
    """
    device, size = torch.device(args.device), args.image_size
    expected = preprocessing_of(args.model_type, size)
    if name == CEILING:
        view = torch.randn(len(batches[0]), 3, size, size, device=device)
        view = view.contiguous(memory_format=torch.channels_last)
        return itertools.repeat(view, len(batches))
    if name == PUBLISHED:
        images = PlainImages(dataset.source1, train_transform(expected))
        loader = plain_loader(images, [batch.tolist() for batch in batches],
                              Reading(expected, args.batch_size, args.workers, device))
        return (batch.to(device, non_blocking=True) for batch in loader)
    compute = Compute(device, args.batch_size, args.workers, cache_dir=cache)
    loader = ImageLoader(dataset.source1, dataset.file_label(0), expected, compute)
    return loader.training_views(batches, [slice(0, len(batch)) for batch in batches], 0,
                                 torch.Generator().manual_seed(0))


def measure_one(name: str, args: argparse.Namespace, cache: Path) -> Measured:
    """One measurement of one method, in this process. cache: the folder of decoded images."""
    device = setup_device(args.device)
    dataset = load_images(args)
    torch.manual_seed(0)
    training = HashTraining(args, dataset, name == COMPILED)
    # Drawn with repetition, so that a small dataset does, too.
    batches = torch.randint(len(dataset.train), (args.steps, args.batch_size)).unbind()
    moved = [batch.to(device) for batch in batches]
    some = torch.randn(args.batch_size, 3, args.image_size, args.image_size, device=device)
    if name != PUBLISHED:
        some = some.contiguous(memory_format=torch.channels_last)
    first, _ = timed(lambda: training.run(moved[:1] * WARM, itertools.repeat(some, WARM)), device)
    rows = torch.from_numpy(dataset.train)
    views = views_of(name, args, dataset, [rows[batch] for batch in batches], cache)
    arrived = next(views)
    # Not to the end of `views`: there the workers end, for which a whole epoch would wait once.
    wanted = itertools.chain([arrived], itertools.islice(views, args.steps - 1))
    seconds, _ = timed(lambda: training.run(moved, wanted), device)
    run: Measured = {"seconds": seconds, "peak_mb": memory("peak"),
                     "images_per_second": args.steps * args.batch_size / seconds}
    if name == PUBLISHED:
        del views, wanted  # ends the workers, which are counted then
        run["worker_mb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
    if name == COMPILED:
        run["compile_seconds"] = first
    if device.type == "cuda":
        run["device_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
    return run


def measure(args: argparse.Namespace) -> Iterator[str]:
    """Measure all methods; the table, line by line."""
    args.device = str(setup_device(args.device))
    dataset = load_images(args)
    names = [OURS, CEILING, PUBLISHED]
    if args.compile:
        names.insert(1, COMPILED)
    with tempfile.TemporaryDirectory() as cache:
        methods: dict[str, Callable[[], Measured]] = {}
        for name in names:
            methods[name] = lambda name=name: in_a_process(
                name, "--batch_size or --image_size", measure_one, name, args, Path(cache))
        runs = in_rounds(methods, args.repeat)
    write_record(args, runs)
    yield (f"{args.model_type}, {args.steps} steps of {args.batch_size} images of "
           f"{dataset.source_names[0]}, {args.image_size} pixels, "
           f"{'bfloat16' if args.amp else 'float32'}, {args.device}\n")
    yield from table(runs, args.workers)


def table(runs: Mapping[str, Sequence[Measured]], workers: int) -> Iterator[str]:
    """Markdown."""
    yield heading("method", "images/s: median (least - most)", "divided by the ceiling",
                  "MB of the process", "MB on the card", "seconds to compile")

    def most(of: Sequence[Measured], key: str) -> str:
        return f"{max(run[key] for run in of):,.0f}" if key in of[0] else ""

    ceiling = median(runs[CEILING], "images_per_second")
    for name, of in runs.items():
        process = most(of, "peak_mb")
        if name == PUBLISHED:
            process += f" (and {workers} workers of {most(of, 'worker_mb')})"
        compiling = f"{median(of, 'compile_seconds'):.1f}" if name == COMPILED else ""
        yield row(name, spread(of, "images_per_second", 1),
                  f"{median(of, 'images_per_second') / ceiling:.2f}", process,
                  most(of, "device_mb"), compiling)
