"""UC Merced: MS and PAN simulated by Wald's protocol."""

from pathlib import Path

import numpy as np
from PIL import Image

from image_helpers import complaint, encoded, load, noise, tree


def ucmerced(root, shape=(256, 256)):
    names = [f"UCMerced_LandUse/Images/{kind}/{kind}{number:02d}.tif" for kind in ("beach", "river")
             for number in range(2)]
    return tree(root / "UCMerced_LandUse.zip",
                {name: encoded(noise(Path(name).stem, *shape, 3), "TIFF") for name in names}).parent


def test_ucmerced_pairs_are_walds_averages_and_luminance(tmp_path):
    dataset = load(ucmerced(tmp_path), data_name="UCMerced")
    assert dataset.names == ["beach/beach00", "beach/beach01", "river/river00", "river/river01"]
    assert "simulated" in dataset.note and "simulated" in dataset.describe()
    for row, name in enumerate(dataset.names):
        pixels = noise(name.split("/")[1], 256, 256, 3).astype(float)
        mean = sum(pixels[y::4, x::4] for y in range(4) for x in range(4)) / 16
        luminance = pixels @ [0.299, 0.587, 0.114]
        ms, pan = dataset.source1.read(row), dataset.source2.read(row)
        assert ms.dtype == pan.dtype == np.uint8
        assert ms.shape == (64, 64, 3) and pan.shape == (256, 256, 1)
        assert np.array_equal(ms, np.floor(mean + 0.5))
        assert np.abs(pan[..., 0] - luminance).max() <= 0.51
        assert dataset.source1.size(row) == (64, 64) and dataset.source2.size(row) == (256, 256)


def test_ucmerced_image_of_250_by_256_is_brought_to_256_first(tmp_path):
    dataset = load(ucmerced(tmp_path, (250, 256)), data_name="ucmerced")
    image = Image.fromarray(noise("beach00", 250, 256, 3))
    pixels = np.asarray(image.resize((256, 256), Image.Resampling.BICUBIC)).astype(float)
    mean = sum(pixels[y::4, x::4] for y in range(4) for x in range(4)) / 16
    assert np.array_equal(dataset.source1.read(0), np.floor(mean + 0.5))
    assert np.abs(dataset.source2.read(0)[..., 0] - pixels @ [0.299, 0.587, 0.114]).max() <= 0.51


def test_ucmerced_sources_can_be_exchanged(tmp_path):
    dataset = load(ucmerced(tmp_path), data_name="UCMerced", source1="PAN")
    assert dataset.source_names == ("pan", "ms")
    assert dataset.source1.read(0).shape == (256, 256, 1)
    assert dataset.source2.read(0).shape == (64, 64, 3)
    complaint(lambda: load(tmp_path, data_name="UCMerced", source1="pan", source2="pan"),
              "--source2", "none")
