"""The generated scenes."""

import numpy as np
import pytest

from datasets import demo_scenes
from image_helpers import load


def demo_pixels(dataset):
    return [source.read(row) for source in dataset.sources for row in range(len(dataset.names))]


def test_demo_is_drawn_once(tmp_path, few_scenes, monkeypatch):
    first = demo_pixels(load(tmp_path, data_name="demo"))
    monkeypatch.setattr(demo_scenes, "_scene", lambda *_: pytest.fail("drawn again"))
    again = load(tmp_path, data_name="demo")
    assert all(map(np.array_equal, first, demo_pixels(again)))
    assert again.note == "generated images" and len(again.class_names) == 6
    assert again.source1.size(0) == (32, 32) and again.source2.size(0) == (128, 128)
    assert load(tmp_path, data_name="demo", source2="none").source2 is None


def test_demo_scenes_depend_on_the_seed_alone(tmp_path, few_scenes):
    first, same, other = (demo_pixels(load(tmp_path / place, data_name="demo", split_seed=seed))
                          for place, seed in (("a", 13), ("b", 13), ("a", 14)))
    assert all(map(np.array_equal, first, same))
    assert not any(map(np.array_equal, first, other))


def test_demo_coarse_view_is_the_fine_one_seen_from_afar(tmp_path, few_scenes):
    dataset = load(tmp_path, data_name="demo")
    for row in range(len(dataset.names)):
        fine = dataset.source2.read(row).astype(float).reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
        # The sensor's noise has 4 grey levels.
        assert 2 < np.abs(dataset.source1.read(row) - fine).mean() < 5


def test_interrupted_demo_leaves_nothing(tmp_path, few_scenes, monkeypatch):
    def scene(kind, generator):
        if kind == "meadow":
            raise KeyboardInterrupt
        return np.zeros((128, 128, 3), np.uint8)

    monkeypatch.setattr(demo_scenes, "_scene", scene)
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path, data_name="demo")
    assert list(tmp_path.iterdir()) == []
