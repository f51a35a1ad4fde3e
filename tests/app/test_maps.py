"""The map's page and its twin: what is selected is in the address, and both say the same."""

import json
import random
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.map_areas import CELLS, FAR, SQUARES, cells, corners, inside, outline_points, squares
from app.settings import Settings
from sae_core.errors import InputError
from sae_core.records import MAP_SIDE
from sae_core.store import Store
from tests.app.fake_prober import FakeProber
from tests.factories import N_FEATURES, make_map, make_store

EVERYTHING = f"0,0,{FAR},{FAR}"
LASSO = "0,0,60000,1000,30000,30000,60000,60000,5000,50000"  # not convex


@pytest.fixture
def own_store(tmp_path: Path) -> Iterator[Store]:
    """To be written to."""
    opened = make_store(f"sqlite:///{tmp_path}/saescope.db")
    yield opened
    opened.close()


@pytest.fixture
def own_client(own_store: Store) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(), store=own_store, prober=FakeProber())) as opened:
        yield opened


def listed(text: str) -> list[int]:
    return [int(number) for number in re.findall(r'<a class="number"[^>]* data-row>#(\d+)</a>', text)]


# Areas


def winding(outline: list[tuple[int, int]], x: float, y: float) -> bool:
    """Whether a point is inside, by the angles under which it sees the corners: slow, and for points on no edge."""
    import cmath

    here = complex(x, y)
    turns = sum(
        cmath.phase((complex(*b) - here) / (complex(*a) - here))
        for a, b in zip(outline, outline[1:] + outline[:1], strict=True)
    )
    return round(turns / (2 * cmath.pi)) % 2 == 1


@pytest.mark.parametrize("area", ["1000,1000,40000,30000", LASSO, "0,0,65536,0,0,65536", "0,0,9,9,9,0,0,9"])
def test_inside_is_what_a_slow_way_finds(area: str) -> None:
    rng = random.Random(0)
    outline = corners(area)
    span = max(max(corner) for corner in outline) + 10
    places = [(i, (rng.randrange(min(span, FAR)), rng.randrange(min(span, FAR)))) for i in range(2000)]
    on_edge = {number for number, place in places if _on_edge(outline, place)}
    expected = [number for number, (x, y) in places if number not in on_edge and winding(outline, x, y)]
    assert [number for number in inside(outline, places) if number not in on_edge] == expected
    assert expected


def _on_edge(outline: list[tuple[int, int]], place: tuple[int, int]) -> bool:
    x, y = place
    for (x1, y1), (x2, y2) in zip(outline, outline[1:] + outline[:1], strict=True):
        across = (x2 - x1) * (y - y1) - (y2 - y1) * (x - x1)
        if across == 0 and min(x1, x2) <= x <= max(x1, x2) and min(y1, y2) <= y <= max(y1, y2):
            return True
    return False


def test_every_place_is_in_one_square_and_in_one_cell() -> None:
    made = make_map()
    places = list(zip(made.xs, made.ys, strict=True))
    assert (0, 0) in places and (MAP_SIDE, MAP_SIDE) in places
    rows = squares(places, address=lambda area: area)
    assert len(rows) == len(rows[0]) == SQUARES
    seen: list[int] = []
    for square in (square for row in rows for square in row):
        found = inside(corners(square.href), enumerate(places))
        assert len(found) == square.n_features
        seen += found
    assert sorted(seen) == list(range(N_FEATURES))
    assert rows[0][-1].n_features and rows[-1][0].n_features  # from the top: the two corners
    drawn = cells(places)
    assert {(cell.x, cell.y) for cell in drawn} >= {(0, CELLS - 1), (CELLS - 1, 0)}
    assert {cell.level for cell in drawn} <= {1, 2, 3, 4, 5}
    assert outline_points(corners(f"0,0,{FAR},{FAR}")) == "0.00,48.00 48.00,48.00 48.00,0.00 0.00,0.00"


@pytest.mark.parametrize(
    "area", ["", "1", "1,2,3", "1,2,3,4,5", "0,0,70000,1", "a,b,c,d", "-1,0,1,1", "1,1,٣,4", "1," * 500 + "1"]
)
def test_what_is_no_area_is_refused(area: str) -> None:
    with pytest.raises(InputError, match="draw it again"):
        corners(area)


