"""Images of tile services lie where they should: the tiles themselves tell where they are."""

import numpy as np
import pytest
from rasterio import Affine
from rasterio.crs import CRS

from imagery.cut import OutOfReach, cut
from imagery.fetch import gdal
from imagery.footprints import Footprint
from imagery.table import _box, _square
from place_helpers import SIDE, around, assert_in_place, on_grid, tiles_of
from tile_server import HALF, scale_of, shift


@pytest.fixture(autouse=True)
def environment():
    with gdal():
        yield


PLACES = {
    "UTM north": on_grid(32633, 400_000, 5_400_000),
    "UTM south": on_grid(32756, 320_000, 6_200_000),
    "not square": on_grid(32633, 400_000, 5_400_000, height=13),
    "turned": on_grid(32633, 400_000, 5_400_000, turn=30),
    "south up": Footprint("place", CRS.from_epsg(32633), Affine(10, 0, 4e5, 0, 10, 5.4e6), SIDE,
                          SIDE),
    "mirrored": Footprint("place", CRS.from_epsg(32633), Affine(-10, 0, 4e5, 0, -10, 5.4e6), SIDE,
                          SIDE),
    "LAEA": on_grid(3035, 4_321_000, 3_210_000),
    "where four tiles meet": on_grid(3857, -160, 160),
    "a point": _square("place", 48.1, 11.5, 640, SIDE),
    "a point in the south": _square("place", -33.9, 18.4, 640, SIDE),
    "100 km": _square("place", 50, 10, 100_000, SIDE),
    "north of UTM": _square("place", 84.9, 12, 640, SIDE),
    "south of UTM": _square("place", -80.5, -100, 640, SIDE),
    "a box": _box("place", 11.5, 48.1, 11.508, 48.104, SIDE, ""),
}
DATE_LINE = {
    "zone 60": around(32660, 180, 1.8),
    "zone 1": around(32701, -180, -1.8),
    "zone 60, 60 degrees north": around(32660, 180, 60),
    "a point on it": _square("place", -16.5, 180, 640, SIDE),
    "a point beside it": _square("place", -16.5, -179.999, 640, SIDE),
    "a box": _box("place", 179.999, -17, -179.998, -16.998, SIDE, ""),
    "beyond 180 degrees": on_grid(4326, 179.998, 10, pixel=1e-4),
    "beyond -180 degrees": on_grid(4326, -180.0015, -10, pixel=1e-4),
    "another Mercator": around(3832, 180, 9),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_place(server, name):
    footprint, scale = PLACES[name], scale_of(PLACES[name])
    source = tiles_of(server, scale)
    found = cut(source, footprint)
    assert_in_place(found, footprint, scale)
    # The coarsest zoom that is as fine.
    assert 1 <= found.view.scale < 2.01
    assert {tile[0] for tile in server.tiles} == {int(source.zoom(found.view.factor))}
    assert len(set(server.tiles)) == len(server.tiles) <= 4


@pytest.mark.parametrize("name", DATE_LINE)
def test_a_place_at_the_date_line(server, name):
    footprint, scale = DATE_LINE[name], scale_of(DATE_LINE[name])
    found = cut(tiles_of(server, scale), footprint)
    assert_in_place(found, footprint, scale)
    columns = {column for _, column, _ in server.tiles}
    zoom = server.tiles[0][0]
    assert columns == {0, 2 ** zoom - 1}, "it does not lie on both sides"


def test_all_lies_beyond_180_degrees(server):
    """Some count longitudes to 360."""
    for x in (190.3, 359.2):
        footprint = on_grid(4326, x, 10, pixel=1e-4)
        scale = scale_of(footprint)
        assert_in_place(cut(tiles_of(server, scale), footprint), footprint, scale)


@pytest.mark.parametrize(("zoom", "finer"), [(12, False), (13, False), (17, True)])
def test_another_zoom_than_the_image_asks_for(server, zoom, finer):
    for footprint in (PLACES["UTM north"], DATE_LINE["zone 60"]):
        scale = scale_of(footprint, 183 if finer else 70)  # cubic looks far beyond the image
        found = cut(tiles_of(server, scale, zoom), footprint)
        assert_in_place(found, footprint, scale)
        assert (found.view.scale > 2) == finer and (found.view.scale < 1) != finer
    assert {tile[0] for tile in server.tiles} == {zoom}


@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "cubic", "average"])
def test_each_resampling(server, resampling):
    footprint = PLACES["UTM north"]
    scale = scale_of(footprint)
    found = cut(tiles_of(server, scale, zoom=15), footprint, resampling)
    east, north, largest = shift(found.pixels, footprint, scale)
    assert abs(east) < 0.1 and abs(north) < 0.1 and largest < 0.5


