"""Tile services: those known by name, and any by a template of its addresses."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from xml.sax.saxutils import escape

import numpy as np
from rasterio import DatasetReader
from rasterio.errors import RasterioError
from rasterio.windows import Window

from imagery.cut import is_flat
from imagery.fetch import AGENT, TIMEOUT, Pacer, patiently, quietly
from utils import InputError, sha256_of

HALF = 20037508.342789244  # metres: Web Mercator ends so far from its middle, on all four sides
MOST_ZOOM = 22  # beyond, GDAL cannot count the pixels
MONTH = 30 * 24 * 3600  # seconds that a tile is kept
PLACE = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Service:
    """What is known of a service.

    template: of addresses. max_zoom: beyond which it has no tiles. terms: one line with a link.
    ask: whether its terms forbid to keep tiles without leave, so that --yes is always needed.
    """

    template: str
    max_zoom: int
    terms: str
    ask: bool = False


# Addresses, zooms and terms as their owners publish them, looked up in November 2026.
SERVICES = {
    "arcgis": Service(
        "https://server.arcgisonline.com/ArcGIS/rest/services/World_Imagery/MapServer/tile/"
        "{z}/{y}/{x}?blankTile=false", 19,
        "Esri World Imagery, the paper's: Esri's agreement lets nobody download or store it but by "
        "Esri's own packages, so get its leave "
        "(https://www.esri.com/en-us/legal/terms/full-master-agreement)", ask=True),
    "s2cloudless": Service(
        "https://tiles.maps.eox.at/wmts/1.0.0/s2cloudless-2020_3857/default/g/{z}/{y}/{x}.jpg", 14,
        "Sentinel-2 cloudless 2020 by EOX, contains modified Copernicus Sentinel data: CC BY-NC-SA "
        "4.0 (https://s2maps.eu)"),
    "usgs": Service(
        "https://basemap.nationalmap.gov/arcgis/rest/services/USGSImageryOnly/MapServer/tile/"
        "{z}/{y}/{x}?blankTile=false", 16,
        "USGS The National Map, United States alone: public domain, name the USGS "
        "(https://www.usgs.gov/information-policies-and-instructions/copyrights-and-credits)"),
    "ign": Service(
        "https://data.geopf.fr/wmts?SERVICE=WMTS&REQUEST=GetTile&VERSION=1.0.0&STYLE=normal"
        "&LAYER=ORTHOIMAGERY.ORTHOPHOTOS&FORMAT=image/jpeg&TILEMATRIXSET=PM&TILEMATRIX={z}"
        "&TILEROW={y}&TILECOL={x}", 19,
        "IGN BD ORTHO, France alone: Licence Ouverte 2.0, name the IGN "
        "(https://geoservices.ign.fr/cgu-licences)"),
    "pdok": Service(
        "https://service.pdok.nl/hwh/luchtfotorgb/wmts/v1_0/Actueel_ortho25/EPSG:3857/"
        "{z}/{x}/{y}.jpeg", 19,
        "Beeldmateriaal aerial photos by PDOK, the Netherlands alone: CC BY 4.0 "
        "(https://www.pdok.nl/introductie/-/article/pdok-luchtfoto-rgb-open-)"),
}


def service_of(text: str) -> Service:
    """A service by its name, or of a template.

    Raises:
        InputError: neither.
    """
    if text.lower() in SERVICES:
        return SERVICES[text.lower()]
    if "://" not in text:
        raise InputError(f"--service {text.split('?')[0][:80]} is not known: use "
                         f"{', '.join(SERVICES)}, or a template such as "
                         "'https://tiles.example/{z}/{x}/{y}.png'")
    return Service(text, MOST_ZOOM, "its terms are for you to know: see that they allow to keep "
                                    "so many tiles")


class Tiles:
    """Square images of Web Mercator, 2^zoom x 2^zoom of them around the earth: a views.Source."""

    remote, world, bands, dtype, date = True, True, 3, "uint8", ""
    at_once = requests = 1  # a tile is what one asks for

    def __init__(self, service: Service, zoom: int | None, tile_size: int, cache: Path | None,
                 pacer: Pacer) -> None:
        """Nothing is fetched yet.

        Args:
            service: where tiles come from.
            zoom: the only one to be used; None: as a place demands.
            tile_size: pixels.
            cache: folder that keeps tiles; None: nowhere.
            pacer: keeps the rate.
        Raises:
            InputError: a template that cannot be used, or a key that is not in the environment.
        """
        self.url, self.origin = _url_of(service.template)
        self.label = urlsplit(service.template).netloc
        self.key = sha256_of(service.template)[:16]
        # GDAL counts no further than to 2^31 pixels.
        most = min(service.max_zoom, MOST_ZOOM - (tile_size > 256))
        if zoom is not None and zoom > most:
            raise InputError(f"--zoom {zoom} is beyond {most}, the last one of {self.label}")
        self.finest = most if zoom is None else zoom
        self.factors = [2 ** step for step in range(self.finest + 1 if zoom is None else 1)]
        self.tile_size, self.cache, self.pacer = tile_size, cache, pacer
        self._open: dict[int, DatasetReader] = {}

    def level(self, factor: int) -> DatasetReader:
        """The raster of all tiles of a zoom."""
        if factor not in self._open:
            self._open[factor] = quietly(self._description(factor), self.label)
        return self._open[factor]

    def zoom(self, factor: int) -> str:
        return str(self.finest - factor.bit_length() + 1)

    def read(self, factor: int, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """The pixels of a tile, uint8 (3, H, W), and where there is imagery, bool (H, W).

        Raises:
            InputError, FetchError: as patiently.
        """
        values = self._kept(factor, window)
        if values is None:
            dataset = self.level(factor)
            values = patiently(lambda: dataset.read(window=window), self.pacer, self.label)
        colours, valid = values[:3], values[3] > 0
        if valid.any() and is_flat(colours[:, valid]):
            valid = np.zeros_like(valid)
        return colours, valid

    def _kept(self, factor: int, window: Window) -> np.ndarray | None:
        """A tile of the cache, or None. Opened each time: GDAL remembers what it did not find."""
        if self.cache is None:
            return None
        try:
            with quietly(self._description(factor, offline=True), self.label) as dataset:
                values = dataset.read(window=window)
        except RasterioError:  # half written when the process was killed
            return None
        return values if values[3].any() else None

    def _description(self, factor: int, offline: bool = False) -> str:
        """For GDAL's WMS driver. What the service does not have (404) is transparent."""
        cache = "" if self.cache is None else (
            f"<Cache><Path>{escape(str(self.cache))}</Path><Expires>{MONTH}</Expires></Cache>")
        return (
            f'<GDAL_WMS><Service name="TMS"><ServerUrl>{escape(self.url)}</ServerUrl></Service>'
            f"<DataWindow><UpperLeftX>-{HALF}</UpperLeftX><UpperLeftY>{HALF}</UpperLeftY>"
            f"<LowerRightX>{HALF}</LowerRightX><LowerRightY>-{HALF}</LowerRightY>"
            f"<TileLevel>{self.zoom(factor)}</TileLevel><TileCountX>1</TileCountX>"
            f"<TileCountY>1</TileCountY><YOrigin>{self.origin}</YOrigin></DataWindow>"
            f"<Projection>EPSG:3857</Projection><BlockSizeX>{self.tile_size}</BlockSizeX>"
            f"<BlockSizeY>{self.tile_size}</BlockSizeY><BandsCount>4</BandsCount>"
            f"<MaxConnections>1</MaxConnections><Timeout>{TIMEOUT}</Timeout>"
            f"<UserAgent>{AGENT}</UserAgent><OfflineMode>{str(offline).lower()}</OfflineMode>"
            f"<ZeroBlockHttpCodes>204,404,410</ZeroBlockHttpCodes>{cache}</GDAL_WMS>")


