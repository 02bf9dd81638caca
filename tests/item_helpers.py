"""Archives of codes that are drawn, without any image behind them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from archive.folder import Archive
from archive.items import Item
from archive.reading import Reading


@dataclass
class DrawnModel:
    """What an archive asks of a model."""

    path: Path
    hash_bit: int
    digest: str = "drawn"


def drawn_items(count, corners=None, kinds=None, first=0):
    """Items called n0, n1 and so on; corners and kinds: one an item, or None."""
    items = []
    for number in range(first, first + count):
        place = None if corners is None else corners[number - first]
        kind = None if kinds is None else kinds[number - first]
        items.append(Item(f"n{number}", number.to_bytes(16, "big"), Path("/gone"), Reading().text,
                          f"n{number}.png", None, 8, 8, kind, place and "EPSG:4326", place))
    return items


def drawn_archive(folder, bits, removed=(), outputs=None, corners=None, kinds=None):
    """An open archive of codes.

    Args:
        folder: a new one.
        bits: bool (N, K).
        removed: numbers of items that are taken out again.
        outputs: float (N, K), which are kept then.
        corners, kinds: as in `drawn_items`.
    """
    folder.mkdir(parents=True)
    model = DrawnModel(folder.parent / f"{folder.name}.pth", bits.shape[1])
    model.path.write_bytes(b"")
    archive = Archive.create(folder, model, outputs is not None)
    with archive.writing():
        if len(bits):
            archive.append(drawn_items(len(bits), corners, kinds), np.packbits(bits, axis=1),
                           outputs)
        if len(removed):
            archive.remove([int(number) for number in removed])
    return archive


def square(latitude, longitude, half=0.05):
    """Corners around a place, degrees."""
    west, east = ((longitude + side + 180) % 360 - 180 for side in (-half, half))
    return (west, latitude + half, east, latitude + half, east, latitude - half, west,
            latitude - half)
