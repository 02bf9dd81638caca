"""What --preset best is made of: neighbour averages, calibrated labels, a head that learns first."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision

import helpers
from helpers import QUICK, SMALL, call, stage1_flags, stage2_flags
from loss import label_spread, latent_scale, multi_semantic_loss, single_labels, soft_assignment, target_distribution
from myautoencoder import features as feature_module
from myautoencoder.features import prepare_features
from network import Backbone, HashNetwork, MrHash, MultisourceAutoencoder
from utils import InputError, epoch_seed

CPU = torch.device("cpu")
HEAD = ["--head_epochs", 4, "--head_width", 8, "--batch_norm", "frozen"]


# ------------------------------------------------------------------------ features


def plain_prepare(arrays, train, norm, neighbours):
    """The definition, image by image."""
    units = []
    for x in arrays:
        centred = x.astype(np.float64) - x[train].astype(np.float64).mean(axis=0)
        units.append(centred / np.linalg.norm(centred, axis=1, keepdims=True))
    joined = np.concatenate(units, axis=1)
    results = []
    for x, unit in zip(arrays, units, strict=True):
        seen = unit if norm == "unit" else x.astype(np.float64)
        rows = []
        for i in range(len(x)):
            near = sorted((j for j in train if j != i), key=lambda j, i=i: -joined[i] @ joined[j])[:neighbours]
            row = np.mean([seen[i], *seen[near]], axis=0)
            rows.append(row / np.linalg.norm(row) * math.sqrt(x.shape[1]) if norm == "unit" else row)
        results.append(np.array(rows))
    return results


@pytest.mark.parametrize("norm", ["none", "unit"])
@pytest.mark.parametrize("neighbours", [0, 1, 3])
def test_features_are_averaged_over_the_nearest_training_images(norm, neighbours, monkeypatch):
    generator = np.random.default_rng(0)
    arrays = [generator.normal(2, 1, (12, 5)).astype(np.float32), generator.normal(0, 3, (12, 4)).astype(np.float32)]
    train = np.array([9, 0, 1, 2, 4, 5, 7, 11])  # not in order, queries in between
    settings = {"feature_norm": norm, "neighbours": neighbours}
    got = prepare_features(arrays, train, settings, CPU)
    for ours, plain in zip(got, plain_prepare(arrays, train, norm, neighbours), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5)
    if norm == "unit":
        np.testing.assert_allclose((got[0] ** 2).mean(axis=1), 1, rtol=1e-5)


def test_neighbours_are_the_same_in_small_chunks():
    points = F.normalize(torch.randn(50, 6, generator=torch.Generator().manual_seed(0)))
    kept = torch.arange(0, 50, 2)
    whole = feature_module._nearest(points, kept, 3)
    split, torch.Tensor.split = torch.Tensor.split, lambda self, size, dim=0: split(self, min(size, 7), dim)
    try:
        assert torch.equal(feature_module._nearest(points, kept, 3), whole)
    finally:
        torch.Tensor.split = split
    assert not (whole == torch.arange(50)[:, None]).any() and (whole % 2 == 0).all()


def test_features_as_published_are_not_touched_and_not_copied():
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    assert prepare_features([x], np.arange(4), {}, CPU)[0] is x
    assert prepare_features([x], np.arange(4), {"feature_norm": "none", "neighbours": 0}, CPU)[0] is x


def test_more_neighbours_than_images_are_refused(trained, tmp_path, capsys):
    code, _, error = call(capsys, "myautoencoder/autoencoder.py", *stage1_flags(trained[0]), "--neighbours", 39,
                          "--output_dir", tmp_path)
    assert code == 2 and "--neighbours 39 needs more training images than that, found 39" in error


# ------------------------------------------------------------------------ labels


def test_label_spread_with_a_pencil():
    assert label_spread(torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.5, 0.0, 0.0, 0.5]])) == pytest.approx(2)
    assert label_spread(torch.full((3, 4), 0.25)) == pytest.approx(4)
    assert label_spread(torch.eye(3)) == pytest.approx(1)


@pytest.mark.parametrize(("alpha", "share"), [(63.0, 0.2), (63.0, 0.7), (5.0, 0.5), (1.0, 0.8)])
def test_latents_are_scaled_until_labels_are_spread_as_asked(alpha, share):
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(10, 8, generator=generator)
    latent = centres.repeat(6, 1) + 0.3 * torch.randn(60, 8, generator=generator)
    for size in (0.01, 1, 100):  # whatever the latents' own size is
        factor = latent_scale(latent * size, centres * size, alpha, share)
        q = soft_assignment(latent * size * factor, centres * size * factor, alpha)
        assert label_spread(q) == pytest.approx(10 * share, abs=0.05)


def test_a_spread_that_the_kernel_cannot_have_is_refused():
    latent = torch.randn(40, 8, generator=torch.Generator().manual_seed(1))
    centres = torch.randn(10, 8, generator=torch.Generator().manual_seed(2))
    with pytest.raises(InputError, match=r"cannot be spread over 0\.2 of 10 clusters with alpha 1, the nearest is"):
        latent_scale(latent, centres, 1.0, 0.2)
    least = label_spread(soft_assignment(latent * 1e4, centres * 1e4, 1.0)) / 10
    latent_scale(latent, centres, 1.0, least + 0.02)
    with pytest.raises(InputError, match="the nearest is"):
        latent_scale(latent, centres, 1.0, least - 0.02)
    for share in (0.1, 0.099):  # a single label, and less than that
        with pytest.raises(InputError, match="one or less"):
            latent_scale(latent, centres, 63.0, share)


def test_a_sharp_kernel_far_from_every_centre_gives_finite_losses_and_gradients():
    code = torch.full((2, 3), 300.0, requires_grad=True)
    q = soft_assignment(code, torch.eye(3) * 100, 63.0)
    target = torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5]])
    loss = multi_semantic_loss(target, q, None, [], [], kl="batchmean")[0]
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(code.grad).all()
    wrong = soft_assignment(torch.zeros(1, 3), torch.tensor([[0.0] * 3, [1e6] * 3]), 63.0)
    assert wrong[0, 1] == 0
    assert torch.isfinite(multi_semantic_loss(torch.tensor([[0.0, 1.0]]), wrong, None, [], [])[0])


def test_single_labels_are_the_largest_entries():
    p = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.3, 0.3]])
    assert single_labels(p).tolist() == [[0, 1, 0], [1, 0, 0]]
    # Their divergence is the cross entropy.
    q = torch.tensor([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]])
    loss, divergence, error = multi_semantic_loss(single_labels(p), q, None, [], [], kl="batchmean")
    assert loss == divergence == pytest.approx(-(math.log(0.7) + math.log(0.6)) / 2)
    assert error == 0


def test_without_features_the_loss_is_that_of_the_images_alone():
    torch.manual_seed(0)
    p, q, other = (torch.softmax(torch.randn(4, 5), dim=1) for _ in range(3))
    alone = multi_semantic_loss(p, q, None, [], [])[1]
    assert multi_semantic_loss(p, q, other, [], [])[1] == pytest.approx(
        float(alone + multi_semantic_loss(p, other, None, [], [])[1]))


@pytest.mark.parametrize("encoder", ["unisource", "dual"])
def test_a_rescaled_autoencoder_has_other_latents_and_the_same_reconstructions(encoder):
    torch.manual_seed(0)
    model = MultisourceAutoencoder((6, 5), 8, encoder)
    x = [torch.randn(20, 6), torch.randn(20, 5)]
    latent, made = model(x)
    mean = latent.mean(dim=0).detach()
    model.rescale(mean, 3.5)
    after, again = model(x)
    torch.testing.assert_close(after, (latent - mean) * 3.5, rtol=1e-4, atol=1e-5)
    for before, now in zip(made, again, strict=True):
        torch.testing.assert_close(now, before, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------ head


def test_hashing_features_is_the_second_half_of_hashing_images():
    torch.manual_seed(0)
    network = HashNetwork(Backbone("squeezenet1_1", "none", 64), 12, head_width=16).eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network.hash_features(network.backbone(images)), network(images))
    assert [layer.out_features for layer in network.head if isinstance(layer, torch.nn.Linear)] == [16]
    assert [layer.p for layer in network.head if isinstance(layer, torch.nn.Dropout)] == [0.3, 0.3]
    assert network.hash_layer.in_features == 16


def test_an_autoencoder_that_gets_no_features_takes_no_part():
    torch.manual_seed(0)
    model = MrHash(HashNetwork(Backbone("squeezenet1_1", "none", 64), 12), MultisourceAutoencoder((6, 5), 8),
                   torch.randn(4, 8), alpha=7.0)
    code, q_image, q_feature, made = model(torch.randn(3, 512), [], resting=True)
    assert code.shape == (3, 12)
    assert q_feature is None and made == []
    torch.testing.assert_close(q_image.sum(dim=1), torch.ones(3))


def test_epochs_below_zero_have_seeds_of_their_own():
    seeds = [epoch_seed(13, epoch) for epoch in range(-60, 60)]
    assert len(set(seeds)) == 120


def train(capsys, trained, output, *flags):
    code, out, error = helpers.call(capsys, "train.py", *stage2_flags(trained[0] / "ae" / "autoencoder.pth"), *HEAD,
                                    "--output_dir", output, *flags)
    assert code == 0, error
    return out


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_head_learns_first_and_the_backbone_rests(trained, tmp_path, capsys):
    out = train(capsys, trained, tmp_path / "head", "--max_epoch", -1, "--eval_frequency", 1)
    log = read_log(tmp_path / "head")
    assert [record["epoch"] for record in log] == [-4, -3, -2, -1]
    rates = [record["lr"] for record in log]
    np.testing.assert_allclose(rates, [0.001 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)], rtol=1e-12)
    assert log[-1]["divergence"] < log[0]["divergence"]
    assert "(epoch -1, last)" in out
    head = torch.load(tmp_path / "head" / "mrhash.pth", weights_only=True)["model"]
    train(capsys, trained, tmp_path / "both", "--max_epoch", 0)
    both = torch.load(tmp_path / "both" / "mrhash.pth", weights_only=True)["model"]
    torch.manual_seed(13)
    moved = [name for name in head if "backbone" in name and not torch.equal(head[name], both[name])]
    assert moved  # fine-tuned in epoch 0
    # What train.py says of the codes, of the features it kept, is what test.py finds in the images.
    code, _, error = call(capsys, "test.py", "--pretrain_path", tmp_path / "head" / "mrhash.pth", *SMALL)
    assert code == 0, error
    assert json.loads((tmp_path / "head" / "results.json").read_text())["map"] == pytest.approx(log[-1]["map"])


@pytest.mark.parametrize("stop", [-3, pytest.param(-1, marks=pytest.mark.slow), 0])
def test_a_run_stopped_in_or_after_the_head_ends_as_an_uninterrupted_one(trained, tmp_path, capsys, monkeypatch, stop):
    from engine import run as runs
    flags = [*QUICK, "--max_epoch", 1, "--targets", "once", "--select", "loss"]
    train(capsys, trained, tmp_path / "whole", *flags)
    save = runs.Run.save

    def save_and_die(self, epoch, within=None, **state):
        save(self, epoch, within, **state)
        if epoch == stop and within is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(runs.Run, "due", lambda self: True)
    monkeypatch.setattr(runs.Run, "save", save_and_die)
    code, _, _ = call(capsys, "train.py", *stage2_flags(trained[0] / "ae" / "autoencoder.pth"), *HEAD, *flags,
                      "--output_dir", tmp_path / "cut")
    assert code == 130
    monkeypatch.undo()
    train(capsys, trained, tmp_path / "cut", *flags, "--resume")
    assert (tmp_path / "cut" / "mrhash.pth").read_bytes() == (tmp_path / "whole" / "mrhash.pth").read_bytes()
    assert [record["epoch"] for record in read_log(tmp_path / "cut")] == list(range(-4, 2))


def test_random_weights_are_calibrated_whatever_the_cache_knows(trained, tmp_path, capsys):
    """With --weights none the statistics of the backbone must not depend on whether its features were cached."""
    cache = ["--cache_dir", tmp_path / "cache", "--max_epoch", -1]
    for name in ("cold", "warm"):
        train(capsys, trained, tmp_path / name, *cache)
    assert (tmp_path / "cold" / "mrhash.pth").read_bytes() == (tmp_path / "warm" / "mrhash.pth").read_bytes()
    train(capsys, trained, tmp_path / "none", "--max_epoch", -1)
    assert (tmp_path / "none" / "mrhash.pth").read_bytes() == (tmp_path / "warm" / "mrhash.pth").read_bytes()


def spy_on_epochs(monkeypatch, spy):
    """train.py's module, whose train_one_epoch is `spy(original, model, batches, views, *others)`."""
    load = helpers.script_module

    def loaded(name):
        module = load(name)
        if name == "train.py":
            original = module.train_one_epoch
            monkeypatch.setattr(module, "train_one_epoch", lambda *args: spy(original, *args))
        return module

    monkeypatch.setattr(helpers, "script_module", loaded)


