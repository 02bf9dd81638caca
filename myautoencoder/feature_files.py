"""Features that others extracted: the authors' pickles, read without running anything in them, or an .npz.

A file holds {"data": numbers (N, d), "labels": integers (N,)}, its rows in the order of train.txt, then
test.txt. A pickle is a program for a small stack machine that can call any function. Here the standard library
takes the file apart (pickletools) and `_Machine` carries out only the instructions that build plain values,
containers and NumPy arrays (of NumPy 1.x and 2.x, and of Python 2). It calls functions of this file alone, and
anything else is refused by its name. Neither Python's unpickler nor NumPy's sees the file.
"""

from __future__ import annotations

import math
import mmap
import pickletools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_loader import PairedDataset
from hamming.files import load_npz
from utils import InputError


class _Refused(Exception):
    """The file asks for something that is not admitted; the message says for what."""


@dataclass
class _Dtype:
    """A pickled numpy.dtype: `kind` such as "f4" or "U7", `order` "<" or ">"."""

    kind: str
    order: str = "<"

    def set_state(self, state: Any) -> None:
        """state: (version, byte order, ...)."""
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError("a dtype of unknown byte order")
        self.order = state[1]


@dataclass
class _Array:
    """A pickled array or scalar; `value` stays None where it does not hold numbers: its `kind` says what instead."""

    value: np.ndarray | None = None
    kind: str = "nothing"

    def set_state(self, state: Any) -> None:
        """state: (version, shape, dtype, whether column after column, bytes); old ones have no version."""
        shape, dtype, fortran, raw = state[-4:]
        self.fill(raw, dtype, shape, "F" if fortran else "C")

    def fill(self, raw: Any, dtype: Any, shape: Any, order: Any) -> _Array:
        if not isinstance(dtype, _Dtype):
            raise ValueError("an array without a dtype")
        self.kind = dtype.kind
        if re.fullmatch(r"[biuf][1248]", dtype.kind):
            raw = raw.encode("latin1") if isinstance(raw, str) else raw  # a str of Python 2
            values = np.frombuffer(raw, np.dtype(dtype.kind).newbyteorder(dtype.order))
            self.value = values.reshape(shape, order=order if order in ("C", "F") else "C")
        return self


def _dtype(kind: Any, *_: Any) -> _Dtype:
    if type(kind) is not str:
        raise ValueError("a dtype without a name")
    return _Dtype(kind[:20])


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> _Array:
    array = _Array().fill(raw, dtype, shape, order)
    if axes is not None and array.value is not None:  # of NumPy 2.4, for more than two dimensions
        array.value = array.value.transpose(axes)
    return array


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":  # others can unpack a bomb
        raise ValueError("a codec other than latin1")
    return text.encode("latin1")


def _listed(*items: Any) -> list:
    if items and type(items[0]) is not list:
        raise ValueError("a set without a list")
    return items[0] if items else []


@dataclass(frozen=True)
class _Name:
    """What a pickle asks for by name."""

    module: str
    name: str


FUNCTIONS = {("numpy", "dtype"): _dtype, ("_codecs", "encode"): _encode,
             ("collections", "OrderedDict"): lambda: {}}
for _core in ("numpy.core", "numpy._core"):  # NumPy 1.x and 2.x
    FUNCTIONS |= {(f"{_core}.multiarray", "_reconstruct"): lambda *_: _Array(),
                  (f"{_core}.multiarray", "scalar"): lambda dtype, raw: _Array().fill(raw, dtype, (), "C"),
                  (f"{_core}.numeric", "_frombuffer"): _frombuffer}
for _builtins in ("builtins", "__builtin__"):  # Python 3 and 2
    FUNCTIONS |= {(_builtins, "bytes"): lambda: b"", (_builtins, "set"): _listed, (_builtins, "frozenset"): _listed}
NAMES = {*FUNCTIONS, ("numpy", "ndarray")}  # numpy.ndarray is only ever passed to _reconstruct
MARK = object()

