"""bench.py: every benchmark on tiny sizes gives a whole table, what it compares is the same, and bad flags are told."""

import json
import mmap
import os
import pickle
import re
import shutil
import statistics
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed import autoencoder, common, end2end, features, plain, ranking, training
from datasets.sources import ImageFiles, open_container
from datasets.store import UnreadableImages
from helpers import call, make_pairs, script_module
from myautoencoder.autoencoder import reconstruction_loss
from utils import InputError

SMALL = ["--device", "cpu", "--workers", 2, "--batch_size", 8, "--image_size", 32]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of pairs, and the same fine images as EuroSAT.zip: the flags that choose them."""
    folder = tmp_path_factory.mktemp("bench")
    make_pairs(folder, per_class=8)
    with zipfile.ZipFile(folder / "EuroSAT.zip", "w") as archive:
        for path in sorted((folder / "fine").rglob("*.png")):
            archive.write(path, f"EuroSAT/{path.relative_to(folder / 'fine')}")
    return {"pairs": ["--data_name", "pairs", "--source1", folder / "coarse", "--source2", folder / "fine"],
            "zip": ["--data_name", "EuroSAT", "--data_dir", folder], "folder": folder}


@pytest.fixture
def here(monkeypatch):
    """Measurements that are processes of their own otherwise, in this one: it has imported torch already."""
    def in_this_process(what, smaller, *call):
        function, *arguments = pickle.loads(pickle.dumps(call))  # as on their way to another process
        return function(*arguments)

    for module in (training, end2end, ranking):
        monkeypatch.setattr(module, "in_a_process", in_this_process)


def bench(capsys, tmp_path, command, *flags):
    """Run a benchmark: its table, a dictionary a line with the headings as keys, and its JSON file."""
    output = tmp_path / f"{command}.json"
    code, out, error = call(capsys, "bench.py", command, *flags, "--output", output)
    assert code == 0, error
    head, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines()
                       if line.startswith("|")]
    content = json.loads(output.read_text())
    assert json.loads(out.splitlines()[-2]) == content["machine"]
    return [dict(zip(head, line, strict=True)) for line in lines], content


def check_medians(table, runs, heading, key):
    """The cells under `heading` hold the median, least and most of the measurements, one line a method."""
    assert [line["method"] for line in table] == list(runs)
    for line in table:
        numbers = [float(number.replace(",", "")) for number in re.findall(r"[\d,.]+", line[heading])]
        values = [run[key] for run in runs[line["method"]]]
        digits = len(line[heading].split(" ")[0].partition(".")[2])
        assert numbers == [round(f(values), digits) for f in (statistics.median, min, max)]


# ---------------------------------------------------------------- ranking


def test_the_ranking_compares_methods_that_do_the_same(here, tmp_path, capsys):
    table, content = bench(capsys, tmp_path, "ranking", "--sizes", "800x16x64", "--repeat", 1)
    methods = content["sizes"]["800x16x64"]
    assert list(methods) == ["matrix, argsort down the columns", "query by query, argsort", "ours",
                             "ours, all of results.json", "ours, --ties stable", "distances alone"]
    for runs in methods.values():
        assert len(runs) == 1 and runs[0]["seconds"] > 0 and runs[0]["peak_mb"] > runs[0]["more_mb"] >= 0
    assert [line["database x queries x bits"] for line in table] == ["800 x 16 x 64"] * 6
    check_medians(table, methods, "seconds: median (least - most)", "seconds")

    ranking.write_codes(tmp_path, (800, 16, 64), True)
    labels = np.load(tmp_path / "database_labels.npy")
    assert (np.diff(labels) < 0).any() and np.bincount(labels).tolist() == [100] * 8
    ranking.write_codes(tmp_path, (800, 16, 64), False)
    assert (np.diff(np.load(tmp_path / "database_labels.npy")) >= 0).all()
    query, database = (np.load(tmp_path / f"{part}_codes.npy") for part in ("query", "database"))
    distances = np.bitwise_count(query[:, None] ^ database).sum(2, dtype=int)
    parts = torch.get_num_threads()
    assert methods["distances alone"][0]["value"] == sum(
        part[:8].sum() for part in np.array_split(distances, parts))
    bounds = {"map_min": 0.2, "map": 0.3, "map_max": 0.4}
    ranking._check("query by query, argsort", 0.25, bounds)
    for name, value in (("query by query, argsort", 0.41), ("ours", 0.25)):
        with pytest.raises(InputError, match="one of the two is wrong"):
            ranking._check(name, value, bounds)


# ---------------------------------------------------------------- features


def test_features_compare_a_plain_loop_with_ours_on_a_zip(images, tmp_path, capsys, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda network: compiled.append(network))  # which takes a minute
    table, content = bench(capsys, tmp_path, "features", *images["zip"], *SMALL, "--feature_backbone", "resnet18",
                           "--repeat", 2, "--amp", "--compile")
    runs = content["runs"]
    assert list(runs) == [features.PLAIN, features.ALONE, features.FILES, features.DECODED, "ours, bfloat16",
                          "ours, torch.compile", "ours, bfloat16, torch.compile"]
    assert len(compiled) == 1
    check_medians(table, runs, "images/s: median (least - most)", "images_per_second")
    for name, of in runs.items():
        assert len(of) == 2 and all(run["images_per_second"] == pytest.approx(24 / run["seconds"]) for run in of)
        assert ("cosine" in of[0]) == name.startswith("ours") and ("compile_seconds" in of[0]) == ("compile" in name)
    assert min(run["cosine"] for run in runs[features.FILES] + runs[features.DECODED]) > 0.97
    assert runs["ours, bfloat16"][0]["cosine"] != runs[features.DECODED][0]["cosine"]
    for line in table:
        for heading, base in (("divided by the plain loop", features.PLAIN),
                              ("divided by its network alone", features.ALONE)):
            ratio = common.median(runs[line["method"]], "images_per_second") / common.median(
                runs[base], "images_per_second")
            assert line[heading] == f"{ratio:.2f}"


def test_features_of_other_images_or_other_views_are_found_out(images, tmp_path, capsys, monkeypatch):
    whole = plain.plain_outputs
    flags = [*images["pairs"], *SMALL, "--feature_backbone", "resnet18", "--repeat", 1, "--output",
             tmp_path / "features.json"]
    for wrong, message in (
            (lambda network, source, rows, *others: whole(network, source, rows[::-1], *others), "grey values"),
            (lambda network, source, rows, *others: whole(  # of the views all is well, but not of the features
                network, source, rows[::-1] if len(rows) == 24 and not isinstance(network, nn.Sequential) else rows,
                *others), f"'{features.FILES}' found features whose mean cosine")):
        monkeypatch.setattr(features, "plain_outputs", wrong)
        code, _, error = call(capsys, "bench.py", "features", *flags)
        assert code == 2 and message in error and error.strip().splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "features.json").exists()
    blocks = np.full((3, 12), 0.5, np.float32)
    features.check_views(blocks, blocks + features.GREY * 0.9)
    with pytest.raises(InputError, match=r"differ by 2\.00 grey values"):
        features.check_views(blocks, blocks + features.GREY * 2)


@pytest.mark.parametrize("kind", ["fine", "EuroSAT.zip"])
def test_the_plain_loader_gives_the_images_asked_for_in_their_order(images, kind):
    container = open_container(images["folder"] / kind)
    source = ImageFiles(container, sorted(container.files))
    rows = np.random.default_rng(0).permutation(24)
    found = plain.plain_outputs(nn.Flatten(), source, rows, 28, 5, 3, torch.device("cpu"))
    files = sorted((images["folder"] / "fine").rglob("*.png"))
    for row, values in zip(rows, found, strict=True):
        image = Image.open(files[row])  # 32 pixels, which is what 28 are cut from
        pixels = np.asarray(image.crop((2, 2, 30, 30))) / 255
        expected = (pixels - plain.IMAGENET_MEAN) / plain.IMAGENET_STD
        np.testing.assert_allclose(values.reshape(3, 28, 28).transpose(1, 2, 0), expected, atol=1e-5)


# ---------------------------------------------------------------- autoencoder


SIZES = ["--images", 120, "--queries", 20, "--width", 24, "--device", "cpu"]


def test_the_autoencoder_is_measured_with_the_monitor_that_goes_with_an_epoch(tmp_path, capsys, monkeypatch):
    in_bfloat16, train_one_epoch = [], autoencoder.train_one_epoch

    def watched(*arguments):
        in_bfloat16.append(arguments[-2])
        train_one_epoch(*arguments)

    monkeypatch.setattr(autoencoder, "train_one_epoch", watched)
    table, content = bench(capsys, tmp_path, "autoencoder", *SIZES, "--epochs", 2, "--repeat", 3, "--amp",
                           "--encoder", "unisource")
    runs = content["runs"]
    products = runs.pop(autoencoder.PRODUCTS)
    assert list(runs) == [autoencoder.PUBLISHED, autoencoder.PLAIN, autoencoder.OURS, autoencoder.OFTEN,
                          autoencoder.AMP]
    # One to begin with; methods of ours, three rounds, two epochs each.
    assert in_bfloat16.count(False) == 1 + 2 * 3 * 2 and in_bfloat16.count(True) == 1 + 3 * 2
    check_medians(table, runs | {autoencoder.PRODUCTS: products}, "epochs/s: median (least - most)",
                  "epochs_per_second")
    for of, every in zip(runs.values(), (1, 1, 20, 1, 20), strict=True):
        for run in of:
            assert run["seconds"] == pytest.approx(run["epoch_seconds"] + run["monitor_seconds"] / every)
            assert run["epochs_per_second"] == pytest.approx(1 / run["seconds"])
            assert min(run["epoch_seconds"], run["monitor_seconds"]) > 0


def test_all_autoencoder_loops_learn_and_their_monitors_agree():
    arrays, dataset = autoencoder.draw_features(200, 20, 24)
    loops = [kind(arrays, dataset, "dual", torch.device("cpu"))
            for kind in (autoencoder.Published, autoencoder.Plain, autoencoder.Ours)]
    first = [loop.monitor() for loop in loops]
    autoencoder.check(first[0], first[1])
    autoencoder.check(first[0], first[2])
    assert 0.2 < first[0] < 0.8  # classes that overlap: neither chance nor perfect
    given = [torch.from_numpy(x[dataset.database]) for x in arrays]
    for loop in loops:
        losses = []
        for _ in range(20):
            losses.append(reconstruction_loss(loop.model(given)[1], given, autoencoder.LAMBDA1).item())
            loop.epoch()
        assert losses[-1] < 0.7 * losses[0]


def test_the_products_counted_are_those_of_a_training_step():
    """As many multiplications as torch counts in a step of the network."""
    model = autoencoder.MultisourceAutoencoder([40, 30], autoencoder.LATENT, "dual")
    features = [torch.rand(autoencoder.BATCH, width) for width in (40, 30)]
    counted = []
    for function in (lambda: reconstruction_loss(model(features)[1], features, 0.1).backward(),
                     lambda: autoencoder.products(model, 1, torch.device("cpu"))):
        with FlopCounterMode(display=False) as counter:
            function()
        counted.append(counter.get_total_flops())
    assert counted[0] == counted[1] > 0


def test_monitors_that_disagree_are_found_out(tmp_path, capsys, monkeypatch):
    latent_map = autoencoder.latent_map
    monkeypatch.setattr(autoencoder, "latent_map", lambda *arguments: latent_map(*arguments) + 0.01)
    code, _, error = call(capsys, "bench.py", "autoencoder", *SIZES, "--output", tmp_path / "a.json")
    assert code == 2 and "one of the two is wrong" in error and len(error.strip().splitlines()) == 1


# ---------------------------------------------------------------- train


def test_training_is_measured_against_its_ceiling_and_the_usual_loader(images, here, tmp_path, capsys, monkeypatch):
    compiled, loops, seen = [], [], []
    monkeypatch.setattr(nn.Module, "compile", lambda network: compiled.append(network))
    monkeypatch.setattr(torch, "compile", lambda function: function)
    train_one_epoch = training.train_one_epoch

    def watched(model, batches, views, *others, **named):
        views = [view.clone() for view in views]
        loops.append((named["amp"], model.hash_network.hash_layer.out_features))
        seen.append(views)
        train_one_epoch(model, batches, iter(views), *others, **named)

    monkeypatch.setattr(training, "train_one_epoch", watched)
    table, content = bench(capsys, tmp_path, "train", *images["zip"], *SMALL, "--model_type", "resnet18", "--hash_bit",
                           12, "--steps", 2, "--repeat", 1, "--amp", "--compile")
    runs = content["runs"]
    assert list(runs) == [training.OURS, training.COMPILED, training.CEILING, training.PUBLISHED]
    assert loops == [(True, 12)] * 8  # what warms up, and what is measured
    assert [type(network).__name__ for network in compiled] == ["Backbone"]
    for name, views in zip(runs, seen[1::2], strict=True):
        assert [view.shape for view in views] == [(8, 3, 32, 32)] * 2
        assert torch.equal(*views) == (name == training.CEILING)
    assert seen[7][0].mean() == pytest.approx(float(seen[1][0].mean()), abs=0.3)  # the same images, other crops
    check_medians(table, runs, "images/s: median (least - most)", "images_per_second")
    for of in runs.values():
        assert of[0]["images_per_second"] == pytest.approx(16 / of[0]["seconds"]) and of[0]["peak_mb"] > 100
    assert runs[training.PUBLISHED][0]["worker_mb"] > 10
    assert table[0]["divided by the ceiling"] == "{:.2f}".format(
        runs[training.OURS][0]["images_per_second"] / runs[training.CEILING][0]["images_per_second"])
    assert table[3]["MB of the process"].endswith(f"(and 2 workers of {runs[training.PUBLISHED][0]['worker_mb']:,.0f})")


# ---------------------------------------------------------------- end to end


def test_the_scripts_are_measured_against_the_plain_pieces(images, here, zygote, tmp_path, capsys, monkeypatch):
    said = []

    def run_script_quickly(*command):
        code, out = zygote.run(tmp_path / "out.txt", *command)
        assert code == 0, out
        said.append(out)

    counts = {"features": 0, "monitor": 0, "codes": 0}

    def counted(name, function):
        def call(*arguments):
            counts[name] += 1
            return function(*arguments)
        return call

    monkeypatch.setattr(end2end, "run_script", run_script_quickly)
    for name, function in (("features", "plain_outputs"), ("monitor", "plain_latent_map"), ("codes", "plain_map")):
        monkeypatch.setattr(end2end, function, counted(name, getattr(end2end, function)))
    table, content = bench(capsys, tmp_path, "end2end", *images["pairs"], *SMALL, "--feature_backbone", "resnet18",
                           "--model_type", "resnet18", "--hash_bit", 12, "--epoch", 2, "--max_epoch", 1,
                           "--repeat", 1)
    assert counts == {"features": 2, "monitor": 2, "codes": 3}  # of two sources; each epoch; epochs 0, 1 and test.py
    assert ["reusing features" in out for out in said] == [False, True, False, True, True, False]
    assert [line["stage"] for line in table] == [*end2end.STAGES, "all"]
    for line in table:
        of = {name: runs[0][line["stage"]] for name, runs in content["runs"].items()}
        assert list(of) == [end2end.FIRST, end2end.CACHED, end2end.PLAIN]
        for name, seconds in of.items():
            assert seconds > 0
            assert line[f"{name}: seconds, median (least - most)"].startswith(f"{seconds:,.1f} (")
            if name != end2end.PLAIN:
                assert line[f"plain / {name}"] == f"{of[end2end.PLAIN] / seconds:.2f}"
    for runs in content["runs"].values():
        assert runs[0]["all"] == pytest.approx(sum(runs[0][stage] for stage in end2end.STAGES))


def test_a_script_that_fails_ends_the_measurement_with_what_it_said(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys; print('a warning', file=sys.stderr); sys.exit('error: no weights')")
    with pytest.raises(InputError, match=r"script\.py ended with exit code 1: error: no weights$"):
        end2end.run_script(str(script), "--flag")


def test_images_without_labels_are_refused_before_anything_is_run(images, tmp_path, capsys):
    for number, path in enumerate(sorted((images["folder"] / "fine").rglob("*.png"))):
        (tmp_path / "flat").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "flat" / f"{number}.png")
    code, _, error = call(capsys, "bench.py", "end2end", *SMALL, "--data_name", "pairs", "--source1", tmp_path / "flat",
                          "--output", tmp_path / "e.json")
    assert code == 2 and "these images have no labels" in error and len(error.strip().splitlines()) == 1


# ---------------------------------------------------------------- all of them, processes, flags


def test_all_runs_every_benchmark_with_its_own_flags_and_names_those_that_failed(tmp_path, capsys, monkeypatch):
    script = script_module("bench.py")
    commands = []

    class Done:
        returncode = 0

    def record(command, **options):
        commands.append(command[1:])
        Done.returncode = int(command[2] in ("train", "end2end"))
        return Done

    monkeypatch.setattr("subprocess.run", record)
    code, out, error = call(capsys, "bench.py", "all", "--device", "cpu", "--repeat", 2, "--data_name", "UCMerced",
                            "--max_per_class", 5)
    assert code == 2 and error == ("error: train, end2end did not come to an end: what each of them said stands "
                                   "above\n")
    parsed = [script.make_parser().parse_args(command[1:]) for command in commands]  # each takes what it is given
    assert [args.command for args in parsed] == ["features", "autoencoder", "train", "ranking", "end2end"]
    for args, command in zip(parsed, commands, strict=True):
        assert (args.device, args.repeat) == ("cpu", 2)
        assert args.output == f"runs/bench/{args.command}.json"
        assert f"$ python {' '.join(command)}" in out
        if args.command not in ("autoencoder", "ranking"):
            assert (args.data_name, args.max_per_class, args.data_dir) == ("UCMerced", 5, "data")


def test_all_tells_a_card_to_measure_bfloat16_and_compiling_too(monkeypatch):
    script = script_module("bench.py")
    monkeypatch.setattr(script, "setup_device", torch.device)
    parser = script.make_parser()
    parsed = [parser.parse_args(command[1:])
              for command in script.all_commands(parser.parse_args(["all", "--device", "cuda:0"]))]
    assert [args.command for args in parsed] == ["features", "autoencoder", "train", "ranking", "end2end", "features",
                                                 "train"]
    assert [getattr(args, "amp", None) for args in parsed] == [True, True, False, None, None, True, True]
    assert [getattr(args, "compile", None) for args in parsed] == [False, None, False, None, None, True, True]
    assert len({args.output for args in parsed}) == 7  # none replaces another


def test_the_peak_of_a_process_is_its_own_and_not_that_of_the_one_that_started_it():
    held = mmap.mmap(-1, 400_000_000)  # of the system: what malloc gives stays with the process when it is freed
    for _ in range(100):
        held.write(bytes(4_000_000))
    mine = common.memory("now")
    assert common.in_a_process("x", "--sizes", common.memory, "peak") < mine - 100
    held.close()
    assert common.memory("now") < mine - 300 and common.memory("peak") >= mine - 1


def test_a_process_that_dies_and_an_error_that_cannot_travel_are_told():
    with pytest.raises(InputError, match=r"'x' ended without a result.*choose smaller --sizes"):
        common.in_a_process("x", "--sizes", os._exit, 3)

    def fail():
        raise UnreadableImages({0: "a.png (damaged)"}, 5)

    with pytest.raises(InputError, match=r"1 of 5 images cannot be read: a\.png") as raised:
        common._call(fail, ())
    assert type(raised.value) is InputError


BAD = [
    (["ranking", "--sizes", "75000x64"], "DATABASExQUERIESxBITS"),
    (["ranking", "--folder", "{tmp}/none"], "not a folder"),
    (["ranking", "--device", "mps"], "invalid choice: 'mps'"),
    (["features", "--device", "nonsense"], "--device nonsense cannot be used here"),
    (["features", "--output", "{tmp}"], "is a folder, expected a file"),
    (["features", "--output", "{tmp}/file/f.json"], "--output"),
    (["features", "--repeat", "0"], "not a positive whole number"),
    (["features", "--image_size", "0"], "--image_size"),
    (["features", "--feature_weights", "{tmp}/file"], "is not a state-dict file"),
    (["train", "--data_name", "nothing"], "--data_name nothing is not known"),
    (["train", "--steps", "0"], "not a positive whole number"),
    (["autoencoder", "--images", "9"], "at least 10 of each"),
    (["autoencoder", "--data_name", "demo"], "unrecognized arguments"),
    (["end2end", "--max_epoch", "-1"], "--max_epoch"),
    (["all", "--steps", "3"], "unrecognized arguments"),
    (["all", "--device", "nonsense"], "--device nonsense cannot be used here"),
    ([], "required: command"),
]


@pytest.mark.parametrize(("flags", "message"), BAD, ids=[" ".join(flags) or "none" for flags, _ in BAD])
def test_a_bad_flag_is_one_line_and_exit_code_2(tmp_path, capsys, flags, message):
    (tmp_path / "file").write_text("a file")
    if flags and "--output" not in flags and flags[0] != "all":
        flags = [*flags, "--output", "{tmp}/out.json"]
    code, out, error = call(capsys, "bench.py", *(flag.format(tmp=tmp_path) for flag in flags))
    assert code == 2
    assert message in error and len(error.strip().splitlines()) == 1
    assert "Traceback" not in error and "|" not in out
