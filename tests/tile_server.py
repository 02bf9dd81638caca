"""A tile service on this machine whose pixels tell where they lie, and faults that it can have."""

import io
import math
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

import numpy as np
from PIL import Image
from rasterio.warp import transform

RADIUS = 6378137.0  # of Web Mercator's sphere
HALF = math.pi * RADIUS
TILE = re.compile(r"/(\w+)/(-?[\d.]+)/(-?[\d.]+)/([\d.]+)/(\d+)/(\d+)/(\d+)")


def mercator(longitude, latitude):
    """x = a longitude, y = a ln tan(45 degrees + latitude / 2)."""
    return (RADIUS * np.radians(longitude),
            RADIUS * np.log(np.tan(np.pi / 4 + np.radians(latitude) / 2)))


@dataclass(frozen=True)
class Scale:
    """Red and green rise with Web Mercator's x and y: by 1 in `step` metres, 128 at the origin.

    Beyond 0 and 255 they turn back. Blue is no colour alone, so that no tile is flat.
    """

    x: float
    y: float
    step: float

    def levels(self, x, y):
        """float (2, ...) at points of Web Mercator; the shorter way around the earth."""
        east = (x - self.x + HALF) % (2 * HALF) - HALF
        values = 128 + np.stack(np.broadcast_arrays(east, y - self.y)) / self.step
        return 255 - np.abs(values % 510 - 255)

    def pixels(self, x, y):
        """uint8 (3, ...)."""
        red, green = np.rint(self.levels(x, y)).astype(np.uint8)
        return np.stack([red, green, 255 - red // 2 - green // 2])


def scale_of(footprint, levels=183):
    """One that gives about so many levels to the longer side of a place."""
    latitude, longitude = footprint.centre()
    x, y = mercator(longitude, latitude)
    metres = footprint.metres() * max(1, footprint.height / footprint.width)
    return Scale(x, y, metres / math.cos(math.radians(latitude)) / levels)


def places_of_pixels(footprint):
    """Web Mercator's x and y of the middle of each pixel, (H, W)."""
    rows, columns = np.mgrid[:footprint.height, :footprint.width] + 0.5
    grid = footprint.transform
    x = grid.a * columns + grid.b * rows + grid.c
    y = grid.d * columns + grid.e * rows + grid.f
    longitude, latitude = transform(footprint.crs, "EPSG:4326", x.ravel(), y.ravel())
    x, y = mercator(np.array(longitude), np.array(latitude))
    return x.reshape(rows.shape), y.reshape(rows.shape)


def shift(pixels, footprint, scale):
    """By how many pixels of the image its content lies beside its place.

    Returns:
        the mean in x and in y of Web Mercator, and the largest of any pixel.
    """
    latitude, _ = footprint.centre()
    pixel = footprint.metres() / footprint.width / math.cos(math.radians(latitude))
    beside = (pixels[:2] - scale.levels(*places_of_pixels(footprint))) * (scale.step / pixel)
    return *beside.mean(axis=(1, 2)), np.abs(beside).max()


# ------------------------------------------------------------ tiles


def encoded(pixels, kind="PNG", **options):
    """(bands, H, W) or (H, W) as the bytes of a file."""
    image = Image.fromarray(pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tile(scale, zoom, column, row, size=256):
    """The pixels of a tile, uint8 (3, size, size); rows count from the north."""
    side = 2 * HALF / 2 ** zoom / size
    steps = np.arange(size) + 0.5
    x = (column * size + steps) * side - HALF
    y = HALF - (row * size + steps) * side
    return scale.pixels(x[None, :], y[:, None])


@dataclass
class Answer:
    """What a server says."""

    body: bytes = b""
    status: int = 200
    kind: str = "image/png"
    headers: dict = field(default_factory=dict)
    pause: float = 0.0  # seconds before it
    cut: int | None = None  # the connection ends after so many bytes


class Server:
    """What it is asked for, and what it answers.

    asked: time and path of each request. sent: bytes of each answer. answers: path and how often it
    was asked for before -> an Answer, or None: the tile. answer_tile: draws it, as `tile`;
    answer_body: its bytes. files: what lies at other paths. size, south: of the tiles, and whether
    rows count from the south. headers: is told those of each request.
    """

    def __init__(self):
        self.port = 0
        self.asked, self.sent = [], []
        self.answers = lambda path, before: None
        self.answer_tile = tile
        self.answer_body = lambda *place: encoded(self.answer_tile(*place), compress_level=1)
        self.headers = lambda headers: None
        self.files = {}
        self.size, self.south = 256, False
        self.lock = Lock()

    def template(self, scale, ending=""):
        return (f"http://127.0.0.1:{self.port}/tile/{scale.x:.3f}/{scale.y:.3f}/{scale.step:.5f}"
                f"/{{z}}/{{x}}/{{{'-' if self.south else ''}y}}{ending}")

    def address(self, name):
        return f"http://127.0.0.1:{self.port}/{name}"

    @property
    def paths(self):
        return [path for _, path in self.asked]

    @property
    def tiles(self):
        """(zoom, column, row) of each tile that was asked for."""
        return [tuple(map(int, found.groups()[4:])) for path in self.paths
                if (found := TILE.match(path))]

    def answer(self, path, wanted):
        """The Answer to a request for `path`, of whose bytes a header may want some alone."""
        with self.lock:
            before = self.paths.count(path)
            self.asked.append((time.monotonic(), path))
        special = self.answers(path, before)
        if special is not None:
            return special
        name = path.split("?")[0].lstrip("/")
        if name in self.files:
            return part_of(self.files[name], wanted)
        found = TILE.match(path)
        if not found:
            return Answer(b"nothing", 404, "text/plain")
        x, y, step, *place = found.groups()[1:]
        zoom, column, row = map(int, place)
        row = 2 ** zoom - 1 - row if self.south else row
        scale = Scale(float(x), float(y), float(step))
        return Answer(self.answer_body(scale, zoom, column, row, self.size))


def part_of(data, wanted):
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
    if not found:
        return Answer(data, kind="application/octet-stream", headers={"Accept-Ranges": "bytes"})
    first, last = int(found[1]), min(int(found[2] or len(data)), len(data) - 1)
    place = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
    return Answer(data[first:last + 1], 206, "application/octet-stream", place)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of_tiles: Server

    def do_GET(self):  # as http.server calls it
        self.server_of_tiles.headers(self.headers)
        said = self.server_of_tiles.answer(self.path, self.headers.get("Range"))
        time.sleep(said.pause)
        self.send_response(said.status)
        for name, value in {"Content-Type": said.kind, "Content-Length": str(len(said.body)),
                            **said.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.server_of_tiles.sent.append(len(said.body))
            self.wfile.write(said.body[:said.cut])
        self.close_connection = said.cut is not None

    do_HEAD = do_GET

    def handle(self):
        try:
            super().handle()
        except ConnectionError:  # whoever asked has gone
            self.close_connection = True

    def log_message(self, *_):
        """Say nothing."""


@contextmanager
def serving():
    """A Server that runs while the block does."""
    tiles = Server()
    handler = type("TilesHandler", (Handler,), {"server_of_tiles": tiles})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        tiles.port = server.server_port
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield tiles
        finally:
            server.shutdown()
