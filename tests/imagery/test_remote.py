"""Rasters that lie afar: COGs, WMTS, and GDAL's descriptions of services, from this machine."""

import numpy as np
import pytest
import rasterio.shutil

from imagery.cut import Fixed, cut
from imagery.fetch import FetchError, Pacer, gdal
from imagery.plan import plan_of
from imagery.rasters import Raster
from place_helpers import assert_in_place, drawn, extent, on_grid, write_raster
from tile_server import HALF, Answer, scale_of

PLACE = on_grid(32633, 400_003, 5_400_004)
SCALE = scale_of(PLACE)
KEY = "Ke7-of-this-test"


@pytest.fixture(autouse=True)
def environment(tmp_path):
    with gdal(tmp_path / "cache"):
        yield


def opened(place):
    return Raster(str(place), None, Pacer(1000))


def cog(folder, change=lambda pixels: pixels, **options):
    """The bytes of a COG around the place, 2.5 m pixels and overviews."""
    grid, height, width = extent(PLACE, PLACE.crs, 2.5, more=2)
    pixels = change(drawn(PLACE.crs, grid, height, width, SCALE).astype("float32"))
    plain = write_raster(folder / "plain.tif", pixels, PLACE.crs, grid, **options)
    rasterio.shutil.copy(plain, folder / "cog.tif", driver="COG", BLOCKSIZE=128,
                         OVERVIEW_RESAMPLING="AVERAGE")
    return (folder / "cog.tif").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return cog(tmp_path_factory.mktemp("cog"))


@pytest.mark.parametrize("form", ["{}", "{}?key=" + KEY, "/vsicurl/{}"])
def test_a_cog_is_read_in_parts(whole, server, form):
    server.files["scene.tif"] = whole
    raster = opened(form.format(server.address("scene.tif")))
    assert raster.remote and raster.label.endswith("scene.tif")
    plan = plan_of(Fixed([raster]), [PLACE])
    opening = raster.pacer.count
    found = cut(raster, PLACE)
    assert_in_place(found, PLACE, SCALE)
    assert found.view.factor == 4 and raster.zoom(4) == "1/4"
    assert opening == 2 and plan.tiles == raster.pacer.count - opening and 1 <= plan.tiles <= 4
    assert sum(server.sent) < len(whole) / 3, "nearly all of it came"


def test_a_part_that_fails_is_asked_for_again(whole, server, impatient):
    server.files["scene.tif"] = whole
    raster = opened(server.address("scene.tif"))
    before = len(server.asked)
    server.answers = lambda path, earlier: Answer(status=500) if earlier == before else None
    assert_in_place(cut(raster, PLACE), PLACE, SCALE)
    server.answers = lambda path, earlier: Answer(status=500)
    with pytest.raises(FetchError, match="no image of the expected size came"):
        cut(opened_again(server, raster), PLACE)


def opened_again(server, raster):
    """The same raster, nothing of which is in memory."""
    answers, server.answers = server.answers, lambda path, earlier: None
    again = opened(server.address("scene.tif?again"))
    server.answers = answers
    return again


def test_the_edge_of_a_scene_counts_though_most_of_its_block_is_empty(tmp_path, server):
    """Nodata in six pixels of seven, and not all of one colour."""
    def emptied(pixels):
        height, width = pixels.shape[1:]
        there = np.zeros((height, width), bool)
        there[int(0.35 * height):int(0.65 * height), int(0.35 * width):int(0.65 * width)] = True
        pixels[:, ~there] = -1
        return pixels

    server.files["scene.tif"] = cog(tmp_path, change=emptied, nodata=-1)
    assert_in_place(cut(opened(server.address("scene.tif")), PLACE), PLACE, SCALE)


