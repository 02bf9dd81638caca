"""--bands and --range of one's own files, and scenes of which each band is a file."""

import numpy as np
import pytest
from PIL import Image

from datasets.bands import BandFiles, open_view
from datasets.containers import Folder
from datasets.sources import ImageFiles
from datasets.store import unreadable
from image_helpers import complaint, encoded, noise, tree
from raster_helpers import ramp, raster, saved, seen

NAMES = ("B02", "B03", "B04", "B08")
FOUR = ramp(np.uint16, bands=4, high=3000)


def folder(root, files):
    return Folder(tree(root, files))


def stretched(numbers, low, high):
    """By hand: linear, clipped, rounded."""
    return np.rint(np.clip((numbers.astype(np.float64) - low) / (high - low), 0, 1) * 255)


def view(root, numbers, bands=None, value_range=None, count=1, number=1, **options):
    """The source of `count` equal images."""
    data = raster(numbers, **options)
    files = {f"{row}.tif": data for row in range(count)}
    return open_view(folder(root, files), sorted(files), bands, value_range, number)


# ------------------------------------------------------------ which bands


def test_a_part_of_a_source_keeps_its_range(tmp_path):
    source = view(tmp_path, FOUR[:3], None, "0,2000", count=3)
    assert source.subset(np.array([1])).value_range == "0,2000"


def test_a_fourth_channel_that_is_marked_as_alpha_is_not_dropped_without_a_word(tmp_path):
    # rasterio marks the last of four 8-bit bands as alpha, whatever it holds.
    four = ramp(np.uint8, 4, 16, 16)
    for value_range in (None, "0,200"):
        text = complaint(lambda said=value_range: view(tmp_path, four, None, said, number=2),
                         "0.tif", "marked as alpha", "99%", "--bands2 1,2,3")
        assert "--bands1" not in text
    assert np.array_equal(view(tmp_path, four, "4,3,2").read(0), seen(four[[3, 2, 1]]))
    for alpha in (0, 128, np.where(four[3] > 99, 255, 0)):
        cut = np.concatenate([four[:3], np.full((1, 16, 16), alpha, np.uint8)])
        assert np.array_equal(view(tmp_path, cut).read(0), seen(four[:3]))


@pytest.mark.parametrize("words, chosen", [
    ("3,2,1", [2, 1, 0]), ("1,1,2", [0, 0, 1]), ("4", [3]), ("B08,b03, B02", [3, 1, 0]),
    ("B04", [2]), ("4,B03,1", [3, 1, 0])])
def test_bands_are_chosen_by_number_and_by_description(tmp_path, words, chosen):
    for at in (FOUR << 4, (FOUR >> 4).astype(np.uint8)):
        source = view(tmp_path / at.dtype.name, at, words, names=NAMES)
        expected = at[chosen] >> 8 if at.dtype == np.uint16 else at[chosen]
        assert np.array_equal(source.read(0), seen(expected)) and source.size(0) == (4, 6)
        assert source.read(0).dtype == np.uint8 and source.value_range is None


def test_more_than_three_bands_are_listed_with_the_flag_that_helps(tmp_path):
    text = complaint(lambda: view(tmp_path, FOUR, names=NAMES, number=2), "0.tif", str(tmp_path),
                     "4 bands: 1 B02 (uint16), 2 B03 (uint16), 3 B04 (uint16), 4 B08 (uint16)",
                     "--bands2 3,2,1")
    assert "--bands1" not in text
    for words in ("B05", "5", "0", "-1", "1.5"):
        complaint(lambda words=words: view(tmp_path, FOUR, words, names=NAMES),
                  f"no band is called {words} among 4 bands: 1 B02", "--bands1")
    complaint(lambda: view(tmp_path, FOUR, "NIR", names=("NIR", "nir")), "several bands are called")
    for words in ("1,2", "", "1,2,3,4"):
        complaint(lambda words=words: view(tmp_path, FOUR, words), f"--bands1 {words}", "one band")


def test_the_key_of_a_view_tells_bands_and_ranges_apart(tmp_path):
    asked = [("3,2,1", None), ("1,2,3", None), ("3,2,1", "0,3000"), ("3,2,1", "0,3000.5")]
    sources = [view(tmp_path, FOUR, *flags) for flags in asked]
    assert len({source.decoder.key for source in sources}) == len(asked)
    assert len({source.stamp if isinstance(source.stamp, str) else source.stamp(None)
                for source in sources}) == len(asked)
    plain = folder(tmp_path / "b", {"a.png": encoded(noise("a", 4, 6, 3))})
    assert open_view(plain, ["a.png"]).stamp(None) == ImageFiles(plain, ["a.png"]).stamp(None)


# ------------------------------------------------------------ which range


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "float32",
                                   "float64"])
