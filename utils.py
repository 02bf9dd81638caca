"""What every script needs: errors as sentences, seeds, devices, atomic files, checkpoints, logs, progress.

A script ends with `sys.exit(run(main))`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from distributed import rank
from hamming import CodeError

ROOT = Path(__file__).resolve().parent


class InputError(ValueError):
    """Something the user can mend. The message is one sentence: found, expected, what to do."""


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
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def positive_int(text: str) -> int:
    """argparse type: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def non_negative_int(text: str) -> int:
    """argparse type: an integer of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number >= 0")
    return value


def non_negative_float(text: str) -> float:
    """argparse type: a finite float of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number >= 0")
    return value


def epoch_number(text: str) -> int:
    """argparse type: the number of an epoch, or -1 for none."""
    value = int(text)
    if value < -1:
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


def run(main: Callable[[], None], resumable: bool = False) -> int:
    """Call `main`; turn what the user can mend into one line on stderr and exit code 2.

    Returns 0, 2 (bad input, or the system refused a file), or 130 (Ctrl-C; a `resumable` script then says how
    to go on).
    """
    try:
        main()
    except (InputError, CodeError, OSError) as error:
        text = " ".join(str(error).split())
    except torch.OutOfMemoryError:
        text = "the device is out of memory: lower --batch_size or --image_size, or try --amp"
    except KeyboardInterrupt:
        print("interrupted" + ("; the same command with --resume goes on from the last finished epoch"
                               if resumable else ""), file=sys.stderr)
        return 130
    else:
        return 0
    print(f"error: {text}" if not rank() else f"rank {rank()}: error: {text}", file=sys.stderr)
    return 2


def first_few(items: Sequence[Any]) -> str:
    """The first three items and how many more there are, for a message."""
    more = f" and {len(items) - 3:,} more" if len(items) > 3 else ""
    return ", ".join(map(str, items[:3])) + more


