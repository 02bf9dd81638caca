"""What the latents of the autoencoder are worth, before there is any hash network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

import hamming
from datasets.base import PairedDataset
from network import MultisourceAutoencoder


def latent_map(model: MultisourceAutoencoder, features: Sequence[np.ndarray],
               dataset: PairedDataset, R: int, signs: bool) -> float:
    """mAP@R of the latents: by Euclidean distances, or by Hamming distances of their signs.

    Args:
        features: float32 (N, d) a source, of all images.
        signs: --data_hash, as published.
    """
    device = next(model.parameters()).device
    latents = []
    for rows in (dataset.query, dataset.database):
        parts = [model.encode_all([torch.from_numpy(x[part]).to(device) for x in features])
                 for part in np.array_split(rows, -(-len(rows) // 8192))]
        latents.append(torch.cat(parts).cpu().numpy())
    labels = dataset.labels[dataset.query], dataset.database_labels
    if signs:
        codes = [hamming.pack_codes(latent > 0) for latent in latents]
        return hamming.evaluate(*codes, *labels, hash_bit=latents[0].shape[1], R=R,
                                device=str(device))["map"]
    return hamming.float_map(*latents, *labels, R=R, device=str(device))


def latent_line(value: float, R: int, signs: bool) -> str:
    """`latent_map` in words; by distances only equal latents tie."""
    return f"latent mAP@{R} {value:.4f} (ties: {'expected' if signs else 'by index'})"
