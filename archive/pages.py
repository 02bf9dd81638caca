"""What page.py writes: a whole archive, or some answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from archive.export import live_codes
from archive.folder import Archive
from archive.originals import Originals
from archive.page import PageItem, check_count, write_page
from archive.queries import Answer
from utils import progress


def write_archive_page(archive: Archive, folder: Path, basemap: str | None) -> None:
    """All items. Raises InputError: none, too many, or an image that is not there any more."""
    with archive.reading():
        archive.check_filled()
        numbers, codes = live_codes(archive)
        check_count(len(numbers))  # before all of them are read
        found, originals = list(archive.items.all()), Originals()
    items = [PageItem(number, item.name, item.kind, item.corners) for number, item in found]
    images = (_in_colours(originals.read(item))
              for _, item in progress(found, "drawing", len(found)))
    write_page(folder, archive.folder.name, archive.hash_bit, codes, items, images, basemap)


def write_answers_page(archive: Archive, answers: Sequence[Answer], folder: Path) -> int:
    """Queries and what was found; returns the number of the first query.

    Files that were asked for have numbers below 0; the page does not take them for answers.
    """
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
        yield from (_in_colours(query.pixels) for query in files)
        yield from (_in_colours(originals.read(item)) for _, item in found)

    write_page(folder, f"{archive.folder.name}: answers", archive.hash_bit, codes, items, images())
    return items[0].number if files else answers[0].query.number


def _in_colours(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 1 or 3) -> (H, W, 3)."""
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
