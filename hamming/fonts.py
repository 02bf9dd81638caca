"""Fonts that have the characters of a text; matplotlib knows which there are."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.ft2font import FT2Font

FAMILY = "DejaVu Sans"  # comes with matplotlib


def families_for(text: str) -> tuple[list[str], str]:
    """Which fonts draw a text.

    Returns:
        families for matplotlib, which takes each character from the first that has it; and the
        characters that no font has.
    """
    families, missing = [FAMILY], _lacking(_own_font(), text)
    for family, font in _other_fonts(missing):
        if len(lacking := _lacking(font, missing)) < len(missing):
            families.append(family)
            missing = lacking
        if not missing:
            break
    return families, missing


def file_for(text: str) -> tuple[str, str]:
    """The one font that has most of a text.

    Returns:
        its file; and the characters that it lacks.
    """
    best = _own_font()
    missing = _lacking(best, text)
    for _, font in _other_fonts(missing):
        if len(lacking := _lacking(font, text)) < len(missing):
            best, missing = font, lacking
    return best.fname, missing


def _lacking(font: FT2Font, text: str) -> str:
    """The characters of the text that the font does not have, once each."""
    return "".join(letter for letter in dict.fromkeys(text) if letter.isprintable()
                   and not font.get_char_index(ord(letter)))


def _other_fonts(missing: str) -> Iterator[tuple[str, FT2Font]]:
    """Family and font of the others, those of normal weight first, where any is needed."""
    if not missing:
        return
    from matplotlib import font_manager

    upright = [entry for entry in font_manager.fontManager.ttflist if entry.style == "normal"]
    upright.sort(key=lambda entry: (abs(int(entry.weight) - 400), entry.name))
    files = {}
    for entry in upright:
        files.setdefault(entry.name, entry.fname)
    for family, file in files.items():
        if family == FAMILY or family.startswith("Last Resort"):  # which has boxes for everything
            continue
        try:
            font = font_manager.get_font(file)
        except (OSError, RuntimeError):  # a file that is gone, or no font
            continue
        if font.scalable:
            yield family, font


def _own_font() -> FT2Font:
    from matplotlib import font_manager

    return font_manager.get_font(font_manager.findfont(FAMILY))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """matplotlib does not log that a family has no face of normal weight."""
    logger = logging.getLogger("matplotlib.font_manager")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
