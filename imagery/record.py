"""What was collected: images that appear whole, and collect.csv with a line for each place."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rasterio.io import MemoryFile

from engine.files import atomic_file, lock, write_json, writing
from imagery.footprints import Footprint
from utils import InputError, first_few

COLLECTED, NOTHING, BEYOND, NO_PLACE, FAILED = (
    "collected", "no imagery", "out of reach", "no place", "failed")
SETTINGS, TABLE = ".collect.json", "collect.csv"
LOCK, PART = ".collect.lock", ".*.part"  # as atomic_file calls what is not whole yet
TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}  # names of files may be no text
QUALITY = 95  # of JPEG
SHOWN = {"size", "format", "zoom", "resampling", "tile_size"}  # others are hashes, or lists


@dataclass(frozen=True)
class Entry:
    """A line of collect.csv.

    status: one of the words above. file: below the folder, where it was collected. latitude,
    longitude: of the middle, degrees. metres: width of the place. source: service or raster.
    zoom: or overview. resolution: metres of a pixel of the source there. date: when the images
    were taken, where the source says so. covered: share of the place. bytes: of the file.
    footprint: changes with its place. day: when it was collected. note: why not.
    """

    name: str
    status: str
    file: str = ""
    latitude: str = ""
    longitude: str = ""
    metres: str = ""
    source: str = ""
    zoom: str = ""
    resolution: str = ""
    date: str = ""
    covered: str = ""
    bytes: str = ""
    footprint: str = ""
    day: str = ""
    note: str = ""


def place_entries(footprint: Footprint) -> dict[str, str]:
    """What a line says of the place."""
    latitude, longitude = footprint.centre()
    return {"name": footprint.name, "latitude": f"{latitude:.6f}", "longitude": f"{longitude:.6f}",
            "metres": f"{footprint.metres():.1f}", "footprint": footprint.key()}


class Record:
    """The folder that a collection goes into, held by one process."""

    def __init__(self, folder: Path, settings: dict[str, Any], retry: bool = False) -> None:
        """Look at what is there; nothing is written.

        Args:
            folder: may not be there yet.
            settings: what decides how images look; another collection does not go on here.
            retry: whether places that had no imagery are tried again.
        Raises:
            InputError: it was collected with other settings, or collect.csv is damaged.
        """
        self.folder, self.settings = folder, settings
        self.again = {FAILED, NO_PLACE, NOTHING} if retry else {FAILED, NO_PLACE}
        self.entries: dict[str, Entry] = {}
        if (folder / SETTINGS).exists():
            self._compare()
        elif folder.exists() and (not folder.is_dir() or any(map(_is_foreign, folder.iterdir()))):
            raise InputError(f"--output {folder} is there and was not made by collect.py: name "
                             "another folder")
        if (folder / TABLE).exists():
            self._read()

    def _compare(self) -> None:
        try:
            found = json.loads((self.folder / SETTINGS).read_bytes())
            other = [name for name in {**self.settings, **found}
                     if found.get(name) != self.settings.get(name)]
        except (ValueError, TypeError):
            raise InputError(f"{self.folder / SETTINGS} is damaged: name another --output"
                             ) from None
        if other:
            said = [f"--{name}" + (f" {found[name]}" if name in SHOWN and found.get(name) else "")
                    for name in other]
            raise InputError(f"{self.folder} was collected with another {', '.join(said)}: use "
                             "the same, or name another --output")

    def _read(self) -> None:
        names = [field.name for field in fields(Entry)]
        data = (self.folder / TABLE).read_bytes()
        whole = data[:data.rfind(b"\n") + 1]  # a full disk may leave half a line
        try:
            rows = list(csv.reader(io.StringIO(whole.decode("utf-8-sig", TEXT["errors"]))))
        except csv.Error:
            rows = [[]]
        if (rows and rows[0] != names) or any(len(row) != len(names) for row in rows):
            raise InputError(f"{self.folder / TABLE} is damaged: remove it, and the same command "
                             "collects again what is not known")
        self.entries = {row[0]: Entry(*row) for row in rows[1:]}

    def done(self, footprint: Footprint) -> bool:
        """Whether this place needs nothing more; what failed is tried again.

        Raises:
            InputError: the name stands for another place.
        """
        entry = self.entries.get(footprint.name)
        if entry is None or entry.status in self.again:
            return False
        if entry.footprint != footprint.key():
            place = place_entries(footprint)
            raise InputError(f"{footprint.name} was collected at {entry.latitude}, "
                             f"{entry.longitude}, {entry.metres} m wide, and its place is another "
                             f"one now, at {place['latitude']}, {place['longitude']}, "
                             f"{place['metres']} m: remove its line from {self.folder / TABLE}, "
                             "and it is collected again, or name another --output")
        file = self.folder / entry.file
        return entry.status != COLLECTED or (
            file.is_file() and str(file.stat().st_size) == entry.bytes)

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Hold the folder, bring its table into order, and again at the end."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with lock(self.folder / LOCK, f"another process collects into {self.folder}"):
            for path in self.folder.rglob(PART):  # of a process that was killed
                path.unlink()
            if (self.folder / TABLE).exists():
                self._read()  # again: the process that held it may have ended just now
            write_json(self.folder / SETTINGS, self.settings)
            self._write_all()
            with open(self.folder / TABLE, "a", newline="", **TEXT) as self._table:
                yield
            self._write_all()

    def _write_all(self) -> None:
        """All lines by name, so that the table does not tell in which order they came."""
        lines = io.StringIO()
        writer = csv.writer(lines)
        writer.writerow([field.name for field in fields(Entry)])
        for name in sorted(self.entries):
            writer.writerow(asdict(self.entries[name]).values())
        with atomic_file(self.folder / TABLE) as file:
            file.write(lines.getvalue().encode(**TEXT))

    def add(self, entry: Entry, image: bytes | None = None) -> None:
        """Keep an image, then its line."""
        if image is not None:
            with atomic_file(self.folder / entry.file) as file:
                file.write(image)
        self.entries[entry.name] = entry
        with writing(self.folder / TABLE):
            csv.writer(self._table).writerow(asdict(entry).values())
            self._table.flush()

    def summary(self, names: Sequence[str]) -> list[str]:
        """A line on what became of these names, and one for each reason why some are not there."""
        found = [self.entries[name] for name in names if name in self.entries]
        there = [entry for entry in found if entry.status == COLLECTED]
        lines = [f"{len(there):,} of {len(names):,} images are in {self.folder}"]
        for status in (NOTHING, BEYOND, NO_PLACE, FAILED):
            some = [entry for entry in found if entry.status == status]
            if some:
                shown = [(entry.name if entry.name.isprintable() else ascii(entry.name))
                         + (f" ({entry.note})" if entry.note else "") for entry in some]
                lines.append(f"  {len(some):,} left out, {status}: {first_few(shown)}")
        return lines


def _is_foreign(path: Path) -> bool:
    """Whether a file is not what a process leaves that was killed as it began."""
    return path.name != LOCK and not path.match(PART)


# ---------------------------------------------------------------- files


def encoded(pixels: np.ndarray, footprint: Footprint, kind: str) -> bytes:
    """An image as the bytes of a file.

    Args:
        pixels: (bands, H, W).
        footprint: its place, which a GeoTIFF keeps.
        kind: tif or jpg.
    Raises:
        InputError: JPEG cannot hold these bands or numbers.
    """
    check_format(kind, len(pixels), pixels.dtype)
    if kind == "jpg":
        image = Image.fromarray(pixels.transpose(1, 2, 0).squeeze())
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
        return buffer.getvalue()
    colours = len(pixels) == 3 and pixels.dtype == np.uint8
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", dtype=pixels.dtype, count=len(pixels),
                         height=footprint.height, width=footprint.width, crs=footprint.crs,
                         transform=footprint.transform, compress="deflate",
                         predictor=3 if pixels.dtype.kind == "f" else 2,
                         photometric="RGB" if colours else "MINISBLACK") as file:
            file.write(pixels)
        return bytes(memory.getbuffer())


def check_format(kind: str, bands: int, dtype: Any) -> None:
    """Raise InputError where JPEG cannot hold these bands and numbers."""
    if kind == "jpg" and (np.dtype(dtype) != np.uint8 or bands not in (1, 3)):
        advice = "" if np.dtype(dtype) != np.uint8 else ", or choose three with --bands"
        raise InputError(f"--format jpg holds 1 or 3 bands of 8 bits, and these are {bands} of "
                         f"{np.dtype(dtype).name}: use --format tif{advice}")
