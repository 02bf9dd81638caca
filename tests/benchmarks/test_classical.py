"""Cells of classical methods: measured as test.py measures, made once, of the training images."""

import json

import numpy as np
import pytest
import timm
import torch

from benchmarks import baselines
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
    table.made["pair"] = ["--source1", words["source2"], "--source2", words["source1"]]
    code, _, error, _ = table(*ONE, "itq")
    assert code == 2 and "itq-8bit-13 was made with source1" in error

    # A damaged cell is named; codes that are gone cost their curve alone.
    table.made["pair"] = ["--source2", words["source2"]]
    (table.folder / "sh-8bit-13" / "results.json").write_text("[]")
    (table.folder / "itq-8bit-13" / "codes.npz").write_bytes(b"PK")
    (table.folder / "pcah-8bit-13" / "codes.npz").unlink()
    code, _, error, rows = table(*ONE, "itq", "sh", "pcah", "lsh")
    assert code == 2 and error.count("no curve of") == 2 and "Traceback" not in error
    assert "sh-8bit-13/results.json is damaged (no object): remove its folder" in error
    assert [row["method"] for row in rows] == ["lsh", "pcah", "itq"]


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
