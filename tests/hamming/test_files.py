"""Files of codes: what is read, and one sentence for everything else."""

import io
import os
import re
import zipfile

import numpy as np
import pytest

import hamming
import hamming.files
from hamming import CodeError, read_codes
from helpers_hamming import make_data

BITS = 12


@pytest.fixture
def content():
    data, *_ = make_data(BITS, Q=3, N=39)
    return {"query_codes": data[0], "database_codes": data[1], "query_labels": data[2],
            "database_labels": data[3], "hash_bit": np.array(BITS)}


def save(folder, content, how):
    np.savez(folder / "codes.npz", **content)
    if how == "npz":
        return folder / "codes.npz"
    with zipfile.ZipFile(folder / "codes.npz") as archive:
        archive.extractall(folder / "codes")  # an .npz is a zip of .npy files
    return folder / "codes"


both_ways = pytest.mark.parametrize("how", ["npz", "folder"])


@both_ways
def test_codes_come_back_as_they_were_stored(tmp_path, content, how):
    names = np.array(["a", "b", "c"])
    stored = content | {"class_names": names, "paths": np.zeros(3)}
    found = read_codes(save(tmp_path, stored, how), None, None)
    assert found.keys() == {*content, "class_names"}
    for name, array in content.items():
        np.testing.assert_array_equal(found[name], array)
    assert type(found["hash_bit"]) is int
    assert isinstance(found["database_codes"].base, np.memmap) == (how == "folder")
    assert found["class_names"].tolist() == names.tolist()


@both_ways
@pytest.mark.parametrize(("change", "threshold"), [
    (lambda bits: 2.0 * bits - 1, None), (lambda bits: bits.astype(bool), None),
    (lambda bits: bits * 1.0, 0.5), (lambda bits: bits.astype(np.uint16), None)])
def test_one_value_a_bit_is_packed(tmp_path, content, change, threshold, how):
    theirs = {name: change(hamming.unpack_codes(array, BITS)) if name.endswith("codes") else array
              for name, array in content.items() if name != "hash_bit"}
    found = read_codes(save(tmp_path, theirs, how), None, threshold)
    assert found["hash_bit"] == BITS
    for name in ("database_codes", "query_codes"):
        np.testing.assert_array_equal(found[name], content[name])


@both_ways
def test_packed_codes_need_their_number_of_bits(tmp_path, content, how):
    del content["hash_bit"]
    path = save(tmp_path, content, how)
    with pytest.raises(CodeError, match="add --hash_bit"):
        read_codes(path, None, None)
    assert read_codes(path, BITS, None)["hash_bit"] == BITS


@both_ways
@pytest.mark.parametrize(("change", "message"), [
    ({"database_labels": np.arange(40)}, "database_labels have shape (40,), expected (39,)"),
    ({"database_labels": np.array(3)}, "database_labels have shape ()"),
    ({"query_labels": np.zeros(3)}, "query_labels of shape (3,) have type float64"),
    ({"query_labels": np.zeros((3, 2), [("a", int)])}, "query_labels of shape (3, 2) have type"),
    ({"hash_bit": np.array(12, "m8[s]")}, "expected one integer"),
    ({"hash_bit": np.array([12, 12])}, "expected one integer"),
    ({"hash_bit": np.array(20)}, "database_codes have shape (39, 2), expected (N, 3) for 20 bits"),
    ({"query_codes": np.zeros((3, 2), complex)}, "query_codes have shape (3, 2) and type complex"),
    ({"query_codes": np.full((3, 12), np.nan)}, "query_codes contain NaN"),
    ({"class_names": np.array("field")}, "expected one text for each class"),
    ({"class_names": np.arange(3)}, "expected one text for each class"),
    ({"database_codes": np.array([object()])}, "bject"),
    ({"database_codes": np.eye(39, 12)}, "hold nothing but 0 and 1"),
])
def test_stored_codes_that_cannot_be_are_one_sentence(tmp_path, content, change, message, how):
    with pytest.raises(CodeError, match=re.escape(message)) as caught:
        read_codes(save(tmp_path, content | change, how), None, None)
    assert "\n" not in str(caught.value)


