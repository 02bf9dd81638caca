"""Frozen features: extracted once per source, cached by content, memory-mapped when read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data_loader import ImageLoader
from datasets.base import PairedDataset
from datasets.sources import ImageSource
from datasets.store import UnreadableImages, repeat_warning, unreadable
from datasets.transforms import turned
from engine.cache import cached_array, open_cached
from engine.cli import Compute
from engine.distributed import from_first, in_turns
from engine.epoch import split_rows
from myautoencoder.feature_files import features_of_lists
from network import Backbone, HashNetwork, load_backbone
from utils import InputError, autocast, progress, rank, resolve_path, sha256_of, world_size

FEATURE_VERSION = 3  # another one makes all cached features useless


def apply_network(network: nn.Module, loader: ImageLoader, rows: np.ndarray, compute: Compute,
                  description: str, views: int = 1) -> Iterator[np.ndarray]:
    """The network's output for the test views of some images, in eval mode; ranks share the work.

    Args:
        network: images (B, 3, S, S) -> (B, dim); it stays on the device, in channels-last order.
        loader: of the images.
        rows: int64 (N,), which of them.
        compute: batch_size, device, amp.
        description: of the progress bar.
        views: V, how many turns and flips of each image.
    Returns:
        float32 (B, V * dim), batch by batch, all of them on every rank.
    """
    network = network.to(compute.device, memory_format=torch.channels_last).eval()
    batches = torch.from_numpy(np.asarray(rows)).split(compute.batch_size)
    own = _outputs(network, loader.test_views(batches[rank()::world_size()]), compute, views)
    yield from progress(in_turns(own, [len(batch) for batch in batches]), description, len(batches))


def _outputs(network: nn.Module, batches: Iterable[Tensor], compute: Compute, views: int
             ) -> Iterator[np.ndarray]:
    """What the network makes of each batch of images, as float32 arrays in main memory."""
    cuda = compute.device.type == "cuda"
    copies: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()  # on their way
    for images in batches:
        # Not around the whole: what is moved in inference mode cannot be trained afterwards.
        with torch.inference_mode():
            with autocast(compute.device, compute.amp):
                output = torch.cat([network(turned(images, view).contiguous(
                    memory_format=torch.channels_last)).float() for view in range(views)], dim=1)
            output = output.to("cpu", non_blocking=cuda)
        copied = torch.cuda.current_stream(compute.device).record_event() if cuda else None
        copies.append((output, copied))
        if len(copies) > cuda:  # CUDA has the next batch to work on while this one is waited for
            yield _arrived(*copies.popleft())
    for copy in copies:
        yield _arrived(*copy)


def _arrived(output: Tensor, copied: torch.cuda.Event | None) -> np.ndarray:
    if copied is not None:
        copied.synchronize()
    return output.numpy()


def calibrate(backbone: Backbone, loader: ImageLoader) -> None:
    """Batch normalisation of a random backbone: statistics of up to 256 images over the source.

    In batches of their own size: features must not depend on the --batch_size of a script.
    """
    rows = np.unique(np.linspace(0, loader.count - 1, 256).round().astype(np.int64))
    backbone.to(loader.device, memory_format=torch.channels_last)
    backbone.calibrate(loader.test_views(split_rows(torch.from_numpy(rows), 128)))


@torch.inference_mode()
def hash_features(network: HashNetwork, features: np.ndarray, rows: np.ndarray, compute: Compute
                  ) -> Iterator[np.ndarray]:
    """The hash network's output, in eval mode, for features of its own frozen backbone.

    Args:
        network: on the device.
        features: float32 (N, V * dim), of V turns and flips of each image.
        rows: int64 (M,), which of them.
        compute: batch_size, device.
    Returns:
        float32 (B, V * K), batch by batch.
    """
    network.eval()
    dim = network.backbone.dim
    for batch in np.array_split(rows, max(1, -(-len(rows) // compute.batch_size))):
        views = torch.from_numpy(features[batch]).to(compute.device).view(-1, dim)
        yield network(views).view(len(batch), -1).cpu().numpy()


class FeatureExtractor:
    """Frozen features of a backbone, from the cache where these images went through it before."""

    def __init__(self, backbone: Backbone, compute: Compute, views: int = 1) -> None:
        """Of V turns and flips of each image. Without a cache_dir in `compute` they stay in memory.
        """
        self.backbone, self.compute, self.views = backbone, compute, views

    def of_source(self, source: ImageSource, label: str) -> np.ndarray:
        """Features of all images of a source.

        Args:
            source: N images.
            label: what its cached files are called.
        Returns:
            float32 (N, V * dim), memory-mapped read-only when cached.
        Raises:
            InputError: unreadable images, or features that are not finite.
        """
        if self.compute.cache_dir is None:
            return np.concatenate(list(self._rows_from(0, source, label)))
        path = self._path(source, label)
        if path.exists():
            print(f"reusing features {path.name}")
            repeat_warning(source, label, self.compute.cache_dir)
        return cached_array(path, (len(source), self.views * self.backbone.dim), np.float32,
                            lambda first: self._rows_from(first, source, label), together=True)

    def cached(self, source: ImageSource, label: str, views: int = 1) -> np.ndarray | None:
        """The first `views` of what `of_source` gave for the same images and weights, float32
        (N, views * dim); None where it is not there.
        """
        if self.compute.cache_dir is None or views > self.views:
            return None
        path = self._path(source, label)
        if not from_first(path.exists()):
            return None
        repeat_warning(source, label, self.compute.cache_dir)
        return open_cached(path, len(source))[:, :views * self.backbone.dim]

    def _path(self, source: ImageSource, label: str) -> Path:
        """Where the features lie, by what they are made of."""
        net, cache_dir = self.backbone, self.compute.cache_dir
        # bfloat16 changes the values, and float32 on another kind of device only the last digits.
        key = sha256_of(FEATURE_VERSION, source.stamp(cache_dir), net.name, net.digest,
                        net.preprocessing, net.needs_calibration, self.compute.amp,
                        *([self.views] if self.views > 1 else []))[:16]
        return cache_dir / "features" / f"{label}-{net.name.replace('/', '-')}-{key}.npy"

    def _rows_from(self, first: int, source: ImageSource, label: str) -> Iterator[np.ndarray]:
        """The features from a row on, float32 (B, dim), batch by batch."""
        loader = ImageLoader(source, label, self.backbone.preprocessing, self.compute)
        if self.backbone.needs_calibration:
            calibrate(self.backbone, loader)
        if self.compute.compile:
            self.backbone.compile_for(self.compute.device)
        for features in apply_network(self.backbone, loader, np.arange(first, len(source)),
                                      self.compute, f"features {label}-{self.backbone.name}",
                                      self.views):
            bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
            if len(bad):
                raise InputError(f"the features of {source.where(first + int(bad[0]))} are not "
                                 "finite: check the weights, or leave out --amp")
            yield features
            first += len(features)


def dataset_features(dataset: PairedDataset, settings: dict[str, Any], weights: str | None,
                     compute: Compute, files: Sequence[str | None] = (None, None)
                     ) -> tuple[list[np.ndarray], str]:
    """Frozen features of every source of a dataset.

    Args:
        dataset: N scenes.
        settings: feature_backbone, image_size, amp and, where they are set, normalise and views;
            of a checkpoint also the `content` to find.
        weights: imagenet, none or a file.
        compute: how; its amp is that of `settings`.
        files: for each source a file of features to take instead of the images
            (feature_files.py), or None; one for source 2 also makes a second source.
    Returns:
        one float32 (N, d) array a source, rows in the order of `dataset.names`, and a hash of the
        weights and files they come from.
    Raises:
        InputError: as FeatureExtractor and features_of_lists, or not that content.
    """
    features = {}
    for number, file in enumerate(files):
        if file is not None:
            features[number] = features_of_lists(resolve_path(file), dataset)
            rows, width = features[number].shape
            print(f"features of source {number + 1}: {rows:,} x {width} from {file}")
    contents = [sha256_of(features[number]) for number in features]
    missing = [number for number in range(len(dataset.sources)) if number not in features]
    if missing:
        if weights is None:
            raise InputError(f"the features of source {missing[0] + 1} come from a file in this "
                             "checkpoint, which does not say from which: it is damaged")
        backbone = frozen_backbone(settings, weights)
        contents.insert(0, backbone.digest)
    # Of weights alone it is their own hash, as in the cache; a file of features adds its content.
    content = contents[0] if not features else sha256_of(*contents)[:16]
    if settings.get("content") not in (None, content):
        raise _other_content(settings, weights if missing else None, files)
    if missing:
        extractor = FeatureExtractor(backbone, replace(compute, amp=settings["amp"]),
                                     settings.get("views", 1))
        features |= _extracted(dataset, missing, extractor)
    return [features[number] for number in sorted(features)], content


def frozen_backbone(settings: dict[str, Any], weights: str) -> Backbone:
    """The network that extracts features, of feature_backbone, image_size and normalise."""
    # Weights `none` must be the same for every run and seed, or the cache would be of no use.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return load_backbone(settings["feature_backbone"], weights, settings["image_size"],
                             normalise=settings.get("normalise"))


def _other_content(settings: dict[str, Any], weights: str | None, files: Sequence[str | None]
                   ) -> InputError:
    """What to say where weights or files are not those of the checkpoint."""
    given = [f"--features{number} {file}" for number, file in enumerate(files, start=1) if file]
    before = [file for file in settings.get("files", ()) if file is not None]
    if weights is not None:
        given.insert(0, f"--feature_weights {weights}")
        before.insert(0, settings["feature_weights"])
    return InputError(f"{' and '.join(given)}: not the content that the autoencoder was trained "
                      f"on, which came from {' and '.join(before)}: give that")


def mean_of_views(features: np.ndarray, views: int) -> np.ndarray:
    """(N, V * dim) -> the means over the views (N, dim), float32."""
    if views == 1:
        return features
    return features.reshape(len(features), views, -1).mean(axis=1)


def _extracted(dataset: PairedDataset, numbers: Sequence[int], extractor: FeatureExtractor
               ) -> dict[int, np.ndarray]:
    """Features of some sources by their number. Raises InputError that names all bad images."""
    found = {}
    for number in numbers:
        try:
            views = extractor.of_source(dataset.sources[number], dataset.file_label(number))
            found[number] = mean_of_views(views, extractor.views)
        except UnreadableImages as error:  # then all of them, also those of the sources to come
            for other in range(number + 1, len(dataset.sources)):
                source, label = dataset.sources[other], dataset.file_label(other)
                error.add(unreadable(source, label, extractor.compute.workers), len(source))
            raise error from None
    return found
