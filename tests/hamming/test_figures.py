"""Figures and the numbers behind them."""

import csv
import io
import os

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image

import hamming
from hamming.figures import (
    LONGEST,
    classes_of,
    curve_of,
    ranks_to_show,
    write_comparison,
    write_curves,
    write_figures,
)
from hamming.fonts import families_for, file_for
from hamming.names import as_text, to_draw
from hamming.pictures import neighbour_picture
from helpers_hamming import make_data


def table_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_drawn(path):
    pixels = np.asarray(Image.open(path).convert("L"))
    assert pixels.min() < 60 and 0.5 < (pixels > 250).mean() < 0.999  # lines on white


def test_figures_and_their_numbers_agree_with_the_results(tmp_path):
    data, *_ = make_data(12, Q=20, N=60)
    results = hamming.evaluate(*data, 12, 9)
    names = ["field", "sea", "town"]
    own = (data[2] + 3) // 7  # classes 0, 1, 2
    folder = tmp_path / "new" / "folder"
    write_figures(hamming.distance_histograms(*data, 12), 9, own, names, folder)
    for name in ("precision_recall", "precision_at_rank", "ap_per_class"):
        assert_drawn(folder / f"{name}.png")
    by_radius = table_of(folder / "precision_recall.csv")
    assert [int(row["radius"]) for row in by_radius] == list(range(13))
    assert float(by_radius[2]["precision"]) == pytest.approx(results["precision_radius2"])
    assert float(by_radius[12]["recall"]) == pytest.approx(1) == float(by_radius[12]["answered"])
    by_rank = {int(row["rank"]): row for row in table_of(folder / "precision_at_rank.csv")}
    for k in (1, 10):
        assert float(by_rank[k]["precision"]) == pytest.approx(results["precision_at"][str(k)])
    assert float(by_rank[9]["recall"]) == pytest.approx(results["recall"])
    classes = table_of(folder / "ap_per_class.csv")
    assert [row["name"] for row in classes] == names
    weights = [int(row["queries"]) for row in classes]
    assert weights == np.bincount(own).tolist()
    for column, key in (("ap", "map"), ("ap_min", "map_min"), ("ap_max", "map_max")):
        values = [float(row[column]) for row in classes]
        assert np.average(values, weights=weights) == pytest.approx(results[key])


def test_figures_of_items_with_several_labels_count_a_query_in_each_of_its_classes(tmp_path):
    labels = np.array([[1, 1, 0], [0, 1, 0]])
    found = {number: queries.tolist() for number, queries in classes_of(labels).items()}
    assert found == {0: [True, False], 1: [True, True]}
    tables = hamming.Histograms(np.array([[2, 1], [1, 2]]), np.array([[1, 1], [1, 0]]))
    write_figures(tables, 2, labels, None, tmp_path)
    rows = [(row["name"], row["queries"], float(row["ap"]))
            for row in table_of(tmp_path / "ap_per_class.csv")]
    # First query, R = 2: a hit at rank 1 or 2, each 1/2, so (1 + 1/2) / 2; second: one at rank 1.
    assert rows == [("class 0", "1", 0.75), ("class 1", "2", 0.875)]


def test_many_classes_are_all_in_the_table_and_the_lowest_in_the_figure(tmp_path):
    many = hamming.Histograms(np.tile([[2, 1]], (70, 1)), np.tile([[1, 1]], (70, 1)))
    names = ["$x^{$", "\u6c34"] * 35  # a formula that is none, and no glyph in the font
    write_figures(many, 2, np.arange(70), names, tmp_path)
    assert [row["name"] for row in table_of(tmp_path / "ap_per_class.csv")] == names
    assert Image.open(tmp_path / "ap_per_class.png").height < 3000


ONE_QUERY = hamming.Histograms(np.array([[2, 1]]), np.array([[1, 1]]))
LATIN1, ASCII_LOCALE = b"Fl\xfcsse", "Flüsse".encode()  # read as no text, or in the C locale
UNREAD = [name.decode("ascii", "surrogateescape") for name in (LATIN1, ASCII_LOCALE)]


def test_names_that_are_no_text_are_written_and_umlauts_of_any_locale_are_umlauts(tmp_path):
    assert [as_text(name) for name in (*UNREAD, "Flüsse", "a\ud800")] == [
        r"Fl\xfcsse", "Flüsse", "Flüsse", r"a\ud800"]
    tables = hamming.Histograms(np.tile([[2, 1]], (2, 1)), np.tile([[1, 1]], (2, 1)))
    assert write_figures(tables, 2, np.arange(2), UNREAD, tmp_path) == ""
    assert len(os.listdir(tmp_path)) == 6  # none is left out, nor aside
    assert [row["name"] for row in table_of(tmp_path / "ap_per_class.csv")] == [
        r"Fl\xfcsse", "Flüsse"]
    file = io.BytesIO()
    image = np.zeros((4, 4, 3), np.uint8)
    assert neighbour_picture([image] * 2, [[image]] * 2, None, UNREAD, file) == ""


@pytest.mark.filterwarnings("error")  # nothing that matplotlib complains of
def test_names_of_any_length_and_with_any_characters_are_drawn_on_one_line(tmp_path):
    name = "x" * 500 + "\n\ty$z^{"
    assert write_figures(ONE_QUERY, 2, np.zeros(1, int), [name], tmp_path) == ""
    assert table_of(tmp_path / "ap_per_class.csv")[0]["name"] == name
    drawn = to_draw(name, LONGEST)
    assert drawn == "x" * 13 + "..." + "xxxx" + r"\n\ty$z^{" and len(drawn) <= LONGEST
    assert to_draw("a\x00b\u200bc") == r"a\x00b\u200bc"


