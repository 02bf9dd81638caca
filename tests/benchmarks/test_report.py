"""The table of compare from the numbers of its cells."""

import csv

import numpy as np
import pytest

import hamming
from benchmarks.methods import TITLES
from benchmarks.report import map_table, warning_list
from hamming.figures import curve_of
from helpers import ROOT


def of_document(name):
    """The records of a CSV in docs."""
    records = {}
    with open(ROOT / "docs" / name, newline="") as file:
        for line in csv.DictReader(file):
            assert line["title"] == TITLES[line["method"]]
            bits = int(line["bits"]) if line["bits"] else None
            record = {"map": float(line["map"])}
            if line["latent_map"]:
                record["latent_map"] = float(line["latent_map"])
            records[line["method"], bits, int(line["seed"])] = record
    return records


def test_the_published_numbers_make_the_published_table():
    """What README.md and docs/results.md say, of 3 seeds."""
    found = map_table(of_document("compare_ucmerced.csv"), [16, 32, 64, 128], 3)
    for line in ["| method | floats | 16 bits | 32 bits | 64 bits | 128 bits |",
                 "| float features, centred cosine | 0.720 (0.017) |  |  |  |  |",
                 "| ITQ |  | 0.617 (0.055) | 0.682 (0.024) | 0.703 (0.006) | 0.721 (0.008) |",
                 "| best, no second source | 0.826 (0.019) | 0.784 (0.038) | 0.797 (0.028) "
                 "| 0.806 (0.026) | 0.819 (0.026) |",
                 "| MrHash, `--preset best` | 0.863 (0.011) | 0.814 (0.025) | 0.837 (0.028) "
                 "| 0.833 (0.012) | 0.846 (0.023) |"]:
        assert line in found


def test_the_numbers_of_a_gpu_make_the_published_table():
    """What README.md and docs/results.md say of the hash networks at full size, of 3 seeds."""
    found = map_table(of_document("compare_ucmerced_gpu.csv"), [64], 3, False)
    for line in ("| ITQ |  | 0.703 (0.024) |",
                 "| MrHash, labels as published | 0.700 (0.015) | 0.629 (0.038) |",
                 "| MrHash, `--preset best` | 0.819 (0.015) | 0.803 (0.017) |",
                 "| MrHash, `--preset best`, fine-tuned | 0.819 (0.015) | 0.832 (0.024) |"):
        assert line in found


def test_a_cell_with_warnings_is_marked_and_they_are_listed():
    bad, dark = "19 of 64 bits are the same for all images", "3 images are black"
    records = {("itq", 64, 13): {"map": 0.5, "warnings": []}, ("itq", 32, 13): {"map": 0.25},
               ("mrhash", 64, 13): {"map": 0.5, "latent_map": 0.6, "warnings": [dark, bad]},
               ("mrhash", 64, 14): {"map": 0.7, "latent_map": 0.6, "warnings": [dark]}}
    lines = map_table(records, [32, 64], 2).splitlines()
    assert lines[2] == "| ITQ |  | 0.250, 1 of 2 seeds | 0.500, 1 of 2 seeds |"
    assert lines[3] == "| MrHash | 0.600 (0.000) |  | 0.600 (0.200) * |"
    assert warning_list(records).splitlines() == [
        "", "Marked with *:", "", f"* MrHash, 64 bits, seeds 13, 14: {dark}",
        f"* MrHash, 64 bits, seed 13: {bad}"]
    assert warning_list({("itq", 64, 13): {"map": 0.5}}) == ""


def test_one_seed_has_no_spread():
    records = of_document("compare_ucmerced.csv")
    first = {key: record for key, record in records.items() if key[2] == 13}
    assert "| best, no second source | 0.815 | 0.791 |" in map_table(first, [64], 1)


def test_recall_and_precision_of_a_ranking_with_classes_of_unlike_size():
    draw = np.random.default_rng(0)
    database, query = (draw.integers(0, 256, (count, 1), dtype=np.uint8) for count in (40, 6))
    theirs, own = np.repeat([0, 1], [30, 10]), np.array([0, 1, 0, 1, 1, 0])
    recall, precision = curve_of(
        hamming.distance_histograms(query, database, own, theirs, hash_bit=8))
    assert recall[-1] == pytest.approx(1)
    assert precision[-1] == pytest.approx((0.75 + 0.25) / 2)
    nearest = []
    for code, label in zip(query, own, strict=True):
        distance = np.unpackbits(database ^ code, axis=1).sum(axis=1)
        tied = theirs[distance == distance.min()] == label
        nearest.append((tied.mean(), tied.mean() / (theirs == label).sum()))
    assert (precision[0], recall[0]) == pytest.approx(tuple(np.mean(nearest, axis=0)))
