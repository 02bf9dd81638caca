"""Flags that say how images become features, and features become pseudo multi-labels."""

from __future__ import annotations

import argparse

from engine.checkpoint import LIMITS
from engine.cli import number, number_or

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


def add_views_flag(group: argparse._ArgumentGroup, what: str, default: int | None) -> None:
    """--views: how many turns and flips of each image take part."""
    text = (f"turns and flips of each image {what}, since satellites know no up: 2 is the image "
            "and it upside down, 4 its quarter turns, 8 those of its mirror image, too; each costs "
            "a pass of the backbone over all images")
    if default is None:
        text += " (default: as in stage 1)"
    group.add_argument("--views", type=int, choices=(1, 2, 4, 8), default=default, help=text)


def add_label_flags(group: argparse._ArgumentGroup) -> None:
    """--alpha and --label_spread: how sharp pseudo multi-labels are."""
    group.add_argument("--alpha", type=number_or("auto", float, 1e-6),
                       help="degrees of freedom of the probability function; 1 (as published) was "
                            "made for maps of two dimensions and gives nearly flat labels in many; "
                            "auto (the default) is latent_dim - 1")
    group.add_argument("--label_spread", type=number(float, 0, 0.999), default=0.2,
                       help="the share of the clusters over which a soft assignment is spread (exp "
                            "of its entropy), reached by centring and scaling the latent, which "
                            "changes nothing else; more for 5 clusters or fewer; 0 takes the "
                            "latent as it comes (as published)")


def add_feature_file_flags(group: argparse._ArgumentGroup, inherited: bool) -> None:
    """--features1 and --features2. `inherited`: unset ones come from the checkpoint."""
    for source in (1, 2):
        if inherited:
            text = (f"only when the file of features of source {source} lies elsewhere now: the "
                    "same file, new place")
        else:
            text = (f"take the features of source {source} from this pickle or .npz of data (N, d) "
                    "and labels (N,), rows as in train.txt, then test.txt of --split_dir, instead "
                    "of extracting them")
            if source == 2:
                text += "; the images of source 2 need not be there"
        group.add_argument(f"--features{source}", metavar="FILE", help=text)


def add_preparation_flags(group: argparse._ArgumentGroup) -> None:
    """What is done to features before the autoencoder sees them (myautoencoder/neighbours.py)."""
    group.add_argument("--feature_norm", choices=("none", "unit"), default="none",
                       help="unit: features are centred and brought to one length, so that what "
                            "counts is their direction, as for the cosine; none as published")
    group.add_argument("--neighbours", default=0,
                       type=number_or("auto", int, 0, LIMITS["neighbours"][1]),
                       help="average the features of each image with those of so many nearest "
                            "images, nearest in both sources together: less noise, wider classes; "
                            "auto is a third of the root of the number of training images and at "
                            "most 100, 0 as published")
    group.add_argument("--averaging", choices=("nearest", "mutual"), default="nearest",
                       help="mutual: only over those neighbours that have the image among theirs")
    group.add_argument("--averaging_rounds", default=1,
                       type=number(int, *LIMITS["averaging_rounds"]),
                       help="how often; each round finds neighbours among the averages")
