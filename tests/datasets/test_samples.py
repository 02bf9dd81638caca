"""The images of samples/, and the script that makes them."""

import importlib.util

import numpy as np
import pytest
from PIL import Image

from datasets.samples import FOLDER
from helpers import ROOT
from image_helpers import complaint, encoded, load, tree

FILES = sorted(FOLDER.rglob("*.jpg"))


# ------------------------------------------------------------ the images


def test_samples_are_found_without_any_folder(tmp_path):
    dataset = load(tmp_path / "nowhere", data_name="Samples")
    assert dataset.class_names == ["agricultural", "airplane", "baseballdiamond", "beach",
                                   "chaparral", "forest", "freeway", "harbor", "parkinglot",
                                   "river"]
    assert np.bincount(dataset.labels).tolist() == [30] * 10
    assert np.bincount(dataset.labels[dataset.query]).tolist() == [3] * 10
    assert len(dataset.train) == len(dataset.database) == 270
    assert dataset.source_names == ("ms", "pan") and "simulated" in dataset.note


def test_samples_are_seen_as_wald_says():
    dataset = load("nowhere", data_name="samples")
    for row in (0, 123, 299):
        pixels = np.asarray(Image.open(FOLDER / f"{dataset.names[row]}.jpg")).astype(float)
        ms, pan = dataset.source1.read(row), dataset.source2.read(row)
        assert ms.shape == (32, 32, 3) and pan.shape == (128, 128, 1)
        mean = pixels.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
        assert np.array_equal(ms, np.floor(mean + 0.5))
        assert np.abs(pan[..., 0] - pixels @ [0.299, 0.587, 0.114]).max() <= 0.51
        assert dataset.source1.size(row) == (32, 32) and dataset.source2.size(row) == (128, 128)
    assert load("nowhere", data_name="samples", source1="pan").source_names == ("pan", "ms")


def test_samples_are_small_and_of_one_size():
    assert len(FILES) == 300
    shapes = set()
    for path in FILES:
        with Image.open(path) as image:
            shapes.add((image.format, image.mode, image.size))
    assert shapes == {("JPEG", "RGB", (128, 128))}
    everything = [path for path in (ROOT / "samples").rglob("*") if path.is_file()]
    assert len(everything) == 301
    assert sum(path.stat().st_size for path in everything) <= 2_500_000


# ------------------------------------------------------------ the script


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("make_samples",
                                                  ROOT / "scripts" / "make_samples.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "CLASSES", ("beach", "river"))
    monkeypatch.setattr(module, "PER_CLASS", 2)
    return module


def slope(seed, height=256, width=256):
    """Smooth, so that JPEG changes little of it."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 0.9, y * 0.8, 60.0 * seed + 0 * x], axis=2).astype(np.uint8)


def ucmerced(root, suffix, kind, **shape):
    """Two classes of the list and one beside it, three images each."""
    files = {f"Images/{name}/{name}{number:02d}{suffix}":
             encoded(slope(number, **shape), kind) for name in ("beach", "harbor", "river")
             for number in range(3)}
    tree(root, files)
    return root.parent


@pytest.mark.parametrize(("name", "suffix", "kind"), [
    ("UCMerced_LandUse", ".tif", "TIFF"), ("UCMerced_LandUse.zip", ".jpg", "JPEG")])
def test_samples_are_the_first_images_of_their_classes_reduced(tmp_path, script, name, suffix,
                                                               kind):
    made = tmp_path / "made"
    tree(made, {"old/old00.jpg": b"x"})
    size = script.make_samples(str(ucmerced(tmp_path / name, suffix, kind)), made)
    files = sorted(path for path in made.rglob("*") if path.is_file())
    assert [path.relative_to(made).as_posix() for path in files] == [
        f"{label}/{label}{number:02d}.jpg" for label in ("beach", "river") for number in range(2)]
    assert size == sum(path.stat().st_size for path in files)
    for path in files:
        mean = slope(int(path.stem[-1])).astype(float).reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
        pixels = np.asarray(Image.open(path))
        assert pixels.shape == (128, 128, 3) and np.abs(pixels - mean).mean() < 2


def test_samples_are_made_the_same_again(tmp_path, script):
    data = str(ucmerced(tmp_path / "UCMerced_LandUse.zip", ".tif", "TIFF", width=250))
    contents = []
    for _ in range(2):
        script.make_samples(data, tmp_path / "made")
        contents.append([path.read_bytes() for path in sorted((tmp_path / "made").rglob("*.jpg"))])
    assert contents[0] == contents[1] and len(contents[0]) == 4


def test_samples_that_cannot_be_made_leave_the_old_ones(tmp_path, script, monkeypatch):
    tree(tmp_path / "made", {"old/old00.jpg": b"x"})
    monkeypatch.setattr(script, "PER_CLASS", 4)
    data = str(ucmerced(tmp_path / "UCMerced_LandUse", ".tif", "TIFF"))
    complaint(lambda: script.make_samples(data, tmp_path / "made"), data, "beach/beach03")
    complaint(lambda: script.make_samples(str(tmp_path / "no"), tmp_path / "made"), "--data_dir")
    assert (tmp_path / "made" / "old" / "old00.jpg").exists()
