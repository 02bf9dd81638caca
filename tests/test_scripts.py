"""The three scripts as people run them: end to end, repeated, resumed, and with bad input."""

import csv
import json
import platform
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import hamming
from engine.run import LossWatch
from helpers import QUICK, SMALL, call, make_pairs, read_results, run_script, script_module, stage1_flags, stage2_flags
from network import Backbone, MultisourceAutoencoder

pass


def test_the_three_commands_lead_from_images_to_a_map(trained):
    folder, outputs = trained
    results = json.loads((folder / "mr" / "results.json").read_text())
    assert (results["hash_bit"], results["num_query"], results["num_database"], results["R"]) == (12, 3, 39, 13)
    for key in ("map", "map_min", "map_max", "map_strict", "map_all", "recall", "precision_radius2", "seconds"):
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
    bits = {part: np.unpackbits(codes[f"{part}_codes"], axis=1)[:, :12] for part in ("query", "database")}
    distances = (bits["query"][:, None] != bits["database"][None]).sum(axis=2)
    generator, means = np.random.default_rng(0), []
    for _ in range(400):  # the mean over random orders of the ties
        order = np.lexsort((generator.random(distances.shape), distances), axis=1)[:, :13]
        hits = codes["database_labels"][order] == codes["query_labels"][:, None]
        precision = hits.cumsum(axis=1) / np.arange(1, 14)
        means.append(np.mean((precision * hits).sum(axis=1) / np.maximum(hits.sum(axis=1), 1)))
    results = json.loads((folder / "mr" / "results.json").read_text())
    assert results["map"] == pytest.approx(np.mean(means), abs=5 * np.std(means) / 20 + 1e-9)
    assert len(set(codes["query_paths"]) & set(codes["database_paths"])) == 0
    assert [path.split("/")[0] for path in codes["query_paths"]] == ["field", "sea", "town"]


def test_the_run_folder_holds_what_the_contract_says(trained):
    folder, _ = trained
    for name, result, epochs in (("ae", "autoencoder.pth", 6), ("mr", "mrhash.pth", 3)):
        config = json.loads((folder / name / "config.json").read_text())
        assert config["seed"] == 13
        assert {"torch", "numpy", "git_commit", "command"} <= config["environment"].keys()
        assert config["fingerprint"]
        log = [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]
        assert [record["epoch"] for record in log] == list(range(epochs))
        for file in (result, "last.pth"):
            torch.load(folder / name / file, weights_only=True)
    assert 0 < log[2]["map"] <= 1
    assert [record["lr"] for record in log] == [0.001] * 3


def test_the_picture_frames_right_neighbours_green_and_wrong_ones_red(trained):
    from hamming.pictures import RIGHT, WRONG
    folder, _ = trained
    picture = np.asarray(Image.open(folder / "neighbours.png"))
    codes = np.load(folder / "codes.npz")
    nearest, _ = hamming.nearest(codes["query_codes"], codes["database_codes"], 12, 10)
    right = int((codes["database_labels"][nearest] == codes["query_labels"][:, None]).sum())
    frame = (96 + 10) ** 2 - 96 ** 2
    assert (picture == RIGHT).all(axis=2).sum() >= right * frame
    assert (picture == WRONG).all(axis=2).sum() >= (30 - right) * frame
    assert (picture == RIGHT).all(axis=2).sum() < (right + 1) * frame


def test_the_module_way_and_the_path_way_start_the_autoencoder_too(trained, tmp_path):
    folder, _ = trained
    expected = (folder / "ae" / "autoencoder.pth").read_bytes()
    for number, start in enumerate((["-m", "myautoencoder.autoencoder"], ["myautoencoder/autoencoder.py"])):
        done = run_script(*start, *stage1_flags(folder), "--output_dir", tmp_path / str(number))
        assert done.returncode == 0, done.stderr
        assert (tmp_path / str(number) / "autoencoder.pth").read_bytes() == expected  # one seed, same file


def test_two_runs_of_training_and_testing_give_identical_files(trained, tmp_path, capsys):
    folder, _ = trained
    code, _, _ = call(capsys, "train.py", *stage2_flags(folder / "ae" / "autoencoder.pth"), "--output_dir",
                      tmp_path / "again")
    assert code == 0
    assert (tmp_path / "again" / "mrhash.pth").read_bytes() == (folder / "mr" / "mrhash.pth").read_bytes()
    code, _, _ = call(capsys, "test.py", "--pretrain_path", tmp_path / "again" / "mrhash.pth", "--save_codes",
                      tmp_path / "codes.npz", *SMALL)
    assert code == 0
    assert (tmp_path / "codes.npz").read_bytes() == (folder / "codes.npz").read_bytes()


