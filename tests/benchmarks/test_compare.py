"""The table: cells that are made once, failures that stay alone, and what is told of them."""

import csv
import json
import os
import re
import signal
import time

import pytest
from PIL import Image

from benchmarks import compare, trained
from benchmarks.baselines import BASELINES
from benchmarks.methods import TRAINED
from datasets.sources import ImageFiles
from helpers import ROOT
from utils import InputError


def test_every_method_lengths_and_seeds_are_in_the_table(table):
    code, out, error, rows = table("--hash_bit", 16, 8, "--ablation_bit", 8, "--seeds", 2,
                                   "--methods", "mrhash", "mrhash-single", "best", "lsh", "float")
    assert code == 0, error
    assert {(row["method"], row["bits"], row["seed"]) for row in rows} == {
        (name, bits, seed) for name, lengths in (
            ("mrhash", "8 16"), ("best", "8 16"), ("lsh", "8 16"), ("mrhash-single", "8"))
        for bits in lengths.split() for seed in ("13", "14")} | {("float", "", "13"),
                                                                 ("float", "", "14")}
    # A pretraining that two methods share is made once.
    assert sorted(table.made["pretrained"]) == [
        f"autoencoder-{name}-{seed}" for name in ("default", "preset-best") for seed in (13, 14)]
    assert "default--pseudo_labels-single-64px-0-128-8bit-13" in table.made["cells"]
    assert "preset-best--preset-best-16bit-14" in table.made["cells"]  # it brings its size
    sure = "0.513 [0.513, 0.513] (0.010)"
    assert f"| MrHash | 0.600 (0.000) | {sure} | 0.521 [0.521, 0.521] (0.010) |" in out
    assert f"| MrHash, single pseudo labels | 0.600 (0.000) | {sure} |  |" in out
    assert "[20/20]" in out
    written = (table.folder / "compare.md").read_text()
    assert written in out and "mAP@13" in written and "2 seeds" in written
    content = json.loads((table.folder / "compare.json").read_text())
    assert len(content["cells"]) == 16 and content["settings"]["seeds"] == 2
    assert "fewer than 100" in written and "mAP@13 †" in written
    assert content["cells"][0]["queries"] == 3 and content["cells"][0]["map_low"] > 0
    for name in ("map_by_bits.png", "precision_recall.png"):
        assert (table.folder / name).stat().st_size > 5000
    curve = list(csv.DictReader((table.folder / "precision_recall.csv").open(newline="")))
    assert {row["method"] for row in curve} == {"LSH"} and float(curve[-1]["recall"]) == 1


def test_effects_are_compared_seed_by_seed(table):
    code, out, error, rows = table(
        "--hash_bit", 8, "--methods", "mrhash", "mrhash-batchmean", "mrhash-once", "best",
        "mrhash-unisource", "mrhash-none")
    assert code == 0, error
    # Of nine queries some draws have none of a seed's three: those are means of two seeds.
    out = re.sub(r"\[(\+?)[\d.]+, \+?[\d.]+\]", r"[\1low, \1high]", out)
    assert "| MrHash | 0.600 (0.000) | 0.518 [low, high] (0.020) |" in out
    assert ("| MrHash, divergence averaged over the batch alone | MrHash "
            "| +2.0 [+low, +high], +0.0 +2.0 +4.0 |") in out
    assert "| MrHash, unisource encoder | MrHash | +0.0 [+low, +high], +0.0 +0.0 +0.0 |" in out
    assert "| MrHash, pseudo labels made once | MrHash | -10.0 [-10.0, -10.0], -10.0" in out
    assert "| MrHash | MrHash, `--preset best` | -10.0 [-10.0, -10.0], -10.0 -10.0 -10.0 |" in out
    apart = list(csv.DictReader((table.folder / "differences.csv").open(newline="")))
    assert len(apart) == 15
    once, = (line for line in apart if (line["method"], line["minus"]) == ("best", "mrhash-once"))
    assert float(once["difference"]) == pytest.approx(0.2) == float(once["seed 14"])
    # Each autoencoder leads to its own cells.
    assert len(table.made["pretrained"]) == 12 and len(table.made["cells"]) == 18 == len(rows)
    assert "autoencoder-source2-none-14" in table.made["pretrained"]
    assert "source2-none--default-64px-0-128-8bit-14" in table.made["cells"]


def test_a_word_stands_for_a_method_and_all_that_change_it():
    parsed = compare.parse_arguments(["--methods", "parts", "itq", "best"])
    assert parsed.methods[:3] == ["itq", "best", "best-none"]
    assert {name.split("-")[0] for name in parsed.methods} == {"itq", "best"}


def test_a_title_is_one_line():
    assert compare.parse_arguments(["--title", "Aerial\nimages "]).title == "Aerial images"


