"""The three scripts as people run them: end to end, repeated, and on images of their own."""

import json

import numpy as np
import pytest
import torch

from helpers import QUICK, SMALL, make_pairs, read_results, run_script, stage1_flags, stage2_flags
from network import Backbone, load_backbone
from script_helpers import (
    AUTOENCODER,
    done,
    epochs_of,
    load,
    quick_flags,
    read_log,
    refused,
    stage1_of,
)


def test_the_three_commands_lead_from_images_to_a_map(trained):
    folder, outputs = trained
    results = json.loads((folder / "mr" / "results.json").read_text())
    assert (results["hash_bit"], results["R"]) == (12, 13)
    assert (results["num_query"], results["num_database"]) == (3, 39)
    for key in ("map", "map_min", "map_max", "map_strict", "map_all", "recall",
                "precision_radius2", "seconds"):
        assert results[key] >= 0
    assert set(results["precision_at"]) == {"1", "10", "100"}
    assert results["map_min"] - 1e-12 <= results["map"] <= results["map_max"] + 1e-12
    assert f"{results['map']:.4f}" in outputs[2]
    # Three colours are easy: the codes must have learnt something.
    assert results["map"] > results["map_chance"] + 0.15


def test_results_agree_with_a_plain_evaluation_of_the_stored_codes(trained):
    folder, _ = trained
    with np.load(folder / "codes.npz", allow_pickle=False) as file:
        codes = {name: file[name] for name in file.files}
    query, database = (np.unpackbits(codes[f"{part}_codes"], axis=1)[:, :12]
                       for part in ("query", "database"))
    distances = (query[:, None] != database[None]).sum(axis=2)
    generator, means = np.random.default_rng(0), []
    for _ in range(400):  # the mean over random orders of the ties
        order = np.lexsort((generator.random(distances.shape), distances), axis=1)[:, :13]
        hits = codes["database_labels"][order] == codes["query_labels"][:, None]
        precision = hits.cumsum(axis=1) / np.arange(1, 14)
        found = np.maximum(hits.sum(axis=1), 1)
        means.append(np.mean((precision * hits).sum(axis=1) / found))
    results = json.loads((folder / "mr" / "results.json").read_text())
    spread = 5 * np.std(means) / 20 + 1e-9
    assert results["map"] == pytest.approx(np.mean(means), abs=spread)
    assert len(set(codes["query_paths"]) & set(codes["database_paths"])) == 0
    assert [path.split("/")[0] for path in codes["query_paths"]] == ["field", "sea", "town"]


def test_the_run_folder_holds_what_the_contract_says(trained):
    folder, outputs = trained
    for name, result, count in (("ae", "autoencoder.pth", 6), ("mr", "mrhash.pth", 3)):
        config = json.loads((folder / name / "config.json").read_text())
        assert config["seed"] == 13
        assert {"torch", "numpy", "git_commit", "command"} <= config["environment"].keys()
        assert config["fingerprint"]
        assert epochs_of(folder / name) == [("epoch", epoch) for epoch in range(count)]
        for file in (result, "last.pth"):
            load(folder / name / file)
    for label, output in (("epoch 0/5:", outputs[0]), ("epoch 5/5:", outputs[0]),
                          ("epoch 0/2:", outputs[1]), ("epoch 2/2:", outputs[1])):
        assert f"\n{label} loss " in output
    assert "mrhash.pth (epoch 2)" in outputs[1]
    log = read_log(folder / "mr")
    assert 0 < log[2]["map"] <= 1 and "map" not in log[1]
    assert {"loss", "divergence", "reconstruction", "images_per_second",
            "seconds"} <= log[1].keys()


def test_as_a_module_the_autoencoder_gives_the_same_file(trained, tmp_path):
    result = run_script("-m", "myautoencoder.autoencoder", *stage1_flags(trained[0]),
                        "--output_dir", tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "autoencoder.pth").read_bytes() == stage1_of(trained).read_bytes()


