"""Several ranks, as torchrun starts them: the same result as one process, one writer, an end in common, a restart."""

import json
import os
import signal
import time

import numpy as np
import pytest
import torch
from torchvision.ops import stochastic_depth

from datasets.store import ImageLoader, ImageStore, Transform, training_views
from engine import distributed
from engine.layers import SharedBatchNorm2d, SharedDropout, SharedStochasticDepth, share_layers
from helpers import QUICK, ROOT, SMALL, call, read_results, run_script, script_module, stage1_flags, stage2_flags
from network import Backbone, HashNetwork, MrHash, MultisourceAutoencoder

CPU = torch.device("cpu")


def torchrun(ranks, *command, restarts=0):
    return run_script("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", ranks, "--max-restarts",
                      restarts, *command)


def records(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def tensors(path):
    return torch.load(path, weights_only=True)["model"]


# ------------------------------------------------------------------------ who has what


def test_a_process_that_torchrun_did_not_start_is_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "3")
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1234")
    assert (distributed.rank(), distributed.world_size()) == (3, 8)


@pytest.fixture
def as_rank(monkeypatch):
    """This process as one of several ranks that never meet."""
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1234")

    def become(rank, number):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(number))

    return become


@pytest.mark.parametrize(("rows", "number"), [(21, 8), (128, 3), (2, 5), (5, 5)])
def test_shares_are_all_rows_once_and_their_weights_make_the_mean(as_rank, rows, number):
    parts, mean, values = [], 0.0, np.random.default_rng(0).normal(size=rows)
    for rank in range(number):
        as_rank(rank, number)
        share = distributed.Share.of(rows)
        assert len(values[share.part])  # a rank always has a row, which may not count
        parts += range(rows)[share.part] if share.counts else []
        mean += values[share.part].mean() * share.weight / number
        assert len(share) == (len(range(rows)[share.part]) if share.counts else 0)
    assert parts == list(range(rows))
    assert mean == pytest.approx(values.mean(), abs=1e-12)


def test_dropout_and_crops_of_a_share_are_those_of_the_whole_batch(as_rank):
    x = torch.rand(7, 5)
    torch.manual_seed(0)
    whole = torch.nn.functional.dropout(x, 0.3, True)
    torch.manual_seed(0)
    assert torch.equal(SharedDropout(0.3)(x), whole)  # alone it is torch's own
    images = np.random.default_rng(0).integers(0, 255, (7, 3, 20, 24)).astype(np.uint8)
    loader = ImageLoader(ImageStore(images, np.array([[20, 24]] * 7), 37, ""), CPU)
    transform, batches = Transform(32, 37), torch.arange(7).split(4)

    def views():
        return list(training_views(loader, transform, batches, 0, torch.Generator().manual_seed(0)))

    torch.manual_seed(0)
    branches = stochastic_depth(x, 0.5, "row")
    torch.manual_seed(0)
    assert torch.equal(SharedStochasticDepth(0.5, "row")(x), branches)
    alone, together, dropped, left_out = views(), [[], []], [], []
    for rank in range(3):
        as_rank(rank, 3)
        with distributed.step_of(7) as share:
            torch.manual_seed(0)
            dropped.append(SharedDropout(0.3)(x[share.part]))
            torch.manual_seed(0)
            left_out.append(SharedStochasticDepth(0.5, "row")(x[share.part]))
        for into, view in zip(together, views(), strict=True):
            into.append(view)
    assert torch.equal(torch.cat(dropped), whole) and torch.equal(torch.cat(left_out), branches)
    for one, parts in zip(alone, together, strict=True):
        assert torch.equal(torch.cat(parts), one)


def test_layers_of_torchvision_are_exchanged_without_a_change():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4),
                                  torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.ReLU()))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    x = torch.rand(6, 3, 8, 8)
    torch.manual_seed(0)
    expected = network(x)
    network[1].reset_running_stats()
    share_layers(network)
    assert type(network[1]) is SharedBatchNorm2d and type(network[2][0]) is SharedDropout
    assert network.state_dict().keys() == before.keys()
    torch.manual_seed(0)
    assert torch.equal(network(x), expected)
    for name in ("efficientnet_b0", "alexnet", "mobilenet_v3_small"):
        kinds = {type(layer).__name__ for layer in Backbone(name, "none", 64).modules()}
        assert not kinds & {"Dropout", "BatchNorm2d", "StochasticDepth"}, name


