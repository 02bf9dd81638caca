"""Files of tensors and plain values: equal content gives equal bytes, reading runs nothing.

What a checkpoint must hold is written here once, and checked before any of it is used.
"""

from __future__ import annotations

import io
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.files import atomic_file
from utils import LARGEST_SIDE, InputError, sha256_of

NUMBER = (int, float)
NAME = (str, type(None))
AUTOENCODER = {"feature_dims": list, "latent_dim": int, "encoder": str}
FEATURES = {"feature_backbone": NAME, "feature_weights": NAME, "image_size": int, "content": str,
            "amp": bool}
HASH_NETWORK = {"model_type": str, "hash_bit": int, "image_size": int, "threshold": NUMBER}
DATA = {"data_name": str, "data_dir": str, "source1": NAME, "source2": NAME, "split_dir": NAME,
        "max_per_class": (int, type(None)), "split_seed": int}
BEST = {"phase": NAME, "score": float, "epoch": (int, type(None)), "model": (dict, type(None))}

# By the value of `format`: who makes the file, and the entries that others rely on.
KINDS = {
    "mrhash-autoencoder-1": ("autoencoder.py", {
        "network": AUTOENCODER, "features": FEATURES, "data": DATA, "fingerprint": str,
        "model": {str: Tensor}}),
    "mrhash-1": ("train.py", {
        "network": HASH_NETWORK, "data": DATA, "fingerprint": str, "model": {str: Tensor}}),
    "mrhash-training-2": ("this script", {
        "finished": {str: int}, "unfinished": (dict, type(None)),
        "settings": {str: object}, "result": str, "began_with": {str: (str, Tensor)},
        "remembered": {str: Tensor}, "best": BEST, "model": {str: Tensor}, "optimizer": dict}),
}
# Entries that are newer than the first files of a kind: checked where they are there.
OPTIONAL = {"images": {str: Tensor}}
# Ranges of whole numbers, wherever they stand.
LIMITS = {"hash_bit": (1, 1024), "image_size": (1, LARGEST_SIDE), "latent_dim": (1, 65_536),
          "head_width": (0, 65_536), "neighbours": (0, 65_536), "views": (1, 8),
          "averaging_rounds": (1, 100), "split_seed": (0, 2**63)}


# ---------------------------------------------------------------- writing


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values atomically; the same content gives the same bytes."""
    # Through a buffer: torch names the folder inside the zip after the file it writes to.
    buffer = io.BytesIO()
    torch.save(_one_object_a_string(content), buffer)
    with atomic_file(path) as file:
        file.write(buffer.getbuffer())


def _one_object_a_string(content: Any) -> Any:
    """Copies of dicts and lists in which equal strings are one object.

    A pickle refers back to an object it has met, so its bytes tell whether two equal strings were
    one: a flag's default and the same word typed in the shell would give different files.
    """
    if isinstance(content, str):
        return sys.intern(str(content))
    if isinstance(content, dict):
        return {_one_object_a_string(key): _one_object_a_string(value)
                for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(_one_object_a_string(value) for value in content)
    return content


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model now, on the CPU."""
    return {name: value.cpu().clone() for name, value in model.state_dict().items()}


def content_of(stage1: dict[str, Any], weights: dict[str, Tensor]) -> str:
    """Which autoencoder a checkpoint of autoencoder.py holds, of which features: a hash.

    Paths are no part of it, so that files may be moved.
    """
    features = {key: value for key, value in stage1["features"].items()
                if key not in ("feature_weights", "files")}
    parts = []
    for entries in (stage1["network"], features):
        parts += [f"{key} {entries[key]!r}" for key in sorted(entries)]
    for name, value in weights.items():
        parts += [name, value.numpy()]
    return sha256_of(*parts)[:16]


# ---------------------------------------------------------------- reading


