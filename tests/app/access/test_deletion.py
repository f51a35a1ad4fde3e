"""`saescope delete` and its page: what goes, what stays, who may, and who is in the way."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app import cli, cli_delete
from app.main import create_app
from app.settings import Settings
from sae_core.access_records import ROLES
from sae_core.errors import NotFoundError
from sae_core.holding import held
from sae_core.records import SAEContents
from sae_core.store import Store
from tests.app.access.test_routes import calls
from tests.app.fake_prober import FakeProber
from tests.factories import make_label, make_records, make_sae, make_vocabulary
from tests.run_logs import training

N = 20
OWN = {"sec-fetch-site": "same-origin"}
CONTENTS = SAEContents(n_indexes=1, n_labels=3, n_human_labels=1, n_list_items=1, n_probes=1, n_steerings=0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of two SAEs with a list of both; the one that goes has files, a probe and a label of a person."""
    home = tmp_path_factory.mktemp("made")
    store = Store.open(f"sqlite:///{home}/saescope.db")
    for slug in ("gone", "kept"):
        store.add_sae(make_sae(slug, d_sae=N), make_vocabulary())
        store.add_index(make_records(slug, n_features=N))
    for number, kind in enumerate(("human", "model", "pattern")):
        store.add_labels("gone", {number: make_label(f"by {kind}", kind=kind)})
    list_id = store.add_list(title="Both")
    for slug in ("gone", "kept"):
        store.add_list_item(list_id, slug, 0, note=f"of {slug}")
    store.add_probe("gone", text="whispered", state={}, author="")
    store.close()
    for folder in ("imports", "indexes"):
        (home / folder / "gone").mkdir(parents=True)
        (home / folder / "gone" / "weights").write_bytes(b"x" * 1000)
    with training(home, "gone"):
        pass
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    """A copy, to delete from."""
    return shutil.copytree(made, tmp_path / "home")


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    opened = Store.open(f"sqlite:///{home}/saescope.db")
    yield opened
    opened.close()


@pytest.fixture
def app(store: Store, home: Path) -> FastAPI:
    return create_app(Settings(home=home, host="0.0.0.0"), store=store, prober=FakeProber())


def as_role(app: FastAPI, store: Store, role: str) -> TestClient:
    headers = {"authorization": f"Bearer {store.accounts.create_token(role, role)}"}  # type: ignore[arg-type]
    return TestClient(app, raise_server_exceptions=False, follow_redirects=False, headers=headers)


def delete(home: Path, *options: str) -> int:
    return cli.main(["delete", "gone", *options, "--home", str(home), "--database", f"sqlite:///{home}/saescope.db"])


def is_there(store: Store) -> bool:
    try:
        return store.sae("gone").sae.slug == "gone"
    except NotFoundError:
        return False