# The twin


def test_twin_has_every_feature(client: TestClient, store: Store) -> None:
    answer = client.get("/api/saes/demo/map").json()
    made, points = make_map(), store.feature_points("demo")
    columns = answer["points"]
    assert (columns["x"], columns["y"]) == (list(made.xs), list(made.ys))
    assert columns["density"] == pytest.approx([point.density for point in points], rel=1e-3)
    assert columns["max_activation"] == pytest.approx([point.max_activation for point in points], rel=1e-3)
    assert columns["encoder_decoder_cosine"] == pytest.approx([p.encoder_decoder_cosine for p in points], abs=1e-3)
    assert answer["n_alive"] == sum(point.density > 0 for point in points)
    assert answer["selected"] == [] and answer["n_selected"] is None and answer["n_found"] is None
    other = client.get("/api/saes/demo/map?corpus=stories").json()
    assert other["points"]["x"] == columns["x"] and other["points"]["density"] != columns["density"]
    labels = client.get("/api/saes/demo/labels").json()["items"]
    assert [label["feature_index"] for label in labels] == [0, 1, 2]
    assert client.get("/api/saes/demo/map?points=0").json()["points"] is None


@pytest.mark.parametrize("alive", [True, False])
def test_selection_is_what_search_and_area_have_in_common(client: TestClient, store: Store, alive: bool) -> None:
    made = make_map()
    points = {p.feature_index: p for p in store.feature_points("demo") if p.density > 0 or not alive}
    found = [i for i in store.matching_features("demo", "king", limit=1000) if i in points]
    within = inside(corners(LASSO), [(i, (made.xs[i], made.ys[i])) for i in points])
    asked = f"points=0&alive={int(alive)}"

    def ask(rest: str) -> dict[str, object]:
        answer: dict[str, object] = client.get(f"/api/saes/demo/map?{asked}&{rest}").json()
        assert answer["n_selected"] == len(answer["selected"])  # type: ignore[arg-type]
        return answer

    def densest(numbers: set[int]) -> list[int]:
        return sorted(numbers, key=lambda i: (-points[i].density, i))

    assert ask("q=king")["selected"] == densest(set(found)) and ask("q=king")["found"] == found
    assert ask(f"area={LASSO}")["selected"] == densest(set(within))
    both = ask(f"q=king&area={LASSO}")
    assert both["selected"] == densest(set(found) & set(within)) and both["found"] == found
    assert 0 < len(both["selected"]) < len(within)  # type: ignore[arg-type]
    assert ask(f"area={EVERYTHING}")["n_selected"] == len(points)


# The page


def test_page_lists_what_is_selected(client: TestClient) -> None:
    for query in (f"area={LASSO}", "q=king", f"q=king&area={LASSO}&corpus=stories", f"area={LASSO}&alive=0&limit=300"):
        text = client.get(f"/saes/demo/map?{query}").text
        twin = client.get(f"/api/saes/demo/map?{query}").json()
        limit = 300 if "limit" in query else 20
        assert listed(text) == twin["selected"][:limit]
        assert f"{twin['n_selected']} feature" in text
        marked = re.search(r'id="map-found">(.*?)</script>', text)
        assert marked and json.loads(marked[1])["found"] == twin["found"]
    assert "Nothing is selected" in client.get("/saes/demo/map").text
    assert "0 features with" in client.get("/saes/demo/map?q=nothing-like-this").text


def test_squares_lead_to_their_features(client: TestClient) -> None:
    text = client.get("/saes/demo/map?corpus=stories&q=king").text
    links = re.findall(r'<td><a data-area href="([^"]*)" aria-label="(\d+) features', text)
    assert len(links) == len(re.findall(r'<a href="[^"]*" aria-label="\d+ features', text)) > 10
    href = unescape(links[5][0]).split("#")[0]
    assert "corpus=stories" in href and "q=king" in href
    assert client.get(href.replace("q=king&", "")).text.count("data-row") == min(20, int(links[5][1]))


