"""Stage 3 by itself: codes of a model or of anyone, what is written where, what is refused."""

import csv
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import data_loader
import hamming
from engine.checkpoint import save_checkpoint
from hamming.pictures import FRAME, RIGHT, TILE, WRONG
from helpers import ENVIRONMENT, QUICK, ROOT, SMALL, read_results, script_module
from script_helpers import HEAD, done, quick_flags, refused


@pytest.fixture
def model(trained):
    return ["--pretrain_path", trained[0] / "mr" / "mrhash.pth", *SMALL]


@pytest.fixture
def codes(trained):
    """The arrays of the codes file."""
    with np.load(trained[0] / "codes.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


# ---------------------------------------------------------------- codes of any method


def test_stored_codes_are_evaluated_without_a_model(trained, tmp_path, capsys):
    stored = ["--codes", trained[0] / "codes.npz", "--output_dir", tmp_path]
    expected = read_results(trained[0] / "mr")
    out, _ = done(capsys, "test.py", *stored)
    assert read_results(tmp_path) == expected
    assert f"mAP@13 {expected['map']:.4f} (ties: expected; any order gives" in out
    assert "12 bits, 3 queries, 39 in the database\nthis mAP says little: each of the 3 " in out
    assert "map_stable" not in expected
    for ties, key in (("min", "map_min"), ("max", "map_max")):
        done(capsys, "test.py", *stored, "--ties", ties)
        assert read_results(tmp_path)["map"] == expected[key]


def test_results_go_beside_the_codes(trained, tmp_path, capsys):
    expected = read_results(trained[0] / "mr")
    with zipfile.ZipFile(trained[0] / "codes.npz") as archive:
        archive.extractall(tmp_path / "folder")  # an .npz is a zip of .npy files
    (tmp_path / "codes.npz").write_bytes((trained[0] / "codes.npz").read_bytes())
    for place, output in (("folder", tmp_path / "folder"), ("codes.npz", tmp_path)):
        done(capsys, "test.py", "--codes", tmp_path / place)
        assert read_results(output) == expected


def test_the_number_of_bits_and_the_threshold_reach_the_reader(trained, codes, tmp_path, capsys):
    expected = read_results(trained[0] / "mr")
    del codes["hash_bit"]
    np.savez(tmp_path / "packed.npz", **codes)
    packed = ["--codes", tmp_path / "packed.npz"]
    assert "add --hash_bit" in refused(capsys, "test.py", *packed)
    done(capsys, "test.py", *packed, "--hash_bit", 12)
    assert read_results(tmp_path) == expected

    for name in ("database_codes", "query_codes"):
        codes[name] = hamming.unpack_codes(codes[name], 12) * 1.0
    np.savez(tmp_path / "values.npz", **codes)
    values = ["--codes", tmp_path / "values.npz", "--output_dir", tmp_path / "v"]
    assert "hold nothing but 0 and 1" in refused(capsys, "test.py", *values)
    done(capsys, "test.py", *values, "--T", 0.5)
    assert read_results(tmp_path / "v") == expected


def test_codes_that_cannot_be_are_one_sentence_and_no_results(codes, tmp_path, capsys):
    np.savez(tmp_path / "codes.npz", **{**codes, "database_labels": np.arange(40)})
    line = refused(capsys, "test.py", "--codes", tmp_path / "codes.npz")
    assert "error: database_labels have shape (40,), expected (39,)" in line
    assert not (tmp_path / "results.json").exists()


def test_codes_that_are_all_equal_are_warned_of(codes, tmp_path, capsys):
    for part in ("database", "query"):
        codes[f"{part}_codes"][:, 0] = 255
    np.savez(tmp_path / "some.npz", **codes)
    _, error = done(capsys, "test.py", "--codes", tmp_path / "some.npz")
    constant = hamming.constant_bits(codes["database_codes"], 12)
    assert 8 <= constant < 12
    assert f"warning: {constant} of 12 bits are the same for all images" in error
    for part in ("database", "query"):
        codes[f"{part}_codes"][:] = 0
    np.savez(tmp_path / "all.npz", **codes)
    _, error = done(capsys, "test.py", "--codes", tmp_path / "all.npz")
    assert "all 12 bits are the same for all images, so that nothing can be ranked" in error


def test_stable_ties_are_those_of_a_stable_sort(trained, codes, tmp_path, capsys):
    done(capsys, "test.py", "--codes", trained[0] / "codes.npz", "--ties", "stable",
         "--output_dir", tmp_path)
    query, database = (np.unpackbits(codes[f"{part}_codes"], axis=1)[:, :12]
                       for part in ("query", "database"))
    distances = (query[:, None] != database).sum(axis=2)
    order = np.argsort(distances, axis=1, kind="stable")[:, :13]
    hits = codes["database_labels"][order] == codes["query_labels"][:, None]
    precision = hits.cumsum(axis=1) / np.arange(1, 14)
    expected = (precision * hits).sum(axis=1) / np.maximum(hits.sum(axis=1), 1)
    results = read_results(tmp_path)
    assert results["ties"] == "stable"
    assert results["map"] == pytest.approx(expected.mean(), rel=1e-12)


def test_a_remark_where_few_queries_or_ranks_decide():
    remark = script_module("test.py").remark
    for R, queries, said in (
            (1, 5, "of each ranking only the nearest image counts, and each of the 5 queries can "
                   "change it by 0.20"),
            (4, 10, "of each ranking only the first 4 images count"),
            (5, 9, "each of the 9 queries can change it by 0.11"),
            (1900, 1, "there is one query")):
        assert remark({"R": R, "num_query": queries}) == f"\nthis mAP says little: {said}"
    assert remark({"R": 5, "num_query": 10}) == ""


# ---------------------------------------------------------------- what is written


def test_the_picture_frames_right_neighbours_green_and_wrong_ones_red(trained, codes):
    picture = np.asarray(Image.open(trained[0] / "neighbours.png"))
    nearest, _ = hamming.nearest(codes["query_codes"], codes["database_codes"], 12, 10)
    hits = codes["database_labels"][nearest] == codes["query_labels"][:, None]
    right, frame = int(hits.sum()), (TILE + 2 * FRAME) ** 2 - TILE**2
    assert (picture == RIGHT).all(axis=2).sum() >= right * frame
    assert (picture == WRONG).all(axis=2).sum() >= (30 - right) * frame
    assert (picture == RIGHT).all(axis=2).sum() < (right + 1) * frame


def test_figures_have_the_names_of_the_classes(trained, tmp_path, capsys):
    out, _ = done(capsys, "test.py", "--codes", trained[0] / "codes.npz", "--output_dir", tmp_path,
                  "--figures", tmp_path / "figures")
    assert f"wrote the figures and their numbers to {tmp_path / 'figures'}" in out
    names = ("ap_per_class", "precision_at_rank", "precision_recall")
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(
        f"{name}.{kind}" for name in names for kind in ("csv", "png"))
    with open(tmp_path / "figures" / "ap_per_class.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["field", "sea", "town"]
    mean = np.average([float(row["ap"]) for row in rows],
                      weights=[int(row["queries"]) for row in rows])
    assert mean == pytest.approx(read_results(tmp_path)["map"])


def test_names_of_any_kind_reach_figures_and_screen_in_the_c_locale(codes, tmp_path):
    """Where Python takes all but ASCII for no text."""
    codes["class_names"] = np.array(["Flüsse", "caf\udce9", "\u6c34\u706b"])
    np.savez(tmp_path / "codes.npz", **codes)
    folder = tmp_path / "Größe"
    done = subprocess.run(
        [sys.executable, ROOT / "test.py", "--codes", tmp_path / "codes.npz", "--output_dir",
         folder, "--figures", folder], check=False, capture_output=True, text=True,
        env={**ENVIRONMENT, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    assert done.returncode == 0, done.stderr
    assert "wrote the figures and their numbers" in done.stdout and len(os.listdir(folder)) == 7
    with open(folder / "ap_per_class.csv", newline="", encoding="utf-8") as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert names == ["Flüsse", r"caf\xe9", "\u6c34\u706b"]
    lines = done.stderr.splitlines()  # of a font that is not there, and of constant bits
    assert len(lines) <= 2 and all(line.startswith("warning: ") for line in lines), lines


def test_figures_without_labels_are_refused_before_the_work(model, tmp_path, capsys, monkeypatch):
    inherit = data_loader.inherit_dataset

    def without_labels(*arguments, **options):
        dataset, config = inherit(*arguments, **options)
        return replace(dataset, labels=None), config

    monkeypatch.setattr(data_loader, "inherit_dataset", without_labels)
    monkeypatch.setattr(data_loader.ImageLoader, "__init__", None)  # no image is looked at
    line = refused(capsys, "test.py", *model, "--output_dir", tmp_path, "--figures", tmp_path)
    assert "--figures needs labels" in line


def test_figures_without_matplotlib_are_refused_before_the_work(trained, tmp_path, capsys,
                                                                monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    line = refused(capsys, "test.py", "--codes", trained[0] / "codes.npz", "--output_dir",
                   tmp_path / "o", "--figures", tmp_path / "figures")
    assert "--figures needs matplotlib" in line
    assert not (tmp_path / "o").exists()


def test_the_similarity_matrix_comes_with_the_codes_of_its_rows_and_columns(
        trained, model, codes, tmp_path, capsys):
    model += ["--gen_similarity_matrix", 1]
    done(capsys, "test.py", *model, "--output_dir", tmp_path)
    similarity = np.load(tmp_path / "similarity.npy", allow_pickle=False)
    signs = [1.0 - 2 * hamming.unpack_codes(codes[f"{part}_codes"], 12)
             for part in ("database", "query")]
    np.testing.assert_allclose(similarity, signs[0] @ signs[1].T / 12, atol=1e-6)
    with np.load(tmp_path / "codes.npz", allow_pickle=False) as found:
        for name in codes:
            np.testing.assert_array_equal(found[name], codes[name])
    done(capsys, "test.py", *model, "--output_dir", tmp_path / "b", "--save_codes",
         tmp_path / "mine.npz")
    assert (tmp_path / "mine.npz").exists() and not (tmp_path / "b" / "codes.npz").exists()
    done(capsys, "test.py", "--codes", trained[0] / "codes.npz", "--gen_similarity_matrix", 1,
         "--output_dir", tmp_path / "c")
    np.testing.assert_array_equal(np.load(tmp_path / "c" / "similarity.npy"), similarity)
    assert not (tmp_path / "c" / "codes.npz").exists()  # they are there already


def test_the_threshold_of_a_model_is_the_one_that_is_given(model, tmp_path, capsys):
    _, error = done(capsys, "test.py", *model, "--T", 1.1, "--output_dir", tmp_path,
                    "--save_codes", tmp_path / "zeros.npz")  # tanh never reaches 1.1
    assert not np.load(tmp_path / "zeros.npz")["query_codes"].any()
    assert "all 12 bits are the same for all images" in error


def test_the_second_source_need_not_be_there_any_more(trained, tmp_path, capsys):
    content = torch.load(trained[0] / "mr" / "mrhash.pth", weights_only=True)
    content["data"]["source2"] = str(tmp_path / "gone")
    save_checkpoint(tmp_path / "mrhash.pth", content)
    _, error = done(capsys, "test.py", "--pretrain_path", tmp_path / "mrhash.pth", *SMALL)
    assert read_results(tmp_path) == read_results(trained[0] / "mr") and "source" not in error


def test_codes_of_a_frozen_backbone_are_made_from_cached_features(trained, tmp_path, capsys):
    torch.manual_seed(5)
    weights = getattr(torchvision.models, QUICK[1])().state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    cache = ["--cache_dir", tmp_path / "cache"]
    train = [*quick_flags(trained), *HEAD, *cache, "--weights", tmp_path / "weights.pth"]
    done(capsys, "train.py", *train, "--max_epoch", "none", "--output_dir", tmp_path / "head")
    made = {}
    for name, flags in (("cached", cache), ("images", [])):
        out, _ = done(capsys, "test.py", "--pretrain_path", tmp_path / "head" / "mrhash.pth",
                      *SMALL, *flags, "--save_codes", tmp_path / f"{name}.npz")
        assert ("the frozen backbone's features are in the cache" in out) == (
            name == "cached")
        made[name] = np.load(tmp_path / f"{name}.npz")
    for part in ("database_codes", "query_codes"):
        np.testing.assert_array_equal(made["cached"][part], made["images"][part])
    # Of a backbone that went on learning nothing is cached.
    done(capsys, "train.py", *train, "--max_epoch", 0, "--output_dir", tmp_path / "both")
    out, _ = done(capsys, "test.py", "--pretrain_path", tmp_path / "both" / "mrhash.pth", *SMALL,
                  *cache)
    assert "in the cache" not in out


# ---------------------------------------------------------------- what is refused

BAD = [
    ([], "--pretrain_path --codes"),
    (["--pretrain_path", "{ae}"], "expected mrhash-1"),
    (["--pretrain_path", "{mr}", "--codes", "{codes}"], "not allowed with"),
    (["--pretrain_path", "{mr}", "--hash_bit", "32"], "contradicts"),
    (["--pretrain_path", "{mr}", "--source1", "{tmp}"], "holds no image"),
    (["--pretrain_path", "{mr}", "--T", "inf"], "inf is not a number from -1e+30 to 1e+30"),
    (["--codes", "{text}"], "not a whole .npz"),
    (["--codes", "{tmp}/no.npz"], "no codes at"),
    (["--codes", "{codes}", "--picture", "{tmp}/p.png"], "--picture needs the images"),
    (["--codes", "{codes}", "--ties", "lucky"], "invalid choice: 'lucky'"),
    (["--codes", "{codes}", "--R", "9999"], "larger than the database"),
    (["--codes", "{codes}", "--R", "0"], "0 is not a whole number of at least 1"),
    (["--codes", "{codes}", "--hash_bit", "16"], "holds 12 bits"),
    (["--codes", "{tmp}"], "has no database_codes"),
    (["--codes", ""], "an empty path was given"),
    (["--codes", "{codes}", "--T", "0.5"], "--T is for codes of real numbers"),
    (["--codes", "{codes}", "--figures", "{text}"], "is a file, expected a folder"),
    (["--codes", "{codes}", "--output_dir", "{text}"], "is a file, expected a folder"),
    (["--codes", "{codes}", "--save_codes", "{tmp}"], "is a folder, expected a file"),
    (["--pretrain_path", "{mr}", "--save_codes", "{mr}"], "would replace what it is made from"),
    (["--pretrain_path", "{mr}", "--picture", "{mr}"], "would replace what it is made from"),
    (["--codes", "{codes}", "--save_codes", "/dev/null"], "is no plain file"),
]


@pytest.mark.parametrize(("flags", "message"), BAD, ids=[" ".join(flags) for flags, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(trained, tmp_path, capsys, flags, message):
    (tmp_path / "text").write_text("no codes")
    places = {"tmp": tmp_path, "text": tmp_path / "text",
              "ae": trained[0] / "ae" / "autoencoder.pth",
              "mr": trained[0] / "mr" / "mrhash.pth", "codes": trained[0] / "codes.npz"}
    before = (trained[0] / "mr" / "results.json").read_text()
    line = refused(capsys, "test.py", *SMALL, *(flag.format(**places) for flag in flags))
    assert message in line
    assert (trained[0] / "mr" / "results.json").read_text() == before
    assert json.loads(before)["hash_bit"] == 12
