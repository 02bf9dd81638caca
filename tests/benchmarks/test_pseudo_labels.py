"""The table of pseudo labels, against plain NumPy."""

import json

import numpy as np
import pytest
import torch

from benchmarks import pseudo_labels
from engine.cli import Compute
from loss import cluster_centres


def test_the_table_of_pseudo_labels_measures_what_it_says(trained, call_main):
    path = trained[0] / "ae" / "autoencoder.pth"
    published = ["--n_clusters", 2, 5, "--alpha", 1, "--label_spread", 0]
    code, out, error = call_main(pseudo_labels.main, path, *published, "--cache_dir", "none")
    assert code == 0, error
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines()
            if line.startswith("| ae")]
    assert [row[1] for row in rows] == ["2", "5"]
    latent_map = torch.load(path, weights_only=True)["latent_map"]
    for _, clusters, latents, assignments, q, p in rows:
        assert latents == f"{latent_map:.3f}"
        assert 0 < float(assignments) <= 1
        # Targets are sharper than what they are made of.
        assert 1 <= float(p) < float(q) <= float(clusters)

    # The line of 5 clusters again, from the latents on, in plain numpy.
    dataset, latent = pseudo_labels.latents_of(path, None, Compute(torch.device("cpu")))
    latent = latent.numpy()
    centres = cluster_centres(latent[dataset.train], 5, 20, 13)
    kernel = 1 / (1 + np.square(latent[:, None].astype(float) - centres).sum(axis=2))
    q = kernel / kernel.sum(axis=1, keepdims=True)
    distances = np.square(q[dataset.query][:, None] - q[dataset.database]).sum(axis=2)
    order = np.argsort(distances, axis=1)[:, :13]
    hits = dataset.labels[dataset.database][order] == dataset.labels[dataset.query][:, None]
    precision = hits.cumsum(axis=1) / np.arange(1, 14)
    expected = ((precision * hits).sum(axis=1) / np.maximum(hits.sum(axis=1), 1)).mean()
    assert float(rows[1][3]) == pytest.approx(expected, abs=2e-3)
    entropy = -(q[dataset.train] * np.log(q[dataset.train])).sum(axis=1).mean()
    assert float(rows[1][4]) == pytest.approx(np.exp(entropy), abs=0.06)


def test_labels_are_as_sharp_as_training_makes_them(trained, call_main):
    path = trained[0] / "ae" / "autoencoder.pth"
    code, out, error = call_main(pseudo_labels.main, path, "--n_clusters", 10, "--cache_dir",
                                 "none")
    assert code == 0, error
    assert out.splitlines()[-1].split("|")[5].strip() == "2.0"  # a fifth of them


def test_without_labels_there_is_nothing_to_measure(trained, tmp_path, call_main):
    (tmp_path / "flat").mkdir()
    for number, path in enumerate(sorted((trained[0] / "coarse").rglob("*.bmp"))):
        (tmp_path / "flat" / f"{number}.bmp").write_bytes(path.read_bytes())
    checkpoint = torch.load(trained[0] / "ae" / "autoencoder.pth", weights_only=True)
    checkpoint["data"] |= {"source1": str(tmp_path / "flat"), "source2": "none"}
    torch.save(checkpoint, tmp_path / "autoencoder.pth")
    code, _, error = call_main(pseudo_labels.main, tmp_path / "autoencoder.pth")
    assert code == 2 and "have no labels, so there is nothing to measure" in error
    assert json.dumps(error).count("\\n") == 1
