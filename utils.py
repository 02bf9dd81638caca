"""What every script needs: errors as sentences, seeds, devices, progress, locks, atomic files.

A script ends with `sys.exit(run(main))`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import hashlib
import io
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch
from tqdm import tqdm

from distributed import all_ranks, number_of_ranks, rank
from hamming import CodeError

ROOT = Path(__file__).resolve().parent
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


class InputError(ValueError):
    """Something the user can mend. The message is one sentence: found, expected, what to do."""


class Stopped(KeyboardInterrupt):
    """A signal asked the script to end; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


at_end = contextlib.ExitStack()  # what a script holds until it ends: locks, handlers of signals


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where it says something: not None, not the False of a switch."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """argparse with defaults in the help and one clear line, exit code 2, for a bad flag."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", HelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)

    def error(self, message: str) -> None:
        # Of several ranks, which all have the same flags, one says it.
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n" if not rank() else None)


MOST = 2**31 - 1  # of any whole number on the command line; no image, epoch or unit is beyond it


def positive_int(text: str) -> int:
    """argparse type: an integer of at least 1."""
    value = int(text)
    if not 1 <= value <= MOST:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def non_negative_int(text: str) -> int:
    """argparse type: an integer of at least 0."""
    value = int(text)
    if not 0 <= value <= MOST:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number >= 0")
    return value


def non_negative_float(text: str) -> float:
    """argparse type: a float from 0 to a billion: rates and weights of losses."""
    value = float(text)
    if not 0 <= value <= 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not a number >= 0, or beyond all reason")
    return value


def finite_float(text: str) -> float:
    """argparse type: a float that float32 can hold, with room."""
    value = float(text)
    if not abs(value) < 1e30:
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


LARGEST_SIDE = 2048  # pixels of an image: it takes a backbone seconds, not hours


def image_side(text: str) -> int:
    """argparse type: the side of an image in pixels, 1 to LARGEST_SIDE."""
    value = int(text)
    if not 1 <= value <= LARGEST_SIDE:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 to {LARGEST_SIDE}")
    return value


def epoch_number(text: str) -> int:
    """argparse type: the number of an epoch, or -1 for none."""
    value = int(text)
    if not -1 <= value <= MOST:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number >= -1")
    return value


def share(text: str) -> float:
    """argparse type: a float of at least 0 and below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to below 1")
    return value


def positive_float_or_auto(text: str) -> float | None:
    """argparse type: a finite float above 0, or auto, which gives None."""
    if text == "auto":
        return None
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not auto or a number above 0")
    return value


def run(main: Callable[[], None], resumable: bool = False, shared: bool = False) -> int:
    """Call `main`; turn what the user can mend into one line on stderr and exit code 2.

    shared: whether the ranks that torchrun starts share the work; other scripts are not for torchrun.
    Returns 0, 2 (bad input, or the system refused a file), or 128 and the number of the signal that stopped it: 130
    for Ctrl-C (a `resumable` script then says how to go on).
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text
    try:
        if number_of_ranks() > 1 and not shared:
            raise InputError(f"{Path(sys.argv[0]).name} is one process: start it without torchrun")
        with all_ranks():
            main()
    except (InputError, CodeError) as error:
        text = " ".join(str(error).split())
    except OSError as error:
        text = _sentence(error)
    except torch.OutOfMemoryError:
        text = "the device is out of memory: lower --batch_size or --image_size, or try --amp"
    except MemoryError:
        text = "the memory of this machine is not enough: lower --batch_size or --image_size, or use fewer images"
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # of torch, for main memory
            raise
        text = "the memory of this machine is not enough: lower --batch_size or --image_size, or use fewer images"
    except KeyboardInterrupt as error:
        print("interrupted" + ("; the same command with --resume goes on from what was saved" if resumable else ""),
              file=sys.stderr)
        return 128 + getattr(error, "number", signal.SIGINT)
    else:
        return 0
    finally:
        at_end.close()
    print(f"error: {text}" if not rank() else f"rank {rank()}: error: {text}", file=sys.stderr)
    return 2


