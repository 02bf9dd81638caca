"""The networks: CNN backbone, multisource autoencoder, hash network, and MrHash of all three.

    backbone = load_backbone("alexnet", "imagenet", image_size=224)
    mrhash = MrHash(HashNetwork(backbone, hash_bit=32), autoencoder, centres)
    code, q_image, q_feature, reconstructions = mrhash(images, [x1, x2])
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from engine.backbones import Preprocessing, preprocessing_of, pretrained_model
from engine.checkpoint import reason_of
from engine.weights import check_compiler, fill
from loss import soft_assignment
from utils import InputError, sha256_of

HIDDEN = (512, 512, 256, 256)  # widths between the features and the latent


class Backbone(nn.Module):
    """A network up to its penultimate layer: images (B, 3, S, S) -> features (B, dim).

    With pretrained weights the running statistics of batch normalisation stay as they were learnt
    ("frozen"): the backbone moves at a hundredth of the rate, so they keep fitting its weights,
    and a code depends on its image alone. Statistics that follow the batches ("adapt") are right
    where nothing was learnt yet: for weights `none`. Scale and shift train in both cases.
    """

    def __init__(self, model: nn.Module, name: str, preprocessing: Preprocessing, dim: int,
                 learnt: bool, freeze_batch_norm: bool) -> None:
        """
        Args:
            model: a network without its classifier.
            name: what it is called.
            preprocessing: how it expects images.
            dim: width of the features.
            learnt: whether the weights are pretrained.
            freeze_batch_norm: whether running statistics stay in training.
        """
        super().__init__()
        self.model, self.name, self.preprocessing, self.dim = model, name, preprocessing, dim
        self.learnt, self.freeze_batch_norm = learnt, freeze_batch_norm
        self.digest = self.weights_digest()  # of the weights it begins with

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, dim)."""
        features = self.model(images)
        if not isinstance(features, Tensor):  # googlenet and inception add outputs in training
            features = features[0]
        return features.flatten(1)

    def weights_digest(self) -> str:
        """A hash of the weights as they are now, for the key of cached features."""
        parts = []
        for key, value in self.model.state_dict().items():
            parts += [key, value.cpu().numpy()]
        return sha256_of(*parts)[:16]

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        if mode and self.freeze_batch_norm:
            for layer in self._batch_norms():
                layer.eval()
        return self

    @property
    def has_unused(self) -> bool:
        """Whether parameters get no gradient: of auxiliary outputs, which nothing is made of."""
        return bool(getattr(self.model, "aux_logits", False))

    @property
    def needs_calibration(self) -> bool:
        """Whether `calibrate` has something to do: random weights with batch normalisation."""
        return not self.learnt and bool(self._batch_norms())

    def _batch_norms(self) -> list[_BatchNorm]:
        return [layer for layer in self.modules() if isinstance(layer, _BatchNorm)]

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Set the running statistics to the averages over batches of images (B, 3, S, S).

        Random weights (`none`) have no statistics yet, and without them the signal dies on the
        way: mobilenet_v2's features would be about 1e-9.
        """
        self.eval()
        layers = self._batch_norms()
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a plain average
            layer.train()
        for images in batches:
            self(images)
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        self.eval()

    def compile_for(self, device: torch.device) -> None:
        """From now on run compiled. Raises InputError where torch.compile does not work."""
        check_compiler(device)
        self.compile()


def load_backbone(name: str, weights: str, image_size: int | None = None,
                  batch_norm: str = "auto", normalise: Sequence[float] | None = None) -> Backbone:
    """A network with its weights, in train mode on the CPU.

    Args:
        name: a torchvision classification model, timm/<name>, or efficientnet_lite0.
        weights: imagenet, none, or a state-dict file.
        image_size: side of the images to come, pixels; None: the network's own.
        batch_norm: frozen, adapt, or auto: frozen with pretrained weights.
        normalise: as for `preprocessing_of`.
    Raises:
        InputError: as `pretrained_model`.
    """
    preprocessing = preprocessing_of(name, image_size, normalise)
    model, dim = pretrained_model(name, weights, preprocessing.image_size)
    learnt = weights != "none"
    frozen = batch_norm == "frozen" or (batch_norm == "auto" and learnt)
    return Backbone(model, name, preprocessing, dim, learnt, frozen)


def _mlp(widths: Sequence[int], relu_at_end: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*(layers if relu_at_end else layers[:-1]))


class MultisourceAutoencoder(nn.Module):
    """Encoder d -> 512 -> 512 -> 256 -> 256 -> latent, and one mirrored decoder per source.

    encoder "unisource" (as published): only x1 enters. "dual": a branch of the four hidden layers
    per source, concatenated (512) before the last linear layer. Both reconstruct every source.
    init "torch" is nn.Linear's own initialisation (as published): it shrinks the signal by about
    2.4 a layer, and training sits on a plateau first, for most of its epochs when the data set is
    small. "he" (He et al., ICCV 2015) keeps the signal's size and reaches a lower loss.
    """

    def __init__(self, feature_dims: Sequence[int], latent_dim: int = 64, encoder: str = "dual",
                 init: str = "he") -> None:
        """
        Args:
            feature_dims: the width of each source's features, one or two.
            latent_dim: width of z.
            encoder, init: as above. Raises InputError for "dual" with one source.
        """
        super().__init__()
        if encoder == "dual" and len(feature_dims) != 2:
            raise InputError("--encoder dual needs a second source: name one with --source2, or "
                             "use --encoder unisource")
        self.feature_dims, self.latent_dim, self.encoder = list(feature_dims), latent_dim, encoder
        seen = feature_dims if encoder == "dual" else feature_dims[:1]
        self.branches = nn.ModuleList(_mlp((d, *HIDDEN), relu_at_end=True) for d in seen)
        self.fuse = nn.Linear(HIDDEN[-1] * len(seen), latent_dim)
        self.decoders = nn.ModuleList(_mlp((latent_dim, *HIDDEN[::-1], d)) for d in feature_dims)
        for layer in self.modules():
            if init == "he" and isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def encode(self, features: Sequence[Tensor]) -> Tensor:
        """[x1 (B, d1), x2 (B, d2)] -> z (B, latent_dim)."""
        # Not strict: "unisource" has one branch for two sources.
        hidden = [branch(x) for branch, x in zip(self.branches, features, strict=False)]
        return self.fuse(torch.cat(hidden, dim=1))

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """[x1 (B, d1), x2 (B, d2)] -> z (B, latent_dim), [x1', x2'] of the shapes of x1, x2."""
        latent = self.encode(features)
        return latent, [decoder(latent) for decoder in self.decoders]

    @torch.no_grad()
    def encode_all(self, features: Sequence[Tensor], chunk: int = 8192) -> Tensor:
        """encode() of all rows [(N, d1), (N, d2)] in eval mode, in chunks; the mode is put back."""
        mode = self.training
        self.eval()
        chunks = zip(*(x.split(chunk) for x in features), strict=True)
        latent = torch.cat([self.encode(rows) for rows in chunks])
        self.train(mode)
        return latent

    @torch.no_grad()
    def rescale(self, mean: Tensor, factor: float) -> None:
        """From now on z is (z - mean (latent_dim,)) * factor, and x1', x2' are made of that."""
        self.fuse.weight.mul_(factor)
        self.fuse.bias.sub_(mean).mul_(factor)
        for decoder in self.decoders:
            first = decoder[0]
            first.bias.add_(first.weight @ mean)
            first.weight.div_(factor)

    def settings(self) -> dict[str, Any]:
        """Plain values from which the network is rebuilt."""
        return {"feature_dims": self.feature_dims, "latent_dim": self.latent_dim,
                "encoder": self.encoder}


class HashNetwork(nn.Module):
    """Backbone, Linear(dim, K), tanh: the part that hashes one source when training is over.

    head_width: units of a hidden layer between backbone and hash layer (ReLU, a dropout of 0.3
    before and behind it); 0 for none, as published: AlexNet brings two such layers of its own.
    """

    def __init__(self, backbone: Backbone, hash_bit: int, head_width: int = 0) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Identity()
        if head_width:
            self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(backbone.dim, head_width),
                                      nn.ReLU(), nn.Dropout(0.3))
        self.hash_layer = nn.Linear(head_width or backbone.dim, hash_bit)

    def forward(self, views: Tensor) -> Tensor:
        """Images (B, 3, S, S), or their frozen features (B, dim) -> h (B, K) in (-1, 1)."""
        features = views if views.ndim == 2 else self.backbone(views)
        return torch.tanh(self.hash_layer(self.head(features)))


class MrHash(nn.Module):
    """The hash network, the autoencoder and the cluster centres, trained together."""

    def __init__(self, hash_network: HashNetwork, autoencoder: MultisourceAutoencoder,
                 centres: Tensor, alpha: float = 1.0) -> None:
        """centres: float (C, latent_dim), from k-means. alpha: of `soft_assignment`."""
        super().__init__()
        self.hash_network, self.autoencoder, self.alpha = hash_network, autoencoder, alpha
        hash_bit = hash_network.hash_layer.out_features
        self.to_latent = nn.Linear(hash_bit, autoencoder.latent_dim, bias=False)
        self.centres = nn.Parameter(centres.clone())

    def forward(self, views: Tensor, features: Sequence[Tensor]
                ) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor]]:
        """What the loss needs of a batch.

        Args:
            views: images or their frozen features, as for HashNetwork.
            features: [x1 (B, d1), x2 (B, d2)]; none where the autoencoder does not learn.
        Returns:
            h (B, K), q_image (B, C), q_feature (B, C) or None, [x1', x2'] or [].
        """
        code = self.hash_network(views)
        q_image = soft_assignment(self.to_latent(code.float()), self.centres, self.alpha)
        if not features:
            return code, q_image, None, []
        latent, reconstructions = self.autoencoder(features)
        q_feature = soft_assignment(latent, self.centres, self.alpha)
        return code, q_image, q_feature, reconstructions

    @torch.no_grad()
    def assign_all(self, features: Sequence[Tensor], chunk: int = 8192) -> Tensor:
        """q (N, C) of all features [(N, d1), (N, d2)]: what the target distribution is made of."""
        latent = self.autoencoder.encode_all(features, chunk)
        return torch.cat([soft_assignment(rows, self.centres, self.alpha)
                          for rows in latent.split(chunk)])

    def parameter_groups(self, lr: float, multi_lr: float) -> list[dict[str, Any]]:
        """Adam's two groups: the backbone at lr * multi_lr, everything else at lr."""
        slow = list(self.hash_network.backbone.parameters())
        fast = [parameter for name, parameter in self.named_parameters()
                if not name.startswith("hash_network.backbone.")]
        return [{"params": slow, "lr": lr * multi_lr}, {"params": fast, "lr": lr}]


