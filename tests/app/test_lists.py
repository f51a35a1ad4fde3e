"""Lists and labels: changed by forms and by JSON, refused from elsewhere, and carried away as files."""

import csv
import io
import json
import re
from collections.abc import Iterator
from html import unescape

import pytest
from fastapi import FastAPI, Request
from starlette.testclient import TestClient

from app.changes import from_this_site
from app.main import create_app
from app.settings import Settings
from sae_core.errors import ForbiddenError
from sae_core.store import Store
from sae_core.store_lists import MAX_CHARACTERS
from tests.app.fake_prober import FakeProber
from tests.app.routes import routes_of
from tests.app.test_pages import Checked
from tests.factories import make_label, make_store

HOSTILE = "<script>alert(1)</script> \"'> </textarea><b>中文 🐋"


@pytest.fixture
def store(tmp_path: object) -> Iterator[Store]:
    """`factories.make_store`, to be written to."""
    opened = make_store(f"sqlite:///{tmp_path}/saescope.db")
    yield opened
    opened.close()


@pytest.fixture
def app(store: Store) -> FastAPI:
    return create_app(Settings(), store=store, prober=FakeProber())


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as opened:
        yield opened


@pytest.fixture
def list_id(store: Store) -> str:
    """A list of features 0, 3 (dead) and 7 of "demo"."""
    list_id = store.add_list(title="Spouses", description="Whom they marry", author="ana")
    for feature_index in (0, 3, 7):
        store.add_list_item(list_id, "demo", feature_index, note=f"note {feature_index}", author="ana")
    return list_id


def listed(client: TestClient, list_id: str) -> list[int]:
    return [int(number) for number in re.findall(r"data-row>demo #(\d+)<", client.get(f"/lists/{list_id}").text)]


# By forms


def test_a_list_is_made_filled_ordered_and_emptied_by_forms(client: TestClient) -> None:
    made = client.post("/lists", data={"title": "Spouses", "description": "", "author": "Ana Ó"})
    (list_id,) = re.findall(r"/lists/(\w{14})$", str(made.url))
    for number in ("0", "7", "12"):
        added = client.post(f"/lists/{list_id}/items", data={"slug": "demo", "feature_index": number, "note": ""})
        assert added.status_code == 200
    assert listed(client, list_id) == [0, 7, 12]
    last = re.findall(r'data-item="(\d+)"', client.get(f"/lists/{list_id}").text)[-1]
    moved = client.post(f"/lists/{list_id}/items/{last}", data={"do": "up"}, follow_redirects=False)
    assert (moved.status_code, moved.headers["location"]) == (303, f"/lists/{list_id}#item-{last}")
    assert listed(client, list_id) == [0, 12, 7]
    note = {"do": "note", "note": "a\r\nb", "version": "1", "author": "ben"}
    page = client.post(f"/lists/{list_id}/items/{last}", data=note).text
    assert '<p class="written note-text">a\nb</p>' in page and "noted by ben" in page
    client.post(f"/lists/{list_id}/items/{last}", data={"do": "remove"})
    assert listed(client, list_id) == [0, 7]
    page = client.post(f"/lists/{list_id}", data={"title": "Wives", "description": "<i>", "version": "6"}).text
    assert "<h1>Wives</h1>" in page and "&lt;i&gt;" in page
    assert "There is no list yet" in client.post(f"/lists/{list_id}/delete").text
    assert client.get(f"/lists/{list_id}").status_code == 404


def test_a_feature_page_adds_to_a_new_list_and_to_an_old_one(client: TestClient, store: Store) -> None:
    asked = {"slug": "demo", "feature_index": "0", "corpus": "stories", "title": "New", "note": "see", "author": "ana"}
    response = client.post("/lists/add", data=asked, follow_redirects=False)
    assert response.headers["location"] == "/saes/demo/features/0?corpus=stories#lists"
    (found,) = store.lists()
    page = client.get("/saes/demo/features/0").text
    assert f'In the list <a href="/lists/{found.list_id}">New</a>' in page
    assert f'<option value="{found.list_id}">New</option>' in client.get("/saes/demo/features/5").text
    client.post("/lists/add", data={"slug": "demo", "feature_index": "5", "list_id": found.list_id})
    items = store.feature_list(found.list_id).items
    assert [(i.feature_index, i.corpus, i.note, i.author) for i in items] == [
        (0, "stories", "see", "ana"),
        (5, None, "", "anonymous"),
    ]


