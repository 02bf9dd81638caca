"""Cells of classical methods: measured as test.py measures, made once, of the training images."""

import json

import numpy as np
import pytest
import timm
import torch

from benchmarks import baselines, classical
from data_loader import load_dataset
from datasets.base import DataConfig
from helpers import call

ONE = ["--hash_bit", 8, "--seeds", 1, "--methods"]


def loaded(table):
    """The images of a table, from the settings that it wrote."""
    words = json.loads((table.folder / "compare.json").read_text())["settings"]
    config = DataConfig("pairs", "data", words["source1"], words["source2"], None, None, 13)
    return words, load_dataset(config)


def features_of(table):
    """The features of each source that lie in the cache, float64."""
    files = (table.folder.parent / "cache" / "features").glob("*.npy")
    return [np.load(file).astype(np.float64) for file in files]


def cosine_map(features, dataset):
    """mAP@13 by the sum of cosines of features, centred by the training images, in plain numpy."""
    cosines = np.zeros((len(dataset.query), len(dataset.database)))
    for x in features:
        unit = x - x[dataset.train].mean(axis=0)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        cosines += unit[dataset.query] @ unit[dataset.database].T
    order = np.argsort(-cosines, axis=1)[:, :13]
    hits = dataset.labels[dataset.database][order] == dataset.labels[dataset.query][:, None]
    precision = hits.cumsum(axis=1) / np.arange(1, 14)
    return ((precision * hits).sum(axis=1) / np.maximum(hits.sum(axis=1), 1)).mean()


def test_baselines_are_measured_as_test_py_measures_and_made_once(table, capsys):
    code, _, error, rows = table(*ONE, "itq", "sh", "pcah", "float")
    assert code == 0, error
    for row in rows[1:]:
        found = table.folder / f"{row['method']}-8bit-13"
        code, _, error = call(capsys, "test.py", "--codes", found / "codes.npz",
                              "--output_dir", found / "again")
        assert code == 0, error
        results = json.loads((found / "again" / "results.json").read_text())
        assert results["map"] == pytest.approx(float(row["map"]), abs=1e-6)
        assert results["map_chance"] == pytest.approx(float(row["chance"]), abs=1e-6)
    words, dataset = loaded(table)
    assert float(rows[0]["map"]) == pytest.approx(cosine_map(features_of(table), dataset), abs=2e-6)
    assert rows[0]["method"] == "float" and rows[0]["chance"] == rows[1]["chance"]
    code, _, error, both = table(*ONE, "float-both")
    assert code == 0, error
    assert len(features_of(table)) == 2
    assert float(both[0]["map"]) == pytest.approx(cosine_map(features_of(table), dataset), abs=1e-5)

    made = (table.folder / "itq-8bit-13" / "codes.npz").stat().st_mtime_ns
    assert table(*ONE, "itq")[0] == 0
    assert (table.folder / "itq-8bit-13" / "codes.npz").stat().st_mtime_ns == made
    # Other weights are another table, and so are other images.
    code, _, error, _ = table(*ONE, "itq", "--backbone", "resnet18")
    assert code == 2
    assert ("was made with backbone squeezenet1_1, not resnet18: choose another --output_dir"
            in error)
    other = table.folder.parent / "other" / "coarse"  # of the same name
    other.parent.mkdir()
    other.symlink_to(words["source2"])
    table.made["pair"] = ["--source1", other, "--source2", words["source2"]]
    code, _, error, _ = table(*ONE, "itq")
    assert code == 2 and "itq-8bit-13 was made with source1" in error

    # A damaged cell is named; codes that are gone cost their curve alone.
    table.made["pair"] = ["--source2", words["source2"]]
    (table.folder / "sh-8bit-13" / "results.json").write_text("[]")
    (table.folder / "itq-8bit-13" / "codes.npz").write_bytes(b"PK")
    (table.folder / "pcah-8bit-13" / "codes.npz").unlink()
    curves = table.folder / "precision_recall.csv"
    assert curves.exists()
    code, _, error, rows = table(*ONE, "itq", "sh", "pcah", "lsh")
    assert code == 2 and error.count("no curve of") == 2 and "Traceback" not in error
    assert "sh-8bit-13/results.json is damaged (no object): remove its folder" in error
    assert [row["method"] for row in rows] == ["lsh", "pcah", "itq"]
    (table.folder / "lsh-8bit-13" / "codes.npz").write_bytes(b"")
    code, _, error, _ = table(*ONE, "lsh")
    assert code == 0 and "no interval of LSH" in error and not curves.exists()
    (table.folder / "lsh-8bit-13" / "results.json").write_text('{"map": null}')
    code, _, error, _ = table(*ONE, "lsh")
    assert code == 2 and "lsh-8bit-13/results.json is damaged (no map)" in error


