"""The entrance to images: data sets by name, and their images in batches on the device.

`load_dataset(DataConfig(...))` gives names, labels and the split; `ImageLoader` gives views of the
images. Each data set is one file of `datasets/`, imported here, and one line of MODULES.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets import demo, dsrsid, eurosat, imagefolder, pairs, samples, ucmerced
from datasets.base import DataConfig, PairedDataset, reject_foreign_flags
from datasets.demo_scenes import demo_folder
from datasets.lists import split_by_lists
from datasets.record import changes, other_content
from datasets.sources import ImageSource
from datasets.splits import check_parts, split_by_folders, split_by_seed, without_skipped
from datasets.store import ImageStore, ahead
from datasets.transforms import Transform, to_device
from engine.cli import Compute
from engine.preprocessing import Preprocessing
from utils import InputError, resolve_path, warn

# A new data set: a file that has scenes(config) -> Scenes and may have QUERIES_PER_CLASS, PLACES
# or FLAGS (docs/data.md), and its line here.
MODULES: dict[str, ModuleType] = {
    "EuroSAT": eurosat,
    "DSRSID": dsrsid,
    "UCMerced": ucmerced,
    "samples": samples,
    "pairs": pairs,
    "demo": demo,
    "folder": imagefolder,
}
DATASETS = {name.lower(): name for name in MODULES}  # --data_name may be of any case


# ---------------------------------------------------------------- data sets


def load_dataset(config: DataConfig) -> PairedDataset:
    """Find a dataset, pair its sources by name and split it.

    Args:
        config: which images take part.
    Raises:
        Unpaired: images of source 1 without a partner, but for scenes of `config.skip`.
        InputError: unknown or missing dataset (the message says what to download and where it
            goes), images that do not fit, list files that do not, queries inside training or
            database.
    """
    known = next((name for name in MODULES if name.lower() == config.data_name.lower()), None)
    if known is None:
        raise InputError(f"--data_name {config.data_name} is not known: use one of "
                         f"{', '.join(MODULES)} (case does not matter)")
    module = MODULES[known]
    reject_foreign_flags(config, known, {name: getattr(other, "FLAGS", frozenset())
                                         for name, other in MODULES.items()})
    scenes = module.scenes(config)
    name, remarks = scenes.name or known, list(scenes.remarks)
    split_dir = resolve_path(config.split_dir) if config.split_dir else scenes.split_dir
    labels, class_names = scenes.labels, scenes.class_names
    if config.split == "folders":
        parts = split_by_folders(scenes, config, name)
    elif split_dir is not None:
        parts, labels, class_names = split_by_lists(scenes, config, split_dir)
    else:
        parts = split_by_seed(scenes, config, name, getattr(module, "QUERIES_PER_CLASS", None))
        if scenes.parts is not None:
            there = [part for part in ("train", "val", "test") if part in scenes.parts]
            remarks.append(f"the folders {', '.join(there)} are pooled and the queries drawn by "
                           "--seed: --split folders takes their split")
    parts = without_skipped(parts, scenes.names, config.skip, name)
    check_parts(parts, labels, scenes.names, name)
    used = np.unique(np.concatenate(list(parts.values())))
    sources = scenes.sources_of(used)
    return PairedDataset(
        name=name, names=[scenes.names[row] for row in used], source1=sources[0],
        source2=sources[1] if len(sources) == 2 else None,
        labels=None if labels is None else labels[used], class_names=class_names,
        **{part: np.searchsorted(used, rows) for part, rows in parts.items()},
        source_names=scenes.source_names, note=scenes.note,
        listed=split_dir is not None and config.split != "folders", remarks=remarks,
        resolved=scenes.resolved, run_name=(scenes.run_name or name).lower())


def config_of(args: argparse.Namespace, seed: int = 13) -> DataConfig:
    """The config that flags describe.

    Args:
        args: with those of add_data_flags.
        seed: draws the split.
    Raises:
        InputError: a flag for the second source of pairs that has none.
    """
    name = DATASETS.get(args.data_name.lower(), args.data_name)
    if name == "pairs" and args.source2 in (None, "none"):
        for flag in ("bands2", "range2", "pair_by", "pairs"):
            if getattr(args, flag) is not None:
                raise InputError(f"--{flag} needs a second source: name it with --source2")
    return replace(DataConfig.of_flags(args), data_name=name, split_seed=seed)


# ---------------------------------------------------------------- images


class ImageLoader:
    """The images of one source in batches on a device: decoded once, then read from their store."""

    def __init__(self, source: ImageSource, label: str, views: Preprocessing, compute: Compute,
                 resident: bool | None = None) -> None:
        """Decode the images, or map what an earlier run has decoded.

        Args:
            source: N images.
            label: for the names of cached files and the progress bar.
            views: how the network expects images, of side S.
            compute: says on which device, where the cache lies and how many threads decode.
            resident: whether the device holds all images; None: on CUDA, where they take less than
                a third of the free memory.
        Raises:
            InputError: as ImageStore.open.
        """
        self.device = compute.device
        self.store = ImageStore.open(source, label, views, compute.cache_dir, compute.workers)
        self.count = len(self.store)
        self.sizes = torch.from_numpy(self.store.sizes)
        self.transform = Transform(views)
        cuda = self.device.type == "cuda"
        if resident is None:
            resident = cuda and (self.store.images.nbytes
                                 < torch.cuda.mem_get_info(self.device)[0] / 3)
        self._images = None
        if resident:
            self._images = torch.from_numpy(np.array(self.store.images)).to(self.device)
        # Copies have a stream of their own, so that they run beside the network.
        self._stream = torch.cuda.Stream(self.device) if cuda and not resident else None

    def test_views(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """What is hashed: the centre of each image.

        Args:
            batches: int64 (B,) CPU tensors of rows.
        Returns:
            float32 (B, 3, S, S) on the device, normalised, channels last.
        """
        for images, sizes in self.batches(batches):
            yield self.transform.test(images, sizes)

    def training_views(self, batches: Sequence[Tensor], shares: Sequence[slice], first: int,
                       generator: torch.Generator) -> Iterator[Tensor]:
        """What the hash network learns from: crops and flips of each image.

        Args:
            batches: int64 (B,) CPU tensors of rows, all those of the epoch.
            shares: the part of each batch that is wanted.
            first: the number of the first batch wanted.
            generator: of the CPU; draws for all images of all batches, also for those not wanted,
                so that the views depend on neither shares nor first.
        Returns:
            float32 (B, 3, S, S) on the device, normalised, channels last.
        """
        wanted = zip(batches[first:], shares[first:], strict=True)
        images = self.batches(rows[share] for rows, share in wanted)
        for index, (rows, share) in enumerate(zip(batches, shares, strict=True)):
            drawn = self.transform.draw(self.sizes[rows], generator)
            if index >= first:
                pixels, sizes = next(images)
                yield self.transform.train(pixels, sizes, drawn[share])

    def batches(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Images as they are stored.

        Args:
            batches: int64 (B,) CPU tensors of rows.
        Returns:
            uint8 (B, C, H, W) on the device, padded; their sizes, int64 (B, 2), on the CPU.
        """
        if self._images is not None:
            for rows in batches:
                yield self._images[to_device(rows, self.device)], self.sizes[rows]
            return
        # Prefetch: two batches are read and copied while the network works on one.
        for images, sizes, copied in ahead(self._fetch, batches, workers=1, count=2):
            if copied is not None:
                stream = torch.cuda.current_stream(self.device)
                stream.wait_event(copied)
                images.record_stream(stream)  # its memory is not free while that stream uses it
            yield images, sizes

    def _fetch(self, rows: Tensor) -> tuple[Tensor, Tensor, torch.cuda.Event | None]:
        images = torch.from_numpy(self.store.images[rows.numpy()])
        if self._stream is None:
            return images.to(self.device), self.sizes[rows], None
        with torch.cuda.stream(self._stream):
            moved = to_device(images, self.device)
            return moved, self.sizes[rows], self._stream.record_event()


