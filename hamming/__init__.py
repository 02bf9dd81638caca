"""Binary codes and tie-exact Hamming ranking: packing, distances, histograms, metrics.

K-bit codes have only K + 1 distances, so a Hamming ranking is mostly ties and any sort breaks them
by accident. Here a metric is the expectation over all orders of the tied items (or the best, the
worst, the stable order), in float64 from two small integer tables per query. The file needs numpy
2 and torch and nothing else: copy it and use it alone.

    import hamming
    query = hamming.pack_codes(query_outputs)               # floats (Q, K), bit = value >= 0
    database = hamming.pack_codes(database_outputs)         # floats (N, K)
    print(hamming.evaluate(query, database, query_labels, database_labels, hash_bit=K, R=1000))

    table = hamming.distance_histograms(query, database, query_labels, database_labels, hash_bit=K)
    print(hamming.expected_ap(table, R=1000).mean())        # tables of shards add up with +

Q queries, N database items, K = `hash_bit`. Codes are packed: uint8 (N, ceil(K/8)),
`numpy.packbits` order. Labels are integers (N,), or 0/1 (N, C) where an item may have several;
items that share at least one label are relevant to each other. AP@R divides by the hits within the
top R, as published in this field; `strict` divides by min(R, number relevant). A query that finds
nothing relevant scores 0, and counts in the mean. Arrays may be numpy or torch; none is written
into; a bad one raises CodeError.

Sources: McSherry & Najork, "Computing information retrieval performance measures efficiently in the
presence of tied scores", ECIR 2008; He et al., "Hashing as tie-aware learning to rank", CVPR 2018.
"""

from __future__ import annotations

import contextlib
import math
import operator
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import pairwise
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import torch

if not hasattr(np, "bitwise_count"):
    raise ImportError(f"hamming.py needs numpy 2.0 or newer, this is {np.__version__}")

Array = np.ndarray | torch.Tensor
MAX_BITS = 1024
TIES = ("expected", "stable", "min", "max")


class CodeError(ValueError):
    """Codes, labels or settings that cannot be used; the message says what to do about it."""


def _require(condition: Any, message: str) -> None:
    if not condition:
        raise CodeError(message)


def _array(values: Any) -> np.ndarray:
    try:
        if isinstance(values, torch.Tensor):
            values = values.detach().cpu()
            values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        return np.asarray(values)
    except (ValueError, TypeError) as error:  # rows of unequal length, a sparse tensor
        raise CodeError(f"this is no plain array: {' '.join(str(error).split())}") from None


def _integer(value: Any, what: str, least: int = 1, most: int = 2**62) -> int:
    whole = hasattr(value, "__index__") and not isinstance(value, (Array, bool))
    _require(whole, f"{what} is {value!r}, expected a whole number.")
    value = operator.index(value)
    _require(value >= least, f"{what} is {value}, expected at least {least}.")
    _require(value <= most, f"{what} is {value}, expected at most {most}.")
    return value


def _device(device: str | torch.device) -> torch.device:
    try:
        there = torch.zeros(1, device=device)
        there.cpu()
        return there.device
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise CodeError(f"device {device!r} cannot be used ({reason}): try 'cpu'.") from None


# ------------------------------------------------------------------------ codes and labels


