"""Stage 1: training, its monitor, what is kept, what is refused."""

import numpy as np
import pytest
import torch

import hamming
from data_loader import DataConfig, load_dataset
from engine.epoch import Meters, ShuffledEpoch
from engine.loop import Run
from helpers import QUICK, script_module, stage1_flags
from loss import reconstruction_loss
from network import MultisourceAutoencoder
from script_helpers import (
    AUTOENCODER,
    done,
    epochs_of,
    load,
    read_log,
    refused,
    stage1_of,
)

CPU = torch.device("cpu")
FEATURES = [torch.rand(40, width, generator=torch.Generator().manual_seed(width))
            for width in (12, 10)]

# ---------------------------------------------------------------- one epoch


class Walk:
    """Of a run what an epoch needs: steps that nothing stops, meters, an optimiser."""

    def __init__(self, model):
        self.optimizer = torch.optim.Adam(model.parameters(), lr=0.001)

    def steps(self, epoch):
        return epoch.steps()

    def meters(self, *names):
        return Meters(names, CPU)


def train_one_epoch(amp=False, lambda1=0.1, batch_size=10):
    """A model before and after an epoch, the mean loss, the types its latent was made in."""
    torch.manual_seed(0)
    model, seen = MultisourceAutoencoder([12, 10], 4), []
    before = torch.cat([value.detach().flatten() for value in model.parameters()])
    model.fuse.register_forward_hook(lambda layer, given, made: seen.append(made.dtype))
    stats = script_module(AUTOENCODER).train_one_epoch(
        Walk(model), model, ShuffledEpoch(40, batch_size, 3, CPU), FEATURES, lambda1, amp)
    after = torch.cat([value.detach().flatten() for value in model.parameters()])
    return before, after, stats["loss"], seen


