"""Tiny TIFF and JPEG 2000 files, as rasterio and Pillow write them."""

import io

import numpy as np
from PIL import Image
from rasterio.io import MemoryFile


def raster(numbers, driver="GTiff", mask=None, names=(), **options):
    """(bands, H, W) as the bytes of a file; `mask` (H, W) is an inner one."""
    count, height, width = numbers.shape
    with MemoryFile() as memory:
        with memory.open(driver=driver, count=count, height=height, width=width,
                         dtype=numbers.dtype, **options) as file:
            file.write(numbers)
            if mask is not None:
                file.write_mask(mask)
            for index, name in enumerate(names, start=1):
                file.set_band_description(index, name)
        return bytes(memory.getbuffer())


def paged(*pages, **options):
    """Images (H, W) or (H, W, 3) as the pages of one TIFF."""
    first, *others = [Image.fromarray(page) for page in pages]
    buffer = io.BytesIO()
    first.save(buffer, "TIFF", save_all=True, append_images=others, **options)
    return buffer.getvalue()


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def ramp(dtype, bands=3, height=4, width=6, low=0, high=255):
    """Numbers from low to high, another order in each band."""
    steps = np.linspace(low, high, height * width).reshape(height, width)
    return np.stack([np.roll(steps, 5 * band) for band in range(bands)]).astype(dtype)


def seen(numbers):
    """Bands (3 or 1, H, W) as an image (H, W, 3)."""
    return np.broadcast_to(numbers, (3, *numbers.shape[1:])).transpose(1, 2, 0)
