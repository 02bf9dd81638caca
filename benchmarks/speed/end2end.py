"""The three scripts against the plain pieces, in seconds: from images to the mAP of codes.

Ours are processes, as a user starts them: once with nothing cached, then once more with the decoded images and the
features that the first time left. The plain pieces do the same number of epochs in one process: a loop for the
features, a loop for the autoencoder that measures mAP after every epoch, a loader in the published style before the
same training step, and an evaluation by one matrix and its argsort, as often as ours evaluates. Networks and k-means
are the same. In favour of the plain pieces, their process has started and has found the images when the clock starts.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.speed.common import (
    Run,
    add_image_flags,
    add_measuring_flags,
    heading,
    in_a_process,
    in_turns,
    load_images,
    median,
    row,
    spread,
    timed,
    write_record,
)
from benchmarks.speed.plain import (
    PlainImages,
    feature_loader,
    plain_autoencoder_epoch,
    plain_latent_map,
    plain_latents,
    plain_loader,
    plain_map,
    plain_outputs,
    train_transform,
)
from benchmarks.speed.training import run_steps
from data_loader import PairedDataset, choose_R
from datasets.store import ImageLoader, ImageStore
from engine.cli import image_side, non_negative_int, positive_int
from loss import cluster_centres, target_distribution
from myautoencoder.features import calibrate
from network import Backbone, HashNetwork, MrHash, MultisourceAutoencoder
from utils import ROOT, InputError, setup_device, step_decay

AUTOENCODER, TRAIN, TEST = STAGES = ("autoencoder.py: features, autoencoder", "train.py: hash network",
                                     "test.py: codes, mAP")
FIRST, CACHED, PLAIN = "ours, nothing cached", "ours, cached", "plain"
CLUSTERS, LATENT, EVALUATE = 16, 64, 5  # defaults of the scripts, as published


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_image_flags(parser)
    parser.add_argument("--feature_backbone", default="resnet50", help="as for autoencoder.py")
    parser.add_argument("--feature_weights", default="none",
                        help="as for autoencoder.py; the speed does not depend on them")
    parser.add_argument("--model_type", default="alexnet", help="as for train.py")
    parser.add_argument("--weights", default="none", help="as for train.py; the speed does not depend on them")
    parser.add_argument("--image_size", type=image_side, default=224, help="side of the crop, in all stages")
    parser.add_argument("--batch_size", type=positive_int, default=128,
                        help="as for train.py and test.py, and for whatever the plain pieces read")
    parser.add_argument("--epoch", type=positive_int, default=20, help="as for autoencoder.py")
    parser.add_argument("--max_epoch", type=non_negative_int, default=4, help="as for train.py: 4 trains 5 epochs")
    parser.add_argument("--hash_bit", type=positive_int, default=32, help="length of the codes")
    parser.add_argument("--workers", type=positive_int, default=4,
                        help="processes of the DataLoader, and threads that decode for ours")
    add_measuring_flags(parser, "end2end")


# ---------------------------------------------------------------- ours


def run_script(*command: str) -> None:
    """Run one of our scripts. Raises InputError with its last line when it fails."""
    done = subprocess.run([sys.executable, *command], cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise InputError(f"{command[0]} ended with exit code {done.returncode}: {lines[-1]}")


def our_commands(args: argparse.Namespace, cache: Path, runs: Path) -> dict[str, list[str]]:
    """Stage -> its command. cache: --cache_dir. runs: a folder for what the scripts write."""
    images = [word for name in ("data_name", "data_dir", "source1", "source2", "split_dir", "max_per_class")
              if getattr(args, name) is not None for word in (f"--{name}", str(getattr(args, name)))]
    same = ["--device", args.device, "--workers", str(args.workers), "--cache_dir", str(cache)]
    size, batch = ["--image_size", str(args.image_size)], ["--batch_size", str(args.batch_size)]
    return {
        AUTOENCODER: ["myautoencoder/autoencoder.py", *images, "--feature_backbone", args.feature_backbone,
                      "--feature_weights", args.feature_weights, *size, "--epoch", str(args.epoch), *same,
                      "--output_dir", str(runs / "autoencoder")],
        TRAIN: ["train.py", "--pretrained_dp_path", str(runs / "autoencoder" / "autoencoder.pth"), "--model_type",
                args.model_type, "--weights", args.weights, "--hash_bit", str(args.hash_bit), *size, *batch,
                "--max_epoch", str(args.max_epoch), *same, "--output_dir", str(runs / "mrhash")],
        TEST: ["test.py", "--pretrain_path", str(runs / "mrhash" / "mrhash.pth"), *batch, *same],
    }


def run_ours(args: argparse.Namespace, cache: Path) -> Run:
    """Seconds of each stage."""
    run: Run = {}
    with tempfile.TemporaryDirectory() as runs:
        for stage, command in our_commands(args, cache, Path(runs)).items():
            started = time.perf_counter()
            run_script(*command)
            run[stage] = time.perf_counter() - started
    return run


# ---------------------------------------------------------------- the plain pieces


class PlainPieces:
    """The stages one after the other, each a method; what one makes lies in memory for the next."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device = args, setup_device(args.device)
        self.dataset: PairedDataset = load_images(args)
        labels = self.dataset.labels
        hot = np.eye(labels.max() + 1)[labels] if labels.ndim == 1 else labels
        self.labels = hot.astype(np.float32)
        self.R = choose_R(None, labels[self.dataset.database])
        self.reading = args.image_size, args.batch_size, args.workers, self.device
        torch.manual_seed(0)
        self.feature_network = Backbone(args.feature_backbone, args.feature_weights, args.image_size)
        if self.feature_network.needs_calibration:  # random weights: else the features are no numbers to train on
            store = ImageStore.open(load_images(args).source1, "images", args.image_size, None, args.workers)
            calibrate(self.feature_network, ImageLoader(store, self.device), args.image_size)
        self.feature_network = self.feature_network.to(self.device, memory_format=torch.contiguous_format)

    def autoencoder_stage(self) -> None:
        rows, dataset = np.arange(len(self.dataset.names)), self.dataset
        arrays = [plain_outputs(self.feature_network, source, rows, *self.reading) for source in dataset.sources]
        train, query, database = ([torch.from_numpy(x[part]) for x in arrays]
                                  for part in (dataset.train, dataset.query, dataset.database))
        encoder = "dual" if len(arrays) == 2 else "unisource"
        model = MultisourceAutoencoder([x.shape[1] for x in arrays], LATENT, encoder).to(self.device)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
        loader = feature_loader(train, 512, shuffle=True)
        for epoch in range(self.args.epoch):
            optimizer.param_groups[0]["lr"] = step_decay(0.001, epoch, 0.5, 40)
            plain_autoencoder_epoch(model, loader, optimizer, 0.1, self.device)
            plain_latent_map(model, query, database, self.labels[dataset.query], self.labels[dataset.database],
                             self.R, self.device)
        self.autoencoder, self.features = model, train

    def train_stage(self) -> None:
        args, device, train = self.args, self.device, self.dataset.train
        centres = cluster_centres(plain_latents(self.autoencoder, self.features, device), CLUSTERS)
        hash_network = HashNetwork(Backbone(args.model_type, args.weights, args.image_size), args.hash_bit)
        self.model: nn.Module = MrHash(hash_network, self.autoencoder, torch.from_numpy(centres)).to(device)
        optimizer = torch.optim.Adam(self.model.parameter_groups(0.001, 0.01))
        features = [x.to(device) for x in self.features]
        images = PlainImages(self.dataset.source1, train_transform(args.image_size))
        for epoch in range(args.max_epoch + 1):
            for group, factor in zip(optimizer.param_groups, (0.01, 1.0), strict=True):
                group["lr"] = step_decay(0.001, epoch, 0.7, 10) * factor
            target = target_distribution(self.model.assign_all(features))
            batches = torch.randperm(len(train)).split(args.batch_size)
            loader = plain_loader(images, [train[batch.numpy()].tolist() for batch in batches], args.workers, device)
            views: Iterator[Tensor] = (batch.to(device, non_blocking=True) for batch in loader)
            run_steps(self.model, [batch.to(device) for batch in batches], views, features, target, optimizer, False)
            if epoch % EVALUATE == 0 or epoch == args.max_epoch:
                self.test_stage()

    def test_stage(self) -> None:
        plain_map(self.model.hash_network, self.dataset.source1, self.dataset.query, self.dataset.database,
                  self.labels, self.R, *self.reading)


