"""Images of folders, zips and files: names, classes, places, and the same pixels read again."""

import shutil

import numpy as np
import pytest
from PIL import Image
from rasterio import Affine

from archive.images import SEPARATOR, ImagesOf, content_of
from archive.originals import Originals
from archive.reading import Reading
from archive.tiles import Scene, scenes_in
from data_loader import DataConfig, load_dataset
from datasets.eurosat import BANDS
from datasets.samples import FOLDER, decode_samples_ms, decode_samples_pan
from image_helpers import complaint, encoded, load, noise, scenes, tree
from raster_helpers import raster
from tile_helpers import GRID, drawn, written


def loaded(source):
    """Name -> (item, pixels)."""
    found = [source.load(index) for index in range(len(source))]
    assert [item.name for item, _ in found] == list(source.names)
    return {item.name: (item, pixels) for item, pixels in found}


def kinds(source):
    return {name: item.kind for name, (item, _) in loaded(source).items()}


def images(*names, size=8):
    return {name: encoded(noise(name, size, size, 3)) for name in names}


# ------------------------------------------------------------ names and classes


@pytest.mark.parametrize("place", ["EuroSAT.zip", "EuroSAT"])
def test_names_and_classes_of_eurosat_are_those_of_the_data_set(tmp_path, place):
    path = tree(tmp_path / place, scenes(prefix="2750/"))
    dataset = load(tmp_path)
    found = kinds(ImagesOf(path, Reading()))
    assert sorted(found) == dataset.names
    assert {name: dataset.class_names[label]
            for name, label in zip(dataset.names, dataset.labels, strict=True)} == found


ONE = {f"S2_{number}/S2_{number}_{band}.tif" for number in range(4) for band in ("B02", "B03")}
FOLDERS = {
    "classes": (["a/1.png", "a/2.png", "b/1.png", "b/2.png"], True),
    "one folder above": (["all/a/1.png", "all/a/2.png", "all/b/1.png", "all/b/2.png"], True),
    "split, then classes": (["train/a/1.png", "train/b/1.png", "test/a/2.png", "test/b/2.png"],
                            True),
    "classes, then split": (["a/train/1.png", "b/train/1.png", "a/test/2.png", "b/test/2.png"],
                            True),
    "split alone": (["train/1.png", "train/2.png", "test/3.png", "test/4.png"], True),
    "no folder": (["1.png", "2.png", "3.png", "4.png"], True),
    "one class": (["a/1.png", "a/2.png", "a/3.png", "a/4.png"], True),
    "classes inside classes": (["a/x/1.png", "a/y/1.png", "b/x/2.png", "b/y/2.png"], True),
    "some flat": (["1.png", "a/2.png", "b/3.png"], False),  # which `folder` refuses
}


@pytest.mark.parametrize(("names", "known"), FOLDERS.values(), ids=FOLDERS)
@pytest.mark.parametrize("place", ["x", "x.zip"])
def test_names_and_classes_of_a_folder_are_those_of_the_data_set(tmp_path, names, known, place):
    path = tree(tmp_path / place, images(*names))
    found = kinds(ImagesOf(path, Reading()))
    if not known:
        assert found == {"1": None, "a/2": "a", "b/3": "b"}
        return
    dataset = load_dataset(DataConfig("folder", source1=str(path)))
    assert sorted(found) == dataset.names
    if dataset.labels is None:
        assert set(found.values()) == {None}
    else:
        assert list(map(found.get, dataset.names)) == [dataset.class_names[label]
                                                       for label in dataset.labels]


@pytest.mark.parametrize("names", [
    [f"S2_{number}/S2_{number}_{{}}.tif" for number in range(4)],  # as BigEarthNet
    [f"S2_{number}/{{}}.tif" for number in range(4)],
    [f"{kind}/{number}_{{}}.tif" for kind in ("a", "b") for number in range(2)],
    [f"{number}_{{}}.tif" for number in range(4)]])
def test_one_file_a_band(tmp_path, names):
    """Names and classes of the data set, pixels of the three files, read again from them."""
    files = [name.format(band) for name in names for band in ("B02", "B03", "B04")]
    planes = {file: drawn(seed, 1, 12, 12)[0] for seed, file in enumerate(files)}
    tree(tmp_path / "x", {name: raster(plane[None], crs="EPSG:32633", transform=GRID)
                          for name, plane in planes.items()})
    source = ImagesOf(tmp_path / "x", Reading("B04,B03,B02"))
    dataset = load_dataset(DataConfig("folder", source1=str(tmp_path / "x"), bands1="4,3,2"))
    found = loaded(source)
    assert sorted(found) == dataset.names
    for row, name in enumerate(dataset.names):
        item, pixels = found[name]
        label = None if dataset.labels is None else dataset.class_names[dataset.labels[row]]
        assert item.kind == label and item.crs == "EPSG:32633"
        files = item.member.split(SEPARATOR)
        assert [file[-7:-4] for file in files] == ["B04", "B03", "B02"]
        np.testing.assert_array_equal(pixels, np.stack([planes[file] for file in files], axis=2))
        np.testing.assert_array_equal(pixels, dataset.source1.read(row))
        np.testing.assert_array_equal(Originals().read(item), pixels)
    complaint(lambda: ImagesOf(tmp_path / "x", Reading()), "--bands B04,B03,B02")
    complaint(lambda: ImagesOf(tmp_path / "x", Reading("B08")), "--bands B08", "no files of B08")


