"""Headers on every answer, request ids from the page to the log, what is counted, and addresses below a root path."""

import json
import logging
import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.main import create_app
from app.observe.logs import JsonFormatter, TextFormatter, configure_logs
from app.observe.metrics import memory_of
from app.settings import Settings
from sae_core.store import Store
from tests.app.fake_prober import FakeProber
from tests.app.test_pages import BAD_PAGES, PAGES, Checked

EMBED = "/saes/demo/features/0?embed=1"
ALL = [*PAGES, *BAD_PAGES, "/saes/demo/probe?text=crash", "/api/saes", "/api/nope", "/static/style.css", "/healthz"]


@pytest.mark.parametrize("path", ALL)
def test_every_answer_has_the_security_headers(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "same-origin"
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["script-src"] == "'self'"
    assert re.fullmatch(r"'self'( 'sha256-[\w+/]{43}=')+", policy["style-src"])
    assert "unsafe" not in headers["content-security-policy"]
    is_embed = path == EMBED
    assert policy["frame-ancestors"] == ("*" if is_embed else "'none'")
    assert headers.get("x-frame-options") == (None if is_embed else "DENY")
    assert re.fullmatch(r"[0-9a-f]{12}", headers["x-request-id"])


def test_a_switch_in_the_address_makes_no_other_page_framed(client: TestClient) -> None:
    for path in (
        "/lists?embed=1",
        "/saes/demo?embed=1",
        "/saes/demo/features/0/embed?embed=1",
        "/saes/nope/features/0?embed=1",
    ):
        assert client.get(path).headers["x-frame-options"] == "DENY", path


def test_an_error_page_shows_the_request_id_that_the_log_has(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(TextFormatter("[%(levelname)s]%(request)s %(message)s"))
    response = client.get("/saes/demo/probe?text=crash")
    number = response.headers["x-request-id"]
    assert f"<code>{number}</code>" in response.text
    assert f"[ERROR] [{number}] GET /saes/demo/probe failed" in caplog.text and "a secret detail" in caplog.text
    given = client.get("/nope", headers={"x-request-id": "proxy-123_x"})
    assert given.headers["x-request-id"] == "proxy-123_x" and "proxy-123_x" in given.text
    for bad in ("short", "<script>alert(1)</script>", "x" * 65):
        assert client.get("/nope", headers={"x-request-id": bad}).headers["x-request-id"] != bad


def test_requests_are_logged_as_json(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    with caplog.at_level(logging.INFO, logger="saescope.requests"):
        response = client.get("/saes/demo?x=secret-query")
    line = json.loads(caplog.text.splitlines()[-1])
    assert line.pop("ms") > 0 and line.pop("at").endswith("+00:00")
    assert line == {
        "level": "info", "logger": "saescope.requests", "request_id": response.headers["x-request-id"],
        "method": "GET", "path": "/saes/demo", "status": 200, "who": "local", "client": "testclient",
    }  # fmt: skip


def test_logs_are_configured_by_the_setting() -> None:
    root, requests = logging.getLogger(), logging.getLogger("saescope.requests")
    before = root.handlers[:], root.level, requests.level
    try:
        for kind, formatter, level in (
            ("json", JsonFormatter, 20),
            ("requests", TextFormatter, 20),
            ("warnings", TextFormatter, 30),
        ):
            configure_logs(kind)
            assert isinstance(root.handlers[0].formatter, formatter) and requests.level == level
            assert len(root.handlers) == 1
    finally:
        root.handlers[:], level = before[0], before[1]
        root.setLevel(level)
        requests.setLevel(before[2])


def test_what_is_counted(app: FastAPI, client: TestClient) -> None:
    for path in ("/saes/demo", "/saes/demo", "/saes/unindexed", "/nope", "/static/style.css"):
        client.get(path)
    text = client.get("/metrics").text
    assert 'saescope_requests_total{method="GET",route="/saes/{slug}",status="200"} 3' in text
    assert 'saescope_requests_total{method="GET",route="other",status="404"} 1' in text
    assert 'saescope_request_seconds_bucket{route="/saes/{slug}",le="+Inf"} 3' in text
    assert 'saescope_request_seconds_count{route="/saes/{slug}"} 3' in text
    assert "saescope_requests_in_flight 1" in text
    for line in text.splitlines():
        assert re.fullmatch(r'# (HELP|TYPE) \w+ .+|\w+(\{\w+="[^"]*"(,\w+="[^"]*")*\})? [0-9.e+-]+', line), line
    assert memory_of(-1) == 0 and memory_of(1) >= 0
    found = re.search(r"^saescope_memory_bytes (\d+)$", text, re.M)
    assert found is not None and int(found[1]) > 10e6


@pytest.mark.parametrize("keeps_prefix", [True, False])
def test_every_address_stands_below_the_root_path(store: Store, tmp_path: Path, keeps_prefix: bool) -> None:
    app = create_app(Settings(home=tmp_path, root_path="/lab/scope/"), store=store, prober=FakeProber())
    prefix = "/lab/scope" if keeps_prefix else ""
    with TestClient(app, follow_redirects=False) as client:
        for path in PAGES:
            response = client.get(prefix + path)
            assert response.status_code == 200, path
            checked = Checked(response.text)
            local = [a for a in checked.addresses + checked.posted_to if a.startswith("/")]
            assert [a for a in local if not a.startswith("/lab/scope/")] == [], path
            assert [a for a in local if a.startswith("/lab/scope/lab")] == [], path
            twin = checked.alternate or ""
            assert client.get(twin.removeprefix("" if keeps_prefix else "/lab/scope")).status_code == 200, twin
            assert re.findall(r' data-[\w-]+="(/(?:saes|api|lists|runs)[^"]*)"', response.text) == [], path
        assert client.get(prefix + "/saes").headers["location"] == "/lab/scope/"
        made = client.post(prefix + "/lists", data={"title": "below"})
        assert made.headers["location"].startswith("/lab/scope/lists/")
        assert client.get(prefix + "/static/style.css").status_code == 200
        permalink = re.search(r'property="og:url" content="([^"]+)"', client.get(prefix + "/saes/demo/features/0").text)
        assert permalink is None or permalink[1] == "http://testserver/lab/scope/saes/demo/features/0"
        assert client.get(prefix + "/api/nope").json()["status"] == 404
