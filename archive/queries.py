"""What an archive is asked, and what it answers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from archive.folder import Archive
from archive.images import ImagesOf
from archive.items import Item, printable
from archive.model import HashModel
from archive.reading import Reading
from datasets.store import ahead, unreadable_because
from imagery.places import Corners, boxes_around, centre_of, contains, distance_km
from utils import InputError, first_few

RERANKED = 100  # nearest items that are ordered anew


@dataclass(frozen=True)
class Query:
    """An image that others are compared with.

    name: what it is called. code: packed, uint8 (ceil(K/8),). output: of the hash network, float
    (K,); None: the item's. number: of the item that it is, or None. corners: its footprint, or
    None. pixels: uint8 (H, W, C) of a file; None: the item's.
    """

    name: str
    code: np.ndarray
    output: np.ndarray | None = None
    number: int | None = None
    corners: Corners | None = None
    pixels: np.ndarray | None = None


@dataclass(frozen=True)
class Answer:
    """The nearest items to a query, nearest first.

    numbers: int64 (k,). distances: int32 (k,), bits. items: k of them. ties: how many items share
    the last distance; of those, as many as fit are in the answer. cosines: float (k,), of real
    outputs, by which the items are ordered, or None. among: how many items were compared.
    """

    query: Query
    numbers: np.ndarray
    distances: np.ndarray
    items: list[Item]
    ties: int
    among: int
    cosines: np.ndarray | None = None

    def remark(self) -> str:
        """On ties, where the cut goes through them; else empty."""
        if self.cosines is not None or not len(self.distances):
            return ""
        shown = int((self.distances == self.distances[-1]).sum())
        if shown == self.ties:
            return ""
        return (f"{self.ties:,} items share the last distance, {self.distances[-1]}, of which the "
                f"{shown:,} that were added first are shown")


# ---------------------------------------------------------------- queries


def queries_of_files(paths: Sequence[Path], model: HashModel, reading: Reading) -> list[Query]:
    """Image files, hashed. Raises InputError that names those that cannot be read."""
    for path in paths:
        if not path.is_file():
            raise InputError(f"--query {path} is no file: name image files")
    compute = model.compute
    loaded = ahead(lambda path: _load(path, reading), paths, compute.workers, compute.batch_size)
    queries, failed = [], []
    while batch := list(itertools.islice(loaded, compute.batch_size)):
        found = [one for one in batch if not isinstance(one, str)]
        failed += [one for one in batch if isinstance(one, str)]
        if not found:
            continue
        outputs = model.outputs([pixels for _, _, pixels in found])
        for (path, item, pixels), output in zip(found, outputs, strict=True):
            queries.append(Query(printable(path.name), model.codes_of(output[None])[0], output,
                                 corners=item.corners, pixels=pixels))
    if failed:
        raise InputError(f"{len(failed):,} of {len(paths):,} queries cannot be read: "
                         f"{first_few(failed)}")
    return queries


def _load(path: Path, reading: Reading) -> tuple[Path, Item, np.ndarray] | str:
    """An image; or why it cannot be read."""
    images = ImagesOf(path, reading)
    if len(images) != 1:
        raise InputError(f"--query {path} holds {len(images):,} images: name image files")
    try:
        return path, *images.load(0)
    except Exception as error:
        return f"{path} ({unreadable_because(error)})"


def queries_of_names(archive: Archive, names: Sequence[str]) -> list[Query]:
    """Items of the archive by their names. Raises InputError: there is none of that name."""
    found = archive.items.known("name", names)
    for name in names:
        if name not in found:
            raise no_item_called(archive, name)
    return [_of_number(archive, found[name]) for name in names]


def no_item_called(archive: Archive, name: str) -> InputError:
    """What to say of a name that no item has."""
    like = archive.items.like(name)
    hint = f"; it has {', '.join(like)}" if like else ""
    return InputError(f"no item of {archive.folder} is called {name}{hint}")


def query_at(archive: Archive, latitude: float, longitude: float) -> Query:
    """The item that lies at a place; of several the one whose centre is nearest.

    Raises:
        InputError: no item lies there, or none has a place.
    """
    meridians = (-180.0, 180.0) if abs(longitude) == 180 else (longitude,)
    numbers = archive.items.in_boxes([(meridian, meridian, latitude, latitude)
                                      for meridian in meridians])
    items = archive.items.of_numbers(numbers)
    there = [number for number, item in items.items()
             if contains(item.corners, latitude, longitude)]
    if not there:
        extent, why = archive.items.extent(), "none has a place, which GeoTIFFs with a CRS bring"
        if extent is not None:
            west, east, south, north = extent
            why = (f"they lie between the latitudes {south:.2f} and {north:.2f} and the longitudes "
                   f"{west:.2f} and {east:.2f}")
        raise InputError(f"no item of {archive.folder} lies at LAT,LON {latitude},{longitude}: "
                         f"{why}")
    nearest = min(there, key=lambda number: (
        distance_km(latitude, longitude, centre_of(items[number].corners)), number))
    return _of_number(archive, nearest)


def _of_number(archive: Archive, number: int) -> Query:
    item = archive.items.of_numbers([number])[number]
    return Query(item.name, np.array(archive.codes[number]), None, number, item.corners)


# ---------------------------------------------------------------- answers


def answers_to(archive: Archive, queries: Sequence[Query], top: int,
               within: tuple[float, tuple[float, float] | None] | None = None,
               rerank: bool = False) -> Iterator[Answer]:
    """What is nearest to each query; an item is not among its own neighbours.

    Args:
        archive: to search.
        queries: what for.
        top: how many items each.
        within: only items whose centre is within so many kilometres of (latitude, longitude), or
            of the query's own centre where that is None; None: all items.
        rerank: order the RERANKED nearest by the cosine of their outputs.
    Raises:
        InputError: a query without a place, or outputs that were not kept.
    """
    if rerank and not archive.keeps_outputs:
        raise InputError(f"{archive.folder} has no outputs to rank by: it was begun without "
                         "--keep_outputs")
    for query in queries:
        among = None if within is None else _within(archive, query, *within)
        k = max(top, RERANKED) if rerank else top
        numbers, distances, ties, count = _nearest(archive, query, k, among)
        cosines = None
        if rerank:
            output = archive.outputs[query.number] if query.output is None else query.output
            cosines = _cosines(output.astype(np.float32),
                               archive.outputs[numbers].astype(np.float32))
            order = np.lexsort((numbers, distances, -cosines))[:top]
            numbers, distances, cosines = numbers[order], distances[order], cosines[order]
        items = archive.items.of_numbers(numbers.tolist())
        yield Answer(query, numbers, distances, [items[number] for number in numbers.tolist()],
                     ties, count, cosines)


def _within(archive: Archive, query: Query, km: float, around: tuple[float, float] | None
            ) -> np.ndarray:
    """Numbers of the items whose centre is so near, int64, in order."""
    if around is None:
        if query.corners is None:
            raise InputError(f"{query.name} has no place, so nothing lies within {km:g} km of it: "
                             "say with --around LAT,LON where to search")
        around = centre_of(query.corners)
    numbers = archive.items.in_boxes(boxes_around(*around, km))
    items = archive.items.of_numbers(numbers)
    return np.array([number for number in numbers
                     if distance_km(*around, centre_of(items[number].corners)) <= km], np.int64)


def _nearest(archive: Archive, query: Query, k: int, among: np.ndarray | None
             ) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Numbers, distances, ties at the last distance, and how many items were compared."""
    count = len(archive) if among is None else len(among)
    own = query.number is not None and (among is None or query.number in among)
    found, distances, ties = archive.nearest(query.code[None], k + own, among)
    found, distances, ties = found[0], distances[0], int(ties[0])
    if not own:
        return found, distances, ties, count
    # The item itself is at distance 0. Where many others are, too, it may lie behind the cut.
    others = np.flatnonzero(found != query.number)[:k]
    last = distances[others[-1]] if len(others) else -1
    if last != distances[-1]:  # then all items at that distance were found
        ties = int((distances == last).sum())
    return found[others], distances[others], ties - (last == 0), count - 1


def _cosines(output: np.ndarray, others: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(output) * np.linalg.norm(others, axis=1)
    return (others @ output) / np.maximum(norms, 1e-12)
