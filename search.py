"""Stage 4: hash any images, and find what is like one.

    python search.py add  --archive archives/city --pretrain_path runs/.../mrhash.pth --images DIR
    python search.py add  --archive archives/city --images SCENE.tif --tile 64
    python search.py find --archive archives/city --query a.png --top 20 --picture answers.png
    python search.py find --archive archives/city --at 48.14,11.58 --within_km 50 --geojson F
    python search.py page --archive archives/city --output runs/page

An archive is a folder that holds the codes, what is known of each image, and the model. Images stay
where they are. docs/search.md says more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from archive import flags
from archive.adding import add_images, check_all_added
from archive.answers import (
    all_features,
    answer_features,
    draw_answers,
    table,
    write_csv,
    write_geojson,
)
from archive.export import live_codes, write_faiss, write_npz
from archive.folder import ITEMS, MODEL, Archive
from archive.images import ImagesOf, Pictures
from archive.model import HashModel
from archive.outputs import check_outputs, refuse_idle, spare_images
from archive.pages import write_answers_page, write_archive_page
from archive.queries import (
    Answer,
    Query,
    answers_to,
    no_item_called,
    queries_of_files,
    queries_of_names,
    query_at,
)
from archive.reading import Reading
from archive.tiles import scenes_in
from engine import cli
from engine.cli import ArgumentParser
from engine.distributed import first_rank_first
from hamming import constant_bits
from utils import InputError, collapse_warning, resolve_path, warn, warn_of_boxes, world_size


def main() -> None:
    args = parse_arguments()
    if world_size() > 1 and args.action is not add:
        raise InputError("of the commands of search.py only add shares its work: start this one "
                         "without torchrun")
    args.action(args)


# ---------------------------------------------------------------- add


def add(args: argparse.Namespace) -> None:
    """Hash images and keep their codes: every rank of torchrun hashes, the first one writes."""
    if args.tile is None:
        refuse_idle(args, ["stride"], "tile")
    elif args.stride is not None and args.stride > args.tile:
        raise InputError(f"--stride {args.stride} is larger than --tile {args.tile}, which would "
                         "leave gaps between tiles: lower it")
    compute = cli.setup(args)
    folder = resolve_path(args.archive)
    begun = (folder / ITEMS).exists()
    if not begun and args.pretrain_path is None:
        raise InputError(f"{folder} is no archive yet: say with --pretrain_path which model is to "
                         "hash its images")
    path = folder / MODEL if args.pretrain_path is None else resolve_path(args.pretrain_path)
    model = HashModel(path, compute)
    sources = sources_of(args, model)
    with first_rank_first():
        archive = Archive(folder) if (folder / ITEMS).exists() else Archive.create(
            folder, model, args.keep_outputs)
    with archive:
        archive.check_model(model)
        if args.keep_outputs and not archive.keeps_outputs:
            raise InputError(f"{folder} was begun without --keep_outputs, so that those of its "
                             "images are lost: leave it out, or begin another archive")
        with archive.writing():
            report = add_images(archive, model, sources)
        print(f"{report.lines()}\n{folder} has {len(archive):,}")
        check_all_added(report, sum(map(len, sources)))


def reading_of(args: argparse.Namespace, model: HashModel) -> Reading:
    """How images are read: as those of the archive, but for what flags say."""
    if args.plain:
        reading = Reading()
    else:
        reading = model.reading if args.as_trained else usual_reading(args, model)
    if args.bands is None and args.range is None:
        return reading
    if reading.sensor is not None:
        raise InputError("--bands and --range are for images that are read as they are, and this "
                         f"model's are read {reading.describe()}: add --plain, or leave them out")
    return Reading(reading.bands if args.bands is None else args.bands,
                   reading.value_range if args.range is None else args.range)


def usual_reading(args: argparse.Namespace, model: HashModel) -> Reading:
    """That of all images of the archive; where they differ, or there are none, the training's."""
    folder = resolve_path(args.archive)
    if not (folder / ITEMS).exists():
        return model.reading
    with Archive(folder) as archive:
        archive.check_model(model)
        readings = archive.items.readings()
    return readings[0] if len(readings) == 1 else model.reading


