"""What all tables share: lines of Markdown, spreads over seeds, CSV files."""

import csv

import pytest

from benchmarks import tables
from helpers import ROOT


def test_a_table_is_markdown():
    assert tables.heading("method", "16 bits") == "| method | 16 bits |\n|---|---|"
    assert tables.row("ITQ", 0.5) == "| ITQ | 0.5 |"


@pytest.mark.parametrize(("values", "wanted", "text"), [
    ([], 3, ""), ([0.25], 1, "0.250"), ([0.25, 0.5, 0.75], 3, "0.500 (0.500)"),
    ([0.25, 0.5], 3, "0.375 (0.250), 2 of 3 seeds"), ([0.25], 2, "0.250, 1 of 2 seeds")])
def test_the_mean_over_seeds_is_told_with_its_spread(values, wanted, text):
    assert tables.over_seeds(values, wanted) == text


def test_an_interval_stands_beside_the_mean():
    assert tables.over_seeds([0.25, 0.5], 2, (0.3, 0.4)) == "0.375 [0.300, 0.400] (0.250)"


def test_differences_are_told_in_points_with_each_seed():
    sure = -0.021, 0.001
    assert tables.in_points({13: 0.01, 14: -0.03}, sure) == "-1.0 [-2.1, +0.1], +1.0 -3.0"
    assert tables.in_points({13: -0.01}, sure) == "-1.0 [-2.1, +0.1]"


def test_a_csv_has_every_column_and_six_digits(tmp_path):
    records = tables.rounded([{"a": 1, "b": 0.12345678}, {"c": "x, y"}])
    tables.write_csv(tmp_path / "t.csv", records)
    assert (tmp_path / "t.csv").read_text() == 'a,b,c\n1,0.123457,\n,,"x, y"\n'


@pytest.mark.parametrize("name", ["compare_ucmerced.csv", "compare_eurosat.csv",
                                  "compare_ucmerced_gpu.csv"])
def test_the_tables_of_the_documents_are_as_they_would_be_written_now(tmp_path, name):
    with open(ROOT / "docs" / name, newline="") as file:
        records = list(csv.DictReader(file))
    tables.write_csv(tmp_path / name, records)
    assert (tmp_path / name).read_bytes() == (ROOT / "docs" / name).read_bytes()
