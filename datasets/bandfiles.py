"""Scenes of which each band is a file, as BigEarthNet and Landsat have them: tile_B04.tif."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from datasets.containers import Folder, Zip
from datasets.names import folder_of, scene_key
from datasets.pixels import band_count
from utils import InputError, first_few

# B01 to B12 and B8A of optical, VV, VH, HH, HV of radar sensors; a resolution may follow.
CODES = r"B\d{1,2}|B8A|[VH][VH]"
WORDS = rf"{CODES}|red|green|blue|nir|swir\d?|pan"
FILE = r"(?:(?P<stem>.*)[_.-])?(?P<band>{})(?:[_.-]\d+m)?"
CODED, WORDED = (re.compile(FILE.format(bands), re.IGNORECASE) for bands in (CODES, WORDS))
CODE, WORD = (re.compile(bands, re.IGNORECASE) for bands in (CODES, WORDS))
COLOURS = (["B04", "B03", "B02"], ["B4", "B3", "B2"], ["RED", "GREEN", "BLUE"])


def band_files(container: Folder | Zip) -> dict[str, dict[str, str]]:
    """Scene -> band -> file; empty where no scene has two such files, or a file has several bands.

    Raises:
        InputError: two files of one scene and band; other images beside them; folders of bands.
    """
    keys = {path: scene_key(path) for path in container.files}
    for form in (CODED, WORDED):
        scenes, others = _sorted_out(keys, form)
        several = [bands for bands in scenes.values() if len(bands) > 1]
        # Words are no bands in one of many names: roof_red.png.
        if not several or (form is WORDED and others):
            continue
        first = [files[0] for files in several[0].values()]
        # One image in colour is enough: tiles may be called B1, and some of them be black.
        if not _one_band_each(container, some_of(files for bands in several
                                                 for files in bands.values())):
            continue
        if others:
            raise InputError(f"{container.root} has {len(scenes):,} scenes of one file a band, "
                             f"such as {first_few(sorted(first))}, and {len(others):,} other "
                             f"images: {first_few(others)}; leave out one kind with --exclude or "
                             "--include")
        return _one_each(container.root, scenes)
    _reject_folders_of_bands(container, keys)
    return {}


def _sorted_out(keys: dict[str, str], form: re.Pattern
                ) -> tuple[dict[str, dict[str, list[str]]], list[str]]:
    """Scene -> band -> files, and the paths that are not of this form; of path -> name."""
    scenes: dict[str, dict[str, list[str]]] = {}
    others = []
    for path, key in keys.items():
        folder, _, name = key.rpartition("/")
        found = form.fullmatch(name)
        if found is None:
            others.append(path)
            continue
        scene = "/".join(part for part in (folder, found["stem"]) if part) or "."
        scenes.setdefault(scene, {}).setdefault(found["band"].upper(), []).append(path)
    return scenes, others


def _one_each(root: Path, scenes: dict[str, dict[str, list[str]]]) -> dict[str, dict[str, str]]:
    twice = [" and ".join(files) for bands in scenes.values() for files in bands.values()
             if len(files) > 1]
    if twice:
        raise InputError(f"{root} has several files of one band in {len(twice):,} places: "
                         f"{first_few(twice)}; leave out those that are not wanted with --exclude")
    return {scene: {band: files[0] for band, files in bands.items()}
            for scene, bands in scenes.items()}


def some_of(groups: Iterable[Sequence[str]], most: int = 24) -> list[str]:
    """The first and the middle one of some groups of files, evenly spaced."""
    groups = list(groups)
    step = max(1, 2 * len(groups) // most)
    return [name for group in groups[::step] for name in (group[0], group[len(group) // 2])]


def _one_band_each(container: Folder | Zip, names: Sequence[str]) -> bool:
    """Whether some files have one band each: tiles may be called B1, too.

    As far as they can be read; damaged ones are named when they are decoded.
    """
    for name in names:
        try:
            if band_count(container.read_bytes(name)) > 1:
                return False
        except InputError:
            raise
        except Exception:  # Pillow, GDAL and zlib raise many kinds for a damaged file
            continue
    return True


def _reject_folders_of_bands(container: Folder | Zip, keys: dict[str, str]) -> None:
    """Raise InputError where folders are called after bands, which would become classes.

    Those of words, as train_red, and those beside other images only where they have common scenes.
    """
    folders: dict[str, list[str]] = {}  # folder -> the files in it
    scenes: dict[tuple[str, ...], set[str]] = {}  # all words of a path but bands -> folders
    others = False
    for path, key in keys.items():
        folder = next((part for part in key.split("/")[:-1] if WORDED.fullmatch(part)), None)
        others |= folder is None
        if folder is not None:
            folders.setdefault(folder, []).append(path)
            scene = tuple(word for word in re.split(r"[_./-]", key) if not WORD.fullmatch(word))
            scenes.setdefault(scene, set()).add(folder)
    if len(folders) < 2:
        return
    common = any(len(found) > 1 for found in scenes.values())
    plain = not others and all(CODE.fullmatch(folder) for folder in folders)
    if (common or plain) and _one_band_each(container, some_of(folders.values())):
        one = min(folders)
        file = PurePosixPath(folders[one][0])
        raise InputError(f"{container.root}: folders are called after bands, which are no classes: "
                         f"{first_few(sorted(folders))}; put the bands of a scene into one file, "
                         f"or beside each other as {file.stem}_{one}{file.suffix}, see one of "
                         f"them with --include '*{one}/*', or call them otherwise where they are "
                         "classes")


def choose_bands(root: Path, scenes: dict[str, dict[str, str]], bands: str | None, number: int
                 ) -> dict[str, tuple[str, ...]]:
    """Scene -> the files of the wanted bands, in their order.

    Args:
        root: for messages.
        scenes: of band_files.
        bands: as --bands1 or --bands2 has them; 4 stands for B04 or B4.
        number: which of these flags it is, for messages.
    Raises:
        InputError: no bands are chosen; a scene lacks one.
    """
    known = sorted(set().union(*scenes.values()))
    if bands is None:
        advice = next((some for some in COLOURS if set(some) <= set(known)), (known * 3)[:3])
        raise InputError(f"{root} has one file a band, {len(scenes):,} scenes of {', '.join(known)}"
                         f": choose three, as --bands{number} {','.join(advice)}; where these are "
                         "no bands, give the files other names")
    wanted = [_called(word.strip().upper(), known) for word in bands.split(",")]
    unknown = [band for band in wanted if band not in known]
    if unknown:
        raise InputError(f"--bands{number} {bands}: {root} has no files of {', '.join(unknown)}, "
                         f"but of {', '.join(known)}")
    lacking = [f"{scene} ({band})" for scene, found in scenes.items() for band in wanted
               if band not in found]
    if lacking:
        raise InputError(f"{len(lacking):,} files of the bands {bands} are missing in {root}: "
                         f"{first_few(lacking)}")
    return {scene: tuple(found[band] for band in wanted) for scene, found in scenes.items()}


def _called(word: str, known: list[str]) -> str:
    names = [f"B{int(word):02}", f"B{int(word)}"] if word.isdecimal() else []
    return next((name for name in names if name in known), word)


def alone_in_folders(scenes: dict[str, dict[str, str]]) -> bool:
    """Whether each folder holds one scene, so that it is no class."""
    folders = [folder_of(next(iter(found.values()))) for found in scenes.values()]
    return all(folders) and len(set(folders)) == len(folders)


def called_after_folders(scenes: Iterable[str]) -> bool:
    """Whether each scene has the name of the folder that it lies in."""
    paths = [PurePosixPath(scene) for scene in scenes]
    return all(path.name == path.parent.name for path in paths)
