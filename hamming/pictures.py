"""Pictures of a ranking: each query with its nearest images, right ones framed green, wrong ones red."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from datasets.sources import ImageSource
from engine.files import atomic_file

RIGHT, WRONG, NEUTRAL = (40, 160, 70), (200, 50, 45), (70, 70, 70)
TILE, FRAME, GAP = 96, 5, 6


def _tile(pixels: np.ndarray, colour: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    tile = Image.new("RGB", (TILE + 2 * FRAME, TILE + 2 * FRAME), colour)
    tile.paste(image.resize((TILE, TILE), Image.Resampling.BICUBIC), (FRAME, FRAME))
    return tile


def neighbour_picture(source: ImageSource, queries: np.ndarray, neighbours: np.ndarray,
                      relevant: np.ndarray | None, captions: list[str], path: Path) -> None:
    """Write a PNG with one row per query: the query (grey frame), then its neighbours, nearest first.

    Args:
        source: where the images are read. queries: (Q,) rows of the source. neighbours: (Q, k) rows of it.
        relevant: bool (Q, k), or None without labels (all frames grey). captions: one line per query.
        path: the PNG file.
    """
    size = TILE + 2 * FRAME
    line = 14
    width = (neighbours.shape[1] + 1) * (size + GAP) + 3 * GAP
    picture = Image.new("RGB", (width, len(queries) * (size + GAP + line) + GAP), "white")
    draw = ImageDraw.Draw(picture)
    for row, query in enumerate(queries):
        top = GAP + row * (size + GAP + line)
        draw.text((GAP, top), captions[row], fill="black")
        picture.paste(_tile(source.read(int(query)), NEUTRAL), (GAP, top + line))
        for place, neighbour in enumerate(neighbours[row]):
            colour = NEUTRAL if relevant is None else RIGHT if relevant[row, place] else WRONG
            left = 3 * GAP + (place + 1) * (size + GAP)
            picture.paste(_tile(source.read(int(neighbour)), colour), (left, top + line))
    with atomic_file(path) as file:
        picture.save(file, format="PNG")
