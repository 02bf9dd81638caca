"""An archive is what was committed: damage, other models, removed items, who else is there."""

import os
import shutil
import subprocess

import numpy as np
import pytest

from archive import Archive, HashModel, answers_to, queries_of_names
from engine.files import lock
from search_helpers import COMPUTE, add_to, names_in, pictures, png, save_model, state_of
from utils import InputError


@pytest.fixture
def archive(searched, tmp_path):
    """A copy of an archive of twelve images."""
    shutil.copytree(searched / "archive", tmp_path / "archive")
    return tmp_path / "archive"


def found(folder, name="sea/001", rerank=False):
    """What a search finds: names and distances."""
    with Archive(folder) as archive:
        answer, = answers_to(archive, queries_of_names(archive, [name]), 50, rerank=rerank)
        return [(item.name, int(distance))
                for item, distance in zip(answer.items, answer.distances, strict=True)]


def flip(path, place):
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)


# ------------------------------------------------------------ codes.npy

DAMAGE = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "a byte short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "a bit of the first code": lambda path: flip(path, 128),
    "a bit of the last code": lambda path: flip(path, -1),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_codes_change_no_answer_and_the_next_add_mends_them(
        archive, hash_model, tmp_path, capsys, name):
    whole, answers = (archive / "codes.npy").read_bytes(), found(archive)
    assert len(answers) == 11 and capsys.readouterr().err == ""
    DAMAGE[name](archive / "codes.npy")
    assert found(archive) == answers
    warning = capsys.readouterr().err
    assert warning.count("warning:") == 1 and "the next add mends it" in warning
    (tmp_path / "one.png").write_bytes(png(50))
    add_to(archive, hash_model, tmp_path / "one.png")
    capsys.readouterr()
    assert (archive / "codes.npy").read_bytes()[128:].startswith(whole[128:])
    assert len(np.load(archive / "codes.npy")) == 13
    assert set(answers) < set(found(archive)) and capsys.readouterr().err == ""


@pytest.mark.parametrize("change", [
    lambda path: path.write_bytes(path.read_bytes() + b"more than is counted"),
    lambda path: flip(path, 10)])  # in the header, which only numpy.load looks at
def test_what_does_not_count_is_no_damage(archive, capsys, change):
    answers = found(archive)
    change(archive / "codes.npy")
    assert found(archive) == answers and capsys.readouterr().err == ""


def test_codes_are_mended_where_items_were_removed(archive, hash_model, tmp_path, capsys):
    with Archive(archive) as opened, opened.writing():
        opened.remove([0])
    answers = found(archive)
    (archive / "codes.npy").unlink()
    assert found(archive) == answers
    (tmp_path / "one.png").write_bytes(png(50))
    add_to(archive, hash_model, tmp_path / "one.png")
    capsys.readouterr()
    assert set(answers) < set(found(archive)) and capsys.readouterr().err == ""


# ------------------------------------------------------------ outputs.npy


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_outputs_are_said_and_only_rerank_needs_them(
        archive, hash_model, tmp_path, capsys, name):
    answers = found(archive)
    assert sorted(found(archive, rerank=True)) == sorted(answers)
    DAMAGE[name](archive / "outputs.npy")
    assert found(archive) == answers
    with pytest.raises(InputError, match=r"outputs.npy is cut short or damaged.*without --rerank"):
        found(archive, rerank=True)
    before = (archive / "items.sqlite").read_bytes()
    (tmp_path / "one.png").write_bytes(png(50))
    with pytest.raises(InputError, match=r"outputs.npy is cut short or damaged"):
        add_to(archive, hash_model, tmp_path / "one.png")
    assert (archive / "items.sqlite").read_bytes() == before


def test_outputs_are_those_of_the_codes(archive):
    with Archive(archive) as opened:
        assert opened.outputs.shape == (12, 20) and opened.outputs.dtype == np.float16
        assert np.array_equal(np.packbits(opened.outputs >= 0, axis=1), opened.codes)


# ------------------------------------------------------------ models


