"""Flags that say which frozen or trained network sees the images, and how."""

from __future__ import annotations

import argparse

NETWORKS = ("a torchvision classification model, timm/<name>, or efficientnet_lite0, whose "
            "ImageNet weights pip has installed (docs/backbones.md)")


def mean_and_std(text: str) -> list[float]:
    """An argparse type: 2 or 6 numbers, of which the second half are standard deviations."""
    values = [float(part) for part in text.split(",")]
    half = len(values) // 2
    means, deviations = values[:half], values[half:]
    if len(values) not in (2, 6) or not all(abs(mean) <= 10 for mean in means) or not all(
            0.001 <= std <= 10 for std in deviations):
        raise argparse.ArgumentTypeError(
            f"{text} is not a mean and a standard deviation of pixels in 0..1 (those of 0..255 "
            "divided by 255), as in 0.5,0.5, nor three and three")
    return values


def add_normalise_flag(group: argparse._ArgumentGroup) -> None:
    """--normalise: the statistics that weights from a file expect."""
    group.add_argument("--normalise", type=mean_and_std, metavar="MEAN,STD",
                       help="what weights from a file expect of pixels in 0..1, where that differs "
                            "from the network's own: 0,1 leaves them as they are; or six numbers, "
                            "means of red, green, blue, then deviations")


def add_feature_file_flags(group: argparse._ArgumentGroup, inherited: bool) -> None:
    """--features1 and --features2. `inherited`: unset ones come from the checkpoint."""
    for number in (1, 2):
        if inherited:
            text = (f"only when the file of features of source {number} lies elsewhere now: the "
                    "same file, new place")
        else:
            text = (f"take the features of source {number} from this pickle or .npz of data (N, d) "
                    "and labels (N,), rows as in train.txt, then test.txt of --split_dir, instead "
                    "of extracting them")
            if number == 2:
                text += "; the images of source 2 need not be there"
        group.add_argument(f"--features{number}", metavar="FILE", help=text)
