"""Where pixels come from: folders, zips, GeoTIFFs and HDF5, each read one image at a time as uint8.

An ImageSource is one view of every scene (Sentinel-2, VHR, MS or PAN). data_loader.py decides which
sources a dataset has and pairs them by name; image_store.py decodes each of them once.
"""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from utils import InputError, sha256_of

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
# What Pillow may take a file for, whatever its name says: for some other kinds it starts a program (PostScript).
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")
# Sentinel-2 bands in EuroSAT's 13-band files, and the short-wave infrared false colour made of them.
EUROSAT_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12",
                 "B8A")
SWIR_BANDS = ("B12", "B8A", "B04")
SWIR_WHITE = 4000  # digital number drawn as 255; 10,000 is reflectance 1
# What no scene needs, and a file made to fill the memory claims: pixels, sides of very different length, bytes.
MOST_PIXELS, MOST_ELONGATED, MOST_BYTES = 64_000_000, 32, 1 << 30


# Once and for all, because decoding runs in several threads: what is odd about a file that can be read all the same
# (metadata), and sizes, for which there is a limit here that is lower, and an error.
warnings.filterwarnings("ignore", module="PIL")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageSource:
    """One view of N scenes: `read(i)` gives uint8 (H, W, C), C = 1 or 3; `size(i)` gives (H, W).

    `stamp` is a string that changes when the images do; cached pixels and features hang on it.
    `where(i)` names image i in messages.
    """

    channels = 3
    stamp = ""

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, index: int) -> np.ndarray:
        raise NotImplementedError

    def size(self, index: int) -> tuple[int, int]:
        raise NotImplementedError

    def where(self, index: int) -> str:
        raise NotImplementedError


# ---------------------------------------------------------------- containers of files


def _is_image(name: str) -> bool:
    """By its suffix; what macOS and editors leave behind (`__MACOSX/._a.jpg`, `.a.jpg`) is none."""
    path = PurePosixPath(name)
    return (path.suffix.lower() in IMAGE_SUFFIXES
            and not any(part.startswith(".") or part == "__MACOSX" for part in path.parts))


