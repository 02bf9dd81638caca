"""Fixtures that tests of data sets share."""

import pytest

from datasets import demo_scenes
from image_helpers import scenes, tree


@pytest.fixture
def eurosat(tmp_path):
    tree(tmp_path / "EuroSAT.zip", scenes(prefix="2750/"))
    return tmp_path


@pytest.fixture
def few_scenes(monkeypatch):
    monkeypatch.setattr(demo_scenes, "SCENES_PER_CLASS", 2)