def test_a_failed_cell_leaves_the_others_and_a_failed_autoencoder_its_own(table):
    table.made["unlucky"] = lambda name, bits, seed: (
        (bits, seed) == (8, 14) or name == "autoencoder-preset-best-13")
    flags = ["--hash_bit", 8, 16, "--ablation_bit", 8, "--seeds", 2,
             "--methods", "mrhash", "best", "itq"]
    code, out, error, rows = table(*flags)
    assert code == 2 and "Traceback" not in error
    assert "5 of the cells failed" in error and "no luck" in error
    assert "MrHash, `--preset best`, 8 bits, seed 13: what it starts from failed" in error
    assert "| MrHash | 0.600 (0.000) | 0.508 [0.508, 0.508], 1 of 2 seeds |" in out
    assert len([row for row in rows if row["method"] == "itq"]) == 4
    table.made["unlucky"] = lambda name, bits, seed: False
    code, _, error, rows = table(*flags)
    assert code == 0 and len(rows) == 12, error


def test_without_a_second_source_what_needs_one_is_left_out(table):
    table.made["pair"] = []
    code, out, error, rows = table("--hash_bit", 8, "--seeds", 1, "--methods", "float-both",
                                   "mrhash", "mrhash-none", "mrhash-unisource", "best-none")
    assert code == 0, error
    assert ("left out, there is no second source: float-both, mrhash-none, mrhash-unisource, "
            "best-none") in out
    assert {row["method"] for row in rows} == {"mrhash"} and "one seed" in out
    code, _, error, _ = table("--hash_bit", 8, "--methods", "mrhash", "float-both", "--against",
                              "float-both")
    assert code == 2 and "--against float-both: it is left out, there is no second sou" in error
    code, _, error, _ = table("--hash_bit", 8, "--methods", "float-both")
    assert code == 2 and "no row is left, so there is nothing to compare" in error


def test_differences_are_told_from_the_best_or_the_last_row_that_is_no_ablation():
    assert compare.reference_of(["itq", "best", "best-none", "mrhash-8"]) == "best"
    assert compare.reference_of(["itq", "mrhash", "mrhash-8"]) == "mrhash"
    assert compare.reference_of(["mrhash-8", "mrhash-32"]) == "mrhash-32"
    assert compare.reference_of([]) is None


def test_a_row_that_only_hashes_takes_the_network_of_another_or_has_it_trained(table):
    flags = ["--hash_bit", 8, "--seeds", 1, "--methods", "best-views"]
    code, _, error, rows = table(*flags)
    assert code == 0 and [row["method"] for row in rows] == ["best-views"], error
    network = "preset-best--preset-best-8bit-13"
    assert table.made["cells"] == [network, "views-8"]
    code, _, error, rows = table(*flags, "best")
    assert code == 0 and len(rows) == 2, error
    assert table.made["cells"] == [network, "views-8"]
    table.made["unlucky"] = lambda name, bits, seed: name == network
    code, _, error, rows = table(*flags)
    assert code == 2 and "8 bits, seed 13: what it starts from failed" in error


def test_an_ablation_without_a_length_is_not_prepared(table):
    code, _, error, _ = table("--hash_bit", 8, "--ablation_bit", "--seeds", 1,
                              "--methods", "mrhash", "best-no-norm")
    assert code == 0, error
    assert table.made["pretrained"] == ["autoencoder-default-13"]


@pytest.mark.parametrize(("flags", "message"), [
    (["--hash_bit", 1025], "1025 is not a whole number from 1 to 1024"),
    (["--methods", "magic"], "invalid choice: 'magic'"),
    (["--max_epoch", -1], "-1 is not a whole number of at least 0"),
    (["--curve_bit", 5], "5 is not among --hash_bit"), (["--seeds", 0], "argument --seeds: 0"),
    (["--data_name", "UCMerced", "--data_dir", "nowhere"], "nowhere")])
def test_bad_flags_end_before_any_work(table, flags, message):
    code, _, error, _ = table(*flags)
    assert code == 2 and message in error and "Traceback" not in error
    assert not table.made["pretrained"]


def test_weights_that_cannot_be_had_are_told_once_and_not_a_cell(table):
    flags = ["--hash_bit", 8, "--seeds", 1, "--methods", "mrhash", "best", "lsh", "itq"]
    code, _, error, _ = table(*flags, "--weights", "nowhere.pth")
    assert code == 2 and error.count("nowhere.pth") == 1 and "of the cells failed" not in error
    assert not table.made["pretrained"] and not list(table.folder.glob("*-13"))
    code, _, error, _ = table("--hash_bit", 8, "--seeds", 1, "--methods", "lsh")
    assert code == 0, error
    # A finished table needs no weights: what is refused is another one in its place.
    code, _, error, _ = table("--hash_bit", 8, "--seeds", 1, "--methods", "lsh",
                              "--weights", "nowhere.pth")
    assert code == 2 and "was made with weights none, not nowhere.pth" in error


