"""Features that others extracted: an .npz, or the authors' pickles, of which nothing is executed.

A file holds {"data": numbers (N, d), "labels": integers (N,)}, its rows in the order of train.txt,
then test.txt. For files of strangers .npz is the format: a pickle cannot run anything here, but it
can ask for more memory or time than there is.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.base import PairedDataset
from hamming.files import load_npz
from utils import InputError, first_few, resolve_path

# ---------------------------------------------------------------- pickles

# NumPy's own functions are not called: numpy.dtype takes any flags from a pickle, and with the
# wrong ones bytes of the file become pointers. These classes keep what it says until it is checked.


class _Dtype:
    """A pickled numpy.dtype."""

    __slots__ = ("code",)

    def __init__(self, name: str, *_: Any) -> None:
        self.code = name  # such as f8 or U7

    def __setstate__(self, state: tuple) -> None:
        self.code = state[1] + self.code  # state: version, byte order, and what only records have


class _Array:
    """A pickled array or scalar of NumPy."""

    __slots__ = ("axes", "dtype", "order", "raw", "shape")

    def __init__(self, raw: Any = b"", dtype: Any = None, shape: Any = (), order: Any = "C",
                 axes: Any = None) -> None:
        self.raw, self.dtype, self.shape, self.order, self.axes = raw, dtype, shape, order, axes

    def __setstate__(self, state: tuple) -> None:
        shape, dtype, columns_first, raw = state[-4:]  # before them a version, in newer files
        self.__init__(raw, dtype, shape, "F" if columns_first else "C")

    def numbers(self, what: str) -> np.ndarray:
        """The array; raises InputError for other things than numbers."""
        if not re.fullmatch("[<>=|]?[biuf][1248]", self.dtype.code):
            code = ascii(self.dtype.code[:20])[1:-1]
            raise InputError(f"{what} is no array of numbers but an array of dtype {code}")
        raw = self.raw.encode("latin1") if isinstance(self.raw, str) else self.raw  # of Python 2
        order = "F" if self.order == "F" else "C"  # K goes with axes
        array = np.frombuffer(raw, self.dtype.code).reshape(self.shape, order=order)
        return array if self.axes is None else array.transpose(self.axes)


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":  # other codecs can unpack a bomb
        raise ValueError("a codec other than latin1")
    return text.encode("latin1")


ADMITTED: dict[str, Callable | None] = {
    "numpy.ndarray": None,  # an argument of _reconstruct, never called
    "numpy.dtype": _Dtype,
    "_codecs.encode": _latin1,
    "collections.OrderedDict": dict,
}
for _core in ("numpy.core", "numpy._core"):  # NumPy 1.x and 2.x
    ADMITTED[f"{_core}.multiarray._reconstruct"] = lambda *_: _Array()
    ADMITTED[f"{_core}.multiarray.scalar"] = lambda dtype, raw: _Array(raw, dtype)
    ADMITTED[f"{_core}.numeric._frombuffer"] = _Array
for _builtins in ("builtins", "__builtin__"):  # Python 3 and 2
    ADMITTED[f"{_builtins}.bytes"] = lambda: b""
    ADMITTED[f"{_builtins}.set"] = set
    ADMITTED[f"{_builtins}.frozenset"] = frozenset


class _Refused(Exception):
    """The file asks for something that is not admitted; the message says for what."""


class _Unpickler(pickle.Unpickler):
    """The standard library's way to restrict a pickle: only what find_class gives can be called."""

    def find_class(self, module: str, name: str) -> Callable | None:
        asked = f"{module}.{name}"
        if asked not in ADMITTED:
            asked = asked if len(asked) <= 100 else asked[:100] + "..."
            raise _Refused(asked if asked.isprintable() else ascii(asked))
        function = ADMITTED[asked]
        # A new one each time: a pickle may set attributes of what it is given.
        return function and (lambda *arguments: function(*arguments))


