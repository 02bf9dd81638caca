"""What stage 2 takes from stage 1, also where its features were files of others."""

import pickle
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_loader import DataConfig, load_dataset
from engine.checkpoint import save_checkpoint
from engine.cli import Compute, run
from helpers import QUICK, script_module, stage1_flags, stage2_flags
from loss import cluster_centres, label_spread, soft_assignment
from myautoencoder.features import dataset_features
from myautoencoder.stage1 import load_stage1, make_centres, training_features
from network import MultisourceAutoencoder
from script_helpers import AUTOENCODER, done, load, quick_flags, refused, stage1_of
from utils import InputError

CPU = Compute(torch.device("cpu"), batch_size=16, workers=1)


def parse(path, *flags):
    """The flags of train.py."""
    return script_module("train.py").parse_arguments(
        ["--pretrained_dp_path", str(path), *map(str, flags)])


# ---------------------------------------------------------------- flags of the network


@pytest.fixture
def known(trained, tmp_path):
    """Stage 1 on features of a file of weights at 64 pixels."""
    content = load(stage1_of(trained))
    for name in ("old.pth", "new.pth"):
        (tmp_path / name).touch()
    content["features"] |= {"feature_weights": str(tmp_path / "old.pth"), "image_size": 64}
    save_checkpoint(tmp_path / "known.pth", content)
    return tmp_path / "known.pth"


@pytest.mark.parametrize(("flags", "expected"), [
    ([], ("resnet18", "old.pth", 64)),
    (["--feature_weights", "new.pth"], ("resnet18", "new.pth", 64)),
    (["--model_type", "resnet18"], ("resnet18", "old.pth", 64)),
    (["--model_type", "alexnet"], ("alexnet", "imagenet", 224)),
    (["--model_type", "alexnet", "--feature_weights", "new.pth"], ("alexnet", "imagenet", 224)),
    (["--weights", "none", "--feature_weights", "new.pth"], ("resnet18", "none", 64)),
    (["--image_size", "32"], ("resnet18", "old.pth", 32)),
])
def test_the_preset_best_takes_the_network_of_stage_1_where_no_flag_says_which(
        known, flags, expected):
    args = parse(known, "--preset", "best", *(
        known.with_name(word) if word == "new.pth" else word for word in flags))
    load_stage1(args)
    assert (args.model_type, Path(args.weights).name, args.image_size) == expected


@pytest.mark.parametrize(("preset", "features", "warned"), [
    ("best", {}, True), ("best", {"feature_norm": "unit"}, False),
    ("best", {"neighbours": 10}, False), ("published", {}, False)])
def test_the_preset_best_on_a_stage_1_without_it_is_warned_of(
        trained, tmp_path, capsys, preset, features, warned):
    content = load(stage1_of(trained))
    content["features"] |= features
    save_checkpoint(tmp_path / "stage1.pth", content)
    load_stage1(parse(tmp_path / "stage1.pth", "--preset", preset))
    assert ("was made without --preset best" in capsys.readouterr().err) == warned


@pytest.mark.parametrize("preset", [[], ["--preset", "published"]])
def test_without_that_preset_the_network_is_the_published_one(known, preset):
    args = parse(known, *preset)
    load_stage1(args)
    assert (args.model_type, args.weights, args.image_size) == ("alexnet", "imagenet", 224)


def test_stage_1_is_what_was_saved_and_a_latent_of_another_width_is_refused(trained):
    args = parse(stage1_of(trained), "--latent_dim", 64)
    checkpoint, path = load_stage1(args)
    assert path == stage1_of(trained) and checkpoint["fingerprint"] == load(path)["fingerprint"]
    args.latent_dim = 32
    with pytest.raises(InputError, match=r"--latent_dim 32 contradicts .* has 64 values"):
        load_stage1(args)


# ---------------------------------------------------------------- features and centres