@pytest.mark.parametrize(("address", "what"), [("add", {"feature_index": "5"}), ("add-features", {"features": "5,6"})])
def test_a_title_that_was_typed_makes_a_new_list_whatever_list_is_selected(
    client: TestClient, store: Store, address: str, what: dict[str, str]
) -> None:
    old = store.add_list(title="Old")
    both = {"slug": "demo", "list_id": old, "title": " Typed "} | what
    assert client.post(f"/lists/{address}", data=both).status_code == 200
    assert client.post(f"/lists/{address}", data=both | {"title": "  "}).status_code == 200
    titles = {found.title: found.n_items for found in store.lists()}
    assert titles == {"Typed": titles["Old"], "Old": len(what.get("features", "5").split(","))}


def test_no_empty_list_is_left_where_the_feature_is_refused(client: TestClient, store: Store) -> None:
    for wrong in ({"feature_index": "9999"}, {"slug": "nope"}, {"corpus": "nope"}, {"slug": "//evil.example"}):
        asked = {"slug": "demo", "feature_index": "0", "title": "New"} | wrong
        assert client.post("/lists/add", data=asked).status_code == 404
    assert store.lists() == []


def test_the_name_typed_last_is_remembered(client: TestClient) -> None:
    client.post("/lists", data={"title": "t", "author": 'Ana; Ó=中 "x"'})
    page = client.get("/lists").text
    assert 'value="Ana; Ó=中 &#34;x&#34;"' in page
    client.post("/lists", data={"title": "t", "author": " "})
    assert 'name="author" maxlength="80" autocomplete="name" value=""' in client.get("/saes/demo/features/0").text


@pytest.mark.parametrize(
    ("address", "fields", "status", "sentence"),
    [
        ("/lists", {"title": " "}, 422, "no title"),
        ("/lists", {"author": "ana"}, 422, "title in the request"),
        ("/lists", {"title": "x" * 121}, 422, "may have 120"),
        ("/lists/nope", {"title": "t"}, 404, "no such list"),
        ("/lists/{id}", {"title": "t", "version": "1"}, 409, "changed this list"),
        ("/lists/{id}", {"title": "t", "version": "x"}, 422, "version"),
        ("/lists/{id}/items", {"slug": "demo"}, 422, "feature_index"),
        ("/lists/{id}/items", {"slug": "demo", "feature_index": "0"}, 409, "in this list already"),
        ("/lists/{id}/items", {"slug": "demo", "feature_index": "300"}, 404, "0 to 299"),
        ("/lists/{id}/items", {"slug": "unindexed", "feature_index": "0"}, 404, "not indexed"),
        ("/lists/{id}/items", {"slug": "demo", "feature_index": "1", "note": "x" * 2001}, 422, "may have 2,000"),
        ("/lists/{id}/items/{item}", {"do": "fly"}, 422, "what to do"),
        ("/lists/{id}/items/{item}", {"do": "note", "note": "", "version": "9"}, 409, "changed this note"),
        ("/lists/{id}/items/99999", {"do": "up"}, 404, "any more"),
        ("/lists/{id}/items/99999999999999999999", {"do": "up"}, 422, "item_id"),
        ("/saes/demo/features/0/label", {"text": " "}, 422, "empty"),
        ("/saes/demo/features/0/label", {"text": "x" * 301}, 422, "at most 300"),
        ("/saes/demo/features/300/label", {"text": "x"}, 404, "0 to 299"),
        ("/saes/nope/features/0/label", {"text": "x"}, 404, "no SAE"),
    ],
)  # fmt: skip
def test_a_form_is_refused_in_a_sentence_and_changes_nothing(
    client: TestClient, store: Store, list_id: str, address: str, fields: dict[str, str], status: int, sentence: str
) -> None:
    before = store.feature_list(list_id), store.lists()
    item = before[0].items[0].item_id
    response = client.post(address.format(id=list_id, item=item), data=fields)
    assert response.status_code == status
    assert sentence in unescape(response.text) and "Traceback" not in response.text
    assert (store.feature_list(list_id), store.lists()) == before


