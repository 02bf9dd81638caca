"""The page of an archive: a static folder that searches in the browser, without any server.

    index.html      written last: it names the part that it belongs to
    page-1/         all the rest; a page that is written anew gets page-2, then page-1 goes
        page.css, map.js, page.js
        data.js, codes.js, names.js, places.js      scripts that fill `mrhash`: a page that was
                                                    opened from the disk may load no JSON
        sheet-0.jpg ...                             GRID x GRID thumbnails each
"""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from engine.files import atomic_file, check_writable, writing
from hamming.codes import check_codes
from hamming.names import to_draw
from utils import InputError

SOURCE = Path(__file__).with_name("page")
MOST = 200_000  # items; above it names and places are too much for a telephone
TILE, GRID = 128, 8  # pixels; whole blocks of JPEG (16), so that no tile shines into the next
QUALITY = 80
EMPTY = (28, 30, 33)  # around images that are not square; page.css has the same
MARK = '<meta name="generator" content="MrHash archive page">'
PART = re.compile(r"page-(\d+)")


@dataclass(frozen=True)
class PageItem:
    """What the page tells of an item.

    Args:
        number: of the item in the archive; items at the same distance are ordered by it.
        name: of its image.
        kind: its class, if it has one.
        corners: longitude and latitude of upper left, upper right, lower right and lower left, in
            degrees (WGS84), if its place is known.
    """

    number: int
    name: str
    kind: str | None = None
    corners: tuple[float, ...] | None = None


def write_page(
    folder: Path, title: str, hash_bit: int, codes: np.ndarray, items: Sequence[PageItem],
    thumbnails: Iterable[np.ndarray], basemap: str | None = None,
) -> None:
    """Write the page of an archive; a page that stands there is replaced once the new one is whole.

    Args:
        folder: new, empty, or one that holds such a page; other files in it stay.
        title: heading of the page.
        hash_bit: K.
        codes: packed, uint8 (N, ceil(K/8)).
        items: N, in the order in which the page shows them.
        thumbnails: uint8 (H, W, 3), one an item, in the same order; any size.
        basemap: address of map tiles, such as https://HOST/{z}/{x}/{y}.png, which the page loads
            from there. Without it the page loads nothing from the network.
    Raises:
        InputError: no item or too many, a folder of something else or one that cannot be written,
            a base map of another form.
        ValueError: codes, items and thumbnails that do not go together.
    """
    codes = check_codes(codes, hash_bit, "the codes of the page")
    _check(folder, items, basemap)
    if len({item.number for item in items}) != len(items) or len(codes) != len(items):
        raise ValueError("expected one code an item, and each number once")
    old = [path for path in folder.iterdir() if PART.fullmatch(path.name)]
    last = max((int(PART.fullmatch(path.name)[1]) for path in old), default=0)
    part = folder / f"page-{last + 1}"
    try:
        for name in ("page.css", "map.js", "page.js"):
            _write(part / name, (SOURCE / name).read_bytes())
        scripts = _write_data(part, hash_bit, codes, items, basemap)
        _write_sheets(part, thumbnails, len(items))
        page = Template((SOURCE / "index.html").read_text()).substitute(
            mark=MARK, title=html.escape(to_draw(title)), part=part.name,
            scripts="\n".join(f'<script src="{part.name}/{name}" defer></script>'
                              for name in scripts))
        _write(folder / "index.html", page.encode())
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    for path in old:
        with writing(path):
            shutil.rmtree(path)


def check_count(count: int) -> None:
    """Raise InputError where so many items are too many."""
    if count > MOST:
        raise InputError(f"{count:,} items are too many for one page, which holds {MOST:,}: use "
                         "search.py find --page, which shows answers alone")


def _check(folder: Path, items: Sequence[PageItem], basemap: str | None) -> None:
    """See that there is something to show and a place for it; makes the folder.

    Raises:
        InputError: there is not.
    """
    if not items:
        raise InputError("there is no item to make a page of")
    check_count(len(items))
    if basemap is not None:
        parts = urlsplit(basemap)
        fields = sorted(re.findall(r"{(.*?)}", basemap))
        if parts.scheme not in ("https", "http") or not parts.hostname or fields != list("xyz"):
            raise InputError(f"the base map {basemap} is not an address of tiles, expected one as "
                             "https://HOST/{z}/{x}/{y}.png")
    check_writable(folder, "the folder of the page")
    names = {path.name for path in folder.iterdir()}
    index = folder / "index.html"
    if index.exists():
        ours = MARK in index.read_text(errors="replace")
    else:  # nothing, or what a run left that was killed
        ours = all(PART.fullmatch(name) or name.endswith(".part") for name in names)
    if not ours:
        raise InputError(f"{folder} holds something else than the page of an archive: name a new "
                         "folder")