# ---------------------------------------------------------------- what scripts ask


def inherit_dataset(args: argparse.Namespace, checkpoint: dict[str, Any],
                    cache_dir: Path | None = None, second: bool = True
                    ) -> tuple[PairedDataset, DataConfig]:
    """The dataset that a checkpoint was trained on, wherever the flags say it lies now.

    Warns of images that have another content now, under the same names.

    Args:
        args: with the flags of add_data_flags.
        checkpoint: of stage 1 or 2.
        cache_dir: where checksums of images are remembered; None reads all images.
        second: whether the second source is needed; else it may be anywhere, or gone.
    Returns:
        the dataset and its config.
    Raises:
        InputError: a flag contradicts the checkpoint, or the images or their split differ.
    """
    config = DataConfig.of_checkpoint(checkpoint["data"])
    # Where things lie may have changed since: folders are not compared, their content is.
    config = config.moved(args, {"data_dir"} | moved_places(config))
    folder = resolve_path(config.data_dir)
    drawn = demo_folder(folder, config.split_seed)
    if config.data_name.lower() == "demo" and args.data_dir is None and not drawn.is_dir():
        # A checkpoint from elsewhere must not decide where something is written.
        raise InputError(f"the scenes of the checkpoint are not in {folder}: say with --data_dir "
                         "where they are, or are to be drawn")
    if second and config.source2 == "none" and checkpoint["data"].get("source2") not in (
            None, "none"):
        raise InputError("--source2 none contradicts the checkpoint, which has seen two sources: "
                         "leave the flag out or train again")
    config_now = config if second else replace(config, source2="none")
    for flag in sorted(moved_places(config)):
        place = getattr(config_now, flag)
        if place not in (None, "none") and not resolve_path(place).exists():
            raise InputError(f"{resolve_path(place)} is not there, where the checkpoint was made "
                             f"from: name its new place with --{flag}")
    dataset = load_dataset(config_now)
    _compare(dataset, config, checkpoint, cache_dir)
    return dataset, config


def _compare(dataset: PairedDataset, config: DataConfig, checkpoint: dict[str, Any],
             cache_dir: Path | None) -> None:
    """Raise InputError for other images than those of a checkpoint; warn of other content."""
    record = checkpoint.get("images")  # files of older versions have none
    if dataset.fingerprint == checkpoint["fingerprint"]:
        other = "" if record is None else other_content(record, dataset, cache_dir)
        if other:
            warn(f"{other} have another content than when the checkpoint was made, under the same "
                 "names")
        return
    changed = changes(record, dataset) if record is not None else (
        "it is of an older version, which may have named them otherwise")
    flag = "source1" if config.source1 and "source1" in moved_places(config) else "data_dir"
    place = resolve_path(getattr(config, flag))
    lists = " and --split_dir" if dataset.listed else ""
    raise InputError(f"the images, labels or split found in {place} are not those of the "
                     f"checkpoint{changed and ': '}{changed}; name its own with --{flag}{lists}")


def moved_places(config: DataConfig) -> set[str]:
    """Flags that say where images and lists lie, which may change while their content does not."""
    module = MODULES.get(DATASETS.get(config.data_name.lower()))
    return {"split_dir"} | getattr(module, "PLACES", set())
