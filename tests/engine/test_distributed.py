"""Several ranks, as torchrun starts them: one result, one writer, an end in common, a restart."""

import json
import os
import signal

import numpy as np
import pytest
import torch

from engine import cache, distributed
from engine.epoch import ShuffledEpoch
from engine.files import at_end
from engine.loop import Run
from helpers import QUICK, ROOT, SMALL, call, read_results, run_script, stage1_flags, stage2_flags
from loss import target_distribution
from network import Backbone, HashNetwork, MrHash, MultisourceAutoencoder
from run_helpers import OFTEN, at_step, wait_for
from utils import InputError, rank, world_size

CPU = torch.device("cpu")


def torchrun(ranks, *command, restarts=0):
    return run_script("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", ranks,
                      "--max-restarts", restarts, *command)


def records(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def content(path):
    return torch.load(path, weights_only=True)


def flat(state):
    return torch.cat([value.double().flatten() for value in state.values()])


# ------------------------------------------------------------ who has what


def test_a_process_that_torchrun_did_not_start_is_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "3")
    assert (rank(), world_size()) == (0, 1)
    assert distributed.own_part(7) == slice(0, 7) and distributed.largest(3, 1) == (3, 1)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1234")
    assert (rank(), world_size()) == (3, 8)
    assert distributed.own_part(80) == slice(30, 40)


def test_alone_a_network_stays_what_it_is():
    network = torch.nn.Linear(2, 2)
    assert distributed.wrap_for_ranks(network, CPU) is network


def test_ranks_that_cannot_see_the_cache_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "rank", lambda: 1)
    with pytest.raises(InputError, match=r"rank 1 does not find .*: name a --cache_dir that all "
                                         r"machines share"):
        cache.open_cached(tmp_path / "features.npy", 3)


# ------------------------------------------------------------ the same result

STEPS = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from engine.cli import run
sys.path.insert(0, {engine!r})
from test_distributed import train_a_little

sys.exit(run(lambda: train_a_little(Path({output!r}), {batch_norm!r}, {rows}), shared=True))
"""


def train_a_little(output, batch_norm, rows=18):
    """Two epochs of train.py's loop in batches of 8 images; what each rank ends with."""
    from train import multi_semantic_loss, train_one_epoch
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    images = torch.from_numpy(draw.normal(size=(rows, 3, 8, 8)).astype(np.float32))
    features = [torch.from_numpy(draw.normal(size=(rows, width)).astype(np.float32))
                for width in (6, 5)]
    # One value an image and channel, as in deep networks of small images.
    cnn = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(),
                              torch.nn.AdaptiveAvgPool2d(1), torch.nn.BatchNorm2d(8))
    backbone = Backbone(cnn, "small", 8, 8, False, batch_norm == "frozen")
    model = MrHash(HashNetwork(backbone, 8), MultisourceAutoencoder((6, 5), 8), torch.randn(4, 8))
    # Not Adam, which makes a step of its full length of a rounding error in a gradient of nothing.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = Run(output / "run", "mrhash.pth", {}, False, True)
    run.attach(model, optimizer, {})
    network, losses = distributed.wrap_for_ranks(model, CPU), []

    def views(epoch, first):
        for batch, part in zip(epoch.batches[first:], epoch.parts[first:], strict=True):
            yield images[batch[part]]

    for epoch in run.epochs("epoch", 2):
        target = target_distribution(model.assign_all(features))
        steps = ShuffledEpoch(rows, 8, epoch, CPU, views)
        stats = train_one_epoch(run, network, steps, features, target,
                                lambda *x: multi_semantic_loss(*x, lambda0=0.01), False)
        losses.append([stats[name] for name in ("loss", "divergence", "reconstruction")])
        run.finish_epoch(stats)
    torch.save({"losses": torch.tensor(losses, dtype=torch.float64), "model": model.state_dict()},
               output / f"{rank()}.pth")
    at_end.close()