def test_the_head_sees_the_features_of_its_own_images(trained, tmp_path, capsys, monkeypatch):
    seen = []

    def spy(original, model, batches, views, *others):
        views = list(views)
        seen.append((model.hash_network.backbone, torch.cat(list(batches)), torch.cat(views)))
        return original(model, batches, views, *others)

    spy_on_epochs(monkeypatch, spy)
    train(capsys, trained, tmp_path, "--max_epoch", -1)
    backbone, order, views = seen[0]
    assert not torch.equal(order, seen[1][1]) and sorted(order.tolist()) == list(range(39))
    from data_loader import DataConfig, load_dataset
    from datasets.store import ImageLoader, ImageStore
    dataset = load_dataset(DataConfig(**torch.load(trained[0] / "ae" / "autoencoder.pth", weights_only=True)["data"]))
    store = ImageStore.open(dataset.source1, dataset.file_label(0), 32, None, 1)
    made = feature_module.apply_network(backbone, ImageLoader(store, CPU), dataset.train, 32, 16, False, "features")
    expected = torch.from_numpy(np.concatenate(list(made)))
    torch.testing.assert_close(views, expected[order], rtol=1e-3, atol=1e-4)
    assert expected.std(dim=0).max() > 0.01  # images differ


def test_the_best_epoch_is_one_of_the_last_stage(trained, tmp_path, capsys, monkeypatch):
    """Losses of the head, without augmentation, are smaller than those of fine-tuning and do not compare."""
    losses = iter([0.1, 0.05, 0.2, 0.3, 0.8, 0.7, 0.9])

    def spy(original, *args):
        original(*args)
        progress = next(value for value in args if hasattr(value, "losses"))
        progress.losses = progress.losses * 0 + next(losses) * 39

    spy_on_epochs(monkeypatch, spy)
    train(capsys, trained, tmp_path / "both", "--max_epoch", 2, "--select", "loss")
    assert torch.load(tmp_path / "both" / "mrhash.pth", weights_only=True)["epoch"] == 1
    losses = iter([0.1, 0.05, 0.2, 0.3])
    train(capsys, trained, tmp_path / "head", "--max_epoch", -1, "--select", "loss")
    assert torch.load(tmp_path / "head" / "mrhash.pth", weights_only=True)["epoch"] == -3


