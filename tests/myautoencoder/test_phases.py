"""The phases of stage 2: how many epochs, at which rates, and what the network sees in them."""

import json
from argparse import Namespace
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_loader import ImageLoader
from datasets.base import PairedDataset
from engine.cli import Compute
from engine.epoch import ShuffledEpoch
from image_helpers import Arrays, expects, grey_levels, picture
from myautoencoder.features import calibrate
from myautoencoder.phases import (
    FrozenFeatures,
    Phase,
    TrainingImages,
    plan_phases,
    warn_of_constant_bits,
)
from network import HashNetwork, MrHash, MultisourceAutoencoder, load_backbone
from utils import InputError

CPU = Compute(torch.device("cpu"), batch_size=4, workers=1)
TRAIN = np.array([7, 1, 3, 8, 4, 10])


@pytest.fixture(scope="module")
def dataset():
    source = Arrays([picture(seed, 40, 44) for seed in range(11)])
    return PairedDataset("some", [str(row) for row in range(11)], source, None, None, [], TRAIN,
                         TRAIN, np.array([0, 2]), ("images", "none"))


@pytest.fixture(scope="module")
def loader(dataset):
    return ImageLoader(dataset.source1, "some-images", expects(32), CPU)


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return load_backbone("shufflenet_v2_x0_5", "none", 32)


def plan(dataset, loader, backbone, head_epochs, max_epoch):
    args = Namespace(head_epochs=head_epochs, max_epoch=max_epoch, compile=False, views=1)
    return plan_phases(args, backbone, dataset, loader, CPU)


def epoch_of(source, number=0):
    return ShuffledEpoch(len(TRAIN), 4, number, CPU.device, source.views)


# ---------------------------------------------------------------- epochs, rates, seeds


@pytest.mark.parametrize(("head_epochs", "max_epoch", "expected"), [
    (0, 50, [("epoch", 51)]),
    (4, 0, [("head epoch", 4), ("epoch", 1)]),
    (4, None, [("head epoch", 4), ("epoch", 0)])])
def test_the_head_comes_first_and_max_epoch_is_the_number_of_the_last_one(
        dataset, loader, backbone, head_epochs, max_epoch, expected):
    phases = plan(dataset, loader, backbone, head_epochs, max_epoch)
    assert [(phase.name, phase.count) for phase in phases] == expected
    for phase in phases:
        assert phase.head_only == (phase.name == "head epoch")
        assert isinstance(phase.source, FrozenFeatures if phase.head_only else TrainingImages)


def test_each_phase_has_rates_and_seeds_of_its_own():
    head, whole = (Phase(name, 4, None, name == "head epoch")
                   for name in ("head epoch", "epoch"))
    assert [head.rate(2.0, epoch) for epoch in range(4)] == pytest.approx(
        [2, 1 + 0.5**0.5, 1, 1 - 0.5**0.5])
    assert [whole.rate(2.0, epoch) for epoch in (0, 9, 10, 25)] == pytest.approx(
        [2, 2, 1.4, 0.98])
    seeds = [phase.seed(13, epoch) for phase in (head, whole) for epoch in range(4)]
    assert len(set(seeds)) == 8
    # Counted from its end: an epoch of the head has the seed it had before it was called a phase.
    longer = Phase("head epoch", 7, None, True)
    assert [longer.seed(13, epoch + 3) for epoch in range(4)] == seeds[:4]


def test_batch_normalisation_does_not_adapt_to_one_image(dataset, loader):
    one = replace(CPU, batch_size=1)
    args = Namespace(head_epochs=0, max_epoch=1, compile=False, views=1)
    for name, batch_norm, compute, train, refused in (
            ("shufflenet_v2_x0_5", "adapt", one, TRAIN, True),
            ("shufflenet_v2_x0_5", "adapt", CPU, TRAIN[:1], True),
            ("shufflenet_v2_x0_5", "adapt", CPU, TRAIN, False),
            ("shufflenet_v2_x0_5", "frozen", one, TRAIN, False),
            ("squeezenet1_1", "adapt", one, TRAIN, False)):  # which has none
        backbone = load_backbone(name, "none", 32, batch_norm)
        images = replace(dataset, train=train)
        if refused:
            with pytest.raises(InputError, match="expected at least two: raise --batch_size or"):
                plan_phases(args, backbone, images, loader, compute)
        else:
            plan_phases(args, backbone, images, loader, compute)


def test_statistics_are_calibrated_without_a_last_batch_of_one_image(backbone):
    source = Arrays([picture(0, 32, 32)] * 129)
    calibrate(backbone, ImageLoader(source, "many", expects(32), CPU))
    # All images are the same, so any batches have the same averages.
    first = next(value for name, value in backbone.state_dict().items() if "running_mean" in name)
    assert first.abs().max() > 1e-3


# ---------------------------------------------------------------- what the network sees


