"""What is nearest, held against plain numpy: ties, removed items, places, cosines."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archive.queries import RERANKED, Query, answers_to, queries_of_names, query_at
from image_helpers import complaint
from imagery.places import contains
from item_helpers import drawn_archive, square


def plain_nearest(bits, query, k, numbers):
    """Numbers, distances, and how many items share the last distance."""
    numbers = np.asarray(numbers, np.int64)
    distances = (bits[numbers] != query).sum(axis=1)
    order = np.lexsort((numbers, distances))[:k]
    ties = int((distances == distances[order[-1]]).sum()) if len(order) else 0
    return numbers[order].tolist(), distances[order].tolist(), ties


def one_answer(archive, query, *options, **named):
    answer, = answers_to(archive, [query], *options, **named)
    assert [item.name for item in answer.items] == [f"n{number}" for number in answer.numbers]
    return answer


def assert_remark(answer, last, shown, ties):
    if shown == ties:
        assert answer.remark() == ""
    else:
        assert answer.remark().startswith(f"{ties:,} items share the last distance, {last}, of "
                                          f"which the {shown:,} ")


def assert_answer(answer, numbers, distances, ties, among):
    assert answer.numbers.tolist() == numbers and answer.distances.tolist() == distances
    assert answer.among == among
    if numbers:
        assert answer.ties == ties
        assert_remark(answer, distances[-1], distances.count(distances[-1]), ties)
    else:
        assert answer.remark() == ""


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_any_archive_answers_as_plain_numpy(tmp_path_factory, data):
    """Few bits, so that most are ties; also where more than k items share a query's own code."""
    count, width = data.draw(st.integers(1, 40), "N"), data.draw(st.integers(1, 11), "K")
    top = data.draw(st.integers(1, 45), "top")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed"))
    bits = rng.random((count, width)) < rng.choice([0.02, 0.2, 0.5])
    removed = np.flatnonzero(rng.random(count) < rng.choice([0, 0.3, 0.9]))
    left = np.setdiff1d(np.arange(count), removed)
    with drawn_archive(tmp_path_factory.mktemp("a") / "b", bits, removed) as archive:
        foreign = rng.random(width) < 0.2
        answer = one_answer(archive, Query("a file", np.packbits(foreign)), top)
        assert_answer(answer, *plain_nearest(bits, foreign, top, left), len(left))
        for number in left[:5].tolist() + left[-1:].tolist():
            query, = queries_of_names(archive, [f"n{number}"])
            others = np.setdiff1d(left, [number])
            assert query.number == number and query.code.tolist() == np.packbits(
                bits[number]).tolist()
            expected = plain_nearest(bits, bits[number], top, others)
            assert_answer(one_answer(archive, query, top), *expected, len(others))


@pytest.mark.parametrize("number", [0, 4, 9])
def test_an_item_is_not_its_own_neighbour_among_equals(tmp_path, number):
    """Ten equal codes and one other: nine others are at distance 0, wherever the cut is."""
    bits = np.zeros((11, 8), bool)
    bits[10, :3] = True
    with drawn_archive(tmp_path / "a", bits) as archive:
        query, = queries_of_names(archive, [f"n{number}"])
        others = [other for other in range(10) if other != number]
        few = one_answer(archive, query, 3)
        assert few.numbers.tolist() == others[:3] and few.ties == 9
        assert few.remark() == ("9 items share the last distance, 0, of which the 3 that were "
                                "added first are shown")
        nine, ten = one_answer(archive, query, 9), one_answer(archive, query, 10)
        assert nine.numbers.tolist() == others and nine.remark() == "" and nine.ties == 9
        assert ten.numbers.tolist() == [*others, 10] and ten.distances[-1] == 3 and ten.ties == 1


def test_several_queries_at_once(tmp_path):
    bits = np.random.default_rng(0).random((30, 16)) < 0.5
    with drawn_archive(tmp_path / "a", bits) as archive:
        queries = queries_of_names(archive, ["n3", "n0", "n3"])
        found = list(answers_to(archive, queries, 4))
        assert [answer.query.name for answer in found] == ["n3", "n0", "n3"]
        for answer, number in zip(found, (3, 0, 3), strict=True):
            others = [other for other in range(30) if other != number]
            assert_answer(answer, *plain_nearest(bits, bits[number], 4, others), 29)


