"""What a service may answer, and what becomes of the places: nothing wrong is kept, none is lost.
"""

import csv
import io
import socket
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from imagery import fetch
from place_helpers import collect, write_table
from tile_server import Answer, Scale, encoded, mercator, serving, tile

pytestmark = pytest.mark.usefixtures("impatient")

LATITUDE, BORDER = 48.1, 8693 * 360 / 2 ** 14 - 180  # degrees; of two tiles of zoom 14
LONGITUDES = (BORDER - 0.06, BORDER, BORDER + 0.06, BORDER + 0.12)  # places that share no tile
ROWS = [f"p{number},{LATITUDE},{longitude}\n" for number, longitude in enumerate(LONGITUDES)]
SCALE = Scale(*mercator(BORDER, LATITUDE), 2.6)
FLAGS = ["--metres", 320, "--size", 32]


class Collecting:
    """collect.py of four places from a service."""

    def __init__(self, capture, folder, server, rows=ROWS):
        self.capture, self.folder, self.server = capture, folder, server
        self.table = write_table(folder / "places.csv", "name,lat,lon\n" + "".join(rows))

    def run(self, *flags):
        return collect(self.capture, self.folder, "--table", self.table, *FLAGS,
                       "--service", self.server.template(SCALE), *flags)

    def images(self):
        return {path.stem: path.read_bytes() for path in (self.folder / "out").rglob("*.tif")}

    def lines(self):
        with open(self.folder / "out" / "collect.csv", newline="") as file:
            return list(csv.DictReader(file))

    def statuses(self):
        return [line["status"] for line in self.lines()]


class Silent:
    @staticmethod
    def readouterr():
        return SimpleNamespace(out="", err="")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The images as they should be, and the requests that the second place needs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with serving() as server:
        collecting = Collecting(Silent, folder, server)
        assert collecting.run()[0] == 0
        images = collecting.images()
        server.asked.clear()
        (folder / "second").mkdir()
        assert Collecting(Silent, folder / "second", server, ROWS[1:2]).run()[0] == 0
        return images, set(server.paths)


class Disturbed(Collecting):
    """The same from a service that has faults where it is asked for the second place."""

    def __init__(self, undisturbed, *rest):
        super().__init__(*rest)
        self.whole, self.second = undisturbed

    def fail(self, *answers, ever=False):
        """Answer so, one after the other, and then rightly; or for ever."""
        def answer(path, before):
            if path not in self.second:
                return None
            return answers[before % len(answers)] if ever or before < len(answers) else None

        self.server.answers = answer

    def mend(self):
        self.server.answers = lambda path, before: None

    def assert_whole(self):
        assert self.images() == self.whole
        assert self.statuses() == ["collected"] * 4
        assert not any(line["note"] for line in self.lines())


@pytest.fixture
def collecting(undisturbed, capfd, tmp_path, server):
    server.files["login"] = b"<html>Your name?</html>"
    return Disturbed(undisturbed, capfd, tmp_path, server)


def place_of(path):
    """Zoom, column and row of a request."""
    return tuple(map(int, path.split("/")[-3:]))


def good(kind="PNG"):
    return encoded(tile(SCALE, 14, 8692, 5684), kind)


def grey_tile():
    """As services say that they have nothing."""
    image = Image.new("RGB", (256, 256), (204, 204, 204))
    ImageDraw.Draw(image).text((60, 120), "Map data not yet available", fill=(90, 90, 90))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return buffer.getvalue()


def one_colour(bands=3, value=7):
    return encoded(np.full((bands, 256, 256), value, np.uint8))


PASSING = {
    "500": Answer(status=500), "503": Answer(status=503), "429": Answer(status=429),
    "403": Answer(status=403),
    "half a PNG": Answer(good()[:900]), "half a JPEG": Answer(good("JPEG")[:3000]),
    "cut off": Answer(good(), cut=900), "HTML": Answer(b"<html>log in</html>", kind="text/html"),
    "XML": Answer(b"<?xml version='1.0'?><ServiceException/>"), "empty": Answer(),
    "another size": Answer(encoded(np.zeros((3, 512, 512), np.uint8)))}


@pytest.mark.parametrize("name", PASSING)
def test_a_fault_that_passes_leaves_no_trace(collecting, name):
    collecting.fail(PASSING[name])
    code, _, error = collecting.run()
    assert code == 0 and not error, error
    collecting.assert_whole()
    asked = collecting.server.paths
    assert {asked.count(path) for path in collecting.second} == {2}


LASTING = {
    "403": (Answer(status=403), "HTTP 403, it refuses: see that the key is right"),
    "500": (Answer(status=500), "HTTP 500"), "400": (Answer(status=400), "HTTP 400"),
    "half a PNG": (Answer(good()[:900]), "no image of the expected size came"),
    "half a JPEG": (Answer(good("JPEG")[:3000]), "no image of the expected size came"),
    "all but the end of a JPEG": (Answer(good("JPEG")[:-2]), "no image of the expected size came"),
    "HTML": (Answer(b"<html>log in</html>", kind="text/html"), "no image of the expected size"),
    "empty": (Answer(), "an empty answer"),
    "another size": (Answer(encoded(np.zeros((3, 512, 512), np.uint8))), "no image of the expect"),
    "to the log-in": (Answer(status=302, headers={"Location": "/login"}), "no image of the exp"),
    "round in circles": (Answer(status=302, headers={"Location": "?"}), "HTTP 302")}


