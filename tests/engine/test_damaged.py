"""Files damaged by chance, and odd ones: read, or one sentence that names them."""

import io
import zipfile

import h5py
import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st

from data_loader import DataConfig, load_dataset
from datasets.eurosat import decode_swir
from hostile_helpers import FUZZ, damage, one_sentence, pictures, read_all, small_mat, small_png


@pytest.mark.parametrize("types", [
    np.array([["x"] * 24], dtype="S1"), np.array([["x"] * 24], dtype=object),
    np.full((1, 24), np.nan), np.full((1, 24), 1.5), np.full((1, 24), 1 + 1j), h5py.Empty("f8"),
    np.zeros((1, 24), [("a", "i4")]), np.zeros((1, 24)), np.full((1, 24), 9)],
    ids=lambda types: str(types.dtype))
def test_land_covers_that_are_no_numbers_from_1_to_8_are_one_sentence(tmp_path, types):
    mat = small_mat(tmp_path / "DSRSID.mat")
    with h5py.File(mat, "a") as file:
        del file["LAND_COVER_TYPES"]
        if types.dtype.kind == "O":
            file.create_dataset("LAND_COVER_TYPES", data=types, dtype=h5py.string_dtype())
        else:
            file["LAND_COVER_TYPES"] = types
    with one_sentence("DSRSID.mat", "LAND_COVER_TYPES"):
        read_all("DSRSID", data_dir=tmp_path)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it finds odd
@pytest.mark.parametrize("kind", ["jpg", "png", "bmp", "tif", "webp"])
@FUZZ
@given(data=st.data())
def test_damaged_images_are_read_or_named(tmp_path_factory, kind, data):
    folder = tmp_path_factory.getbasetemp() / f"damaged-{kind}"
    if not folder.exists():
        options = {"compression": "tiff_lzw"} if kind == "tif" else {}
        pictures(folder, count=3, kind=kind, **options)
    whole = (folder / "sea" / f"02.{kind}").read_bytes()
    (folder / "sea" / f"01.{kind}").write_bytes(damage(data, whole))
    with one_sentence():
        read_all(source1=folder)


@pytest.mark.filterwarnings("ignore")  # rasterio warns of what it finds odd
@FUZZ
@given(data=st.data())
def test_damaged_geotiffs_are_read_or_refused(data):
    with rasterio.io.MemoryFile() as memory:
        with memory.open(driver="GTiff", width=8, height=8, count=13, dtype="uint16",
                         compress="deflate") as file:
            file.write(np.arange(13 * 64, dtype=np.uint16).reshape(13, 8, 8))
        whole = memory.read()
    try:
        pixels = decode_swir(damage(data, whole))
    except Exception as error:  # the store turns any exception of a decoder into a line
        assert not isinstance(error, MemoryError)
    else:
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3


@FUZZ
@given(data=st.data())
def test_damaged_zips_are_read_or_named(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for label in ("field", "sea"):
            for number in range(3):
                archive.writestr(f"{label}/{number}.png", small_png())
    (folder / "damaged.zip").write_bytes(damage(data, buffer.getvalue(), most=6))
    with one_sentence():
        read_all(source1=folder / "damaged.zip")


@FUZZ
@given(data=st.data())
def test_a_damaged_mat_is_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "damaged-mat"
    folder.mkdir(exist_ok=True)
    whole = small_mat(folder / "whole.mat").read_bytes()
    head = 6144  # where the structure is; pixels come after it
    (folder / "DSRSID.mat").write_bytes(damage(data, whole[:head]) + whole[head:])
    with one_sentence():
        read_all("DSRSID", data_dir=folder)


WORDS = st.sampled_from([
    "sea/00.png", "sea/01.png", "field/00.png", "x/sea/02.png", "sea\\03.png", "1", "0", "01", "-1",
    "nan", "1e999", "\0", "\ufeff", "é.png", ".png", "/", "..", "sea/00", "\u2028"])
LINES = st.lists(st.lists(WORDS, max_size=5).map(" ".join), max_size=6)
CONTENT = st.one_of(st.binary(max_size=60), LINES.map(lambda lines: "\n".join(lines).encode()))


@FUZZ
@given(lists=st.dictionaries(st.sampled_from(["train", "database", "test"]), CONTENT))
def test_odd_lists_are_read_or_one_sentence(tmp_path_factory, lists):
    folder = tmp_path_factory.getbasetemp() / "lists"
    if not folder.exists():
        pictures(folder / "one")
        (folder / "split").mkdir()
    for path in (folder / "split").iterdir():
        path.unlink()
    for name, raw in lists.items():
        (folder / "split" / f"{name}.txt").write_bytes(raw)
    places = {"source1": str(folder / "one"), "split_dir": str(folder / "split")}
    with one_sentence():
        load_dataset(DataConfig("pairs", **places))
