"""Tiny images, and how a benchmark is called."""

import json
import pickle
import re
import statistics
import zipfile

import pytest

from benchmarks.speed import __main__ as speed
from benchmarks.speed import ranking, training
from helpers import make_pairs


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of pairs, and the same fine images as EuroSAT.zip: the flags that choose them."""
    folder = tmp_path_factory.mktemp("bench")
    make_pairs(folder, per_class=8)
    with zipfile.ZipFile(folder / "EuroSAT.zip", "w") as archive:
        for path in sorted((folder / "fine").rglob("*.png")):
            archive.write(path, f"EuroSAT/{path.relative_to(folder / 'fine')}")
    return {"pairs": ["--data_name", "pairs", "--source1", folder / "coarse",
                      "--source2", folder / "fine"],
            "zip": ["--data_name", "EuroSAT", "--data_dir", folder], "folder": folder}


@pytest.fixture
def here(monkeypatch):
    """Measurements that are processes of their own otherwise, in this one."""
    def in_this_process(what, smaller, *call):
        function, *arguments = pickle.loads(pickle.dumps(call))  # as on their way to another one
        return function(*arguments)

    for module in (training, ranking):
        monkeypatch.setattr(module, "in_a_process", in_this_process)


@pytest.fixture
def bench(call_main, tmp_path):
    """Runs a benchmark: its table, a dictionary a line by heading, and its JSON file."""
    def bench_it(command, *flags):
        output = tmp_path / f"{command}.json"
        code, out, error = call_main(speed.main, command, *flags, "--output", output)
        assert code == 0, error
        head, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")]
                           for line in out.splitlines() if line.startswith("|")]
        content = json.loads(output.read_text())
        assert json.loads(out.splitlines()[-2]) == content["machine"]
        return [dict(zip(head, line, strict=True)) for line in lines], content

    return bench_it


@pytest.fixture
def check_medians():
    """Checks that cells hold median, least and most of the measurements, a line a method."""
    def check(table, runs, heading, key):
        assert [line["method"] for line in table] == list(runs)
        for line in table:
            numbers = [float(number.replace(",", ""))
                       for number in re.findall(r"[\d,.]+", line[heading])]
            values = [run[key] for run in runs[line["method"]]]
            digits = len(line[heading].split(" ")[0].partition(".")[2])
            assert numbers == [round(f(values), digits) for f in (statistics.median, min, max)]

    return check
