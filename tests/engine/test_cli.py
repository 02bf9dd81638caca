"""Number types, presets, errors as sentences, and what flags become."""

import argparse
from pathlib import Path

import pytest
import torch

from engine import cli
from engine.cli import ArgumentParser, number, number_or, run
from hamming import CodeError
from utils import ROOT, InputError

# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(("kind", "text", "value"), [
    (int, "1", 1), (int, "1024", 1024), (float, "1", 1.0), (float, "1e3", 1000.0)])
def test_numbers_between_the_bounds_are_taken(kind, text, value):
    found = number(kind, 1, 1024)(text)
    assert found == value and type(found) is kind
    assert number_or("auto", kind, 1, 1024)(text) == value


@pytest.mark.parametrize(("kind", "most", "text", "message"), [
    (int, 1024, "0", "0 is not a whole number from 1 to 1024"),
    (int, 1024, "1025", "1025 is not a whole number from 1 to 1024"),
    (float, 0.999, "nan", "nan is not a number from 1 to 0.999"),
    (float, 1e9, "inf", r"inf is not a number from 1 to 1e\+09"),
    (int, cli.MOST, "-3", "-3 is not a whole number of at least 1"),
    (float, cli.MOST, "0.5", "0.5 is not a number of at least 1"),
])
def test_numbers_beyond_the_bounds_are_refused(kind, most, text, message):
    for convert in (number(kind, 1, most), number_or("none", kind, 1, most)):
        with pytest.raises(argparse.ArgumentTypeError, match=f"^{message}$"):
            convert(text)


def test_a_number_that_is_too_large_for_anything_is_not_said_to_be_too_small():
    message = r"^1{30} is not a whole number from 1 to 2\.1"
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        number(int, 1)("1" * 30)


def test_a_word_stands_for_none():
    assert number_or("auto", float, 1)("auto") is None
    with pytest.raises(ValueError):
        number_or("auto", float, 1)("none")


@pytest.mark.parametrize(("flags", "message"), [
    (["--count", "1.5"], "argument --count: invalid whole number value: '1.5'"),
    (["--count", "1" * 5000], "argument --count: invalid whole number value: '1111"),
    (["--rate", "fast"], "argument --rate: invalid number value: 'fast'"),
    (["--alpha", "x"], "argument --alpha: invalid number, or auto, value: 'x'"),
    (["--alpha", "0"], "argument --alpha: 0 is not a number of at least 1"),
    (["--cou", "1"], "unrecognized arguments: --cou 1"),
])
def test_a_bad_flag_is_one_line_that_says_where_help_is(capsys, flags, message):
    parser = ArgumentParser(prog="some.py")
    parser.add_argument("--count", type=number(int, 1))
    parser.add_argument("--rate", type=number(float, 0))
    parser.add_argument("--alpha", type=number_or("auto", float, 1))
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(flags)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and len(error.splitlines()) == 1
    assert error.startswith(f"some.py: error: {message}")
    assert error.endswith(" (see some.py --help)\n")


def test_a_value_may_begin_with_a_minus():
    parser = ArgumentParser(prog="x")
    parser.add_argument("--range1")
    parser.add_argument("--low", type=float)
    args = parser.parse_args(["--range1", "-25,0", "--low", "-.5"])
    assert (args.range1, args.low) == ("-25,0", -0.5)
    with pytest.raises(SystemExit):
        parser.parse_args(["--range1", "--low", "1"])


def test_help_shows_a_default_that_says_something():
    parser = ArgumentParser(prog="some.py")
    parser.add_argument("--one", default=3, help="a number")
    parser.add_argument("--two", action="store_true", help="a switch")
    parser.add_argument("--three", help="a word")
    text = parser.format_help()
    assert "a number (default: 3)" in text and text.count("default") == 1


# ---------------------------------------------------------------- presets


