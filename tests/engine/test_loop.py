"""The walk over epochs and steps: resumed anywhere, a run ends as if nothing had stopped it."""

import json
import math

import pytest
import torch

from engine import loop
from engine.epoch import ShuffledEpoch
from engine.files import at_end
from engine.loop import Run
from hamming import CodeError
from helpers import QUICK, call, stage1_flags, stage2_flags
from run_helpers import everything, without_times
from utils import InputError

CPU = torch.device("cpu")


class Stop(Exception):
    """A run is cut short."""


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Saved at every occasion."""
    monkeypatch.setattr(Run, "SAVE_EVERY", -1.0)
    monkeypatch.setattr(Run, "_save_cost", property(lambda self: 0, lambda self, cost: None),
                        raising=False)
    yield
    at_end.close()


def opened(folder, resume=False, overwrite=False, began_with=None):
    """A run that trains three weights, and its model."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(2, 1))
    run = Run(folder, "r.pth", {"lr": 0.1}, resume, overwrite)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    run.attach(model, optimizer, {"the images": "a"} if began_with is None else began_with)
    return run, model


def train(run, model, phases, stop=None, score=lambda phase, epoch: None):
    """Walk through phases {name: epochs}; `stop` is phase, epoch, step. What was remembered."""
    made = []
    try:
        for phase, count in phases.items():
            for epoch in run.epochs(phase, count):
                for name, each in (("each", True), ("once", False)):
                    run.remember(name, lambda: made.append(name) or torch.ones(2), each)  # noqa: B023
                meters = run.meters("loss")
                steps = ShuffledEpoch(10, 4, 100 * len(phase) + epoch, CPU)
                for number, step in enumerate(run.steps(steps), start=run._step):
                    if (phase, epoch, number) == stop:
                        raise Stop
                    loss = model(torch.stack([step.rows, -step.rows], 1).float()).square().mean()
                    run.optimizer.zero_grad()
                    loss.backward()
                    run.optimizer.step()
                    meters.update([loss], step.count)
                run.finish_epoch(meters.averages(), score(phase, epoch))
        run.save_result({"format": "r"})
    except Stop:
        pass
    at_end.close()
    return made


PHASES = {"head epoch": 2, "epoch": 2}


# ------------------------------------------------------------ resumed


@pytest.mark.parametrize("stop", [
    ("head epoch", 0, 1), ("head epoch", 0, 2), ("head epoch", 1, 0), ("epoch", 0, 0),
    ("epoch", 0, 2), ("epoch", 1, 1)])
def test_a_run_stopped_at_any_step_ends_with_the_same_files(tmp_path, stop, capsys):
    train(*opened(tmp_path), PHASES)
    files = everything(tmp_path)
    log = without_times(tmp_path / "log.jsonl")
    train(*opened(tmp_path, overwrite=True), PHASES, stop)
    assert not (tmp_path / "r.pth").exists()
    train(*opened(tmp_path, resume=True), PHASES)
    assert "resuming" in capsys.readouterr().out
    assert without_times(tmp_path / "log.jsonl") == log
    for name in ("r.pth", "last.pth"):
        assert everything(tmp_path)[name] == files[name], name
    assert [(record["phase"], record["epoch"]) for record in log] == [
        ("head epoch", 0), ("head epoch", 1), ("epoch", 0), ("epoch", 1)]


@pytest.mark.parametrize(("stop", "place"), [
    (("head epoch", 0, 2), "in head epoch 0, after batch 2"),
    (("head epoch", 1, 0), "after head epoch 0"), (("epoch", 0, 0), "after head epoch 1"),
    (("epoch", 1, 2), "in epoch 1, after batch 2"), (None, "after epoch 1")])
def test_a_resumed_run_says_where_it_goes_on(tmp_path, capsys, stop, place):
    train(*opened(tmp_path), PHASES, stop)
    capsys.readouterr()
    opened(tmp_path, resume=True)
    assert capsys.readouterr().out == f"resuming {tmp_path} {place}\n"