def test_codes_of_another_model_are_refused(archive, tmp_path):
    other = HashModel(save_model(tmp_path / "other.pth", seed=1), COMPUTE)
    with (Archive(archive) as opened,
          pytest.raises(InputError, match=r"other.pth is not the model that made the codes of")):
        opened.check_model(other)


def test_a_model_that_was_changed_in_its_place_is_told_otherwise(archive, tmp_path):
    save_model(archive / "model.pth", seed=1)
    with (Archive(archive) as opened,
          pytest.raises(InputError, match=r"model.pth .* it was changed; put that one back")):
        opened.check_model(HashModel(archive / "model.pth", COMPUTE))


def test_the_archive_keeps_the_model_to_the_byte(archive, hash_model):
    assert (archive / "model.pth").read_bytes() == hash_model.read_bytes()


# ------------------------------------------------------------ removed items


def test_a_removed_item_never_comes_back_and_no_number_is_given_twice(
        archive, hash_model, searched, tmp_path):
    names = names_in(archive)
    with Archive(archive) as opened, opened.writing():
        opened.remove([0, 11])
        assert len(opened) == 10 and opened.count == 12
    gone = {names[0], names[11]}
    assert not gone & {name for name, _ in found(archive)}
    with pytest.raises(InputError, match=f"no item of .* is called {names[0]}"):
        found(archive, names[0])
    report = add_to(archive, hash_model, searched / "images")  # the same images once more
    assert (report.added, report.known) == (2, 10)
    again = names_in(archive)
    assert sorted(again) == [*range(1, 11), 12, 13] and {again[12], again[13]} == gone


def test_an_archive_whose_items_are_all_removed_is_empty_and_goes_on(archive, hash_model, searched):
    with Archive(archive) as opened, opened.writing():
        opened.remove(range(12))
        assert len(opened) == 0
        with pytest.raises(InputError, match="has no items: add some first"):
            opened.check_filled()
        numbers, distances, ties = opened.nearest(np.zeros((2, 3), np.uint8), 5)
        assert numbers.shape == distances.shape == (2, 0) and ties.tolist() == [0, 0]
    assert add_to(archive, hash_model, searched / "images").added == 12
    assert min(names_in(archive)) == 12 and len(found(archive)) == 11


# ------------------------------------------------------------ who else is there


def test_a_second_writer_is_refused_and_a_reader_sees_whole_states(archive, hash_model, tmp_path):
    before = state_of(archive)
    with Archive(archive) as writer, writer.writing():
        with (Archive(archive) as second,
              pytest.raises(InputError, match="another process is changing"), second.writing()):
            pass
        item = writer.items.of_numbers([0])[0]
        codes, outputs = np.zeros((1, 3), np.uint8), np.zeros((1, 20), np.float16)
        reader = Archive(archive)
        new = type(item)("new", bytes(16), item.path, item.reading, "new.png", None, 8, 8)
        writer.append([new], codes, outputs)
        # What was opened before has not seen it, and reads all of it when it reads anew.
        assert len(reader) == 12 and len(reader.codes) == 12
        with reader.reading():
            assert len(reader) == len(reader.codes) == len(list(reader.items.all())) == 13
        reader.items.close()
    after = state_of(archive)
    assert after.pop("new")[0] == 12 and after == before


def test_what_is_read_inside_reading_is_of_one_moment(archive, tmp_path, hash_model):
    """Else a name that was added meanwhile has a number that the codes do not reach."""
    pictures(tmp_path / "more", 6, first=20)
    with Archive(archive) as reader:
        add_to(archive, hash_model, tmp_path / "more")
        with reader.reading():
            query, = queries_of_names(reader, ["sea/022"])
            answer, = answers_to(reader, [query], 50)
            assert len(answer.items) == 17


def test_who_opened_before_another_added_writes_behind_what_that_added(
        archive, hash_model, tmp_path):
    with Archive(archive) as early:
        add_to(archive, hash_model, pictures(tmp_path / "more", 6, first=20))
        item = early.items.of_numbers([0])[0]
        new = type(item)("new", bytes(16), item.path, item.reading, "new.png", None, 8, 8)
        with early.writing():
            early.append([new], np.zeros((1, 3), np.uint8), np.zeros((1, 20), np.float16))
    assert names_in(archive)[18] == "new" and len(found(archive)) == 18


