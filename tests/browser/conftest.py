"""Chromium for the tests that look at pages, and the folder for their screenshots.

`SEQ2SEQ_SCREENSHOTS=FOLDER scripts/test --slow tests/browser` keeps what the tests saw.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Nothing here may need a sandbox, a GPU or the network.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDTH, HEIGHT = 1400, 1000
PATIENCE = 20_000  # milliseconds until what a test looks for must have come

Shoot = Callable[[Any, str], None]


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Any]:
    """Playwright's browser."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield running
        running.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """An empty page."""
    opened = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    opened.set_default_timeout(PATIENCE)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def shoot() -> Shoot:
    """Keeps a picture of a page under a name, if `SEQ2SEQ_SCREENSHOTS` names a folder."""
    folder = os.environ.get("SEQ2SEQ_SCREENSHOTS")

    def shot(page: Any, name: str) -> None:
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=Path(folder) / f"{name}.png")

    return shot