def test_an_epoch_that_is_over_cannot_be_undone(trained, tmp_path, capsys):
    train(capsys, trained, tmp_path, "--max_epoch", 0)
    before = (tmp_path / "mrhash.pth").read_bytes()
    code, _, error = call(capsys, "train.py", *stage2_flags(trained[0] / "ae" / "autoencoder.pth"), *HEAD,
                          "--output_dir", tmp_path, "--max_epoch", -1, "--resume")
    assert code == 2 and "has come to epoch 0 already: --max_epoch -1 cannot undo it" in error
    assert (tmp_path / "mrhash.pth").read_bytes() == before


def test_a_head_can_be_followed_by_fine_tuning_later(trained, tmp_path, capsys):
    train(capsys, trained, tmp_path / "whole", "--max_epoch", 0)
    train(capsys, trained, tmp_path / "later", "--max_epoch", -1)
    train(capsys, trained, tmp_path / "later", "--max_epoch", 0, "--resume")
    assert (tmp_path / "later" / "mrhash.pth").read_bytes() == (tmp_path / "whole" / "mrhash.pth").read_bytes()


def test_a_fixed_autoencoder_stays_and_the_codes_do_not_notice(trained, tmp_path, capsys):
    """With targets made once and fixed centres the autoencoder has no say: leaving it out changes no code."""
    common = ["--targets", "once", "--centres", "fixed", "--max_epoch", 0]
    models = {}
    for choice in ("trained", "fixed"):
        train(capsys, trained, tmp_path / choice, *common, "--autoencoder", choice)
        models[choice] = torch.load(tmp_path / choice / "mrhash.pth", weights_only=True)["model"]
    before = torch.load(trained[0] / "ae" / "autoencoder.pth", weights_only=True)["model"]
    for name, value in before.items():
        assert torch.equal(models["fixed"][f"autoencoder.{name}"], value)
    assert not torch.equal(models["trained"]["autoencoder.fuse.weight"], before["fuse.weight"])
    for name, value in models["fixed"].items():
        if not name.startswith("autoencoder."):
            assert torch.equal(models["trained"][name], value), name


