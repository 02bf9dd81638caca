"""Stage 1: pretrain the multisource autoencoder on frozen features of paired images.

    cd myautoencoder; python autoencoder.py                      EuroSAT in <repository>/data
    python myautoencoder/autoencoder.py --data_name samples      300 images that are here
    python -m myautoencoder.autoencoder --data_name pairs --source1 data/s2 --source2 data/vhr

Images of each source go through a frozen ImageNet network once (cached). The autoencoder then
learns a latent from which the features of every source can be told; train.py clusters it. Paths are
relative to the repository. The result is <output_dir>/autoencoder.pth.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

# Started as a script in this folder, Python looks for modules here and not one level up.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from data_loader import MODULES, config_of, moved_places
from datasets.base import DataConfig, PairedDataset
from datasets.record import image_record, of_content
from engine import cli, network_flags
from engine.backbones import preprocessing_of
from engine.checkpoint import LIMITS
from engine.cli import ArgumentParser, number
from engine.data_flags import add_data_flags
from engine.distributed import wrap_for_ranks
from engine.epoch import ShuffledEpoch
from engine.loop import Run
from engine.monitor import is_due, monitored_R
from loss import reconstruction_loss
from myautoencoder.features import dataset_features
from myautoencoder.images import load_usable
from myautoencoder.latents import latent_line, latent_map
from myautoencoder.neighbours import automatic_neighbours, prepare_features
from network import MultisourceAutoencoder
from utils import (
    LARGEST_SIDE,
    InputError,
    autocast,
    epoch_seed,
    resolve_path,
    set_rates,
    step_decay,
)


def main() -> None:
    args = parse_arguments()
    compute = cli.setup(args)  # seeds, device
    device = compute.device

    # ------------------------------------------------------------ data
    dataset, data = load_images(args)
    print(dataset.describe())
    encoder = choose_encoder(args, dataset)
    R = monitored_R(args, dataset.database_labels,
                    getattr(MODULES[data.data_name], "PUBLISHED_STAGE1_R", None))
    run = open_run(args, dataset, data, encoder, R)
    settings = feature_settings(args, dataset)
    compute = replace(compute, batch_size=min(args.batch_size, 128))  # 512 images are many
    arrays, content = dataset_features(dataset, settings, args.feature_weights, compute,
                                       settings["files"])
    images = image_record(dataset, compute.cache_dir)
    arrays = prepare_features(arrays, dataset.train, settings, device)
    features = [torch.from_numpy(x[dataset.train]).to(device) for x in arrays]  # (n, d) a source

    # ------------------------------------------------------------ model
    widths = [x.shape[1] for x in arrays]
    model = MultisourceAutoencoder(widths, args.latent_dim, encoder, args.init).to(device)
    # Fused: one pass over the weights a step, not ten.
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, fused=True)
    run.attach(model, optimizer, {"the weights or feature files": content, **of_content(images)})
    network = wrap_for_ranks(model, device)

    # ------------------------------------------------------------ loop
    for epoch in run.epochs("epoch", args.epoch):
        set_rates(optimizer, step_decay(args.lr, epoch, 0.5, 40))
        steps = ShuffledEpoch(len(dataset.train), args.batch_size, epoch_seed(args.seed, epoch),
                              device)
        stats = train_one_epoch(run, network, steps, features, args.lambda1, args.amp)
        due = is_due(epoch, args.epoch, args.eval_frequency)
        if R and (due or args.select == "test_map"):
            with run.evaluating():
                stats["latent_map"] = latent_map(model, arrays, dataset, R, bool(args.data_hash))
        run.finish_epoch(stats, score_of(stats, args.select))
        if due:
            report(run.label, stats, R, bool(args.data_hash))

    # ------------------------------------------------------------ save
    result = checkpoint_of(args, settings | {"content": content}, dataset, data, model)
    result |= {"images": images}
    if R:
        model.load_state_dict(run.kept()[-1])
        result["latent_map"] = latent_map(model, arrays, dataset, R, bool(args.data_hash))
        print(latent_line(result["latent_map"], R, bool(args.data_hash)))
    run.save_result(result)


def train_one_epoch(run: Run, network: nn.Module, epoch: ShuffledEpoch, features: Sequence[Tensor],
                    lambda1: float, amp: bool) -> dict[str, float]:
    """One pass over the features; returns the mean loss.

    Args:
        run: saves, stops and resumes between steps.
        network: the autoencoder, as the ranks train it.
        epoch: the steps.
        features: float32 (N, d) a source, on the device.
        lambda1: weight of the first source.
        amp: the products in bfloat16; the loss is float32 all the same.
    """
    network.train()
    meters = run.meters("loss")
    for step in run.steps(epoch):
        x = [source[step.rows] for source in features]
        with autocast(step.rows.device, amp):
            _, rebuilt = network(x)
        loss = reconstruction_loss([y.float() for y in rebuilt], x, lambda1)
        run.optimizer.zero_grad(set_to_none=True)
        (loss * step.weight).backward()  # of ranks: their mean becomes that of the batch
        run.optimizer.step()
        meters.update([loss], step.count)
    return meters.averages()


# ---------------------------------------------------------------- data


def load_images(args: argparse.Namespace) -> tuple[PairedDataset, DataConfig]:
    """The dataset that the flags name, and the config that finds it again.

    Raises:
        InputError: as load_usable; --skip_bad or --skip_unpaired beside files of features.
    """
    for flag in ("skip_bad", "skip_unpaired"):
        if getattr(args, flag) and (args.features1 or args.features2):
            raise InputError(f"--{flag} is for images, and the rows of --features1 and --features2 "
                             "would not fit those that are left: leave one out")
    dataset, data = load_usable(config_of(args, args.seed), args.skip_bad, args.workers)
    if "source2" not in moved_places(data):
        # What was found today, should another source appear beside it later.
        data = replace(data, source2=dataset.source_names[1])
    for remark in dataset.remarks:
        print(remark)
    return dataset, replace(data, **dataset.resolved)


def count_sources(args: argparse.Namespace, dataset: PairedDataset) -> int:
    """1 or 2; a file of features makes a second source, too."""
    return 2 if args.features2 else len(dataset.sources)


def choose_encoder(args: argparse.Namespace, dataset: PairedDataset) -> str:
    """dual where there are two sources, unless the flag says otherwise."""
    sources = count_sources(args, dataset)
    if args.encoder == "dual" and sources == 1:
        raise InputError("--encoder dual needs a second source: name one with --source2, or use "
                         "--encoder unisource")
    return args.encoder or ("unisource" if sources == 1 else "dual")


def open_run(args: argparse.Namespace, dataset: PairedDataset, data: DataConfig, encoder: str,
             R: int | None) -> Run:
    """The run in --output_dir."""
    folder = args.output_dir or f"runs/autoencoder_{dataset.run_name}"
    settings = {**vars(args), "encoder": encoder, "R": R, "fingerprint": dataset.fingerprint}
    return Run(resolve_path(folder), "autoencoder.pth", settings, args.resume, args.overwrite,
               moved_places(data))


def feature_settings(args: argparse.Namespace, dataset: PairedDataset) -> dict[str, Any]:
    """What says how features are made; the checkpoint keeps it, and train.py makes the same."""
    files = [args.features1, args.features2]
    neighbours = args.neighbours
    if neighbours is None:  # auto
        neighbours = automatic_neighbours(len(dataset.train))
    settings = {"feature_backbone": args.feature_backbone, "feature_weights": args.feature_weights,
                "image_size": args.image_size, "normalise": args.normalise, "amp": args.amp,
                "views": args.views, "files": files, "feature_norm": args.feature_norm,
                "neighbours": neighbours, "averaging": args.averaging,
                "averaging_rounds": args.averaging_rounds}
    averaging = (args.averaging, args.averaging_rounds) != ("nearest", 1)
    if averaging and not neighbours and args.preset != "best":
        raise InputError("--averaging and --averaging_rounds are about --neighbours, and there are "
                         "none: leave them out, or say how many")
    if all(files[:count_sources(args, dataset)]):  # no backbone takes part
        if args.normalise is not None or (args.views > 1 and args.preset != "best"):
            raise InputError("--normalise and --views are for images, and all features come from "
                             "files: leave one out")
        settings |= {"feature_backbone": None, "feature_weights": None, "views": 1}
    return settings


# ---------------------------------------------------------------- loop and save


def score_of(stats: dict[str, Any], select: str) -> float | None:
    """What --select compares epochs by, more is better; None keeps the last one."""
    if select == "loss":
        return -stats["loss"]
    return stats["latent_map"] if select == "test_map" else None


def report(label: str, stats: dict[str, Any], R: int | None, signs: bool) -> None:
    """A line on the epoch."""
    measured = f", {latent_line(stats['latent_map'], R, signs)}" if "latent_map" in stats else ""
    print(f"{label}: loss {stats['loss']:.5f}{measured}")


def checkpoint_of(args: argparse.Namespace, features: dict[str, Any], dataset: PairedDataset,
                  data: DataConfig, model: MultisourceAutoencoder) -> dict[str, Any]:
    """autoencoder.pth but for epoch and weights: what stage 2 needs without any flag."""
    return {"format": "mrhash-autoencoder-1", "select": args.select, "network": model.settings(),
            "features": features, "data": data.as_dict(), "fingerprint": dataset.fingerprint}


# ---------------------------------------------------------------- flags


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(prog="autoencoder.py", description=__doc__.splitlines()[0])
    group = add_data_flags(parser, MODULES, inherited=False)
    group.add_argument(
        "--skip_unpaired", action="store_true",
        help="leave out scenes that have no image in the second source, as where collect.py found "
             "none, instead of ending with their names. They are missing from the database and "
             "the queries, too; train.py and test.py leave out the same")
    group.add_argument(
        "--skip_bad", action="store_true",
        help="leave out scenes of which an image cannot be read, instead of ending with their "
             "names; it reads all images once more. The checkpoint knows them: train.py and "
             "test.py leave out the same")
    add_method_flags(parser.add_argument_group("method"))
    cli.add_run_flags(parser, batch_size=512)
    cli.add_training_flags(parser, "runs/autoencoder_<data>")
    args = cli.parse_with_preset(parser, arguments)
    args.image_size = preprocessing_of(args.feature_backbone, args.image_size).image_size
    return args


def add_method_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--feature_backbone", "--pretrained_type", default="resnet50",
                       help="network whose frozen features are reconstructed: "
                            f"{network_flags.NETWORKS}; resnet50 is the paper's")
    group.add_argument("--feature_weights", default="imagenet",
                       help="imagenet (for efficientnet_lite0 from pip, else downloaded once), a "
                            "state-dict or .safetensors file, or none to try things out")
    network_flags.add_feature_file_flags(group, inherited=False)
    group.add_argument("--image_size", type=number(int, 1, LARGEST_SIDE),
                       help="side of the crop for the features (default: the network's own, 224 "
                            "for most); keep it unless time is short")
    network_flags.add_normalise_flag(group)
    network_flags.add_views_flag(group, "whose features are averaged", 1)
    network_flags.add_preparation_flags(group)
    group.add_argument("--encoder", choices=("dual", "unisource"),
                       help="dual sees both sources, unisource (as published) the first only "
                            "(default: dual where there is a second source)")
    group.add_argument("--init", choices=("he", "torch"), default="he",
                       help="initial weights: torch's own as published, or He's, which learns "
                            "faster and ends at a lower loss")
    group.add_argument("--latent_dim", "--laten_dim", type=number(int, *LIMITS["latent_dim"]),
                       default=64, help="width of the latent; more clusters may want more")
    group.add_argument("--lambda1", type=number(float, 0, 1e9), default=0.1,
                       help="weight of the first source's reconstruction beside the second's")
    group.add_argument("--lr", type=number(float, 0, 1e9), default=0.001,
                       help="Adam's rate, halved every 40 epochs; lower it if the loss is not "
                            "finite")
    group.add_argument("--epoch", type=number(int, 1), default=200,
                       help="passes over the features; 50 are enough for a quick look")
    group.add_argument("--select", choices=("loss", "last", "test_map"), default="loss",
                       help="which epoch is kept: least training loss, the last one, or (as "
                            "published, and peeking at the labels of the queries) the best mAP")
    group.add_argument("--R", type=number(int, 1),
                       help="the monitor is mAP@R (default: the smallest class in the database, "
                            "1900 for EuroSAT; --preset published takes 1900 for DSRSID too)")
    group.add_argument("--data_hash", type=int, choices=(0, 1), default=0,
                       help="1: the monitor ranks by the signs of the latent, not its distances")
    group.add_argument("--eval_frequency", type=number(int, 0), default=20,
                       help="monitor every so many epochs, 0 for never; test_map monitors every "
                            "epoch")


if __name__ == "__main__":
    sys.exit(cli.run(main, resumable=True, shared=True))