def test_one_range_stretches_every_type_alike(tmp_path, dtype):
    numbers = ramp(dtype, low=-100 if dtype != "uint8" and dtype != "uint16" else 0, high=120)
    source = view(tmp_path, numbers, value_range="-20.5,99")
    assert np.array_equal(source.read(0), seen(stretched(numbers, -20.5, 99)))
    assert source.value_range == "-20.5,99"
    each = view(tmp_path, numbers, "3,1,1", "0,50;-10,99;1e1,20")
    expected = [stretched(numbers[band], *ends)
                for band, ends in ((2, (0, 50)), (0, (-10, 99)), (0, (10, 20)))]
    assert np.array_equal(each.read(0), np.stack(expected, axis=-1))


def test_halves_are_rounded_to_even_as_numpy_does(tmp_path):
    numbers = np.array([[[0, 1, 2, 3, 4]]], np.int16)
    assert view(tmp_path, numbers, value_range="0,510").read(0)[0, :, 0].tolist() == [0, 0, 1, 2, 2]


def test_types_without_a_natural_range_ask_for_one(tmp_path):
    text = complaint(lambda: view(tmp_path, ramp(np.float32, 1, low=-0.25, high=1.5), number=2),
                     "float32 pixels from -0.25 to 1.5", "--range2 LOW,HIGH", "--range2 2%,98%")
    assert "0.tif" in text
    complaint(lambda: view(tmp_path, np.full((1, 4, 6), np.nan, np.float32)), "all nodata")


@pytest.mark.parametrize("text, part", [
    ("0", "expected LOW,HIGH"), ("0,a", "expected LOW,HIGH"), ("0,1,2", "expected LOW,HIGH"),
    ("", "expected LOW,HIGH"), ("0,nan", "expected LOW,HIGH"), ("-1%,5%", "expected LOW,HIGH"),
    ("0,101%", "expected LOW,HIGH"), ("5,5", "LOW must be below"), ("98%,2%", "must be below"),
    ("0,1;9,3", "must be below"), ("-1e308,1e308", "must be below"), ("0,1;0,1", "2 pairs")])
def test_ranges_that_cannot_be_meant_name_their_flag(tmp_path, text, part):
    complaint(lambda: view(tmp_path, FOUR, "1,2,3", text, number=2), f"--range2 {text[:7]}".strip()
              if "pairs" not in part else "--range2", part)