@pytest.fixture
def water(tmp_path):
    """A font that matplotlib knows for a while, with a glyph for water, a filled square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 1000), (1000, 1000), (1000, 0)):
        pen.lineTo(corner)
    pen.closePath()
    glyphs = {".notdef": TTGlyphPen(None).glyph(), "water": pen.glyph()}
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(list(glyphs))
    font.setupCharacterMap({ord("\u6c34"): "water"})
    font.setupGlyf(glyphs)
    font.setupHorizontalMetrics({name: (1000, 0) for name in glyphs})
    font.setupHorizontalHeader(ascent=1000, descent=0)
    font.setupNameTable({"familyName": "Water", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "water.ttf")
    known = list(font_manager.fontManager.ttflist)
    font_manager.fontManager.addfont(tmp_path / "water.ttf")
    yield str(tmp_path / "water.ttf")
    font_manager.fontManager.ttflist[:] = known


def black_of(path):
    return (np.asarray(Image.open(path).convert("L")) < 60).sum()


@pytest.mark.filterwarnings("error")
def test_a_font_that_has_the_characters_of_a_name_is_found(tmp_path, water):
    assert families_for("aü\u6c34") == (["DejaVu Sans", "Water"], "")
    assert file_for("\u6c34") == (water, "")
    drawn = {}
    for name in ("\u6c34" * 9, "\u2003" * 9):  # nine filled squares, nine spaces
        assert write_figures(ONE_QUERY, 2, np.zeros(1, int), [name], tmp_path) == ""
        drawn[name[0]] = black_of(tmp_path / "ap_per_class.png")
    assert drawn["\u6c34"] - drawn["\u2003"] > 9 * 15 * 15
    image, file = np.full((4, 4, 3), 255, np.uint8), io.BytesIO()
    assert neighbour_picture([image], [[image]], None, ["\u6c34" * 9], file) == ""
    assert black_of(file) > 9 * 8 * 8


@pytest.mark.filterwarnings("error")
def test_characters_that_no_font_has_are_told_once_each(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(font_manager.fontManager, "ttflist", [
            entry for entry in font_manager.fontManager.ttflist
            if entry.name.startswith(("DejaVu Sans", "Last Resort"))])
        assert write_figures(ONE_QUERY, 2, np.zeros(1, int), ["\u6c34\u706b\u6c34"],
                             tmp_path) == "\u6c34\u706b"
        image = np.zeros((4, 4, 3), np.uint8)
        assert neighbour_picture([image], [[image]], None, ["\u6c34\u6c34"],
                                 io.BytesIO()) == "\u6c34"


def test_a_figure_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    write_curves({"one": (np.arange(2), np.arange(2))}, tmp_path, "title")
    (tmp_path / "folder").mkdir()
    (tmp_path / "precision_recall.csv").rename(tmp_path / "folder" / "table")
    (tmp_path / "precision_recall.csv").symlink_to("folder/table")
    before = (tmp_path / "folder" / "table").read_bytes()

    def full(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space left"):
            write_curves({"another": (np.arange(2), np.arange(2))}, tmp_path, "title")
    assert (tmp_path / "folder" / "table").read_bytes() == before
    assert os.listdir(tmp_path / "folder") == ["table"]
    write_curves({"another": (np.arange(2), np.arange(2))}, tmp_path, "title")
    assert (tmp_path / "precision_recall.csv").is_symlink()
    assert b"another" in (tmp_path / "folder" / "table").read_bytes()


def test_ranks_are_few_and_hold_the_first_ten_the_last_and_R():
    assert ranks_to_show(5, 99) == [1, 2, 3, 4, 5]
    ranks = ranks_to_show(10**6, 1900)
    assert ranks[:10] == list(range(1, 11)) and ranks[-1] == 10**6 and 1900 in ranks
    assert len(ranks) < 120


def test_curves_of_methods_are_drawn_and_written(tmp_path):
    # Pencil: a hit, a miss, a hit at distances 0, 1, 2.
    curve = curve_of(hamming.Histograms(np.array([[1, 1, 1]]), np.array([[1, 0, 1]])))
    np.testing.assert_allclose(curve, [[1 / 2, 1 / 2, 1], [1, 1 / 2, 2 / 3]])
    write_curves({f"method {number}": curve for number in range(12)}, tmp_path, "title")
    rows = table_of(tmp_path / "precision_recall.csv")
    assert len(rows) == 36
    assert rows[-1] == {"method": "method 11", "recall": "1.0", "precision": str(2 / 3)}
    assert_drawn(tmp_path / "precision_recall.png")


def test_a_comparison_draws_methods_with_and_without_codes(tmp_path):
    maps = {"ours": {16: (0.55, 0.5, 0.6), 64: (0.7, 0.7, 0.7)},
            "real values": {None: (0.9, 0.9, 0.9)}}
    write_comparison(maps, tmp_path / "new", 1900, "title")
    assert_drawn(tmp_path / "new" / "map_by_bits.png")


@pytest.mark.parametrize(("kind", "start"), [("pdf", b"%PDF-"), ("svg", b"<?xml"),
                                             ("png", b"\x89PNG")])
def test_a_figure_for_a_paper_is_the_same_file_each_time(tmp_path, kind, start):
    maps = {"ours": {16: (0.55, 0.5, 0.6)}}
    for folder in ("one", "two"):
        write_comparison(maps, tmp_path / folder, 90, "title", ["png", kind])
    made = [(tmp_path / folder / f"map_by_bits.{kind}").read_bytes() for folder in ("one", "two")]
    assert made[0] == made[1] and made[0].startswith(start)
    assert (tmp_path / "one" / "map_by_bits.png").exists()
