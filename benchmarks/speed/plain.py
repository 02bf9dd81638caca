"""The field's usual style, the baseline of the other benchmarks: a torch Dataset that decodes one image at a time.

Written as such scripts are written by people who know torch: worker processes, pinned memory, eval mode and no
gradients where none are needed; float32, one torchvision transform after the other, .item() at every step, and an
evaluation by one matrix and its argsort. `source` is always an ImageSource of which the calling process has read
nothing: the workers fork from it, and a zip that is open already would be open to all of them at one place.

The last part does as the published autoencoder script does (github.com/sunyuxi/MrHash, myautoencoder/), where that
is not the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.speed.ranking import map_by_matrix, published_style
from datasets.sources import ImageSource
from datasets.store import IMAGENET_MEAN, IMAGENET_STD, resize_side
from myautoencoder.autoencoder import reconstruction_loss
from network import HashNetwork, MultisourceAutoencoder

# ---------------------------------------------------------------- images


def test_transform(image_size: int) -> T.Compose:
    """Resize 256, centre crop 224, normalise; in proportion for other sizes."""
    return T.Compose([T.Resize(resize_side(image_size)), T.CenterCrop(image_size), T.ToTensor(),
                      T.Normalize(IMAGENET_MEAN, IMAGENET_STD)])


def train_transform(image_size: int) -> T.Compose:
    """Resize 256, random resized crop 224, random flip, normalise; in proportion for other sizes."""
    return T.Compose([T.Resize(resize_side(image_size)), T.RandomResizedCrop(image_size), T.RandomHorizontalFlip(),
                      T.ToTensor(), T.Normalize(IMAGENET_MEAN, IMAGENET_STD)])


class PlainImages(Dataset):
    """Images one at a time: (3, S, S) float32 tensors, decoded and transformed whenever they are asked for."""

    def __init__(self, source: ImageSource, transform: T.Compose) -> None:
        self.source, self.transform = source, transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> Tensor:
        # `read` is what Image.open(file).convert("RGB") does: Pillow decodes one file, or one member of a zip. (For
        # simulated sensors and 13 bands it makes the image besides, for DSRSID it reads a row of the array.)
        pixels = self.source.read(row)
        return self.transform(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB"))


def plain_loader(images: PlainImages, batches: Sequence[Sequence[int]], workers: int, device: torch.device
                 ) -> DataLoader:
    """A DataLoader of the given rows, batch by batch: (B, 3, S, S) float32 on the CPU."""
    # Four workers on two cores, as scripts of the field have it: torch would say so each time.
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    # Forked whatever Python's default is: sources need not be picklable.
    return DataLoader(images, batch_sampler=batches, num_workers=workers, pin_memory=device.type == "cuda",
                      multiprocessing_context="fork")


def in_batches(rows: np.ndarray, batch_size: int) -> list[list[int]]:
    """Rows (N,) in their order, `batch_size` at a time."""
    return [rows[first:first + batch_size].tolist() for first in range(0, len(rows), batch_size)]


@torch.no_grad()
def plain_outputs(network: nn.Module, source: ImageSource, rows: np.ndarray, image_size: int, batch_size: int,
                  workers: int, device: torch.device) -> np.ndarray:
    """What a network on `device` makes of some images: features of a backbone, outputs of a hash network; (N, dim)."""
    network.eval()
    images = PlainImages(source, test_transform(image_size))
    loader = plain_loader(images, in_batches(rows, batch_size), workers, device)
    return np.concatenate([network(batch.to(device, non_blocking=True)).cpu().numpy() for batch in loader])


def plain_map(network: HashNetwork, source: ImageSource, query: np.ndarray, database: np.ndarray, labels: np.ndarray,
              R: int, image_size: int, batch_size: int, workers: int, device: torch.device) -> float:
    """mAP@R of the codes of images: query and database are rows, labels one-hot (N, C) of all images."""
    codes = [np.where(plain_outputs(network, source, rows, image_size, batch_size, workers, device) >= 0, 1, -1)
             .astype(np.float32) for rows in (query, database)]
    return published_style(*codes, labels[query], labels[database], R)


# ---------------------------------------------------------------- the autoencoder


def feature_loader(features: Sequence[Tensor], batch_size: int, shuffle: bool) -> DataLoader:
    """A DataLoader over feature matrices, one (N, d) float32 CPU tensor a source."""
    return DataLoader(TensorDataset(*features), batch_size=batch_size, shuffle=shuffle)


def plain_autoencoder_epoch(model: MultisourceAutoencoder, loader: DataLoader, optimizer: torch.optim.Optimizer,
                            lambda1: float, device: torch.device) -> float:
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
def plain_latents(model: MultisourceAutoencoder, features: Sequence[Tensor], device: torch.device) -> np.ndarray:
    """The latents (N, latent_dim) of feature matrices as above."""
    model.eval()
    return np.concatenate([model.encode([x.to(device) for x in batch]).cpu().numpy()
                           for batch in feature_loader(features, 512, shuffle=False)])


def plain_latent_map(model: MultisourceAutoencoder, query: Sequence[Tensor], database: Sequence[Tensor],
                     query_labels: np.ndarray, database_labels: np.ndarray, R: int, device: torch.device) -> float:
    """mAP@R by Euclidean distances of latents: feature matrices as above, one-hot labels (Q, C) and (N, C)."""
    query_latents, database_latents = (plain_latents(model, part, device) for part in (query, database))
    distances = (np.square(database_latents).sum(axis=1)[:, None] - 2 * database_latents @ query_latents.T
                 + np.square(query_latents).sum(axis=1))
    return map_by_matrix(-distances, query_labels, database_labels, R)


# ---------------------------------------------------------------- the autoencoder, to the letter


class PublishedItems(Dataset):
    """One item at a time: NumPy rows of the features of both sources, one-hot label (int8), index."""

    def __init__(self, features: Sequence[np.ndarray], labels: np.ndarray) -> None:
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, Tensor]:
        first, second = (x[row] for x in self.features)
        return first, second, self.labels[row], torch.tensor(row)


def published_autoencoder_epoch(model: MultisourceAutoencoder, loader: DataLoader, optimizer: torch.optim.Optimizer,
                                lambda1: float, device: torch.device) -> float:
    """One pass over a loader of PublishedItems; both parts of the loss, and their sum, are asked for at each step."""
    model.train()
    told = []
    for first, second, _, _ in loader:
        features = [first.to(device), second.to(device)]
        optimizer.zero_grad()
        _, reconstructions = model(features)
        parts = [nn.functional.mse_loss(made, x) for made, x in zip(reconstructions, features, strict=True)]
        loss = parts[1] + lambda1 * parts[0]
        loss.backward()
        optimizer.step()
        told.append([value.item() for value in (loss, *parts)])
    return float(np.mean(told, axis=0)[0])


def _published_latents(model: MultisourceAutoencoder, loader: DataLoader, device: torch.device
                       ) -> tuple[Tensor, np.ndarray]:
    """Latents and labels; everything is reconstructed besides, and what gradients would need is kept."""
    model.eval()
    latents, labels = [], []
    for first, second, label, _ in loader:
        latents.append(model([first.to(device), second.to(device)])[0].detach())
        labels.append(label.numpy())
    return torch.cat(latents), np.concatenate(labels)


def published_latent_map(model: MultisourceAutoencoder, query: PublishedItems, database: PublishedItems, R: int,
                         batch_size: int, device: torch.device) -> tuple[float, float]:
    """mAP@R and the recall of the first R by Euclidean distances of latents."""
    (query_latents, query_labels), (database_latents, database_labels) = (
        _published_latents(model, DataLoader(items, batch_size=batch_size), device) for items in (query, database))
    distances = torch.cdist(database_latents, query_latents).cpu().numpy()
    recalls = []
    order = np.argsort(distances, axis=0)
    scores = []
    for column, label in enumerate(query_labels):
        wanted = np.where(label == 0, -1, label)
        relevant = np.sum(database_labels[order[:R, column]] == wanted, axis=1) > 0
        hits = relevant.sum()
        precision = np.cumsum(relevant) / np.arange(1, len(relevant) + 1)
        scores.append((precision * relevant).sum() / hits if hits else 0.0)
        recalls.append(hits / np.sum(np.sum(database_labels == wanted, axis=1) > 0))
    return float(np.mean(scores)), float(np.mean(recalls))
