"""Figures and the numbers behind them."""

import csv

import numpy as np
import pytest
from PIL import Image

import hamming
from hamming.figures import (
    classes_of,
    curve_of,
    ranks_to_show,
    write_comparison,
    write_curves,
    write_figures,
)
from helpers_hamming import make_data


def table_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_drawn(path):
    pixels = np.asarray(Image.open(path).convert("L"))
    assert pixels.min() < 60 and 0.5 < (pixels > 250).mean() < 0.999  # lines on white


def test_figures_and_their_numbers_agree_with_the_results(tmp_path):
    data, *_ = make_data(12, Q=20, N=60)
    results = hamming.evaluate(*data, 12, 9)
    names = ["field", "sea", "town"]
    own = (data[2] + 3) // 7  # classes 0, 1, 2
    folder = tmp_path / "new" / "folder"
    write_figures(hamming.distance_histograms(*data, 12), 9, own, names, folder)
    for name in ("precision_recall", "precision_at_rank", "ap_per_class"):
        assert_drawn(folder / f"{name}.png")
    by_radius = table_of(folder / "precision_recall.csv")
    assert [int(row["radius"]) for row in by_radius] == list(range(13))
    assert float(by_radius[2]["precision"]) == pytest.approx(results["precision_radius2"])
    assert float(by_radius[12]["recall"]) == pytest.approx(1) == float(by_radius[12]["answered"])
    by_rank = {int(row["rank"]): row for row in table_of(folder / "precision_at_rank.csv")}
    for k in (1, 10):
        assert float(by_rank[k]["precision"]) == pytest.approx(results["precision_at"][str(k)])
    assert float(by_rank[9]["recall"]) == pytest.approx(results["recall"])
    classes = table_of(folder / "ap_per_class.csv")
    assert [row["name"] for row in classes] == names
    weights = [int(row["queries"]) for row in classes]
    assert weights == np.bincount(own).tolist()
    for column, key in (("ap", "map"), ("ap_min", "map_min"), ("ap_max", "map_max")):
        values = [float(row[column]) for row in classes]
        assert np.average(values, weights=weights) == pytest.approx(results[key])


def test_figures_of_items_with_several_labels_count_a_query_in_each_of_its_classes(tmp_path):
    labels = np.array([[1, 1, 0], [0, 1, 0]])
    found = {number: queries.tolist() for number, queries in classes_of(labels).items()}
    assert found == {0: [True, False], 1: [True, True]}
    tables = hamming.Histograms(np.array([[2, 1], [1, 2]]), np.array([[1, 1], [1, 0]]))
    write_figures(tables, 2, labels, None, tmp_path)
    rows = [(row["name"], row["queries"], float(row["ap"]))
            for row in table_of(tmp_path / "ap_per_class.csv")]
    # First query, R = 2: a hit at rank 1 or 2, each 1/2, so (1 + 1/2) / 2; second: one at rank 1.
    assert rows == [("class 0", "1", 0.75), ("class 1", "2", 0.875)]


def test_many_classes_are_all_in_the_table_and_the_lowest_in_the_figure(tmp_path):
    many = hamming.Histograms(np.tile([[2, 1]], (70, 1)), np.tile([[1, 1]], (70, 1)))
    names = ["$x^{$", "\u6c34"] * 35  # a formula that is none, and no glyph in the font
    write_figures(many, 2, np.arange(70), names, tmp_path)
    assert [row["name"] for row in table_of(tmp_path / "ap_per_class.csv")] == names
    assert Image.open(tmp_path / "ap_per_class.png").height < 3000


def test_ranks_are_few_and_hold_the_first_ten_the_last_and_R():
    assert ranks_to_show(5, 99) == [1, 2, 3, 4, 5]
    ranks = ranks_to_show(10**6, 1900)
    assert ranks[:10] == list(range(1, 11)) and ranks[-1] == 10**6 and 1900 in ranks
    assert len(ranks) < 120


def test_curves_of_methods_are_drawn_and_written(tmp_path):
    # Pencil: a hit, a miss, a hit at distances 0, 1, 2.
    curve = curve_of(hamming.Histograms(np.array([[1, 1, 1]]), np.array([[1, 0, 1]])))
    np.testing.assert_allclose(curve, [[1 / 2, 1 / 2, 1], [1, 1 / 2, 2 / 3]])
    write_curves({f"method {number}": curve for number in range(12)}, tmp_path, "title")
    rows = table_of(tmp_path / "precision_recall.csv")
    assert len(rows) == 36
    assert rows[-1] == {"method": "method 11", "recall": "1.0", "precision": str(2 / 3)}
    assert_drawn(tmp_path / "precision_recall.png")


def test_a_comparison_draws_methods_with_and_without_codes(tmp_path):
    maps = {"ours": {16: [0.5, 0.6], 64: [0.7]}, "real values": {None: [0.9]}}
    write_comparison(maps, tmp_path / "new", 1900, "title")
    assert_drawn(tmp_path / "new" / "map_by_bits.png")
