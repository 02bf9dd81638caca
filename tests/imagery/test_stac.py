"""A catalogue on this machine: which of its images are taken, and what it may refuse."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import rasterio
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.warp import transform_bounds

from helpers import call
from imagery import fetch
from raster_helpers import raster
from script_helpers import refused

pytest.importorskip("pystac_client")

UTM = CRS.from_epsg(32632)
EAST, NORTH, SIDE = 600_000, 5_300_000, 128  # a corner, and pixels of 10 m


def image(value, left=0, bands=3):
    """A COG's stand-in: `bands` of one scene, brighter to the east, with `value` in the first."""
    numbers = np.zeros((bands, SIDE, SIDE), np.uint8)
    numbers[0] = value
    numbers[1] = np.arange(SIDE)
    grid = Affine(10, 0, EAST + 10 * left, 0, -10, NORTH)
    return raster(numbers, crs=UTM, transform=grid, tiled=True, blockxsize=64, blockysize=64)


def item(base, name, date, clouds, left=0, href="{base}/{name}.tif"):
    west, south, east, north = transform_bounds(
        UTM, "EPSG:4326", EAST + 10 * left, NORTH - 10 * SIDE, EAST + 10 * (left + SIDE), NORTH)
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"type": "Feature", "stac_version": "1.0.0", "id": name, "collection": "s2",
            "bbox": [west, south, east, north], "links": [],
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"datetime": f"{date}T10:00:00Z", "eo:cloud_cover": clouds},
            "assets": {"visual": {"href": href.format(base=base, name=name)}}}


@contextmanager
def catalogue(files, items):
    """Yields the address of a STAC API and the searches that were asked of it.

    files: name -> bytes. items: function of the address -> features; a number is a status.
    """
    searches = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def answer(self, status, body, kind="application/json", **headers):
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": len(body),
                                "Accept-Ranges": "bytes", **headers}.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_POST(self):
            searches.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            found = items(base)
            if isinstance(found, int):
                self.answer(found, b"{}")
            else:
                self.answer(200, json.dumps({"type": "FeatureCollection", "links": [],
                                             "features": found}).encode())

        def do_GET(self):
            if self.path == "/":
                links = [{"rel": "search", "href": f"{base}/search", "method": "POST",
                          "type": "application/geo+json"}, {"rel": "root", "href": base}]
                core = "https://api.stacspec.org/v1.0.0/"
                self.answer(200, json.dumps({
                    "type": "Catalog", "id": "test", "stac_version": "1.0.0", "description": "-",
                    "conformsTo": [f"{core}core", f"{core}item-search",
                                   f"{core}item-search#query"], "links": links}).encode())
                return
            body = files.get(self.path[1:])
            if body is None:
                self.answer(404, b"")
            elif wanted := self.headers.get("Range"):
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                part = body[int(first):int(last or len(body)) + 1]
                end = int(first) + len(part) - 1
                self.answer(206, part, "image/tiff",
                            Content_Range=f"bytes {first}-{end}/{len(body)}")
            else:
                self.answer(200, body, "image/tiff")

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    base = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield base, searches
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(fetch, "PAUSES", {kind: (0, 0) for kind in fetch.PAUSES})


@pytest.fixture
def places(tmp_path):
    """A table of one place of 320 m, the pixels 16 to 47 of the scene in both directions."""
    (x,), (y,) = rasterio.warp.transform(UTM, "EPSG:4326", [EAST + 320], [NORTH - 320])
    table = tmp_path / "places.csv"
    table.write_text(f"name,lat,lon\none,{y:.9f},{x:.9f}\n")
    return table


def flags_of(places):
    return ["--table", places, "--metres", 320, "--size", 32, "--output", places.parent / "out",
            "--cache_dir", "none", "--per_second", 1000]


def collected(capsys, places, *flags):
    """What was printed, the line of collect.csv, and the file."""
    output = places.parent / "out"
    _, told, _ = call(capsys, "collect.py", *flags_of(places), *flags)
    rows = (output / "collect.csv").read_text().splitlines()
    return told, dict(zip(*(row.split(",") for row in rows), strict=True)), output / "one.tif"


