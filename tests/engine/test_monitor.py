"""The R of mAP@R, and the epochs after which it is measured."""

from argparse import Namespace

import numpy as np
import pytest

from engine.monitor import choose_R, is_due, monitored_R
from utils import InputError

LABELS = np.array([0] * 5 + [1] * 3 + [4] * 7)


def flags(select="last", R=None, preset=None):
    return Namespace(select=select, R=R, preset=preset)


def test_R_is_the_smallest_class_unless_it_is_given():
    assert choose_R(None, LABELS) == 3
    assert choose_R(15, LABELS) == 15
    several = np.eye(3, dtype=np.uint8)[[0, 0, 1, 1, 1, 2, 2]]
    assert choose_R(None, several) == 2
    with pytest.raises(InputError, match="--R 16 is larger than the database of 15 images"):
        choose_R(16, LABELS)


def test_without_labels_nothing_is_measured():
    assert monitored_R(flags(), None) is None
    assert monitored_R(flags(R=4), LABELS) == 4


def test_the_preset_measures_by_the_published_R_which_a_flag_and_few_images_limit():
    assert monitored_R(flags(preset="published"), LABELS, published=9) == 9
    assert monitored_R(flags(preset="published"), LABELS, published=1900) == 15
    assert monitored_R(flags(preset="published", R=4), LABELS, published=9) == 4
    assert monitored_R(flags(preset="published"), LABELS) == 3
    assert monitored_R(flags(preset="best"), LABELS, published=9) == 3


def test_choosing_by_the_labels_of_the_queries_is_warned_of_and_needs_them(capsys):
    assert monitored_R(flags("test_map"), LABELS) == 3
    assert "chooses the epoch by the labels of the test queries" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"--select test_map .* needs labels"):
        monitored_R(flags("test_map"), None)
    assert monitored_R(flags("loss"), LABELS) == 3
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("count", "frequency", "expected"), [
    (7, 3, [0, 3, 6]), (6, 3, [0, 3, 5]), (4, 1, [0, 1, 2, 3]), (4, 100, [0, 3]), (4, 0, []),
    (1, 5, [0])])
def test_every_so_many_epochs_and_the_last_are_measured(count, frequency, expected):
    assert [epoch for epoch in range(count) if is_due(epoch, count, frequency)] == expected
