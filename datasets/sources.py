"""Where pixels come from: folders, zips, GeoTIFFs and HDF5, each read one image at a time as uint8.

An ImageSource is one view of every scene (Sentinel-2, VHR, MS or PAN). The file of a data set says
which sources it has; store.py decodes each of them once.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from utils import InputError, sha256_of

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
# What Pillow may take a file for, whatever its name says: for some other kinds it starts a program
# (PostScript).
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")
# What no scene needs, and a file made to fill the memory claims.
MOST_PIXELS = 64_000_000
MOST_ELONGATED = 32  # the longer side, by the shorter one
MOST_BYTES = 1 << 30

# Once and for all, because decoding runs in several threads: what is odd about a file that can be
# read all the same (metadata), and sizes, for which there is a lower limit here, and an error.
warnings.filterwarnings("ignore", module="PIL")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageSource:
    """One view of N scenes.

    channels: 1 or 3. stamp: changes when the images do; cached pixels and features hang on it.
    """

    channels = 3
    stamp = ""

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, index: int) -> np.ndarray:
        """The pixels of image `index`, uint8 (H, W, channels)."""
        raise NotImplementedError

    def size(self, index: int) -> tuple[int, int]:
        """Its (height, width)."""
        raise NotImplementedError

    def where(self, index: int) -> str:
        """What messages call it."""
        raise NotImplementedError

    def subset(self, rows: np.ndarray) -> ImageSource:
        """The same view of these scenes alone."""
        raise NotImplementedError


# ---------------------------------------------------------------- folders and zips


def _is_image(name: str) -> bool:
    """By its suffix; what macOS and editors leave (`__MACOSX/._a.jpg`, `.a.jpg`) is none."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden


def _check_size(size: int) -> None:
    if size > MOST_BYTES:
        raise ValueError(f"{size:,} bytes, more than any image needs")


class Folder:
    """Image files below a folder.

    files: relative POSIX path -> (size, time of change). folders: relative paths of all folders.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, tuple[int, int]] = {}
        self.folders: set[str] = set()
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.is_dir():
                self.folders.add(name)
            elif _is_image(name) and path.is_file():
                status = path.stat()
                self.files[name] = (status.st_size, status.st_mtime_ns)

    def read_bytes(self, name: str) -> bytes:
        _check_size(self.files[name][0])
        return (self.root / name).read_bytes()


class Zip:
    """Image files inside a zip, read in place, so that no member can land outside its folder.

    files: path in the zip -> (size, checksum). folders: those that are members themselves.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, tuple[int, int]] = {}
        self.folders: set[str] = set()
        try:
            with zipfile.ZipFile(root) as archive:
                members = archive.infolist()
        except OSError:
            raise
        except Exception as error:  # zipfile raises many kinds for a damaged file
            raise InputError(f"{root} is not a whole zip file ({error}): download it again"
                             ) from None
        for member in members:
            if member.is_dir():
                self.folders.add(member.filename.rstrip("/"))
            elif _is_image(member.filename):
                if member.filename in self.files:
                    raise InputError(f"{root} has two members named {member.filename[:200]}")
                self.files[member.filename] = (member.file_size, member.CRC)
        self._local = threading.local()  # one open archive a thread: decoding runs in several

    def read_bytes(self, name: str) -> bytes:
        claimed, _ = self.files[name]
        _check_size(claimed)
        if not hasattr(self._local, "archive"):
            self._local.archive = zipfile.ZipFile(self.root)
        with self._local.archive.open(name) as member:
            return member.read(claimed)  # read() alone unpacks all there is, whatever it claims


