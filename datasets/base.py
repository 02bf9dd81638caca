"""What the data sets share: settings, scenes, the paired dataset."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.containers import open_container
from datasets.names import class_labels, files_by_name, reject_empty_classes
from datasets.partners import partners_by_key
from datasets.sources import Decoder, ImageFiles, ImageSource
from utils import InputError, resolve_path, sha256_of

# Fields of DataConfig that a data set takes only where its FLAGS name them.
OWN_IMAGES = ("bands1", "bands2", "range1", "range2", "pair_by", "pairs", "include", "exclude",
              "class_depth")


@dataclass(frozen=True)
class DataConfig:
    """Everything that decides which images take part and how they are split; plain values."""

    data_name: str = "EuroSAT"
    data_dir: str = "data"
    source1: str | None = None
    source2: str | None = None
    split_dir: str | None = None
    max_per_class: int | None = None
    split_seed: int = 13
    skip: tuple[str, ...] = ()  # scenes left out, by --skip_bad and --skip_unpaired
    bands1: str | None = None
    bands2: str | None = None
    range1: str | None = None
    range2: str | None = None
    pair_by: str | None = None
    pairs: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    class_depth: int | None = None
    split: str = "seed"  # or "folders"
    skip_unpaired: bool = False  # also: images of source 2 without a scene are not used

    @classmethod
    def of_flags(cls, args: Namespace) -> DataConfig:
        """With the fields that are flags and were given."""
        given = {}
        for entry in fields(cls):
            value = getattr(args, entry.name, None)
            if value is not None:
                given[entry.name] = tuple(value) if isinstance(value, list) else value
        return cls(**given)

    @classmethod
    def of_checkpoint(cls, entries: dict[str, Any]) -> DataConfig:
        """With the fields that a checkpoint keeps, of which older ones lack some.

        Raises:
            InputError: a value that cannot be.
        """
        names = {entry.name for entry in fields(cls)}
        given = {name: value for name, value in entries.items() if name in names}
        for name in given.keys() & {"skip", "include", "exclude"}:
            if isinstance(given[name], list | tuple):
                given[name] = tuple(given[name])
        for name, value in given.items():
            if not _can_be(name, value):
                raise InputError(f"the checkpoint's {name} is {str(value)[:40]!r}: it is damaged")
        return cls(**given)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def moved(self, args: Namespace, places: Set[str]) -> DataConfig:
        """With the `places` that flags name.

        Raises:
            InputError: a flag that is no place contradicts it.
        """
        found = {}
        for name, value in asdict(DataConfig.of_flags(args)).items():
            if getattr(args, name, None) is None:
                continue
            if name in places:
                found[name] = value
            elif str(value).lower() != str(getattr(self, name)).lower():
                raise InputError(f"--{name} {value} contradicts the checkpoint, which was trained "
                                 f"with {getattr(self, name)}: leave the flag out or train again")
        return replace(self, **found)


def _can_be(name: str, value: Any) -> bool:
    """Whether a field of DataConfig may have this value."""
    if name in ("skip", "include", "exclude"):
        return isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    if name in ("class_depth", "max_per_class"):
        return value is None or (type(value) is int and value > 0)
    if name == "split_seed":
        return type(value) is int and value >= 0
    if name == "skip_unpaired":
        return type(value) is bool
    needed = name in ("data_name", "data_dir", "split")
    return isinstance(value, str) or (value is None and not needed)


@dataclass
class Scenes:
    """What the file of a data set finds, before any split: N scenes, seen by one or two sources."""

    names: list[str]  # distinct
    labels: np.ndarray | None  # int64 (N,)
    class_names: list[str]
    sources: list[ImageSource]
    source_names: tuple[str, str]  # the second one is "none" where there is no second source
    note: str = ""  # what a reader of a number must know: simulated sensors, generated images
    name: str | None = None  # of the data set, where it is not that of the table
    run_name: str | None = None  # what folders of runs are called after, where it is not the name
    split_dir: Path | None = None  # list files that came with the images
    parts: np.ndarray | None = None  # str (N,), the split that folders tell: train, val or test
    remarks: list[str] = field(default_factory=list)  # on what was made of odd folders, to print
    resolved: dict[str, str] = field(default_factory=dict)  # settings that the images decided
    paired: np.ndarray | None = None  # int64, the scenes that the second source shows; None: all

    def sources_of(self, rows: np.ndarray) -> list[ImageSource]:
        """The sources of these scenes alone, int64 (n,), each of which they all show."""
        second = rows if self.paired is None else np.searchsorted(self.paired, rows)
        return [source.subset(own)
                for source, own in zip(self.sources, (rows, second), strict=False)]


@dataclass
class PairedDataset:
    """N scenes seen by one or two sources, and their split."""

    name: str
    names: list[str]  # distinct
    source1: ImageSource
    source2: ImageSource | None
    labels: np.ndarray | None  # int64 (N,), or uint8 0/1 (N, C)
    class_names: list[str]
    train: np.ndarray  # int64, rows of `names`; so are database and query
    database: np.ndarray
    query: np.ndarray
    source_names: tuple[str, str]
    note: str = ""
    listed: bool = False  # the split comes from list files, whose order its parts keep
    remarks: list[str] = field(default_factory=list)  # as in Scenes, and so is resolved
    resolved: dict[str, str] = field(default_factory=dict)
    run_name: str = ""  # what folders of runs are called after

    @property
    def sources(self) -> list[ImageSource]:
        return [self.source1] if self.source2 is None else [self.source1, self.source2]

    @property
    def database_labels(self) -> np.ndarray | None:
        return None if self.labels is None else self.labels[self.database]

    @property
    def fingerprint(self) -> str:
        """Changes when a name, a label or the split changes; not when files are copied."""
        labels = np.zeros(0) if self.labels is None else self.labels.astype(np.int64)
        return sha256_of(*self.names, labels, self.train, self.database, self.query)[:16]

    def file_label(self, source: int) -> str:
        """What cached files of source 0 or 1 are called: letters, digits and dashes."""
        labels = []
        for source_name in self.source_names:
            label = f"{self.name}-{source_name}"
            labels.append("".join(letter if letter.isalnum() else "-" for letter in label))
        # Two folders of one name, a/scenes and b/scenes, are told apart.
        return f"{labels[1]}-2" if source and labels[0] == labels[1] else labels[source]

    def describe(self, second: bool = True) -> str:
        """One line for the user; `second`: whether it is to speak of the second source."""
        one, other = self.source_names
        of_second = f" + {other}" if self.source2 is not None else ", no second source"
        classes = f"{len(self.class_names)} classes" if self.labels is not None else "no labels"
        note = f" ({self.note})" if self.note else ""
        return (f"{self.name}: {one}{of_second if second else ''}; {len(self.train):,} training, "
                f"{len(self.database):,} database, {len(self.query):,} query images, "
                f"{classes}{note}")


# ---------------------------------------------------------------- what data sets are made with


def find(folder: str | Path, files: Iterable[str]) -> Path | None:
    """The first of `files` (or folders) that is there."""
    for name in files:
        path = resolve_path(folder) / name
        if path.exists():
            return path
    return None


def find_or_say(config: DataConfig, name: str, files: Iterable[str], advice: str) -> Path:
    """As `find` in --data_dir. Raises InputError with an advice how to get data set `name`."""
    path = find(config.data_dir, files)
    if path is None:
        raise InputError(f"{name} was not found in {resolve_path(config.data_dir)}: {advice}, or "
                         "name the folder that holds it with --data_dir")
    return path


def reject_source1(config: DataConfig, name: str) -> None:
    """Raise InputError when --source1 was given for a data set that has but one first source."""
    if config.source1:
        raise InputError("--source1 is for pairs, folder, UCMerced, samples and DSRSID; "
                         f"{name} has one first source")


def reject_foreign_flags(config: DataConfig, name: str, flags: Mapping[str, Set[str]]) -> None:
    """Raise InputError for settings that data set `name` has no use for.

    Args:
        config: all settings.
        name: of the data set.
        flags: data set -> those of OWN_IMAGES that it takes.
    """
    if config.split not in ("seed", "folders"):
        raise InputError(f"--split {config.split[:40]} is not known: use seed or folders")
    if config.split == "folders" and config.split_dir:
        raise InputError("--split folders and --split_dir are two splits: leave one out")
    for flag in OWN_IMAGES:
        takers = [other for other, taken in flags.items() if flag in taken]
        if getattr(config, flag) and name not in takers:
            raise InputError(f"--{flag} is for --data_name {' and '.join(takers)}, not for {name}")


def ms_and_pan(config: DataConfig) -> tuple[str, str]:
    """The two views of a data set of multispectral and panchromatic images; --source1 ms or pan."""
    first = (config.source1 or "ms").lower()
    second = (config.source2 or {"ms": "pan", "pan": "ms"}.get(first, "none")).lower()
    known = first in ("ms", "pan") and second in ("ms", "pan", "none")
    if not known or first == second:
        raise InputError(f"--source1 {first} --source2 {second} cannot be paired: --source1 is ms "
                         "or pan, --source2 the other one or none")
    return first, second


def scenes_of_files(config: DataConfig, views: Sequence[tuple[Path, Decoder]],
                    source_names: tuple[str, str], depth: int = 0, note: str = "") -> Scenes:
    """Scenes whose images are files of one name in one or two folders or zips.

    Args:
        config: says which scenes need no partner.
        views: for each source its folder or zip, and how its files are read.
        source_names: as in Scenes.
        depth: how many parts of a path make the name of a scene; 0 takes all.
        note: as in Scenes.
    Raises:
        InputError: no images, two of one name, or images without a partner.
    """
    containers = {root: open_container(root) for root, _ in views}  # two views may share one
    files = {}
    for root, container in containers.items():
        if root == views[0][0] or not config.skip_unpaired:
            reject_empty_classes(container)
        files[root] = files_by_name(container, depth)
    sides = [(root, {name: name for name in files[root]}) for root, _ in views]
    partner, remarks = partners_by_key(sides[0], sides[-1], config.skip, config.skip_unpaired)
    names = sorted(partner)
    labels, class_names = class_labels(names)
    paired = np.flatnonzero([partner[name] is not None for name in names])
    sources = []
    for (root, decoder), shown in zip(views, (names, [names[row] for row in paired]), strict=False):
        sources.append(ImageFiles(containers[root], [files[root][name] for name in shown], decoder))
    return Scenes(names, labels, class_names, sources, source_names, note, remarks=remarks,
                  paired=paired)