@pytest.mark.parametrize("name", LASTING)
def test_a_fault_that_lasts_costs_one_place_until_it_is_over(collecting, name):
    answer, note = LASTING[name]
    collecting.fail(answer, ever=True)
    code, out, error = collecting.run()
    assert code == 2 and error == ("error: 1 images could not be fetched: the same command tries "
                                   "them again\n")
    assert collecting.statuses() == ["collected", "failed", "collected", "collected"]
    assert note in collecting.lines()[1]["note"] and f"p1 ({note}" in out
    assert sorted(collecting.images()) == ["p0", "p2", "p3"]
    collecting.mend()
    before = len(collecting.server.asked)
    assert collecting.run()[0] == 0
    collecting.assert_whole()
    assert set(collecting.server.paths[before:]) <= collecting.second


def test_a_service_that_is_asked_too_often_is_asked_no_more(collecting):
    collecting.fail(Answer(status=429), ever=True)
    code, _, error = collecting.run()
    assert code == 2 and error == (
        f"error: 127.0.0.1:{collecting.server.port} still says that it is asked too often (HTTP "
        "429) after 0.03 seconds: wait, lower --per_second and start the same command again; what "
        "was collected is kept\n")
    assert collecting.statuses() == ["collected"]
    assert len(collecting.server.asked) < 10
    collecting.mend()
    assert collecting.run()[0] == 0
    collecting.assert_whole()


@pytest.mark.parametrize("status", [401, 403])
def test_a_service_that_refuses_stops_it_after_three_places(collecting, status):
    collecting.server.answers = lambda path, before: Answer(status=status)
    code, _, error = collecting.run()
    assert code == 2 and error.count("\n") == 1 and (
        f"failed for 3 places in succession, the last time with: HTTP {status}, it refuses: see "
        "that the key is right") in error
    assert collecting.statuses() == ["failed"] * 3
    collecting.mend()
    assert collecting.run()[0] == 0
    collecting.assert_whole()


NOTHING = {
    "404": (Answer(status=404), "0% of it is covered"),
    "204": (Answer(status=204), "0% of it is covered"),
    "a grey tile with text": (Answer(grey_tile()), "0% of it is covered"),
    "one colour": (Answer(one_colour()), "0% of it is covered"),
    "black": (Answer(one_colour(value=0)), "0% of it is covered"),
    "transparent": (Answer(one_colour(4, 0)), "0% of it is covered")}


@pytest.mark.parametrize("name", NOTHING)
def test_no_imagery_is_noted_and_left_out(collecting, name):
    answer, note = NOTHING[name]
    collecting.fail(answer, ever=True)
    code, out, error = collecting.run()
    assert code == 0 and not error
    assert collecting.statuses() == ["collected", "no imagery", "collected", "collected"]
    assert collecting.lines()[1]["note"] == note and not collecting.lines()[1]["file"]
    assert f"1 left out, no imagery: p1 ({note})" in out and "3 of 4 images are in" in out
    assert len(collecting.images()) == 3
    asked = len(collecting.server.asked)
    assert collecting.run()[0] == 0 and len(collecting.server.asked) == asked  # it is known


def test_a_place_that_is_half_covered_is_left_out(collecting):
    east = max(collecting.second, key=place_of)
    collecting.server.answers = lambda path, before: (
        Answer(status=404) if path == east else None)
    assert len(collecting.second) == 2 and collecting.run()[0] == 0
    line = collecting.lines()[1]
    assert line["status"] == "no imagery" and "% of it is covered" in line["note"]
    assert 0.4 < float(line["covered"]) < 0.5


def test_the_edge_of_a_service_counts_though_most_of_its_tiles_is_empty(collecting):
    """Three quarters of them are transparent, and not of one colour."""
    def answer(path, before):
        if path not in collecting.second:
            return None
        there = np.zeros((1, 256, 256), np.uint8)
        there[..., slice(-60, None) if path == min(collecting.second, key=place_of)
              else slice(60)] = 1
        pixels = tile(SCALE, *place_of(path)) * there
        return Answer(encoded(np.concatenate([pixels, 255 * there])))

    collecting.server.answers = answer
    assert collecting.run()[0] == 0
    collecting.assert_whole()


def test_services_that_end_stop_it_after_three_places(capfd, tmp_path):
    table = write_table(tmp_path / "places.csv", "name,lat,lon\n" + "".join(ROWS))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]  # where nobody listens
        code, _, error = collect(capfd, tmp_path, "--table", table, *FLAGS, "--service",
                                 f"http://127.0.0.1:{port}/{{z}}/{{x}}/{{y}}")
    assert code == 2 and error == (
        f"error: 127.0.0.1:{port} failed for 3 places in succession, the last time with: no "
        "connection; see that the service is there, and start the same command again\n")


def test_a_service_that_is_too_slow(collecting, monkeypatch):
    monkeypatch.setitem(fetch.PAUSES, "failed", ())
    collecting.fail(Answer(good(), pause=1.3), ever=True)
    assert collecting.run()[0] == 2
    assert collecting.lines()[1]["note"] == "no answer within 1 seconds"
    collecting.mend()
    assert collecting.run()[0] == 0
    collecting.assert_whole()
