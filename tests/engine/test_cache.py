"""Arrays made once: they go on after a kill, are thrown away when wrong, and nothing else stays."""

import numpy as np
import pytest

from engine import cache
from engine.cache import cached_array, open_cached
from utils import InputError

WHOLE = np.arange(6, dtype=np.int32).repeat(2).reshape(6, 2)


@pytest.fixture(autouse=True)
def saved_after_each_block(monkeypatch):
    monkeypatch.setattr(cache._Part, "SAVE_EVERY", -1.0)


def made(path, stop=None, error=KeyboardInterrupt, block=1):
    """The array at `path`, and from where on it was pulled; `error` comes before row `stop`."""
    pulled = []

    def rows_from(first):
        pulled.append(first)
        for row in range(first, 6, block):
            if row == stop:
                raise error
            yield WHOLE[row:row + block]

    try:
        return cached_array(path, (6, 2), np.int32, rows_from), pulled
    except (KeyboardInterrupt, InputError, RuntimeError):
        return None, pulled


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize("block", [1, 2, 6])
def test_an_array_is_pulled_once_and_mapped_ever_after(tmp_path, block):
    path = tmp_path / "new" / "a.npy"
    for pulled in ([0], []):
        array, seen = made(path, block=block)
        assert seen == pulled and np.array_equal(array, WHOLE) and array.dtype == np.int32
        assert isinstance(array, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1
    assert names(path.parent) == ["a.npy"]


@pytest.mark.parametrize("spoil", ["nothing", "rows that were not counted", "cut short",
                                   "another header", "odd count", "count too large"])
def test_an_array_goes_on_with_rows_that_are_there_and_with_no_others(tmp_path, spoil, capsys):
    path = tmp_path / "a.npy"
    part, note = tmp_path / ".a.npy.part", tmp_path / ".a.npy.rows.part"
    assert made(path, stop=4) == (None, [0]) and not path.exists()
    whole = part.read_bytes()
    if spoil == "rows that were not counted":
        part.write_bytes(whole + b"\xff" * 12)
    elif spoil == "cut short":
        part.write_bytes(whole[:-1])
    elif spoil == "another header":
        part.write_bytes(whole[:20] + b"?" + whole[21:])
    elif spoil == "odd count":
        note.write_text('{"rows": "4"}')
    elif spoil == "count too large":
        note.write_text('{"rows": 7}')
    kept = spoil in ("nothing", "rows that were not counted")
    array, pulled = made(path)
    assert pulled == [4 if kept else 0] and np.array_equal(array, WHOLE)
    assert ("a.npy goes on after 4 of 6 rows" in capsys.readouterr().out) == kept
    assert names(tmp_path) == ["a.npy"]


def test_what_came_out_wrong_is_thrown_away_and_what_failed_is_gone_on_with(tmp_path):
    path = tmp_path / "a.npy"
    assert made(path, stop=4, error=InputError("not finite")) == (None, [0])
    assert names(tmp_path) == []
    assert made(path, stop=4, error=RuntimeError("out of memory")) == (None, [0])
    assert made(path)[1] == [4]


def test_what_a_killed_process_left_in_the_cache_goes(tmp_path):
    path, other = tmp_path / "a.npy", tmp_path / ".b.npy.part"
    made(path, stop=3)
    for file in (tmp_path / ".a.npy.rows.part.abcdefgh.part", other):
        file.touch()
    assert made(path)[1] == [3]
    assert names(tmp_path) == [".b.npy.part", "a.npy"]


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"?" + data[1:],
                                    lambda data: b""])
def test_a_damaged_array_is_named(tmp_path, damage):
    path = tmp_path / "a.npy"
    made(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"a\.npy is damaged .*: remove it"):
        open_cached(path, 6)


def test_an_array_of_other_rows_is_damaged(tmp_path):
    path = tmp_path / "a.npy"
    made(path)
    assert len(open_cached(path, 6)) == 6
    with pytest.raises(InputError, match="6 rows, expected 7"):
        open_cached(path, 7)


def test_a_cache_that_cannot_be_written_names_its_flag(tmp_path):
    (tmp_path / "images").write_text("a file where a folder belongs")
    with pytest.raises(InputError, match=f"^--cache_dir: {tmp_path / 'images'} is a file"):
        cached_array(tmp_path / "images" / "a.npy", (6, 2), np.int32, lambda first: [WHOLE])


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(self, rows):
        with cache.writing(self.path):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache._Part, "append", full)
    with pytest.raises(InputError, match=r"a\.npy could not be written: no space left"):
        cached_array(tmp_path / "a.npy", (6, 2), np.int32, lambda first: [WHOLE])


def test_what_a_kill_left_of_the_note_itself_goes_too(tmp_path):
    path = tmp_path / "x.npy"
    made(path, stop=3)
    for stale in ("..x.npy.rows.part.abcdefgh.part", ".x.npy.abcdefgh.part"):
        (tmp_path / stale).write_bytes(b"half of it")
    array, pulled = made(path)
    assert pulled == [3] and np.array_equal(array, WHOLE) and names(tmp_path) == ["x.npy"]
