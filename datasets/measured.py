"""What is stored in the bands of an image: numbers, and where they say nothing (nodata)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Band:
    """One band of a file.

    page: from 0. index: within its page, from 1. colour: what the file says it is for (gray, red,
    palette, alpha, undefined ..). name: its description, or empty. dtype: numpy's name of it.
    """

    page: int
    index: int
    colour: str
    name: str
    dtype: str


@dataclass(frozen=True)
class Numbers:
    """What is stored in the chosen bands of an image.

    values: (bands, H, W). valid: bool of the same shape, False for nodata, NaN and infinities; None
    where all are valid. depth: bits that are used of uint8. inverted: 0 is white.
    """

    values: np.ndarray
    valid: np.ndarray | None = None
    depth: int = 8
    inverted: bool = False


def with_shared_nodata(scene: Sequence[Numbers]) -> list[Numbers]:
    """The bands of one scene; nodata of integers counts where all of these have it.

    Such a value is an ordinary one, too, as 255 of a saturated band. Floating-point bands have
    nodata, NaN and infinities each for itself.

    Args:
        scene: the numbers of one file, or of several, which may differ in shape.
    """
    integers = [one for one in scene if one.values.dtype.kind in "iu"]
    known = [None if one.valid is None else one.valid.any(axis=0) for one in integers]
    joined = []
    for one in scene:
        if one.values.dtype.kind in "iu" and one.valid is not None:
            valid = None
            if all(mask is not None for mask in known):
                shape = one.values.shape
                masks = [_nearest(mask, *shape[1:]) for mask in known]
                valid = np.broadcast_to(np.logical_or.reduce(masks), shape)
            one = replace(one, valid=valid)
        joined.append(one)
    return joined


def _nearest(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """The mask (H, W) at another resolution."""
    rows, columns = ((2 * np.arange(wanted) + 1) * found // (2 * wanted)
                     for wanted, found in zip((height, width), mask.shape, strict=True))
    return mask[rows[:, None], columns]
