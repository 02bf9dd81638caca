"""A trained hash network, for images that it has never seen."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from archive.reading import Reading, trained_reading
from data_loader import DATASETS
from datasets.base import DataConfig
from datasets.store import padded, resized
from datasets.transforms import Transform
from engine.checkpoint import load_checkpoint
from engine.cli import Compute
from hamming import pack_codes
from network import HashNetwork, rebuild_hash_network
from utils import InputError, autocast


class HashModel:
    """Images -> outputs -> codes, as test.py makes them of the same model.

    path: of its file. digest: SHA-256 of that. hash_bit: K. reading: how images were read when it
    was trained.
    """

    def __init__(self, path: Path, compute: Compute) -> None:
        """Load one, the mrhash.pth of train.py. Raises InputError: it is none, or damaged."""
        checkpoint = load_checkpoint(path, "mrhash-1")
        self.path, self.compute = path, compute
        self.digest = hashlib.sha256(path.read_bytes()).hexdigest()
        self.hash_bit: int = checkpoint["network"]["hash_bit"]
        self.threshold: float = checkpoint["network"]["threshold"]
        data = DataConfig.of_checkpoint(checkpoint["data"])
        data = replace(data, data_name=DATASETS.get(data.data_name.lower(), data.data_name))
        self.reading: Reading = trained_reading(data)
        network: HashNetwork = rebuild_hash_network(checkpoint, path)
        self.views = network.backbone.preprocessing
        if compute.compile:
            network.backbone.compile_for(compute.device)
        self.network = network.to(compute.device, memory_format=torch.channels_last).eval()
        self.transform = Transform(self.views)

    @torch.inference_mode()
    def outputs(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """What the network says of some images.

        Args:
            images: uint8 (H, W, C) each, of any sizes and one C, 1 or 3.
        Returns:
            float32 (B, K).
        Raises:
            InputError: an output that is not finite.
        """
        images = [resized(pixels, self.views) for pixels in images]
        sizes = np.array([pixels.shape[:2] for pixels in images])
        batch = np.stack([padded(pixels, sizes.max(axis=0)) for pixels in images])
        views = self.transform.test(torch.from_numpy(batch).to(self.compute.device),
                                    torch.from_numpy(sizes))
        with autocast(self.compute.device, self.compute.amp):
            outputs = self.network(views).float().cpu().numpy()
        if not np.isfinite(outputs).all():
            raise InputError(f"{self.path} gives outputs that are not finite: its weights are "
                             "damaged, or leave out --amp")
        return outputs

    def codes_of(self, outputs: np.ndarray) -> np.ndarray:
        """Packed codes, uint8 (B, ceil(K/8)), of outputs (B, K)."""
        return pack_codes(outputs, self.threshold)
