"""Files of codes: an .npz, or a folder of .npy files that are memory-mapped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .checks import CodeError
from .codes import as_codes, unpack_codes
from .labels import check_label_type

NEEDED = ("database_codes", "query_codes", "database_labels", "query_labels")
OPTIONAL = ("hash_bit", "class_names")  # names of images may stand beside them
LARGE = 1 << 30  # bytes of an array from which on it is asked how well it was packed


def load_npz(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Some of the arrays of an .npz; nothing is unpickled.

    Args:
        path: the file.
        names: of the arrays that are wanted.
    Returns:
        those that it holds.
    Raises:
        many kinds of errors for a damaged or foreign file: numpy's, zipfile's and zlib's.
    """
    with np.load(path, allow_pickle=False) as archive:
        for member in archive.zip.infolist():
            wanted = member.filename.removesuffix(".npy") in names
            if (wanted and member.file_size > LARGE
                    and member.file_size > 100 * member.compress_size):
                raise ValueError(
                    f"{member.filename[:60]} unpacks from {member.compress_size:,} to "
                    f"{member.file_size:,} bytes, as no array of codes or features does")
        return {name: archive[name] for name in names if name in archive}


def read_codes(path: Path, hash_bit: int | None, threshold: float | None) -> dict[str, Any]:
    """The arrays of a codes file or of a folder of .npy files; nothing in them is unpickled.

    Args:
        path: an .npz, or a folder, whose arrays are memory-mapped.
        hash_bit: what the number of bits must be; None: what the file says.
        threshold: for codes that are not packed; None is 0.
    Returns:
        the arrays, with packed `database_codes` and `query_codes` and `hash_bit` a plain int.
    Raises:
        CodeError: not such a file, an array is missing, the bits differ, or codes or labels of an
            impossible shape or type.
    """
    content: dict[str, Any] = _read_arrays(path)
    missing = [name for name in NEEDED if name not in content]
    if missing:
        raise CodeError(f"{path} has no {', '.join(missing)}: expected {', '.join(NEEDED)}")
    class_names = content.get("class_names")
    if class_names is not None and (class_names.ndim != 1 or class_names.dtype.kind != "U"):
        raise CodeError(f"{path}: class_names are {class_names.dtype} of shape "
                        f"{class_names.shape}, expected one text for each class")
    if "hash_bit" in content:
        hash_bit = _stored_bits(path, content["hash_bit"], hash_bit)
    for part in ("database", "query"):
        codes = content[f"{part}_codes"]
        if codes.dtype.kind in "bu" and threshold is not None:
            raise CodeError(f"--T is for codes of real numbers, and those of {path} are bits "
                            f"({codes.dtype}): leave it out")
        if hash_bit is None and codes.dtype == np.uint8:
            raise CodeError(f"{path} does not say how many bits its codes have: add --hash_bit")
        packed, hash_bit = as_codes(codes, hash_bit, threshold or 0.0, f"{part}_codes")
        # All of them, before anyone looks at a part alone.
        check_label_type(content[f"{part}_labels"], len(codes), f"{part}_labels")
        content[f"{part}_codes"] = packed
    content["hash_bit"] = hash_bit
    return content


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise CodeError(f"no codes at {path}: expected an .npz as written by test.py "
                        "--save_codes, or a folder of .npy files")
    if path.suffix == ".npy":
        raise CodeError(f"{path} is one array: give the folder that holds {', '.join(NEEDED)} as "
                        ".npy files, or an .npz")
    names, place, content = (*NEEDED, *OPTIONAL), path, {}
    try:
        if path.is_dir():
            for name in names:
                place = path / f"{name}.npy"
                if place.is_file():
                    content[name] = np.load(place, mmap_mode="r", allow_pickle=False)
        else:
            content = load_npz(path, names)
        if not all(isinstance(array, np.ndarray) for array in content.values()):
            raise ValueError("an entry is no array")
    except Exception as error:  # numpy, zipfile and zlib raise many kinds
        reason = " ".join(str(error).split(". ")[0].split())
        kind = "a whole .npy" if path.is_dir() else "a whole .npz of plain arrays"
        raise CodeError(f"{place} is not {kind} ({reason})") from None
    return content


def _stored_bits(path: Path, stored: np.ndarray, expected: int | None) -> int:
    """The number of bits that a file says its codes have."""
    if stored.size != 1 or stored.dtype.kind not in "iu":
        raise CodeError(f"{path}: hash_bit is {stored!r}, expected one integer")
    bits = int(stored.reshape(()))
    if expected not in (None, bits):
        raise CodeError(f"--hash_bit {expected} contradicts {path}, which holds {bits} bits")
    return bits


def write_similarity(content: dict[str, Any], file: BinaryIO) -> None:
    """Write the similarity of all pairs as .npy: 1 for equal codes, -1 for opposite ones.

    Args:
        content: as `read_codes` gives it, with N database and Q query codes.
        file: gets float32 (N, Q).
    """
    bits = content["hash_bit"]
    query = _signs(content["query_codes"], bits)
    shape = (len(content["database_codes"]), len(query))
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for start in range(0, shape[0], 4096):
        rows = _signs(content["database_codes"][start : start + 4096], bits)
        file.write((rows @ query.T / bits).astype("<f4").tobytes())


def _signs(codes: np.ndarray, hash_bit: int) -> np.ndarray:
    return 1 - 2 * unpack_codes(codes, hash_bit).astype(np.float32)