def test_another_seed_gives_another_model_on_the_same_split(trained, tmp_path, capsys):
    folder, _ = trained
    code, _, _ = call(capsys, "train.py", *stage2_flags(folder / "ae" / "autoencoder.pth"), "--seed", 14,
                      "--output_dir", tmp_path)
    assert code == 0
    one, other = (torch.load(path / "mrhash.pth", weights_only=True) for path in (folder / "mr", tmp_path))
    assert one["fingerprint"] == other["fingerprint"]
    assert not torch.equal(one["model"]["centres"], other["model"]["centres"])


def test_a_second_source_that_appears_later_does_not_change_a_trained_pair(tmp_path, capsys):
    make_pairs(tmp_path)
    (tmp_path / "coarse").rename(tmp_path / "EuroSAT")
    flags = ["--data_name", "eurosat", "--data_dir", tmp_path, *stage1_flags(tmp_path)[6:]]
    assert call(capsys, "myautoencoder/autoencoder.py", *flags, "--output_dir", tmp_path / "ae")[0] == 0
    (tmp_path / "fine").rename(tmp_path / "EuroSAT_VHR")
    code, out, error = call(capsys, "train.py", *stage2_flags(tmp_path / "ae" / "autoencoder.pth"), "--output_dir",
                            tmp_path / "mr")
    assert code == 0 and "no second source" in out, error
    code, out, _ = call(capsys, "myautoencoder/autoencoder.py", *flags, "--output_dir", tmp_path / "ae2")
    assert code == 0 and "Sentinel-2 RGB + vhr" in out


@pytest.mark.parametrize("stage", [1, 2])
def test_a_run_cut_short_and_resumed_ends_with_the_same_file(trained, tmp_path, capsys, stage):
    folder, _ = trained
    name, flags, epochs, result = (
        ("myautoencoder/autoencoder.py", stage1_flags(folder), "--epoch", folder / "ae" / "autoencoder.pth")
        if stage == 1 else
        ("train.py", stage2_flags(folder / "ae" / "autoencoder.pth"), "--max_epoch", folder / "mr" / "mrhash.pth"))
    output = ["--output_dir", tmp_path / "run"]
    assert call(capsys, name, *flags, epochs, {1: 3, 2: 0}[stage], *output)[0] == 0
    code, _, error = call(capsys, name, *flags, *output)
    assert code == 2 and "--resume" in error and "--overwrite" in error
    code, _, error = call(capsys, name, *flags, "--lr", 0.5, "--resume", *output)
    assert code == 2 and "lr was 0.001, now 0.5" in error
    code, out, _ = call(capsys, name, *flags, "--resume", *output)
    assert code == 0 and "resuming" in out
    assert (tmp_path / "run" / result.name).read_bytes() == result.read_bytes()
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in log] == list(range({1: 6, 2: 3}[stage]))


def test_a_checkpoint_does_not_tell_whether_equal_words_were_one_object(tmp_path):
    from engine.checkpoint import save_checkpoint
    word, same = "none", "".join(["no", "ne"])
    assert word is not same
    for name, second in (("a", word), ("b", same)):
        save_checkpoint(tmp_path / name, {"x": word, "y": [second, {"none": (second, 1)}], "z": torch.ones(2)})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = torch.load(tmp_path / "b", weights_only=True)
    assert loaded["x"] == "none" and loaded["y"] == ["none", {"none": ("none", 1)}] and loaded["z"].tolist() == [1, 1]


def test_selection_by_test_map_warns_and_keeps_the_best_epoch(trained, tmp_path, capsys):
    folder, _ = trained
    code, _, error = call(capsys, "train.py", *stage2_flags(folder / "ae" / "autoencoder.pth"), "--select",
                          "test_map", "--eval_frequency", 1, "--output_dir", tmp_path / "2")
    assert code == 0 and "labels of the test queries" in error
    log = [json.loads(line) for line in (tmp_path / "2" / "log.jsonl").read_text().splitlines()]
    kept = torch.load(tmp_path / "2" / "mrhash.pth", weights_only=True)["epoch"]
    assert kept == max(log, key=lambda record: record["map"])["epoch"]
    code, _, error = call(capsys, "myautoencoder/autoencoder.py", *stage1_flags(folder), "--select", "test_map",
                          "--data_hash", 1, "--output_dir", tmp_path / "1")
    assert code == 0 and "labels of the test queries" in error
    log = [json.loads(line) for line in (tmp_path / "1" / "log.jsonl").read_text().splitlines()]
    kept = torch.load(tmp_path / "1" / "autoencoder.pth", weights_only=True)
    assert kept["latent_map"] == pytest.approx(max(record["latent_map"] for record in log))


