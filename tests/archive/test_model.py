"""Codes of an archive are those of test.py to the bit, whatever the images are."""

import shutil

import numpy as np
import pytest
from PIL import Image

from archive.adding import add_images
from archive.folder import Archive
from archive.images import ImagesOf
from archive.model import HashModel
from archive.queries import queries_of_files
from archive.reading import Reading
from data_loader import DataConfig, load_dataset
from datasets.eurosat import BANDS
from datasets.samples import FOLDER
from engine.checkpoint import load_checkpoint, save_checkpoint
from helpers import call
from image_helpers import complaint, picture, tree
from model_helpers import CPU, save_model
from raster_helpers import raster, saved
from tile_helpers import GRID

SIZES = [(20, 20), (37, 37), (64, 64), (36, 50), (33, 90), (90, 40), (41, 38), (200, 120), (8, 9)]


def mixed(folder):
    """Smaller and larger than the first resize, 37 pixels, and of odd shapes; colour and grey."""
    for number in range(36):
        height, width = SIZES[number % len(SIZES)]
        pixels = picture(number, height, width, 1 if number % 5 == 0 else 3)
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        place = folder / f"kind{number % 3}" / f"{number}.{('png', 'jpg', 'bmp')[number % 3]}"
        place.parent.mkdir(parents=True, exist_ok=True)
        image.save(place)


def geotiffs(folder):
    """13 bands of 16 bits."""
    files = {}
    for number in range(24):
        numbers = picture(number, 40, 40, 13).transpose(2, 0, 1).astype(np.uint16) * 14 + 100
        files[f"kind{number % 3}/{number}.tif"] = raster(
            numbers, names=BANDS, crs="EPSG:32632", transform=GRID)
    tree(folder, files)


def grey(folder):
    """16 bits, of which a few are used, in two kinds of files; larger than the first resize."""
    files = {}
    for number in range(24):
        values = picture(number, 48, 48, 1)[..., 0].astype(np.uint16) * 9 + 500
        files[f"kind{number % 3}/{number}.{'png' if number % 2 else 'tif'}"] = (
            saved(Image.fromarray(values), "PNG") if number % 2 else raster(values[None]))
    tree(folder, files)


def samples(folder):
    for kind in sorted(FOLDER.iterdir()):
        (folder / kind.name).mkdir(parents=True)
        for path in sorted(kind.iterdir())[::10]:
            shutil.copy(path, folder / kind.name)


CASES = {"mixed": (mixed, {}), "zip": (mixed, {}),
         "geotiffs": (geotiffs, {"bands1": "B12,B8A,4", "range1": "2%,98%"}),
         "grey": (grey, {"range1": "600,2600"}),
         "samples ms": (samples, {"data_name": "samples"}),
         "samples pan": (samples, {"data_name": "samples", "source1": "pan"})}


@pytest.fixture(scope="module", params=CASES)
def hashed(request, tmp_path_factory):
    """Images, a model that was trained on them, and the config of that."""
    folder = tmp_path_factory.mktemp("hashed")
    make, settings = CASES[request.param]
    images = folder / "images"
    make(images)
    if request.param == "zip":
        images = tree(folder / "images.zip", {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in images.rglob("*.*")})
    config = DataConfig(**{"data_name": "folder", "source1": str(images)} | settings)
    if config.data_name == "samples":
        split = {"train": FOLDER, "database": FOLDER, "test": FOLDER}
        names = [f"{path.parent.name}/{path.stem}" for path in sorted(images.rglob("*.jpg"))]
        kinds = sorted({name.split("/")[0] for name in names})
        for part in split:
            some = names[:5] if part == "test" else names[5:]
            lines = [f"{name}.jpg " + " ".join(str(int(name.split('/')[0] == kind))
                                               for kind in kinds) for name in some]
            (folder / f"{part}.txt").write_text("\n".join(lines) + "\n")
        config = DataConfig(**{**settings, "split_dir": str(folder)})
    return images, save_model(folder / "mrhash.pth", config, threshold=0.05), config


def codes_of_test_py(capsys, model, folder):
    code, output, errors = call(capsys, "test.py", "--pretrain_path", model, "--save_codes",
                                folder / "codes.npz", "--output_dir", folder, "--device", "cpu",
                                "--cache_dir", "none", "--R", 3)
    assert code == 0, output + errors
    stored = np.load(folder / "codes.npz")
    codes = {}
    for part in ("database", "query"):
        codes |= dict(zip(stored[f"{part}_paths"].tolist(), stored[f"{part}_codes"].tolist(),
                          strict=True))
    return codes


