"""Rows that are appended to a .npy file: what numpy.load reads, what a killed process leaves."""

import os

import numpy as np
import pytest

from archive.codes import GrowingArray
from utils import InputError


def rows(count, width=3, first=0):
    return np.arange(first * width, (first + count) * width, dtype=np.uint8).reshape(count, width)


@pytest.fixture
def growing(tmp_path):
    return GrowingArray(tmp_path / "codes.npy", 3, np.uint8)


def test_numpy_reads_what_was_appended(growing):
    growing.append(0, rows(2))
    growing.append(2, rows(5, first=2))
    assert np.array_equal(np.load(growing.path), rows(7))
    assert np.array_equal(growing.load(7), rows(7)) and np.array_equal(growing.load(4), rows(4))
    assert len(growing.load(0)) == 0 and growing.load(8) is None


def test_other_kinds_of_numbers_are_kept_as_the_file_has_them(tmp_path):
    growing = GrowingArray(tmp_path / "outputs.npy", 2, np.float16)
    values = np.array([[0.1, -0.7]], np.float32)
    growing.append(0, values)
    loaded = np.load(growing.path)
    assert loaded.dtype == np.float16 and np.array_equal(loaded, values.astype(np.float16))
    assert growing.checksum(values) == growing.checksum(loaded) != growing.checksum(values + 1)


def test_the_mapping_cannot_be_written(growing):
    growing.append(0, rows(2))
    with pytest.raises(ValueError, match="read-only"):
        growing.load(2)[0, 0] = 1


def test_rows_that_nobody_counted_are_written_over(growing):
    growing.append(0, rows(2))
    growing.append(2, rows(9))  # by a process that was killed before it counted them
    growing.append(2, rows(1, first=2))
    assert np.array_equal(np.load(growing.path), rows(3))


def test_a_checksum_goes_on_from_the_rows_before(growing):
    first = growing.checksum(rows(2))
    assert growing.checksum(rows(3, first=2), first) == growing.checksum(rows(5))




def moments(path, append, monkeypatch):
    """The content of a file after every call of the system that writes into it."""
    seen = []

    def watched(function):
        def call(*arguments):
            result = function(*arguments)
            seen.append(path.read_bytes() if path.exists() else None)
            return result
        return call

    def opened(file, mode="r", *rest):
        # Without a buffer each write is seen alone, which is finer than what a kill can leave.
        return Watched(open_it(file, mode, 0)) if "b" in mode and "+" in mode else open_it(
            file, mode, *rest)

    class Watched:
        def __init__(self, file):
            self.file = file
            self.write, self.truncate = watched(file.write), watched(file.truncate)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    open_it = open
    monkeypatch.setattr("builtins.open", opened)
    monkeypatch.setattr(os, "replace", watched(os.replace))
    append()
    return seen


@pytest.mark.parametrize("counted", [0, 2, 6])
def test_numpy_can_load_it_at_any_moment(growing, monkeypatch, counted):
    """Also where a killed process has told of more rows than are counted."""
    if counted:
        growing.append(0, rows(6))
    seen = moments(growing.path, lambda: growing.append(counted, rows(2, first=counted)),
                   monkeypatch)
    assert len(seen) >= 4
    for content in filter(None, seen):
        growing.path.with_name("then.npy").write_bytes(content)
        loaded = np.load(growing.path.with_name("then.npy"))
        assert np.array_equal(loaded[:counted], rows(counted))
    assert np.array_equal(np.load(growing.path), rows(counted + 2))


@pytest.mark.parametrize("damage", [
    lambda path: path.unlink(),
    lambda path: path.write_bytes(b""),
    lambda path: os.truncate(path, 60),
    lambda path: os.truncate(path, path.stat().st_size - 1)])
def test_a_file_that_is_cut_short_has_no_rows_and_takes_all_of_them_again(growing, damage):
    growing.append(0, rows(6))
    damage(growing.path)
    assert growing.load(6) is None
    growing.append(0, rows(6))
    assert np.array_equal(np.load(growing.path), rows(6))


def test_what_the_system_says_against_writing_is_a_sentence(growing):
    growing.path.mkdir()
    with pytest.raises(InputError, match=r"codes.npy could not be written: is a directory"):
        growing.append(0, rows(2))
