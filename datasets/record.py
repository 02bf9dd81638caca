"""What a checkpoint keeps of its images, to say later what has become of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.base import PairedDataset
from utils import InputError

PARTS = {"train": 1, "database": 2, "query": 4}  # bits: an image may train and be in the database


def image_record(dataset: PairedDataset, cache_dir: Path | None) -> dict[str, Tensor]:
    """What `changes` and `other_content` compare.

    Args:
        dataset: N scenes.
        cache_dir: where checksums are remembered; None reads all images.
    Returns:
        int64 (N,) each: hashes of the `names`; `labels`, hashes of the names of the classes (0,
        where there are none); `parts` of the split, as PARTS; `source1`, `source2`, checksums.
    """
    content = {f"source{number}": torch.from_numpy(source.checksums(cache_dir))
               for number, source in enumerate(dataset.sources, 1)}
    return _without_content(dataset) | content


def of_content(record: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The checksums of a record by what they are of: what a resumed run must have begun with."""
    return {name.replace("source", "images of source "): value for name, value in record.items()
            if name.startswith("source")}


def changes(record: Mapping[str, Tensor], dataset: PairedDataset) -> str:
    """How names, labels and split differ from those of a record, in words; empty: they do not.

    Raises:
        InputError: the record is damaged.
    """
    _check(record)
    now = _without_content(dataset)
    common, old, new = np.intersect1d(record["names"].numpy(), now["names"].numpy(),
                                      return_indices=True)
    found = {"added": len(dataset.names) - len(common),
             "removed": len(record["names"]) - len(common),
             "with another label": _differing(record["labels"], now["labels"], old, new),
             "in another part of the split": _differing(record["parts"], now["parts"], old, new)}
    counts = [f"{count:,} {text}" for text, count in found.items() if count]
    return f"of {len(record['names']):,} images {', '.join(counts)}" if counts else ""


def other_content(record: Mapping[str, Tensor], dataset: PairedDataset, cache_dir: Path | None
                  ) -> str:
    """How many images of the same names have another content than in a record; empty: none.

    Raises:
        InputError: the record is damaged, or of other names.
    """
    _check(record)
    if len(record["names"]) != len(dataset.names):
        raise _damaged()
    counts = []
    for number, source in enumerate(dataset.sources, 1):
        if f"source{number}" in record:
            differing = record[f"source{number}"].numpy() != source.checksums(cache_dir)
            if differing.any():
                counts.append(f"{differing.sum():,} of {len(source):,} images of source {number}")
    return " and ".join(counts)


def _without_content(dataset: PairedDataset) -> dict[str, Tensor]:
    parts = np.zeros(len(dataset.names), np.int64)
    for part, bit in PARTS.items():
        parts[getattr(dataset, part)] |= bit
    return {"names": _hashes(dataset.names), "labels": _hashes(_classes(dataset)),
            "parts": torch.from_numpy(parts)}


def _differing(before: Tensor, now: Tensor, old: np.ndarray, new: np.ndarray) -> int:
    if not len(before) or not len(now):  # no labels
        return len(old) if len(before) != len(now) else 0
    return int((before.numpy()[old] != now.numpy()[new]).sum())


def _check(record: Mapping[str, Tensor]) -> None:
    """Raise InputError unless the record has the shapes that `changes` relies on."""
    shapes = {name: value.shape for name, value in record.items()}
    length = shapes.get("names", ())
    whole = len(length) == 1 and {"labels", "parts"} <= shapes.keys()
    for name, value in record.items():
        fits = value.shape == length or (name == "labels" and value.shape == (0,))
        plain = value.dtype == torch.int64 and value.layout == torch.strided
        whole = whole and fits and plain and value.device.type == "cpu"
    if not whole:
        raise _damaged()


def _damaged() -> InputError:
    return InputError("what the checkpoint says of its images is damaged: name a whole one")


def _classes(dataset: PairedDataset) -> list[str]:
    """The name of each image's class; several are joined."""
    if dataset.labels is None:
        return []
    names = np.array(dataset.class_names, dtype=object)
    if dataset.labels.ndim == 1:
        return list(names[dataset.labels])
    return ["\n".join(names[row.astype(bool)]) for row in dataset.labels]


def _hashes(texts: Sequence[str]) -> Tensor:
    """int64 (N,), one a text; a text may hold what is no text."""
    digests = [hashlib.sha256(text.encode(errors="surrogateescape")).digest()[:8]
               for text in texts]
    return torch.from_numpy(np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64))