def sources_of(args: argparse.Namespace, model: HashModel) -> list[Pictures]:
    """What --images names. Raises InputError: what is not there, or cannot be read so."""
    reading, sources = reading_of(args, model), []
    for place in map(resolve_path, args.images):
        if not place.exists():
            raise InputError(f"--images {place} does not exist: name a folder, a zip or an image")
        sources += ([ImagesOf(place, reading)] if args.tile is None else
                    scenes_in(place, reading, args.tile, args.stride or args.tile))
    if "%" in (reading.value_range or "") and len(sources) > 1:
        raise InputError(f"--range {args.range} would be drawn from each of {len(sources):,} "
                         "places by itself, and their brightness could not be compared: give "
                         "values, as in --range 0,3000")
    print(f"{sum(map(len, sources)):,} images, read {reading.describe()}")
    usual = usual_reading(args, model)
    if sources and sources[0].reading != usual:
        warn(f"the images of the archive, or of the training, are read {usual.describe()}: codes "
             "of images that are read otherwise may not fit them")
    return sources


# ---------------------------------------------------------------- find


def find(args: argparse.Namespace) -> None:
    """Print what is nearest to each query, and write what is asked for."""
    if not args.query:
        refuse_idle(args, ["bands", "range", "plain", "as_trained", "amp", "compile"], "query")
    if args.within_km is None:
        refuse_idle(args, ["around"], "within_km")
    outputs = check_outputs(args, ["csv", "geojson", "picture"])
    if args.page is not None and (args.rerank or args.within_km is not None):
        raise InputError("--page shows what is nearest of all by distance: leave out --rerank and "
                         "--within_km, or --page")
    with Archive(resolve_path(args.archive)) as archive:
        archive.check_filled()
        spare_images(archive.items, outputs)
        queries = hashed(args, archive) if args.query else []
        with archive.reading():
            if args.name:
                queries = queries_of_names(archive, args.name)
            elif args.at:
                queries = [query_at(archive, *args.at)]
            within = None if args.within_km is None else (args.within_km, args.around)
            answers = list(answers_to(archive, queries, args.top, within, args.rerank))
            write_answers(args, archive, answers, outputs)


def hashed(args: argparse.Namespace, archive: Archive) -> list[Query]:
    """The files that are searched for."""
    model = HashModel(archive.folder / MODEL, cli.setup(args))
    archive.check_model(model)
    if "%" in (args.range or ""):
        raise InputError(f"--range {args.range} would be drawn from the queries alone: give the "
                         "values, or leave it out to read them as the archive's images")
    reading = reading_of(args, model)
    if reading != model.reading or len(archive.items.readings()) > 1:
        print(f"queries are read {reading.describe()}")
    return queries_of_files([resolve_path(path) for path in args.query], model, reading)


def write_answers(args: argparse.Namespace, archive: Archive, answers: list[Answer],
                  outputs: dict[str, Path]) -> None:
    """As a table on stdout, and as flags say."""
    print("\n\n".join(table(answer, archive.hash_bit) for answer in answers))
    if "csv" in outputs:
        write_csv(answers, outputs["csv"])
    if "geojson" in outputs:
        write_geojson(answer_features(answers), outputs["geojson"])
    if "picture" in outputs:
        numbers = [answer.query.number for answer in answers if answer.query.number is not None]
        warn_of_boxes(draw_answers(answers, archive.items.of_numbers(numbers), archive.hash_bit,
                                   outputs["picture"]))
    for path in outputs.values():
        print(f"wrote {path}")
    if args.page is not None:
        first = write_answers_page(archive, answers, resolve_path(args.page))
        print(f"open {resolve_path(args.page) / 'index.html'} in a browser; the first query is at "
              f"index.html#item={first}&top={args.top}")