def read_pickle(path: Path) -> dict[str, np.ndarray]:
    """The arrays `data` and `labels` of a pickled dictionary; nothing in the file is executed.

    Raises:
        InputError: no such pickle, or it asks for anything but arrays and plain containers.
    """
    with open(path, "rb") as file:
        start = file.read(6)
        for magic, kind in ((b"PK", "a zip (an .npz, or of torch.save)"),
                            (b"\x93NUMPY", "an .npy"), (b"\x1f\x8b", "compressed"),
                            (b"\x89HDF", "an HDF5 file")):
            if start.startswith(magic):
                raise InputError(f"{path} is {kind}, expected a pickle, or an .npz named so, of "
                                 "data and labels")
        file.seek(0)
        try:
            found = _Unpickler(file, encoding="latin1").load()
            if type(found) is dict and {"data", "labels"} <= found.keys():
                return {name: _as_array(found[name], f"{path}: {name}")
                        for name in ("data", "labels")}
        except _Refused as error:
            raise InputError(f"{path} was not opened: it asks for {error}, and only arrays of "
                             "numbers and plain containers are admitted") from None
        except (InputError, OSError):
            raise
        except Exception as error:  # a damaged pickle ends in any of Python's exceptions
            reason = " ".join(str(error)[:500].split())[:120] or type(error).__name__
            raise InputError(f"{path} is not a whole pickle of arrays ({reason})") from None
    what = type(found).__name__.strip("_").lower()
    if type(found) is dict:
        names = [ascii(key[:20]) for key in list(found)[:5] if type(key) is str]
        what = f"a dictionary of {', '.join(names) or 'nothing that has a text for a name'}"
    raise InputError(f"{path} holds {what}, expected a dictionary of data and labels")


def _as_array(value: Any, what: str) -> np.ndarray:
    """An array, or a list of numbers, of lists of numbers, or of arrays. Raises InputError."""
    if isinstance(value, _Array):
        return value.numbers(what)
    found = type(value).__name__
    if isinstance(value, list | tuple):
        found = "a list of other things than numbers"
        rows = [row.numbers(what) if isinstance(row, _Array) else row for row in value]
        try:
            array = np.array(rows)
        except ValueError:
            found = "a list of rows of different lengths"
        else:
            if array.dtype.kind in "biuf":  # a number beyond 64 bits makes an array of objects
                return array
    raise InputError(f"{what} is no array of numbers but {found}")


# ---------------------------------------------------------------- features


