"""The items of an archive: a SQLite database with one row an item, and what the archive is."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archive.reading import Reading
from engine.files import rename
from imagery.places import Corners, boxes_of
from utils import InputError

FORMAT = "mrhash-archive-1"
SCHEMA = """
CREATE TABLE settings (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE origins (id INTEGER PRIMARY KEY, path BLOB, reading TEXT, UNIQUE (path, reading));
CREATE TABLE items (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, content BLOB NOT NULL UNIQUE,
    code BLOB NOT NULL, origin INTEGER NOT NULL, member BLOB NOT NULL, window BLOB,
    height INTEGER NOT NULL, width INTEGER NOT NULL, class TEXT, crs TEXT, corners BLOB);
CREATE VIRTUAL TABLE places USING rtree(id, west, east, south, north);  -- id / 2: the number
CREATE TABLE removed (number INTEGER PRIMARY KEY);
"""
COLUMNS = ("name, content, (SELECT path FROM origins WHERE id = origin), "
           "(SELECT reading FROM origins WHERE id = origin), member, window, height, width, class, "
           "crs, corners")
CORNERS, WINDOW = struct.Struct("<8d"), struct.Struct("<4q")
WAITING = 600  # seconds, for a process that reads or writes at this moment
AT_ONCE = 500  # values in one query; SQLite of old allows 999


@dataclass(frozen=True)
class Item:
    """What an archive keeps of an image, beside its code.

    name: distinct. content: 16 bytes, a hash of pixels and place. path: of the folder, zip or
    scene that it comes from. reading: how that was read (images.py, tiles.py). member: the file in
    there. window: column, row, width and height of a tile, or None. height, width: pixels. kind:
    the class folder, or None. crs, corners: see places.py, or None.
    """

    name: str
    content: bytes
    path: Path
    reading: str
    member: str
    window: tuple[int, ...] | None
    height: int
    width: int
    kind: str | None = None
    crs: str | None = None
    corners: Corners | None = None


def printable(name: str) -> str:
    """A name that can be shown and kept, also of a file whose name is no text in UTF-8."""
    return os.fsencode(name).decode(errors="backslashreplace")


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """What SQLite says of a database as one sentence."""
    try:
        yield
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter where names are hurt
        reason = " ".join(str(error).split())
        if "full" in reason or "I/O" in reason:
            raise InputError(f"{path} could not be written ({reason}): free some space; what was "
                             "saved before is whole") from None
        if "locked" in reason or "readonly" in reason or "unable to open" in reason:
            raise InputError(f"{path} cannot be used now ({reason}): see that it may be written "
                             "and that no other process holds it") from None
        raise InputError(f"{path} is damaged ({reason}): put a copy back, or make the archive "
                         "again") from None


class Items:
    """The open database. Methods raise InputError where it is damaged, or the disk is full."""

    def __init__(self, path: Path) -> None:
        """path: of a database that `create` has made."""
        self.path = path
        with told(self.path):
            self._database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True,
                                             timeout=WAITING, isolation_level=None)
            self._database.execute("PRAGMA synchronous = FULL")
            found = self.setting("format")
        if found != FORMAT:
            raise InputError(f"{path} is of the format {str(found)[:40]}, expected {FORMAT}: it is "
                             "of another version")

    @classmethod
    def create(cls, path: Path, settings: dict[str, Any]) -> None:
        """A database without items at `path`, where none is yet; whole or not at all."""
        aside = path.with_name(f".{path.name}.part")
        aside.unlink(missing_ok=True)
        with told(path), contextlib.closing(sqlite3.connect(aside)) as database, database:
            database.execute("PRAGMA journal_mode = MEMORY")  # a killed process leaves one file
            database.executescript(f"BEGIN; {SCHEMA} COMMIT;")  # one wait for the disk
            database.executemany("INSERT INTO settings VALUES (?, ?)",
                                 [*settings.items(), ("format", FORMAT)])
        rename(aside, path)

    def close(self) -> None:
        self._database.close()

    @contextlib.contextmanager
    def transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        """All that happens inside, or nothing of it, also when the process is killed.

        Of the kind DEFERRED: what is read inside is of one moment; who writes waits so long.
        """
        with told(self.path):
            self._database.execute(f"BEGIN {kind}")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                raise

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple]:
        with told(self.path):
            return self._database.execute(query, values).fetchall()

    # ------------------------------------------------------------ settings

    def setting(self, key: str) -> Any:
        """What the archive is; None for what it has not."""
        found = self._rows("SELECT value FROM settings WHERE key = ?", (key,))
        return found[0][0] if found else None

    def settings(self) -> dict[str, Any]:
        """All of them, as they were at one moment."""
        return dict(self._rows("SELECT key, value FROM settings"))

    def set(self, **values: Any) -> None:
        self._database.executemany("REPLACE INTO settings VALUES (?, ?)", values.items())

    # ------------------------------------------------------------ writing, within a transaction

    def append(self, first: int, items: Sequence[Item], codes: Sequence[bytes]) -> None:
        """Items from number `first` on, with their packed codes."""
        rows = []
        for number, (item, code) in enumerate(zip(items, codes, strict=True), first):
            rows.append((number, item.name, item.content, code, self._origin(item),
                         os.fsencode(item.member), item.window and WINDOW.pack(*item.window),
                         item.height, item.width, item.kind, item.crs,
                         item.corners and CORNERS.pack(*item.corners)))
        self._database.executemany(
            "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        boxes = [(2 * number + place, *box)  # two of them where it lies across the date line
                 for number, item in enumerate(items, first) if item.corners
                 for place, box in enumerate(boxes_of(item.corners))]
        self._database.executemany("INSERT INTO places VALUES (?, ?, ?, ?, ?)", boxes)

    def _origin(self, item: Item) -> int:
        key = os.fsencode(item.path), item.reading
        self._database.execute("INSERT OR IGNORE INTO origins (path, reading) VALUES (?, ?)", key)
        return self._database.execute(
            "SELECT id FROM origins WHERE path = ? AND reading = ?", key).fetchone()[0]

    def remove(self, numbers: Sequence[int]) -> None:
        """Their numbers stay free: other items keep theirs."""
        rows = [(number,) for number in numbers]
        self._database.executemany("DELETE FROM items WHERE number = ?", rows)
        self._database.executemany("INSERT INTO removed VALUES (?)", rows)
        self._database.executemany("DELETE FROM places WHERE id = ?1 * 2 OR id = ?1 * 2 + 1", rows)
        self._database.execute("DELETE FROM origins WHERE id NOT IN (SELECT origin FROM items)")

    # ------------------------------------------------------------ reading

    def removed(self) -> list[int]:
        return [number for number, in self._rows("SELECT number FROM removed ORDER BY number")]

    def known(self, column: str, values: Sequence[Any]) -> dict[Any, int]:
        """Those of `values` that items have as their name or content, with the items' numbers."""
        found = {}
        for start in range(0, len(values), AT_ONCE):
            part = values[start:start + AT_ONCE]
            marks = ", ".join("?" * len(part))
            found.update(self._rows(
                f"SELECT {column}, number FROM items WHERE {column} IN ({marks})", part))
        return found

    def codes(self) -> Iterator[tuple[int, bytes]]:
        """Number and packed code of each item, in order."""
        with told(self.path):
            yield from self._database.execute("SELECT number, code FROM items ORDER BY number")

    def of_numbers(self, numbers: Sequence[int]) -> dict[int, Item]:
        """Items by their numbers; those that are not there are left out."""
        found = {}
        for start in range(0, len(numbers), AT_ONCE):
            part = numbers[start:start + AT_ONCE]
            marks = ", ".join("?" * len(part))
            rows = self._rows(f"SELECT number, {COLUMNS} FROM items WHERE number IN ({marks})",
                              part)
            with told(self.path):
                found.update((number, _item(row)) for number, *row in rows)
        return found

    def all(self) -> Iterator[tuple[int, Item]]:
        """Every item with its number, in order."""
        with told(self.path):
            for number, *row in self._database.execute(
                    f"SELECT number, {COLUMNS} FROM items ORDER BY number"):
                yield number, _item(row)

    def fitting(self, name: str) -> list[int]:
        """Numbers of the items called so, or that a glob fits (* and ?), in order."""
        exact = self.known("name", [name])
        if exact or not any(letter in name for letter in "*?["):
            return list(exact.values())
        return [number for number, in self._rows(
            "SELECT number FROM items WHERE name GLOB ? ORDER BY number", (name,))]

    def like(self, name: str, most: int = 3) -> list[str]:
        """Names that hold `name`, for a message."""
        return [found for found, in self._rows(
            "SELECT name FROM items WHERE instr(name, ?) > 0 LIMIT ?", (name, most))]

    def in_boxes(self, boxes: Sequence[tuple[float, float, float, float]]) -> list[int]:
        """Numbers of the items whose footprint's box meets one of these, in order."""
        found: set[int] = set()
        for west, east, south, north in boxes:
            found.update(row // 2 for row, in self._rows(
                "SELECT id FROM places WHERE west <= ? AND east >= ? AND south <= ? "
                "AND north >= ?", (east, west, north, south)))
        return sorted(found)

    def has_image(self, path: Path) -> bool:
        """Whether items were made from this file, links followed."""
        path = path.resolve()
        for number, root in self._rows("SELECT id, path FROM origins"):
            root = Path(os.fsdecode(root)).resolve()
            if path == root:
                return True
            if root in path.parents:
                # One of the files of an item, between which there are zeros.
                member = b"\0" + os.fsencode(path.relative_to(root)) + b"\0"
                if self._rows("SELECT 1 FROM items WHERE origin = ? AND "
                              "instr(CAST(x'00' || member || x'00' AS BLOB), ?) > 0 LIMIT 1",
                              (number, member)):
                    return True
        return False

    def readings(self) -> list[Reading]:
        """All the ways in which the images of items were read."""
        try:
            return [Reading.of_text(text) for text, in self._rows(
                "SELECT reading FROM origins GROUP BY reading ORDER BY min(id)")]
        except (TypeError, ValueError):
            raise InputError(f"{self.path} does not say how its images were read: it is damaged, "
                             "put a copy back or make the archive again") from None

    def extent(self) -> tuple[float, float, float, float] | None:
        """West, east, south and north of all places; None: there are none."""
        found, = self._rows("SELECT min(west), max(east), min(south), max(north) FROM places")
        return None if found[0] is None else found

    def counts(self) -> dict[str, Any]:
        """How many items there are, with a place, with a class, and from where."""
        items, = self._rows("SELECT count(*), count(corners), count(class), "
                            "count(DISTINCT class) FROM items")
        origins = self._rows("SELECT path, count(*) FROM items JOIN origins ON id = origin "
                             "GROUP BY path ORDER BY min(number)")
        return {"items": items[0], "places": items[1], "labelled": items[2], "classes": items[3],
                "origins": {os.fsdecode(path): count for path, count in origins}}


def _item(row: Sequence[Any]) -> Item:
    name, content, path, reading, member, window, height, width, kind, crs, corners = row
    try:
        return Item(name, content, Path(os.fsdecode(path)), reading, os.fsdecode(member),
                    window and WINDOW.unpack(window), height, width, kind, crs,
                    corners and CORNERS.unpack(corners))
    except (struct.error, TypeError, ValueError) as error:
        raise sqlite3.DatabaseError(f"what it says of {name}: {error}") from None
