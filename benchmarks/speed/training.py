"""Training the hash network in images a second: the loop of train.py, fed in three ways.

The ceiling is one batch that lies on the device: nothing is loaded and nothing augmented. Ours takes images decoded
before and augments them on the device. The loader in the published style decodes and augments each image whenever it
is seen, in worker processes. Network, loss and optimiser are the same, and so is the loop. Each measurement is a
process of its own, so that its memory is its own; the network has made some steps when the clock starts, and the
first batch of the measured ones has arrived (for the published style in its favour: its workers are then some batches
ahead). Of the memory of a worker, much is shared with the process.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.speed.common import (
    Run,
    add_image_flags,
    add_measuring_flags,
    heading,
    in_a_process,
    in_turns,
    load_images,
    median,
    memory,
    row,
    spread,
    timed,
    write_record,
)
from benchmarks.speed.plain import PlainImages, plain_loader, train_transform
from data_loader import PairedDataset
from datasets.store import ImageLoader, ImageStore, Transform, training_views
from engine.cli import image_side, positive_int
from network import Backbone, HashNetwork, MrHash, MultisourceAutoencoder
from train import Progress, train_one_epoch
from utils import setup_device

OURS, COMPILED, CEILING, PUBLISHED = ("ours", "ours, torch.compile", "ceiling: one batch, on the device already",
                                      "published style loader")
CLUSTERS, LATENT, WIDTH = 16, 64, 2048  # defaults of the scripts; ResNet-50's features
WARM = 2  # steps before the clock starts: the device's libraries choose their algorithms, torch.compile compiles


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_image_flags(parser)
    parser.add_argument("--steps", type=positive_int, default=20, help="steps of a measurement")
    parser.add_argument("--batch_size", type=positive_int, default=128, help="images a step")
    parser.add_argument("--image_size", type=image_side, default=224, help="side of the crop")
    parser.add_argument("--model_type", default="alexnet", help="as for train.py")
    parser.add_argument("--weights", default="none", help="as for train.py; the speed does not depend on them")
    parser.add_argument("--hash_bit", type=positive_int, default=32, help="length of the codes")
    parser.add_argument("--workers", type=positive_int, default=4,
                        help="processes of the DataLoader, and threads that decode for ours")
    parser.add_argument("--amp", action="store_true", help="bfloat16, in all methods")
    parser.add_argument("--compile", action="store_true", help="also measure ours with torch.compile")
    add_measuring_flags(parser, "train")


def run_steps(model: MrHash, batches: Sequence[Tensor], views: Iterator[Tensor], features: Sequence[Tensor],
              target: Tensor, optimizer: torch.optim.Optimizer, amp: bool) -> None:
    """train.py's loop over batches of rows, int64 on the device, and the views that belong to them."""
    done = Progress(model.to_latent.in_features, target.device)
    train_one_epoch(model, batches, views, False, features, target, optimizer, lambda0=5.0, kl="mean", threshold=0.0,
                    amp=amp, description="steps", done=done, after_step=lambda loss: None)


def _views(name: str, args: argparse.Namespace, dataset: PairedDataset, batches: Sequence[Tensor], cache: Path,
           device: torch.device) -> Iterator[Tensor]:
    """What the network sees of batches of rows of the images, int64 on the CPU, as one of the methods makes it."""
    if name == CEILING:
        view = torch.randn(len(batches[0]), 3, args.image_size, args.image_size, device=device)
        return itertools.repeat(view.contiguous(memory_format=torch.channels_last), len(batches))
    if name == PUBLISHED:
        images = PlainImages(dataset.source1, train_transform(args.image_size))
        loader = plain_loader(images, [batch.tolist() for batch in batches], args.workers, device)
        return (batch.to(device, non_blocking=True) for batch in loader)
    store = ImageStore.open(dataset.source1, dataset.file_label(0), args.image_size, cache, args.workers)
    return training_views(ImageLoader(store, device), Transform(args.image_size, store.side), batches, 0,
                          torch.Generator().manual_seed(0))


