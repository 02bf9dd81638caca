"""Cells that are not trained: classical codes, and floats, of the same frozen features."""

from __future__ import annotations

import threading
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import hamming
from benchmarks.baselines import BASELINES
from benchmarks.cells import Cell, Record, check_settings, read_json
from benchmarks.methods import FLOATS, TITLES, TRAINED
from datasets.base import PairedDataset
from engine.backbones import preprocessing_of
from engine.cli import Compute, cache_folder
from engine.files import atomic_file, write_json
from engine.monitor import choose_R
from engine.run import environment
from myautoencoder.features import dataset_features
from utils import collapse_warning, setup_device, sha256_of


class Classical:
    """The classical methods on one seed's split; features are read only if a cell is missing."""

    def __init__(self, args: Namespace, folder: Path, dataset: PairedDataset, seed: int) -> None:
        """args: of the table. folder: where its cells lie. seed: of the split, and of the codes."""
        self.args, self.folder, self.dataset, self.seed = args, folder, dataset, seed
        self.labels = dataset.labels[dataset.query], dataset.database_labels
        self.R = choose_R(None, self.labels[1])
        self.device = str(setup_device("auto"))
        self.features = cache(self._features)

    # Each of them takes all cores, and the first reads the features for all.
    alone = threading.Lock()

    def cells(self, methods: Sequence[str]) -> list[Cell]:
        """A cell for each of the methods that is not trained and each length; floats have none."""
        cells = []
        for name in methods:
            if name in TRAINED:
                continue
            for bits in [None] if name in FLOATS else self.args.hash_bit:
                length = "" if bits is None else f"-{bits}bit"
                said = "" if bits is None else f", {bits} bits"
                folder = self.folder / f"{name}{length}-{self.seed}"
                cells.append(Cell(folder, f"{TITLES[name]}{said}, seed {self.seed}",
                                  partial(self._read_or_make, folder, name, bits),
                                  key=(name, bits, self.seed)))
        return cells

    def _read_or_make(self, cell: Path, name: str, bits: int | None) -> Record:
        if (cell / "results.json").exists():
            check_settings(cell, self._settings(name))
        else:
            with self.alone:
                self._make(cell, name, bits)
        results = read_json(cell / "results.json")
        record = {"bits": bits, "seed": self.seed, "cell": cell.name, "map": results["map"],
                  "R": results["R"], "chance": results["map_chance"],
                  "train_seconds": results["seconds"]}
        if bits is not None:
            record |= {"map_min": results["map_min"], "map_max": results["map_max"],
                       "warnings": results.get("warnings", [])}  # older cells have none
        return record

    def _settings(self, name: str) -> dict[str, Any]:
        flags = ["backbone", "weights", "data_name", "source1", "split_dir", "max_per_class",
                 "bands1", "range1"]
        if name == "float-both":
            flags += ["source2", "bands2", "range2"]
        if self.args.weights_content is not None:
            flags.append("weights_content")
        return {**{flag: getattr(self.args, flag) for flag in flags}, "seed": self.seed,
                "fingerprint": self.dataset.fingerprint, "content": self._content(name)}

    def _content(self, name: str) -> str:
        """Changes with the images that a method sees."""
        sources = self.dataset.sources[:2 if name == "float-both" else 1]
        cache_dir = cache_folder(self.args)
        return sha256_of(*[source.stamp(cache_dir) for source in sources])[:16]

    def _features(self, both: bool) -> list[Tensor]:
        """Frozen features of source 1, or of both: float64 (N, d), rows as in the dataset."""
        compute = Compute(torch.device(self.device), cache_dir=cache_folder(self.args))
        dataset = self.dataset if both else replace(self.dataset, source2=None)
        settings = {"feature_backbone": self.args.backbone, "feature_weights": self.args.weights,
                    "image_size": preprocessing_of(self.args.backbone).image_size, "amp": False}
        arrays, _ = dataset_features(dataset, settings, self.args.weights, compute)
        return [torch.from_numpy(np.array(x)).double() for x in arrays]

    def _make(self, cell: Path, name: str, bits: int | None) -> None:
        begun = time.time()
        features = self.features(name == "float-both")
        cell.mkdir(parents=True, exist_ok=True)
        write_json(cell / "config.json", {**self._settings(name), "environment": environment()})
        if bits is None:
            results = self._measure_floats(features)
        else:
            results = self._measure_codes(cell, BASELINES[name], features[0], bits)
        write_json(cell / "results.json", {**results, "seconds": round(time.time() - begun, 2)})

    def _measure_floats(self, features: Sequence[Tensor]) -> dict[str, Any]:
        """mAP@R by cosine of features centred by the training images; of two, by their mean."""
        train = torch.from_numpy(self.dataset.train)
        parts = [torch.nn.functional.normalize(x - x[train].mean(dim=0)) for x in features]
        unit = torch.cat(parts, dim=1).float().numpy()
        value = hamming.float_map(unit[self.dataset.query], unit[self.dataset.database],
                                  *self.labels, R=self.R, device=self.device)
        # Codes that are all alike are ranked at random.
        alike = [np.zeros((len(part), 1), np.uint8) for part in self.labels]
        tables = hamming.distance_histograms(*alike, *self.labels, hash_bit=1)
        return {"map": value, "map_chance": float(hamming.chance_ap(tables, self.R).mean()),
                "R": self.R}

    def _measure_codes(self, cell: Path, method: Any, x: Tensor, bits: int) -> dict[str, Any]:
        """Codes of `bits` bits, kept in codes.npz, and their evaluation."""
        encode = method(x[torch.from_numpy(self.dataset.train)], bits, self.seed)
        query, database = (hamming.pack_codes(encode(x[torch.from_numpy(rows)]).numpy())
                           for rows in (self.dataset.query, self.dataset.database))
        results = hamming.evaluate(query, database, *self.labels, hash_bit=bits, R=self.R,
                                   device=self.device)
        with atomic_file(cell / "codes.npz") as file:
            np.savez(file, query_codes=query, database_codes=database,
                     query_labels=self.labels[0], database_labels=self.labels[1], hash_bit=bits)
        constant = hamming.constant_bits(database, bits)
        return {**results, "warnings": [collapse_warning(constant, bits)] if constant else []}
