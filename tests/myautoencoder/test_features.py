"""Frozen features: a plain loop's numbers, and their cache."""

import itertools
import os

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from data_loader import DataConfig, ImageLoader, load_dataset
from engine import cache
from engine.cli import Compute
from image_helpers import Arrays, as_pillow, expects, picture, pipeline
from myautoencoder.features import (
    FeatureExtractor,
    apply_network,
    dataset_features,
    hash_features,
)
from network import Backbone, HashNetwork, load_backbone
from utils import InputError, warn_once

CPU = torch.device("cpu")
SIZE = 32


def computing(cache_dir=None, **settings):
    return Compute(CPU, **{"batch_size": 4, "workers": 2, "cache_dir": cache_dir} | settings)


@pytest.fixture
def scenes(tmp_path):
    for label, number in itertools.product("ab", range(5)):
        path = tmp_path / "one" / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        as_pillow(picture(10 * ord(label) + number, 40, 40)).save(path)
    return tmp_path


def opened(folder, cached=True, backbone="squeezenet1_1", image_size=SIZE, weights="none",
           amp=False, **compute):
    """Features of the first source of a fresh look at the folder, as a script computes them."""
    dataset = load_dataset(DataConfig(data_name="pairs", source1=str(folder / "one")))
    settings = {"feature_backbone": backbone, "image_size": image_size, "amp": amp}
    compute = computing(folder / "cache" if cached else None, **compute)
    arrays, content = dataset_features(dataset, settings, weights, compute)
    return dataset, arrays[0], content


@pytest.fixture
def calls(monkeypatch):
    """How many images were in each batch that went through a backbone."""
    counted = []
    forward = Backbone.forward

    def counting(self, images):
        counted.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Backbone, "forward", counting)
    return counted


# ------------------------------------------------------------------------ extraction


def test_features_are_those_of_a_plain_loop_over_images(scenes):
    torch.manual_seed(0)  # weights `none` are drawn with seed 0
    model = torchvision.models.squeezenet1_1(weights=None)
    model.classifier[1] = torch.nn.Identity()
    model.eval()
    dataset, found, _ = opened(scenes)
    assert found.dtype == np.float32 and found.shape == (10, 512)
    assert len(np.unique(found.round(3), axis=0)) == 10  # the images look different to the network
    for row, name in enumerate(dataset.names):
        with Image.open(scenes / "one" / f"{name}.png") as image, torch.no_grad():
            expected = model(pipeline(SIZE)(image)[None])[0].numpy()  # 40 pixels, shrunk to 37
        assert np.abs(found[row] - expected).max() < 1e-4


def test_second_run_reuses_the_features_and_says_so(scenes, calls, capsys):
    _, first, content = opened(scenes)
    assert calls == [4, 4, 2] and "reusing" not in capsys.readouterr().out
    _, again, same = opened(scenes)
    assert calls == [4, 4, 2] and "reusing features" in capsys.readouterr().out
    assert np.array_equal(first, again) and content == same
    for array in (first, again):
        assert isinstance(array, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1


def test_features_in_memory_equal_those_in_the_cache(scenes):
    _, cached, _ = opened(scenes)
    _, kept, _ = opened(scenes, cached=False)
    assert not isinstance(kept, np.memmap) and np.array_equal(cached, kept)


def cached_files(folder):
    return {path.name for path in (folder / "cache" / "features").glob("*.npy")}


def test_another_backbone_size_weights_precision_or_image_is_another_key(scenes, calls):
    torch.manual_seed(1)
    weights = str(scenes / "weights.pth")
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), weights)

    def change_image():
        as_pillow(picture(99, 41, 40)).save(scenes / "one" / "a" / "0.png")

    opened(scenes)
    before = cached_files(scenes)
    assert len(before) == 1
    for settings in ({"backbone": "mobilenet_v2"}, {"image_size": 48}, {"weights": weights},
                     {"amp": True}, change_image):
        calls.clear()
        if callable(settings):
            settings()
            settings = {}
        opened(scenes, **settings)
        now = cached_files(scenes)
        first = [10] if "backbone" in settings else []  # mobilenet_v2 is calibrated first
        assert len(now) == len(before) + 1 and calls == [*first, 4, 4, 2], settings
        before = now
    opened(scenes, backbone="mobilenet_v2")
    assert len(cached_files(scenes)) == len(before) + 1  # the image changed for every network
    torch.manual_seed(0)  # the same weights as drawn ones, which are calibrated; these are not
    torch.save(torchvision.models.mobilenet_v2(weights=None).state_dict(), weights)
    opened(scenes, backbone="mobilenet_v2", weights=weights)
    assert len(cached_files(scenes)) == len(before) + 2


def test_the_key_is_the_one_that_caches_have(tmp_path):
    backbone = Backbone(torch.nn.Linear(2, 3), "linear", expects(SIZE), 3, True, True)
    backbone.digest = "content"
    backbone.forward = lambda images: images.mean(dim=(2, 3))
    source = Arrays([picture(0, 40, 40)], stamp="stamp")
    FeatureExtractor(backbone, computing(tmp_path)).of_source(source, "label")
    (path,) = (tmp_path / "features").glob("*.npy")
    assert path.name == "label-linear-cf7a4a169ee31784.npy"


