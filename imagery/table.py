"""The places of a CSV file."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from rasterio import Affine
from rasterio.crs import CRS
from rasterio.warp import transform

from datasets.choice import is_image
from datasets.names import scene_key
from imagery.footprints import WGS84, Footprint, reason_against_name, some_of
from utils import InputError

POINT, BOX = ("latitude", "longitude"), ("west", "south", "east", "north")
ALIASES = {"lat": "latitude", "y": "latitude", "lon": "longitude", "lng": "longitude",
           "long": "longitude", "x": "longitude", "id": "name", "image": "name", "file": "name"}
LEAST = 1e-5  # degrees of a box: about a metre


def footprints_of_table(path: Path, metres: float | None, size: int, limit: int | None = None
                        ) -> list[Footprint]:
    """The places of a CSV file: name with lat, lon or with west, south, east, north, in degrees.

    Points become squares in UTM (near a pole in UPS); boxes stay in degrees, and cross the date
    line where west is greater than east.

    Args:
        path: the file; comma, semicolon or tab between columns, whose first line names them.
        metres: side of the square around a point; None where the table has boxes.
        size: pixels of the longer side.
        limit: how many are taken, evenly spaced; None: all.
    Returns:
        footprints sorted by name.
    Raises:
        InputError: columns, numbers or names that cannot be used; the message says the line.
    """
    columns, rows = _read_table(path)
    kind = next((kind for kind in (BOX, POINT) if set(kind) <= set(columns)), None)
    if kind is None or "name" not in columns:
        raise InputError(f"{path} has the columns {', '.join(columns)[:200]}: expected name, lat, "
                         "lon, or name, west, south, east, north, in the first line")
    if kind is POINT and metres is None:
        raise InputError(f"{path} has points: say with --metres how wide each place is, such as "
                         "640 for EuroSAT's")
    if kind is BOX and metres is not None:
        raise InputError(f"{path} has boxes, to which --metres does not apply: leave it out")
    found: dict[str, Footprint] = {}
    for line, fields in rows:
        row = dict(zip(columns, fields, strict=False))
        where = f"{path}, line {line}"
        name = _name(row.get("name", ""), where)
        if name in found:
            raise InputError(f"{where}: the name {name} stands there twice")
        numbers = [_degrees(row.get(word, ""), word, where) for word in kind]
        found[name] = (_square(name, *numbers, metres, size) if kind is POINT else
                       _box(name, *numbers, size, where))
    return some_of([found[name] for name in sorted(found)], limit)


def _read_table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of the columns, and number and fields of each line."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path} is no text in UTF-8: save it as CSV UTF-8") from None
    head = text[:text.find("\n")]
    separator = max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    try:
        rows = [(reader.line_num, [field.strip() for field in row]) for row in reader if any(row)]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num} cannot be read ({error}): expected a "
                         "CSV file of places") from None
    if len(rows) < 2:
        raise InputError(f"{path} holds no place: expected a first line that names the columns "
                         "and a line for each place")
    words = [word.lower() for word in rows[0][1]]
    columns = [ALIASES.get(word, word) for word in words]
    if "name" in words:  # `id` beside it is a column of its own
        columns = [word if ALIASES.get(word) == "name" else column
                   for word, column in zip(words, columns, strict=True)]
    named = [word for word in columns if word]
    if len(set(named)) < len(named):
        raise InputError(f"{path} names a column twice: {', '.join(columns)[:200]}")
    for line, fields in rows[1:]:
        if any(fields[len(columns):]):
            raise InputError(f"{path}, line {line} has {len(fields)} values for {len(columns)} "
                             "columns: put those with a comma in quotes, or ; between columns")
    return columns, rows[1:]


def _name(text: str, where: str) -> str:
    """A name that may become a file below the output folder."""
    name = text.replace("\\", "/")
    name = scene_key(name) if is_image(name) else name
    if reason_against_name(name):
        raise InputError(f"{where}: {text[:80]!r} cannot name an image: expected letters, such as "
                         "Forest/12, no path that leads elsewhere")
    return name


def _degrees(text: str, word: str, where: str) -> float:
    most = 90 if word in ("latitude", "south", "north") else 180
    try:
        value = float(text.replace(",", "."))  # as Excel writes it in half of Europe
    except ValueError:
        value = math.nan
    if "_" in text or not abs(value) <= most:
        raise InputError(f"{where}: the {word} is {text[:40]!r}, expected degrees from -{most} to "
                         f"{most}; a box across the date line goes from 179.9 to -179.9")
    return value


def _square(name: str, latitude: float, longitude: float, metres: float, size: int) -> Footprint:
    zone = min(int((longitude + 180) // 6) + 1, 60)
    code = (32600 if latitude >= 0 else 32700) + zone
    if not -80 <= latitude <= 84:  # where UTM ends
        code = 32661 if latitude > 0 else 32761
    crs = CRS.from_epsg(code)
    (x,), (y,) = transform(WGS84, crs, [longitude], [latitude])
    pixel = metres / size
    return Footprint(name, crs, Affine(pixel, 0, x - metres / 2, 0, -pixel, y + metres / 2), size,
                     size)


def _box(name: str, west: float, south: float, east: float, north: float, size: int, where: str
         ) -> Footprint:
    across = (east - west) % 360
    if not (north - south > LEAST and LEAST < across < 180):
        raise InputError(f"{where}: a box from {west:g} to {east:g} degrees east and from "
                         f"{south:g} to {north:g} north holds no place")
    # Pixels that are square on the ground.
    wide, high = across * math.cos(math.radians((south + north) / 2)), north - south
    scale = size / max(wide, high)
    width, height = max(1, round(wide * scale)), max(1, round(high * scale))
    return Footprint(name, WGS84, Affine(across / width, 0, west, 0, -(north - south) / height,
                                         north), height, width)
