"""An archive for other programs: faiss, test.py, GIS."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from archive.folder import Archive
from engine.files import atomic_file
from utils import InputError

KINDS = ("flat", "ivf", "multihash")
LEAST_IVF = 1000  # items, below which lists would hold a handful each


def live_codes(archive: Archive) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the items that are there, int64 (N,), and their packed codes, uint8 (N, W)."""
    if archive.numbers is None:
        return np.arange(archive.count), archive.codes
    return archive.numbers, archive.codes[archive.numbers]


def faiss_index(codes: np.ndarray, kind: str, numbers: np.ndarray | None = None) -> Any:
    """A binary index of faiss.

    Args:
        codes: packed, uint8 (N, W). faiss wants whole bytes: a code whose length is no multiple of
            8 is filled up with zeros, which changes no distance.
        kind: flat: compares all, exact. ivf: compares those in the lists of the nearest centres.
            multihash: compares those that share a part of the code, up to one bit.
        numbers: int64 (N,), what faiss is to call the items; None: 0 to N - 1.
    """
    import faiss

    bits, count = codes.shape[1] * 8, len(codes)
    if kind == "flat":
        index = faiss.IndexBinaryFlat(bits)
        if numbers is not None:
            index = faiss.IndexBinaryIDMap2(index)  # which keeps the flat one alive
    elif kind == "ivf":
        centres = faiss.IndexBinaryFlat(bits)
        index = faiss.IndexBinaryIVF(centres, bits, max(1, round(math.sqrt(count))))
        index.own_fields = True
        centres.this.disown()
        index.cp.min_points_per_centroid = 1  # else it warns of archives that are small
        index.train(np.ascontiguousarray(codes[:: max(1, count // 100_000)]))
        index.nprobe = max(1, index.nlist // 16)
    else:
        parts = max(1, bits // 16)
        index = faiss.IndexBinaryMultiHash(bits, parts, bits // parts)
        index.nflip = 1
    codes = np.ascontiguousarray(codes)
    if numbers is None or kind == "multihash":
        index.add(codes)
    else:
        index.add_with_ids(codes, numbers)
    return index


def write_faiss(archive: Archive, path: Path, kind: str) -> None:
    """An index whose items are called by their numbers.

    Raises:
        InputError: too few items for lists, or removed ones with multihash, which cannot name its
            items.
    """
    import faiss

    archive.check_filled()
    numbers, codes = live_codes(archive)
    if kind == "ivf" and len(codes) < LEAST_IVF:
        raise InputError(f"{archive.folder} has {len(codes):,} items, too few for an index of the "
                         f"kind {kind}: use --kind flat, or add more")
    whole = archive.numbers is None
    if kind == "multihash" and not whole:
        raise InputError("an index of the kind multihash names its items 0, 1, 2, .., and items of "
                         f"{archive.folder} were removed: use --kind flat or ivf")
    index = faiss_index(codes, kind, None if whole else numbers)
    with atomic_file(path) as file:
        writer = faiss.PyCallbackIOWriter(file.write)
        faiss.write_index_binary(index, writer)
        del writer  # it writes what it has left when it goes


def write_npz(archive: Archive, path: Path) -> bool:
    """Codes, names and labels as test.py --codes reads them; each item is a query, too.

    Returns:
        whether it has labels: where each item has a class folder.

    Raises:
        InputError: an archive without items.
    """
    archive.check_filled()
    numbers, codes = live_codes(archive)
    names, kinds = [], []
    for _, item in archive.items.all():
        names.append(item.name)
        kinds.append(item.kind)
    content: dict[str, Any] = {"hash_bit": archive.hash_bit, "numbers": numbers}
    content |= {f"{part}_codes": codes for part in ("database", "query")}
    content |= {f"{part}_paths": np.array(names) for part in ("database", "query")}
    if None not in kinds:
        classes = sorted(set(kinds))
        place = {kind: label for label, kind in enumerate(classes)}
        labels = np.array([place[kind] for kind in kinds])
        content |= {f"{part}_labels": labels for part in ("database", "query")}
        content["class_names"] = np.array(classes)
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    with atomic_file(path) as file:
        file.write(buffer.getbuffer())
    return None not in kinds