def test_a_cell_of_weights_with_another_content_is_not_read(table, tmp_path):
    weights = tmp_path / "weights.pth"
    flags = ["--backbone", "timm/test_resnet", "--weights", weights]
    for seed in range(2):
        torch.manual_seed(seed)
        torch.save(timm.create_model("test_resnet").state_dict(), weights)
        code, _, error, _ = table(*ONE, "float", *["lsh"][:seed], *flags)
    assert code == 2 and "float-13 was made with weights_content" in error


def test_baselines_learn_from_the_training_images_alone(table, monkeypatch):
    seen = []

    def itq(train, bits, seed):
        seen.append(train)
        return baselines.lsh(train, bits, seed)

    monkeypatch.setitem(baselines.BASELINES, "itq", itq)
    assert table(*ONE, "itq")[0] == 0
    features, = features_of(table)
    assert seen[0].shape == (39, features.shape[1])
    assert {row.tobytes() for row in seen[0].numpy()} < {row.tobytes() for row in features}


DEEP = ("greedyhash", "bihalf", "ssdh", "cibhash", "greedyhash-both", "bihalf-both")


def test_deep_rows_say_how_they_were_made_and_are_not_read_as_others(table):
    code, out, error, rows = table(*ONE, "agh", "imh", *DEEP, "--views", 2)
    assert code == 0, error
    assert {row["method"] for row in rows} == {"agh", "imh", *DEEP}
    config = json.loads((table.folder / "greedyhash-8bit-13" / "config.json").read_text())
    wanted = {"views": 2, "head_epochs": 50, "head_width": 512, "weight": 0.1}
    assert {name: config[name] for name in wanted} == wanted
    assert "| GreedyHash, both sources |" in out
    code, _, error, _ = table(*ONE, "agh", "greedyhash", "--views", 4)
    assert code == 2 and "greedyhash-8bit-13 was made with views 2, not 4" in error
    assert "agh" not in error  # sees the image as it is
    table.made["pair"] = ["--source2", "none"]
    code, out, error, rows = table(*ONE, *DEEP, "--views", 2)
    assert code == 0, error
    assert "left out, there is no second source: greedyhash-both, bihalf-both" in out
    assert len(rows) == 4


def test_deep_rows_learn_from_views_of_the_training_images_and_hash_the_image_as_it_is(
        table, tmp_path, monkeypatch):
    seen = []

    def train_head(method, views, similar, bits, seed):
        seen.append((views, similar))
        return lambda x: x[:, :bits] - views[:, 0, :bits].mean(dim=0)

    monkeypatch.setattr(classical, "train_head", train_head)
    code, _, error, _ = table(*ONE, "lsh", "greedyhash", "greedyhash-both", "--views", 4)
    assert code == 0, error
    _, dataset = loaded(table)
    dim = seen[0][0].shape[2]
    code, _, error, _ = table(*ONE, "lsh", "--views", 1, "--output_dir", tmp_path / "alone")
    assert code == 0, error
    upright, = (x for x in features_of(table) if x.shape[1] == dim)
    for number, (views, similar) in enumerate(seen):
        assert views.shape == (39, 4, dim) and similar.shape == (39, (1 + number) * dim)
        np.testing.assert_allclose(views[:, 0], upright[dataset.train], rtol=1e-4, atol=1e-5)
        assert not np.allclose(views[:, 1], upright[dataset.train], atol=1e-3)
    values = upright[:, :8] - upright[dataset.train, :8].mean(axis=0)
    with np.load(table.folder / "greedyhash-8bit-13" / "codes.npz") as codes:
        bits = np.unpackbits(codes["query_codes"], axis=1)
    sure = np.abs(values[dataset.query]) > 1e-4
    assert sure.mean() > 0.5
    np.testing.assert_array_equal(bits[sure], (values[dataset.query] >= 0)[sure])