def test_an_epoch_lowers_the_reconstruction_error_step_by_step():
    """Against a plain loop over the same batches."""
    before, after, mean, _ = train_one_epoch()
    torch.manual_seed(0)
    model, losses = MultisourceAutoencoder([12, 10], 4), []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    for rows in ShuffledEpoch(40, 10, 3, CPU).batches:
        x = [source[rows] for source in FEATURES]
        loss = reconstruction_loss(model(x)[1], x, 0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    plain = torch.cat([value.detach().flatten() for value in model.parameters()])
    torch.testing.assert_close(after, plain)
    assert mean == pytest.approx(np.mean(losses), rel=1e-5) and not torch.equal(before, after)
    assert losses[-1] < losses[0]


def test_the_mean_loss_weighs_a_short_last_batch_by_its_rows():
    """With batches of 30 and 10 rows the mean is that of rows, not of batches."""
    torch.manual_seed(0)
    model, parts = MultisourceAutoencoder([12, 10], 4), []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    for rows in ShuffledEpoch(40, 30, 3, CPU).batches:
        x = [source[rows] for source in FEATURES]
        loss = reconstruction_loss(model(x)[1], x, 0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        parts.append(loss.item() * len(rows) / 40)
    assert train_one_epoch(batch_size=30)[2] == pytest.approx(sum(parts), rel=1e-5)


def test_amp_trains_in_bfloat16_with_a_loss_in_float32():
    (_, weights, loss, seen), (_, others, other, rounded) = (
        train_one_epoch(amp) for amp in (False, True))
    assert seen == [torch.float32] * 4 and rounded == [torch.bfloat16] * 4
    assert 0 < abs(loss - other) < 0.05 * loss
    assert weights.dtype == others.dtype == torch.float32
    assert 0 < (weights - others).norm() < 0.01 * weights.norm()


# ---------------------------------------------------------------- the monitor


@pytest.mark.parametrize("signs", [False, True])
def test_the_monitor_ranks_by_the_latents_or_by_their_signs(trained, signs):
    dataset = load_dataset(DataConfig(**load(stage1_of(trained))["data"]))
    torch.manual_seed(1)
    model = MultisourceAutoencoder([12], 8, "unisource")
    with torch.no_grad():
        features = [np.random.default_rng(0).normal(size=(42, 12)).astype(np.float32)]
        latents = model.encode_all([torch.from_numpy(features[0])]).numpy()
    query, database = latents[dataset.query], latents[dataset.database]
    if signs:
        distances = ((query > 0)[:, None] != (database > 0)).sum(axis=2)
    else:
        distances = np.square(query[:, None] - database).sum(axis=2)
    hits = dataset.labels[dataset.query][:, None] == dataset.database_labels
    found = script_module(AUTOENCODER).latent_map(model, features, dataset, 13, signs)
    if signs:
        packed = (hamming.pack_codes(part > 0) for part in (query, database))
        labels = dataset.labels[dataset.query], dataset.database_labels
        assert found == hamming.evaluate(*packed, *labels, hash_bit=8, R=13)["map"]
        assert len(np.unique(distances)) < 10
        return
    order = np.argsort(distances, axis=1)[:, :13]
    hits = np.take_along_axis(hits, order, axis=1)
    precision = hits.cumsum(axis=1) / np.arange(1, 14)
    expected = (precision * hits).sum(axis=1) / np.maximum(hits.sum(axis=1), 1)
    assert found == pytest.approx(expected.mean(), rel=1e-6)


def test_the_monitor_is_in_the_lines_and_the_log_of_the_epochs_it_is_due_in(
        trained, tmp_path, capsys):
    out, _ = done(capsys, AUTOENCODER, *stage1_flags(trained[0]), "--cache_dir",
                  trained[0] / "cache", "--eval_frequency", 4, "--output_dir", tmp_path)
    log = read_log(tmp_path)
    assert ["latent_map" in record for record in log] == [True, False, False, False, True, True]
    lines = [line for line in out.splitlines() if line.startswith("epoch ")]
    assert [line.split(":")[0] for line in lines] == ["epoch 0/5", "epoch 4/5", "epoch 5/5"]
    for line, record in zip(lines, (log[0], *log[4:]), strict=True):
        assert line.endswith(f": loss {record['loss']:.5f}, latent mAP@13 "
                             f"{record['latent_map']:.4f} (ties: by index)")
    assert f"\nlatent mAP@13 {log[5]['latent_map']:.4f} (ties: by index)\n" in out
    kept = load(tmp_path / "autoencoder.pth")
    best = min(log, key=lambda record: record["loss"])
    assert kept["epoch"] == best["epoch"] == 5
    assert kept["latent_map"] == pytest.approx(best["latent_map"])


# ---------------------------------------------------------------- what is kept


def test_a_run_cut_short_and_resumed_ends_with_the_same_file(trained, tmp_path, capsys):
    flags = [*stage1_flags(trained[0]), "--cache_dir", trained[0] / "cache",
             "--output_dir", tmp_path]
    done(capsys, AUTOENCODER, *flags, "--epoch", 3)
    line = refused(capsys, AUTOENCODER, *flags)
    assert "--resume" in line and "--overwrite" in line
    assert "lr was 0.001, now 0.5" in refused(capsys, AUTOENCODER, *flags, "--lr", 0.5, "--resume")
    out, _ = done(capsys, AUTOENCODER, *flags, "--resume")
    assert f"resuming {tmp_path} after epoch 2\n" in out
    assert (tmp_path / "autoencoder.pth").read_bytes() == stage1_of(trained).read_bytes()
    assert epochs_of(tmp_path) == [("epoch", epoch) for epoch in range(6)]


@pytest.mark.parametrize(("select", "epoch"), [("loss", 1), ("last", 3), ("test_map", 2)])
def test_the_epoch_that_is_asked_for_is_kept(trained, tmp_path, capsys, monkeypatch, select, epoch):
    losses, maps = iter([4.0, 2.0, 3.0, 5.0]), iter([0.3, 0.1, 0.4, 0.2, 0.7])
    finish = Run.finish_epoch

    def invent(self, stats, score=None):
        stats["loss"] = next(losses)
        module = script_module(AUTOENCODER)
        finish(self, stats, None if score is None else module.score_of(stats, select))

    monkeypatch.setattr(Run, "finish_epoch", invent)
    monkeypatch.setattr(hamming, "float_map", lambda *arguments, **named: next(maps))
    _, error = done(capsys, AUTOENCODER, *stage1_flags(trained[0]), "--epoch", 4, "--select",
                    select, "--cache_dir", trained[0] / "cache", "--eval_frequency", 1,
                    "--output_dir", tmp_path)
    assert ("labels of the test queries" in error) == (select == "test_map")
    kept = load(tmp_path / "autoencoder.pth")
    assert (kept["epoch"], kept["phase"], kept["select"]) == (epoch, "epoch", select)
    assert kept["latent_map"] == 0.7  # measured once more, of what is kept


def test_test_map_measures_every_epoch_by_signs_too(trained, tmp_path, capsys):
    out, _ = done(capsys, AUTOENCODER, *stage1_flags(trained[0]), "--select", "test_map",
                  "--data_hash", 1, "--cache_dir", trained[0] / "cache", "--output_dir", tmp_path)
    lines = [line for line in out.splitlines() if "mAP" in line]
    assert len(lines) > 1 and all(line.endswith(" (ties: expected)") for line in lines)
    kept, log = load(tmp_path / "autoencoder.pth"), read_log(tmp_path)
    assert kept["latent_map"] == pytest.approx(max(record["latent_map"] for record in log))


def test_the_checkpoint_says_all_that_stage_2_needs(trained):
    checkpoint = load(stage1_of(trained))
    assert checkpoint["format"] == "mrhash-autoencoder-1"
    assert checkpoint["network"] == {"feature_dims": [512, 512], "latent_dim": 64,
                                     "encoder": "dual"}
    features = checkpoint["features"]
    assert len(features.pop("content")) == 16
    assert features == {"feature_backbone": "resnet18", "feature_weights": "none",
                        "image_size": 32, "normalise": None, "amp": False, "views": 1,
                        "files": [None, None], "feature_norm": "none", "neighbours": 0,
                        "averaging": "nearest", "averaging_rounds": 1}
    config = DataConfig(**checkpoint["data"])
    assert load_dataset(config).fingerprint == checkpoint["fingerprint"]


# ---------------------------------------------------------------- what is refused

BAD = [
    (["--data_name", "Landsat"], "EuroSAT, DSRSID, UCMerced, samples, pairs, demo, folder"),
    (["--data_name", "EuroSAT", "--data_dir", "{tmp}/nowhere"], "download EuroSAT_RGB.zip"),
    (["--data_name", "ucmerced", "--data_dir", "{tmp}"], "UCMerced_LandUse.zip"),
    (["--data_name", "DSRSID", "--data_dir", "{tmp}"], "DSRSID.mat"),
    (["--data_name", "pairs"], "--source1"),
    (["--data_name", "folder"], "--source1"),
    (["--data_name", "pairs", "--source1", "{tmp}", "--source2", ""], "an empty path"),
    (["--epochs", "3"], "unrecognized arguments"),
    (["--epoch", "0"], "0 is not a whole number of at least 1"),
    (["--device", "tpu9"], "--device tpu9 cannot be used"),
    (["--seed", "18446744073709551616"], "--seed"),
    (["--batch_size", "1" + "0" * 30], "--batch_size"),
    (["--image_size", "20000"], "from 1 to 2048"),
    (["--latent_dim", "65537"], "65537 is not a whole number from 1 to 65536"),
    (["--skip_bad", "--features1", "{tmp}/f.npz"], "--skip_bad is for images"),
    (["--skip_unpaired", "--features2", "{tmp}/f.npz"], "--skip_unpaired is for images"),
]


@pytest.mark.parametrize(("flags", "message"), BAD, ids=[" ".join(flags) for flags, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.setattr("utils.ROOT", tmp_path)  # whatever is written by default
    line = refused(capsys, AUTOENCODER, *(flag.format(tmp=tmp_path) for flag in flags))
    assert message in line


@pytest.mark.parametrize(("flags", "message"), [
    (["--neighbours", 39], "--neighbours 39 needs more training images than that, found 39"),
    (["--source2", "none", "--encoder", "dual"], "--encoder dual needs a second source"),
    (["--R", 40], "--R 40 is larger than the database of 39 images"),
    (["--feature_backbone", "resnet1"], "no torchvision classification model"),
    (["--output_dir", "~nobodyx/run"], "home folder that is not there"),
])
def test_settings_that_the_images_do_not_allow_are_refused(trained, tmp_path, capsys, flags,
                                                           message):
    line = refused(capsys, AUTOENCODER, *stage1_flags(trained[0]), "--feature_backbone", QUICK[1],
                   "--output_dir", tmp_path, *flags)
    assert message in line
