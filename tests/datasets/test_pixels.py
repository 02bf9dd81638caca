"""Images as Pillow knows them: orientation, and the same pixels where rasterio reads them."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from datasets.pixels import decode_rgb, header_size, open_rgb
from image_helpers import noise
from raster_helpers import saved

LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "JPEG": {"quality": 95}}
MODES = {
    "1": Image.fromarray(noise("1", 9, 14)).convert("1"), "L": Image.fromarray(noise("L", 9, 14)),
    "LA": Image.fromarray(noise("LA", 9, 14, 2)), "RGB": Image.fromarray(noise("RGB", 9, 14, 3)),
    "P": Image.fromarray(noise("P", 9, 14, 3)).quantize(40),
    "RGBA": Image.fromarray(noise("RGBA", 9, 14, 4)),
    "CMYK": Image.merge("CMYK", [Image.fromarray(noise(f"ink {ink}", 9, 14)) for ink in range(4)]),
    "LAB": Image.merge("LAB", [Image.fromarray(noise(f"lab {one}", 9, 14)) for one in range(3)]),
    "I;16": Image.fromarray(noise("deep", 9, 14).astype(np.uint16) * 257)}


def as_pillow(image):
    """What Pillow makes of an image that it holds; of 16 bits the upper 8."""
    if image.mode == "I;16":
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_tiffs_of_each_mode_and_compression_have_the_pixels_that_pillow_wrote(mode, compression):
    data = saved(MODES[mode], "TIFF", compression=compression)
    assert np.array_equal(decode_rgb(data), as_pillow(MODES[mode])) and header_size(data) == (9, 14)
    assert np.array_equal(np.asarray(open_rgb(data)), decode_rgb(data))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_jpeg_within_tiff_is_what_pillow_reads(mode):
    image = MODES["RGB"].convert(mode) if mode == "YCbCr" else MODES[mode]
    data = saved(image, "TIFF", compression="jpeg")
    expected = as_pillow(Image.open(io.BytesIO(data)))
    assert np.abs(decode_rgb(data).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_alike_to_every_kind(kind, orientation):
    image = Image.fromarray(np.kron(noise("turned", 2, 3, 3), np.ones((16, 16, 1), np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"tiffinfo": {274: orientation}} if kind == "TIFF" else {"exif": exif}
    data = saved(image, kind, **options, **LOSSLESS[kind])
    expected = np.asarray(ImageOps.exif_transpose(_with(image, exif))).astype(int)
    found = decode_rgb(data)
    assert found.shape == expected.shape and header_size(data) == found.shape[:2]
    assert found.shape[:2] == ((48, 32) if orientation > 4 else (32, 48))
    middle = (slice(8, None, 16), slice(8, None, 16))  # of the squares, whatever JPEG does to edges
    assert np.abs(found[middle] - expected[middle]).max() <= (40 if kind == "JPEG" else 0)


def _with(image, exif):
    copy = image.copy()
    copy.info["exif"] = exif.tobytes()
    return copy


def test_orientation_of_no_meaning_and_damaged_exif_leave_the_image_as_it_is():
    for exif in (b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
                 b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0junk"):
        for kind in ("JPEG", "PNG"):
            data = saved(MODES["RGB"], kind, exif=exif)
            assert header_size(data) == decode_rgb(data).shape[:2] == (9, 14)
            assert np.array_equal(decode_rgb(data), decode_rgb(saved(MODES["RGB"], kind)))


def test_the_size_of_a_png_is_looked_up_without_decoding_it(monkeypatch):
    data = saved(MODES["RGB"], "PNG")
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda *_: pytest.fail("decoded"))
    assert header_size(data) == (9, 14)


def test_of_a_gif_with_several_frames_the_first_is_seen():
    frames = [Image.fromarray(noise(f"frame {number}", 9, 14)) for number in range(3)]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(decode_rgb(data), as_pillow(frames[0])) and header_size(data) == (9, 14)
