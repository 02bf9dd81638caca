"""Speed and memory, measured: each sub-command compares things side by side in one run, methods in turn.

    python bench.py features --data_name EuroSAT --device cuda     frozen features: a plain loop, ours
    python bench.py autoencoder                                    its epochs: as published, ours
    python bench.py ranking                                        the table of docs/ranking.md, some minutes
    python bench.py ranking --sizes 75000x5000x64 --repeat 5       one size

Each prints a table of medians (least - most) and writes every single measurement to runs/bench/<sub-command>.json.
What is measured and how: benchmarks/, a module for each; the field's usual style that ours is compared with is in
benchmarks/plain.py and, for ranking, benchmarks/ranking.py.
"""

from __future__ import annotations

import argparse
import json
import sys

from utils import ArgumentParser, InputError, check_writable, resolve_path, run


def make_parser() -> argparse.ArgumentParser:
    """The command line. Beside its flags, a benchmark gives `measure`, which takes them and yields lines of text."""
    # Here: a measurement in a process of its own imports this file, and its memory is to hold what it needs itself.
    from benchmarks import autoencoder, features, ranking

    parser = ArgumentParser(prog="bench.py", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in (("features", features), ("autoencoder", autoencoder), ("ranking", ranking)):
        command = commands.add_parser(name, help=module.__doc__.splitlines()[0])
        module.add_flags(command)
        command.set_defaults(measure=module.measure)
    return parser


def main() -> None:
    args = make_parser().parse_args()
    from benchmarks.common import machine

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
