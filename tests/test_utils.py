"""The ground floor: words, paths, hashes, seeds, rates, devices."""

import platform
import sys

import numpy as np
import pytest
import torch

import utils
from utils import (
    InputError,
    autocast,
    collapse_warning,
    cosine_decay,
    epoch_seed,
    first_few,
    progress,
    resolve_path,
    seed_everything,
    set_rates,
    setup_device,
    sha256_of,
    step_decay,
    warn,
)

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


def test_the_first_rank_alone_warns(capsys, monkeypatch):
    warn("a word")
    assert capsys.readouterr() == ("", "warning: a word\n")
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert (utils.rank(), utils.world_size()) == (1, 2)
    warn("a word")
    assert capsys.readouterr() == ("", "")
    monkeypatch.delenv("MASTER_PORT")  # other programs set some of them, too
    assert (utils.rank(), utils.world_size()) == (0, 1)


def test_long_lists_are_cut_short():
    assert first_few(["a", "b", "c"]) == "a, b, c"
    assert first_few([1, 2, 3, 4]) == "1, 2, 3 and 1 more"
    assert first_few(range(2003)) == "0, 1, 2 and 2,000 more"


def test_equal_bits_are_told_with_advice():
    assert collapse_warning(3, 12).startswith("3 of 12 bits are the same for all images and tell")
    assert "all 12 bits are the same for all images, so that nothing" in collapse_warning(12, 12)
    assert collapse_warning(3, 12).endswith("use fewer --hash_bit or more --n_clusters")


def test_a_bar_shows_on_a_terminal_or_when_it_is_asked_for(capsys, monkeypatch):
    monkeypatch.delenv("MRHASH_PROGRESS", raising=False)
    assert list(progress(range(3), "walking")) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("MRHASH_PROGRESS", "1")
    assert list(progress(iter(range(3)), "walking", 3)) == [0, 1, 2]
    assert "walking" in capsys.readouterr().err


# ---------------------------------------------------------------- paths and hashes


def test_paths_are_below_the_repository_wherever_the_shell_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_path("runs/a") == utils.ROOT / "runs" / "a"
    assert resolve_path(tmp_path / "a") == tmp_path / "a"
    assert resolve_path("~/a") == tmp_path / "a"
    with pytest.raises(InputError, match="an empty path was given"):
        resolve_path("")
    with pytest.raises(InputError, match="home folder that is not there"):
        resolve_path("~nobodyx/run")


def test_hashes_tell_parts_apart():
    parts = [("ab", "c"), ("a", "bc"), ("abc",), (b"ab", "d"), (np.array([1, 2]),),
             (np.array([1, 3]),), (1, 2), ("\udce9",)]
    assert len({sha256_of(*part) for part in parts}) == len(parts)
    array = np.arange(12).reshape(3, 4)
    assert sha256_of(array.T) == sha256_of(np.ascontiguousarray(array.T)) != sha256_of(array)
    assert sha256_of("a") == sha256_of(b"a") and len(sha256_of()) == 64


# ---------------------------------------------------------------- seeds and rates


def test_a_seed_fixes_all_that_is_drawn():
    drawn = []
    for seed in (13, 13, 14, 2**32):
        seed_everything(seed)
        drawn.append((np.random.random(), torch.rand(1).item()))  # noqa: NPY002
    assert drawn[0] == drawn[1] and len(set(drawn)) == 3


def test_epochs_of_two_phases_have_seeds_of_their_own():
    """The head counts from its end, under a third word."""
    seeds = [epoch_seed(13, epoch) for epoch in range(60)]
    seeds += [epoch_seed(13, epoch, 1) for epoch in range(1, 61)]
    assert len(set(seeds)) == 120
    assert epoch_seed(13, 4) == epoch_seed(13, 4) != epoch_seed(14, 4)


def test_rates_fall_in_steps_or_along_a_cosine():
    assert [step_decay(8.0, epoch, 0.5, 2) for epoch in range(6)] == [8, 8, 4, 4, 2, 2]
    found = [cosine_decay(2.0, epoch, 4) for epoch in range(4)]
    assert found == pytest.approx([2, 1 + 0.5**0.5, 1, 1 - 0.5**0.5])


def test_each_group_gets_its_rate():
    weights = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    optimizer = torch.optim.Adam([{"params": weights[:1]}, {"params": weights[1:]}])
    set_rates(optimizer, 0.5, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.25]
    with pytest.raises(ValueError):
        set_rates(optimizer, 0.5)


# ---------------------------------------------------------------- devices


def test_autocast_rounds_products_to_bfloat16_when_asked():
    x = torch.ones(2, 2)
    for enabled, expected in ((True, torch.bfloat16), (False, torch.float32)):
        with autocast(torch.device("cpu"), enabled):
            assert (x @ x).dtype == expected


def test_auto_finds_a_device_that_works():
    device = setup_device("auto")
    assert torch.ones(2, device=device).sum().item() == 2
    assert setup_device("cpu") == torch.device("cpu")


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


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc",
                    reason="other C libraries do as they do")
def test_memory_that_tensors_free_is_kept_for_the_next_ones_unless_the_user_decides(
        zygote, tmp_path):
    (tmp_path / "freed.py").write_text(FREED)
    code, out = zygote.run(tmp_path / "out.txt", tmp_path / "freed.py")
    assert code == 0, out
    as_it_is, as_asked, kept = map(int, out.split())
    assert min(as_it_is, as_asked) > 20 and kept < min(as_it_is, as_asked) / 5
