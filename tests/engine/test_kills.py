"""Killed at any moment, crowded, or short of disk, a script ends right when it is begun again."""

import os
import random
import re
import shutil
import signal
import time

import pytest
import torch

from helpers import ROOT
from run_helpers import (
    OFTEN,
    assert_disk_full,
    assert_whole,
    at_step,
    kill,
    resize,
    small_disk,
    wait_for,
)

# ------------------------------------------------------------ killed at any moment


def cut_to_pieces(script, kills):
    """Kill it at random moments and go on each time, until it is through: as if nothing was."""
    moments = random.Random()  # any moment: a failure shows when it was
    log, killed = [], 0
    while True:
        pid = script.start(prepare=OFTEN)
        if killed < kills:
            moment = moments.uniform(0, script.seconds)
            time.sleep(moment)
            code = kill(script.zygote, pid)
            log.append(f"{moment:.3f} s of {script.seconds:.3f}")
        else:
            code = script.zygote.wait(pid)
        assert code in (0, -signal.SIGKILL), (log, script.output.read_text())
        assert_whole(script.folder)
        if code == -signal.SIGKILL:
            killed += 1
        elif killed < kills:  # it was quicker than the kill: begin again, from nothing
            script.assert_as_whole()
            script.begin_anew()
        else:
            break
    script.assert_as_whole()
    return log


@pytest.mark.parametrize("name", ["autoencoder", "train", "test"])
def test_a_stage_killed_at_random_moments_ends_as_if_nothing_was(stage, name):
    cut_to_pieces(stage(name), 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["autoencoder", "train", "train-once", "test"])
def test_a_stage_killed_fifty_times_ends_as_if_nothing_was(stage, name):
    print(cut_to_pieces(stage(name), 50))


def test_what_a_killed_run_left_half_written_goes(half_done, tmp_path, zygote):
    (tmp_path / "run" / ".last.pth.abcdefgh.part").write_bytes(b"half of it")
    code, text = zygote.run(tmp_path / "out.txt", "train.py", *half_done, "--resume")
    assert code == 0, text
    names = sorted(os.listdir(tmp_path / "run"))
    assert names == [".lock", "config.json", "last.pth", "log.jsonl", "mrhash.pth"]


# ------------------------------------------------------------ two processes


def test_a_second_run_is_kept_out_of_a_folder_until_the_first_one_ends_or_dies(stage):
    script = stage("train-once")
    run = script.folder / "run"
    pid = script.start(prepare=at_step(3, "print('asleep', flush=True); time.sleep(600)"))
    try:
        wait_for(script.output, "asleep")
        before = {path: path.read_bytes() for path in run.iterdir()}
        for more in ([], ["--overwrite"]):
            second = script.folder.with_suffix(".2.txt")
            code, text = script.zygote.run(second, *script.command, *more)
            assert code == 2 and f"another run is writing in {run}" in text
            assert f"process {pid} on" in text
            assert len(text.strip().splitlines()) == 2, text  # what the data are, and the error
        assert {path: path.read_bytes() for path in run.iterdir()} == before
    finally:
        kill(script.zygote, pid)
    code, text = script.run()
    assert code == 0 and "resuming" in text, text
    script.assert_as_whole()


def test_two_processes_that_need_the_same_cache_make_it_once(stage):
    script = stage("autoencoder")
    slowly = """
import time
from engine.cache import _Part
append = _Part.append
def slow(self, rows):
    time.sleep(0.01)
    print("added", len(rows), "rows")
    append(self, rows)
_Part.append = slow
"""
    names = ("run", "other")
    outputs = [script.folder.with_suffix(f".{name}.txt") for name in names]
    pids = [script.zygote.start(output, *script.command, "--output_dir", script.folder / name,
                                prepare=slowly)
            for name, output in zip(names, outputs, strict=True)]
    codes = [script.zygote.wait(pid) for pid in pids]
    texts = [output.read_text() for output in outputs]
    assert codes == [0, 0], texts
    assert any("another process makes" in text for text in texts)
    # Sizes, views and brightness of 42 images, their features in six batches, of either source.
    assert sum(text.count("added") for text in texts) == 2 * (42 + 42 + 42 + 6)
    one, other = ((script.folder / name / "autoencoder.pth").read_bytes() for name in names)
    assert one == other
    shutil.rmtree(script.folder / "other")
    script.assert_as_whole()


# ------------------------------------------------------------ short of disk


@pytest.mark.parametrize(("name", "files"), [
    pytest.param("autoencoder", 5, marks=pytest.mark.slow), ("train", 3), ("test", 3)])
def test_a_limit_on_files_ends_in_a_sentence_and_the_run_goes_on_without_it(stage, name, files):
    script = stage(name)
    sizes = {path.stat().st_size for path in script.whole.rglob("*") if path.is_file()}
    limits = sorted(size - 1 for size in sizes if size > 8192)  # output goes to a file, too
    assert len(limits) >= files
    for limit in limits:
        code, text = script.run(prepare=OFTEN, limit=limit)
        assert_disk_full(code, text, script.folder)
        assert_whole(script.folder)
    code, text = script.run(limit=limits[-1] + 1)
    assert code == 0, text
    script.assert_as_whole()


@pytest.mark.parametrize("name", ["autoencoder", "train"])
def test_a_full_disk_ends_in_a_sentence_and_the_run_goes_on_with_more_room(stage, name):
    script = stage(name)
    total = sum(path.stat().st_size for path in script.whole.rglob("*") if path.is_file())
    with small_disk(script.folder, total // 3):
        for share in (3, 2):
            resize(script.folder, total // share)
            code, text = script.run(prepare=OFTEN)
            assert_disk_full(code, text, script.folder)
            assert_whole(script.folder)
        resize(script.folder, 3 * total)
        code, text = script.run()
        assert code == 0, text
        script.assert_as_whole()


# ------------------------------------------------------------ a loss that is not finite

TOO_FAST = """
import myautoencoder.phases, utils
utils.step_decay = lambda lr, epoch, *rest: lr if epoch < 1 else 1e30
myautoencoder.phases.step_decay = utils.step_decay
"""


@pytest.mark.parametrize("name", ["autoencoder", "train-once"])
def test_a_loss_that_is_not_finite_ends_the_run_and_spares_the_state_before(stage, name):
    script = stage(name)
    code, text = script.run(prepare=OFTEN + TOO_FAST)
    assert code == 2 and text.count("error:") == 1, text
    last = text.strip().splitlines()[-1]
    assert "not finite in epoch 1, batch" in last or "not finite any more in epoch 1" in last
    saved = script.folder / "run" / "last.pth"
    assert last.endswith(f"begin again with a lower --lr; the last good state is {saved}"), last
    assert_whole(script.folder)
    # With the rate that it should have had, it ends as if nothing was.
    state = torch.load(saved, weights_only=True)
    assert state["finished"] == {"epoch": 1}
    if state["unfinished"] is None:
        code, text = script.run()
        assert code == 0, text
        script.assert_as_whole()


# ------------------------------------------------------------ the page of promises


def test_every_place_that_the_page_of_promises_names_is_there():
    page = (ROOT / "docs" / "reliability.md").read_text()
    named = set(re.findall(r"tests/[\w/.]*\w", page))
    assert len(named) >= 6
    assert not [place for place in named if not (ROOT / place).exists()]
