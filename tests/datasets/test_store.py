"""Stores: decoded once, the same in memory and on disk, whole or not there."""

import numpy as np
import pytest
import torch
from torchvision import transforms

from datasets import store as image_store
from datasets.containers import Folder
from datasets.sources import ImageFiles
from datasets.store import ImageStore, UnreadableImages, repeat_warning
from engine import cache
from image_helpers import Arrays, as_pillow, expects, load, picture, store_of, stored
from utils import InputError, warn_once


def open_store(source, cache, image_size=32):
    return ImageStore.open(source, "test", expects(image_size), cache, 2)


def test_store_keeps_small_images_as_they_are_and_pillow_shrinks_large_ones():
    shapes = [(20, 30), (37, 37), (80, 60), (37, 90)]
    images = [picture(seed, *shape) for seed, shape in enumerate(shapes)]
    store = store_of(*images, image_size=32)
    assert store.images.dtype == np.uint8
    assert store.images.shape == (4, 3, 49, 90)
    assert store.sizes.tolist() == [[20, 30], [37, 37], [49, 37], [37, 90]]
    images[2] = np.asarray(transforms.Resize(37)(as_pillow(images[2])))
    for kept, (height, width), image in zip(store.images, store.sizes, images, strict=True):
        assert np.array_equal(kept[:, :height, :width].transpose(1, 2, 0), image)
        assert kept[:, height:].sum() == kept[:, :, width:].sum() == 0


