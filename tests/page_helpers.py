"""A browser without a window, and an archive whose page it can show."""

import json
import shutil
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from threading import Thread

import numpy as np
import pytest
from PIL import Image

import hamming
from archive.page import PageItem, write_page

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--disable-background-networking", "--no-first-run", "--force-prefers-reduced-motion")
HASH_BIT = 20  # of 300 codes, few of them apart: many ties, and padding of bytes and of words


def codes_with_ties(count, hash_bit=HASH_BIT, seed=0):
    """Packed codes around a few centres, uint8 (count, ceil(K/8)); some are equal."""
    generator = np.random.default_rng(seed)
    centres = generator.integers(0, 2, (6, hash_bit), dtype=np.uint8)
    bits = centres[generator.integers(0, 6, count)]
    return hamming.pack_codes(bits ^ (generator.random(bits.shape) < 0.08))


def neighbours(codes, hash_bit, numbers, row):
    """All others of an item by brute force: [distance, number], by distance, then by number."""
    bits = hamming.unpack_codes(codes, hash_bit)
    distances = (bits != bits[row]).sum(1)
    return sorted([int(distance), number] for other, (distance, number)
                  in enumerate(zip(distances, numbers, strict=True)) if other != row)


def colour_of(row):
    """A colour that no other of a few hundred items has."""
    return (40 + 50 * (row % 5), 40 + 20 * (row // 5 % 10), 40 + 25 * (row // 50 % 8))


def thumbnails(count):
    """Plain images, wide, high and square, of several sizes."""
    for row in range(count):
        height, width = ((48, 48), (30, 90), (200, 100))[row % 3]
        yield np.full((height, width, 3), colour_of(row), np.uint8)


def corners_at(longitude, latitude, side=0.01):
    """A square of `side` degrees, from its upper left corner."""
    return (longitude, latitude, longitude + side, latitude,
            longitude + side, latitude - side, longitude, latitude - side)


def start_browser():
    """Chromium of the system through selenium; the test is skipped where one is missing."""
    webdriver = pytest.importorskip("selenium.webdriver",
                                    reason="pip install -r requirements-dev.txt for selenium")
    chrome = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chrome or not driver:
        pytest.skip("install chromium and chromedriver (apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chrome
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


class Page:
    """A page in the browser, and what a visitor does with it."""

    def __init__(self, browser, folder):
        self.browser, self.address = browser, (folder / "index.html").as_uri()

    def open(self, fragment=""):
        """Load it anew; the driver does not wait for an address with a fragment."""
        self.browser.get("about:blank")
        self.browser.get(self.address + fragment)
        self.wait("document.readyState === 'complete' && Boolean(globalThis.mrhash?.neighbours)")

    def ask(self, expression, *arguments):
        """The value of an expression of JavaScript."""
        return self.browser.execute_script(f"return {expression}", *arguments)

    def wait(self, expression, expected=True):
        """Until an expression has a value: answers of the browser come a little later."""
        from selenium.common.exceptions import TimeoutException
        from selenium.webdriver.support.ui import WebDriverWait
        try:
            WebDriverWait(self.browser, 10, 0.02).until(lambda _: self.ask(expression) == expected)
        except TimeoutException:
            assert self.ask(expression) == expected, expression
            raise

    def text(self, selector):
        """What can be read there."""
        return self.ask("document.querySelector(arguments[0]).innerText", selector)

    def click(self, selector):
        """Click as a mouse does."""
        self.browser.find_element("css selector", selector).click()

    def click_map(self, x, y):
        """Click on the map, at pixels from its corner."""
        from selenium.webdriver.common.action_chains import ActionChains
        canvas = self.browser.find_element("css selector", "#canvas")
        width, height = self.ask("[arguments[0].clientWidth, arguments[0].clientHeight]", canvas)
        assert 0 < x < width and 0 < y < height
        ActionChains(self.browser, duration=0).move_to_element_with_offset(
            canvas, round(x - width / 2), round(y - height / 2)).click().perform()

    def press(self, *keys):
        """Press keys where the focus is."""
        from selenium.webdriver.common.action_chains import ActionChains
        ActionChains(self.browser, duration=0).send_keys(*keys).perform()

    def cards(self):
        """Rows of the images that are shown, in order."""
        return self.ask("[...document.querySelectorAll('#cards button')]"
                        ".map((button) => Number(button.dataset.row))")

    def set_value(self, selector, value):
        """Move a field to a value."""
        self.browser.execute_script(
            "const field = document.querySelector(arguments[0]); field.value = arguments[1];"
            "for (const kind of ['input', 'change']) field.dispatchEvent(new Event(kind));",
            selector, value)

    def window(self, width, height, mobile=False):
        """A window of another size, or a telephone."""
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": height, "deviceScaleFactor": 2 if mobile else 1,
            "mobile": mobile})

    def requests(self):
        """Addresses that were asked for since the last call."""
        found = []
        for entry in self.browser.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return found


def write_archive(folder, count=300, **changed):
    """A page of `count` items: numbers with gaps, ten classes, places for most, hostile names."""
    hostile = {7: "a \"quoted\" 'name' </script><b>&amp;.png", 8: "Zürich/Straße ß.png",
               9: "bytes \udcff and \ud800.png", 10: "two\nlines\u202e.png"}
    items = []
    for row in range(count):
        place = corners_at(8 + row % 20 * 0.02, 50 - row // 20 * 0.02) if row % 5 else None
        items.append(PageItem(3 * row + 1, hostile.get(row, f"class{row % 10}/image{row:03d}.png"),
                              f"class {row % 10}" if row % 11 else None, place))
    codes = codes_with_ties(count)
    given = {"title": "A <title> & more", "hash_bit": HASH_BIT, "codes": codes, "items": items,
             "thumbnails": thumbnails(count), **changed}
    write_page(folder, **given)
    return given["codes"], given["items"]


class Tiles(BaseHTTPRequestHandler):
    """Serves one blue tile, whatever is asked for, and notes the path."""

    def __init__(self, paths, *arguments):
        self.paths = paths
        super().__init__(*arguments)

    def do_GET(self):  # as http.server calls it
        self.paths.append(self.path)
        tile = BytesIO()
        Image.new("RGB", (256, 256), (0, 0, 255)).save(tile, "PNG")
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.end_headers()
        self.wfile.write(tile.getvalue())

    def log_message(self, *_):
        """Say nothing."""


@contextmanager
def tile_server():
    """A service of map tiles on this machine: its address and the paths it was asked for."""
    paths = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Tiles, paths)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{{z}}/{{x}}/{{y}}.png", paths
        server.shutdown()