def open_container(path: Path) -> Folder | Zip:
    """A folder or a zip of images. Raises InputError when it is neither or holds no image."""
    if not path.exists():
        raise InputError(f"{path} does not exist: expected a folder or a zip with images")
    container = Folder(path) if path.is_dir() else Zip(path)
    if not container.files:
        raise InputError(f"{path} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return container


# ---------------------------------------------------------------- bytes -> uint8 (H, W, C)


def check_shape(height: int, width: int) -> None:
    """Raise ValueError for what no scene is, before memory is taken for its pixels."""
    if height * width > MOST_PIXELS:
        raise ValueError(f"{width:,} x {height:,} pixels, more than {MOST_PIXELS:,}: "
                         "cut it into scenes")
    if max(height, width) > MOST_ELONGATED * min(height, width):
        raise ValueError(f"{width:,} x {height:,} pixels, too elongated for a scene")


def _identify(data: bytes) -> Image.Image:
    """The image of which only the header was read."""
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except UnidentifiedImageError:  # its own message names a memory address
        raise ValueError(f"no image of a known kind ({', '.join(IMAGE_FORMATS)})") from None
    check_shape(image.height, image.width)
    return image


def open_rgb(data: bytes) -> Image.Image:
    """Any 8 or 16 bit image as RGB: without alpha, grey repeated, of 16 bits the upper 8."""
    image = _identify(data)
    image.load()
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit pixels, expected 8 or 16 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels, expected 8 or 16 bits")
    return image.convert("RGB")


def decode_rgb(data: bytes) -> np.ndarray:
    """An image file as uint8 (H, W, 3)."""
    return np.asarray(open_rgb(data))


def header_size(data: bytes) -> tuple[int, int]:
    """(height, width) of an image file."""
    with _identify(data) as image:
        return image.height, image.width


@dataclass(frozen=True)
class Decoder:
    """How the bytes of a file become an image.

    read: bytes -> uint8 (H, W, channels). channels: 1 or 3. size: (height, width) of all images, or
    what looks it up in the bytes of one. The name of `read` is part of the stamp of the images:
    whoever renames it has them decoded anew.
    """

    read: Callable[[bytes], np.ndarray]
    channels: int = 3
    size: tuple[int, int] | Callable[[bytes], tuple[int, int]] = header_size


RGB = Decoder(decode_rgb)


@contextlib.contextmanager
def _geotiff(data: bytes) -> Iterator[Any]:
    rasterio = require("rasterio", "13-band GeoTIFFs")
    # Tiles without map coordinates are fine here.
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    logging.getLogger("rasterio").setLevel(logging.ERROR)
    # Other formats than GeoTIFF could name files and addresses to read from.
    with rasterio.io.MemoryFile(data) as memory, memory.open(driver="GTiff") as file:
        check_shape(file.height, file.width)
        yield file


def read_geotiff(data: bytes, count: int, bands: Sequence[int]) -> np.ndarray:
    """The wanted `bands`, from 0, of a GeoTIFF that has `count` of them: (bands, H, W).

    Raises:
        ValueError: another number of bands, or too large.
    """
    with _geotiff(data) as file:
        if file.count != count:
            raise ValueError(f"{file.count} bands, expected {count}")
        return file.read([band + 1 for band in bands])


def geotiff_size(data: bytes) -> tuple[int, int]:
    """(height, width) of a GeoTIFF."""
    with _geotiff(data) as file:
        return file.height, file.width


def require(module: str, purpose: str) -> Any:
    """A module that only some data sets need. Raises InputError: it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"reading {purpose} needs the package {module}: pip install {module}"
                         ) from None


class ImageFiles(ImageSource):
    """Images in a folder or zip, in the order of `files` (paths relative to the container)."""

    def __init__(self, container: Folder | Zip, files: Sequence[str], decoder: Decoder = RGB
                 ) -> None:
        self.container, self.files, self.decoder = container, list(files), decoder
        self.channels = decoder.channels

    @cached_property
    def stamp(self) -> str:
        files = (f"{name}{self.container.files[name]}" for name in self.files)
        return sha256_of(self.decoder.read.__name__, *files)

    def __len__(self) -> int:
        return len(self.files)

    def where(self, index: int) -> str:
        return f"{self.container.root}: {self.files[index]}"

    def read(self, index: int) -> np.ndarray:
        return self.decoder.read(self.container.read_bytes(self.files[index]))

    def size(self, index: int) -> tuple[int, int]:
        if isinstance(self.decoder.size, tuple):
            return self.decoder.size
        return self.decoder.size(self.container.read_bytes(self.files[index]))

    def subset(self, rows: np.ndarray) -> ImageFiles:
        return ImageFiles(self.container, [self.files[row] for row in rows], self.decoder)
