"""TIFF and JPEG 2000 files: whichever way they are stored, the right numbers and colours."""

import io
import struct
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.io import MemoryFile

from datasets.colours import Unsuited, render
from datasets.pixels import decode_rgb, header_size
from datasets.rasters import driver_of, open_raster
from image_helpers import complaint, noise
from raster_helpers import paged, ramp, raster, saved, seen

DEEP = ramp(np.uint16, high=65535)


# ------------------------------------------------------------ the way they are stored


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("photometric", ["minisblack", "rgb"])
@pytest.mark.parametrize("options", [
    {}, {"compress": "deflate", "predictor": 2}, {"compress": "zstd"}, {"compress": "lzw"},
    {"tiled": True, "blockxsize": 16, "blockysize": 16}, {"BIGTIFF": "YES"},
    {"ENDIANNESS": "BIG", "BIGTIFF": "YES"}])
def test_16_bit_rgb_shows_its_upper_8_bits_however_it_is_stored(interleave, photometric, options):
    data = raster(DEEP, interleave=interleave, photometric=photometric, **options)
    assert np.array_equal(decode_rgb(data), seen(DEEP >> 8)) and header_size(data) == (4, 6)


@pytest.mark.parametrize("photometric, expected", [
    ("minisblack", [[0, 40, 255]]), ("miniswhite", [[255, 215, 0]])])
def test_grey_is_black_or_white_at_0_as_the_file_says(photometric, expected):
    data = raster(np.array([[[0, 40, 255]]], np.uint8), photometric=photometric)
    assert decode_rgb(data)[..., 0].tolist() == expected


@pytest.mark.parametrize("bits, expected", [(1, [0, 255]), (2, [0, 85, 170, 255]),
                                            (4, [0, 17, 34, 51])])
def test_fewer_than_8_bits_reach_from_black_to_white(bits, expected):
    data = raster(np.array([[range(len(expected))]], np.uint8), nbits=bits)
    assert decode_rgb(data)[0, :, 1].tolist() == expected


def test_equal_numbers_of_16_bits_are_equally_bright_however_many_bits_the_file_uses():
    numbers = np.tile(np.array([0, 255, 256, 2048, 4095], np.uint16), (1, 16, 4))
    lossless = {"driver": "JP2OpenJPEG", "QUALITY": 100, "REVERSIBLE": "YES"}
    for options in ({}, {"nbits": 12}, lossless, {**lossless, "nbits": 12}):
        assert np.array_equal(decode_rgb(raster(numbers, **options)), seen(numbers >> 8))


def test_jpeg_2000_is_read_whatever_its_bytes_are_wrapped_in():
    image = Image.fromarray(noise("jp2", 9, 14, 3))
    for name in ("a.jp2", "a.j2k"):
        buffer = io.BytesIO()
        buffer.name = name  # by which Pillow tells the two kinds apart
        image.save(buffer, "JPEG2000")
        assert driver_of(buffer.getvalue()) == "JP2OpenJPEG"
        assert np.array_equal(decode_rgb(buffer.getvalue()), np.asarray(image))
    deep = raster(np.repeat(DEEP[:1], 16, 1), "JP2OpenJPEG", QUALITY=100, REVERSIBLE="YES")
    assert np.array_equal(decode_rgb(deep), seen(np.repeat(DEEP[:1], 16, 1) >> 8))
    assert header_size(deep) == (64, 6)


def small_tiff(order, big, orientation):
    """2 x 3 grey pixels 1 to 6, tag by tag: rasterio writes no orientation, Pillow no BigTIFF."""
    head = 16 if big else 8
    tags = {256: 3, 257: 2, 258: 8, 259: 1, 262: 1, 273: head, 274: orientation, 277: 1, 278: 2,
            279: 6}
    entry = "HHQHxxxxxx" if big else "HHIHxx"
    entries = b"".join(struct.pack(order + entry, tag, 3, 1, value) for tag, value in tags.items())
    mark = b"II" if order == "<" else b"MM"
    start = struct.pack(order + "HHHQ", 43, 8, 0, head + 8) if big else struct.pack(
        order + "HI", 42, head + 8)
    count, end = ("Q", bytes(8)) if big else ("H", bytes(4))
    return (mark + start + bytes(range(1, 7)) + bytes(2) + struct.pack(order + count, len(tags))
            + entries + end)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("big", [False, True])
def test_orientation_is_found_in_every_kind_of_tiff(order, big):
    for orientation, expected in ((1, [[1, 2, 3], [4, 5, 6]]), (3, [[6, 5, 4], [3, 2, 1]]),
                                  (6, [[4, 1], [5, 2], [6, 3]]), (9, [[1, 2, 3], [4, 5, 6]])):
        data = small_tiff(order, big, orientation)
        assert decode_rgb(data)[..., 0].tolist() == expected
        assert header_size(data) == (len(expected), len(expected[0]))


