"""Images -> codes -> archive, on one process or on those that torchrun starts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from archive.folder import Archive
from archive.images import Pictures
from archive.items import Item
from archive.model import HashModel
from datasets.rasters import TooLarge
from datasets.store import SAMPLE, ahead, resized, unreadable_because, warn_if_flat
from engine.distributed import gathered
from engine.preprocessing import Preprocessing
from utils import InputError, first_few, progress, rank, warn, world_size

FLAT = ("images of 16 bits, whose numbers fill a part of the range, can be stretched, all alike, "
        "by --range 2%,98%", "see that these are images; search.py remove takes them out")
LARGE = 4  # times what the network sees: such an image is many scenes in one
NAMED = 5  # images that are not added, in a message
AHEAD = 2  # batches of images that are read before they are asked for


@dataclass
class Report:
    """What became of images.

    added, known, empty: how many are new, were there already, or have no data. twins: of the known
    ones those that are called otherwise in the archive. failed: who is not added, and why.
    """

    added: int = 0
    known: int = 0
    empty: int = 0
    twins: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def lines(self) -> str:
        """For the user."""
        rate = f" ({self.added / self.seconds:,.0f} a second)" if self.seconds > 1 else ""
        text = f"added {self.added:,} images in {self.seconds:,.1f} seconds{rate}"
        if self.known:
            text += f"; there already: {self.known:,}"
        if self.twins:
            text += f", of which {len(self.twins):,} under another name ({first_few(self.twins)})"
        if self.empty:
            text += f"; {self.empty:,} tiles are left out, because most of them has no data"
        return text


@dataclass
class _Batch:
    """What one process made of a batch of images."""

    items: list[Item] = field(default_factory=list)
    outputs: np.ndarray | None = None
    known: list[Item] = field(default_factory=list)
    empty: int = 0
    failed: list[str] = field(default_factory=list)
    brightness: list[np.ndarray] = field(default_factory=list)
    large: list[str] = field(default_factory=list)


def add_images(archive: Archive, model: HashModel, sources: Sequence[Pictures]) -> Report:
    """Hash images and add those that are new; within `archive.writing` on rank 0.

    An image is known where its pixels and its place are; one that has the name of another is not
    added, nor is one that cannot be read.

    Args:
        archive: of codes of this model.
        model: also says how many images a batch has, and how many threads decode.
        sources: of the images.
    Returns:
        what became of them; `failed` has a reason for each that is not added.
    """
    report, started = Report(), time.monotonic()
    brightness: list[np.ndarray] = []
    large: list[str] = []
    with progress(None, "hashing", sum(map(len, sources))) as bar:
        for source in sources:
            for batch in _batches(archive, model, source):
                _append(archive, model, batch, report)
                brightness += batch.brightness[:SAMPLE - len(brightness)]
                large += batch.large
                bar.update(len(batch.items) + len(batch.known) + batch.empty + len(batch.failed))
    if brightness and rank() == 0:
        warn_if_flat(np.array(brightness), "what was added", sources[0].reading.value_range, FLAT)
    if large:
        warn(f"{len(large):,} images are more than {LARGE} times as large as what the network "
             f"sees, and have one code each: {first_few(large)}; --tile cuts scenes")
    report.seconds = time.monotonic() - started
    return report


def _batches(archive: Archive, model: HashModel, source: Pictures) -> Iterator[_Batch]:
    """What became of each batch of images, in order, on rank 0; the ranks take them in turn."""
    size = model.compute.batch_size
    starts = range(0, len(source), size)
    own = (index for start in starts[rank()::world_size()]
           for index in range(start, min(start + size, len(source))))
    loaded = ahead(lambda index: _load(source, index, model.views), own,
                   model.compute.workers, AHEAD * size)
    for first in range(0, len(starts), world_size()):
        start = (first + rank()) * size
        part = [next(loaded) for _ in range(start, min(start + size, len(source)))]
        yield from gathered(_hashed(archive, model, part))


def _load(source: Pictures, index: int, views: Preprocessing
          ) -> tuple[Item, np.ndarray] | str | None:
    """An image as the network takes it; or why it cannot be read; or None: it has no data."""
    try:
        loaded = source.load(index)
        if loaded is None:
            return None
        item, pixels = loaded
    except TooLarge as error:
        return f"{source.where(index)} ({error}, with --tile)"
    except Exception as error:
        return f"{source.where(index)} ({unreadable_because(error)})"
    # Here, not with the batch: of large images many wait for their turn.
    return item, resized(pixels, views)


def _hashed(archive: Archive, model: HashModel, part: Sequence[tuple[Item, np.ndarray] | str | None]
            ) -> _Batch:
    batch = _Batch(failed=[one for one in part if isinstance(one, str)],
                   empty=sum(one is None for one in part))
    found = [one for one in part if isinstance(one, tuple)]
    there = archive.items.known("content", [item.content for item, _ in found])
    names = archive.items.known("name", [item.name for item, _ in found])
    new = []
    for item, pixels in found:
        if item.content in there:
            batch.known.append(item)
        elif item.name in names:
            batch.failed.append(_name_taken(item))
        else:
            new.append((item, pixels))
    batch.items = [item for item, _ in new]
    batch.large = [item.name for item, _ in new
                   if min(item.height, item.width) > LARGE * model.views.side]
    if new:
        images = [pixels for _, pixels in new]
        batch.outputs = model.outputs(images)
        batch.brightness = [np.percentile(pixels, (1, 99), method="lower").astype(np.uint8)
                            for pixels in images]
    return batch


def _append(archive: Archive, model: HashModel, batch: _Batch, report: Report) -> None:
    """Add what is new and has a name of its own; on rank 0."""
    report.failed += batch.failed
    report.empty += batch.empty
    contents = archive.items.known("content", [item.content for item in batch.items])
    names = archive.items.known("name", [item.name for item in batch.items])
    chosen, known = [], batch.known
    for place, item in enumerate(batch.items):
        if item.content in contents:  # twice in one batch, or added by another rank
            known.append(item)
        elif item.name in names:
            report.failed.append(_name_taken(item))
        else:
            contents[item.content] = names[item.name] = archive.count + len(chosen)
            chosen.append(place)
    if chosen:
        outputs = batch.outputs[chosen]
        archive.append([batch.items[place] for place in chosen], model.codes_of(outputs), outputs)
    report.added += len(chosen)
    report.known += len(known)
    numbers = archive.items.known("content", [item.content for item in known])
    there = archive.items.of_numbers(list(numbers.values()))
    for item in known:
        name = there[numbers[item.content]].name
        if name != item.name:
            report.twins.append(f"{item.name} is {name}")


def _name_taken(item: Item) -> str:
    return (f"{item.name} of {item.path} (the archive has another image of this name, or this one "
            "read otherwise)")


def check_all_added(report: Report, total: int) -> None:
    """Raise InputError that names images which are not in the archive now."""
    if report.failed:
        count = len(report.failed)
        more = f" and {count - NAMED:,} more" if count > NAMED else ""
        others = "; all others are in the archive" if count < total else ""
        raise InputError(f"{count:,} of {total:,} images are not added: "
                         f"{'; '.join(report.failed[:NAMED])}{more}{others}")
