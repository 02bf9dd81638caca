"""Which image of source 1 belongs to which of source 2: by name, by a rule, by a table."""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath

from datasets.base import DataConfig
from datasets.containers import IMAGE_SUFFIXES
from datasets.names import scene_keys
from datasets.partners import SKIP_ADVICE, Unpaired, partners_by_key
from utils import InputError, first_few, resolve_path

View = tuple[Path, Mapping[str, str]]  # the folder, and name -> path without extension
Rows = Sequence[tuple[int, list[str]]]  # of a table: number of the line, its two paths


def partners(views: Sequence[View], config: DataConfig
             ) -> tuple[dict[str, str | None], list[str]]:
    """The name in source 2 of each name in source 1, and what to say of those left out.

    Args:
        views: one, where each name is its own partner, or two.
        config: says whether a rule or a table pairs them (else equal names are pairs), and which
            scenes are left out: these may have None for a partner.
    Raises:
        Unpaired: other scenes without a partner.
        InputError: a rule or table that does not fit; images of source 2 without a scene.
    """
    if config.pair_by and config.pairs:
        raise InputError("--pair_by and --pairs are two ways to say which images are pairs: leave "
                         "one out")
    if config.pairs:
        return _by_table(views, resolve_path(config.pairs), set(config.skip))
    if config.pair_by:
        sides = [(root, _keys(root, names, config.pair_by)) for root, names in views]
        advice = ""
    else:
        sides = [(root, {name: name for name in names}) for root, names in views]
        advice = "; --pair_by or --pairs pairs other names, --exclude leaves images out"
    return partners_by_key(sides[0], sides[-1], config.skip, config.skip_unpaired, advice)


def _keys(root: Path, names: Mapping[str, str], rule: str) -> dict[str, str]:
    """What the groups of --pair_by find in each name -> the name."""
    try:
        pattern = re.compile(unicodedata.normalize("NFC", rule))
    except re.error as error:
        raise InputError(f"--pair_by {rule} is no regular expression: {error}") from None
    if not pattern.groups:
        raise InputError(f"--pair_by {rule} has no group: put in brackets what both sources' names "
                         "share, as in 'S[12]_(.*)'")
    found = {name: pattern.search(name) for name in names}
    lacking = sorted(name for name, match in found.items() if match is None)
    if lacking:
        raise InputError(f"--pair_by {rule} finds nothing in {len(lacking):,} names of {root}: "
                         f"{first_few(lacking)}")
    keys: dict[str, str] = {}
    for name, match in found.items():
        key = "\t".join(group or "" for group in match.groups())  # which no name holds
        if key in keys:
            raise InputError(f"--pair_by {rule} gives two images of {root} the name {key!r}: "
                             f"{keys[key]} and {name}")
        keys[key] = name
    return keys


# ---------------------------------------------------------------- --pairs FILE.csv


def _by_table(views: Sequence[View], table: Path, skip: Collection[str]
              ) -> tuple[dict[str, str | None], list[str]]:
    rows = _read_table(table)
    lookups = [_lookup(names) for _, names in views]
    found = []
    for _, paths in rows:  # of one view the second path is not looked at
        found.append([_found(lookup, _below(root, path)) for lookup, path, (root, _)
                      in zip(lookups, paths, views, strict=False)])
    if len(rows) > 1 and not any(found[0]) and not any(map(_is_path, rows[0][1])):
        del rows[0], found[0]  # the names of the columns
    _reject_unknown(table, rows, found, views, skip)
    remarks = []
    for (root, names), column in zip(views, zip(*found, strict=True), strict=True):
        _reject_twice(table, rows, column)
        if left_out := len(names.keys() - set(column)):
            remarks.append(f"{left_out:,} of {len(names):,} images of {root} are not in "
                           f"{table.name} and are left out")
    partner = {names[0]: names[-1] for names in found}
    alone = sorted(name for name, other in partner.items() if other is None)
    if alone:
        remarks.append(f"{len(alone):,} of {len(partner):,} scenes of {table.name} have no image "
                       f"in {views[-1][0]} and are left out: {first_few(alone)}")
    return partner, remarks


def _reject_unknown(table: Path, rows: Rows, found: Sequence[Sequence[str | None]],
                    views: Sequence[View], skip: Collection[str]) -> None:
    """Raise InputError for paths that are not there; Unpaired, where the second ones alone lack."""
    unknown = [(row, names) for row, names in zip(rows, found, strict=True)
               if None in names and names[0] not in skip]
    if not unknown:
        return
    # One in source 1 first: it is nothing that --skip_unpaired could leave out.
    (line, paths), names = min(unknown, key=lambda entry: entry[1].index(None))
    number = names.index(None)
    root, known = views[number]
    message = (f"{table}, line {line}: {paths[number][:80]!r} is not in {root}; expected a path "
               f"below it, such as {min(known.values())}")
    if number == 0 or not any(names[-1] for names in found):
        raise InputError(message)
    raise Unpaired(message + SKIP_ADVICE, [names[0] for _, names in unknown])


def _below(root: Path, path: str) -> str:
    """A whole path as one below the folder; any other path as it is."""
    for start in (root, os.path.realpath(root)):
        path = path.removeprefix(f"{start}/")
    return path


def _found(lookup: Mapping[str, str], path: str) -> str | None:
    return next((lookup[key] for key in scene_keys(path) if key in lookup), None)


def _is_path(text: str) -> bool:
    return "/" in text or PurePosixPath(text).suffix.lower() in IMAGE_SUFFIXES


def _lookup(names: Mapping[str, str]) -> dict[str, str]:
    """Path without extension, or name -> name; a path is what is meant where both are there."""
    return {**{name: name for name in names}, **{path: name for name, path in names.items()}}


def _reject_twice(table: Path, rows: Rows, column: Sequence[str | None]) -> None:
    lines: dict[str, int] = {}
    for (line, _), name in zip(rows, column, strict=True):
        if name is not None and name in lines:
            raise InputError(f"{table}, line {line}: {name} is also in line {lines[name]}, "
                             "expected each image once")
        lines[name] = line


def _read_table(path: Path) -> list[tuple[int, list[str]]]:
    """The line number and the two fields of each row."""
    if not path.is_file():
        raise InputError(f"--pairs {path} is not there: expected a text file with two paths a line")
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"--pairs {path} is no UTF-8 text: save it as UTF-8") from None
    try:
        attempts = [_split(lines, separator) for separator in ",;\t"]
    except csv.Error as error:
        raise InputError(f"--pairs {path} is no table of two columns ({error})") from None
    # The separator that gives two fields most often.
    rows = max(attempts, key=lambda rows: sum(len(fields) == 2 for _, fields in rows))
    for line, fields in rows:
        if len(fields) != 2 or not all(fields):
            raise InputError(f"--pairs {path}, line {line}: expected two paths with a comma, "
                             f"semicolon or tab between, found {lines[line - 1][:80]!r}")
    if not rows:
        raise InputError(f"--pairs {path} is empty: expected two paths a line")
    return rows


def _split(lines: Sequence[str], separator: str) -> list[tuple[int, list[str]]]:
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    return [(reader.line_num, [field.strip() for field in fields]) for fields in reader
            if any(map(str.strip, fields))]
