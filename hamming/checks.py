"""Checks that every part of the package uses: arrays, whole numbers, devices."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch

Array = np.ndarray | torch.Tensor


class CodeError(ValueError):
    """Codes, labels or settings that cannot be used; the message says what to do about it."""


def require(condition: Any, message: str) -> None:
    """Raise CodeError with this message unless the condition holds."""
    if not condition:
        raise CodeError(message)


def as_array(values: Any) -> np.ndarray:
    """Anything array-like as a numpy array, a tensor of any device too; else CodeError."""
    try:
        if isinstance(values, torch.Tensor):
            values = values.detach().cpu()
            # numpy has no bfloat16, and float32 holds all of its numbers.
            values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        return np.asarray(values)
    except (ValueError, TypeError) as error:  # rows of unequal length, a sparse tensor
        raise CodeError(f"this is no plain array: {' '.join(str(error).split())}") from None


def whole_number(value: Any, what: str, least: int = 1, most: int = 2**62) -> int:
    """A whole number of any type as int, if it lies within least..most; else CodeError."""
    whole = hasattr(value, "__index__") and not isinstance(value, (Array, bool))
    require(whole, f"{what} is {value!r}, expected a whole number.")
    value = operator.index(value)
    require(value >= least, f"{what} is {value}, expected at least {least}.")
    require(value <= most, f"{what} is {value}, expected at most {most}.")
    return value


def usable_device(device: str | torch.device) -> torch.device:
    """The device if a tensor can be made there and fetched back; else CodeError."""
    try:
        there = torch.zeros(1, device=device)
        there.cpu()
        return there.device
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise CodeError(f"device {device!r} cannot be used ({reason}): try 'cpu'.") from None
