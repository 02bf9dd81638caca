"""Datasets by name: paired image sources, labels, and the split into training, database and queries.

`load_dataset(DataConfig(...))` is the one entrance. Images, labels and list files are matched by name,
never by position. Pixels are read by image_sources.py, decoded once by image_store.py, and turned into
frozen features by features.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from image_sources import (
    IMAGE_SUFFIXES,
    Folder,
    Hdf5Images,
    ImageFiles,
    ImageSource,
    Zip,
    decode_rgb,
    decode_swir,
    decode_wald_ms,
    decode_wald_pan,
    open_container,
    require,
)
from utils import InputError, resolve_path, sha256_of

DATASETS = {"eurosat": "EuroSAT", "dsrsid": "DSRSID", "ucmerced": "UCMerced", "pairs": "pairs",
            "demo": "demo"}
DSRSID_CLASSES = ("aquafarm", "cloud", "forest", "high building", "low building", "farm land", "river",
                  "water")
QUERIES_PER_CLASS = {"EuroSAT": 100, "DSRSID": 625, "UCMerced": 10}  # published, or DESIGN's choice
SPLIT_FILES = {"train": "train.txt", "database": "database.txt", "query": "test.txt"}


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

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class PairedDataset:
    """N scenes seen by one or two sources.

    names: N distinct names. labels: int64 (N,), or uint8 0/1 (N, C), or None. train, database, query:
    int64 rows. source2 is None when there is no second view. note: what a reader of a number on this
    dataset must know (simulated sensors, generated images), or "".
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


def _first(items: Iterable[Any], total: int) -> str:
    shown = [str(item) for item, _ in zip(items, range(3), strict=False)]
    return ", ".join(shown) + (f" and {total - len(shown):,} more" if total > len(shown) else "")


def _key(path: str, depth: int) -> str:
    """The name of a scene: the last `depth` parts of the path without the extension (0: all parts)."""
    parts = PurePosixPath(path.replace("\\", "/"))
    parts = parts.with_suffix("").parts if parts.name else parts.parts
    return "/".join(parts[-depth:] if depth else parts)


def _by_key(container: Folder | Zip, depth: int) -> dict[str, str]:
    """Scene name -> file. Raises InputError when two files have the same name."""
    files: dict[str, str] = {}
    for path in container.files:
        key = _key(path, depth)
        if key in files:
            raise InputError(f"{container.root} has two images named {key}: {files[key]} and {path}")
        files[key] = path
    return files


def _matched(first: dict[str, str], second: dict[str, str], where: tuple[Path, Path]) -> list[str]:
    """The common names, sorted. Raises InputError that names the first ones without a partner."""
    for ours, theirs, here, there in ((first, second, *where), (second, first, *where[::-1])):
        alone = sorted(ours.keys() - theirs.keys())
        if alone:
            raise InputError(f"{len(alone):,} images of {here} have no partner of the same name in "
                             f"{there}: {_first(alone, len(alone))}")
    return sorted(first)


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
                         f"{_first(flat, len(flat))}")
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
    h5py = require("h5py", "DSRSID.mat")

    try:
        with h5py.File(root, "r") as file:
            count = file[keys[first]].shape[0]
            types = np.asarray(file["LAND_COVER_TYPES"]).reshape(-1)
    except (OSError, KeyError, AttributeError, IndexError) as error:
        raise InputError(f"{root} is not DSRSID as published, an HDF5 file with MUL_IMAGES, PAN_IMAGES "
                         f"and LAND_COVER_TYPES ({error})") from None
    if not count or len(types) != count or types.min() < 1 or types.max() > len(DSRSID_CLASSES):
        limits = f" from {types.min()} to {types.max()}" if len(types) else ""
        raise InputError(f"{root}: LAND_COVER_TYPES holds {len(types):,} values{limits}, expected "
                         f"{max(count, 1):,} from 1 to {len(DSRSID_CLASSES)}")
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
    from demo_data import make_demo

    _reject_source1(config, "demo")
    if config.source2 not in (None, "none", "fine"):
        raise InputError(f"--source2 {config.source2} is not known for demo: leave it out, or use none")
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


