"""An archive for other programs, read back: faiss, test.py --codes, GeoJSON."""

import json
from importlib.util import find_spec

import faiss
import numpy as np
import pytest
import rasterio
from rasterio.warp import transform

from archive.answers import all_features, answer_features, write_geojson
from archive.export import LEAST_IVF, faiss_index, live_codes, write_faiss, write_npz
from archive.folder import Archive
from archive.queries import answers_to, queries_of_names
from archive.reading import Reading
from archive.tiles import scenes_in
from hamming import evaluate
from helpers import call, read_results
from image_helpers import complaint
from item_helpers import DrawnModel, drawn_archive, square
from tile_helpers import GRID, drawn, written

GONE = np.arange(3, 1500, 7)
"""Numbers of removed items."""


@pytest.fixture(scope="module", params=[64, 12, 40])
def crowd(request, tmp_path_factory):
    """1,500 codes in clusters, as they are and without some; bits, not all of them whole bytes."""
    width = request.param
    rng = np.random.default_rng(width)
    centres = rng.random((30, width)) < 0.5
    bits = centres[rng.integers(0, 30, 1500)] ^ (rng.random((1500, width)) < 0.08)
    folder = tmp_path_factory.mktemp("crowd")
    with (drawn_archive(folder / "whole", bits) as whole,
          drawn_archive(folder / "part", bits, GONE) as part):
        yield whole, part, bits


def queries_from(bits):
    return np.random.default_rng(9).random((20, bits.shape[1])) < 0.5, bits[::100]


def read_back(archive, path, kind):
    write_faiss(archive, path, kind)
    return faiss.read_index_binary(str(path))


