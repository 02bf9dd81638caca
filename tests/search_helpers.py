"""A hash network that nothing has taught, images for it, and archives of them."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from archive import Archive, HashModel, ImagesOf, add_images
from data_loader import DataConfig
from engine.checkpoint import save_checkpoint
from engine.cli import Compute
from helpers import call
from network import HashNetwork, load_backbone

COMPUTE = Compute(torch.device("cpu"), 8, 2, False, False, None)
CPU = ["--device", "cpu", "--workers", 2]
KINDS = ("field", "sea", "town")


def picture(seed, height=24, width=32, channels=3):
    """Waves and noise that no other number has, as an image of Pillow."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = 60 * np.sin(x * generator.uniform(0.1, 2) + y * generator.uniform(0.1, 2))[..., None]
    pixels = generator.uniform(60, 200, channels) + waves * generator.uniform(-1, 1, channels)
    pixels = np.clip(pixels + generator.normal(0, 9, (height, width, channels)), 0, 255)
    return Image.fromarray(pixels.astype(np.uint8).squeeze())


def png(seed, **shape):
    """The bytes of `picture`."""
    buffer = io.BytesIO()
    picture(seed, **shape).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(folder, count=12, first=0):
    """Class folders of images that all differ."""
    for number in range(first, first + count):
        path = folder / KINDS[number % 3] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return folder


def save_model(path, seed=0, hash_bit=20, **data):
    """A mrhash.pth of random weights, whose bits are each 1 for about half of the images."""
    torch.manual_seed(seed)
    network = HashNetwork(load_backbone("shufflenet_v2_x0_5", "none", 32), hash_bit)
    views = torch.stack([torch.from_numpy(np.array(picture(1000 + number, 32, 32)))
                         for number in range(64)]).permute(0, 3, 1, 2) / 128 - 1
    network.train()
    for module in network.modules():  # batch normalisation learns at once what images look like
        module.momentum = 1.0
    with torch.no_grad():
        network.backbone.model(views)
        network.eval()
        features = network.backbone(views)
        weights = torch.randn(hash_bit, features.shape[1]) / features.std(dim=0).clamp_min(1e-6)
        network.hash_layer.weight.copy_(weights / 30)
        network.hash_layer.bias.copy_(-(features @ weights.T / 30).median(dim=0).values)
    settings = {"model_type": "shufflenet_v2_x0_5", "hash_bit": hash_bit, "image_size": 32,
                "threshold": 0.0, "head_width": 0}
    config = DataConfig(**{"data_name": "folder", "data_dir": "images", **data})
    save_checkpoint(path, {
        "format": "mrhash-1", "network": settings, "data": config.as_dict(), "fingerprint": "f",
        "model": {f"hash_network.{name}": value for name, value in network.state_dict().items()}})
    return path


def add_to(folder, model_file, *places, keep_outputs=False):
    """Add images to an archive, which is begun where it is not there; returns the report."""
    model = HashModel(model_file, COMPUTE)
    begun = (folder / "items.sqlite").exists()
    opened = Archive(folder) if begun else Archive.create(folder, model, keep_outputs)
    with opened as archive, archive.writing():
        return add_images(archive, model, [ImagesOf(Path(place), model.reading)
                                           for place in places])


def names_in(folder):
    """Names of the items by number."""
    with Archive(folder) as archive:
        return {number: item.name for number, item in archive.items.all()}


def state_of(folder):
    """What must be the same however an archive came to be: items with their codes and outputs."""
    with Archive(folder) as archive, archive.reading():
        codes, outputs = np.array(archive.codes), archive.outputs
        return {item.name: (number, item, codes[number].tobytes(),
                            None if outputs is None else outputs[number].tobytes())
                for number, item in archive.items.all()}


def search(capsys, *arguments):
    """search.py: exit code, stdout, stderr."""
    return call(capsys, "search.py", *arguments)