def pack_codes(
    values: Array, threshold: float = 0.0, what: str = "values to pack"
) -> np.ndarray:
    """Binarise values (N, K), 1 <= K <= 1024, and pack them: uint8 (N, ceil(K/8)).

    Floats and signed integers: bit = value >= threshold (the paper's h >= 0). bool and unsigned
    integers are bits already, must be 0 or 1, and ignore the threshold. The trap: 0/1 bits stored
    as floats or *signed* integers are all >= 0, and would all become 1; pass them as uint8 or bool.
    `what` names the values in the message of a CodeError.
    """
    values = _array(values)
    kind, shape = values.dtype.kind, values.shape
    _require(len(shape) == 2 and 1 <= shape[1] <= MAX_BITS,
             f"{what} have shape {shape}, expected (N, K) with K from 1 to {MAX_BITS}.")
    _require(kind in "fiub",
             f"{what} have type {values.dtype}, expected floats, integers or bools.")
    _require(threshold == threshold, "threshold is NaN, expected a number.")
    packed = np.empty((len(values), -(-shape[1] // 8)), np.uint8)
    for start in range(0, len(values), 65536):
        block = values[start : start + 65536]
        _require(kind != "f" or np.isfinite(block).all(),
                 f"{what} contain NaN or infinity, expected finite numbers.")
        largest = block.max() if kind == "u" else 1
        _require(largest <= 1,
                 f"{what}, unsigned, go up to {largest}, expected bits 0 and 1: convert values "
                 "that are not bits to a float or signed type, then the threshold applies.")
        bits = block >= threshold if kind in "fi" else block != 0
        packed[start : start + 65536] = np.packbits(bits, axis=1)
    return packed


def unpack_codes(packed: Array, hash_bit: int) -> np.ndarray:
    """Bits of packed codes: uint8 0/1 (N, hash_bit). Raises CodeError as `check_codes`."""
    return np.unpackbits(check_codes(packed, hash_bit, "packed codes"), axis=1, count=hash_bit)


def check_codes(codes: Array, hash_bit: int, what: str = "codes") -> np.ndarray:
    """Return codes as numpy if they are packed: uint8 (N, ceil(hash_bit/8)), padding bits zero.

    Raises CodeError otherwise; `what` names the codes in the message.
    """
    codes, hash_bit = _array(codes), _integer(hash_bit, "hash_bit", most=MAX_BITS)
    width = -(-hash_bit // 8)
    _require(codes.dtype == np.uint8,
             f"{what} have type {codes.dtype}, expected packed uint8: use pack_codes.")
    _require(codes.ndim == 2 and codes.shape[1] == width,
             f"{what} have shape {codes.shape}, expected (N, {width}) for {hash_bit} bits: check "
             "hash_bit, and pack bits with pack_codes.")
    # packbits fills the last byte up with zeros on the right.
    padding = (1 << 8 * width - hash_bit) - 1
    _require(not padding or not (codes[:, -1] & padding).any(),
             f"{what} have ones beyond bit {hash_bit}: the true hash_bit is larger, or they "
             "are not in numpy.packbits order.")
    return codes


def constant_bits(codes: Array, hash_bit: int) -> int:
    """How many of the K bits are the same in all packed codes (N, W), N > 0; they may be memory-mapped."""
    codes = check_codes(codes, hash_bit)
    ones, all_ones = np.zeros(codes.shape[1], np.uint8), np.full(codes.shape[1], 255, np.uint8)
    for start in range(0, len(codes), 65536):
        block = codes[start : start + 65536]
        ones |= np.bitwise_or.reduce(block, axis=0)
        all_ones &= np.bitwise_and.reduce(block, axis=0)
    return hash_bit - int(unpack_codes((ones & ~all_ones)[None], hash_bit).sum())


def as_codes(
    values: Array, hash_bit: int | None = None, threshold: float = 0.0, what: str = "codes"
) -> tuple[np.ndarray, int]:
    """Anyone's codes (N, ...) as packed codes and their number of bits K.

    uint8 (N, ceil(K/8)) is packed already and needs `hash_bit`; a packed array comes back as it is,
    memory-mapped if it was. Anything else is (N, K) and goes through `pack_codes`: bool or unsigned
    bits, or -1/+1 or real numbers with a threshold. `hash_bit` is only checked then. Raises
    CodeError that names `what`, also where the threshold would turn 0 and 1 into ones alike.
    """
    values = _array(values)
    if hash_bit is not None:
        hash_bit = _integer(hash_bit, "hash_bit", most=MAX_BITS)
    _require(values.ndim == 2, f"{what} have shape {values.shape}, expected (N, bytes) or (N, K).")
    width = values.shape[1]
    if values.dtype == np.uint8:
        _require(hash_bit is not None,
                 f"{what} of type uint8 may be packed or not: say how many bits they have.")
        if width != hash_bit or hash_bit == 1:
            return check_codes(values, hash_bit, what), hash_bit
    _require(hash_bit in (None, width),
             f"{what} have shape {values.shape} and type {values.dtype}, expected (N, {hash_bit}) "
             f"for {hash_bit} bits, or packed uint8.")
    if values.dtype.kind in "fi" and threshold <= 0 and _are_bits(values):
        raise CodeError(
            f"{what} of type {values.dtype} hold nothing but 0 and 1, which are both >= "
            f"{threshold:g}: store bits as uint8 or bool, or set the threshold to 0.5.")
    return pack_codes(values, threshold, what), width


def _are_bits(values: np.ndarray) -> bool:
    """Whether all values are 0 or 1, and some 0; looks no further than the first that is neither.
    """
    zeros = False
    for start in range(0, len(values), 4096):
        block = values[start : start + 4096]
        if ((block != 0) & (block != 1)).any():
            return False
        zeros = zeros or bool((block == 0).any())
    return zeros


def check_labels(labels: Array, n: int, what: str = "labels") -> np.ndarray:
    """Return labels as int64 (n,), or 0/1 labels of any type as bool (n, C); else CodeError."""
    labels = check_label_type(labels, n, what)
    if labels.ndim == 2:
        _require(((labels == 0) | (labels == 1)).all(),
                 f"{what} in two dimensions are not all 0 or 1: class numbers go in (N,).")
        return labels.astype(bool)
    _require(labels.dtype != np.uint64 or not (labels >= 2**63).any(),
             f"{what} go beyond 2^63, expected class numbers of 64 bits with a sign.")
    return labels.astype(np.int64)


def check_label_type(labels: Array, n: int, what: str = "labels") -> np.ndarray:
    """Return labels as numpy if shape and type are possible; reads none. Else CodeError."""
    labels = _array(labels)
    _require(labels.ndim in (1, 2) and len(labels) == n,
             f"{what} have shape {labels.shape}, expected ({n},) or ({n}, C): a row for each code.")
    _require(labels.dtype.kind in ("iu" if labels.ndim == 1 else "biuf"),
             f"{what} of shape {labels.shape} have type {labels.dtype}, expected integers (N,) or "
             "0/1 (N, C).")
    return labels


def smallest_class(labels: Array) -> int:
    """Size of the smallest class that occurs in labels (N,) or 0/1 (N, C): the usual R."""
    labels, sizes = _array(labels), Counter()
    check_label_type(labels, len(labels) if labels.ndim else 1)
    for start in range(0, len(labels), 65536):
        block = labels[start : start + 65536]
        block = check_labels(block, len(block), "labels")
        block = block if block.ndim == 1 else np.nonzero(block)[1]
        sizes.update(dict(zip(*(part.tolist() for part in np.unique(block, return_counts=True)),
                              strict=True)))
    _require(sizes, "labels name no class: expected at least one item with a label.")
    return min(sizes.values())


def _check_kinds(query: np.ndarray, database: np.ndarray) -> None:
    _require(query.shape[1:] == database.shape[1:],
             f"query labels have shape {query.shape} and database labels {database.shape}: "
             "expected (N,) for both, or (N, C) with the same C.")


def _label_tensor(labels: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(labels if labels.ndim == 1 else labels.astype(np.float32)).to(device)


def _share_label(query: torch.Tensor, database: torch.Tensor) -> torch.Tensor:
    """Relevance of labels int64 (B,) and (M,), or float32 0/1 (B, C) and (M, C): bool (B, M)."""
    return query[:, None] == database if query.ndim == 1 else _product(query, database) > 0


# ------------------------------------------------------------------------ distances

# On the CPU a distance is XOR and popcount of whole machine words, some 16 thousand items at a
# time, and a histogram is one bincount of small integers: passes over a few megabytes that stay in
# the cache. Elsewhere it is a product of -1/+1 matrices. Both are exact, so the tables are the same.
_CHUNK = 16384


def _words(rows: np.ndarray) -> np.ndarray:
    """Bytes (N, W) as the fewest machine words, filled up with zeros: unsigned (V, N)."""
    size = next((size for size in (1, 2, 4) if rows.shape[1] <= size), 8)
    count = -(-rows.shape[1] // size)
    padded = np.zeros((len(rows), count * size), np.uint8)
    padded[:, : rows.shape[1]] = rows
    return np.ascontiguousarray(padded.view(f"u{size}").T)


def _label_words(labels: np.ndarray) -> np.ndarray:
    """0/1 labels, bool (N, C), as words (V, N)."""
    return _words(np.packbits(labels, axis=1))


class _Scratch:
    """Arrays that a thread uses again and again: a fresh one costs more than what is done to it."""

    def __init__(self) -> None:
        self._flat: dict[str, np.ndarray] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array of any content; the same name, always of one dtype, is the same memory."""
        size, flat = math.prod(shape), self._flat.get(name)
        if flat is None or len(flat) < size:
            flat = self._flat[name] = np.empty(size, dtype)
        return flat[:size].reshape(shape)


def _keys(query: np.ndarray, database: np.ndarray, start: Any, scratch: _Scratch) -> np.ndarray:
    """`start` + Hamming distances of words (V, B) and (V, M): int16 (B, M), in scratch memory."""
    shape = query.shape[1], database.shape[1]
    different = scratch.array("different", shape, database.dtype)
    count, keys = scratch.array("count", shape, np.uint8), scratch.array("keys", shape, np.int16)
    for some, others in zip(query, database, strict=True):
        np.bitwise_xor(some[:, None], others, out=different)
        start = np.add(np.bitwise_count(different, out=count), start, out=keys)
    return keys


def _share_words(query: np.ndarray, database: np.ndarray, scratch: _Scratch) -> np.ndarray:
    """Relevance of label words (V, B) and (V, M): bool (B, M), in scratch memory."""
    shape = query.shape[1], database.shape[1]
    common = scratch.array("common", shape, database.dtype)
    relevant, more = scratch.array("relevant", shape, bool), scratch.array("more", shape, bool)
    relevant.fill(False)
    for some, others in zip(query, database, strict=True):
        np.bitwise_and(some[:, None], others, out=common)
        np.logical_or(relevant, np.not_equal(common, 0, out=more), out=relevant)
    return relevant


class _Threads:
    """As many threads as torch uses, up to 16, each with scratch memory and a torch of one thread.

    Teams of threads inside every operation would meet at a barrier each time, and wait there for a
    core that another program has taken.
    """

    _starting = threading.Lock()

    def __enter__(self) -> _Threads:
        with self._starting:
            wanted = torch.get_num_threads()
            count = min(16, wanted)  # Python runs between the operations, one thread at a time
            self._scratch = [_Scratch() for _ in range(count)]
            self._pool = ThreadPoolExecutor(count)
            together = threading.Barrier(count)

            def one_thread() -> None:
                torch.get_num_threads()  # has torch set this thread up, which it would do later
                torch.set_num_threads(1)  # for this thread, and for those born from now on
                together.wait(60)

            wait([self._pool.submit(one_thread) for _ in range(count)])
            torch.set_num_threads(wanted)  # for those born from now on
        return self

    def __exit__(self, *_: Any) -> None:
        self._pool.shutdown()

    def each(self, work: Callable[[Any, _Scratch], None], jobs: Sequence[Any]) -> None:
        """Call work(job, scratch) for every job, in no particular order."""
        todo: SimpleQueue[Any] = SimpleQueue()
        for job in jobs:
            todo.put(job)

        def drop_the_rest() -> None:
            with contextlib.suppress(Empty):
                while True:
                    todo.get_nowait()

        def drain(scratch: _Scratch) -> None:
            try:
                with contextlib.suppress(Empty):
                    while True:
                        work(todo.get_nowait(), scratch)
            finally:
                drop_the_rest()

        helpers = [self._pool.submit(drain, scratch) for scratch in self._scratch]
        try:
            for helper in helpers:
                helper.result()
        finally:  # after an error or Ctrl-C: no job may be left with the scratch memory in hand
            drop_the_rest()
            wait(helpers)


def _product(query: torch.Tensor, database: torch.Tensor) -> torch.Tensor:
    # With out=, autocast cannot make this a half-precision product, which is inexact above 256
    # bits. TF32 does no harm to -1, 0 and 1: their products are exact and the sums are kept in
    # float32.
    out = torch.empty(len(query), len(database), device=query.device)
    return torch.mm(query, database.T, out=out)


def _signs(codes: np.ndarray, hash_bit: int, device: torch.device) -> torch.Tensor:
    """Packed codes as float32 -1/+1 (N, K)."""
    bits = torch.from_numpy(np.unpackbits(codes, axis=1, count=hash_bit))
    return bits.to(device).float().mul_(2).sub_(1)


# ------------------------------------------------------------------------ histograms


@dataclass
class Histograms:
    """How many database items, and how many relevant ones, at each distance 0..K from each query.

    `items`, `relevant`: int64 (Q, K+1). Tables of parts of a database add up, for the same queries.
    """

    items: np.ndarray
    relevant: np.ndarray

    def __post_init__(self) -> None:
        self.items, self.relevant = _array(self.items), _array(self.relevant)
        shapes = self.items.shape, self.relevant.shape
        _require(len(shapes[0]) == 2 and shapes[0] == shapes[1],
                 f"histograms have shapes {shapes[0]} and {shapes[1]}, expected (Q, K+1) for both.")

    def __add__(self, other: Histograms) -> Histograms:
        _require(self.items.shape == other.items.shape,
                 f"histograms of shapes {self.items.shape} and {other.items.shape} do not add up: "
                 "count each shard with the same queries and hash_bit.")
        return Histograms(self.items + other.items, self.relevant + other.relevant)


class _WordCounter:
    """Counts on the CPU. A pair's key: row of the query in its block, relevant or not, distance."""

    def __init__(self, codes: np.ndarray, labels: np.ndarray, hash_bit: int, block: int) -> None:
        # Queries sorted by class, and chunks too: what is relevant to a class is then one slice.
        self.single = labels.ndim == 1
        self.order = np.argsort(labels, kind="stable") if self.single else np.arange(len(labels))
        labels = labels[self.order]
        self.codes, self.half = _words(codes[self.order]), hash_bit + 1
        self.table = np.zeros((len(codes), 2 * self.half), np.int64)
        block = min(block, 2**15 // (2 * self.half))  # keys are int16
        self.start = np.arange(0, block * 2 * self.half, 2 * self.half, dtype=np.int16)[:, None]
        if self.single:
            self.classes, row_class = np.unique(labels, return_inverse=True)
        else:
            self.labels = _label_words(labels)
        self.jobs = []
        for first in range(0, len(codes), block):
            rows, runs = slice(first, first + block), []
            if self.single:  # the rows of each class in the block
                these = row_class[rows]
                ends = [*(np.flatnonzero(np.diff(these)) + 1).tolist(), len(these)]
                runs = [(slice(a, b), int(these[a])) for a, b in pairwise([0, *ends])]
            self.jobs.append((rows, runs))

    def add(self, codes: np.ndarray, labels: np.ndarray, threads: _Threads) -> None:
        if self.single:
            if (labels[1:] < labels[:-1]).any():
                order = np.argsort(labels, kind="stable")
                codes, labels = codes[order], labels[order]
            low, high = (np.searchsorted(labels, self.classes, side).tolist()
                         for side in ("left", "right"))
        else:
            label_words = _label_words(labels)
        words = _words(codes)

        def count(job: tuple[slice, list], scratch: _Scratch) -> None:
            rows, runs = job
            table = self.table[rows]
            keys = _keys(self.codes[:, rows], words, self.start[: len(table)], scratch)
            for some, number in runs:
                keys[some, low[number] : high[number]] += self.half
            if not self.single:
                relevant = _share_words(self.labels[:, rows], label_words, scratch)
                shift = scratch.array("shift", relevant.shape, np.int16)
                keys += np.multiply(relevant, np.int16(self.half), out=shift)
            keys = torch.from_numpy(keys.reshape(-1))
            table += torch.bincount(keys, minlength=table.size).numpy().reshape(table.shape)

        threads.each(count, self.jobs)

    def counts(self) -> np.ndarray:
        """int64 (Q, 2 (K+1)): irrelevant items at each distance, then relevant ones."""
        table = np.empty_like(self.table)
        table[self.order] = self.table
        return table


class _ProductCounter:
    """Counts on any device of torch."""

    def __init__(self, codes: np.ndarray, labels: np.ndarray, hash_bit: int, block: int,
                 device: torch.device) -> None:
        self.codes, self.labels = _signs(codes, hash_bit, device), _label_tensor(labels, device)
        self.hash_bit, self.device, bins = hash_bit, device, 2 * (hash_bit + 1)
        # The keys below are whole numbers in float32, exact up to 2^24.
        self.block = min(block, 2**24 // bins)
        self.start = torch.arange(self.block, device=device, dtype=torch.float32)[:, None] * bins
        self.table = torch.zeros(len(codes), bins, dtype=torch.int64, device=device)

    def add(self, codes: np.ndarray, labels: np.ndarray, _: None) -> None:
        signs = _signs(codes, self.hash_bit, self.device)
        labels = _label_tensor(labels, self.device)
        for first in range(0, len(self.table), self.block):
            block = slice(first, first + self.block)
            counts = self.table[block]
            keys = _product(self.codes[block], signs).mul_(-0.5).add_(self.hash_bit / 2)
            keys.add_(_share_label(self.labels[block], labels), alpha=self.hash_bit + 1)
            keys.add_(self.start[: len(counts)])
            counts += torch.bincount(keys.int().view(-1), minlength=counts.numel()).view_as(counts)

    def counts(self) -> np.ndarray:
        return self.table.cpu().numpy()


def _chunks(codes: Any, labels: Any, hash_bit: int, size: int) -> Iterator[tuple[Any, Any]]:
    parts = codes if labels is None else [(codes, labels)]
    _require(isinstance(parts, Iterable) and not isinstance(parts, Array),
             "database labels are missing: give them, or give the database as an iterator of "
             "(codes, labels).")
    for part in parts:
        _require(isinstance(part, (tuple, list)) and len(part) == 2,
                 f"the database yields a {type(part).__name__}, expected pairs (codes, labels).")
        codes, labels = _array(part[0]), _array(part[1])
        # An empty slice checks shapes and types without reading a memory-mapped file.
        check_codes(codes[:0] if codes.ndim else codes, hash_bit, "database codes")
        check_label_type(labels, len(codes), "database labels")
        for start in range(0, len(codes), size):
            chunk = check_codes(codes[start : start + size], hash_bit, "database codes")
            yield chunk, check_labels(labels[start : start + size], len(chunk), "database labels")


@torch.inference_mode()
def distance_histograms(
    query_codes: Array, database_codes: Array | Iterable[tuple[Array, Array]],
    query_labels: Array, database_labels: Array | None, hash_bit: int,
    device: str | torch.device = "cpu",
    query_block: int | None = None, database_chunk: int = _CHUNK,
) -> Histograms:
    """Count items and relevant items at each distance from each query, the same on every device.

    Packed codes (Q, W) and (N, W), labels (Q,) and (N,), or 0/1 (Q, C) and (N, C). The database may
    be memory-mapped, or an iterator of (codes, labels) parts with `database_labels=None`. It is
    read once, `database_chunk` rows at a time, by as many threads as torch uses. Memory: the table,
    48 Q (K+1) bytes while it is made, and for each of query_block x database_chunk pairs (default
    32 x 16384, elsewhere than on the CPU 512 x 16384) some 20 bytes a thread. Nothing grows with N.
    An empty database (N = 0, say a shard) gives zeros.
    """
    hash_bit, device = _integer(hash_bit, "hash_bit", most=MAX_BITS), _device(device)
    query_codes = check_codes(query_codes, hash_bit, "query codes")
    targets = check_labels(query_labels, len(query_codes), "query labels")
    chunk = _integer(database_chunk, "database_chunk")
    on_cpu = device.type == "cpu"
    usual = 32 if on_cpu else 512
    block = usual if query_block is None else _integer(query_block, "query_block")
    data = query_codes, targets, hash_bit, block
    counter = _WordCounter(*data) if on_cpu else _ProductCounter(*data, device)
    with _Threads() if on_cpu else contextlib.nullcontext() as threads:
        for codes, labels in _chunks(database_codes, database_labels, hash_bit, chunk):
            _check_kinds(targets, labels)
            counter.add(codes, labels, threads)
    irrelevant, relevant = np.split(counter.counts(), 2, axis=1)
    return Histograms(irrelevant + relevant, relevant.copy())


# ------------------------------------------------------------------------ explicit rankings


def nearest(
    query_codes: Array, database_codes: Array, hash_bit: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k <= N nearest database items of each query, exact, ties by database index.

    Packed codes (Q, W) and (N, W); a memory-mapped database is read once, in chunks. Runs on the
    CPU. Returns indices int64 (Q, k) and distances int32 (Q, k), nearest first.
    """
    hash_bit = _integer(hash_bit, "hash_bit", most=MAX_BITS)
    query = _words(check_codes(query_codes, hash_bit, "query codes"))
    database_codes = _array(database_codes)
    check_codes(database_codes[:0] if database_codes.ndim else database_codes, hash_bit,
                "database codes")
    k, count = _integer(k, "k", most=len(database_codes)), query.shape[1]
    indices = [np.zeros(0, np.int64)] * count
    distances = [np.zeros(0, np.int16)] * count

    def merge(job: tuple[slice, int, np.ndarray], scratch: _Scratch) -> None:
        rows, first, words = job
        keys = _keys(query[:, rows], words, 0, scratch)
        for row, new in zip(range(count)[rows], keys, strict=True):
            # What comes later in the database must be nearer than the last one to get in.
            limit = distances[row][-1] if len(distances[row]) == k else hash_bit + 1
            closer = np.flatnonzero(new < limit)
            if len(closer):
                both = np.concatenate([distances[row], new[closer]])
                order = np.argsort(both, kind="stable")[:k]
                distances[row] = both[order]
                indices[row] = np.concatenate([indices[row], closer + first])[order]

    with _Threads() as threads:
        for first in range(0, len(database_codes), _CHUNK):
            words = _words(check_codes(database_codes[first : first + _CHUNK], hash_bit,
                                       "database codes"))
            threads.each(merge, [(slice(a, a + 16), first, words) for a in range(0, count, 16)])
    return (np.concatenate([*indices, np.zeros(0, np.int64)]).reshape(count, k),
            np.concatenate([*distances, np.zeros(0, np.int16)]).astype(np.int32).reshape(count, k))


def stable_metrics(
    query_codes: Array, database_codes: Array, query_labels: Array, database_labels: Array,
    hash_bit: int, R: int,
) -> dict[str, np.ndarray]:
    """Metrics of the order of `numpy.argsort(distances, kind="stable")`, each float64 (Q,).

    Inputs as `distance_histograms`, arrays only. `ap` (AP@R, published denominator), `ap_strict`,
    `ap_all` (R = N), `recall` at R, and `precision_at_1`, `_10`, `_100`. Runs on the CPU. Memory
    for each of the N items: the code once more and 8 bytes (3 C with 0/1 labels), and for each
    thread up to 26 bytes.
    """
    hash_bit, R = _integer(hash_bit, "hash_bit", most=MAX_BITS), _integer(R, "R")
    query = _words(check_codes(query_codes, hash_bit, "query codes"))
    words = _words(check_codes(database_codes, hash_bit, "database codes"))
    count, number = query.shape[1], words.shape[1]
    targets = check_labels(query_labels, count, "query labels")
    labels = check_labels(database_labels, number, "database labels")
    _check_kinds(targets, labels)
    _require(number, "there are no database codes, expected at least one.")
    single = labels.ndim == 1
    if not single:
        targets, labels = _label_words(targets), _label_words(labels)
    names = ("ap", "ap_strict", "ap_all", "recall", "precision_at_1", "precision_at_10",
             "precision_at_100")
    table = np.zeros((count, len(names)))

    def rank(row: int, scratch: _Scratch) -> None:
        # Integers of 8 and 16 bits are what numpy sorts by radix, stable and in one or two passes.
        distances = scratch.array("distances", (number,), np.uint8 if hash_bit < 256 else np.int16)
        for first in range(0, number, _CHUNK):
            part = slice(first, first + _CHUNK)
            distances[part] = _keys(query[:, row : row + 1], words[:, part], 0, scratch)
        relevant = (labels == targets[row] if single
                    else _share_words(targets[:, row : row + 1], labels, scratch)[0])
        ranks = np.flatnonzero(relevant[np.argsort(distances, kind="stable")]) + 1
        precisions, total = np.arange(1, len(ranks) + 1) / ranks, max(1, len(ranks))
        hits, *within = np.searchsorted(ranks, [R, 1, 10, 100], side="right").tolist()
        top = precisions[:hits].sum()
        table[row] = (top / max(1, hits), top / min(R, total), precisions.sum() / total,
                      hits / total, *(h / min(k, number)
                                      for h, k in zip(within, (1, 10, 100), strict=True)))

    with _Threads() as threads:
        threads.each(rank, range(count))
    return dict(zip(names, table.T, strict=True))


def ranked_ap(
    relevance: Array, R: int, strict: bool = False, num_relevant: Array | None = None
) -> np.ndarray:
    """AP@R of explicit rankings, relevance bool (Q, at least R, or N): float64 (Q,).

    Divides by the hits within the top R. `strict` divides by min(R, num_relevant), where
    num_relevant (Q,) counts the relevant items of the whole database.
    """
    relevance = _array(relevance)
    _require(relevance.ndim == 2, f"relevance has shape {relevance.shape}, expected (Q, R).")
    _require(not strict or num_relevant is not None,
             "num_relevant is missing: strict AP divides by min(R, num_relevant).")
    relevance = relevance[:, : _integer(R, "R")]
    ranks = np.arange(1, relevance.shape[1] + 1)
    ap, size = np.zeros(len(relevance)), max(1, 2**20 // max(1, len(ranks)))
    for start in range(0, len(relevance), size):
        block = relevance[start : start + size] != 0
        hits = np.cumsum(block, axis=1, dtype=np.float64)
        ap[start : start + size] = (hits / ranks * block).sum(axis=1)
    found = (relevance != 0).sum(axis=1)
    if strict:
        found = np.minimum(len(ranks), _array(num_relevant))
    return ap / np.maximum(found, 1)


def _nearest_first(distances: torch.Tensor, R: int) -> torch.Tensor:
    """Indices (Q, R) of the least of the float32 distances (Q, N), in order, ties by index; all where R > N."""
    if distances.device.type == "mps":  # has no selection among integers of 64 bits
        return distances.sort(stable=True).indices[:, :R]
    # A float's bits, read as an integer, order as the float does; of negative ones the other way round. With the
    # index behind them no two keys are equal, and the R least can be selected: a third of the time of a sort.
    bits = (distances + 0.0).view(torch.int32)  # -0.0 is 0.0
    keys = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long() << 32
    keys |= torch.arange(distances.shape[1], device=distances.device)
    return keys.topk(min(R, distances.shape[1]), largest=False, sorted=True).indices


@torch.inference_mode()
def float_map(
    query: Array, database: Array, query_labels: Array, database_labels: Array, R: int,
    device: str | torch.device = "cpu",
) -> float:
    """mAP@R (published denominator) of real vectors (Q, D), (N, D) by Euclidean distance.

    Ties go by database index. Distances are float32 matrix products of vectors centred on the
    database mean: items whose distances differ by less than float32 rounding may swap places. For
    cosine, normalise the vectors first.
    """
    R, device, query, database = _integer(R, "R"), _device(device), _array(query), _array(database)
    for what, values in (("query", query), ("database", database)):
        _require(values.ndim == 2 and len(values) and values.shape[1:] == query.shape[1:],
                 f"{what} vectors have shape {values.shape}, expected (N, D) with N >= 1, same D.")
        _require(values.dtype.kind in "fiu" and np.isfinite(values).all(),
                 f"{what} vectors ({values.dtype}) are not all finite real numbers.")
    targets = check_labels(query_labels, len(query), "query labels")
    labels = check_labels(database_labels, len(database), "database labels")
    _check_kinds(targets, labels)
    targets, labels = _label_tensor(targets, device), _label_tensor(labels, device)
    # |q - d|^2 ranks as |d|^2 / 2 - q d; centring keeps both terms small, so float32 loses less.
    centre = database.mean(axis=0, dtype=np.float64)
    vectors = torch.from_numpy((database - centre).astype(np.float32)).to(device)
    half_norms = vectors.square().sum(1) / 2
    total, size = 0.0, max(1, 2**22 // len(database))
    for start in range(0, len(query), size):
        block = (query[start : start + size] - centre).astype(np.float32)
        block = torch.from_numpy(block).to(device)
        order = _nearest_first(half_norms - _product(block, vectors), R)
        relevance = _share_label(targets[start : start + size], labels).gather(1, order)
        total += ranked_ap(relevance, R).sum()
    return float(total / len(query))


# ------------------------------------------------------------------------ metrics of histograms


class _Cut(NamedTuple):
    """Histograms cut at R, float64: the groups of ties wholly inside, and the one astride R."""

    items: np.ndarray  # (B, K+1): n of the groups inside, 0 for the others
    relevant: np.ndarray  # (B, K+1): their r
    before: np.ndarray  # (B, K+1): c, the items before them
    hits: np.ndarray  # (B, K+1): h, the hits before them
    n: np.ndarray  # (B,), as all below: the straddling group, 0 where R falls between two groups
    r: np.ndarray
    c: np.ndarray
    h: np.ndarray
    s: np.ndarray  # R - c, the slots of the straddling group inside the cut
    fewest: np.ndarray  # how many of its r hits these slots can hold
    most: np.ndarray
    R: np.ndarray  # min(R, N)
    total: np.ndarray  # relevant items, inside or not


def _cut(items: np.ndarray, relevant: np.ndarray, R: int) -> _Cut:
    ends = np.cumsum(items, axis=1)
    R = np.minimum(R, ends[:, -1])
    inside = ends <= R[:, None]  # True, ..., True, False, ...
    n_in, r_in = np.where(inside, items, 0), np.where(inside, relevant, 0)
    group = inside.sum(axis=1, keepdims=True)
    n, r = (np.take_along_axis(np.pad(table, ((0, 0), (0, 1))), group, axis=1)[:, 0]
            for table in (items, relevant))
    c, h = n_in.sum(axis=1), r_in.sum(axis=1)
    s = R - c
    return _Cut(*(np.asarray(part, np.float64) for part in (
        n_in, r_in, np.cumsum(n_in, axis=1) - n_in, np.cumsum(r_in, axis=1) - r_in,
        n, r, c, h, s, np.maximum(0, s - (n - r)), np.minimum(s, r), R, relevant.sum(axis=1))))


def _each(histograms: Histograms, R: int, metric: Callable[[_Cut], np.ndarray]) -> np.ndarray:
    """A metric of each query (Q,), in blocks of queries so that the float64 tables stay small."""
    R, size = _integer(R, "R"), max(1, 2**18 // histograms.items.shape[1])
    blocks = [slice(a, a + size) for a in range(0, len(histograms.items), size)]
    values = [metric(_cut(histograms.items[b], histograms.relevant[b], R)) for b in blocks]
    return np.concatenate([np.zeros(0), *values])


_HARMONIC = np.cumsum(np.concatenate([[0.0], 1 / np.arange(1.0, 65.0)]))


def _reciprocals(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Sum of 1/i for i in low+1..high, whole numbers of any size, to full relative precision.

    A table up to 64, then H_m = log u + 1/(24 u^2) - 7/(960 u^4) + 31/(8064 u^6) + const, u = m +
    1/2 (DeTemple 1993). A difference of two digammas would lose the digits that c (H_c+n - H_c)
    needs.
    """
    start, end = np.minimum(low, 64).astype(int), np.minimum(high, 64).astype(int)
    low, high = np.maximum(low, 64) + 0.5, np.maximum(high, 64) + 0.5
    a, b = low**-2, high**-2
    tail = (b - a) / 24 - 7 / 960 * (b**2 - a**2) + 31 / 8064 * (b**3 - a**3)
    return _HARMONIC[end] - _HARMONIC[start] + np.log1p((high - low) / low) + tail


def _tied(n: np.ndarray, c: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(one, two): x hits among n tied ranks, after c items with h hits, are expected to add
    one * x + two * x(x-1) to the sum of the precisions at hits.

    Rank c+t is a hit with probability x/n, then (t-1)(x-1)/(n-1) hits are expected before it in the
    group: sum over t of x/n (h + 1 + (t-1)(x-1)/(n-1)) / (c+t), and t-1 = (c+t) - (c+1).
    """
    span = _reciprocals(c, c + n)
    return (h + 1) * span / np.maximum(n, 1), (n - (c + 1) * span) / np.maximum(n * (n - 1), 1)


def _inverse_hits(cut: _Cut) -> tuple[np.ndarray, np.ndarray]:
    """P(h+x > 0) and the sum of P(x)/(h+x) over h+x > 0, x ~ Hypergeometric(n, r, s): both (B,)."""
    mode = np.floor((cut.r + 1) * (cut.s + 1) / (cut.n + 2))
    # Farther than `reach` from the mean lies less than 2 exp(-40) of the mass (Bernstein's
    # inequality, which Hoeffding 1963 carries over to draws without replacement; s or n - s draws
    # deviate alike).
    variance = np.minimum(cut.s, cut.n - cut.s) * cut.r * (cut.n - cut.r)
    variance = variance / np.maximum(cut.n, 1) ** 2
    reach = np.ceil(40 / 3 + np.sqrt((40 / 3) ** 2 + 80 * variance)) + 2
    up, down = np.minimum(cut.most - mode, reach), np.minimum(mode - cut.fewest, reach)
    some, inverse = np.zeros_like(mode), np.zeros_like(mode)
    size = max(1, int(2**18 // (1 + (up + down).max(initial=0))))
    for start in range(0, len(mode), size):
        b = slice(start, start + size)
        n, r, s, h, x = (part[b, None] for part in (cut.n, cut.r, cut.s, cut.h, mode))
        # Weights from the mode outwards, by ratios of neighbours: factorials would cost digits. The
        # ratio at an end of the support is 0, and keeps all that follows at 0.
        above, below = x + np.arange(up[b].max()), x - np.arange(down[b].max())
        hits = h + np.concatenate([x, above + 1, below - 1], axis=1)
        above = (r - above) * (s - above) / ((above + 1) * (n - r - s + above + 1))
        below = below * (n - r - s + below) / ((r - below + 1) * (s - below + 1))
        weight = [np.ones_like(x), np.cumprod(above, axis=1), np.cumprod(below, axis=1)]
        weight = np.concatenate(weight, axis=1)
        weight = np.where(hits > 0, weight, 0) / weight.sum(axis=1, keepdims=True)
        some[b], inverse[b] = weight.sum(axis=1), (weight / np.maximum(hits, 1)).sum(axis=1)
    return some, inverse


def expected_ap(histograms: Histograms, R: int, strict: bool = False) -> np.ndarray:
    """AP@R in expectation over all orders of tied items, exact up to rounding: float64 (Q,).

    The published AP divides by the hits within the top R, which is random where a group straddles
    the cut; the expectation is of the whole ratio. `strict` divides by min(R, number relevant)
    instead. R > N means R = N.
    """

    def metric(cut: _Cut) -> np.ndarray:
        one, two = _tied(cut.items, cut.before, cut.hits)
        inside = (cut.relevant * (one + (cut.relevant - 1) * two)).sum(axis=1)
        one, two = _tied(cut.s, cut.c, cut.h)
        mean = cut.s * cut.r / np.maximum(cut.n, 1)  # E[x], x hits in the s slots
        if strict:
            pairs = mean * (cut.s - 1) * (cut.r - 1) / np.maximum(cut.n - 1, 1)  # E[x(x-1)]
            return (inside + one * mean + two * pairs) / np.maximum(np.minimum(cut.R, cut.total), 1)
        # Given x, AP = (inside + one x + two x(x-1)) / (h+x) = two x + constant + rest / (h+x),
        # where rest = inside - h constant; without a hit, AP = 0. So E[1/(h+x)] is all it takes
        # beyond E[x].
        constant = one - two * (1 + cut.h)
        some, inverse = _inverse_hits(cut)
        return two * mean + constant * some + (inside - cut.h * constant) * inverse

    return _each(histograms, R, metric)


def _run(start: np.ndarray, count: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Sum of the precisions at hits on all of the ranks start+1..start+count, after h hits."""
    return count + (h - start) * _reciprocals(start, start + count)


def best_ap(histograms: Histograms, R: int) -> np.ndarray:
    """Largest AP@R (published denominator) over all orders of tied items: float64 (Q,)."""

    def metric(cut: _Cut) -> np.ndarray:
        inside = _run(cut.before, cut.relevant, cut.hits).sum(axis=1)
        # Hits come first in their group, but how many, x, should the cut hold? AP is a mean of
        # precisions. One hit more appends (h+x+1) / (c+x+1) to them, which never falls with x. Once
        # that raises the mean, so does every hit after it: AP falls, then rises, and is largest at
        # an end.
        return np.maximum(*((inside + _run(cut.c, x, cut.h)) / np.maximum(cut.h + x, 1)
                            for x in (cut.fewest, cut.most)))

    return _each(histograms, R, metric)


def worst_ap(histograms: Histograms, R: int) -> np.ndarray:
    """Smallest AP@R (published denominator) over all orders of tied items: float64 (Q,)."""

    def metric(cut: _Cut) -> np.ndarray:
        inside = _run(cut.before + cut.items - cut.relevant, cut.relevant, cut.hits).sum(axis=1)

        def ap(x: np.ndarray) -> np.ndarray:
            return (inside + _run(cut.R - x, x, cut.h)) / np.maximum(cut.h + x, 1)

        # Hits come last in their group and, x of them, last before the cut. One more goes to rank
        # R-x and gains (h+1) / (R-x), and 1/i at the ranks i = R-x+1..R after it: a gain that grows
        # with x. AP(x+1) is a mean of AP(x) and gain(x). Once gain(x) >= AP(x), AP(x+1) <= gain(x)
        # < gain(x+1) and it goes on rising: AP falls, then rises, and bisection finds the turn.
        low, high = cut.fewest, cut.most
        while (low < high).any():
            x = np.floor((low + high) / 2)
            gain = (cut.h + 1) / np.maximum(cut.R - x, 1) + _reciprocals(cut.R - x, cut.R)
            rises = (gain >= ap(x)) | (low == high)
            low, high = np.where(rises, low, x + 1), np.where(rises, x, high)
        return ap(low)

    return _each(histograms, R, metric)


def chance_ap(histograms: Histograms, R: int) -> np.ndarray:
    """Expected AP@R of a random order, all items tied: float64 (Q,). What any code has to beat."""
    totals = [table.sum(axis=1) for table in (histograms.items, histograms.relevant)]
    # All queries of a class are alike: few different rows.
    rows, row = np.unique(np.stack(totals, axis=1), axis=0, return_inverse=True)
    return expected_ap(Histograms(*(rows[:, part : part + 1] for part in (0, 1))), R)[row.ravel()]


def _expected_hits(cut: _Cut) -> np.ndarray:
    return cut.h + cut.s * cut.r / np.maximum(cut.n, 1)


def recall_at(histograms: Histograms, R: int) -> np.ndarray:
    """Hits in the top R / all relevant items, expected over orders of ties: float64 (Q,)."""
    return _each(histograms, R, lambda cut: _expected_hits(cut) / np.maximum(cut.total, 1))


def precision_at(histograms: Histograms, k: int) -> np.ndarray:
    """Hits in the top k / min(k, N), expected over orders of ties: float64 (Q,)."""
    return _each(histograms, k, lambda cut: _expected_hits(cut) / np.maximum(cut.R, 1))


def precision_curve(histograms: Histograms, ranks: Sequence[int]) -> np.ndarray:
    """`precision_at` every k of `ranks`: float64 (Q, len(ranks))."""
    ranks = np.array([_integer(k, "a rank") for k in ranks], np.float64)
    curves = np.zeros((len(histograms.items), len(ranks)))
    # Hits expected within the top k are linear in k from one end of a group to the next.
    for row, (items, relevant) in enumerate(zip(histograms.items, histograms.relevant,
                                                strict=True)):
        ends, hits = np.cumsum([0, *items]), np.cumsum([0, *relevant])
        curves[row] = np.interp(ranks, ends, hits) / np.clip(ranks, None, max(1, ends[-1]))
    return curves


def precision_recall(histograms: Histograms) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of the items within each Hamming radius 0..K: both float64 (Q, K+1).

    Precision is 0 where there are no items, recall where nothing is relevant.
    """
    items, relevant = (np.cumsum(t, axis=1) for t in (histograms.items, histograms.relevant))
    return relevant / np.maximum(items, 1), relevant / np.maximum(relevant[:, -1:], 1)


def precision_within_radius(histograms: Histograms, radius: int = 2) -> np.ndarray:
    """Relevant items / items at distance <= radius, 0 where there are none: float64 (Q,)."""
    end = _integer(radius, "radius", least=0) + 1
    items, relevant = (t[:, :end].sum(axis=1) for t in (histograms.items, histograms.relevant))
    return relevant / np.maximum(items, 1)


def summarise(
    histograms: Histograms, R: int, ties: str = "expected",
    stable: dict[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """The results of `evaluate`, from (summed) histograms and, for ties="stable", `stable_metrics`.
    """
    _require(ties in TIES, f"ties is {ties!r}, expected one of {', '.join(TIES)}.")
    _require(ties != "stable" or stable is not None,
             "ties is 'stable', which needs more than histograms: give stable_metrics.")
    _require(histograms.items.any(),
             "there are no queries or no database items, expected at least one of each.")
    num_database = int(histograms.items[0].sum())
    worst, best = worst_ap(histograms, R), best_ap(histograms, R)
    if ties == "stable":
        values = dict(stable)
    else:
        values = {"ap_strict": expected_ap(histograms, R, strict=True),
                  "ap_all": expected_ap(histograms, num_database),
                  "recall": recall_at(histograms, R),
                  **{f"precision_at_{k}": precision_at(histograms, k) for k in (1, 10, 100)}}
        values["ap"] = (worst if ties == "min" else best if ties == "max"
                        else expected_ap(histograms, R))
    mean = {name: float(value.mean()) for name, value in values.items()}
    return {
        "hash_bit": histograms.items.shape[1] - 1, "R": int(R), "ties": ties, "map": mean["ap"],
        "map_min": float(worst.mean()), "map_max": float(best.mean()),
        "map_strict": mean["ap_strict"], "map_all": mean["ap_all"],
        "map_chance": float(chance_ap(histograms, R).mean()), "recall": mean["recall"],
        "precision_at": {str(k): mean[f"precision_at_{k}"] for k in (1, 10, 100)},
        "precision_radius2": float(precision_within_radius(histograms, 2).mean()),
        "num_query": len(histograms.items), "num_database": num_database}


def evaluate(
    query_codes: Array, database_codes: Array, query_labels: Array, database_labels: Array,
    hash_bit: int, R: int | None = None, ties: str = "expected", device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Everything in results.json but the seconds, as plain Python numbers (means over queries).

    Inputs as `distance_histograms`, arrays only. R=None is the size of the smallest class in the
    database. `map` follows `ties`: expected | stable | min | max. With stable, map_strict, map_all,
    recall and precision_at are of the stable ranking, too (found on the CPU, whatever the device);
    with min and max they stay expectations. map_min, map_max, map_chance (random order) and
    precision_radius2 are the same for all.
    """
    _require(ties in TIES, f"ties is {ties!r}, expected one of {', '.join(TIES)}.")
    for what, codes in (("query", query_codes), ("database", database_codes)):
        _require(_array(codes).size, f"there are no {what} codes, expected at least one.")
    data = query_codes, database_codes, query_labels, database_labels, hash_bit
    R = smallest_class(database_labels) if R is None else _integer(R, "R")
    histograms = distance_histograms(*data, device=device)
    return summarise(histograms, R, ties, stable_metrics(*data, R) if ties == "stable" else None)
