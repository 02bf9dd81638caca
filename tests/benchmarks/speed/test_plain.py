"""The usual loader: the images that are asked for, as torchvision shows them."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks.speed import plain
from datasets.containers import open_container
from datasets.sources import ImageFiles
from image_helpers import expects


@pytest.mark.parametrize("kind", ["fine", "EuroSAT.zip"])
def test_the_plain_loader_gives_the_images_asked_for_in_their_order(images, kind):
    container = open_container(images["folder"] / kind)
    source = ImageFiles(container, sorted(container.files))
    rows = np.random.default_rng(0).permutation(24)
    reading = plain.Reading(expects(28), 5, 3, torch.device("cpu"))
    found = plain.plain_outputs(nn.Flatten(), source, rows, reading)
    files = sorted((images["folder"] / "fine").rglob("*.png"))
    for row, values in zip(rows, found, strict=True):
        image = Image.open(files[row])  # 32 pixels, which is what 28 are cut from
        pixels = np.asarray(image.crop((2, 2, 30, 30))) / 255
        expected = (pixels - expects(28).mean) / expects(28).std
        np.testing.assert_allclose(values.reshape(3, 28, 28).transpose(1, 2, 0), expected,
                                   atol=1e-5)