def test_the_command_says_what_goes_and_asks(
    home: Path, store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.sae_contents("gone") == CONTENTS
    assert delete(home) == 2 and "say --yes" in capsys.readouterr().err and is_there(store)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for typed in ("", "yes", "kept"):
        monkeypatch.setattr(cli_delete.run_delete, "__kwdefaults__", {"asks": lambda _, typed=typed: typed})
        assert delete(home) == 1 and "Nothing was deleted." in capsys.readouterr().out and is_there(store)
    monkeypatch.setattr(cli_delete.run_delete, "__kwdefaults__", {"asks": lambda _: " gone "})
    assert delete(home) == 0 and not is_there(store)
    said = capsys.readouterr().out
    assert "1 index with features and examples, 3 labels (1 written by people), scores and map." in said
    assert "1 item of lists, 1 shared probe, 0 stored steerings" in said
    assert f"Stays: {home}/imports/gone (0.0 MB)" in said and "gone is deleted." in said
    assert (home / "imports" / "gone" / "weights").exists() and (home / "runs" / "gone").is_dir()
    assert store.accounts.audit_trail(limit=1)[0].action.startswith("saescope")
    assert delete(home, "--yes") == 2 and 'no SAE "gone"' in capsys.readouterr().err


def test_files_go_where_they_are_asked_away_and_nothing_beside_them(home: Path, store: Store, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    shutil.rmtree(home / "runs" / "gone")
    (home / "runs" / "gone").symlink_to(elsewhere)
    (home / "imports" / "kept").mkdir()
    assert delete(home, "--yes", "--files") == 0
    assert not (home / "imports" / "gone").exists() and not (home / "indexes" / "gone").exists()
    assert (elsewhere / "precious").exists() and (home / "imports" / "kept").is_dir()


def test_nothing_is_deleted_under_somebody_at_work(
    home: Path, store: Store, app: FastAPI, capsys: pytest.CaptureFixture[str]
) -> None:
    admin = as_role(app, store, "admin")
    for at_work, said in (
        (held(home, slug="gone"), "indexed by process"),
        (held(home, slug="gone", suffix="-2-of-3"), "indexed by process"),
        (training(home, "gone"), "is being trained"),
    ):
        with at_work:
            assert delete(home, "--yes", "--files") == 1 and said in capsys.readouterr().err
            refused = admin.delete("/api/saes/gone")
            assert refused.status_code == 503 and said in refused.json()["error"]
            assert admin.post("/saes/gone/delete", data={"name": "gone"}).status_code == 503
    assert store.sae_contents("gone") == CONTENTS and (home / "imports" / "gone").is_dir()
    assert delete(home, "--yes") == 0


def test_the_page_is_an_admins_and_asks_for_the_name(app: FastAPI, store: Store, home: Path) -> None:
    reader, editor, admin = (as_role(app, store, role) for role in ROLES)
    for client in (reader, editor):
        for address in ("/saes/gone/delete", "/api/saes/gone/delete"):
            assert client.get(address).status_code == 403
        assert client.post("/saes/gone/delete", data={"name": "gone"}).status_code == 403
        assert client.delete("/api/saes/gone").status_code == 403
        assert "/saes/gone/delete" not in client.get("/saes/gone").text
    assert 'href="/saes/gone/delete"' in admin.get("/saes/gone").text
    page, twin = admin.get("/saes/gone/delete").text, admin.get("/api/saes/gone/delete").json()
    assert "3 labels (1 written by people)" in page and str(home / "imports" / "gone") in page
    assert twin["contents"]["n_labels"] == 3 and len(twin["folders"]) == 3
    refused = admin.post("/saes/gone/delete", data={"name": "kept", "files": "1"})
    assert refused.status_code == 422 and "what you typed is not gone" in refused.text and is_there(store)
    session = store.accounts.begin_session(store.accounts.create_token("boss", "admin"), days=1)
    cookie = {"cookie": f"saescope-session={session}"}
    with TestClient(app, raise_server_exceptions=False, follow_redirects=False) as client:
        for headers in (cookie, cookie | {"origin": "https://evil.example"}):
            assert client.post("/saes/gone/delete", data={"name": "gone"}, headers=headers).status_code == 403
            assert client.delete("/api/saes/gone", headers=headers).status_code == 403
        assert is_there(store)
        done = client.post("/saes/gone/delete", data={"name": "gone", "files": "1"}, headers=cookie | OWN)
        assert (done.status_code, done.headers["location"]) == (303, "/") and not is_there(store)
    assert not (home / "imports" / "gone").exists()
    (entry,) = store.accounts.audit_trail(limit=1)
    assert (entry.name, entry.action) == ("boss", "POST /saes/gone/delete")


def test_after_it_every_address_of_the_sae_is_plainly_not_there_and_lists_go_on(app: FastAPI, store: Store) -> None:
    admin, list_id = as_role(app, store, "admin"), store.lists()[0].list_id
    of_it = [
        address
        for method, address in calls(app, slug="gone", list_id=list_id)
        if method == "GET" and "/saes/gone" in address
    ]
    assert len(of_it) > 20
    assert admin.get("/saes/gone/features/0").status_code == 200  # so that what a page keeps is there to be stale
    assert admin.delete("/api/saes/gone").json()["contents"]["n_labels"] == 3
    for address in of_it:
        answer = admin.get(address, params={"text": "king", "feature": 0})
        if address.endswith("/steer/events"):  # a stream, which has begun when it finds out
            assert "no SAE" in answer.text
        else:
            assert answer.status_code == 404 and "gone" in answer.text, address
    page = admin.get(f"/lists/{list_id}").text
    assert "has been deleted" in page and "of gone" in page and "of kept" in page
    assert [item["problem"] is None for item in admin.get(f"/api/lists/{list_id}").json()["items"]] == [False, True]
    for address in ("/", "/search?q=king", f"/lists/{list_id}/export?format=csv", "/compare", "/scores"):
        assert admin.get(address).status_code in (200, 404), address
    assert [s["sae"]["slug"] for s in admin.get("/api/saes").json()["items"]] == ["kept"]


def test_what_a_hidden_sae_leaves_stays_hidden(app: FastAPI, store: Store) -> None:
    list_id = store.lists()[0].list_id
    (probe,) = store.probes()
    reader, admin = as_role(app, store, "reader"), as_role(app, store, "admin")
    secrets = (
        f"/lists/{list_id}",
        f"/api/lists/{list_id}",
        "/runs",
        "/api/runs",
        "/runs/gone",
        "/api/runs/gone",
        f"/p/{probe.probe_id}",
        "/",
    )
    assert "gone" in "".join(reader.get(address).text for address in secrets)
    store.set_visibility("gone", "private")
    store.delete_sae("gone")
    for address in secrets:
        text = reader.get(address).text
        assert "of gone" not in text and "whispered" not in text and "/runs/gone" not in text, address
    assert "of gone" in admin.get(f"/lists/{list_id}").text and admin.get("/runs/gone").status_code == 200
    store.add_sae(
        make_sae("gone", d_sae=N), make_vocabulary()
    )  # trained again under the name: begins as hidden as it was
    assert store.sae("gone").visibility == "private" and reader.get("/saes/gone").status_code == 404
    store.set_visibility("gone", "public")
    store.delete_sae("gone")
    store.add_sae(make_sae("gone", d_sae=N), make_vocabulary())
    assert store.sae("gone").visibility == "public"
