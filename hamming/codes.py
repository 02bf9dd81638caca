"""Binary codes: packing, unpacking, and checks of what others have packed."""

from __future__ import annotations

import numpy as np

from .checks import Array, CodeError, as_array, require, whole_number

MAX_BITS = 1024
BLOCK = 65536  # rows that are looked at together, so that a memory-mapped array stays on the disk


def pack_codes(
    values: Array, threshold: float = 0.0, what: str = "values to pack"
) -> np.ndarray:
    """Binarise and pack values.

    The trap: 0/1 bits stored as floats or *signed* integers are all >= 0, and would all become 1;
    pass them as uint8 or bool.

    Args:
        values: (N, K), 1 <= K <= 1024. Floats and signed integers give a bit value >= threshold
            (the paper's h >= 0). bool and unsigned integers are bits already, 0 or 1.
        threshold: for floats and signed integers alone.
        what: names the values in the message of an error.
    Returns:
        uint8 (N, ceil(K/8)), in the order of numpy.packbits.
    Raises:
        CodeError: another shape or type, NaN or infinity, unsigned values above 1.
    """
    values = as_array(values)
    kind, shape = values.dtype.kind, values.shape
    require(len(shape) == 2 and 1 <= shape[1] <= MAX_BITS,
            f"{what} have shape {shape}, expected (N, K) with K from 1 to {MAX_BITS}.")
    require(kind in "fiub",
            f"{what} have type {values.dtype}, expected floats, integers or bools.")
    require(threshold == threshold, "threshold is NaN, expected a number.")
    packed = np.empty((len(values), -(-shape[1] // 8)), np.uint8)
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        require(kind != "f" or np.isfinite(block).all(),
                f"{what} contain NaN or infinity, expected finite numbers.")
        largest = block.max() if kind == "u" else 1
        require(largest <= 1,
                f"{what}, unsigned, go up to {largest}, expected bits 0 and 1: convert values "
                "that are not bits to a float or signed type, then the threshold applies.")
        bits = block >= threshold if kind in "fi" else block != 0
        packed[start : start + BLOCK] = np.packbits(bits, axis=1)
    return packed


def unpack_codes(packed: Array, hash_bit: int) -> np.ndarray:
    """Bits of packed codes.

    Args:
        packed: uint8 (N, ceil(K/8)).
        hash_bit: K.
    Returns:
        uint8 (N, K), 0 or 1.
    Raises:
        CodeError: as `check_codes`.
    """
    return np.unpackbits(check_codes(packed, hash_bit, "packed codes"), axis=1, count=hash_bit)


def check_codes(codes: Array, hash_bit: int, what: str = "codes") -> np.ndarray:
    """Codes as numpy, if they are packed codes of this length.

    Args:
        codes: uint8 (N, ceil(K/8)), padding bits zero.
        hash_bit: K.
        what: names the codes in the message of an error.
    Returns:
        the same codes, not copied.
    Raises:
        CodeError: another type or shape, or ones in the padding.
    """
    codes, hash_bit = as_array(codes), whole_number(hash_bit, "hash_bit", most=MAX_BITS)
    width = -(-hash_bit // 8)
    require(codes.dtype == np.uint8,
            f"{what} have type {codes.dtype}, expected packed uint8: use pack_codes.")
    require(codes.ndim == 2 and codes.shape[1] == width,
            f"{what} have shape {codes.shape}, expected (N, {width}) for {hash_bit} bits: check "
            "hash_bit, and pack bits with pack_codes.")
    # packbits fills the last byte up with zeros on the right.
    padding = (1 << 8 * width - hash_bit) - 1
    require(not padding or not (codes[:, -1] & padding).any(),
            f"{what} have ones beyond bit {hash_bit}: the true hash_bit is larger, or they "
            "are not in numpy.packbits order.")
    return codes


def constant_bits(codes: Array, hash_bit: int) -> int:
    """How many of the K bits are the same in all codes, and so tell nothing.

    Args:
        codes: packed, uint8 (N, ceil(K/8)), N > 0; they may be memory-mapped.
        hash_bit: K.
    Raises:
        CodeError: as `check_codes`.
    """
    codes = check_codes(codes, hash_bit)
    ones = np.zeros(codes.shape[1], np.uint8)
    all_ones = np.full(codes.shape[1], 255, np.uint8)
    for start in range(0, len(codes), BLOCK):
        block = codes[start : start + BLOCK]
        ones |= np.bitwise_or.reduce(block, axis=0)
        all_ones &= np.bitwise_and.reduce(block, axis=0)
    differ = ones & ~all_ones
    return hash_bit - int(unpack_codes(differ[None], hash_bit).sum())


def as_codes(
    values: Array, hash_bit: int | None = None, threshold: float = 0.0, what: str = "codes"
) -> tuple[np.ndarray, int]:
    """Anyone's codes as packed codes.

    Args:
        values: uint8 (N, ceil(K/8)) is packed already, needs `hash_bit`, and comes back as it is,
            memory-mapped if it was. Anything else is (N, K) and goes through `pack_codes`: bool or
            unsigned bits, or -1/+1 or real numbers with a threshold.
        hash_bit: K; only checked where the values are not packed.
        threshold: a bit is 1 where a real number is >= threshold.
        what: names the codes in the message of an error.
    Returns:
        packed codes uint8 (N, ceil(K/8)), and K.
    Raises:
        CodeError: another shape or type, and where the threshold would turn 0 and 1 into ones.
    """
    values = as_array(values)
    if hash_bit is not None:
        hash_bit = whole_number(hash_bit, "hash_bit", most=MAX_BITS)
    require(values.ndim == 2, f"{what} have shape {values.shape}, expected (N, bytes) or (N, K).")
    width = values.shape[1]
    if values.dtype == np.uint8:
        require(hash_bit is not None,
                f"{what} of type uint8 may be packed or not: say how many bits they have.")
        if width != hash_bit or hash_bit == 1:
            return check_codes(values, hash_bit, what), hash_bit
    require(hash_bit in (None, width),
            f"{what} have shape {values.shape} and type {values.dtype}, expected (N, {hash_bit}) "
            f"for {hash_bit} bits, or packed uint8.")
    if values.dtype.kind in "fi" and threshold <= 0 and _are_bits(values):
        raise CodeError(
            f"{what} of type {values.dtype} hold nothing but 0 and 1, which are both >= "
            f"{threshold:g}: store bits as uint8 or bool, or set the threshold to 0.5.")
    return pack_codes(values, threshold, what), width


def _are_bits(values: np.ndarray) -> bool:
    """Whether all values are 0 or 1, and some 0."""
    zeros = False
    for start in range(0, len(values), 4096):  # real numbers are found out in the first block
        block = values[start : start + 4096]
        if ((block != 0) & (block != 1)).any():
            return False
        zeros = zeros or bool((block == 0).any())
    return zeros
