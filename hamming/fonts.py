"""Fonts that have the characters of a text; matplotlib knows which there are."""

from __future__ import annotations

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
    families, missing = [FAMILY], _lacking(_font_of(FAMILY), text)
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
    best = _font_of(FAMILY)
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
    """The other fonts of this machine by family, in order of their names, where any is needed."""
    if not missing:
        return
    from matplotlib import font_manager

    for family in sorted({entry.name for entry in font_manager.fontManager.ttflist} - {FAMILY}):
        if family.startswith("Last Resort"):  # boxes for everything
            continue
        try:
            font = _font_of(family)
        except (OSError, RuntimeError, ValueError):  # a file that is gone, or no font
            continue
        if font.scalable:
            yield family, font


def _font_of(family: str) -> FT2Font:
    from matplotlib import font_manager

    return font_manager.get_font(font_manager.findfont(family, fallback_to_default=False))
