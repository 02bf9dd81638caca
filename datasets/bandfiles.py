"""Scenes of which each band is a file, as BigEarthNet and Landsat have them: tile_B04.tif."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from datasets.names import folder_of, scene_key
from utils import InputError, first_few

# B01 to B12 and B8A of optical, VV, VH, HH, HV of radar sensors.
BAND = re.compile(r"(?:(?P<stem>.*)[_.-])?(?P<band>B\d{1,2}|B8A|[VH][VH])", re.IGNORECASE)
SUFFIXES = {".tif", ".tiff", ".jp2"}


def band_files(root: Path, files: Iterable[str]) -> dict[str, dict[str, str]]:
    """Scene -> band -> file; empty where no scene has two such files.

    Raises:
        InputError: two files of one scene and band; other images beside them.
    """
    scenes: dict[str, dict[str, str]] = {}
    others = []
    for path in files:
        key = PurePosixPath(scene_key(path))
        found = BAND.fullmatch(key.name)
        if found is None or PurePosixPath(path).suffix.lower() not in SUFFIXES:
            others.append(path)
            continue
        scene = key.parent / found["stem"] if found["stem"] else key.parent
        bands, band = scenes.setdefault(str(scene), {}), found["band"].upper()
        if band in bands:
            raise InputError(f"{root} has two images named {key}: {bands[band]} and {path}")
        bands[band] = path
    if all(len(bands) < 2 for bands in scenes.values()):
        return {}
    if others:
        raise InputError(f"{root} has {len(scenes):,} scenes of one file a band, such as "
                         f"{first_few(sorted(next(iter(scenes.values())).values()))}, and "
                         f"{len(others):,} other images: {first_few(others)}; leave out one kind "
                         "with --exclude or --include")
    return scenes


def choose_bands(root: Path, scenes: dict[str, dict[str, str]], bands: str | None, number: int
                 ) -> dict[str, tuple[str, ...]]:
    """Scene -> the files of the wanted bands, in their order.

    Args:
        root: for messages.
        scenes: of band_files.
        bands: as --bands1 or --bands2 has them.
        number: which of these flags it is, for messages.
    Raises:
        InputError: no bands are chosen; a scene lacks one.
    """
    known = sorted(set().union(*scenes.values()))
    if bands is None:
        colours = (["B04", "B03", "B02"], ["B4", "B3", "B2"])
        advice = next((some for some in colours if set(some) <= set(known)), (known * 3)[:3])
        raise InputError(f"{root} has one file a band, {len(scenes):,} scenes of {', '.join(known)}"
                         f": choose three, as --bands{number} {','.join(advice)}")
    wanted = [band.strip().upper() for band in bands.split(",")]
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


def alone_in_folders(scenes: dict[str, dict[str, str]]) -> bool:
    """Whether each folder holds one scene, so that it is no class."""
    folders = [folder_of(next(iter(found.values()))) for found in scenes.values()]
    return all(folders) and len(set(folders)) == len(folders)


def called_after_folders(scenes: Iterable[str]) -> bool:
    """Whether each scene has the name of the folder that it lies in."""
    paths = [PurePosixPath(scene) for scene in scenes]
    return all(path.name == path.parent.name for path in paths)
