"""The rate that a service is asked at, and keys, which nothing may repeat."""

import time

import pytest
from rasterio.errors import RasterioIOError

from imagery import fetch
from imagery.fetch import FetchError, Pacer, patiently
from place_helpers import collect, write_table
from tile_server import Answer, Scale, mercator
from utils import InputError

ROWS = "name,lat,lon\n" + "".join(f"p{number},48.1,{11 + number / 20}\n" for number in range(3))
FLAGS = ["--metres", 320, "--size", 32]
SCALE = Scale(*mercator(11, 48.1), 2.6)
KEY = "Ke7-of-this-test"


# ------------------------------------------------------------ rate


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("cache", ["cache", "none"])
def test_the_rate_is_kept_as_the_server_sees_it(capfd, tmp_path, server, failing, cache):
    """Also where each answer fails at first: a further try is a request, too."""
    server.answers = lambda path, before: Answer(status=500) if failing and not before else None
    table = write_table(tmp_path / "places.csv", ROWS)
    cache = cache if cache == "none" else tmp_path / cache
    code, _, error = collect(capfd, tmp_path, "--table", table, *FLAGS, "--service",
                             server.template(SCALE), "--per_second", 12, "--cache_dir", cache)
    assert code == 0, error
    tiles = len(set(server.paths))
    assert len(server.asked) == tiles * (1 + failing) >= 3
    seconds = server.asked[-1][0] - server.asked[0][0]
    assert seconds > (len(server.asked) - 1) / 12 - 0.06  # the first one may arrive a little late


def test_tiles_that_are_kept_do_not_wait(capfd, tmp_path, server):
    """Neighbours share tiles; so do two collections, and what is asked again after a stop."""
    rows = "name,lat,lon\n" + "".join(f"p{number},48.1,11.005\n" for number in range(20))
    table = write_table(tmp_path / "places.csv", rows)
    begun = time.monotonic()
    code, _, error = collect(capfd, tmp_path, "--table", table, *FLAGS, "--service",
                             server.template(SCALE), "--per_second", 4)
    assert code == 0, error
    assert len(server.asked) == len(set(server.paths)) <= 4
    assert time.monotonic() - begun < 3, "tiles that are there waited for their turn"


def test_a_pacer_makes_up_for_nothing(monkeypatch):
    """After a pause there is no burst."""
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda pause: clock.append(clock.pop() + pause))
    pacer, times = Pacer(4), []
    for pause in (0, 0, 10, 0, 0.1, 0):
        clock[0] += pause
        pacer.wait()
        times.append(clock[0] - 100)
    assert times == pytest.approx([0, 0.25, 10.25, 10.5, 10.75, 11]) and pacer.count == 6


# ------------------------------------------------------------ tries


@pytest.mark.parametrize(("said", "kind", "sentence"), [
    ("HTTP status code: 429", "busy", "asked too often (HTTP 429) after 232 seconds"),
    ("HTTP status code: 403", "refused", "HTTP 403, it refuses: see"),
    ("HTTP response code: 407", "refused", "HTTP 407, it refuses: see"),
    ("HTTP status code: 502", "failed", "HTTP 502"),
    ("Could not resolve host: nowhere", "failed", "no connection"),
    ("Operation timed out", "failed", "no answer within 30 seconds"),
    ("not recognized", "failed", "no image of the expected size came")])
def test_each_kind_of_fault_has_its_pauses(monkeypatch, said, kind, sentence):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)

    def failing():
        raise RasterioIOError("see below") from RuntimeError(f"http://a/?{KEY} {said}") \
            if kind == "busy" else RasterioIOError(f"http://a/?{KEY} {said}")

    with pytest.raises((InputError, FetchError)) as caught:
        patiently(failing, Pacer(1e9), "the service")
    assert sentence in str(caught.value) and KEY not in str(caught.value)
    assert caught.type is (InputError if kind == "busy" else FetchError)
    assert [pause for pause in slept if pause >= 1] == list(fetch.PAUSES[kind])


def test_the_pauses_of_one_kind_are_not_used_up_by_another(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    said = iter(["HTTP status code: 500"] * 4 + ["HTTP status code: 429"] * 6
                + ["HTTP status code: 403"])

    def read():
        if text := next(said, None):
            raise RasterioIOError(text)
        return "there"

    assert patiently(read, Pacer(1e9), "the service") == "there"


# ------------------------------------------------------------ keys


def assert_no_key(folder, *texts):
    for path in folder.rglob("*"):
        assert KEY not in str(path.relative_to(folder))
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
    assert not any(KEY in text for text in texts), texts


HTML = Answer(b"<html>no</html>", kind="text/html")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("ending", ["?key={TILES_KEY}", f"?key={KEY}"], ids=["kept", "literal"])
@pytest.mark.parametrize(("answer", "code"), [
    (None, 0), (Answer(status=403), 2), (Answer(status=500), 2), (Answer(status=429), 2),
    (HTML, 2), (Answer(status=404), 2), ("closed", 2)],
    ids=["fine", "403", "500", "429", "HTML", "404", "closed"])
def test_a_key_appears_nowhere(capfd, tmp_path, server, monkeypatch, ending, answer, code):
    monkeypatch.setenv("TILES_KEY", KEY)
    table = write_table(tmp_path / "places.csv", ROWS)
    template = server.template(SCALE, ending)
    if answer == "closed":
        template = template.replace(str(server.port), "9")  # discard: nobody listens
    else:
        server.answers = lambda path, before: answer
    found, out, error = collect(capfd, tmp_path, "--table", table, *FLAGS, "--service", template)
    assert found == code and error.count("\n") == (code == 2), error
    assert_no_key(tmp_path, out, error)
    if answer != "closed":
        assert server.paths[0].endswith(f"?key={KEY}")
    assert any(tmp_path.glob("out/collect.csv"))


@pytest.mark.usefixtures("impatient")
def test_a_key_of_a_raster_appears_nowhere(capfd, tmp_path, server):
    """In its address, as a password, or in a description; it cannot be opened, or reads fail."""
    table = write_table(tmp_path / "places.csv", ROWS)
    host = f"127.0.0.1:{server.port}"
    for place in (f"http://{host}/a.tif?key={KEY}", f"http://me:{KEY}@{host}/a.tif",
                  f"/vsicurl/http://{host}/a.tif?key={KEY}",
                  f"<GDAL_WMS><Service name='TMS'><ServerUrl>http://{host}/{KEY}</ServerUrl>"):
        code, out, error = collect(capfd, tmp_path, "--table", table, *FLAGS, "--raster", place)
        assert code == 2 and error.count("\n") == 1 and "cannot be opened" in error, error
        assert_no_key(tmp_path, out, error)