def dataset_of(trained):
    return load_dataset(DataConfig(**load(stage1_of(trained))["data"]))


def test_features_are_those_of_the_training_images(trained):
    dataset, args = dataset_of(trained), parse(stage1_of(trained))
    found = training_features(args, dataset, load_stage1(args), CPU)
    whole, _ = dataset_features(dataset, load(stage1_of(trained))["features"], "none", CPU)
    assert len(found) == 2
    for rows, array in zip(found, whole, strict=True):
        np.testing.assert_array_equal(rows.numpy(), array[dataset.train])


def test_features_are_prepared_as_in_stage_1(trained, tmp_path):
    content = load(stage1_of(trained))
    content["features"] |= {"feature_norm": "unit", "neighbours": 2}
    save_checkpoint(tmp_path / "unit.pth", content)
    args = parse(tmp_path / "unit.pth")
    found = training_features(args, dataset_of(trained), load_stage1(args), CPU)
    assert all(torch.allclose((x**2).mean(dim=1), torch.ones(39), rtol=1e-4) for x in found)
    raw = training_features(parse(stage1_of(trained)), dataset_of(trained),
                            load_stage1(parse(stage1_of(trained))), CPU)
    assert not torch.allclose(found[0], raw[0])


def points():
    """Three groups, and an autoencoder that sees them."""
    generator = torch.Generator().manual_seed(0)
    centres = 5 * torch.randn(3, 8, generator=generator)
    x = centres.repeat(10, 1) + 0.1 * torch.randn(30, 8, generator=generator)
    torch.manual_seed(0)
    return MultisourceAutoencoder([8], 6, "unisource"), [x]


def test_centres_are_those_of_k_means_of_the_latents():
    model, x = points()
    args = parse("x", "--n_clusters", 3, "--label_spread", 0, "--seed", 5)
    found = make_centres(model, x, 1.0, args)
    latent = model.encode_all(x)
    expected = cluster_centres(latent.numpy(), 3, starts=20, seed=5)
    np.testing.assert_array_equal(found.numpy(), expected)
    assert len(torch.cdist(latent, found).argmin(dim=1).unique()) == 3


def test_with_a_label_spread_latents_and_centres_are_moved_together():
    model, x = points()
    before = model.encode_all(x)
    plain = make_centres(model, x, 5.0, parse("x", "--n_clusters", 3, "--label_spread", 0))
    found = make_centres(model, x, 5.0, parse("x", "--n_clusters", 3, "--label_spread", 0.5))
    after = model.encode_all(x)
    torch.testing.assert_close(after.mean(dim=0), torch.zeros(6), atol=1e-4, rtol=0)
    scale = (after[0] - after[1]).norm() / (before[0] - before[1]).norm()
    expected = (plain - before.mean(dim=0)) * scale
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert label_spread(soft_assignment(after, found, 5.0)) == pytest.approx(1.5, abs=0.05)


# ---------------------------------------------------------------- the authors' files


@pytest.fixture(scope="module")
def authors(trained, tmp_path_factory):
    """Lists as the authors write them, of files elsewhere, and pickles of features in their order.

    Returns: the folder, and the flags of stage 1 with these lists.
    """
    lists, dataset = tmp_path_factory.mktemp("authors"), dataset_of(trained)
    generator = np.random.default_rng(1)
    order = {"train": generator.permutation(dataset.train),
             "test": generator.permutation(dataset.query)}
    order["database"] = generator.permutation(order["train"])
    for part, rows in order.items():
        with open(lists / f"{part}.txt", "w") as file:
            for row in rows:
                one_hot = " ".join(str(int(label == dataset.labels[row])) for label in (2, 0, 1))
                file.write(f"/home/author/data/images/{dataset.names[row]}.jpg {one_hot}\n")
    settings = {"feature_backbone": "resnet18", "image_size": 32, "amp": False}
    arrays, _ = dataset_features(dataset, settings, "none", CPU)
    rows = np.concatenate([order["train"], order["test"]])
    labels = np.array([1, 2, 0])[dataset.labels[rows]]  # the number of the column
    for number, values in enumerate(arrays, 1):
        content = {"data": np.asarray(values)[rows].astype(np.float64), "labels": labels}
        (lists / f"source{number}.pkl").write_bytes(pickle.dumps(content))
    return lists, [*stage1_flags(trained[0]), "--split_dir", lists, "--epoch", 2, "--cache_dir",
                   trained[0] / "cache"]


