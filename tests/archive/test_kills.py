"""Killed at any moment, or short of disk, add leaves what was committed, and goes on."""

import contextlib
import os
import random
import re
import shutil
import signal
import sqlite3
import time

import numpy as np
import pytest

from archive import Archive
from archive.folder import CODES
from run_helpers import assert_disk_full, kill, killed_at, resize, small_disk, wait_for
from search_helpers import CPU, add_to, names_in, pictures, state_of

BATCHES = 5  # of the images that are added here


class Adding:
    """search.py add of `BATCHES` batches in a process of its own, and what must come of it."""

    def __init__(self, zygote, folder, hash_model):
        self.zygote, self.model = zygote, hash_model
        self.images = pictures(folder / "images", 8 * BATCHES)
        add_to(folder / "whole", hash_model, self.images, keep_outputs=True)
        self.whole = state_of(folder / "whole")
        self.codes = (folder / "whole" / "codes.npy").read_bytes()
        self.made = 0

    def begin(self, folder):
        self.folder, self.output = folder / "archive", folder / "out.txt"

    @property
    def command(self):
        return ["search.py", "add", "--archive", self.folder, "--images", self.images,
                "--pretrain_path", self.model, "--keep_outputs", "--batch_size", 8, *CPU]

    def start(self, prepare=""):
        return self.zygote.start(self.output, *self.command, prepare=prepare)

    def run(self, prepare="", limit=None):
        return self.zygote.run(self.output, *self.command, prepare=prepare, limit=limit)

    def assert_committed(self):
        """What is there is the beginning of the whole, to the byte; returns how many items."""
        if not (self.folder / "items.sqlite").exists():
            return 0
        state = state_of(self.folder)
        assert state == dict(list(self.whole.items())[:len(state)]) and len(state) % 8 == 0
        with Archive(self.folder) as archive, archive.reading():
            assert archive._load(CODES) is not None, "codes.npy has not what is counted"
            if (self.folder / "codes.npy").exists():
                rows = np.load(self.folder / "codes.npy")
                assert np.array_equal(rows[:archive.count], archive.codes)
        with contextlib.closing(sqlite3.connect(self.folder / "items.sqlite")) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return len(state)

    def assert_goes_on(self):
        code, text = self.run()
        assert code == 0, text
        assert state_of(self.folder) == self.whole
        assert (self.folder / "codes.npy").read_bytes() == self.codes
        assert sorted(path.name for path in self.folder.iterdir()) == [
            ".lock", "codes.npy", "items.sqlite", "model.pth", "outputs.npy"]


@pytest.fixture(scope="module")
def made(zygote, tmp_path_factory, hash_model):
    return Adding(zygote, tmp_path_factory.mktemp("adding"), hash_model)


@pytest.fixture
def adding(made, tmp_path):
    made.begin(tmp_path)
    return made


# ------------------------------------------------------------ killed


def cut_to_pieces(adding, kills):
    """Kill it at random moments and go on each time; where it is through, begin anew."""
    for _ in range(2):  # the first time nothing is warm
        shutil.rmtree(adding.folder, ignore_errors=True)
        begun = time.monotonic()
        assert adding.run()[0] == 0
        seconds = time.monotonic() - begun
    log, counts = [], []
    while len(log) < kills:
        if adding.assert_committed() == len(adding.whole):
            adding.assert_goes_on()
            shutil.rmtree(adding.folder)
        pid, moment = adding.start(), random.uniform(0, seconds)
        time.sleep(moment)
        if kill(adding.zygote, pid) == -signal.SIGKILL:
            log.append(f"{moment:.3f} s of {seconds:.3f}")
        counts.append(adding.assert_committed())
    adding.assert_goes_on()
    return log, counts


def test_an_add_killed_at_random_moments_leaves_what_was_committed(adding):
    cut_to_pieces(adding, 3)


@pytest.mark.slow
def test_an_add_killed_fifty_times_leaves_what_was_committed(adding):
    log, counts = cut_to_pieces(adding, 50)
    print(log, counts)
    assert len(set(counts)) > 2, "the kills did not fall into the work"


@pytest.mark.parametrize(("place", "number", "items"), [
    ("shutil:copyfileobj", 1, 0),  # the model is half there
    ("engine.files:rename", 1, 0),  # it is all there, aside
    ("archive.items:Items.create", 1, 0),  # it is in its place
    ("sqlite3:connect", 1, 0),
    ("archive.items:rename", 1, 0),  # the database is whole, aside
    ("archive.codes:GrowingArray._tell", 1, 0),  # the first batch: codes.npy without rows
    ("archive.codes:GrowingArray._tell", 2, 0),  # its rows without their number
    ("archive.codes:GrowingArray.append", 2, 0),  # codes of the batch, no outputs of it
    ("archive.items:Items.append", 1, 0),  # both, and nothing in the database
    ("archive.items:Items.append", 3, 16),
    ("archive.items:Items.set", 3, 16),  # all but the count
])
def test_an_add_killed_at_its_tenderest_moments_goes_on(adding, place, number, items):
    code, text = adding.run(prepare=killed_at(place, number))
    assert code == -signal.SIGKILL, text
    assert adding.assert_committed() == items
    adding.assert_goes_on()


