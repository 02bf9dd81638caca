"""The page of an archive: what is written, and what a browser makes of it."""

import base64
import json
import re

import numpy as np
import pytest
from PIL import Image

import page_helpers
from archive.page import GRID, MOST, TILE, PageItem, write_page
from hamming.names import to_draw
from page_helpers import (
    HASH_BIT,
    Page,
    codes_with_ties,
    colour_of,
    corners_at,
    neighbours,
    start_browser,
    thumbnails,
    tile_server,
    write_archive,
)
from utils import InputError


def data_of(folder):
    """What the scripts of a page tell it, and the folder with its parts."""
    part, = folder.glob("page-*")
    data = {}
    for name in re.findall(r'src="(page-\d+/\w+\.js)"', (folder / "index.html").read_text()):
        text = (folder / name).read_text()
        if name.endswith(("page.js", "map.js")):
            continue
        data.update(json.loads(text[text.index("{}") + 4 : text.rindex(")")]))
    return data, part


def numbers_of(text, dtype, width):
    return np.frombuffer(base64.b64decode(text), dtype).reshape(-1, width)


def one_page(folder, corners=(None,), **changed):
    """A page of one item for each of `corners`."""
    items = [PageItem(row, f"{row}.png", None, place) for row, place in enumerate(corners)]
    given = {"title": "t", "hash_bit": 8, "codes": np.zeros((len(items), 1), np.uint8),
             "items": items, "thumbnails": thumbnails(len(items)), **changed}
    write_page(folder, **given)


# ---------------------------------------------------------------- what is written


def test_the_scripts_hold_codes_names_and_places(tmp_path):
    codes, items = write_archive(tmp_path / "page")
    data, _ = data_of(tmp_path / "page")
    words = numbers_of(data["codes"], np.uint8, 4)
    assert (words[:, :3] == codes).all() and not words[:, 3].any()
    assert data["hashBit"] == HASH_BIT and data["basemap"] is None
    assert data["numbers"] == [item.number for item in items]
    assert data["names"] == [to_draw(item.name) for item in items]
    kinds = [None if kind < 0 else data["kinds"][kind] for kind in data["kindOf"]]
    assert kinds == [item.kind for item in items]
    corners = numbers_of(data["corners"], "<f8", 8)
    assert [item.corners is None for item in items] == np.isnan(corners).all(1).tolist()
    np.testing.assert_allclose(corners[1], items[1].corners, atol=1e-9)


def test_without_places_no_places_are_written(tmp_path):
    one_page(tmp_path / "page")
    assert "corners" not in data_of(tmp_path / "page")[0]