VALUES = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
          "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES",
          "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": list}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """Carries out the admitted instructions of a pickle. Sets become lists: nothing here is hashed but texts."""

    def __init__(self, size: int) -> None:
        """size: of the file in bytes. What is copied while reading cannot honestly be twice as much."""
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.left = 2 * size

    def since_mark(self) -> list[Any]:
        items = []
        while (item := self.stack.pop()) is not MARK:
            items.append(item)
        return items[::-1]

    def run(self, file: Any) -> Any:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return self.stack.pop()
            self.step(opcode.name, argument)
        raise EOFError

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in ("PROTO", "FRAME"):
            pass
        elif name in VALUES:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name == "MARK":
            stack.append(MARK)
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self.since_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in TUPLES:
            items = stack[-TUPLES[name]:]
            del stack[-TUPLES[name]:]
            stack.append(tuple(items))
        elif name == "TUPLE":
            stack.append(tuple(self.since_mark()))
        elif name in ("LIST", "FROZENSET"):
            stack.append(self.since_mark())
        elif name == "DICT":
            items = self.since_mark()
            stack.append(self.filled({}, items))
        elif name == "APPEND":
            item = stack.pop()
            self.top(list).append(item)
        elif name in ("APPENDS", "ADDITEMS"):
            items = self.since_mark()
            self.top(list).extend(items)
        elif name == "SETITEM":
            items = [stack.pop(-2), stack.pop()]
            self.filled(self.top(dict), items)
        elif name == "SETITEMS":
            items = self.since_mark()
            self.filled(self.top(dict), items)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self.name(name, argument)
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            if type(function) is not _Name or type(arguments) is not tuple:
                raise _Refused("a call of what is no function")
            if (function.module, function.name) not in FUNCTIONS:
                raise _Refused(f"a call of {function.module}.{function.name}")
            self.pay(arguments)
            stack.append(FUNCTIONS[function.module, function.name](*arguments))
        elif name == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], _Array | _Dtype) or type(state) is not tuple:
                raise _Refused("a state of what is no array")
            self.pay(state)
            stack[-1].set_state(state)
        else:
            raise _Refused(f"the instruction {name}, and only those of arrays and plain containers are admitted")

    def pay(self, values: tuple) -> None:
        """Count the texts that are about to be turned into bytes: the same one could be, a million times."""
        self.left -= sum(len(value) for value in values if type(value) is str)
        if self.left < 0:
            raise _Refused("the same bytes again and again")

    def top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"{kind.__name__} expected")
        return self.stack[-1]

    @staticmethod
    def filled(target: dict, items: list[Any]) -> dict:
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) in (str, int):  # others are of no use here, and hashing them could take for ever
                target[key] = value
        return target

    def name(self, opcode: str, argument: Any) -> None:
        if opcode == "GLOBAL":
            module, _, name = argument.partition(" ")
        else:
            name, module = self.stack.pop(), self.stack.pop()
        if type(module) is not str or type(name) is not str or (module, name) not in NAMES:
            asked = f"{module}.{name}" if type(module) is type(name) is str else "something without a name"
            asked = asked if len(asked) <= 100 else asked[:100] + "..."
            raise _Refused(f"{asked if asked.isprintable() else ascii(asked)}, and only arrays of numbers and plain "
                           "containers are admitted")
        self.stack.append(_Name(module, name))


