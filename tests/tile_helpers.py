"""Small scenes, and their tiles."""

import numpy as np
from rasterio import Affine

from raster_helpers import raster

GRID = Affine(10, 0, 500_000, 0, -10, 5_000_000)


def written(path, numbers, **options):
    path.write_bytes(raster(numbers, **options))
    return path


def drawn(seed, bands=3, height=50, width=70, dtype="uint8", low=1, high=256):
    return np.random.default_rng(seed).integers(low, high, (bands, height, width)).astype(dtype)


def tiles_of(scene):
    """(column, row) -> pixels, of the tiles that are not left out."""
    loaded = [scene.load(index) for index in range(len(scene))]
    return {item.window[:2]: pixels for item, pixels in filter(None, loaded)}


def slices(image, windows):
    return {(column, row): image[row:row + height, column:column + width]
            for column, row, width, height in windows}


def assert_same(found, expected):
    assert found.keys() == expected.keys() and len(found)
    for place, pixels in expected.items():
        np.testing.assert_array_equal(found[place], pixels, str(place))
