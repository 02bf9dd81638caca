"""Scenes of any kind cut into tiles: the same pixels as of the whole array, and where they lie."""

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio import Affine
from rasterio.transform import xy
from rasterio.warp import transform

from archive.reading import Reading
from archive.tiles import Scene, scenes_in
from datasets.eurosat import BANDS
from datasets.rasters import turned
from image_helpers import complaint, encoded, noise, tree
from raster_helpers import raster, saved
from tile_helpers import GRID, assert_same, drawn, slices, tiles_of, written

# ------------------------------------------------------------ windows


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(8, 80), st.integers(8, 80), st.integers(1, 8), st.integers(1, 9))
def test_tiles_cover_every_pixel(tmp_path_factory, height, width, side, stride):
    folder = tmp_path_factory.mktemp("scene")
    scene = Scene(written(folder / "a.tif", drawn(0, 1, height, width)), Reading(), side, stride)
    covered = np.zeros((height, width), int)
    for column, row, *shape in scene.windows:
        assert shape == [side, side] and 0 <= column <= width - side and row <= height - side
        assert column % stride == 0 or column == width - side
        assert row % stride == 0 or row == height - side
        covered[row:row + side, column:column + side] += 1
    assert len(set(scene.windows)) == len(scene) and len(set(scene.names)) == len(scene)
    if stride <= side:
        assert covered.min() == 1
    if stride == side and height % side == width % side == 0:
        assert covered.max() == 1


def test_the_last_tiles_are_moved_inwards(tmp_path):
    scene = Scene(written(tmp_path / "city.tif", drawn(0)), Reading(), 32, 32)
    assert [window[:2] for window in scene.windows] == [(0, 0), (32, 0), (38, 0),
                                                        (0, 18), (32, 18), (38, 18)]
    assert scene.names[4] == "city/18_32"  # row and column
    assert "column 32, row 18" in scene.where(4)
    overlapping = Scene(tmp_path / "city.tif", Reading(), 32, 16)
    assert [window[:2] for window in overlapping.windows[:4]] == [(0, 0), (16, 0), (32, 0), (38, 0)]


@pytest.mark.parametrize("stride", [16, 24, 7])
def test_pixels_are_those_of_the_whole(tmp_path, stride):
    numbers = drawn(1)
    scene = Scene(written(tmp_path / "a.tif", numbers, tiled=True, blockxsize=16, blockysize=16),
                  Reading(), 24, stride)
    assert_same(tiles_of(scene), slices(numbers.transpose(1, 2, 0), scene.windows))


def test_an_item_says_what_it_is(tmp_path):
    path = written(tmp_path / "a.tif", drawn(1), crs="EPSG:32633", transform=GRID)
    item, pixels = Scene(path, Reading(), 24, 24, "north/a").load(3)
    assert (item.name, item.path, item.member, item.kind) == ("north/a/24_0", path, "", None)
    assert item.window == (0, 24, 24, 24) and (item.height, item.width) == pixels.shape[:2]
    assert item.crs == "EPSG:32633" and Reading.of_text(item.reading) == Reading()


def test_footprints_are_those_of_the_windows(tmp_path):
    turned_grid = GRID * Affine.rotation(30)
    for grid in (GRID, turned_grid):
        path = written(tmp_path / "a.tif", drawn(1), crs="EPSG:32633", transform=grid)
        scene = Scene(path, Reading(), 24, 24)
        for index, (column, row, *_) in enumerate(scene.windows):
            rows, columns = [row, row, row + 24, row + 24], [column, column + 24, column + 24,
                                                             column]
            x, y = xy(grid, rows, columns, offset="ul")
            expected = np.stack(transform("EPSG:32633", "EPSG:4326", x, y), axis=1).ravel()
            assert scene.load(index)[0].corners == pytest.approx(expected, abs=1e-9)


# ------------------------------------------------------------ bands and ranges


