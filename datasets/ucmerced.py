"""UC Merced (Yang & Newsam 2010): one real sensor, MS and PAN simulated by Wald's protocol."""

from __future__ import annotations

import numpy as np
from PIL import Image

from datasets.base import DataConfig, Scenes, find_or_say, ms_and_pan, scenes_of_files
from datasets.pixels import open_rgb
from datasets.sources import Decoder

URL = "http://weegee.vision.ucmerced.edu/datasets/landuse.html"
FILES = ("UCMerced_LandUse.zip", "UCMerced_LandUse")
QUERIES_PER_CLASS = 10  # ours; the paper does not use this data set


def _square256(data: bytes) -> Image.Image:
    """Some of the images are a few pixels smaller."""
    image = open_rgb(data)
    if image.size == (256, 256):
        return image
    return image.resize((256, 256), Image.Resampling.BICUBIC)


def decode_wald_pan(data: bytes) -> np.ndarray:
    """Simulated panchromatic image: luminance (ITU-R 601) at 256x256; uint8 (256, 256, 1)."""
    return np.asarray(_square256(data).convert("L"))[..., None]


def decode_wald_ms(data: bytes) -> np.ndarray:
    """Simulated multispectral image: RGB averaged over 4x4 pixels; uint8 (64, 64, 3).

    Wald et al., PE&RS 1997: degrade a sharp image by the ratio between the two sensors.
    """
    pixels = np.asarray(_square256(data), dtype=np.uint32)
    sums = pixels.reshape(64, 4, 64, 4, 3).sum(axis=(1, 3))
    return ((sums + 8) // 16).astype(np.uint8)


VIEWS = {"ms": Decoder(decode_wald_ms, channels=3, size=(64, 64)),
         "pan": Decoder(decode_wald_pan, channels=1, size=(256, 256))}


def scenes(config: DataConfig) -> Scenes:
    """Names and labels by class folder; both views are made from the same file."""
    root = find_or_say(config, "UC Merced", FILES,
                       f"download UCMerced_LandUse.zip from {URL} and put it there")
    wanted = ms_and_pan(config)
    views = [(root, VIEWS[view]) for view in wanted if view != "none"]
    return scenes_of_files(views, wanted, depth=2,
                           note="real images, MS and PAN simulated by Wald's protocol")