def test_what_a_preset_says_takes_the_place_of_defaults_and_a_flag_wins(monkeypatch):
    monkeypatch.setitem(cli.PRESETS, "best", {"some.py": {"rate": None, "epochs": 7}})

    def parse(*flags):
        parser = ArgumentParser(prog="some.py")
        parser.add_argument("--rate", type=number(float, 0), default=0.5)
        parser.add_argument("--epochs", type=number_or("none", int, 0), default=50)
        args = cli.parse_with_preset(parser, flags)
        return args.preset, args.rate, args.epochs

    assert parse() == (None, 0.5, 50)
    assert parse("--preset", "best") == ("best", None, 7)
    assert parse("--preset", "best", "--epochs", "none") == ("best", None, None)
    assert parse("--rate", "0.5", "--preset", "best") == ("best", 0.5, 7)  # the old default, too


# ---------------------------------------------------------------- errors


def failing(error):
    def main():
        raise error
    return main


def test_whatever_an_error_says_is_one_line_and_code_2(capsys):
    assert run(failing(InputError("two\nlines\tand  spaces"))) == 2
    assert capsys.readouterr().err == "error: two lines and spaces\n"
    assert run(failing(CodeError("codes of no kind."))) == 2
    assert capsys.readouterr().err == "error: codes of no kind.\n"


@pytest.mark.parametrize(("error", "text"), [
    (PermissionError(13, "Permission denied", "/a/b"),
     "error: /a/b: permission denied (ask for the right to, or name another place)"),
    (OSError(28, "No space left on device"), "error: no space left on device (free some space)"),
    (MemoryError(), "error: the memory of this machine is not enough: lower --batch_size"),
    (torch.OutOfMemoryError("CUDA out of memory"),
     "error: the device is out of memory: lower --batch_size"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate much"),
     "error: the memory of this machine is not enough: lower --batch_size")])
def test_what_the_system_refuses_is_one_line_with_advice(capsys, error, text):
    assert run(failing(error)) == 2
    said = capsys.readouterr().err
    assert said.startswith(text) and len(said.splitlines()) == 1


def test_what_is_a_mistake_of_ours_is_no_sentence():
    with pytest.raises(RuntimeError, match="shapes"):
        run(failing(RuntimeError("shapes do not fit")))
    assert run(lambda: None) == 0


@pytest.mark.parametrize("resumable", [False, True])
def test_an_interruption_is_told_with_the_way_to_go_on(capsys, resumable):
    assert run(failing(KeyboardInterrupt()), resumable=resumable) == 130
    said = capsys.readouterr().err
    assert said.startswith("interrupted") and ("--resume" in said) == resumable


# ---------------------------------------------------------------- compute


def setup(*flags):
    parser = ArgumentParser(prog="some.py")
    cli.add_run_flags(parser, batch_size=64)
    return cli.setup(parser.parse_args(["--device", "cpu", *flags]))


def test_the_way_to_go_on_is_not_to_overwrite(capsys, monkeypatch):
    def stopped():
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["train.py", "--overwrite"])
    run(stopped, resumable=True)
    assert "with --resume in place of --overwrite goes on" in capsys.readouterr().err


def test_flags_become_a_description_of_how_to_compute():
    assert setup() == cli.Compute(torch.device("cpu"), 64, 4, False, False, ROOT / "cache")
    given = setup("--batch_size", "3", "--workers", "2", "--amp", "--compile", "--cache_dir",
                  "/a/b")
    assert given == cli.Compute(torch.device("cpu"), 3, 2, True, True, Path("/a/b"))
    assert setup("--cache_dir", "none").cache_dir is None


@pytest.mark.parametrize("device", ["tpu9", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_one_sentence(device):
    with pytest.raises(InputError, match=f"--device {device} cannot be used here"):
        setup("--device", device)


def test_the_seed_is_set_where_there_is_one():
    parser = ArgumentParser(prog="some.py")
    cli.add_run_flags(parser, batch_size=64)
    cli.add_training_flags(parser, "runs/x")
    drawn = []
    for seed in ("5", "5", "6"):
        cli.setup(parser.parse_args(["--device", "cpu", "--seed", seed]))
        drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[1] != drawn[2]
