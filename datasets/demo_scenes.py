"""The scenes of the data set `demo`, drawn.

A scene is a patchwork of two or three land covers; the one that fills most of it is its class. The
fine view (128x128) shows rows, roofs and waves; the coarse view (32x32) is its 4x4 average with
sensor noise, so the second source knows more than the first, as in the paper's setting.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from engine.files import writing

SCENES_PER_CLASS = 60
FINE, RATIO = 128, 4
VERSION = 2  # part of the folder's name: a changed drawing makes a new folder


def _waves(generator: np.random.Generator, period: float, angle: float) -> np.ndarray:
    y, x = np.mgrid[:FINE, :FINE]
    phase = generator.uniform(0, 2 * np.pi)
    return np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period + phase)


def _noise(generator: np.random.Generator, smooth: float) -> np.ndarray:
    field = gaussian_filter(generator.standard_normal((FINE, FINE)), smooth, mode="wrap")
    return field / field.std()


def _blocks(generator: np.random.Generator, cell: int, fill: float) -> np.ndarray:
    """Roofs: axis-parallel rectangles, one a cell, each with its own brightness in 0.5..1."""
    picture = np.zeros((FINE, FINE))
    margin = max(1, cell // 6)
    for top in range(0, FINE, cell):
        for left in range(0, FINE, cell):
            if generator.random() < fill:
                bottom, right = top + cell - margin, left + cell - generator.integers(0, 2 * margin)
                picture[top + margin:bottom, left + margin:right] = generator.uniform(0.5, 1.0)
    return picture


def _cover(kind: str, generator: np.random.Generator) -> np.ndarray:
    """One land cover over the whole scene; float (128, 128, 3), roughly 0..255."""
    angle = generator.uniform(0, np.pi)
    flat = np.ones((FINE, FINE, 1))
    if kind == "water":
        waves = _waves(generator, 9, angle)[..., None]
        return flat * [25, 55, 120] + 6 * waves + 5 * _noise(generator, 6)[..., None]
    if kind == "forest":
        return flat * [30, 72, 36] + _noise(generator, 1.6)[..., None] * [9, 14, 8]
    if kind == "crops":
        green = generator.uniform(0.2, 0.8)
        base = green * np.array([165, 165, 75]) + (1 - green) * np.array([205, 180, 100])
        rows = _waves(generator, generator.uniform(6, 9), angle)[..., None]
        return flat * base + 16 * rows
    if kind == "meadow":
        return flat * [105, 160, 85] + 7 * _noise(generator, 7)[..., None]
    if kind == "houses":
        cell, fill, roof, ground = 12, 0.75, [205, 105, 80], [125, 112, 95]
    else:  # industry
        cell, fill, roof, ground = 30, 0.85, [215, 215, 222], [125, 123, 122]
    roofs = _blocks(generator, cell, fill)[..., None]
    return np.where(roofs > 0, roofs * roof, flat * ground) + 4 * _noise(generator, 1)[..., None]


CLASSES = ("crops", "forest", "houses", "industry", "meadow", "water")


def _scene(kind: str, generator: np.random.Generator) -> np.ndarray:
    """One fine view, uint8 (128, 128, 3): the class fills about three quarters."""
    picture = _cover(kind, generator)
    others = generator.choice([other for other in CLASSES if other != kind],
                              generator.integers(1, 3), replace=False)
    for other in others:
        field = _noise(generator, 14)
        share = generator.uniform(0.05, 0.18)
        picture = np.where((field > np.quantile(field, 1 - share))[..., None],
                           _cover(str(other), generator), picture)
    picture = picture * generator.uniform(0.93, 1.07) + generator.uniform(-5, 5)  # sun and haze
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _coarse(fine: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The same scene seen by a coarser and noisier sensor, uint8 (32, 32, 3)."""
    small = FINE // RATIO
    coarse = fine.reshape(small, RATIO, small, RATIO, 3).mean(axis=(1, 3))
    noisy = coarse + generator.normal(0, 4, coarse.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def demo_folder(data_dir: Path, seed: int) -> Path:
    """Where the scenes of `seed` lie or will lie."""
    return data_dir / f"demo-v{VERSION}-seed{seed}"


def make_demo(data_dir: Path, seed: int) -> Path:
    """Draw the scenes of `seed` once below `data_dir`; returns the folder of coarse/ and fine/.

    Drawn aside and renamed when whole, so an interrupted drawing leaves nothing half done.
    """
    folder = demo_folder(data_dir, seed)
    if folder.is_dir():
        return folder
    with writing(folder):
        return _draw(folder, seed)


def _draw(folder: Path, seed: int) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".demo-"))
    try:
        for number, kind in enumerate(CLASSES):
            for view in ("coarse", "fine"):
                (aside / view / kind).mkdir(parents=True)
            for scene in range(SCENES_PER_CLASS):
                generator = np.random.default_rng([seed, number, scene])
                fine = _scene(kind, generator)
                name = f"{kind}/{kind}_{scene:03d}.png"
                Image.fromarray(fine).save(aside / "fine" / name)
                Image.fromarray(_coarse(fine, generator)).save(aside / "coarse" / name)
        (aside / "demo.json").write_text(json.dumps({"seed": seed, "version": VERSION}) + "\n")
        os.chmod(aside, 0o755)
        os.rename(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        if not folder.is_dir():  # else another process was quicker with the same scenes
            raise
    return folder