def test_codes_are_those_of_test_py(hashed, tmp_path, capsys):
    images, path, config = hashed
    model = HashModel(path, CPU)
    expected = codes_of_test_py(capsys, path, tmp_path)
    with Archive.create(tmp_path / "a", model) as archive:
        with archive.writing():
            report = add_images(archive, model, [ImagesOf(images, model.reading)])
        assert not report.failed and report.added == len(expected)
        assert expected.keys() == set(load_dataset(config).names)
        found = {item.name: archive.codes[number].tolist()
                 for number, item in archive.items.all()}
    assert found == expected
    bits = np.unpackbits(np.array(list(found.values()), np.uint8), axis=1)[:, :12]
    assert bits.mean(axis=0).min() > 0.2 and bits.mean(axis=0).max() < 0.8  # none is constant


def test_the_batch_of_an_image_does_not_matter(hashed):
    images, path, _ = hashed
    model = HashModel(path, CPU)
    source = ImagesOf(images, model.reading)
    pixels = [source.load(index)[1] for index in range(len(source))]
    whole = model.outputs(pixels)
    assert whole.dtype == np.float32 and whole.shape == (len(pixels), 12)
    order = np.random.default_rng(0).permutation(len(pixels))
    for size in (1, 7):
        for start in range(0, len(order), size):
            rows = order[start:start + size]
            some = model.outputs([pixels[row] for row in rows])
            np.testing.assert_allclose(some, whole[rows], atol=1e-5)
            assert model.codes_of(some).tolist() == model.codes_of(whole[rows]).tolist()


def test_a_query_is_read_as_the_images_were(hashed, tmp_path):
    """A file of its own has the code that it has in its folder."""
    images, path, _ = hashed
    model = HashModel(path, CPU)
    source = ImagesOf(images, model.reading)
    folder = images.with_suffix("")  # beside the zip that is made of it
    files = sorted(folder.rglob("*.*"))[:4]
    queries = queries_of_files(files, model, model.reading)
    for file, query in zip(files, queries, strict=True):
        index = source.names.index(file.relative_to(folder).with_suffix("").as_posix())
        item, pixels = source.load(index)
        assert query.name == file.name and query.corners == item.corners
        np.testing.assert_array_equal(query.pixels, pixels)
        assert query.code.tolist() == model.codes_of(model.outputs([pixels]))[0].tolist()


def test_the_model_says_how_images_were_read(hashed):
    _, path, config = hashed
    reading = HashModel(path, CPU).reading
    if config.data_name == "samples":
        view = config.source1 or "ms"
        assert reading == Reading(sensor=f"samples {view}")
    else:
        assert reading.bands == config.bands1 and reading.sensor is None
        assert (reading.value_range is None) == (config.range1 is None)
        assert "%" not in (reading.value_range or "")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    mixed(folder / "images")
    config = DataConfig("folder", source1=str(folder / "images"))
    return save_model(folder / "m.pth", config), folder


def test_queries_that_cannot_be_read(plain, tmp_path):
    path, folder = plain
    model = HashModel(path, CPU)
    good = next((folder / "images").rglob("*.png"))
    tree(tmp_path, {"cut.png": good.read_bytes()[:200], "text.jpg": b"no image"})
    complaint(lambda: queries_of_files([good, tmp_path / "cut.png", tmp_path / "text.jpg"], model,
                                       Reading()), "2 of 3 queries", "cut.png", "text.jpg")
    complaint(lambda: queries_of_files([folder / "images"], model, Reading()), "is no file")
    complaint(lambda: queries_of_files([tmp_path / "none.png"], model, Reading()), "is no file")


def test_outputs_that_are_not_finite(plain, tmp_path):
    checkpoint = load_checkpoint(plain[0], "mrhash-1")
    checkpoint["model"]["hash_network.backbone.model.conv1.0.weight"] *= 1e38
    save_checkpoint(tmp_path / "m.pth", checkpoint)
    model = HashModel(tmp_path / "m.pth", CPU)
    complaint(lambda: model.outputs([picture(0, 32, 32)]), "not finite", "--amp")


def test_another_model_has_another_digest(plain, tmp_path):
    first = HashModel(plain[0], CPU)
    other = HashModel(save_model(tmp_path / "m.pth", DataConfig(
        "folder", source1=str(plain[1] / "images")), hash_bit=13), CPU)
    assert (first.hash_bit, other.hash_bit) == (12, 13) and first.digest != other.digest
    with Archive.create(tmp_path / "a", first) as archive:
        archive.check_model(HashModel(tmp_path / "a" / "model.pth", CPU))  # its own copy
        complaint(lambda: archive.check_model(other), "is not the model")