def test_what_is_remembered_is_made_at_the_start_of_an_epoch_and_kept_within(tmp_path):
    assert train(*opened(tmp_path), PHASES, ("epoch", 0, 1)) == ["each", "once", "each", "each"]
    assert train(*opened(tmp_path, resume=True), PHASES) == ["each"]  # of epoch 1


def test_more_epochs_go_on_and_fewer_than_were_begun_are_refused(tmp_path):
    train(*opened(tmp_path), {"epoch": 3}, ("epoch", 1, 1))
    before = everything(tmp_path)
    run, model = opened(tmp_path, resume=True)
    with pytest.raises(InputError, match="has come to epoch 1 already, more than 1 in all: ask for "
                                         "more, or begin again with --overwrite"):
        train(run, model, {"epoch": 1})
    assert everything(tmp_path) == before
    at_end.close()
    train(*opened(tmp_path, resume=True), {"epoch": 2})  # epoch 1 ends it
    assert len(without_times(tmp_path / "log.jsonl")) == 2
    train(*opened(tmp_path, resume=True), {"epoch": 4})
    assert [record["epoch"] for record in without_times(tmp_path / "log.jsonl")] == [0, 1, 2, 3]


def test_a_later_phase_that_is_refused_changes_nothing_either(tmp_path):
    train(*opened(tmp_path), PHASES)
    before = everything(tmp_path)
    run, model = opened(tmp_path, resume=True)
    run.folder.settings["max_epoch"] = 0
    with pytest.raises(InputError, match="has come to epoch 1 already"):
        train(run, model, {**PHASES, "epoch": 1})
    assert everything(tmp_path) == before


@pytest.mark.parametrize(("last", "code"), [(1, 0), (0, 2)])
def test_the_scripts_say_so_before_anything_is_changed(half_done, tmp_path, capsys, last, code):
    before = everything(tmp_path / "run")  # within epoch 1
    found, _, error = call(capsys, "train.py", *half_done, "--resume", "--max_epoch", last)
    assert found == code, error
    if code:
        assert "has come to epoch 1 already" in error and len(error.splitlines()) == 1
        assert everything(tmp_path / "run") == before


# ------------------------------------------------------------ what it began with


@pytest.mark.parametrize(("now", "fits"), [
    ({"the images": "a"}, True), ({"the images": "b"}, False), ({"the weights": "a"}, False)])
def test_a_resumed_run_insists_on_what_it_began_with(tmp_path, now, fits):
    train(*opened(tmp_path), PHASES, ("epoch", 0, 1))
    if fits:
        opened(tmp_path, resume=True, began_with=now)
    else:
        name, = now
        with pytest.raises(InputError, match=f"cannot resume .*: {name} are not those that it "
                                             "began with"):
            opened(tmp_path, resume=True, began_with=now)


@pytest.mark.parametrize(("now", "found"), [
    ([7, 8, 0], "1 of 3 images are"), ([7, 8], "the images are")])
def test_a_resumed_run_counts_the_images_that_are_others(tmp_path, now, found):
    train(*opened(tmp_path, began_with={"images": torch.tensor([7, 8, 9])}), PHASES,
          ("epoch", 0, 1))
    train(*opened(tmp_path, resume=True, began_with={"images": torch.tensor([7, 8, 9])}), PHASES,
          ("epoch", 1, 1))
    with pytest.raises(InputError, match=f": {found} not those that it began with"):
        opened(tmp_path, resume=True, began_with={"images": torch.tensor(now)})


@pytest.mark.parametrize(("name", "value"), [
    ("unfinished", {"phase": "epoch", "step": 99}), ("unfinished", {}),
    ("finished", {"epoch": "x"}),
    ("unfinished", {"phase": "epoch", "step": 1, "sums": torch.zeros(7)}), ("optimizer", {}),
    ("model", {"1.weight": torch.zeros(4, 64)}), ("model", {}),
    ("best", {"phase": "epoch", "score": 0.0, "epoch": 0, "model": {"a": torch.ones(1)}})])
