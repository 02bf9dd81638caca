"""Stage 1: pretrain the multisource autoencoder on frozen features of paired images.

    cd myautoencoder; python autoencoder.py                      EuroSAT in <repository>/data
    python myautoencoder/autoencoder.py --data_name demo         no download needed
    python -m myautoencoder.autoencoder --data_name pairs --source1 data/s2 --source2 data/vhr

Images of each source go through a frozen ImageNet network once (cached). The autoencoder then learns
a latent from which the features of every source can be told; train.py clusters it. Paths are relative
to the repository. The result is <output_dir>/autoencoder.pth.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # started as a script in this folder

import numpy as np
import torch
from torch import Tensor, nn

import hamming
from data_loader import (
    DATASETS,
    DataConfig,
    PairedDataset,
    add_data_flags,
    choose_R,
    load_dataset,
    load_readable,
    moved_places,
)
from engine.checkpoint import save_checkpoint
from engine.cli import (
    ArgumentParser,
    add_feature_file_flags,
    add_run_flags,
    add_training_flags,
    image_side,
    non_negative_float,
    non_negative_int,
    parse_with_preset,
    positive_int,
    run,
)
from engine.distributed import gathered, own_part, rank, step_of, sum_over_ranks, trained_together
from engine.run import LossWatch, Run
from loss import reconstruction_loss
from myautoencoder.features import dataset_features, prepare_features, row_norms
from network import MultisourceAutoencoder
from utils import (
    InputError,
    autocast,
    epoch_seed,
    progress,
    resolve_path,
    seed_everything,
    setup_device,
    step_decay,
    warn,
)

FORMAT = "mrhash-autoencoder-1"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(prog="autoencoder.py", description=__doc__.splitlines()[0])
    add_data_flags(parser, inherited=False).add_argument(
        "--skip_bad", action="store_true",
        help="leave out scenes of which an image cannot be read, instead of ending with their names; it reads all "
             "images once more. The checkpoint knows them: train.py and test.py leave out the same")
    group = parser.add_argument_group("method")
    group.add_argument("--feature_backbone", "--pretrained_type", default="resnet50",
                       help="torchvision model whose frozen features are reconstructed")
    group.add_argument("--feature_weights", default="imagenet",
                       help="imagenet (downloaded once), a state-dict file where there is no network, or "
                            "none to try things out")
    add_feature_file_flags(group, inherited=False)
    group.add_argument("--image_size", type=image_side, default=224,
                       help="side of the crop for the features; keep 224 unless time is short")
    group.add_argument("--feature_norm", choices=("none", "unit"), default="none",
                       help="unit: features are centred and brought to one length, so that what counts is their "
                            "direction, as for the cosine; none as published")
    group.add_argument("--neighbours", type=non_negative_int, default=0,
                       help="average the features of each image with those of so many nearest images, nearest in both "
                            "sources together: less noise, wider classes; 10 suits classes of 100 and of 2,600 "
                            "images, 0 as published")
    group.add_argument("--encoder", choices=("dual", "unisource"),
                       help="dual sees both sources, unisource (as published) the first only (default: dual "
                            "where there is a second source)")
    group.add_argument("--init", choices=("he", "torch"), default="he",
                       help="initial weights: torch's own as published, or He's, which learns faster and "
                            "ends at a lower loss")
    group.add_argument("--latent_dim", "--laten_dim", type=positive_int, default=64,
                       help="width of the latent; more clusters may want more")
    group.add_argument("--lambda1", type=non_negative_float, default=0.1,
                       help="weight of the first source's reconstruction beside the second's")
    group.add_argument("--lr", type=non_negative_float, default=0.001,
                       help="Adam's rate, halved every 40 epochs; lower it if the loss is not finite")
    group.add_argument("--epoch", type=positive_int, default=200,
                       help="passes over the features; 50 are enough for a quick look")
    group.add_argument("--select", choices=("loss", "last", "test_map"), default="loss",
                       help="which epoch is kept: least training loss, the last one, or (as published, and "
                            "peeking at the labels of the queries) the best mAP")
    group.add_argument("--R", type=positive_int,
                       help="the monitor is mAP@R (default: the smallest class in the database, 1900 for "
                            "EuroSAT)")
    group.add_argument("--data_hash", type=int, choices=(0, 1), default=0,
                       help="1: the monitor ranks by the signs of the latent instead of its distances")
    group.add_argument("--eval_frequency", type=non_negative_int, default=20,
                       help="monitor every so many epochs, 0 for never; test_map monitors every epoch")
    add_run_flags(parser, batch_size=512)
    add_training_flags(parser, "runs/autoencoder_<data_name>")
    return parse_with_preset(parser, arguments)


def train_one_epoch(model: nn.Module, features: Sequence[Tensor], batches: Sequence[Tensor],
                    optimizer: torch.optim.Optimizer, lambda1: float, amp: bool, watch: LossWatch) -> float:
    """One pass over the features; they and the batches of rows lie on the device. Returns the mean loss.

    model: the autoencoder, or what `trained_together` makes of it. amp: its products in bfloat16; the loss is float32.
    """
    model.train()
    total = torch.zeros((), device=features[0].device)
    for step, rows in enumerate(batches):
        with step_of(len(rows)) as share:
            batch = [x[rows[share.part]] for x in features]
            with autocast(features[0].device, amp):
                _, reconstructions = model(batch)
            loss = reconstruction_loss([x.float() for x in reconstructions], batch, lambda1)
            optimizer.zero_grad(set_to_none=True)
            (loss * share.weight).backward()
            optimizer.step()
        watch.see(step, loss)
        total += loss.detach() * len(share)  # stays on the device: .item() would wait for each step
    watch.check()
    return float(sum_over_ranks(total.cpu().numpy())) / len(features[0])


def latent_map(model: MultisourceAutoencoder, features: Sequence[np.ndarray], dataset: PairedDataset, R: int,
               signs: bool, device: torch.device) -> float:
    """mAP@R of the latents: Euclidean distances, or Hamming distances of their signs."""
    def encode(rows: np.ndarray) -> np.ndarray:
        own = rows[own_part(len(rows))]
        chunks = [model.encode_all([torch.from_numpy(x[part]).to(device) for x in features])
                  for part in np.array_split(own, max(1, math.ceil(len(own) / 8192)))]
        return gathered(torch.cat(chunks).cpu(), len(rows)).numpy()

    database, query = encode(dataset.database), encode(dataset.query)
    labels = dataset.labels[dataset.query], dataset.labels[dataset.database]
    if signs:
        return hamming.evaluate(hamming.pack_codes(query > 0), hamming.pack_codes(database > 0), *labels,
                                hash_bit=database.shape[1], R=R, device=str(device))["map"]
    part = own_part(len(query))
    own = hamming.float_map(query[part], database, labels[0][part], labels[1], R=R, device=str(device)) * (
        part.stop - part.start) if part.stop > part.start else 0.0
    return float(sum_over_ranks(np.array(own))) / len(query)


def main() -> None:
    args = parse_arguments()
    device = setup_device(args.device)
    seed_everything(args.seed)

    # ------------------------------------------------------------ data
    if args.skip_bad and (args.features1 or args.features2):
        raise InputError("--skip_bad is for images, and the rows of --features1 and --features2 would not fit those "
                         "that are left: leave one out")
    data = DataConfig(DATASETS.get(args.data_name.lower(), args.data_name), args.data_dir, args.source1,
                      args.source2, args.split_dir, args.max_per_class, args.seed)
    dataset, data = load_readable(data, args.workers) if args.skip_bad else (load_dataset(data), data)
    if dataset.name != "pairs":  # what was found today, should another source appear beside it later
        data = replace(data, source2=dataset.source_names[1])
    print(dataset.describe())
    files = [args.features1, args.features2]
    sources = max(len(dataset.sources), 2 if args.features2 else 1)
    encoder = args.encoder or ("unisource" if sources == 1 else "dual")
    if encoder == "dual" and sources == 1:
        raise InputError("--encoder dual needs a second source: name one with --source2, or use "
                         "--encoder unisource")
    labelled = dataset.labels is not None
    if args.select == "test_map":
        if not labelled:
            raise InputError("--select test_map (part of --preset published) needs labels, and these images have none: "
                             "use --select loss or last")
        warn("--select test_map chooses the epoch by the labels of the test queries, as published; do not compare its "
             "result with label-free methods")
    R = choose_R(args.R, dataset.labels[dataset.database]) if labelled else None
    output_dir = resolve_path(args.output_dir or f"runs/autoencoder_{dataset.name.lower()}")
    settings = {**vars(args), "encoder": encoder, "R": R, "fingerprint": dataset.fingerprint}
    log = Run(output_dir, "autoencoder.pth", settings, args.resume, args.overwrite,
              harmless={"output_dir", "preset", "resume", "overwrite", "device", "workers", "cache_dir", "data_dir",
                        "epoch", *moved_places(data)})
    log.check_not_past(args.epoch - 1, f"--epoch {args.epoch}")
    feature_settings = {"feature_backbone": args.feature_backbone, "feature_weights": args.feature_weights,
                        "image_size": args.image_size, "amp": args.amp, "files": files,
                        "feature_norm": args.feature_norm, "neighbours": args.neighbours}
    arrays, content = dataset_features(dataset, feature_settings, args.feature_weights, device,
                                       min(args.batch_size, 128), args.workers, args.cache_dir, files,
                                       args.compile)
    if args.features1 and args.features2:  # no backbone took part
        feature_settings |= {"feature_backbone": None, "feature_weights": None}
    log.began_with("content", content, "the weights or feature files")
    for number, x in enumerate(arrays):
        log.began_with(f"features{number + 1}", row_norms(x), f"the images of source {number + 1}, or their features,")
    arrays = prepare_features(arrays, dataset.train, feature_settings, device)
    features = [torch.from_numpy(x[dataset.train]).to(device) for x in arrays]

    # ------------------------------------------------------------ model, optimiser
    model = MultisourceAutoencoder([x.shape[1] for x in arrays], args.latent_dim, encoder,
                                  args.init).to(device)
    # Fused: one pass over the weights a step, not ten.
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, fused=True)
    best = {"score": -math.inf, "epoch": -1, "model": {}}
    if log.state is not None:
        log.restore(model, optimizer)
        best = log.state["best"]

    trained = trained_together(model, device)

    # ------------------------------------------------------------ loop
    log.start()
    started = time.time() - log.seconds
    for epoch in progress(range(log.first_epoch(), args.epoch), "autoencoder"):
        with log.deferring():  # Ctrl-C waits for the end of the epoch
            for group in optimizer.param_groups:
                group["lr"] = step_decay(args.lr, epoch, 0.5, 40)
            generator = torch.Generator().manual_seed(epoch_seed(args.seed, epoch))
            batches = torch.randperm(len(features[0]), generator=generator).to(device).split(args.batch_size)
            loss = train_one_epoch(trained, features, batches, optimizer, args.lambda1, args.amp,
                                   LossWatch(log, epoch, len(batches), device))
            log.check_weights(model, epoch)  # before anything is made of them
            record = {"epoch": epoch, "loss": loss, "lr": optimizer.param_groups[0]["lr"]}
            final = epoch == args.epoch - 1
            due = args.eval_frequency > 0 and (epoch % args.eval_frequency == 0 or final)
            if labelled and (due or args.select == "test_map"):
                with log.measuring(epoch):
                    record["latent_map"] = latent_map(model, arrays, dataset, R, bool(args.data_hash), device)
            score = {"loss": -loss, "last": epoch, "test_map": record.get("latent_map")}[args.select]
            if score > best["score"]:
                best = {"score": float(score), "epoch": epoch,
                        "model": {name: value.cpu().clone() for name, value in model.state_dict().items()}}
            record["seconds"] = round(time.time() - started, 2)
            log.log(record)
            if log.wants_saving() or final:  # an epoch takes less time than writing it to disk
                log.save(epoch, model=model, optimizer=optimizer, best=best)
            if due:
                print(f"epoch {epoch}: loss {loss:.5f}" + (f", latent mAP@{R} {record['latent_map']:.4f}"
                                                          if labelled else ""))
        log.stop_if_asked()

    # ------------------------------------------------------------ save
    model.load_state_dict(best["model"])
    result = {"format": FORMAT, "epoch": best["epoch"], "select": args.select, "network": model.settings(),
              "features": {**feature_settings, "content": content}, "data": data.as_dict(),
              "fingerprint": dataset.fingerprint, "model": best["model"]}
    if labelled:
        result["latent_map"] = latent_map(model, arrays, dataset, R, bool(args.data_hash), device)
        print(f"kept epoch {best['epoch']} ({args.select}), latent mAP@{R} {result['latent_map']:.4f}")
    if rank() == 0:
        save_checkpoint(output_dir / "autoencoder.pth", result)
    print(f"wrote {output_dir / 'autoencoder.pth'}")


if __name__ == "__main__":
    sys.exit(run(main, resumable=True, shared=True))