@pytest.fixture(scope="module")
def sentinel(tmp_path_factory):
    """13 bands of 16 bits, named, no two alike."""
    path = tmp_path_factory.mktemp("sentinel") / "scene.tif"
    numbers = drawn(2, 13, 40, 56, "uint16", 1, 4000) + 100 * np.arange(13, dtype="uint16")[
        :, None, None]
    return written(path, numbers, names=BANDS), numbers


@pytest.mark.parametrize("bands", ["B04,B03,B02", "4,3,2", "b04, B03,2"])
def test_bands_by_name_and_number_and_a_range(sentinel, bands):
    path, numbers = sentinel
    scene = Scene(path, Reading(bands, "200,3200"), 16, 16)
    stretched = np.clip((numbers[[3, 2, 1]] - 200.0) * (255 / 3000), 0, 255).round()
    assert_same(tiles_of(scene), slices(stretched.transpose(1, 2, 0), scene.windows))


def test_a_range_in_percent_is_of_all_tiles(sentinel):
    path, numbers = sentinel
    scene = Scene(path, Reading("B12,B8A,B04", "2%,98%"), 8, 8)
    planes = []
    for plane in numbers[[11, 12, 3]]:
        low, high = np.percentile(plane, [2, 98])
        planes.append(np.rint(np.clip((plane - low) * (255 / (high - low)), 0, 255)))
    assert_same(tiles_of(scene), slices(np.stack(planes, axis=2), scene.windows))
    again = Scene(path, scene.reading, 8, 8)  # what is kept has numbers
    assert "%" not in scene.reading.value_range
    assert_same(tiles_of(again), tiles_of(scene))


def test_one_band_is_grey_and_16_bits_are_halved(sentinel):
    path, numbers = sentinel
    scene = Scene(path, Reading("B08"), 16, 16)
    grey = np.repeat(numbers[7][..., None] >> 8, 3, axis=2)
    assert_same(tiles_of(scene), slices(grey, scene.windows))


@pytest.mark.parametrize(("reading", "part"), [
    (Reading(), "13 bands"), (Reading("B04,B03"), "2 bands are chosen"),
    (Reading("B04,B03,X"), "no band is called X"), (Reading("4,3,2", "0,1;0,2"), "has 2 pairs"),
    (Reading("4,3,2", "5,5"), "LOW must be below HIGH"),
    (Reading(sensor="samples ms"), "cut with --plain")])
def test_flags_that_do_not_fit(sentinel, reading, part):
    complaint(lambda: Scene(sentinel[0], reading, 16, 16), part)


# ------------------------------------------------------------ kinds of files


def test_jpeg_2000_virtual_png_and_jpeg_scenes(tmp_path):
    numbers = drawn(6, 3, 48, 64)
    path = written(tmp_path / "a.tif", numbers)
    (tmp_path / "a.jp2").write_bytes(raster(numbers, driver="JP2OpenJPEG", REVERSIBLE="YES",
                                            QUALITY="100", blockxsize=32, blockysize=32))
    image = Image.fromarray(numbers.transpose(1, 2, 0))
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "a.jpg", quality=100, subsampling=0)
    bands = "".join(f"""<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource>
        <SourceFilename relativeToVRT="1">a.tif</SourceFilename><SourceBand>{4 - band}</SourceBand>
        </SimpleSource></VRTRasterBand>""" for band in (1, 2, 3))
    (tmp_path / "a.vrt").write_text(
        f'<VRTDataset rasterXSize="64" rasterYSize="48">{bands}</VRTDataset>')
    expected = tiles_of(Scene(path, Reading(), 16, 16))
    for name in ("a.jp2", "a.png"):
        assert_same(tiles_of(Scene(tmp_path / name, Reading(), 16, 16)), expected)
    assert_same(tiles_of(Scene(tmp_path / "a.vrt", Reading(), 16, 16)),
                {place: pixels[..., ::-1] for place, pixels in expected.items()})
    whole = np.asarray(Image.open(tmp_path / "a.jpg"))
    scene = Scene(tmp_path / "a.jpg", Reading(), 16, 16)
    assert np.abs(tiles_of(scene)[16, 16].astype(int) - whole[16:32, 16:32]).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_tiles_are_upright(tmp_path, kind, orientation):
    """As the same image is in a folder."""
    pixels = np.kron(drawn(7, 3, 2, 3), np.ones((1, 16, 16), np.uint8)).transpose(1, 2, 0)
    image, path = Image.fromarray(pixels), tmp_path / f"a.{kind.lower()}"
    exif = Image.Exif()
    exif[274] = orientation
    path.write_bytes(saved(image, kind, exif=exif, **({"quality": 100} if kind == "JPEG" else {})))
    for (column, row), tile in tiles_of(Scene(path, Reading(), 16, 16)).items():
        stored = pixels[row:row + 16, column:column + 16]
        expected = turned(stored.transpose(2, 0, 1), orientation).transpose(1, 2, 0)
        assert np.abs(tile.astype(int) - expected).max() <= 3
    gradient = np.tile(np.arange(0, 256, 16, dtype=np.uint8), (16, 1))  # one tile, not symmetric
    path.write_bytes(saved(Image.fromarray(gradient), kind, exif=exif))
    found = tiles_of(Scene(path, Reading(), 16, 16))[0, 0][..., 0]
    assert np.abs(found.astype(int) - turned(gradient, orientation)).max() <= 3


