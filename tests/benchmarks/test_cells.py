"""The loop over cells: failures stay alone, what waits for another does; finished cells."""

import json
import signal
import threading
import time

import pytest

from benchmarks import cells
from benchmarks.cells import Cell
from utils import InputError


def never(number):
    raise AssertionError("nothing was stopped")


def test_whatever_breaks_in_a_cell_the_others_are_made(tmp_path, capsys):
    def broken():
        raise IndexError("list index out of range")

    works = {"a": lambda: {"map": 0.5}, "b": broken, "c": lambda: {"map": 0.25}}
    records = {}
    failed = cells.run_cells(
        [Cell(tmp_path / name, name, work, key=(name, 8, 13)) for name, work in works.items()],
        1, records, never)
    assert records == {("a", 8, 13): {"map": 0.5}, ("c", 8, 13): {"map": 0.25}}
    assert failed == ["b: IndexError('list index out of range')"]
    counts, said = zip(*(line.split(" ", 1) for line in capsys.readouterr().out.splitlines()),
                       strict=True)
    assert counts == ("[1/3]", "[2/3]", "[3/3]")
    assert sorted(said) == ["a: mAP 0.500", "b: failed", "c: mAP 0.250"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_cell_waits_for_the_one_it_starts_from(tmp_path, jobs):
    order, both = [], threading.Barrier(jobs, timeout=20)

    def first(name):
        both.wait()  # as many at once as there are jobs
        order.append(name)
        if name == "second":
            raise InputError("no luck")
        return {}

    def after(name):
        order.append(name)
        return {"map": 1.0}

    given = [Cell(tmp_path / name, name, lambda name=name: first(name)) for name in
             ("first", "second")]
    given += [Cell(tmp_path / f"{start}--{number}", f"{start} {number}",
                   lambda start=start: after(f"after {start}"), key=(start, number, 13),
                   after=tmp_path / start)
              for start in ("first", "second") for number in (1, 2)]
    records = {}
    failed = cells.run_cells(given, jobs, records, never)
    assert sorted(order[:2]) == ["first", "second"] and order[2:] == ["after first"] * 2
    assert set(records) == {("first", 1, 13), ("first", 2, 13)}
    assert sorted(failed) == ["second 1: what it starts from failed",
                              "second 2: what it starts from failed", "second: no luck"]


def test_after_ctrl_c_no_cell_is_begun_and_what_is_done_is_known(tmp_path, monkeypatch):
    begun, records, told = [], {}, []

    def work(name):
        begun.append(name)
        time.sleep(0.01)
        return {"map": 1.0}

    def stop(text):
        raise KeyboardInterrupt

    monkeypatch.setattr(cells.tqdm, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        # The first to be told of; the second may have begun by then.
        cells.run_cells([Cell(tmp_path / str(number), "", lambda number=number: work(number),
                              key=("a", number, 13)) for number in range(200)],
                        1, records, told.append)
    assert len(records) == 1 and len(begun) < 200
    assert told == [signal.SIGINT]


def test_warnings_of_a_log_are_told_once_each(tmp_path):
    (tmp_path / "train.txt").write_bytes(
        b"epoch 1: loss 2\nwarning: a\nno warning: b\nwarning: c\xff\nwarning: a\n")
    assert cells.warnings_in(tmp_path / "train.txt") == ["a", "c\ufffd"]
    assert cells.warnings_in(tmp_path / "nowhere.txt") == []


def test_a_finished_cell_of_other_settings_is_not_taken_for_this_one(tmp_path):
    config = {"model_type": "alexnet", "amp": False, "split_dir": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    cells.check_settings(tmp_path, config)
    cells.check_settings(tmp_path, {"younger": 3})  # than the cell, which had its default
    with pytest.raises(InputError, match="was made with model_type alexnet, not resnet18; "
                                         "amp False, not True: choose another --output_dir"):
        cells.check_settings(tmp_path, {"model_type": "resnet18", "amp": True})


def test_a_file_that_is_no_json_object_is_named(tmp_path):
    for raw, reason in ((b"[]", "no object"), (b'["x"]', "no object"), (b"", "Expecting"),
                        (b'{"a": 1', "Expecting"), (b"\xff\xfe", ".*decode")):
        (tmp_path / "results.json").write_bytes(raw)
        with pytest.raises(InputError, match=rf"results.json is damaged \({reason}.*its folder"):
            cells.read_json(tmp_path / "results.json")
    (tmp_path / "results.json").write_text('{"map": null, "R": 3}')
    assert cells.read_json(tmp_path / "results.json", "R")["R"] == 3
    for name in ("map", "chance"):
        with pytest.raises(InputError, match=rf"damaged \(no {name}\)"):
            cells.read_json(tmp_path / "results.json", "R", name)


def test_the_folder_of_a_cell_says_its_flags():
    assert cells.folder_name([]) == "default"
    assert cells.folder_name(["--kl", "batchmean", "--lambda0", 0]) == "kl-batchmean-lambda0-0"
