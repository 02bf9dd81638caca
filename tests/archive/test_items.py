"""The database of items: what it keeps, one moment for who reads, damage as one sentence."""

import os
import sqlite3
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from archive import items as items_file
from archive.items import Item, Items, printable
from utils import InputError

SETTINGS = {"model": "m", "hash_bit": 16, "count": 0}
SQUARE = (10.0, 50.0, 11.0, 50.0, 11.0, 49.0, 10.0, 49.0)


def item(number, name=None, **more):
    values = {"content": number.to_bytes(16, "big"), "path": Path("/images"), "reading": "{}",
              "member": f"{number}.png", "window": None, "height": 8, "width": 9, **more}
    return Item(name=name or f"sea/{number:04d}", **values)


def code(number):
    return number.to_bytes(2, "big")


def append(database, numbers, **more):
    with database.transaction():
        database.append(numbers[0], [item(number, **more) for number in numbers],
                        [code(number) for number in numbers])


@pytest.fixture
def path(tmp_path):
    Items.create(tmp_path / "items.sqlite", SETTINGS)
    return tmp_path / "items.sqlite"


@pytest.fixture
def filled(path):
    database = Items(path)
    append(database, range(40), corners=SQUARE, kind="sea", crs="EPSG:4326")
    database.close()
    return path


# ------------------------------------------------------------ what it keeps


def test_items_come_back_as_they_went_in(path):
    database = Items(path)
    plain = item(0, name="größe [1]", path=Path(os.fsdecode(b"/caf\xe9")),
                 member=os.fsdecode(b"\xff.png"))
    placed = item(1, window=(3, 4, 64, 64), kind="sea", crs="EPSG:32632", corners=SQUARE)
    with database.transaction():
        database.append(0, [plain, placed], [code(0), code(1)])
    again = Items(path)
    assert dict(again.all()) == {0: plain, 1: placed} == again.of_numbers([0, 1, 7])
    assert list(again.codes()) == [(0, code(0)), (1, code(1))]
    assert again.known("name", ["größe [1]", "x"]) == {"größe [1]": 0}
    assert again.known("content", [placed.content]) == {placed.content: 1}


def test_more_values_than_one_query_may_have(path):
    database = Items(path)
    numbers = range(1203)
    append(database, numbers)
    names = [f"sea/{number:04d}" for number in numbers]
    assert database.known("name", names) == dict(zip(names, numbers, strict=True))
    assert list(database.of_numbers(list(numbers))) == list(numbers)


def test_a_name_with_the_letters_of_a_glob_is_first_of_all_a_name(path):
    database = Items(path)
    with database.transaction():
        database.append(0, [item(0, "a[1]"), item(1, "a1"), item(2, "b*"), item(3, "bc")],
                        [code(0)] * 4)
    assert database.fitting("a[1]") == [0] and database.fitting("b*") == [2]
    assert database.fitting("a[12]") == [1] and database.fitting("[ab]*") == [0, 1, 2, 3]
    assert database.fitting("c") == []
    assert database.like("[") == ["a[1]"] and database.like("%") == []


def test_a_name_that_is_no_text_can_be_shown_and_kept(path):
    name = printable(os.fsdecode(b"caf\xe9"))
    assert name == r"caf\xe9" and printable("größe") == "größe"
    database = Items(path)
    append(database, [0], name=name)
    assert database.known("name", [name]) == {name: 0}


def test_what_is_removed_is_gone_in_every_way(filled):
    database = Items(filled)
    with database.transaction():
        database.remove([3, 5])
    again = Items(filled)
    left = [number for number in range(40) if number not in (3, 5)]
    assert again.removed() == [3, 5] and [number for number, _ in again.all()] == left
    assert again.in_boxes([(10.2, 10.4, 49.2, 49.4)]) == left
    assert again.known("name", ["sea/0003"]) == {} and again.counts()["items"] == 38


# ------------------------------------------------------------ all or nothing, and one moment


def test_a_transaction_that_fails_leaves_nothing(path):
    database = Items(path)
    with pytest.raises(KeyboardInterrupt), database.transaction():
        database.append(0, [item(0)], [code(0)])
        raise KeyboardInterrupt
    assert list(database.all()) == []
    append(database, [0])
    assert len(list(Items(path).all())) == 1


def test_who_reads_sees_one_moment_and_who_writes_waits_for_it(path, monkeypatch):
    reader, state = Items(path), []

    def write():
        writer = Items(path)
        append(writer, [0])
        state.append("written")
        writer.close()

    thread = threading.Thread(target=write)
    with reader.transaction("DEFERRED"):
        assert reader.counts()["items"] == 0
        thread.start()
        time.sleep(0.3)
        assert reader.counts()["items"] == 0 and not state
    thread.join(30)
    assert state == ["written"] and reader.counts()["items"] == 1


