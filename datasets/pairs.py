"""Two folders or zips of your own, whose images are paired by relative name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from datasets import folders
from datasets.base import DataConfig, Scenes
from utils import InputError, resolve_path

PLACES = {"source1", "source2", "pairs"}  # flags that name places, which may be moved
FLAGS = folders.FLAGS | {"bands2", "range2", "pair_by", "pairs"}


def scenes(config: DataConfig) -> Scenes:
    """Class folders give labels, flat folders none; runs are called after the folders or zips."""
    if not config.source1:
        raise InputError("--data_name pairs needs --source1 FOLDER (and --source2 FOLDER or none)")
    given = [config.source1]
    if config.source2 not in (None, "none"):
        given.append(config.source2)
    names = [Path(folder).name for folder in given]
    roots = [resolve_path(folder) for folder in given]
    found = folders.scenes_of_folders(config, roots, (names[0], names[1] if names[1:] else "none"))
    # The data set stays "pairs": cached files of source 1 are the same beside any source 2.
    # 40 letters of each, for a file system takes no more than 255 bytes.
    return replace(found, run_name="_".join(folders.folder_name(path)[:40] for path in given))
