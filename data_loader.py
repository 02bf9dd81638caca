"""Datasets by name: paired image sources, labels, and the split into training, database and queries.

`load_dataset(DataConfig(...))` is the one entrance. Images, labels and list files are matched by name,
never by position. Pixels are read by image_sources.py, decoded once by image_store.py, and turned into
frozen features by features.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.demo import demo_folder
from datasets.sources import (
    Folder,
    Hdf5Images,
    ImageFiles,
    ImageSource,
    Zip,
    dataset_of,
    decode_rgb,
    decode_swir,
    decode_wald_ms,
    decode_wald_pan,
    hdf5,
    open_container,
)
from datasets.splits import SPLIT_FILES, limit_rows, scene_key, split_by_lists, split_by_seed
from datasets.store import unreadable
from engine.cli import number
from engine.distributed import first_rank_first, from_first
from hamming import smallest_class
from utils import InputError, first_few, rank, resolve_path, sha256_of, warn

DATASETS = {"eurosat": "EuroSAT", "dsrsid": "DSRSID", "ucmerced": "UCMerced", "pairs": "pairs",
            "demo": "demo"}
DSRSID_CLASSES = ("aquafarm", "cloud", "forest", "high building", "low building", "farm land", "river",
                  "water")


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
    skip: tuple[str, ...] = ()  # names of scenes that are left out: --skip_bad found them unreadable

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class PairedDataset:
    """N scenes seen by one or two sources.

    names: N distinct names. labels: int64 (N,), or uint8 0/1 (N, C), or None. train, database, query:
    int64 rows. source2 is None when there is no second view. note: what a reader of a number on this
    dataset must know (simulated sensors, generated images), or "". listed: the split comes from list files,
    whose order train, database and query keep.
    """

    name: str
    names: list[str]
    source1: ImageSource
    source2: ImageSource | None
    labels: np.ndarray | None
    class_names: list[str]
    train: np.ndarray
    database: np.ndarray
    query: np.ndarray
    source_names: tuple[str, str]
    note: str = ""
    listed: bool = False

    @property
    def sources(self) -> list[ImageSource]:
        return [self.source1] if self.source2 is None else [self.source1, self.source2]

    @property
    def fingerprint(self) -> str:
        """Changes when a name, a label or the split changes; not when files are copied elsewhere."""
        labels = np.zeros(0) if self.labels is None else self.labels.astype(np.int64)
        return sha256_of(*self.names, labels, self.train, self.database, self.query)[:16]

    def file_label(self, source: int) -> str:
        """What cached files of source 0 or 1 are called: letters, digits and dashes."""
        name = f"{self.name}-{self.source_names[source]}"
        return "".join(letter if letter.isalnum() else "-" for letter in name)

    def describe(self) -> str:
        second = f" + {self.source_names[1]}" if self.source2 is not None else ", no second source"
        classes = f"{len(self.class_names)} classes" if self.labels is not None else "no labels"
        return (f"{self.name}: {self.source_names[0]}{second}; {len(self.train):,} training, "
                f"{len(self.database):,} database, {len(self.query):,} query images, {classes}"
                + (f" ({self.note})" if self.note else ""))


# ---------------------------------------------------------------- names


def _by_key(container: Folder | Zip, depth: int) -> dict[str, str]:
    """Scene name -> file. Raises InputError when two files have the same name."""
    files: dict[str, str] = {}
    _reject_empty_classes(container)
    for path in container.files:
        key = scene_key(path, depth)
        if key in files:
            raise InputError(f"{container.root} has two images named {key}: {files[key]} and {path}")
        files[key] = path
    return files


def _matched(first: dict[str, str], second: dict[str, str], where: tuple[Path, Path]) -> list[str]:
    """The common names, sorted. Raises InputError that names the first ones without a partner."""
    for ours, theirs, here, there in ((first, second, *where), (second, first, *where[::-1])):
        alone = sorted(ours.keys() - theirs.keys())
        elsewhere = {key.rpartition("/")[2]: key for key in theirs.keys() - ours.keys()} if alone else {}
        moved = [(key, elsewhere[name]) for key in alone if (name := key.rpartition("/")[2]) in elsewhere]
        if len(moved) == len(alone) > 0:
            raise InputError(f"{len(alone):,} images lie in one class folder in {here} and in another in {there}: "
                             f"{first_few([f'{key} and {other}' for key, other in moved])}")
        if alone:
            raise InputError(f"{len(alone):,} images of {here} have no partner of the same name in "
                             f"{there}: {first_few(alone)}")
    return sorted(first)


def _reject_empty_classes(container: Folder | Zip) -> None:
    """Raise InputError where a folder beside the class folders holds no image."""
    filled = {name.rpartition("/")[0] for name in container.files}
    above = {folder.rpartition("/")[0] for folder in filled if folder}
    # Folders that hold folders are no classes; what begins with a dot or an underscore is a tool's.
    parents = {folder.rpartition("/")[0] for folder in container.folders | filled}
    empty = sorted(folder for folder in container.folders - filled - parents if folder.rpartition("/")[0] in above
                   and not folder.rpartition("/")[2].startswith((".", "_")))
    if empty:
        raise InputError(f"{len(empty):,} class folders of {container.root} hold no image: {first_few(empty)}; add "
                         "the images or remove the folders")


def _find(data_dir: Path, candidates: Iterable[str]) -> Path | None:
    return next((data_dir / name for name in candidates if (data_dir / name).exists()), None)


def _class_labels(names: list[str]) -> tuple[np.ndarray | None, list[str]]:
    """Labels from the folder each name lies in; None when no name has a folder."""
    folders = [name.rpartition("/")[0] for name in names]
    if not any(folders):
        return None, []
    if not all(folders):
        flat = [name for name, folder in zip(names, folders, strict=True) if not folder]
        raise InputError(f"some images lie in class folders and {len(flat):,} do not: "
                         f"{first_few(flat)}")
    classes = sorted(set(folders))
    lookup = {name: number for number, name in enumerate(classes)}
    return np.array([lookup[folder] for folder in folders], dtype=np.int64), classes


# ---------------------------------------------------------------- the datasets, before any split


@dataclass
class _Scenes:
    names: list[str]
    make_sources: Callable[[np.ndarray], list[ImageSource]]  # rows to keep -> their sources
    labels: np.ndarray | None
    class_names: list[str]
    source_names: tuple[str, str]
    note: str = ""
    split_dir: Path | None = None  # list files that came with the images


def _file_sources(names: list[str], views: list[tuple[Folder | Zip, dict[str, str], Callable]]
                  ) -> Callable[[np.ndarray], list[ImageSource]]:
    return lambda rows: [ImageFiles(container, [files[names[row]] for row in rows], decode)
                         for container, files, decode in views]


def _eurosat(config: DataConfig, data_dir: Path) -> _Scenes:
    root = _find(data_dir, ("EuroSAT.zip", "EuroSAT", "2750", "EuroSAT_RGB.zip", "EuroSAT_RGB", "eurosat"))
    if root is None:
        raise InputError(f"EuroSAT was not found in {data_dir}: download EuroSAT_RGB.zip from "
                         "https://zenodo.org/records/7711810 and put it there as EuroSAT.zip, or name "
                         "the folder that holds it with --data_dir")
    _reject_source1(config, "EuroSAT")
    container = open_container(root)
    files = _by_key(container, 2)
    views: list = [(container, files, decode_rgb)]
    vhr = _find(data_dir, ("EuroSAT_VHR", "EuroSAT_VHR.zip"))
    swir = _find(data_dir, ("EuroSAT_MS", "EuroSAT_MS.zip", "EuroSATallBands", "EuroSATallBands.zip"))
    wanted = (config.source2 or ("vhr" if vhr else "swir" if swir else "none")).lower()
    names = sorted(files)
    if wanted != "none":
        if wanted not in ("vhr", "swir"):
            raise InputError(f"--source2 {wanted} is not known for EuroSAT: use vhr, swir or none")
        second_root = vhr if wanted == "vhr" else swir
        if second_root is None:
            expected = ("a folder EuroSAT_VHR with the same relative names" if wanted == "vhr" else
                        "EuroSAT_MS.zip (13 bands) from https://zenodo.org/records/7711810, or its folder")
            raise InputError(f"--source2 {wanted} was not found in {data_dir}: put {expected} there, or "
                             "use --source2 none")
        second = open_container(second_root)
        second_files = _by_key(second, 2)
        names = _matched(files, second_files, (root, second_root))
        views.append((second, second_files, decode_rgb if wanted == "vhr" else decode_swir))
    labels, classes = _class_labels(names)
    return _Scenes(names, _file_sources(names, views), labels, classes, ("Sentinel-2 RGB", wanted))


def _ucmerced(config: DataConfig, data_dir: Path) -> _Scenes:
    root = _find(data_dir, ("UCMerced_LandUse.zip", "UCMerced_LandUse"))
    if root is None:
        raise InputError(f"UC Merced was not found in {data_dir}: download UCMerced_LandUse.zip from "
                         "http://weegee.vision.ucmerced.edu/datasets/landuse.html and put it there, or "
                         "name the folder that holds it with --data_dir")
    container = open_container(root)
    files = _by_key(container, 2)
    names = sorted(files)
    labels, classes = _class_labels(names)
    first, second = _ms_pan(config)
    decoders = {"ms": decode_wald_ms, "pan": decode_wald_pan}
    views = [(container, files, decoders[view]) for view in (first, second) if view != "none"]
    return _Scenes(names, _file_sources(names, views), labels, classes, (first, second),
                   "real images, MS and PAN simulated by Wald's protocol")


def _dsrsid(config: DataConfig, data_dir: Path) -> _Scenes:
    root = _find(data_dir, ("DSRSID.mat", "DSRSID"))
    if root is None:
        raise InputError(f"DSRSID was not found in {data_dir}: put DSRSID.mat (Li et al., IEEE TGRS "
                         "2018) there, or a folder DSRSID with the sub-folders MUL and PAN, or name the "
                         "folder that holds it with --data_dir")
    first, second = _ms_pan(config)
    views = [view for view in (first, second) if view != "none"]
    if root.is_dir():
        roots = {"ms": _find(root, ("MUL", "MS", "mul", "ms")), "pan": _find(root, ("PAN", "pan"))}
        missing = [view for view in views if roots[view] is None]
        if missing:
            raise InputError(f"{root} has no sub-folder for {missing[0]}: expected MUL and PAN")
        lists = root if (root / SPLIT_FILES["query"]).is_file() else None
        return replace(_pair_scenes([roots[view] for view in views], (first, second)), split_dir=lists)
    keys = {"ms": "MUL_IMAGES", "pan": "PAN_IMAGES"}
    with hdf5(root) as file:
        count = (dataset_of(file, keys[first]).shape or (0,))[0]
        data = dataset_of(file, "LAND_COVER_TYPES")
        # Looked at before it is read: a damaged or hostile header may claim anything.
        found = f"{data.size or 0:,} values ({data.dtype})"
        types = data[()].reshape(-1) if count and data.dtype.kind in "fiu" and data.size == count else np.zeros(0)
    if not len(types) or not np.isin(types, np.arange(len(DSRSID_CLASSES)) + 1).all():
        limits = f" from {types.min()} to {types.max()}" if len(types) else ""
        raise InputError(f"{root}: LAND_COVER_TYPES holds {found}{limits}, expected {max(count, 1):,} whole numbers "
                         f"from 1 to {len(DSRSID_CLASSES)}")
    labels = types.astype(np.int64) - 1
    folders = [name.replace(" ", "_") for name in DSRSID_CLASSES]
    names = [f"{folders[label]}/{row:06d}" for row, label in enumerate(labels)]
    return _Scenes(names, lambda rows: [Hdf5Images(root, keys[view], rows) for view in views], labels,
                   list(DSRSID_CLASSES), (first, second))


def _pairs(config: DataConfig, data_dir: Path) -> _Scenes:
    if not config.source1:
        raise InputError("--data_name pairs needs --source1 FOLDER (and --source2 FOLDER or none)")
    folders = [config.source1] + ([config.source2] if config.source2 not in (None, "none") else [])
    return _pair_scenes([resolve_path(folder) for folder in folders],
                        (Path(folders[0]).name, Path(folders[1]).name if folders[1:] else "none"))


def _pair_scenes(roots: list[Path], source_names: tuple[str, str]) -> _Scenes:
    containers = [open_container(root) for root in roots]
    files = [_by_key(container, 0) for container in containers]
    names = _matched(*files, tuple(roots)) if len(files) == 2 else sorted(files[0])
    labels, classes = _class_labels(names)
    views = [(container, paths, decode_rgb) for container, paths in zip(containers, files, strict=True)]
    return _Scenes(names, _file_sources(names, views), labels, classes, source_names)


def _demo(config: DataConfig, data_dir: Path) -> _Scenes:
    from datasets.demo import make_demo

    _reject_source1(config, "demo")
    if config.source2 not in (None, "none", "fine"):
        raise InputError(f"--source2 {config.source2} is not known for demo: leave it out, or use none")
    with first_rank_first():
        root = make_demo(data_dir, config.split_seed)
    second = config.source2 != "none"
    roots = [root / "coarse", root / "fine"] if second else [root / "coarse"]
    scenes = _pair_scenes(roots, ("coarse", "fine" if second else "none"))
    return replace(scenes, note="generated images")


def _reject_source1(config: DataConfig, name: str) -> None:
    if config.source1:
        raise InputError(f"--source1 is for pairs, UCMerced and DSRSID; {name} has one first source")


def _ms_pan(config: DataConfig) -> tuple[str, str]:
    first = (config.source1 or "ms").lower()
    second = (config.source2 or {"ms": "pan", "pan": "ms"}.get(first, "none")).lower()
    if first not in ("ms", "pan") or second not in ("ms", "pan", "none") or first == second:
        raise InputError(f"--source1 {first} --source2 {second} cannot be paired: --source1 is ms or "
                         "pan, --source2 the other one or none")
    return first, second


BUILDERS = {"EuroSAT": _eurosat, "DSRSID": _dsrsid, "UCMerced": _ucmerced, "pairs": _pairs, "demo": _demo}


def _without_relevant(query: np.ndarray, database: np.ndarray) -> int:
    """How many queries share no label with the database: labels (N,), or 0/1 (N, C)."""
    if query.ndim == 1:
        return int((~np.isin(query, database)).sum())
    return int((~(query[:, database.any(axis=0)] > 0).any(axis=1)).sum())


def load_readable(config: DataConfig, workers: int) -> tuple[PairedDataset, DataConfig]:
    """load_dataset without the scenes of which an image cannot be read; and the config that names them in `skip`.

    Raises:
        InputError: as load_dataset; nothing would be left.
    """
    dataset = load_dataset(config)
    bad: dict[int, str] = {}
    if rank() == 0:
        for number, source in enumerate(dataset.sources):
            bad |= unreadable(source, dataset.file_label(number), workers)
    bad = from_first(bad)
    if not bad:
        return dataset, config
    warn(f"{len(bad):,} of {len(dataset.names):,} scenes are left out, because an image cannot be read: "
         f"{'; '.join(sorted(bad.values()))}")
    config = replace(config, skip=tuple(sorted(dataset.names[row] for row in bad)))
    return load_dataset(config), config


def load_dataset(config: DataConfig) -> PairedDataset:
    """Find a dataset, pair its sources by name and split it.

    Raises:
        InputError: unknown or missing dataset (the message says what to download and where it goes),
            images without a partner, list files that do not fit, queries inside training or database.
    """
    name = DATASETS.get(config.data_name.lower())
    if name is None:
        raise InputError(f"--data_name {config.data_name} is not known: use one of "
                         f"{', '.join(DATASETS.values())} (case does not matter)")
    scenes = BUILDERS[name](config, resolve_path(config.data_dir))
    labels, class_names = scenes.labels, scenes.class_names
    split_dir = resolve_path(config.split_dir) if config.split_dir else scenes.split_dir
    limit, seed = config.max_per_class, config.split_seed
    if split_dir is not None:
        parts, labels, class_names = split_by_lists(scenes.names, scenes.labels, class_names, split_dir)
        if limit:
            parts = {part: limit_rows(rows, labels, limit, seed) for part, rows in parts.items()}
    else:
        rows = np.arange(len(scenes.names))
        rows = limit_rows(rows, labels, limit, seed) if limit else rows
        drawn = split_by_seed(name, None if labels is None else labels[rows], class_names, len(rows), seed)
        parts = {part: rows[chosen] for part, chosen in drawn.items()}
    if config.skip:
        left_out = np.flatnonzero(np.isin(scenes.names, config.skip))
        parts = {part: rows[~np.isin(rows, left_out)] for part, rows in parts.items()}
        gone = [part for part, rows in parts.items() if not len(rows)]
        if gone:
            raise InputError(f"without the {len(config.skip):,} images that cannot be read {name} has none left for: "
                             f"{', '.join(gone)}")
    for part in ("train", "database"):
        shared = np.intersect1d(parts["query"], parts[part])
        if len(shared):
            raise InputError(f"{len(shared):,} queries are also in the {part} set: "
                             f"{first_few([scenes.names[row] for row in shared])}")
    used = np.unique(np.concatenate(list(parts.values())))
    if labels is not None and len(np.unique(labels[used], axis=0)) < 2:
        raise InputError(f"{name} has images of one class only: retrieval needs at least two")
    if labels is not None:
        alone = _without_relevant(labels[parts["query"]], labels[parts["database"]])
        if alone:
            warn(f"{alone:,} of {len(parts['query']):,} queries share no label with any image of the database: their "
                 "average precision counts as 0")
    sources = scenes.make_sources(used)
    return PairedDataset(
        name=name, names=[scenes.names[row] for row in used], source1=sources[0],
        source2=sources[1] if len(sources) == 2 else None,
        labels=None if labels is None else labels[used], class_names=class_names,
        **{part: np.searchsorted(used, rows) for part, rows in parts.items()},
        source_names=scenes.source_names, note=scenes.note, listed=split_dir is not None)


def add_data_flags(parser: argparse.ArgumentParser, inherited: bool) -> argparse._ArgumentGroup:
    """Flags that choose the images. `inherited`: unset ones come from the checkpoint."""
    group = parser.add_argument_group("data" + (" (what is left out comes from the checkpoint)"
                                                if inherited else ""))
    names = ", ".join(DATASETS.values())
    group.add_argument("--data_name", "--dataset", default=None if inherited else "eurosat",
                       help=f"one of {names}; case does not matter. Start with demo, which needs no "
                            "download; use pairs for folders of your own")
    group.add_argument("--data_dir", default=None if inherited else "data",
                       help="where the dataset lies under its published name (zip or folder); relative "
                            "to the repository")
    group.add_argument("--source1", help="pairs: the folder whose images will be hashed; UCMerced, DSRSID: "
                                         "ms (default) or pan")
    group.add_argument("--source2", help="the second view, seen in training only. pairs: a folder; EuroSAT: "
                                         "vhr or swir; UCMerced, DSRSID: pan or ms; none to do without. "
                                         "Left out: the one that is there")
    group.add_argument("--split_dir", help="folder with train.txt, database.txt and test.txt as published "
                                           "(path and one-hot label a line); without it the queries are "
                                           "drawn by --seed")
    group.add_argument("--max_per_class", type=number(int, 1),
                       help="use at most so many images of each class, for a quick look")
    return group


def inherit_dataset(args: argparse.Namespace, checkpoint: dict[str, Any]) -> tuple[PairedDataset, DataConfig]:
    """The dataset that a checkpoint was trained on, wherever the flags say it lies now; and its config.

    Raises:
        InputError: a flag contradicts the checkpoint, or the images or their split are not the same.
    """
    known = {field.name: checkpoint["data"][field.name] for field in fields(DataConfig)
             if field.name in checkpoint["data"]}
    skip = known.get("skip", ())
    if not isinstance(skip, list | tuple):
        raise InputError(f"the checkpoint's list of scenes that are left out is {str(skip)[:40]}: it is damaged")
    config = DataConfig(**{**known, "skip": tuple(map(str, skip))})
    # Where things lie may have changed since: folders are not compared, their content is.
    places = {"data_dir"} | moved_places(config)
    moved = {}
    for name in ("data_name", "data_dir", "source1", "source2", "split_dir", "max_per_class"):
        value, known = getattr(args, name), getattr(config, name)
        if value is None:
            continue
        if name in places:
            moved[name] = value
        elif str(value).lower() != str(known).lower():
            raise InputError(f"--{name} {value} contradicts the checkpoint, which was trained with "
                             f"{known}: leave the flag out or train again")
    config = replace(config, **moved)
    if config.data_name == "demo" and args.data_dir is None and not demo_folder(
            resolve_path(config.data_dir), config.split_seed).is_dir():
        # A checkpoint from elsewhere must not decide where something is written.
        raise InputError(f"the scenes of the checkpoint are not in {resolve_path(config.data_dir)}: say with "
                         "--data_dir where they are, or are to be drawn")
    dataset = load_dataset(config)
    if dataset.fingerprint != checkpoint["fingerprint"]:
        folder = resolve_path(config.data_dir)
        raise InputError(f"the images, labels or split found in {folder} are not those of the checkpoint: "
                         "name the right --data_dir, or train again")
    return dataset, config


def moved_places(config: DataConfig) -> set[str]:
    """Flags that say where the images and lists of a run lie, which may change while their content does not."""
    return {"split_dir"} | ({"source1", "source2"} if config.data_name == "pairs" else set())


def choose_R(given: int | None, labels: np.ndarray) -> int:
    """The cut of mAP@R: `given`, or the size of the smallest class in the database.

    Args:
        labels: the database's, (N,) or 0/1 (N, C).
    Raises:
        InputError: `given` is larger than the database.
    """
    if given is None:
        return smallest_class(labels)
    if given > len(labels):
        raise InputError(f"--R {given} is larger than the database of {len(labels):,} images")
    return given