# ------------------------------------------------------------------------ the same result

STEP = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import numpy as np
import torch
from test_ranks import train_a_little
from utils import run

sys.exit(run(lambda: train_a_little({output!r}), shared=True))
"""


def train_a_little(output):
    """Six steps of train.py's loop, batch normalisation and dropout included, the last batch of two images."""
    module = script_module("train.py")
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    images = draw.integers(0, 255, (18, 3, 24, 24)).astype(np.uint8)
    features = [torch.from_numpy(draw.normal(size=(18, width)).astype(np.float32)) for width in (6, 5)]
    backbone = Backbone("mobilenet_v3_small", "none", 32, "adapt")
    model = MrHash(HashNetwork(backbone, 8, head_width=16), MultisourceAutoencoder((6, 5), 8), torch.randn(4, 8))
    # Not Adam, which makes a step of its full length of a rounding error in a gradient that is nothing.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = ImageLoader(ImageStore(images, np.array([[24, 24]] * 18), 37, ""), CPU)
    trained, losses = distributed.trained_together(model, CPU), []
    for epoch in range(2):
        target = module.target_distribution(model.assign_all(features))
        generator = torch.Generator().manual_seed(epoch)
        batches, done = torch.randperm(18, generator=generator).split(8), module.Progress(8, CPU)
        views = training_views(loader, Transform(32, 37), batches, 0, generator)
        module.train_one_epoch(trained, batches, views, False, features, target, optimizer, 0.01, "batchmean", 0.0,
                               False, "", done, lambda loss: None)
        done.gather()
        losses.append(done.losses)
    if distributed.rank() == 0:
        torch.save({"losses": torch.stack(losses), "ones": done.ones, "model": model.state_dict()}, output)


@pytest.mark.parametrize("number", [2, 3])
def test_steps_of_several_ranks_are_those_of_one(number, tmp_path, zygote):
    train_a_little(tmp_path / "1.pth")
    script = tmp_path / "script.py"
    script.write_text(STEP.format(root=str(ROOT), tests=str(ROOT / "tests"), output=str(tmp_path / "n.pth")))
    codes, outputs = zygote.run_ranks(tmp_path / "out", number, script)
    assert codes == [0] * number, outputs
    one, several = (torch.load(tmp_path / name, weights_only=True) for name in ("1.pth", "n.pth"))
    # Measured: 5e-7 for the losses; with any part of the sharing left out 3e-4 and more.
    torch.testing.assert_close(several["losses"], one["losses"], rtol=1e-5, atol=0)
    assert torch.equal(several["ones"], one["ones"])
    ours, alone = (torch.cat([value.double().flatten() for value in content["model"].values()])
                   for content in (several, one))
    assert (ours - alone).norm() / alone.norm() < 1e-4


def stages(zygote, folder, images, number):
    """The three scripts on so many ranks; returns what they said."""
    # At the usual rate a rounding error grows within a few steps of Adam, which moves every weight by its full
    # length, to another model as good: not what is compared here.
    said = []
    for name, flags in (
            ("myautoencoder/autoencoder.py", [*stage1_flags(images), "--output_dir", folder / "ae"]),
            ("train.py", [*stage2_flags(folder / "ae" / "autoencoder.pth"), "--lr", 1e-5, "--output_dir",
                          folder / "mr"]),
            ("test.py", ["--pretrain_path", folder / "mr" / "mrhash.pth", "--save_codes", folder / "codes.npz",
                         *SMALL])):
        flags = [*flags, "--cache_dir", folder / "cache"]
        codes, outputs = zygote.run_ranks(folder / f"out{len(said)}", number, ROOT / name, *flags)
        assert codes == [0] * number, outputs
        said.append(outputs)
    return said