def test_percentages_are_drawn_from_all_images_without_nodata_and_given_back(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.normal(0.3, 0.1, (7, 4, 8, 8)).astype(np.float32)
    images[:, :, 0, :4] = np.nan
    images[:, :, 1, :4] = -9999
    files = {f"{row}.tif": raster(image, nodata=-9999) for row, image in enumerate(images)}
    place = folder(tmp_path, files)
    source = open_view(place, sorted(files), "4,1,2", "2%,98%")
    valid = images[:, [3, 0, 1]]
    ends = []
    for band in range(3):
        values = valid[:, band][np.isfinite(valid[:, band]) & (valid[:, band] > -9999)]
        ends.append(tuple(float(np.percentile(values, share)) for share in (2, 98)))
        expected = np.where((valid[3, band] == -9999) | np.isnan(valid[3, band]), 0,
                            stretched(np.nan_to_num(valid[3, band]), *ends[band]))
        assert np.array_equal(source.read(3)[..., band], expected)
    assert source.value_range == ";".join(f"{low!r},{high!r}" for low, high in ends)
    again = open_view(place, sorted(files), "4,1,2", source.value_range)
    assert again.value_range == source.value_range and again.decoder.key == source.decoder.key
    for row in range(7):
        assert np.array_equal(again.read(row), source.read(row))


def test_percentages_mixed_with_values_and_of_equal_pixels(tmp_path):
    numbers = np.arange(101, dtype=np.int16).reshape(1, 1, 101)[:, :, :32]
    assert view(tmp_path, numbers, value_range="-5,100%").value_range == "-5,31"
    complaint(lambda: view(tmp_path, np.full((1, 4, 6), 7, np.int16), value_range="2%,98%"),
              "--range1", "both 7", "--range1 0,3000")
    nan = np.full((1, 4, 6), np.nan, np.float32)
    complaint(lambda: view(tmp_path, nan, value_range="2%,98%"), "--range1", "no valid pixel")


def test_a_damaged_file_is_left_to_the_decoding_which_names_it(tmp_path):
    files = {"0.tif": b"II*\0", "1.tif": raster(FOUR), "2.tif": raster(FOUR)}
    source = open_view(folder(tmp_path, files), sorted(files), "3,2,1", "0%,100%")
    assert source.value_range == "0,3000;0,3000;0,3000"
    assert np.array_equal(source.read(1), seen(stretched(FOUR[[2, 1, 0]], 0, 3000)))
    complaint(lambda: open_view(folder(tmp_path, {"0.tif": b"II*\0"}), ["0.tif"], None, "1%,2%"),
              "--range1", "no image could be read")


def test_a_later_file_of_other_bands_names_the_flag_that_helps(tmp_path):
    for number, files in ((1, {"0.tif": raster(FOUR[:3]), "1.tif": raster(FOUR, names=NAMES)}),
                          (2, {"0.png": encoded(noise("0", 4, 6, 3)), "1.tif": raster(FOUR)})):
        place = folder(tmp_path / str(number), files)
        if number == 1:
            source = open_view(place, sorted(files), None, None, number)
            (reason,) = unreadable(source, "test", 1).values()
            assert "1.tif (4 bands: 1 B02 (uint16)" in reason and "--bands1 3,2,1" in reason
        else:
            complaint(lambda place=place, files=files: open_view(place, sorted(files), number=2),
                      "1.tif", "--bands2 3,2,1")
    # Flags that a data set does not take are no advice.
    plain = ImageFiles(place, ["1.tif"])
    (reason,) = unreadable(plain, "test", 1).values()
    assert "4 bands" in reason and "--bands" not in reason


def test_palettes_and_files_without_bands_say_that_the_flags_are_not_for_them(tmp_path):
    photo = folder(tmp_path / "a", {"a.jpg": encoded(noise("a", 4, 6, 3), "JPEG")})
    for flags in (("1", None), (None, "0,9")):
        complaint(lambda flags=flags: open_view(photo, ["a.jpg"], *flags), "a.jpg",
                  "--bands and --range are for TIFF and JPEG 2000")
    table = tree(tmp_path / "b", {"p.tif": encoded(noise("p", 4, 6, 3))})
    Image.fromarray(noise("p", 4, 6, 3)).quantize(9).save(table / "p.tif")
    complaint(lambda: open_view(Folder(table), ["p.tif"], None, "0,9"), "colour table", "leave out")


def test_a_16_bit_png_takes_a_range(tmp_path):
    deep = ramp(np.uint16, bands=1, high=3000)
    place = folder(tmp_path, {"a.png": encoded(deep[0])})
    source = open_view(place, ["a.png"], None, "0,3000")
    assert np.array_equal(source.read(0), seen(stretched(deep, 0, 3000)))


@pytest.mark.parametrize("kind", ["grey", "grey and alpha", "RGB", "RGBA", "palette"])
def test_grey_takes_a_range_however_it_is_stored(tmp_path, kind):
    grey = noise("grey", 4, 6, 1)
    image = {"grey": grey[..., 0], "RGB": np.repeat(grey, 3, 2), "RGBA": np.repeat(grey, 4, 2),
             "grey and alpha": np.repeat(grey, 2, 2)}.get(kind)
    image = Image.fromarray(grey[..., 0]).convert("P") if image is None else Image.fromarray(image)
    place = folder(tmp_path, {"a.png": saved(image, "PNG")})
    source = open_view(place, ["a.png"], None, "10,100")
    assert np.array_equal(source.read(0), seen(stretched(grey.transpose(2, 0, 1), 10, 100)))


# ------------------------------------------------------------ one file a band


def band_files(root, shapes=((8, 8), (8, 8), (8, 8)), scenes=3, **options):
    files, numbers = {}, {}
    for scene in range(scenes):
        for name, shape in zip(("B04", "B03", "B02"), shapes, strict=True):
            path = f"{scene}/{scene}_{name}.tif"
            numbers[path] = noise(path, 1, *shape).astype(np.uint16) * 11
            files[path] = raster(numbers[path], **options)
    names = [tuple(f"{scene}/{scene}_{band}.tif" for band in ("B04", "B03", "B02"))
             for scene in range(scenes)]
    return folder(root, files), names, numbers


def test_a_scene_of_one_file_a_band_is_one_image(tmp_path):
    place, names, numbers = band_files(tmp_path)
    source = open_view(place, names, "B04,B03,B02", "0,2000")
    assert isinstance(source, BandFiles) and len(source) == 3 and source.channels == 3
    for row, scene in enumerate(names):
        expected = np.concatenate([stretched(numbers[name], 0, 2000) for name in scene])
        assert np.array_equal(source.read(row), seen(expected)) and source.size(row) == (8, 8)
        assert all(name in source.where(row) for name in scene)
    part = source.subset(np.array([2]))
    assert np.array_equal(part.read(0), source.read(2)) and len(part) == 1
    assert part.value_range == source.value_range == "0,2000"
    drawn = open_view(place, names, None, "2%,98%")
    every = [np.stack([numbers[scene[band]] for scene in names]) for band in range(3)]
    assert drawn.value_range == ";".join(
        ",".join(repr(float(np.percentile(one, share))).removesuffix(".0") for share in (2, 98))
        for one in every)
    again = open_view(place, names, None, drawn.value_range)
    assert np.array_equal(again.read(1), drawn.read(1))
    grey = open_view(place, [scene[:1] for scene in names], "B04")
    assert np.array_equal(grey.read(0), seen(numbers[names[0][0]] >> 8))


def test_bands_of_several_resolutions_are_brought_to_the_largest(tmp_path):
    place, names, numbers = band_files(tmp_path, ((4, 6), (8, 12), (2, 3)))
    source = open_view(place, names, None, "0,2805")
    assert source.size(0) == source.read(0).shape[:2] == (8, 12)
    for band, name in enumerate(names[0]):
        small = Image.fromarray(stretched(numbers[name][0], 0, 2805).astype(np.uint8))
        expected = np.asarray(small.resize((12, 8), Image.Resampling.BILINEAR))
        assert np.array_equal(source.read(0)[..., band], expected)


def test_a_saturated_band_of_several_files_is_no_nodata(tmp_path):
    numbers = ramp(np.uint8, high=200)
    numbers[:, 1, 2:4] = 255
    numbers[0, 2, 2] = 255  # a bright red
    names = [("B04.tif", "B03.tif", "B02.tif")]
    place = folder(tmp_path, {name: raster(numbers[row:row + 1], nodata=255)
                              for row, name in enumerate(names[0])})
    expected = numbers.copy()
    expected[:, 1, 2:4] = 0
    assert np.array_equal(open_view(place, names).read(0), seen(expected))
    assert open_view(place, names, None, "0%,100%").value_range.startswith("0,255;0,200;")


def test_nodata_is_shared_by_bands_of_several_resolutions(tmp_path):
    fine, coarse = np.full((1, 4, 4), 9, np.uint8), np.full((1, 2, 2), 50, np.uint8)
    coarse[0, :, 1] = fine[0, :2, 2:] = 255  # on the right the coarse band, above the fine one, too
    names = [("B04.tif", "B08.tif", "B11.tif")]
    place = folder(tmp_path, {name: raster(band, nodata=255) for name, band in
                              zip(names[0], (fine, fine, coarse), strict=True)})
    image = open_view(place, names).read(0)
    assert image[..., 0].tolist() == [[9, 9, 0, 0]] * 2 + [[9, 9, 9, 9]] * 2
    shown = Image.fromarray(np.array([[50, 0], [50, 255]], np.uint8))
    shown = shown.resize((4, 4), Image.Resampling.BILINEAR)
    assert np.array_equal(image[..., 2], np.asarray(shown))


def test_of_the_files_of_a_scene_the_damaged_one_is_named(tmp_path):
    _, names, _ = band_files(tmp_path)
    bad = tmp_path / names[1][2]
    bad.write_bytes(bad.read_bytes()[:60])
    source = open_view(Folder(tmp_path), names, "B04,B03,B02")
    ((row, text),) = unreadable(source, "test", 1).items()
    assert row == 1 and f"({names[1][2]}: damaged" in text
    bad.write_bytes(raster(ramp(np.float32, 1)))
    (text,) = unreadable(source, "test", 1).values()
    assert f"({names[1][2]}: float32 pixels" in text and "--range1 LOW,HIGH" in text


def test_the_stamp_of_scenes_follows_the_content_of_each_file(tmp_path):
    place, names, _ = band_files(tmp_path / "a")
    source = BandFiles(place, names)
    sums = source.checksums(None)
    assert sums.shape == (3,) and sums.dtype == np.int64 and len(set(sums.tolist())) == 3
    assert source.stamp(None) != BandFiles(place, names, [(0, 9)]).stamp(None)
    turned = BandFiles(place, [scene[::-1] for scene in names])
    assert turned.stamp(None) != source.stamp(None)
    assert (turned.checksums(None) != sums).all()
    path = tmp_path / "a" / names[1][2]
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    changed = BandFiles(Folder(place.root), names).checksums(None)
    assert (changed != sums).tolist() == [False, True, False]
    copy, *_ = band_files(tmp_path / "b")
    assert (BandFiles(copy, names).checksums(None) == sums).all()


def test_files_of_several_bands_and_scenes_of_many_files_are_one_sentence(tmp_path):
    place = folder(tmp_path, {f"{name}.tif": raster(FOUR[:3]) for name in "abcd"})
    complaint(lambda: open_view(place, [("a.tif", "b.tif", "c.tif")]), "a.tif: 3 bands",
              "expected one in each file")
    complaint(lambda: open_view(place, [("a.tif", "b.tif", "c.tif", "d.tif")], number=2),
              "4 files for the bands of a scene", "--bands2")