def test_the_least_cloudy_image_is_taken_and_of_those_the_newest(capsys, places):
    files = {f"{name}.tif": image(value) for name, value in
             [("cloudy", 10), ("old", 20), ("new", 30)]}
    with catalogue(files, lambda base: [
            item(base, "cloudy", "2020-06-01", 60), item(base, "old", "2018-06-01", 1),
            item(base, "new", "2019-06-01", 1)]) as (base, searches):
        _, row, file = collected(capsys, places, "--stac", base, "--collection", "s2",
                                 "--dates", "2018-01-01/2020-12-31", "--cloud_cover", 80)
    assert (row["status"], row["date"], row["resolution"]) == ("collected", "2019-06-01", "10")
    asked, = searches
    assert asked["collections"] == ["s2"] and asked["query"] == {"eo:cloud_cover": {"lte": 80}}
    assert asked["datetime"].startswith("2018-01-01") and "2020-12-31" in asked["datetime"]
    with rasterio.open(file) as found:
        pixels = found.read()
    assert (pixels[0] == 30).all()
    assert np.abs(pixels[1] - np.arange(16, 48)).max() <= 1  # exactly its place


def test_the_next_image_fills_the_gap_of_the_first(capsys, places):
    files = {"east.tif": image(10, left=32), "all.tif": image(20)}
    with catalogue(files, lambda base: [item(base, "east", "2019-06-01", 0, left=32),
                                        item(base, "all", "2019-06-01", 5)]) as (base, _):
        _, row, file = collected(capsys, places, "--stac", base, "--collection", "s2")
    assert row["status"] == "collected"
    with rasterio.open(file) as found:
        assert [*found.read(1)[5, [0, 14, 17, 31]]] == [20, 20, 10, 10]


def test_an_image_that_has_gone_or_of_unknown_clouds_is_no_hindrance(capsys, places):
    """Of unknown clouds it comes last; two more lie far beyond one page."""
    files = {"dark.tif": image(10), "fair.tif": image(20)}
    with catalogue(files, lambda base: [
            item(base, "dark", "2020-06-01", None), item(base, "gone", "2019-06-01", 0),
            *(item(base, f"n{number}", "2019-06-01", 50) for number in range(40)),
            item(base, "fair", "2018-06-01", 7)]) as (base, _):
        _, row, file = collected(capsys, places, "--stac", base, "--collection", "s2")
    assert (row["status"], row["date"]) == ("collected", "2018-06-01")
    with rasterio.open(file) as found:
        assert (found.read(1) == 20).all()


def test_where_the_catalogue_has_nothing_the_place_is_left_out(capsys, places):
    with catalogue({}, lambda base: []) as (base, _):
        told, row, file = collected(capsys, places, "--stac", base, "--collection", "s2")
    assert (row["status"], row["note"]) == ("no imagery", "the catalogue has none")
    assert not file.exists() and "0 of 1 images" in told


@pytest.mark.parametrize("found, flags, said", [
    (403, [], "HTTP 403, it refuses"),
    (lambda base: [item(base, "gone", "2019-06-01", 0)], [], "gone.tif cannot be opened: HTTP 404"),
    (lambda base: [item(base, "a", "2019-06-01", 0, href="/etc/hosts")], [], "no address of the"),
    (lambda base: [item(base, "a", "2019-06-01", 0)], ["--asset", "image"], "have visual"),
    (lambda base: [item(base, "a", "2019-06-01", 0)], ["--bands", "7"], "has 3 bands"),
])
def test_what_cannot_be_had_is_said_in_a_sentence(capsys, places, found, flags, said):
    with catalogue({"a.tif": image(9)}, found if callable(found) else lambda base: found
                   ) as (base, _):
        code, out, error = call(capsys, "collect.py", *flags_of(places), "--stac", base,
                                "--collection", "s2", *flags)
    assert code == 2 and said in out + error
    assert "Traceback" not in error


@pytest.mark.parametrize("flags, said", [
    (["--stac", "http://127.0.0.1:9/"], "--stac needs --collection"),
    (["--stac", "http://127.0.0.1:9/", "--collection", "s2"], "cannot be opened: no connection"),
    (["--stac", "earth-search", "--collection", "s2", "--dates", "May"], "2019-05-01/2019-09-30"),
    (["--stac", "earth-search", "--collection", "s2", "--dates", "2020-02-30"], "2019-05-01/2019"),
    (["--stac", "earth-search", "--collection", "s2", "--dates", "2020-02-02/2020-01-01"], "be re"),
    (["--stac", "me:Key7@127.0.0.1:9", "--collection", "s2"], "127.0.0.1:9 s2 cannot be opened"),
    (["--stac", "http://me:Key7@127.0.0.1:9/?k=Key7", "--collection", "s2"], "127.0.0.1:9/ s2 can"),
    (["--service", "usgs", "--asset", "image"], "--asset is for --stac"),
    (["--service", "usgs", "--dates", "2019-05-01"], "--dates is for --stac"),
])
def test_flags_of_a_catalogue(capsys, places, flags, said):
    text = refused(capsys, "collect.py", *flags_of(places), *flags)
    assert said in text and "Key7" not in text
    assert not (places.parent / "out").exists()
