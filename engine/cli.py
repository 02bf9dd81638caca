"""The command line: errors as sentences, number types, flags that scripts share, presets."""

from __future__ import annotations

import argparse
import io
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.distributed import all_ranks
from engine.files import at_end, sentence_of
from engine.stopping import StopSignals
from hamming import CodeError
from utils import (
    InputError,
    rank,
    resolve_path,
    seed_everything,
    setup_device,
    world_size,
)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where it says something: not None, not the False of a switch."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """argparse with defaults in the help and one clear line, exit code 2, for a bad flag."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", HelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As argparse, but a value that begins with a minus, as in --range1 -25,0, is no flag."""
        words: list[str] = []
        for word in map(str, sys.argv[1:] if args is None else args):
            if words and re.fullmatch("--[^=]+", words[-1]) and re.match(r"-\.?\d", word):
                words[-1] += f"={word}"
            else:
                words.append(word)
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> None:
        # Of several ranks, which all have the same flags, one says it.
        text = f"{self.prog}: error: {message} (see {self.prog} --help)\n"
        self.exit(2, text if rank() == 0 else None)


MOST = 2**31 - 1  # of any whole number on the command line; no image, epoch or unit is beyond it


def number(kind: type, least: float, most: float = MOST) -> Callable[[str], float]:
    """An argparse type: an int or a float from `least` to `most`.

    Args:
        kind: int or float.
    """
    def convert(text: str) -> float:
        value = kind(text)
        if not least <= value <= most:  # also false for nan
            what = "a whole number" if kind is int else "a number"
            open_ended = most == MOST and not value > most
            limits = f"of at least {least:g}" if open_ended else f"from {least:g} to {most:g}"
            raise argparse.ArgumentTypeError(f"{text} is not {what} {limits}")
        return value

    convert.__name__ = "whole number" if kind is int else "number"  # argparse: invalid ... value
    return convert


def number_or(word: str, kind: type, least: float, most: float = MOST
              ) -> Callable[[str], float | None]:
    """As `number`, but `word` is also allowed, and gives None."""
    convert = number(kind, least, most)

    def convert_or(text: str) -> float | None:
        return None if text == word else convert(text)

    convert_or.__name__ = f"{convert.__name__}, or {word},"
    return convert_or


NO_MEMORY = ("the memory of this machine is not enough: lower --batch_size or --image_size, or use "
             "fewer images")


def run(main: Callable[[], None], resumable: bool = False, shared: bool = False) -> int:
    """Call `main`; turn what the user can mend into one line on stderr and exit code 2.

    Args:
        main: the script.
        resumable: whether --resume goes on with what was stopped.
        shared: whether the ranks that torchrun starts share the work; others refuse torchrun.
    Returns:
        0; 2 for bad input, or where the system refused a file; or 128 and the number of the signal
        that stopped it, 130 for Ctrl-C.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text
    if world_size() == 1:
        StopSignals().install()
    try:
        if world_size() > 1 and not shared:
            raise InputError(f"{Path(sys.argv[0]).name} is one process: start it without torchrun")
        with all_ranks():
            main()
    except (InputError, CodeError) as error:
        text = " ".join(str(error).split())
    except OSError as error:
        text = sentence_of(error)
    except torch.OutOfMemoryError:
        text = "the device is out of memory: lower --batch_size or --image_size, or try --amp"
    except MemoryError:
        text = NO_MEMORY
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # of torch, for main memory
            raise
        text = NO_MEMORY
    except KeyboardInterrupt as error:
        instead = " in place of --overwrite" if "--overwrite" in sys.argv else ""
        advice = f"; the same command with --resume{instead} goes on from what was saved"
        more = advice if resumable else ""
        print(f"interrupted{more}", file=sys.stderr)
        return 128 + getattr(error, "number", signal.SIGINT)
    else:
        return 0
    finally:
        at_end.close()
    print(f"error: {text}" if not rank() else f"rank {rank()}: error: {text}", file=sys.stderr)
    return 2


# ---------------------------------------------------------------- presets