def both(lists):
    return ["--features1", lists / "source1.pkl", "--features2", lists / "source2.pkl"]


def content_of(lists, number):
    return pickle.loads((lists / f"source{number}.pkl").read_bytes())


def stage2(folder):
    return [*stage2_flags(folder / "autoencoder.pth"), *QUICK, "--max_epoch", 0]


def test_feature_files_lead_to_the_same_autoencoder_as_the_images(authors, tmp_path, capsys):
    lists, flags = authors
    # With both files no backbone is needed: its weights may be nowhere.
    for name, more in (("images", []),
                       ("files", [*both(lists), "--feature_weights", "nowhere.pth"]),
                       ("second", [*both(lists)[2:], "--source2", "none"])):
        out, _ = done(capsys, AUTOENCODER, *flags, *more, "--output_dir", tmp_path / name)
        assert ("features of source 2: 42 x 512" in out) == (name != "images")
    images = load(tmp_path / "images" / "autoencoder.pth")
    for name in ("files", "second"):
        found = load(tmp_path / name / "autoencoder.pth")
        assert found["network"] == images["network"]  # a dual encoder
        for key, value in images["model"].items():
            assert torch.equal(found["model"][key], value), key
    line = refused(capsys, "train.py", *stage2(tmp_path / "images"), *both(lists)[:2],
                   "--output_dir", tmp_path / "mr")
    assert "has no file of features for source 1" in line


@pytest.fixture(scope="module")
def from_files(authors, tmp_path_factory):
    """The folder of a run of stage 1 on both files."""
    lists, flags = authors
    folder = tmp_path_factory.mktemp("from_files")
    with pytest.MonkeyPatch.context() as patch:
        command = [AUTOENCODER, *flags, *both(lists), "--output_dir", folder]
        patch.setattr("sys.argv", [str(word) for word in command])
        assert run(script_module(AUTOENCODER).main) == 0
    return folder


def test_train_takes_the_same_files_or_the_same_content_elsewhere_and_no_other(
        authors, from_files, tmp_path, capsys):
    lists, _ = authors
    done(capsys, "train.py", *stage2(from_files), "--output_dir", tmp_path / "mr")
    moved = tmp_path / "moved.npz"
    np.savez(moved, **content_of(lists, 1))
    done(capsys, "train.py", *stage2(from_files), "--features1", moved, "--output_dir",
         tmp_path / "mr2")
    assert (tmp_path / "mr2" / "mrhash.pth").read_bytes() == (
        tmp_path / "mr" / "mrhash.pth").read_bytes()
    line = refused(capsys, "train.py", *stage2(from_files), "--features1", lists / "source2.pkl",
                   "--output_dir", tmp_path / "mr3")
    assert "not the content that the autoencoder was trained on" in line


def test_one_file_of_features_for_the_only_source_names_no_backbone_either():
    module = script_module(AUTOENCODER)
    args = module.parse_arguments(["--features1", "one.npz"])
    alone, pair = Namespace(sources=[1]), Namespace(sources=[1, 2])
    assert module.feature_settings(args, alone)["feature_backbone"] is None
    assert module.feature_settings(args, pair)["feature_backbone"] == "resnet50"