# ------------------------------------------------------------ places


def haversine_km(places, latitude, longitude):
    """From vectors: the angle between two points of a sphere of 6371.0088 km."""
    def vectors(degrees):
        phi, along = np.radians(np.asarray(degrees, float)).T
        return np.stack([np.cos(phi) * np.cos(along), np.cos(phi) * np.sin(along), np.sin(phi)], -1)
    there, here = vectors(places), vectors([(latitude, longitude)])[0]
    return 6371.0088 * np.arctan2(np.linalg.norm(np.cross(there, here), axis=1), there @ here)


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    """300 items in places, most of them around the date line and in the north; 20 in none."""
    rng = np.random.default_rng(1)
    places = np.stack([rng.uniform(-80, 89.5, 300), rng.uniform(160, 200, 300)], axis=1)
    places[:100, 1] = rng.uniform(-180, 180, 100)
    places[:, 1] = (places[:, 1] + 180) % 360 - 180
    corners = [square(*place) for place in places] + [None] * 20
    bits = rng.random((320, 10)) < 0.3
    removed = [5, 150, 310]
    folder = tmp_path_factory.mktemp("spread") / "a"
    with drawn_archive(folder, bits, removed, corners=corners) as archive:
        yield archive, bits, places, np.setdiff1d(np.arange(300), removed)


@pytest.mark.parametrize("km", [0.5, 100, 800, 3000, 9000, 21_000])
@pytest.mark.parametrize("around", [(0, 179.9), (0, -179.9), (89.9, 0), (88, 100), (-75, 20)])
def test_items_within_some_kilometres(spread, around, km):
    archive, bits, places, there = spread
    within = there[haversine_km(places[there], *around) <= km]
    query = Query("a file", np.packbits(bits[0]))
    answer = one_answer(archive, query, 7, (km, around))
    assert_answer(answer, *plain_nearest(bits, bits[0], 7, within), len(within))


def test_items_around_the_query_itself(spread):
    archive, bits, places, there = spread
    for number in (0, 120, 200):
        query, = queries_of_names(archive, [f"n{number}"])
        others = np.setdiff1d(there, [number])
        near = others[haversine_km(places[others], *places[number]) <= 2500]
        answer = one_answer(archive, query, 5, (2500, None))
        assert_answer(answer, *plain_nearest(bits, bits[number], 5, near), len(near))
        # Elsewhere the item is not among those that are compared.
        far = there[haversine_km(places[there], 0, 20) <= 5000]
        far = far[far != number]
        answer = one_answer(archive, query, 5, (5000, (0, 20)))
        assert_answer(answer, *plain_nearest(bits, bits[number], 5, far), len(far))
    nowhere, = queries_of_names(archive, ["n301"])
    complaint(lambda: list(answers_to(archive, [nowhere], 5, (10, None))), "n301 has no place",
              "--around")


@pytest.mark.parametrize("middle", [(48.0, 11.0), (-17.0, 180.0), (70.0, -180.0)])
def test_the_item_at_a_place_among_overlapping_tiles(tmp_path, middle):
    """Tiles of a tenth of a degree, every twentieth; the nearest centre, then the first added."""
    steps = np.arange(-3, 4) * 0.05
    centres = [(middle[0] + y, middle[1] + x) for y in steps for x in steps]
    corners = [square(*centre) for centre in centres]
    rng = np.random.default_rng(2)
    with drawn_archive(tmp_path / "a", rng.random((49, 8)) < 0.5, [24], corners=corners
                       ) as archive:
        places = [middle, *(rng.uniform(-0.15, 0.15, (40, 2)) + middle)]
        for latitude, longitude in places:
            longitude = (longitude + 180) % 360 - 180
            holding = [number for number in range(49) if number != 24
                       and contains(corners[number], latitude, longitude)]
            distances = haversine_km([centres[number] for number in holding], latitude, longitude)
            found = query_at(archive, latitude, longitude)
            least = [number for number, distance in zip(holding, distances, strict=True)
                     if distance <= distances.min() + 1e-9]
            assert len(holding) > 1 and found.number in least
            assert found.corners == corners[found.number] and found.name == f"n{found.number}"
        complaint(lambda: query_at(archive, middle[0] + 0.3, middle[1]), "no item of")