def test_of_two_that_begin_an_archive_one_does(tmp_path, hash_model):
    """The other one, which had found nothing there, must not begin it anew."""
    model, folder = HashModel(hash_model, COMPUTE), tmp_path / "archive"
    folder.mkdir()
    with (lock(folder / ".lock", ""),
          pytest.raises(InputError, match=r"another process is changing .*archive \(process \d+")):
        Archive.create(folder, model)
    Archive.create(folder, model).items.close()
    add_to(folder, hash_model, pictures(tmp_path / "images", 3))
    with pytest.raises(InputError, match="another process has begun"):
        Archive.create(folder, model)
    assert len(names_in(folder)) == 3


@pytest.mark.parametrize("left", [
    ["model.pth", ".lock"], [".model.pth.abc.part"], [".items.sqlite.part"], []])
def test_what_a_killed_creation_left_is_gone_on_with(tmp_path, hash_model, left):
    folder = tmp_path / "archive"
    folder.mkdir()
    for name in left:
        (folder / name).write_bytes(b"half of it")
    add_to(folder, hash_model, pictures(tmp_path / "images", 3))
    assert sorted(os.listdir(folder)) == [".lock", "codes.npy", "items.sqlite", "model.pth"]
    assert (folder / "model.pth").read_bytes() == hash_model.read_bytes()


@pytest.mark.parametrize("name", ["notes.txt", "codes.npy"])
def test_a_folder_of_something_else_is_no_place_for_an_archive(tmp_path, hash_model, name):
    """Codes whose database was lost are something else, too: nobody knows what they are of."""
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=rf"is no archive, but holds {name}: name a new"):
        Archive.create(tmp_path, HashModel(hash_model, COMPUTE))
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_text() == "mine"


# ------------------------------------------------------------ a folder that may only be read


@pytest.fixture
def read_only(archive):
    """The archive on a disk that may only be read; skips where we may not mount one."""
    bind = subprocess.run(["mount", "--bind", archive, archive], capture_output=True, check=False)
    if bind.returncode:
        pytest.skip("no right to mount a folder here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", archive], check=True)
        yield archive
    finally:
        subprocess.run(["umount", "-l", archive], check=True)


def test_an_archive_that_may_only_be_read_can_be_searched(searched, read_only, hash_model):
    assert found(read_only) == found(searched / "archive")
    assert found(read_only, rerank=True) == found(searched / "archive", rerank=True)
    assert state_of(read_only) == state_of(searched / "archive")
    with Archive(read_only) as opened, opened.reading():
        assert len(opened) == 12
    with pytest.raises(InputError, match=r"cannot be written: .*read-only"):
        add_to(read_only, hash_model, searched / "images")
    with (Archive(read_only) as opened,
          pytest.raises(InputError, match=r"cannot be used now .*readonly"),
          opened.items.transaction()):
        opened.items.remove([0])


# ------------------------------------------------------------ settings


@pytest.mark.parametrize("lines", [
    "DELETE FROM settings WHERE key = 'count'", "DELETE FROM settings WHERE key = 'model'",
    "UPDATE settings SET value = 'many' WHERE key = 'count'",
    "UPDATE settings SET value = NULL WHERE key = 'codes_checksum'",
    "UPDATE settings SET value = x'ff' WHERE key = 'outputs_checksum'",
    "UPDATE settings SET value = -5 WHERE key = 'hash_bit'",
    "UPDATE settings SET value = 5 WHERE key = 'count'",
    "UPDATE settings SET value = -1 WHERE key = 'count'"])
def test_settings_that_cannot_be_are_damage(archive, lines):
    with Archive(archive) as opened, opened.items.transaction():
        opened.items._database.execute(lines)
    with pytest.raises(InputError, match="does not say what is in it"):
        found(archive)


def test_a_folder_without_an_archive_says_so(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=r"is no archive, which has items.sqlite"):
            Archive(folder)
