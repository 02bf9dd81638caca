"""What becomes black and what becomes white: values, or percentages of an archive's pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from datasets.colours import Stretch
from datasets.measured import Numbers
from utils import InputError, progress

SAMPLE_IMAGES = 200  # evenly spaced ones, of which percentages are drawn
SAMPLE_PIXELS = 1 << 16  # of each band of one of them, evenly spaced, too


@dataclass(frozen=True)
class Limit:
    """One end of a range: a value, or the percentage of pixels that are below it."""

    value: float
    percent: bool


def parse_range(text: str, flag: str) -> list[tuple[Limit, Limit]]:
    """`LOW,HIGH`, values or percentages, or several such pairs with semicolons.

    Args:
        text: what the user said.
        flag: with which flag.
    Raises:
        InputError: another text, or ends that are not in order.
    """
    pairs = []
    for words in text.split(";"):
        ends = [_limit(word.strip()) for word in words.split(",")]
        if len(ends) != 2 or None in ends:
            raise InputError(f"{flag} {text} is not understood: expected LOW,HIGH such as 0,3000 "
                             "or 2%,98%, or such a pair for each band with ; between them")
        low, high = ends
        if low.percent == high.percent and not 0 < high.value - low.value < math.inf:
            raise InputError(f"{flag} {text}: LOW must be below HIGH, but is not in {words}")
        pairs.append((low, high))
    return pairs


def _limit(word: str) -> Limit | None:
    percent = word.endswith("%")
    try:
        value = float(word.removesuffix("%"))
    except ValueError:
        return None
    if not math.isfinite(value) or (percent and not 0 <= value <= 100):
        return None
    return Limit(value, percent)


def written(stretch: Stretch) -> str:
    """A stretch as `parse_range` reads it, to the last bit."""
    ends = [[repr(end).removesuffix(".0") for end in pair] for pair in stretch]
    return ";".join(map(",".join, ends))


def drawn(pairs: Sequence[tuple[Limit, Limit]], numbers: Callable[[int], list[Numbers]],
          count: int, flag: str) -> list[tuple[float, float]]:
    """The values that percentages stand for: of the valid pixels of evenly spaced images.

    Args:
        pairs: what `parse_range` found.
        numbers: row -> the numbers of an image, whose bands are all that is seen.
        count: images in all.
        flag: with which flag they were asked for.
    Returns:
        `pairs` where these are values, else a pair for each band.
    Raises:
        InputError: no valid pixel, or two equal percentiles.
    """
    if not any(end.percent for pair in pairs for end in pair):
        return [(low.value, high.value) for low, high in pairs]
    samples = _samples(numbers, count)
    stretch = []
    for band in range(len(samples[0]) if samples else 0):
        values = np.concatenate([image[band] for image in samples
                                 if len(image) == len(samples[0])])
        ends = [end.value for end in pairs[band % len(pairs)]]
        for place, end in enumerate(pairs[band % len(pairs)]):
            if end.percent and len(values):
                ends[place] = float(np.percentile(values, end.value))
        if not len(values) or not ends[0] < ends[1]:
            found = f"both {ends[0]:g}" if len(values) else "of no valid pixel"
            raise InputError(f"{flag}: the ends of band {band + 1} are {found}, so that no range "
                             f"can be drawn from the images: give values, as in {flag} 0,3000")
        stretch.append((ends[0], ends[1]))
    if not stretch:
        raise InputError(f"{flag}: no image could be read to draw percentages from: give values, "
                         f"as in {flag} 0,3000")
    return stretch


def _samples(numbers: Callable[[int], list[Numbers]], count: int) -> list[list[np.ndarray]]:
    """For each image that can be read the valid values (n,) of each band."""
    rows = np.unique(np.linspace(0, count - 1, min(count, SAMPLE_IMAGES)).astype(int)).tolist()
    samples = []
    for row in progress(rows, "drawing the range", len(rows)):
        try:
            samples.append([values for one in numbers(row) for values in _valid_values(one)])
        except InputError:
            raise
        except Exception:  # it is named with all others that are damaged when they are decoded
            continue
    return samples


def _valid_values(numbers: Numbers) -> list[np.ndarray]:
    bands = []
    for band, values in enumerate(numbers.values):
        found = values.ravel() if numbers.valid is None else values[numbers.valid[band]]
        bands.append(found[::max(1, math.ceil(len(found) / SAMPLE_PIXELS))])
    return bands