# Every setting of the published code, also where ours is the same, so that ours can move and these
# stay. R is not among them: the default, the smallest class in the database, is as published. Nor
# is the order of ties: the published one is the accident of a sort.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "published": {
        "autoencoder.py": {
            "feature_backbone": "resnet50", "feature_weights": "imagenet", "image_size": 224,
            "views": 1, "feature_norm": "none", "neighbours": 0, "averaging": "nearest",
            "averaging_rounds": 1, "encoder": "unisource", "init": "torch", "latent_dim": 64,
            "lambda1": 0.1, "lr": 0.001, "batch_size": 512, "epoch": 200, "select": "test_map",
            "data_hash": 0, "seed": 13},
        "train.py": {
            "model_type": "alexnet", "weights": "imagenet", "image_size": 224,
            "batch_norm": "adapt", "views": 1, "hash_bit": 32, "n_clusters": 16, "alpha": 1.0,
            "label_spread": 0.0, "pseudo_labels": "multi", "targets": "epoch",
            "autoencoder": "trained", "centres": "trained", "kl": "mean", "lambda0": 5.0,
            "head_width": 0, "head_epochs": 0, "lr": 0.001, "multi_lr": 0.01, "batch_size": 128,
            "max_epoch": 50, "eval_frequency": 5, "select": "last", "T": 0.0, "seed": 13},
        "test.py": {"batch_size": 128},
    },
    # Ours, not the paper's: docs/best.md says why each of them is there and what it is worth.
    "best": {
        "autoencoder.py": {"views": 8, "feature_norm": "unit", "neighbours": None,
                          "averaging": "mutual", "averaging_rounds": 2},
        "train.py": {
            "model_type": None, "weights": None,  # and image_size: those of stage 1
            "n_clusters": 32, "alpha": None, "label_spread": 0.2, "targets": "once",
            "autoencoder": "fixed", "centres": "fixed", "kl": "batchmean", "head_width": 512,
            "head_epochs": 50, "max_epoch": None},
        "test.py": {},
    },
}


def parse_with_preset(parser: argparse.ArgumentParser, arguments: Sequence[str] | None
                      ) -> argparse.Namespace:
    """Parse with --preset, whose values take the place of the defaults: a flag given wins."""
    parser.add_argument("--preset", choices=tuple(PRESETS),
                        help="published: every setting as in the authors' code "
                             "(docs/reproduction.md), for all three scripts; best: ours that rank "
                             "best (docs/best.md), for autoencoder.py and train.py. Flags beside "
                             "it win. Left out: the paper's method with our defaults")
    args = parser.parse_args(arguments)
    if args.preset:
        parser.set_defaults(**PRESETS[args.preset][parser.prog])
        args = parser.parse_args(arguments)
    return args


# ---------------------------------------------------------------- flags that scripts share


def add_run_flags(parser: argparse.ArgumentParser, batch_size: int, cached: bool = True) -> None:
    """Flags of how and where to compute, which `setup` turns into a `Compute`.

    Args:
        parser: of a script.
        batch_size: default.
        cached: whether the script keeps decoded images and features.
    """
    group = parser.add_argument_group("run")
    group.add_argument("--batch_size", type=number(int, 1), default=batch_size,
                       help="images (or feature rows) a step; lower it when memory runs out")
    group.add_argument("--workers", type=number(int, 1), default=4,
                       help="threads that decode images the first time; raise it on a machine of "
                            "many cores")
    group.add_argument("--device", default="auto", help="auto takes cuda, then mps, then cpu")
    group.add_argument("--amp", action="store_true",
                       help="bfloat16 where it is safe, slightly different numbers: about twice as "
                            "fast on GPUs and processors that have it (AVX512-BF16, AMX), many "
                            "times slower on other processors")
    group.add_argument("--compile", action="store_true",
                       help="torch.compile of the CNN: takes one or two minutes and, on a CPU, a "
                            "C++ compiler; pays from some ten thousand images on (docs/scale.md)")
    if cached:
        group.add_argument("--cache_dir", default="cache",
                           help="where decoded images and features are kept for the next run; none "
                                "keeps them in memory")


def add_training_flags(parser: argparse.ArgumentParser, output_dir: str) -> None:
    """Flags of a run that trains."""
    group = parser.add_argument_group("output")
    group.add_argument("--seed", type=number(int, 0), default=13,
                       help="fixes everything that is drawn; change it to see the spread of a "
                            "result")
    group.add_argument("--output_dir", help=f"where the result goes (default: {output_dir})")
    group.add_argument("--resume", action="store_true",
                       help="continue the run in --output_dir where it was last saved, to the same "
                            "result")
    group.add_argument("--overwrite", action="store_true",
                       help="replace a run that lies in --output_dir")


@dataclass(frozen=True)
class Compute:
    """How and where a script computes: what travels together through features and hashing.

    batch_size: images a step.
    workers: threads that decode images.
    amp: bfloat16 where it is safe.
    compile: torch.compile of the CNN.
    cache_dir: of decoded images and features; None keeps them in memory.
    """

    device: torch.device
    batch_size: int = 128
    workers: int = 4
    amp: bool = False
    compile: bool = False
    cache_dir: Path | None = None


def cache_folder(args: argparse.Namespace) -> Path | None:
    """Where --cache_dir says that decoded images and features are kept; None: nowhere."""
    folder = getattr(args, "cache_dir", "none")
    return None if folder == "none" else resolve_path(folder)


def setup(args: argparse.Namespace) -> Compute:
    """Seed all generators, take the device, and say how to compute.

    Raises:
        InputError: a device that is unknown or not there.
    """
    device = setup_device(args.device)
    if hasattr(args, "seed"):
        seed_everything(args.seed)
    return Compute(device, args.batch_size, args.workers, args.amp, args.compile,
                   cache_folder(args))
