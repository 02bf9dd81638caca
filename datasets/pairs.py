"""Two folders or zips of your own, whose images are paired by relative name."""

from __future__ import annotations

from pathlib import Path

from datasets import folders
from datasets.base import DataConfig, Scenes
from utils import InputError, resolve_path

PLACES = {"source1", "source2", "pairs"}  # flags that name places, which may be moved
FLAGS = folders.FLAGS | {"bands2", "range2", "pair_by", "pairs"}


def scenes(config: DataConfig) -> Scenes:
    """Class folders give labels, flat folders none."""
    if not config.source1:
        raise InputError("--data_name pairs needs --source1 FOLDER (and --source2 FOLDER or none)")
    given = [config.source1]
    if config.source2 not in (None, "none"):
        given.append(config.source2)
    names = [Path(folder).name for folder in given]
    roots = [resolve_path(folder) for folder in given]
    return folders.scenes_of_folders(config, roots, (names[0], names[1] if names[1:] else "none"))