def _sentence(error: OSError) -> str:
    """What the system said, which file it is about, and what to do."""
    file = f"{error.filename}: " if error.filename else ""
    advice = {errno.ENOSPC: "free some space", errno.EDQUOT: "free some of your quota",
              errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
              errno.EACCES: "ask for the right to, or name another place",
              errno.EROFS: "name another place"}.get(error.errno)
    reason = " ".join((error.strerror or str(error)).split())
    return f"{file}{reason[:1].lower()}{reason[1:]}" + (f" ({advice})" if advice else "")


def warn(text: str) -> None:
    """One line on stderr, from the first rank alone."""
    if not rank():
        print(f"warning: {text}", file=sys.stderr)


def collapse_warning(constant: int, hash_bit: int) -> str:
    """What to say of `constant` bits that are the same for all images, and the beginning of an advice."""
    found = (f"all {hash_bit} bits are the same for all images, so that nothing can be ranked" if constant == hash_bit
             else f"{constant} of {hash_bit} bits are the same for all images and tell nothing")
    return f"{found}: use fewer --hash_bit or more --n_clusters"


def first_few(items: Sequence[Any]) -> str:
    """The first three items and how many more there are, for a message."""
    more = f" and {len(items) - 3:,} more" if len(items) > 3 else ""
    return ", ".join(map(str, items[:3])) + more


def resolve_path(path: str | Path) -> Path:
    """A path as given when absolute, else below the repository root (never the shell's folder)."""
    if str(path) == "":
        raise InputError("an empty path was given: name a file or folder, or leave the flag out")
    try:
        path = Path(path).expanduser()
    except RuntimeError:  # a ~name that is nobody's
        raise InputError(f"{path} names a home folder that is not there: write the path out") from None
    return path if path.is_absolute() else ROOT / path


def seed_everything(seed: int) -> None:
    """Seed random, numpy, torch and cuda with seed, +1, +2, +3: the published 13, 14, 15, 16."""
    random.seed(seed)
    np.random.seed((seed + 1) % 2**32)  # noqa: NPY002 - scipy and others may draw from it
    torch.manual_seed(seed + 2)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed + 3)


def epoch_seed(seed: int, epoch: int) -> int:
    """One seed per epoch, so that epoch e draws the same numbers in a fresh and a resumed run."""
    # An epoch below 0 needs words of its own: SeedSequence takes none that are negative.
    words = [seed, epoch] if epoch >= 0 else [seed, -epoch, 1]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint32)[0])


def step_decay(lr: float, epoch: int, factor: float, every: int) -> float:
    """The learning rate of `epoch` (from 0): multiplied by `factor` every `every` epochs."""
    return lr * factor ** (epoch // every)


def pick_device(name: str) -> torch.device:
    """`auto` takes cuda, then mps, then cpu; anything else is what torch calls it.

    Raises InputError for a device that is unknown or not there.
    """
    if name == "auto":
        name = ("cuda" if torch.cuda.is_available() else
                "mps" if torch.backends.mps.is_available() else "cpu")
    if name == "cuda" and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        # Each rank that torchrun starts on a machine takes another card, in turn if they are too few.
        name = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
        torch.cuda.set_device(name)
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # which the device `meta`, that has no memory, cannot do
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"--device {name} cannot be used here; use auto, cpu, cuda, cuda:0 "
                         "or mps, as your torch and machine allow") from None
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # batches keep their shape, so the search pays
    elif device.type == "cpu":
        _keep_freed_memory()
    return device


