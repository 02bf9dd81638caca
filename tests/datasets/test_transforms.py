"""Views of images against Pillow and torchvision."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision import transforms

from datasets.transforms import Transform, axis_matrix, random_crops
from image_helpers import (
    as_pillow,
    batch_of,
    check_levels,
    expects,
    grey_levels,
    picture,
    pipeline,
    store_of,
)

# ------------------------------------------------------------ the test transform

ROUNDED = {"most": 1.002, "mean": 0.315}

EXACT = {"most": 1e-4, "mean": 1e-5}


@pytest.mark.parametrize("image_size", [224, 96])
@pytest.mark.parametrize(("height", "width"), [
    (64, 64), (256, 256), (300, 398), (31, 47), (500, 256), (109, 111)])
def test_test_transform_agrees_with_torchvision_on_pillow(height, width, image_size):
    pixels = picture(1, height, width)
    store = store_of(pixels, image_size=image_size)
    ours = Transform(expects(image_size)).test(*batch_of(store))[0]
    theirs = pipeline(image_size)(as_pillow(pixels))
    enlarged = min(height, width) < round(image_size * 256 / 224)
    assert ours.shape == theirs.shape and ours.dtype == torch.float32
    check_levels(grey_levels(ours), grey_levels(theirs), **(ROUNDED if enlarged else EXACT))


def test_test_transform_is_the_same_alone_and_in_a_padded_batch():
    shapes = [(64, 64), (300, 400), (31, 47), (256, 300)]
    images = [picture(seed, *shape) for seed, shape in enumerate(shapes)]
    together = Transform(expects(224)).test(*batch_of(store_of(*images)))
    assert together.is_contiguous(memory_format=torch.channels_last)
    for image, ours in zip(images, together, strict=True):
        alone = Transform(expects(224)).test(*batch_of(store_of(image)))[0]
        check_levels(grey_levels(ours), grey_levels(alone), **EXACT)


def test_one_channel_is_repeated_for_the_network():
    pixels = picture(3, 64, 80, channels=1)
    store = store_of(pixels)
    assert store.images.shape[1] == 1
    grey = as_pillow(pixels).convert("RGB")
    check_levels(grey_levels(Transform(expects(224)).test(*batch_of(store))[0]),
                 grey_levels(pipeline(224)(grey)), **ROUNDED)
    trained, _ = training_views_of(store, 224, 0)
    levels = grey_levels(trained[0])
    assert trained.shape == (1, 3, 224, 224) and np.abs(levels - levels[:1]).max() < 1e-3


# ------------------------------------------------------------ the matrix of one axis


@pytest.mark.parametrize(("start", "extent", "length"), [
    (0, 64, 256), (10, 20, 224), (3, 61, 64), (0, 64, 64),  # up
    (5, 90, 40), (0, 97, 96), (17, 83, 7), (0, 100, 1)])  # down
@pytest.mark.parametrize("bicubic", [False, True])
def test_axis_matrix_is_pillows_resize_of_a_crop(start, extent, length, bicubic):
    line = np.random.default_rng(extent).random((1, 100)).astype(np.float32) * 255
    # Pillow does not round float images ("F"), so that the filters alone are compared.
    part_of_line = Image.fromarray(line).crop((start, 0, start + extent, 1))
    kind = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    theirs = np.asarray(part_of_line.resize((length, 1), kind))
    interval = [torch.tensor([value]) for value in (start, extent, length)]
    matrix = axis_matrix((*interval, torch.tensor([0])), length, 100, bicubic=bicubic)
    assert matrix.dtype == torch.float32 and matrix.shape == (1, length, 100)
    assert torch.allclose(matrix.sum(dim=2), torch.ones(1, length), atol=1e-5)
    assert matrix[0, :, :start].abs().sum() == 0 and matrix[0, :, start + extent:].abs().sum() == 0
    assert np.abs(matrix[0].numpy() @ line[0] - theirs[0]).max() < 0.02
    if length > 2:
        part = axis_matrix((*interval, torch.tensor([2])), length - 2, 100, bicubic=bicubic)
        assert torch.allclose(part, matrix[:, 2:], atol=1e-6)


# ------------------------------------------------------------ random boxes

DRAWS = 10_000


def drawn_by_torchvision(height, width, seed):
    torch.manual_seed(seed)
    image = torch.empty(3, height, width)
    boxes = [transforms.RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3))
             for _ in range(DRAWS)]
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
        bound = 1.95 * math.sqrt(1 / len(mine) + 1 / len(other))
        assert distance < bound, f"{name}: {distance:.4f}"
    fallback = largest_allowed(height, width)
    rates = [((boxes[2] == fallback[0]) & (boxes[3] == fallback[1])).mean()
             for boxes in (ours, theirs)]
    assert rates[0] == pytest.approx(rates[1], abs=4 * math.sqrt(max(rates[1], 1e-4) / DRAWS))


@pytest.mark.parametrize(("height", "width"), [(1, 400), (400, 1), (30, 1000), (1000, 31)])
def test_boxes_of_very_long_images_fall_back_to_the_centre(height, width):
    torch.manual_seed(0)
    top, left, high, wide = (values[0].item() for values in random_crops(
        torch.tensor([height]), torch.tensor([width]), torch.Generator().manual_seed(1)))
    assert (high, wide) == largest_allowed(height, width)
    assert (top, left) == ((height - high) // 2, (width - wide) // 2)
    found = transforms.RandomResizedCrop.get_params(torch.empty(3, height, width), (0.9, 1.0),
                                                    (3 / 4, 4 / 3))
    assert found == (top, left, high, wide)


def test_boxes_of_a_batch_fit_each_its_own_image():
    generator = np.random.default_rng(0)
    heights, widths = (torch.from_numpy(generator.integers(1, 400, 5000)) for _ in range(2))
    top, left, high, wide = random_crops(heights, widths, torch.Generator().manual_seed(2))
    assert (top >= 0).all() and (left >= 0).all() and (high >= 1).all() and (wide >= 1).all()
    assert (top + high <= heights).all() and (left + wide <= widths).all()


# ------------------------------------------------------------ the training transform

TWICE_ROUNDED = {"most": 2.0, "mean": 0.39}


def training_views_of(store, image_size, seed):
    """Transform.train of all images of a store, and what was drawn for them."""
    transform, (images, sizes) = Transform(expects(image_size)), batch_of(store)
    drawn = transform.draw(sizes, torch.Generator().manual_seed(seed))
    return transform.train(images, sizes, drawn), drawn


def check_training_views(images, image_size, tolerances, seed=0):
    store = store_of(*images, image_size=image_size)
    views, drawn = training_views_of(store, image_size, seed)
    boxes, flips = drawn[:, :4].tolist(), drawn[:, 4].tolist()
    assert views.shape == (len(images), 3, image_size, image_size) and views.dtype == torch.float32
    assert views.is_contiguous(memory_format=torch.channels_last) and 0 < sum(flips) < len(flips)
    for pixels, view, box, flip, tolerance in zip(images, views, boxes, flips, tolerances,
                                                  strict=True):
        top, left, high, wide = box
        image = transforms.Resize(expects(image_size).side)(as_pillow(pixels))
        assert top + high <= image.height and left + wide <= image.width
        image = transforms.functional.resized_crop(image, *box, [image_size, image_size])
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
    shapes = [(64, 64), (300, 400), (31, 47), (500, 256), (256, 256), (40, 400), (256, 700),
              (700, 100)]
    images = [picture(seed, *shape) for seed, shape in enumerate(shapes)]
    check_training_views(images, 224, [ROUNDED if min(shape) >= 256 else TWICE_ROUNDED
                                       for shape in shapes])
    large = [shape for shape in shapes if min(shape) >= 256] * 2  # padded, none enlarged
    images = [picture(seed, *shape) for seed, shape in enumerate(large)]
    check_training_views(images, 224, [ROUNDED] * len(large), seed=1)


@pytest.mark.parametrize("shape", [(50, 70), (256, 300)])  # enlarged, and stored as it is resized
def test_training_views_do_not_depend_on_the_padding(shape):
    image = picture(0, *shape)
    store = store_of(image, picture(1, 400, 256), picture(2, 256, 500))
    images, sizes = batch_of(store)
    transform = Transform(expects(224))
    drawn = transform.draw(sizes, torch.Generator().manual_seed(3))[:1]
    padded = transform.train(images[:1], sizes[:1], drawn)
    together = transform.train(images, sizes, drawn.repeat(3, 1))[:1]
    alone = transform.train(*batch_of(store_of(image)), drawn)
    check_levels(grey_levels(alone[0]), grey_levels(padded[0]), **EXACT)
    check_levels(grey_levels(alone[0]), grey_levels(together[0]), **EXACT)


def test_training_views_depend_on_the_generator_alone():
    store = store_of(*[picture(seed, 64, 64) for seed in range(20)], image_size=32)
    first, same, other = (training_views_of(store, 32, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_half_of_the_training_views_are_flipped():
    row = np.arange(0, 240, 30, dtype=np.uint8)
    brighter_to_the_right = row[None, :, None].repeat(8, 0).repeat(3, 2)
    store = store_of(*[brighter_to_the_right] * 4000, image_size=7)
    views, _ = training_views_of(store, 7, 0)
    flipped = views[..., 0].mean(dim=(1, 2)) > views[..., -1].mean(dim=(1, 2))
    assert abs(flipped.double().mean() - 0.5) < 0.03
