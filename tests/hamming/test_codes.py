"""Packing codes, and codes that others have packed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hamming
from helpers_hamming import PADDED, C, assert_sentence


@pytest.mark.parametrize("bits", [1, 7, 8, 12, 33, 64, 1000, 1024])
def test_pack_and_unpack(bits):
    values = np.random.default_rng(bits).standard_normal((9, bits)).astype(np.float32)
    values[0] = 0  # h >= 0 is a one
    values[1] = -0.0
    want = np.packbits(values >= 0, axis=1)
    assert want.shape == (9, -(-bits // 8))
    for same in (values, torch.from_numpy(values), values >= 0, (values >= 0).astype(np.uint8),
                 np.where(values >= 0, 1, -1), torch.from_numpy(values).bfloat16()):
        packed = hamming.pack_codes(same)
        assert packed.dtype == np.uint8
        np.testing.assert_array_equal(packed, want)
    np.testing.assert_array_equal(hamming.unpack_codes(want, bits), values >= 0)
    np.testing.assert_array_equal(
        hamming.pack_codes(values, threshold=0.5), np.packbits(values >= 0.5, axis=1))
    assert hamming.unpack_codes(want, bits).dtype == np.uint8
    assert hamming.pack_codes(values[:0]).shape == (0, want.shape[1])


@pytest.mark.parametrize("bits", [1, 2, 8, 9, 64])
def test_anyones_codes_become_packed_ones(bits):
    truth = np.random.default_rng(bits).integers(0, 2, (50, bits)).astype(np.uint8)
    truth[0], truth[1, :] = 1, 0
    packed = np.packbits(truth, axis=1)
    signs = 2.0 * truth - 1
    for codes in (packed, *([truth] if bits > 1 else [])):
        got, found = hamming.as_codes(codes, bits)
        np.testing.assert_array_equal(got, packed)
        assert found == bits
    for codes in (signs, signs.astype(np.int8), signs * 0.3, torch.from_numpy(signs), truth == 1,
                  truth.astype(np.uint16)):
        got, found = hamming.as_codes(codes)
        np.testing.assert_array_equal(got, packed)
        assert found == bits and got.dtype == np.uint8
        np.testing.assert_array_equal(hamming.as_codes(codes, bits)[0], packed)
    np.testing.assert_array_equal(hamming.as_codes(truth * 1.0, threshold=0.5)[0], packed)
    halves = truth * 0.5 + (np.arange(bits) == 0) * 0.5  # 0, 1/2 and 1: no bits, and all >= 0
    if bits > 1:
        assert (hamming.unpack_codes(hamming.as_codes(halves)[0], bits) == 1).all()
    ones = hamming.as_codes(np.ones((3, bits)))[0]
    np.testing.assert_array_equal(ones, np.repeat(packed[:1], 3, axis=0))


def test_pack_blocks_and_the_signed_trap():
    bits = np.random.default_rng(0).integers(0, 2, (70000, 3)).astype(np.uint8)
    np.testing.assert_array_equal(hamming.pack_codes(bits), np.packbits(bits, axis=1))
    assert (hamming.pack_codes(bits[:5].astype(np.int64)) == 0b11100000).all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 1024), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_unpack_inverts_pack(bits, n, seed):
    codes = np.random.default_rng(seed).integers(0, 2, (n, bits)).astype(bool)
    np.testing.assert_array_equal(hamming.unpack_codes(hamming.pack_codes(codes), bits), codes)


def test_constant_bits_are_those_that_all_codes_share():
    bits = np.array([[0, 1, 1, 0, 1, 0, 1, 1, 1], [0, 1, 0, 0, 1, 0, 1, 1, 0]], bool)
    codes = np.packbits(np.repeat(bits, [70_000, 1], axis=0), axis=1)  # the last one differs
    assert hamming.constant_bits(codes, 9) == 7
    assert hamming.constant_bits(codes[:70_000], 9) == 9


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(("call", "message"), [
    (lambda: hamming.pack_codes(np.zeros(4)), r"shape \(4,\), expected \(N, K\)"),
    (lambda: hamming.pack_codes(np.zeros((4, 0))), "K from 1 to 1024"),
    (lambda: hamming.pack_codes(np.zeros((4, 1025))), "K from 1 to 1024"),
    (lambda: hamming.pack_codes(np.zeros((4, 2), complex)), "type complex128, expected floats"),
    (lambda: hamming.pack_codes(np.array([["a"]])), "type <U1, expected floats"),
    (lambda: hamming.pack_codes(np.array([[0, np.nan]])), "NaN or infinity"),
    (lambda: hamming.pack_codes(torch.tensor([[0, -torch.inf]])), "NaN or infinity"),
    (lambda: hamming.pack_codes(np.array([[0, 2]], np.uint8)), "up to 2, expected bits"),
    (lambda: hamming.pack_codes(np.zeros((1, 1)), float("nan")), "threshold is NaN"),
    (lambda: hamming.unpack_codes(C.astype(int), 12), "type int64, expected packed uint8"),
    (lambda: hamming.unpack_codes(C, 17), r"expected \(N, 3\) for 17 bits"),
    (lambda: hamming.unpack_codes(C[0], 16), r"shape \(2,\), expected \(N, 2\)"),
    (lambda: hamming.unpack_codes(PADDED, 12), "ones beyond bit 12"),
    (lambda: hamming.unpack_codes(C, 0), "hash_bit is 0, expected at least 1"),
    (lambda: hamming.unpack_codes(C, 1025), "hash_bit is 1025, expected at most 1024"),
    (lambda: hamming.unpack_codes(C, 12.0), "hash_bit is 12.0, expected a whole number"),
    (lambda: hamming.as_codes(C), "say how many bits they have"),
    (lambda: hamming.as_codes(C, 17, what="my codes"), r"my codes have shape .*\(N, 3\)"),
    (lambda: hamming.as_codes(C + 2, 2), "up to 2, expected bits"),
    (lambda: hamming.as_codes(C * 1.0, 16), r"expected \(N, 16\) for 16 bits, or packed uint8"),
    (lambda: hamming.as_codes(np.eye(2)), "nothing but 0 and 1, which are both >= 0"),
    (lambda: hamming.as_codes(np.eye(2, dtype=int)), "nothing but 0 and 1"),
    (lambda: hamming.as_codes(np.where(np.arange(9000) < 8900, 1.0, 0.0)[:, None]),
     "nothing but 0 and 1"),
    (lambda: hamming.as_codes(np.where(np.arange(9000) < 100, 0.0, 1.0)[:, None]),
     "nothing but 0 and 1"),
    (lambda: hamming.as_codes(np.zeros((2, 250), np.uint8), 2000), "at most 1024"),
    (lambda: hamming.as_codes(C * 1.0, True), "hash_bit is True, expected a whole number"),
    (lambda: hamming.as_codes(C * np.nan, what="my codes"), "my codes contain NaN"),
    (lambda: hamming.as_codes(C[0]), r"expected \(N, bytes\) or \(N, K\)"),
])
def test_bad_input_is_one_clear_sentence(call, message):
    assert_sentence(call, message)
