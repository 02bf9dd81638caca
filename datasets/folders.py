"""Folders and zips of one's own: what `folder` and `pairs` share."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.bandfiles import alone_in_folders, band_files, called_after_folders, choose_bands
from datasets.bands import open_view
from datasets.base import DataConfig, Scenes
from datasets.containers import Folder, Zip, open_container
from datasets.names import (
    class_labels,
    class_remarks,
    files_by_name,
    folder_of,
    mask_warning,
    reject_empty_classes,
    split_folders,
    without_shared_folder,
)
from datasets.pairing import partners
from utils import resolve_path, warn_once

# Flags of DataConfig that both take, beside those that all data sets have.
FLAGS = {"bands1", "range1", "include", "exclude", "class_depth"}


@dataclass
class View:
    """The scenes that one folder or zip holds.

    files: name -> file, or one file a band. paths: name -> path without extension, as it lies
    there. alone: each folder holds one scene, in one file a band, so that it is no class.
    """

    container: Folder | Zip
    files: dict[str, str] | dict[str, tuple[str, ...]]
    paths: dict[str, str]
    alone: bool = False


def folder_name(path: str) -> str:
    """What a folder or zip is called, without ending, `..` or a last `/`."""
    root = Path(os.path.abspath(resolve_path(path)))
    return root.name if root.is_dir() else root.stem


def scenes_of_folders(config: DataConfig, roots: Sequence[Path], source_names: tuple[str, str]
                      ) -> Scenes:
    """The scenes of one or two folders or zips; names and classes are those of the first.

    Raises:
        InputError: no images, two of one name, images without a partner, bands that are not there.
    """
    views = [_view_of(roots[0], config, 1)]
    for root in roots[1:]:
        views.append(_view_of(root, config, 2, views[0].files if config.skip_unpaired else ()))
    for glob in sorted(set.intersection(*(view.container.choice.unused for view in views))):
        warn_once(f"{glob} fits nothing in "
                  f"{' or '.join(str(view.container.root) for view in views)}")
    for view in views:
        if warning := mask_warning(list(view.paths.values())):
            warn_once(f"{view.container.root}: {warning}")
    partner, remarks = partners([(view.container.root, view.paths) for view in views], config)
    names = sorted(partner)
    paired = np.flatnonzero([partner[name] is not None for name in names])
    columns = [names, [partner[names[row]] for row in paired]]
    bands, ranges = (config.bands1, config.bands2), (config.range1, config.range2)
    sources = []
    for number, view in enumerate(views):
        files = [view.files[name] for name in columns[number]]
        sources.append(open_view(view.container, files, bands[number], ranges[number], number + 1))
    resolved = {f"range{number}": source.value_range for number, source in enumerate(sources, 1)
                if source.value_range is not None}
    parts, below = split_folders(names)
    labels, class_names, more = _classes(views[0], names, below, config)
    return Scenes(names, labels, class_names, sources, source_names, parts=parts,
                  remarks=[*remarks, *more], resolved=resolved, paired=paired)


def _view_of(root: Path, config: DataConfig, number: int, known: Collection[str] = ()) -> View:
    container = open_container(root, config.include, config.exclude)
    # What may well empty a folder, or leave it empty.
    if not config.include and not config.exclude and not (number == 2 and config.skip_unpaired):
        reject_empty_classes(container, ", or leave them out with --exclude")
    return view_of(container, (config.bands1, config.bands2)[number - 1], number, known)


def view_of(container: Folder | Zip, bands: str | None, number: int | str,
            known: Collection[str] = ()) -> View:
    """The scenes in a folder or zip.

    Args:
        container: the folder or zip.
        bands: as --bands has them, for one file a band.
        number: of that flag, for messages.
        known: names of source 1, where this source may have fewer.
    Raises:
        InputError: two images of one name, or bands that are not there or not chosen.
    """
    scenes, alone = band_files(container), False
    if scenes:
        files = choose_bands(container.root, scenes, bands, number)
        alone, renamed = alone_in_folders(scenes), called_after_folders(scenes)
    else:
        files, renamed = files_by_name(container), False
    paths = list(files)
    names = without_shared_folder([folder_of(path) for path in paths] if renamed else paths, known)
    return View(container, dict(zip(names, files.values(), strict=True)),
                dict(zip(names, paths, strict=True)), alone)


def _classes(view: View, names: list[str], below: list[str], config: DataConfig
             ) -> tuple[np.ndarray | None, list[str], list[str]]:
    """Labels, int64 (N,) or None, the classes, and what to say of them.

    Args:
        view: of the first source.
        names: of N scenes.
        below: the same without the folders of a split.
        config: says at which depth the class stands.
    """
    if view.alone and config.class_depth is None:
        return None, [], [f"each folder of {view.container.root} holds one scene and is no class: "
                          "labels come from lists or --class_depth N alone"]
    inner = without_shared_folder(below)
    paths = [view.paths[name] for name in names]
    labels, class_names = class_labels(inner, config.class_depth, paths)
    if config.class_depth is not None:
        return labels, class_names, []
    if labels is not None and len(class_names) > 1:
        return labels, class_names, class_remarks(inner)
    if not any(folder_of(view.paths[name]) for name in names):
        return None, [], []
    # The one folder may well be called "images".
    return None, [], [f"all images of {view.container.root} lie in one folder, or in folders of "
                      "one name, which are no classes"]
