"""A page in headless Chromium: its console, requests and rendering."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

CHROMIUM = Path("/usr/bin/chromium")


@contextmanager
def browsed(path: Path, width: int = 390) -> Iterator:
    """Open a file; ``page.said`` lists its console messages and network requests."""
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if shutil.which(str(CHROMIUM)) is None:
        pytest.skip(f"{CHROMIUM} is missing: apt-get install chromium")
    with sync.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.said = []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on(
            "request", lambda r: None if r.url.startswith(("data:", "file:")) else page.said.append(r.url)
        )
        page.goto(path.as_uri())
        yield page
        browser.close()


def shot(locator) -> np.ndarray:
    """Return a screenshot of an element, RGB."""
    return imagecodecs.png_decode(locator.screenshot())[..., :3].astype(int)
