"""Runs of the scripts that are whole, and one that is half done."""

import shutil
import time

import pytest

from helpers import stage2_flags
from run_helpers import DROPOUT, SMALL_STEPS, Stage, at_step, commands


@pytest.fixture(scope="session")
def stage(trained, zygote, tmp_path_factory):
    """`stage(name)`: a script as in run_helpers.commands, its folder empty."""
    made = {}

    def stage_of(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("run")
            command = [str(word).replace("{}", str(folder)) for word in commands(trained[0])[name]]
            begun = time.monotonic()
            code, text = zygote.run(folder.with_suffix(".txt"), *command)
            assert code == 0, text
            seconds = time.monotonic() - begun
            # Aside, because the paths stand in its files: the other runs get the same ones.
            whole = folder.rename(folder.with_suffix(".whole"))
            made[name] = Stage(zygote, command, folder, whole, seconds)
        made[name].begin_anew()
        return made[name]
    return stage_of


@pytest.fixture(scope="session")
def half(trained, zygote, tmp_path_factory):
    """Folder and flags of a run of train.py that was stopped in its second epoch."""
    folder = tmp_path_factory.mktemp("half")
    flags = [*stage2_flags(trained[0] / "ae" / "autoencoder.pth"), *SMALL_STEPS, *DROPOUT,
             "--max_epoch", 1]
    code, text = zygote.run(folder / "out.txt", "train.py", *flags, "--output_dir", folder / "run",
                            prepare=at_step(7, "os.kill(os.getpid(), signal.SIGINT)"))
    assert code == 130, text
    return folder / "run", flags


@pytest.fixture
def half_done(half, tmp_path):
    """A copy of that run in tmp_path / "run"; the flags that go on with it."""
    folder, flags = half
    shutil.copytree(folder, tmp_path / "run")
    return [*flags, "--output_dir", tmp_path / "run"]
