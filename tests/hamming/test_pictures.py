"""The picture of a ranking."""

import io

import numpy as np
import pytest
from PIL import Image

from hamming.pictures import (
    FRAME,
    NEUTRAL,
    RIGHT,
    TILE,
    WRONG,
    neighbour_picture,
    some_neighbours,
)
from helpers_hamming import make_data

OF_A_FRAME = (TILE + 2 * FRAME) ** 2 - TILE**2  # pixels


def white(height, width, channels):
    return np.full((height, width, channels), 255, np.uint8)


@pytest.mark.parametrize("relevant", [np.array([[1, 0, 1], [0, 0, 1]], bool), None])
def test_right_neighbours_are_framed_green_and_wrong_ones_red(relevant):
    queries = [white(9, 9, 3), white(200, 100, 1)]
    neighbours = [[white(30, 20, 3), white(5, 5, 1), white(96, 96, 3)]] * 2
    file = io.BytesIO()
    neighbour_picture(queries, neighbours, relevant, ["first", "second"], file)
    picture = Image.open(file)
    assert picture.format == "PNG"
    pixels = np.asarray(picture)
    counts = [(pixels == colour).all(axis=2).sum() for colour in (RIGHT, WRONG)]
    grey = (pixels == NEUTRAL).all(axis=2).sum() // OF_A_FRAME  # the captions' edges are grey, too
    if relevant is None:
        assert counts == [0, 0] and grey == 8
    else:
        assert counts == [3 * OF_A_FRAME, 3 * OF_A_FRAME] and grey == 2


@pytest.mark.parametrize("multi", [False, True])
def test_neighbours_of_queries_spread_over_the_list(multi):
    data, distances, relevance = make_data(12, Q=11, N=30, multi=multi)
    content = {"query_codes": data[0], "database_codes": data[1], "query_labels": data[2],
               "database_labels": data[3], "hash_bit": 12}
    found = some_neighbours(content)
    assert found.queries.tolist() == [0, 2, 4, 6, 8, 10]
    order = np.argsort(distances, axis=1, kind="stable")[::2, :10]
    np.testing.assert_array_equal(found.nearest, order)
    np.testing.assert_array_equal(found.relevant, np.take_along_axis(relevance[::2], order, 1))
    text = ", ".join(str(distances[2, row]) for row in order[1])
    caption = found.captions([f"{n}.png" for n in range(11)])[1]
    assert caption == f"2.png   distances: {text} of 12 bits"


def test_few_items_without_labels_are_shown_as_they_are():
    data, *_ = make_data(12, Q=2, N=3)
    few = some_neighbours({"query_codes": data[0], "database_codes": data[1], "hash_bit": 12})
    assert few.nearest.shape == (2, 3) and few.relevant is None