def test_a_bad_flag_leaves_no_traceback_in_a_real_process(tmp_path):
    # From the root, by its path: the third way to start it.
    result = run_script(AUTOENCODER, "--data_name", "pairs", "--source1", tmp_path / "no")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1


def test_two_runs_of_training_and_testing_give_identical_files(trained, tmp_path, capsys):
    folder, _ = trained
    done(capsys, "train.py", *stage2_flags(stage1_of(trained)), "--output_dir", tmp_path)
    again, first = tmp_path / "mrhash.pth", folder / "mr" / "mrhash.pth"
    assert again.read_bytes() == first.read_bytes()
    done(capsys, "test.py", "--pretrain_path", again, "--save_codes", tmp_path / "codes.npz",
         *SMALL)
    assert (tmp_path / "codes.npz").read_bytes() == (folder / "codes.npz").read_bytes()


def test_another_seed_gives_another_model_on_the_same_split(trained, tmp_path, capsys):
    made = []
    for seed in (13, 14):
        done(capsys, "train.py", *quick_flags(trained), "--max_epoch", 0, "--seed", seed,
             "--output_dir", tmp_path / str(seed))
        made.append(load(tmp_path / str(seed) / "mrhash.pth"))
    assert made[0]["fingerprint"] == made[1]["fingerprint"]
    for name in ("centres", "hash_network.hash_layer.weight"):
        assert not torch.equal(made[0]["model"][name], made[1]["model"][name])


def test_a_second_source_that_appears_later_does_not_change_a_trained_pair(tmp_path, capsys):
    make_pairs(tmp_path)
    (tmp_path / "coarse").rename(tmp_path / "EuroSAT")
    flags = ["--data_name", "eurosat", "--data_dir", tmp_path, *stage1_flags(tmp_path)[6:],
             "--epoch", 1]
    done(capsys, AUTOENCODER, *flags, "--output_dir", tmp_path / "ae")
    (tmp_path / "fine").rename(tmp_path / "EuroSAT_VHR")
    stage2 = stage2_flags(tmp_path / "ae" / "autoencoder.pth")
    out, _ = done(capsys, "train.py", *stage2, *QUICK, "--max_epoch", 0,
                  "--output_dir", tmp_path / "mr")
    assert "no second source" in out
    out, _ = done(capsys, AUTOENCODER, *flags, "--output_dir", tmp_path / "ae2")
    assert "Sentinel-2 RGB + vhr" in out


def test_one_source_alone_and_no_labels_work_to_the_codes(trained, tmp_path, capsys):
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted((trained[0] / "fine").rglob("*.png"))):
        (flat / f"{number:02d}.png").write_bytes(path.read_bytes())
    flags = stage1_flags(trained[0])
    flags[3], flags[5] = flat, "none"
    done(capsys, AUTOENCODER, *flags, "--output_dir", tmp_path / "ae")
    done(capsys, "train.py", *stage2_flags(tmp_path / "ae" / "autoencoder.pth"), *QUICK,
         "--output_dir", tmp_path / "mr")
    model = ["--pretrain_path", tmp_path / "mr" / "mrhash.pth", *SMALL]
    out, _ = done(capsys, "test.py", *model, "--save_codes", tmp_path / "codes.npz")
    assert "no labels" in out and "--save_codes FILE" not in out
    assert not (tmp_path / "mr" / "results.json").exists()
    assert sorted(np.load(tmp_path / "codes.npz").files) == [
        "database_codes", "database_paths", "hash_bit", "query_codes", "query_paths"]
    assert "--save_codes FILE keeps the codes" in done(capsys, "test.py", *model)[0]
    assert "--figures needs labels" in refused(
        capsys, "test.py", *model, "--figures", tmp_path / "figures")