@both_ways
def test_what_contradicts_the_file_is_said(tmp_path, content, how):
    path = save(tmp_path, content, how)
    with pytest.raises(CodeError, match=r"--hash_bit 16 contradicts .*, which holds 12 bits"):
        read_codes(path, 16, None)
    with pytest.raises(CodeError, match="--T is for codes of real numbers"):
        read_codes(path, None, 0.5)
    del content["query_labels"], content["database_codes"]
    (tmp_path / "less").mkdir()
    with pytest.raises(CodeError, match="has no database_codes, query_labels: expected "):
        read_codes(save(tmp_path / "less", content, how), None, None)


def test_places_without_codes_are_one_sentence(tmp_path):
    with pytest.raises(CodeError, match=r"no codes at .*: expected an \.npz"):
        read_codes(tmp_path / "nothing", None, None)
    np.save(tmp_path / "query_codes.npy", np.zeros((3, 2), np.uint8))
    with pytest.raises(CodeError, match="is one array: give the folder"):
        read_codes(tmp_path / "query_codes.npy", None, None)


def test_damaged_files_of_codes_are_one_sentence(tmp_path, content):
    path = tmp_path / "codes.npz"
    np.savez_compressed(path, **content)
    whole = path.read_bytes()
    for place in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1:])
        try:
            read_codes(path, None, None)  # not every byte matters
        except CodeError as error:
            assert "\n" not in str(error)
        path.write_bytes(whole[:place])
        with pytest.raises(CodeError, match=r"is not a whole \.npz") as caught:
            read_codes(path, None, None)
        assert "\n" not in str(caught.value)
    impossible = b"{'descr': '<f8', 'fortran_order': False, 'shape': (%d, 2)}" % 10**30
    for header in (b"", b"\x93NUMPY\x01\x00v\x00((((",
                   b"\x93NUMPY\x01\x00F\x00" + impossible.ljust(69) + b"\n"):
        (tmp_path / "database_codes.npy").write_bytes(header)
        with pytest.raises(CodeError, match=r"database_codes\.npy is not a whole \.npy") as caught:
            read_codes(tmp_path, None, None)
        assert "\n" not in str(caught.value)


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@both_ways
def test_objects_in_a_file_of_codes_are_not_unpickled(tmp_path, content, how):
    trap = np.array([Trap(tmp_path / "sprung")], dtype=object)
    with pytest.raises(CodeError, match=r"is not a whole \.np"):
        read_codes(save(tmp_path, content | {"query_labels": trap}, how), None, None)
    assert not (tmp_path / "sprung").exists()
    np.load(io.BytesIO(saved(trap)), allow_pickle=True)  # the trap works
    assert (tmp_path / "sprung").exists()


def saved(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def test_pipes_among_the_files_of_codes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "database_codes.npy")
    with pytest.raises(CodeError, match="has no database_codes"):
        read_codes(tmp_path, None, None)


def test_arrays_that_unpack_to_far_more_than_they_can_be_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(hamming.files, "LARGE", 10_000)
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, database_codes=np.zeros(10**6, np.uint8), other=np.ones(3))
    with pytest.raises(ValueError, match=r"database_codes\.npy unpacks from .* to 1,000,128 bytes"):
        hamming.load_npz(path, ["database_codes"])
    assert hamming.load_npz(path, ["other", "missing"]).keys() == {"other"}


def test_similarity_is_one_for_equal_codes_and_minus_one_for_opposite_ones():
    # Pencil: 4 bits; 3 of 4 bits alike give (3 - 1) / 4.
    query = hamming.pack_codes(np.array([[1, 1, 0, 0]], bool))
    database = hamming.pack_codes(np.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 1]] * 2000, bool))
    file = io.BytesIO()
    hamming.write_similarity(
        {"query_codes": query, "database_codes": database, "hash_bit": 4}, file)
    found = np.load(io.BytesIO(file.getvalue()), allow_pickle=False)
    assert found.dtype == np.float32 and found.shape == (6000, 1)
    np.testing.assert_array_equal(found[:, 0], [1, -1, 0.5] * 2000)
