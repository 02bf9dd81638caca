"""What page.py writes: a whole archive, or some answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from archive.export import live_codes
from archive.folder import Archive
from archive.originals import Originals
from archive.page import MOST, PageItem, write_page
from archive.queries import Answer
from utils import InputError, progress


def write_archive_page(archive: Archive, folder: Path, basemap: str | None) -> None:
    """All items. Raises InputError: none, too many, or an image that is not there any more."""
    with archive.reading():
        archive.check_filled()
        numbers, codes = live_codes(archive)
        if len(numbers) > MOST:
            raise InputError(f"{archive.folder} has {len(numbers):,} items, more than the "
                             f"{MOST:,} that a page can hold: use search.py find --page, which "
                             "shows answers alone")
        found, originals = list(archive.items.all()), Originals()
    items = [PageItem(number, item.name, item.kind, item.corners) for number, item in found]
    images = (originals.read(item) for _, item in progress(found, "drawing", len(found)))
    write_page(folder, archive.folder.name, archive.hash_bit, codes, items, images, basemap)


def write_answers_page(archive: Archive, answers: Sequence[Answer], folder: Path) -> None:
    """Queries and what was found; files that were asked for have numbers below 0."""
    numbers = {int(number) for answer in answers for number in answer.numbers}
    numbers |= {answer.query.number for answer in answers if answer.query.number is not None}
    found = sorted(archive.items.of_numbers(sorted(numbers)).items())
    files = [answer.query for answer in answers if answer.query.number is None]
    items = [PageItem(place - len(files), query.name, "query", query.corners)
             for place, query in enumerate(files)]
    items += [PageItem(number, item.name, item.kind, item.corners) for number, item in found]
    codes = np.stack([*(query.code for query in files),
                      *(archive.codes[number] for number, _ in found)])

    def images() -> Iterator[np.ndarray]:
        originals = Originals()
        yield from (query.pixels for query in files)
        yield from (originals.read(item) for _, item in found)

    write_page(folder, f"{archive.folder.name}: answers", archive.hash_bit, codes, items, images())
