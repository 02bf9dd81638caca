"""Generated scenes, so that the pipeline can be seen at work without a download."""

from __future__ import annotations

from datasets.base import DataConfig, Scenes, reject_source1, scenes_of_files
from datasets.demo_scenes import make_demo
from datasets.sources import RGB
from utils import InputError, resolve_path


def scenes(config: DataConfig) -> Scenes:
    """Draw the scenes of --seed where they are not in --data_dir yet."""
    reject_source1(config, "demo")
    if config.source2 not in (None, "none", "fine"):
        raise InputError(f"--source2 {config.source2} is not known for demo: leave it out, or use "
                         "none")
    root = make_demo(resolve_path(config.data_dir), config.split_seed)
    views = ["coarse"] if config.source2 == "none" else ["coarse", "fine"]
    return scenes_of_files(config, [(root / view, RGB) for view in views],
                           ("coarse", "fine" if "fine" in views else "none"),
                           note="generated images")
