"""--views of the scripts: stage 1 averages them, stage 2 draws one, test.py averages codes."""

import numpy as np
import torch
import torchvision

import hamming
from data_loader import DataConfig, ImageLoader, load_dataset
from engine.cli import Compute
from helpers import call, stage1_flags, stage2_flags
from myautoencoder.features import apply_network
from network import rebuild_hash_network
from script_helpers import AUTOENCODER, HEAD, done, load


def codes(capsys, folder, *flags):
    """The codes of the database that test.py saves, and what it said."""
    out, _ = done(capsys, "test.py", "--device", "cpu", *flags, "--output_dir", folder,
                  "--save_codes", folder / "codes.npz")
    with np.load(folder / "codes.npz") as content:
        return content["database_codes"], out


def test_views_go_from_stage_1_to_the_codes(trained, tmp_path, capsys):
    cache, weights = ["--cache_dir", tmp_path / "cache"], tmp_path / "weights.pth"
    torch.save(torchvision.models.resnet18().state_dict(), weights)
    done(capsys, AUTOENCODER, *stage1_flags(trained[0]), *cache, "--views", 2,
         "--output_dir", tmp_path / "ae")
    stage1 = tmp_path / "ae" / "autoencoder.pth"
    assert load(stage1)["features"]["views"] == 2
    done(capsys, "train.py", *stage2_flags(stage1), *HEAD, "--max_epoch", "none", *cache,
         "--weights", weights, "--output_dir", tmp_path)
    model = tmp_path / "mrhash.pth"
    assert load(model)["network"]["views"] == 2
    # All views of each image, by hand; the first bit is 1 for half of the images.
    checkpoint = load(model)
    network = rebuild_hash_network(checkpoint, model)
    dataset = load_dataset(DataConfig(**checkpoint["data"]))
    compute = Compute(torch.device("cpu"), workers=1)
    loader = ImageLoader(dataset.source1, "some", network.backbone.preprocessing, compute)
    views = next(apply_network(network, loader, dataset.database, compute, "", 8))
    means = [views.reshape(39, 8, 12)[:, :count].mean(axis=1) for count in (1, 2, 4)]
    T = float(np.median(means[0][:, 0]))
    assert np.abs(means[1] - means[0]).max() > 1e-3 < np.abs(means[2] - means[1]).max()
    # The cache knows two views; what it does not know is computed.
    for count, mean in zip((1, 2, 4), means, strict=True):
        flags = ["--pretrain_path", model, "--views", count, "--T", T]
        known, out = codes(capsys, tmp_path, *flags, *cache)
        assert ("in the cache" in out) == (count <= 2)
        made, out = codes(capsys, tmp_path, *flags, "--cache_dir", "none")
        assert "in the cache" not in out
        for found in (known, made):  # but for what lies on the threshold
            assert np.bitwise_count(found ^ hamming.pack_codes(mean, T)).sum() <= 2


def test_models_of_older_versions_have_one_view(trained, tmp_path, capsys):
    for file, part in (("ae/autoencoder.pth", "features"), ("mr/mrhash.pth", "network")):
        checkpoint = load(trained[0] / file)
        del checkpoint[part]["views"]
        torch.save(checkpoint, tmp_path / file.rpartition("/")[2])
    done(capsys, "train.py", *stage2_flags(tmp_path / "autoencoder.pth"), "--max_epoch", 0,
         "--output_dir", tmp_path / "again")
    assert load(tmp_path / "again" / "mrhash.pth")["network"]["views"] == 1
    old, _ = codes(capsys, tmp_path, "--pretrain_path", tmp_path / "mrhash.pth")
    new, _ = codes(capsys, tmp_path, "--pretrain_path", trained[0] / "mr" / "mrhash.pth")
    assert np.array_equal(old, new)


def test_only_whole_sets_of_turns_are_offered(trained, capsys):
    code, _, error = call(capsys, "test.py", "--pretrain_path", trained[0] / "mr" / "mrhash.pth",
                          "--views", 3)
    assert code == 2 and "--views: invalid choice: 3" in error
