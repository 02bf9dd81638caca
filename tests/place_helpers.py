"""Places, and images and rasters of them whose pixels tell where they lie."""

import numpy as np
import rasterio
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.warp import transform

from helpers import call
from imagery.fetch import Pacer
from imagery.footprints import Footprint
from imagery.services import Service, Tiles
from tile_server import places_of_pixels, scale_of, shift

SIDE = 32


def on_grid(code, x, y, pixel=10, turn=0, height=SIDE, width=SIDE):
    """A place whose upper left corner lies at x, y of a coordinate system."""
    grid = Affine(pixel, 0, x, 0, -pixel, y) * Affine.rotation(turn)
    return Footprint("place", CRS.from_epsg(code), grid, height, width)


def around(code, longitude, latitude):
    (x,), (y,) = transform("EPSG:4326", CRS.from_epsg(code), [longitude], [latitude])
    return on_grid(code, x - 5 * SIDE, y + 5 * SIDE)


def tiles_of(server, scale, zoom=None, tile_size=256):
    return Tiles(Service(server.template(scale), 22, ""), zoom, tile_size, None, Pacer(1000))


def assert_in_place(found, footprint, scale):
    east, north, largest = shift(found.pixels, footprint, scale)
    assert found.covered == 1
    assert abs(east) < 0.05 and abs(north) < 0.05 and largest < 0.5, (east, north, largest)


# ------------------------------------------------------------ rasters


def extent(footprint, crs, pixel, more=0.5):
    """The grid of a raster in another system that reaches further than a place on all sides."""
    x, y = transform(footprint.crs, crs, *[values.ravel() for values in footprint.points(4)])
    wide, high = (max(x) - min(x)) * more, (max(y) - min(y)) * more
    west, north = min(x) - wide, max(y) + high
    width = int((max(x) + wide - west) / pixel)
    height = int((north - min(y) + high) / pixel)
    return Affine(pixel, 0, west, 0, -pixel, north), height, width


def drawn(crs, grid, height, width, scale):
    """uint8 (3, height, width) that tell where they lie."""
    there = Footprint("raster", CRS.from_user_input(crs), grid, height, width)
    return scale.pixels(*places_of_pixels(there))


def write_raster(path, pixels, crs, grid, overviews=(), alpha=None, **options):
    """A GeoTIFF of (bands, H, W); `alpha` (H, W) becomes a further band."""
    if alpha is not None:
        pixels = np.concatenate([pixels, alpha[None].astype(pixels.dtype)])
    with rasterio.open(path, "w", **{"driver": "GTiff", "count": len(pixels),
                                     "height": pixels.shape[1], "width": pixels.shape[2],
                                     "dtype": pixels.dtype, "crs": crs, "transform": grid,
                                     **options}) as file:
        file.write(pixels)
        if alpha is not None:
            file.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue,
                                ColorInterp.alpha]
    if overviews:
        with rasterio.open(path, "r+") as file:
            file.build_overviews(overviews, Resampling.average)
    return path


def scene(folder, footprint, crs=None, pixel=10, name="scene.tif", **options):
    """A raster around a place; returns its path and its Scale."""
    crs, scale = crs or footprint.crs, scale_of(footprint)
    grid, height, width = extent(footprint, crs, pixel)
    pixels = drawn(crs, grid, height, width, scale)
    return write_raster(folder / name, pixels, crs, grid, **options), scale


# ------------------------------------------------------------ collect.py


def write_table(path, text):
    path.write_text(text)
    return path


def image_at(path, footprint, bands=3, **options):
    """A GeoTIFF with the place of `footprint`, such as --images has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(1, 255, (bands, footprint.height, footprint.width))
    return write_raster(path, pixels.astype(options.pop("dtype", "uint8")), footprint.crs,
                        footprint.transform, **options)


def collect(capture, folder, *arguments):
    """collect.py into folder/out, its tiles below folder/cache: exit code, stdout and stderr."""
    return call(capture, "collect.py", "--output", folder / "out", "--cache_dir", folder / "cache",
                "--per_second", 1000, *arguments)


def refused(capture, folder, *arguments):
    """The one sentence; no file was written."""
    before = sorted(folder.rglob("*"))
    code, _, error = collect(capture, folder, *arguments)
    assert code == 2 and error.count("\n") == 1 and "Traceback" not in error, error
    assert sorted(folder.rglob("*")) == before
    return error.removeprefix("error: ").strip()


def read_image(path):
    """Pixels (bands, H, W) and the Footprint of a collected GeoTIFF."""
    with rasterio.open(path) as file:
        return file.read(), Footprint(path.stem, file.crs, file.transform, file.height, file.width)
