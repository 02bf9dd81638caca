"""Two simulated sensors from one image, by Wald's protocol (Wald et al., PE&RS 1997).

The protocol degrades a sharp image by the ratio between the resolutions of two sensors, here 4.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from datasets.pixels import open_rgb


def square(data: bytes, side: int) -> Image.Image:
    """An image file as RGB of side x side pixels; some of UC Merced are a few pixels smaller."""
    image = open_rgb(data)
    if image.size == (side, side):
        return image
    return image.resize((side, side), Image.Resampling.BICUBIC)


def wald_pan(data: bytes, side: int) -> np.ndarray:
    """Panchromatic: the luminance (ITU-R 601); uint8 (side, side, 1)."""
    return np.asarray(square(data, side).convert("L"))[..., None]


def wald_ms(data: bytes, side: int) -> np.ndarray:
    """Multispectral: RGB averaged over 4x4 pixels; uint8 (side / 4, side / 4, 3)."""
    pixels = np.asarray(square(data, side), dtype=np.uint32)
    sums = pixels.reshape(side // 4, 4, side // 4, 4, 3).sum(axis=(1, 3))
    return ((sums + 8) // 16).astype(np.uint8)