def _write(path: Path, content: bytes) -> None:
    with atomic_file(path) as file:
        file.write(content)


def _write_data(
    part: Path, hash_bit: int, codes: np.ndarray, items: Sequence[PageItem], basemap: str | None,
) -> list[str]:
    """Write the scripts with all that is known of the items; returns their names."""
    kinds = sorted({to_draw(item.kind) for item in items if item.kind is not None})
    places = {kind: number for number, kind in enumerate(kinds)}
    words = np.pad(codes, [(0, 0), (0, -codes.shape[1] % 4)])  # the page compares 32 bits at once
    files = {
        "data.js": {"hashBit": hash_bit, "grid": GRID, "part": part.name,
                    "basemap": basemap, "kinds": kinds},
        "codes.js": {"codes": _base64(words)},
        "names.js": {"numbers": [int(item.number) for item in items],
                     "names": [to_draw(item.name) for item in items],
                     "kindOf": [-1 if item.kind is None else places[to_draw(item.kind)]
                                for item in items]},
    }
    if any(item.corners is not None for item in items):
        files["places.js"] = {"corners": _base64(_corners(items))}
    for name, content in files.items():
        _write(part / name, f"Object.assign(globalThis.mrhash ??= {{}}, {_script(content)});\n"
               .encode())
    return list(files)


def _script(content: Any) -> str:
    """A value as JavaScript: JSON in ASCII is harmless there, whatever the names are."""
    return json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _base64(values: np.ndarray) -> str:
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return base64.b64encode(np.ascontiguousarray(little)).decode()


def _corners(items: Sequence[PageItem]) -> np.ndarray:
    """Corners, float64 (N, 8), NaN without a place; none is split at 180 degrees.

    The map cuts the globe where most of it is empty: items on both sides of the Pacific lie side by
    side, at longitudes above 180.

    Raises:
        ValueError: other than 8 finite numbers.
    """
    corners = np.full((len(items), 8), np.nan)
    for row, item in enumerate(items):
        if item.corners is not None:
            corners[row] = item.corners
            if not np.isfinite(corners[row]).all():
                raise ValueError(f"{item.name}: expected 8 finite numbers as corners")
    longitudes = corners[:, 0::2]
    first = longitudes[:, :1] % 360
    longitudes[:] = first + (longitudes - longitudes[:, :1] + 180) % 360 - 180
    known = np.sort(first[~np.isnan(first)])
    gaps = np.diff(known, append=known[0] + 360)
    start = known[(gaps.argmax() + 1) % len(known)]  # the first item east of the widest gap
    longitudes += np.where(first < start, 360, 0)
    middle = start + (360 - gaps.max()) / 2
    longitudes -= 360 * np.round(middle / 360)
    return corners


def _write_sheets(part: Path, thumbnails: Iterable[np.ndarray], count: int) -> None:
    """Write sheet-0.jpg and so on.

    Raises:
        ValueError: other than `count` thumbnails.
    """
    seen = 0
    for number, (sheet, held) in enumerate(_sheets(thumbnails)):
        with atomic_file(part / f"sheet-{number}.jpg") as file:
            sheet.save(file, "JPEG", quality=QUALITY, optimize=True)
        seen += held
    if seen != count:
        raise ValueError(f"expected one thumbnail an item, got {seen} for {count}")


def _sheets(thumbnails: Iterable[np.ndarray]) -> Iterator[tuple[Image.Image, int]]:
    """Sheets of thumbnails, row by row from the upper left, and how many each holds."""
    sheet, held = None, 0
    for image in thumbnails:
        if sheet is None:
            sheet = Image.new("RGB", (GRID * TILE, GRID * TILE), EMPTY)
        tile = _tile(image)
        row, column = divmod(held, GRID)
        sheet.paste(tile, (column * TILE + (TILE - tile.width) // 2,
                           row * TILE + (TILE - tile.height) // 2))
        held += 1
        if held == GRID * GRID:
            yield sheet, held
            sheet, held = None, 0
    if sheet is not None:
        yield sheet, held


def _tile(image: np.ndarray) -> Image.Image:
    """An image as large as fits into a tile."""
    whole = Image.fromarray(image)
    factor = TILE / max(whole.size)
    width, height = (max(1, round(side * factor)) for side in whole.size)
    return whole.resize((width, height), Image.Resampling.LANCZOS)