def test_a_commit_that_was_cut_in_two_is_taken_back(adding):
    """SQLite wrote into its file; the journal beside it tells how it was before."""
    spill = """
from archive.items import Items
begin = Items.append
def spilling(self, *rest):
    self._database.execute("PRAGMA cache_size = 1")
    begin(self, *rest)
Items.append = spilling
"""
    code, text = adding.run(prepare=spill + killed_at("archive.items:Items.set", 3))
    assert code == -signal.SIGKILL, text
    assert (adding.folder / "items.sqlite-journal").stat().st_size > 0
    assert adding.assert_committed() == 16
    adding.assert_goes_on()


# ------------------------------------------------------------ two processes


def test_a_second_add_is_refused_and_a_reader_sees_whole_batches(adding):
    slowly = """
import time
from archive.items import Items
before = Items.append
def slow(self, *rest):
    time.sleep(0.15)
    before(self, *rest)
    time.sleep(0.15)
    print("added", flush=True)
Items.append = slow
"""
    pid = adding.start(prepare=slowly)
    try:
        wait_for(adding.output, "added")
        second = adding.output.with_suffix(".2.txt")
        code, text = adding.zygote.run(second, *adding.command)
        assert code == 2 and text.count("error:") == 1 and "another process is changing" in text
        assert f"process {pid} on" in text
        counts = {adding.assert_committed()}
        while max(counts) < 8 * BATCHES:
            counts.add(adding.assert_committed())
            assert "error" not in adding.output.read_text()
    except BaseException:
        kill(adding.zygote, pid)
        raise
    assert adding.zygote.wait(pid) == 0, adding.output.read_text()
    assert len(counts) > 1 and counts <= {8 * batch for batch in range(BATCHES + 1)}
    adding.assert_goes_on()


# ------------------------------------------------------------ short of disk


def one_sentence(code, text):
    assert code == 2 and text.count("error:") == 1 and "Traceback" not in text, text
    return text.strip().splitlines()[-1]


def test_a_limit_on_files_while_the_model_is_copied(adding):
    code, text = adding.run(limit=1_000_000)
    assert_disk_full(code, text, adding.folder / "model.pth")
    assert os.listdir(adding.folder) == [".lock"]
    adding.assert_goes_on()


def limited_at(place, when, size, lifted):
    """Lines that forbid files of more than so many bytes from a method of ours on, or in it alone.
    """
    module, _, name = place.partition(":")
    return f"""
import resource
from {module} import {name.split(".")[0]}
before, hard = {name}, resource.getrlimit(resource.RLIMIT_FSIZE)[1]
def limited(self, *arguments, **options):
    if {when}:
        resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, hard))
    try:
        before(self, *arguments, **options)
    finally:
        if {lifted}:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
{name} = limited
"""


def test_a_limit_on_files_while_codes_are_written(adding):
    code, text = adding.run(prepare=limited_at(
        "archive.codes:GrowingArray.append", "arguments[0] == 16", 128 + 20 * 3, lifted=True))
    assert_disk_full(code, text, adding.folder / "codes.npy")
    assert adding.assert_committed() == 16
    adding.assert_goes_on()


def test_a_limit_on_files_while_sqlite_commits(adding):
    code, text = adding.run(prepare=limited_at(
        "archive.items:Items.set", "options['count'] == 24", 20_000, lifted=False))
    assert re.search(r"items.sqlite could not be written \(.*\): free some space; what was saved "
                     r"before is whole$", one_sentence(code, text))
    assert adding.assert_committed() == 16
    adding.assert_goes_on()


def test_a_full_disk_at_any_stage_is_one_sentence_and_add_goes_on_with_more_room(adding):
    model = adding.model.stat().st_size
    with small_disk(adding.folder, model // 2):
        for room in (0, 4, 8, 16, 48, 72, 96):  # kibibytes beside the model
            resize(adding.folder, model // 2 if not room else model + room * 1024)
            code, text = adding.run()
            if code == 0:
                break
            line = one_sentence(code, text)
            assert str(adding.folder) in line and "free some space" in line
            adding.assert_committed()
        assert room > 8
        resize(adding.folder, 2 * model)
        adding.assert_goes_on()
        assert len(names_in(adding.folder)) == 8 * BATCHES