def run_plain(args: argparse.Namespace) -> Run:
    """Seconds of each stage, in this process."""
    pieces = PlainPieces(args)
    stages = pieces.autoencoder_stage, pieces.train_stage, pieces.test_stage
    return {name: timed(stage, pieces.device)[0] for name, stage in zip(STAGES, stages, strict=True)}


# ---------------------------------------------------------------- side by side


def measure(args: argparse.Namespace) -> Iterator[str]:
    """Measure all; the table, line by line."""
    device = setup_device(args.device)
    args.device = str(device)
    dataset = load_images(args)
    if dataset.labels is None:
        raise InputError("these images have no labels, so there is no mAP to compute: name images in class folders")
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"

        def first() -> Run:
            shutil.rmtree(cache, ignore_errors=True)
            return run_ours(args, cache)

        runs = in_turns({FIRST: first, CACHED: lambda: run_ours(args, cache),
                         PLAIN: lambda: in_a_process(PLAIN, "--batch_size or --image_size", run_plain, args)},
                        args.repeat)
    for of in runs.values():
        for run in of:
            run["all"] = sum(run[stage] for stage in STAGES)
    write_record(args, runs)
    yield dataset.describe()
    yield (f"{args.feature_backbone}, {args.model_type}, {args.image_size} pixels, {args.epoch} and "
           f"{args.max_epoch + 1} epochs, {device}\n")
    yield heading("stage", *(f"{name}: seconds, median (least - most)" for name in runs),
                  "plain / ours, nothing cached", "plain / ours, cached")
    for stage in (*STAGES, "all"):
        yield row(stage, *(spread(of, stage, 1) for of in runs.values()),
                  *(f"{median(runs[PLAIN], stage) / median(runs[ours], stage):.2f}" for ours in (FIRST, CACHED)))
