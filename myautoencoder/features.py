"""Frozen features: extracted once per source, cached by content, memory-mapped when read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_loader import PairedDataset
from datasets.sources import ImageSource
from datasets.store import ImageLoader, ImageStore, Transform, UnreadableImages, unreadable
from engine.cache import GrowingArray, finished, maker
from engine.distributed import from_first, in_turns, rank, wait_for_all, world_size
from myautoencoder.feature_files import features_of_lists
from network import Backbone, HashNetwork
from utils import InputError, autocast, progress, resolve_path, sha256_of

FEATURE_VERSION = 1


def apply_network(network: nn.Module, loader: ImageLoader, rows: np.ndarray, image_size: int,
                  batch_size: int, amp: bool, description: str) -> Iterator[np.ndarray]:
    """The network's output for the test view of the given rows, float32 (B, dim), batch by batch.

    The network is put in eval mode and moved to the loader's device, in channels-last order. Ranks take turns at
    the batches, and each gets all of them.
    """
    transform, device = Transform(image_size, loader.store.side), loader.device
    network = network.to(device, memory_format=torch.channels_last).eval()
    batches = torch.from_numpy(np.asarray(rows)).split(batch_size)

    def own() -> Iterator[np.ndarray]:
        on_its_way = None  # from CUDA, which has the next batch to work on by the time that this one is waited for
        for images, sizes in loader.batches(batches[rank()::world_size()]):
            # Not around the whole: what is moved in inference mode cannot be trained afterwards.
            with torch.inference_mode():
                views = transform.test(images, sizes)  # in float32, also with amp
                with autocast(device, amp):
                    output = network(views).float()
                output = output.to("cpu", non_blocking=device.type == "cuda")
            if device.type != "cuda":
                yield output.numpy()
                continue
            if on_its_way is not None:
                yield arrived(*on_its_way)
            on_its_way = output, torch.cuda.current_stream(device).record_event()
        if on_its_way is not None:
            yield arrived(*on_its_way)

    def arrived(output: Tensor, copied: torch.cuda.Event) -> np.ndarray:
        copied.synchronize()
        return output.numpy()

    yield from progress(in_turns(own(), [len(batch) for batch in batches]), description, len(batches))


@torch.inference_mode()
def hash_features(network: HashNetwork, features: np.ndarray, rows: np.ndarray, batch_size: int, device: torch.device
                  ) -> Iterator[np.ndarray]:
    """What the hash network, in eval mode, makes of features of its own backbone (N, dim): float32 (B, K), by batch."""
    network.eval()
    for batch in np.array_split(rows, max(1, -(-len(rows) // batch_size))):
        yield network.hash_features(torch.from_numpy(features[batch]).to(device)).cpu().numpy()


def features_of(source: ImageSource, label: str, backbone_name: str, backbone: Backbone, image_size: int,
                device: torch.device, batch_size: int, workers: int, amp: bool, compiled: bool, cache_dir: Path | None
                ) -> np.ndarray:
    """Features of one source, from the cache when these images went through this network before.

    Args:
        source: N images. label: for file names and messages. backbone_name, backbone: the network and what
            its files are called. image_size: side of the crop. batch_size, workers, amp, compiled, device: how it
            is computed. cache_dir: None computes in memory.
    Returns:
        float32 (N, dim), memory-mapped read-only when cached.
    Raises:
        InputError: unreadable images, or features that are not finite.
    """
    def extract(first: int) -> Iterator[np.ndarray]:
        """The features from a row on, by batch."""
        store = ImageStore.open(source, label, image_size, cache_dir, workers)
        loader = ImageLoader(store, device)
        if backbone.needs_calibration:
            calibrate(backbone, loader, image_size)
        if compiled:
            backbone.compile_for(device)
        return apply_network(backbone, loader, np.arange(first, len(store)), image_size, batch_size, amp,
                             f"features {label}-{backbone_name}")

    if cache_dir is None:
        features = np.concatenate(list(extract(0)))
        _check_finite(features, source)
        return features
    path = _cache_path(source, label, backbone_name, backbone, image_size, amp, cache_dir)
    with maker(path) if rank() == 0 else contextlib.nullcontext() as wanted:
        if from_first(wanted):
            _make(path, extract, len(source), backbone.dim, source)
        else:
            print(f"reusing features {path.name}")
    wait_for_all()  # rank 0 may still be about to rename the file
    return finished(path, len(source))


def _make(path: Path, extract: Callable[[int], Iterator[np.ndarray]], count: int, dim: int, source: ImageSource
          ) -> None:
    """Write the features of `count` images to `path`, or what an earlier process left to do of them."""
    if rank():
        done = from_first(None)
        for _ in extract(done) if done < count else ():
            pass  # rank 0 writes
        return
    features = GrowingArray(path, (count, dim), np.float32)
    from_first(features.done)
    try:
        if features.done:
            print(f"features {path.name} go on after {features.done:,} of {count:,} images")
        for batch in extract(features.done) if features.done < count else ():
            features.append(batch)
        try:
            _check_finite(features.rows(), source)
        except InputError:
            features.discard()
            raise
        features.finish()
    finally:
        features.close()


def _cache_path(source: ImageSource, label: str, backbone_name: str, backbone: Backbone, image_size: int, amp: bool,
                cache_dir: Path) -> Path:
    """Where the features of a source lie, by what they are made of."""
    # bfloat16 changes the values, and float32 on another kind of device only the last digits.
    key = sha256_of(FEATURE_VERSION, source.stamp, backbone_name, backbone.content, image_size, amp)[:16]
    return cache_dir / "features" / f"{label}-{backbone_name}-{key}.npy"


def known_features(source: ImageSource, label: str, backbone_name: str, backbone: Backbone, image_size: int, amp: bool,
                   cache_dir: Path | None) -> np.ndarray | None:
    """Features that features_of has cached of these images and these very weights; None when there are none."""
    if cache_dir is None:
        return None
    path = _cache_path(source, label, backbone_name, backbone, image_size, amp, cache_dir)
    return finished(path, len(source)) if from_first(path.exists()) else None


def row_norms(features: np.ndarray) -> Tensor:
    """The length of each row (N, d), float32 (N,): tells other images, and other devices hardly change it."""
    return torch.cat([torch.from_numpy(np.array(part)).norm(dim=1)
                      for part in np.array_split(features, max(1, len(features) // 8192))])


def calibrate(backbone: Backbone, loader: ImageLoader, image_size: int) -> None:
    """Batch normalisation of a random backbone: statistics of up to 256 images spread over the source.

    In batches of their own size: features must not depend on the --batch_size of the script that needs them.
    """
    rows = np.unique(np.linspace(0, len(loader.store) - 1, 256).round().astype(np.int64))
    transform = Transform(image_size, loader.store.side)
    batches = loader.batches(torch.from_numpy(rows).split(128))
    backbone.to(loader.device, memory_format=torch.channels_last)
    backbone.calibrate(transform.test(images, sizes) for images, sizes in batches)


def _check_finite(features: np.ndarray, source: ImageSource) -> None:
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise InputError(f"{len(bad):,} images have features that are not finite, first "
                         f"{source.where(int(bad[0]))}: check the weights, or leave out --amp")


def prepare_features(arrays: Sequence[np.ndarray], train: np.ndarray, settings: dict, device: torch.device
                     ) -> list[np.ndarray]:
    """What the autoencoder sees of the frozen features: as they are, of one length, averaged over neighbours.

    Averaging over nearest neighbours takes away what is particular to an image and keeps what its kind has in
    common, as database augmentation does in retrieval (Arandjelovic & Zisserman, CVPR 2012). Neighbours are
    training images, the image itself left out; near is a large sum of the cosines of all sources, centred.

    Args:
        arrays: one float32 (N, d) a source. train: rows that give means and neighbours. settings: feature_norm
            "none" or "unit" (centred, each row of root mean square 1) and neighbours (0: none); a
            setting that is absent is none.
    Returns:
        arrays of the same shapes; the given ones where nothing is to be done.
    Raises:
        InputError: fewer training images than neighbours.
    """
    norm, neighbours = settings.get("feature_norm", "none"), settings.get("neighbours", 0)
    if norm == "none" and neighbours == 0:
        return list(arrays)
    if neighbours >= len(train):
        raise InputError(f"--neighbours {neighbours} needs more training images than that, found {len(train):,}: "
                         "lower it")
    kept = torch.from_numpy(train).to(device)

    def unit(x: np.ndarray) -> Tensor:
        features = torch.from_numpy(np.array(x)).to(device)
        return F.normalize(features - features[kept].mean(dim=0))

    near = _nearest(torch.cat([unit(x) for x in arrays], dim=1), kept, neighbours) if neighbours else None
    prepared = []
    for x in arrays:  # one source at a time: they may be large
        features = unit(x) if norm == "unit" else torch.from_numpy(np.array(x)).to(device)
        if near is not None:
            features = (features + neighbours * F.embedding_bag(near, features, mode="mean")) / (neighbours + 1)
        if norm == "unit":
            features = F.normalize(features) * features.shape[1] ** 0.5
        prepared.append(features.cpu().numpy())
    return prepared


def _nearest(points: Tensor, kept: Tensor, count: int) -> Tensor:
    """For each of the points (N, d) the rows of the `count` with the largest product among those kept, (N, count)."""
    position = torch.full((len(points),), -1, device=points.device)
    position[kept] = torch.arange(len(kept), device=points.device)
    among, found = points[kept].T, []
    for rows in torch.arange(len(points), device=points.device).split(max(1, 2**25 // len(kept))):  # 128 MiB at once
        products = points[rows] @ among
        own = position[rows] >= 0
        products[own.nonzero()[:, 0], position[rows][own]] = -torch.inf
        found.append(kept[products.topk(count, dim=1).indices])
    return torch.cat(found)


def dataset_features(dataset: PairedDataset, settings: dict, weights: str, device: torch.device,
                     batch_size: int, workers: int, cache_dir: str, files: Sequence[str | None] = (None, None),
                     compiled: bool = False) -> tuple[list[np.ndarray], str]:
    """Frozen features of every source of a dataset, rows in the order of `dataset.names`.

    Args:
        settings: feature_backbone, image_size, amp and, from a checkpoint, the `content` that must come out.
            weights: imagenet, none or a file. files: for each source a file of features to take instead
            of the images (feature_files.py), or None; one for source 2 also makes a second source.
    Returns:
        one float32 (N, d) array a source, and a hash of the weights and files they come from.
    Raises:
        InputError: as features_of and features_of_lists, or other weights or files than `content` says.
    """
    given = {number: features_of_lists(resolve_path(file), dataset)
             for number, file in enumerate(files) if file is not None}
    for number, values in given.items():
        print(f"features of source {number + 1}: {len(values):,} x {values.shape[1]} from {files[number]}")
    extracted = [number for number in range(len(dataset.sources)) if number not in given]
    contents = [sha256_of(given[number]) for number in sorted(given)]
    if extracted and weights is None:
        raise InputError(f"the features of source {extracted[0] + 1} come from a file in this checkpoint, which does "
                         "not say from which: it is damaged")
    if extracted:
        # Weights `none` must be the same for every run and every seed, or the cache would be of no use.
        state = torch.random.get_rng_state()
        torch.manual_seed(0)
        backbone = Backbone(settings["feature_backbone"], weights, settings["image_size"])
        torch.random.set_rng_state(state)
        contents.insert(0, backbone.content)
    # Of weights alone it is their own hash, as in the cache; a file of features adds its content.
    content = contents[0] if len(contents) == 1 and extracted else sha256_of(*contents)[:16]
    if settings.get("content") not in (None, content):
        named = [f"--feature_weights {weights}"] * bool(extracted) + [
            f"--features{number + 1} {files[number]}" for number in sorted(given)]
        before = [settings["feature_weights"]] * bool(extracted) + [
            file for file in settings.get("files", ()) if file is not None]
        raise InputError(f"{' and '.join(named)}: not the content that the autoencoder was trained on, which "
                         f"came from {' and '.join(before)}: give that")
    folder = None if cache_dir == "none" else resolve_path(cache_dir)
    for number in extracted:
        try:
            given[number] = features_of(dataset.sources[number], dataset.file_label(number),
                                        settings["feature_backbone"], backbone, settings["image_size"], device,
                                        batch_size, workers, settings["amp"], compiled, folder)
        except UnreadableImages as error:  # then all of them, also those of the sources to come
            for other in range(number + 1, len(dataset.sources)):
                error.add(unreadable(dataset.sources[other], dataset.file_label(other), workers),
                          len(dataset.sources[other]))
            raise error from None
    return [given[number] for number in sorted(given)], content


def feature_files_of(checkpoint: dict, path: Path, given: Sequence[str | None]) -> list[str | None]:
    """For each source its file of features, as `given` or as the checkpoint of stage 1 has it; None for images.

    Raises:
        InputError: a file is given for a source that had none, or is not there any more.
    """
    files = checkpoint["features"].get("files", [None, None])
    if not isinstance(files, list | tuple) or [type(file) in (str, type(None)) for file in files] != [True, True]:
        raise InputError(f"{path}: its files of features are {str(files)[:80]}, expected two names")
    for number, file in enumerate(given):
        if file is not None and files[number] is None:
            raise InputError(f"--features{number + 1} {file} contradicts {path}, which has no file of features for "
                             f"source {number + 1}: leave the flag out")
        if file is None and files[number] is not None and not resolve_path(files[number]).is_file():
            raise InputError(f"{path} was made from the features {files[number]}, which are not there now: name their "
                             f"new place with --features{number + 1}")
    return [new or old for new, old in zip(given, files, strict=True)]
