"""Epochs of the autoencoder: the loops learn, their monitors agree, the floor is counted right."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed import __main__ as speed
from benchmarks.speed import autoencoder
from loss import reconstruction_loss

SIZES = ["--images", 120, "--queries", 20, "--width", 24, "--device", "cpu"]


def test_the_autoencoder_is_measured_with_the_monitor_that_goes_with_an_epoch(
        bench, check_medians, monkeypatch):
    in_bfloat16, train_one_epoch = [], autoencoder.train_one_epoch

    def watched(*arguments):
        in_bfloat16.append(arguments[-1])
        return train_one_epoch(*arguments)

    monkeypatch.setattr(autoencoder, "train_one_epoch", watched)
    table, content = bench("autoencoder", *SIZES, "--epochs", 2, "--repeat", 3, "--amp",
                           "--encoder", "unisource")
    runs = content["runs"]
    assert list(runs) == [autoencoder.PLAIN, autoencoder.OURS, autoencoder.OFTEN, autoencoder.AMP,
                          autoencoder.PRODUCTS]
    # One to begin with; methods of ours, three rounds, two epochs each.
    assert in_bfloat16.count(False) == 1 + 2 * 3 * 2 and in_bfloat16.count(True) == 1 + 3 * 2
    check_medians(table, runs, "epochs/s: median (least - most)", "epochs_per_second")
    for of, every in zip(runs.values(), (1, 20, 1, 20, 1), strict=True):
        for run in of:
            expected = run["epoch_seconds"] + run["monitor_seconds"] / every
            assert run["seconds"] == pytest.approx(expected)
            assert run["epochs_per_second"] == pytest.approx(1 / run["seconds"])
            assert run["epoch_seconds"] > 0
    for name, of in runs.items():
        assert (of[0]["monitor_seconds"] > 0) == (name != autoencoder.PRODUCTS)


def test_all_autoencoder_loops_learn_and_their_monitors_agree():
    arrays, dataset = autoencoder.draw_features(120, 20, 24)
    loops = [kind(arrays, dataset, "dual", torch.device("cpu"))
             for kind in (autoencoder.Plain, autoencoder.Ours)]
    first = [loop.monitor() for loop in loops]
    autoencoder.check(first[0], first[1])
    assert 0.2 < first[0] < 0.8  # classes that overlap: neither chance nor perfect
    given = [torch.from_numpy(x[dataset.database]) for x in arrays]
    for loop in loops:
        losses = []
        for epochs in (0, 20):
            for _ in range(epochs):
                loop.epoch()
            loss = reconstruction_loss(loop.model(given)[1], given, autoencoder.LAMBDA1)
            losses.append(loss.item())
        assert losses[1] < 0.7 * losses[0]


def test_the_products_counted_are_those_of_a_training_step():
    """As many multiplications as torch counts in a step of the network."""
    model = autoencoder.MultisourceAutoencoder([40, 30], autoencoder.LATENT, "dual")
    features = [torch.rand(autoencoder.BATCH, width) for width in (40, 30)]
    counted = []
    for function in (lambda: reconstruction_loss(model(features)[1], features, 0.1).backward(),
                     lambda: autoencoder.products(model, 1, torch.device("cpu"))):
        with FlopCounterMode(display=False) as counter:
            function()
        counted.append(counter.get_total_flops())
    assert counted[0] == counted[1] > 0


def test_monitors_that_disagree_are_found_out(call_main, tmp_path, monkeypatch):
    latent_map = autoencoder.latent_map
    monkeypatch.setattr(autoencoder, "latent_map",
                        lambda *arguments: latent_map(*arguments) + 0.01)
    code, _, error = call_main(speed.main, "autoencoder", *SIZES, "--output", tmp_path / "a.json")
    assert code == 2 and "one of the two is wrong" in error
    assert len(error.strip().splitlines()) == 1