def test_a_turned_tile_holds_less_than_its_box(tmp_path):
    """A diamond, and a square in the corner of its box."""
    corners = [(0, 1, 1, 0, 0, -1, -1, 0), square(0.8, 0.8, 0.15)]
    with drawn_archive(tmp_path / "a", np.eye(2, 8, dtype=bool), corners=corners) as archive:
        assert query_at(archive, 0.45, 0.5).number == 0
        assert query_at(archive, 0.7, 0.7).number == 1
        complaint(lambda: query_at(archive, 0.6, 0.6), "no item of")


def test_a_place_on_the_date_line_is_one_place(tmp_path):
    corners = [(179, 1, 180, 1, 180, 0, 179, 0), (-180, 3, -179, 3, -179, 2, -180, 2)]
    with drawn_archive(tmp_path / "a", np.eye(2, 8, dtype=bool), corners=corners) as archive:
        for longitude in (-180, 180):
            assert query_at(archive, 0.5, longitude).number == 0
            assert query_at(archive, 2.5, longitude).number == 1


def test_nothing_lies_at_a_place_where_no_item_has_one(tmp_path):
    with drawn_archive(tmp_path / "a", np.eye(2, 8, dtype=bool)) as archive:
        complaint(lambda: query_at(archive, 1, 2), "none has a place", "GeoTIFFs with a CRS")


# ------------------------------------------------------------ cosines


@pytest.mark.parametrize(("number", "top"), [(None, 10), (7, 10), (7, 1), (None, RERANKED + 20)])
def test_the_nearest_hundred_are_ordered_by_cosine(tmp_path, number, top):
    rng = np.random.default_rng(3)
    outputs = rng.normal(size=(400, 12)).astype(np.float32)
    removed = np.arange(0, 400, 9)
    with drawn_archive(tmp_path / "a", outputs >= 0, removed, outputs=outputs) as archive:
        own = rng.normal(size=12).astype(np.float32)
        query = Query("a file", np.packbits(own >= 0), own)
        left = np.setdiff1d(np.arange(400), removed)
        if number is not None:
            query, = queries_of_names(archive, [f"n{number}"])
            own, left = outputs[number], left[left != number]
        near, distances, _ = plain_nearest(outputs >= 0, own >= 0, max(top, RERANKED), left)
        # As they are kept, float16.
        kept = outputs.astype(np.float16).astype(np.float64)
        own = own.astype(np.float64) if number is None else kept[number]
        cosines = kept[near] @ own / np.linalg.norm(kept[near], axis=1) / np.linalg.norm(own)
        order = np.argsort(-cosines, kind="stable")[:top]
        answer = one_answer(archive, query, top, rerank=True)
        assert answer.numbers.tolist() == np.array(near)[order].tolist()
        assert answer.distances.tolist() == np.array(distances)[order].tolist()
        np.testing.assert_allclose(answer.cosines, cosines[order], atol=1e-5)
        assert answer.remark() == ""  # it is not the distance that orders


def test_equal_cosines_are_ordered_by_distance_and_number(tmp_path):
    outputs = np.array([[1, 1, -1, 1], [1, 1, 1, 1], [2, 2, 2, 2], [4, 4, 4, 4]], np.float32)
    with drawn_archive(tmp_path / "a", outputs >= 0, outputs=outputs) as archive:
        query = Query("a file", np.packbits(outputs[1] >= 0), outputs[1])
        answer = one_answer(archive, query, 4, rerank=True)
        assert answer.numbers.tolist() == [1, 2, 3, 0]


def test_outputs_that_were_not_kept_order_nothing(tmp_path):
    with drawn_archive(tmp_path / "a", np.eye(2, 8, dtype=bool)) as archive:
        query, = queries_of_names(archive, ["n0"])
        assert query.output is None
        complaint(lambda: list(answers_to(archive, [query], 1, rerank=True)), "--keep_outputs")


# ------------------------------------------------------------ names


def test_a_name_that_is_not_there(tmp_path):
    with drawn_archive(tmp_path / "a", np.eye(3, 8, dtype=bool), [1]) as archive:
        complaint(lambda: queries_of_names(archive, ["n0", "2"]), "is called 2", "it has n2")
        complaint(lambda: queries_of_names(archive, ["n1"]), "is called n1")