def measure_one(name: str, args: argparse.Namespace, cache: Path) -> Run:
    """One measurement of one method, in this process. cache: the folder of decoded images."""
    device = setup_device(args.device)
    dataset = load_images(args)
    torch.manual_seed(0)
    count, sources = len(dataset.train), len(dataset.sources)
    features = [torch.randn(count, WIDTH, device=device) for _ in range(sources)]
    target = torch.softmax(torch.randn(count, CLUSTERS, device=device), dim=1)
    hash_network = HashNetwork(Backbone(args.model_type, args.weights, args.image_size), args.hash_bit)
    autoencoder = MultisourceAutoencoder([WIDTH] * sources, LATENT, "dual" if sources == 2 else "unisource")
    model = MrHash(hash_network, autoencoder, torch.randn(CLUSTERS, LATENT))
    model = model.to(device, memory_format=torch.channels_last)
    if name == COMPILED:
        model.hash_network.backbone.compile_for(device)
    optimizer = torch.optim.Adam(model.parameter_groups(0.001, 0.01), fused=True)

    def steps(batches: Sequence[Tensor], views: Iterator[Tensor]) -> None:
        run_steps(model, [batch.to(device) for batch in batches], views, features, target, optimizer, args.amp)

    # Drawn with repetition, so that a small dataset does, too.
    batches = torch.randint(count, (args.steps, args.batch_size)).unbind()
    some = torch.randn(args.batch_size, 3, args.image_size, args.image_size, device=device)
    if name != PUBLISHED:
        some = some.contiguous(memory_format=torch.channels_last)
    first, _ = timed(lambda: steps(batches[:1] * WARM, itertools.repeat(some, WARM)), device)
    rows = torch.from_numpy(dataset.train)
    views = _views(name, args, dataset, [rows[batch] for batch in batches], cache, device)
    arrived = next(views)
    # Not to the end of `views`: there the workers end, for which a whole epoch would wait once.
    measured = itertools.chain([arrived], itertools.islice(views, args.steps - 1))
    seconds, _ = timed(lambda: steps(batches, measured), device)
    run: Run = {"seconds": seconds, "images_per_second": args.steps * args.batch_size / seconds,
                "peak_mb": memory("peak")}
    if name == PUBLISHED:
        del views, measured  # ends the workers, which are counted then
        run["worker_mb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
    if name == COMPILED:
        run["compile_seconds"] = first
    if device.type == "cuda":
        run["device_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
    return run


def measure(args: argparse.Namespace) -> Iterator[str]:
    """Measure all methods; the table, line by line."""
    device = setup_device(args.device)
    args.device = str(device)
    dataset = load_images(args)
    names = [OURS, *([COMPILED] if args.compile else []), CEILING, PUBLISHED]
    with tempfile.TemporaryDirectory() as cache:
        methods: dict[str, Callable[[], Run]] = {
            name: lambda name=name: in_a_process(name, "--batch_size or --image_size", measure_one, name, args,
                                                 Path(cache)) for name in names}
        runs = in_turns(methods, args.repeat)
    write_record(args, runs)
    yield (f"{args.model_type}, {args.steps} steps of {args.batch_size} images of {dataset.source_names[0]}, "
           f"{args.image_size} pixels, {'bfloat16' if args.amp else 'float32'}, {device}\n")
    yield heading("method", "images/s: median (least - most)", "divided by the ceiling", "MB of the process",
                  "MB on the card", "seconds to compile")

    def most(of: list[Run], key: str) -> str:
        return f"{max(run[key] for run in of):,.0f}"

    for name, of in runs.items():
        process = most(of, "peak_mb")
        if name == PUBLISHED:
            process += f" (and {args.workers} workers of {most(of, 'worker_mb')})"
        yield row(name, spread(of, "images_per_second", 1),
                  f"{median(of, 'images_per_second') / median(runs[CEILING], 'images_per_second'):.2f}",
                  process, most(of, "device_mb") if device.type == "cuda" else "",
                  f"{median(of, 'compile_seconds'):.1f}" if name == COMPILED else "")