def test_the_labels_of_a_run_are_spread_as_asked_and_the_latent_is_centred(trained, tmp_path, capsys):
    from network import rebuild_autoencoder
    train(capsys, trained, tmp_path / "mr", "--max_epoch", -1, "--alpha", "auto", "--label_spread", 0.5, "--targets",
          "once", "--autoencoder", "fixed", "--centres", "fixed")
    last = torch.load(tmp_path / "mr" / "last.pth", weights_only=True)
    target, centres = last["target"], last["model"]["centres"]
    stage1 = torch.load(trained[0] / "ae" / "autoencoder.pth", weights_only=True)
    stage1["model"] = {name.removeprefix("autoencoder."): value for name, value in last["model"].items()
                       if name.startswith("autoencoder.")}
    model = rebuild_autoencoder(stage1, tmp_path)
    from data_loader import DataConfig, load_dataset
    dataset = load_dataset(DataConfig(**stage1["data"]))
    arrays, _ = feature_module.dataset_features(dataset, stage1["features"], "none", CPU, 16, 2, "none")
    latent = model.encode_all([torch.from_numpy(x[dataset.train]) for x in arrays])
    assert latent.mean(dim=0).abs().max() < 1e-3 * latent.std()
    q = soft_assignment(latent, centres, 63.0)
    assert label_spread(q) == pytest.approx(2, abs=0.05)
    torch.testing.assert_close(target_distribution(q), target, rtol=1e-3, atol=1e-4)