DESCRIPTION = """<GDAL_WMS><Service name="TMS"><ServerUrl>{url}</ServerUrl></Service><DataWindow>
<UpperLeftX>-{half}</UpperLeftX><UpperLeftY>{half}</UpperLeftY><LowerRightX>{half}</LowerRightX>
<LowerRightY>-{half}</LowerRightY><TileLevel>18</TileLevel><TileCountX>1</TileCountX>
<TileCountY>1</TileCountY><YOrigin>top</YOrigin></DataWindow><Projection>EPSG:3857</Projection>
<BlockSizeX>256</BlockSizeX><BlockSizeY>256</BlockSizeY><BandsCount>3</BandsCount><Cache/>
</GDAL_WMS>"""
CAPABILITIES = """<Capabilities xmlns="http://www.opengis.net/wmts/1.0"
xmlns:ows="http://www.opengis.net/ows/1.1" version="1.0.0"><Contents><Layer>
<ows:Identifier>all</ows:Identifier><Style isDefault="true"><ows:Identifier>default</ows:Identifier>
</Style><Format>image/png</Format><TileMatrixSetLink><TileMatrixSet>grid</TileMatrixSet>
</TileMatrixSetLink><ResourceURL format="image/png" resourceType="tile" template="{url}"/></Layer>
<TileMatrixSet><ows:Identifier>grid</ows:Identifier>
<ows:SupportedCRS>urn:ogc:def:crs:EPSG::3857</ows:SupportedCRS>{levels}</TileMatrixSet></Contents>
</Capabilities>"""
LEVEL = """<TileMatrix><ows:Identifier>{zoom}</ows:Identifier>
<ScaleDenominator>{scale}</ScaleDenominator><TopLeftCorner>-{half} {half}</TopLeftCorner>
<TileWidth>256</TileWidth><TileHeight>256</TileHeight><MatrixWidth>{count}</MatrixWidth>
<MatrixHeight>{count}</MatrixHeight></TileMatrix>"""


def described(server):
    return DESCRIPTION.format(half=HALF, url=server.template(SCALE, f"?key={KEY}")
                              .replace("{", "${"))


def wmts(server):
    levels = "".join(LEVEL.format(zoom=zoom, half=HALF, count=2 ** zoom,
                                  scale=2 * HALF / 256 / 2 ** zoom / 0.00028)
                     for zoom in range(19))
    url = server.template(SCALE).replace("{z}", "{TileMatrix}").replace("{x}", "{TileCol}")
    server.files["capabilities.xml"] = CAPABILITIES.format(
        levels=levels, url=url.replace("{y}", "{TileRow}")).encode()
    return f"WMTS:{server.address('capabilities.xml')}"


@pytest.mark.parametrize("kind", ["a file", "a text", "WMTS"])
def test_services_that_gdal_has_a_description_of(tmp_path, server, kind):
    place = wmts(server) if kind == "WMTS" else described(server)
    if kind == "a file":
        (tmp_path / "service.xml").write_text(place)
        place = tmp_path / "service.xml"
    raster = opened(place)
    assert KEY not in raster.label and raster.remote and raster.bands == 3
    plan = plan_of(Fixed([raster]), [PLACE])
    assert not server.tiles
    opening = raster.pacer.count
    found = cut(raster, PLACE)
    assert_in_place(found, PLACE, SCALE)
    assert 1 <= found.view.scale < 2 and {tile[0] for tile in server.tiles} == {14}
    assert len(server.tiles) == plan.tiles == raster.pacer.count - opening
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(kept) == plan.tiles


@pytest.mark.parametrize("kind", ["a text", "WMTS"])
def test_without_a_cache_nothing_is_kept(tmp_path, server, monkeypatch, kind):
    """Left to itself, GDAL keeps tiles in the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with gdal():
        place = wmts(server) if kind == "WMTS" else described(server)
        assert_in_place(cut(opened(place), PLACE), PLACE, SCALE)
    assert not list(tmp_path.iterdir())


def test_a_flat_tile_of_a_description_is_no_imagery(server):
    tiles = []

    def flat(*place):
        tiles.append(place)
        return np.full((3, 256, 256), 99, np.uint8)

    server.answer_tile = flat
    assert cut(opened(described(server)), PLACE).covered == 0 and tiles
