"""Speed and memory, measured: each sub-command compares things side by side in one run, methods in turn.

    python bench.py features --data_name EuroSAT --device cuda     frozen features: a plain loop, ours
    python bench.py autoencoder                                    its epochs: as published, ours
    python bench.py train --data_name EuroSAT --amp                training: ours, its ceiling, the usual loader
    python bench.py ranking                                        the table of docs/ranking.md, some minutes
    python bench.py ranking --sizes 75000x5000x64 --repeat 5       one size
    python bench.py end2end --data_name EuroSAT                    the three scripts against the plain pieces
    python bench.py all --device cuda --data_name EuroSAT          all of these, for a machine with a GPU

Each prints a table of medians (least - most) and writes every single measurement to runs/bench/<sub-command>.json.
What is measured and how: benchmarks/, a module for each; the field's usual style that ours is compared with is in
benchmarks/plain.py and, for ranking, benchmarks/ranking.py.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys

from engine.cli import ArgumentParser, positive_int, run
from engine.files import check_writable
from utils import ROOT, InputError, resolve_path, setup_device


def make_parser() -> argparse.ArgumentParser:
    """The command line. Beside its flags, a benchmark gives `measure`, which takes them and yields lines of text."""
    # Here: a measurement in a process of its own imports this file, and its memory is to hold what it needs itself.
    from benchmarks.speed import autoencoder, end2end, features, ranking, training
    from benchmarks.speed.common import add_image_flags

    parser = ArgumentParser(prog="bench.py", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in (("features", features), ("autoencoder", autoencoder), ("train", training),
                         ("ranking", ranking), ("end2end", end2end)):
        command = commands.add_parser(name, help=module.__doc__.splitlines()[0])
        module.add_flags(command)
        command.set_defaults(measure=module.measure)
    every = commands.add_parser("all", help="all of these, one after the other, with their defaults")
    add_image_flags(every)
    every.add_argument("--device", default="auto", help="auto takes cuda, then mps, then cpu")
    every.add_argument("--repeat", type=positive_int, default=3, help="measurements of each method")
    return parser


def all_commands(args: argparse.Namespace) -> list[list[str]]:
    """The command lines, without python, that `all` stands for."""
    given = {name: value for name, value in vars(args).items() if name not in ("command", "device", "repeat")}
    images = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    device = setup_device(args.device)
    card, there = device.type == "cuda", ["--device", str(device)]
    amp = ["--amp"] if card else []  # of CPUs only some have bfloat16, and on the others it takes hours
    commands = [("features", [*images, *there, *amp]), ("autoencoder", [*there, *amp]), ("train", [*images, *there]),
                ("ranking", ["--device", "cuda"] if card else []),  # else the CPU, which it takes by itself
                ("end2end", [*images, *there])]
    if card:  # last, because compiling needs what may not be there
        commands += [(name, [*images, *there, "--amp", "--compile", "--output", f"runs/bench/{name}_compiled.json"])
                     for name in ("features", "train")]
    return [["-m", "benchmarks.speed", name, *flags, "--repeat", str(args.repeat)] for name, flags in commands]


def run_all(args: argparse.Namespace) -> None:
    """Run every benchmark, each in a process of its own. Raises InputError that names those that failed."""
    failed = []
    for command in all_commands(args):
        print(f"\n$ {shlex.join(['python', *command])}", flush=True)
        if subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode:
            failed.append(command[2])
    if failed:
        raise InputError(f"{', '.join(failed)} did not come to an end: what each of them said stands above")


def main() -> None:
    args = make_parser().parse_args()
    if args.command == "all":
        run_all(args)
        return
    from benchmarks.speed.common import machine

    measure = vars(args).pop("measure")
    args.output = resolve_path(args.output)
    check_writable(args.output.parent, "--output")  # said now, not after the work
    if args.output.is_dir():
        raise InputError(f"--output {args.output} is a folder, expected a file")
    for line in measure(args):
        print(line, flush=True)
    print(json.dumps(machine(args.device)))
    print(f"wrote {args.output}")


if __name__ == "__main__":
    sys.exit(run(main))
