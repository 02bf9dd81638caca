"""How tests call the scripts: what goes well, what is refused, what a run leaves."""

import json

import torch

from helpers import QUICK, call, stage2_flags

AUTOENCODER = "myautoencoder/autoencoder.py"
HEAD = ["--head_epochs", 4, "--head_width", 8, "--batch_norm", "frozen"]


def done(capsys, name, *arguments):
    """The script ends well; what it printed, and its warnings."""
    code, out, error = call(capsys, name, *arguments)
    assert code == 0, out + error
    return out, error


def refused(capsys, name, *arguments):
    """The one line that a script ends with, exit code 2; warnings may come before it."""
    code, _, error = call(capsys, name, *arguments)
    lines = [line for line in error.strip().splitlines() if not line.startswith("warning:")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in error, error
    return lines[0]


def stage1_of(trained):
    return trained[0] / "ae" / "autoencoder.pth"


def quick_flags(trained):
    """A train.py of a second: a small network, and features that are extracted once a session."""
    return [*stage2_flags(stage1_of(trained)), *QUICK, "--cache_dir", trained[0] / "cache"]


def load(path):
    return torch.load(path, weights_only=True)


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def epochs_of(folder):
    """Phase and epoch of each record of log.jsonl."""
    return [(record["phase"], record["epoch"]) for record in read_log(folder)]