def tiffs(folder, value):
    """Uncompressed TIFFs of equal size, as unpacked from a tar whose times are 0."""
    for label, number in itertools.product("ab", range(5)):
        path = folder / label / f"{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        as_pillow(picture(value + 10 * ord(label) + number, 40, 40)).save(path)
        os.utime(path, (0, 0))


def test_two_folders_of_one_name_size_and_date_have_features_of_their_own(tmp_path):
    settings = {"feature_backbone": "squeezenet1_1", "image_size": SIZE, "amp": False}

    def features(cache_dir, **places):
        config = {name: str(tmp_path / place / "scenes") for name, place in places.items()}
        dataset = load_dataset(DataConfig("pairs" if places.keys() > {"source1"} else "folder",
                                          **config))
        return dataset_features(dataset, settings, "none", computing(cache_dir))[0]

    for number, place in enumerate(("x1", "x2")):
        tiffs(tmp_path / place / "scenes", 500 * number)
    assert len({path.stat().st_size for path in tmp_path.rglob("*.tif")}) == 1
    cache_dir = tmp_path / "cache"
    first, = features(cache_dir, source1="x1")
    second, = features(cache_dir, source1="x2")
    assert np.abs(first - second).max(axis=1).min() > 1e-3  # of each image
    both = features(cache_dir, source1="x1", source2="x2")
    assert np.array_equal(both[0], first) and np.array_equal(both[1], second)
    alone = features(None, source1="x1", source2="x2")
    assert np.array_equal(both[1], alone[1]) and len(cached_files(tmp_path)) == 4


def test_cached_features_of_dark_images_are_warned_of(tmp_path, capsys):
    source = Arrays([np.full((40, 40, 3), value, np.uint8) for value in range(7)])
    extractor = FeatureExtractor(Failing(None), computing(tmp_path))
    for use in (extractor.of_source, extractor.of_source, extractor.cached):
        warn_once.cache_clear()
        use(source, "test")
        assert "brighter than 3 of 255" in capsys.readouterr().err, use


def test_only_cached_features_are_looked_up(scenes, calls):
    dataset, found, _ = opened(scenes)
    torch.manual_seed(0)
    backbone = load_backbone("squeezenet1_1", "none", SIZE)
    extractor = FeatureExtractor(backbone, computing(scenes / "cache"))
    label = dataset.file_label(0)
    calls.clear()
    assert np.array_equal(extractor.cached(dataset.source1, label), found)
    assert extractor.cached(dataset.source1, "other") is None
    assert FeatureExtractor(backbone, computing()).cached(dataset.source1, label) is None
    assert calls == []


def test_features_change_with_the_image_but_for_no_other_row(scenes):
    _, before, _ = opened(scenes)
    as_pillow(picture(99, 40, 40)).save(scenes / "one" / "a" / "3.png")
    dataset, after, _ = opened(scenes)
    changed = (np.abs(before - after).max(axis=1) > 1e-3).tolist()
    assert changed == [name == "a/3" for name in dataset.names]


def test_features_of_random_weights_do_not_depend_on_the_batch_size(scenes):
    values = [opened(scenes, cached=False, backbone="mobilenet_v2", batch_size=size)[1]
              for size in (3, 10)]
    np.testing.assert_allclose(*values, rtol=1e-3, atol=1e-4)


def test_weights_none_are_the_same_whatever_was_drawn_before(scenes):
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    _, first, content = opened(scenes, cached=False)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(6)
    _, second, same = opened(scenes, cached=False)
    assert content == same and np.array_equal(first, second)


def test_other_weights_than_those_of_the_autoencoder_are_an_error(scenes):
    dataset, _, content = opened(scenes)
    settings = {"feature_backbone": "squeezenet1_1", "image_size": SIZE, "amp": False,
                "feature_weights": "none"}
    compute = computing(scenes / "cache")
    dataset_features(dataset, settings | {"content": content}, "none", compute)
    with pytest.raises(InputError, match=r"--feature_weights none: not the content .* from none"):
        dataset_features(dataset, settings | {"content": "0" * 16}, "none", compute)
    with pytest.raises(InputError, match="features of source 1 come from a file"):
        dataset_features(dataset, settings, None, compute)


class Failing(Backbone):
    """Works on the first batch, then fails, or gives a feature that is not a number."""

    def __init__(self, how):
        super().__init__(torch.nn.Identity(), "failing", expects(SIZE), 3, True, True)
        self.how, self.batches = how, 0

    def forward(self, images):
        self.batches += 1
        if self.batches == 2 and isinstance(self.how, BaseException):
            raise self.how
        output = images.mean(dim=(2, 3))
        if self.batches == 2 and self.how == "nan":
            output[2] = torch.nan
        return output


