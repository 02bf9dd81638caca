"""What scripts measure with labels, where there are some: the R of mAP@R, and when."""

from __future__ import annotations

import argparse

import numpy as np

from hamming import smallest_class
from utils import InputError, warn


def choose_R(given: int | None, labels: np.ndarray) -> int:
    """The cut of mAP@R: `given`, or the size of the smallest class in the database.

    Args:
        given: by --R, or None.
        labels: the database's, (N,) or 0/1 (N, C).
    Raises:
        InputError: `given` is larger than the database.
    """
    if given is None:
        return smallest_class(labels)
    if given > len(labels):
        raise InputError(f"--R {given} is larger than the database of {len(labels):,} images")
    return given


def monitored_R(args: argparse.Namespace, database_labels: np.ndarray | None,
                published: int | None = None) -> int | None:
    """The R of the mAP that a training script prints; None where there are no labels.

    Args:
        args: with --R, --select and --preset.
        database_labels: as in choose_R, or None.
        published: the R of --preset published, where it is not the smallest class.
    Raises:
        InputError: as choose_R; --select test_map without labels.
    """
    if args.select == "test_map":
        if database_labels is None:
            raise InputError("--select test_map (part of --preset published for autoencoder.py) "
                             "needs labels, and these images have none: use loss or last")
        warn("--select test_map chooses the epoch by the labels of the test queries, as published; "
             "do not compare its result with label-free methods")
    if database_labels is None:
        return None
    if published and args.preset == "published" and args.R is None:
        return min(published, len(database_labels))  # of a few images there are fewer
    return choose_R(args.R, database_labels)


def is_due(epoch: int, count: int, frequency: int) -> bool:
    """Whether to measure after this epoch: every so many, and after the last one; 0 is never."""
    return frequency > 0 and (epoch % frequency == 0 or epoch == count - 1)
