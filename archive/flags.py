"""The flags of search.py, a function for each of its commands."""

from __future__ import annotations

import argparse

from archive.export import KINDS
from archive.items import printable
from engine import cli
from engine.cli import number
from utils import LARGEST_SIDE


def coordinate(text: str) -> tuple[float, float]:
    """LAT,LON in degrees."""
    latitude, longitude = map(float, text.split(","))
    if not (abs(latitude) <= 90 and abs(longitude) <= 180):
        raise argparse.ArgumentTypeError(f"{text} is no LAT,LON: latitudes reach from -90 to 90, "
                                         "longitudes from -180 to 180")
    return latitude, longitude


coordinate.__name__ = "LAT,LON"  # argparse: invalid ... value


def add_reading_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "how images are read (default: as all those of the archive, else as in training)")
    group.add_argument("--bands", help="one or three bands of GeoTIFFs by number or name, as 4,3,2 "
                                       "or B04,B03,B02")
    group.add_argument("--range", help="pixels that become black and white, as 0,3000 or 2%%,98%% "
                                       "of all images")
    how = group.add_mutually_exclusive_group()
    how.add_argument("--plain", action="store_true",
                     help="as they are: not through the sensor that UCMerced and samples simulate, "
                          "nor with the bands and range of the training")
    how.add_argument("--as_trained", action="store_true",
                     help="as the model was trained, whatever the archive holds")


def of_add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", nargs="+", required=True, metavar="PLACE",
                        help="folders, zips, images; with --tile scenes, or folders of them")
    parser.add_argument("--pretrain_path",
                        help="the mrhash.pth of train.py; the archive keeps a copy, so that only "
                             "the first add needs it")
    parser.add_argument("--tile", type=number(int, 8, LARGEST_SIDE), metavar="PIXELS",
                        help="cut scenes of any size into squares of this side; those without "
                             "data are left out")
    parser.add_argument("--stride", type=number(int, 1), metavar="PIXELS",
                        help="from one tile to the next (default: --tile)")
    parser.add_argument("--keep_outputs", action="store_true",
                        help="keep the real-valued outputs, too, for find --rerank: 2 bytes a bit")
    add_reading_flags(parser)
    cli.add_run_flags(parser, batch_size=128, cached=False)


def of_find(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--query", nargs="+", metavar="FILE", help="image files, which are hashed")
    what.add_argument("--name", nargs="+", type=printable, help="items of the archive")
    what.add_argument("--at", type=coordinate, metavar="LAT,LON", help="the item that lies there")
    parser.add_argument("--top", type=number(int, 1), default=20, help="how many to find")
    parser.add_argument("--within_km", type=number(float, 0), metavar="KM",
                        help="only items so near to the query's place, or to --around")
    parser.add_argument("--around", type=coordinate, metavar="LAT,LON",
                        help="see --within_km")
    parser.add_argument("--rerank", action="store_true",
                        help="order the nearest hundred by the cosine of the real-valued outputs, "
                             "which add --keep_outputs has kept")
    parser.add_argument("--csv", metavar="FILE", help="write the answers as a table")
    parser.add_argument("--geojson", metavar="FILE", help="write their footprints, for QGIS")
    parser.add_argument("--picture", metavar="FILE", help="write a PNG of queries and answers")
    parser.add_argument("--page", metavar="DIR",
                        help="write a folder for a browser, of queries and answers alone")
    add_reading_flags(parser)
    cli.add_run_flags(parser, batch_size=128, cached=False)


def of_page(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, metavar="DIR", help="where it goes")
    parser.add_argument("--basemap", metavar="URL",
                        help="map tiles that the page loads from a service, as "
                             "https://.../{z}/{x}/{y}.png (default: none, the page needs no "
                             "network)")


def of_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--faiss", metavar="FILE", help="an index of faiss")
    parser.add_argument("--kind", choices=KINDS,
                        help="of the index (default: flat): flat compares all; ivf and multihash "
                             "compare some, and pay from millions of items on (docs/search.md)")
    parser.add_argument("--npz", metavar="FILE",
                        help="codes, names and labels, as test.py --codes reads them")
    parser.add_argument("--geojson", metavar="FILE", help="all footprints, for QGIS")


def of_remove(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", nargs="+", required=True, type=printable,
                        help="names of items, or globs such as 'River/*'")
