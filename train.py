"""Stage 2: train the hash network on pseudo multi-labels.

    python train.py --hash_bit 32 --pretrained_dp_path runs/autoencoder_eurosat/autoencoder.pth
    torchrun --standalone --nproc_per_node 8 train.py ...          the same batches, shared by cards

The latents of the autoencoder are clustered; the probability function of a latent and the centres
gives each training image its pseudo multi-label. A CNN that sees the first source only learns codes
that lead to the same multi-label, while autoencoder and centres go on learning. No label is used,
except to print mAP where there are some, and by --select test_map. The result is
<output_dir>/mrhash.pth.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from data_loader import MODULES, ImageLoader, inherit_dataset, moved_places
from datasets.base import DataConfig, PairedDataset
from datasets.record import image_record, of_content
from engine import cli, network_flags
from engine.backbones import preprocessing_of
from engine.checkpoint import LIMITS, content_of
from engine.cli import ArgumentParser, number, number_or
from engine.data_flags import add_data_flags
from engine.distributed import wrap_for_ranks
from engine.epoch import ShuffledEpoch
from engine.loop import Run
from engine.monitor import is_due, monitored_R
from loss import degrees_of_freedom, multi_semantic_loss, single_labels, target_distribution
from myautoencoder.phases import measure_codes, plan_phases, warn_of_constant_bits
from myautoencoder.stage1 import load_stage1, make_centres, training_features
from network import HashNetwork, MrHash, MultisourceAutoencoder, load_backbone, rebuild_autoencoder
from utils import LARGEST_SIDE, autocast, resolve_path, set_rates


def main() -> None:
    args = parse_arguments()
    compute = cli.setup(args)  # seeds, device
    device = compute.device

    # ------------------------------------------------------------ data
    stage1, path = load_stage1(args)
    autoencoder = rebuild_autoencoder(stage1, path)
    dataset, data = inherit_dataset(args, stage1, compute.cache_dir)
    print(dataset.describe())
    R = monitored_R(args, dataset.database_labels)
    run = open_run(args, dataset, data, R, content_of(stage1, autoencoder.state_dict()))
    features = training_features(args, dataset, (stage1, path), compute)
    images = image_record(dataset, compute.cache_dir)

    # ------------------------------------------------------------ model
    alpha = degrees_of_freedom(args.alpha, autoencoder.latent_dim)
    centres = make_centres(autoencoder.to(device), features, alpha, args)
    backbone = load_backbone(args.model_type, args.weights, args.image_size, args.batch_norm,
                             args.normalise)
    loader = ImageLoader(dataset.source1, dataset.file_label(0), backbone.preprocessing, compute)
    phases = plan_phases(args, backbone, dataset, loader, compute)
    hash_network = HashNetwork(backbone, args.hash_bit, args.head_width)
    model = MrHash(hash_network, autoencoder, centres, alpha)
    model.centres.requires_grad_(args.centres == "trained")
    autoencoder.requires_grad_(args.autoencoder == "trained")
    model = model.to(device, memory_format=torch.channels_last)
    # Fused: one pass over the weights a step, not ten.
    optimizer = torch.optim.Adam(model.parameter_groups(args.lr, args.multi_lr), fused=True)
    run.attach(model, optimizer, {"the weights": backbone.digest, **of_content(images)})

    # ------------------------------------------------------------ loop
    reconstructed = features if args.autoencoder == "trained" else []  # none where it is fixed
    criterion = partial(multi_semantic_loss, lambda0=args.lambda0, kl=args.kl)
    make_target = partial(pseudo_labels, run, model, features, args.pseudo_labels)
    for phase in phases:
        backbone.requires_grad_(not phase.head_only and args.multi_lr > 0)
        network = wrap_for_ranks(model, device, backbone.has_unused and not phase.head_only)
        for epoch in run.epochs(phase.name, phase.count):
            rate = phase.rate(args.lr, epoch)
            set_rates(optimizer, rate * args.multi_lr, rate)
            target = run.remember("target", make_target, each_epoch=args.targets == "epoch")
            steps = ShuffledEpoch(len(dataset.train), args.batch_size,
                                  phase.seed(args.seed, epoch), device, phase.source.views)
            stats = train_one_epoch(run, network, steps, reconstructed, target, criterion,
                                    args.amp)
            if R and is_due(epoch, phase.count, args.eval_frequency):
                with run.evaluating():
                    stats |= measure_codes(hash_network, phase.source, dataset, R, args.T)
            run.finish_epoch(stats, score_of(stats, args.select))
            report(run.label, stats, R)

    # ------------------------------------------------------------ save
    run.save_result(checkpoint_of(args, dataset, data, autoencoder) | {"images": images})
    warn_of_constant_bits(run, phases, model, dataset, args.T)


def train_one_epoch(run: Run, network: nn.Module, epoch: ShuffledEpoch, features: Sequence[Tensor],
                    target: Tensor, criterion: Callable[..., tuple[Tensor, Tensor, Tensor]],
                    amp: bool) -> dict[str, float]:
    """One pass over the training images; returns the mean of each part of the loss.

    Args:
        run: saves, stops and resumes between steps.
        network: MrHash, as the ranks train it.
        epoch: the steps, and what the hash network sees in each.
        features: float32 (N, d) a source, on the device; none leaves the autoencoder out.
        target: p, float32 (N, C), the pseudo multi-labels.
        criterion: `multi_semantic_loss` with its weights.
        amp: bfloat16; the loss is float32 all the same.
    """
    network.train()
    meters = run.meters("loss", "divergence", "reconstruction")
    for step in run.steps(epoch):
        x = [source[step.rows] for source in features]
        with autocast(target.device, amp):
            _, q_image, q_feature, rebuilt = network(step.views, x)
        rebuilt = [y.float() for y in rebuilt]
        losses = criterion(target[step.rows], q_image, q_feature, rebuilt, x)
        run.optimizer.zero_grad(set_to_none=True)
        (losses[0] * step.weight).backward()  # the weight is 1 where there is one process
        run.optimizer.step()
        meters.update(losses, step.count)
    return meters.averages()


# ---------------------------------------------------------------- pseudo labels


def pseudo_labels(run: Run, model: MrHash, features: Sequence[Tensor], kind: str) -> Tensor:
    """p, float32 (N, C), of all training images; `kind` is multi or single."""
    q = model.assign_all(features)
    empty = q.shape[1] - len(q.argmax(dim=1).unique())
    if empty:
        run.warn_once("clusters", f"{empty} of {q.shape[1]} clusters are empty: no image belongs "
                      "to them most; lower --n_clusters, or make the labels once, before they "
                      "drift (--targets once)")
    target = target_distribution(q)
    return single_labels(target) if kind == "single" else target


# ---------------------------------------------------------------- loop


def open_run(args: argparse.Namespace, dataset: PairedDataset, data: DataConfig, R: int | None,
             pretrained: str) -> Run:
    """The run in --output_dir. `pretrained`: which autoencoder it begins with."""
    folder = args.output_dir or f"runs/mrhash_{dataset.run_name}_{args.hash_bit}bit"
    settings = {**vars(args), "R": R, "fingerprint": dataset.fingerprint, "pretrained": pretrained}
    return Run(resolve_path(folder), "mrhash.pth", settings, args.resume, args.overwrite,
               moved_places(data))


def report(label: str, stats: dict[str, Any], R: int | None) -> None:
    """A line on the epoch."""
    line = f"{label}: loss {stats['loss']:.5f} (divergence {stats['divergence']:.5f})"
    if "map" in stats:
        constant = stats["constant_bits"]
        line += f", mAP@{R} {stats['map']:.4f} (ties: expected"
        line += f"; constant bits: {constant})" if constant else ")"
    print(f"{line}, {stats['images_per_second']:.0f} images/s")


def score_of(stats: dict[str, Any], select: str) -> float | None:
    """What --select compares epochs by, more is better; None keeps the last one."""
    if select == "loss":
        return -stats["loss"]
    return stats.get("map") if select == "test_map" else None


def checkpoint_of(args: argparse.Namespace, dataset: PairedDataset, data: DataConfig,
                  autoencoder: MultisourceAutoencoder) -> dict[str, Any]:
    """mrhash.pth but for epoch and weights: what is needed to hash without any flag."""
    network = {"model_type": args.model_type, "hash_bit": args.hash_bit,
               "head_width": args.head_width, "image_size": args.image_size,
               "normalise": args.normalise, "views": args.views,
               "n_clusters": args.n_clusters, "threshold": args.T,
               "autoencoder": autoencoder.settings()}
    return {"format": "mrhash-1", "select": args.select, "network": network,
            "data": data.as_dict(), "fingerprint": dataset.fingerprint}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(prog="train.py", description=__doc__.splitlines()[0])
    add_data_flags(parser, MODULES, inherited=True)
    add_method_flags(parser.add_argument_group("method"))
    add_schedule_flags(parser.add_argument_group("training"))
    cli.add_run_flags(parser, batch_size=128)
    cli.add_training_flags(parser, "runs/mrhash_<data>_<hash_bit>bit")
    args = cli.parse_with_preset(parser, arguments)
    if args.preset != "best":  # which takes network and size of stage 1
        args.image_size = preprocessing_of(args.model_type, args.image_size).image_size
    if args.max_epoch is None and args.head_epochs == 0:
        parser.error("argument --max_epoch: none trains nothing without --head_epochs")
    if args.select == "test_map" and args.eval_frequency == 0:
        parser.error("argument --select: test_map needs --eval_frequency above 0")
    return args


def add_method_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--pretrained_dp_path", required=True,
                       help="the autoencoder.pth of stage 1; it also says which images, which "
                            "split and which features belong to it")
    group.add_argument("--hash_bit", type=number(int, *LIMITS["hash_bit"]), default=32,
                       help="bits a code, 1 to 1024; 32 or 64 is a fair start")
    group.add_argument("--model_type", default="alexnet",
                       help=f"network that is trained to hash: {network_flags.NETWORKS}; alexnet "
                            "is the paper's (--preset best: the network of stage 1)")
    group.add_argument("--weights", default="imagenet",
                       help="what it starts from: imagenet, a state-dict or .safetensors file, or "
                            "none (then raise --multi_lr: there is nothing yet to preserve)")
    group.add_argument("--feature_weights",
                       help="only when the file of stage 1 lies elsewhere now: the same weights, "
                            "new place")
    network_flags.add_feature_file_flags(group, inherited=True)
    group.add_argument("--image_size", type=number(int, 1, LARGEST_SIDE),
                       help="side of the crop (default: the network's own, 224 for most); 64 to "
                            "128 is much faster on a CPU and costs accuracy")
    network_flags.add_normalise_flag(group)
    network_flags.add_views_flag(group, "of which each epoch draws one", None)
    group.add_argument("--batch_norm", choices=("auto", "frozen", "adapt"), default="auto",
                       help="running statistics of batch normalisation: frozen suits pretrained "
                            "weights, adapt suits none; auto chooses by --weights")
    group.add_argument("--latent_dim", "--laten_dim", type=number(int, 1),
                       help="only checked: the width of the latent is the autoencoder's")
    group.add_argument("--n_clusters", type=number(int, 1), default=16,
                       help="pseudo classes; take about as many as you expect kinds of scenes")
    network_flags.add_label_flags(group)
    group.add_argument("--pseudo_labels", choices=("multi", "single"), default="multi",
                       help="multi: the target distribution; single: one-hot, its largest entry "
                            "alone, to see what the many are worth")
    group.add_argument("--head_width", type=number(int, 0, LIMITS["head_width"][1]), default=0,
                       help="units of a hidden layer before the hash layer; 0 for none (as "
                            "published: AlexNet has its own); 512 helps a backbone that ends in "
                            "pooling, the more so if it is frozen")
    group.add_argument("--T", type=number(float, -1e30, 1e30), default=0.0,
                       help="a bit is 1 where the output is >= T")


def add_schedule_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--targets", choices=("epoch", "once"), default="epoch",
                       help="when the pseudo multi-labels are made from the latents: at the start "
                            "of each epoch (as published), or once, which keeps them from drifting "
                            "with the codes")
    group.add_argument("--autoencoder", choices=("trained", "fixed"), default="trained",
                       help="whether the autoencoder learns on (as published) or stays as stage 1 "
                            "left it; then the loss is KL(p || q_image) alone, and with --targets "
                            "once an epoch is cheaper")
    group.add_argument("--centres", choices=("trained", "fixed"), default="trained",
                       help="whether the cluster centres move (as published) or stay where k-means "
                            "put them")
    group.add_argument("--kl", choices=("mean", "batchmean"), default="mean",
                       help="the divergence is averaged over batch and clusters (as published), or "
                            "over the batch alone: --n_clusters times heavier beside the "
                            "reconstruction")
    group.add_argument("--lambda0", type=number(float, 0, 1e9), default=5.0,
                       help="weight of the reconstruction errors; 0 lets the latent drift to the "
                            "clusters")
    group.add_argument("--head_epochs", type=number(int, 0), default=0,
                       help="epochs before those of --max_epoch, with a frozen backbone that sees "
                            "each view once, so that they take seconds; the rate falls to 0 along "
                            "a cosine")
    group.add_argument("--max_epoch", type=number_or("none", int, 0), default=50,
                       help="the last epoch of the whole network, counted from 0 as published: 50 "
                            "trains 51 epochs; none stops after --head_epochs")
    group.add_argument("--lr", type=number(float, 0, 1e9), default=0.001,
                       help="Adam's rate, x 0.7 every 10 epochs; lower it if the loss is not "
                            "finite")
    group.add_argument("--multi_lr", type=number(float, 0, 1e9), default=0.01,
                       help="the backbone's rate as a multiple of --lr; 0 freezes it")
    group.add_argument("--select", choices=("loss", "last", "test_map"), default="last",
                       help="which epoch is kept: least training loss, the last (as published), "
                            "or, peeking at the labels of the queries, the best mAP")
    group.add_argument("--eval_frequency", type=number(int, 0), default=5,
                       help="print mAP every so many epochs, 0 for never; it costs a pass over all "
                            "images")
    group.add_argument("--R", type=number(int, 1),
                       help="mAP@R (default: the smallest class in the database, 1900 for EuroSAT)")


if __name__ == "__main__":
    sys.exit(cli.run(main, resumable=True, shared=True))
