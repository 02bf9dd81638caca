"""bench.py: a benchmark on tiny sizes gives a whole table, what it compares is the same, and bad flags are told."""

import json
import os
import pickle
import re
import statistics

import numpy as np
import pytest
import torch

from benchmarks import common, ranking
from helpers import call
from image_store import UnreadableImages
from utils import InputError


@pytest.fixture
def here(monkeypatch):
    """Measurements that are processes of their own otherwise, in this one: it has imported torch already."""
    def in_this_process(what, smaller, *call):
        function, *arguments = pickle.loads(pickle.dumps(call))  # as on their way to another process
        return function(*arguments)

    for module in (ranking,):
        monkeypatch.setattr(module, "in_a_process", in_this_process)


def bench(capsys, tmp_path, command, *flags):
    """Run a benchmark: its table, a dictionary a line with the headings as keys, and its JSON file."""
    output = tmp_path / f"{command}.json"
    code, out, error = call(capsys, "bench.py", command, *flags, "--output", output)
    assert code == 0, error
    head, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines()
                       if line.startswith("|")]
    content = json.loads(output.read_text())
    assert json.loads(out.splitlines()[-2]) == content["machine"]
    return [dict(zip(head, line, strict=True)) for line in lines], content


def check_medians(table, runs, heading, key):
    """The cells under `heading` hold the median, least and most of the measurements, one line a method."""
    assert [line["method"] for line in table] == list(runs)
    for line in table:
        numbers = [float(number.replace(",", "")) for number in re.findall(r"[\d,.]+", line[heading])]
        values = [run[key] for run in runs[line["method"]]]
        digits = len(line[heading].split(" ")[0].partition(".")[2])
        assert numbers == [round(f(values), digits) for f in (statistics.median, min, max)]


# ---------------------------------------------------------------- ranking


def test_the_ranking_compares_methods_that_do_the_same(here, tmp_path, capsys):
    table, content = bench(capsys, tmp_path, "ranking", "--sizes", "800x16x64", "--repeat", 1)
    methods = content["sizes"]["800x16x64"]
    assert list(methods) == ["matrix, argsort down the columns", "query by query, argsort", "ours",
                             "ours, all of results.json", "ours, --ties stable", "distances alone"]
    for runs in methods.values():
        assert len(runs) == 1 and runs[0]["seconds"] > 0 and runs[0]["peak_mb"] > runs[0]["more_mb"] >= 0
    assert [line["database x queries x bits"] for line in table] == ["800 x 16 x 64"] * 6
    check_medians(table, methods, "seconds: median (least - most)", "seconds")

    ranking.write_codes(tmp_path, (800, 16, 64), True)
    labels = np.load(tmp_path / "database_labels.npy")
    assert (np.diff(labels) < 0).any() and np.bincount(labels).tolist() == [100] * 8
    ranking.write_codes(tmp_path, (800, 16, 64), False)
    assert (np.diff(np.load(tmp_path / "database_labels.npy")) >= 0).all()
    query, database = (np.load(tmp_path / f"{part}_codes.npy") for part in ("query", "database"))
    distances = np.bitwise_count(query[:, None] ^ database).sum(2, dtype=int)
    parts = torch.get_num_threads()
    assert methods["distances alone"][0]["value"] == sum(
        part[:8].sum() for part in np.array_split(distances, parts))
    bounds = {"map_min": 0.2, "map": 0.3, "map_max": 0.4}
    ranking._check("query by query, argsort", 0.25, bounds)
    for name, value in (("query by query, argsort", 0.41), ("ours", 0.25)):
        with pytest.raises(InputError, match="one of the two is wrong"):
            ranking._check(name, value, bounds)


# ---------------------------------------------------------------- processes, flags


def test_the_peak_of_a_process_is_its_own_and_not_that_of_the_one_that_started_it():
    held = np.ones(50_000_000)  # 400 MB
    mine = common.memory("now")
    assert held.sum() and common.in_a_process("x", "--sizes", common.memory, "peak") < mine - 100
    del held
    assert common.memory("now") < mine - 300 and common.memory("peak") >= mine - 1


def test_a_process_that_dies_and_an_error_that_cannot_travel_are_told():
    with pytest.raises(InputError, match=r"'x' ended without a result.*choose smaller --sizes"):
        common.in_a_process("x", "--sizes", os._exit, 3)

    def fail():
        raise UnreadableImages({0: "a.png (damaged)"}, 5)

    with pytest.raises(InputError, match=r"1 of 5 images cannot be read: a\.png") as raised:
        common._call(fail, ())
    assert type(raised.value) is InputError


BAD = [
    (["ranking", "--sizes", "75000x64"], "DATABASExQUERIESxBITS"),
    (["ranking", "--folder", "{tmp}/none"], "not a folder"),
    (["ranking", "--device", "mps"], "invalid choice: 'mps'"),
    (["ranking", "--repeat", "0"], "not a positive whole number"),
    (["ranking", "--output", "{tmp}"], "is a folder, expected a file"),
    (["ranking", "--output", "{tmp}/file/f.json"], "--output"),
    ([], "required: command"),
]


@pytest.mark.parametrize(("flags", "message"), BAD, ids=[" ".join(flags) or "none" for flags, _ in BAD])
def test_a_bad_flag_is_one_line_and_exit_code_2(tmp_path, capsys, flags, message):
    (tmp_path / "file").write_text("a file")
    if flags and "--output" not in flags and flags[0] != "all":
        flags = [*flags, "--output", "{tmp}/out.json"]
    code, out, error = call(capsys, "bench.py", *(flag.format(tmp=tmp_path) for flag in flags))
    assert code == 2
    assert message in error and len(error.strip().splitlines()) == 1
    assert "Traceback" not in error and "|" not in out