def test_a_last_pth_that_does_not_fit_is_one_sentence(tmp_path, name, value):
    train(*opened(tmp_path), PHASES, ("epoch", 1, 1))
    state = torch.load(tmp_path / "last.pth", weights_only=True)
    torch.save({**state, name: value}, tmp_path / "last.pth")
    with pytest.raises(InputError, match=r"last\.pth"):
        train(*opened(tmp_path, resume=True), PHASES)


# ------------------------------------------------------------ saving


def test_saving_takes_no_more_than_a_fiftieth_of_the_time(tmp_path, monkeypatch):
    monkeypatch.undo()
    clock, saved = [0.0], []
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])
    run, _ = opened(tmp_path)
    save = run.folder.save

    def slow(state):
        saved.append(clock[0])
        clock[0] += 2.0  # seconds that it takes
        save(state)

    monkeypatch.setattr(run.folder, "save", slow)
    for _ in run.epochs("epoch", 1):
        run.meters("loss")
        for _ in run.steps(ShuffledEpoch(400, 1, 0, CPU)):
            clock[0] += 1.0
    assert saved == [31.0, 134.0, 237.0, 340.0]  # after 30 s, and then 100 after each


def test_many_epochs_share_one_saving_and_the_last_one_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "SAVE_EVERY", 1e9)
    run, model = opened(tmp_path)
    saved = []
    monkeypatch.setattr(run.folder, "save", lambda state: saved.append(dict(state["finished"])))
    train(run, model, PHASES)
    assert saved == [{"head epoch": 2}, {"head epoch": 2, "epoch": 2}]


# ------------------------------------------------------------ which epoch is kept


def test_the_best_epoch_of_the_last_phase_is_kept(tmp_path, capsys):
    scores = {("head epoch", 0): 9.0, ("head epoch", 1): 8.0, ("epoch", 0): 1.0, ("epoch", 1): 0.5}
    run, model = opened(tmp_path)
    train(run, model, PHASES, score=lambda *place: scores[place])
    result = torch.load(tmp_path / "r.pth", weights_only=True)
    assert (result["phase"], result["epoch"]) == ("epoch", 0)
    assert "(epoch 0)" in capsys.readouterr().out
    assert not torch.equal(result["model"]["1.weight"], model.state_dict()["1.weight"])


def test_without_a_score_the_last_epoch_is_kept(tmp_path):
    run, model = opened(tmp_path)
    train(run, model, PHASES)
    result = torch.load(tmp_path / "r.pth", weights_only=True)
    assert (result["phase"], result["epoch"]) == ("epoch", 1)
    assert torch.equal(result["model"]["1.weight"], model.state_dict()["1.weight"])


# ------------------------------------------------------------ what is not finite


def spoil(model, value=math.inf):
    torch.nn.init.constant_(model[1].bias, value)


@pytest.mark.parametrize("where", ["finish_epoch", "evaluating", "_save"])
def test_weights_that_are_not_finite_are_never_saved_over_good_ones(tmp_path, where):
    train(*opened(tmp_path), {"epoch": 2}, ("epoch", 1, 0))
    good = (tmp_path / "last.pth").read_bytes()
    run, model = opened(tmp_path, resume=True)
    for _ in run.epochs("epoch", 2):
        spoil(model)
        with pytest.raises(InputError, match=r"weights are not finite any more in epoch 1: .*lower "
                                             r"--lr; the last good state is .*last\.pth"):
            if where == "evaluating":
                with run.evaluating():
                    pytest.fail("it was measured")
            elif where == "_save":
                run._save()
            else:
                run.finish_epoch({})
        break
    assert (tmp_path / "last.pth").read_bytes() == good


