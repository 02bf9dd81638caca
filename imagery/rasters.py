"""Any raster that GDAL opens as a source of imagery: files, VRT, COG over HTTP, WMS, WMTS."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import rasterio
from rasterio import DatasetReader
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioIOError
from rasterio.windows import Window

from imagery.cut import is_flat
from imagery.fetch import FetchError, Pacer, patiently, quietly, unread, without_keys
from utils import InputError, resolve_path, sha256_of

REMOTE_DRIVERS = {"WMS", "WMTS", "WCS", "HTTP", "DAAS", "EEDAI", "STACIT", "STACTA"}
STRIP = 64  # pixels: blocks that are less high or wide are read together
REMOTE_PLACES = ("://", "/vsicurl", "/vsis3", "/vsigs", "/vsiaz", "/vsiadls", "/vsioss",
                 "/vsiswift", "/vsiwebhdfs")


class Raster:
    """An open raster and its overviews: a views.Source."""

    world = False

    def __init__(self, place: str, bands: Sequence[int] | None, pacer: Pacer, date: str = ""
                 ) -> None:
        """Open it.

        Args:
            place: path, address, or what else GDAL opens.
            bands: which ones, from 1; None: all but alpha.
            pacer: keeps the rate where it lies afar.
            date: when the images were taken, where that is known.
        Raises:
            InputError: it cannot be opened, has no place, or not these bands.
        """
        self._local = resolve_path(place)
        there = self._local.exists()
        self._place = str(self._local) if there else place
        self.label = place if there else without_keys(place)
        self._check_kind(there)
        self.pacer, self.date = pacer, date
        first = self._open_at(None)
        self._service = first.driver in REMOTE_DRIVERS
        self.remote = self._service or any(
            word in name for name in (self._place, *first.files) for word in REMOTE_PLACES)
        # A file may be moved while it is collected from.
        content = (self._local.name, self._local.stat().st_size) if there else (place,)
        self.key = sha256_of(*content, bands or ())[:16]
        if first.crs is None or first.transform.is_identity:
            raise InputError(f"{self.label} has no coordinate system or no transform: name a "
                             "raster that knows where it lies")
        self.indexes = list(bands or self._colours(first))
        if not self.indexes or max(self.indexes) > first.count:
            raise InputError(f"--bands {','.join(map(str, self.indexes))}: {self.label} has "
                             f"{first.count} bands")
        self.bands, self.dtype = len(self.indexes), first.dtypes[self.indexes[0] - 1]
        if len({first.dtypes[index - 1] for index in self.indexes}) > 1:
            raise InputError(f"the bands of {self.label} are of several types: choose some with "
                             "--bands")
        if self.dtype.startswith("complex"):
            raise InputError(f"{self.label} has complex numbers, expected real ones")
        if ColorInterp.palette in first.colorinterp:
            raise InputError(f"{self.label} has a palette, whose numbers cannot be resampled: make "
                             "colours of it first (gdal_translate -expand rgb)")
        # Strips are read together, and what a service has, which is no smaller than that.
        small = min(first.block_shapes[0]) < STRIP
        self.at_once = 256 if self._service or small else 1
        bandwise = first.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE") == "BAND"
        self.requests = self.bands if bandwise and not self._service else 1
        self.factors = [1, *first.overviews(self.indexes[0])]
        self._levels: dict[int, DatasetReader] = {1: first}

    def _check_kind(self, there: bool) -> None:
        if there and self._local.is_dir():
            raise InputError(f"--raster {self._local} is a folder: name a raster in it, several of "
                             "them, or a VRT of all")
        elsewhere = ("/vsi", ":", "<")  # addresses, drivers such as WMTS:, descriptions in XML
        if not there and not any(word in self._place for word in elsewhere):
            raise InputError(f"--raster {self._local} is not there")

    def _open_at(self, overview: int | None) -> DatasetReader:
        options = {} if overview is None else {"overview_level": overview}
        if not any(word in self._place for word in REMOTE_PLACES):
            return quietly(self._place, self.label, **options)
        try:
            # Nothing is looked for beside it: each question would be a request.
            with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
                return patiently(lambda: rasterio.open(self._place, **options), self.pacer,
                                 self.label)
        except FetchError as error:
            raise InputError(f"{self.label} cannot be opened: {error}") from None

    @staticmethod
    def _colours(file: DatasetReader) -> list[int]:
        kinds = zip(file.indexes, file.colorinterp, strict=True)
        return [index for index, kind in kinds if kind is not ColorInterp.alpha]

    def level(self, factor: int) -> DatasetReader:
        if factor not in self._levels:
            self._levels[factor] = self._open_at(self.factors.index(factor) - 1)
        return self._levels[factor]

    def zoom(self, factor: int) -> str:
        return "" if factor == 1 else f"1/{factor}"

    def read(self, factor: int, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """The pixels of a window, (bands, H, W), and where they are valid, bool (H, W).

        Raises:
            InputError: a damaged file; of what lies afar as patiently, which raises FetchError,
                too.
        """
        level = self.level(factor)

        def once() -> tuple[np.ndarray, np.ndarray]:
            values = level.read(self.indexes, window=window)
            masks = level.read_masks(self.indexes, window=window)
            # A nodata that all bands of integers have; 0 in one of them may be a colour.
            whole = values.dtype.kind in "iu"
            return values, masks.any(axis=0) if whole else masks.all(axis=0)

        if self.remote:
            values, valid = patiently(once, self.pacer, self.label, self.requests)
            if self._service and valid.any() and is_flat(values[:, valid]):
                valid = np.zeros_like(valid)
        else:
            try:
                values, valid = once()
            except RasterioIOError as error:
                raise InputError(f"{self.label} cannot be read: {unread(error)}") from None
        if values.dtype.kind == "f":
            valid = valid & np.isfinite(values).all(axis=0)
        return values, valid
