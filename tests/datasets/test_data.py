"""Datasets from tiny real files of every format: names, pixels, labels, splits, and what errors say."""

import io
import shutil
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
import torch
from PIL import Image

from data_loader import DSRSID_CLASSES, DataConfig, choose_R, load_dataset
from datasets import demo as demo_data
from datasets.store import ImageStore
from utils import InputError

CLASSES = ("Forest", "Highway", "River")
SCENES = [f"{label}/{label}_{number}" for label in CLASSES for number in range(1, 13)]


# ------------------------------------------------------------------------ helpers


def noise(name, *shape):
    """Pixels that differ from name to name: any mix-up of scenes shows."""
    return np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, shape, dtype=np.uint8)


def encoded(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def tree(root, files):
    """Write {relative path: bytes} below a folder, or into a zip when `root` ends in .zip."""
    if root.suffix == ".zip":
        root.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(root, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return root
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def scenes(suffix=".jpg", prefix="", names=SCENES, kind="JPEG", size=8):
    return {f"{prefix}{name}{suffix}": encoded(noise(name + suffix, size, size, 3), kind) for name in names}


def hollow(names, suffix=".jpg"):
    """Files of one byte: for splits, which never look inside."""
    return {f"{name}{suffix}": b"x" for name in names}


def load(data_dir, **settings):
    return load_dataset(DataConfig(data_dir=str(data_dir), **settings))


def pairs(root, **settings):
    return load(root, data_name="pairs", source1=str(root / "one"), **settings)


def complaint(call, *parts):
    """`call` raises one InputError: one line that holds all `parts`."""
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and "0x" not in text
    for part in parts:
        assert part in text, f"{part!r} is not in: {text}"
    return text


def one_hot(column, columns=3):
    return " ".join(str(int(number == column)) for number in range(columns))


def lists(folder, **parts):
    """Write train.txt, database.txt, test.txt from lists of lines."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, lines in parts.items():
        (folder / f"{part}.txt").write_text("".join(line + "\n" for line in lines))
    return str(folder)


# River is column 0, Forest 1, Highway 2: another order than the alphabet's, as in the published lists.
PUBLISHED_COLUMN = {"River": 0, "Forest": 1, "Highway": 2}


def published(name, prefix="data/EuroSAT/images/"):
    return f"{prefix}{name}.jpg {one_hot(PUBLISHED_COLUMN[name.split('/')[0]])}"


def rows_named(dataset, part):
    return [dataset.names[row] for row in getattr(dataset, part)]


@pytest.fixture
def eurosat(tmp_path):
    tree(tmp_path / "EuroSAT.zip", scenes(prefix="2750/"))
    return tmp_path


# ------------------------------------------------------------------------ EuroSAT


def test_eurosat_is_the_same_from_zip_and_from_both_unpacked_folders(tmp_path):
    tree(tmp_path / "a" / "EuroSAT.zip", scenes(prefix="2750/"))
    tree(tmp_path / "b" / "2750", scenes())
    tree(tmp_path / "c" / "EuroSAT" / "2750", scenes())
    tree(tmp_path / "d" / "eurosat" / "2750", scenes())  # where torchvision unpacks it
    found = [load(tmp_path / place) for place in "abcd"]
    for dataset in found:
        assert dataset.names == sorted(SCENES)
        assert dataset.class_names == list(CLASSES)
        assert [CLASSES[label] for label in dataset.labels] == [name.split("/")[0] for name in dataset.names]
        assert dataset.fingerprint == found[0].fingerprint
        for part in ("train", "database", "query"):
            assert np.array_equal(getattr(dataset, part), getattr(found[0], part))
        for row, name in enumerate(dataset.names):
            expected = np.asarray(Image.open(io.BytesIO(scenes(names=[name])[f"{name}.jpg"])))
            assert np.array_equal(dataset.source1.read(row), expected)
            assert dataset.source1.size(row) == (8, 8)


def test_litter_of_macos_is_no_image(tmp_path):
    files = scenes(prefix="2750/")
    litter = {"__MACOSX/2750/Forest/._Forest_1.jpg": b"x", "2750/River/._River_1.jpg": b"x",
              "2750/.DS_Store": b"x", "2750/.cache/River/River_99.jpg": b"x"}
    tree(tmp_path / "a" / "EuroSAT.zip", files | litter)
    tree(tmp_path / "b" / "EuroSAT", files | litter)
    for place in "ab":
        assert load(tmp_path / place).names == sorted(SCENES)


def test_eurosat_vhr_is_paired_by_name_with_another_extension(eurosat):
    tree(eurosat / "EuroSAT_VHR", scenes(".png", kind="PNG", size=16))
    dataset = load(eurosat, source2="vhr")
    assert dataset.source_names == ("Sentinel-2 RGB", "vhr")
    for row, name in enumerate(dataset.names):
        assert np.array_equal(dataset.source2.read(row), noise(name + ".png", 16, 16, 3))


def test_second_source_of_eurosat_when_nothing_is_said(eurosat):
    assert load(eurosat).source2 is None
    bands = {f"{name}.tif": b"x" for name in SCENES}
    tree(eurosat / "EuroSAT_MS", bands)
    assert load(eurosat).source_names[1] == "swir"
    tree(eurosat / "EuroSAT_VHR", scenes())
    assert load(eurosat).source_names[1] == "vhr"
    assert load(eurosat, source2="SWIR").source_names[1] == "swir"
    alone = load(eurosat, source2="none")
    assert alone.source2 is None and len(alone.sources) == 1 and alone.source_names[1] == "none"


def geotiff(path, numbers):
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = numbers.shape
    with rasterio.open(path, "w", driver="GTiff", count=count, height=height, width=width, dtype="uint16",
                       crs="EPSG:32632", transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)) as file:
        file.write(numbers)


def test_swir_shows_b12_b8a_b04_of_a_13_band_geotiff(eurosat):
    generator = np.random.default_rng(0)
    numbers = {name: generator.integers(0, 6000, (13, 5, 7), dtype=np.uint16) for name in SCENES}
    for name, bands in numbers.items():
        geotiff(eurosat / "EuroSAT_MS" / f"{name}.tif", bands)
    dataset = load(eurosat, source2="swir")
    for row, name in enumerate(dataset.names):
        # In the files B8A is the 13th and last band, B12 the 12th, B04 the 4th.
        wanted = numbers[name][[11, 12, 3]].transpose(1, 2, 0) * (255 / 4000)
        shown = dataset.source2.read(row)
        assert shown.dtype == np.uint8 and dataset.source2.size(row) == shown.shape[:2] == (5, 7)
        assert np.abs(shown - np.minimum(wanted, 255)).max() <= 0.5 + 1e-4
        assert (shown[wanted > 255] == 255).all() and (wanted > 255).any()


# ------------------------------------------------------------------------ DSRSID


def dsrsid(path, images, pan, types):
    """As MATLAB 7.3 writes it: 512 bytes before the HDF5, and every array with its axes reversed.

    images: (N, 64, 64, 4) row, column, band (blue, green, red, near infrared). pan: (N, 256, 256).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        file["MUL_IMAGES"] = images.transpose(0, 3, 2, 1)
        file["PAN_IMAGES"] = pan.transpose(0, 2, 1)[:, None]
        file["LAND_COVER_TYPES"] = np.array(types, dtype=np.float64)[None]
    return path.parent


TYPES = [8, 4, 4, 8, 8, 4]


def test_dsrsid_pixels_arrive_at_their_row_and_column_as_rgb(tmp_path):
    images, pan = noise("mul", 6, 64, 64, 4), noise("pan", 6, 256, 256)
    images[2, 3, 50] = (10, 20, 30, 40)  # blue, green, red, near infrared at row 3, column 50
    pan[2, 7, 200] = 99
    dataset = load(dsrsid(tmp_path / "DSRSID.mat", images, pan, TYPES), data_name="dsrsid")
    # An HDF5 read by someone else, too: MATLAB's axes are h5py's, reversed.
    with h5py.File(tmp_path / "DSRSID.mat") as file:
        assert file["MUL_IMAGES"].shape == (6, 4, 64, 64) and file["MUL_IMAGES"][2, 2, 50, 3] == 30
    assert [DSRSID_CLASSES[label] for label in dataset.labels] == [
        "water" if kind == 8 else "high building" for kind in TYPES]
    assert dataset.class_names == list(DSRSID_CLASSES)
    assert len(set(dataset.names)) == 6 and not any(" " in name for name in dataset.names)
    assert dataset.source1.read(2)[3, 50].tolist() == [30, 20, 10]
    assert dataset.source2.read(2)[7, 200].tolist() == [99]
    for row in range(6):
        assert np.array_equal(dataset.source1.read(row), images[row][..., [2, 1, 0]])
        assert np.array_equal(dataset.source2.read(row)[..., 0], pan[row])
    assert dataset.source1.size(0) == (64, 64) and dataset.source2.size(0) == (256, 256)
    assert (dataset.source1.channels, dataset.source2.channels) == (3, 1)
    turned = load(tmp_path, data_name="dsrsid", source1="pan")
    assert turned.source_names == ("pan", "ms") and turned.source1.channels == 1
    assert load(tmp_path, data_name="dsrsid", source2="none").source2 is None


def test_dsrsid_rows_of_a_chosen_subset_keep_their_pixels_and_labels(tmp_path):
    images, pan = noise("mul", 8, 64, 64, 4), noise("pan", 8, 256, 256)
    dataset = load(dsrsid(tmp_path / "DSRSID.mat", images, pan, [1, 2, 1, 2, 1, 2, 1, 2]),
                   data_name="dsrsid", max_per_class=2)
    assert len(dataset.names) == 4
    for row, name in enumerate(dataset.names):
        folder, number = name.split("/")
        assert np.array_equal(dataset.source1.read(row), images[int(number)][..., [2, 1, 0]])
        assert folder == DSRSID_CLASSES[dataset.labels[row]] == DSRSID_CLASSES[int(number) % 2]


def test_dsrsid_is_opened_without_reading_the_images_and_split_as_published(tmp_path):
    count = 14_000  # 2.0 GB of images, none of which is stored: HDF5 fills in zeros when asked
    with h5py.File(tmp_path / "DSRSID.mat", "w") as file:
        file.create_dataset("MUL_IMAGES", (count, 4, 64, 64), np.uint8, chunks=(1, 4, 64, 64))
        file.create_dataset("PAN_IMAGES", (count, 1, 256, 256), np.uint8, chunks=(1, 1, 256, 256))
        file["LAND_COVER_TYPES"] = (np.arange(count)[None] % 2 * 3 + 2).astype(np.uint8)
    tracemalloc.start()
    dataset = load(tmp_path, data_name="dsrsid")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert dataset.source2.read(count - 1).shape == (256, 256, 1)
    assert peak < 40e6
    assert np.bincount(dataset.labels[dataset.query]).tolist() == [0, 625, 0, 0, 625]


def test_dsrsid_from_extracted_folders_with_list_files(tmp_path):
    names = [f"{number:05d}" for number in range(6)]
    tree(tmp_path / "DSRSID" / "MUL", scenes(".png", names=names, kind="PNG"))
    tree(tmp_path / "DSRSID" / "PAN", scenes(".tif", names=names, kind="TIFF", size=32))
    lists(tmp_path / "DSRSID", train=[f"D:\\x\\MUL\\{name}.tif {one_hot(int(name) % 2, 8)}"
                                      for name in names[4:1:-1]],
          test=[f"images/MUL/{name}.tif {one_hot(int(name) % 2, 8)}" for name in names[:2]])
    dataset = load(tmp_path, data_name="DSRSID")
    assert rows_named(dataset, "train") == rows_named(dataset, "database") == names[4:1:-1]
    assert rows_named(dataset, "query") == names[:2] and len(dataset.names) == 5
    assert dataset.labels.tolist() == [0, 1, 0, 1, 0] and len(dataset.class_names) == 8
    for row, name in enumerate(dataset.names):
        assert np.array_equal(dataset.source1.read(row), noise(name + ".png", 8, 8, 3))
        assert np.array_equal(dataset.source2.read(row), noise(name + ".tif", 32, 32, 3))


# ------------------------------------------------------------------------ UC Merced, pairs, demo


def ucmerced(root, shape=(256, 256)):
    names = [f"UCMerced_LandUse/Images/{kind}/{kind}{number:02d}.tif" for kind in ("beach", "river")
             for number in range(2)]
    return tree(root / "UCMerced_LandUse.zip",
                {name: encoded(noise(Path(name).stem, *shape, 3), "TIFF") for name in names}).parent


def test_ucmerced_pairs_are_walds_averages_and_luminance(tmp_path):
    dataset = load(ucmerced(tmp_path), data_name="UCMerced")
    assert dataset.names == ["beach/beach00", "beach/beach01", "river/river00", "river/river01"]
    assert "simulated" in dataset.note and "simulated" in dataset.describe()
    for row, name in enumerate(dataset.names):
        pixels = noise(name.split("/")[1], 256, 256, 3).astype(float)
        mean = sum(pixels[y::4, x::4] for y in range(4) for x in range(4)) / 16
        luminance = pixels @ [0.299, 0.587, 0.114]
        ms, pan = dataset.source1.read(row), dataset.source2.read(row)
        assert ms.dtype == pan.dtype == np.uint8 and ms.shape == (64, 64, 3) and pan.shape == (256, 256, 1)
        assert np.array_equal(ms, np.floor(mean + 0.5))
        assert np.abs(pan[..., 0] - luminance).max() <= 0.51
        assert dataset.source1.size(row) == (64, 64) and dataset.source2.size(row) == (256, 256)


def test_ucmerced_image_of_250_by_256_is_brought_to_256_first(tmp_path):
    dataset = load(ucmerced(tmp_path, (250, 256)), data_name="ucmerced")
    image = Image.fromarray(noise("beach00", 250, 256, 3)).resize((256, 256), Image.Resampling.BICUBIC)
    pixels = np.asarray(image).astype(float)
    mean = sum(pixels[y::4, x::4] for y in range(4) for x in range(4)) / 16
    assert np.array_equal(dataset.source1.read(0), np.floor(mean + 0.5))
    assert np.abs(dataset.source2.read(0)[..., 0] - pixels @ [0.299, 0.587, 0.114]).max() <= 0.51


def test_ucmerced_sources_can_be_exchanged(tmp_path):
    dataset = load(ucmerced(tmp_path), data_name="UCMerced", source1="PAN")
    assert dataset.source_names == ("pan", "ms")
    assert dataset.source1.read(0).shape == (256, 256, 1) and dataset.source2.read(0).shape == (64, 64, 3)
    complaint(lambda: load(tmp_path, data_name="UCMerced", source1="pan", source2="pan"), "--source2", "none")


def test_pairs_match_by_name_whatever_the_extension(tmp_path):
    tree(tmp_path / "one", scenes(".png", kind="PNG"))
    tree(tmp_path / "two.zip", scenes(".bmp", kind="BMP", size=12))  # a zip is as good as a folder
    dataset = pairs(tmp_path, source2=str(tmp_path / "two.zip"))
    assert dataset.names == sorted(SCENES) and dataset.class_names == list(CLASSES)
    assert dataset.source_names == ("one", "two.zip")
    for row, name in enumerate(dataset.names):
        assert np.array_equal(dataset.source1.read(row), noise(name + ".png", 8, 8, 3))
        assert np.array_equal(dataset.source2.read(row), noise(name + ".bmp", 12, 12, 3))
    assert pairs(tmp_path).source2 is None and pairs(tmp_path, source2="none").source2 is None


def test_flat_pairs_have_no_labels_and_still_a_split(tmp_path):
    tree(tmp_path / "one", hollow(f"scene {number}.v2" for number in range(50)))
    dataset = pairs(tmp_path)
    assert dataset.labels is None and dataset.class_names == [] and "no labels" in dataset.describe()
    assert dataset.names[0] == "scene 0.v2"
    assert len(dataset.query) == 5 and len(dataset.database) == 45
    assert len(pairs(tmp_path, max_per_class=30).names) == 30


@pytest.fixture
def few_scenes(monkeypatch):
    monkeypatch.setattr(demo_data, "SCENES_PER_CLASS", 2)


def demo_pixels(dataset):
    return [source.read(row) for source in dataset.sources for row in range(len(dataset.names))]


def test_demo_is_drawn_once(tmp_path, few_scenes, monkeypatch):
    first = demo_pixels(load(tmp_path, data_name="demo"))
    monkeypatch.setattr(demo_data, "_scene", lambda *_: pytest.fail("drawn again"))
    again = load(tmp_path, data_name="demo")
    assert all(map(np.array_equal, first, demo_pixels(again)))
    assert again.note == "generated images" and len(again.class_names) == 6
    assert again.source1.size(0) == (32, 32) and again.source2.size(0) == (128, 128)
    assert load(tmp_path, data_name="demo", source2="none").source2 is None


def test_demo_scenes_depend_on_the_seed_alone(tmp_path, few_scenes):
    first, same, other = (demo_pixels(load(tmp_path / place, data_name="demo", split_seed=seed))
                          for place, seed in (("a", 13), ("b", 13), ("a", 14)))
    assert all(map(np.array_equal, first, same))
    assert not any(map(np.array_equal, first, other))


def test_demo_coarse_view_is_the_fine_one_seen_from_afar(tmp_path, few_scenes):
    dataset = load(tmp_path, data_name="demo")
    for row in range(len(dataset.names)):
        fine = dataset.source2.read(row).astype(float).reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
        assert 2 < np.abs(dataset.source1.read(row) - fine).mean() < 5  # sensor noise of 4 grey levels


def test_interrupted_demo_leaves_nothing(tmp_path, few_scenes, monkeypatch):
    def scene(kind, generator):
        if kind == "meadow":
            raise KeyboardInterrupt
        return np.zeros((128, 128, 3), np.uint8)

    monkeypatch.setattr(demo_data, "_scene", scene)
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path, data_name="demo")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------ kinds of images


def test_grey_rgba_palette_and_16_bit_images_become_rgb(tmp_path):
    grey, colour, alpha = noise("grey", 9, 5), noise("colour", 9, 5, 3), noise("alpha", 9, 5, 1)
    deep = noise("deep", 9, 5).astype(np.uint16) * 256 + noise("low", 9, 5)
    palette = Image.new("P", (5, 9))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.putdata([number % 3 for number in range(45)])
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    kinds = {"a": encoded(grey), "b": encoded(np.concatenate((colour, alpha), axis=2)),
             "c": buffer.getvalue(), "d": encoded(deep), "e": encoded(deep, "TIFF")}
    expected = {"a": grey[..., None].repeat(3, 2), "b": colour,
                "c": (np.eye(3) * 255)[np.arange(45) % 3].reshape(9, 5, 3),
                "d": (deep >> 8)[..., None].repeat(3, 2), "e": (deep >> 8)[..., None].repeat(3, 2)}
    tree(tmp_path / "one", {f"{name}.{'tif' if name == 'e' else 'png'}": data for name, data in kinds.items()})
    dataset = pairs(tmp_path)
    for row, name in enumerate(dataset.names):
        assert dataset.source1.size(row) == (9, 5)
        assert np.array_equal(dataset.source1.read(row), expected[name]), name
        assert dataset.source1.read(row).dtype == np.uint8


# ------------------------------------------------------------------------ splits by seed


@pytest.mark.parametrize(("data_name", "folder", "each", "queries"), [
    ("EuroSAT", "2750", 1100, 100),  # published
    ("UCMerced", "UCMerced_LandUse", 130, 10),
    ("EuroSAT", "2750", 57, 5),  # a tenth of the smallest class
    ("EuroSAT", "2750", 3, 1),
])
def test_default_split_takes_the_published_queries_or_a_tenth(tmp_path, data_name, folder, each, queries):
    tree(tmp_path / f"{folder}.zip" if each > 1000 else tmp_path / folder,
         hollow([f"A/{number}" for number in range(each)] + [f"B/{number}" for number in range(each + 7)]))
    if each > 1000:
        (tmp_path / f"{folder}.zip").rename(tmp_path / "EuroSAT.zip")
    dataset = load(tmp_path, data_name=data_name)
    assert np.bincount(dataset.labels[dataset.query]).tolist() == [queries, queries]
    assert np.array_equal(dataset.train, dataset.database)
    rows = np.concatenate((dataset.database, dataset.query))
    assert np.array_equal(np.sort(rows), np.arange(2 * each + 7))  # disjoint, and nothing is left out
    assert choose_R(None, dataset.labels[dataset.database]) == each - queries


def test_split_depends_on_the_seed_alone(eurosat):
    first, same, other = (load(eurosat, split_seed=seed) for seed in (13, 13, 14))
    assert np.array_equal(first.query, same.query) and first.fingerprint == same.fingerprint
    assert not np.array_equal(first.query, other.query) and first.fingerprint != other.fingerprint


def test_max_per_class_limits_every_class_and_its_images_follow(eurosat):
    dataset = load(eurosat, max_per_class=5)
    assert np.bincount(dataset.labels).tolist() == [5, 5, 5] and len(dataset.query) == 3
    for row, name in enumerate(dataset.names):
        expected = np.asarray(Image.open(io.BytesIO(scenes(names=[name])[f"{name}.jpg"])))
        assert np.array_equal(dataset.source1.read(row), expected)
        assert CLASSES[dataset.labels[row]] == name.split("/")[0]
    assert set(dataset.names) != set(load(eurosat, max_per_class=5, split_seed=14).names)
    assert len(load(eurosat, max_per_class=500).names) == len(SCENES)


def test_R_is_the_smallest_class_of_the_database(tmp_path):
    tree(tmp_path / "one", hollow([f"{kind}/{number}" for kind, count in (("a", 30), ("b", 21), ("c", 25))
                                   for number in range(count)]))
    dataset = pairs(tmp_path)
    assert np.bincount(dataset.labels[dataset.database]).tolist() == [28, 19, 23]
    labels = dataset.labels[dataset.database]
    assert choose_R(None, labels) == 19 and choose_R(70, labels) == 70
    complaint(lambda: choose_R(71, labels), "71", "70")


# ------------------------------------------------------------------------ splits by list files


def test_published_lists_keep_order_prefix_and_numbering(eurosat, tmp_path):
    order = np.random.default_rng(0).permutation(len(SCENES))
    names = [SCENES[number] for number in order]
    split = lists(tmp_path / "split", train=map(published, names[6:]),
                  database=[published(name, "/other/place/") for name in names[30:5:-1]],
                  test=map(published, names[:6]))
    dataset = load(eurosat, split_dir=split)
    assert rows_named(dataset, "train") == names[6:]
    assert rows_named(dataset, "database") == names[30:5:-1]
    assert rows_named(dataset, "query") == names[:6]
    assert dataset.labels.dtype == np.int64 and dataset.class_names == ["River", "Forest", "Highway"]
    for name, label in zip(dataset.names, dataset.labels, strict=True):
        assert dataset.class_names[label] == name.split("/")[0]


def test_lists_name_a_part_of_the_images(eurosat, tmp_path):
    split = lists(tmp_path / "split", database=map(published, SCENES[20:30]), test=map(published, SCENES[3:5]))
    dataset = load(eurosat, split_dir=split)
    assert sorted(dataset.names) == sorted(SCENES[20:30] + SCENES[3:5])
    assert rows_named(dataset, "train") == rows_named(dataset, "database") == SCENES[20:30]
    for row, name in enumerate(dataset.names):
        expected = np.asarray(Image.open(io.BytesIO(scenes(names=[name])[f"{name}.jpg"])))
        assert np.array_equal(dataset.source1.read(row), expected)


def test_max_per_class_shortens_lists_in_their_order(eurosat, tmp_path):
    names = SCENES[::-1]
    split = lists(tmp_path / "split", train=map(published, names[5:]), test=map(published, names[:5]))
    dataset = load(eurosat, split_dir=split, max_per_class=4)
    chosen = rows_named(dataset, "train")
    assert np.bincount(dataset.labels[dataset.train]).tolist() == [4, 4, 4]
    assert chosen == [name for name in names if name in chosen] == rows_named(dataset, "database")
    assert len(dataset.query) == 4


def test_lists_without_labels_take_those_of_the_folders(eurosat, tmp_path):
    split = lists(tmp_path / "split", train=[f"x/{name}.jpg" for name in SCENES[4:]],
                  test=[f"x/{name}.jpg" for name in SCENES[:4]])
    dataset = load(eurosat, split_dir=split)
    assert dataset.class_names == list(CLASSES)
    assert [CLASSES[label] for label in dataset.labels] == [name.split("/")[0] for name in dataset.names]


def test_multi_hot_labels_belong_to_their_images(tmp_path):
    tree(tmp_path / "one", hollow(f"{number}" for number in range(6)))
    given = {"4": "1 1 0", "2": "0 1 0", "0": "0 0 1", "5": "1 1 1"}
    split = lists(tmp_path / "split", train=[f"{name}.jpg {given[name]}" for name in ("4", "2", "0")],
                  test=[f"5.png {given['5']}"])
    dataset = pairs(tmp_path, split_dir=split)
    assert dataset.labels.dtype == np.uint8 and len(dataset.class_names) == 3
    for name, label in zip(dataset.names, dataset.labels, strict=True):
        assert " ".join(map(str, label)) == given[name]


def test_lists_of_paths_with_spaces_and_a_byte_order_mark(tmp_path):
    tree(tmp_path / "one", hollow(["farm land/a 1", "farm land/a 2", "water/b 1"]))
    split = lists(tmp_path / "split", train=["\ufefffarm land/a 1.jpg 1 0", "water/b 1.jpg 0 1"],
                  test=["farm land/a 2.jpg 1 0"])
    dataset = pairs(tmp_path, split_dir=split)
    assert rows_named(dataset, "train") == ["farm land/a 1", "water/b 1"]
    assert dataset.class_names == ["farm land", "water"]


def test_lists_find_images_at_different_depths(tmp_path):
    tree(tmp_path / "one", hollow(["city/a", "land/wet/b", "land/wet/c"]))
    split = lists(tmp_path / "split", train=["x/city/a.jpg", "x/land/wet/b.jpg"], test=["y/z/land/wet/c.jpg"])
    assert rows_named(pairs(tmp_path, split_dir=split), "train") == ["city/a", "land/wet/b"]


# ------------------------------------------------------------------------ what is wrong is said in one line


def test_unknown_data_name_lists_the_known_ones(tmp_path):
    complaint(lambda: load(tmp_path, data_name="EuroSTAT"), "EuroSTAT", "EuroSAT, DSRSID, UCMerced", "demo")


@pytest.mark.parametrize(("data_name", "parts"), [
    ("EuroSAT", ["EuroSAT_RGB.zip", "zenodo.org/records/7711810", "--data_dir"]),
    ("UCMerced", ["UCMerced_LandUse.zip", "weegee.vision.ucmerced.edu", "--data_dir"]),
    ("DSRSID", ["DSRSID.mat", "MUL", "PAN", "--data_dir"]),
])
def test_missing_dataset_says_what_to_get_and_where_to_put_it(tmp_path, data_name, parts):
    complaint(lambda: load(tmp_path / "nowhere", data_name=data_name), str(tmp_path / "nowhere"), *parts)


def test_missing_second_source_says_what_to_get(eurosat):
    complaint(lambda: load(eurosat, source2="vhr"), "EuroSAT_VHR", str(eurosat))
    complaint(lambda: load(eurosat, source2="swir"), "EuroSAT_MS.zip", "zenodo.org")
    complaint(lambda: load(eurosat, source2="sar"), "sar", "vhr, swir or none")
    complaint(lambda: load(eurosat, source1="pan"), "--source1")


def test_pairs_without_folders_or_images_say_so(tmp_path):
    complaint(lambda: load(tmp_path, data_name="pairs"), "--source1")
    complaint(lambda: pairs(tmp_path), str(tmp_path / "one"), "does not exist")
    tree(tmp_path / "one", {"notes.txt": b"x"})
    complaint(lambda: pairs(tmp_path), str(tmp_path / "one"), "no image")


@pytest.mark.parametrize("lacking", ["one", "two"])
def test_images_without_partner_are_counted_and_named_with_their_folder(tmp_path, lacking):
    for folder in ("one", "two"):
        tree(tmp_path / folder, hollow(SCENES[5:] if folder == lacking else SCENES))
    having = "two" if lacking == "one" else "one"
    complaint(lambda: pairs(tmp_path, source2=str(tmp_path / "two")),
              f"5 images of {tmp_path / having}",
              "Forest/Forest_1, Forest/Forest_2, Forest/Forest_3 and 2 more",
              f"in {tmp_path / lacking}")


def test_eurosat_scene_missing_from_the_second_source_is_named(eurosat):
    tree(eurosat / "EuroSAT_VHR", scenes(names=SCENES[1:]))
    complaint(lambda: load(eurosat, source2="vhr"), "Forest/Forest_1", "EuroSAT_VHR")


def test_two_files_of_one_name_are_an_error(tmp_path):
    tree(tmp_path / "one", hollow(["a/x", "a/y"]) | hollow(["a/x"], ".png"))
    complaint(lambda: pairs(tmp_path), "a/x.jpg", "a/x.png")
    tree(tmp_path / "EuroSAT.zip", hollow(["2750/a/x", "copy/a/x"]))
    complaint(lambda: load(tmp_path), "2750/a/x.jpg", "copy/a/x.jpg")


def test_some_images_outside_class_folders_are_an_error(tmp_path):
    tree(tmp_path / "one", hollow(["a/x", "b/y", "stray"]))
    complaint(lambda: pairs(tmp_path), "1 do not: stray")


@pytest.mark.parametrize("part", ["train", "database"])
def test_queries_inside_training_or_database_are_an_error(eurosat, tmp_path, part):
    parts = {"train": SCENES[10:], "database": SCENES[10:], "test": SCENES[:10]}
    parts[part] = SCENES[6:]
    split = lists(tmp_path / "split", **{name: map(published, items) for name, items in parts.items()})
    complaint(lambda: load(eurosat, split_dir=split), f"4 queries are also in the {part} set",
              "Forest/Forest_10", "and 1 more")


def bad_split(eurosat, train, test=None, **more):
    split = lists(eurosat / "split", train=train, test=test or [published(SCENES[0])], **more)
    return lambda: load(eurosat, split_dir=split)


def test_list_with_unknown_images_names_them(eurosat):
    train = [published(name) for name in [*SCENES[1:], "Forest/Forest_98", "River/River_99"]]
    complaint(bad_split(eurosat, train), "train.txt lists 2 images", "Forest/Forest_98, River/River_99")
    complaint(bad_split(eurosat, ["/ 0 1 0"]), "train.txt lists 1 images")


def test_list_with_an_image_twice_names_it(eurosat):
    train = [published(SCENES[1]), published(SCENES[2]), published(SCENES[1], "elsewhere/")]
    complaint(bad_split(eurosat, train), "train.txt lists 1 images twice: Forest/Forest_2")


@pytest.mark.parametrize("label", ["0 2 0", "0 0 0", "0 one 0", "0.5 0 0"])
def test_list_with_a_bad_label_names_the_line(eurosat, label):
    train = [published(SCENES[1]), "", f"{SCENES[2]}.jpg {label}"]
    complaint(bad_split(eurosat, train), "train.txt, line 3", "Forest/Forest_3.jpg")


def test_lists_with_labels_of_different_lengths_are_an_error(eurosat):
    complaint(bad_split(eurosat, [published(SCENES[1]), f"{SCENES[2]}.jpg 0 1"]), "train.txt, line 2",
              "2 label values", "3")
    complaint(bad_split(eurosat, [f"{name}.jpg" for name in SCENES[1:]]), "different lengths")
    complaint(bad_split(eurosat, [f"{name}.jpg 1 0" for name in SCENES[1:]]), "different lengths")


def test_list_labels_that_disagree_with_class_folders_are_an_error(eurosat):
    wrong = [published(name) for name in SCENES[1:]]
    wrong[20] = wrong[20].replace(one_hot(PUBLISHED_COLUMN["Highway"]), one_hot(PUBLISHED_COLUMN["River"]))
    complaint(bad_split(eurosat, wrong), "class folder")
    # Two folders in one column.
    merged = [published(name).replace(one_hot(2), one_hot(0)) for name in SCENES[1:]]
    complaint(bad_split(eurosat, merged), "class folder")
    # One folder in two columns.
    divided = [f"{name}.jpg {one_hot(3 if name in SCENES[7:9] else PUBLISHED_COLUMN[name.split('/')[0]], 4)}"
               for name in SCENES]
    complaint(bad_split(eurosat, divided[1:], divided[:1]), "Forest/Forest_8", "class folder")


def test_two_lists_that_label_an_image_differently_are_an_error(eurosat):
    database = [f"{SCENES[1]}.jpg {one_hot(2)}"]
    complaint(bad_split(eurosat, [published(SCENES[1])], database=database), "different labels", SCENES[1])


def test_missing_or_empty_lists_are_an_error(eurosat):
    complaint(lambda: load(eurosat, split_dir=str(eurosat / "nowhere")), "nowhere", "test.txt")
    complaint(bad_split(eurosat, []), "train.txt is empty")
    only = lists(eurosat / "only", test=[published(SCENES[0])])
    complaint(lambda: load(eurosat, split_dir=only), "neither train.txt nor database.txt")


def test_one_class_or_one_image_is_an_error(tmp_path, eurosat):
    tree(tmp_path / "one", hollow(["a/1", "a/2", "a/3"]))
    complaint(lambda: pairs(tmp_path), "one class only")
    river = [published(name) for name in SCENES if name.startswith("River")]
    complaint(bad_split(eurosat, river[1:], river[:1]), "one class only")
    tree(tmp_path / "one", hollow(["b/1"]))
    complaint(lambda: pairs(tmp_path), "1 classes", "fewer than 2 images: b")
    shutil.rmtree(tmp_path / "one")
    tree(tmp_path / "one", hollow(["alone"]))
    complaint(lambda: pairs(tmp_path), "1 image only")


def stored(dataset, source=0):
    return lambda: ImageStore.open(dataset.sources[source], "test", 32, None, 2)


def test_truncated_and_foreign_files_are_counted_and_named_together(tmp_path):
    files = scenes(size=64)
    files["Forest/Forest_2.jpg"] = files["Forest/Forest_2.jpg"][:900]
    files["River/River_1.jpg"] = b"<html>not found</html>"
    files["River/River_2.jpg"] = b""
    for place in ("2750", "EuroSAT.zip"):
        tree(tmp_path / place / place if place == "2750" else tmp_path / place, files)
        dataset = load(tmp_path / place if place == "2750" else tmp_path)
        complaint(stored(dataset), f"3 of {len(SCENES)} images", "Forest/Forest_2.jpg (image file is truncated",
                  "River/River_1.jpg (no image of a known kind (JPEG, PNG", "River/River_2.jpg")


def test_truncated_zip_is_an_error_that_names_it(eurosat):
    path = eurosat / "EuroSAT.zip"
    path.write_bytes(path.read_bytes()[:-200])
    complaint(lambda: load(eurosat), str(path), "download it again")


def test_damaged_member_of_a_zip_is_named(eurosat):
    path = eurosat / "EuroSAT.zip"
    data = bytearray(path.read_bytes())
    place = data.index(b"2750/Forest/Forest_3.jpg") + 100
    data[place:place + 8] = b"\0" * 8
    path.write_bytes(data)
    complaint(stored(load(eurosat)), "1 of 36", "2750/Forest/Forest_3.jpg")


def test_geotiff_of_12_bands_is_named(eurosat):
    for number, name in enumerate(SCENES):
        geotiff(eurosat / "EuroSAT_MS" / f"{name}.tif", np.ones((12 if number == 4 else 13, 4, 4), np.uint16))
    complaint(stored(load(eurosat, source2="swir"), 1), "1 of 36", "Forest/Forest_5.tif",
              "12 bands, expected 13")


@pytest.mark.parametrize(("key", "shape", "dtype", "parts"), [
    ("MUL_IMAGES", (64, 64, 4, 6), np.uint8, ["6 values", "64"]),  # axes not as MATLAB stores them
    ("MUL_IMAGES", (6, 3, 64, 64), np.uint8, ["MUL_IMAGES", "(6, 3, 64, 64)", "(N, 4, H, W)"]),
    ("PAN_IMAGES", (6, 1, 256, 256), np.uint16, ["PAN_IMAGES", "uint16", "expected uint8"]),
    ("PAN_IMAGES", (5, 1, 256, 256), np.uint8, ["PAN_IMAGES", "5 images", "6"]),
    ("LAND_COVER_TYPES", (1, 5), np.uint8, ["LAND_COVER_TYPES", "5 values", "6"]),
    ("LAND_COVER_TYPES", (1, 6), np.uint8, ["from 0 to 0", "from 1 to 8"]),
])
def test_dsrsid_of_another_shape_is_an_error(tmp_path, key, shape, dtype, parts):
    dsrsid(tmp_path / "DSRSID.mat", noise("mul", 6, 64, 64, 4), noise("pan", 6, 256, 256), TYPES)
    with h5py.File(tmp_path / "DSRSID.mat", "a") as file:
        del file[key]
        file[key] = np.zeros(shape, dtype)
    complaint(lambda: load(tmp_path, data_name="DSRSID"), "DSRSID.mat", *parts)


@pytest.mark.parametrize("key", ["MUL_IMAGES", "PAN_IMAGES", "LAND_COVER_TYPES"])
@pytest.mark.parametrize("group", [False, True])
def test_dsrsid_without_one_of_its_arrays_is_an_error(tmp_path, key, group):
    dsrsid(tmp_path / "DSRSID.mat", noise("mul", 6, 64, 64, 4), noise("pan", 6, 256, 256), TYPES)
    with h5py.File(tmp_path / "DSRSID.mat", "a") as file:
        del file[key]
        if group:
            file.create_group(key)
    complaint(lambda: load(tmp_path, data_name="DSRSID"), "DSRSID.mat", key)


def test_dsrsid_that_is_no_hdf5_or_lacks_a_folder_is_an_error(tmp_path):
    (tmp_path / "DSRSID.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    complaint(lambda: load(tmp_path, data_name="DSRSID"), "DSRSID.mat", "HDF5")
    tree(tmp_path / "b" / "DSRSID" / "MUL", scenes())
    complaint(lambda: load(tmp_path / "b", data_name="DSRSID"), "pan", "MUL and PAN")


def test_store_of_a_dataset_keeps_rows_and_names_together(eurosat):
    dataset = load(eurosat, max_per_class=5)
    store = stored(dataset)()
    for row in range(len(dataset.names)):
        assert np.array_equal(store.images[row].transpose(1, 2, 0), dataset.source1.read(row))
    assert torch.from_numpy(store.sizes).unique().tolist() == [8]