# ---------------------------------------------------------------- splits


def _read_list(path: Path) -> tuple[list[str], np.ndarray | None]:
    """A published list file: a path and a one-hot (or multi-hot) label a line, the label optional."""
    paths, rows = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        # A path may hold spaces: it goes up to the field with an image's extension.
        end = max((position for position, field in enumerate(fields)
                   if PurePosixPath(field).suffix.lower() in IMAGE_SUFFIXES), default=0)
        fields = [" ".join(fields[:end + 1]), *fields[end + 1:]]
        if any(field not in ("0", "1") for field in fields[1:]) or (fields[1:] and "1" not in fields[1:]):
            raise InputError(f"{path}, line {number}: expected a path and a label of 0 and 1 with at least "
                             f"one 1, found {line[:80]!r}")
        if rows and len(fields) - 1 != len(rows[0]):
            raise InputError(f"{path}, line {number}: {len(fields) - 1} label values, the lines before "
                             f"have {len(rows[0])}")
        paths.append(fields[0])
        rows.append([field == "1" for field in fields[1:]])
    if not paths:
        raise InputError(f"{path} is empty: expected a path and a label a line")
    return paths, np.array(rows, dtype=np.uint8) if rows[0] else None


def _split_by_lists(scenes: _Scenes, folder: Path) -> tuple[dict[str, np.ndarray], np.ndarray | None,
                                                            list[str]]:
    """Rows of each part in the order of its list, and the labels that the lists give."""
    depths = sorted({name.count("/") + 1 for name in scenes.names}, reverse=True)
    lookup = {name: row for row, name in enumerate(scenes.names)}
    given: dict[int, np.ndarray] = {}
    parts: dict[str, np.ndarray] = {}
    if not (folder / SPLIT_FILES["query"]).is_file():
        raise InputError(f"--split_dir {folder} has no test.txt: expected train.txt, database.txt and "
                         "test.txt, a path and a one-hot label a line")
    for part, file_name in SPLIT_FILES.items():
        path = folder / file_name
        if not path.is_file():
            continue
        paths, labels = _read_list(path)
        keys = [next((key for depth in depths if (key := _key(item, depth)) in lookup),
                     _key(item, depths[0])) for item in paths]
        unknown = [key for key in keys if key not in lookup]
        if unknown:
            raise InputError(f"{path} lists {len(unknown):,} images that the dataset does not have: "
                             f"{_first(unknown, len(unknown))}")
        twice = [key for key, count in Counter(keys).items() if count > 1]
        if twice:
            raise InputError(f"{path} lists {len(twice):,} images twice: {_first(twice, len(twice))}")
        parts[part] = np.array([lookup[key] for key in keys], dtype=np.int64)
        for row, label in zip(parts[part], labels if labels is not None else (), strict=False):
            if row in given and not np.array_equal(given[row], label):
                raise InputError(f"{path} and another list of {folder} give {scenes.names[row]} different "
                                 "labels")
            given[row] = label
    if "train" not in parts and "database" not in parts:
        raise InputError(f"--split_dir {folder} has neither train.txt nor database.txt")
    parts.setdefault("train", parts.get("database"))
    parts.setdefault("database", parts["train"])
    if not given:
        return parts, scenes.labels, scenes.class_names
    return parts, *_labels_of_lists(scenes, given, parts, folder)


