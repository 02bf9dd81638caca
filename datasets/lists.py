"""Lists of images with their labels, as published: train.txt, database.txt, test.txt."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.base import DataConfig, Scenes
from datasets.containers import IMAGE_SUFFIXES
from datasets.names import scene_keys
from datasets.splits import limit_rows
from utils import InputError, first_few

SPLIT_FILES = {"train": "train.txt", "database": "database.txt", "query": "test.txt"}
# In a line of a list a path goes up to the last image's ending, and may hold what else separates.
BETWEEN = re.compile(r"[\s,;]+")
ENDINGS = "|".join(map(re.escape, sorted(IMAGE_SUFFIXES)))
HEADERS = {"path", "paths", "image", "images", "image_path", "image_name", "image_id", "img", "id",
           "file", "files", "filename", "file_name", "filepath", "name", "names", "patch"}
PATH = re.compile(rf"\s*(?P<path>.*(?:{ENDINGS})[\"']?)(?:[\s,;]+(?P<label>.*)|$)", re.IGNORECASE)


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
    columns: list[str] = []  # what headers call the columns of labels
    for part, file_name in SPLIT_FILES.items():
        path = folder / file_name
        if not path.is_file():
            continue
        paths, listed, header = _read_list(path, set(scenes.names))
        if header and header != (columns or header):
            raise InputError(f"{path} has the columns {first_few(header)}, and another list of "
                             f"{folder} has {first_few(columns)}: bring them into one order")
        columns = header or columns
        parts[part] = _rows_of(paths, scenes.names, path)
        if listed is not None:
            _note_labels(given, parts[part], listed, scenes.names, path)
    if "train" not in parts and "database" not in parts:
        raise InputError(f"--split_dir {folder} has neither train.txt nor database.txt")
    parts.setdefault("train", parts.get("database"))
    parts.setdefault("database", parts["train"])
    labels, class_names = _labels_of(given, parts, scenes, folder, columns)
    if config.max_per_class:
        parts = {part: limit_rows(rows, labels, config.max_per_class, config.split_seed)
                 for part, rows in parts.items()}
    return parts, labels, class_names


def _read_list(path: Path, known: set[str]) -> tuple[list[str], np.ndarray | None, list[str]]:
    """A list file: a path and a one-hot (or multi-hot) label a line, the label optional.

    Args:
        path: of the file.
        known: names of scenes, of which none is taken for a header.
    Returns:
        the paths; uint8 (n, C), their labels, or None; what a header calls the C columns, or [].
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path} is no UTF-8 text: save it as UTF-8") from None
    header: list[str] | None = None  # as long as no line was looked at
    paths, rows = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if not paths and header is None and line.split()[0] not in known:
            header = _header(line)
            if header:
                continue
        name, label = _entry(line)
        if not set(label) <= {"0", "1"} or (label and "1" not in label):
            raise InputError(f"{path}, line {number}: expected a path and a label of 0 and 1 with "
                             f"at least one 1, found {line[:80]!r}")
        if rows and len(label) != len(rows[0]):
            raise InputError(f"{path}, line {number}: {len(label)} label values, the lines before "
                             f"have {len(rows[0])}")
        paths.append(name)
        rows.append([value == "1" for value in label])
    if not paths:
        raise InputError(f"{path} is empty: expected a path and a label a line")
    names = (header or [])[1:]
    if len(names) > 1 and len(names) != len(rows[0]):
        raise InputError(f"{path} names {len(names)} columns of labels, but its lines have "
                         f"{len(rows[0])}")
    labels = np.array(rows, dtype=np.uint8) if rows[0] else None
    return paths, labels, names if len(names) == len(rows[0]) else []


def _entry(line: str) -> tuple[str, list[str]]:
    """The path and the values of the label in a line."""
    found = PATH.match(line)
    if found is None:  # a path without an image's ending holds no spaces
        path, *label = BETWEEN.split(line.strip())
    else:
        path, label = found["path"], BETWEEN.split(found["label"] or "")
    return path.strip("\"'"), [value.strip("\"'") for value in label if value]


def _header(line: str) -> list[str]:
    """The names of the columns, where the line is a header and no path; else none."""
    separator = next((letter for letter in ",;\t" if letter in line), " ")
    columns = next(csv.reader([line.strip()], delimiter=separator, skipinitialspace=True))
    columns = [column.strip() for column in columns]
    labels = set(columns[1:]) and set(columns[1:]) <= {"0", "1"}
    return columns if columns[0].lower() in HEADERS and not labels else []


def _rows_of(paths: list[str], names: list[str], path: Path) -> np.ndarray:
    """The row of each scene that the list at `path` names; int64."""
    lookup = {name: row for row, name in enumerate(names)}
    # Names may lie at different depths: the longest that fits is meant.
    depths = sorted({name.count("/") + 1 for name in names}, reverse=True)
    keys = []
    for item in paths:
        candidates = [key for depth in depths for key in scene_keys(item, depth)]
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
               folder: Path, columns: Sequence[str]) -> tuple[np.ndarray | None, list[str]]:
    """Labels int64 (N,) when every row is one-hot, else uint8 (N, C); the names of the classes.

    `columns` are those of a header, or none.
    """
    if not given:
        return scenes.labels, scenes.class_names
    rows = np.unique(np.concatenate(list(parts.values())))
    lengths = {len(given[row]) if row in given else 0 for row in rows}
    if len(lengths) != 1:
        raise InputError(f"the lists of {folder} have labels of different lengths, or some have "
                         "none")
    matrix = np.zeros((len(scenes.names), lengths.pop()), dtype=np.uint8)
    matrix[rows] = [given[row] for row in rows]
    columns = list(columns) or [str(column) for column in range(matrix.shape[1])]
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
