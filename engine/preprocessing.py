"""How a network expects its images."""

from __future__ import annotations

from dataclasses import dataclass

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image before a network sees it.

    image_size: side S of the crop, pixels.
    side: what the image is resized to before the crop: its shorter side, pixels.
    mean: of red, green, blue in 0..1, which is subtracted.
    std: what is then divided by.
    interpolation: of the resizing, bilinear or bicubic (Pillow's).
    squash: whether both sides become `side`, whatever the image's shape.
    """

    image_size: int
    side: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    squash: bool = False
