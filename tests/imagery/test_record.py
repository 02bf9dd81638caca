"""collect.csv and the files beside it: whole, in order, of one collection."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import rasterio

from image_helpers import complaint
from imagery.record import (
    COLLECTED,
    FAILED,
    NO_PLACE,
    NOTHING,
    Entry,
    Record,
    encoded,
    place_entries,
)
from place_helpers import on_grid
from raster_helpers import ramp

SETTINGS = {"service": ["abc"], "size": 64}


def places(*names):
    return [replace(on_grid(32633, 400_000 + 1000 * number, 5e6), name=name)
            for number, name in enumerate(names)]


def collected(footprint, status=COLLECTED):
    file = f"{footprint.name}.tif" if status == COLLECTED else ""
    size = str(len(image_of(footprint))) if status == COLLECTED else ""
    return Entry(status=status, file=file, bytes=size, **place_entries(footprint))


def image_of(footprint):
    return f"image of {footprint.name}".encode(errors="surrogateescape")


def fill(folder, footprints, settings=SETTINGS):
    record = Record(folder, settings)
    with record.open():
        for footprint in footprints:
            record.add(collected(footprint), image_of(footprint))
    return record


def rows(folder):
    with open(folder / "collect.csv", newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_lines_are_sorted_and_files_lie_below_the_folder(tmp_path):
    fill(tmp_path / "out", places("b/2", "a", "b/1"))
    found = rows(tmp_path / "out")
    assert found[0] == ["name", "status", "file", "latitude", "longitude", "metres", "source",
                        "zoom", "resolution", "date", "covered", "bytes",
                        "footprint", "day", "note"]
    assert [row[0] for row in found[1:]] == ["a", "b/1", "b/2"]
    assert [row[:3] for row in found[2:]] == [["b/1", "collected", "b/1.tif"],
                                              ["b/2", "collected", "b/2.tif"]]
    assert (tmp_path / "out" / "b" / "2.tif").read_bytes() == b"image of b/2"
    assert json.loads((tmp_path / "out" / ".collect.json").read_text()) == SETTINGS


def test_what_is_done_and_what_is_not(tmp_path):
    here = places("a", "b", "cut", "d", "e", "f")
    record = fill(tmp_path, here[:3])
    with record.open():
        record.add(collected(here[3], FAILED))
        record.add(collected(here[4], NOTHING))
    (tmp_path / "b.tif").unlink()
    (tmp_path / "cut.tif").write_bytes(b"image of c")
    again = Record(tmp_path, SETTINGS)
    assert [again.done(footprint) for footprint in here] == [True, *[False] * 3, True, False]
    assert not Record(tmp_path, SETTINGS, retry=True).done(here[4])
    moved = replace(here[3], name="a")
    complaint(lambda: again.done(moved), "a was collected at 45.1",
              "and its place is another one now, at 45.1",
              "collect.csv, and it is collected again, or name another")


def test_names_of_any_kind_come_back(tmp_path):
    names = ["Zürich, \"Süd\"/é", "two\nlines", "a\rreturn", "bytes \udcff"]
    fill(tmp_path, places(*names))
    assert set(Record(tmp_path, SETTINGS).entries) == set(names)


def test_a_line_that_was_half_written_is_taken_for_none(tmp_path):
    """Cut anywhere, also within a letter of two bytes."""
    here = places("a", "é")
    fill(tmp_path, here)
    data = (tmp_path / "collect.csv").read_bytes()
    start = data.index("é".encode())
    for length in (0, 1, 20, start - 3, start, start + 1, start + 5, len(data) - 1):
        (tmp_path / "collect.csv").write_bytes(data[:length])
        record = Record(tmp_path, SETTINGS)
        assert list(record.entries) == (["a"] if length >= start else []), length
        with record.open():
            for footprint in here:
                if not record.done(footprint):
                    record.add(collected(footprint), image_of(footprint))
        assert (tmp_path / "collect.csv").read_bytes() == data


@pytest.mark.parametrize("text", ["name,status\na,b\n", "x\n", "{head}\na,collected\n",
                                  '{head}\n"' + "x" * 200_000 + "\n"], ids=range(4))
def test_a_table_that_is_damaged(tmp_path, text):
    fill(tmp_path, places("a"))
    head = ",".join(rows(tmp_path)[0])
    (tmp_path / "collect.csv").write_text(text.format(head=head))
    complaint(lambda: Record(tmp_path, SETTINGS), "collect.csv is damaged: remove it")


@pytest.mark.parametrize(("other", "flags"), [
    ({"service": ["abc"], "size": 32}, "--size 64"),
    ({"service": ["def"], "size": 64}, "--service"),
    ({"raster": ["abc"], "size": 64}, "--raster, --service"), ({"size": 64}, "--service")], ids=str)
def test_another_collection_does_not_go_on_here(tmp_path, other, flags):
    fill(tmp_path, places("a"))
    complaint(lambda: Record(tmp_path, other), f"was collected with another {flags}: use the same")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null"])
def test_settings_that_are_damaged(tmp_path, text):
    fill(tmp_path, places("a"))
    (tmp_path / ".collect.json").write_text(text)
    complaint(lambda: Record(tmp_path, SETTINGS), ".collect.json is damaged: name another --output")


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for place in (tmp_path / "full", tmp_path / "full" / "mine.txt"):
        complaint(lambda place=place: Record(place, SETTINGS), "was not made by collect.py")
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "empty", places("a"))


def test_a_process_that_was_killed_as_it_began_locks_nobody_out(tmp_path):
    """It leaves a lock that nobody holds, and what it wrote aside, which goes."""
    for name in (".collect.lock", "..collect.json.x3_b.part"):
        (tmp_path / name).write_text("half")
    fill(tmp_path, places("b/a"))
    (tmp_path / "b" / ".a.tif.abc.part").write_text("half")
    fill(tmp_path, [])
    assert not list(tmp_path.rglob("*.part"))
    assert Record(tmp_path, SETTINGS).entries.keys() == {"b/a"}


def test_a_folder_is_held_by_one_process_and_what_it_wrote_is_seen(tmp_path):
    here = places("a", "b")
    late = Record(tmp_path, SETTINGS)  # looked before the first one wrote
    first = Record(tmp_path, SETTINGS)
    with first.open():
        first.add(collected(here[0]), b"a")
        with pytest.raises(ValueError, match="another process collects into"), late.open():
            pass
    with late.open():
        late.add(collected(here[1]), b"b")
    assert [row[0] for row in rows(tmp_path)[1:]] == ["a", "b"]


def test_a_summary(tmp_path):
    here = places(*"abcdef")
    record = fill(tmp_path, here[:1])
    with record.open():
        for footprint in here[1:5]:
            record.add(Entry(status=FAILED, note="HTTP 500", **place_entries(footprint)))
        record.add(Entry("f", NO_PLACE))
    assert record.summary([*"abcdef"]) == [
        f"1 of 6 images are in {tmp_path}", "  1 left out, no place: f",
        "  4 left out, failed: b (HTTP 500), c (HTTP 500), d (HTTP 500) and 1 more"]


# ------------------------------------------------------------ files


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("bands", [1, 3, 13])
def test_a_geotiff_holds_numbers_and_place(tmp_path, dtype, bands):
    place = on_grid(32633, 400_000, 5e6, turn=20, height=4, width=6)
    pixels = ramp(dtype, bands)
    (tmp_path / "a.tif").write_bytes(encoded(pixels, place, "tif"))
    with rasterio.open(tmp_path / "a.tif") as file:
        assert np.array_equal(file.read(), pixels) and file.dtypes[0] == dtype
        assert file.crs == place.crs and file.transform.almost_equals(place.transform)
        assert (file.colorinterp[0].name == "red") == (bands == 3 and dtype == "uint8")


def test_jpeg_holds_colours_or_grey_alone():
    place = on_grid(32633, 400_000, 5e6, height=4, width=6)
    for bands in (1, 3):
        assert encoded(ramp("uint8", bands), place, "jpg")[:2] == b"\xff\xd8"
    for dtype, bands in (("uint16", 3), ("uint8", 2), ("uint8", 4)):
        complaint(lambda dtype=dtype, bands=bands: encoded(ramp(dtype, bands), place, "jpg"),
                  f"and these are {bands} of {dtype}: use --format tif")
