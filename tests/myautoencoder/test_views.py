"""The eight turns and flips of an image: their features, and what the hash network sees of them."""

import numpy as np
import pytest
import torch

from data_loader import ImageLoader
from datasets.base import PairedDataset
from datasets.transforms import turned, turned_each
from engine.cli import Compute
from engine.epoch import ShuffledEpoch
from image_helpers import Arrays, expects, picture
from myautoencoder.features import FeatureExtractor, apply_network, dataset_features, hash_features
from myautoencoder.phases import FrozenFeatures, TrainingImages
from network import HashNetwork, load_backbone

CPU = Compute(torch.device("cpu"), batch_size=4, workers=1)
SIZE = 56  # of 64: the crop lies in the very centre, as that of 224 of 256
TRAIN = np.array([7, 1, 3, 8, 4, 10])
SQUARE = Arrays([picture(seed, SIZE, SIZE) for seed in range(11)])


def turned_source(view):
    """The images of SQUARE, turned before they are read."""
    images = [torch.from_numpy(SQUARE.read(row)).permute(2, 0, 1)[None] for row in range(11)]
    return Arrays([turned(image, view)[0].permute(1, 2, 0).numpy().copy() for image in images])


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return load_backbone("squeezenet1_1", "none", SIZE)


# ---------------------------------------------------------------- images


def test_the_eight_views_are_all_there_are():
    image = torch.arange(9).view(1, 1, 3, 3).expand(1, 3, 3, 3)
    views = [turned(image, view) for view in range(8)]
    assert torch.equal(views[0], image) and torch.equal(views[1], image.flip(2, 3))
    assert torch.equal(views[2], image.rot90(1, (2, 3))) and torch.equal(views[4], image.flip(3))
    assert len({tuple(view.flatten().tolist()) for view in views}) == 8


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_turning_the_first_views_again_gives_no_others(count):
    image = torch.arange(9).view(1, 1, 3, 3).expand(1, 3, 3, 3)
    first = {tuple(turned(image, view).flatten().tolist()) for view in range(count)}
    again = {tuple(turned(turned(image, one), two).flatten().tolist())
             for one in range(count) for two in range(count)}
    assert again == first and len(first) == count


def test_each_image_is_turned_its_own_way():
    images = torch.randn(9, 3, 4, 4)
    views = torch.tensor([0, 3, 7, 3, 5, 0, 1, 2, 6])
    for image, view, found in zip(images, views, turned_each(images, views), strict=True):
        assert torch.equal(found, turned(image[None], int(view))[0])


# ---------------------------------------------------------------- features


@pytest.mark.parametrize("count", [2, 8])
def test_features_of_views_are_those_of_turned_images(backbone, tmp_path, count):
    compute = Compute(torch.device("cpu"), batch_size=4, workers=1, cache_dir=tmp_path)
    found = FeatureExtractor(backbone, compute, count).of_source(SQUARE, "square")
    found = found.reshape(11, count, -1)
    for view in range(count):
        alone = FeatureExtractor(backbone, CPU).of_source(turned_source(view), "square")
        np.testing.assert_allclose(found[:, view], alone, rtol=1e-4, atol=1e-5)
    assert np.abs(found[:, 1] - found[:, 0]).max() > 1e-3


def test_fewer_views_are_found_among_the_cached_ones(backbone, tmp_path):
    compute = Compute(torch.device("cpu"), batch_size=4, workers=1, cache_dir=tmp_path)
    extractor = FeatureExtractor(backbone, compute, 4)
    whole = extractor.of_source(SQUARE, "square")
    for views in (1, 2, 4):
        assert np.array_equal(extractor.cached(SQUARE, "square", views),
                              whole[:, :views * backbone.dim])
    assert extractor.cached(SQUARE, "square", 8) is None
    assert FeatureExtractor(backbone, compute, 8).cached(SQUARE, "square", 4) is None


def test_stage_1_sees_the_mean_of_the_views():
    dataset = PairedDataset("some", [str(row) for row in range(11)], SQUARE, turned_source(3), None,
                            [], TRAIN, TRAIN, np.array([0, 2]), ("images", "turned"))
    settings = {"feature_backbone": "squeezenet1_1", "image_size": SIZE, "amp": False, "views": 4}
    first, second = dataset_features(dataset, settings, "none", CPU)[0]
    assert first.dtype == np.float32 and first.shape == (11, 512)
    # A turned image has the same four quarter turns.
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)
    alone = dataset_features(dataset, {**settings, "views": 1}, "none", CPU)[0]
    assert np.abs(alone[0] - alone[1]).max() > 1e-3


# ---------------------------------------------------------------- what the hash network sees


def sources(count):
    features = np.random.default_rng(0).normal(size=(11, count * 5)).astype(np.float32)
    loader = ImageLoader(SQUARE, "square", expects(SIZE), CPU)
    return [FrozenFeatures(features, TRAIN, CPU, count), TrainingImages(loader, TRAIN, CPU, count)]


def epoch_of(source, number=0):
    return ShuffledEpoch(len(TRAIN), 4, number, CPU.device, source.views)


def test_each_epoch_draws_a_view_of_each_image():
    source = sources(8)[0]
    seen = set()
    for number in range(60):
        for step in epoch_of(source, number).steps():
            for row, view in zip(step.rows, step.views, strict=True):
                which = (source.train[row] == view).all(dim=1).nonzero()
                seen.add((int(row), int(which)))
    assert len(seen) == 8 * len(TRAIN)


@pytest.mark.parametrize("kind", [0, 1])
def test_a_resumed_epoch_draws_the_same_views(kind):
    source = sources(8)[kind]
    whole = [step.views for step in epoch_of(source).steps()]
    rest = [step.views for step in epoch_of(source).steps(1)]
    assert len(whole) == 2 and torch.equal(whole[1], rest[0])
    other = [step.views for step in epoch_of(source, 1).steps()]
    assert not torch.equal(other[0], whole[0])


def test_images_are_cropped_as_before_and_then_turned():
    plain, drawn = (source[1] for source in (sources(1), sources(8)))
    turns = 0
    for number in range(4):
        generator = epoch_of(plain, number).generator
        torch.randint(8, (len(TRAIN),), generator=generator)  # so that the crops are the same
        epoch = epoch_of(plain, number)
        epoch.generator = generator
        for crops, step in zip(plain.views(epoch, 0), epoch_of(drawn, number).steps(), strict=True):
            for crop, found in zip(crops, step.views, strict=True):
                which = [view for view in range(8)
                         if torch.equal(turned(crop[None], view)[0], found)]
                assert len(which) == 1
                turns += which != [0]
    assert turns > 12


def test_outputs_are_those_of_the_first_view_and_views_stand_side_by_side(backbone):
    torch.manual_seed(0)
    network = HashNetwork(backbone, 6, head_width=8)
    features = FeatureExtractor(backbone, CPU, 8).of_source(SQUARE, "square")
    rows = np.array([8, 2, 3, 5, 7])
    one = np.concatenate(list(FrozenFeatures(features, TRAIN, CPU, 8).outputs(network, rows)))
    eight = np.concatenate(list(hash_features(network, features, rows, CPU)))
    assert one.shape == (5, 6) and eight.shape == (5, 48)
    np.testing.assert_allclose(eight[:, :6], one, rtol=1e-5, atol=1e-6)
    loader = ImageLoader(SQUARE, "square", expects(SIZE), CPU)
    images = np.concatenate(list(apply_network(network, loader, rows, CPU, "", views=8)))
    np.testing.assert_allclose(images, eight, rtol=1e-4, atol=1e-6)