def left(folder):
    """The files of the feature cache, but for the empty ones that processes lock."""
    return [path for path in (folder / "features").iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize("how", [RuntimeError("out of memory"), KeyboardInterrupt(), "nan"])
def test_failed_extraction_leaves_no_features_and_is_gone_on_with(
        tmp_path, how, monkeypatch, capsys):
    source = Arrays([picture(seed, 40, 40) for seed in range(10)])
    monkeypatch.setattr(cache._Part, "SAVE_EVERY", -1.0)

    def extract(how, folder):
        backbone = Failing(how)
        extractor = FeatureExtractor(backbone, computing(folder))
        return backbone, lambda: np.array(extractor.of_source(source, "test"))

    with pytest.raises((RuntimeError, KeyboardInterrupt, InputError)) as caught:
        extract(how, tmp_path)[1]()
    if how == "nan":
        assert "features of scene 6 are not finite: check the weights" in str(caught.value)
        assert left(tmp_path) == []
    # Not for a moment did bad features stand under the name of good ones.
    assert all(path.suffix == ".part" for path in left(tmp_path))
    capsys.readouterr()
    backbone, again = extract(None, tmp_path)
    found = again()
    assert backbone.batches == (3 if how == "nan" else 2)  # the first of three batches was kept
    assert ("goes on after 4 of 10" in capsys.readouterr().out) == (how != "nan")
    assert np.array_equal(found, extract(None, tmp_path / "whole")[1]())
    (result,), (other,) = (list(folder.glob("features/*.npy"))
                           for folder in (tmp_path, tmp_path / "whole"))
    assert result.read_bytes() == other.read_bytes()
    assert [path for path in left(tmp_path) if path.suffix == ".part"] == []


def test_without_a_cache_features_that_are_not_finite_are_named_too():
    source = Arrays([picture(seed, 40, 40) for seed in range(10)])
    with pytest.raises(InputError, match="features of scene 6 are not finite"):
        FeatureExtractor(Failing("nan"), computing()).of_source(source, "test")


def test_unreadable_images_of_both_sources_are_told_together(scenes):
    for path in list((scenes / "one").rglob("*.png")):
        other = scenes / "two" / path.relative_to(scenes / "one")
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_bytes(b"no image" if path.name == "4.png" else path.read_bytes())
    broken = scenes / "one" / "a" / "0.png"
    broken.write_bytes(broken.read_bytes()[:300])
    config = DataConfig(data_name="pairs", source1=str(scenes / "one"),
                        source2=str(scenes / "two"))
    settings = {"feature_backbone": "squeezenet1_1", "image_size": SIZE, "amp": False}
    with pytest.raises(InputError) as caught:
        dataset_features(load_dataset(config), settings, "none", computing())
    assert "3 of 20 images cannot be read" in str(caught.value)


# ------------------------------------------------------------------------ networks on images


def test_bfloat16_runs_the_network_only_not_the_resize():
    """With amp the images must arrive as exactly as without: bfloat16 has 8 bits."""
    seen = []

    class Watch(torch.nn.Module):
        def forward(self, images):
            seen.append(images)
            return images.mean(dim=(2, 3)) @ torch.eye(3)

    source = Arrays([picture(seed, 20, 20) for seed in range(3)])
    outputs = []
    for amp in (False, True):
        compute = computing(amp=amp)
        loader = ImageLoader(source, "test", expects(SIZE), compute)
        outputs.append(next(apply_network(Watch(), loader, np.arange(3), compute, "")))
    assert torch.equal(seen[0], seen[1])
    assert outputs[1].dtype == np.float32 and 0 < np.abs(outputs[0] - outputs[1]).max() < 0.05


def test_the_network_is_applied_to_the_rows_asked_for_in_their_order():
    source = Arrays([np.full((20, 20, 3), value, np.uint8) for value in range(0, 200, 20)])
    loader = ImageLoader(source, "test", expects(SIZE), computing())
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    rows = np.array([7, 0, 9, 3, 4])
    batches = list(apply_network(network, loader, rows, computing(), ""))
    assert [len(batch) for batch in batches] == [4, 1]
    assert np.concatenate(batches)[:, 0].argsort().tolist() == rows.argsort().tolist()


def test_hashing_frozen_features_gives_the_codes_of_their_images():
    torch.manual_seed(0)
    network = HashNetwork(load_backbone("squeezenet1_1", "none", SIZE), 12, head_width=8)
    source = Arrays([picture(seed, 40, 40) for seed in range(9)])
    compute, rows = computing(), np.array([8, 2, 3, 5, 7])
    features = FeatureExtractor(network.backbone, compute).of_source(source, "test")
    loader = ImageLoader(source, "test", expects(SIZE), compute)
    found = np.concatenate(list(hash_features(network.train(), features, rows, compute)))
    images = np.concatenate(list(apply_network(network, loader, rows, compute, "")))
    np.testing.assert_allclose(found, images, rtol=1e-4, atol=1e-6)