def load_checkpoint(path: Path, kind: str) -> dict[str, Any]:
    """Read a checkpoint of ours without unpickling anything but tensors and plain values.

    Args:
        path: the file.
        kind: what its `format` entry must say, one of KINDS.
    Raises:
        InputError: missing, unreadable, not ours, of another kind, or without an entry that KINDS
            names.
    """
    made_by, expected = KINDS[kind]
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}: expected a file made by {made_by}")
    try:
        content = load_tensors(path)
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        raise InputError(f"{path} is not a whole checkpoint of {made_by} ({reason_of(error)})"
                         ) from None
    found = content.get("format") if isinstance(content, dict) else None
    if type(found) is not str or found != kind:
        named = repr(found)[1:40].strip("'") if type(found) is str else "a foreign file"
        raise InputError(f"{path} is {named}, expected {kind} as made by {made_by}")
    newer = {name: kinds for name, kinds in OPTIONAL.items() if name in content}
    _check_entries(content, expected | newer, str(path))
    _check_values(content, expected, path)
    return content


def load_tensors(path: Path) -> Any:
    """What torch.save wrote, tensors and plain values alone.

    Raises many kinds of exceptions for another file.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            # torch packs nothing: a file with packed parts is not torch's, but a bomb.
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise ValueError("it has compressed parts")
            broken = archive.testzip()  # torch does not look at the checksums
            if broken is not None:
                raise ValueError(f"{broken[:60]} in it is damaged")
    return torch.load(path, map_location="cpu", weights_only=True)


def load_state(network: nn.Module, state: dict[str, Tensor], strict: bool = True) -> None:
    """network.load_state_dict; raises what that does.

    The versions of the layers, which MNASNet insists on, are no tensors and in no file of ours:
    they are those of `network`, whose names and shapes the tensors must have.
    """
    versioned = OrderedDict(state)
    versioned._metadata = network.state_dict()._metadata
    network.load_state_dict(versioned, strict=strict)


def differing(name: str, before: Any, now: str | Tensor) -> str:
    """What of two texts or two int64 (N,) called `name` differs, in words; empty: nothing."""
    if isinstance(now, str):
        return "" if type(before) is str and before == now else name
    plain = isinstance(before, Tensor) and before.layout == torch.strided
    if not plain or before.shape != now.shape or before.dtype != now.dtype:
        return f"the {name}"
    count = int((before != now).sum())
    return f"{count:,} of {len(now):,} {name}" if count else ""


def reason_of(error: Exception) -> str:
    """The first line of what a library says, without the advice to open a file unsafely."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return text.split(". ")[0][:120]


def _check_entries(content: Any, expected: Any, where: str) -> None:
    """Raise InputError unless `content` has the entries of `expected`.

    `expected` is a type (object: anything), a tuple of types, {str: type} for any names, or the
    entries that a dict must have.
    """
    if isinstance(expected, dict):
        if type(content) is not dict:
            raise InputError(f"{where} is {type(content).__name__}, expected a dict")
        if str in expected:
            expected = dict.fromkeys(content, expected[str])
        for key, kind in expected.items():
            if key not in content or type(key) is not str:
                raise InputError(f"{where} has no {key}: it is damaged, or of another version")
            _check_entries(content[key], kind, f"{where}: {key}")
    elif expected is not object:
        a_bool_for_a_number = type(content) is bool and expected is not bool
        if a_bool_for_a_number or not isinstance(content, expected):
            raise InputError(f"{where} is {type(content).__name__}: it is damaged, or of another "
                             "version")


def _check_values(content: dict[str, Any], expected: dict[str, Any], path: Path) -> None:
    """Raise InputError where a value would build a network that cannot be."""
    values: dict[str, Any] = {}
    for part in ("network", "features", "data"):
        values |= content[part] if part in expected else {}
    for name, (least, most) in LIMITS.items():
        value = values.get(name, least)
        if type(value) is not int or not least <= value <= most:
            raise InputError(f"{path}: {name} is {str(value)[:40]}, expected a whole number from "
                             f"{least} to {most}")
    if not abs(values.get("threshold", 0)) < 1e30:
        raise InputError(f"{path}: the threshold of its bits is no finite number")
    normalise = values.get("normalise")
    if normalise is not None and not (
            type(normalise) is list and len(normalise) in (2, 6)
            and all(type(value) is float and abs(value) < 1e6 for value in normalise)
            and min(normalise[len(normalise) // 2:]) > 0):
        raise InputError(f"{path}: normalise is {str(normalise)[:80]}, expected means and standard "
                         "deviations")
    norm = values.get("feature_norm", "none")
    if type(norm) is not str or norm not in ("none", "unit"):
        raise InputError(f"{path}: feature_norm is {str(norm)[:40]!r}, expected none or unit")