def test_gdal_is_not_asked_how_a_jpeg_2000_file_is_stored(monkeypatch):
    """Its answer walks through the file, and never ends for some damaged ones."""
    buffer = io.BytesIO()
    buffer.name = "a.jp2"
    Image.fromarray(noise("jp2", 32, 32, 3)).save(buffer, "JPEG2000")
    with open_raster(buffer.getvalue()) as file:
        file.pages = [Unasked(file.pages[0])]
        assert file.read([0, 1, 2]).depth == 8


class Unasked:
    """A dataset of rasterio that must not be asked for the tags of the whole file."""

    def __init__(self, file):
        self.file = file

    def tags(self, *band, ns):
        assert band
        return self.file.tags(*band, ns=ns)

    def __getattr__(self, name):
        return getattr(self.file, name)


# ------------------------------------------------------------ pages


def test_pages_of_one_size_are_bands_and_never_the_first_page_alone():
    pages = [noise(f"page {number}", 4, 6) for number in range(4)]
    assert np.array_equal(decode_rgb(paged(*pages[:3])), np.stack(pages[:3], axis=-1))
    for few in (pages, pages[:2], [noise("a", 4, 6, 3), noise("b", 4, 6, 3)]):
        with pytest.raises(Unsuited, match=f"{sum(page.size for page in few) // 24} bands"):
            decode_rgb(paged(*few))
    with open_raster(paged(*pages)) as file:
        assert np.array_equal(file.read([3, 0, 3]).values, np.stack(pages)[[3, 0, 3]])


def test_thumbnails_overviews_and_masks_are_no_bands():
    page = noise("page", 64, 64)
    assert np.array_equal(decode_rgb(paged(page, page[::4, ::4])), seen(page[None]))
    with pytest.raises(ValueError, match=r"page 2 \(64 x 64 pixels\) is larger than the first"):
        decode_rgb(paged(page[::4, ::4], page))
    mask = noise("mask", 64, 64) > 99
    data = raster(np.stack([page] * 3), mask=mask, driver="COG", blocksize=128,
                  overview_resampling="nearest", overview_count=1)
    assert np.array_equal(decode_rgb(data), seen(np.where(mask, page, 0)[None]))


def test_pages_of_two_types_are_not_put_side_by_side():
    buffer = io.BytesIO()
    deep = [Image.fromarray(DEEP[band]) for band in range(2)]
    Image.fromarray(noise("a", 4, 6)).save(buffer, "TIFF", save_all=True, append_images=deep)
    with pytest.raises(ValueError, match="uint16 and uint8 pixels"):
        decode_rgb(buffer.getvalue())


# ------------------------------------------------------------ nodata, alpha


@pytest.mark.parametrize("dtype, nodata", [("uint8", 255), ("uint16", 65535), ("int16", 255)])
def test_nodata_of_integers_is_black_where_all_bands_have_it(dtype, nodata):
    numbers = ramp(dtype, high=200)
    numbers[:, 1, 2:4] = nodata
    numbers[0, 2, 2] = nodata  # a bright red, not nodata
    expected = np.minimum(numbers, 255)
    expected[:, 1, 2:4] = 0
    assert np.array_equal(render(raster(numbers, nodata=nodata), stretch=[(0, 255)]),
                          seen(expected))


def test_nodata_of_floats_is_black_in_each_band():
    numbers = ramp(np.float32)
    numbers[1, 0, 3], numbers[2, 0, 4] = -1, np.nan
    expected = np.rint(numbers)
    expected[1, 0, 3] = expected[2, 0, 4] = 0
    numbers[1, 0, 3] = 999
    assert np.array_equal(render(raster(numbers, nodata=999), stretch=[(0, 255)]), seen(expected))


def test_an_inner_mask_is_black_and_alpha_is_dropped():
    numbers, mask = ramp(np.uint8, bands=4), noise("mask", 4, 6) > 99
    assert np.array_equal(decode_rgb(raster(numbers, photometric="rgb", ALPHA="YES")),
                          seen(numbers[:3]))
    masked = raster(numbers[:3], mask=mask, driver="COG")
    assert np.array_equal(decode_rgb(masked), seen(np.where(mask, numbers[:3], 0)))


def test_a_band_with_a_description_of_its_own_is_no_alpha_whatever_gdal_calls_it():
    four = ramp(np.uint8, 4)
    four[3] = 255
    with pytest.raises(Unsuited, match=r"4 bands: 1 Blue .*, 4 NIR \(uint8\)"):
        decode_rgb(raster(four, names=("Blue", "Green", "Red", "NIR")))
    for names in ((), ("Band 1", "Band 2", "Band 3", "Band 4"), ("a", "b", "c", "Alpha")):
        assert np.array_equal(decode_rgb(raster(four, names=names)), seen(four[:3]))


@pytest.mark.parametrize("names, order", [
    (("Blue", "Green", "Red"), [2, 1, 0]), (("B02", "B03", "B04"), [2, 1, 0]),
    (("b3", "b2", "b4"), [2, 0, 1]), (("Red", "Green", "Blue"), [0, 1, 2]),
    (("NIR", "Red", "Green"), [0, 1, 2]), (("Blue", "Green", "Red", "Alpha"), [2, 1, 0])])
