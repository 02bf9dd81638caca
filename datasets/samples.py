"""The 300 images of samples/, which come with this repository: a part of UC Merced, reduced."""

from __future__ import annotations

import numpy as np

from datasets.base import DataConfig, Scenes, ms_and_pan, scenes_of_files
from datasets.sources import Decoder
from datasets.ucmerced import NOTE
from datasets.wald import wald_ms, wald_pan
from utils import ROOT

FOLDER = ROOT / "samples" / "images"
SIDE = 128  # pixels


def decode_samples_pan(data: bytes) -> np.ndarray:
    """Simulated panchromatic image; uint8 (128, 128, 1)."""
    return wald_pan(data, SIDE)


def decode_samples_ms(data: bytes) -> np.ndarray:
    """Simulated multispectral image; uint8 (32, 32, 3)."""
    return wald_ms(data, SIDE)


VIEWS = {"ms": Decoder(decode_samples_ms, channels=3, size=(SIDE // 4, SIDE // 4)),
         "pan": Decoder(decode_samples_pan, channels=1, size=(SIDE, SIDE))}


def scenes(config: DataConfig) -> Scenes:
    """Names and labels by class folder, whatever --data_dir says."""
    wanted = ms_and_pan(config)
    views = [(FOLDER, VIEWS[view]) for view in wanted if view != "none"]
    return scenes_of_files(config, views, wanted, depth=2, note=NOTE)