def test_selection_by_loss_keeps_the_epoch_of_least_loss(trained, tmp_path, capsys):
    folder, _ = trained
    call(capsys, "train.py", *stage2_flags(folder / "ae" / "autoencoder.pth"), "--select", "loss", "--lr", 0.02,
         "--output_dir", tmp_path)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert torch.load(tmp_path / "mrhash.pth", weights_only=True)["epoch"] == min(
        log, key=lambda record: record["loss"])["epoch"]


def test_one_source_alone_and_no_labels_work_to_the_codes(trained, tmp_path, capsys):
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted((trained[0] / "fine").rglob("*.png"))):
        (flat / f"{number:02d}.png").write_bytes(path.read_bytes())
    flags = stage1_flags(trained[0])
    flags[3], flags[5] = flat, "none"
    assert call(capsys, "myautoencoder/autoencoder.py", *flags, "--output_dir", tmp_path / "ae")[0] == 0
    assert call(capsys, "train.py", *stage2_flags(tmp_path / "ae" / "autoencoder.pth"), *QUICK, "--output_dir",
                tmp_path / "mr")[0] == 0
    code, out, _ = call(capsys, "test.py", "--pretrain_path", tmp_path / "mr" / "mrhash.pth", "--save_codes",
                        tmp_path / "codes.npz", *SMALL)
    assert code == 0 and "no labels" in out
    assert not (tmp_path / "mr" / "results.json").exists()
    assert sorted(np.load(tmp_path / "codes.npz").files) == [
        "database_codes", "database_paths", "hash_bit", "query_codes", "query_paths"]


