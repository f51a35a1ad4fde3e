"""A real browser on a real server. Needs Chromium: SAESCOPE_CHROMIUM, Playwright's own, or the system's."""

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from app.main import create_app
from app.server import Server
from app.settings import Settings
from tests.app.fake_prober import FakeProber
from tests.factories import make_store

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE = 60_000  # milliseconds: a busy machine takes its time to load Plotly and to answer
expect.set_options(timeout=PATIENCE)
SYSTEM_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of the dashboard; a test may begin runs in it, and removes them."""
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="session")
def server(home: Path) -> Iterator[str]:
    """The address of a dashboard over the factories' store, with a stand-in for the model."""
    store = make_store(f"sqlite:///{home}/saescope.db")
    app = create_app(Settings(home=home), store=store, prober=FakeProber())
    listening = socket.create_server(("127.0.0.1", 0))
    running = Server(app)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    while not running.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    running.should_exit = True
    thread.join()
    store.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Closed with each file: while it is open a loop runs in this thread, and other tests could not run their own."""
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=browser_executable(playwright.chromium.executable_path), args=FLAGS
        )
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser, server: str) -> Iterator[Page]:
    """A page that must log no error, and must ask nothing of another host."""
    opened = browser.new_page(base_url=server, viewport={"width": 1280, "height": 900})
    yield from _watched(opened, server)


@pytest.fixture
def refused_page(browser: Browser, server: str) -> Iterator[Page]:
    """A page on which the browser may note that the server refused a text as too long."""
    yield from _watched(browser.new_page(base_url=server), server, allowed="status of 413")


@pytest.fixture
def busy_page(browser: Browser, server: str) -> Iterator[Page]:
    """A page on which the browser may note that the server had no room for a text."""
    yield from _watched(browser.new_page(base_url=server), server, allowed="status of 503")


@pytest.fixture
def tall_page(browser: Browser, server: str) -> Iterator[Page]:
    """A page that shows a map and what stands below it."""
    yield from _watched(browser.new_page(base_url=server, viewport={"width": 1280, "height": 1300}), server)


@pytest.fixture
def gl_page(browser: Browser, server: str) -> Iterator[Page]:
    """A page on which the driver may note that, without a GPU, it is slow to read pixels."""
    opened = browser.new_page(base_url=server, viewport={"width": 1280, "height": 1300})
    yield from _watched(opened, server, allowed="ReadPixels")


@pytest.fixture
def phone(browser: Browser, server: str) -> Iterator[Page]:
    opened = browser.new_page(base_url=server, viewport={"width": 390, "height": 844})
    yield from _watched(opened, server)


@pytest.fixture
def plain(browser: Browser, server: str) -> Iterator[Page]:
    """A page without JavaScript."""
    context = browser.new_context(base_url=server, java_script_enabled=False)
    yield from _watched(context.new_page(), server)
    context.close()


def _watched(page: Page, server: str, *, allowed: str | None = None) -> Iterator[Page]:
    problems: list[str] = []

    def note_message(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not (allowed and allowed in message.text):
            problems.append(message.text)

    def note_request(request: Request) -> None:
        if not request.url.startswith((server, "data:", "blob:")):
            problems.append(request.url)

    page.set_default_timeout(PATIENCE)
    page.on("console", note_message)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", note_request)
    yield page
    page.close()
    assert problems == []


def browser_executable(own: str) -> str | None:
    """None stands for Playwright's own browser."""
    if chosen := os.environ.get("SAESCOPE_CHROMIUM"):
        return chosen
    if Path(own).exists():
        return None
    for name in SYSTEM_BROWSERS:
        if found := shutil.which(name):
            return found
    pytest.fail(
        "No browser: install Chromium, run `playwright install chromium`, or name one in SAESCOPE_CHROMIUM.",
        pytrace=False,
    )