# ---------------------------------------------------------------- page, export, info, remove


def page(args: argparse.Namespace) -> None:
    """The whole archive as a folder for a browser."""
    folder = resolve_path(args.output)
    with Archive(resolve_path(args.archive)) as archive:
        if archive.folder.resolve() in (folder.resolve(), *folder.resolve().parents):
            raise InputError(f"--output {folder} lies in the archive: write the page elsewhere")
        write_archive_page(archive, folder, args.basemap)
    print(f"open {folder / 'index.html'} in a browser")


def export(args: argparse.Namespace) -> None:
    """Write an archive for other programs: faiss, test.py, QGIS."""
    if args.faiss is None:
        refuse_idle(args, ["kind"], "faiss")
    outputs = check_outputs(args, ["faiss", "npz", "geojson"])
    if not outputs:
        raise InputError("say with --faiss, --npz or --geojson what is to be written")
    with Archive(resolve_path(args.archive)) as archive, archive.reading():
        archive.check_filled()
        spare_images(archive.items, outputs)
        if "faiss" in outputs:
            write_faiss(archive, outputs["faiss"], args.kind or "flat")
        if "npz" in outputs and not write_npz(archive, outputs["npz"]):
            warn("not each item has a class folder, so the .npz has no labels, and test.py has "
                 "nothing to measure")
        if "geojson" in outputs:
            write_geojson(all_features(archive.items.all()), outputs["geojson"])
    for path in outputs.values():
        print(f"wrote {path}")


def info(args: argparse.Namespace) -> None:
    """Say what is in an archive, and whether its files are whole."""
    with Archive(resolve_path(args.archive)) as archive, archive.reading():
        counts = archive.items.counts()
        print(f"{archive.folder}: {counts['items']:,} items, {archive.hash_bit} bits each; "
              f"{counts['places']:,} with a place, {counts['labelled']:,} in "
              f"{counts['classes']:,} class folders")
        codes = live_codes(archive)[1]  # compared with their checksum
        kept = " and the real-valued outputs" if archive.outputs is not None else ""
        ways = [reading.describe() for reading in archive.items.readings()]
        read = f"; images are read {' or '.join(ways)}" if ways else ""
        print(f"the codes{kept} of all items are there{read}")
        for path, count in counts["origins"].items():
            print(f"  {count:,} from {path}{'' if Path(path).exists() else ' (not there now)'}")
        constant = constant_bits(codes, archive.hash_bit) if len(codes) else 0
        if constant:
            warn(collapse_warning(constant, archive.hash_bit))


def remove(args: argparse.Namespace) -> None:
    """Take items out of an archive; their images stay where they are."""
    with Archive(resolve_path(args.archive)) as archive, archive.writing():
        numbers = sorted({number for name in args.name for number in named(archive, name)})
        archive.remove(numbers)
        print(f"removed {len(numbers):,} items; {archive.folder} has {len(archive):,}")


def named(archive: Archive, name: str) -> list[int]:
    """Numbers of the items of a name, or of all that a glob fits. Raises InputError: none."""
    found = archive.items.fitting(name)
    if not found:
        raise no_item_called(archive, name)
    return found


# ---------------------------------------------------------------- flags


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(prog="search.py", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="add|find|page|export|info|remove")
    for action, add_flags in ((add, flags.of_add), (find, flags.of_find),
                              (page, flags.of_page), (export, flags.of_export),
                              (info, None), (remove, flags.of_remove)):
        description = action.__doc__.splitlines()[0]
        command = commands.add_parser(action.__name__, description=description, help=description)
        command.add_argument("--archive", required=True, help="its folder")
        if add_flags:
            add_flags(command)
        command.set_defaults(action=action)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(cli.run(main, shared=True))
