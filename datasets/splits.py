"""Which images train, which are the database and which are queries: published lists, or drawn by seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np

from datasets.sources import IMAGE_SUFFIXES
from utils import InputError, first_few

SPLIT_FILES = {"train": "train.txt", "database": "database.txt", "query": "test.txt"}
QUERIES_PER_CLASS = {"EuroSAT": 100, "DSRSID": 625, "UCMerced": 10}  # published; our choice for UCMerced


def scene_key(path: str, depth: int) -> str:
    """The name of a scene: the last `depth` parts of the path without the extension (0: all parts)."""
    parts = PurePosixPath(path.replace("\\", "/"))
    parts = parts.with_suffix("").parts if parts.name else parts.parts
    return "/".join(parts[-depth:] if depth else parts)


def _read_list(path: Path) -> tuple[list[str], np.ndarray | None]:
    """A published list file: a path and a one-hot (or multi-hot) label a line, the label optional."""
    paths, rows = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        # A path may hold spaces: it goes up to the field with an image's extension.
        end = max((position for position, field in enumerate(fields)
                   if PurePosixPath(field).suffix.lower() in IMAGE_SUFFIXES), default=0)
        fields = [" ".join(fields[:end + 1]), *fields[end + 1:]]
        if any(field not in ("0", "1") for field in fields[1:]) or (fields[1:] and "1" not in fields[1:]):
            raise InputError(f"{path}, line {number}: expected a path and a label of 0 and 1 with at least "
                             f"one 1, found {line[:80]!r}")
        if rows and len(fields) - 1 != len(rows[0]):
            raise InputError(f"{path}, line {number}: {len(fields) - 1} label values, the lines before "
                             f"have {len(rows[0])}")
        paths.append(fields[0])
        rows.append([field == "1" for field in fields[1:]])
    if not paths:
        raise InputError(f"{path} is empty: expected a path and a label a line")
    return paths, np.array(rows, dtype=np.uint8) if rows[0] else None


def split_by_lists(names: list[str], labels: np.ndarray | None, class_names: list[str], folder: Path
                   ) -> tuple[dict[str, np.ndarray], np.ndarray | None, list[str]]:
    """The split that train.txt, database.txt and test.txt of `folder` describe.

    Args:
        names: N scene names. labels: int64 (N,) from class folders, or None; class_names: theirs.
    Returns:
        rows of each part, in the order of its list; labels, int64 (N,) or uint8 0/1 (N, C) as the lists
        give them (the given ones where the lists have none); the names of the classes.
    Raises:
        InputError: missing or malformed lists, unknown or repeated images, labels that contradict each
            other or the class folders.
    """
    depths = sorted({name.count("/") + 1 for name in names}, reverse=True)
    lookup = {name: row for row, name in enumerate(names)}
    given: dict[int, np.ndarray] = {}
    parts: dict[str, np.ndarray] = {}
    if not (folder / SPLIT_FILES["query"]).is_file():
        raise InputError(f"--split_dir {folder} has no test.txt: expected train.txt, database.txt and "
                         "test.txt, a path and a one-hot label a line")
    for part, file_name in SPLIT_FILES.items():
        path = folder / file_name
        if not path.is_file():
            continue
        paths, listed = _read_list(path)
        keys = [next((key for depth in depths if (key := scene_key(item, depth)) in lookup),
                     scene_key(item, depths[0])) for item in paths]
        unknown = [key for key in keys if key not in lookup]
        if unknown:
            raise InputError(f"{path} lists {len(unknown):,} images that the dataset does not have: "
                             f"{first_few(unknown)}")
        twice = [key for key, count in Counter(keys).items() if count > 1]
        if twice:
            raise InputError(f"{path} lists {len(twice):,} images twice: {first_few(twice)}")
        parts[part] = np.array([lookup[key] for key in keys], dtype=np.int64)
        for row, label in zip(parts[part], listed if listed is not None else (), strict=False):
            if row in given and not np.array_equal(given[row], label):
                raise InputError(f"{path} and another list of {folder} give {names[row]} different "
                                 "labels")
            given[row] = label
    if "train" not in parts and "database" not in parts:
        raise InputError(f"--split_dir {folder} has neither train.txt nor database.txt")
    parts.setdefault("train", parts.get("database"))
    parts.setdefault("database", parts["train"])
    if not given:
        return parts, labels, class_names
    return parts, *_labels_of_lists(names, labels, class_names, given, parts, folder)


def _labels_of_lists(names: list[str], folder_labels: np.ndarray | None, class_names: list[str],
                     given: dict[int, np.ndarray], parts: dict[str, np.ndarray], folder: Path
                     ) -> tuple[np.ndarray, list[str]]:
    """int64 (N,) when every row is one-hot, else uint8 (N, C); and the names of the classes."""
    rows = np.unique(np.concatenate(list(parts.values())))
    if len({len(given[row]) if row in given else 0 for row in rows}) != 1:
        raise InputError(f"the lists of {folder} have labels of different lengths, or some have none")
    matrix = np.zeros((len(names), len(given[rows[0]])), dtype=np.uint8)
    matrix[rows] = [given[row] for row in rows]
    columns = [str(column) for column in range(matrix.shape[1])]
    if (matrix[rows].sum(axis=1) > 1).any():
        return matrix, columns
    labels = matrix.argmax(axis=1).astype(np.int64)
    if folder_labels is not None:
        # The numbering may differ from ours (the published one does); the grouping may not.
        folder_of: dict[int, int] = {}
        column_of: dict[int, int] = {}
        for row in rows:
            column, own = int(labels[row]), int(folder_labels[row])
            if folder_of.setdefault(column, own) != own or column_of.setdefault(own, column) != column:
                raise InputError(f"the lists of {folder} give {names[row]} label {column}, but "
                                 f"label and class folder do not go together elsewhere in the lists")
            columns[column] = class_names[own]
    return labels, columns


def split_by_seed(name: str, labels: np.ndarray | None, class_names: list[str], count: int, seed: int
                  ) -> dict[str, np.ndarray]:
    """Draw the queries: the published number per class, or a tenth of the smallest class."""
    generator = np.random.default_rng(seed)
    if count < 2:
        raise InputError(f"{name} has {count} image only: one is needed as a query and one in the database")
    if labels is None:
        queries = generator.choice(count, size=max(1, min(1000, count // 10)), replace=False)
    else:
        classes, sizes = np.unique(labels, return_counts=True)  # a number may be without images
        smallest = int(sizes.min())
        if smallest < 2:
            alone = [class_names[label] for label in classes[sizes < 2]]
            raise InputError(f"{len(alone):,} classes of {name} have fewer than 2 images: "
                             f"{first_few(alone)}; one is needed as a query and one in the "
                             "database: remove the class or add images")
        each = max(1, min(QUERIES_PER_CLASS.get(name, smallest), smallest // 10))
        queries = np.concatenate([generator.choice(np.flatnonzero(labels == label), each, replace=False)
                                  for label in classes])
    rest = np.setdiff1d(np.arange(count), queries)
    return {"train": rest, "database": rest, "query": np.sort(queries)}


def limit_rows(rows: np.ndarray, labels: np.ndarray | None, limit: int, seed: int) -> np.ndarray:
    """At most `limit` rows of each class (all together when there are no labels), order kept."""
    order = np.random.default_rng(seed).permutation(len(rows))
    group = np.zeros(len(rows), np.int64) if labels is None else (
        labels[rows] if labels.ndim == 1 else labels[rows].argmax(axis=1))
    kept = np.concatenate([order[group[order] == value][:limit] for value in np.unique(group)])
    return rows[np.sort(kept)]
