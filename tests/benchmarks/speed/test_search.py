"""Search: exact and approximate methods on the same codes, and an archive of drawn ones."""

import numpy as np
import pytest

import hamming
from benchmarks.speed import search


def test_the_exact_methods_find_all_and_an_archive_is_searched(bench, check_medians, tmp_path):
    table, content = bench("search", "--sizes", 3000, "--repeat", 1, "--archive", "--folder",
                           tmp_path)
    runs = content["sizes"]["3000"]
    assert list(runs) == [search.OPEN, search.FIND, search.EXACT, search.FLAT, search.IVF,
                          search.MULTIHASH]
    assert [runs[name][0]["recall"] for name in (search.EXACT, search.FLAT)] == [1, 1]
    assert 0 < runs[search.MULTIHASH][0]["recall"] < runs[search.IVF][0]["recall"] <= 1
    check_medians(table, runs, "ms, one query: median (least - most)", "one_ms")
    assert [path.name for path in tmp_path.iterdir()] == ["search.json"]  # archives are gone


def test_drawn_codes_have_near_neighbours():
    codes = search.draw_codes(4000, 64, 1)
    assert (codes == search.draw_codes(4000, 64, 1)).all()
    distances = hamming.nearest(codes[:50], codes, 64, 2)[1]
    assert distances[:, 0].tolist() == [0] * 50
    assert 5 < distances[:, 1].mean() < 15  # two flips of a tenth of 64 bits; strangers: 32


def test_of_items_at_one_distance_any_is_right():
    exact = np.array([[0, 1, 3], [2, 2, 2]])
    assert search.recall(np.array([[0, 3, 3], [2, 2, 2]]), exact) == 1
    assert search.recall(np.array([[0, 1, 4], [2, 3, 3]]), exact) == pytest.approx(0.5)