def test_the_head_sees_features_of_the_rows_of_each_step(dataset):
    features = np.arange(11, dtype=np.float32)[:, None].repeat(3, axis=1)
    source = FrozenFeatures(features, TRAIN, CPU)
    for first in (0, 1):
        steps = list(epoch_of(source).steps(first))
        assert len(steps) == 2 - first
        for step in steps:
            assert step.views[:, 0].tolist() == TRAIN[step.rows].tolist()
    assert torch.cat([step.rows for step in epoch_of(source).steps()]).unique().tolist() == [
        0, 1, 2, 3, 4, 5]


def test_the_whole_network_sees_augmented_images_of_the_rows_of_each_step(dataset, loader):
    one, same, other = (list(epoch_of(TrainingImages(loader, TRAIN, CPU), number).steps())
                        for number in (0, 0, 1))
    assert [step.views.shape for step in one] == [(4, 3, 32, 32), (2, 3, 32, 32)]
    for step, again in zip(one, same, strict=True):
        assert torch.equal(step.views, again.views) and torch.equal(step.rows, again.rows)
    assert not torch.equal(one[0].views, other[0].views)
    last, = epoch_of(TrainingImages(loader, TRAIN, CPU)).steps(1)  # of a resumed epoch
    assert torch.equal(last.views, one[1].views)


def test_crops_are_of_the_images_that_the_rows_name():
    """Images of one grey level each, which no crop changes."""
    source = Arrays([np.full((40, 44, 3), 20 * row, np.uint8) for row in range(11)])
    images = TrainingImages(ImageLoader(source, "grey", expects(32), CPU), TRAIN, CPU)
    for step in epoch_of(images).steps():
        for row, view in zip(step.rows.tolist(), step.views, strict=True):
            np.testing.assert_allclose(grey_levels(view), 20 * TRAIN[row], atol=0.5)


def test_codes_are_the_same_from_images_and_from_features(dataset, loader, backbone):
    head, whole = plan(dataset, loader, backbone, 1, 0)
    network = HashNetwork(backbone, 12)
    network.eval()
    rows = np.array([10, 0, 2, 5, 1])
    codes = [np.concatenate(list(phase.source.outputs(network, rows))) for phase in (head, whole)]
    assert codes[0].shape == (5, 12) and codes[0].dtype == np.float32
    np.testing.assert_allclose(codes[0], codes[1], rtol=1e-3, atol=1e-4)
    assert np.abs(codes[0]).max() > 1e-3 and codes[0].std(axis=0).max() > 1e-4


def test_random_statistics_are_calibrated_whatever_the_cache_knows(dataset, tmp_path):
    cached = replace(CPU, cache_dir=tmp_path)
    loader, found = ImageLoader(dataset.source1, "some-images", expects(32), cached), []
    for head_epochs in (0, 1, 1):  # the second head finds its features in the cache
        torch.manual_seed(0)
        backbone = load_backbone("shufflenet_v2_x0_5", "none", 32)
        args = Namespace(head_epochs=head_epochs, max_epoch=1, compile=False, views=1)
        plan_phases(args, backbone, dataset, loader, cached)
        found.append(backbone.weights_digest())
    assert found[0] == backbone.digest != found[1] == found[2]


# ---------------------------------------------------------------- what the codes are worth


def told_at_the_end(capsys, tmp_path, phases, dataset, model, kept, log):
    """The warning of a run that keeps `kept`: phase, epoch, weights."""
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    run = SimpleNamespace(kept=lambda: kept, folder=SimpleNamespace(path=tmp_path))
    warn_of_constant_bits(run, phases, model, dataset, 0.0)
    return capsys.readouterr().err


def test_constant_bits_are_judged_by_the_codes_of_the_weights_that_are_kept(
        dataset, loader, backbone, tmp_path, capsys):
    phases = plan(dataset, loader, backbone, 4, 2)
    model = MrHash(HashNetwork(backbone, 12), MultisourceAutoencoder([5], 4, "unisource"),
                   torch.zeros(3, 4))
    with torch.no_grad():
        model.hash_network.hash_layer.weight[:3] = 0.0  # three bits depend on no image
        kept = {name: value.clone() for name, value in model.state_dict().items()}
        outputs = np.concatenate(list(phases[0].source.outputs(model.hash_network, TRAIN))) >= 0
        constant = int((outputs.all(axis=0) | ~outputs.any(axis=0)).sum())
        model.hash_network.hash_layer.bias.fill_(1e3)  # weights that came later, and are not kept
    assert 3 <= constant < 12
    log = [{"phase": phase, "epoch": epoch, "seconds": 1.0, "constant_bits": bits}
           for phase, epoch, bits in (("head epoch", 0, 12), ("epoch", 0, 7), ("epoch", 2, 0))]
    for phase, epoch, expected in (("head epoch", 3, constant),  # nobody measured it: it is now
                                   ("head epoch", 0, constant),
                                   ("epoch", 0, 7),  # as the evaluation found it
                                   ("epoch", 1, 0),  # not measured, which would take a pass
                                   ("epoch", 2, 0)):  # not true any more of what is kept
        error = told_at_the_end(capsys, tmp_path, phases, dataset, model, (phase, epoch, kept), log)
        found = f"warning: {expected} of 12 bits are the same for all images and tell nothing"
        assert (found in error) if expected else not error, (phase, epoch, error)