def distances_to(bits, query):
    return (bits != query).sum(axis=1)


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_an_index_read_back_finds_what_brute_force_finds(crowd, tmp_path, kind):
    """ivf where it looks into all of its lists. Removed items are gone, and others keep their
    numbers."""
    whole, part, bits = crowd
    for archive, left in ((whole, np.arange(1500)), (part, np.setdiff1d(np.arange(1500), GONE))):
        index = read_back(archive, tmp_path / "f.index", kind)
        assert index.ntotal == len(left) and index.d == -(-bits.shape[1] // 8) * 8
        if kind == "ivf":
            assert 1 <= index.nprobe < index.nlist
            index.nprobe = index.nlist
        for query in np.concatenate(queries_from(bits)):
            distances, numbers = index.search(np.packbits(query)[None], 25)
            expected = distances_to(bits[left], query)
            assert distances[0].tolist() == np.sort(expected)[:25].tolist()
            assert set(numbers[0]) <= set(left) and len(set(numbers[0])) == 25
            assert distances_to(bits[numbers[0]], query).tolist() == distances[0].tolist()


def test_multihash_read_back_finds_all_within_its_guarantee(crowd, tmp_path):
    """m parts, each of which may differ in one bit: what differs in fewer than 2 m bits has one."""
    whole, part, bits = crowd
    index = read_back(whole, tmp_path / "f.index", "multihash")
    parts = max(1, -(-bits.shape[1] // 8) * 8 // 16)
    assert index.ntotal == 1500 and (index.nhash, index.nflip) == (parts, 1)
    found_any = 0
    for query in np.concatenate(queries_from(bits)):
        found, numbers = index.search(np.packbits(query)[None], 1500)
        there = numbers[0] >= 0
        numbers, found = numbers[0][there], found[0][there]
        distances = distances_to(bits, query)
        assert len(set(numbers)) == len(numbers)
        assert distances[numbers].tolist() == found.tolist()
        assert set(np.flatnonzero(distances < 2 * parts)) <= set(numbers)
        found_any += (distances < 2 * parts).sum()
    assert found_any > 15
    complaint(lambda: write_faiss(part, tmp_path / "g.index", "multihash"), "were removed",
              "--kind flat or ivf")
    assert not (tmp_path / "g.index").exists()


def test_an_index_lives_as_long_as_it_is_used():
    """Its parts are owned once: a second owner would end the process."""
    codes = np.random.default_rng(0).integers(0, 256, (LEAST_IVF, 8), np.uint8)
    for kind in ("flat", "ivf"):
        for _ in range(3):
            index = faiss_index(codes, kind, np.arange(LEAST_IVF) * 5)
            assert index.search(codes[7:8], 1)[1].tolist() == [[35]]
            del index


def test_too_few_items(tmp_path):
    with drawn_archive(tmp_path / "a", np.zeros((0, 16), bool)) as archive:
        complaint(lambda: write_faiss(archive, tmp_path / "f", "flat"), "no items")
        complaint(lambda: write_npz(archive, tmp_path / "f.npz"), "no items")
    with drawn_archive(tmp_path / "b", np.ones((LEAST_IVF - 1, 16), bool)) as archive:
        complaint(lambda: write_faiss(archive, tmp_path / "f", "ivf"), "999 items", "--kind flat")
    with drawn_archive(tmp_path / "c", np.ones((4, 16), bool), [0, 1, 2, 3]) as archive:
        complaint(lambda: write_faiss(archive, tmp_path / "f", "flat"), "no items")
        write_geojson(all_features(archive.items.all()), tmp_path / "none.json")
        assert json.loads((tmp_path / "none.json").read_text())["features"] == []


# ------------------------------------------------------------ test.py --codes


def labelled(folder, kinds, width=12, removed=(2, 9)):
    rng = np.random.default_rng(5)
    bits = rng.random((len(kinds), width)) < 0.5
    return drawn_archive(folder, bits, removed, kinds=kinds), bits


def test_codes_go_through_test_py(tmp_path, capsys):
    kinds = [f"kind {number % 3}" for number in range(40)]
    archive, bits = labelled(tmp_path / "a", kinds)
    with archive:
        write_npz(archive, tmp_path / "codes.npz")
        left = np.setdiff1d(np.arange(40), [2, 9])
        assert live_codes(archive)[0].tolist() == left.tolist()
    stored = np.load(tmp_path / "codes.npz")
    assert stored["numbers"].tolist() == left.tolist() and stored["hash_bit"] == 12
    for part in ("database", "query"):
        assert stored[f"{part}_codes"].tolist() == np.packbits(bits[left], axis=1).tolist()
        assert stored[f"{part}_paths"].tolist() == [f"n{number}" for number in left]
        assert stored[f"{part}_labels"].tolist() == (left % 3).tolist()
    assert stored["class_names"].tolist() == ["kind 0", "kind 1", "kind 2"]
    code, _, errors = call(capsys, "test.py", "--codes", tmp_path / "codes.npz", "--output_dir",
                           tmp_path / "out", "--R", 5, "--device", "cpu")
    assert code == 0, errors
    codes, labels = np.packbits(bits[left], axis=1), left % 3
    expected = evaluate(codes, codes, labels, labels, 12, 5)["map"]
    assert read_results(tmp_path / "out")["map"] == pytest.approx(expected)


@pytest.mark.parametrize("kinds", [[None] * 12, ["a"] * 11 + [None]])
def test_without_a_class_for_each_there_are_no_labels(tmp_path, capsys, kinds):
    archive, _ = labelled(tmp_path / "a", kinds)
    with archive:
        write_npz(archive, tmp_path / "codes.npz")
    assert not {"query_labels", "database_labels"} & set(np.load(tmp_path / "codes.npz").files)
    code, _, errors = call(capsys, "test.py", "--codes", tmp_path / "codes.npz", "--device",
                           "cpu", "--output_dir", tmp_path / "out")
    assert code == 2 and "has no database_labels, query_labels" in errors


# ------------------------------------------------------------ GeoJSON


def test_footprints_of_a_scene_are_those_that_rasterio_gives(tmp_path):
    path = written(tmp_path / "s.tif", drawn(1, 3, 64, 96), crs="EPSG:32633", transform=GRID)
    scene, = scenes_in(path, Reading(), 32, 32)
    items = [scene.load(index)[0] for index in range(len(scene))]
    model = DrawnModel(tmp_path / "m.pth", 8)
    model.path.write_bytes(b"")
    with Archive.create(tmp_path / "a", model) as archive:
        with archive.writing():
            archive.append(items, np.zeros((6, 1), np.uint8))
            archive.remove([4])
        write_geojson(all_features(archive.items.all()), tmp_path / "f.json")
    content = json.loads((tmp_path / "f.json").read_text())
    assert content["type"] == "FeatureCollection"
    numbers = [feature["properties"]["number"] for feature in content["features"]]
    assert numbers == [0, 1, 2, 3, 5]
    for feature in content["features"]:
        row, column = divmod(feature["properties"]["number"], 3)
        ring, = feature["geometry"]["coordinates"]
        left, top, right, bottom = rasterio.windows.bounds(
            rasterio.windows.Window(column * 32, row * 32, 32, 32), GRID)
        left, right = min(left, right), max(left, right)
        south_west, south_east, north_east, north_west = zip(*transform(
            "EPSG:32633", "EPSG:4326", [left, right, right, left],
            [min(top, bottom)] * 2 + [max(top, bottom)] * 2), strict=True)
        start = ring.index(min(ring[:-1], key=lambda point: np.hypot(
            point[0] - south_west[0], point[1] - south_west[1])))
        turned = ring[start:-1] + ring[:start]
        np.testing.assert_allclose(turned, [south_west, south_east, north_east, north_west],
                                   atol=1e-9)
        assert feature["type"] == "Feature" and feature["geometry"]["type"] == "Polygon"
        assert feature["properties"]["name"] == f"s/{row * 32}_{column * 32}"
        assert feature["properties"]["crs"] == "EPSG:32633"


def test_answers_have_footprints_where_there_are_some(tmp_path):
    corners = [square(-17, 180, 0.5), None, square(48, 11)]
    kinds = ["a", 'quoted "ä"', None]
    with drawn_archive(tmp_path / "a", np.eye(3, 8, dtype=bool), corners=corners, kinds=kinds
                       ) as archive:
        answers = list(answers_to(archive, queries_of_names(archive, ["n0", "n2"]), 5))
        write_geojson(answer_features(answers), tmp_path / "f.json")
    features = json.loads((tmp_path / "f.json").read_bytes())["features"]
    found = [(feature["properties"]["query"], feature["properties"]["rank"],
              feature["properties"]["name"], feature["properties"]["distance"],
              feature["geometry"] and feature["geometry"]["type"]) for feature in features]
    assert found == [("n0", 1, "n1", 2, None), ("n0", 2, "n2", 2, "Polygon"),
                     ("n2", 1, "n0", 2, "MultiPolygon"), ("n2", 2, "n1", 2, None)]
    assert [feature["properties"]["class"] for feature in features] == [
        'quoted "ä"', None, "a", 'quoted "ä"']
    for feature in features:
        latitude, longitude = (feature["properties"][key] for key in ("latitude", "longitude"))
        expected = {"n0": (-17, -180), "n1": (None, None), "n2": (48, 11)}
        for one, other in zip((latitude, longitude), expected[feature["properties"]["name"]],
                              strict=True):
            assert one is other or one == pytest.approx(other)
    if find_spec("shapely"):
        from shapely.geometry import shape

        assert all(shape(feature["geometry"]).is_valid for feature in features
                   if feature["geometry"])
