"""Answers that are kept: sent again as they were, and never once anybody has changed what they say."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app import kept
from app.explain.background import Work
from app.main import create_app
from app.settings import Settings
from sae_core.store import Store
from tests.app.fake_prober import FakeProber
from tests.factories import make_label

FEATURE = "/saes/demo/features/0"
SHOWING_LABELS = (
    FEATURE,
    "/api" + FEATURE,
    "/saes/demo/features?q=0",
    "/api/saes/demo/features?q=0",
    "/search?q=spouse",
)
RENAMED = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("UPDATE labels SET text = 'renamed elsewhere' WHERE text LIKE '%spouse%'")
connection.commit()
"""


@pytest.fixture
def path(store: Store, tmp_path: Path) -> Path:
    copy = tmp_path / "own.db"
    store.backup(copy)
    return copy


@pytest.fixture
def own(path: Path) -> Iterator[Store]:
    opened = Store.open(f"sqlite:///{path}")
    yield opened
    opened.close()


@pytest.fixture
def app(own: Store, tmp_path: Path) -> FastAPI:
    return create_app(Settings(home=tmp_path), store=own, prober=FakeProber())


@pytest.fixture
def made(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths for which a route was run."""
    paths: list[str] = []
    inner = kept._may_be_kept

    def noted(scope: dict[str, object], start: dict[str, object]) -> bool:
        paths.append(str(scope["path"]))
        return inner(scope, start)  # type: ignore[arg-type]

    monkeypatch.setattr(kept, "_may_be_kept", noted)
    return paths


@pytest.mark.parametrize("address", [*SHOWING_LABELS, "/saes/demo", "/saes/demo/map", f"{FEATURE}?embed=1", "/lists"])
def test_an_answer_is_made_once_and_sent_again_as_it_was(client: TestClient, made: list[str], address: str) -> None:
    first, again = client.get(address), client.get(address)
    assert (first.status_code, len(made)) == (200, 1)
    assert again.content == first.content
    differing = {name for name in first.headers if first.headers[name] != again.headers.get(name)}
    assert differing <= {"x-request-id"}
    assert first.headers.keys() == again.headers.keys()
    client.get(address, headers={"host": "another.localhost"})
    client.get(address, headers={"accept-encoding": "identity"})
    assert len(made) == 3


def test_who_has_it_is_told_so(client: TestClient) -> None:
    first = client.get(FEATURE)
    assert first.headers["cache-control"] == "no-cache"
    known = client.get(FEATURE, headers={"if-none-match": f'"other", W/{first.headers["etag"]}'})
    assert (known.status_code, known.content) == (304, b"")
    assert known.headers["etag"] == first.headers["etag"]
    assert "content-length" not in known.headers or known.headers["content-length"] == "0"
    assert client.get(FEATURE, headers={"if-none-match": '"other"'}).content == first.content


def test_what_another_process_writes_is_seen_at_once(client: TestClient, path: Path) -> None:
    before = [client.get(address) for address in SHOWING_LABELS]
    assert all("spouse" in answer.text for answer in before)
    subprocess.run([sys.executable, "-c", RENAMED, str(path)], check=True)
    for address, answer in zip(SHOWING_LABELS, before, strict=True):
        now = client.get(address, headers={"if-none-match": answer.headers["etag"]})
        assert (now.status_code, "renamed elsewhere" in now.text) == (200, True), address


def test_what_this_server_writes_is_seen_at_once(client: TestClient, own: Store) -> None:
    for text in ("called so by its page", "and then so"):
        assert client.get(FEATURE).text.count(text) == 0
        client.post(f"{FEATURE}/label", data={"text": text, "do": "save"})
        assert text in client.get(FEATURE).text
    own.add_labels("demo", {0: make_label("by this process, beside the server", kind="human")})
    assert "by this process, beside the server" in client.get(FEATURE).text


def test_an_sae_that_becomes_private_is_gone_at_once_and_never_shown_to_readers(
    path: Path, own: Store, tmp_path: Path
) -> None:
    app = create_app(Settings(home=tmp_path, host="0.0.0.0"), store=own, prober=FakeProber())
    with TestClient(app, raise_server_exceptions=False, follow_redirects=False) as client:
        as_role: dict[str, Callable[[], int]] = {}
        for role in ("reader", "editor"):
            secret = own.accounts.create_token(role, role)  # type: ignore[arg-type]
            headers = {"authorization": f"Bearer {secret}"}
            as_role[role] = lambda headers=headers: client.get(FEATURE, headers=headers).status_code  # type: ignore[misc]
        assert [as_role["reader"](), as_role["editor"](), client.get(FEATURE).status_code] == [200, 200, 303]
        other = Store.open(f"sqlite:///{path}")
        other.set_visibility("demo", "private")
        assert [as_role["reader"](), as_role["editor"](), as_role["reader"]()] == [404, 200, 404]
        other.set_visibility("demo", "public")
        assert as_role["reader"]() == 200
        other.close()


def test_what_is_going_on_in_the_server_is_seen(app: FastAPI, client: TestClient) -> None:
    address = "/saes/demo/features/0?corpus=stories"
    assert "working.js" not in client.get(address).text
    app.state.labelling._works["demo", 0, "stories"] = Work(by="patterns", is_running=True)
    assert "working.js" in client.get(address).text


def test_each_reader_sees_the_name_that_was_typed_there(client: TestClient) -> None:
    for name in ("Ada", "Grace"):
        assert f'value="{name}"' in client.get(FEATURE, headers={"cookie": f"saescope-author={name}"}).text
    assert 'value="Ada"' not in client.get(FEATURE).text


def test_errors_redirects_and_what_follows_from_more_are_made_each_time(client: TestClient, made: list[str]) -> None:
    for address in ("/saes/demo/features/999999", "/saes/demo/features/random", "/healthz", "/runs"):
        for _ in range(2):
            client.get(address, follow_redirects=False)
    assert len(made) == 8


def test_no_more_is_kept_than_fits(client: TestClient, made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    n_bytes = len(client.get("/glossary", headers={"accept-encoding": "identity"}).content)
    monkeypatch.setattr(kept, "MOST_BYTES", n_bytes)
    for address in ("/glossary", "/lists", "/glossary", "/glossary"):
        client.get(address, headers={"accept-encoding": "identity"})
    assert made == ["/glossary", "/lists", "/glossary"]
    monkeypatch.setattr(kept, "MOST_BYTES_EACH", 10)
    for _ in range(2):
        assert client.get("/patterns").status_code == 200
    assert made[3:] == ["/patterns"] * 2