@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        ("/saes/unindexed/map", 404, "is not indexed yet"),
        ("/saes/demo/map?area=1,2", 422, "draw it again"),
        ("/saes/demo/map?corpus=nope", 404, "not on"),
        ("/saes/demo/map?colour=red", 422, "colour"),
    ],
)
def test_what_cannot_be_shown_is_said(client: TestClient, path: str, status: int, sentence: str) -> None:
    for address in (path, f"/api{path}"):
        answer = client.get(address)
        assert answer.status_code == status and sentence in answer.text


def test_an_sae_without_a_map_says_what_to_run(own_store: Store, own_client: TestClient) -> None:
    own_store.feature_map = lambda slug: None  # type: ignore[method-assign]
    for address in ("/saes/demo/map", "/api/saes/demo/map"):
        answer = own_client.get(address)
        assert answer.status_code == 404 and "run `saescope map demo`" in unescape(answer.text)


# Into a list


def form(text: str) -> dict[str, str]:
    found = re.search(r'action="/lists/add-features">(.*?)</form>', text, re.DOTALL)
    assert found
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', found[1]))


def test_a_selection_goes_into_a_new_list_and_into_one_that_is_there(own_store: Store, own_client: TestClient) -> None:
    fields = form(own_client.get(f"/saes/demo/map?corpus=stories&area={LASSO}").text)
    selected = own_client.get(f"/api/saes/demo/map?corpus=stories&area={LASSO}").json()["selected"]
    answer = own_client.post("/lists/add-features", data={**fields, "title": "Part", "note": "here", "author": "ana"})
    (summary,) = own_store.lists()
    assert answer.url.path == f"/lists/{summary.list_id}"
    items = own_store.feature_list(summary.list_id).items
    assert [item.feature_index for item in items] == sorted(selected)
    assert {(item.slug, item.corpus, item.note, item.author) for item in items} == {("demo", "stories", "here", "ana")}
    fields = form(own_client.get(f"/saes/demo/map?corpus=stories&area={EVERYTHING}").text)
    own_client.post("/lists/add-features", data={**fields, "list_id": summary.list_id})
    assert len(own_store.feature_list(summary.list_id).items) == len(
        own_client.get(f"/api/saes/demo/map?corpus=stories&area={EVERYTHING}").json()["selected"]
    )  # those that were there stand once


def test_several_features_are_added_by_json(own_store: Store, own_client: TestClient) -> None:
    list_id = own_store.add_list(title="Some")
    asked = {"slug": "demo", "features": "5,1-3", "note": "n", "author": "bo"}
    answer = own_client.post(f"/api/lists/{list_id}/features", json=asked)
    assert [item["feature_index"] for item in answer.json()["items"]] == [5, 1, 2, 3]
    assert answer.json()["items"][1]["label_then"] == "the sea, 海 and ships"
    again = own_client.post(f"/api/lists/{list_id}/features", json={**asked, "features": "3,9"})
    assert [item["feature_index"] for item in again.json()["items"]] == [5, 1, 2, 3, 9]


@pytest.mark.parametrize(
    ("features", "status", "sentence"),
    [("1,300", 404, "no feature 300"), ("x", 422, "numbers and ranges"), ("0-400", 422, "more than 300")],
)
def test_features_that_cannot_be_added_leave_no_list(
    own_store: Store, own_client: TestClient, features: str, status: int, sentence: str
) -> None:
    answer = own_client.post("/lists/add-features", data={"slug": "demo", "features": features, "title": "T"})
    assert answer.status_code == status and sentence in answer.text
    assert own_store.lists() == []


def test_a_list_that_has_too_little_room_takes_none(own_store: Store) -> None:
    list_id = own_store.add_list(title="Full")
    assert own_store.add_list_items(list_id, "demo", range(290)) == 290
    with pytest.raises(InputError, match="room for 10; add fewer"):
        own_store.add_list_items(list_id, "demo", range(280, 300), corpus="stories")
    assert own_store.add_list_items(list_id, "demo", range(290, 300)) == 10
    with pytest.raises(InputError, match="this one is full"):
        own_store.add_list_items(list_id, "demo", [0], corpus="stories")
    assert own_store.add_list_items(list_id, "demo", [0]) == 0  # it is there