def test_three_bands_are_shown_as_the_colours_that_they_are_described_as(names, order):
    numbers = ramp(np.uint8, len(names))
    assert np.array_equal(decode_rgb(raster(numbers, names=names)), seen(numbers[order]))
    assert np.array_equal(render(raster(numbers, names=names), "1,2,3"), seen(numbers[:3]))


def test_colours_that_are_stored_as_blue_green_red_are_shown_as_red_green_blue():
    numbers = ramp(np.uint8)
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", count=3, height=4, width=6, dtype="uint8",
                         photometric="minisblack") as file:
            file.colorinterp = [ColorInterp.blue, ColorInterp.green, ColorInterp.red]
            file.write(numbers)
        data = bytes(memory.getbuffer())
    assert np.array_equal(decode_rgb(data), seen(numbers[::-1]))


def test_colours_that_were_multiplied_by_alpha_are_divided_by_it():
    numbers = np.array([[[100, 50, 0]], [[200, 100, 0]], [[0, 0, 0]], [[255, 128, 0]]], np.uint8)
    data = raster(numbers, photometric="rgb", ALPHA="PREMULTIPLIED")
    assert decode_rgb(data).tolist() == [[[100, 200, 0], [99, 199, 0], [0, 0, 0]]]


# ------------------------------------------------------------ what is refused, and how


def test_bands_and_types_that_need_a_word_are_named():
    for numbers, words in ((ramp(np.uint16, 5), "5 bands: 1 B02 (uint16), 2 B03 (uint16), 3 (uint"),
                           (ramp(np.float32, 1, low=-0.5, high=2), "float32 pixels from -0.5 to 2"),
                           (ramp(np.int16, 3, low=-9), "int16 pixels from -9 to 255"),
                           (ramp(np.int8, 3, high=9), "int8"), (ramp(np.uint32, 3), "uint32")):
        with pytest.raises(Unsuited) as caught:
            decode_rgb(raster(numbers, names=("B02", "B03") if len(numbers) == 5 else ()))
        assert str(caught.value).startswith(words)
    with pytest.raises(ValueError, match="complex64 pixels, expected real"):
        decode_rgb(raster(ramp(np.complex64, 1)))


def test_what_a_tiff_claims_is_looked_at_before_memory_is_taken(monkeypatch):
    tiny = {"tiled": True, "sparse_ok": True, "BIGTIFF": "YES"}
    huge = raster(np.zeros((1, 16, 16), np.uint8), blockxsize=32768, blockysize=65536, **tiny)
    for look in (decode_rgb, header_size):
        with pytest.raises(ValueError, match="blocks of more than 1 GiB"):
            look(huge)
    with pytest.raises(ValueError, match="too elongated"):
        header_size(raster(np.zeros((1, 1, 100), np.uint8)))
    monkeypatch.setattr("datasets.rasters.MOST_PAGES", 3)
    with pytest.raises(ValueError, match="4 pages, more than"):
        decode_rgb(paged(*[noise("page", 1, 1)] * 4))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_a_damaged_tiff_is_said_to_be_damaged(compression):
    data = saved(Image.fromarray(noise("a", 64, 64, 3)), "TIFF", compression=compression)
    for length in (4, 8, 200, len(data) // 2, len(data) - 300):
        texts = set()
        for _ in range(2):
            with pytest.raises(ValueError, match="damaged") as caught:
                decode_rgb(data[:length])
            texts.add(str(caught.value))
        assert len(texts) == 1 and "vsimem" not in str(caught.value)


def test_other_files_that_gdal_knows_are_no_images_whatever_they_are_called(tmp_path):
    (tmp_path / "secret.tif").write_bytes(raster(ramp(np.uint8)))
    band = "".join(f'<VRTRasterBand dataType="Byte" band="{number}"><SimpleSource><SourceFilename>'
                   f"{tmp_path / 'secret.tif'}</SourceFilename><SourceBand>1</SourceBand>"
                   "</SimpleSource></VRTRasterBand>" for number in (1, 2, 3))
    pointer = f'<VRTDataset rasterXSize="6" rasterYSize="4">{band}</VRTDataset>'.encode()
    for look in (decode_rgb, header_size):
        with pytest.raises(ValueError, match=r"no image of a known kind \(JPEG.*TIFF, JPEG 2000\)"):
            look(pointer)


def test_without_rasterio_a_tiff_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    data = saved(Image.fromarray(noise("a", 4, 6)), "TIFF")
    complaint(lambda: decode_rgb(data), "TIFF and JPEG 2000", "pip install rasterio")


def test_threads_decode_what_one_thread_decodes(capfd):
    files = [raster(np.roll(DEEP, shift, 2), interleave="band") for shift in range(6)] * 10
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(decode_rgb, files))
    for data, pixels in zip(files, found, strict=True):
        assert np.array_equal(pixels, decode_rgb(data))
    assert capfd.readouterr() == ("", "")