@pytest.mark.parametrize("body", [b"title=%ff%fe", b"title=t&" * 100, b"\xff"])
def test_a_form_that_is_none_is_refused(client: TestClient, body: bytes) -> None:
    response = client.post("/lists", content=body, headers={"content-type": "application/x-www-form-urlencoded"})
    assert response.status_code == 422 and "Traceback" not in response.text


def test_what_people_write_shows_as_itself(client: TestClient, store: Store) -> None:
    list_id = store.add_list(title=HOSTILE, description=HOSTILE, author=HOSTILE)
    store.add_list_item(list_id, "demo", 0, note=HOSTILE, author=HOSTILE)
    store.add_labels("demo", {0: make_label(HOSTILE, author=HOSTILE)})
    for path in ("/lists", f"/lists/{list_id}", "/saes/demo/features/0", "/saes/demo/features/0/embed"):
        text = client.get(path).text
        checked = Checked(text)
        assert (checked.refused, checked.open) == ([], []), path
        assert "<script>alert" not in text and "<b>" not in text
        assert "中文 🐋" in text
    export = client.get(f"/lists/{list_id}/export?format=html").text
    assert "<script" not in export and "&lt;script&gt;alert(1)" in export and "</textarea><b>" not in export


# By JSON


def test_lists_by_json(client: TestClient, list_id: str) -> None:
    found = client.get(f"/api/lists/{list_id}").json()
    assert [item["feature_index"] for item in found["items"]] == [0, 3, 7]
    assert [len(item["examples"]) for item in found["items"]] == [2, 0, 2]
    order = [item["item_id"] for item in reversed(found["items"])]
    answer = client.put(f"/api/lists/{list_id}/order", json={"items": order, "version": found["version"]}).json()
    assert [item["feature_index"] for item in answer["items"]] == [7, 3, 0]
    late = client.put(f"/api/lists/{list_id}/order", json={"items": order, "version": found["version"]})
    assert (late.status_code, set(late.json())) == (409, {"error", "status"})
    noted = client.put(f"/api/lists/{list_id}/items/{order[0]}", json={"note": "new", "version": 1}).json()
    assert (noted["items"][0]["note"], noted["items"][0]["version"]) == ("new", 2)
    added = client.post(f"/api/lists/{list_id}/items", json={"slug": "demo", "feature_index": 9, "note": "n"}).json()
    assert added["items"][-1]["feature_index"] == 9
    fewer = client.delete(f"/api/lists/{list_id}/items/{order[1]}").json()
    assert [item["feature_index"] for item in fewer["items"]] == [7, 0, 9]
    changed = client.put(f"/api/lists/{list_id}", json={"title": "Wives"}).json()
    assert (changed["title"], changed["description"]) == ("Wives", "")
    assert client.delete(f"/api/lists/{list_id}").json() == changed
    assert client.get("/api/lists").json() == {"items": [], "next": None}
    made = client.post("/api/lists", json={"title": "t", "author": "ana"}).json()
    assert client.get("/api/lists").json()["items"][0] == {
        **{name: value for name, value in made.items() if name != "items"},
        "n_items": 0,
    }


def test_the_page_and_its_twin_say_the_same(client: TestClient, list_id: str) -> None:
    page = client.get(f"/lists/{list_id}").text
    checked = Checked(page)
    assert (checked.refused, checked.open) == ([], [])
    assert checked.alternate == f"/api/lists/{list_id}"
    twin = client.get(checked.alternate).json()
    assert listed(client, list_id) == [item["feature_index"] for item in twin["items"]]
    for fact in ("note 0", "noted by ana", "words for a spouse", "dead: it never fired", "Whom they marry"):
        assert fact in page
    assert page.count('class="tokens line"') == 4


def test_a_list_unfurls(client: TestClient, list_id: str) -> None:
    page = client.get(f"/lists/{list_id}").text
    assert '<meta property="og:title" content="Spouses">' in page
    shown = "Whom they marry 3 features: words for a spouse, Feature 3, Feature 7."
    assert f'<meta property="og:description" content="{shown}">' in page
    assert f'<meta property="og:url" content="http://testserver/lists/{list_id}">' in page


