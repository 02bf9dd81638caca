"""python -m benchmarks.speed: all benchmarks with their flags, and bad flags in one line."""

import pytest
import torch

from benchmarks.speed import __main__ as speed


def test_all_runs_every_benchmark_with_its_own_flags_and_names_those_that_failed(
        call_main, monkeypatch):
    commands = []

    class Done:
        def __init__(self, command):
            self.returncode = int(command[3] in ("training", "ranking"))

    def record(command, **options):
        commands.append(command[1:])
        return Done(command)

    monkeypatch.setattr("subprocess.run", record)
    code, out, error = call_main(speed.main, "all", "--device", "cpu", "--repeat", 2,
                                 "--data_name", "UCMerced", "--max_per_class", 5)
    assert code == 2
    assert error == ("error: training, ranking did not come to an end: what each of them said "
                     "stands above\n")
    # Each takes what it is given.
    parsed = [speed.make_parser().parse_args(command[2:]) for command in commands]
    names = [args.command for args in parsed]
    assert names == ["features", "autoencoder", "training", "ranking", "search"]
    for args, command in zip(parsed, commands, strict=True):
        assert command[:2] == ["-m", "benchmarks.speed"]
        assert (args.device, args.repeat) == ("cpu", 2)
        assert args.output == f"runs/bench/{args.command}.json"
        assert f"$ python {' '.join(command)}" in out
        if args.command in ("features", "training"):
            assert (args.data_name, args.max_per_class, args.data_dir) == ("UCMerced", 5, "data")


def test_all_tells_a_card_to_measure_bfloat16_and_compiling_too(monkeypatch):
    monkeypatch.setattr(speed, "setup_device", torch.device)
    parser = speed.make_parser()
    commands = speed.all_commands(parser.parse_args(["all", "--device", "cuda:0"]))
    parsed = [parser.parse_args(command[2:]) for command in commands]
    assert [args.command for args in parsed] == ["features", "autoencoder", "training", "ranking",
                                                 "search", "features", "training"]
    assert [getattr(args, "amp", None) for args in parsed] == [True, True, False, None, None, True,
                                                               True]
    compiled = [getattr(args, "compile", None) for args in parsed]
    assert compiled == [False, None, False, None, None, True, True]
    assert len({args.output for args in parsed}) == 7  # none replaces another


BAD = [
    (["ranking", "--sizes", "75000x64"], "DATABASExQUERIESxBITS"),
    (["ranking", "--folder", "{tmp}/none"], "not a folder"),
    (["ranking", "--device", "mps"], "invalid choice: 'mps'"),
    (["features", "--device", "nonsense"], "--device nonsense cannot be used here"),
    (["features", "--output", "{tmp}"], "is a folder, expected a file"),
    (["features", "--output", "{tmp}/file/f.json"], "--output"),
    (["features", "--repeat", "0"], "0 is not a whole number of at least 1"),
    (["features", "--image_size", "0"], "--image_size"),
    (["features", "--data_name", "pairs", "--source1", "{images}/fine", "--feature_weights",
      "{tmp}/file"], "is not a state-dict file"),
    (["training", "--data_name", "nothing"], "--data_name nothing is not known"),
    (["training", "--steps", "0"], "0 is not a whole number of at least 1"),
    (["autoencoder", "--images", "9"], "at least 10 of each"),
    (["autoencoder", "--data_name", "demo"], "unrecognized arguments"),
    (["all", "--steps", "3"], "unrecognized arguments"),
    (["all", "--device", "nonsense"], "--device nonsense cannot be used here"),
    (["end2end"], "invalid choice: 'end2end'"),
    ([], "required: command"),
]


@pytest.mark.parametrize(("flags", "message"), BAD,
                         ids=[" ".join(flags) or "none" for flags, _ in BAD])
def test_a_bad_flag_is_one_line_and_exit_code_2(tmp_path, images, call_main, flags, message):
    (tmp_path / "file").write_text("a file")
    if flags and "--output" not in flags and flags[0] not in ("all", "end2end"):
        flags = [*flags, "--output", "{tmp}/out.json"]
    places = {"tmp": tmp_path, "images": images["folder"]}
    code, out, error = call_main(speed.main, *(flag.format(**places) for flag in flags))
    assert code == 2
    assert message in error and len(error.strip().splitlines()) == 1
    assert "Traceback" not in error and "|" not in out
