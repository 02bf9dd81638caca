"""An archive: a folder of codes.npy, items.sqlite and the model that made them.

The database is what counts: it holds the codes, too, and says how many rows of codes.npy are good.
So a process may be killed at any moment, and codes.npy may be lost.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from archive.codes import GrowingArray
from archive.items import Item, Items
from archive.model import HashModel
from engine.files import atomic_file, check_writable, lock
from hamming import nearest_and_ties
from utils import InputError, rank, warn

MODEL, ITEMS, CODES, OUTPUTS = "model.pth", "items.sqlite", "codes.npy", "outputs.npy"


class Archive:
    """Items by number, 0 and on, with their codes; a number is never given twice.

    folder: where it lies. hash_bit: K. count: numbers given so far, of which some may be removed.
    codes: packed, uint8 (count, ceil(K/8)), memory-mapped. outputs: of the hash network, float16
    (count, K), or None where they are not kept.
    """

    def __init__(self, folder: Path) -> None:
        """Open one. Raises InputError: none is there, or it is damaged."""
        self.folder = folder
        if not (folder / ITEMS).is_file():
            raise InputError(f"{folder} is no archive, which has {ITEMS} and {CODES}: make one "
                             "with search.py add")
        self.items = Items(folder / ITEMS)
        self._read_state()

    @classmethod
    def create(cls, folder: Path, model: HashModel, keep_outputs: bool = False) -> Archive:
        """A new archive for the codes of a model, a copy of which it keeps.

        Raises:
            InputError: something else lies in the folder, or it cannot be written.
        """
        check_writable(folder, "--archive")
        left = {MODEL, ".lock"}  # by one that was killed while it began
        foreign = sorted(entry.name for entry in folder.iterdir()
                         if entry.name not in left and not entry.name.endswith(".part"))
        if foreign and ITEMS not in foreign:
            raise InputError(f"--archive {folder} is no archive, but holds {foreign[0]}: name a "
                             "new or empty folder")
        with lock(folder / ".lock", f"another process is changing {folder}"):
            if (folder / ITEMS).exists():
                raise InputError(f"another process has begun {folder}: add again")
            for old in (folder / MODEL, *folder.glob(f".{MODEL}.*.part")):
                old.unlink(missing_ok=True)  # left as above; without it the disk may have room
            with atomic_file(folder / MODEL) as file, open(model.path, "rb") as source:
                shutil.copyfileobj(source, file)
            Items.create(folder / ITEMS, {
                "model": model.digest, "hash_bit": model.hash_bit, "count": 0,
                "codes_checksum": 0, "outputs_checksum": 0 if keep_outputs else None})
        return cls(folder)

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.items.close()

    def _read_state(self) -> None:
        state = self.items.settings()
        try:
            self.hash_bit, self.count = int(state["hash_bit"]), int(state["count"])
            self.model_digest = str(state["model"])
            self._checksums = {CODES: int(state["codes_checksum"])}
            if state["outputs_checksum"] is not None:
                self._checksums[OUTPUTS] = int(state["outputs_checksum"])
        except (KeyError, TypeError, ValueError):
            raise self._damaged() from None
        if self.hash_bit < 1 or self.count < 0:
            raise self._damaged()
        self._files = {CODES: GrowingArray(self.folder / CODES, -(-self.hash_bit // 8), np.uint8),
                       OUTPUTS: GrowingArray(self.folder / OUTPUTS, self.hash_bit, np.float16)}
        for name in ("codes", "outputs", "numbers"):
            self.__dict__.pop(name, None)

    def _damaged(self) -> InputError:
        return InputError(f"{self.items.path} does not say what is in it: it is damaged, put a "
                          "copy back or make the archive again")

    @property
    def keeps_outputs(self) -> bool:
        return OUTPUTS in self._checksums

    def check_model(self, model: HashModel) -> None:
        """Raise InputError where the codes of the archive are of another model."""
        if model.digest == self.model_digest:
            return
        if model.path == self.folder / MODEL:
            raise InputError(f"{model.path} is not the model that made the codes of {self.folder}: "
                             "it was changed; put that one back in its place")
        raise InputError(f"{model.path} is not the model that made the codes of {self.folder}, and "
                         "codes of two models cannot be compared: leave --pretrain_path out, or "
                         "begin another archive")

    # ------------------------------------------------------------ what is in it

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Inside, all is as it was at one moment; others who write wait so long."""
        with self.items.transaction("DEFERRED"):
            self._read_state()
            yield

    @cached_property
    def codes(self) -> np.ndarray:
        rows = self._load(CODES)
        return self._codes_of_items() if rows is None else rows

    @cached_property
    def outputs(self) -> np.ndarray | None:
        if not self.keeps_outputs:
            return None
        rows = self._load(OUTPUTS)
        if rows is None:
            raise InputError(f"{self.folder / OUTPUTS} is cut short or damaged, and nothing else "
                             "holds the outputs: search without --rerank, or make the archive "
                             "again with --keep_outputs")
        return rows

    def _load(self, name: str) -> np.ndarray | None:
        """The rows that count; None where the file does not hold them."""
        rows = self._files[name].load(self.count)
        if rows is None or self._files[name].checksum(rows) != self._checksums[name]:
            return None
        return rows

    def _codes_of_items(self) -> np.ndarray:
        """The codes from the database, where codes.npy was lost, cut or changed."""
        warn(f"{self.folder / CODES} is cut short or damaged: its codes are taken from {ITEMS}, "
             "and the next add mends it")
        codes = np.zeros((self.count, self._files[CODES].width), np.uint8)
        found = 0
        for number, code in self.items.codes():
            if number >= self.count or len(code) != codes.shape[1]:
                raise self._damaged()
            codes[number] = np.frombuffer(code, np.uint8)
            found += 1
        if found + len(self.items.removed()) != self.count:
            raise self._damaged()
        return codes

    @cached_property
    def numbers(self) -> np.ndarray | None:
        """The items that are there, int64, in order; None: all."""
        removed = self.items.removed()
        return np.delete(np.arange(self.count), removed) if removed else None

    def __len__(self) -> int:
        return self.count if self.numbers is None else len(self.numbers)

    def check_filled(self) -> None:
        """Raise InputError where nothing is in it."""
        if not len(self):
            raise InputError(f"{self.folder} has no items: add some first")

    def nearest(self, queries: np.ndarray, k: int, among: np.ndarray | None = None
                ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The k nearest items of each query, exact, equal distances by number.

        Args:
            queries: packed codes, uint8 (Q, ceil(K/8)).
            k: fewer are found where there are not as many.
            among: int64 (M,), numbers of the items that count, in order; None: all.
        Returns:
            numbers int64 (Q, k), distances int32 (Q, k), and how many items have the last
            distance, int64 (Q,).
        """
        if among is None:
            among = self.numbers
        codes = self.codes if among is None else self.codes[among]
        if not len(codes):
            empty = np.zeros((len(queries), 0), np.int64)
            return empty, empty.astype(np.int32), np.zeros(len(queries), np.int64)
        found, distances, ties = nearest_and_ties(queries, codes, self.hash_bit,
                                                  min(k, len(codes)))
        return found if among is None else among[found], distances, ties

    # ------------------------------------------------------------ changing it

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Alone: a second writer is refused. What others have added is seen from here on.

        Of the ranks of torchrun the first one writes, and nothing happens on others.
        """
        if rank():
            yield
            return
        check_writable(self.folder, "--archive")
        with lock(self.folder / ".lock", f"another process is changing {self.folder}"):
            self._read_state()
            if self._load(CODES) is None:
                codes = self._codes_of_items()
                self._files[CODES].append(0, codes)
                with self.items.transaction():  # removed items had codes, which are zeros now
                    self.items.set(codes_checksum=self._files[CODES].checksum(codes))
                self._read_state()
            _ = self.outputs  # raises where rows could not be added behind the ones that count
            yield

    def append(self, items: Sequence[Item], codes: np.ndarray, outputs: np.ndarray | None = None
               ) -> None:
        """Add items with packed codes (n, ceil(K/8)) and, where they are kept, outputs (n, K).

        Within `writing`. All of them are in the archive when this returns, or none.
        """
        rows = {CODES: codes} | ({OUTPUTS: outputs} if self.keeps_outputs else {})
        sums = {}
        for name, values in rows.items():
            self._files[name].append(self.count, values)
            sums[name] = self._files[name].checksum(values, self._checksums[name])
        kept = {"outputs_checksum": sums[OUTPUTS]} if self.keeps_outputs else {}
        with self.items.transaction():
            self.items.append(self.count, items, [code.tobytes() for code in codes])
            self.items.set(count=self.count + len(items), codes_checksum=sums[CODES], **kept)
        self._read_state()

    def remove(self, numbers: Sequence[int]) -> None:
        """Take items out; within `writing`. Others keep their numbers."""
        with self.items.transaction():
            self.items.remove(numbers)
        self._read_state()
