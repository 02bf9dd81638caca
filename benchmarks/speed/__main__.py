"""Speed and memory, measured: things are compared side by side in one run, methods in turn.

    python -m benchmarks.speed features --data_name EuroSAT      frozen features: plain loop, ours
    python -m benchmarks.speed autoencoder                       its epochs: a plain loop, ours
    python -m benchmarks.speed training --data_name EuroSAT      ours, ceiling, the usual loader
    python -m benchmarks.speed ranking                           docs/ranking.md, some minutes
    python -m benchmarks.speed ranking --sizes 75000x5000x64 --repeat 5
    python -m benchmarks.speed search --archive                  docs/search.md
    python -m benchmarks.speed all --device cuda                 all of these

Each prints a table of medians (least - most) and writes every single measurement to
runs/bench/<sub-command>.json. What is measured and how: a module for each; the field's usual style
that ours is compared with is in plain.py and, for ranking, in evaluations.py.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence

from engine.cli import ArgumentParser, number, run
from engine.files import check_writable
from utils import ROOT, InputError, resolve_path, setup_device


def make_parser() -> argparse.ArgumentParser:
    """The command line; beside its flags a benchmark gives `measure`, which yields its lines."""
    # Here: a measurement in a process of its own imports this file, and its memory is to hold what
    # it needs itself.
    from benchmarks.speed import autoencoder, features, ranking, search, training
    from benchmarks.speed.common import add_image_flags

    parser = ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for module in (features, autoencoder, training, ranking, search):
        command = commands.add_parser(module.__name__.rpartition(".")[2],
                                      help=module.__doc__.splitlines()[0])
        module.add_flags(command)
        command.set_defaults(measure=module.measure)
    every = commands.add_parser("all", help="all of these, with their defaults")
    add_image_flags(every)
    every.add_argument("--device", default="auto", help="auto takes cuda, then mps, then cpu")
    every.add_argument("--repeat", type=number(int, 1), default=3,
                       help="measurements of each method")
    return parser


def all_commands(args: argparse.Namespace) -> list[list[str]]:
    """The command lines, without python, that `all` stands for."""
    images = []
    for name, value in vars(args).items():
        if name not in ("command", "device", "repeat") and value is not None:
            images += [f"--{name}", str(value)]
    device = setup_device(args.device)
    card, there = device.type == "cuda", ["--device", str(device)]
    amp = ["--amp"] if card else []  # of CPUs only some have bfloat16; the others take hours
    commands = [("features", [*images, *there, *amp]), ("autoencoder", [*there, *amp]),
                ("training", [*images, *there]),
                # The CPU it measures in any case.
                ("ranking", ["--device", "cuda"] if card else []), ("search", [])]
    if card:  # last, because compiling needs what may not be there
        for name in ("features", "training"):
            commands.append((name, [*images, *there, "--amp", "--compile", "--output",
                                    f"runs/bench/{name}_compiled.json"]))
    return [["-m", "benchmarks.speed", name, *flags, "--repeat", str(args.repeat)]
            for name, flags in commands]


def run_all(args: argparse.Namespace) -> None:
    """Run every benchmark, each in a process of its own.

    Raises:
        InputError: some failed; it names them.
    """
    failed = []
    for command in all_commands(args):
        print(f"\n$ {shlex.join(['python', *command])}", flush=True)
        if subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode:
            failed.append(command[2])
    if failed:
        raise InputError(f"{', '.join(failed)} did not come to an end: what each of them said "
                         "stands above")


def main(arguments: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(arguments)
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