def trained_by_ranks(zygote, tmp_path, number, batch_norm, rows=18):
    """What each of so many ranks ends with."""
    script = tmp_path / "script.py"
    script.write_text(STEPS.format(tests=str(ROOT / "tests"), output=str(tmp_path),
                                   engine=str(ROOT / "tests" / "engine"), batch_norm=batch_norm,
                                   rows=rows))
    codes, outputs = zygote.run_ranks(tmp_path / "out", number, script)
    assert codes == [0] * number, outputs
    return [content(tmp_path / f"{one}.pth") for one in range(number)]


@pytest.mark.parametrize("number", [2, 3])
def test_steps_of_several_ranks_are_those_of_one(number, tmp_path, zygote):
    (tmp_path / "alone").mkdir()
    train_a_little(tmp_path / "alone", "frozen")
    alone = content(tmp_path / "alone" / "0.pth")
    ranks = trained_by_ranks(zygote, tmp_path, number, "frozen")
    for one in ranks:
        # Measured: 2e-7; with weights or shares of the steps left out 1e-3 and more.
        torch.testing.assert_close(one["losses"], alone["losses"], rtol=1e-5, atol=0)
        assert torch.equal(flat(one["model"]), flat(ranks[0]["model"]))
    weights = flat(alone["model"])
    assert (flat(ranks[0]["model"]) - weights).norm() / weights.norm() < 1e-5


@pytest.mark.parametrize("rows", [17, 18, 19])  # a last batch of 1, of 2 and of 3 images
def test_running_statistics_that_adapt_end_equal_on_all_ranks(rows, tmp_path, zygote):
    one, other = trained_by_ranks(zygote, tmp_path, 2, "adapt", rows)
    key, = (name for name in one["model"] if name.endswith("running_mean"))
    assert one["model"][key].abs().min() > 0  # they have moved
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name


def stages(zygote, folder, images, number):
    """The three scripts on so many ranks; returns what they said."""
    # At the usual rate a rounding error grows within a few steps of Adam, which moves every weight
    # by its full length, to another model as good: not what is compared here.
    first, second = folder / "ae" / "autoencoder.pth", folder / "mr" / "mrhash.pth"
    commands = (
        ["myautoencoder/autoencoder.py", *stage1_flags(images), *QUICK_FEATURES, "--epoch", 2,
         "--lr", 1e-5, "--output_dir", folder / "ae"],
        ["train.py", *stage2_flags(first), "--batch_norm", "frozen", "--lr", 1e-5, "--max_epoch", 1,
         "--output_dir", folder / "mr"],
        ["test.py", "--pretrain_path", second, "--save_codes", folder / "codes.npz", *SMALL])
    said = []
    for command in commands:
        codes, outputs = zygote.run_ranks(folder / f"out{len(said)}", number, *command,
                                          "--cache_dir", folder / "cache")
        assert codes == [0] * number, outputs
        said.append(outputs)
    return said


QUICK_FEATURES = ["--feature_backbone", QUICK[1]]


