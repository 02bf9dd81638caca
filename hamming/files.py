"""Files of codes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

LARGE = 1 << 30  # bytes of an array from which on it is asked how well it was packed


def load_npz(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Those of the arrays `names` that an .npz holds; nothing is unpickled. Raises many kinds for another file."""
    with np.load(path, allow_pickle=False) as archive:
        for member in archive.zip.infolist():
            if (member.filename.removesuffix(".npy") in names and member.file_size > LARGE
                    and member.file_size > 100 * member.compress_size):
                raise ValueError(f"{member.filename[:60]} unpacks from {member.compress_size:,} to "
                                 f"{member.file_size:,} bytes, as no array of codes or features does")
        return {name: archive[name] for name in names if name in archive}
