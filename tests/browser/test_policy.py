"""The Content-Security-Policy in a real browser: no page violates it, and only embeds stand in a foreign frame."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from playwright.sync_api import Page, Route

from app import charts
from tests.app.test_pages import PAGES

pytestmark = pytest.mark.browser
WITH_CHARTS = "/saes/demo"


NOTE_REFUSED = (
    "window.refused = []; "
    "addEventListener('securitypolicyviolation', (e) => refused.push(`${e.violatedDirective} ${e.blockedURI}`))"
)


def test_no_page_violates_the_policy(page: Page) -> None:
    """The fixture fails on anything in the console, which is where a browser says what it refused."""
    page.add_init_script(NOTE_REFUSED)
    for path in PAGES:
        page.goto(path)
        page.evaluate("new Promise((done) => requestIdleCallback(done))")  # what scripts add has been looked at
        assert page.evaluate("refused") == [], path
    page.goto(WITH_CHARTS)
    page.locator(".js-plotly-plot .main-svg").first.wait_for()
    assert page.evaluate("refused") == []


def test_charts_by_webgl_violate_no_policy(gl_page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "GL_POINTS", 100)  # decides on the policy; the server may keep the figure from before

    def by_webgl(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=answer.text().replace('"type":"scatter"', '"type":"scattergl"'))

    gl_page.route("**/api/saes/demo/charts*", by_webgl)
    gl_page.set_default_timeout(60_000)
    gl_page.add_init_script(NOTE_REFUSED)
    gl_page.goto(f"{WITH_CHARTS}?corpus=stories&by=webgl")  # an address of its own: the server keeps answers
    gl_page.locator(".js-plotly-plot .gl-canvas").first.wait_for(state="attached")
    gl_page.wait_for_load_state("networkidle")
    assert gl_page.evaluate("refused") == []


class Elsewhere(BaseHTTPRequestHandler):
    """Another site, whose pages frame what stands behind the `?`."""

    def do_GET(self) -> None:
        address = self.path.partition("?")[2]
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(f'<iframe src="{address}" width="800" height="400"></iframe>'.encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def elsewhere() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Elsewhere)
    Thread(target=server.serve_forever).start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_another_site_frames_embeds_and_nothing_else(browser: object, server: str, elsewhere: str) -> None:
    opened: Page = browser.new_page()  # type: ignore[attr-defined]
    embed = "/saes/demo/features/0?embed=1"
    for path, is_shown in ((embed, True), ("/saes/demo/features/0", False), ("/lists?embed=1", False)):
        opened.goto(f"{elsewhere}/?{server}{path}")
        opened.wait_for_load_state("networkidle")
        (frame,) = opened.main_frame.child_frames
        assert (frame.locator("#main").count() > 0) == is_shown, path  # else the browser's own error
    opened.close()
