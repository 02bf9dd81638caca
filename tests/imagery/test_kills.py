"""Killed at any moment, short of disk, or started twice, collect.py loses nothing and goes on."""

import os
import random
import re
import shutil
import signal
import time

import pytest

from place_helpers import write_table
from run_helpers import assert_disk_full, kill, killed_at, resize, small_disk, wait_for
from tile_server import Answer, Scale, mercator, serving

COUNT = 12  # places
SCALE = Scale(*mercator(11, 48.1), 2.6)
DAY = re.compile(rb",\d{4}-\d\d-\d\d,")


# Lines that make each image take its time, and say that it is there.
SLOWLY = """
import time
from imagery.record import Record
before = Record.add
def slow(self, *rest):
    before(self, *rest)
    print("added", flush=True)
    time.sleep(0.15)
Record.add = slow
"""


class Collection:
    """collect.py in a process of its own, and what must come of it."""

    def __init__(self, zygote, folder, server):
        self.zygote, self.server = zygote, server
        self.table = write_table(folder / "places.csv", "name,lat,lon\npole,89,0\n" + "".join(
            f"{'ab'[number % 2]}/{number},48.1,{11 + number / 100}\n" for number in range(COUNT)))
        self.begin(folder)
        code, text = self.run()
        assert code == 0, text
        self.whole = self.state()
        assert len(self.whole) == COUNT + 2

    def begin(self, folder):
        self.folder, self.output, self.text = folder / "out", folder / "out.txt", ""
        self.cache = folder / "cache"
        self.server.answers = lambda path, before: None

    @property
    def command(self):
        return ["collect.py", "--table", self.table, "--metres", 640, "--size", 64, "--service",
                self.server.template(SCALE), "--output", self.folder, "--cache_dir", self.cache,
                "--per_second", 1000]

    def start(self, prepare=""):
        return self.zygote.start(self.output, *self.command, prepare=prepare)

    def run(self, prepare="", limit=None):
        return self.zygote.run(self.output, *self.command, prepare=prepare, limit=limit)

    def state(self):
        """The bytes of all files; of the table without the day."""
        return {str(path.relative_to(self.folder)): DAY.sub(b",,", path.read_bytes())
                for path in self.folder.rglob("*")
                if path.is_file() and path.name != ".collect.lock"}

    def assert_begun(self):
        """Images that have their name are whole; returns how many there are."""
        there = {name: data for name, data in self.state().items() if name.endswith(".tif")}
        assert there.items() <= self.whole.items()
        return len(there)

    def assert_goes_on(self):
        before = self.assert_begun()
        code, text = self.run()
        assert code == 0, text
        assert self.state() == self.whole
        return before


@pytest.fixture(scope="module")
def made(zygote, tmp_path_factory):
    with serving() as server:
        yield Collection(zygote, tmp_path_factory.mktemp("collection"), server)


@pytest.fixture
def collection(made, tmp_path):
    made.begin(tmp_path)
    return made


# ------------------------------------------------------------ killed


def cut_to_pieces(collection, kills):
    """Kill it at random moments and go on each time; where it is through, begin anew."""
    begun = time.monotonic()
    assert collection.run()[0] == 0
    seconds = time.monotonic() - begun
    counts = []
    while len(counts) < kills:
        if collection.assert_begun() == COUNT:
            collection.assert_goes_on()
            shutil.rmtree(collection.folder)
            shutil.rmtree(collection.cache)
        pid = collection.start()
        time.sleep(random.uniform(0, seconds))
        if kill(collection.zygote, pid) == -signal.SIGKILL:
            counts.append(collection.assert_begun())
    collection.assert_goes_on()
    return counts


def test_killed_at_random_moments(collection):
    cut_to_pieces(collection, 3)


@pytest.mark.slow
def test_killed_forty_times(collection):
    counts = cut_to_pieces(collection, 40)
    print(counts)
    assert len(set(counts)) > 3, "the kills did not fall into the work"


