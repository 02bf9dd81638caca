"""The field's usual style, with which ours is compared: one image at a time, one step at a time.

Written as such scripts are written by people who know torch: a Dataset that decodes with Pillow,
worker processes, pinned memory, eval mode and no gradients where none are needed; float32, one
torchvision transform after the other, .item() at every step, and an evaluation by one matrix and
its argsort. `source` is always an ImageSource of which the calling process has read nothing: the
workers fork from it, and a zip that is open already would be open to all of them at one place.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.speed.evaluations import map_by_matrix
from datasets.sources import ImageSource
from engine.preprocessing import Preprocessing
from loss import reconstruction_loss
from network import MultisourceAutoencoder

# ---------------------------------------------------------------- images


def test_transform(views: Preprocessing) -> T.Compose:
    """Resize, centre crop, normalise: 256 and 224 for most networks."""
    kind = T.InterpolationMode(views.interpolation)
    return T.Compose([T.Resize(views.side, kind), T.CenterCrop(views.image_size), T.ToTensor(),
                      T.Normalize(views.mean, views.std)])


def train_transform(views: Preprocessing) -> T.Compose:
    """Resize, random resized crop, random flip, normalise."""
    kind = T.InterpolationMode(views.interpolation)
    return T.Compose([T.Resize(views.side, kind),
                      T.RandomResizedCrop(views.image_size, interpolation=kind),
                      T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(views.mean, views.std)])


class PlainImages(Dataset):
    """Images one at a time: (3, S, S) float32, decoded and transformed when they are asked for."""

    def __init__(self, source: ImageSource, transform: T.Compose) -> None:
        self.source, self.transform = source, transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> Tensor:
        # `read` is what Image.open(file).convert("RGB") does: Pillow decodes one file, or one
        # member of a zip. (For simulated sensors and 13 bands it makes the image besides, for
        # DSRSID it reads a row of the array.)
        pixels = self.source.read(row)
        if pixels.shape[2] == 1:
            pixels = pixels[..., 0]
        return self.transform(Image.fromarray(pixels).convert("RGB"))


@dataclass(frozen=True)
class Reading:
    """How plain images are read: what networks expect, batch, worker processes, device."""

    views: Preprocessing
    batch_size: int
    workers: int
    device: torch.device


def plain_loader(images: PlainImages, batches: Sequence[Sequence[int]], reading: Reading
                 ) -> DataLoader:
    """A DataLoader of the given rows, batch by batch: (B, 3, S, S) float32 on the CPU."""
    # Four workers on two cores, as scripts of the field have it: torch would say so each time.
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    # Forked whatever Python's default is: sources need not be picklable.
    return DataLoader(images, batch_sampler=batches, num_workers=reading.workers,
                      pin_memory=reading.device.type == "cuda", multiprocessing_context="fork")


@torch.no_grad()
def plain_outputs(network: nn.Module, source: ImageSource, rows: np.ndarray, reading: Reading
                  ) -> np.ndarray:
    """What a network on the device makes of some images: (N, dim)."""
    network.eval()
    images = PlainImages(source, test_transform(reading.views))
    batches = [rows[first:first + reading.batch_size].tolist()
               for first in range(0, len(rows), reading.batch_size)]
    outputs = [network(batch.to(reading.device, non_blocking=True)).cpu().numpy()
               for batch in plain_loader(images, batches, reading)]
    return np.concatenate(outputs)


# ---------------------------------------------------------------- the autoencoder


def feature_loader(features: Sequence[Tensor], batch_size: int, shuffle: bool) -> DataLoader:
    """A DataLoader over feature matrices, one (N, d) float32 CPU tensor a source."""
    return DataLoader(TensorDataset(*features), batch_size=batch_size, shuffle=shuffle)


def plain_autoencoder_epoch(model: MultisourceAutoencoder, loader: DataLoader,
                            optimizer: torch.optim.Optimizer, lambda1: float,
                            device: torch.device) -> float:
    """One pass over the features of `loader`; the mean of the losses of its batches."""
    model.train()
    total = 0.0
    for batch in loader:
        features = [x.to(device) for x in batch]
        _, reconstructions = model(features)
        loss = reconstruction_loss(reconstructions, features, lambda1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / len(loader)


@torch.no_grad()
def plain_latents(model: MultisourceAutoencoder, features: Sequence[Tensor], device: torch.device
                  ) -> np.ndarray:
    """The latents (N, latent_dim) of feature matrices as above."""
    model.eval()
    latents = [model.encode([x.to(device) for x in batch]).cpu().numpy()
               for batch in feature_loader(features, 512, shuffle=False)]
    return np.concatenate(latents)


def plain_latent_map(model: MultisourceAutoencoder, features: Sequence[Sequence[Tensor]],
                     labels: Sequence[np.ndarray], R: int, device: torch.device) -> float:
    """mAP@R by Euclidean distances of latents.

    Args:
        model: on the device.
        features: of query and database, matrices as above.
        labels: theirs, one-hot (Q, C) and (N, C).
        R: the cut.
        device: of the model.
    """
    query, database = (plain_latents(model, part, device) for part in features)
    distances = (np.square(database).sum(axis=1)[:, None] - 2 * database @ query.T
                 + np.square(query).sum(axis=1))
    return map_by_matrix(-distances, *labels, R)
