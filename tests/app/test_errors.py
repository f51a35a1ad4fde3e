"""Bad requests: one clear sentence each, as a page for people and as JSON below /api, and never a 500."""

import pytest
from starlette.testclient import TestClient

BAD_ADDRESSES = [
    ("/saes/nope", 404),
    ("/saes/%00", 404),
    ("/saes/..%2f..%2fetc", 404),
    ("/saes/demo?corpus=nope", 404),
    ("/saes/demo?corpus=%00", 422),
    ("/saes/unindexed/features", 404),
    ("/saes/demo/features?min_density=abc", 422),
    ("/saes/demo/features?min_density=nan", 422),
    ("/saes/demo/features?max_density=7", 422),
    ("/saes/demo/features?sort=shuffled", 422),
    ("/saes/demo/features?alive=perhaps", 422),
    ("/saes/demo/features?limit=0", 422),
    ("/saes/demo/features?limit=99999999999999999999", 422),
    ("/saes/demo/features?after=garbage", 422),
    ("/saes/demo/features?q=%00", 422),
    ("/saes/demo/features?q=" + "x" * 300, 422),
    ("/saes/demo/features/x", 422),
    ("/saes/demo/features/-1", 422),
    ("/saes/demo/features/99999999999999999999999", 422),
    ("/saes/demo/features/300", 404),
    ("/saes/unindexed/features/0", 404),
    ("/saes/unindexed/features/random", 404),
    ("/saes/demo/probe?text=king&feature=300", 404),
    ("/saes/demo/probe?text=king&feature=x", 422),
    ("/saes/demo/probe?text=king&sort=x", 422),
    ("/saes/demo/probe?text=a%00b", 422),
    ("/saes/demo/probe?text=" + "word+" * 300, 413),
    ("/saes/nope/probe?text=king", 404),
    ("/saes/demo/nope", 404),
    ("/saes/demo/features/300/embed", 404),
    ("/saes/demo/features/0/embed?parts=nope", 422),
    ("/saes/demo/features/0/embed?height=1", 422),
    ("/lists/nope", 404),
    ("/lists/%00", 404),
    ("/lists/" + "x" * 50, 422),
    ("/compare?a=demo/x&b=demo", 422),
    ("/compare?a=demo/0&b=demo/300", 404),
]


@pytest.mark.parametrize(("address", "status"), BAD_ADDRESSES)
def test_bad_address(client: TestClient, address: str, status: int) -> None:
    page, twin = client.get(address), client.get("/api" + address)
    assert page.status_code == twin.status_code == status
    assert page.headers["content-type"].startswith("text/html")
    assert "Traceback" not in page.text
    answer = twin.json()
    assert set(answer) == {"error", "status"}
    assert answer["error"].endswith((".", "."))
    assert len(answer["error"]) < 300


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b'{"text": ""}', 422, "empty"),
        (b'{"text": "  \\n "}', 422, "empty"),
        (b'{"text": "a\\u0000b"}', 422, "NUL"),
        (b'{"text": "\\ud800"}', 422, "half of a character"),
        (b"{}", 422, "text"),
        (b"[1]", 422, ""),
        (b"nonsense", 422, ""),
        (b'{"text": "king", "top_k": 0}', 422, "top_k"),
        (b'{"text": "king", "top_k": "many"}', 422, "top_k"),
        (b'{"text": 3}', 422, "text"),
        (b"\xff\xfe\x00", 400, ""),
        (b'{"text": "' + b"word " * 300 + b'"}', 413, "shorten"),
        (b'{"text": "' + b"x" * 30_000 + b'"}', 413, "20,000 bytes"),
        (b'{"text": "busy"}', 503, "try again"),
    ],
)
def test_bad_probe(client: TestClient, body: bytes, status: int, sentence: str) -> None:
    response = client.post("/api/saes/demo/probe", content=body, headers={"content-type": "application/json"})
    assert (response.status_code, set(response.json())) == (status, {"error", "status"})
    assert sentence in response.json()["error"]


def test_body_without_a_stated_length_is_limited_too(client: TestClient) -> None:
    response = client.post(
        "/api/saes/demo/probe",
        content=(b'"' + b"x" * 5000 for _ in range(8)),
        headers={"content-type": "application/json"},
    )
    assert response.status_code == 413


def test_wrong_method(client: TestClient) -> None:
    response = client.delete("/api/saes")
    assert (response.status_code, response.json()["status"]) == (405, 405)
    assert "GET" in response.headers["allow"]


def test_unexpected_error_says_nothing_of_its_inside(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    page = client.get("/saes/demo/probe?text=crash")
    twin = client.post("/api/saes/demo/probe", json={"text": "crash"})
    assert page.status_code == twin.status_code == 500
    assert "secret" not in page.text + twin.text
    assert "server's log" in twin.json()["error"]
    assert "secret" in caplog.text


def test_busy_answers_say_when_to_come_back(client: TestClient) -> None:
    response = client.post("/api/saes/demo/probe", json={"text": "busy"})
    assert response.headers["retry-after"] == "5"


def test_error_page_leads_back(client: TestClient) -> None:
    page = client.get("/saes/nope").text
    assert 'href="/"' in page
    assert "There is no SAE" in page
