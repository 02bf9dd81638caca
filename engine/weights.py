"""Weights: state dicts of other people's files, read safely and checked before they are used."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.checkpoint import load_state, load_tensors, reason_of
from utils import InputError, first_few

# What training scripts put a state dict into, and what their wrappers put before each name.
CONTAINERS = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = re.compile(r"((module|model|net|_orig_mod)\.)*")


def check_file(path: Path, name: str) -> None:
    """Raise InputError where there is no file with weights of a network."""
    if not path.is_file():
        raise InputError(f"no weights at {path}: expected imagenet, none, or a state-dict file of "
                         f"{name}")


def read_state(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a state-dict file, without the wrappers of training scripts.

    Args:
        path: of torch.save, or .safetensors.
        name: of the network that they are for.
    Raises:
        InputError: missing, damaged, or no state dict.
    """
    check_file(path, name)
    safe = path.suffix.lower() == ".safetensors"
    try:
        state = _read_safetensors(path) if safe else load_tensors(path)
    except InputError:
        raise
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        kind = "whole .safetensors file" if safe else "state-dict file that can be opened safely"
        raise InputError(f"{path} is not a {kind} ({reason_of(error)})") from None
    state = _unwrapped(state, path)
    if not _is_state_dict(state):
        raise InputError(f"{path} holds no state dict: expected names and tensors of {name}")
    return _without_prefixes(state)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file  # here: only such files need it
    except ImportError as error:
        raise InputError(f"{path} needs safetensors ({error}): pip install -r requirements.txt"
                         ) from None
    return load_file(path)


def _unwrapped(state: object, path: Path) -> object:
    """What lies in the containers of a checkpoint. Raises InputError where there are several."""
    for _ in CONTAINERS:  # not without end: a dictionary may hold itself
        if not isinstance(state, dict):
            break
        inside = [key for key in CONTAINERS if isinstance(state.get(key), dict)]
        inside = [key for key in inside if _is_state_dict(state[key])] or inside
        if len(inside) > 1:
            raise InputError(f"{path} holds several sets of weights, {' and '.join(inside)}: save "
                             "the one that is meant as a file of its own")
        if inside:
            state = state[inside[0]]
    return state


def _is_state_dict(state: object) -> bool:
    if not isinstance(state, dict) or not state:
        return False
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items())


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without what wrappers put before all of them, such as `_orig_mod.module.`.

    Where only some have it the file holds more than the CNN, and what is meant is not guessed.
    """
    wrappers = min((PREFIXES.match(key)[0] for key in state), key=len)
    if not all(key.startswith(wrappers) for key in state):
        return state
    return {key.removeprefix(wrappers): value for key, value in state.items()}


def fill_pretrained(model: nn.Module, state: dict[str, Tensor], optional: tuple[str, ...],
                    problem: str) -> None:
    """Load `state`; only what begins as one of `optional` may be absent or differ; it is left.

    Raises:
        InputError: it does not fit; the message begins with `problem`.
    """
    ours = model.state_dict()
    wrong, found = [], {}
    for key in sorted(ours.keys() | state.keys()):
        if key.startswith(optional):
            continue
        # Whole numbers in place of floats are quantised weights, which mean nothing as they are.
        fits = (key in ours and key in state and ours[key].shape == state[key].shape
                and ours[key].is_floating_point() == state[key].is_floating_point()
                and state[key].layout == torch.strided and not state[key].is_meta)
        if not fits and not key.endswith("num_batches_tracked"):  # old files do not have them
            wrong.append(key)
        if fits:
            found[key] = state[key]
    if wrong:
        raise InputError(f"{problem}: {len(wrong)} tensors are missing, unknown or of another "
                         f"shape or kind, first {wrong[0][:80]}; the file has "
                         f"{first_few([key[:80] for key in state])}")
    if not all(bool(value.isfinite().all()) for value in found.values()):
        raise InputError(f"{problem}: some of them are not finite")
    load_state(model, found, strict=False)


def cannot_download(name: str, error: Exception, place: str) -> InputError:
    """What to say where the weights of a network cannot be had from `place`."""
    return InputError(
        f"the weights of {name} cannot be downloaded ({reason_of(error)}): fetch {place} elsewhere "
        "and give the file to --weights (of autoencoder.py: --feature_weights), or use "
        "efficientnet_lite0 (--model_type; --feature_backbone), whose weights pip has installed")


def fill(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load the tensors of the checkpoint `path`, all of `network`.

    Raises:
        InputError: they do not fit or are not finite.
    """
    try:
        load_state(network, state)
    except Exception as error:  # torch raises many kinds for tensors of another kind
        raise InputError(f"{path} does not fit its own settings ({reason_of(error)})") from None
    if not all(bool(value.isfinite().all()) for value in network.state_dict().values()):
        raise InputError(f"{path} holds weights that are not finite: train again with a lower --lr")


def check_compiler(device: torch.device) -> None:
    """Raise InputError where torch.compile does not work for `device`."""
    # Else it says that there is no CUDA runtime, where there need not be one.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    try:
        torch.compile(torch.square)(torch.zeros(4, device=device))
    except Exception as error:  # of many kinds; they do not all derive from one
        raise InputError(f"--compile: torch cannot compile here ({reason_of(error)}): leave it "
                         "out, or install a C++ compiler (CPU) or Triton (CUDA)") from None
