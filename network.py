"""Networks: ImageNet backbones, the multisource autoencoder, the hash network, and MrHash of all three."""

from __future__ import annotations

import http.client
import itertools
import logging
import socket
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from engine.checkpoint import load_state, load_tensors, reason_of
from engine.distributed import gathered, own_part
from engine.layers import SharedDropout, share_layers
from loss import soft_assignment
from utils import InputError, resolve_path, sha256_of

HIDDEN = (512, 512, 256, 256)  # widths between the features and the latent


# ---------------------------------------------------------------- backbones


def _load_weights(name: str, weights: str) -> dict[str, Tensor] | None:
    """The state dict that `weights` (imagenet, none or a file) stands for; None for none."""
    if weights == "none":
        return None
    if weights == "imagenet":
        choices = torchvision.models.get_model_weights(name)
        chosen = getattr(choices, "IMAGENET1K_V1", None) or choices.DEFAULT  # V1 is what the paper had
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(20)
        try:
            return chosen.get_state_dict(progress=True, check_hash=True)
        except (OSError, http.client.HTTPException, RuntimeError) as error:
            raise InputError(
                f"ImageNet weights of {name} cannot be downloaded ({error}): fetch {chosen.url} elsewhere "
                "and give the file to --weights or --feature_weights, or use none") from None
        finally:
            socket.setdefaulttimeout(before)
    path = resolve_path(weights)
    if not path.is_file():
        raise InputError(f"no weights at {path}: expected imagenet, none, or a state-dict file of {name}")
    try:
        state = load_tensors(path)
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        raise InputError(f"{path} is not a state-dict file that can be opened safely ({reason_of(error)})") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not state or not all(isinstance(key, str) and isinstance(value, Tensor)
                                                           for key, value in state.items()):
        raise InputError(f"{path} holds no state dict: expected names and tensors of {name}")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _classifier_name(model: nn.Module) -> str:
    """Name of the last layer that gives the 1000 ImageNet classes; auxiliary heads are defined earlier."""
    found = [name for name, layer in model.named_modules()
             if (isinstance(layer, nn.Linear) and layer.out_features == 1000)
             or (isinstance(layer, nn.Conv2d) and layer.out_channels == 1000)]
    return found[-1]


