"""Login and logout, sessions and bearer tokens, changes from other sites, visitors, and the server of one machine."""

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.access.identity import SESSION_COOKIE
from app.access.pages import own_path
from app.access.policy import needed_role
from app.main import create_app
from app.settings import Settings
from sae_core.access_records import Role
from sae_core.store import Store
from tests.app.access.conftest import HIDDEN, Client
from tests.app.fake_prober import FakeProber

LABEL = "/saes/demo/features/9/label"
OWN = {"sec-fetch-site": "same-origin"}


def made(store: Store, **settings: object) -> FastAPI:
    return create_app(Settings(**settings), store=store, prober=FakeProber())  # type: ignore[arg-type]


def test_a_browser_logs_in_sees_the_page_it_wanted_and_logs_out(
    client: TestClient, secrets: dict[Role, str], filled: Store
) -> None:
    led = client.get("/saes/demo/features?sort=max&q=a b")
    assert led.status_code == 303
    page = client.get(led.headers["location"])
    wanted = "/saes/demo/features?sort=max&q=a%20b"
    assert f'name="next" value="{wanted.replace("&", "&amp;")}"' in page.text
    refused = client.post("/login", data={"token": "saescope_no", "next": wanted}, headers=OWN)
    assert refused.status_code == 401 and "opens nothing" in refused.text and "set-cookie" not in refused.headers
    login = client.post("/login", data={"token": f" {secrets['editor']} ", "next": wanted}, headers=OWN)
    assert (login.status_code, login.headers["location"]) == (303, wanted)
    cookie = login.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=lax" in cookie and "path=/" in cookie and "secure" not in cookie
    assert secrets["editor"].lower() not in cookie
    assert client.get(wanted).status_code == 200
    home = client.get("/").text
    assert "Log out" in home and ">editor<" in home and HIDDEN in home
    assert client.get("/api/access").json() == {"name": "editor", "role": "editor", "needs_login": True}
    assert filled.accounts.audit_trail(limit=1)[0].name == "editor"
    session = client.cookies[SESSION_COOKIE]
    assert client.post("/logout", headers=OWN).status_code == 303
    client.cookies.set(SESSION_COOKIE, session)
    assert client.get("/api/saes").status_code == 401


def test_the_cookie_is_secure_behind_tls(app: FastAPI, secrets: dict[Role, str]) -> None:
    with TestClient(app, base_url="https://dash.example", follow_redirects=False) as client:
        login = client.post("/login", data={"token": secrets["reader"]}, headers={"origin": "https://dash.example"})
        assert "; secure" in login.headers["set-cookie"].lower()


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("/saes?x=1", "/saes?x=1"), ("//evil.example", "/"), ("/\\evil.example", "/"), ("https://evil.example", "/"),
        ("", "/"), ("javascript:alert(1)", "/"), ("/a\r\nb", "/"), ("/\t/evil.example", "/"),
    ],
)  # fmt: skip
def test_a_login_leads_nowhere_else(address: str, path: str) -> None:
    assert own_path(address) == path


def test_a_revoked_token_opens_nothing_at_once(client: TestClient, filled: Store) -> None:
    secret = filled.accounts.create_token("for a day", "reader")
    assert client.get("/api/saes", headers={"authorization": f"bearer {secret}"}).status_code == 200
    client.post("/login", data={"token": secret}, headers=OWN)
    assert client.get("/api/saes").status_code == 200
    filled.accounts.revoke_token("for a day")
    assert client.get("/api/saes").status_code == 401
    assert client.get("/api/saes", headers={"authorization": f"Bearer {secret}"}).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"origin": "null"},
        {"origin": "https://evil.example"},
    ],
)  # fmt: skip
def test_a_cookie_alone_changes_nothing(
    client: TestClient, secrets: dict[Role, str], filled: Store, headers: dict[str, str]
) -> None:
    client.post("/login", data={"token": secrets["admin"]}, headers=OWN)
    before = filled.feature("demo", 9)
    for method, address in (("POST", LABEL), ("PUT", f"/api{LABEL}"), ("DELETE", f"/api{LABEL}"), ("POST", "/nowhere")):
        assert client.request(method, address, data={"text": "taken"}, headers=headers).status_code == 403, address
    assert filled.feature("demo", 9) == before
    assert client.post(LABEL, data={"text": "mine"}, headers=OWN).status_code == 303
    assert (
        client.post(LABEL, data={"do": "remove", "text": "-"}, headers={"origin": "http://testserver"}).status_code
        == 303
    )


