"""Any folder or zip of class folders, such as those in which most data sets are published."""

from __future__ import annotations

from dataclasses import replace

from datasets import folders
from datasets.base import DataConfig, Scenes
from utils import InputError, resolve_path

PLACES = {"source1"}  # flags that name folders, which may be moved
FLAGS = folders.FLAGS


def scenes(config: DataConfig) -> Scenes:
    """One source; the data set is called after its folder or zip."""
    if not config.source1:
        raise InputError("--data_name folder needs --source1 FOLDER: a folder or zip with a "
                         "folder of images for each class")
    if config.source2 not in (None, "none"):
        raise InputError(f"--source2 {config.source2}: folder has one source; use --data_name "
                         "pairs for two")
    found = folders.scenes_of_folders(config, [resolve_path(config.source1)], ("images", "none"))
    return replace(found, name=folders.folder_name(config.source1))
