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
                       help=f"one of {', '.join(names)}; case does not matter. Start with demo, "
                            "which needs no download; use folder or pairs for images of your own")
    group.add_argument("--data_dir", default=None if inherited else "data",
                       help="where the dataset lies under its published name (zip or folder); "
                            "relative to the repository")
    group.add_argument("--source1", help="folder, pairs: the folder whose images will be hashed; "
                                         "UCMerced, DSRSID: ms (default) or pan")
    group.add_argument("--source2", help="the second view, seen in training only. pairs: a folder; "
                                         "EuroSAT: vhr or swir; UCMerced, DSRSID: pan or ms; none "
                                         "to do without. Left out: the one that is there")
    group.add_argument("--split_dir", help="folder with train.txt, database.txt and test.txt as "
                                           "published (path and one-hot label a line); without it "
                                           "the queries are drawn by --seed")
    group.add_argument("--max_per_class", type=number(int, 1),
                       help="use at most so many images of each class, for a quick look")
    return group