@pytest.mark.parametrize(("every", "batch"), [(1, 3), (50, 6)])
def test_a_loss_that_is_not_finite_is_noticed_at_the_latest_at_the_end(tmp_path, monkeypatch,
                                                                      every, batch):
    run, _ = opened(tmp_path)
    monkeypatch.setattr(Run, "LOOK_EVERY", every)
    monkeypatch.setattr(Run, "SAVE_EVERY", 1e9)
    said = (f"loss is not finite in epoch 0, batch {batch} of 6: begin again with a lower --lr; "
            "nothing was saved before")
    with pytest.raises(InputError, match=said):
        for _ in run.epochs("epoch", 1):
            meters = run.meters("loss")
            run.device = torch.device("meta")  # as a card, for which one has to wait
            for number, step in enumerate(run.steps(ShuffledEpoch(24, 4, 0, CPU))):
                meters.update([torch.tensor(math.nan if number == 2 else 1.0)], step.count)


def test_an_epoch_whose_codes_cannot_be_measured_is_told_with_advice(tmp_path):
    run, _ = opened(tmp_path)
    for _ in run.epochs("epoch", 1):
        with pytest.raises(InputError, match=r"epoch 0/0 cannot be measured \(not finite\): begin "
                                             "again with a lower --lr; nothing was saved before"), \
                run.evaluating():
            raise CodeError("not finite.")


@pytest.mark.parametrize("number", [1, 2])
def test_the_scripts_tell_the_epoch_that_cannot_be_measured(trained, tmp_path, capsys, monkeypatch,
                                                            number):
    """One step an epoch: its loss is finite, and what the weights that it leaves give is not."""
    monkeypatch.setattr(Run, "SAVE_EVERY", 1e9)
    command = {1: ["myautoencoder/autoencoder.py", *stage1_flags(trained[0]), "--lambda1", 1e9],
               2: ["train.py", *stage2_flags(trained[0] / "ae" / "autoencoder.pth"), "--multi_lr",
                   1e9]}[number]
    code, _, error = call(capsys, *command, "--lr", 1e9, "--eval_frequency", 1, "--batch_size", 100,
                          "--output_dir", tmp_path)
    last = error.strip().splitlines()[-1]
    assert code == 2 and last.startswith("error: epoch 0/"), error
    assert "cannot be measured (" in last and "finite" in last
    assert "begin again with a lower --lr; nothing was saved before" in last


# ------------------------------------------------------------ warnings


def test_warnings_of_a_kind_come_once(tmp_path, capsys):
    run, _ = opened(tmp_path)
    for kind in ("clusters", "bits", "clusters"):
        run.warn_once(kind, f"odd {kind}")
    assert capsys.readouterr().err.splitlines() == ["warning: odd clusters", "warning: odd bits"]


def test_empty_clusters_are_warned_of_once_and_constant_bits_are_counted(trained, tmp_path, capsys):
    code, out, error = call(
        capsys, "train.py", *stage2_flags(trained[0] / "ae" / "autoencoder.pth"), *QUICK,
        "--n_clusters", 30, "--hash_bit", 64, "--lr", 0.3, "--multi_lr", 0, "--head_epochs", 3,
        "--max_epoch", "none", "--output_dir", tmp_path)
    assert code == 0, error
    warning, bits = [line for line in error.splitlines() if line.startswith("warning:")]
    assert "of 30 clusters are empty" in warning and "lower --n_clusters" in warning
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    counts = [record.get("constant_bits") for record in log]
    assert counts[1] is None and counts[0] is not None and counts[2] > 0  # where it is measured
    assert f"{counts[2]} of 64 bits are the same" in bits
    assert f"; constant bits: {counts[2]})" in out
    code, _, error = call(capsys, "test.py", "--pretrain_path", tmp_path / "mrhash.pth",
                          "--cache_dir", "none")
    assert code == 0 and error.count("bits are the same for all images") == 1, error