def test_items_whose_sae_is_gone_say_so_on_page_and_in_files(client: TestClient, store: Store, list_id: str) -> None:
    store.delete_sae("demo")
    page = client.get(f"/lists/{list_id}").text
    assert page.count("has been deleted, and with it what this feature was.") == 3
    assert "words for a spouse" in page and "/saes/demo" not in page
    rows = list(csv.DictReader(io.StringIO(client.get(f"/lists/{list_id}/export?format=csv").text.lstrip("\ufeff"))))
    assert (rows[0]["label"], rows[0]["note"], rows[0]["density"]) == ("words for a spouse", "note 0", "")
    assert "has been deleted" in rows[0]["problem"] and rows[0]["url"] == ""
    assert "has been deleted" in client.get(f"/lists/{list_id}/export?format=html").text


# Files


def test_csv_has_a_row_for_every_item(client: TestClient, store: Store, list_id: str) -> None:
    store.add_list_item(list_id, "demo", 8, note='=1+1, "x"\n2', author="@ana")
    response = client.get(f"/lists/{list_id}/export?format=csv")
    assert response.headers["content-type"].startswith("text/csv")
    assert f"list-{list_id}.csv" in response.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(response.text.lstrip("\ufeff"), newline="")))
    assert [row["feature_index"] for row in rows] == ["0", "3", "7", "8"]
    feature = store.feature("demo", 7).feature
    assert float(rows[2]["density"]) == feature.density and float(rows[2]["max_activation"]) == feature.max_activation
    assert json.loads(rows[2]["promoted_tokens"]) == [token.token for token in feature.promoted_tokens]
    assert rows[0]["label"] == "words for a spouse" and rows[0]["corpus"] == "poems"
    assert rows[2]["url"] == "http://testserver/saes/demo/features/7"
    assert (rows[3]["note"], rows[3]["author"]) == ('\'=1+1, "x"\n2', "'@ana")
    assert client.get(rows[2]["url"]).status_code == 200


def test_json_lines_are_complete_in_themselves(client: TestClient, list_id: str) -> None:
    text = client.get(f"/lists/{list_id}/export?format=jsonl").text
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["number"] for line in lines] == [1, 2, 3]
    twin = client.get(f"/api/lists/{list_id}").json()
    for line, item in zip(lines, twin["items"], strict=True):
        assert {name: line[name] for name in item} == item
        assert (line["list_title"], line["model_name"], line["hook_name"]) == (
            "Spouses",
            "demo-lm",
            "blocks.3.hook_resid_post",
        )


def test_an_empty_list_is_exported_too(client: TestClient, store: Store) -> None:
    list_id = store.add_list(title="Nothing")
    for kind in ("csv", "jsonl", "html"):
        assert client.get(f"/lists/{list_id}/export?format={kind}").status_code == 200
    assert client.get(f"/lists/{list_id}/export?format=pdf").status_code == 422
    assert client.get("/lists/nope/export?format=csv").status_code == 404
    assert "Nothing is in this list yet" in client.get(f"/lists/{list_id}").text


# Labels


def test_a_persons_label_is_shown_above_the_automatic_one_and_removed_again(client: TestClient, store: Store) -> None:
    page = client.post("/saes/demo/features/1/label", data={"text": " ships \n at sea", "author": "ben"}).text
    assert '<span class="label">ships at sea</span></h1>' in page
    assert (
        "label by ben, <time" in page
        and "the sea, 海 and ships</span> · automatic label by describer · score 0.88" in page
    )
    twin = client.get("/api/saes/demo/features/1").json()
    assert [label["kind"] for label in twin["labels"]] == ["human", "automatic"]
    assert twin["feature"]["label"] == twin["labels"][0]
    removal = {"text": "ships at sea", "do": "remove", "corpus": "stories"}
    response = client.post("/saes/demo/features/1/label", data=removal, follow_redirects=False)
    assert response.headers["location"] == "/saes/demo/features/1?corpus=stories"
    page = client.get("/saes/demo/features/1").text
    assert '<span class="label">the sea, 海 and ships</span></h1>' in page and "Remove this label" not in page


@pytest.mark.parametrize("author", ["saescope", "describer", "\u202e\u200b", "<b>"])
def test_a_person_may_have_any_name(client: TestClient, author: str) -> None:
    page = client.post("/saes/demo/features/1/label", data={"text": "ships", "author": author})
    assert page.status_code == 200 and f"label by {author}, <time" in unescape(page.text)


