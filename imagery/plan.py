"""What a collection will ask of a service: counted and said before it begins."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imagery.cut import Fixed
from imagery.footprints import Footprint
from imagery.services import Service
from imagery.stac import Search
from imagery.views import OutOfReach, Source, View, blocks_of, view_of
from utils import InputError, progress

MOST_TILES = 10_000  # without --yes
TILE_MB = 0.02  # a JPEG tile of 256 x 256 pixels; 15 to 25 KB are usual
TIFF_SHARE, JPEG_SHARE = 0.75, 0.2  # of the raw size; of images from above, as a rule of thumb


@dataclass
class Plan:
    """images: to collect. tiles: different ones that they need, of a file of bands apart one a
    band; None: only the search will tell.

    beyond: images out of reach. resolution: metres of the source's pixels, finest and coarsest.
    wanted: of the images' pixels.
    """

    images: int
    tiles: int | None
    beyond: int
    resolution: tuple[float, float] | None
    wanted: float | None

    def megabytes(self, tile_size: int) -> float:
        """To fetch."""
        return self.tiles * TILE_MB * (tile_size / 256) ** 2


def plan_of(sources: Fixed | Search, footprints: Sequence[Footprint]) -> Plan:
    """Look at each place, without asking the service.

    Args:
        sources: of several the first one that reaches a place is looked at.
        footprints: places to collect.
    Raises:
        InputError: as view_of.
    """
    if isinstance(sources, Search):
        return Plan(len(footprints), None, 0, None, None)
    tiles: dict[tuple[str, int, int, int], int] = {}  # -> requests
    beyond, resolutions, wanted = 0, [], []
    for footprint in progress(footprints, "plan"):
        try:
            source, view = _first_that_reaches(sources, footprint)
        except OutOfReach:
            beyond += 1
            continue
        if source.remote:
            width = source.level(view.factor).width
            for column, row, _, _ in blocks_of(source, view):
                tiles[source.key, view.factor, column % width, row] = source.requests
        pixel = footprint.metres() / footprint.width
        wanted.append(pixel)
        resolutions.append(pixel / view.scale)
    if not wanted:
        return Plan(0, 0, beyond, None, None)
    return Plan(len(wanted), sum(tiles.values()), beyond, (min(resolutions), max(resolutions)),
                sorted(wanted)[len(wanted) // 2])


def _first_that_reaches(sources: Fixed, footprint: Footprint) -> tuple[Source, View]:
    """The first source that has pixels of a place, or the last one. Raises OutOfReach."""
    found = beyond = None
    for source in sources.sources:
        try:
            found = source, view_of(source, footprint)
        except OutOfReach as error:
            beyond = error
            continue
        if found[1].window[2] and found[1].window[3]:
            break
    if found is None:
        raise beyond
    return found


def disk_megabytes(footprints: Sequence[Footprint], kind: str, band_bytes: int = 3) -> float:
    """What images will take; band_bytes: of a pixel, three bands of 8 bits for one."""
    pixels = sum(footprint.height * footprint.width for footprint in footprints)
    return pixels * band_bytes * (JPEG_SHARE if kind == "jpg" else TIFF_SHARE) / 1e6


def describe(plan: Plan, args: argparse.Namespace, services: Sequence[Service],
             sources: Fixed | Search, waiting: Sequence[Footprint], counts: tuple[int, int]) -> str:
    """What is about to be done, in a few lines.

    Args:
        plan: of `waiting`.
        args: of collect.py.
        services, sources: where images come from.
        waiting: places to collect.
        counts: places in all, and images without a place.
    """
    places, without = counts
    lines = [f"places: {places:,}; done: {places - len(waiting):,}; to collect: {plan.images:,}"
             + (f"; out of reach: {plan.beyond:,}" if plan.beyond else "")
             + (f"; images without a place: {without:,}" if without else "")]
    if not waiting:
        return lines[0]
    if plan.resolution:
        least, most = map(_rounded, plan.resolution)
        pixels = least if least == most else f"{least} to {most}"
        lines.append(f"source: {sources.label}, pixels of {pixels} m, for images of {args.size} "
                     f"pixels of {_rounded(plan.wanted)} m")
        if plan.resolution[0] > 1.5 * plan.wanted:
            lines.append("its pixels are larger than those of the images: a smaller --size loses "
                         "nothing")
    lines += [f"terms: {service.terms}" for service in services]
    first = None if isinstance(sources, Search) else sources.sources[0]
    size = first.bands * np.dtype(first.dtype).itemsize if first else 3
    disk = f"{disk_megabytes(waiting, args.format, size):,.0f} MB of images"
    if first is None:
        lines.append(f"source: {sources.label}; one search for each place, then parts of files; "
                     f"its terms are for you to know; about {disk}")
    elif sources.remote:
        lines.append(f"{plan.tiles:,} different tiles, each counted once; at {args.per_second:g} a "
                     f"second {_duration(plan.tiles / args.per_second)}; about "
                     f"{plan.megabytes(args.tile_size or 256):,.0f} MB to fetch, {disk}")
    else:
        lines.append(f"about {disk}")
    return "\n".join(lines)


def _rounded(metres: float) -> str:
    return f"{metres:.2g}" if metres < 10 else f"{metres:,.0f}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def confirm(plan: Plan, args: argparse.Namespace, services: Sequence[Service]) -> None:
    """Raise InputError where the user should have said --yes."""
    if args.yes or not plan.images:
        return
    asked, what = (plan.images, "searches") if plan.tiles is None else (plan.tiles, "tiles")
    if asked > MOST_TILES:
        raise InputError(f"{asked:,} {what} are more than {MOST_TILES:,}: see that the terms "
                         "allow it, and add --yes")
    if any(service.ask for service in services):
        raise InputError("see that the terms above allow what you do, and add --yes")