def test_a_single_file(tmp_path):
    path = tmp_path / "town" / "a.b.png"
    tree(tmp_path, images("town/a.b.png", "town/other.png"))
    (name, (item, pixels)), = loaded(ImagesOf(path, Reading())).items()
    assert (name, item.kind, item.member) == ("a.b", None, "a.b.png")
    assert item.path == path.parent and (item.height, item.width) == (8, 8)
    np.testing.assert_array_equal(pixels, noise("town/a.b.png", 8, 8, 3))
    np.testing.assert_array_equal(Originals().read(item), pixels)


def test_places_without_images(tmp_path):
    complaint(lambda: ImagesOf(tree(tmp_path / "x", {"a.txt": b""}), Reading()), "holds no image")
    complaint(lambda: ImagesOf(tree(tmp_path / "y.zip", {"a.txt": b""}), Reading()),
              "holds no image")
    (tmp_path / "z.csv").write_text("1,2")
    complaint(lambda: ImagesOf(tmp_path / "z.csv", Reading()), "no folder and no zip")
    complaint(lambda: ImagesOf(tree(tmp_path / "v", images("a.png", "a.bmp")), Reading()),
              "two images named a")


# ------------------------------------------------------------ places


@pytest.mark.parametrize("place", ["x", "x.zip"])
def test_georeferenced_tiles_have_their_place(tmp_path, place):
    """The place of each window of one scene, when it is cut into files."""
    numbers, grid = drawn(1, 3, 48, 48), Affine(0.3, 0, 500_000.1, 0, -0.3, 5_000_000.7)
    scene = Scene(written(tmp_path / "s.tif", numbers, crs="EPSG:32633", transform=grid),
                  Reading(), 16, 16)
    files, expected = {}, {}
    for index, (column, row, *_) in enumerate(scene.windows):
        part = numbers[:, row:row + 16, column:column + 16]
        files[f"{row}_{column}.tif"] = raster(
            part, crs="EPSG:32633", transform=grid * Affine.translation(column, row))
        expected[f"{row}_{column}"] = scene.load(index)
    files["plain.tif"] = raster(numbers)
    found = loaded(ImagesOf(tree(tmp_path / place, files), Reading()))
    plain = found.pop("plain")[0]
    assert plain.crs is None and plain.corners is None
    assert found.keys() == expected.keys()
    for name, (item, pixels) in found.items():
        of_scene, same = expected[name]
        np.testing.assert_array_equal(pixels, same)
        assert item.crs == of_scene.crs and item.window is None
        assert item.corners == pytest.approx(of_scene.corners, abs=1e-9)
        assert item.content == of_scene.content


# ------------------------------------------------------------ the same image again


def contents(path):
    return {name: item.content for name, (item, _) in loaded(ImagesOf(path, Reading())).items()}


def test_the_same_pixels_are_noticed_in_any_file(tmp_path):
    pixels = noise("a", 8, 8, 3)
    other = pixels.copy()
    other[7, 7, 2] ^= 1
    planes = pixels.transpose(2, 0, 1)
    files = {"a.png": encoded(pixels), "b.tif": raster(planes), "c.bmp": encoded(pixels, "BMP"),
             "d/e.tif": raster(planes, compress="lzw"), "f.png": encoded(other),
             "g.png": encoded(pixels.reshape(4, 16, 3))}
    for place in ("x", "y.zip"):
        found = contents(tree(tmp_path / place, files))
        assert all(len(content) == 16 for content in found.values())
        assert found["a"] == found["b"] == found["c"] == found["d/e"]
        assert len({found["a"], found["f"], found["g"]}) == 3
    assert contents(tmp_path / "x") == contents(tmp_path / "y.zip")


def test_equal_pixels_at_other_places_are_other_images(tmp_path):
    planes = noise("sea", 8, 8, 3).transpose(2, 0, 1)
    beside = GRID * Affine.translation(8, 0)
    found = contents(tree(tmp_path / "x", {
        "a.tif": raster(planes, crs="EPSG:32633", transform=GRID),
        "same.tif": raster(planes, crs="EPSG:32633", transform=GRID, compress="lzw"),
        "beside.tif": raster(planes, crs="EPSG:32633", transform=beside),
        "zone.tif": raster(planes, crs="EPSG:32634", transform=GRID),
        "nowhere.tif": raster(planes)}))
    assert found.pop("same") == found["a"]
    assert len(set(found.values())) == 4
    assert content_of(planes, None) == content_of(planes.copy(), None)