def test_the_three_scripts_on_two_ranks_end_as_on_one(trained, tmp_path, zygote):
    images, _ = trained
    said = stages(zygote, tmp_path, images, 2)
    for outputs, result in zip(said, ("autoencoder.pth", "mrhash.pth", "results.json"), strict=True):
        assert outputs[0].count(f"wrote {tmp_path}") and result in outputs[0]
        assert outputs[1] == ""  # one rank speaks
    assert json.loads((tmp_path / "mr" / "config.json").read_text())["environment"]["ranks"] == 2
    stages(zygote, tmp_path / "one", images, 1)
    for name in sorted(path.name for path in (tmp_path / "cache").rglob("*.npy")):
        ours, = (tmp_path / "cache").rglob(name)
        alone, = (tmp_path / "one" / "cache").rglob(name)
        assert ours.read_bytes() == alone.read_bytes()  # whole batches, whichever rank makes them
    assert not list(tmp_path.rglob("*.part"))
    for part, keys in (("ae", ("loss", "latent_map")), ("mr", ("loss", "divergence", "reconstruction", "map"))):
        ours, alone = records(tmp_path / part), records(tmp_path / "one" / part)
        assert len(ours) == len(alone) > 2
        for here, there in zip(ours, alone, strict=True):
            assert here.keys() == there.keys()
            for key in set(keys) & here.keys():
                assert here[key] == pytest.approx(there[key], rel=1e-4), key
    for name in ("ae/autoencoder.pth", "mr/mrhash.pth"):
        ours, alone = tensors(tmp_path / name), tensors(tmp_path / "one" / name)
        differences = torch.cat([(ours[key].double() - value.double()).abs().flatten() for key, value in alone.items()])
        assert (differences > 1e-4).double().mean() < 1e-3
    with np.load(tmp_path / "codes.npz") as ours, np.load(tmp_path / "one" / "codes.npz") as alone:
        for part in ("database_codes", "query_codes"):
            assert np.unpackbits(ours[part] ^ alone[part]).mean() < 0.01
        assert ours["database_paths"].tolist() == alone["database_paths"].tolist()


def test_ranks_measure_the_numbers_of_one_process(trained, tmp_path, zygote, capsys):
    folder, _ = trained
    call(capsys, "test.py", "--codes", folder / "codes.npz", "--output_dir", tmp_path / "one", "--ties", "stable")
    for number, flags in enumerate((["--codes", folder / "codes.npz"],
                                    ["--pretrain_path", folder / "mr" / "mrhash.pth", "--batch_size", 30, *SMALL],
                                    ["--pretrain_path", folder / "mr" / "mrhash.pth", "--batch_size", 4, *SMALL])):
        codes, outputs = zygote.run_ranks(tmp_path / f"out{number}", 3, ROOT / "test.py", *flags, "--ties", "stable",
                                          "--output_dir", tmp_path / str(number), "--save_codes",
                                          tmp_path / f"{number}.npz")
        assert codes == [0] * 3, outputs  # also where batches are fewer than ranks
        assert read_results(tmp_path / str(number)) == read_results(tmp_path / "one")
    for number in (1, 2):
        assert (tmp_path / f"{number}.npz").read_bytes() == (folder / "codes.npz").read_bytes()


# ------------------------------------------------------------------------ ends and restarts


def test_a_rank_that_fails_ends_the_others_with_a_sentence(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
from distributed import rank, sum_over_ranks
from utils import InputError, run

def main():
    print("spoken by", rank())
    if rank() == 1:
        raise InputError("rank 1 found nothing")
    sum_over_ranks(np.arange(3))

sys.exit(run(main, shared=True))
""")
    done = torchrun(2, script)
    assert done.returncode != 0
    assert done.stdout.splitlines() == ["spoken by 0"]
    assert "rank 1: error: rank 1 found nothing" in done.stderr
    assert "RuntimeError" not in done.stderr


def test_a_script_that_is_one_process_says_so(zygote, tmp_path):
    codes, outputs = zygote.run_ranks(tmp_path, 2, ROOT / "compare.py", "--data_name", "demo", "--weights", "none")
    assert codes == [2, 2]
    assert outputs[0] == "error: compare.py is one process: start it without torchrun\n"


def test_bad_flags_are_told_once(zygote, tmp_path):
    codes, outputs = zygote.run_ranks(tmp_path, 2, ROOT / "train.py", "--hash_bit", "many")
    assert codes == [2, 2] and "invalid" in outputs[0] and outputs[1] == ""


# Saves after every step; rank 1 of the first attempt is killed in the middle of its second epoch.
KILLED = """
import os
import runpy
import signal
import sys

sys.path.insert(0, {root!r})
import runs

runs.Run.due = lambda self: True
see = runs.LossWatch.see

def watched(self, step, loss):
    if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"], self.epoch, step) == ("1", "0", 1, 1):
        os.kill(os.getpid(), signal.SIGKILL)
    see(self, step, loss)

runs.LossWatch.see = watched
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_killed_rank_ends_the_job_and_torchrun_restarts_it_where_it_was(trained, tmp_path, zygote):
    folder, _ = trained
    flags = [*stage2_flags(folder / "ae" / "autoencoder.pth"), *QUICK, "--cache_dir", tmp_path / "cache"]
    codes, outputs = zygote.run_ranks(tmp_path / "out", 2, ROOT / "train.py", *flags, "--output_dir",
                                      tmp_path / "whole")
    assert codes == [0, 0], outputs
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(root=str(ROOT)))
    done = torchrun(2, script, ROOT / "train.py", *flags, "--output_dir", tmp_path / "killed", "--resume", restarts=1)
    assert done.returncode == 0, done.stderr
    assert "in epoch 1, after batch 1" in done.stdout and "nothing to resume" in done.stdout
    assert (tmp_path / "killed" / "mrhash.pth").read_bytes() == (tmp_path / "whole" / "mrhash.pth").read_bytes()