def test_who_waits_too_long_says_so_and_can_go_on(path, monkeypatch):
    monkeypatch.setattr(items_file, "WAITING", 0.05)
    reader, writer = Items(path), Items(path)
    with reader.transaction("DEFERRED"):
        reader.counts()
        with pytest.raises(InputError, match=r"cannot be used now \(database is locked\)"):
            append(writer, [0])
    append(writer, [0])
    assert writer.counts()["items"] == 1


@pytest.mark.parametrize("left", [b"", b"half a database"])
def test_what_a_killed_creation_left_is_no_hindrance(tmp_path, left):
    (tmp_path / ".items.sqlite.part").write_bytes(left)
    Items.create(tmp_path / "items.sqlite", SETTINGS)
    assert Items(tmp_path / "items.sqlite").settings()["hash_bit"] == 16
    assert os.listdir(tmp_path) == ["items.sqlite"]


def test_a_creation_writes_no_other_files(tmp_path, monkeypatch):
    """A journal that a killed one left would look like somebody else's file."""
    seen = set()
    connect = sqlite3.connect

    class Watched(sqlite3.Connection):
        def executemany(self, *arguments):
            result = super().executemany(*arguments)
            seen.update(os.listdir(tmp_path))
            return result

    monkeypatch.setattr(sqlite3, "connect", lambda file: connect(file, factory=Watched))
    Items.create(tmp_path / "items.sqlite", SETTINGS)
    assert seen == {".items.sqlite.part"}


# ------------------------------------------------------------ damage


def use_all(path):
    """Everything that is asked of a database."""
    database = Items(path)
    try:
        database.settings()
        database.removed()
        for number, _ in database.codes():
            database.of_numbers([number])
        list(database.all())
        database.known("name", ["sea/0001"])
        database.known("content", [bytes(16)])
        database.fitting("*")
        database.like("sea")
        database.in_boxes([(0.0, 20.0, 0.0, 60.0)])
        database.counts()
        with database.transaction():
            database.append(100, [item(100, corners=SQUARE)], [code(100)])
    finally:
        database.close()


def execute(*lines):
    def damage(path):
        database = sqlite3.connect(path)
        with database:
            for line in lines:
                database.execute(line)
        database.close()
    return damage


@pytest.mark.parametrize("damage", [
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"no database at all" * 100),
    lambda path: os.truncate(path, 50),
    lambda path: os.truncate(path, path.stat().st_size // 2),
    lambda path: path.write_bytes(path.read_bytes()[:4096] + bytes(path.stat().st_size - 4096)),
    execute("DROP TABLE settings"), execute("DROP TABLE items"), execute("DROP TABLE places"),
    execute("DROP TABLE removed"), execute("DROP TABLE origins"),
    execute("UPDATE settings SET value = 'other' WHERE key = 'format'"),
    execute("DELETE FROM settings"),
    execute("UPDATE items SET corners = x'00' WHERE number = 3"),
    execute("UPDATE items SET corners = 'text', window = 'text' WHERE number = 3"),
    execute("UPDATE items SET window = x'00' WHERE number = 3"),
    execute("UPDATE items SET name = CAST(x'ff' AS TEXT) WHERE number = 3"),
    execute("UPDATE items SET origin = 77 WHERE number = 3"),
    execute("UPDATE items SET member = 5 WHERE number = 3"),
])
def test_a_damaged_database_is_one_sentence(filled, damage):
    damage(filled)
    with pytest.raises(InputError) as caught:
        use_all(filled)
    assert str(caught.value).startswith(str(filled)) and "\n" not in str(caught.value)


def test_garbage_in_any_page_is_one_sentence_or_nothing(filled):
    raw, generator = filled.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(raw)
        for place in generator.integers(0, len(raw), generator.integers(1, 200)):
            damaged[place] = generator.integers(0, 256)
        filled.write_bytes(damaged)
        filled.with_name("items.sqlite-journal").unlink(missing_ok=True)
        try:
            use_all(filled)
        except InputError as error:
            refused += 1
            assert str(filled) in str(error)
    assert refused > 30


def test_the_database_of_another_program_is_left_alone(tmp_path):
    path = tmp_path / "items.sqlite"
    execute("CREATE TABLE bookmarks (url TEXT)")(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="damaged"):
        Items(path)
    assert path.read_bytes() == before
