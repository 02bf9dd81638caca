"""Stores, transforms and frozen features against Pillow, torchvision and plain loops."""

import itertools
import math

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from scipy import stats
from torchvision import transforms

import network
from data_loader import DataConfig, load_dataset
from datasets.sources import Folder, ImageFiles, ImageSource
from datasets.store import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageLoader,
    ImageStore,
    Transform,
    axis_matrix,
    random_crops,
    training_views,
)
from engine import cache as growing_array
from myautoencoder import features
from myautoencoder.features import dataset_features, features_of
from network import Backbone
from utils import InputError

CPU = torch.device("cpu")
BILINEAR = Image.Resampling.BILINEAR

# ------------------------------------------------------------------------ helpers


def picture(seed, height, width, channels=3):
    """Structure and noise, with black and white parts, where clipping would show."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = 128 + 150 * np.sin(x / 5 + seed)[..., None] * np.cos(y / 7)[..., None]
    return np.clip(waves + generator.normal(0, 40, (height, width, channels)), 0, 255).astype(np.uint8)


class Arrays(ImageSource):
    """Images from memory; counts what is asked of it, and cannot read those in `broken`."""

    def __init__(self, images, stamp="arrays", broken=()):
        self.arrays, self.stamp, self.broken = images, stamp, broken
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


def store_of(*images, image_size=224):
    return ImageStore.open(Arrays(images), "test", image_size, None, 2)


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


# ------------------------------------------------------------------------ the test transform

# Pillow resizes one axis, rounds to uint8, resizes the other, rounds again; we do not round. Each rounding is
# off by up to 1/2 (the first one is averaged by the second pass), so an image resized on the device differs
# by up to 1 grey level of 255, and by about 0.3 on average (measured: 1.0008 with float32, 0.312). Images at
# least as large as the first resize are resized by Pillow itself: only float32 remains (measured: 1.4e-5).
ROUNDED = {"most": 1.002, "mean": 0.315}
EXACT = {"most": 1e-4, "mean": 1e-5}


def pipeline(image_size):
    """torchvision on a Pillow image, with the first resize in the published proportion 256 to 224."""
    return transforms.Compose([
        transforms.Resize(round(image_size * 256 / 224)), transforms.CenterCrop(image_size),
        transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])


@pytest.mark.parametrize("image_size", [224, 96])
@pytest.mark.parametrize(("height", "width"), [
    (64, 64), (256, 256), (300, 398), (31, 47), (500, 256), (109, 111)])
def test_test_transform_agrees_with_torchvision_on_pillow(height, width, image_size):
    pixels = picture(1, height, width)
    store = store_of(pixels, image_size=image_size)
    ours = Transform(image_size, store.side).test(*batch_of(store))[0]
    theirs = pipeline(image_size)(as_pillow(pixels))
    enlarged = min(height, width) < round(image_size * 256 / 224)
    assert ours.shape == theirs.shape and ours.dtype == torch.float32
    check_levels(grey_levels(ours), grey_levels(theirs), **(ROUNDED if enlarged else EXACT))


def test_test_transform_is_the_same_alone_and_in_a_padded_batch():
    images = [picture(seed, *shape) for seed, shape in enumerate([(64, 64), (300, 400), (31, 47), (256, 300)])]
    together = Transform(224, 256).test(*batch_of(store_of(*images)))
    assert together.is_contiguous(memory_format=torch.channels_last)
    for image, ours in zip(images, together, strict=True):
        alone = Transform(224, 256).test(*batch_of(store_of(image)))[0]
        check_levels(grey_levels(ours), grey_levels(alone), **EXACT)


def test_one_channel_is_repeated_for_the_network():
    pixels = picture(3, 64, 80, channels=1)
    store = store_of(pixels)
    assert store.images.shape[1] == 1
    grey = as_pillow(pixels).convert("RGB")
    check_levels(grey_levels(Transform(224, store.side).test(*batch_of(store))[0]),
                 grey_levels(pipeline(224)(grey)), **ROUNDED)
    trained, _ = training_views_of(store, 224, 0)
    levels = grey_levels(trained[0])
    assert trained.shape == (1, 3, 224, 224) and np.abs(levels - levels[:1]).max() < 1e-3


# ------------------------------------------------------------------------ the matrix of one axis


@pytest.mark.parametrize(("start", "extent", "length"), [
    (0, 64, 256), (10, 20, 224), (3, 61, 64), (0, 64, 64),  # up
    (5, 90, 40), (0, 97, 96), (17, 83, 7), (0, 100, 1)])  # down
def test_axis_matrix_is_pillows_resize_of_a_crop(start, extent, length):
    line = np.random.default_rng(extent).random((1, 100)).astype(np.float32) * 255
    # Pillow does not round float images ("F"), so that the filters alone are compared.
    theirs = np.asarray(Image.fromarray(line).crop((start, 0, start + extent, 1)).resize((length, 1), BILINEAR))
    matrix = axis_matrix(*(torch.tensor([value]) for value in (start, extent, length, 0)), length, 100)
    assert matrix.dtype == torch.float32 and matrix.shape == (1, length, 100)
    assert torch.allclose(matrix.sum(dim=2), torch.ones(1, length), atol=1e-5)
    assert matrix[0, :, :start].abs().sum() == 0 and matrix[0, :, start + extent:].abs().sum() == 0
    assert np.abs(matrix[0].numpy() @ line[0] - theirs[0]).max() < 0.02
    if length > 2:
        part = axis_matrix(*(torch.tensor([value]) for value in (start, extent, length, 2)), length - 2, 100)
        assert torch.allclose(part, matrix[:, 2:], atol=1e-6)


# ------------------------------------------------------------------------ random boxes

DRAWS = 20_000


def drawn_by_torchvision(height, width, seed):
    torch.manual_seed(seed)
    image = torch.empty(3, height, width)
    boxes = [transforms.RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(DRAWS)]
    return np.array(boxes).T


def largest_allowed(height, width):
    """The box after ten misses: as much as the ratios 3/4..4/3 allow."""
    if width / height > 4 / 3:
        return height, round(height * 4 / 3)
    return (round(width * 4 / 3), width) if width / height < 3 / 4 else (height, width)


@pytest.mark.parametrize(("height", "width"), [(256, 256), (512, 256), (256, 1280)])
def test_random_boxes_have_torchvisions_distribution(height, width):
    size = torch.full((DRAWS,), height), torch.full((DRAWS,), width)
    ours = torch.stack(random_crops(*size, torch.Generator().manual_seed(5))).numpy()
    theirs = drawn_by_torchvision(height, width, 6)
    top, left, high, wide = ours
    assert (top >= 0).all() and (left >= 0).all() and (high > 0).all() and (wide > 0).all()
    assert (top + high <= height).all() and (left + wide <= width).all()

    def views(top, left, high, wide):
        slack_y, slack_x = (slack[slack > 20] for slack in (height - high, width - wide))
        return {"area": high * wide / (height * width), "ratio": np.log(wide / high),
                "top": top[height - high > 20] / slack_y, "left": left[width - wide > 20] / slack_x}

    for (name, mine), other in zip(views(*ours).items(), views(*theirs).values(), strict=True):
        # Fixed seeds: nothing is left to chance. 1.95 sqrt(2 / n) is the one-in-a-thousand bound.
        distance = stats.ks_2samp(mine, other).statistic
        assert distance < 1.95 * math.sqrt(1 / len(mine) + 1 / len(other)), f"{name}: {distance:.4f}"
    fallback = largest_allowed(height, width)
    rates = [((boxes[2] == fallback[0]) & (boxes[3] == fallback[1])).mean() for boxes in (ours, theirs)]
    assert rates[0] == pytest.approx(rates[1], abs=4 * math.sqrt(max(rates[1], 1e-4) / DRAWS))


@pytest.mark.parametrize(("height", "width"), [(1, 400), (400, 1), (30, 1000), (1000, 31)])
def test_boxes_of_very_long_images_fall_back_to_the_centre(height, width):
    torch.manual_seed(0)
    top, left, high, wide = (values[0].item() for values in random_crops(
        torch.tensor([height]), torch.tensor([width]), torch.Generator().manual_seed(1)))
    assert (high, wide) == largest_allowed(height, width)
    assert (top, left) == ((height - high) // 2, (width - wide) // 2)
    found = transforms.RandomResizedCrop.get_params(torch.empty(3, height, width), (0.9, 1.0), (3 / 4, 4 / 3))
    assert found == (top, left, high, wide)


def test_boxes_of_a_batch_fit_each_its_own_image():
    generator = np.random.default_rng(0)
    heights, widths = (torch.from_numpy(generator.integers(1, 400, 5000)) for _ in range(2))
    top, left, high, wide = random_crops(heights, widths, torch.Generator().manual_seed(2))
    assert (top >= 0).all() and (left >= 0).all() and (high >= 1).all() and (wide >= 1).all()
    assert (top + high <= heights).all() and (left + wide <= widths).all()


# ------------------------------------------------------------------------ the training transform

# As above, with two resizes where the image is enlarged first: four roundings instead of two (measured: at
# most 1.94, 0.384 on average).
TWICE_ROUNDED = {"most": 2.0, "mean": 0.39}


def training_views_of(store, image_size, seed):
    """Transform.train of all images of a store, and what was drawn for them."""
    transform, (images, sizes) = Transform(image_size, store.side), batch_of(store)
    drawn = transform.draw(sizes, torch.Generator().manual_seed(seed))
    return transform.train(images, sizes, drawn), drawn


def check_training_views(images, image_size, tolerances, seed=0):
    store = store_of(*images, image_size=image_size)
    views, drawn = training_views_of(store, image_size, seed)
    boxes, flips = drawn[:, :4].tolist(), drawn[:, 4].tolist()
    assert views.shape == (len(images), 3, image_size, image_size) and views.dtype == torch.float32
    assert views.is_contiguous(memory_format=torch.channels_last) and 0 < sum(flips) < len(flips)
    for pixels, view, (top, left, high, wide), flip, tolerance in zip(images, views, boxes, flips, tolerances,
                                                                     strict=True):
        image = transforms.Resize(store.side)(as_pillow(pixels))
        assert top + high <= image.height and left + wide <= image.width
        image = transforms.functional.resized_crop(image, top, left, high, wide, [image_size, image_size])
        image = transforms.functional.hflip(image) if flip else image
        theirs = np.asarray(image, dtype=float).transpose(2, 0, 1)
        check_levels(grey_levels(view), theirs, **tolerance)


@pytest.mark.parametrize("image_size", [224, 96])
def test_training_views_of_small_images_are_pillows_enlarged_and_cropped(image_size):
    images = [picture(seed, 64, 64) for seed in range(8)]
    check_training_views(images, image_size, [TWICE_ROUNDED] * 8)


def test_training_views_of_large_images_are_pillows_crops():
    images = [picture(seed, 300, 300) for seed in range(8)]
    check_training_views(images, 224, [ROUNDED] * 8)


def test_training_views_of_many_sizes_in_one_batch_are_pillows():
    shapes = [(64, 64), (300, 400), (31, 47), (500, 256), (256, 256), (40, 400), (256, 700), (700, 100)]
    images = [picture(seed, *shape) for seed, shape in enumerate(shapes)]
    check_training_views(images, 224, [ROUNDED if min(shape) >= 256 else TWICE_ROUNDED for shape in shapes])
    large = [shape for shape in shapes if min(shape) >= 256] * 2  # padded, none enlarged
    images = [picture(seed, *shape) for seed, shape in enumerate(large)]
    check_training_views(images, 224, [ROUNDED] * len(large), seed=1)


def test_training_views_do_not_depend_on_the_padding():
    image = picture(0, 50, 70)
    views, drawn = training_views_of(store_of(image, picture(1, 200, 90), picture(2, 90, 255)), 224, 3)
    alone = Transform(224, 256).train(*batch_of(store_of(image)), drawn[:1])
    check_levels(grey_levels(alone[0]), grey_levels(views[0]), **EXACT)


def test_training_views_depend_on_the_generator_alone():
    store = store_of(*[picture(seed, 64, 64) for seed in range(20)], image_size=32)
    first, same, other = (training_views_of(store, 32, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_views_of_later_batches_are_those_of_an_uninterrupted_epoch():
    store = store_of(*[picture(seed, 40, 50) for seed in range(11)], image_size=32)
    loader, transform, batches = ImageLoader(store, CPU), Transform(32, store.side), torch.arange(11).split(4)
    whole, rest = (list(training_views(loader, transform, batches, first, torch.Generator().manual_seed(0)))
                   for first in (0, 1))
    assert [len(view) for view in whole] == [4, 4, 3] and len(rest) == 2
    assert all(torch.equal(one, other) for one, other in zip(whole[1:], rest, strict=True))
    assert not torch.equal(whole[0], whole[1])


def test_half_of_the_training_views_are_flipped():
    brighter_to_the_right = np.arange(0, 240, 30, dtype=np.uint8)[None, :, None].repeat(8, 0).repeat(3, 2)
    store = store_of(*[brighter_to_the_right] * 4000, image_size=7)
    views, _ = training_views_of(store, 7, 0)
    flipped = views[..., 0].mean(dim=(1, 2)) > views[..., -1].mean(dim=(1, 2))
    assert abs(flipped.double().mean() - 0.5) < 0.03


# ------------------------------------------------------------------------ the store


def open_store(source, cache, image_size=32):
    return ImageStore.open(source, "test", image_size, cache, 2)


def test_store_keeps_small_images_as_they_are_and_pillow_shrinks_large_ones():
    shapes = [(20, 30), (37, 37), (80, 60), (37, 90)]
    images = [picture(seed, *shape) for seed, shape in enumerate(shapes)]
    store = store_of(*images, image_size=32)
    assert store.side == 37 and store.images.dtype == np.uint8 and store.images.shape == (4, 3, 49, 90)
    assert store.sizes.tolist() == [[20, 30], [37, 37], [49, 37], [37, 90]]
    images[2] = np.asarray(transforms.Resize(37)(as_pillow(images[2])))
    for stored, (height, width), image in zip(store.images, store.sizes, images, strict=True):
        assert np.array_equal(stored[:, :height, :width].transpose(1, 2, 0), image)
        assert stored[:, height:].sum() == stored[:, :, width:].sum() == 0


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
    assert np.array_equal(mapped.images, resident.images) and np.array_equal(mapped.sizes, resident.sizes)
    assert mapped.key == resident.key and mapped.side == resident.side


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


def left(folder):
    """The files below a folder, but for the empty ones that processes lock."""
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_images_that_cannot_be_read_are_counted_and_leave_no_file(tmp_path):
    source = Arrays([picture(seed, 40, 40) for seed in range(9)], broken={1, 3, 4, 6, 8})
    source.size = lambda index: 1 / 0 if index == 6 else (40, 40)
    with pytest.raises(InputError) as caught:
        open_store(source, tmp_path)
    text = str(caught.value)
    assert "5 of 9 images" in text and "scene 1 (image file is truncated); scene 3" in text
    assert "scene 4" in text and "scene 6 (division by zero)" in text and "scene 8" in text and "\n" not in text
    assert left(tmp_path) == []
    whole = Arrays(source.arrays)
    assert len(open_store(whole, tmp_path)) == 9 and whole.reads == 9


def test_interrupted_decoding_leaves_no_store(tmp_path, monkeypatch):
    source = Arrays([picture(seed, 40, 40) for seed in range(4)])
    monkeypatch.setattr(source, "read", lambda index: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        open_store(source, tmp_path)
    assert [path for path in left(tmp_path) if not path.name.endswith(".part")] == []


def test_an_unreadable_image_before_a_kill_is_found_by_the_next_attempt(tmp_path, monkeypatch):
    monkeypatch.setattr(growing_array.GrowingArray, "SAVE_EVERY", -1.0)
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


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_streaming_gives_the_batches_of_a_resident_store(tmp_path, place):
    source = Arrays([picture(seed, 20 + seed, 30) for seed in range(11)])
    store = open_store(source, tmp_path if place == "disk" else None)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    for rows in (order.split(3), order.split(11), order[:1].split(1), ()):
        streamed, resident = (list(ImageLoader(store, CPU, resident).batches(iter(rows)))
                              for resident in (False, True))
        assert len(streamed) == len(resident) == len(rows)
        for batch, one, other in zip(rows, streamed, resident, strict=True):
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
            for row, pixels, (height, width) in zip(batch.tolist(), *one, strict=True):
                assert np.array_equal(pixels[:, :height, :width].permute(1, 2, 0), source.arrays[row])


# ------------------------------------------------------------------------ frozen features

SIZE = 32


@pytest.fixture
def scenes(tmp_path):
    for label, number in itertools.product("ab", range(5)):
        path = tmp_path / "one" / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        as_pillow(picture(10 * ord(label) + number, 40, 40)).save(path)
    return tmp_path


def opened(folder, image_size=SIZE, backbone="squeezenet1_1", weights="none", cache_dir=None, amp=False):
    """Features of the first source of a fresh look at the folder, as a script computes them."""
    dataset = load_dataset(DataConfig(data_name="pairs", source1=str(folder / "one")))
    settings = {"feature_backbone": backbone, "image_size": image_size, "amp": amp}
    cache = str(cache_dir or folder / "cache")
    arrays, content = dataset_features(dataset, settings, weights, CPU, 4, 2, cache)
    return dataset, arrays[0], content


@pytest.fixture
def calls(monkeypatch):
    """How many batches went through a backbone, measuring its width aside."""
    counted = []
    forward = Backbone.forward

    def counting(self, images):
        if images.abs().sum() > 0:
            counted.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(network.Backbone, "forward", counting)
    return counted


def test_features_are_those_of_a_plain_loop_over_images(scenes):
    torch.manual_seed(0)  # weights `none` are drawn with seed 0
    model = torchvision.models.squeezenet1_1(weights=None)
    model.classifier[1] = torch.nn.Identity()
    model.eval()
    dataset, found, _ = opened(scenes)
    assert found.dtype == np.float32 and found.shape == (10, 512)
    assert len(np.unique(found.round(3), axis=0)) == 10  # the images do look different to this network
    for row, name in enumerate(dataset.names):
        with Image.open(scenes / "one" / f"{name}.png") as image, torch.no_grad():
            expected = model(pipeline(SIZE)(image)[None])[0].numpy()  # 40 pixels: Pillow shrinks them, to 37
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
    _, kept, _ = opened(scenes, cache_dir="none")
    assert not isinstance(kept, np.memmap) and np.array_equal(cached, kept)
    assert not (scenes / "none").exists()


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
    for settings in ({"backbone": "mobilenet_v2"}, {"image_size": 48}, {"weights": weights}, {"amp": True},
                     change_image):
        calls.clear()
        if callable(settings):
            settings()
            settings = {}
        opened(scenes, **settings)
        now = cached_files(scenes)
        first = [10] if "backbone" in settings else []  # mobilenet_v2 with random weights is calibrated first
        assert len(now) == len(before) + 1 and calls == [*first, 4, 4, 2], settings
        before = now
    opened(scenes, backbone="mobilenet_v2")
    assert len(cached_files(scenes)) == len(before) + 1  # the image changed for every network


def test_features_change_with_the_image_but_for_no_other_row(scenes):
    _, before, _ = opened(scenes)
    as_pillow(picture(99, 40, 40)).save(scenes / "one" / "a" / "3.png")
    dataset, after, _ = opened(scenes)
    changed = (np.abs(before - after).max(axis=1) > 1e-3).tolist()
    assert changed == [name == "a/3" for name in dataset.names]


def test_features_of_random_weights_do_not_depend_on_the_batch_size(scenes):
    dataset = load_dataset(DataConfig(data_name="pairs", source1=str(scenes / "one")))
    settings = {"feature_backbone": "mobilenet_v2", "image_size": SIZE, "amp": False}
    values = [dataset_features(dataset, settings, "none", CPU, size, 2, "none")[0][0] for size in (3, 10)]
    np.testing.assert_allclose(*values, rtol=1e-3, atol=1e-4)


def test_weights_none_are_the_same_whatever_was_drawn_before(scenes):
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    _, first, content = opened(scenes, cache_dir="none")
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(6)
    _, second, same = opened(scenes, cache_dir="none")
    assert content == same and np.array_equal(first, second)


def test_other_weights_than_those_of_the_autoencoder_are_an_error(scenes):
    dataset, _, content = opened(scenes)
    settings = {"feature_backbone": "squeezenet1_1", "image_size": SIZE, "amp": False, "feature_weights": "none"}
    cache = str(scenes / "cache")
    dataset_features(dataset, settings | {"content": content}, "none", CPU, 4, 2, cache)
    with pytest.raises(InputError, match="--feature_weights"):
        dataset_features(dataset, settings | {"content": "0" * 16}, "none", CPU, 4, 2, cache)


class Failing(torch.nn.Module):
    """Works on the first batch, then fails, or gives a feature that is not a number."""

    def __init__(self, how):
        super().__init__()
        self.how, self.dim, self.content, self.needs_calibration, self.batches = how, 3, "failing", False, 0

    def forward(self, images):
        self.batches += 1
        if self.batches == 2 and isinstance(self.how, BaseException):
            raise self.how
        output = images.mean(dim=(2, 3))
        return output * float("nan") if self.batches == 2 and self.how == "nan" else output


@pytest.mark.parametrize("how", [RuntimeError("out of memory"), KeyboardInterrupt(), "nan"])
def test_failed_extraction_leaves_no_features_and_is_gone_on_with(tmp_path, how, monkeypatch, capsys):
    source = Arrays([picture(seed, 40, 40) for seed in range(10)])
    monkeypatch.setattr(growing_array.GrowingArray, "SAVE_EVERY", -1.0)
    store = open_store(source, None)
    monkeypatch.setattr(features.ImageStore, "open", lambda *_: store)

    def extracted(how, folder):
        network = Failing(how)
        return network, lambda: features_of(source, "test", "failing", network, SIZE, CPU, 4, 2, False, False, folder)

    with pytest.raises((RuntimeError, KeyboardInterrupt, InputError)) as caught:
        extracted(how, tmp_path)[1]()
    if how == "nan":
        assert "4 images" in str(caught.value) and "scene 4" in str(caught.value)
        assert left(tmp_path) == []
    # Not for a moment did bad features stand under the name of good ones.
    assert all(path.suffix == ".part" for path in left(tmp_path))
    network, again = extracted(None, tmp_path)
    found = np.array(again())
    assert network.batches == (3 if how == "nan" else 2)  # the first of three batches was kept
    assert ("go on after 4 of 10" in capsys.readouterr().out) == (how != "nan")
    assert np.array_equal(found, extracted(None, tmp_path / "whole")[1]())
    (result,), (other,) = (list(folder.glob("features/*.npy")) for folder in (tmp_path, tmp_path / "whole"))
    assert result.read_bytes() == other.read_bytes()
    assert [path for path in left(tmp_path) if path.suffix == ".part"] == []


def test_bfloat16_runs_the_network_only_not_the_resize():
    """With --amp the images must arrive as exactly as without: bfloat16 has 8 bits."""
    seen = []

    class Watch(torch.nn.Module):
        def forward(self, images):
            seen.append(images)
            return images.mean(dim=(2, 3)) @ torch.eye(3)

    store = store_of(*[picture(seed, 20, 20) for seed in range(3)], image_size=SIZE)
    outputs = [next(features.apply_network(Watch(), ImageLoader(store, CPU), np.arange(3), SIZE, 8, amp, ""))
               for amp in (False, True)]
    assert torch.equal(seen[0], seen[1])
    assert outputs[1].dtype == np.float32 and 0 < np.abs(outputs[0] - outputs[1]).max() < 0.05