def test_what_runs_the_model_needs_an_editor(as_role: Client) -> None:
    reader, editor = as_role("reader"), as_role("editor")
    for address in ("/saes/demo/probe?text=king", "/learn/live?text=king", "/learn?live=1", "/api/learn?text=king"):
        refused = reader.get(address)
        assert refused.status_code == 403 and "needs the role editor" in refused.text, address
        assert editor.get(address).status_code == 200, address
    assert reader.post("/api/saes/demo/probe", json={"text": "king"}).status_code == 403
    assert reader.get("/saes/demo/probe").status_code == reader.get("/learn").status_code == 200


def test_a_reader_gets_pages_without_forms_and_an_admin_says_who_sees_an_sae(
    client: TestClient, as_role: Client, filled: Store
) -> None:
    reader, editor, admin = (as_role(role) for role in ("reader", "editor", "admin"))
    for address in ("/lists", "/saes/demo/features/0", f"/lists/{filled.lists()[0].list_id}"):
        assert 'method="post"' not in re.sub(
            r'action="/logout"|method="post" action="/logout"', "", reader.get(address).text
        )
        assert 'method="post"' in editor.get(address).text
    assert "Who sees it" not in editor.get("/saes/demo").text and "Who sees it" in admin.get("/saes/demo").text
    assert admin.put("/api/saes/demo/visibility", json={"visibility": "private"}).json()["visibility"] == "private"
    assert reader.get("/saes/demo").status_code == 404
    assert reader.get("/saes/demo/features/0/card.png").status_code == 404
    assert admin.post("/saes/demo/visibility", data={"visibility": "public"}).status_code == 303
    assert reader.get("/saes/demo").status_code == 200
    assert admin.put("/api/saes/demo/visibility", json={"visibility": "secret"}).status_code == 422
    assert [e.action for e in filled.accounts.audit_trail(limit=2)] == [
        "POST /saes/demo/visibility", "PUT /api/saes/demo/visibility",
    ]  # fmt: skip


def test_the_audit_trail_is_a_page_with_a_twin(as_role: Client, filled: Store) -> None:
    admin = as_role("admin")
    answer = as_role("editor").put(f"/api{LABEL}", json={"text": "nine", "author": "<b>me"})
    assert answer.status_code == 200
    (newest, *_) = admin.get("/api/audit").json()["items"]
    assert (newest["name"], newest["action"]) == ("editor", f"PUT /api{LABEL}")
    assert newest["request_id"] == answer.headers["x-request-id"]
    assert newest["request_id"] in admin.get("/audit").text
    for _ in range(101):
        as_role("editor").delete(f"/api{LABEL}")
    first = admin.get("/api/audit").json()
    second = admin.get("/api/audit", params={"before": first["next"]}).json()
    assert len(first["items"]) == 100 and second["items"][0]["audit_id"] < first["items"][-1]["audit_id"]
    assert f'href="/audit?before={first["next"]}"' in admin.get("/audit").text


def test_visitors_read_what_is_public_and_nothing_else(filled: Store, home: Path) -> None:
    app = made(filled, home=home, host="0.0.0.0", visitors=True)
    with TestClient(app, follow_redirects=False) as client:
        assert [s["sae"]["slug"] for s in client.get("/api/saes").json()["items"]] == ["demo"]
        assert client.get("/saes/unindexed").status_code == 200
        assert client.get(f"/saes/{HIDDEN}").status_code == 404
        assert [run["slug"] for run in client.get("/api/runs").json()["items"]] == ["demo"]
        assert client.get("/runs/unindexed").status_code == 200
        assert client.get(f"/runs/{HIDDEN}").status_code == client.get(f"/api/runs/{HIDDEN}/events").status_code == 404
        assert client.put(f"/api{LABEL}", json={"text": "x"}).status_code == 401
        assert client.get("/saes/demo/probe?text=king").status_code == 403


