"""The images that a run begins with: scenes that cannot be used are left out on demand."""

from __future__ import annotations

from dataclasses import replace

from data_loader import load_dataset
from datasets.base import DataConfig, PairedDataset
from datasets.partners import Unpaired
from datasets.store import unreadable
from engine.distributed import from_first
from utils import InputError, rank, warn


def load_usable(config: DataConfig, skip_bad: bool, workers: int
                ) -> tuple[PairedDataset, DataConfig]:
    """As load_dataset, without the scenes that --skip_unpaired and --skip_bad leave out.

    Args:
        config: which images take part; its `skip_unpaired` leaves out those without a partner.
        skip_bad: leave out scenes of which an image cannot be read, too.
        workers: threads that read all of them.
    Returns:
        the dataset, and the config that names the scenes that are left out in `skip`.
    Raises:
        InputError: as load_dataset; nothing would be left; no second source to lack images.
    """
    dataset, config = _paired(config)
    if config.skip_unpaired and dataset.source2 is None:
        raise InputError("--skip_unpaired is for two sources, and there is no second one: name it "
                         "with --source2, or leave the flag out")
    bad = _unreadable_names(dataset, workers) if skip_bad else []
    if not bad:
        return dataset, config
    config = replace(config, skip=tuple(sorted([*config.skip, *bad])))
    return load_dataset(config), config


def _paired(config: DataConfig) -> tuple[PairedDataset, DataConfig]:
    try:
        return load_dataset(config), config
    except Unpaired as error:
        if not config.skip_unpaired:
            raise
        config = replace(config, skip=error.scenes)
    return load_dataset(config), config


def _unreadable_names(dataset: PairedDataset, workers: int) -> list[str]:
    """The scenes of which an image cannot be read; says so."""
    bad: dict[int, str] = {}
    if rank() == 0:
        for index, source in enumerate(dataset.sources):
            bad |= unreadable(source, dataset.file_label(index), workers)
    bad = from_first(bad)
    if bad:
        warn(f"{len(bad):,} of {len(dataset.names):,} scenes are left out, because an image cannot "
             f"be read: {'; '.join(sorted(bad.values()))}")
    return [dataset.names[row] for row in bad]
