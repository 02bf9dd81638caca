"""What several test files share: running the scripts, and small pairs of images for them."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--cache_dir", "none", "--device", "cpu"]
# A third of the time of resnet18, an eighth of its bytes; but a few epochs teach it nothing: its
# codes are all equal.
QUICK = ["--model_type", "shufflenet_v2_x0_5"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
COLOURS = {"field": (90, 140, 60), "sea": (30, 60, 120), "town": (150, 140, 140)}


def run_script(*command, cwd=ROOT):
    """A script in a process of its own, one thread; returns it with stdout and stderr as text."""
    return subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True,
                          text=True, env=ENVIRONMENT, timeout=300)


def script_module(name):
    """A script as a module. `import test` could find Python's own package, hence by file."""
    spec = importlib.util.spec_from_file_location(f"script_{Path(name).stem}", ROOT / name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def call(capsys, name, *arguments):
    """The same in this process, which saves importing torch: exit code, stdout, stderr."""
    from engine.cli import run
    module, before = script_module(name), sys.argv
    sys.argv = [name, *map(str, arguments)]
    try:
        try:
            code = run(module.main)
        except SystemExit as stop:  # argparse
            code = stop.code
    finally:
        sys.argv = before
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def make_pairs(folder, per_class=14, seed=0):
    """Three textures, a coarse and a fine view of each; class folders, differing extensions."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32]
    for kind, colour in COLOURS.items():
        for view in ("coarse", "fine"):
            (folder / view / kind).mkdir(parents=True)
        for number in range(per_class):
            frequency = 1.5 if kind == "town" else 0.5
            wave = 40 * np.sin((x + y * generator.uniform(-1, 1)) * frequency)
            noise = generator.normal(0, 12, (32, 32, 3))
            fine = np.array(colour) + wave[..., None] * (kind != "sea") + noise
            fine = np.clip(fine, 0, 255).astype(np.uint8)
            Image.fromarray(fine).save(folder / "fine" / kind / f"{number:02d}.png")
            Image.fromarray(fine[::2, ::2]).save(folder / "coarse" / kind / f"{number:02d}.bmp")


def stage1_flags(folder):
    """A quick autoencoder.py on the pairs in `folder`."""
    return ["--data_name", "pairs", "--source1", folder / "coarse", "--source2", folder / "fine",
            "--feature_backbone", "resnet18", "--feature_weights", "none", "--image_size", 32,
            "--epoch", 6, "--batch_size", 16, *SMALL]


def stage2_flags(stage1):
    """A quick train.py that begins with the checkpoint `stage1`."""
    return ["--pretrained_dp_path", stage1, "--hash_bit", 12, "--model_type", "resnet18",
            "--weights", "none", "--multi_lr", 1, "--image_size", 32, "--n_clusters", 4,
            "--label_spread", 0.5, "--max_epoch", 2, "--batch_size", 16, "--eval_frequency", 2,
            *SMALL]


def read_results(folder):
    """results.json without what differs from run to run."""
    results = json.loads((folder / "results.json").read_text())
    return {key: value for key, value in results.items() if key != "seconds"}


class Zygote:
    """Starts scripts by forking tests/zygote.py."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "zygote.py"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)})

    def ask(self, **order):
        """What the process answers to an order, a number."""
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, output, *command, prepare="", limit=None):
        """Start a script.

        Args:
            output: the file for what it prints.
            command: path of the script, and its arguments.
            prepare: Python lines that are run first.
            limit: on the bytes of a file.
        Returns:
            its process id.
        """
        return self.ask(command=[str(word) for word in command], output=str(output),
                        prepare=prepare, limit=limit)

    def wait(self, pid):
        """Its exit code, or minus the signal that killed it."""
        return self.ask(wait=pid)

    def run(self, output, *command, **options):
        """Start it and wait; exit code and output."""
        code = self.wait(self.start(output, *command, **options))
        return code, Path(output).read_text()

    def start_ranks(self, folder, number, *command, prepare=""):
        """A command on several ranks, as torchrun would; outputs in `folder`. Process ids."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        folder.mkdir(parents=True, exist_ok=True)
        pids = []
        for rank in range(number):
            place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "RANK": str(rank),
                     "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number)}
            known = f"import os\nos.environ.update({place})\n{prepare}"
            pids.append(self.start(folder / str(rank), *command, prepare=known))
        return pids

    def run_ranks(self, folder, number, *command, prepare=""):
        """Start them and wait; exit codes and outputs."""
        pids = self.start_ranks(folder, number, *command, prepare=prepare)
        codes = [self.wait(pid) for pid in pids]
        return codes, [(folder / str(rank)).read_text() for rank in range(number)]