def test_fine_tiles_are_averaged_and_not_sampled(server):
    """Blue is a chessboard of the tiles' pixels here: its mean is grey, its samples are not."""
    footprint = PLACES["UTM north"]
    scale = scale_of(footprint)
    plain = server.answer_tile
    board = np.indices((256, 256)).sum(axis=0) % 2 * 255

    def chequered(*place):
        return np.stack([*plain(*place)[:2], board.astype(np.uint8)])

    server.answer_tile = chequered
    found = cut(tiles_of(server, scale, zoom=18), footprint)
    assert_in_place(found, footprint, scale)
    assert abs(found.pixels[2].astype(int) - 127).max() <= 4
    nearest = cut(tiles_of(server, scale, zoom=18), footprint, "nearest")
    assert set(np.unique(nearest.pixels[2])) == {0, 255}


def test_rows_from_the_south(server):
    server.south = True
    footprint = PLACES["UTM south"]
    scale = scale_of(footprint)
    assert_in_place(cut(tiles_of(server, scale), footprint), footprint, scale)
    zoom, _, row = server.tiles[0]
    assert row < 2 ** zoom / 2


def test_tiles_of_512_pixels(server):
    server.size = 512
    footprint = PLACES["turned"]
    scale = scale_of(footprint)
    small = tiles_of(server, scale, tile_size=512)
    assert_in_place(cut(small, footprint), footprint, scale)
    assert {tile[0] for tile in server.tiles} == {13}  # 14 for tiles of 256 pixels
    assert small.finest == 21  # of 22, where GDAL cannot count the pixels


def test_the_finest_zooms(server):
    """Pixels of 3.7 cm; then the tiles end, and what there is is enlarged."""
    footprint = _square("place", 0.1, 10, 2, SIDE)
    scale = scale_of(footprint)
    found = cut(tiles_of(server, scale), footprint)
    assert_in_place(found, footprint, scale)
    assert {tile[0] for tile in server.tiles} == {22} and found.view.scale > 1
    closer = _square("place", 0.1, 10, 0.4, SIDE)
    scale = scale_of(closer)
    found = cut(tiles_of(server, scale), closer)
    assert_in_place(found, closer, scale)
    assert found.view.scale < 0.5


@pytest.mark.parametrize(("latitude", "why"), [
    (85.2, "Web Mercator ends at 85.05 degrees"), (-89.9, "Web Mercator ends at 85.05 degrees"),
    (90, "Web Mercator ends at 85.05 degrees"), (85.0505, "Web Mercator ends at 85.05 degrees")])
def test_web_mercator_has_no_poles(server, latitude, why):
    footprint = _square("place", latitude, 12, 640, SIDE)
    with pytest.raises(OutOfReach, match=why):
        cut(tiles_of(server, scale_of(PLACES["UTM north"])), footprint)
    assert not server.asked


def test_the_last_place_before_web_mercator_ends(server):
    metres = 640 * 11.6  # of Web Mercator at 85 degrees
    footprint = on_grid(3857, 1_000_000, HALF - 1, pixel=metres / SIDE)
    scale = scale_of(footprint)
    found = cut(tiles_of(server, scale), footprint)
    assert_in_place(found, footprint, scale)
    assert min(row for _, _, row in server.tiles) == 0