def resolve_path(path: str | Path) -> Path:
    """A path as given when absolute, else below the repository root (never the shell's folder)."""
    path = Path(path).expanduser()
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
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"--device {name} cannot be used here; use auto, cpu, cuda, cuda:0 "
                         "or mps, as your torch and machine allow") from None
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # batches keep their shape, so the search pays
    return device


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


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[io.BufferedWriter]:
    """Open a binary file that appears under `path` only when it is whole.

    Written aside in the same folder, flushed, synced, renamed, with the mode a plain open() gives.
    When the body raises, what stood at `path` before stays as it was.
    """
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
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(aside)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    with atomic_file(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def _one_object_a_string(content: Any) -> Any:
    """Copies of dicts and lists in which equal strings are one object.

    A pickle refers back to an object it has met, so its bytes tell whether two equal strings were one: a
    flag's default and the same word typed in the shell would give different files.
    """
    if isinstance(content, str):
        return sys.intern(str(content))
    if isinstance(content, dict):
        return {_one_object_a_string(key): _one_object_a_string(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(_one_object_a_string(value) for value in content)
    return content


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values atomically; the same content gives the same bytes."""
    # Through a buffer: torch names the folder inside the zip after the file it writes to.
    buffer = io.BytesIO()
    torch.save(_one_object_a_string(content), buffer)
    with atomic_file(path) as file:
        file.write(buffer.getbuffer())


def load_checkpoint(path: Path, format_name: str, made_by: str) -> dict[str, Any]:
    """Read a checkpoint of ours without unpickling anything but tensors and plain values.

    Args:
        path: the file. format_name: what its `format` entry must say. made_by: for the message.
    Raises:
        InputError: missing, unreadable, not ours, or of another kind.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}: expected a file made by {made_by}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else "unreadable"
        raise InputError(f"{path} is not a whole checkpoint of {made_by} ({reason})") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != format_name:
        raise InputError(f"{path} is {found or 'a foreign file'}, expected {format_name} as made by "
                         f"{made_by}")
    return content


def sha256_of(*parts: Any) -> str:
    """Hex SHA-256 over strings, bytes and arrays, each part delimited."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else (
            np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray)
            else str(part).encode())
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


# ---------------------------------------------------------------- runs


class Run:
    """One output folder: config.json, log.jsonl, last.pth and the result beside them."""

    def __init__(self, folder: Path, result: str, settings: dict[str, Any], resume: bool,
                 overwrite: bool, harmless: set[str]) -> None:
        """Look at `folder`; with `resume`, load last.pth and check that it had the same settings.

        Nothing in it is written or removed before `start`, so that a bad flag beside --overwrite loses nothing.

        Args:
            result: name of the file that the finished run writes. settings: plain values that describe
                the run. harmless: the keys among them that may differ when a run is resumed.
        Raises:
            InputError: the folder holds a run and neither flag says what to do, or the settings
                differ, or the folder cannot be written.
        """
        self.folder, self.settings, self.result = folder, settings, result
        self.seconds = 0.0  # that the run took before it was resumed
        self.state: dict[str, Any] | None = None
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--output_dir {folder} is a file, expected a folder")
        last = folder / "last.pth"
        if last.exists() and resume:
            self.state = load_checkpoint(last, "mrhash-training-1", "this script")
            before = self.state["settings"]
            differing = [f"{key} was {before.get(key)!r}, now {settings.get(key)!r}"
                         for key in sorted((before.keys() | settings.keys()) - harmless)
                         if before.get(key) != settings.get(key)]
            if differing:
                raise InputError(f"cannot resume {folder} with other settings: {'; '.join(differing)}")
            print(f"resuming {folder} after epoch {self.state['epoch']}")
        elif last.exists() and not overwrite:
            raise InputError(f"{folder} already holds a run: add --resume to continue it, --overwrite "
                             "to replace it, or choose another --output_dir")
        elif resume:
            print(f"nothing to resume in {folder}, starting from the beginning")
        folder.mkdir(parents=True, exist_ok=True)  # what cannot be written is said now, not after the work
        self.log_path = folder / "log.jsonl"

    def start(self) -> None:
        """Write config.json and the log so far; what an earlier run left goes. Called when all else is ready."""
        write_json(self.folder / "config.json", {**self.settings, "environment": environment()})
        kept = []
        if self.state is not None and self.log_path.exists():
            lines = self.log_path.read_text().splitlines()
            kept = [line for line in lines if json.loads(line)["epoch"] <= self.state["epoch"]]
            self.seconds = json.loads(kept[-1]).get("seconds", 0.0) if kept else 0.0
        else:
            for stale in ("last.pth", self.result):
                (self.folder / stale).unlink(missing_ok=True)
        with atomic_file(self.log_path) as file:
            file.write("".join(line + "\n" for line in kept).encode())

    def first_epoch(self, first: int = 0) -> int:
        """The epoch to start with: `first`, or the one after the last finished epoch."""
        return first if self.state is None else self.state["epoch"] + 1

    def log(self, record: dict[str, Any]) -> None:
        """Append one JSON object to log.jsonl."""
        with open(self.log_path, "a") as file:
            file.write(json.dumps(record) + "\n")

    def save(self, epoch: int, **state: Any) -> None:
        """Write last.pth: all that a resumed run needs to end as an uninterrupted one."""
        save_checkpoint(self.folder / "last.pth", {"format": "mrhash-training-1", "epoch": epoch,
                                                   "settings": self.settings, **state})


def environment() -> dict[str, Any]:
    """Versions, git commit (with `+changes` for an unclean tree) and the command, for config.json."""
    import scipy
    import torchvision

    def git(*command: str) -> str:
        try:
            return subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True,
                                  timeout=10, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return ""

    commit = git("rev-parse", "HEAD")
    if commit and git("status", "--porcelain", "--untracked-files=no"):
        commit += "+changes"
    return {"python": sys.version.split()[0], "torch": torch.__version__,
            "torchvision": torchvision.__version__, "numpy": np.__version__,
            "scipy": scipy.__version__, "threads": torch.get_num_threads(),
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "git_commit": commit or None, "command": sys.argv}


def check_finite(loss: torch.Tensor, epoch: int, folder: Path) -> float:
    """The epoch's mean loss as a float. Raises InputError when it is NaN or infinite."""
    value = float(loss)
    if not np.isfinite(value):
        raise InputError(f"the loss became {value} in epoch {epoch}: lower --lr; the last good state is "
                         f"{folder / 'last.pth'}")
    return value