def _labels_of_lists(scenes: _Scenes, given: dict[int, np.ndarray], parts: dict[str, np.ndarray],
                     folder: Path) -> tuple[np.ndarray, list[str]]:
    """int64 (N,) when every row is one-hot, else uint8 (N, C); and the names of the classes."""
    rows = np.unique(np.concatenate(list(parts.values())))
    if len({len(given[row]) if row in given else 0 for row in rows}) != 1:
        raise InputError(f"the lists of {folder} have labels of different lengths, or some have none")
    matrix = np.zeros((len(scenes.names), len(given[rows[0]])), dtype=np.uint8)
    matrix[rows] = [given[row] for row in rows]
    names = [str(column) for column in range(matrix.shape[1])]
    if (matrix[rows].sum(axis=1) > 1).any():
        return matrix, names
    labels = matrix.argmax(axis=1).astype(np.int64)
    if scenes.labels is not None:
        # The numbering may differ from ours (the published one does); the grouping may not.
        folder_of: dict[int, int] = {}
        column_of: dict[int, int] = {}
        for row in rows:
            column, own = int(labels[row]), int(scenes.labels[row])
            if folder_of.setdefault(column, own) != own or column_of.setdefault(own, column) != column:
                raise InputError(f"the lists of {folder} give {scenes.names[row]} label {column}, but "
                                 f"label and class folder do not go together elsewhere in the lists")
            names[column] = scenes.class_names[own]
    return labels, names


def _split_by_seed(name: str, labels: np.ndarray | None, class_names: list[str], count: int, seed: int
                   ) -> dict[str, np.ndarray]:
    """Draw the queries: the published number per class, or a tenth of the smallest class."""
    generator = np.random.default_rng(seed)
    if count < 2:
        raise InputError(f"{name} has {count} image only: one is needed as a query and one in the database")
    if labels is None:
        queries = generator.choice(count, size=max(1, min(1000, count // 10)), replace=False)
    else:
        classes, sizes = np.unique(labels, return_counts=True)  # a number may be without images
        smallest = int(sizes.min())
        if smallest < 2:
            alone = [class_names[label] for label in classes[sizes < 2]]
            raise InputError(f"{len(alone):,} classes of {name} have fewer than 2 images: "
                             f"{_first(alone, len(alone))}; one is needed as a query and one in the "
                             "database: remove the class or add images")
        each = max(1, min(QUERIES_PER_CLASS.get(name, smallest), smallest // 10))
        queries = np.concatenate([generator.choice(np.flatnonzero(labels == label), each, replace=False)
                                  for label in classes])
    rest = np.setdiff1d(np.arange(count), queries)
    return {"train": rest, "database": rest, "query": np.sort(queries)}


def _limit(rows: np.ndarray, labels: np.ndarray | None, limit: int, seed: int) -> np.ndarray:
    """At most `limit` rows of each class (all together when there are no labels), order kept."""
    order = np.random.default_rng(seed).permutation(len(rows))
    group = np.zeros(len(rows), np.int64) if labels is None else (
        labels[rows] if labels.ndim == 1 else labels[rows].argmax(axis=1))
    kept = np.concatenate([order[group[order] == value][:limit] for value in np.unique(group)])
    return rows[np.sort(kept)]


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
        parts, labels, class_names = _split_by_lists(scenes, split_dir)
        if limit:
            parts = {part: _limit(rows, labels, limit, seed) for part, rows in parts.items()}
    else:
        rows = np.arange(len(scenes.names))
        rows = _limit(rows, labels, limit, seed) if limit else rows
        drawn = _split_by_seed(name, None if labels is None else labels[rows], class_names, len(rows), seed)
        parts = {part: rows[chosen] for part, chosen in drawn.items()}
    for part in ("train", "database"):
        shared = np.intersect1d(parts["query"], parts[part])
        if len(shared):
            raise InputError(f"{len(shared):,} queries are also in the {part} set: "
                             f"{_first((scenes.names[row] for row in shared), len(shared))}")
    used = np.unique(np.concatenate(list(parts.values())))
    if labels is not None and len(np.unique(labels[used], axis=0)) < 2:
        raise InputError(f"{name} has images of one class only: retrieval needs at least two")
    sources = scenes.make_sources(used)
    return PairedDataset(
        name=name, names=[scenes.names[row] for row in used], source1=sources[0],
        source2=sources[1] if len(sources) == 2 else None,
        labels=None if labels is None else labels[used], class_names=class_names,
        **{part: np.searchsorted(used, rows) for part, rows in parts.items()},
        source_names=scenes.source_names, note=scenes.note)