def test_a_package_that_is_missing_is_told_once_and_not_a_cell(table, monkeypatch):
    def read(self, row):
        raise InputError("reading TIFFs needs the package rasterio: pip install rasterio")

    monkeypatch.setattr(ImageFiles, "read", read)
    code, _, error, _ = table("--hash_bit", 8, "--methods", "mrhash", "itq")
    assert code == 2 and error.count("rasterio: pip install") == 1
    assert "of the cells failed" not in error


def test_constant_bits_of_a_cell_are_marked_and_listed(table, monkeypatch):
    monkeypatch.setitem(BASELINES, "lsh", lambda train, bits, seed: lambda x: x[:, :bits] * 0)
    for _ in range(2):  # made, and read
        code, out, error, rows = table("--hash_bit", 8, "--seeds", 1, "--methods", "lsh", "pcah")
        assert code == 0, error
        assert "* LSH, 8 bits, seed 13: all 8 bits are the same for all images" in out
        assert [row["method"] for row in rows if row["warnings"]] == ["lsh"]
        content = json.loads((table.folder / "compare.json").read_text())
        assert [len(cell["warnings"]) for cell in content["cells"]] == [1, 0]
    assert " * |" in (table.folder / "compare.md").read_text()
    results = table.folder / "lsh-8bit-13" / "results.json"
    older = {key: value for key, value in json.loads(results.read_text()).items()
             if key != "warnings"}
    results.write_text(json.dumps(older))
    code, out, error, _ = table("--hash_bit", 8, "--seeds", 1, "--methods", "lsh")
    assert code == 0 and "Marked" not in out, error


def test_images_without_labels_cannot_be_compared(tmp_path, call_main):
    (tmp_path / "flat").mkdir()
    for number in range(30):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "flat" / f"{number}.png")
    code, _, error = call_main(compare.main, "--data_name", "pairs", "--source1",
                               tmp_path / "flat", "--output_dir", tmp_path)
    assert code == 2 and "no labels, so there is nothing to compare" in error


# ------------------------------------------------------------------------ as people run it


QUICK_BEST = """
from dataclasses import replace
from benchmarks.methods import BEST, TRAINED
for name in ("best", "best-views"):
    TRAINED[name] = replace(TRAINED[name], first=[*BEST, "--epoch", 20])
"""


def test_a_table_of_pairs_is_killed_and_continued(pairs, zygote, tmp_path, call_main, monkeypatch):
    flags = ["--data_name", "pairs", "--source1", pairs / "coarse", "--source2", pairs / "fine",
             "--backbone", "squeezenet1_1", "--weights", "none", "--hash_bit", 8, "--seeds", 1,
             "--methods", "float", "itq", "best", "best-views", "--cache_dir", tmp_path / "cache",
             "--output_dir", tmp_path]
    for name in ("best", "best-views"):
        monkeypatch.setitem(TRAINED, name, TRAINED[name])  # what is put back
    exec(QUICK_BEST, {})
    # A group of its own, which is killed with the scripts that it has started.
    first = zygote.start(tmp_path / "first.txt", ROOT / "benchmarks" / "compare.py", *flags,
                         prepare=f"{QUICK_BEST}import os; os.setsid()")
    result = tmp_path / "coarse_fine" / "autoencoder-preset-best-epoch-20-13" / "autoencoder.pth"
    for _ in range(600):
        if result.exists():
            break
        time.sleep(0.1)
    assert result.exists(), (tmp_path / "first.txt").read_text()
    os.killpg(first, signal.SIGKILL)
    assert zygote.wait(first) == -signal.SIGKILL
    assert not (tmp_path / "coarse_fine" / "compare.csv").exists()

    commands = []

    def run_script_quickly(log, jobs, *command):
        commands.append(command[0])
        log.parent.mkdir(exist_ok=True)
        assert zygote.run(log, *command)[0] == 0, log.read_text()

    monkeypatch.setattr(trained, "run_script", run_script_quickly)
    code, out, error = call_main(compare.main, *flags)
    assert code == 0, error
    assert commands == ["train.py", "test.py", "test.py"]
    with open(tmp_path / "coarse_fine" / "compare.csv", newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["float", "itq", "best", "best-views"]
    assert float(rows["best"]["map"]) > float(rows["best"]["chance"]) + 0.15
    cell = tmp_path / "coarse_fine" / rows["best"]["cell"]
    results = json.loads((cell / "results.json").read_text())
    assert results["map"] == pytest.approx(float(rows["best"]["map"]), abs=1e-6)
    assert rows["best-views"]["cell"] == f"{cell.name}/views-8"
    assert rows["best-views"]["train_seconds"] == rows["best"]["train_seconds"]
    views = tmp_path / "coarse_fine" / rows["best-views"]["cell"]
    assert json.loads((views / "results.json").read_text())["views"] == 8
    assert "8 bits of 8 views, 3 queries" in (views / "test.txt").read_text()
    code, again, _ = call_main(compare.main, *flags)
    assert code == 0 and len(commands) == 3
    assert again.splitlines()[-8:] == out.splitlines()[-8:]