def test_a_killed_rank_ends_the_others_with_a_sentence(trained, tmp_path, zygote):
    folder, _ = trained
    flags = [*stage2_flags(folder / "ae" / "autoencoder.pth"), *QUICK, "--output_dir", tmp_path / "mr"]
    killed = "import os\nos.environ['TORCHELASTIC_RESTART_COUNT'] = '0'\n" + KILLED.format(root=str(ROOT)).partition(
        "sys.argv")[0]
    codes, outputs = zygote.run_ranks(tmp_path / "out", 2, ROOT / "train.py", *flags, prepare=killed)
    assert codes == [2, -signal.SIGKILL]
    assert outputs[0].splitlines()[-1].startswith("error: another rank ended or cannot be reached")
    assert not (tmp_path / "mr" / "mrhash.pth").exists() and (tmp_path / "mr" / "last.pth").exists()


def test_a_signal_to_one_rank_stops_all_after_a_step_and_one_goes_on(trained, tmp_path, zygote):
    folder, _ = trained
    flags = [*stage2_flags(folder / "ae" / "autoencoder.pth"), *QUICK, "--lr", 1e-5, "--cache_dir", tmp_path / "cache"]
    slow = "import runs, time\nsee = runs.LossWatch.see\nruns.LossWatch.see = lambda *a: (time.sleep(0.3), see(*a))"
    pids = zygote.start_ranks(tmp_path / "out", 2, ROOT / "train.py", *flags, "--output_dir", tmp_path / "mr",
                              prepare=slow)
    deadline = time.time() + 60
    while time.time() < deadline and (not (tmp_path / "mr" / "log.jsonl").exists() or not records(tmp_path / "mr")):
        time.sleep(0.05)
    time.sleep(0.4)
    os.kill(pids[1], signal.SIGTERM)
    assert [zygote.wait(pid) for pid in pids] == [143, 143], (tmp_path / "out" / "0").read_text()
    state = torch.load(tmp_path / "mr" / "last.pth", weights_only=True)
    assert state["within"]["step"] > 0
    codes, outputs = zygote.run_ranks(tmp_path / "out", 1, ROOT / "train.py", *flags, "--output_dir",
                                      tmp_path / "mr", "--resume")
    assert codes == [0], outputs
    assert f"in epoch {state['epoch'] + 1}, after batch {state['within']['step']}" in outputs[0]
    codes, _ = zygote.run_ranks(tmp_path / "out", 1, ROOT / "train.py", *flags, "--output_dir", tmp_path / "whole")
    assert codes == [0]
    for ours, alone in zip(records(tmp_path / "mr"), records(tmp_path / "whole"), strict=True):
        assert ours["loss"] == pytest.approx(alone["loss"], rel=1e-4)


def test_ranks_that_cannot_see_the_folder_say_so(as_rank, tmp_path, monkeypatch):
    from engine.run import Run
    as_rank(1, 2)
    monkeypatch.setattr(distributed.distributed, "barrier", lambda: None)
    with pytest.raises(ValueError, match="name an --output_dir that all machines share"):
        Run(tmp_path, "mrhash.pth", {}, False, False, set())
    with pytest.raises(ValueError, match="name a --cache_dir that all machines share"):
        from engine.cache import finished
        finished(tmp_path / "features.npy", 3)
