"""Any folder or zip of class folders, such as those in which most data sets are published."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from datasets.base import DataConfig, Scenes, scenes_of_files
from datasets.names import class_labels
from datasets.sources import RGB
from utils import InputError, resolve_path

PLACES = {"source1"}  # flags that name folders, which may be moved


def scenes(config: DataConfig) -> Scenes:
    """One source; the data set is called after its folder or zip."""
    if not config.source1:
        raise InputError("--data_name folder needs --source1 FOLDER: a folder or zip with a "
                         "folder of images for each class")
    if config.source2 not in (None, "none"):
        raise InputError(f"--source2 {config.source2}: folder has one source; use --data_name "
                         "pairs for two")
    root = Path(os.path.abspath(resolve_path(config.source1)))  # without `..` and a last `/`
    found = scenes_of_files([(root, RGB)], ("images", "none"))
    names = _below_shared_folder(found.names)
    labels, class_names = class_labels(names)
    return replace(found, names=names, labels=labels, class_names=class_names,
                   name=root.name if root.is_dir() else root.stem)


def _below_shared_folder(names: list[str]) -> list[str]:
    """The names without the one folder that all class folders lie in, as zips often have it.

    So a zip and the folder that was unpacked from it have the same names.
    """
    above = sorted({name.rpartition("/")[0].rpartition("/")[0] for name in names})
    if len(above) > 1 or not above[0]:
        return names
    return [name.removeprefix(f"{above[0]}/") for name in names]
