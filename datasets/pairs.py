"""Two folders or zips of your own, whose images are paired by relative name."""

from __future__ import annotations

from pathlib import Path

from datasets.base import DataConfig, Scenes, scenes_of_files
from datasets.sources import RGB
from utils import InputError, resolve_path

PLACES = {"source1", "source2"}  # flags that name folders, which may be moved


def scenes(config: DataConfig) -> Scenes:
    """Class folders give labels, flat folders none."""
    if not config.source1:
        raise InputError("--data_name pairs needs --source1 FOLDER (and --source2 FOLDER or none)")
    folders = [config.source1]
    if config.source2 not in (None, "none"):
        folders.append(config.source2)
    names = [Path(folder).name for folder in folders]
    views = [(resolve_path(folder), RGB) for folder in folders]
    return scenes_of_files(views, (names[0], names[1] if names[1:] else "none"))
