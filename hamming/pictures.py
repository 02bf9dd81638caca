"""Pictures of a ranking: queries with their nearest images, right ones framed green, wrong red."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .fonts import file_for
from .names import to_draw
from .ranking import nearest

RIGHT, WRONG, NEUTRAL = (40, 160, 70), (200, 50, 45), (70, 70, 70)
TILE, FRAME, GAP, LINE = 96, 5, 6, 14  # pixels; LINE is the height of a caption
LONGEST = 90  # characters of a name


@dataclass(frozen=True)
class Neighbours:
    """What a picture of a ranking shows.

    Args:
        queries: int64 (q,), rows of the queries.
        nearest: int64 (q, k), rows of the database, nearest first.
        distances: int32 (q, k).
        relevant: bool (q, k), or None without labels.
        hash_bit: K.
    """

    queries: np.ndarray
    nearest: np.ndarray
    distances: np.ndarray
    relevant: np.ndarray | None
    hash_bit: int

    def captions(self, names: Sequence[str]) -> list[str]:
        """A line for each query: its name, of the names (Q,) of all, and the distances."""
        lines = []
        for query, row in zip(self.queries, self.distances.tolist(), strict=True):
            distances = f"distances: {', '.join(map(str, row))} of {self.hash_bit} bits"
            lines.append(f"{to_draw(names[query], LONGEST)}   {distances}")
        return lines


def some_neighbours(content: dict[str, Any], rows: int = 6, k: int = 10) -> Neighbours:
    """Queries spread over the list (so over the classes) with their nearest items.

    Args:
        content: as `read_codes` gives it; labels may be missing.
        rows: how many queries, if there are as many.
        k: how many neighbours each, if there are as many.
    """
    query, database, bits = (content[name] for name in (
        "query_codes", "database_codes", "hash_bit"))
    queries = np.linspace(0, len(query) - 1, min(rows, len(query))).round().astype(int)
    found, distances = nearest(query[queries], database, bits, min(k, len(database)))
    relevant = None
    if "query_labels" in content:
        own = content["query_labels"][queries][:, None]
        theirs = content["database_labels"][found]
        relevant = theirs == own if own.ndim == 2 else ((theirs > 0) & (own > 0)).any(axis=2)
    return Neighbours(queries, found, distances, relevant, bits)


def neighbour_picture(
    queries: Sequence[np.ndarray], neighbours: Sequence[Sequence[np.ndarray]],
    relevant: np.ndarray | None, captions: Sequence[str], file: BinaryIO | Path,
    names: Sequence[Sequence[str]] | None = None,
) -> str:
    """Write a PNG with one row a query: the query (grey frame), then its neighbours.

    Args:
        queries: an image each, uint8 (H, W, 1 or 3), of any size.
        neighbours: up to k images for each query, nearest first.
        relevant: bool (q, k), or None without labels (all frames grey).
        captions: one line for each query.
        file: the PNG.
        names: what stands under the query and its k neighbours, of each query; the end of what is
            too long. None: nothing.
    Returns:
        the characters of captions and names that are drawn as boxes, for want of a font.
    """
    size = TILE + 2 * FRAME
    width = (max(map(len, neighbours)) + 1) * (size + GAP) + 3 * GAP
    height = size + GAP + LINE * (1 if names is None else 2)
    picture = Image.new("RGB", (width, len(queries) * height + GAP), "white")
    draw = ImageDraw.Draw(picture)
    captions = [to_draw(caption) for caption in captions]
    names = [[to_draw(name) for name in row] for row in names or []]
    font, missing = _font_for("".join([*captions, *(name for row in names for name in row)]))
    for row, query in enumerate(queries):
        top = GAP + row * height
        draw.text((GAP, top), captions[row], fill="black", font=font)
        picture.paste(_tile(query, NEUTRAL), (GAP, top + LINE))
        for place, neighbour in enumerate(neighbours[row]):
            colour = NEUTRAL
            if relevant is not None:
                colour = RIGHT if relevant[row, place] else WRONG
            left = 3 * GAP + (place + 1) * (size + GAP)
            picture.paste(_tile(neighbour, colour), (left, top + LINE))
        for place, name in enumerate(names[row] if names else ()):
            left = GAP if place == 0 else 3 * GAP + place * (size + GAP)
            draw.text((left, top + LINE + size), _end_of(name, size, draw, font), fill="black",
                      font=font)
    picture.save(file, format="PNG")
    return missing


def _end_of(name: str, width: int, draw: ImageDraw.ImageDraw, font: Any) -> str:
    """A name, or as much of its end as is so many pixels wide: there the number stands."""
    if draw.textlength(name, font) <= width:
        return name
    while name and draw.textlength(f"..{name}", font) > width:
        name = name[1:]
    return f"..{name}"


def _font_for(text: str) -> tuple[ImageFont.ImageFont | ImageFont.FreeTypeFont, str]:
    """A font for a text, and the characters that it lacks."""
    beyond = "".join(letter for letter in dict.fromkeys(text) if not letter.isascii())
    if not beyond:
        return ImageFont.load_default(), ""  # Pillow's own, which has not even umlauts
    try:
        path, missing = file_for(text)
    except ImportError:  # matplotlib finds fonts
        return ImageFont.load_default(), beyond
    return ImageFont.truetype(path, 10), missing


def _tile(pixels: np.ndarray, colour: tuple[int, int, int]) -> Image.Image:
    """An image in a frame of this colour."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    tile = Image.new("RGB", (TILE + 2 * FRAME, TILE + 2 * FRAME), colour)
    tile.paste(image.resize((TILE, TILE), Image.Resampling.BICUBIC), (FRAME, FRAME))
    return tile
