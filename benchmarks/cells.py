"""Cells of a table: each is made once; a finished one is read, and a failed one stays alone."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engine.files import at_end, check_writable, lock
from utils import InputError, progress

Key = tuple[str, "int | None", int]  # method, bits, seed
Record = dict[str, Any]  # what the table wants to know of a finished cell


# ---------------------------------------------------------------- the loop


@dataclass(frozen=True)
class Cell:
    """Something that is made once.

    Args:
        folder: where it lies.
        title: what it is called in messages.
        work: makes it, or reads it if it is finished, and returns what there is to say of it.
        key: its place in the table; None for what others start from.
        after: the folder of the cell that has to be there first.
    """

    folder: Path
    title: str
    work: Callable[[], Record]
    key: Key | None = None
    after: Path | None = None


def run_cells(cells: Sequence[Cell], jobs: int, records: dict[Key, Record],
              stop: Callable[[int], None]) -> list[str]:
    """Make or read every cell, `jobs` at once; one that fails does not stop the others.

    Args:
        cells: each stands behind the one that it starts from.
        jobs: how many at once.
        records: filled as cells are done, so that an interrupted table can be told as far as it is.
        stop: told the number of a signal that ends the loop, to stop the cells that are being made.
    Returns:
        a line for each cell that failed.
    """
    failed = []
    pool = ThreadPoolExecutor(jobs)
    try:
        begun: dict[Path, Future] = {}
        waiting = {}
        for cell in cells:
            # First in, first out: what a cell waits for has begun before it, so none waits forever.
            begun[cell.folder] = pool.submit(_attempt, cell, begun.get(cell.after))
            waiting[begun[cell.folder]] = cell
        for done in progress(as_completed(waiting), "cells", len(waiting)):
            cell, error = waiting.pop(done), done.exception()
            if error is None:
                outcome = "done" if cell.key is None else f"mAP {done.result()['map']:.3f}"
            else:
                outcome = "failed"
                failed.append(f"{cell.title}: {_in_words(error)}")
            if error is None and cell.key is not None:
                records[cell.key] = done.result()
            tqdm.write(f"[{len(cells) - len(waiting)}/{len(cells)}] {cell.title}: {outcome}")
    except KeyboardInterrupt as error:
        stop(getattr(error, "number", signal.SIGINT))
        raise
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C nothing more is begun
    return failed


def _attempt(cell: Cell, first: Future | None) -> Record:
    if first is not None and first.exception() is not None:  # it waits until that is done
        raise RuntimeError("what it starts from failed")
    return cell.work()


def _in_words(error: BaseException) -> str:
    said = isinstance(error, (RuntimeError, InputError, OSError))
    return str(error) if said else repr(error)


# ---------------------------------------------------------------- folders


def claim(folder: Path) -> None:
    """Keep other tables out of `folder` until the script ends.

    Raises:
        InputError: it is taken, or cannot be written.
    """
    check_writable(folder, "--output_dir")
    taken = (f"another table is made in {folder}: wait until it is done, or choose another "
             "--output_dir")
    at_end.enter_context(lock(folder / ".lock", taken))


def folder_name(flags: Iterable[object]) -> str:
    """A readable name for a set of flags: kl-batchmean, default for none."""
    return "-".join(str(flag).lstrip("-") for flag in flags) or "default"


# ---------------------------------------------------------------- finished cells


def read_json(path: Path, *needed: str) -> dict[str, Any]:
    """A JSON object. Raises InputError when the file holds something else, or not what is needed.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise damaged(path, str(error)) from None
    if not isinstance(content, dict):
        raise damaged(path, "no object")
    for name in needed:
        if content.get(name) is None:
            raise damaged(path, f"no {name}")
    return content


def warnings_in(log: Path) -> list[str]:
    """What a script warned of, each once; nothing where the log is not there."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    start = "warning: "
    return list(dict.fromkeys(line[len(start):] for line in lines if line.startswith(start)))


def damaged(path: Path, reason: str) -> InputError:
    """The error of a file that holds something else than a cell wrote."""
    return InputError(f"{path} is damaged ({reason}): remove its folder, and it is made again")


def check_settings(cell: Path, wanted: dict[str, Any], defaults: dict[str, Any] | None = None
                   ) -> None:
    """Raise InputError when a finished cell was made with other settings than are asked for now.

    A setting that config.json does not know is younger than the cell, which then had its default:
    that of `defaults`, or any.
    """
    config = {**(defaults or {}), **read_json(cell / "config.json")}
    differing = [f"{name} {config[name]}, not {value}" for name, value in wanted.items()
                 if name in config and str(config[name]).lower() != str(value).lower()]
    if differing:
        raise InputError(f"{cell} was made with {'; '.join(differing)}: choose another "
                         "--output_dir")
