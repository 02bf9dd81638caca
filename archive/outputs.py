"""Which files search.py writes, looked at before the work."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from archive.items import Items
from engine.files import check_writable
from utils import InputError, resolve_path

# An image of the archive is not to be replaced by what is written.
SUFFIXES = {"csv": (".csv", ".txt", ".tsv"), "geojson": (".geojson", ".json"),
            "picture": (".png",), "npz": (".npz",)}


def check_outputs(args: argparse.Namespace, flags: Sequence[str]) -> dict[str, Path]:
    """See that the files that are asked for can be written, and replace nothing that is needed.

    Args:
        args: of search.py.
        flags: those that name a file to write.
    Returns:
        flag -> file, of those that were given.
    Raises:
        InputError: a folder, a place that cannot be written, a file of the archive or of a query,
            or one file twice.
    """
    archive = Path(os.path.realpath(resolve_path(args.archive)))
    taken = {os.path.realpath(resolve_path(path)): "is searched for"
             for path in getattr(args, "query", None) or ()}
    outputs = {}
    for flag in flags:
        if getattr(args, flag) is None:
            continue
        path = resolve_path(getattr(args, flag))
        real = os.path.realpath(path)
        if path.exists() and not path.is_file():
            raise InputError(f"--{flag} {path} is no plain file: name one that is to be written")
        if archive in Path(real).parents:
            raise InputError(f"--{flag} {path} lies in the archive {archive}: write it elsewhere")
        if real in taken:
            raise InputError(f"--{flag} {path} {taken[real]}: name another file")
        if path.exists() and path.suffix.lower() not in SUFFIXES.get(flag, (path.suffix.lower(),)):
            raise InputError(f"--{flag} {path} is there and no {SUFFIXES[flag][0]} file: name "
                             "another one")
        check_writable(path.parent, f"--{flag}")
        taken[real] = f"is what --{flag} writes, too"
        outputs[flag] = path
    return outputs


def spare_images(items: Items, outputs: dict[str, Path]) -> None:
    """Raise InputError for a file to write from which items of an archive were made."""
    for flag, path in outputs.items():
        if path.exists() and items.has_image(path):
            raise InputError(f"--{flag} {path} is an image of the archive: name another file")


def refuse_idle(args: argparse.Namespace, flags: Sequence[str], without: str) -> None:
    """Raise InputError for one of `flags` that was given, and would do nothing without another."""
    for flag in flags:
        if getattr(args, flag) not in (None, False):
            raise InputError(f"--{flag} does nothing without --{without}: give both, or leave it "
                             "out")
