"""Small trained models, made without training."""

from dataclasses import replace

import torch

from data_loader import ImageLoader, load_dataset
from engine.checkpoint import save_checkpoint
from engine.cli import Compute
from helpers import QUICK
from myautoencoder.features import calibrate
from network import HashNetwork, load_backbone

CPU = Compute(torch.device("cpu"), batch_size=16, workers=2)


@torch.no_grad()
def save_model(path, config, hash_bit=12, image_size=32, threshold=0.0):
    """A mrhash.pth for the images of a config, as train.py writes it; its path.

    The weights are drawn, but each bit is 1 for half of the images.
    """
    dataset = load_dataset(config)
    torch.manual_seed(3)
    backbone = load_backbone(QUICK[1], "none", image_size)
    network = HashNetwork(backbone, hash_bit)
    loader = ImageLoader(dataset.source1, "images", backbone.preprocessing, CPU, resident=False)
    calibrate(backbone, loader)
    views = torch.cat(list(loader.test_views([torch.arange(len(dataset.names))])))
    before = torch.atanh(network.eval()(views).clamp(-0.999, 0.999))
    network.hash_layer.bias -= before.median(dim=0).values - threshold
    settings = {"model_type": QUICK[1], "hash_bit": hash_bit, "image_size": image_size,
                "head_width": 0, "threshold": threshold}
    save_checkpoint(path, {
        "format": "mrhash-1", "network": settings, "fingerprint": dataset.fingerprint,
        "data": replace(config, **dataset.resolved).as_dict(),
        "model": {f"hash_network.{key}": value for key, value in network.state_dict().items()}})
    return path
