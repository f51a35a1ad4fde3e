"""What outsiders and readers have tried, against a real server where the server's own layers matter."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.main import create_app
from app.server import Server
from app.settings import Settings
from sae_core.store import Store
from tests.app.access.conftest import HIDDEN, Client
from tests.app.fake_prober import FakeProber
from tests.run_logs import training


@contextmanager
def serving(store: Store, settings: Settings) -> Iterator[tuple[str, int]]:
    """Host and port of a real server."""
    server = Server(create_app(settings, store=store, prober=FakeProber()))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listening.getsockname()[:2]
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def local(filled: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Without a login, for this machine only."""
    with serving(filled, Settings(home=tmp_path_factory.mktemp("local"), body_timeout=0.5)) as place:
        yield place


def answered(place: tuple[str, int], sent: bytes, *, wait: float = 5) -> bytes:
    """The beginning of what comes back; nothing if the server closes the connection."""
    with socket.create_connection(place, timeout=wait) as connection:
        connection.sendall(sent)
        return connection.recv(4000)


@pytest.mark.parametrize("forwarded", [None, "x-forwarded-for", "x-forwarded-proto", "forwarded", "x-real-ip", "via"])
def test_a_page_of_a_foreign_name_gets_in_by_no_header(local: tuple[str, int], forwarded: str | None) -> None:
    """DNS rebinding: to the browser evil.example is this server, so its page may set any header."""
    headers = {"host": f"evil.example:{local[1]}", "origin": f"http://evil.example:{local[1]}"}
    said = {forwarded: "testclient"} if forwarded else {}
    for method, path in (("GET", "/api/saes"), ("POST", "/api/lists")):
        assert b" 403 " in answered(local, request(method, path, **headers, **said))[:20]
    # As a proxy that somebody forgot would bring anybody.
    alone = answered(local, request("GET", "/api/saes", host="localhost", **said))
    assert (b" 403 " if forwarded else b" 200 ") in alone[:20]


def request(method: str, path: str, **headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_a_head_that_does_not_come_is_not_waited_for(local: tuple[str, int], sent: bytes) -> None:
    began = time.monotonic()
    assert answered(local, sent) == b""
    assert time.monotonic() - began < 4
    whole = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(local, timeout=5) as connection:  # nor the second one of a connection
        connection.sendall(whole)
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(4000)
        assert b"200 OK" in answer
        connection.sendall(sent or b"G")
        assert connection.recv(4000) == b""


@pytest.mark.slow
def test_who_reads_for_a_while_asks_again_on_the_same_connection(local: tuple[str, int]) -> None:
    with socket.create_connection(local, timeout=5) as connection:
        for pause in (0, 7):  # seconds; many servers close after 5, just as somebody may ask again
            time.sleep(pause)
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                part = connection.recv(4000)
                assert part  # else it is closed
                answer += part
            assert b"200 OK" in answer


def test_an_answer_may_take_longer_than_a_head(local: tuple[str, int], filled: Store, tmp_path: Path) -> None:
    with (
        training(tmp_path, "demo") as log,
        serving(filled, Settings(home=tmp_path, body_timeout=0.5)) as (host, port),
        httpx.stream("GET", f"http://{host}:{port}/api/runs/demo/events", timeout=10) as response,
    ):
        lines = response.iter_lines()
        assert "event: run" in lines
        time.sleep(0.8)
        log.note("still here")
        assert any("still here" in line for line in lines)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /search?q=" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 300_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 30_000 + b"\r\n",
        b"POST /api/lists HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"POST /api/lists HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999999\r\n\r\n",
        b"POST /api/lists HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 100000\r\n\r\n" + b"[" * 100_000,
        b"GET /static/%2e%2e/%2e%2e/app/main.py HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /static/..%2f..%2fapp/main.py HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /saes/%ff%fe%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /runs/..%2f..%2fetc HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=range(11),
)
def test_what_is_malformed_or_endless_is_refused(local: tuple[str, int], sent: bytes) -> None:
    answer = answered(local, sent)
    assert answer[:10] == b"HTTP/1.1 4" and b"Traceback" not in answer and b"import" not in answer


@pytest.mark.parametrize("host", ["x/static/y?", "x/login#", "x/healthz?", "x\\static", "static@x", "[::1", "x:99999"])
def test_a_host_moves_no_address(client: TestClient, host: str) -> None:
    """The role is that of the path by which the route is chosen, not of what an address makes of host and path."""
    assert client.get("/api/saes", headers={"host": host}).status_code == 401
    assert client.delete("/api/saes/demo", headers={"host": host}).status_code == 401
    assert client.get("/saes/demo", headers={"host": host}).headers["location"].startswith("/login?next=")


def test_made_up_methods_do_not_fill_the_memory(client: TestClient, app: FastAPI, as_role: Client) -> None:
    for number in range(20):
        assert client.request(f"MADEUP{number}", "/saes/demo").status_code in (401, 403)
    counted = as_role("reader").get("/metrics").text
    assert "MADEUP" not in counted and 'method="other"' in counted


def test_a_run_does_not_name_the_hidden_sae_that_was_trained_with_it(app: FastAPI, as_role: Client, home: Path) -> None:
    with training(home, "demo", HIDDEN):
        pass
    reader, editor = as_role("reader"), as_role("editor")
    for address in ("/api/runs", "/api/runs/demo", "/runs/demo", "/runs", "/api/runs/demo/events"):
        assert HIDDEN not in reader.get(address).text, address
    assert editor.get("/api/runs/demo").json()["run"]["together"] == ["demo", HIDDEN]


def test_a_shared_probe_does_not_name_the_hidden_sae_beside_it(as_role: Client, filled: Store) -> None:
    probe_id = filled.add_probe("demo", text="king", state={"beside": [HIDDEN, "unindexed"]})
    for address in (f"/p/{probe_id}", f"/api/p/{probe_id}"):
        shown = as_role("reader").get(address)
        assert HIDDEN not in shown.text + shown.headers.get("location", ""), address
    assert as_role("editor").get(f"/api/p/{probe_id}").json()["state"]["beside"] == [HIDDEN, "unindexed"]


def test_what_the_server_labels_for_somebody_is_noted_under_their_name(as_role: Client, filled: Store) -> None:
    path = "/api/saes/demo/features/0/explain"
    assert as_role("editor").post(path, json={"by": "patterns"}).status_code == 200
    deadline = time.monotonic() + 10
    while (newest := filled.accounts.audit_trail(limit=1)[0]).action != f"POST {path}":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert newest.name == "editor"


def test_a_stream_ends_so_that_its_listener_comes_through_the_gate_again(
    as_role: Client, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app import run_feed

    monkeypatch.setattr(run_feed, "STREAM_SECONDS", 0.3)
    with training(home, "demo") as log:
        text = as_role("reader").get("/api/runs/demo/events").text  # which would not end before the run does
        log.stop()
    assert "event: run" in text and "event: end" not in text


def test_what_stands_in_the_address_alone_is_under_the_root(filled: Store, tmp_path: Path) -> None:
    app = create_app(Settings(home=tmp_path, root_path="/lab"), store=filled, prober=FakeProber())
    with TestClient(app, follow_redirects=False) as client:
        for path, status in (
            ("/lab", 307),
            ("/lab/", 200),
            ("/lab/saes/demo", 200),
            ("/saes/demo", 200),
            ("/labs", 404),
        ):
            assert client.get(path).status_code == status, path