@pytest.mark.parametrize(("place", "number", "there"), [
    ("engine.files:rename", 1, 0),  # the settings lie aside
    ("engine.files:rename", 2, 0),  # the settings are there, the table lies aside
    ("imagery.record:Record.add", 1, 0),
    ("engine.files:rename", 5, 2),  # an image lies aside
    ("imagery.record:asdict", 5, 5),  # an image is there without its line
    ("imagery.record:Record._write_all", 2, COUNT)])  # all but the order of the lines
def test_killed_at_its_tenderest_moments(collection, place, number, there):
    code, text = collection.run(prepare=killed_at(place, number))
    assert code == -signal.SIGKILL, text
    assert collection.assert_goes_on() == there


def test_tiles_that_were_half_written_are_fetched_again(collection):
    assert collection.run()[0] == 0
    tiles = sorted(path for path in collection.cache.rglob("*") if path.is_file())
    for number, path in enumerate(tiles):
        os.truncate(path, path.stat().st_size * number // len(tiles))
    shutil.rmtree(collection.folder)
    before = len(collection.server.asked)
    collection.assert_goes_on()
    assert len(collection.server.asked) - before == len(tiles) > 4


def test_a_signal_stops_it_and_it_goes_on(collection):
    pid = collection.start(prepare=SLOWLY)
    wait_for(collection.output, "added")
    assert kill(collection.zygote, pid, signal.SIGINT) == 130
    text = collection.output.read_text()
    assert "stopped; the same command goes on with the rest" in text
    assert "interrupted" in text and "Traceback" not in text
    assert 0 < collection.assert_goes_on() < COUNT


def test_a_signal_while_a_fault_is_awaited_stops_it(collection):
    """GDAL loses what is raised while it reports an error."""
    collection.server.answers = lambda path, before: Answer(status=500, pause=0.6)
    collection.server.asked.clear()
    pid = collection.start()
    while not collection.server.asked:
        time.sleep(0.02)
    time.sleep(0.2)
    begun = len(collection.server.asked)
    assert kill(collection.zygote, pid, signal.SIGINT) == 130
    assert len(collection.server.asked) <= begun + 1
    text = collection.output.read_text()
    assert "interrupted" in text and "Traceback" not in text and "ignored" not in text
    collection.server.answers = lambda path, before: None
    assert collection.assert_goes_on() <= 1


# ------------------------------------------------------------ twice, short of disk


def test_a_second_process_is_refused(collection):
    pid = collection.start(prepare=SLOWLY)
    try:
        wait_for(collection.output, "added")
        code, text = collection.zygote.run(collection.output.with_suffix(".2"),
                                           *collection.command)
        assert code == 2 and text.count("error:") == 1, text
        assert f"another process collects into {collection.folder} (process {pid} on" in text
    except BaseException:
        kill(collection.zygote, pid)
        raise
    assert collection.zygote.wait(pid) == 0
    assert collection.state() == collection.whole


def test_a_limit_on_files(collection):
    """The images are larger than it allows, the table is not."""
    limit = min(len(data) for name, data in collection.whole.items() if name.endswith(".tif")) - 1
    code, text = collection.run(limit=limit)
    assert_disk_full(code, text, collection.folder)
    collection.assert_goes_on()


def test_a_full_disk(collection):
    with small_disk(collection.folder, 32 * 1024):
        code, text = collection.run()
        assert_disk_full(code, text, collection.folder)
        there = collection.assert_begun()
        assert 0 < there < COUNT
        resize(collection.folder, "1M")
        assert collection.assert_goes_on() == there


def test_a_full_disk_for_tiles_costs_only_that_they_are_not_kept(collection):
    with small_disk(collection.cache, 16 * 1024):
        code, text = collection.run()
        assert code == 0 and collection.state() == collection.whole, text


def test_a_folder_that_cannot_be_written(collection):
    collection.folder.parent.joinpath("file").write_text("")
    collection.folder = collection.folder.parent / "file" / "out"
    code, text = collection.run()
    assert code == 2 and text.count("error:") == 1 and "Traceback" not in text, text
    assert str(collection.folder) in text


def test_a_place_for_tiles_that_cannot_be_written(collection):
    collection.cache.write_text("a file")
    code, text = collection.run()
    assert code == 2 and text.count("error:") == 1 and "Traceback" not in text, text
    assert f"--cache_dir {collection.cache} is a file, expected a folder" in text
