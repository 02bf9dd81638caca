"""scripts/setup.sh: an interpreter that is given is taken as it is, if it can be."""

import os
import subprocess
import sys

from helpers import ROOT


def setup(python):
    return subprocess.run(
        ["bash", "-c", "source scripts/setup.sh; setup requirements.txt; echo $python"], cwd=ROOT,
        env={**os.environ, "MRHASH_PYTHON": python}, capture_output=True, text=True, timeout=120)


def test_a_given_interpreter_is_taken_as_it_is():
    done = setup(sys.executable)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{sys.executable}\n", "")


def test_one_without_the_packages_is_refused(tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    for python in (tmp_path / "python", tmp_path / "nowhere"):
        done = setup(str(python))
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr == (f"error: MRHASH_PYTHON={python} has no torch, torchvision and timm: "
                               "leave it out to have .venv made\n")