def test_labels_by_json(client: TestClient) -> None:
    path = "/api/saes/demo/features/5/label"
    answer = client.put(path, json={"text": "five", "author": ""}).json()
    assert (answer["feature"]["label"]["text"], answer["feature"]["label"]["author"]) == ("five", "anonymous")
    assert answer["labels"][0]["created_at"].endswith("Z")
    for _ in range(2):
        answer = client.delete(path).json()
        assert (answer["feature"]["label"], answer["labels"]) == (None, [])
    assert client.delete("/api/saes/demo/features/9999/label").status_code == 404
    assert client.put(path, json={"text": ""}).status_code == 422


# Whose changes are taken


def changing_routes(app: FastAPI) -> list[tuple[str, str]]:
    """Method and address of every route that changes something, or might."""
    filled = {"item_id": "1", "slug": "demo", "feature_index": "0", "kind": "csv"}
    found = []
    for route in routes_of(app):
        address = re.sub(r"{([\w:]+)}", lambda match: filled.get(match[1].split(":")[0], "nope"), route.path)
        found += [(method, address) for method in sorted(route.methods - {"GET", "HEAD"})]
    return found


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": "http://testserver"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://testserver.evil.example"},
    ],
)
def test_changes_from_pages_of_other_sites_are_refused(
    app: FastAPI, client: TestClient, store: Store, list_id: str, headers: dict[str, str]
) -> None:
    before = store.feature_list(list_id)
    routes = changing_routes(app)
    assert len(routes) >= 16 and {"POST", "PUT", "DELETE"} == {method for method, _ in routes}
    for method, address in routes:
        response = client.request(method, address.replace("nope", list_id), headers=headers)
        assert response.status_code == 403 and "page of another site" in unescape(response.text), (method, address)
    assert store.feature_list(list_id) == before
    assert client.get(f"/lists/{list_id}", headers=headers).status_code == 200


def test_a_proxys_name_for_the_site_is_its_own_too() -> None:
    """Where there is a login; without one the gate takes nothing that a proxy has brought."""

    def asked(origin: str) -> Request:
        headers = {"host": "inner:8000", "x-forwarded-host": "dash.example, inner", "origin": origin}
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        return Request({"type": "http", "method": "POST", "headers": pairs})

    from_this_site(asked("https://dash.example"), by_cookie=True)
    with pytest.raises(ForbiddenError):
        from_this_site(asked("https://inner"), by_cookie=True)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "same-origin", "origin": "http://behind.a.proxy"},
        {"sec-fetch-site": "none"},
        {"origin": "http://TestServer"},
    ],
)
def test_changes_from_own_pages_and_programs_are_taken(client: TestClient, headers: dict[str, str]) -> None:
    assert client.post("/lists", data={"title": "t"}, headers=headers).status_code == 200
    assert client.post("/api/lists", json={"title": "t"}, headers=headers).status_code == 200


def test_a_read_only_server_shows_lists_and_changes_nothing(store: Store, list_id: str) -> None:
    app = create_app(Settings(read_only=True), store=store, prober=FakeProber())
    before = store.feature_list(list_id)
    with TestClient(app) as client:
        for method, address in changing_routes(app):
            if not address.endswith(
                ("/probe", "/probe/live", "/texts", "/texts/live", "/login", "/logout")
            ):  # these change nothing
                response = client.request(method, address.replace("nope", list_id))
                assert response.status_code == 403 and "read-only" in response.text, (method, address)
        for path in ("/lists", f"/lists/{list_id}", "/saes/demo/features/0"):
            page = client.get(path).text
            assert 'method="post"' not in page and "lists.js" not in page
            assert "Spouses" in page
        assert client.post("/api/saes/demo/probe", json={"text": "king"}).status_code == 200
        assert client.get(f"/lists/{list_id}/export?format=csv").status_code == 200
    assert store.feature_list(list_id) == before


def test_limits_of_fields_are_those_of_the_store(client: TestClient, list_id: str) -> None:
    page = client.get(f"/lists/{list_id}").text + client.get("/saes/demo/features/0").text
    found = set(re.findall(r'name="(\w+)"[^>]*? maxlength="(\d+)"', page))
    expected = replace_keys({**MAX_CHARACTERS}, name="author")
    assert {name: int(most) for name, most in found if name in expected} == expected


def replace_keys(values: dict[str, int], **names: str) -> dict[str, int]:
    return {names.get(key, key): value for key, value in values.items()}