def _keep_freed_memory() -> None:
    """Have the C library keep what tensors free for the next ones, as torch itself does on a card.

    Otherwise it gives every large tensor back to the system and gets the next one page by page, each of which is
    cleared, layer by layer. Only glibc knows how; whoever sets MALLOC_MMAP_MAX_ decides. The numbers are in
    docs/scale.md.
    """
    if sys.platform == "linux" and "MALLOC_MMAP_MAX_" not in os.environ:
        with contextlib.suppress(OSError, AttributeError):
            set_malloc = ctypes.CDLL(None).mallopt
            set_malloc(_M_MMAP_MAX, 0)
            set_malloc(_M_TRIM_THRESHOLD, -1)


def warn_of_slow_bfloat16(device: torch.device) -> None:
    """Say so where a CPU has no arithmetic for bfloat16 and imitates it, which takes many times as long."""
    if device.type != "cpu":
        return
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        square, times = torch.ones(384, 384, dtype=dtype), []
        for _ in range(4):  # the first one starts the library
            started = time.perf_counter()
            square @ square
            times.append(time.perf_counter() - started)
        seconds[dtype] = min(times[1:])
    slower = seconds[torch.bfloat16] / seconds[torch.float32]
    if slower > 1.5:
        warn(f"--amp: this processor takes {slower:.0f} times as long for products in bfloat16 as in float32: leave it "
             "out here")


def autocast(device: torch.device, enabled: bool) -> torch.autocast:
    """bfloat16 autocast on `device` when `enabled` (no loss scaling needed, unlike float16)."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def progress(items: Any, description: str, total: int | None = None) -> tqdm:
    """A progress bar on stderr; silent when stderr is not a terminal and MRHASH_PROGRESS is unset.

    Of the ranks that torchrun starts, only the first shows it.
    """
    hidden = not (sys.stderr.isatty() or os.environ.get("MRHASH_PROGRESS")) or bool(rank())
    return tqdm(items, desc=description, total=total, disable=hidden, leave=False, dynamic_ncols=True)


# ---------------------------------------------------------------- files


def check_writable(folder: Path, flag: str) -> None:
    """Make `folder` and see that a file can be written there. Raises InputError that names `flag`."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{flag} {folder} is a file, expected a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"?")
    except OSError as error:
        raise InputError(f"{flag} {folder} cannot be written: {_sentence(error)}") from None


@contextlib.contextmanager
def lock(path: Path, taken: str, patient: bool = False) -> Iterator[None]:
    """Hold the file `path` alone; the system lets it go when the process ends, however it ends.

    Args:
        taken: what to say when another process holds it. patient: wait then instead of raising InputError.
    """
    held = filelock.FileLock(path)
    try:
        try:
            held.acquire(timeout=0)
        except filelock.Timeout:
            with contextlib.suppress(OSError):
                holder = path.read_text().strip()  # some versions of filelock empty it as they look
                taken += f" ({holder})" if holder else ""
            if not patient:
                raise InputError(taken) from None
            print(taken)
            held.acquire()
        with contextlib.suppress(OSError):  # for the message above; a full disk does not matter
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        warn(f"{path.parent} lies on a file system without locks: see yourself that no two runs work in it")
    try:
        yield
    finally:
        held.release()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says against writing `path` into an InputError that names it."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename2 = None
        raise InputError(f"{path} could not be written: {_sentence(error)}; what was saved before is whole") from None


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[io.BufferedWriter]:
    """Open a binary file that appears under `path` only when it is whole.

    Written aside in the same folder, flushed, synced, renamed, with the mode a plain open() gives.
    When the body raises, what stood at `path` before stays as it was. Raises InputError when the system
    refuses: a full disk, a folder that is closed to us.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(aside, 0o666 & ~umask)
            rename(Path(aside), path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(aside)
            raise


def rename(aside: Path, path: Path) -> None:
    """Put a whole and synced file where it belongs, in place of the one that stood there, also if power fails now."""
    os.replace(aside, path)
    if os.name == "posix":  # elsewhere folders cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    with atomic_file(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def sha256_of(*parts: Any) -> str:
    """Hex SHA-256 over strings, bytes and arrays, each part delimited."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else (
            np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray)
            else str(part).encode(errors="surrogateescape"))  # names of files that are no text
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()