def read_features(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A feature file, .npz or pickle.

    Returns:
        data, float32 (N, d), finite; labels, int64 (N,), or 0/1 (N, C).
    Raises:
        InputError: not such a file, wrong shapes or types, or values that are not finite.
    """
    if not path.is_file():
        raise InputError(f"no features at {path}: expected an .npz, or a pickle, of data and "
                         "labels")
    content = _read_npz(path) if path.suffix == ".npz" else read_pickle(path)
    data, labels = content["data"], content["labels"]
    if data.ndim != 2 or not data.size or data.dtype.kind not in "fiu":
        raise InputError(f"{path}: data is {data.dtype} of shape {data.shape}, expected numbers "
                         "(N, d)")
    if (labels.dtype.kind not in "biu" or labels.shape[:1] != data.shape[:1] or labels.ndim > 2
            or not labels.size):
        raise InputError(f"{path}: labels are {labels.dtype} of shape {labels.shape}, expected one "
                         f"integer for each of the {len(data):,} rows of data")
    if labels.max() > np.iinfo(np.int64).max:
        raise InputError(f"{path}: a label is {labels.max()}, expected the number of a class")
    with np.errstate(over="ignore"):
        data = np.ascontiguousarray(data, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(data).all(axis=1))
    if len(bad):
        raise InputError(f"{path}: {len(bad):,} rows of data are not finite, or too large for "
                         f"float32, first row {bad[0]:,}")
    labels = labels.astype(np.int64)
    return data, labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        content = load_npz(path, ("data", "labels"))
        if len(content) < 2:
            raise ValueError("an array is missing")
    except Exception as error:  # numpy, zipfile and zlib raise many kinds for a foreign file
        reason = " ".join(str(error).split(". ")[0].split())
        raise InputError(f"{path} is not a whole .npz with data and labels ({reason})") from None
    return content


def features_of_lists(path: Path, dataset: PairedDataset) -> np.ndarray:
    """The features of a file, from the order of train.txt, test.txt to that of `dataset.names`.

    Args:
        path: a feature file.
        dataset: N scenes, split by lists.
    Returns:
        float32 (N, d).
    Raises:
        InputError: as `read_features`; the dataset was not split by lists; the number of rows or a
            label does not agree with the lists.
    """
    if not dataset.listed:
        raise InputError(f"{path} holds rows in the order of list files: name their folder with "
                         "--split_dir")
    data, labels = read_features(path)
    rows = np.concatenate([dataset.train, dataset.query])
    if len(data) != len(rows):
        raise InputError(f"{path} has {len(data):,} rows, expected {len(dataset.train):,} of "
                         f"train.txt and then {len(dataset.query):,} of test.txt (the whole lists: "
                         "leave out --max_per_class)")
    lacking = np.setdiff1d(dataset.database, rows)
    if len(lacking):
        raise InputError(f"{path} has features of train.txt and test.txt only, and "
                         f"{len(lacking):,} images of database.txt are in neither, first "
                         f"{dataset.names[lacking[0]]}")
    if dataset.labels is not None:
        _compare_labels(path, labels, dataset, rows)
    ordered = np.empty((len(dataset.names), data.shape[1]), np.float32)
    ordered[rows] = data
    return ordered


def _compare_labels(path: Path, labels: np.ndarray, dataset: PairedDataset, rows: np.ndarray
                    ) -> None:
    """Raise InputError where labels of a file are not those of the dataset's rows.

    Another numbering of the same classes, as the authors' files may have, is said and accepted.
    """
    expected = dataset.labels[rows].astype(np.int64)
    if labels.shape != expected.shape:
        raise InputError(f"{path}: labels have shape {labels.shape}, those of the lists "
                         f"{expected.shape}")
    wrong = np.flatnonzero((labels != expected).reshape(len(rows), -1).any(axis=1))
    numbers = _renumbering(labels, expected)
    if len(wrong) and numbers:
        examples = first_few([f"{theirs} for {ours}" for theirs, ours in numbers if theirs != ours])
        print(f"{path} numbers the classes otherwise, one to one ({examples}); check that "
              "it is not whole classes of rows that stand in another order, which looks the same")
    elif len(wrong):
        row = wrong[0]
        raise InputError(
            f"{path}: {len(wrong):,} rows have another label than their images, first row {row:,} "
            f"({dataset.names[rows[row]]}) with {labels[row]} for {expected[row]}: rows must be in "
            "the order of train.txt, then test.txt, and labels numbered as the columns there "
            "(without labels there: as the class folders, in alphabetical order)")


def _renumbering(labels: np.ndarray, expected: np.ndarray) -> list[list[int]]:
    """[label, expected label] of each class of (N,) labels; empty where it is not one to one."""
    if labels.ndim != 1:
        return []
    pairs = np.unique(np.stack([labels, expected], axis=1), axis=0)
    one_to_one = len(np.unique(pairs[:, 0])) == len(pairs) == len(np.unique(pairs[:, 1]))
    return pairs.tolist() if one_to_one else []


def feature_files_of(checkpoint: dict, path: Path, given: Sequence[str | None]
                     ) -> list[str | None]:
    """For each source its file of features, `given` or of stage 1; None where images are used.

    Args:
        checkpoint: of stage 1.
        path: where it lies, for messages.
        given: --features1 and --features2.
    Raises:
        InputError: a file is given for a source that had none, or is not there any more.
    """
    files = checkpoint["features"].get("files", [None, None])
    kinds = [type(file) for file in files] if isinstance(files, list | tuple) else []
    if len(kinds) != 2 or not set(kinds) <= {str, type(None)}:
        raise InputError(f"{path}: its files of features are {str(files)[:80]}, expected two names")
    for number, (new, old) in enumerate(zip(given, files, strict=True), start=1):
        if new is not None and old is None:
            raise InputError(f"--features{number} {new} contradicts {path}, which has no file of "
                             f"features for source {number}: leave the flag out")
        if new is None and old is not None and not resolve_path(old).is_file():
            raise InputError(f"{path} was made from the features {old}, which are not there now: "
                             f"name their new place with --features{number}")
    return [new or old for new, old in zip(given, files, strict=True)]