def test_the_preset_best_on_feature_files_asks_for_a_network(trained, from_files, tmp_path, capsys):
    flags = ["--preset", "best", "--pretrained_dp_path", from_files / "autoencoder.pth",
             *quick_flags(trained)[-4:], "--output_dir", tmp_path]
    for more in ([], ["--weights", "none"]):
        line = refused(capsys, "train.py", *flags[:4], "--device", "cpu", *more)
        assert "was made from files of features, which do not say from which network" in line
        assert "name one with --model_type and --weights" in line
    done(capsys, "train.py", *flags, *QUICK, "--weights", "none", "--label_spread", 0.5,
         "--n_clusters", 4, "--head_epochs", 1, "--device", "cpu")
    assert load(tmp_path / "mrhash.pth")["network"]["model_type"] == QUICK[1]


def test_a_resumed_stage_1_insists_on_its_features_but_not_on_words(authors, tmp_path, capsys):
    lists, flags = authors
    np.savez(tmp_path / "2.npz", **content_of(lists, 2))
    flags = [*flags, *both(lists)[:2], "--output_dir", tmp_path / "ae"]
    more = ["--features2", tmp_path / "2.npz"]
    done(capsys, AUTOENCODER, *flags, *more)
    before = (tmp_path / "ae" / "autoencoder.pth").read_bytes()

    # The same settings in other words are no difference; another content is.
    words = ["--preset", "published", "--encoder", "dual", "--init", "he", "--select", "loss"]
    done(capsys, AUTOENCODER, *flags, *more, "--resume", *words)
    content = content_of(lists, 2)
    np.savez(tmp_path / "2.npz", data=content["data"] + 1, labels=content["labels"])
    line = refused(capsys, AUTOENCODER, *flags, *more, "--resume", "--epoch", 4)
    assert "the weights or feature files are not those that it began with" in line

    # --overwrite beside a bad flag loses nothing.
    line = refused(capsys, AUTOENCODER, *flags, "--features2", "no.npz", "--overwrite")
    assert "no features at" in line
    assert (tmp_path / "ae" / "autoencoder.pth").read_bytes() == before
    assert (tmp_path / "ae" / "last.pth").exists()


def test_a_resumed_stage_2_finds_files_that_moved_when_it_is_told(authors, tmp_path, capsys):
    lists, flags = authors
    np.savez(tmp_path / "2.npz", **content_of(lists, 2))
    mixed = [*flags, "--source2", "none", "--features2", tmp_path / "2.npz"]
    done(capsys, AUTOENCODER, *mixed, "--output_dir", tmp_path / "ae")
    train = [*stage2(tmp_path / "ae"), "--output_dir", tmp_path / "mr"]
    done(capsys, "train.py", *train)
    moved = (tmp_path / "2.npz").rename(tmp_path / "moved.npz")
    line = refused(capsys, "train.py", *train, "--resume", "--max_epoch", 1)
    assert "which are not there now: name their new place with --features2" in line
    out, _ = done(capsys, "train.py", *train, "--resume", "--max_epoch", 1, "--features2", moved,
                  "--preset", "published", "--batch_norm", "auto", "--alpha", "auto")
    assert "resuming" in out
    np.savez(tmp_path / "1.npz", **content_of(lists, 1))
    new = [*train[:-1], tmp_path / "mr2"]
    line = refused(capsys, "train.py", *new, "--features2", tmp_path / "1.npz")
    assert "not the content that the autoencoder was trained on" in line
    line = refused(capsys, "train.py", *new, "--features1", tmp_path / "1.npz")
    assert "has no file of features for source 1" in line


def test_feature_files_need_the_lists_whose_order_they_have(trained, authors, tmp_path, capsys):
    lists, _ = authors
    flags = [*stage1_flags(trained[0]), *both(lists)[:2], "--output_dir", tmp_path]
    assert "--split_dir" in refused(capsys, AUTOENCODER, *flags)
    line = refused(capsys, AUTOENCODER, *flags, "--split_dir", lists, "--max_per_class", 3)
    assert "leave out --max_per_class" in line
