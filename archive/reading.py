"""How files become images: which bands, which range, or which simulated sensor."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from data_loader import MODULES
from datasets.bands import open_view
from datasets.base import DataConfig
from datasets.sources import Decoder, ImageFiles, ImageSource

# Data sets whose images are made from others: a model of theirs knows nothing else.
SENSORS: dict[str, Decoder] = {
    f"{name} {view}": decoder for name, module in MODULES.items()
    for view, decoder in getattr(module, "VIEWS", {}).items() if isinstance(decoder, Decoder)}


@dataclass(frozen=True)
class Reading:
    """How files become images of 8 bits; plain values, which an archive keeps.

    bands, value_range: what --bands and --range say, or None. sensor: one of SENSORS, or None.
    """

    bands: str | None = None
    value_range: str | None = None
    sensor: str | None = None

    def source(self, container: Any, files: Sequence[str] | Sequence[tuple[str, ...]]
               ) -> ImageSource:
        """The images of some files.

        Args:
            container: where they lie: what has `root` and `read_bytes`.
            files: a name for each image, or a tuple of names, one file a band.
        Raises:
            InputError: files that need other bands or another range.
        """
        if self.sensor is not None:
            return ImageFiles(container, files, SENSORS[self.sensor])
        return open_view(container, files, self.bands, self.value_range, "")

    def resolved(self, source: ImageSource) -> Reading:
        """With the numbers that percentages stand for, as drawn from all of a source."""
        return replace(self, value_range=source.value_range)

    @property
    def text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of_text(cls, text: str) -> Reading:
        return cls(**json.loads(text))

    def describe(self) -> str:
        """One phrase for the user."""
        if self.sensor is not None:
            return f"through the simulated sensor of {self.sensor}, as the model was trained"
        parts = [f"bands {self.bands}"] if self.bands else []
        parts += [f"range {self.value_range}"] if self.value_range else []
        return ", ".join(parts) or "as they are"


def trained_reading(data: DataConfig) -> Reading:
    """How the images that a model hashes were read when it was trained."""
    sensor = f"{data.data_name} {(data.source1 or 'ms').lower()}"
    if sensor in SENSORS:
        return Reading(sensor=sensor)
    return Reading(data.bands1, data.range1)
