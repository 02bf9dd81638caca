"""Processes of their own: their memory, and what becomes of their errors."""

import mmap
import os

import pytest

from benchmarks.speed import common
from datasets.store import UnreadableImages
from utils import InputError


def test_the_peak_of_a_process_is_its_own_and_not_that_of_the_one_that_started_it():
    held = mmap.mmap(-1, 200_000_000)  # of the system: what malloc gives stays when it is freed
    for _ in range(50):
        held.write(bytes(4_000_000))
    mine = common.memory("now")
    assert common.in_a_process("x", "--sizes", common.memory, "peak") < mine - 100
    held.close()
    assert common.memory("now") < mine - 150 and common.memory("peak") >= mine - 1


def test_a_process_that_dies_and_an_error_that_cannot_travel_are_told():
    with pytest.raises(InputError, match=r"'x' ended without a result.*choose smaller --sizes"):
        common.in_a_process("x", "--sizes", os._exit, 3)

    def fail():
        raise UnreadableImages({0: "a.png (damaged)"}, 5)

    with pytest.raises(InputError, match=r"1 of 5 images cannot be read: a\.png") as raised:
        common._call(fail, ())
    assert type(raised.value) is InputError
