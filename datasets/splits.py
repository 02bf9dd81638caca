"""Which images train, which are the database, which are queries: by list files or by seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np

from datasets.base import DataConfig, Scenes
from datasets.containers import IMAGE_SUFFIXES
from datasets.names import scene_key
from utils import InputError, first_few, warn

SPLIT_FILES = {"train": "train.txt", "database": "database.txt", "query": "test.txt"}


# ---------------------------------------------------------------- list files


def split_by_lists(scenes: Scenes, config: DataConfig, folder: Path
                   ) -> tuple[dict[str, np.ndarray], np.ndarray | None, list[str]]:
    """The split that train.txt, database.txt and test.txt of `folder` describe.

    Args:
        scenes: N of them.
        config: says how many of each class are wanted.
        folder: holds the lists.
    Returns:
        int64 rows of train, database and query, in the order of the lists; labels, int64 (N,) or
        uint8 0/1 (N, C) as the lists give them (those of the scenes where the lists have none);
        the names of the classes.
    Raises:
        InputError: missing or malformed lists, unknown or repeated images, labels that contradict
            each other or the class folders.
    """
    if not (folder / SPLIT_FILES["query"]).is_file():
        raise InputError(f"--split_dir {folder} has no test.txt: expected train.txt, database.txt "
                         "and test.txt, a path and a one-hot label a line")
    parts: dict[str, np.ndarray] = {}
    given: dict[int, np.ndarray] = {}  # row -> label
    for part, file_name in SPLIT_FILES.items():
        path = folder / file_name
        if not path.is_file():
            continue
        paths, listed = _read_list(path)
        parts[part] = _rows_of(paths, scenes.names, path)
        if listed is not None:
            _note_labels(given, parts[part], listed, scenes.names, path)
    if "train" not in parts and "database" not in parts:
        raise InputError(f"--split_dir {folder} has neither train.txt nor database.txt")
    parts.setdefault("train", parts.get("database"))
    parts.setdefault("database", parts["train"])
    labels, class_names = _labels_of(given, parts, scenes, folder)
    if config.max_per_class:
        parts = {part: limit_rows(rows, labels, config.max_per_class, config.split_seed)
                 for part, rows in parts.items()}
    return parts, labels, class_names


def _read_list(path: Path) -> tuple[list[str], np.ndarray | None]:
    """A list file: a path and a one-hot (or multi-hot) label a line, the label optional."""
    paths, rows = [], []
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        # A path may hold spaces: it goes up to the field with an image's extension.
        end = max((position for position, field in enumerate(fields)
                   if PurePosixPath(field).suffix.lower() in IMAGE_SUFFIXES), default=0)
        label = fields[end + 1:]
        if not set(label) <= {"0", "1"} or (label and "1" not in label):
            raise InputError(f"{path}, line {number}: expected a path and a label of 0 and 1 with "
                             f"at least one 1, found {line[:80]!r}")
        if rows and len(label) != len(rows[0]):
            raise InputError(f"{path}, line {number}: {len(label)} label values, the lines before "
                             f"have {len(rows[0])}")
        paths.append(" ".join(fields[:end + 1]))
        rows.append([value == "1" for value in label])
    if not paths:
        raise InputError(f"{path} is empty: expected a path and a label a line")
    return paths, np.array(rows, dtype=np.uint8) if rows[0] else None


def _rows_of(paths: list[str], names: list[str], path: Path) -> np.ndarray:
    """The row of each scene that the list at `path` names; int64."""
    lookup = {name: row for row, name in enumerate(names)}
    # Names may lie at different depths: the longest that fits is meant.
    depths = sorted({name.count("/") + 1 for name in names}, reverse=True)
    keys = []
    for item in paths:
        candidates = [scene_key(item, depth) for depth in depths]
        keys.append(next((key for key in candidates if key in lookup), candidates[0]))
    unknown = [key for key in keys if key not in lookup]
    if unknown:
        raise InputError(f"{path} lists {len(unknown):,} images that the dataset does not have: "
                         f"{first_few(unknown)}")
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise InputError(f"{path} lists {len(twice):,} images twice: {first_few(twice)}")
    return np.array([lookup[key] for key in keys], dtype=np.int64)


def _note_labels(given: dict[int, np.ndarray], rows: np.ndarray, listed: np.ndarray,
                 names: list[str], path: Path) -> None:
    """Add the labels of one list to those of the lists before."""
    for row, label in zip(rows, listed, strict=True):
        if row in given and not np.array_equal(given[row], label):
            raise InputError(f"{path} and another list of {path.parent} give {names[row]} "
                             "different labels")
        given[row] = label


def _labels_of(given: dict[int, np.ndarray], parts: dict[str, np.ndarray], scenes: Scenes,
               folder: Path) -> tuple[np.ndarray | None, list[str]]:
    """Labels int64 (N,) when every row is one-hot, else uint8 (N, C); the names of the classes."""
    if not given:
        return scenes.labels, scenes.class_names
    rows = np.unique(np.concatenate(list(parts.values())))
    lengths = {len(given[row]) if row in given else 0 for row in rows}
    if len(lengths) != 1:
        raise InputError(f"the lists of {folder} have labels of different lengths, or some have "
                         "none")
    matrix = np.zeros((len(scenes.names), lengths.pop()), dtype=np.uint8)
    matrix[rows] = [given[row] for row in rows]
    columns = [str(column) for column in range(matrix.shape[1])]
    if (matrix.sum(axis=1) > 1).any():
        return matrix, columns
    labels = matrix.argmax(axis=1).astype(np.int64)
    if scenes.labels is not None:
        _name_columns(columns, rows, labels, scenes, folder)
    return labels, columns


def _name_columns(columns: list[str], rows: np.ndarray, labels: np.ndarray, scenes: Scenes,
                  folder: Path) -> None:
    """Name the columns of one-hot labels after the class folders.

    The numbering may differ from ours (the published one does); the grouping may not.
    """
    folder_of: dict[int, int] = {}
    column_of: dict[int, int] = {}
    for row in rows:
        column, own = int(labels[row]), int(scenes.labels[row])
        if folder_of.setdefault(column, own) != own or column_of.setdefault(own, column) != column:
            raise InputError(f"the lists of {folder} give {scenes.names[row]} label {column}, but "
                             "label and class folder do not go together elsewhere in the lists")
        columns[column] = scenes.class_names[own]


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


# ---------------------------------------------------------------- of either kind


def without_skipped(parts: dict[str, np.ndarray], names: list[str], skip: tuple[str, ...],
                    name: str) -> dict[str, np.ndarray]:
    """The parts without unreadable scenes: left out after the draw, so that others stay put."""
    if not skip:
        return parts
    left_out = np.flatnonzero(np.isin(names, skip))
    parts = {part: rows[~np.isin(rows, left_out)] for part, rows in parts.items()}
    gone = [part for part, rows in parts.items() if not len(rows)]
    if gone:
        raise InputError(f"without the {len(skip):,} images that cannot be read {name} has none "
                         f"left for: {', '.join(gone)}")
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
