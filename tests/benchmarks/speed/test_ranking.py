"""Ranking: methods that do the same, on codes drawn as the field's lists are."""

import numpy as np
import pytest
import torch

from benchmarks.speed import ranking
from utils import InputError


def test_the_ranking_compares_methods_that_do_the_same(here, bench, check_medians, tmp_path):
    table, content = bench("ranking", "--sizes", "800x16x64", "--repeat", 1)
    methods = content["sizes"]["800x16x64"]
    assert list(methods) == ["matrix, argsort down the columns", "query by query, argsort", "ours",
                             "ours, all of results.json", "ours, --ties stable", "distances alone"]
    for runs in methods.values():
        assert len(runs) == 1 and runs[0]["seconds"] > 0
        assert runs[0]["peak_mb"] > runs[0]["more_mb"] >= 0
    assert [line["database x queries x bits"] for line in table] == ["800 x 16 x 64"] * 6
    check_medians(table, methods, "seconds: median (least - most)", "seconds")
    assert methods["ours"][0]["value"] == pytest.approx(
        methods["ours, all of results.json"][0]["value"], abs=1e-12)

    # The floor looks at every code: its sum is that of the first eight queries of each thread.
    ranking.write_codes(tmp_path, ranking.Size(800, 16, 64), False)
    query, database = (np.load(tmp_path / f"{part}_codes.npy") for part in ("query", "database"))
    distances = np.bitwise_count(query[:, None] ^ database).sum(2, dtype=int)
    parts = np.array_split(distances, torch.get_num_threads())
    assert methods["distances alone"][0]["value"] == sum(part[:8].sum() for part in parts)


def test_codes_are_sorted_by_class_unless_they_are_shuffled(tmp_path):
    size = ranking.Size(800, 16, 64)
    ranking.write_codes(tmp_path, size, True)
    labels = np.load(tmp_path / "database_labels.npy")
    assert (np.diff(labels) < 0).any() and np.bincount(labels).tolist() == [100] * 8
    ranking.write_codes(tmp_path, size, False)
    assert (np.diff(np.load(tmp_path / "database_labels.npy")) >= 0).all()


def test_a_method_that_finds_something_else_is_found_out():
    bounds = {"map_min": 0.2, "map": 0.3, "map_max": 0.4}
    ranking.check("query by query, argsort", 0.25, bounds)
    ranking.check("ours", 0.3, bounds)
    for name, value in (("query by query, argsort", 0.41), ("ours", 0.25)):
        with pytest.raises(InputError, match="one of the two is wrong"):
            ranking.check(name, value, bounds)


def test_what_needs_a_matrix_or_words_is_left_out_where_it_cannot_be():
    large, odd = ranking.Size(10**7, 1000, 64), ranking.Size(800, 16, 12)
    assert ranking.names_of(large, "cuda") == [
        "ours", "ours on cuda", "ours, all of results.json", "distances alone"]
    assert "distances alone" not in ranking.names_of(odd, "cpu")