def test_second_opening_maps_the_store_without_decoding(tmp_path):
    source = Arrays([picture(seed, 40, 40 + seed) for seed in range(6)])
    first = open_store(source, tmp_path)
    assert source.reads == 6
    again = open_store(source, tmp_path)
    assert source.reads == 6 and isinstance(again.images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        again.images[0, 0, 0, 0] = 1
    assert np.array_equal(first.images, again.images) and np.array_equal(first.sizes, again.sizes)
    assert first.key == again.key


def test_store_in_memory_equals_store_on_disk(tmp_path):
    source = Arrays([picture(seed, 40, 30 + seed) for seed in range(6)])
    mapped, resident = open_store(source, tmp_path), open_store(source, None)
    assert not isinstance(resident.images, np.memmap)
    assert np.array_equal(mapped.images, resident.images)
    assert np.array_equal(mapped.sizes, resident.sizes)
    assert mapped.key == resident.key


def test_another_image_size_is_another_store(tmp_path):
    source = Arrays([picture(0, 60, 60)])
    assert open_store(source, tmp_path).key != open_store(source, tmp_path, image_size=48).key
    assert source.reads == 2


def test_changed_image_is_decoded_anew(tmp_path):
    (tmp_path / "images").mkdir()

    def opened():
        for seed in range(2):
            path = tmp_path / "images" / f"{seed}.png"
            if not path.exists():
                as_pillow(picture(seed, 20, 20)).save(path)
        folder = Folder(tmp_path / "images")
        return open_store(ImageFiles(folder, ["0.png", "1.png"]), tmp_path / "cache")

    before = opened()
    assert opened().key == before.key
    as_pillow(picture(7, 20, 20)).save(tmp_path / "images" / "1.png")
    after = opened()
    assert after.key != before.key
    assert np.array_equal(after.images[1].transpose(1, 2, 0), picture(7, 20, 20))
    assert np.array_equal(after.images[0], before.images[0])


def test_store_of_a_dataset_keeps_rows_and_names_together(eurosat):
    dataset = load(eurosat, max_per_class=5)
    store = stored(dataset)()
    for row in range(len(dataset.names)):
        assert np.array_equal(store.images[row].transpose(1, 2, 0), dataset.source1.read(row))
    assert torch.from_numpy(store.sizes).unique().tolist() == [8]


# ------------------------------------------------------------ dark images


def warning_of(capsys):
    """What was said of dark images; it is said once in a process, which begins anew here."""
    warn_once.cache_clear()
    return capsys.readouterr().err


def flat(*levels, shape=(8, 8, 3)):
    return [np.full(shape, level, np.uint8) for level in levels]


@pytest.mark.parametrize(("level", "warned"), [(39, True), (40, False)])
def test_dark_images_are_warned_of(capsys, level, warned):
    warn_once.cache_clear()
    store_of(*flat(0, level, 255))
    assert (f"of 3 images of test that were looked at, at least half have almost no pixel (1 %) "
            f"brighter than {level} of 255" in warning_of(capsys)) == warned


def test_one_cloud_hides_no_black_images_and_one_bright_pixel_no_image(capsys):
    warn_once.cache_clear()
    images = flat(*[8] * 47, 255, shape=(20, 20, 3))
    for image in images:
        image[3, 4] = 255
    store_of(*images)
    assert "of 48 images" in (text := warning_of(capsys)) and "brighter than 8 of 255" in text


def test_night_and_forest_among_other_images_are_no_reason_to_warn(capsys):
    warn_once.cache_clear()
    store_of(*flat(*[9] * 10, *[60] * 11))
    assert warning_of(capsys) == ""


def test_where_a_range_was_given_the_warning_speaks_of_it(tmp_path, capsys):
    source = Arrays(flat(5, 6, 7))
    source.value_range = "0,30000"
    warn_once.cache_clear()
    open_store(source, tmp_path)
    assert "the range 0,30000 leaves them so" in (text := warning_of(capsys))
    assert "--range" not in text
    repeat_warning(source, "test", tmp_path)
    assert "the range 0,30000 leaves them so" in warning_of(capsys)


def test_white_images_are_warned_of_too(capsys):
    # Of a range of 2 to 98, where the percent signs were forgotten, say.
    for level, warned in ((216, True), (215, False)):
        source = Arrays(flat(0, level, 255))
        source.value_range = "2,98"
        warn_once.cache_clear()
        open_store(source, None)
        text = warning_of(capsys)
        assert ("darker than 216 of 255" in text and "the range 2,98" in text) == warned


def test_padding_is_not_dark(capsys):
    warn_once.cache_clear()
    store_of(*flat(50, 50, 50, shape=(3, 3, 3)), *flat(50, 50, shape=(36, 36, 3)))
    assert warning_of(capsys) == ""


def test_of_many_images_some_are_looked_at(capsys, monkeypatch):
    warn_once.cache_clear()
    monkeypatch.setattr(image_store, "SAMPLE", 5)
    store = store_of(*flat(*[90, 9, 9] * 4))
    assert store.sample().tolist() == [0, 3, 6, 8, 11]  # of rows 0 to 11
    assert warning_of(capsys) == ""
    assert len(list(store.brightness_from(3))) == 2


def test_the_warning_is_repeated_when_the_cache_is_used(tmp_path, capsys):
    warn_once.cache_clear()
    source = Arrays(flat(5, 6, 7))
    for image_size in (32, 32, 48):
        open_store(source, tmp_path, image_size)
        assert "brighter than 6 of 255" in warning_of(capsys)
    repeat_warning(source, "test", tmp_path)  # where features alone are used
    assert "brighter than 6 of 255" in warning_of(capsys)
    assert source.reads == 6


def test_the_warning_comes_also_after_a_kill_in_the_middle(tmp_path, capsys, monkeypatch):
    warn_once.cache_clear()
    monkeypatch.setattr(cache._Part, "SAVE_EVERY", -1.0)
    source = Arrays(flat(*range(5, 14)))
    read = source.read
    monkeypatch.setattr(source, "read", lambda index: read(index) if index < 6 else exec(
        "raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        open_store(source, tmp_path)
    assert warning_of(capsys) == ""
    monkeypatch.setattr(source, "read", read)
    open_store(source, tmp_path)
    assert "of 9 images of test that were looked at" in warning_of(capsys)


# ------------------------------------------------------------ images that cannot be read, and kills


def left(folder):
    """The files below a folder, but for the empty ones that processes lock."""
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_images_that_cannot_be_read_are_counted_and_leave_no_file(tmp_path):
    source = Arrays([picture(seed, 40, 40) for seed in range(9)], broken={1, 3, 4, 6, 8})
    with pytest.raises(InputError) as caught:
        open_store(source, tmp_path)
    text = str(caught.value)
    assert "5 of 9 images" in text and "scene 1 (image file is truncated); scene 3" in text
    assert "scene 4" in text and "scene 6" in text and "scene 8" in text and "\n" not in text
    assert [path.name[-10:] for path in left(tmp_path)] == [".sizes.npy"]
    whole = Arrays(source.arrays)
    assert len(open_store(whole, tmp_path)) == 9 and whole.reads == 9


def test_images_whose_size_cannot_be_read_are_named_with_all_others(tmp_path, monkeypatch):
    source = Arrays([picture(seed, 40, 40) for seed in range(9)], broken={2, 5})
    monkeypatch.setattr(source, "size", lambda index: (1 / 0, 1) if index == 5 else (40, 40))
    with pytest.raises(UnreadableImages, match=r"2 of 9 images .* scene 2 .*; scene 5 "):
        open_store(source, tmp_path)
    assert left(tmp_path) == []


def test_interrupted_decoding_leaves_no_store(tmp_path, monkeypatch):
    source = Arrays([picture(seed, 40, 40) for seed in range(4)])
    monkeypatch.setattr(source, "read", lambda index: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        open_store(source, tmp_path)
    assert [path for path in left(tmp_path) if path.suffix == ".npy"
            and not path.name.endswith(".sizes.npy")] == []


def test_an_unreadable_image_before_a_kill_is_found_by_the_next_attempt(tmp_path, monkeypatch):
    monkeypatch.setattr(cache._Part, "SAVE_EVERY", -1.0)
    source = Arrays([picture(seed, 40, 40) for seed in range(9)], broken={3})
    read = source.read

    def killed(index):
        if index == 6:
            raise KeyboardInterrupt
        return read(index)

    source.read = killed
    with pytest.raises(KeyboardInterrupt):
        open_store(source, tmp_path)
    source.read = read
    with pytest.raises(InputError, match="1 of 9 images cannot be read: scene 3"):
        open_store(source, tmp_path)