def test_stored_codes_are_evaluated_without_a_model(trained, tmp_path, capsys):
    folder, _ = trained
    expected = json.loads((folder / "mr" / "results.json").read_text())
    code, _, _ = call(capsys, "test.py", "--codes", folder / "codes.npz", "--output_dir", tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    assert code == 0 and {**found, "seconds": 0} == {**expected, "seconds": 0}
    for ties, key in (("min", "map_min"), ("max", "map_max")):
        call(capsys, "test.py", "--codes", folder / "codes.npz", "--output_dir", tmp_path, "--ties", ties)
        assert json.loads((tmp_path / "results.json").read_text())["map"] == expected[key]


def test_codes_of_any_kind_in_a_folder_are_evaluated_from_the_disk(trained, tmp_path, capsys):
    folder, _ = trained
    expected = read_results(folder / "mr")
    with np.load(folder / "codes.npz") as codes:
        content = {name: codes[name] for name in codes.files}
    with zipfile.ZipFile(folder / "codes.npz") as archive:
        archive.extractall(tmp_path / "unzipped")  # an .npz is a zip of .npy files
    mapped = script_module("test.py").read_codes(tmp_path / "unzipped", None, None)
    assert isinstance(mapped["database_codes"].base, np.memmap)
    assert call(capsys, "test.py", "--codes", tmp_path / "unzipped")[0] == 0
    assert read_results(tmp_path / "unzipped") == expected

    (tmp_path / "unzipped" / "hash_bit.npy").unlink()
    code, _, error = call(capsys, "test.py", "--codes", tmp_path / "unzipped")
    assert code == 2 and "add --hash_bit" in error
    assert call(capsys, "test.py", "--codes", tmp_path / "unzipped", "--hash_bit", 12, "--output_dir", tmp_path)[0] == 0
    assert read_results(tmp_path) == expected

    for kind, values in enumerate((lambda bits: 2.0 * bits - 1, lambda bits: bits.astype(bool))):
        theirs = {name: values(hamming.unpack_codes(part, 12)) if name.endswith("_codes") else part
                  for name, part in content.items() if name != "hash_bit"}
        np.savez(tmp_path / "theirs.npz", **theirs)
        code, _, error = call(capsys, "test.py", "--codes", tmp_path / "theirs.npz", "--output_dir",
                              tmp_path / str(kind))
        assert code == 0, error
        assert read_results(tmp_path / str(kind)) == expected
    theirs |= {name: theirs[name] * 1.0 for name in ("database_codes", "query_codes")}
    np.savez(tmp_path / "theirs.npz", **theirs)
    code, _, error = call(capsys, "test.py", "--codes", tmp_path / "theirs.npz", "--output_dir", tmp_path / "f")
    assert code == 2 and "database_codes of type float64 hold nothing but 0 and 1" in error
    assert call(capsys, "test.py", "--codes", tmp_path / "theirs.npz", "--output_dir", tmp_path / "f", "--T",
                0.5)[0] == 0
    assert read_results(tmp_path / "f") == expected


@pytest.mark.parametrize("how", ["npz", "folder"])
@pytest.mark.parametrize(("change", "message"), [
    ({"database_labels": np.arange(40)}, "database_labels have shape (40,), expected (39,)"),
    ({"database_labels": np.array(3)}, "database_labels have shape ()"),
    ({"query_labels": np.zeros(3)}, "query_labels of shape (3,) have type float64"),
    ({"query_labels": np.zeros((3, 2), [("a", int)])}, "query_labels of shape (3, 2) have type"),
    ({"database_labels": np.ones((39, 3))}, "(3,) and database labels (39, 3)"),
    ({"hash_bit": np.array(12, "m8[s]")}, "expected one integer"),
    ({"hash_bit": np.array([12, 12])}, "expected one integer"),
    ({"hash_bit": np.array(20)}, "database_codes have shape (39, 2), expected (N, 3) for 20 bits"),
    ({"query_codes": np.zeros((3, 2), complex)}, "query_codes have shape (3, 2) and type complex128"),
    ({"query_codes": np.full((3, 12), np.nan)}, "query_codes contain NaN"),
    ({"query_codes": np.zeros((0, 2), np.uint8), "query_labels": np.zeros(0, int)}, "no queries"),
    ({"class_names": np.array("field")}, "expected one text for each class"),
    ({"database_codes": np.array([object()])}, "bject"),
])
def test_stored_codes_that_cannot_be_are_one_sentence(trained, tmp_path, capsys, change, message, how):
    with np.load(trained[0] / "codes.npz") as codes:
        content = {name: codes[name] for name in codes.files} | change
    np.savez(tmp_path / "codes.npz", **content, file_=np.zeros(1))
    path = tmp_path / "codes.npz"
    if how == "folder":
        path = tmp_path / "folder"
        zipfile.ZipFile(tmp_path / "codes.npz").extractall(path)
    code, _, error = call(capsys, "test.py", "--codes", path, "--output_dir", tmp_path / "out")
    assert code == 2 and message in error and len(error.splitlines()) == 1, error
    assert not (tmp_path / "out" / "results.json").exists()


def test_damaged_files_of_codes_are_one_sentence(trained, tmp_path, capsys):
    with np.load(trained[0] / "codes.npz") as codes:
        np.savez_compressed(tmp_path / "codes.npz", **{name: codes[name] for name in codes.files})
    whole = (tmp_path / "codes.npz").read_bytes()
    for place in range(0, len(whole), len(whole) // 40):
        (tmp_path / "codes.npz").write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1:])
        code, _, error = call(capsys, "test.py", "--codes", tmp_path / "codes.npz", "--output_dir", tmp_path / "out")
        assert code in (0, 2) and error.count("error:") == code // 2, (place, error)
        (tmp_path / "codes.npz").write_bytes(whole[:place])
        code, _, error = call(capsys, "test.py", "--codes", tmp_path / "codes.npz", "--output_dir", tmp_path / "out")
        assert code == 2 and "is not a whole .npz" in error and len(error.splitlines()) == 1, (place, error)
    for header in (b"\x93NUMPY\x01\x00v\x00((((", b"\x93NUMPY\x01\x00F\x00" + (
            b"{'descr': '<f8', 'fortran_order': False, 'shape': (%d, 2)}" % 10**30).ljust(69) + b"\n", b""):
        (tmp_path / "database_codes.npy").write_bytes(header)
        code, _, error = call(capsys, "test.py", "--codes", tmp_path)
        assert code == 2 and "database_codes.npy is not a whole .npy" in error and len(error.splitlines()) == 1


