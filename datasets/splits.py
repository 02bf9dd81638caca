"""Which images train, which are the database, which are queries: by folders or by seed."""

from __future__ import annotations

import numpy as np

from datasets.base import DataConfig, Scenes
from utils import InputError, first_few, warn

# ---------------------------------------------------------------- by folders


def split_by_folders(scenes: Scenes, config: DataConfig, name: str) -> dict[str, np.ndarray]:
    """The split that folders called train, val and test tell.

    Args:
        scenes: N of them.
        config: says how many of each class are wanted, of each folder.
        name: of the data set, for messages.
    Returns:
        int64 rows: train; train and val as the database; test as queries. Of two folders, val
        stands for the one that is missing.
    Raises:
        InputError: there are no such folders.
    """
    if scenes.parts is None:
        raise InputError(f"--split folders: the images of {name} do not lie in folders called "
                         "train and test (or val): leave the flag out to draw the queries by "
                         "--seed")
    rows = {}
    for part in ("train", "val", "test"):
        rows[part] = np.flatnonzero(scenes.parts == part)
        if config.max_per_class and len(rows[part]):
            rows[part] = limit_rows(rows[part], scenes.labels, config.max_per_class,
                                    config.split_seed)
    if not len(rows["test"]):
        return {"train": rows["train"], "database": rows["train"], "query": rows["val"]}
    database = np.sort(np.concatenate((rows["train"], rows["val"])))
    return {"train": rows["train"] if len(rows["train"]) else database, "database": database,
            "query": rows["test"]}


# ---------------------------------------------------------------- by seed


def split_by_seed(scenes: Scenes, config: DataConfig, name: str, per_class: int | None
                  ) -> dict[str, np.ndarray]:
    """Draw the queries; all other images train and are the database.

    Args:
        scenes: N of them.
        config: gives the seed, and how many of each class are wanted.
        name: of the data set, for messages.
        per_class: queries of each class, never more than a tenth of the smallest class; None takes
            that tenth.
    Returns:
        int64 rows of train, database and query.
    Raises:
        InputError: too few images.
    """
    rows, labels = np.arange(len(scenes.names)), scenes.labels
    if config.max_per_class:
        rows = limit_rows(rows, labels, config.max_per_class, config.split_seed)
    if len(rows) < 2:
        raise InputError(f"{name} has {len(rows)} image only: one is needed as a query and one in "
                         "the database")
    generator = np.random.default_rng(config.split_seed)
    if labels is None:
        count = max(1, min(1000, len(rows) // 10))
        queries = rows[generator.choice(len(rows), count, replace=False)]
    else:
        classes, sizes = np.unique(labels[rows], return_counts=True)  # a class may have no images
        smallest = int(sizes.min())
        if smallest < 2:
            alone = [scenes.class_names[label] for label in classes[sizes < 2]]
            raise InputError(f"{len(alone):,} classes of {name} have fewer than 2 images: "
                             f"{first_few(alone)}; one is needed as a query and one in the "
                             "database: remove the class or add images")
        each = max(1, min(per_class or smallest, smallest // 10))
        queries = np.concatenate([generator.choice(rows[labels[rows] == label], each, replace=False)
                                  for label in classes])
    rest = np.setdiff1d(rows, queries)
    return {"train": rest, "database": rest, "query": np.sort(queries)}


def limit_rows(rows: np.ndarray, labels: np.ndarray | None, limit: int, seed: int) -> np.ndarray:
    """At most `limit` rows of each class (of all, when there are no labels), order kept."""
    order = np.random.default_rng(seed).permutation(len(rows))
    group = np.zeros(len(rows), np.int64)
    if labels is not None:
        group = labels[rows] if labels.ndim == 1 else labels[rows].argmax(axis=1)
    kept = np.concatenate([order[group[order] == value][:limit] for value in np.unique(group)])
    return rows[np.sort(kept)]


# ---------------------------------------------------------------- of any kind


def without_skipped(parts: dict[str, np.ndarray], names: list[str], skip: tuple[str, ...],
                    name: str) -> dict[str, np.ndarray]:
    """The parts without some scenes: left out after the draw, so that others stay put."""
    if not skip:
        return parts
    left_out = np.flatnonzero(np.isin(names, skip))
    parts = {part: rows[~np.isin(rows, left_out)] for part, rows in parts.items()}
    gone = [part for part, rows in parts.items() if not len(rows)]
    if gone:
        raise InputError(f"without the {len(skip):,} scenes of which an image is lacking or cannot "
                         f"be read {name} has none left for: {', '.join(gone)}; add their images, "
                         "or take another split (--seed, --split, --split_dir)")
    return parts


def check_parts(parts: dict[str, np.ndarray], labels: np.ndarray | None, names: list[str],
                name: str) -> None:
    """Raise InputError, or warn, where a number on this split would mean nothing."""
    for part in ("train", "database"):
        shared = np.intersect1d(parts["query"], parts[part])
        if len(shared):
            raise InputError(f"{len(shared):,} queries are also in the {part} set: "
                             f"{first_few([names[row] for row in shared])}")
    if labels is None:
        return
    used = np.unique(np.concatenate(list(parts.values())))
    if len(np.unique(labels[used], axis=0)) < 2:
        raise InputError(f"{name} has images of one class only: retrieval needs at least two")
    query, database = labels[parts["query"]], labels[parts["database"]]
    if labels.ndim == 1:
        alone = ~np.isin(query, database)
    else:
        alone = ~query[:, database.any(axis=0)].any(axis=1)
    if alone.any():
        warn(f"{alone.sum():,} of {len(query):,} queries share no label with any image of the "
             "database: their average precision counts as 0")
