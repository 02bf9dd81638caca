"""Stage 2: train the hash network on pseudo multi-labels.

    python train.py --hash_bit 32 --pretrained_dp_path runs/autoencoder_eurosat/autoencoder.pth

The latents of the autoencoder are clustered; the probability function of a latent and the centres gives
each training image its pseudo multi-label. A CNN that sees the first source only learns codes that lead
to the same multi-label, while autoencoder and centres go on learning. No label is used, except to print
mAP where there are some, and by --select test_map. The result is <output_dir>/mrhash.pth.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hamming
from data_loader import PairedDataset, add_data_flags, choose_R, inherit_dataset, moved_places
from datasets.store import ImageLoader, ImageStore, Transform, to_device, training_views
from engine.checkpoint import LIMITS, content_of, load_checkpoint, save_checkpoint
from engine.cli import (
    ArgumentParser,
    add_feature_file_flags,
    add_run_flags,
    add_training_flags,
    epoch_number,
    finite_float,
    image_side,
    non_negative_float,
    non_negative_int,
    parse_with_preset,
    positive_float_or_auto,
    positive_int,
    run,
    share,
)
from engine.distributed import Share, from_first, step_of, sum_over_ranks, trained_together
from engine.run import LossWatch, Run, put, random_states, set_random_states
from loss import cluster_centres, latent_scale, multi_semantic_loss, single_labels, target_distribution
from myautoencoder.features import (
    apply_network,
    calibrate,
    dataset_features,
    feature_files_of,
    features_of,
    hash_features,
    prepare_features,
    row_norms,
)
from network import Backbone, HashNetwork, MrHash, rebuild_autoencoder
from utils import (
    InputError,
    autocast,
    collapse_warning,
    epoch_seed,
    progress,
    rank,
    resolve_path,
    seed_everything,
    setup_device,
    step_decay,
    warn,
)

FORMAT = "mrhash-1"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(prog="train.py", description=__doc__.splitlines()[0])
    add_data_flags(parser, inherited=True)
    group = parser.add_argument_group("method")
    group.add_argument("--pretrained_dp_path", required=True,
                       help="the autoencoder.pth of stage 1; it also says which images, which split and "
                            "which features belong to it")
    group.add_argument("--hash_bit", type=positive_int, default=32,
                       help="bits a code, 1 to 1024; 32 or 64 is a fair start")
    group.add_argument("--model_type", default="alexnet",
                       help="torchvision model that is trained to hash; alexnet is the paper's")
    group.add_argument("--weights", default="imagenet",
                       help="what it starts from: imagenet, a state-dict file, or none (then raise "
                            "--multi_lr: there is nothing yet to preserve)")
    group.add_argument("--feature_weights",
                       help="only when the file of stage 1 lies elsewhere now: the same weights, new place")
    add_feature_file_flags(group, inherited=True)
    group.add_argument("--image_size", type=image_side, default=224,
                       help="side of the crop; 64 to 128 is much faster on a CPU and costs accuracy")
    group.add_argument("--batch_norm", choices=("auto", "frozen", "adapt"), default="auto",
                       help="running statistics of batch normalisation: frozen suits pretrained weights, "
                            "adapt suits none; auto chooses by --weights")
    group.add_argument("--latent_dim", "--laten_dim", type=positive_int,
                       help="only checked: the width of the latent is the autoencoder's")
    group.add_argument("--n_clusters", type=positive_int, default=16,
                       help="pseudo classes; take about as many as you expect kinds of scenes")
    group.add_argument("--alpha", type=positive_float_or_auto, default=1.0,
                       help="degrees of freedom of the probability function; 1 (as published) was made for maps of "
                            "two dimensions and gives nearly flat labels in many; auto is latent_dim - 1")
    group.add_argument("--label_spread", type=share, default=0.0,
                       help="the share of the clusters over which a soft assignment is spread (exp of its entropy), "
                            "reached by centring and scaling the latent, which changes nothing else; 0.2 is a fair "
                            "start with --alpha auto; 0 takes the latent as it comes (as published)")
    group.add_argument("--pseudo_labels", choices=("multi", "single"), default="multi",
                       help="multi: the target distribution; single: one-hot, its largest entry alone, to see what "
                            "the many are worth")
    group.add_argument("--targets", choices=("epoch", "once"), default="epoch",
                       help="when the pseudo multi-labels are made from the latents: at the start of each "
                            "epoch (as published), or once, which keeps them from drifting with the codes")
    group.add_argument("--autoencoder", choices=("trained", "fixed"), default="trained",
                       help="whether the autoencoder learns on (as published) or stays as stage 1 left it; then the "
                            "loss is KL(p || q_image) alone, and with --targets once an epoch is cheaper")
    group.add_argument("--centres", choices=("trained", "fixed"), default="trained",
                       help="whether the cluster centres move (as published) or stay where k-means put them")
    group.add_argument("--kl", choices=("mean", "batchmean"), default="mean",
                       help="the divergence is averaged over batch and clusters (as published), or over the "
                            "batch alone: --n_clusters times heavier beside the reconstruction")
    group.add_argument("--lambda0", type=non_negative_float, default=5.0,
                       help="weight of the reconstruction errors; 0 lets the latent drift to the clusters")
    group.add_argument("--head_width", type=non_negative_int, default=0,
                       help="units of a hidden layer before the hash layer; 0 for none (as published: AlexNet has "
                            "its own); 512 helps a backbone that ends in pooling, the more so if it stands still")
    group.add_argument("--head_epochs", type=non_negative_int, default=0,
                       help="epochs before those of --max_epoch, with the backbone at rest and each image seen once by "
                            "it, so that they take seconds; the rate falls to 0 along a cosine")
    group.add_argument("--lr", type=non_negative_float, default=0.001,
                       help="Adam's rate, x 0.7 every 10 epochs; lower it if the loss is not finite")
    group.add_argument("--multi_lr", type=non_negative_float, default=0.01,
                       help="the backbone's rate as a multiple of --lr; 0 freezes it")
    group.add_argument("--max_epoch", type=epoch_number, default=50,
                       help="the last epoch, counted from 0 as published: 50 trains 51 epochs; -1 stops after "
                            "--head_epochs")
    group.add_argument("--select", choices=("loss", "last", "test_map"), default="last",
                       help="which epoch is kept: least training loss, the last (as published), or, peeking at "
                            "the labels of the queries, the best mAP")
    group.add_argument("--eval_frequency", type=non_negative_int, default=5,
                       help="print mAP every so many epochs, 0 for never; it costs a pass over all images")
    group.add_argument("--R", type=positive_int,
                       help="mAP@R (default: the smallest class in the database, 1900 for EuroSAT)")
    group.add_argument("--T", type=finite_float, default=0.0, help="a bit is 1 where the output is >= T")
    add_run_flags(parser, batch_size=128)
    add_training_flags(parser, "runs/mrhash_<data_name>_<hash_bit>bit")
    args = parse_with_preset(parser, arguments)
    if args.hash_bit > LIMITS["hash_bit"][1]:
        parser.error(f"argument --hash_bit: {args.hash_bit} is more than {LIMITS['hash_bit'][1]}")
    if args.max_epoch < 0 and args.head_epochs == 0:
        parser.error("argument --max_epoch: -1 trains nothing without --head_epochs")
    return args


class Progress:
    """How far an epoch has come: steps done, and sums over their images (this rank's share of them) on the device."""

    def __init__(self, hash_bit: int, device: torch.device) -> None:
        self.step = 0
        self.losses = torch.zeros(3, device=device)  # loss, divergence, reconstruction error
        self.ones = torch.zeros(hash_bit, device=device, dtype=torch.long)  # how often each bit was 1

    def state(self) -> dict[str, Any]:
        return {"step": self.step, "losses": self.losses, "ones": self.ones}

    def gather(self) -> None:
        """The sums of all ranks become rank 0's, the others begin at 0."""
        for sums in (self.losses, self.ones):
            total = torch.from_numpy(sum_over_ranks(sums.cpu().numpy()))
            sums.copy_(total if rank() == 0 else torch.zeros_like(total))

    def restore(self, state: dict[str, Any], steps: int) -> None:
        """Go on from what `state` gave. Raises exceptions of any kind for a state of something else."""
        if not 0 <= state["step"] <= steps:
            raise ValueError(f"{state['step']} of {steps} steps")
        self.step = int(state["step"])
        self.losses, self.ones = put(state["losses"], self.losses), put(state["ones"], self.ones)
        if rank():
            self.losses.zero_()
            self.ones.zero_()


def train_one_epoch(model: nn.Module, batches: Sequence[Tensor], views: Iterable[Tensor], resting: bool,
                    features: Sequence[Tensor], target: Tensor, optimizer: torch.optim.Optimizer, lambda0: float,
                    kl: str, threshold: float, amp: bool, description: str, done: Progress,
                    after_step: Callable[[Tensor], None]) -> None:
    """One pass over the training images, or what is left of it.

    Args:
        model: MrHash, or what `trained_together` makes of it. batches: int64 on the device, which of the N training
            images make each step. views: what the hash network sees of them, batch by batch, on the device, float32,
            also with amp; from the step on that comes next, and where there are ranks of this one's share. resting:
            whether views are what the backbone makes of the images. features: one (N, d) tensor a source, none to
            leave the autoencoder out. target: p (N, C). They lie on the device. threshold: of a bit. done: brought
            up to date after each step, and then after_step is called with the loss of this rank's share.
    """
    model.train()
    left = batches[done.step:]
    for batch, view in zip(progress(left, description), views, strict=True):
        with step_of(len(batch)) as share:
            chosen = batch[share.part]
            given = [x[chosen] for x in features]
            with autocast(target.device, amp):
                code, q_image, q_feature, made = model(view, given, resting)
            losses = multi_semantic_loss(target[chosen], q_image.float(), q_feature if q_feature is None
                                         else q_feature.float(), [x.float() for x in made], given, lambda0, kl)
            optimizer.zero_grad(set_to_none=True)
            (losses[0] * share.weight).backward()
            optimizer.step()
        done.losses += torch.stack(losses).detach() * len(share)
        done.ones += (code.detach() >= threshold).sum(dim=0) * share.counts
        done.step += 1
        after_step(losses[0])


def codes_map(outputs: Callable[[np.ndarray], np.ndarray], dataset: PairedDataset, R: int, threshold: float,
              device: torch.device) -> float:
    """mAP@R of the codes of the outputs, rows (N,) -> h (N, K), over all orders of ties."""
    query, database = outputs(dataset.query), outputs(dataset.database)
    return hamming.evaluate(hamming.pack_codes(query, threshold), hamming.pack_codes(database, threshold),
                            dataset.labels[dataset.query], dataset.labels[dataset.database],
                            hash_bit=query.shape[1], R=R, device=str(device))["map"]


def main() -> None:
    args = parse_arguments()
    device = setup_device(args.device)
    seed_everything(args.seed)

    # ------------------------------------------------------------ data
    stage1_path = resolve_path(args.pretrained_dp_path)
    stage1 = load_checkpoint(stage1_path, "mrhash-autoencoder-1")
    if args.latent_dim not in (None, stage1["network"]["latent_dim"]):
        raise InputError(f"--latent_dim {args.latent_dim} contradicts {stage1_path}, whose latent has "
                         f"{stage1['network']['latent_dim']} values: leave the flag out")
    autoencoder = rebuild_autoencoder(stage1, stage1_path)
    dataset, data = inherit_dataset(args, stage1)
    print(dataset.describe())
    labelled = dataset.labels is not None
    if args.select == "test_map":
        if not labelled or args.eval_frequency == 0:
            raise InputError("--select test_map needs labels and --eval_frequency above 0: use last or loss")
        warn("--select test_map chooses the epoch by the labels of the test queries; do not compare its result with "
             "label-free methods")
    R = choose_R(args.R, dataset.labels[dataset.database]) if labelled else None
    alpha = args.alpha or max(1.0, autoencoder.latent_dim - 1.0)  # None: auto
    files = feature_files_of(stage1, stage1_path, [args.features1, args.features2])
    output_dir = resolve_path(args.output_dir or f"runs/mrhash_{dataset.name.lower()}_{args.hash_bit}bit")
    settings = {**vars(args), "R": R, "fingerprint": dataset.fingerprint,
                "pretrained": content_of(stage1, autoencoder.state_dict())}
    log = Run(output_dir, "mrhash.pth", settings, args.resume, args.overwrite,
              harmless={"output_dir", "preset", "resume", "overwrite", "device", "workers", "cache_dir", "data_dir",
                        "pretrained_dp_path", "feature_weights", "features1", "features2", "max_epoch",
                        *moved_places(data)})
    log.check_not_past(args.max_epoch, f"--max_epoch {args.max_epoch}", first=-args.head_epochs)
    before = args.max_epoch if log.state is None else log.state["settings"].get("max_epoch")
    if args.select == "test_map" and before != args.max_epoch and not (
            type(before) is int and before % args.eval_frequency == 0):
        raise InputError(f"{output_dir} was to end with epoch {before}, whose mAP counts for --select test_map and "
                         f"would not in a run to epoch {args.max_epoch}: begin again with --overwrite")
    arrays, _ = dataset_features(dataset, stage1["features"],
                                 args.feature_weights or stage1["features"]["feature_weights"], device,
                                 args.batch_size, args.workers, args.cache_dir, files, args.compile)
    for number, x in enumerate(arrays):
        log.began_with(f"features{number + 1}", row_norms(x), f"the images of source {number + 1}, or their features,")
    arrays = prepare_features(arrays, dataset.train, stage1["features"], device)
    features = [torch.from_numpy(x[dataset.train]).to(device) for x in arrays]
    cache_dir = None if args.cache_dir == "none" else resolve_path(args.cache_dir)
    store = ImageStore.open(dataset.source1, dataset.file_label(0), args.image_size, cache_dir, args.workers)
    loader, transform = ImageLoader(store, device), Transform(args.image_size, store.side)
    rows = torch.from_numpy(dataset.train)

    # ------------------------------------------------------------ pseudo labels, model, optimiser
    if log.state is None:
        latent = autoencoder.to(device).encode_all(features).cpu()
        centres = from_first(torch.from_numpy(cluster_centres(
            latent.numpy(), args.n_clusters, starts=20, seed=args.seed)) if rank() == 0 else None)
        if args.label_spread:
            mean, factor = latent.mean(dim=0), latent_scale(latent, centres, alpha, args.label_spread)
            autoencoder.rescale(mean.to(device), factor)
            centres = (centres - mean) * factor
    else:
        with log.fitting():
            centres = put(log.state["model"]["centres"], torch.empty(args.n_clusters, autoencoder.latent_dim))
    backbone = Backbone(args.model_type, args.weights, args.image_size, args.batch_norm)
    log.began_with("weights", backbone.content, f"the weights {args.weights}")
    seen = None  # what the backbone at rest makes of all images
    if log.first_epoch(-args.head_epochs) < 0:
        if backbone.needs_calibration:  # features that come from the cache would leave it as it is
            calibrate(backbone, loader, args.image_size)
        seen = features_of(dataset.source1, dataset.file_label(0), args.model_type, backbone, args.image_size, device,
                           args.batch_size, args.workers, args.amp, args.compile, cache_dir)
        seen_in_training = torch.from_numpy(seen[dataset.train]).to(device)
    if args.compile:
        backbone.compile_for(device)
    model = MrHash(HashNetwork(backbone, args.hash_bit, args.head_width), autoencoder, centres, alpha)
    model.centres.requires_grad_(args.centres == "trained")
    model = model.to(device, memory_format=torch.channels_last)
    # Fused: one pass over the weights a step, not ten.
    optimizer = torch.optim.Adam(model.parameter_groups(args.lr, args.multi_lr), fused=True)
    best = {"score": -math.inf, "epoch": None, "model": None}  # stays empty for --select last
    if log.state is not None:
        log.restore(model, optimizer)
        best = log.state["best"]
    learning = features if args.autoencoder == "trained" else []  # what the autoencoder learns from
    autoencoder.requires_grad_(args.autoencoder == "trained")

    def pseudo_labels() -> Tensor:
        q = model.assign_all(features)
        lost = args.n_clusters - len(q.argmax(dim=1).unique())
        if lost:
            log.warn_once("clusters", f"{lost} of {args.n_clusters} clusters are empty: no image belongs to them most; "
                                      "lower --n_clusters, or make the labels once, before they drift (--targets once)")
        target = target_distribution(q)
        return single_labels(target) if args.pseudo_labels == "single" else target

    within = log.state["within"] if log.state is not None else None  # how far the epoch to begin with has come
    target = None  # of --targets once, or of that epoch
    if args.targets == "once" or within is not None:
        if log.state is None:
            target = pseudo_labels()
        else:
            with log.fitting():
                target = put(log.state["target"], torch.empty(len(rows), args.n_clusters, device=device))

    def outputs(rows: np.ndarray, epoch: int) -> np.ndarray:  # what the hash network makes of images, in eval mode
        made = (hash_features(model.hash_network, seen, rows, args.batch_size, device) if epoch < 0 else apply_network(
            model.hash_network, loader, rows, args.image_size, args.batch_size, args.amp, "codes"))
        return np.concatenate(list(made))

    def save_within() -> None:  # the epoch in hand, as far as it has come
        watch.check()
        log.save(epoch - 1, {**done.state(), "random": random_states(device)}, model=model, optimizer=optimizer,
                 best=best, target=target.cpu())

    def after_step(loss: Tensor) -> None:
        watch.see(done.step - 1, loss)
        if log.wants_saving():
            done.gather()
            save_within()
            log.stop_if_asked()

    # ------------------------------------------------------------ loop
    log.start()
    started = time.time() - log.seconds
    trained, resting = None, None  # the model as the ranks train it, and whether its backbone rests
    for epoch in range(log.first_epoch(-args.head_epochs), args.max_epoch + 1):  # below 0: those of the head
        begun = time.time()
        if epoch < 0:
            rate = args.lr * (1 + math.cos(math.pi * (1 + epoch / args.head_epochs))) / 2
        else:
            rate = step_decay(args.lr, epoch, 0.7, 10)
        if resting != (epoch < 0):
            resting = epoch < 0
            backbone.requires_grad_(not resting and args.multi_lr > 0)  # frozen, it needs no backward pass
            trained = trained_together(model, device, some_unused=backbone.has_unused and not resting)
        if epoch == 0:  # losses with and without augmentation do not compare
            best = {"score": -math.inf, "epoch": None, "model": None}
        for group, factor in zip(optimizer.param_groups, (args.multi_lr, 1.0), strict=True):
            group["lr"] = rate * factor
        # Crops, order and dropout of an epoch depend on the seed and the epoch alone: what a resumed
        # run draws is what the uninterrupted one drew.
        seed = epoch_seed(args.seed, epoch)
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(rows), generator=generator)
        batches = to_device(order, device).split(args.batch_size)
        done = Progress(args.hash_bit, device)
        if within is not None:
            with log.fitting():
                done.restore(within, len(batches))
                set_random_states(within["random"], device)
            within = None
        elif args.targets == "epoch":
            target = pseudo_labels()
        if resting:
            views = (seen_in_training[batch[Share.of(len(batch)).part]] for batch in batches[done.step:])
        else:
            views = training_views(loader, transform, rows[order].split(args.batch_size), done.step, generator)
        watch = LossWatch(log, epoch, len(batches), device)
        with log.deferring():  # Ctrl-C waits for the end of the step
            train_one_epoch(trained, batches, views, resting, learning, target, optimizer, args.lambda0, args.kl,
                            args.T, args.amp, f"epoch {epoch}/{args.max_epoch}", done, after_step)
        watch.check()
        log.check_weights(model, epoch)  # before anything is made of them
        done.gather()
        if log.wants_saving() and log.asked:  # after the last step
            save_within()
            log.stop_if_asked()
        loss, divergence, error = (done.losses / len(rows)).tolist()
        constant = int(((done.ones == 0) | (done.ones == len(rows))).sum())
        record = {"epoch": epoch, "loss": loss, "divergence": divergence, "reconstruction": error, "lr": rate,
                  "constant_bits": constant, "images_per_second": round(len(rows) / (time.time() - begun), 1)}
        line = f"epoch {epoch}/{args.max_epoch}: loss {loss:.5f} (divergence {divergence:.5f})"
        if labelled and args.eval_frequency and (epoch % args.eval_frequency == 0 or epoch == args.max_epoch):
            with log.saving(save_within), log.measuring(epoch):
                record["map"] = codes_map(lambda rows, epoch=epoch: outputs(rows, epoch), dataset, R, args.T, device)
            line += f", mAP@{R} {record['map']:.4f}"
        print(f"{line}, {record['images_per_second']:.0f} images/s")
        if constant:
            log.warn_once("bits", collapse_warning(constant, args.hash_bit) + ", lower --lr or train for more epochs")
        score = {"loss": -loss, "last": -math.inf, "test_map": record.get("map", -math.inf)}[args.select]
        if score > best["score"]:
            best = {"score": score, "epoch": epoch,
                    "model": {name: value.cpu().clone() for name, value in model.state_dict().items()}}
        record["seconds"] = round(time.time() - started, 2)
        log.log(record)
        if epoch >= -1 or log.due():  # an epoch of the head takes less time than writing it
            log.save(epoch, model=model, optimizer=optimizer, best=best,
                     **({"target": target.cpu()} if args.targets == "once" else {}))

    # ------------------------------------------------------------ save
    if best["model"] is None:
        best = {"epoch": args.max_epoch,
                "model": {name: value.cpu() for name, value in model.state_dict().items()}}
    if rank() == 0:
        save_checkpoint(output_dir / "mrhash.pth", {
            "format": FORMAT, "epoch": best["epoch"], "select": args.select,
            "network": {"model_type": args.model_type, "hash_bit": args.hash_bit, "head_width": args.head_width,
                        "image_size": args.image_size, "n_clusters": args.n_clusters, "threshold": args.T,
                        "autoencoder": autoencoder.settings()},
            "data": data.as_dict(),
            "fingerprint": dataset.fingerprint, "model": best["model"]})
    print(f"wrote {output_dir / 'mrhash.pth'} (epoch {best['epoch']}, {args.select})")


if __name__ == "__main__":
    sys.exit(run(main, resumable=True, shared=True))
