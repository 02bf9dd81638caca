"""Small images, folders of them, and what tests of data sets and image stores ask of them."""

import io
import zipfile
import zlib
from argparse import Namespace

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from torchvision import transforms

from data_loader import DataConfig, load_dataset
from datasets.sources import ImageSource
from datasets.store import ImageStore
from engine.backbones import preprocessing_of
from engine.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from utils import InputError

CLASSES = ("Forest", "Highway", "River")

SCENES = [f"{label}/{label}_{number}" for label in CLASSES for number in range(1, 13)]


# ------------------------------------------------------------ folders of images


def noise(name, *shape):
    """Pixels that differ from name to name: any mix-up of scenes shows."""
    return np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, shape, dtype=np.uint8)


def encoded(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def tree(root, files):
    """Write {relative path: bytes} below a folder, or into a zip when `root` ends in .zip."""
    if root.suffix == ".zip":
        root.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(root, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return root
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def scenes(suffix=".jpg", prefix="", names=SCENES, kind="JPEG", size=8):
    return {f"{prefix}{name}{suffix}": encoded(noise(name + suffix, size, size, 3), kind)
            for name in names}


def hollow(names, suffix=".jpg"):
    """Files of one byte: for splits, which never look inside."""
    return {f"{name}{suffix}": b"x" for name in names}


def geotiff(path, numbers):
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = numbers.shape
    place = rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)
    with rasterio.open(path, "w", driver="GTiff", count=count, height=height, width=width,
                       dtype="uint16", crs="EPSG:32632", transform=place) as file:
        file.write(numbers)


# ------------------------------------------------------------ data sets


def load(data_dir, **settings):
    return load_dataset(DataConfig(data_dir=str(data_dir), **settings))


def pairs(root, **settings):
    return load(root, data_name="pairs", source1=str(root / "one"), **settings)


def flags(**given):
    """What stage 2 was told of the images; nothing is what the checkpoint says."""
    names = ("data_name", "data_dir", "source1", "source2", "split_dir", "max_per_class", "pairs")
    return Namespace(**{**dict.fromkeys(names), **given})


def stored(dataset, source=0):
    return lambda: ImageStore.open(dataset.sources[source], "test", expects(32), None, 2)


def complaint(call, *parts):
    """`call` raises one InputError: one line that holds all `parts`."""
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and "0x" not in text
    for part in parts:
        assert part in text, f"{part!r} is not in: {text}"
    return text


# ------------------------------------------------------------ list files


def one_hot(column, columns=3):
    return " ".join(str(int(number == column)) for number in range(columns))


def lists(folder, **parts):
    """Write train.txt, database.txt, test.txt from lists of lines."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, lines in parts.items():
        (folder / f"{part}.txt").write_text("".join(line + "\n" for line in lines))
    return str(folder)

PUBLISHED_COLUMN = {"River": 0, "Forest": 1, "Highway": 2}


def published(name, prefix="data/EuroSAT/images/"):
    return f"{prefix}{name}.jpg {one_hot(PUBLISHED_COLUMN[name.split('/')[0]])}"


def rows_named(dataset, part):
    return [dataset.names[row] for row in getattr(dataset, part)]


# ------------------------------------------------------------ stores and what comes out of them


def picture(seed, height, width, channels=3):
    """Structure and noise, with black and white parts, where clipping would show."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = 128 + 150 * np.sin(x / 5 + seed)[..., None] * np.cos(y / 7)[..., None]
    noisy = waves + generator.normal(0, 40, (height, width, channels))
    return np.clip(noisy, 0, 255).astype(np.uint8)


class Arrays(ImageSource):
    """Images from memory; counts what is asked of it, and cannot read those in `broken`."""

    def __init__(self, images, stamp="arrays", broken=()):
        self.arrays, self.content, self.broken = images, stamp, broken
        self.channels, self.reads = images[0].shape[2], 0

    def __len__(self):
        return len(self.arrays)

    def read(self, index):
        self.reads += 1
        if index in self.broken:
            raise OSError("image file is truncated")
        return self.arrays[index]

    def size(self, index):
        return self.arrays[index].shape[:2]

    def where(self, index):
        return f"scene {index}"

    def checksums(self, cache_dir):
        return np.array([zlib.crc32(array.tobytes()) for array in self.arrays])

    def stamp(self, cache_dir):
        return self.content


def expects(image_size):
    """How torchvision's networks expect images of that size."""
    return preprocessing_of("resnet18", image_size)


def store_of(*images, image_size=224, views=None):
    return ImageStore.open(Arrays(images), "test", views or expects(image_size), None, 2)


def batch_of(store):
    return torch.from_numpy(np.array(store.images)), torch.from_numpy(store.sizes)


def as_pillow(pixels):
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def grey_levels(normalised):
    """(3, S, S) as the networks see it -> grey levels 0..255, float64 (3, S, S)."""
    mean, std = (np.array(values)[:, None, None] * 255 for values in (IMAGENET_MEAN, IMAGENET_STD))
    return normalised.double().numpy() * std + mean


def check_levels(ours, theirs, most, mean):
    difference = np.abs(ours - theirs)
    assert difference.max() <= most, f"largest difference {difference.max():.3f}, allowed {most}"
    assert difference.mean() <= mean, f"mean difference {difference.mean():.4f}, allowed {mean}"


def pipeline(image_size):
    """torchvision on a Pillow image, the first resize in the published proportion 256 to 224."""
    return transforms.Compose([
        transforms.Resize(round(image_size * 256 / 224)), transforms.CenterCrop(image_size),
        transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
