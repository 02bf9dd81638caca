"""The flags of collect.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from engine.cli import ArgumentParser, number
from imagery.cut import RESAMPLING
from imagery.plan import MOST_TILES
from imagery.services import MOST_ZOOM, SERVICES
from imagery.stac import CATALOGUES


def band_list(text: str) -> list[int]:
    """Bands, from 1: 4,3,2."""
    bands = [int(word) for word in text.split(",")]
    if min(bands) < 1:
        raise argparse.ArgumentTypeError(f"{text}: bands are counted from 1")
    return bands


band_list.__name__ = "list of bands"  # argparse: invalid ... value


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(prog="collect.py", description="Stage 0: the second satellite's "
                            "images, by geographic coordinates.")
    _add_places(parser)
    _add_sources(parser)
    _add_images(parser.add_argument_group("images"))
    _add_limits(parser.add_argument_group("how much"))
    return parser.parse_args(arguments)


def _add_places(parser: argparse.ArgumentParser) -> None:
    one = parser.add_argument_group("where").add_mutually_exclusive_group(required=True)
    one.add_argument("--images", help="folder or zip of GeoTIFFs: their places, their names")
    one.add_argument("--table",
                     help="CSV of name, lat, lon, or of name, west, south, east, north")
    add = parser.add_argument_group("which of them").add_argument
    add("--metres", type=number(float, 1, 1e6),
        help="width of the places around the points of --table; 640 for EuroSAT's")
    add("--include", nargs="+", help="patterns: only images that fit")
    add("--exclude", nargs="+", help="patterns: without those that fit")
    add("--limit", type=number(int, 1),
        help="only so many, evenly spaced among all, to see whether it is what you want")


def _add_sources(parser: argparse.ArgumentParser) -> None:
    one = parser.add_argument_group("from what").add_mutually_exclusive_group(required=True)
    one.add_argument("--service", nargs="+", help=f"{', '.join(SERVICES)}, or a template with "
                     "{z}, {x}, {y}; keys as {NAME}, in capitals, from the environment; further "
                     "ones fill the gaps of the first")
    one.add_argument("--raster", nargs="+", help="what GDAL opens: files, VRT, addresses of COGs, "
                     "WMS, WMTS; further ones fill the gaps of the first")
    one.add_argument("--stac", help=f"catalogue that is searched for each place: "
                     f"{', '.join(CATALOGUES)}, or the address of an API; pip install "
                     "pystac-client")
    add = parser.add_argument_group("of a catalogue").add_argument
    add("--collection", help="such as sentinel-2-c1-l2a, or naip")
    add("--asset", help="file of each image: visual is the colour image of Sentinel-2 (the "
        "default), image that of NAIP")
    add("--dates", help="when the images were taken: 2019-05-01/2019-09-30")
    add("--cloud_cover", type=number(float, 0, 100),
        help="most percent of clouds; the least cloudy image is taken first")
    add = parser.add_argument_group("of a service or raster").add_argument
    add("--zoom", type=number(int, 0, MOST_ZOOM),
        help="level of a service's tiles (default: the coarsest that is as fine as the images); "
             "each step more is four times the tiles")
    add("--tile_size", type=int, choices=(256, 512),
        help="pixels of a service's tiles (default: 256); those called @2x have 512")
    add("--bands", type=band_list, help="of a raster, from 1, such as 1,2,3")


def _add_images(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--output", required=True, help="folder of the images and collect.csv")
    add("--size", type=number(int, 8, 4096), default=256,
        help="pixels of the longer side; more details, more tiles; another one needs another "
             "--output")
    add("--format", choices=("tif", "jpg"), default="tif",
        help="tif keeps bands, numbers and the place; jpg takes a quarter of the room, and "
             "search.py will not know where its images lie")
    add("--resampling", choices=("auto", *RESAMPLING), default="auto",
        help="auto: the mean where the source is twice as fine, else cubic; nearest for classes")


def _add_limits(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--per_second", type=number(float, 0.01, 1000), default=5,
        help="most requests a second, one after the other; lower it for a small service")
    add("--retry", action="store_true", help="try again the places that had no imagery")
    add("--dry_run", action="store_true", help="say what it would do, and end")
    add("--yes", action="store_true",
        help=f"I have read the terms; needed above {MOST_TILES:,} tiles")
    add("--cache_dir", default="cache",
        help="where tiles are kept for a month, so that neighbours share them; none keeps none")