def _url_of(template: str) -> tuple[str, str]:
    """GDAL's form of a template, with keys from the environment, and where its rows begin."""
    if "$" in template:
        raise InputError("the template of --service has $: write {x}, not ${x}")
    words = PLACE.findall(template)
    rows = {"y", "-y"} & set(words)
    if not {"x", "z"} <= set(words) or len(rows) != 1:
        raise InputError("the template of --service must have {z}, {x} and {y} ({-y} where rows "
                         "count from the south)")

    def value(match: re.Match) -> str:
        word = match[1]
        if word in ("x", "y", "z", "-y"):
            return f"${{{word[-1]}}}"
        if not re.fullmatch("[A-Z][A-Z0-9_]*", word):
            raise InputError(f"the template of --service has {{{word[:40]}}}: expected {{z}}, {{x}}"
                             ", {y} and names of environment variables in capitals, such as "
                             "{TILES_KEY}; write one server in place of {s}")
        if word not in os.environ:
            raise InputError(f"the template of --service wants the environment variable {word}, "
                             f"which is not set: export {word}=...")
        if not re.fullmatch(r"[!-~]+", os.environ[word]) or "#" in os.environ[word]:
            raise InputError(f"the environment variable {word} has characters that no address may "
                             "have: write them as %20 and the like")
        return os.environ[word]

    url = PLACE.sub(value, template)
    if not re.match(r"https?://[\w.-]+(:\d+)?/", template):
        raise InputError("the template of --service must begin with https:// and a host")
    return url, "bottom" if "-y" in rows else "top"
