"""Files as they come: kinds of images, litter, damage."""

import io

import numpy as np
from PIL import Image

from datasets.containers import Folder
from datasets.pixels import decode_rgb
from datasets.sources import Decoder, ImageFiles
from datasets.store import ImageStore
from image_helpers import (
    SCENES,
    complaint,
    encoded,
    expects,
    load,
    noise,
    pairs,
    scenes,
    stored,
    tree,
)


def test_litter_of_macos_is_no_image(tmp_path):
    files = scenes(prefix="2750/")
    litter = {"__MACOSX/2750/Forest/._Forest_1.jpg": b"x", "2750/River/._River_1.jpg": b"x",
              "2750/.DS_Store": b"x", "2750/.cache/River/River_99.jpg": b"x"}
    tree(tmp_path / "a" / "EuroSAT.zip", files | litter)
    tree(tmp_path / "b" / "EuroSAT", files | litter)
    for place in "ab":
        assert load(tmp_path / place).names == sorted(SCENES)


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
    suffixes = {"e": "tif"}
    tree(tmp_path / "one", {f"{name}.{suffixes.get(name, 'png')}": data
                            for name, data in kinds.items()})
    dataset = pairs(tmp_path)
    for row, name in enumerate(dataset.names):
        assert dataset.source1.size(row) == (9, 5)
        assert np.array_equal(dataset.source1.read(row), expected[name]), name
        assert dataset.source1.read(row).dtype == np.uint8


def test_truncated_and_foreign_files_are_counted_and_named_together(tmp_path):
    files = scenes(size=64)
    files["Forest/Forest_2.jpg"] = files["Forest/Forest_2.jpg"][:900]
    files["River/River_1.jpg"] = b"<html>not found</html>"
    files["River/River_2.jpg"] = b""
    for place in ("2750", "EuroSAT.zip"):
        tree(tmp_path / place / place if place == "2750" else tmp_path / place, files)
        dataset = load(tmp_path / place if place == "2750" else tmp_path)
        complaint(stored(dataset), f"3 of {len(SCENES)} images",
                  "Forest/Forest_2.jpg (image file is truncated",
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


# ------------------------------------------------------------ decoders


def test_a_decoder_says_how_its_files_are_read_and_how_large_they_are(tmp_path):
    folder = Folder(tree(tmp_path / "one", {"a.png": encoded(noise("a", 6, 9, 3))}))
    plain = ImageFiles(folder, ["a.png"])
    assert plain.channels == 3 and plain.size(0) == (6, 9)
    assert np.array_equal(plain.read(0), noise("a", 6, 9, 3))

    def decode_grey(data):
        return np.full((4, 5, 1), len(data) % 256, np.uint8)

    size = len(folder.read_bytes("a.png"))
    for given, expected in (((4, 5), (4, 5)), (lambda data: (len(data), 1), (size, 1))):
        source = ImageFiles(folder, ["a.png"], Decoder(decode_grey, channels=1, size=given))
        assert source.channels == 1 and source.size(0) == expected
        assert source.read(0).shape == (4, 5, 1) and source.read(0)[0, 0, 0] == size % 256
        assert source.stamp(None) != plain.stamp(None)


def test_an_image_of_another_size_than_its_data_set_announces_is_not_squashed(tmp_path):
    tree(tmp_path / "one", {"a.png": encoded(noise("a", 8, 8)), "b.png": encoded(noise("b", 4, 8))})
    decoder = Decoder(decode_rgb, size=(8, 8))
    source = ImageFiles(Folder(tmp_path / "one"), ["a.png", "b.png"], decoder)
    assert source.read(0).shape == (8, 8, 3)
    complaint(lambda: ImageStore.open(source, "x", expects(8), None), "1 of 2 images",
              "b.png (8 x 4 pixels, expected 8 x 8")


def test_a_subset_has_the_images_of_its_rows_and_another_stamp(tmp_path):
    tree(tmp_path / "one", scenes(".png", kind="PNG"))
    whole = ImageFiles(Folder(tmp_path / "one"), [f"{name}.png" for name in SCENES])
    part = whole.subset(np.array([5, 2]))
    others = whole.stamp(None), whole.subset(np.array([2, 5])).stamp(None)
    assert len(part) == 2 and part.stamp(None) not in others
    assert np.array_equal(part.read(0), whole.read(5)) and part.where(1) == whole.where(2)