def test_single_pseudo_labels_are_what_the_network_learns_from(trained, tmp_path, capsys):
    train(capsys, trained, tmp_path, "--max_epoch", -1, "--pseudo_labels", "single", "--targets", "once")
    target = torch.load(tmp_path / "last.pth", weights_only=True)["target"]
    assert sorted(target.unique().tolist()) == [0, 1] and (target.sum(dim=1) == 1).all()


@pytest.mark.parametrize(("flags", "message"), [
    (["--max_epoch", -1], "-1 trains nothing without --head_epochs"),
    (["--max_epoch", -2], "-2 is not a whole number >= -1"),
    (["--label_spread", 1], "1 is not a number from 0 to below 1"),
    (["--alpha", 0], "0 is not auto or a number above 0"),
    (["--alpha", "nan"], "nan is not auto or a number above 0"),
    (["--label_spread", 0.1], "cannot be spread over 0.1 of 4 clusters, that is one or less"),
])
def test_settings_that_cannot_be_are_refused(trained, tmp_path, capsys, flags, message):
    code, _, error = call(capsys, "train.py", *stage2_flags(trained[0] / "ae" / "autoencoder.pth"), *flags,
                          "--output_dir", tmp_path)
    assert code == 2 and message in error and "Traceback" not in error


def test_codes_of_a_backbone_at_rest_are_made_from_cached_features(trained, tmp_path, capsys):
    torch.manual_seed(5)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "weights.pth")
    cache = ["--cache_dir", tmp_path / "cache", "--weights", tmp_path / "weights.pth"]
    train(capsys, trained, tmp_path / "head", "--max_epoch", -1, *cache)
    made = {}
    for name, flags in (("cached", cache[:2]), ("images", [])):
        code, out, error = call(capsys, "test.py", "--pretrain_path", tmp_path / "head" / "mrhash.pth", *SMALL, *flags,
                                "--save_codes", tmp_path / f"{name}.npz")
        assert code == 0, error
        assert ("features that the backbone's weights are known to give" in out) == (name == "cached")
        with np.load(tmp_path / f"{name}.npz") as file:
            made[name] = file["database_codes"], file["query_codes"]
    for cached, images in zip(made["cached"], made["images"], strict=True):
        np.testing.assert_array_equal(cached, images)
    # Of a backbone that went on learning nothing is cached.
    train(capsys, trained, tmp_path / "both", "--max_epoch", 0, *cache)
    code, out, _ = call(capsys, "test.py", "--pretrain_path", tmp_path / "both" / "mrhash.pth", *SMALL, *cache[:2])
    assert code == 0 and "known to give" not in out


