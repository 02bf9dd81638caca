"""DSRSID from the HDF5 as published and from extracted folders."""

import tracemalloc

import h5py
import numpy as np
import pytest

from datasets.dsrsid import CLASSES as DSRSID_CLASSES
from image_helpers import complaint, lists, load, noise, one_hot, rows_named, scenes, tree


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
    last = dataset.source1.subset(np.array([3]))
    assert len(last) == 1 and np.array_equal(last.read(0), dataset.source1.read(3))


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
