"""Flags that choose the images."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from engine.cli import number


def add_data_flags(parser: argparse.ArgumentParser, names: Iterable[str], inherited: bool
                   ) -> argparse._ArgumentGroup:
    """Flags that choose the images.

    Args:
        parser: of a script.
        names: of the data sets.
        inherited: those that are left out come from the checkpoint.
    """
    group = parser.add_argument_group(
        "data (what is left out comes from the checkpoint)" if inherited else "data")
    group.add_argument("--data_name", "--dataset", default=None if inherited else "eurosat",
                       help=f"one of {', '.join(names)}; case does not matter. Start with "
                            "samples, which come with the repository; use folder or pairs for "
                            "images of your own")
    group.add_argument("--data_dir", default=None if inherited else "data",
                       help="where the dataset lies under its published name (zip or folder); "
                            "relative to the repository")
    group.add_argument("--source1", help="folder, pairs: the folder whose images will be hashed; "
                                         "UCMerced, samples, DSRSID: ms (default) or pan")
    group.add_argument("--source2", help="the second view, seen in training only. pairs: a folder; "
                                         "EuroSAT: vhr or swir; UCMerced, samples, DSRSID: pan or "
                                         "ms; none to do without. Left out: the one that is there")
    group.add_argument("--split_dir", help="folder with train.txt, database.txt and test.txt as "
                                           "published (path and one-hot label a line); without it "
                                           "the queries are drawn by --seed")
    group.add_argument("--max_per_class", type=number(int, 1),
                       help="use at most so many images of each class, for a quick look")
    if inherited:
        add_pairs_flag(group)
    else:
        add_own_image_flags(parser.add_argument_group("images of your own (folder, pairs)"))
    return group


def add_pairs_flag(group: argparse._ArgumentGroup) -> None:
    """The one of them that names a place, which may be moved."""
    group.add_argument("--pairs", metavar="CSV",
                       help="pairs: a table of two columns, a path in --source1 and one in "
                            "--source2; the rest is left out")


def add_own_image_flags(group: argparse._ArgumentGroup) -> None:
    """Flags for what folders of one's own may hold; stage 2 takes them from the checkpoint."""
    add_pairs_flag(group)
    group.add_argument("--pair_by", metavar="REGEX",
                       help="pairs: what its groups find in both paths is their common name, as "
                            "'S[12]_(.*)'")
    for source, which in ((1, "folder, pairs"), (2, "pairs")):
        group.add_argument(f"--bands{source}", metavar="BANDS",
                           help=f"{which}: one or three bands of GeoTIFFs by number or name, as "
                                "4,3,2 or B04,B03,B02")
        group.add_argument(f"--range{source}", metavar="RANGE",
                           help=f"{which}: pixels that become black and white, as 0,3000 or "
                                "2%%,98%% of all images")
    group.add_argument("--include", nargs="+", metavar="GLOB",
                       help="folder, pairs: take only these paths, as '*.tif'")
    group.add_argument("--exclude", nargs="+", metavar="GLOB",
                       help="folder, pairs: leave out these paths, as '*_mask.png' 'labels/*'")
    group.add_argument("--class_depth", type=number(int, 1), metavar="N",
                       help="folder, pairs: the N-th folder from the top is the class, not the one "
                            "that holds the image")
    group.add_argument("--split", choices=("seed", "folders"),
                       help="folders: queries are the images in a folder called test; seed "
                            "(default) draws them of all")