# ------------------------------------------------------------ read again


def sentinel(seed):
    return raster(drawn(seed, 13, 40, 40, "uint16", 1, 3000), names=BANDS)


def make_folder(path):
    tree(path, images("a/1.png", "b/2.png"))
    return ImagesOf(path, Reading())


def make_zip(path):
    return ImagesOf(tree(path.with_suffix(".zip"), images("a/1.png", "b/2.png")), Reading())


def make_bands(path):
    tree(path, {f"1_{band}.tif": raster(drawn(row, 1, 8, 8))
                for row, band in enumerate(("B02", "B03", "B04"))})
    return ImagesOf(path, Reading("B04,B03,B02", "10,200"))


def make_geotiffs(path):
    tree(path, {"a.tif": sentinel(1), "b.tif": sentinel(2)})
    return ImagesOf(path, Reading("B04,B03,B02", "2%,98%"))


def make_scene(path):
    (path.parent / "s.tif").write_bytes(sentinel(3))
    return Scene(path.parent / "s.tif", Reading("B12,B8A,B04", "2%,98%"), 16, 12)


def make_sensor(path, view="ms"):
    for kind in ("forest", "river"):
        (path / kind).mkdir(parents=True)
        for file in sorted((FOLDER / kind).iterdir())[:2]:
            shutil.copy(file, path / kind)
    return ImagesOf(path, Reading(sensor=f"samples {view}"))


KINDS = {"folder": make_folder, "zip": make_zip, "bands": make_bands, "geotiffs": make_geotiffs,
         "scene": make_scene, "sensor": make_sensor}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_originals_are_the_same_pixels(tmp_path, make):
    """Also one by one, and in another order; a file that is gone is named in one sentence."""
    found = loaded(make(tmp_path / "x"))
    originals = Originals()
    for item, pixels in [*found.values()][::-1]:
        np.testing.assert_array_equal(originals.read(item), pixels)
        np.testing.assert_array_equal(Originals().read(item), pixels)
    shutil.move(tmp_path, tmp_path.with_name(f"{tmp_path.name}-moved"))
    try:
        item = next(iter(found.values()))[0]
        complaint(lambda: Originals().read(item), f"{item.name} cannot be read again from "
                  f"{item.path}", "put it back")
    finally:
        shutil.move(tmp_path.with_name(f"{tmp_path.name}-moved"), tmp_path)


@pytest.mark.parametrize("place", ["x", "x.zip"])
def test_a_member_or_a_file_that_is_gone(tmp_path, place):
    path = tree(tmp_path / place, images("a/1.png", "b/2.png"))
    found = loaded(ImagesOf(path, Reading()))
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    tree(path, images("a/1.png"))
    originals = Originals()
    np.testing.assert_array_equal(originals.read(found["a/1"][0]), found["a/1"][1])
    complaint(lambda: originals.read(found["b/2"][0]), f"b/2 cannot be read again from {path}/b",
              "no such file" if path.is_file() else "No such file")


@pytest.mark.parametrize(("view", "decode"), [("ms", decode_samples_ms),
                                              ("pan", decode_samples_pan)])
def test_a_sensor_is_simulated_as_in_the_data_set(tmp_path, view, decode):
    for item, pixels in loaded(make_sensor(tmp_path / "x", view)).values():
        expected = decode((tmp_path / "x" / item.member).read_bytes())
        np.testing.assert_array_equal(pixels, expected)
        assert (item.height, item.width) == expected.shape[:2] and item.corners is None


def test_a_range_in_percent_is_kept_as_numbers(tmp_path):
    """So that one image is read as it was among all others."""
    tree(tmp_path / "x", {f"{number}.png": encoded(np.full((8, 8), 10 * number, np.uint8))
                          for number in range(1, 6)})
    found = loaded(ImagesOf(tmp_path / "x", Reading(None, "0%,100%")))
    assert {Reading.of_text(item.reading) for item, _ in found.values()} == {
        Reading(None, "10,50")}
    assert [int(pixels[0, 0, 0]) for _, pixels in found.values()] == [0, 64, 128, 191, 255]
    assert Image.open(tmp_path / "x" / "3.png").getpixel((0, 0)) == 30


def test_tiles_of_several_scenes_are_told_apart(tmp_path):
    tree(tmp_path / "x", {"n/a.tif": sentinel(4), "s/a.tif": sentinel(5)})
    originals = Originals()
    for reading in (Reading("4,3,2", "0,3000"), Reading("4,3,2", "0,2000")):  # added in two ways
        for scene in scenes_in(tmp_path / "x", reading, 20, 20):
            for item, pixels in loaded(scene).values():
                np.testing.assert_array_equal(originals.read(item), pixels)