def test_a_folder_of_ones_own_is_a_data_set_in_all_three_scripts(tmp_path, capsys, monkeypatch):
    """Class folders, one source; what is written by default is called after the folder."""
    make_pairs(tmp_path / "images")
    (tmp_path / "images" / "fine").rename(tmp_path / "images" / "Tiles 2024")
    root = tmp_path / "repository"
    monkeypatch.setattr("utils.ROOT", root)  # what is relative lies below it
    images = tmp_path / "images" / "Tiles 2024"
    run = ["--batch_size", 16, "--device", "cpu"]
    backbone = ["--feature_backbone", QUICK[1], "--feature_weights", "none", "--image_size", 32]
    out, _ = done(capsys, AUTOENCODER, "--data_name", "folder", "--source1", images, *backbone,
                  "--epoch", 2, *run)
    assert out.startswith("Tiles 2024: images, no second source; 39 training, 39 database, 3 query")
    stage1 = root / "runs" / "autoencoder_tiles 2024" / "autoencoder.pth"
    assert load(stage1)["network"]["encoder"] == "unisource"

    train = ["--hash_bit", 12, *QUICK, "--weights", "none", "--image_size", 32, "--n_clusters", 6,
             "--max_epoch", 0, *run]
    done(capsys, "train.py", "--pretrained_dp_path",
         "runs/autoencoder_tiles 2024/autoencoder.pth", *train)
    folder = root / "runs" / "mrhash_tiles 2024_12bit"

    # The folder may be moved before it is hashed.
    images = images.rename(tmp_path / "images" / "moved")
    model = ["--pretrain_path", "runs/mrhash_tiles 2024_12bit/mrhash.pth", *run]
    assert "Tiles 2024" in refused(capsys, "test.py", *model)
    done(capsys, "test.py", *model, "--source1", images, "--figures", "figures",
         "--save_codes", "codes.npz", "--picture", "neighbours.png")
    assert read_results(folder)["num_database"] == 39
    assert sorted(path.name for path in root.iterdir()) == [
        "cache", "codes.npz", "figures", "neighbours.png", "runs"]
    assert {path.name for path in (root / "runs").iterdir()} == {
        "autoencoder_tiles 2024", "mrhash_tiles 2024_12bit"}
    with np.load(root / "codes.npz") as codes:
        assert codes["class_names"].tolist() == ["field", "sea", "town"]
        assert {path.split("/")[0] for path in codes["query_paths"]} == {"field", "sea", "town"}


# ---------------------------------------------------------------- torch.compile


def commands(trained, folder):
    """The three scripts, each with the number of networks through which it sends images."""
    model = trained[0] / "mr" / "mrhash.pth"
    yield AUTOENCODER, [*stage1_flags(trained[0]), "--output_dir", folder / "ae"], 2
    # The features of two sources, and what it trains.
    yield "train.py", [*stage2_flags(stage1_of(trained)), *QUICK, "--max_epoch", 0,
                       "--output_dir", folder / "mr"], 3
    yield "test.py", ["--pretrain_path", model, "--output_dir", folder, *SMALL], 1


def test_compile_is_used_where_images_go_through_a_network(trained, tmp_path, capsys,
                                                           monkeypatch):
    compiled = []
    monkeypatch.setattr(Backbone, "compile", lambda network: compiled.append(type(network)))
    monkeypatch.setattr(torch, "compile", lambda function: function)
    for name, flags, times in commands(trained, tmp_path):
        compiled.clear()
        done(capsys, name, *flags, "--compile")
        assert compiled == [Backbone] * times, name


def test_compile_is_refused_where_it_cannot(trained, tmp_path, capsys, monkeypatch):
    def fail(function):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", fail)
    for name, flags, _ in commands(trained, tmp_path):
        assert ("--compile: torch cannot compile here (No working C++ compiler found): leave it "
                "out") in refused(capsys, name, *flags, "--compile")


@pytest.mark.slow
def test_a_compiled_network_gives_what_it_gave():
    torch.manual_seed(0)
    backbone, images = load_backbone("resnet18", "none", 32, "adapt"), torch.rand(6, 3, 32, 32)
    expected = backbone.train()(images)
    backbone.compile_for(torch.device("cpu"))
    torch.testing.assert_close(backbone(images), expected, rtol=1e-3, atol=1e-4)
    expected = backbone.eval()(images)  # and a batch of another size
    torch.testing.assert_close(backbone(images[:4]), expected[:4], rtol=1e-3, atol=1e-4)
