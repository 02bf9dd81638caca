"""Answers as text, CSV, GeoJSON and a picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from archive.images import SEPARATOR
from archive.items import Item, printable
from archive.originals import Originals
from archive.queries import Answer
from engine.files import atomic_file
from hamming.names import to_draw
from hamming.pictures import neighbour_picture
from imagery.places import centre_of, geometry_of

COLUMNS = ("query", "rank", "distance", "cosine", "number", "name", "class", "latitude",
           "longitude", "file")


def place_text(item: Item) -> str:
    """The centre of an item, or nothing."""
    if item.corners is None:
        return ""
    latitude, longitude = centre_of(item.corners)
    return f"{latitude:.5f}, {longitude:.5f}"


def file_of(item: Item) -> str:
    """Where an item's image lies, with the place in it."""
    file = str(item.path / item.member.replace(SEPARATOR, "|")) if item.member else str(item.path)
    file = printable(file)
    if item.window is None:
        return file
    column, row, width, height = item.window
    return f"{file}[column {column}, row {row}, {width} x {height}]"


def table(answer: Answer, hash_bit: int) -> str:
    """The answer to a query, one line an item."""
    if not answer.among:
        return f"{to_draw(answer.query.name)}: no other item lies within reach"
    lines = [f"{to_draw(answer.query.name)}: {len(answer.items):,} of {answer.among:,} items, by "
             f"{hash_bit} bits" + (" and the cosine of the outputs" if answer.cosines is not None
                                   else "")]
    names = [to_draw(item.name) for item in answer.items]  # all of a name on one line
    width = max(map(len, names), default=0)
    for place, item in enumerate(answer.items):
        cosine = "" if answer.cosines is None else f"  {answer.cosines[place]:6.3f}"
        lines.append(f"{answer.distances[place]:6}{cosine}  {names[place]:{width}}  "
                     f"{place_text(item)}".rstrip())
    remark = answer.remark()
    return "\n".join(lines + ([f"  ({remark})"] if remark else []))


def _records(answer: Answer) -> Iterable[dict[str, Any]]:
    for place, item in enumerate(answer.items):
        latitude, longitude = centre_of(item.corners) if item.corners else (None, None)
        cosine = None if answer.cosines is None else round(float(answer.cosines[place]), 6)
        yield {"query": answer.query.name, "rank": place + 1,
               "distance": int(answer.distances[place]), "cosine": cosine,
               "number": int(answer.numbers[place]), "name": item.name, "class": item.kind,
               "latitude": latitude, "longitude": longitude, "file": file_of(item)}


def write_csv(answers: Sequence[Answer], path: Path) -> None:
    """One line an item; COLUMNS says which columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for answer in answers:
        writer.writerows(_records(answer))
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())


def write_geojson(features: Iterable[tuple[Item, dict[str, Any]]], path: Path) -> None:
    """Footprints (RFC 7946, WGS84) with their properties; items without a place have none."""
    with atomic_file(path) as file:
        file.write(b'{"type": "FeatureCollection", "features": [')
        for number, (item, properties) in enumerate(features):
            feature = {"type": "Feature", "geometry": geometry_of(item.corners),
                       "properties": properties}
            line = json.dumps(feature, ensure_ascii=True)
            file.write(f"{',' * (number > 0)}\n{line}".encode())
        file.write(b"\n]}\n")


def answer_features(answers: Sequence[Answer]) -> Iterable[tuple[Item, dict[str, Any]]]:
    """The items found, with the columns of the CSV."""
    for answer in answers:
        yield from zip(answer.items, _records(answer), strict=True)


def draw_answers(answers: Sequence[Answer], items: dict[int, Item], hash_bit: int, path: Path
                 ) -> str:
    """A picture: a row a query, its name and those of the items below their images.

    Args:
        answers: in the order of the rows.
        items: the queries that are items of the archive, by number.
        hash_bit: K.
        path: of the PNG.
    Returns:
        characters that no font here has.
    """
    originals = Originals()
    queries = [answer.query.pixels if answer.query.pixels is not None
               else originals.read(items[answer.query.number]) for answer in answers]
    nearest = [[originals.read(item) for item in answer.items] for answer in answers]
    captions = [f"{answer.query.name}   distances: "
                f"{', '.join(map(str, answer.distances.tolist()))} of {hash_bit} bits"
                for answer in answers]
    names = [[answer.query.name, *(item.name for item in answer.items)] for answer in answers]
    with atomic_file(path) as file:
        return neighbour_picture(queries, nearest, None, captions, file, names)


def all_features(items: Iterable[tuple[int, Item]]) -> Iterable[tuple[Item, dict[str, Any]]]:
    """Every item of an archive."""
    for number, item in items:
        yield item, {"number": number, "name": item.name, "class": item.kind,
                     "file": file_of(item), "crs": item.crs, "height": item.height,
                     "width": item.width}
