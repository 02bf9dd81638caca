"""Features that others extracted: the authors' pickles, read without running anything in them, or an .npz.

A file holds {"data": numbers (N, d), "labels": integers (N,)}, its rows in the order of train.txt, then
test.txt. A pickle is a program; here it may build plain containers and ask for the few names with which NumPy
(1.x and 2.x) pickles arrays of numbers, and even those are answered by functions of this file, so that no
state from outside reaches NumPy's own unpickling. Any other name is refused, and named.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_loader import PairedDataset
from utils import InputError


class _Refused(Exception):
    """The file asks for something that is not admitted; the message says for what."""


class _Array:
    """What a pickled array, scalar or dtype becomes: `kind` such as "f4", `order` "<" or ">", `value` an array."""

    def __init__(self, kind: str = "", value: np.ndarray | None = None) -> None:
        self.kind, self.order, self.value = kind, "<", value

    def __setstate__(self, state: Any) -> None:
        if self.kind:  # of a dtype: (version, byte order, ...)
            if state[1] not in ("<", ">", "|", "="):
                raise _Refused(f"a dtype of byte order {state[1]!r}")
            self.order = state[1]
        else:  # of an array: (version, shape, dtype, whether column after column, bytes); no version in old ones
            shape, dtype, fortran, raw = state[-4:]
            self.value = _numbers(raw, dtype, shape, "F" if fortran else "C")


def _numbers(raw: Any, dtype: _Array, shape: tuple[int, ...], order: str) -> np.ndarray:
    raw = raw.encode("latin1") if isinstance(raw, str) else raw  # a str of Python 2
    return np.frombuffer(raw, np.dtype(dtype.kind).newbyteorder(dtype.order)).reshape(shape, order=order)


def _admitted() -> dict[tuple[str, str], Callable]:
    """What a file may ask for. Made anew for each file: a pickle can set attributes of what it gets."""
    def reconstruct(*_: Any) -> _Array:
        return _Array()

    def ndarray(*_: Any) -> None:
        raise _Refused("a call of numpy.ndarray")

    def dtype(kind: Any, *_: Any) -> _Array:
        if not isinstance(kind, str) or not re.fullmatch(r"[biuf](1|2|4|8)", kind):
            raise _Refused(f"an array of dtype {kind}, and only numbers are admitted")
        return _Array(kind)

    def scalar(kind: _Array, raw: Any) -> _Array:
        return _Array(value=_numbers(raw, kind, (), "C"))

    def frombuffer(raw: Any, kind: _Array, shape: tuple[int, ...], order: str) -> _Array:
        return _Array(value=_numbers(raw, kind, shape, order))

    def encode(text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise _Refused(f"the codec {encoding}")
        return text.encode("latin1")

    def ordered(*_: Any) -> dict:
        return {}

    names: dict[tuple[str, str], Callable] = {
        ("numpy", "ndarray"): ndarray, ("numpy", "dtype"): dtype, ("_codecs", "encode"): encode,
        ("collections", "OrderedDict"): ordered}
    for core in ("numpy.core", "numpy._core"):  # NumPy 1.x and 2.x
        names |= {(f"{core}.multiarray", "_reconstruct"): reconstruct, (f"{core}.multiarray", "scalar"): scalar,
                  (f"{core}.numeric", "_frombuffer"): frombuffer}
    return names


class _Reader(pickle.Unpickler):
    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="latin1")  # for files of Python 2
        self.admitted = _admitted()

    def find_class(self, module: str, name: str) -> Callable:
        if (module, name) not in self.admitted:
            raise _Refused(f"{module}.{name}, and only arrays of numbers and plain containers are admitted")
        return self.admitted[module, name]


def read_pickle(path: Path) -> dict[str, np.ndarray]:
    """The arrays `data` and `labels` of a pickled dictionary; nothing in the file is executed.

    Raises:
        InputError: no such pickle, or it asks for anything but arrays of numbers and plain containers.
    """
    try:
        with open(path, "rb") as file:
            content = _Reader(file).load()
    except _Refused as error:
        raise InputError(f"{path} was not opened: it asks for {' '.join(str(error).split())[:200]}") from None
    except OSError:
        raise
    except Exception as error:  # a damaged pickle ends in any of Python's exceptions
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path} is not a whole pickle of arrays ({reason})") from None
    if type(content) is not dict or not {"data", "labels"} <= content.keys():
        found = ", ".join(sorted(map(str, content))[:5]) if type(content) is dict else type(content).__name__
        raise InputError(f"{path} holds {found or 'an empty dictionary'}, expected a dictionary of data and labels")
    return {name: _as_array(content[name], f"{path}: {name}") for name in ("data", "labels")}


def _as_array(value: Any, what: str) -> np.ndarray:
    """An array, or a list of numbers or of equally long arrays."""
    if type(value) in (list, tuple):
        value = [item.value if isinstance(item, _Array) else item for item in value]
        if all(type(item) in (int, float, bool) for item in value) or (
                all(isinstance(item, np.ndarray) for item in value) and len({item.shape for item in value}) == 1):
            array = np.array(value)
            if array.dtype.kind in "biuf":  # a number too large for 64 bits makes an array of objects
                return array
    elif isinstance(value, _Array) and value.value is not None:
        return value.value
    raise InputError(f"{what} is no array of numbers")


def read_features(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A feature file, pickle or .npz.

    Returns:
        data, float32 (N, d), finite; labels, int64 (N,), or 0/1 (N, C).
    Raises:
        InputError: not such a file, wrong shapes or types, or values that are not finite.
    """
    if not path.is_file():
        raise InputError(f"no features at {path}: expected a pickle, or an .npz, of data and labels")
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as file:
                content = {name: file[name] for name in ("data", "labels")}
        except Exception as error:  # numpy, zipfile and zlib raise many kinds for a damaged or foreign file
            reason = " ".join(str(error).split(". ")[0].split())
            raise InputError(f"{path} is not a whole .npz with data and labels ({reason})") from None
    else:
        content = read_pickle(path)
    data, labels = content["data"], content["labels"]
    if data.ndim != 2 or not data.size or data.dtype.kind not in "fiu":
        raise InputError(f"{path}: data is {data.dtype} of shape {data.shape}, expected numbers (N, d)")
    if labels.dtype.kind not in "biu" or labels.shape[:1] != data.shape[:1] or labels.ndim > 2:
        raise InputError(f"{path}: labels are {labels.dtype} of shape {labels.shape}, expected one integer for "
                         f"each of the {len(data):,} rows of data")
    with np.errstate(over="ignore"):
        data = np.ascontiguousarray(data, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(data).all(axis=1))
    if len(bad):
        raise InputError(f"{path}: {len(bad):,} rows of data are not finite, first row {bad[0]:,}")
    labels = labels.astype(np.int64)
    return data, labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def features_of_lists(path: Path, dataset: PairedDataset) -> np.ndarray:
    """The features of a file, brought from the order of train.txt, test.txt to that of `dataset.names`.

    Returns:
        float32 (N, d).
    Raises:
        InputError: as `read_features`; the dataset was not split by lists; the number of rows or a label does
            not agree with the lists.
    """
    if not dataset.listed:
        raise InputError(f"{path} holds rows in the order of list files: name their folder with --split_dir")
    data, labels = read_features(path)
    rows = np.concatenate([dataset.train, dataset.query])
    if len(data) != len(rows):
        raise InputError(f"{path} has {len(data):,} rows, expected {len(dataset.train):,} of train.txt and then "
                         f"{len(dataset.query):,} of test.txt (the whole lists: leave out --max_per_class)")
    lacking = np.setdiff1d(dataset.database, rows)
    if len(lacking):
        raise InputError(f"{path} has features of train.txt and test.txt only, and {len(lacking):,} images of "
                         f"database.txt are in neither, first {dataset.names[lacking[0]]}")
    if dataset.labels is not None:
        expected = dataset.labels[rows].astype(np.int64)
        if labels.shape != expected.shape:
            raise InputError(f"{path}: labels have shape {labels.shape}, those of the lists {expected.shape}")
        wrong = np.flatnonzero((labels != expected).reshape(len(rows), -1).any(axis=1))
        if len(wrong):
            row = wrong[0]
            raise InputError(f"{path}: {len(wrong):,} rows have another label than the lists, first row {row:,} "
                             f"({dataset.names[rows[row]]}) with {labels[row]} for {expected[row]}: rows and "
                             "numbers must be those of train.txt, then test.txt")
    ordered = np.empty((len(dataset.names), data.shape[1]), np.float32)
    ordered[rows] = data
    return ordered