def test_the_three_scripts_on_two_ranks_end_as_on_one(trained, tmp_path, zygote):
    said = stages(zygote, tmp_path, trained[0], 2)
    results = ("autoencoder.pth", "mrhash.pth", "results.json")
    for outputs, result in zip(said, results, strict=True):
        assert outputs[0].count(f"wrote {tmp_path}") and result in outputs[0]
        assert outputs[1] == ""  # one rank speaks
    config = json.loads((tmp_path / "mr" / "config.json").read_text())
    assert config["environment"]["ranks"] == 2
    one = tmp_path / "one"
    stages(zygote, one, trained[0], 1)
    cached = sorted(path.name for path in (tmp_path / "cache").rglob("*.npy"))
    assert cached
    for name in cached:
        ours, = (tmp_path / "cache").rglob(name)
        alone, = (one / "cache").rglob(name)
        assert ours.read_bytes() == alone.read_bytes()  # whole batches, whichever rank makes them
    assert not list(tmp_path.rglob("*.part"))
    for part, keys in (("ae", {"loss", "latent_map"}),
                       ("mr", {"loss", "divergence", "reconstruction", "map"})):
        ours, alone = records(tmp_path / part), records(one / part)
        assert len(ours) == len(alone) > 1
        for here, there in zip(ours, alone, strict=True):
            assert here.keys() == there.keys()
            for key in keys & here.keys():
                assert here[key] == pytest.approx(there[key], rel=1e-4), key
    for name in ("ae/autoencoder.pth", "mr/mrhash.pth"):
        ours, alone = content(tmp_path / name)["model"], content(one / name)["model"]
        assert ours.keys() == alone.keys()
        assert ((flat(ours) - flat(alone)).abs() > 1e-4).double().mean() < 1e-3
    with np.load(tmp_path / "codes.npz") as ours, np.load(one / "codes.npz") as alone:
        for part in ("database_codes", "query_codes"):
            assert np.unpackbits(ours[part] ^ alone[part]).mean() < 0.01
        assert ours["database_paths"].tolist() == alone["database_paths"].tolist()


def test_ranks_measure_the_numbers_of_one_process(trained, tmp_path, zygote, capsys):
    folder, _ = trained
    call(capsys, "test.py", "--codes", folder / "codes.npz", "--output_dir", tmp_path / "one",
         "--ties", "stable")
    model = ["--pretrain_path", folder / "mr" / "mrhash.pth", *SMALL]
    for number, flags in enumerate((["--codes", folder / "codes.npz"],
                                    [*model, "--batch_size", 30], [*model, "--batch_size", 4])):
        codes, outputs = zygote.run_ranks(
            tmp_path / f"out{number}", 3, "test.py", *flags, "--ties", "stable", "--output_dir",
            tmp_path / str(number), "--save_codes", tmp_path / f"{number}.npz")
        assert codes == [0] * 3, outputs  # also where batches are fewer than ranks
        assert read_results(tmp_path / str(number)) == read_results(tmp_path / "one")
    for number in (1, 2):
        assert (tmp_path / f"{number}.npz").read_bytes() == (folder / "codes.npz").read_bytes()


# ------------------------------------------------------------ ends and restarts

ONE_FAILS = """
import sys
sys.path.insert(0, {root!r})
import numpy as np
from engine.cli import run
from engine.distributed import sum_over_ranks
from utils import InputError, rank

def main():
    print("spoken by", rank(), chr(0xdce9))  # no text, as names of files may be
    if rank() == 1:
        raise InputError("nothing was found")
    sum_over_ranks(np.arange(3))

sys.exit(run(main, shared=True))
"""


def test_a_rank_that_fails_ends_the_others_with_a_sentence(tmp_path, zygote):
    script = tmp_path / "script.py"
    script.write_text(ONE_FAILS.format(root=str(ROOT)))
    codes, outputs = zygote.run_ranks(tmp_path / "out", 2, script)
    assert codes == [2, 2]
    assert outputs[1] == "rank 1: error: nothing was found\n"
    said, error = outputs[0].splitlines()
    assert said == r"spoken by 0 \udce9"
    assert error.startswith("error: another rank ended or cannot be reached")


def test_a_script_that_is_one_process_says_so(zygote, tmp_path):
    script = tmp_path / "alone.py"
    script.write_text("import sys\nfrom engine.cli import run\nsys.exit(run(print))\n")
    codes, outputs = zygote.run_ranks(tmp_path, 2, script)
    assert codes == [2, 2]
    assert outputs[0] == "error: alone.py is one process: start it without torchrun\n"


def test_bad_flags_are_told_once(zygote, tmp_path):
    codes, outputs = zygote.run_ranks(tmp_path, 2, "train.py", "--hash_bit", "many")
    assert codes == [2, 2] and "invalid" in outputs[0] and outputs[1] == ""