class Backbone(nn.Module):
    """A torchvision classification model up to its penultimate layer: (B, 3, S, S) -> (B, dim).

    Batch normalisation. With pretrained weights its running statistics stay as they were learnt on
    ImageNet ("frozen"): the backbone moves at a hundredth of the rate, so they keep fitting its weights,
    and a code then depends on its image alone, not on the batch it was trained with. Statistics that
    follow the batches ("adapt") are right where nothing was learnt yet, that is for weights `none`.
    Scale and shift of the normalisation train in both cases.
    """

    def __init__(self, name: str, weights: str, image_size: int, batch_norm: str = "auto") -> None:
        """
        Args:
            name: any torchvision classification model. weights: imagenet, none or a state-dict file.
            image_size: side of the images to come. batch_norm: frozen, adapt or auto.
        Raises:
            InputError: unknown model, weights that are missing or of another model, an image size
                that the model cannot take.
        """
        super().__init__()
        if name not in torchvision.models.list_models(module=torchvision.models):
            raise InputError(f"{name} is no torchvision classification model: use alexnet, resnet50, "
                             "mobilenet_v2 or another name of torchvision.models.list_models()")
        state = _load_weights(name, weights)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # googlenet and inception announce a changed initialisation
            model = torchvision.models.get_model(name, weights=None)
        classifier = _classifier_name(model)
        if state is not None:
            self._fill(model, state, classifier, name, weights)
        parent, _, leaf = classifier.rpartition(".")
        setattr(model.get_submodule(parent), leaf, nn.Identity())
        share_layers(model)
        self.model = model
        self.learnt = weights != "none"
        self.freeze_batch_norm = batch_norm == "frozen" or (batch_norm == "auto" and self.learnt)
        self.content = self.hash_weights()
        self.dim = self._measure(name, image_size)

    @staticmethod
    def _fill(model: nn.Module, state: dict[str, Tensor], classifier: str, name: str, weights: str) -> None:
        """Load `state`; only the classification layer and auxiliary heads may be absent or differ."""
        def optional(key: str) -> bool:
            return key.startswith((classifier + ".", "aux1.", "aux2.", "AuxLogits."))

        ours = model.state_dict()
        wrong = sorted(key for key in ours.keys() | state.keys() if not optional(key)
                       and not key.endswith("num_batches_tracked")
                       and (key not in ours or key not in state or ours[key].shape != state[key].shape))
        if wrong:
            raise InputError(f"{weights} does not hold weights of {name}: {len(wrong)} tensors are missing, "
                             f"unknown or of another shape, first {wrong[0]}")
        load_state(model, {key: state[key] for key in ours if key in state and not optional(key)}, strict=False)

    def hash_weights(self) -> str:
        """Which weights these are now, for the key of cached features; `content` is what it began with."""
        return sha256_of(*(part for key, value in self.model.state_dict().items()
                           for part in (key, value.cpu().numpy())))[:16]

    @torch.no_grad()
    def _measure(self, name: str, image_size: int) -> int:
        self.eval()
        try:
            return self(torch.zeros(1, 3, image_size, image_size)).shape[1]
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = str(error).strip().splitlines()[0][:120]
            raise InputError(f"{name} cannot take images of {image_size} pixels ({reason}): change "
                             "--image_size") from None
        finally:
            super().train()

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        if mode and self.freeze_batch_norm:
            for layer in self._batch_norms():
                layer.eval()
        return self

    @property
    def has_unused(self) -> bool:
        """Whether some parameters train to no purpose: googlenet's and inception's auxiliary outputs are not used."""
        return bool(getattr(self.model, "aux_logits", False))

    @property
    def needs_calibration(self) -> bool:
        """Whether `calibrate` has something to do: random weights with batch normalisation."""
        return not self.learnt and bool(self._batch_norms())

    def _batch_norms(self) -> list[nn.Module]:
        return [layer for layer in self.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Set the running statistics of batch normalisation to the averages over some batches.

        Random weights (`none`) have no statistics yet, and without them the signal dies on the way:
        mobilenet_v2's features would be about 1e-9.
        """
        self.eval()
        momenta = [layer.momentum for layer in self._batch_norms()]
        for layer in self._batch_norms():
            layer.reset_running_stats()
            layer.momentum = None  # a plain average
            layer.train()
        for images in batches:
            self(images)
        for layer, momentum in zip(self._batch_norms(), momenta, strict=True):
            layer.momentum = momentum
        self.eval()

    def compile_for(self, device: torch.device) -> None:
        """From now on run as torch.compile makes it. Raises InputError where it cannot compile for `device`."""
        # Else it says that there is no CUDA runtime, where there need not be one.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        try:
            torch.compile(torch.square)(torch.zeros(4, device=device))
        except Exception as error:  # of many kinds; they do not all derive from one
            raise InputError(f"--compile: torch cannot compile here ({reason_of(error)}): leave it out, or install a "
                             "C++ compiler (CPU) or Triton (CUDA)") from None
        self.compile()

    def forward(self, images: Tensor) -> Tensor:
        features = self.model(images)
        if not isinstance(features, Tensor):  # googlenet and inception add auxiliary outputs in training
            features = features[0]
        return features.flatten(1)


# ---------------------------------------------------------------- multisource autoencoder


def _mlp(widths: Sequence[int], relu_at_end: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(itertools.pairwise(widths)):
        layers.append(nn.Linear(before, after))
        if relu_at_end or number < len(widths) - 2:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class MultisourceAutoencoder(nn.Module):
    """Encoder d -> 512 -> 512 -> 256 -> 256 -> latent, and one mirrored decoder per source.

    encoder "unisource" (as published): only x1 enters. "dual": a branch of the four hidden layers per
    source, concatenated (512) before the last linear layer. Both reconstruct every source.

    init "torch" is nn.Linear's own initialisation (as published): it shrinks the signal by about 2.4 a
    layer, ten layers deep, and training sits on a plateau first, for most of its epochs when the data
    set is small. "he" (He et al., ICCV 2015) keeps the signal's size and reaches a lower loss.
    """

    def __init__(self, feature_dims: Sequence[int], latent_dim: int = 64, encoder: str = "dual",
                 init: str = "he") -> None:
        """feature_dims: the width of each source's features, one or two. encoder: dual or unisource."""
        super().__init__()
        if encoder == "dual" and len(feature_dims) != 2:
            raise InputError("--encoder dual needs a second source: name one with --source2, or use "
                             "--encoder unisource")
        self.feature_dims, self.latent_dim, self.encoder = list(feature_dims), latent_dim, encoder
        seen = feature_dims if encoder == "dual" else feature_dims[:1]
        self.branches = nn.ModuleList(_mlp((dim, *HIDDEN), relu_at_end=True) for dim in seen)
        self.fuse = nn.Linear(HIDDEN[-1] * len(seen), latent_dim)
        self.decoders = nn.ModuleList(_mlp((latent_dim, *HIDDEN[::-1], dim)) for dim in feature_dims)
        if init == "he":
            for layer in self.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                    nn.init.zeros_(layer.bias)

    def encode(self, features: Sequence[Tensor]) -> Tensor:
        """[x1 (B, d1), x2 (B, d2)] -> latent z (B, latent_dim); "unisource" does not look at x2."""
        hidden = [branch(x) for branch, x in zip(self.branches, features, strict=False)]
        return self.fuse(torch.cat(hidden, dim=1))

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """[x1, x2] -> z (B, latent_dim) and the reconstructions [x1', x2']."""
        latent = self.encode(features)
        return latent, [decoder(latent) for decoder in self.decoders]

    @torch.no_grad()
    def encode_all(self, features: Sequence[Tensor], chunk: int = 8192) -> Tensor:
        """encode() over all rows in eval mode, in chunks; the mode is put back."""
        mode = self.training
        self.eval()
        parts = [self.encode(rows) for rows in zip(*(x.split(chunk) for x in features), strict=True)]
        self.train(mode)
        return torch.cat(parts)

    @torch.no_grad()
    def rescale(self, mean: Tensor, factor: float) -> None:
        """From now on the latent is (z - mean) * factor, and everything is reconstructed as before.

        Only weights change: the layer that ends the encoder and those that begin the decoders.
        Args: mean: (latent_dim,). factor: above 0.
        """
        self.fuse.weight.mul_(factor)
        self.fuse.bias.sub_(mean).mul_(factor)
        for decoder in self.decoders:
            first = decoder[0]
            first.bias.add_(first.weight @ mean)
            first.weight.div_(factor)

    def settings(self) -> dict[str, Any]:
        """Plain values from which the network is rebuilt."""
        return {"feature_dims": self.feature_dims, "latent_dim": self.latent_dim, "encoder": self.encoder}


# ---------------------------------------------------------------- hash network


class HashNetwork(nn.Module):
    """Backbone, Linear(dim, K), tanh: the part that hashes one source when training is over.

    head_width: units of a hidden layer between backbone and hash layer (ReLU, and a dropout of 0.3 before
    and behind it); 0 for none, as published. The published AlexNet brings two such layers of its own.
    """

    def __init__(self, backbone: Backbone, hash_bit: int, head_width: int = 0) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Sequential(SharedDropout(0.3), nn.Linear(backbone.dim, head_width), nn.ReLU(),
                                  SharedDropout(0.3)) if head_width else nn.Identity()
        self.hash_layer = nn.Linear(head_width or backbone.dim, hash_bit)

    def hash_features(self, features: Tensor) -> Tensor:
        """What the backbone gives, (B, dim) -> h (B, K) in (-1, 1)."""
        return torch.tanh(self.hash_layer(self.head(features)))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> h (B, K) in (-1, 1); bit k of the code is h_k >= 0."""
        return self.hash_features(self.backbone(images))


class MrHash(nn.Module):
    """The hash network, the autoencoder and the cluster centres, trained together."""

    def __init__(self, hash_network: HashNetwork, autoencoder: MultisourceAutoencoder, centres: Tensor,
                 alpha: float = 1.0) -> None:
        """centres: float (C, latent_dim), from k-means. alpha: of the probability function."""
        super().__init__()
        self.hash_network, self.autoencoder, self.alpha = hash_network, autoencoder, alpha
        self.to_latent = nn.Linear(hash_network.hash_layer.out_features, autoencoder.latent_dim, bias=False)
        self.centres = nn.Parameter(centres.clone())

    def forward(self, views: Tensor, features: Sequence[Tensor], resting: bool = False
                ) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor]]:
        """Images and their frozen features -> h (B, K), q_image (B, C), q_feature (B, C), [x1', x2'].

        Without features there is no q_feature (None) and nothing is reconstructed.
        Args: views: (B, 3, S, S), or, with `resting`, what the backbone at rest makes of them, (B, dim).
        """
        code = self.hash_network.hash_features(views) if resting else self.hash_network(views)
        q_image = soft_assignment(self.to_latent(code.float()), self.centres, self.alpha)
        if not features:
            return code, q_image, None, []
        latent, reconstructions = self.autoencoder(features)
        return code, q_image, soft_assignment(latent, self.centres, self.alpha), reconstructions

    @torch.no_grad()
    def assign_all(self, features: Sequence[Tensor], chunk: int = 8192) -> Tensor:
        """q (N, C) of all frozen features, in eval mode: what the target distribution is made of. Ranks share it."""
        latent = self.autoencoder.encode_all([x[own_part(len(x))] for x in features])
        own = torch.cat([soft_assignment(rows, self.centres, self.alpha) for rows in latent.split(chunk)])
        return gathered(own, len(features[0]))

    def parameter_groups(self, lr: float, multi_lr: float) -> list[dict[str, Any]]:
        """Adam's two groups: the backbone at lr * multi_lr, everything else at lr."""
        slow = list(self.hash_network.backbone.parameters())
        known = {id(parameter) for parameter in slow}
        fast = [parameter for parameter in self.parameters() if id(parameter) not in known]
        return [{"params": slow, "lr": lr * multi_lr}, {"params": fast, "lr": lr}]


def fill(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load the tensors of the checkpoint `path`. Raises InputError when they do not fit or are not finite."""
    try:
        load_state(network, state)
    except Exception as error:  # torch raises many kinds for tensors of another kind
        raise InputError(f"{path} does not fit its own settings ({reason_of(error)})") from None
    if not all(bool(value.isfinite().all()) for value in network.state_dict().values()):
        raise InputError(f"{path} holds weights that are not finite: train again with a lower --lr")


def rebuild_autoencoder(checkpoint: dict[str, Any], path: Path) -> MultisourceAutoencoder:
    """The autoencoder of a checkpoint of autoencoder.py, on the CPU.

    Raises:
        InputError: the settings are none of an autoencoder, or the tensors do not fit them.
    """
    dims = checkpoint["network"]["feature_dims"]
    if not 1 <= len(dims) <= 2 or not all(type(dim) is int and 0 < dim <= 65_536 for dim in dims):
        raise InputError(f"{path}: feature_dims are {str(dims)[:80]}, expected the widths of one or two sources")
    try:
        autoencoder = MultisourceAutoencoder(**checkpoint["network"])
    except Exception as error:  # values of any kind give exceptions of any kind
        raise InputError(f"{path}: its network cannot be built ({reason_of(error)})") from None
    fill(autoencoder, checkpoint["model"], path)
    return autoencoder


def rebuild_hash_network(checkpoint: dict[str, Any], path: Path) -> HashNetwork:
    """The hash network of a checkpoint of train.py, in eval mode on the CPU.

    Raises:
        InputError: the tensors do not fit the settings that the file itself gives.
    """
    network = checkpoint["network"]
    backbone = Backbone(network["model_type"], "none", network["image_size"])
    hash_network = HashNetwork(backbone, network["hash_bit"], network.get("head_width", 0))
    prefix = "hash_network."
    fill(hash_network, {key.removeprefix(prefix): value for key, value in checkpoint["model"].items()
                        if key.startswith(prefix)}, path)
    backbone.content = backbone.hash_weights()
    return hash_network.eval()
