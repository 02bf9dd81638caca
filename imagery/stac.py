"""A STAC catalogue as a source: for each place its least cloudy images, by date (stacspec.org)."""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from rasterio.warp import transform

from datasets.rasters import require
from imagery.fetch import FetchError, Pacer, patiently, without_keys
from imagery.footprints import WGS84, Footprint
from imagery.places import geometry_of
from imagery.rasters import Raster
from utils import InputError, sha256_of

CATALOGUES = {"earth-search": "https://earth-search.aws.element84.com/v1",
              "planetary-computer": "https://planetarycomputer.microsoft.com/api/stac/v1"}
MOST_ITEMS = 500  # images that are looked through for one place


class Search:
    """Images of a collection, found place by place; needs the package pystac-client."""

    remote = True

    def __init__(self, catalogue: str, collection: str, asset: str, dates: str | None,
                 cloud_cover: float | None, bands: Sequence[int] | None, pacer: Pacer) -> None:
        """Open the catalogue.

        Args:
            catalogue: of CATALOGUES, or the address of a STAC API.
            collection, asset: which of its images, and which file of each.
            dates: 2019-05-01/2019-09-30, or None.
            cloud_cover: most percent of an image, or None.
            bands, pacer: as for Raster.
        Raises:
            InputError: the package is not there, the dates cannot be read, or no answer.
        """
        if dates is not None and not _are_dates(dates):
            raise InputError(f"--dates {dates[:40]} cannot be read: expected "
                             "2019-05-01/2019-09-30")
        client = require("pystac_client", "STAC catalogues")
        address = CATALOGUES.get(catalogue, catalogue)
        modifier = None
        if address == CATALOGUES["planetary-computer"]:  # its files want a signature that expires
            modifier = require("planetary_computer", "Planetary Computer").sign_inplace
        self.label = f"{without_keys(catalogue)} {collection}"
        self.key = sha256_of(catalogue, collection, asset, dates, cloud_cover, bands or ())[:16]
        self.asset, self.bands, self.pacer = asset, bands, pacer
        query = None if cloud_cover is None else {"eo:cloud_cover": {"lte": cloud_cover}}
        self._wanted = {"collections": [collection], "datetime": dates, "query": query,
                        "max_items": MOST_ITEMS, "limit": 100}
        try:
            self._client = patiently(
                lambda: _asked(client.Client.open, address, modifier=modifier), pacer, self.label)
        except FetchError as error:
            raise InputError(f"--stac {self.label} cannot be opened: {error}") from None

    def at(self, footprint: Footprint) -> Iterator[Raster]:
        """The rasters that may show a place, the least cloudy first, of those the newest.

        Raises:
            InputError: an image has no such asset.
            FetchError: the catalogue does not answer, or none of the files.
        """
        x, y = footprint.points(1)
        corners = [0, 1, 3, 2]  # of the net, in the order of imagery/places.py
        longitudes, latitudes = transform(footprint.crs, WGS84, x.ravel()[corners],
                                          y.ravel()[corners])
        place = geometry_of([value for point in zip(longitudes, latitudes, strict=True)
                             for value in point])
        items = patiently(lambda: _asked(lambda: list(self._client.search(
            intersects=place, **self._wanted).items())), self.pacer, self.label)
        opened, failed = 0, None
        for item in sorted(items, key=_by_clouds):
            if self.asset not in item.assets:
                raise InputError(f"--asset {self.asset}: the images of {self.label} have "
                                 f"{', '.join(sorted(item.assets))[:300] or 'none'}")
            try:
                raster = self._raster(item.assets[self.asset].get_absolute_href(), _date(item))
            except FetchError as error:
                failed = error
                continue
            opened += 1
            yield raster
        if failed and not opened:
            raise failed

    @functools.lru_cache(maxsize=16)  # noqa: B019 - there is one search in a process
    def _raster(self, address: str, date: str) -> Raster:
        if not re.match("https?://|s3://", address or ""):
            raise FetchError("its image lies at no address of the network")
        try:
            return Raster(address, self.bands, self.pacer, date)
        except InputError as error:
            raise FetchError(str(error)) from None


def _by_clouds(item: Any) -> tuple:
    day = _date(item).replace("-", "")
    clouds = item.properties.get("eo:cloud_cover", 0)
    return clouds if isinstance(clouds, int | float) else 100, -int(day or 0), item.id


def _are_dates(text: str) -> bool:
    """Whether it is a day, or two with / between, of which one may be left open: 2019-05-01/.."""
    try:
        days = [datetime.date.fromisoformat(day) for day in text.split("/") if day != ".."]
    except ValueError:
        return False
    return text.count("/") <= 1 and len(days) >= 1 and days == sorted(days)


def _date(item: Any) -> str:
    moment = item.datetime or item.common_metadata.start_datetime
    return moment.date().isoformat() if moment else ""


def _asked(function: Any, *args: Any, **options: Any) -> Any:
    """What a function of pystac-client gives; its errors as OSError with the status."""
    try:
        return function(*args, **options)
    except OSError:
        raise
    except Exception as error:  # of several packages
        status = getattr(error, "status_code", None)
        raise OSError(f"HTTP status code {status}" if status else str(error)) from None
