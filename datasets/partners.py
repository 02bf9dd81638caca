"""Which image of source 2 shows each scene of source 1, and what is said where one is lacking."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from utils import InputError, first_few

Side = tuple[Path, Mapping[str, str]]  # a folder or zip, and what pairs its images -> their names

SKIP_ADVICE = "; autoencoder.py --skip_unpaired goes on without them"


class Unpaired(InputError):
    """Scenes without an image in source 2, which --skip_unpaired leaves out.

    scenes: their names, sorted.
    """

    def __init__(self, message: str, scenes: Iterable[str]) -> None:
        super().__init__(message)
        self.scenes = tuple(sorted(scenes))


def partners_by_key(first: Side, second: Side, skip: Collection[str], spare_allowed: bool,
                    advice: str = "") -> tuple[dict[str, str | None], list[str]]:
    """Pair the images that have the same key in both sources.

    Args:
        first, second: the sources.
        skip: scenes that are left out, and need no partner.
        spare_allowed: whether source 2 may have images of other places, which are not used.
        advice: the end of the message where keys differ.
    Returns:
        name in source 1 -> name in source 2, None where a scene of `skip` has none; what to say of
        images without a partner.
    Raises:
        Unpaired: scenes without a partner; the message names the first ones.
        InputError: no scene has one, an image lies in another class folder there, or source 2 has
            images of other places.
    """
    (here, ours), (there, theirs) = first, second
    skip = set(skip)
    moved = _in_another_folder(ours, theirs, skip)
    if moved:
        raise InputError(f"{len(moved):,} images lie in one class folder in {here} and in another "
                         f"in {there}: {first_few(moved)}{advice}")
    alone = sorted(ours[key] for key in ours.keys() - theirs.keys())
    spare = sorted(theirs[key] for key in theirs.keys() - ours.keys())
    if len(alone) == len(ours):
        raise InputError(f"all {len(ours):,} images of {here} have no partner of the same name in "
                         f"{there}: {first_few(alone)} here, {first_few(spare)} there; name the "
                         f"folder that shows the same scenes{advice}")
    lacking = [name for name in alone if name not in skip]
    if lacking:
        raise Unpaired(_no_partner(here, there, lacking, advice), lacking)
    if spare and not spare_allowed:
        raise InputError(_no_partner(there, here, spare, advice))
    said = []
    if alone:
        said.append(f"{len(alone):,} of {len(ours):,} scenes of {here} have no partner in {there} "
                    f"and are left out: {first_few(alone)}")
    if spare:
        said.append(f"{len(spare):,} of {len(theirs):,} images of {there} have no scene in {here} "
                    f"and are not used: {first_few(spare)}")
    return {name: theirs.get(key) for key, name in ours.items()}, ["; ".join(said)] if said else []


def _no_partner(here: Path, there: Path, names: list[str], advice: str) -> str:
    return (f"{len(names):,} images of {here} have no partner of the same name in {there}: "
            f"{first_few(names)}{advice}{SKIP_ADVICE}")


def _in_another_folder(ours: Mapping[str, str], theirs: Mapping[str, str], skip: Collection[str]
                       ) -> list[str]:
    """Images whose partner lies in another class folder: not lacking, but of a wrong label."""
    found, moved = _keys_by_file(theirs), []
    for file, key in sorted(_keys_by_file(ours).items()):
        if found.get(file, key) != key and ours[key] not in skip:
            moved.append(f"{ours[key]} and {theirs[found[file]]}")
    return moved


def _keys_by_file(keys: Iterable[str]) -> dict[str, str]:
    """The last part of each key -> the key; not where images of several folders are called so."""
    files = {key: key.rpartition("/")[2] for key in keys}
    count = Counter(files.values())
    return {file: key for key, file in files.items() if count[file] == 1}