def rebuild_autoencoder(checkpoint: dict[str, Any], path: Path) -> MultisourceAutoencoder:
    """The autoencoder of a checkpoint of stage 1, on the CPU. Raises InputError: does not fit."""
    dims = checkpoint["network"]["feature_dims"]
    if not 1 <= len(dims) <= 2 or not all(type(d) is int and 0 < d <= 65_536 for d in dims):
        raise InputError(f"{path}: feature_dims are {str(dims)[:80]}, expected the widths of one "
                         "or two sources")
    try:
        autoencoder = MultisourceAutoencoder(**checkpoint["network"])
    except Exception as error:  # values of any kind give exceptions of any kind
        raise InputError(f"{path}: its network cannot be built ({reason_of(error)})") from None
    fill(autoencoder, checkpoint["model"], path)
    return autoencoder


def rebuild_hash_network(checkpoint: dict[str, Any], path: Path) -> HashNetwork:
    """That of a checkpoint of stage 2, in eval mode, on the CPU. Raises InputError: as above."""
    network = checkpoint["network"]
    backbone = load_backbone(network["model_type"], "none", network["image_size"],
                             normalise=network.get("normalise"))
    hash_network = HashNetwork(backbone, network["hash_bit"], network.get("head_width", 0))
    prefix = "hash_network."
    state = {key.removeprefix(prefix): value for key, value in checkpoint["model"].items()
             if key.startswith(prefix)}
    fill(hash_network, state, path)
    backbone.learnt, backbone.digest = True, backbone.weights_digest()
    return hash_network.eval()
