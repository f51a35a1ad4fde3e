"""The route table, walked: no route, page or twin, lets anybody in whom the gate keeps out, or names a hidden SAE.

A route that is new is walked as well. If it has a parameter that FILLED does not know, the test says so.
"""

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

import app as app_package
from app.access.policy import OPEN, SAFE_METHODS, needed_role
from sae_core.store import Store
from tests.app.access.conftest import HIDDEN, SECRET_LABEL, UNKNOWN, Client
from tests.app.routes import routes_of

APP = Path(app_package.__file__).parent
FILLED = {"item_id": "1", "context_id": "0", "feature_index": "0", "kind": "csv", "format": "csv", "corpus": "stories"}
NAMED_AFTER_SAE = ("slug", "run_id", "sae", "a", "b")  # of parameters in the path and of those behind "?"
QUERY = "text=king&q=secret&a={0}/0&b=demo/0&sae={0}&slug={0}&format=csv&feature=0&list_id={1}"


def calls(app: FastAPI, *, slug: str, list_id: str) -> list[tuple[str, str]]:
    """Method and address of every route, its parameters filled in for this SAE."""
    found = []
    for route in routes_of(app):

        def value(match: re.Match[str]) -> str:
            name = match[1].split(":")[0]
            if name in NAMED_AFTER_SAE:
                return slug
            if name.endswith("_id") and name not in FILLED:
                return list_id
            assert name in FILLED, f"tests/app/access/test_routes.py: say in FILLED what {{{name}}} may be"
            return FILLED[name]

        address = re.sub(r"{([\w:]+)}", value, route.path)
        found += [(method, address) for method in sorted(route.methods)]
    assert len(found) > 60
    return found


@pytest.fixture
def list_id(filled: Store) -> str:
    return filled.lists()[0].list_id


def test_without_a_token_nothing_is_answered(app: FastAPI, client: TestClient, list_id: str) -> None:
    answered = set()
    for method, address in calls(app, slug="demo", list_id=list_id):
        response = client.request(method, address)
        if response.status_code == 303 and response.headers["location"].startswith("/login?next="):
            assert method in ("GET", "HEAD") and not address.startswith("/api")
        elif response.status_code != 401:
            answered.add(address)
        else:
            assert response.headers["www-authenticate"] == "Bearer"
    assert answered == {"/login", "/logout", "/healthz", "/readyz", "/api/access", "/favicon.ico"}
    for mounted in ("/openapi.json", "/nowhere", "/api/nowhere", "//saes", "/static/../saes"):
        assert client.get(mounted).status_code in (303, 401), mounted
    for wrong in ("x", "", "Bearer", "saescope_"):
        assert client.get("/api/saes", headers={"authorization": f"Bearer {wrong}"}).status_code == 401
        assert client.get("/api/saes", headers={"cookie": f"saescope-session={wrong}"}).status_code == 401


def test_a_reader_changes_nothing_and_an_editor_nothing_of_everybodys(
    app: FastAPI, as_role: Client, filled: Store, list_id: str
) -> None:
    before = repr((filled.saes(), filled.lists(), filled.feature_list(list_id), filled.feature("demo", 0)))
    changes = [c for c in calls(app, slug="demo", list_id=list_id) if c[0] not in SAFE_METHODS]
    changes = [(method, address) for method, address in changes if not OPEN.fullmatch(address)]
    assert len(changes) >= 18
    reader, editor = as_role("reader"), as_role("editor")
    for method, address in changes:
        assert reader.request(method, address, json={}).status_code == 403, (method, address)
        if needed_role(method, address) == "admin":
            assert editor.request(method, address, json={}).status_code == 403, (method, address)
    for address in ("/audit", "/api/audit", "/import", "/api/imports/1"):
        assert editor.get(address).status_code == 403
    assert ("POST", "/saes/demo/visibility") in changes
    assert repr((filled.saes(), filled.lists(), filled.feature_list(list_id), filled.feature("demo", 0))) == before


def test_to_a_reader_a_hidden_sae_is_one_that_is_not_there(app: FastAPI, as_role: Client, list_id: str) -> None:
    """Every answer about it is, but for the name, the answer about an SAE that there never was."""
    reader, editor = as_role("reader"), as_role("editor")
    assert len(HIDDEN) == len(UNKNOWN)
    shown_to_editors = set()
    for method, address in calls(app, slug=HIDDEN, list_id=list_id):
        if method != "GET":
            continue
        queries = ("", "?" + QUERY.format(HIDDEN, list_id), "?" + QUERY.format(HIDDEN, list_id).replace("/0", ""))
        for whole in (address + query for query in queries):
            hidden, unknown = reader.get(whole), reader.get(whole.replace(HIDDEN, UNKNOWN))
            assert hidden.status_code == unknown.status_code != 500, whole
            if address != "/metrics":  # which differ by the question itself
                assert nameless(hidden.text) == nameless(unknown.text), whole
            assert SECRET_LABEL not in hidden.text, whole
            if HIDDEN not in whole:
                assert HIDDEN not in hidden.text, whole
        if HIDDEN in address and "events" not in address:
            shown_to_editors.add(editor.get(address).status_code)
    assert 200 in shown_to_editors


def test_routes_have_no_other_way_to_what_is_stored() -> None:
    """Only the dependencies, which ask who it is, touch the app's own store and the list of all runs."""
    sources = {path.relative_to(APP).as_posix(): path.read_text(encoding="utf-8") for path in APP.rglob("*.py")}
    assert {name for name, text in sources.items() if "state.store" in text} == {"main.py", "deps.py", "access/gate.py"}
    assert {name for name, text in sources.items() if "list_runs(" in text} == {"deps.py", "runs.py"}


def nameless(text: str) -> str:
    return re.sub(r"<code>[0-9a-f]{12}</code>|/saes/demo/features/\d+", "", text.replace(HIDDEN, UNKNOWN))