def test_runs_of_new_saes_are_as_visible_as_new_saes(filled: Store, tmp_path: Path) -> None:
    from tests.run_logs import training

    with training(tmp_path, "brand-new"):
        pass
    for visibility, listed, status in (("public", 1, 200), ("unlisted", 0, 200), ("private", 0, 404)):
        app = made(filled, home=tmp_path, host="0.0.0.0", visitors=True, visibility=visibility)
        with TestClient(app) as client:
            assert len(client.get("/api/runs").json()["items"]) == listed
            assert client.get("/api/runs/brand-new").status_code == status


@pytest.mark.parametrize(("host", "status"), [("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:8000", 200),
                                              ("scope.localhost", 200), ("evil.example", 403), ("", 403)])  # fmt: skip
def test_a_server_without_login_answers_to_this_machines_names_only(
    filled: Store, home: Path, host: str, status: int
) -> None:
    app = made(filled, home=home)
    with TestClient(app, client=("127.0.0.1", 5)) as client:
        assert client.get("/", headers={"host": host}).status_code == status
        for header in ("x-forwarded-for", "forwarded", "x-forwarded-host"):
            assert client.get("/", headers={"host": host, header: "1.2.3.4"}).status_code == 403
    with TestClient(made(filled, home=home, insecure=True), client=("127.0.0.1", 5)) as client:
        assert client.get("/", headers={"host": host, "x-forwarded-for": "1.2.3.4"}).status_code == 200


@pytest.mark.parametrize(
    ("changed", "needs"),
    [
        ({}, False), ({"host": "::1"}, False), ({"host": "localhost"}, False), ({"host": "127.0.0.5"}, False),
        ({"host": "0.0.0.0"}, True), ({"host": "::"}, True), ({"host": "dash.example"}, True),
        ({"login": True}, True), ({"host": "0.0.0.0", "insecure": True}, False),
        ({"login": True, "insecure": True}, False),
    ],
)  # fmt: skip
def test_where_a_token_is_needed(changed: dict[str, object], needs: bool) -> None:
    assert Settings(**changed).needs_login is needs  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("GET", "/saes/demo", "reader"), ("POST", "/nobody/knows", "editor"), ("PUT", "/api/p/1", "editor"),
        ("POST", "/api/saes/demo/steer", "editor"), ("POST", "/imports", "admin"), ("GET", "/import", "admin"),
        ("DELETE", "/api/saes/demo", "admin"), ("POST", "/saes/demo/delete", "admin"), ("POST", "/saes", "admin"),
        ("DELETE", "/api/saes/demo/indexes/3", "admin"), ("DELETE", "/api/lists/1", "editor"),
        ("DELETE", "/api/saes/demo/features/1/label", "editor"), ("GET", "/static/x.js", None), ("GET", "/login", None),
        ("GET", "/loginx", "reader"), ("GET", "/static", "reader"), ("DELETE", "/runs/x", "admin"),
    ],
)  # fmt: skip
def test_the_role_that_an_address_needs(method: str, path: str, role: str | None) -> None:
    assert needed_role(method, path) == role


def test_a_client_that_asks_too_often_waits(filled: Store, home: Path, secrets: dict[Role, str]) -> None:
    app = made(filled, home=home, host="0.0.0.0", rate_limit=5)
    with TestClient(app, headers={"authorization": f"Bearer {secrets['reader']}"}) as client:
        assert [client.get("/api/access").status_code for _ in range(7)] == [200] * 5 + [429] * 2
        refused = client.get("/glossary")
        assert refused.status_code == 429 and refused.headers["retry-after"] == "5" and "wait" in refused.text
        assert client.get("/healthz").status_code == client.get("/static/style.css").status_code == 200
        other = {"authorization": f"Bearer {secrets['editor']}"}
        assert client.get("/api/access", headers=other).status_code == 200
