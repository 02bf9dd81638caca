"""Fixtures that several test files share."""

import os

import pytest
import torch

from helpers import ROOT, SMALL, Zygote, make_pairs, run_script, stage1_flags, stage2_flags


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread():
    """Small products gain nothing from threads, and lose a lot when the machine is shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def power_stays_on():
    """Waiting for the disk matters when the power fails, which no test can try: it only takes time here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Images, autoencoder.pth, mrhash.pth, codes and results, made by the three scripts as processes."""
    folder = tmp_path_factory.mktemp("end_to_end")
    make_pairs(folder)
    outputs = []
    for command, cwd in (
            (["autoencoder.py", *stage1_flags(folder), "--output_dir", folder / "ae"], ROOT / "myautoencoder"),
            (["train.py", *stage2_flags(folder / "ae" / "autoencoder.pth"), "--output_dir", folder / "mr"], ROOT),
            (["test.py", "--hash_bit", 12, "--pretrain_path", folder / "mr" / "mrhash.pth", "--save_codes",
              folder / "codes.npz", "--picture", folder / "neighbours.png", *SMALL], ROOT)):
        done = run_script(*command, cwd=cwd)
        assert done.returncode == 0, done.stdout + done.stderr
        outputs.append(done.stdout)
    return folder, outputs


@pytest.fixture(scope="session")
def zygote():
    started = Zygote()
    yield started
    started.process.stdin.close()
    started.process.wait()
