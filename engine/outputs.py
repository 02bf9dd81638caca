"""Where test.py writes, looked at before the work."""

from __future__ import annotations

import argparse
from pathlib import Path

from engine.files import check_writable
from utils import InputError, rank, resolve_path


def check_outputs(args: argparse.Namespace) -> Path:
    """See that all that is asked for can be written, before the work; returns the output folder.

    Raises:
        InputError: a file where a folder belongs, the reverse, a place that cannot be written, or
            a flag that --codes has no use for.
    """
    if args.codes is not None and args.picture:
        raise InputError("--picture needs the images: use it with --pretrain_path")
    if args.codes is not None and args.views > 1:
        raise InputError("--views is about images that are hashed, and --codes has been: leave it "
                         "out")
    if args.figures:
        try:
            import matplotlib  # noqa: F401 - said now, not after the work
        except ImportError as error:
            raise InputError(f"--figures needs matplotlib ({error}): pip install -r "
                             "requirements.txt") from None
    source = resolve_path(args.pretrain_path if args.codes is None else args.codes)
    for flag in ("output_dir", "figures", "save_codes", "picture"):
        path = getattr(args, flag) and resolve_path(getattr(args, flag))
        if not path:
            continue
        is_folder = flag in ("output_dir", "figures")
        if path.exists() and path.is_dir() != is_folder:
            found, wanted = ("a file", "a folder") if is_folder else ("a folder", "a file")
            raise InputError(f"--{flag} {path} is {found}, expected {wanted}")
        if not is_folder and path.exists() and (not path.is_file() or (
                source.exists() and path.samefile(source))):
            raise InputError(f"--{flag} {path} would replace what it is made from, or is no plain "
                             "file: name another one")
        if rank() == 0:
            check_writable(path if is_folder else path.parent, f"--{flag}")
    if args.output_dir:
        return resolve_path(args.output_dir)
    output_dir = source if source.is_dir() else source.parent
    if rank() == 0 and source.exists():
        check_writable(output_dir, "--output_dir")
    return output_dir
