"""Cells of this process: classical and deep baselines, and floats, of the same frozen features."""

from __future__ import annotations

import threading
import time
from argparse import Namespace
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import hamming
from benchmarks.baselines import BASELINES, Encoder
from benchmarks.cells import Cell, Record, check_settings, read_json
from benchmarks.deep import DEEP, joined_views, settings_of, train_head
from benchmarks.methods import BOTH, FLOATS, TITLES, TRAINED
from datasets.base import PairedDataset
from engine.backbones import preprocessing_of
from engine.cli import Compute, cache_folder
from engine.files import atomic_file, write_json
from engine.monitor import choose_R
from engine.run import environment
from myautoencoder.features import FeatureExtractor, frozen_backbone
from utils import collapse_warning, setup_device, sha256_of


class Classical:
    """The methods of this process on one seed's split; features are read if a cell is missing."""

    def __init__(self, args: Namespace, folder: Path, dataset: PairedDataset, seed: int) -> None:
        """args: of the table. folder: where its cells lie. seed: of the split, and of the codes."""
        self.args, self.folder, self.dataset, self.seed = args, folder, dataset, seed
        self.labels = dataset.labels[dataset.query], dataset.database_labels
        self.R = choose_R(None, self.labels[1])
        self.device = str(setup_device("auto"))
        self.views = 1  # how many are extracted: one method's eight are also another's one
        self.views_of = cache(self._views_of)

    # Each of them takes all cores, and the first reads the features for all.
    alone = threading.Lock()

    def cells(self, methods: Sequence[str]) -> list[Cell]:
        """A cell for each of the methods of this process and each length; floats have none."""
        cells = []
        if any(name in DEEP or name == "float-views" for name in methods):
            self.views = self.args.views
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
        results = read_json(cell / "results.json", "map", "R", "map_chance", "seconds",
                            *(["map_min", "map_max"] if bits else []))
        made = read_json(cell / "config.json", "environment")["environment"]
        record = {"bits": bits, "seed": self.seed, "cell": cell.name, "map": results["map"],
                  "R": results["R"], "chance": results["map_chance"],
                  "train_seconds": results["seconds"], "device": made["cuda"] or "cpu",
                  "commit": made["git_commit"]}
        if bits is not None:
            record |= {"map_min": results["map_min"], "map_max": results["map_max"],
                       "warnings": results.get("warnings", [])}  # older cells have none
        return record

    def _settings(self, name: str) -> dict[str, Any]:
        flags = ["backbone", "weights", "data_name", "source1", "split_dir", "max_per_class",
                 "bands1", "range1"]
        if name in BOTH:
            flags += ["source2", "bands2", "range2"]
        if self.args.weights_content is not None:
            flags.append("weights_content")
        head = settings_of(name) if name in DEEP else {}
        if name in DEEP or name == "float-views":
            flags.append("views")
        return {**{flag: getattr(self.args, flag) for flag in flags}, **head, "seed": self.seed,
                "fingerprint": self.dataset.fingerprint, "content": self._content(name)}

    def _content(self, name: str) -> str:
        """Changes with the images that a method sees."""
        sources = self.dataset.sources[:2 if name in BOTH else 1]
        cache_dir = cache_folder(self.args)
        return sha256_of(*[source.stamp(cache_dir) for source in sources])[:16]

    def _views_of(self, number: int) -> np.ndarray:
        """Frozen features of V views of a source (0 or 1): float32 (N, V, d), rows as in the
        dataset.
        """
        settings = {"feature_backbone": self.args.backbone,
                    "image_size": preprocessing_of(self.args.backbone).image_size}
        compute = Compute(torch.device(self.device), cache_dir=cache_folder(self.args))
        extractor = FeatureExtractor(frozen_backbone(settings, self.args.weights), compute,
                                     self.views)
        features = extractor.of_source(self.dataset.sources[number],
                                       self.dataset.file_label(number))
        return features.reshape(len(features), self.views, -1)

    def _features(self, number: int, views: int = 1) -> Tensor:
        """Frozen features of a source, the mean of its first views: float64 (N, d)."""
        return torch.from_numpy(self.views_of(number)[:, :views].mean(axis=1)).double()

    def _make(self, cell: Path, name: str, bits: int | None) -> None:
        begun = time.time()
        cell.mkdir(parents=True, exist_ok=True)
        write_json(cell / "config.json", {**self._settings(name), "environment": environment()})
        if bits is None:
            views = self.args.views if name == "float-views" else 1
            results = self._measure_floats([self._features(number, views)
                                            for number in range(1 + (name in BOTH))])
        else:
            learn = self._learn_deep if name in DEEP else self._learn_classical
            results = self._measure_codes(cell, *learn(name, bits), bits)
        write_json(cell / "results.json", {**results, "seconds": round(time.time() - begun, 2)})

    def _learn_classical(self, name: str, bits: int) -> tuple[Encoder, Tensor]:
        """What turns features into values, learnt from the training images; all images' features.
        """
        x = self._features(0)
        return BASELINES[name](x[torch.from_numpy(self.dataset.train)], bits, self.seed), x

    def _learn_deep(self, name: str, bits: int) -> tuple[Encoder, Tensor]:
        """As _learn_classical; it learns from views, and hashes the images as they are."""
        sources = [self.views_of(0)[self.dataset.train]]
        if name in BOTH:  # of which the mean is enough
            sources.append(self.views_of(1)[self.dataset.train].mean(axis=1, keepdims=True))
        views = [torch.from_numpy(x).to(self.device) for x in sources]
        method = DEEP[name]()
        similar = joined_views(views, method.centred)
        encode = train_head(method, views[0], similar, bits, self.seed)
        return encode, torch.from_numpy(np.array(self.views_of(0)[:, 0])).to(self.device)

    def _measure_floats(self, features: Sequence[Tensor]) -> dict[str, Any]:
        """AP@R by cosine of features centred by the training images; of two, by their mean."""
        train = torch.from_numpy(self.dataset.train)
        parts = [torch.nn.functional.normalize(x - x[train].mean(dim=0)) for x in features]
        unit = torch.cat(parts, dim=1).float().numpy()
        ap = hamming.float_ap(unit[self.dataset.query], unit[self.dataset.database],
                              *self.labels, R=self.R, device=self.device)
        # Codes that are all alike are ranked at random.
        alike = [np.zeros((len(part), 1), np.uint8) for part in self.labels]
        tables = hamming.distance_histograms(*alike, *self.labels, hash_bit=1)
        return {"map": float(ap.mean()), "ap": ap.tolist(), "R": self.R,
                "map_chance": float(hamming.chance_ap(tables, self.R).mean())}

    def _measure_codes(self, cell: Path, encode: Encoder, x: Tensor, bits: int) -> dict[str, Any]:
        """Codes of `bits` bits of features x (N, d), kept in codes.npz, and their evaluation."""
        values = encode(x).cpu().numpy()
        query, database = (hamming.pack_codes(values[rows])
                           for rows in (self.dataset.query, self.dataset.database))
        results = hamming.evaluate(query, database, *self.labels, hash_bit=bits, R=self.R,
                                   device=self.device)
        with atomic_file(cell / "codes.npz") as file:
            np.savez(file, query_codes=query, database_codes=database,
                     query_labels=self.labels[0], database_labels=self.labels[1], hash_bit=bits)
        constant = hamming.constant_bits(database, bits)
        return {**results, "warnings": [collapse_warning(constant, bits)] if constant else []}
