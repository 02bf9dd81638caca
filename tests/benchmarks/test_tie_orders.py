"""The table of tie orders, held against what the exact metrics say of the same codes."""

import numpy as np
import pytest

import hamming
from benchmarks import tie_orders


@pytest.fixture
def codes(tmp_path):
    """12-bit codes of three classes, in two folders of one file each; what was saved."""
    draw = np.random.default_rng(0)
    content = {"hash_bit": 12}
    centres = draw.random((3, 12)) < 0.5
    for part, count in (("query", 9), ("database", 90)):
        labels = np.sort(draw.integers(0, 3, count))
        content[f"{part}_labels"] = labels
        content[f"{part}_codes"] = hamming.pack_codes(
            centres[labels] ^ (draw.random((count, 12)) < 0.3))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "codes.npz", **content)
    return tmp_path, content


def rows_of(out):
    head, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")]
                       for line in out.splitlines()]
    return head, {name: cells for name, *cells in lines}


def test_the_table_of_tie_orders_is_that_of_the_codes(codes, call_main):
    folder, content = codes
    code, out, error = call_main(tie_orders.main, folder / "one" / "codes.npz")
    assert code == 0, error
    head, rows = rows_of(out)
    assert head == ["order of ties", "mAP@R, 12 bits", "P@10, 12 bits"]
    given = [content[name] for name in ("query_codes", "database_codes", "query_labels",
                                        "database_labels")]
    results = hamming.evaluate(*given, 12)
    assert rows["expected over all orders"] == [f"{results['map']:.3f}",
                                                f"{results['precision_at']['10']:.3f}"]
    stable = hamming.stable_metrics(*given, 12, results["R"])
    assert rows["stable, database as stored"] == [f"{stable['ap'].mean():.3f}",
                                                  f"{stable['precision_at_10'].mean():.3f}"]
    assert rows["worst order"] == [f"{results['map_min']:.3f}", ""]
    assert rows["best order"] == [f"{results['map_max']:.3f}", ""]
    backwards = hamming.stable_metrics(given[0], given[1][::-1], given[2], given[3][::-1], 12,
                                       results["R"])
    assert rows["stable, database reversed"][0] == f"{backwards['ap'].mean():.3f}"
    assert len({cells[0] for cells in rows.values()}) > 4
    for name, cells in rows.items():
        value = float(cells[0])
        assert results["map_min"] - 1e-3 <= value <= results["map_max"] + 1e-3, name


def test_files_of_as_many_bits_are_told_by_their_folders(codes, call_main):
    folder, _ = codes
    paths = [folder / name / "codes.npz" for name in ("one", "two")]
    head, rows = rows_of(call_main(tie_orders.main, *paths)[1])
    assert head[1::2] == ["mAP@R, one", "mAP@R, two"]
    assert all(cells[:2] == cells[2:] for cells in rows.values())


def test_files_that_cannot_be_ranked_are_told(codes, call_main):
    folder, content = codes
    code, _, error = call_main(tie_orders.main, folder / "none.npz")
    assert code == 2 and "no codes at" in error
    content |= {"query_codes": content["query_codes"][:0],
                "query_labels": content["query_labels"][:0]}
    np.savez(folder / "empty.npz", **content)
    code, _, error = call_main(tie_orders.main, folder / "empty.npz")
    assert code == 2 and "no queries in the codes" in error
