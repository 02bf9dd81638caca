"""Files made to do harm or damaged by chance, and what must come of them: one sentence."""

import io
import os
from contextlib import contextmanager

import h5py
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image

from data_loader import DataConfig, load_dataset
from datasets.store import ImageStore
from hamming import CodeError
from image_helpers import expects
from utils import InputError

# MRHASH_FUZZ=1000 tries so many of each kind, others every time.
FUZZ = settings(max_examples=int(os.environ.get("MRHASH_FUZZ", 60)), deadline=None,
                derandomize="MRHASH_FUZZ" not in os.environ)


@contextmanager
def one_sentence(*parts):
    """The body works, or raises what engine.cli.run makes one line of.

    With parts it must raise, and the line hold them.
    """
    try:
        yield
    except (InputError, CodeError) as error:
        assert all(part in str(error) for part in parts), error
    else:
        assert not parts, "nothing was refused"


class Trap:
    """Unpickled without care, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def damage(data, raw, most=4):
    """Some bytes of `raw` replaced, or its end cut off, as hypothesis' `data` decides."""
    raw = bytearray(raw)
    places = st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=most)
    for position in data.draw(places):
        raw[position] = data.draw(st.integers(0, 255))
    return bytes(raw[:data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)


# ------------------------------------------------------------ small files


def small_png():
    """The bytes of an image."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(folder, count=12, kind="png", classes=("field", "sea"), **options):
    """Class folders of images; options of Image.save."""
    for label in classes:
        (folder / label).mkdir(parents=True)
        for number in range(count):
            pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number:02d}.{kind}", **options)
    return folder


def small_mat(path, count=24, side=8):
    """A DSRSID.mat of noise."""
    generator = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for name, shape in (("MUL_IMAGES", (count, 4, side, side)),
                            ("PAN_IMAGES", (count, 1, 4 * side, 4 * side))):
            file[name] = generator.integers(0, 256, shape, dtype=np.uint8)
        file["LAND_COVER_TYPES"] = np.arange(count, dtype=np.float64)[None] % 2 + 1
    return path


def read_all(data_name="pairs", **config):
    """Find a dataset and read every image of it, as the scripts do."""
    places = {name: str(value) for name, value in config.items()}
    dataset = load_dataset(DataConfig(data_name, **places))
    return [ImageStore.open(source, "test", expects(32), None, 1) for source in dataset.sources]