def test_thumbnails_lie_in_their_tiles_with_their_shape(tmp_path):
    write_archive(tmp_path / "page")
    _, part = data_of(tmp_path / "page")
    assert len(list(part.glob("sheet-*.jpg"))) == 5  # of 64 each
    sheets = [np.asarray(Image.open(part / f"sheet-{number}.jpg")).astype(int)
              for number in range(5)]
    for row in range(300):
        sheet = sheets[row // GRID**2]
        y, x = (TILE * at for at in divmod(row % GRID**2, GRID))
        tile = sheet[y : y + TILE, x : x + TILE]
        assert np.abs(tile[TILE // 2, TILE // 2] - colour_of(row)).max() < 12
        shares = ((1, 1), (1 / 3, 1), (1, 1 / 2))[row % 3]  # height and width, of a tile
        coloured = np.abs(tile - colour_of(row)).max(2) < 12
        assert abs(coloured.mean() - shares[0] * shares[1]) < 0.05


def test_very_flat_and_tiny_images_have_a_tile(tmp_path):
    images = [np.full((1, 3000, 3), 200, np.uint8), np.full((1, 1, 3), 200, np.uint8)]
    one_page(tmp_path / "page", (None, None), thumbnails=images)
    sheet = np.asarray(Image.open(data_of(tmp_path / "page")[1] / "sheet-0.jpg"))
    assert sheet[TILE // 2 - 1, TILE // 2].min() > 80 and sheet[64, TILE + 64].min() > 180


@pytest.mark.parametrize(("longitudes", "expected"), [
    ((10, 20), (10, 20)),
    ((-179.9, 179.8), (180.1, 179.8)),  # both sides of the Pacific
    ((179.995,), (179.995,)),
    ((-120, 0, 100), (-120, 0, 100)),
    ((-180,), (180,)),
])
def test_the_map_is_cut_where_it_is_empty(tmp_path, longitudes, expected):
    places = [corners_at(longitude, 0) for longitude in longitudes]
    # As others write it: no longitude above 180.
    places = [tuple(value - 360 if value > 180 else value for value in place) for place in places]
    one_page(tmp_path / "page", places)
    corners = numbers_of(data_of(tmp_path / "page")[0]["corners"], "<f8", 8)
    np.testing.assert_allclose(corners[:, 0], expected, atol=1e-9)
    np.testing.assert_allclose(corners[:, 2] - corners[:, 0], 0.01, atol=1e-9)


def test_a_page_is_replaced_and_other_files_stay(tmp_path):
    folder = tmp_path / "page"
    one_page(folder)
    (folder / "notes.txt").write_text("mine")
    one_page(folder, (None, None))
    assert sorted(path.name for path in folder.iterdir()) == ["index.html", "notes.txt", "page-2"]
    assert len(data_of(folder)[0]["names"]) == 2


def test_a_run_that_fails_leaves_the_page_that_was_there(tmp_path):
    def broken():
        yield np.zeros((8, 8, 3), np.uint8)
        raise KeyboardInterrupt

    one_page(tmp_path / "page")
    before = (tmp_path / "page" / "index.html").read_text()
    for images, error in ((broken(), KeyboardInterrupt), ([], ValueError)):
        with pytest.raises(error):
            one_page(tmp_path / "page", (None, None), thumbnails=images)
    assert (tmp_path / "page" / "index.html").read_text() == before
    assert [path.name for path in (tmp_path / "page").glob("page-*")] == ["page-1"]


def test_what_a_killed_run_left_is_no_page_and_no_hindrance(tmp_path):
    (tmp_path / "page-1").mkdir()
    (tmp_path / "page-1" / "codes.js").write_text("half")
    one_page(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "page-2"]


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "index.html").write_text("<p>my own page")
    with pytest.raises(InputError, match="name a new folder"):
        one_page(tmp_path)
    (tmp_path / "index.html").rename(tmp_path / "thesis.txt")
    with pytest.raises(InputError, match="holds something else"):
        one_page(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        one_page(tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_too_many_and_no_items_are_refused(tmp_path):
    items = [PageItem(0, "a")] * (MOST + 1)
    with pytest.raises(InputError, match=r"200,001 items .*200,000.*find --page"):
        one_page(tmp_path / "page", items=items, codes=np.zeros((MOST + 1, 1), np.uint8))
    with pytest.raises(InputError, match="no item"):
        one_page(tmp_path / "page", ())
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize("basemap", [
    "https://host/{z}/{x}.png", "file:///{z}/{x}/{y}", "https:///{z}/{x}/{y}", "tiles",
    "https://{s}.host/{z}/{x}/{y}.png",
])
def test_a_base_map_of_another_form_is_refused(tmp_path, basemap):
    with pytest.raises(InputError, match=r"https://HOST/\{z\}"):
        one_page(tmp_path / "page", basemap=basemap)


@pytest.mark.parametrize("changed", [
    {"items": [PageItem(1, "a"), PageItem(1, "b")], "codes": np.zeros((2, 1), np.uint8)},
    {"codes": np.zeros((2, 1), np.uint8)},
    {"items": [PageItem(0, "a", None, (np.nan,) * 8)]},
])
def test_what_does_not_go_together_is_an_error(tmp_path, changed):
    with pytest.raises(ValueError):
        one_page(tmp_path / "page", **changed)
    assert not (tmp_path / "page" / "index.html").exists()


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser():
    started = start_browser()
    yield started
    started.quit()


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive") / "page"
    return folder, *write_archive(folder)


@pytest.fixture
def page(browser, archive):
    """The page, freshly opened; nothing may leave the machine or be wrong in the browser's eyes."""
    opened = Page(browser, archive[0])
    opened.window(1280, 900)
    browser.get("about:blank")
    for kind in ("browser", "performance"):  # of the pages before
        browser.get_log(kind)
    opened.open()
    yield opened
    assert {address.split(":")[0] for address in opened.requests()} <= {"file", "data", "about"}
    assert browser.get_log("browser") == []


def test_neighbours_of_every_item_are_exact(page, archive):
    _, codes, items = archive
    numbers = [item.number for item in items]
    found = page.ask("mrhash.numbers.map((number) => mrhash.neighbours(number, 999)"
                     ".map((each) => [each.distance, each.number]))")
    expected = [neighbours(codes, HASH_BIT, numbers, row) for row in range(len(items))]
    assert found == expected
    assert len({tuple(each[0] for each in row) for row in expected}) > 1
    assert page.ask("mrhash.neighbours(31, 5)") == [
        {"number": number, "distance": distance} for distance, number in expected[10][:5]]


@pytest.mark.parametrize("hash_bit", [1, 64, 100])
def test_codes_of_any_length_and_items_in_any_order(browser, tmp_path, hash_bit):
    numbers = np.random.default_rng(1).permutation(40).tolist()
    items = [PageItem(number, f"{number}") for number in numbers]
    codes = codes_with_ties(40, hash_bit)
    write_archive(tmp_path, 40, hash_bit=hash_bit, items=items, codes=codes)
    opened = Page(browser, tmp_path)
    opened.open()
    assert opened.ask("mrhash.numbers.map((number) => mrhash.neighbours(number, 12)"
                      ".map((each) => [each.distance, each.number]))") == [
        neighbours(codes, hash_bit, numbers, row)[:12] for row in range(40)]
    assert not opened.ask("document.querySelector('#map').checkVisibility()")  # no item has a place
    assert not opened.ask("document.querySelector('#kind').checkVisibility()")  # nor a class


def test_a_click_shows_the_neighbours_and_what_shares_the_last_distance(page, archive):
    _, codes, items = archive
    page.click("[data-row='3']")
    order = neighbours(codes, HASH_BIT, [item.number for item in items], 3)
    assert page.ask("location.hash") == "#item=10&top=50"
    assert page.cards() == [(number - 1) // 3 for _, number in order[:50]]
    assert page.text("#query-name") == items[3].name
    distances = [distance for distance, _ in order]
    last = distances[49]
    shown = distances[:50].count(last)
    assert page.text("#told") == (f"50 neighbours. {distances.count(last)} items share the last "
                                  f"distance ({last}), {shown} of them are shown.")
    assert page.text("#cards .distance") == f"distance {distances[0]}"
    page.click(f"[data-row='{page.cards()[4]}']")
    assert page.ask("location.hash") == f"#item={order[4][1]}&top=50"


def test_back_forward_and_all_images(page):
    page.click("#pages [data-page=next]")
    page.click("[data-row='100']")
    page.click(f"[data-row='{page.cards()[0]}']")
    page.browser.back()
    page.wait("location.hash", "#item=301&top=50&page=2")
    page.wait("document.querySelector('#query-name').innerText", "class0/image100.png")
    page.browser.back()
    page.wait("document.querySelector('#query').hidden")
    page.wait("document.activeElement.dataset.row", "100")  # one goes on where one was
    assert page.text("#page-shown") == "Page 2 of 4" and page.cards()[0] == 96
    page.browser.forward()
    page.wait("document.querySelector('#query').hidden", False)
    page.click("#all")
    page.wait("document.querySelector('#query').hidden")
    assert page.cards()[0] == 96


def test_filters_of_name_and_class(page):
    page.click("#name")
    page.press("IMAGE02")
    assert page.cards() == list(range(20, 30))
    page.set_value("#kind", "=class 4")
    assert page.cards() == [24] and page.text("#told") == "1 image"
    page.browser.execute_script("document.querySelector('#name').focus()")
    page.press("x")
    assert page.cards() == [] and page.text("#told") == "No image has such a name and class."
    page.wait("location.hash", "#class=class+4&name=IMAGE02x")


def test_class_and_largest_distance_limit_the_neighbours(page, archive):
    _, codes, items = archive
    order = neighbours(codes, HASH_BIT, [item.number for item in items], 5)
    page.open("#item=16&top=1000")
    assert len(page.cards()) == 299
    page.set_value("#max", 4)
    assert page.cards() == [number // 3 for distance, number in order if distance <= 4]
    page.set_value("#kind", "=class 5")
    near = [row for row in (number // 3 for distance, number in order if distance <= 4)
            if items[row].kind == "class 5"]
    assert page.cards() == near and 0 < len(near) < 30
    page.set_value("#top", 2)
    assert page.cards() == near[:2]
    page.wait("location.hash", "#item=16&top=2&class=class+5&max=4")


def test_no_neighbour_within_the_distance_is_said(browser, tmp_path):
    codes = np.array([[0], [255]], np.uint8)
    one_page(tmp_path, (None, None), codes=codes)
    opened = Page(browser, tmp_path)
    opened.open("#item=0&max=3")
    assert opened.text("#told") == "No other image is within distance 3."
    opened.set_value("#max", 8)
    assert opened.text("#told") == "1 neighbour. One item has the last distance (8)."


def test_a_link_shows_its_state(page):
    page.open("#item=31&top=7&class=class+2&max=9")
    cards = page.cards()
    assert 0 < len(cards) <= 7 and {row % 10 for row in cards} == {2}
    assert page.ask("['top', 'max', 'kind'].map((id) => document.getElementById(id).value)") == [
        "7", "9", "=class 2"]
    page.browser.execute_script("location.hash = '#item=34'")  # by hand, in the open page
    page.wait("document.querySelector('#query-name').innerText", "class1/image011.png")


@pytest.mark.parametrize(("fragment", "notice"), [
    ("#item=2", "There is no item 2 on this page."), ("#item=<b>", "There is no item <b> "),
    ("#item=", "There is no item  on"), ("#class=none", "There is no class none on this page."),
    ("#top=-4&max=x&page=99999", ""),
])
def test_a_link_to_nothing_says_so(page, fragment, notice):
    page.open(fragment)
    assert page.ask("document.querySelector('#notice').textContent").startswith(notice)
    assert bool(notice) == page.ask("document.querySelector('#notice').checkVisibility()")
    assert page.cards()


def test_keys(page):
    from selenium.webdriver.common.keys import Keys
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT, Keys.ARROW_RIGHT)
    assert page.ask("document.activeElement.dataset.row") == "1"
    page.press(Keys.ARROW_DOWN)
    below = page.ask("document.activeElement.dataset.row")
    assert page.ask("document.querySelector('[data-row=\"1\"]').offsetLeft"
                    " === document.activeElement.offsetLeft") and int(below) > 2
    page.press(Keys.ENTER)
    page.wait("location.hash", f"#item={3 * int(below) + 1}&top=50")
    page.press(Keys.ARROW_DOWN)
    assert page.ask("document.activeElement.dataset.row") == str(page.cards()[0])
    page.press(Keys.ENTER)
    page.press(Keys.ESCAPE)
    page.wait("location.hash", f"#item={3 * int(below) + 1}&top=50")
    page.press(Keys.ESCAPE)
    page.wait("document.querySelector('#query').hidden")
    page.press("/")
    assert page.ask("document.activeElement.id") == "name"
    page.press("image0", Keys.ESCAPE, "/", "image1", Keys.ENTER)
    assert page.ask("document.activeElement.dataset.row") == "100"


def test_escape_leaves_a_query_that_a_link_opened(page):
    from selenium.webdriver.common.keys import Keys
    page.open("#item=31")
    page.press(Keys.ESCAPE)
    page.wait("document.querySelector('#query').hidden")
    assert len(page.cards()) == 96


def test_names_are_shown_as_text_and_do_no_harm(page, archive):
    _, _, items = archive
    assert page.ask("document.title") == "A <title> & more" == page.text("h1")
    for row in (7, 8, 9, 10):
        page.open()
        assert to_draw(items[row].name) == page.ask(
            f"document.querySelector('[data-row=\"{row}\"]').title")
        name = page.text(f"[data-row='{row}'] .name")
        assert name == to_draw(items[row].name).split("/")[-1].removesuffix(".png")
        page.open(f"#item={items[row].number}")
        assert page.text("#query-name") == to_draw(items[row].name)


def test_images_are_those_of_the_items(page):
    """A sheet is loaded when it is near; the tile in the middle of a picture has its colour."""
    page.open("#item=1&top=1")
    row, = page.cards()
    page.browser.set_script_timeout(5)
    for selector, wanted in (("#cards .picture", row), ("#query .picture", 0)):
        page.wait(f"document.querySelector('{selector}').style.backgroundImage.length > 0")
        style = page.ask("getComputedStyle(document.querySelector(arguments[0]))"
                         ".backgroundPosition", selector)
        x, y = (round(float(share.rstrip("%")) * (GRID - 1) / 100) for share in style.split())
        assert y * GRID + x == wanted % GRID**2
        address = page.ask("document.querySelector(arguments[0]).style.backgroundImage", selector)
        assert f"sheet-{wanted // GRID**2}.jpg" in address
    label = page.ask("document.querySelector('#query .picture').getAttribute('aria-label')")
    assert label == "class0/image000.png"  # the first has no class
    assert page.ask("document.querySelector('#query .picture').getAttribute('role')") == "img"


def test_only_the_sheets_of_what_is_near_are_loaded(page):
    page.wait("document.querySelector('.picture').style.backgroundImage.length > 0")
    images = page.ask("[...document.querySelectorAll('.picture')]"
                      ".map(picture => picture.style.backgroundImage)")
    sheets = {image.split("/")[-1] for image in images if image}
    assert sheets == {'sheet-0.jpg")'}  # the second has what lies far below on this page
    page.browser.execute_script("scrollTo(0, 99999)")
    page.wait("document.querySelector('[data-row=\"95\"] .picture')"
              ".style.backgroundImage.includes('sheet-1.jpg')")


def test_a_click_on_a_footprint_selects_the_item(page):
    x, y = page.ask("mrhash.map.pixelOf(47)")
    page.click_map(x, y)
    assert page.text("#query-name") == "class7/image047.png"
    assert "49.9550° N, 8.1450° E" in page.text("#facts")
    assert page.ask("mrhash.map.pixelOf(47)") == [x, y]  # it was in sight: nothing jumps


def test_a_footprint_that_lies_askew_is_not_its_box(browser, tmp_path):
    one_page(tmp_path, ((10, 51, 11, 50, 10, 49, 9, 50),))
    opened = Page(browser, tmp_path)
    opened.window(1280, 900)
    opened.open()
    x, y = opened.ask("mrhash.map.pixelOf(0)")
    opened.click_map(x - 120, y - 120)  # in the corner of the box
    assert opened.ask("location.hash") == ""
    opened.click_map(x + 20, y - 120)
    assert opened.ask("location.hash") == "#item=0&top=50"


def test_two_fingers_zoom_the_map(page):
    page.window(390, 844, mobile=True)
    page.open()
    left, upper = page.ask("(({ left, top }) => [left, top])"
                           "(document.querySelector('#canvas').getBoundingClientRect())")
    before = page.ask("mrhash.map.pixelOf(299)[0] - mrhash.map.pixelOf(1)[0]")
    for kind, apart in (("touchStart", 40), ("touchMove", 60), ("touchMove", 80), ("touchEnd", 0)):
        points = [{"x": left + 180 + side * apart, "y": upper + 100, "id": side + 2}
                  for side in (-1, 1) if apart]
        page.browser.execute_cdp_cmd("Input.dispatchTouchEvent",
                                     {"type": kind, "touchPoints": points})
    page.wait("Math.round((mrhash.map.pixelOf(299)[0] - mrhash.map.pixelOf(1)[0])"
              f" / {before} * 10)", 20)
    assert page.ask("location.hash") == ""


def test_the_map_moves_by_buttons_keys_wheel_and_mouse(page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
    from selenium.webdriver.common.keys import Keys

    def apart():
        (x0, y0), (x1, _) = (page.ask(f"mrhash.map.pixelOf({row})") for row in (1, 299))
        return x1 - x0, x0, y0
    start = apart()
    page.click("[data-zoom=in]")
    assert apart()[0] == pytest.approx(2 * start[0])
    page.click("[data-zoom=fit]")
    assert apart() == pytest.approx(start)
    page.browser.execute_script("document.querySelector('#canvas').focus()")
    page.press(Keys.ARROW_RIGHT)
    assert apart() == pytest.approx((start[0], start[1] - 60, start[2]))
    page.press("+", "-", Keys.ARROW_LEFT)
    assert apart() == pytest.approx(start)
    canvas = page.browser.find_element("css selector", "#canvas")
    ActionChains(page.browser, duration=0).move_to_element(canvas).click_and_hold().move_by_offset(
        30, 20).release().perform()
    assert apart() == pytest.approx((start[0], start[1] + 30, start[2] + 20))
    assert page.ask("location.hash") == ""  # a drag selects nothing
    ActionChains(page.browser, duration=0).scroll_from_origin(
        ScrollOrigin.from_element(canvas), 0, -200).perform()
    page.wait(f"mrhash.map.pixelOf(299)[0] - mrhash.map.pixelOf(1)[0] > {1.3 * start[0]}")


def test_fit_goes_to_the_found_images(page):
    page.open("#name=image047")
    page.click("[data-zoom=fit]")
    x, y = page.ask("mrhash.map.pixelOf(47)")
    width, height = page.ask("(({ clientWidth, clientHeight }) => [clientWidth, clientHeight])"
                             "(document.querySelector('#canvas'))")
    assert abs(x - width / 2) < 2 and abs(y - height / 2) < 20
    assert page.text("#legend").split() == ["found", "others", "60", "have", "no", "place"]


def test_the_map_lights_up_query_and_answers(page):
    page.open("#item=142&top=5")
    answers = page.cards()
    others = [row for row in (201, 202, 203) if row not in answers]
    rows = [47, next(row for row in answers if row % 5), others[0]]  # a fifth has no place
    query, answer, other = page.ask("""new Promise((done) => requestAnimationFrame(() => {
        const canvas = document.querySelector('#canvas');
        const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        done(arguments[0].map((row) => {
            const [x, y] = mrhash.map.pixelOf(row).map(Math.round);
            return [...data.slice(4 * (y * canvas.width + x)).slice(0, 3)];
        }));
    }))""", rows)
    assert query[0] > query[2] + 80  # orange
    assert answer[2] > answer[0] + 30  # blue
    assert abs(other[2] - other[0]) < 20  # nearly the ground


def test_tiles_of_a_base_map_are_drawn_and_their_host_is_named(browser, tmp_path):
    with tile_server() as (address, paths):
        one_page(tmp_path, (corners_at(8, 50, 5), corners_at(20, 40, 5)), basemap=address)
        opened = Page(browser, tmp_path)
        opened.window(1280, 900)
        opened.open()
        opened.wait("performance.getEntriesByType('resource')"
                    ".filter((each) => each.name.endsWith('.png')).length > 3")
        assert opened.text("#credit") == "Map tiles: " + address.split("/")[2]
        assert "/4/8/5.png" in paths or "/5/17/11.png" in paths
    assert browser.get_log("browser") == []


def test_a_telephone_needs_no_sideways_scrolling_and_large_targets(page):
    for fragment in ("", "#item=22", "#item=5&class=none", "#page=2"):
        page.window(360, 740, mobile=True)
        page.open(fragment)
        assert page.ask("document.documentElement.scrollWidth") == 360
        small = page.ask(
            "[...document.querySelectorAll('button, input, select')]"
            ".filter((each) => each.checkVisibility())"
            ".map((each) => [each.id || each.textContent, each.getBoundingClientRect()])"
            ".filter(([, box]) => box.width < 40 || box.height < 40 || box.right > 360)")
        assert small == []


def test_without_a_browser_the_tests_are_skipped_with_advice(monkeypatch):
    pytest.importorskip("selenium")
    monkeypatch.setattr(page_helpers.shutil, "which", lambda _: None)
    with pytest.raises(pytest.skip.Exception, match="install chromium"):
        start_browser()
