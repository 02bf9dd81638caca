"""The ground floor: errors that people can mend, paths, seeds, devices, rates, progress."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import math
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent
LARGEST_SIDE = 2048  # pixels of an image: it takes a backbone seconds, not hours


class InputError(ValueError):
    """Something the user can mend. The message is one sentence: found, expected, what to do."""


# ---------------------------------------------------------------- words


def world_size() -> int:
    """How many processes torchrun started; 1 without it."""
    # All that torchrun sets, because other programs set one or the other.
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return int(os.environ["WORLD_SIZE"]) if all(map(os.environ.get, names)) else 1


def rank() -> int:
    """This process's number among those that torchrun started, from 0."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def warn(text: str) -> None:
    """One line on stderr, from the first rank alone."""
    if not rank():
        print(f"warning: {text}", file=sys.stderr)


@functools.cache
def warn_once(text: str) -> None:
    """As `warn`, but what was said before in this process is not said again."""
    warn(text)


@functools.cache
def print_once(text: str) -> None:
    """Print a line that was not printed before in this process."""
    print(text)


def collapse_warning(constant: int, hash_bit: int) -> str:
    """What to say of `constant` bits that are the same for all images, and an advice."""
    found = f"{constant} of {hash_bit} bits are the same for all images and tell nothing"
    if constant == hash_bit:
        found = (f"all {hash_bit} bits are the same for all images, so that nothing can be ranked")
    return f"{found}: use fewer --hash_bit or more --n_clusters"


def warn_of_boxes(characters: str) -> None:
    """A warning where names hold characters that no font here can draw."""
    if characters:
        shown = characters[:10] + ("..." if len(characters) > 10 else "")
        warn(f"no font of this machine has {shown}: names show boxes for it; install a font that "
             "has it, such as Noto Sans CJK for Chinese, and draw again")


def first_few(items: Sequence[Any]) -> str:
    """The first three items and how many more there are, for a message."""
    more = f" and {len(items) - 3:,} more" if len(items) > 3 else ""
    return ", ".join(map(str, items[:3])) + more


def progress(items: Any, description: str, total: int | None = None, initial: int = 0,
             in_bytes: bool = False) -> tqdm:
    """A progress bar on stderr of the first rank.

    Silent when stderr is not a terminal and MRHASH_PROGRESS is unset.

    Args:
        items: to walk over.
        description: before the bar.
        total: how many there are in all.
        initial: how many were done before.
        in_bytes: whether `total` counts bytes.
    """
    unit = {"unit": "B", "unit_scale": True} if in_bytes else {}
    hidden = not (sys.stderr.isatty() or os.environ.get("MRHASH_PROGRESS")) or bool(rank())
    return tqdm(items, desc=description, total=total, initial=initial, disable=hidden,
                leave=False, dynamic_ncols=True, **unit)


# ---------------------------------------------------------------- paths and hashes


def resolve_path(path: str | Path) -> Path:
    """A path as given when absolute, else below the repository root (never the shell's folder).

    Raises:
        InputError: an empty path, or a ~name that is nobody's.
    """
    if str(path) == "":
        raise InputError("an empty path was given: name a file or folder, or leave the flag out")
    try:
        path = Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path} names a home folder that is not there: write the path out"
                         ) from None
    return path if path.is_absolute() else ROOT / path


def sha256_of(*parts: Any) -> str:
    """Hex SHA-256 over strings, bytes and arrays, each part delimited."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            data = np.ascontiguousarray(part).tobytes()
        elif isinstance(part, bytes):
            data = part
        else:
            data = str(part).encode(errors="surrogateescape")  # names of files that are no text
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


# ---------------------------------------------------------------- seeds and rates


def seed_everything(seed: int) -> None:
    """Seed random, numpy, torch and cuda with seed, +1, +2, +3: the published 13, 14, 15, 16."""
    random.seed(seed)
    np.random.seed((seed + 1) % 2**32)  # noqa: NPY002 - scipy and others may draw from it
    torch.manual_seed(seed + 2)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed + 3)


def epoch_seed(*words: int) -> int:
    """One seed of several whole numbers, such as the run's and the epoch's.

    So epoch e draws the same numbers in a fresh and in a resumed run.
    """
    return int(np.random.SeedSequence(words).generate_state(1, np.uint32)[0])


def step_decay(lr: float, epoch: int, factor: float, every: int) -> float:
    """The learning rate of `epoch` (from 0): multiplied by `factor` every `every` epochs."""
    return lr * factor ** (epoch // every)


def cosine_decay(lr: float, epoch: int, count: int) -> float:
    """The learning rate of `epoch` (from 0) of `count`: from lr to 0 along half a cosine."""
    left = (count - epoch) / count
    return lr * (1 + math.cos(math.pi * (1 - left))) / 2


def set_rates(optimizer: torch.optim.Optimizer, *rates: float) -> None:
    """Give each group of parameters its learning rate."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


# ---------------------------------------------------------------- devices


def setup_device(name: str) -> torch.device:
    """Find a device and make it ready.

    On CUDA, cuDNN searches for its fastest convolutions, and each rank that torchrun starts takes
    a card of its own. On a CPU, memory that is freed is kept.

    Args:
        name: auto takes cuda, then mps, then cpu; anything else is what torch calls it.
    Raises:
        InputError: a device that is unknown or not there.
    """
    if name == "auto":
        name = ("cuda" if torch.cuda.is_available() else
                "mps" if torch.backends.mps.is_available() else "cpu")
    if name == "cuda" and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        name = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
        torch.cuda.set_device(name)
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # which the device `meta`, without memory, cannot do
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"--device {name} cannot be used here; use auto, cpu, cuda, cuda:0 "
                         "or mps, as your torch and machine allow") from None
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # batches keep their shape, so the search pays
    elif device.type == "cpu":
        _keep_freed_memory()
    return device


def _keep_freed_memory() -> None:
    """Have the C library keep what tensors free, as torch itself does on a card.

    Otherwise it gives every large tensor back to the system and gets the next one page by page,
    each of which is cleared, layer by layer. Only glibc knows how; whoever sets MALLOC_MMAP_MAX_
    decides. The numbers are in docs/scale.md.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of glibc's malloc.h
    if sys.platform == "linux" and "MALLOC_MMAP_MAX_" not in os.environ:
        with contextlib.suppress(OSError, AttributeError):
            set_malloc = ctypes.CDLL(None).mallopt
            set_malloc(mmap_max, 0)
            set_malloc(trim_threshold, -1)


def autocast(device: torch.device, enabled: bool) -> torch.autocast:
    """bfloat16 autocast on `device` when `enabled` (no loss scaling needed, unlike float16)."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
