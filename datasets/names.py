"""Names of scenes, from their paths, and the classes that folders tell."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence

import numpy as np

from datasets.choice import is_image, shared_depth
from datasets.containers import Folder, Zip
from utils import InputError, first_few

# How masks are called beside their images: 7.png and 7_mask.png, images/7.png and masks/7.png.
MASKS = "masks?|labels?|gt|seg(mentation)?|annotations?"
MASK_FILE = re.compile(rf"(?P<image>.+)[_.-]({MASKS})", re.IGNORECASE)
MASK_FOLDER = re.compile(MASKS, re.IGNORECASE)
# What folders that hold a published split are called, and which part of it that is.
SPLIT_FOLDERS = {"train": "train", "training": "train", "val": "val", "valid": "val",
                 "validation": "val", "test": "test", "testing": "test", "query": "test"}
EXTENSION = re.compile(r"(?<=[^/])\.\w+$")


def scene_key(path: str, depth: int = 0) -> str:
    """The name of a scene: the last `depth` parts of the path without extension (0: all).

    In NFC: one system writes é as one character, another one as two.
    """
    path = unicodedata.normalize("NFC", path.replace("\\", "/"))
    # No more than an extension: of `a.jpg|0|1`, what follows the name must not be lost.
    parts = [part for part in EXTENSION.sub("", path).split("/") if part not in ("", ".")]
    return "/".join(parts[-depth:])


def scene_keys(text: str, depth: int = 0) -> list[str]:
    """The scenes that a path in a list may mean, the likeliest first.

    What stands behind the last dot may be an ending, or a part of a name that was written without.
    """
    text = text.strip()
    without, whole = scene_key(text, depth), scene_key(f"{text}.png", depth)
    return [without, whole] if is_image(text) else [whole, without]


def files_by_name(container: Folder | Zip, depth: int = 0) -> dict[str, str]:
    """Scene name -> file. Raises InputError when two files have the same name."""
    files: dict[str, str] = {}
    for path in container.files:
        key = scene_key(path, depth)
        if key in files:
            forms = {unicodedata.normalize("NFC", name) for name in (files[key], path)}
            same = "; they are one name in two forms of Unicode" if len(forms) == 1 else ""
            raise InputError(f"{container.root} has two images named {key}: {files[key]} and "
                             f"{path}{same}")
        files[key] = path
    return files


def reject_empty_classes(container: Folder | Zip, advice: str = "") -> None:
    """Raise InputError, with `advice`, where a folder beside several class folders is empty."""
    filled = {folder_of(name) for name in container.files}
    if len(filled - {""}) < 2:  # no classes
        return
    beside = {folder_of(folder) for folder in filled if folder}
    # Folders that hold folders are no classes; what begins with a dot or an underscore is a tool's.
    parents = {folder_of(folder) for folder in container.folders | filled}
    empty = []
    for folder in sorted(container.folders - container.choice.beside - filled - parents):
        hidden = folder.rpartition("/")[2].startswith((".", "_"))
        if folder_of(folder) in beside and not hidden:
            empty.append(folder)
    if empty:
        raise InputError(f"{len(empty):,} class folders of {container.root} hold no image: "
                         f"{first_few(empty)}; add the images or remove the folders{advice}")


def folder_of(name: str) -> str:
    return name.rpartition("/")[0]


def without_shared_folder(names: Sequence[str], known: Collection[str] = ()) -> list[str]:
    """The names without the folders that hold all of them, as zips often have one.

    So a zip and the folder that was unpacked from it have the same names.

    Args:
        names: paths.
        known: of another source, which may have more: so many folders are taken away that most
            names are among these. What holds everything may be the one class that is there yet.
    """
    shared = shared_depth(names)
    if known:
        shared = max(range(shared, -1, -1), key=lambda depth: sum(
            name.split("/", depth)[depth] in known for name in names))
    return [name.split("/", shared)[shared] for name in names]


# ---------------------------------------------------------------- split and classes


def split_folders(names: Sequence[str]) -> tuple[np.ndarray | None, list[str]]:
    """Which part of a published split each image lies in, where all lie in such folders.

    They are at the top, as train/forest/1, or within the classes, as forest/train/1.

    Returns:
        train, val or test for each of N names, or None; the names without that folder.
    """
    paths = [name.split("/") for name in names]
    for place in (0, -2):
        words = [path[place].lower() if len(path) > 1 else "" for path in paths]
        parts = [SPLIT_FOLDERS.get(word) for word in words]
        if None not in parts and len(set(parts)) > 1:
            for path in paths:
                del path[place]
            return np.array(parts), ["/".join(path) for path in paths]
    return None, list(names)


def class_labels(names: Sequence[str], depth: int | None = None,
                 paths: Sequence[str] | None = None) -> tuple[np.ndarray | None, list[str]]:
    """Labels, int64 (N,), from the folder of each name, and the classes; None without folders.

    Args:
        names: N of them.
        depth: the class is the folder at this depth, from 1; None: the one that holds the image.
        paths: what messages call them where --exclude can leave them out.
    Raises:
        InputError: some names have a folder and others have none.
    """
    folders = [name.split("/")[:-1] for name in names]
    flat = [place for place, path in zip(paths or names, folders, strict=True)
            if len(path) < (depth or 1)]
    advice = "; --exclude leaves images out" if paths else ""
    if depth and flat:
        raise InputError(f"{len(flat):,} images lie in fewer folders than --class_depth {depth}: "
                         f"{first_few(flat)}{advice}")
    if len(flat) == len(names):
        return None, []
    if flat:
        raise InputError(f"some images lie in class folders and {len(flat):,} do not: "
                         f"{first_few(flat)}{advice}")
    own = [path[depth - 1 if depth else -1] for path in folders]
    classes = sorted(set(own))
    lookup = {name: number for number, name in enumerate(classes)}
    return np.array([lookup[name] for name in own], dtype=np.int64), classes


def class_remarks(names: Sequence[str]) -> list[str]:
    """What to say where the folders that hold images are no plain list of classes."""
    places: dict[str, set[str]] = {}  # class -> the folders called so
    for name in names:
        folder = folder_of(name)
        places.setdefault(folder.rpartition("/")[2], set()).add(folder)
    remarks = []
    several = [f"{name} lies in {len(found)} folders" for name, found in sorted(places.items())
               if len(found) > 1]
    if several:
        remarks.append(f"{first_few(several)}: one class; --class_depth N takes the N-th folder "
                       "from the top instead")
    folders = set().union(*places.values())
    inside = [folder for folder in sorted(folders) if folder_of(folder) in folders]
    if inside:
        remarks.append(f"class folders lie inside class folders and are classes of their own: "
                       f"{first_few(inside)}; --class_depth 1 takes the outer one for all")
    return remarks


def mask_warning(names: Sequence[str]) -> str | None:
    """What to say where masks seem to lie beside the images and are taken for images; or None."""
    known = set(names)
    beside = [name for name in names
              if (found := MASK_FILE.fullmatch(name)) and found["image"] in known]
    below = [name for name in names if any(map(MASK_FOLDER.fullmatch, name.split("/")[:-1]))]
    if beside:
        ending = beside[0].removeprefix(MASK_FILE.fullmatch(beside[0])["image"])
        return (f"{len(beside):,} images are called like others and a mask, and take part: "
                f"{first_few(beside)}; --exclude '*{ending}.*' leaves those out")
    if 0 < len(below) < len(names):
        folders = below[0].split("/")[:-1]
        place = next(place for place, part in enumerate(folders) if MASK_FOLDER.fullmatch(part))
        glob = f"{'*/' if place else ''}{folders[place]}/*"
        return (f"{len(below):,} images lie in folders called after masks or labels, and take "
                f"part: {first_few(below)}; where they are no images, --exclude '{glob}' leaves "
                "them out")
    return None
