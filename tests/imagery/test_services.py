"""Templates of tile services, and what is kept of their tiles."""

import os
import re
import time

import numpy as np
import pytest
from rasterio.windows import Window

from image_helpers import complaint
from imagery.cut import is_flat
from imagery.fetch import Pacer, gdal
from imagery.services import MOST_ZOOM, SERVICES, Service, Tiles, service_of
from place_helpers import on_grid, tiles_of
from tile_server import encoded, scale_of, tile

PLACE = on_grid(32633, 400_003, 5_400_004)
SCALE = scale_of(PLACE)
ROW, COLUMN = 5644, 8812  # a tile of zoom 14


@pytest.fixture(autouse=True)
def environment(tmp_path):
    with gdal(tmp_path / "tiles"):
        yield


def source(template, zoom=None, tile_size=256):
    return Tiles(service_of(template), zoom, tile_size, None, Pacer(1000))


# ------------------------------------------------------------ by name and by template


@pytest.mark.parametrize("name", SERVICES)
def test_known_services_can_be_used(name):
    service = service_of(name.upper())
    found = Tiles(service, None, 256, None, Pacer(1))
    assert found.level(1).crs.to_epsg() == 3857
    assert found.zoom(1) == str(service.max_zoom) and found.zoom(found.factors[-1]) == "0"
    assert found.label in service.template and "/" not in found.label
    assert "https://" in service.terms and service.ask == (name == "arcgis")


def test_a_template_says_nothing_of_itself():
    service = service_of("https://a.example:8080/{z}/{x}/{y}")
    assert (service.max_zoom, service.ask) == (MOST_ZOOM, False) and "you to know" in service.terms
    keys = {source(template).key for template in (
        "https://a.example/{z}/{x}/{y}", "https://a.example/{z}/{y}/{x}",
        "https://a.example/{z}/{x}/{-y}", "https://a.example/{z}/{x}/{y}?a")}
    assert len(keys) == 4


def test_keys_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("TILES_KEY", "a&b<c")
    found = source("https://a.example/{z}/{x}/{y}?k={TILES_KEY}")
    assert found.url == "https://a.example/${z}/${x}/${y}?k=a&b<c"
    before = found.key
    monkeypatch.setenv("TILES_KEY", "another")  # a new key is no other service
    assert source("https://a.example/{z}/{x}/{y}?k={TILES_KEY}").key == before


@pytest.mark.parametrize(("template", "parts"), [
    ("bing", ("--service bing is not known: use arcgis, s2cloudless, usgs, ign, pdok, or a tem",)),
    ("https://a.example/{x}/{y}", ("must have {z}, {x} and {y} ({-y} where",)),
    ("https://a.example/{z}/{x}/{y}/{-y}", ("must have {z}, {x} and {y}",)),
    ("https://a.example/{z}/{x}", ("must have {z}, {x} and {y}",)),
    ("https://{s}.a.example/{z}/{x}/{y}", ("has {s}: expected {z}, {x}, {y} and names of", "write "
                                           "one server in place of {s}")),
    ("https://a.example/{z}/{x}/{y}{r}", ("has {r}",)),
    ("https://a.example/{z}/{x}/{y}?{NOT_SET_HERE}", ("the environment variable NOT_SET_HERE, which"
                                                      " is not set: export NOT_SET_HERE=...",)),
    ("ftp://a.example/{z}/{x}/{y}", ("must begin with https:// and a host",)),
    ("https://me:secret@a.example/{z}/{x}/{y}", ("must begin with https:// and a host",))])
def test_templates_that_cannot_be_used(template, parts):
    assert "secret" not in complaint(lambda: source(template), *parts)


@pytest.mark.parametrize(("name", "zoom", "size", "most"), [
    ("arcgis", 20, 256, 19), ("s2cloudless", 15, 256, 14),
    ("https://a.example/{z}/{x}/{y}", 22, 512, 21)])
def test_a_zoom_that_a_service_has_not(name, zoom, size, most):
    complaint(lambda: source(name, zoom, size), f"--zoom {zoom} is beyond {most}, the last one of")
    assert source(name, most, size).level(1).width == 2 ** most * size


# ------------------------------------------------------------ tiles that are kept


@pytest.fixture
def kept(server, tmp_path):
    """A source that keeps tiles; `read` is that of a new process."""
    class Kept:
        def read(self):
            found = Tiles(Service(server.template(SCALE), 22, ""), None, 256, tmp_path / "tiles",
                          Pacer(1000))
            window = Window(COLUMN * 256, ROW * 256, 256, 256)
            return found.read(found.factors[22 - 14], window)

        @property
        def files(self):
            return [path for path in tmp_path.rglob("*") if path.is_file()]

    return Kept()


def test_a_tile_is_fetched_once(kept, server):
    for _ in range(3):
        colours, there = kept.read()
        assert np.array_equal(colours, tile(SCALE, 14, COLUMN, ROW)) and there.all()
    assert len(server.asked) == 1 and len(kept.files) == 1


@pytest.mark.parametrize(("days", "requests"), [(29, 1), (31, 2)])
def test_a_tile_is_kept_for_a_month(kept, server, days, requests):
    kept.read()
    path, = kept.files
    then = time.time() - days * 24 * 3600
    os.utime(path, (then, then))
    colours, there = kept.read()
    assert np.array_equal(colours, tile(SCALE, 14, COLUMN, ROW)) and there.all()
    assert len(server.asked) == requests


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("JPEG", {}),
                                               ("JPEG", {"progressive": True}), ("WEBP", {})])
def test_a_tile_that_was_half_written_is_fetched_again(kept, server, kind, options):
    """As a kill leaves it; a PNG without its last bytes has all pixels."""
    body = encoded(tile(SCALE, 14, COLUMN, ROW), kind, **options)
    server.answer_body = lambda *_: body
    whole = kept.read()[0]
    path, = kept.files
    data = path.read_bytes()
    assert data == body
    for length in (0, 1, 30, len(data) // 2, len(data) - 200, len(data) - 30, len(data) - 1):
        path.write_bytes(data[:length])
        colours, there = kept.read()
        assert np.array_equal(colours, whole) and there.all(), length
    assert len(server.asked) >= 7


def test_tiles_of_grey_and_of_a_palette_become_colours(kept, server):
    grey = tile(SCALE, 14, COLUMN, ROW)[0]
    server.answer_body = lambda *_: encoded(grey)
    colours, there = kept.read()
    assert there.all() and np.array_equal(colours, np.stack([grey] * 3))


# ------------------------------------------------------------ what is no imagery


def test_what_is_flat():
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (3, 64, 64), dtype=np.uint8)
    assert not is_flat(pixels)
    pixels[:, :47] = 200  # 73 %
    assert not is_flat(pixels)
    pixels[:, :49] = 200  # 77 %
    assert is_flat(pixels) and is_flat(pixels[:1])
    assert not is_flat(np.stack([pixels[0], *generator.integers(0, 256, (2, 64, 64))]))
    sea = generator.normal([[[20]], [[40]], [[80]]], 1.5, (3, 64, 64)).round()
    assert not is_flat(sea)  # dark and even, but a camera saw it


def test_the_agent_says_who_asks(server):
    agents = []
    server.headers = agents.append
    window = Window(COLUMN * 256, ROW * 256, 256, 256)
    tiles_of(server, SCALE, 14).read(1, window)
    assert [re.match("MrHash", head["User-Agent"])[0] for head in agents] == ["MrHash"]