def read_pickle(path: Path) -> dict[str, np.ndarray]:
    """The arrays `data` and `labels` of a pickled dictionary; nothing in the file is executed.

    Raises:
        InputError: no such pickle, or it asks for anything but arrays and plain containers.
    """
    with open(path, "rb") as file:
        start = file.read(6)
        for magic, kind in ((b"PK", "a zip (an .npz, or of torch.save)"), (b"\x93NUMPY", "an .npy"),
                            (b"\x1f\x8b", "compressed"), (b"\x89HDF", "an HDF5 file")):
            if start.startswith(magic):
                raise InputError(f"{path} is {kind}, expected a pickle, or an .npz named so, of data and labels")
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                found = _Machine(len(content)).run(content)
        except _Refused as error:
            raise InputError(f"{path} was not opened: it asks for {error}") from None
        except OSError:
            raise
        except Exception as error:  # a damaged pickle ends in any of Python's exceptions
            reason = " ".join(str(error)[:500].split())[:120] or type(error).__name__
            raise InputError(f"{path} is not a whole pickle of arrays ({reason})") from None
    if type(found) is not dict or "data" not in found or "labels" not in found:
        what = type(found).__name__.strip("_").lower()
        if type(found) is dict:
            what = "a dictionary of " + (", ".join(ascii(key[:20]) for key in list(found)[:5] if type(key) is str)
                                         or "nothing that has a text for a name")
        raise InputError(f"{path} holds {what}, expected a dictionary of data and labels")
    size = path.stat().st_size
    return {name: _as_array(found[name], size, f"{path}: {name}") for name in ("data", "labels")}


NUMBER = (int, float, bool)


def _as_array(value: Any, size: int, what: str) -> np.ndarray:
    """An array, or a list of numbers, of lists of numbers, or of equally long arrays, of a file of `size` bytes.

    Raises InputError.
    """
    found = type(value).__name__
    if isinstance(value, _Array):
        if value.value is not None:
            return value.value
        found = f"an array of dtype {ascii(value.kind)[1:-1]}"
    elif type(value) in (list, tuple):
        value = [item.value if isinstance(item, _Array) else item for item in value]
        flat = all(type(item) in NUMBER for item in value)
        rows = all(isinstance(item, np.ndarray | list | tuple) for item in value)
        found = "a list of other things than numbers"
        shapes = [item.shape if isinstance(item, np.ndarray) else (len(item),) for item in value] if rows else []
        if sum(map(math.prod, shapes)) > size:
            found = "the same rows again and again"  # each number took at least a byte of the file
        elif len(set(shapes)) > 1:
            found = "a list of rows of different lengths"
        elif flat or (rows and all(isinstance(item, np.ndarray) or all(type(entry) in NUMBER for entry in item)
                                   for item in value)):
            array = np.array(value)
            if array.dtype.kind in "biuf":  # a number too large for 64 bits makes an array of objects
                return array
    raise InputError(f"{what} is no array of numbers but {found}")


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
            content = load_npz(path, ("data", "labels"))
            if len(content) < 2:
                raise ValueError("an array is missing")
        except Exception as error:  # numpy, zipfile and zlib raise many kinds for a damaged or foreign file
            reason = " ".join(str(error).split(". ")[0].split())
            raise InputError(f"{path} is not a whole .npz with data and labels ({reason})") from None
    else:
        content = read_pickle(path)
    data, labels = content["data"], content["labels"]
    if data.ndim != 2 or not data.size or data.dtype.kind not in "fiu":
        raise InputError(f"{path}: data is {data.dtype} of shape {data.shape}, expected numbers (N, d)")
    if labels.dtype.kind not in "biu" or labels.shape[:1] != data.shape[:1] or labels.ndim > 2 or not labels.size:
        raise InputError(f"{path}: labels are {labels.dtype} of shape {labels.shape}, expected one integer for "
                         f"each of the {len(data):,} rows of data")
    if labels.max() > np.iinfo(np.int64).max:
        raise InputError(f"{path}: a label is {labels.max()}, expected the number of a class")
    with np.errstate(over="ignore"):
        data = np.ascontiguousarray(data, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(data).all(axis=1))
    if len(bad):
        raise InputError(f"{path}: {len(bad):,} rows of data are not finite, or too large for float32, first row "
                         f"{bad[0]:,}")
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
            raise InputError(f"{path}: {len(wrong):,} rows have another label than their images, first row {row:,} "
                             f"({dataset.names[rows[row]]}) with {labels[row]} for {expected[row]}: rows "
                             "must be in the order of train.txt, then test.txt, and labels numbered as the columns "
                             "there (without labels there: as the class folders, in alphabetical order)")
    ordered = np.empty((len(dataset.names), data.shape[1]), np.float32)
    ordered[rows] = data
    return ordered
