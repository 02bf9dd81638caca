"""Reading over the network through GDAL: at a kept rate, again where it failed, never in vain."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import rasterio
from rasterio.errors import RasterioError, RasterioIOError

from engine.stopping import StopSignals
from utils import InputError

AGENT = "MrHash collect.py (rasterio)"
TIMEOUT = 30  # seconds for an answer
CACHE_BYTES = 256 * 2**20  # of decoded blocks: rasterio hands a number on as bytes
# Seconds before each further try, by what the service said.
PAUSES = {"refused": (2,), "busy": (2, 5, 15, 30, 60, 120), "failed": (1, 2, 4, 8)}
KINDS = {401: "refused", 403: "refused", 407: "refused", 429: "busy"}
STATUS = re.compile(r"HTTP (?:status|response) code:? ?(\d+)")

Result = TypeVar("Result")


class FetchError(Exception):
    """One place could not be read, after all tries; the message says why, without any address."""


@contextlib.contextmanager
def gdal(cache: Path | None = None) -> Iterator[None]:
    """GDAL as this package needs it.

    Args:
        cache: folder where services of the user's own description keep their tiles; None: nowhere.
    """
    options = {"GDAL_HTTP_USERAGENT": AGENT, "GDAL_HTTP_TIMEOUT": str(TIMEOUT),
               "GDAL_HTTP_CONNECTTIMEOUT": "10", "GDAL_CACHEMAX": CACHE_BYTES,
               "GDAL_ERROR_ON_LIBJPEG_WARNING": "YES"}  # half a JPEG is no image
    if cache is None:
        options["GDAL_ENABLE_WMS_CACHE"] = "NO"  # else GDAL finds a place in the home folder
    else:
        options["GDAL_DEFAULT_WMS_CACHE_PATH"] = str(cache)
    with rasterio.Env(**options):
        yield


class Pacer:
    """Keeps a rate: `wait` returns at most `per_second` times a second.

    signals: that Ctrl-C waits for while GDAL is busy, which would lose what is raised inside it.
    """

    def __init__(self, per_second: float) -> None:
        self.step = 1 / per_second
        self.next = 0.0  # when the next one may go, of time.monotonic
        self.count = 0
        self.signals = StopSignals()

    def wait(self, requests: int = 1) -> None:
        """Until so many requests at once may go."""
        pause = self.next - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        self.next = time.monotonic() + requests * self.step
        self.count += requests


def patiently(read: Callable[[], Result], pacer: Pacer, label: str, requests: int = 1) -> Result:
    """What `read` gives, tried again after growing pauses.

    Args:
        read: asks the network.
        pacer: keeps the rate.
        label: what messages call the service; addresses may hold keys.
        requests: how often `read` asks.
    Raises:
        InputError: the service is asked too often.
        FetchError: it refuses, or fails otherwise.
    """
    tries = {kind: iter(pauses) for kind, pauses in PAUSES.items()}
    while True:
        pacer.wait(requests)
        pacer.signals.deferred = True
        try:
            return read()
        except (RasterioError, OSError) as error:
            text = _all_said(error)
        finally:
            pacer.signals.deferred = False
            pacer.signals.raise_if_asked()
        found = STATUS.search(text)
        status = int(found[1]) if found else None
        kind = KINDS.get(status, "failed")
        pause = next(tries[kind], None)
        if pause is None:
            _give_up(kind, status, text, label)
        time.sleep(pause)


def _give_up(kind: str, status: int | None, text: str, label: str) -> None:
    if kind == "refused":  # some say so of single tiles that they do not have
        raise FetchError(f"HTTP {status}, it refuses: see that the key is right and that its terms "
                         "allow this")
    if kind == "busy":
        raise InputError(f"{label} still says that it is asked too often (HTTP 429) after "
                         f"{sum(PAUSES['busy'])} seconds: wait, lower --per_second and start the "
                         "same command again; what was collected is kept")
    if "timed out" in text:
        raise FetchError(f"no answer within {TIMEOUT} seconds")
    if status:
        raise FetchError("an empty answer" if status == 200 else f"HTTP {status}")
    if re.search("onnect|resolve", text):
        raise FetchError("no connection")
    raise FetchError("no image of the expected size came")


def _all_said(error: BaseException | None) -> str:
    """The messages of an error and of its causes."""
    said = []
    while error is not None:
        said.append(str(error))
        error = error.__cause__ or error.__context__
    return " ".join(said)


def quietly(path: str, what: str, **options: Any) -> rasterio.DatasetReader:
    """Open a raster whose address may hold a key: what GDAL says of it is not repeated.

    Args:
        path: or address.
        what: messages call it so.
        options: of rasterio.open.
    Raises:
        InputError: it cannot be opened.
    """
    try:
        return rasterio.open(path, **options)
    except (RasterioError, OSError, ValueError) as error:  # ValueError: no text in UTF-8
        found = STATUS.search(_all_said(error))
        reason = f" (HTTP {found[1]})" if found else ""
        raise InputError(f"{what} cannot be opened{reason}: see that it is there and that GDAL "
                         "reads its kind") from None


def without_keys(place: str) -> str:
    """What to call an address or description, which may hold a key or a password."""
    if place.lstrip().startswith("<"):
        return "the description in --raster"
    return re.sub("[^/@]*@", "", place.split("?")[0])[-80:]


def unread(error: RasterioIOError) -> str:
    """Why a file could not be read, in GDAL's words."""
    return " ".join(str(error.__cause__ or error).split())