# In its seventh step, of five an epoch: of the first attempt where torchrun counts them.
KILLED = at_step(7, """if os.environ["RANK"] == "1" and os.environ.get(
                "TORCHELASTIC_RESTART_COUNT", "0") == "0":
            os.kill(os.getpid(), signal.SIGKILL)""")


@pytest.fixture(scope="module")
def flags(trained, tmp_path_factory):
    """A quick train.py of ten steps."""
    cache_dir = tmp_path_factory.mktemp("ranks") / "cache"
    return [*stage2_flags(trained[0] / "ae" / "autoencoder.pth"), *QUICK, "--batch_size", 8,
            "--max_epoch", 1, "--cache_dir", cache_dir]


@pytest.mark.slow  # five new processes that import torch
def test_a_killed_rank_ends_the_job_and_torchrun_restarts_it_where_it_was(flags, tmp_path, zygote):
    codes, outputs = zygote.run_ranks(tmp_path / "out", 2, "train.py", *flags, "--output_dir",
                                      tmp_path / "whole")
    assert codes == [0, 0], outputs
    script = tmp_path / "killed.py"
    script.write_text(f"""
import runpy, sys
sys.path.insert(0, {str(ROOT)!r})
{KILLED}
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
""")
    done = torchrun(2, script, ROOT / "train.py", *flags, "--output_dir", tmp_path / "killed",
                    "--resume", restarts=1)
    assert done.returncode == 0, done.stderr
    assert "nothing to resume" in done.stdout and "in epoch 1, after batch 1" in done.stdout
    ours, whole = (tmp_path / name / "mrhash.pth" for name in ("killed", "whole"))
    assert ours.read_bytes() == whole.read_bytes()


def test_a_killed_rank_ends_the_others_with_a_sentence(flags, tmp_path, zygote):
    codes, outputs = zygote.run_ranks(tmp_path / "out", 2, "train.py", *flags, "--output_dir",
                                      tmp_path / "mr", prepare=KILLED)
    assert codes == [2, -signal.SIGKILL]
    last = outputs[0].splitlines()[-1]
    assert last.startswith("error: another rank ended or cannot be reached")
    assert not (tmp_path / "mr" / "mrhash.pth").exists() and (tmp_path / "mr" / "last.pth").exists()


def test_a_signal_to_one_rank_stops_all_after_a_step_and_one_goes_on(flags, tmp_path, zygote):
    flags = [*flags, "--batch_norm", "frozen", "--lr", 1e-5]
    asleep = at_step(7, "print('asleep', flush=True); time.sleep(1)")
    pids = zygote.start_ranks(tmp_path / "out", 2, "train.py", *flags, "--output_dir",
                              tmp_path / "mr", prepare=asleep.replace(OFTEN, ""))
    wait_for(tmp_path / "out" / "0", "asleep")
    os.kill(pids[1], signal.SIGTERM)
    codes = [zygote.wait(pid) for pid in pids]
    assert codes == [143, 143], (tmp_path / "out" / "0").read_text()
    state = content(tmp_path / "mr" / "last.pth")
    step = state["unfinished"]["step"]
    assert state["finished"] == {"epoch": 1} and step in (2, 3)
    code, text = zygote.run(tmp_path / "out.txt", "train.py", *flags, "--output_dir",
                            tmp_path / "mr", "--resume")
    assert code == 0 and f"in epoch 1, after batch {step}" in text, text
    code, text = zygote.run(tmp_path / "out.txt", "train.py", *flags, "--output_dir",
                            tmp_path / "whole")
    assert code == 0, text
    for ours, alone in zip(records(tmp_path / "mr"), records(tmp_path / "whole"), strict=True):
        assert ours["loss"] == pytest.approx(alone["loss"], rel=1e-4)
