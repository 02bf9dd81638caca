"""Weights of files: whatever training scripts wrap around them, and never a part of them alone."""

import json

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from engine.backbones import pretrained_model
from utils import InputError

NAME = "squeezenet1_1"


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return torchvision.models.get_model(NAME).state_dict()


def before(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def read(path):
    return pretrained_model(NAME, str(path), 64)[0].state_dict()


def refused(path):
    with pytest.raises(InputError) as caught:
        pretrained_model(NAME, str(path), 64)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("wrap", [
    lambda state: {"epoch": 3, "state_dict": state}, lambda state: {"model": state},
    lambda state: {"net": state, "optimizer": {"state": {}}},
    lambda state: {"model_state_dict": before("module.", state)},
    lambda state: {"model": {"arch": "squeezenet"}, "state_dict": before("model.", state)},
    lambda state: {"state_dict": {"model": before("net.", state)}},
    lambda state: before("_orig_mod.module.model.", state),
    lambda state: before("module._orig_mod.", state)])
def test_what_training_scripts_wrap_around_weights_is_taken_off(state, wrap, tmp_path):
    torch.save(wrap(state), tmp_path / "weights.pth")
    found = read(tmp_path / "weights.pth")
    assert found and all(torch.equal(value, state[key]) for key, value in found.items())


@pytest.mark.parametrize("prefix", ["", "_orig_mod.module."])
def test_safetensors_are_read(state, prefix, tmp_path):
    save_file(before(prefix, state), tmp_path / "weights.safetensors", {"format": "pt"})
    found = read(tmp_path / "weights.safetensors")
    assert found and all(torch.equal(value, state[key]) for key, value in found.items())


def test_a_part_of_a_larger_model_is_not_guessed_but_its_names_are_told(state, tmp_path):
    path = tmp_path / "weights.pth"
    half = dict(list(state.items())[:10])
    for content, says in (
            (before("backbone.", state), "the file has backbone.features.0.weight"),
            ({**before("model.", state), "head.weight": torch.ones(2)}, "model.features.0.weight"),
            # Half of the names have the wrapper: not what DataParallel writes.
            (before("module.", half) | {k: v for k, v in state.items() if k not in half},
             "module.features.0.weight"),
            (before("module.", half), "40 tensors are missing")):
        torch.save(content, path)
        said = refused(path)
        assert f"does not hold weights of {NAME}" in said and says in said


def test_several_sets_of_weights_in_a_file_are_not_chosen_from(state, tmp_path):
    torch.save({"model": state, "state_dict": state}, tmp_path / "weights.pth")
    assert "several sets of weights, state_dict and model" in refused(tmp_path / "weights.pth")


def test_quantised_weights_are_not_taken_for_floats(state, tmp_path):
    eighths = {key: (value * 8).to(torch.int8) for key, value in state.items()}
    save_file(eighths, tmp_path / "weights.safetensors")
    assert "missing, unknown or of another shape or kind" in refused(
        tmp_path / "weights.safetensors")


def test_a_checkpoint_that_holds_itself_ends(tmp_path):
    content = {}
    content["model"] = content
    torch.save(content, tmp_path / "weights.pth")
    assert "holds no state dict" in refused(tmp_path / "weights.pth")


def header(entries, length=None):
    raw = json.dumps(entries).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw


@pytest.mark.parametrize("content", [
    b"", b"PK\x03\x04 a zip of torch.save", header({}, 2**63), header({}, 99_000_000),
    header({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 4]}}) + bytes(4),
    header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}) + bytes(12),
    header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})])
def test_a_hostile_safetensors_is_one_sentence(content, tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(content)
    assert "is not a whole .safetensors file (" in refused(tmp_path / "weights.safetensors")
