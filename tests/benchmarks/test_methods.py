"""The rows of the table: each changes a setting that the scripts know."""

from benchmarks.methods import GROUPS, PAIRED, TITLES, TRAINED, USUAL
from helpers import script_module
from myautoencoder import autoencoder
from train import parse_arguments

evaluation = script_module("test.py")


def settings(method):
    """What the two scripts make of the flags of a method."""
    first = autoencoder.parse_arguments([str(flag) for flag in method.first])
    second = parse_arguments(["--pretrained_dp_path", "x", *map(str, method.second)])
    return {name: value for name, value in {**vars(first), **{
        f"stage 2 {name}": value for name, value in vars(second).items()}}.items()
        if "preset" not in name}


def test_every_method_is_a_setting_that_the_scripts_know_and_differs_from_its_base():
    known = {name: settings(method) for name, method in TRAINED.items()}
    rows = {f"{known[name]}{method.sized}{method.hashing}" for name, method in TRAINED.items()}
    assert len(rows) == len(TRAINED)
    for name, method in TRAINED.items():
        if method.base is None:
            continue
        changed = {key for key, value in known[name].items() if known[method.base][key] != value}
        several = {"mrhash-published", "mrhash-published-frozen"}
        # One setting: eval_frequency only says when --select looks, and some flags go together.
        most = 99 if name in several else {"best-learning": 3, "best-flat": 2, "mrhash-flat": 2,
                                           "mrhash-select-test-map": 2}.get(name, 1)
        assert 1 <= len(changed) <= most, f"{name} changes {changed}"


APART = {"best-views", "best-tuned", "best-tuned-views"}  # these change no setting of the preset


def test_a_group_is_a_method_and_all_that_change_it():
    assert GROUPS["effects"][0] == "mrhash" and GROUPS["parts"][0] == "best"
    assert {*GROUPS["effects"], *GROUPS["parts"], *APART} == set(TRAINED)
    assert not set(GROUPS["effects"]) & set(GROUPS["parts"]) and not set(GROUPS) & set(TITLES)
    assert set(USUAL) <= set(TITLES)


def test_what_changes_the_second_source_needs_one_and_a_head_alone_has_no_size():
    for name, method in TRAINED.items():
        flags = map(str, method.first)
        assert (name in PAIRED) == bool({"--source2", "--encoder"} & set(flags))
        assert method.sized == ("best-tuned" in name or not name.startswith("best"))


def test_a_row_that_only_hashes_otherwise_takes_the_network_of_another_row():
    trained = [(method.first, method.second, method.sized) for method in TRAINED.values()
               if not method.hashing]
    for method in TRAINED.values():
        assert (method.first, method.second, method.sized) in trained
        evaluation.parse_arguments(["--pretrain_path", "x", *map(str, method.hashing)])
