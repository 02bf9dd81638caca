"""EuroSAT (Helber et al. 2019): Sentinel-2 RGB, and VHR images or short-wave infrared beside it."""

from __future__ import annotations

import numpy as np

from datasets.base import DataConfig, Scenes, find, find_or_say, reject_source1, scenes_of_files
from datasets.rasters import open_raster, raster_size
from datasets.sources import RGB, Decoder
from utils import InputError, resolve_path

URL = "https://zenodo.org/records/7711810"
FILES = ("EuroSAT.zip", "EuroSAT", "2750", "EuroSAT_RGB.zip", "EuroSAT_RGB", "eurosat")
VHR_FILES = ("EuroSAT_VHR", "EuroSAT_VHR.zip")
SWIR_FILES = ("EuroSAT_MS", "EuroSAT_MS.zip", "EuroSATallBands", "EuroSATallBands.zip")
QUERIES_PER_CLASS = 100  # published
# The order of the bands in the 13-band files, and the false colour made of them.
BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A")
SWIR_BANDS = ("B12", "B8A", "B04")
SWIR_WHITE = 4000  # digital number drawn as 255
REFLECTANCE = 10_000  # the digital number of reflectance 1
MOST_REFLECTANCE = 10  # no surface has more; an image of digital numbers has


def decode_swir(data: bytes) -> np.ndarray:
    """A 13-band GeoTIFF as false colour B12, B8A, B04; uint8 (H, W, 3).

    One fixed linear stretch for all images, so that brightness stays comparable between them.
    Digital numbers, or reflectance where no number of the 13 bands is above 10; nodata is black.
    """
    with open_raster(data) as raster:
        if len(raster.bands) != len(BANDS):
            raise ValueError(f"{len(raster.bands)} bands, expected {len(BANDS)}")
        shown = [BANDS.index(band) for band in SWIR_BANDS]
        # Dark water may well have no digital number above 10 in the three that are shown.
        real = raster.bands[0].dtype.startswith("float")
        numbers = raster.read(range(len(BANDS)) if real else shown)
    values = numbers.values
    if values.dtype.name not in ("uint16", "int16", "float32", "float64"):
        raise ValueError(f"{values.dtype} pixels, expected digital numbers (uint16, int16) or "
                         "reflectance (float)")
    if numbers.valid is not None:
        values = np.where(numbers.valid, values, 0)
    if real:
        reflectance = values.max() <= MOST_REFLECTANCE
        values = values[shown] * (REFLECTANCE if reflectance else 1)
    scaled = np.clip(values.astype(np.float32) * (255 / SWIR_WHITE), 0, 255)
    return np.ascontiguousarray(np.rint(scaled).astype(np.uint8).transpose(1, 2, 0))


SWIR = Decoder(decode_swir, size=raster_size)
SECOND = {  # --source2: where it lies, how it is read, what to get when it is not there
    "vhr": (VHR_FILES, RGB, "a folder EuroSAT_VHR with the same relative names"),
    "swir": (SWIR_FILES, SWIR, f"EuroSAT_MS.zip (13 bands) from {URL}, or its folder"),
}


def scenes(config: DataConfig) -> Scenes:
    """Names and labels by class folder; the second source that is there, VHR before SWIR."""
    root = find_or_say(config, "EuroSAT", FILES,
                       f"download EuroSAT_RGB.zip from {URL} and put it there as EuroSAT.zip")
    reject_source1(config, "EuroSAT")
    there = [view for view, (files, *_) in SECOND.items() if find(config.data_dir, files)]
    wanted = (config.source2 or (there[0] if there else "none")).lower()
    if wanted not in (*SECOND, "none"):
        raise InputError(f"--source2 {wanted} is not known for EuroSAT: use vhr, swir or none")
    views = [(root, RGB)]
    if wanted != "none":
        files, decoder, missing = SECOND[wanted]
        if wanted not in there:
            raise InputError(f"--source2 {wanted} was not found in "
                             f"{resolve_path(config.data_dir)}: put {missing} there, or use "
                             "--source2 none")
        views.append((find(config.data_dir, files), decoder))
    return scenes_of_files(config, views, ("Sentinel-2 RGB", wanted), depth=2)
