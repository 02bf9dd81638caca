"""Fixtures that several test files share."""

import os

import pytest
import torch

from helpers import ROOT, SMALL, Zygote, make_pairs, run_script, stage1_flags, stage2_flags
from imagery import fetch, services
from search_helpers import add_to, pictures, save_model
from tile_server import serving


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread():
    """Small products gain nothing from threads, and lose a lot when the machine is shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def power_stays_on():
    """Waiting for the disk matters when power fails, which no test can try: it only takes time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def zygote():
    """A process that starts scripts in no time."""
    started = Zygote()
    yield started
    started.process.stdin.close()
    started.process.wait()


@pytest.fixture(scope="session")
def trained(tmp_path_factory, zygote):
    """Images, autoencoder.pth, mrhash.pth, codes and results, made by the three scripts."""
    folder = tmp_path_factory.mktemp("end_to_end")
    make_pairs(folder)
    done = run_script("autoencoder.py", *stage1_flags(folder), "--output_dir", folder / "ae",
                      cwd=ROOT / "myautoencoder")
    assert done.returncode == 0, done.stdout + done.stderr
    outputs = [done.stdout]
    train = ["train.py", *stage2_flags(folder / "ae" / "autoencoder.pth"),
             "--output_dir", folder / "mr"]
    test = ["test.py", "--hash_bit", 12, "--pretrain_path", folder / "mr" / "mrhash.pth",
            "--save_codes", folder / "codes.npz", "--picture", folder / "neighbours.png", *SMALL]
    for command in (train, test):
        code, output = zygote.run(folder / "output.txt", *command)
        assert code == 0, output
        outputs.append(output)
    return folder, outputs


@pytest.fixture(scope="session")
def hash_model(tmp_path_factory):
    """A mrhash.pth of random weights, 20 bits, which hashes images as they are."""
    return save_model(tmp_path_factory.mktemp("model") / "mrhash.pth")


@pytest.fixture(scope="session")
def searched(tmp_path_factory, hash_model):
    """Twelve images below images/, and archive/ of them with outputs. Nobody changes it."""
    folder = tmp_path_factory.mktemp("searched")
    report = add_to(folder / "archive", hash_model, pictures(folder / "images"), keep_outputs=True)
    assert report.added == 12
    return folder


@pytest.fixture
def server():
    """A tile service on this machine."""
    with serving() as tiles:
        yield tiles


@pytest.fixture
def impatient(monkeypatch):
    """Pauses of a moment before a service is asked again, and a short time for its answer."""
    monkeypatch.setattr(fetch, "PAUSES", {"refused": (0.01, 0.01), "busy": (0.01,) * 3,
                                          "failed": (0.01,) * 3})
    for module in (fetch, services):
        monkeypatch.setattr(module, "TIMEOUT", 1)
