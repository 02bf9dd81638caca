"""Names of scenes: from paths, paired between two sources, and the classes that folders tell."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np

from datasets.containers import Folder, Zip
from utils import InputError, first_few


def scene_key(path: str, depth: int) -> str:
    """The name of a scene: the last `depth` parts of the path without extension (0: all)."""
    parts = PurePosixPath(path.replace("\\", "/"))
    parts = parts.with_suffix("").parts if parts.name else parts.parts
    return "/".join(parts[-depth:] if depth else parts)


def files_by_name(container: Folder | Zip, depth: int) -> dict[str, str]:
    """Scene name -> file. Raises InputError when two files have the same name."""
    _reject_empty_classes(container)
    files: dict[str, str] = {}
    for path in container.files:
        key = scene_key(path, depth)
        if key in files:
            raise InputError(f"{container.root} has two images named {key}: {files[key]} and "
                             f"{path}")
        files[key] = path
    return files


def _reject_empty_classes(container: Folder | Zip) -> None:
    """Raise InputError where a folder beside the class folders holds no image."""
    filled = {_folder_of(name) for name in container.files}
    beside = {_folder_of(folder) for folder in filled if folder}
    # Folders that hold folders are no classes; what begins with a dot or an underscore is a tool's.
    parents = {_folder_of(folder) for folder in container.folders | filled}
    empty = []
    for folder in sorted(container.folders - filled - parents):
        hidden = folder.rpartition("/")[2].startswith((".", "_"))
        if _folder_of(folder) in beside and not hidden:
            empty.append(folder)
    if empty:
        raise InputError(f"{len(empty):,} class folders of {container.root} hold no image: "
                         f"{first_few(empty)}; add the images or remove the folders")


def _folder_of(name: str) -> str:
    return name.rpartition("/")[0]


def common_names(files: dict[Path, dict[str, str]]) -> list[str]:
    """The names that both places have, sorted.

    Raises:
        InputError: an image without a partner; the message names the first ones.
    """
    here, there = files
    for one, other in ((here, there), (there, here)):
        _reject_single(one, other, files[one].keys(), files[other].keys())
    return sorted(files[here])


def _reject_single(here: Path, there: Path, ours: Iterable[str], theirs: Iterable[str]) -> None:
    """Raise InputError when one of our names is not among theirs."""
    alone = sorted(set(ours) - set(theirs))
    if not alone:
        return
    # In another class folder? Then it is not lacking, but its label is wrong.
    elsewhere = {key.rpartition("/")[2]: key for key in set(theirs) - set(ours)}
    moved = [f"{key} and {elsewhere[file]}" for key in alone
             if (file := key.rpartition("/")[2]) in elsewhere]
    if len(moved) == len(alone):
        raise InputError(f"{len(alone):,} images lie in one class folder in {here} and in another "
                         f"in {there}: {first_few(moved)}")
    raise InputError(f"{len(alone):,} images of {here} have no partner of the same name in "
                     f"{there}: {first_few(alone)}")


def class_labels(names: list[str]) -> tuple[np.ndarray | None, list[str]]:
    """Labels, int64 (N,), from the folder of each name, and the classes; None without folders.

    Raises:
        InputError: some names have a folder and others have none.
    """
    folders = [_folder_of(name) for name in names]
    if not any(folders):
        return None, []
    flat = [name for name, folder in zip(names, folders, strict=True) if not folder]
    if flat:
        raise InputError(f"some images lie in class folders and {len(flat):,} do not: "
                         f"{first_few(flat)}")
    classes = sorted(set(folders))
    lookup = {name: number for number, name in enumerate(classes)}
    return np.array([lookup[folder] for folder in folders], dtype=np.int64), classes
