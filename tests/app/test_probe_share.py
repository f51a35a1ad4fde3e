"""Shared probes: stored by page and API, shown again as they were, refused where nothing may be changed."""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from sae_core.store import Store
from tests.app.fake_prober import FakeProber
from tests.factories import NOW, make_sae, make_store, make_vocabulary

STATE = {"feature": 7, "token": 2, "pin": [7, 12], "sort": "sum", "max_density": 0.5, "special": True}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = make_store(f"sqlite:///{tmp_path}/saescope.db")
    yield opened
    opened.close()


@pytest.fixture
def client(store: Store) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(), store=store, prober=FakeProber())) as opened:
        yield opened


def test_a_shared_probe_shows_what_was_shared(client: TestClient) -> None:
    asked = {"slug": "demo", "text": "the king & the <b>sea</b>\n中 ", "author": "Ana", **STATE}
    stored = client.post("/api/probes", json=asked)
    assert stored.status_code == 200, stored.text
    found = stored.json()
    assert (found["text"], found["state"], found["author"]) == (asked["text"], STATE, "Ana")
    assert client.get(f"/api/p/{found['probe_id']}").json() == found
    shown = client.get(f"/p/{found['probe_id']}").text
    typed = client.get("/saes/demo/probe", params={**asked, "pin": "7,12"}).text
    answer = re.compile(r"<div id=\"answer\">.*</form>", re.DOTALL)
    assert answer.findall(shown)[-1] == answer.findall(typed)[-1]
    assert "Shared by Ana" in shown and 'name="feature" value="7" checked' in shown
    assert f"/api/p/{found['probe_id']}" in shown
    assert client.get("/api/probes").json()["items"] == [found]


def test_the_button_stores_what_the_form_shows(client: TestClient) -> None:
    form = "text=the+king&corpus=&feature=7&token=2&pin=7&pin=12&sort=sum&max_density=0.5&special=1"
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = client.post("/saes/demo/probe/share", content=form, headers=headers, follow_redirects=False)
    assert answer.status_code == 303 and re.fullmatch(r"/p/[a-z2-9]{14}", answer.headers["location"])
    found = client.get("/api" + answer.headers["location"]).json()
    assert (found["text"], found["state"], found["author"]) == ("the king", STATE, "anonymous")
    assert client.post("/saes/demo/probe/share", content="text=+", headers=headers).status_code == 422
    assert client.post("/saes/nope/probe/share", content="text=a", headers=headers).status_code == 404


def test_home_shows_the_newest_shared_probes_apart(client: TestClient) -> None:
    assert 'id="shared-title"' not in client.get("/").text
    for number in range(8):
        client.post("/api/probes", json={"slug": "demo", "text": f"<i>text {number}"})
    section = client.get("/").text.split('class="shared"')[1].split("</section>")[0]
    assert re.findall(r"&lt;i&gt;text (\d)", section) == ["7", "6", "5", "4", "3", "2"]


def test_what_was_shared_of_an_sae_that_is_gone_says_so(client: TestClient, store: Store) -> None:
    probe_id = client.post("/api/probes", json={"slug": "unindexed", "text": "the <king>", "feature": 3}).json()[
        "probe_id"
    ]
    store.delete_sae("unindexed")
    page = client.get(f"/p/{probe_id}")
    assert page.status_code == 200 and "has been deleted" in page.text and "the &lt;king&gt;" in page.text
    store.add_sae(make_sae("unindexed", created_at=NOW + timedelta(days=9)), make_vocabulary())
    assert "has been replaced" in client.get(f"/p/{probe_id}").text
    assert probe_id not in client.get("/").text


def test_a_state_that_is_not_understood_any_more_leaves_the_text(client: TestClient, store: Store) -> None:
    probe_id = store.add_probe("demo", text="the king", state={"sort": "of another version"})
    page = client.get(f"/p/{probe_id}")
    assert page.status_code == 200 and "the king" in page.text


def test_deleting_takes_it_away_for_everybody(client: TestClient) -> None:
    probe_id = client.post("/api/probes", json={"slug": "demo", "text": "a"}).json()["probe_id"]
    assert client.delete(f"/api/p/{probe_id}").json()["probe_id"] == probe_id
    assert client.get(f"/p/{probe_id}").status_code == 404
    probe_id = client.post("/api/probes", json={"slug": "demo", "text": "a"}).json()["probe_id"]
    gone = client.post(f"/p/{probe_id}/delete", follow_redirects=False)
    assert gone.status_code == 303 and client.get(f"/api/p/{probe_id}").status_code == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/api/probes"), ("POST", "/saes/demo/probe/share"), ("DELETE", "/api/p/x"), ("POST", "/p/x/delete")],
)
def test_nothing_is_changed_from_elsewhere_or_on_a_read_only_server(store: Store, method: str, path: str) -> None:
    probe_id = store.add_probe("demo", text="a", state={})
    path = path.replace("x", probe_id) if "/p/x" in path else path
    body = {"content": "text=a", "headers": {"Content-Type": "application/x-www-form-urlencoded"}}
    if path == "/api/probes":
        body = {"json": {"slug": "demo", "text": "a"}}
    with TestClient(create_app(Settings(), store=store, prober=FakeProber())) as client:
        headers = {**body.pop("headers", {}), "Sec-Fetch-Site": "cross-site"}
        assert client.request(method, path, headers=headers, **body).status_code == 403
    with TestClient(create_app(Settings(read_only=True), store=store, prober=FakeProber())) as client:
        headers.pop("Sec-Fetch-Site")
        assert client.request(method, path, headers=headers, **body).status_code == 403
        assert "formaction" not in client.get("/saes/demo/probe").text
        assert client.get(f"/p/{probe_id}").status_code == 200
    assert [probe.probe_id for probe in store.probes()] == [probe_id]