def test_figures_and_their_numbers_agree_with_the_results(trained, tmp_path, capsys):
    folder, _ = trained
    results = read_results(folder / "mr")
    code, out, _ = call(capsys, "test.py", "--codes", folder / "codes.npz", "--output_dir", tmp_path, "--figures",
                        tmp_path / "figures")
    assert code == 0 and "figures" in out
    tables = {}
    for name in ("precision_recall", "precision_at_rank", "ap_per_class"):
        with open(tmp_path / "figures" / f"{name}.csv", newline="") as file:
            tables[name] = list(csv.DictReader(file))
        pixels = np.asarray(Image.open(tmp_path / "figures" / f"{name}.png").convert("L"))
        assert pixels.min() < 60 and 0.5 < (pixels > 250).mean() < 0.999  # lines on white

    by_radius = tables["precision_recall"]
    assert [int(row["radius"]) for row in by_radius] == list(range(13))
    assert float(by_radius[2]["precision"]) == pytest.approx(results["precision_radius2"])
    assert float(by_radius[12]["recall"]) == pytest.approx(1) == float(by_radius[12]["answered"])
    by_rank = {int(row["rank"]): row for row in tables["precision_at_rank"]}
    for k in (1, 10):
        assert float(by_rank[k]["precision"]) == pytest.approx(results["precision_at"][str(k)])
    assert float(by_rank[results["R"]]["recall"]) == pytest.approx(results["recall"])
    classes = tables["ap_per_class"]
    assert [row["name"] for row in classes] == ["field", "sea", "town"]
    weights = [int(row["queries"]) for row in classes]
    assert sum(weights) == results["num_query"]
    for column, key in (("ap", "map"), ("ap_min", "map_min"), ("ap_max", "map_max")):
        assert np.average([float(row[column]) for row in classes], weights=weights) == pytest.approx(results[key])


