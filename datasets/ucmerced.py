"""UC Merced (Yang & Newsam 2010): one real sensor, MS and PAN simulated by Wald's protocol."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datasets.base import DataConfig, Scenes, find_or_say, ms_and_pan, scenes_of_files
from datasets.sources import Decoder
from datasets.wald import wald_ms, wald_pan

URL = "http://weegee.vision.ucmerced.edu/datasets/landuse.html"
FILES = ("UCMerced_LandUse.zip", "UCMerced_LandUse")
QUERIES_PER_CLASS = 10  # ours; the paper does not use this data set
NOTE = "real images, MS and PAN simulated by Wald's protocol"


# Their names are part of the names of cached files.
def decode_wald_pan(data: bytes) -> np.ndarray:
    """Simulated panchromatic image; uint8 (256, 256, 1)."""
    return wald_pan(data, 256)


def decode_wald_ms(data: bytes) -> np.ndarray:
    """Simulated multispectral image; uint8 (64, 64, 3)."""
    return wald_ms(data, 256)


VIEWS = {"ms": Decoder(decode_wald_ms, channels=3, size=(64, 64)),
         "pan": Decoder(decode_wald_pan, channels=1, size=(256, 256))}


def find_images(config: DataConfig) -> Path:
    """The zip or folder in --data_dir."""
    return find_or_say(config, "UC Merced", FILES,
                       f"download UCMerced_LandUse.zip from {URL} and put it there")


def scenes(config: DataConfig) -> Scenes:
    """Names and labels by class folder; both views are made from the same file."""
    root = find_images(config)
    wanted = ms_and_pan(config)
    views = [(root, VIEWS[view]) for view in wanted if view != "none"]
    return scenes_of_files(config, views, wanted, depth=2, note=NOTE)
