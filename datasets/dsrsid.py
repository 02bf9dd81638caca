"""DSRSID (Li et al., IEEE TGRS 2018): multispectral and panchromatic images of Gaofen-1."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from datasets.base import DataConfig, Scenes, find, find_or_say, ms_and_pan, scenes_of_files
from datasets.hdf5 import Hdf5Array, Hdf5Images, array_of, open_hdf5
from datasets.lists import SPLIT_FILES
from datasets.sources import RGB
from utils import InputError

FILES = ("DSRSID.mat", "DSRSID")
QUERIES_PER_CLASS = 625  # published
# The published autoencoder.py selects by mAP@1900 here too; only test.py has the smallest class.
PUBLISHED_STAGE1_R = 1900
CLASSES = ("aquafarm", "cloud", "forest", "high building", "low building", "farm land", "river",
           "water")
FOLDERS = {"ms": ("MUL", "MS", "mul", "ms"), "pan": ("PAN", "pan")}
# Of the bands blue, green, red, near infrared an ImageNet network sees the visible ones, as RGB.
VIEWS = {"ms": Hdf5Array("MUL_IMAGES", 4, (2, 1, 0)), "pan": Hdf5Array("PAN_IMAGES", 1, (0,))}
EXPECTED = ("DSRSID as published, an HDF5 file with MUL_IMAGES, PAN_IMAGES and LAND_COVER_TYPES")


def scenes(config: DataConfig) -> Scenes:
    """The published .mat, or a folder of extracted images with list files."""
    root = find_or_say(config, "DSRSID", FILES,
                       "put DSRSID.mat (Li et al., IEEE TGRS 2018) there, or a folder DSRSID with "
                       "the sub-folders MUL and PAN")
    wanted = ms_and_pan(config)
    views = [view for view in wanted if view != "none"]
    if root.is_dir():
        return _of_folder(config, root, views, wanted)
    types = _land_covers(root, VIEWS[wanted[0]].key)
    labels = types.astype(np.int64) - 1
    folders = [name.replace(" ", "_") for name in CLASSES]
    names = [f"{folders[label]}/{row:06d}" for row, label in enumerate(labels)]
    rows = np.arange(len(names))
    sources = [Hdf5Images(root, VIEWS[view], rows, EXPECTED) for view in views]
    return Scenes(names, labels, list(CLASSES), sources, wanted)


def _of_folder(config: DataConfig, root: Path, views: list[str], wanted: tuple[str, str]
               ) -> Scenes:
    places = []
    for view in views:
        place = find(root, FOLDERS[view])
        if place is None:
            raise InputError(f"{root} has no sub-folder for {view}: expected MUL and PAN")
        places.append((place, RGB))
    lists = root if (root / SPLIT_FILES["query"]).is_file() else None
    return replace(scenes_of_files(config, places, wanted), split_dir=lists)


def _land_covers(root: Path, key: str) -> np.ndarray:
    """The number of each image's class, from 1, as many as array `key` has images."""
    types = np.zeros(0)
    with open_hdf5(root, EXPECTED) as file:
        count = (array_of(file, key).shape or (0,))[0]
        data = array_of(file, "LAND_COVER_TYPES")
        # Looked at before it is read: a damaged or hostile header may claim anything.
        found = f"{data.size or 0:,} values ({data.dtype})"
        if count and data.dtype.kind in "fiu" and data.size == count:
            types = data[()].reshape(-1)
    if not len(types) or not np.isin(types, np.arange(len(CLASSES)) + 1).all():
        limits = f" from {types.min()} to {types.max()}" if len(types) else ""
        raise InputError(f"{root}: LAND_COVER_TYPES holds {found}{limits}, expected "
                         f"{max(count, 1):,} whole numbers from 1 to {len(CLASSES)}")
    return types
