"""Stage 0: the second satellite's images, by geographic coordinates.

    python collect.py --images data/EuroSAT_MS.zip --service arcgis --output data/EuroSAT_VHR
    python collect.py --table places.csv --metres 640 --output data/vhr \\
        --service 'https://tiles.example/{z}/{x}/{y}.png?key={TILES_KEY}'
    python collect.py --images tiles/ --raster scene_vhr.tif --output data/vhr

For each place an image of exactly the same footprint: coordinate system and corners. It says first
what it will ask of a service, keeps to --per_second, and goes on where it was stopped. docs/data.md
leads from EuroSAT_MS.zip to a trained model.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine import cli
from engine.files import check_writable
from imagery.cut import COVERED, Cut, Fixed, cut_of_first, is_flat
from imagery.fetch import FetchError, Pacer, gdal
from imagery.flags import parse_arguments
from imagery.footprints import Footprint, footprints_of_images, reject_unfit
from imagery.plan import confirm, describe, plan_of
from imagery.rasters import Raster
from imagery.record import (
    BEYOND,
    COLLECTED,
    FAILED,
    NO_PLACE,
    NOTHING,
    Entry,
    Record,
    check_format,
    encoded,
    place_entries,
)
from imagery.services import Service, Tiles, service_of
from imagery.stac import Search
from imagery.table import footprints_of_table
from imagery.views import OutOfReach
from utils import InputError, progress, resolve_path

IN_SUCCESSION = 3  # places that may fail before it stops
AT_FIRST = 10  # places without imagery, and none with it, before it stops
EVERY = 300  # seconds between lines on how far it is, where no bar can be seen
ELSEWHERE = "lower --zoom where it was given, or name another source; --retry tries them again"
# Flags that not every kind of source has a use for.
FOR = {"zoom": ["service"], "tile_size": ["service"], "bands": ["raster", "stac"],
       "collection": ["stac"], "asset": ["stac"], "dates": ["stac"], "cloud_cover": ["stac"]}


def main() -> None:
    args = parse_arguments()
    cache = cli.cache_folder(args)
    with gdal(cache and cache / "tiles"):
        # ------------------------------------------------------------ where, and from what
        footprints, without = places_of(args)
        services = [service_of(name) for name in args.service or ()]
        sources = sources_of(args, services, cache and cache / "tiles")
        record = Record(resolve_path(args.output), settings_of(args, sources), args.retry)
        waiting = [footprint for footprint in footprints if not record.done(footprint)]
        names = [*(footprint.name for footprint in footprints), *without]
        # ------------------------------------------------------------ plan
        plan = plan_of(sources, waiting)
        print(describe(plan, args, services, sources, waiting, (len(footprints), len(without))))
        if args.dry_run:
            return
        confirm(plan, args, services)
        # ------------------------------------------------------------ collect
        check_writable(record.folder, "--output")
        if cache and sources.remote:
            check_writable(cache, "--cache_dir")
        with record.open():
            for name, reason in without.items():
                if name not in record.entries:
                    record.add(Entry(name, NO_PLACE, note=reason))
            try:
                collect(record, sources, waiting, args)
            except KeyboardInterrupt:
                print("stopped; the same command goes on with the rest", flush=True)
                raise
    print("\n".join(record.summary(names)))
    reject_lacking(record, names)


def collect(record: Record, sources: Fixed | Search, footprints: Sequence[Footprint],
            args: argparse.Namespace) -> None:
    """Image after image; what a service has not is noted and left out.

    Raises:
        InputError: a service that fails for several places in succession, or has nothing at all.
    """
    failures, counts, told = 0, Counter(), time.monotonic()
    counts[COLLECTED] = sum(entry.status == COLLECTED for entry in record.entries.values())
    bar = progress(footprints, "collect")
    for footprint in bar:
        entry, image = one_place(sources, footprint, args)
        record.add(entry, image)
        counts[entry.status] += 1
        said = ", ".join(f"{count:,} {status}" for status, count in counts.items())
        bar.set_postfix_str(said, refresh=False)
        if bar.disable and time.monotonic() > told + EVERY:
            told = time.monotonic()
            print(said, flush=True)
        failures = failures + 1 if entry.status == FAILED else 0
        if failures == IN_SUCCESSION:
            raise InputError(f"{sources.label} failed for {failures} places in succession, the "
                             f"last time with: {entry.note}; see that the service is there, and "
                             "start the same command again")
        if counts[NOTHING] == AT_FIRST and not counts[COLLECTED]:
            raise InputError(f"{sources.label} has no imagery of the first {AT_FIRST} places, such "
                             f"as {entry.name} ({entry.note}): {ELSEWHERE}")


def reject_lacking(record: Record, names: Sequence[str]) -> None:
    """Raise InputError where images failed, or none at all is there."""
    statuses = Counter(record.entries[name].status for name in names)
    if statuses[FAILED]:
        raise InputError(f"{statuses[FAILED]:,} images could not be fetched: the same command "
                         "tries them again")
    if not statuses[COLLECTED]:
        raise InputError(f"not one image was collected: {ELSEWHERE}")


def one_place(sources: Fixed | Search, footprint: Footprint, args: argparse.Namespace
              ) -> tuple[Entry, bytes | None]:
    """What becomes of a place: its line, and the image where there is one."""
    place = place_entries(footprint) | {"source": sources.label,
                                        "day": datetime.date.today().isoformat()}
    try:
        found = cut_of_first(sources.at(footprint), footprint, args.resampling)
    except OutOfReach as error:
        return Entry(status=BEYOND, note=str(error), **place), None
    except FetchError as error:
        return Entry(status=FAILED, note=str(error), **place), None
    if found is None:
        return Entry(status=NOTHING, note="the catalogue has none", **place), None
    resolution = footprint.metres() / footprint.width / found.view.scale
    place |= {"source": found.source.label, "zoom": found.source.zoom(found.view.factor),
              "resolution": f"{resolution:.3g}", "date": found.source.date,
              "covered": f"{found.covered:.3f}"}
    missing = reason_against(found, args.resampling)
    if missing:
        return Entry(status=NOTHING, note=missing, **place), None
    image = encoded(found.pixels, footprint, args.format)
    return Entry(status=COLLECTED, file=f"{footprint.name}.{args.format}", bytes=str(len(image)),
                 **place), image


def reason_against(found: Cut, resampling: str) -> str:
    """Why an image is left out; empty: it is not. Of classes one may well be everywhere."""
    if found.covered < COVERED:
        return f"{int(100 * found.covered)}% of it is covered"
    flat = resampling != "nearest" and is_flat(found.pixels)
    return "nearly all of one colour" if flat else ""


# ---------------------------------------------------------------- where, and from what


def places_of(args: argparse.Namespace) -> tuple[list[Footprint], dict[str, str]]:
    """Footprints, and the names of images without a place, with the reason.

    Raises:
        InputError: no places, or flags that do not go together.
    """
    if args.table:
        if args.include or args.exclude:
            raise InputError("--include and --exclude choose among --images: leave them out")
        path, without = resolve_path(args.table), {}
        footprints = footprints_of_table(path, args.metres, args.size, args.limit)
    else:
        if args.metres is not None:
            raise InputError("--metres is for --table: images say themselves how wide they are")
        path, output = resolve_path(args.images), resolve_path(args.output)
        if path.resolve() in (output.resolve(), *output.resolve().parents):
            raise InputError(f"--output {output} lies within --images, which would take what is "
                             "collected for places: name a folder beside it")
        footprints, without = footprints_of_images(path, args.size, args.include or (),
                                                   args.exclude or (), args.limit)
    reject_unfit(footprints, without, path)
    return footprints, without


def sources_of(args: argparse.Namespace, services: Sequence[Service], tiles: Path | None
               ) -> Fixed | Search:
    """Tiles of services, rasters, or a catalogue.

    Raises:
        InputError: as these, or flags that are for another kind.
    """
    pacer = Pacer(args.per_second)
    pacer.signals.install()
    for flag, kinds in FOR.items():
        if getattr(args, flag) is not None and not any(getattr(args, kind) for kind in kinds):
            raise InputError(f"--{flag} is for --{' and --'.join(kinds)}: leave it out")
    if args.stac:
        if args.collection is None:
            raise InputError("--stac needs --collection, such as sentinel-2-c1-l2a")
        return Search(args.stac, args.collection, args.asset or "visual", args.dates,
                      args.cloud_cover, args.bands, pacer)
    if services:
        return Fixed([Tiles(service, args.zoom, args.tile_size or 256, tiles, pacer)
                      for service in services])
    rasters = [Raster(place, args.bands, pacer) for place in args.raster]
    check_format(args.format, rasters[0].bands, rasters[0].dtype)
    return Fixed(rasters)


def settings_of(args: argparse.Namespace, sources: Fixed | Search) -> dict[str, Any]:
    """What decides how collected images look. No address is kept: it may hold a key."""
    kind = next(kind for kind in ("service", "raster", "stac") if getattr(args, kind))
    return {kind: sources.key, "tile_size": args.tile_size or 256,
            **{name: getattr(args, name) for name in
               ("size", "format", "zoom", "resampling", "bands")}}


if __name__ == "__main__":
    sys.exit(cli.run(main))
