"""Names as they can be written and drawn, whatever the system calls a file."""

from __future__ import annotations

from typing import Any


def as_text(name: Any) -> str:
    """A name that can be written as UTF-8, whatever the locale it was read in.

    Python reads bytes that are no text in its locale as surrogates. UTF-8 that was read in an ASCII
    locale becomes what it is; any other byte becomes a backslash, x and two digits.
    """
    try:
        read = str(name).encode(errors="surrogateescape")
    except UnicodeEncodeError:  # surrogates that stand for no byte
        read = str(name).encode(errors="backslashreplace")
    return read.decode(errors="backslashreplace")


def to_draw(name: Any, longest: int | None = None) -> str:
    """A name on one line, all of which can be seen; one longer than that loses its middle."""
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1]
                   for letter in as_text(name))
    if longest is None or len(text) <= longest:
        return text
    half = (longest - 3) // 2
    return f"{text[:half]}...{text[-half:]}"
