"""Training: the loop of train.py, fed in several ways with the same images."""

import pytest
import torch
from torch import nn

from benchmarks.speed import training


def test_training_is_measured_against_its_ceiling_and_the_usual_loader(
        images, here, bench, check_medians, monkeypatch):
    compiled, loops, seen = [], [], []
    monkeypatch.setattr(nn.Module, "compile", lambda network: compiled.append(network))
    monkeypatch.setattr(torch, "compile", lambda function: function)
    train_one_epoch = training.train_one_epoch

    def watched(run, model, steps, features, target, criterion, amp):
        steps = list(steps)
        loops.append((amp, model.hash_network.hash_layer.out_features))
        seen.append([step.views.clone() for step in steps])
        stats = train_one_epoch(run, model, iter(steps), features, target, criterion, amp)
        assert set(stats) >= {"loss", "divergence", "reconstruction"}
        return stats

    monkeypatch.setattr(training, "train_one_epoch", watched)
    table, content = bench("training", *images["zip"], "--device", "cpu", "--workers", 2,
                           "--batch_size", 8, "--image_size", 32, "--model_type", "resnet18",
                           "--hash_bit", 12, "--steps", 2, "--repeat", 1, "--amp", "--compile")
    runs = content["runs"]
    assert list(runs) == [training.OURS, training.COMPILED, training.CEILING, training.PUBLISHED]
    assert loops == [(True, 12)] * 8  # what warms up, and what is measured
    assert [type(network).__name__ for network in compiled] == ["Backbone"]
    for name, views in zip(runs, seen[1::2], strict=True):
        assert [view.shape for view in views] == [(8, 3, 32, 32)] * 2
        assert torch.equal(*views) == (name == training.CEILING)
    # The same images, other crops.
    assert seen[7][0].mean() == pytest.approx(float(seen[1][0].mean()), abs=0.3)
    check_medians(table, runs, "images/s: median (least - most)", "images_per_second")
    for of in runs.values():
        assert of[0]["images_per_second"] == pytest.approx(16 / of[0]["seconds"])
        assert of[0]["peak_mb"] > 100
    worker = runs[training.PUBLISHED][0]["worker_mb"]
    assert worker > 10
    assert table[3]["MB of the process"].endswith(f"(and 2 workers of {worker:,.0f})")
    ours, ceiling = (runs[name][0]["images_per_second"]
                     for name in (training.OURS, training.CEILING))
    assert table[0]["divided by the ceiling"] == f"{ours / ceiling:.2f}"