class Folder:
    """Image files below a folder. `files` maps relative POSIX paths to (size, mtime); `folders` holds all folders."""

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
    """Image files inside a zip, read in place, so that no member can land outside its folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, tuple[int, int]] = {}
        self.folders: set[str] = set()
        try:
            with zipfile.ZipFile(root) as archive:
                for member in archive.infolist():
                    if member.is_dir():
                        self.folders.add(member.filename.rstrip("/"))
                    elif _is_image(member.filename):
                        if member.filename in self.files:
                            raise InputError(f"{root} has two members named {member.filename[:200]}")
                        self.files[member.filename] = (member.file_size, member.CRC)
        except (OSError, InputError):
            raise
        except Exception as error:  # zipfile raises many kinds for a damaged file
            raise InputError(f"{root} is not a whole zip file ({error}): download it again") from None
        self._local = threading.local()  # one open archive a thread: decoding runs in several

    def read_bytes(self, name: str) -> bytes:
        claimed, _ = self.files[name]
        _check_size(claimed)
        if not hasattr(self._local, "archive"):
            self._local.archive = zipfile.ZipFile(self.root)
        with self._local.archive.open(name) as member:
            return member.read(claimed)  # read() alone unpacks all that is there, however small the size it claims


def _check_size(size: int) -> None:
    if size > MOST_BYTES:
        raise ValueError(f"{size:,} bytes, more than any image needs")


def open_container(path: Path) -> Folder | Zip:
    """A folder or a zip of images. Raises InputError when it is neither or holds no image."""
    if path.is_dir():
        container: Folder | Zip = Folder(path)
    elif path.is_file():
        container = Zip(path)
    else:
        raise InputError(f"{path} does not exist: expected a folder or a zip with images")
    if not container.files:
        raise InputError(f"{path} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return container


# ---------------------------------------------------------------- decoders: bytes -> uint8 (H, W, C)


def check_shape(height: int, width: int) -> None:
    """Raise ValueError for an image that no scene is, before memory is taken for its pixels."""
    if height * width > MOST_PIXELS:
        raise ValueError(f"{width:,} x {height:,} pixels, more than {MOST_PIXELS:,}: cut it into scenes")
    if max(height, width) > MOST_ELONGATED * min(height, width):
        raise ValueError(f"{width:,} x {height:,} pixels, too elongated for a scene")


def _identify(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except UnidentifiedImageError:  # its own message names a memory address
        raise ValueError(f"no image of a known kind ({', '.join(IMAGE_FORMATS)})") from None
    check_shape(image.height, image.width)
    return image


def _open(data: bytes) -> Image.Image:
    image = _identify(data)
    image.load()
    return image


def _rgb(image: Image.Image) -> Image.Image:
    """Any 8 or 16 bit image as RGB; alpha is dropped, grey is repeated, 16 bits keep the upper 8."""
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
    return np.asarray(_rgb(_open(data)))


def _square256(data: bytes) -> Image.Image:
    image = _rgb(_open(data))
    return image if image.size == (256, 256) else image.resize((256, 256), Image.Resampling.BICUBIC)


def decode_wald_pan(data: bytes) -> np.ndarray:
    """Simulated panchromatic image: the luminance (ITU-R 601) at 256x256; uint8 (256, 256, 1)."""
    return np.asarray(_square256(data).convert("L"))[..., None]


def decode_wald_ms(data: bytes) -> np.ndarray:
    """Simulated multispectral image: RGB averaged over 4x4 pixels; uint8 (64, 64, 3).

    Wald et al., PE&RS 1997: degrade a sharp image by the ratio between the two sensors.
    """
    pixels = np.asarray(_square256(data), dtype=np.uint32)
    sums = pixels.reshape(64, 4, 64, 4, 3).sum(axis=(1, 3))
    return ((sums + 8) // 16).astype(np.uint8)


def decode_swir(data: bytes) -> np.ndarray:
    """EuroSAT's 13-band GeoTIFF as false colour B12, B8A, B04; uint8 (H, W, 3).

    One fixed linear stretch for all images, so that brightness stays comparable between them.
    """
    rasterio = require("rasterio", "13-band GeoTIFFs")
    # Other formats than GeoTIFF could name files and addresses to read from.
    with rasterio.io.MemoryFile(data) as memory, memory.open(driver="GTiff") as file:
        if file.count != len(EUROSAT_BANDS):
            raise ValueError(f"{file.count} bands, expected {len(EUROSAT_BANDS)}")
        check_shape(file.height, file.width)
        bands = file.read([EUROSAT_BANDS.index(band) + 1 for band in SWIR_BANDS])
    scaled = np.clip(bands.astype(np.float32) * (255 / SWIR_WHITE), 0, 255)
    return np.ascontiguousarray(np.rint(scaled).astype(np.uint8).transpose(1, 2, 0))


def require(module: str, purpose: str):
    import importlib
    import logging

    try:
        loaded = importlib.import_module(module)
    except ImportError:
        raise InputError(f"reading {purpose} needs the package {module}: pip install {module}") from None
    if module == "rasterio":  # tiles without map coordinates are fine here
        warnings.filterwarnings("ignore", category=loaded.errors.NotGeoreferencedWarning)
        logging.getLogger("rasterio").setLevel(logging.ERROR)
    return loaded


class ImageFiles(ImageSource):
    """Images in a folder or zip, in the order of `files` (paths relative to the container)."""

    def __init__(self, container: Folder | Zip, files: Sequence[str],
                 decode: Callable[[bytes], np.ndarray] = decode_rgb) -> None:
        self.container, self.files, self.decode = container, list(files), decode
        self.channels = 1 if decode is decode_wald_pan else 3
        self.stamp = sha256_of(decode.__name__, *(f"{name}{container.files[name]}" for name in files))

    def __len__(self) -> int:
        return len(self.files)

    def where(self, index: int) -> str:
        return f"{self.container.root}: {self.files[index]}"

    def read(self, index: int) -> np.ndarray:
        return self.decode(self.container.read_bytes(self.files[index]))

    def size(self, index: int) -> tuple[int, int]:
        if self.decode is decode_wald_pan:
            return 256, 256
        if self.decode is decode_wald_ms:
            return 64, 64
        if self.decode is decode_swir:
            return self.read(index).shape[:2]
        with _identify(self.container.read_bytes(self.files[index])) as image:
            return image.height, image.width


@contextlib.contextmanager
def hdf5(path: Path) -> Iterator[Any]:
    """DSRSID.mat, open to read. Raises InputError where it, or what the body takes from it, is not as published."""
    h5py = require("h5py", "DSRSID.mat")
    try:
        # A chunk may hold many images: a large chunk cache keeps it from being unpacked for each.
        with h5py.File(path, "r", rdcc_nbytes=64 << 20) as file:
            yield file
    except InputError:
        raise
    except Exception as error:  # h5py raises many kinds for a damaged file
        raise InputError(f"{path} is not DSRSID as published, an HDF5 file with MUL_IMAGES, PAN_IMAGES and "
                         f"LAND_COVER_TYPES ({' '.join(str(error).split())[:200]})") from None


def dataset_of(file: Any, key: str) -> Any:
    """The array `key`, which lies in this very file. Raises InputError where it does not."""
    h5py = require("h5py", "DSRSID.mat")
    links = file.id.links  # h5py's own `in` and `get` would follow a link to see where it leads
    if not links.exists(key.encode()):
        raise InputError(f"{file.filename} has no {key}; it holds {', '.join(map(str, file)) or 'nothing'}")
    data = file[key] if links.get_info(key.encode()).type == h5py.h5l.TYPE_HARD else None
    if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
        raise InputError(f"{file.filename}: {key} is a group, or lies in another file, expected an array")
    return data


class Hdf5Images(ImageSource):
    """DSRSID's MUL_IMAGES (N, 4, 64, 64) or PAN_IMAGES (N, 1, 256, 256), read lazily.

    MATLAB stores columns first, so h5py sees the last two axes swapped. Of the four bands (blue,
    green, red, near infrared) the three visible ones are shown to an ImageNet network, as RGB.
    """

    def __init__(self, path: Path, key: str, rows: np.ndarray) -> None:
        self.path, self.key, self.rows = path, key, rows
        bands = 4 if key == "MUL_IMAGES" else 1
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(hdf5(path))
            self.data = dataset_of(file, key)
            self.file = stack.pop_all()  # open as long as this object lives
        if len(self.data.shape or ()) != 4 or self.data.shape[1] != bands or self.data.dtype != np.uint8:
            raise InputError(f"{path}: {key} is {self.data.dtype} {self.data.shape}, expected uint8 "
                             f"(N, {bands}, H, W)")
        try:
            check_shape(*self.data.shape[2:])
            _check_size(int(np.prod(self.data.chunks or (1,), dtype=object)))  # unpacked as a whole
        except ValueError as error:
            raise InputError(f"{path}: {key} holds images of {error}") from None
        if len(rows) and rows.max() >= len(self.data):
            raise InputError(f"{path}: {key} holds {len(self.data):,} images, expected at least "
                             f"{rows.max() + 1:,}, as many as the other arrays")
        self.channels = 1 if bands == 1 else 3
        status = path.stat()
        self.stamp = sha256_of(key, self.data.shape, status.st_size, status.st_mtime_ns, rows)

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, index: int) -> str:
        return f"{self.path}: {self.key}[{self.rows[index]}]"

    def read(self, index: int) -> np.ndarray:
        pixels = self.data[int(self.rows[index])].transpose(2, 1, 0)
        return np.ascontiguousarray(pixels if self.channels == 1 else pixels[..., [2, 1, 0]])

    def size(self, index: int) -> tuple[int, int]:
        return self.data.shape[3], self.data.shape[2]