def test_scenes_that_cannot_be_cut(tmp_path):
    small = written(tmp_path / "small.tif", drawn(0, 3, 15, 64))
    complaint(lambda: Scene(small, Reading(), 16, 16), "64 x 15 pixels", "--tile 16")
    assert len(Scene(small, Reading(), 15, 15)) == 5
    palette = Image.fromarray(noise("a", 32, 32)).convert("P")
    (tmp_path / "palette.tif").write_bytes(saved(palette, "TIFF"))
    complaint(lambda: Scene(tmp_path / "palette.tif", Reading(), 16, 16), "colour table")
    (tmp_path / "text.tif").write_text("no raster")
    complaint(lambda: Scene(tmp_path / "text.tif", Reading(), 16, 16), "cannot be opened")
    odd = written(tmp_path / "odd.tif", drawn(0, 1, 32, 32).astype("complex64"))
    complaint(lambda: Scene(odd, Reading(), 16, 16), "complex64 pixels")
    complaint(lambda: scenes_in(tree(tmp_path / "a.zip", {"a.tif": b""}), Reading(), 16, 16),
              "is a zip")
    complaint(lambda: scenes_in(tree(tmp_path / "none", {"a.txt": b""}), Reading(), 16, 16),
              "holds no scene")


def test_scenes_of_a_folder_have_names_of_their_own(tmp_path):
    tree(tmp_path, {"x/a.tif": raster(drawn(0)), "y/a.tiff": raster(drawn(1)),
                    "y/b.png": encoded(noise("b", 50, 50, 3))})
    scenes = scenes_in(tmp_path, Reading(), 32, 32)
    assert [scene.names[0] for scene in scenes] == ["x/a/0_0", "y/a/0_0"]


def test_a_damaged_tile_is_named_and_others_are_read(tmp_path):
    """Also the one in the middle, which is looked at first."""
    numbers = drawn(8, 1, 64, 64)
    path = written(tmp_path / "a.tif", numbers, tiled=True, blockxsize=16, blockysize=16,
                   compress="deflate")
    with rasterio.open(path) as file:
        offset = int(file.get_tag_item("BLOCK_OFFSET_0_2", "TIFF", bidx=1))
    data = bytearray(path.read_bytes())
    data[offset:offset + 40] = bytes(40)
    path.write_bytes(data)
    scene = Scene(path, Reading(), 16, 16)
    bad = []
    for index in range(len(scene)):
        try:
            scene.load(index)
        except rasterio.errors.RasterioIOError:
            bad.append(scene.windows[index][:2])
    assert bad == [(0, 32)] and scene.windows[len(scene) // 2][:2] == (0, 32)
