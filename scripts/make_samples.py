"""Make samples/images from UC Merced: the first 30 images of ten classes, at 128x128 pixels.

    python scripts/make_samples.py --data_dir data     UCMerced_LandUse.zip or its folder is there

What was in samples/images before is removed. samples/README.md says why these.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

# Started as a script in this folder, Python looks for modules here and not one level up.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image

from datasets.base import DataConfig, scenes_of_files
from datasets.samples import FOLDER, SIDE
from datasets.sources import RGB
from datasets.ucmerced import find_images
from engine.cli import run
from utils import InputError

# Told apart at sight, and fixed before anything was measured on them.
CLASSES = ("agricultural", "airplane", "baseballdiamond", "beach", "chaparral", "forest",
           "freeway", "harbor", "parkinglot", "river")
PER_CLASS = 30
QUALITY = 85  # of JPEG


def make_samples(data_dir: str, folder: Path) -> int:
    """Write <folder>/<class>/<class><nn>.jpg.

    Args:
        data_dir: where UC Merced lies.
        folder: is made anew.
    Returns:
        bytes written.
    Raises:
        InputError: UC Merced, or one of the images, is not there.
    """
    config = DataConfig(data_dir=data_dir)
    scenes = scenes_of_files(config, [(find_images(config), RGB)], ("rgb", "none"), depth=2)
    rows = {name: row for row, name in enumerate(scenes.names)}
    wanted = [f"{kind}/{kind}{number:02d}" for kind in CLASSES for number in range(PER_CLASS)]
    missing = [name for name in wanted if name not in rows]
    if missing:
        raise InputError(f"UC Merced in {data_dir} has no {missing[0]}: download it again")
    shutil.rmtree(folder, ignore_errors=True)
    for name in wanted:
        image = Image.fromarray(scenes.sources[0].read(rows[name]))
        path = folder / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Box: each new pixel is the mean of 2x2, as a coarser sensor would see it.
        image.resize((SIDE, SIDE), Image.Resampling.BOX).save(path, quality=QUALITY, optimize=True)
    return sum((folder / f"{name}.jpg").stat().st_size for name in wanted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", default="data", help="where UC Merced lies")
    args = parser.parse_args()
    size = make_samples(args.data_dir, FOLDER)
    print(f"wrote {len(CLASSES) * PER_CLASS} images, {size / 1e6:.2f} MB, to {FOLDER}")


if __name__ == "__main__":
    sys.exit(run(main))