def test_figures_without_matplotlib_are_refused_before_the_work(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "figures", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    code, _, error = call(capsys, "test.py", "--codes", trained[0] / "codes.npz", "--output_dir", tmp_path / "o",
                          "--figures", tmp_path / "figures")
    assert code == 2 and "--figures needs matplotlib" in error and len(error.splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_figures_of_items_with_several_labels_count_a_query_in_each_of_its_classes(tmp_path):
    from hamming.figures import classes_of, ranks_to_show, write_figures
    labels = np.array([[1, 1, 0], [0, 1, 0]])
    assert {k: v.tolist() for k, v in classes_of(labels).items()} == {0: [True, False], 1: [True, True]}
    tables = hamming.Histograms(np.array([[2, 1], [1, 2]]), np.array([[1, 1], [1, 0]]))
    write_figures(tables, 2, labels, None, tmp_path)
    with open(tmp_path / "ap_per_class.csv", newline="") as file:
        rows = [(row["name"], row["queries"], float(row["ap"])) for row in csv.DictReader(file)]
    # First query, R = 2: a hit at rank 1 or 2, each 1/2, so (1 + 1/2) / 2; second: a hit at rank 1.
    assert rows == [("class 0", "1", 0.75), ("class 1", "2", 0.875)]
    # Many classes: all in the CSV, the lowest in the picture; names that are no text to matplotlib.
    many = hamming.Histograms(np.tile([[2, 1]], (70, 1)), np.tile([[1, 1]], (70, 1)))
    write_figures(many, 2, np.arange(70), ["$x^{$", "\u6c34"] * 35, tmp_path / "many")
    assert len((tmp_path / "many" / "ap_per_class.csv").read_text().splitlines()) == 71
    assert Image.open(tmp_path / "many" / "ap_per_class.png").height < 3000
    assert ranks_to_show(5, 99) == [1, 2, 3, 4, 5]
    assert ranks_to_show(10**6, 1900)[-1] == 10**6 and 1900 in ranks_to_show(10**6, 1900)


def test_threshold_and_similarity_matrix_do_what_they_say(trained, tmp_path, capsys):
    folder, _ = trained
    model = ["--pretrain_path", folder / "mr" / "mrhash.pth", "--output_dir", tmp_path, *SMALL]
    code, _, _ = call(capsys, "test.py", *model, "--gen_similarity_matrix", 1)
    assert code == 0
    similarity = np.load(tmp_path / "similarity.npy", allow_pickle=False)
    codes = np.load(folder / "codes.npz")
    signs = [1.0 - 2 * hamming.unpack_codes(codes[f"{part}_codes"], 12) for part in ("database", "query")]
    np.testing.assert_allclose(similarity, signs[0] @ signs[1].T / 12, atol=1e-6)
    call(capsys, "test.py", *model, "--T", 1.1, "--save_codes", tmp_path / "zeros.npz")
    assert not np.load(tmp_path / "zeros.npz")["query_codes"].any()  # tanh never reaches 1.1


BAD = [
    ("myautoencoder/autoencoder.py", ["--data_name", "Landsat"], "EuroSAT, DSRSID, UCMerced, pairs, demo"),
    ("myautoencoder/autoencoder.py", ["--data_dir", "{tmp}/nowhere"], "download EuroSAT_RGB.zip"),
    ("myautoencoder/autoencoder.py", ["--data_name", "ucmerced", "--data_dir", "{tmp}"], "UCMerced_LandUse.zip"),
    ("myautoencoder/autoencoder.py", ["--data_name", "DSRSID", "--data_dir", "{tmp}"], "DSRSID.mat"),
    ("myautoencoder/autoencoder.py", ["--data_name", "pairs"], "--source1"),
    ("myautoencoder/autoencoder.py", ["--epochs", "3"], "unrecognized arguments"),
    ("myautoencoder/autoencoder.py", ["--epoch", "0"], "--epoch"),
    ("myautoencoder/autoencoder.py", ["--device", "tpu9"], "--device tpu9 cannot be used"),
    ("myautoencoder/autoencoder.py", ["--device", "meta"], "--device meta cannot be used"),
    ("myautoencoder/autoencoder.py", ["--seed", "18446744073709551616"], "--seed"),
    ("myautoencoder/autoencoder.py", ["--batch_size", "1" + "0" * 30], "--batch_size"),
    ("myautoencoder/autoencoder.py", ["--image_size", "20000"], "from 1 to 2048"),
    ("myautoencoder/autoencoder.py", ["--output_dir", "~nobodyx/run", "--data_name", "demo", "--data_dir", "{tmp}"],
     "home folder that is not there"),
    ("myautoencoder/autoencoder.py", ["--data_name", "pairs", "--source1", "{tmp}", "--source2", ""], "an empty path"),
    ("myautoencoder/autoencoder.py", ["--skip_bad", "--features1", "{text}"], "--skip_bad is for images"),
    ("train.py", ["--pretrained_dp_path", "{ae}", "--lr", "1e38"], "beyond all reason"),
    ("train.py", ["--pretrained_dp_path", "{ae}", "--lr", "nan"], "--lr"),
    ("train.py", ["--pretrained_dp_path", "{ae}", "--T", "nan"], "not a finite number"),
    ("test.py", ["--codes", "{codes}", "--T", "inf"], "not a finite number"),
    ("train.py", [], "--pretrained_dp_path"),
    ("train.py", ["--pretrained_dp_path", "{tmp}/no.pth"], "expected a file made by autoencoder.py"),
    ("train.py", ["--pretrained_dp_path", "{text}"], "not a whole checkpoint"),
    ("train.py", ["--pretrained_dp_path", "{mr}"], "is mrhash-1, expected mrhash-autoencoder-1"),
    ("train.py", ["--pretrained_dp_path", "{ae}", "--hash_bit", "2000"], "more than 1024"),
    ("train.py", ["--pretrained_dp_path", "{ae}", "--hash_bit", "0"], "not a positive whole number"),
    ("train.py", ["--pretrained_dp_path", "{ae}", "--data_name", "UCMerced"], "contradicts the checkpoint"),
    ("train.py", ["--pretrained_dp_path", "{ae}", "--latent_dim", "32"], "contradicts"),
    ("train.py", ["--pretrained_dp_path", "{ae}", "--weights", "{text}", "--output_dir", "{tmp}/o"], "state-dict"),
    ("train.py", ["--pretrained_dp_path", "{ae}", "--model_type", "alexnot", "--output_dir", "{tmp}/o"],
     "no torchvision classification model"),
    ("train.py", ["--pretrained_dp_path", "{ae}", "--R", "9999"], "larger than the database"),
    ("train.py", ["--pretrained_dp_path", "{ae}", "--n_clusters", "40", "--output_dir", "{tmp}/o"], "n_clusters"),
    ("test.py", [], "--pretrain_path --codes"),
    ("test.py", ["--pretrain_path", "{ae}"], "expected mrhash-1"),
    ("test.py", ["--pretrain_path", "{mr}", "--hash_bit", "32"], "contradicts"),
    ("test.py", ["--pretrain_path", "{mr}", "--source1", "{tmp}"], "holds no image"),
    ("test.py", ["--codes", "{text}"], "not a whole .npz"),
    ("test.py", ["--codes", "{tmp}/no.npz"], "no codes at"),
    ("test.py", ["--codes", "{codes}", "--picture", "{tmp}/p.png"], "--picture needs the images"),
    ("test.py", ["--codes", "{codes}", "--ties", "lucky"], "invalid choice: 'lucky'"),
    ("test.py", ["--codes", "{codes}", "--R", "9999"], "larger than the database"),
    ("test.py", ["--codes", "{codes}", "--hash_bit", "16"], "holds 12 bits"),
    ("test.py", ["--codes", "{tmp}"], "has no database_codes"),
    ("test.py", ["--codes", ""], "an empty path was given"),
    ("test.py", ["--codes", "{codes}", "--T", "0.5"], "--T is for codes of real numbers"),
    ("test.py", ["--codes", "{codes}", "--figures", "{text}"], "--figures"),
    ("test.py", ["--codes", "{codes}", "--save_codes", "{tmp}"], "is a folder, expected a file"),
    ("scripts/tie_orders.py", ["{tmp}/none.npz"], "no codes at"),
]


@pytest.mark.parametrize(("name", "flags", "message"), BAD, ids=[" ".join([a, *b])[:60] for a, b, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(trained, tmp_path, capsys, name, flags, message):
    folder, _ = trained
    (tmp_path / "text").write_text("no weights, no codes")
    places = {"tmp": tmp_path, "text": tmp_path / "text", "ae": folder / "ae" / "autoencoder.pth",
              "mr": folder / "mr" / "mrhash.pth", "codes": folder / "codes.npz"}
    more = [] if "--device" in flags or name.startswith("scripts") else SMALL
    if name == "train.py" and "{ae}" in flags and "--model_type" not in flags:
        more = [*more, "--model_type", "resnet18", "--image_size", "32"]
        if "--weights" not in flags:
            more += ["--weights", "none"]
    code, _, error = call(capsys, name, *(flag.format(**places) for flag in flags), *more)
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert "Traceback" not in error


def test_a_bad_flag_leaves_no_traceback_in_a_real_process():
    done = run_script("train.py", "--pretrained_dp_path", "no/such/file.pth")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no checkpoint at")
    assert len(done.stderr.splitlines()) == 1


def test_a_backbone_rate_of_zero_leaves_the_backbone_as_it_was(trained, tmp_path, capsys):
    folder, _ = trained
    models = []
    for epochs in (0, 1):
        code, _, _ = call(capsys, "train.py", *stage2_flags(folder / "ae" / "autoencoder.pth"), *QUICK, "--multi_lr", 0,
                          "--batch_norm", "frozen", "--max_epoch", epochs, "--output_dir", tmp_path / str(epochs))
        assert code == 0
        models.append(torch.load(tmp_path / str(epochs) / "mrhash.pth", weights_only=True)["model"])
    for name, value in models[0].items():
        assert torch.equal(value, models[1][name]) == name.startswith("hash_network.backbone."), name


def test_the_table_of_tie_orders_is_that_of_the_codes(trained, capsys):
    folder, _ = trained
    code, out, _ = call(capsys, "scripts/tie_orders.py", folder / "codes.npz")
    assert code == 0
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines()[2:]]
    rows = {name: cells for name, *cells in table}
    results = read_results(folder / "mr")
    assert rows["expected over all orders"] == [f"{results['map']:.3f}", f"{results['precision_at']['10']:.3f}"]
    assert [rows[f"{which} order"][0] for which in ("worst", "best")] == [
        f"{results[key]:.3f}" for key in ("map_min", "map_max")]
    codes = np.load(folder / "codes.npz")
    stable = hamming.evaluate(*(codes[name] for name in (
        "query_codes", "database_codes", "query_labels", "database_labels")), 12, ties="stable")
    assert rows["stable, database as stored"] == [f"{stable['map']:.3f}", f"{stable['precision_at']['10']:.3f}"]
    backwards = hamming.evaluate(codes["query_codes"], codes["database_codes"][::-1], codes["query_labels"],
                                 codes["database_labels"][::-1], 12, ties="stable")
    assert rows["stable, database reversed"][0] == f"{backwards['map']:.3f}"
    for name, cells in rows.items():
        assert results["map_min"] - 1e-3 <= float(cells[0]) <= results["map_max"] + 1e-3, name


# ------------------------------------------------------------------------ torch.compile


def test_compile_is_used_where_images_go_through_a_network_and_refused_where_it_cannot(trained, tmp_path, capsys,
                                                                                      monkeypatch):
    folder, _ = trained
    compiled = []
    commands = (("myautoencoder/autoencoder.py", [*stage1_flags(folder), "--output_dir", tmp_path / "ae"], 2),
                ("train.py", [*stage2_flags(folder / "ae" / "autoencoder.pth"), *QUICK, "--output_dir",
                              tmp_path / "mr"], 3),
                ("test.py", ["--pretrain_path", folder / "mr" / "mrhash.pth", "--output_dir", tmp_path, *SMALL], 1))
    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "compile", lambda network: compiled.append(type(network)))
        patch.setattr(torch, "compile", lambda function: function)
        for name, flags, times in commands:  # train.py: the features of two sources, and what it trains
            compiled.clear()
            code, _, error = call(capsys, name, *flags, "--compile")
            assert (code, compiled) == (0, [Backbone] * times), error

    def fail(function):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", fail)
    for name, flags, _ in commands:
        code, _, error = call(capsys, name, *flags, "--compile", *["--overwrite"] * (name != "test.py"))
        assert code == 2 and error.count("\n") == 1
        assert "--compile: torch cannot compile here (No working C++ compiler found): leave it out" in error


@pytest.mark.slow
def test_a_compiled_network_gives_what_it_gave():
    torch.manual_seed(0)
    backbone, images = Backbone("resnet18", "none", 32, "adapt").train(), torch.rand(6, 3, 32, 32)
    expected = backbone(images)
    backbone.compile_for(torch.device("cpu"))
    torch.testing.assert_close(backbone(images), expected, rtol=1e-3, atol=1e-4)
    expected = backbone.eval()(images)
    torch.testing.assert_close(backbone(images[:4]), expected[:4], rtol=1e-3, atol=1e-4)  # a batch of another size


def test_amp_trains_the_autoencoder_in_bfloat16_with_a_loss_in_float32():
    stage1 = script_module("myautoencoder/autoencoder.py")
    seen, ends = [], []
    features = [torch.rand(40, width, generator=torch.Generator().manual_seed(width)) for width in (12, 10)]
    for amp in (False, True):
        torch.manual_seed(0)
        model = MultisourceAutoencoder([12, 10], 4)
        model.fuse.register_forward_hook(lambda layer, given, made: seen.append(made.dtype))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.001, fused=True)
        watch = LossWatch(None, 0, 4, torch.device("cpu"))
        loss = stage1.train_one_epoch(model, features, torch.arange(40).split(10), optimizer, 0.1, amp, watch)
        ends.append((loss, torch.cat([value.flatten() for value in model.parameters()])))
    assert seen == [torch.float32] * 4 + [torch.bfloat16] * 4
    (loss, weights), (other, others) = ends
    assert 0 < abs(loss - other) < 0.05 * loss
    assert weights.dtype == others.dtype == torch.float32 and 0 < (weights - others).norm() < 0.01 * weights.norm()


@pytest.mark.parametrize(("factor", "warns"), [(1.4, False), (7.0, True)])
def test_bfloat16_that_is_imitated_is_warned_of(monkeypatch, capsys, factor, warns):
    # Beginning and end of four products each; the first, which starts the library, does not count.
    ticks = iter([0, 9, 0, 1, 0, 2, 0, 1.5, 0, 90, 0, factor, 0, 3 * factor, 0, 2 * factor])
    monkeypatch.setattr("utils.time.perf_counter", lambda: next(ticks))
    warn_of_slow_bfloat16(torch.device("cpu"))
    error = capsys.readouterr().err
    assert error == ("warning: --amp: this processor takes 7 times as long for products in bfloat16 as in float32: "
                     "leave it out here\n" if warns else "")


FREED = """
import os, resource
import torch
from utils import setup_device

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):  # of 80 MB: glibc keeps up to 32 MB by itself
        torch.ones(20_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
as_it_is = faults()
os.environ["MALLOC_MMAP_MAX_"] = "65536"
setup_device("cpu")
as_asked = faults()
del os.environ["MALLOC_MMAP_MAX_"]
setup_device("cpu")
faults()
print(as_it_is, as_asked, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries do as they do")
def test_memory_that_tensors_free_is_kept_for_the_next_ones_unless_the_user_decides(zygote, tmp_path):
    (tmp_path / "freed.py").write_text(FREED)
    code, out = zygote.run(tmp_path / "out.txt", tmp_path / "freed.py")
    assert code == 0, out
    as_it_is, as_asked, kept = map(int, out.split())
    assert min(as_it_is, as_asked) > 20 and kept < min(as_it_is, as_asked) / 5
