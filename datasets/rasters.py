"""GeoTIFFs, read by rasterio."""

from __future__ import annotations

import contextlib
import importlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from datasets.pixels import check_shape
from utils import InputError


@contextlib.contextmanager
def _geotiff(data: bytes) -> Iterator[Any]:
    rasterio = require("rasterio", "13-band GeoTIFFs")
    # Tiles without map coordinates are fine here.
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    logging.getLogger("rasterio").setLevel(logging.ERROR)
    # Other formats than GeoTIFF could name files and addresses to read from.
    with rasterio.io.MemoryFile(data) as memory, memory.open(driver="GTiff") as file:
        check_shape(file.height, file.width)
        yield file


def read_geotiff(data: bytes, count: int, bands: Sequence[int]) -> np.ndarray:
    """The wanted `bands`, from 0, of a GeoTIFF that has `count` of them: (bands, H, W).

    Raises:
        ValueError: another number of bands, or too large.
    """
    with _geotiff(data) as file:
        if file.count != count:
            raise ValueError(f"{file.count} bands, expected {count}")
        return file.read([band + 1 for band in bands])


def geotiff_size(data: bytes) -> tuple[int, int]:
    """(height, width) of a GeoTIFF."""
    with _geotiff(data) as file:
        return file.height, file.width


def require(module: str, purpose: str) -> Any:
    """A module that only some data sets need. Raises InputError: it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"reading {purpose} needs the package {module}: pip install {module}"
                         ) from None
