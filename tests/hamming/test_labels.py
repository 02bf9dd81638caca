"""Labels of every kind."""

import numpy as np
import pytest
import torch

import hamming
from helpers_hamming import L, assert_sentence


def test_the_smallest_class_is_of_those_that_occur():
    assert hamming.smallest_class(np.array([5, 5, -1, -1, -1, 9, 9])) == 2
    assert hamming.smallest_class(torch.tensor([[1, 0, 1], [1, 0, 0], [1, 0, 1]])) == 2
    assert hamming.smallest_class(np.arange(140000) // 70000) == 70000


def test_labels_of_any_type_become_one():
    for labels in (np.array([3, -1], np.int8), torch.tensor([3, -1]), [3, -1]):
        checked = hamming.check_labels(labels, 2)
        assert checked.dtype == np.int64 and checked.tolist() == [3, -1]
    for labels in ([[0, 1], [1, 1]], np.array([[0.0, 1], [1, 1]])):
        checked = hamming.check_labels(labels, 2)
        assert checked.dtype == bool and checked.tolist() == [[False, True], [True, True]]


@pytest.mark.parametrize(("call", "message"), [
    (lambda: hamming.check_labels(L, 4, "my labels"), r"my labels have shape \(3,\)"),
    (lambda: hamming.check_labels(np.array(1), 1), r"shape \(\), expected \(1,\)"),
    (lambda: hamming.check_labels(L / 2, 3), "type float64, expected integers"),
    (lambda: hamming.check_labels(L == 1, 3), "type bool, expected integers"),
    (lambda: hamming.check_labels(L[:, None] + 1, 3), "not all 0 or 1"),
    (lambda: hamming.smallest_class(np.zeros((3, 2), int)), "labels name no class"),
    (lambda: hamming.smallest_class(np.zeros(0, int)), "labels name no class"),
    (lambda: hamming.check_labels([[1], [1, 2]], 2), "no plain array"),
    (lambda: hamming.check_labels(np.full(3, 2**64 - 1, np.uint64), 3), "go beyond 2.63"),
    (lambda: hamming.check_labels(np.zeros((3, 2), complex), 3), "type complex128, expected int"),
])
def test_bad_input_is_one_clear_sentence(call, message):
    assert_sentence(call, message)