def test_the_preset_runs_through_all_three_scripts_and_wins_over_labels_it_never_saw(trained, tmp_path, capsys):
    folder, _ = trained
    preset = ["--preset", "best"]
    code, _, error = call(capsys, "myautoencoder/autoencoder.py", *stage1_flags(folder), *preset, "--output_dir",
                          tmp_path / "ae")
    assert code == 0, error
    stage1 = torch.load(tmp_path / "ae" / "autoencoder.pth", weights_only=True)
    assert (stage1["features"]["neighbours"], stage1["features"]["feature_norm"]) == (10, "unit")
    code, _, error = call(capsys, "train.py", *preset, "--pretrained_dp_path", tmp_path / "ae" / "autoencoder.pth",
                          "--hash_bit", 12, "--model_type", "resnet18", "--weights", "none", "--image_size", 32,
                          "--n_clusters", 6, "--batch_size", 16, "--output_dir", tmp_path / "mr", *SMALL)
    assert code == 0, error
    config = json.loads((tmp_path / "mr" / "config.json").read_text())
    assert (config["targets"], config["head_epochs"], config["alpha"]) == ("once", 50, None)
    code, _, error = call(capsys, "test.py", *preset, "--pretrain_path", tmp_path / "mr" / "mrhash.pth", *SMALL)
    assert code == 0, error
    results = json.loads((tmp_path / "mr" / "results.json").read_text())
    assert results["map"] > results["map_chance"] + 0.15
