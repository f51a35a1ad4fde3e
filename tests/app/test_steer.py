"""The page Steer: what is asked of the worker, how it is shown and streamed, and what is kept under a link."""

import dataclasses
import json
import re
from collections.abc import AsyncIterator
from html import unescape
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.causal.jobs import SteerStream
from app.main import create_app
from app.settings import Settings
from sae_core.causal.records import Push, SteerRequest
from sae_core.store import Store
from tests.app.fake_prober import FakeProber
from tests.factories import make_sae, make_store, make_vocabulary

STEER = "/saes/demo/steer"
ASKED = {"feature": "1", "prompt": "the king", "length": "6"}


@pytest.fixture
def requests(prober: FakeProber, monkeypatch: pytest.MonkeyPatch) -> list[SteerRequest]:
    """What the worker was asked."""
    seen: list[SteerRequest] = []
    own = prober.stream

    def noting(job: SteerStream) -> AsyncIterator[object]:
        seen.append(job.asked)
        return own(job)

    monkeypatch.setattr(prober, "stream", noting)
    return seen


def written(html: str) -> list[str]:
    texts = re.findall(r'<p class="written">(.*?)</p>', html, flags=re.DOTALL)
    return [unescape(re.sub(r"<[^>]+>", "", text)) for text in texts]


def test_strength_is_in_units_of_the_features_own_maximum(
    client: TestClient, store: Store, requests: list[SteerRequest]
) -> None:
    largest = {i: store.feature("demo", i, corpus="stories").feature.max_activation for i in (1, 4)}
    query = (
        "feature=1&feature=&feature=4&mode=add&mode=add&mode=clamp&strength=-2.5&strength=&strength=0.5&prompt=a%0D%0Ab"
        "&where=after&temperature=0&top_p=0.5&length=5&seed=7&chat=1&corpus=stories"
    )
    report = client.get(f"/api{STEER}?{query}").json()
    assert requests == [
        SteerRequest(
            prompt="a\nb",
            pushes=(
                Push(feature_index=1, mode="add", value=pytest.approx(-2.5 * largest[1])),
                Push(feature_index=4, mode="clamp", value=pytest.approx(0.5 * largest[4])),
            ),
            where="after", doses=(1.0,), temperature=0, top_p=0.5, n_tokens=5, seed=7, chat=True,
        )
    ]  # fmt: skip
    assert [f["max_activation"] for f in report["features"]] == pytest.approx([largest[1], largest[4]])
    labels = {i: label.text for i, label in store.labels("demo", [1, 4]).items()}
    assert labels and [f["label"] for f in report["features"]] == [labels.get(1), labels.get(4)]
    assert report["corpus"] == "stories"


def test_without_an_index_strength_is_in_plain_units(client: TestClient, requests: list[SteerRequest]) -> None:
    page = client.get("/saes/unindexed/steer?feature=1&strength=4&prompt=the").text
    assert requests[0].pushes == (Push(feature_index=1, mode="add", value=4.0),)
    assert "no max is known" in page


def test_the_page_shows_what_its_twin_says(client: TestClient) -> None:
    report = client.get(f"/api{STEER}", params=ASKED).json()
    page = client.get(STEER, params=ASKED).text
    columns = report["steering"]["columns"]
    assert [c["kind"] for c in columns] == ["baseline", "steered", "control"]
    assert written(page) == [c["text"] for c in columns]
    assert "<b>" not in page.split('id="result"')[1]
    strip = client.get(STEER, params=ASKED | {"strip": "1"}).text
    titles = [unescape(re.sub("<[^>]+>", "", t)).split(" ")[0:3] for t in re.findall(r"<h2>(.*?)</h2>", strip)]
    assert len(written(strip)) == 6 and [t[2] for t in titles[1:5] if t[1] == "×"] == ["¼", "½", "2"]


def test_a_push_that_swamps_the_vector_is_warned_of(client: TestClient, store: Store) -> None:
    largest = store.feature("demo", 1).feature.max_activation
    weak = client.get(STEER, params=ASKED | {"strength": f"{5 / largest:.6f}"}).text
    strong = client.get(STEER, params=ASKED | {"strength": f"{20 / largest:.6f}"}).text
    assert "swamps" not in weak
    assert strong.count("swamps") == 2  # the control is as long


def test_events_come_one_by_one_and_end_with_the_twins_report(client: TestClient) -> None:
    answer = client.get(f"/api{STEER}/events", params=ASKED)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = re.findall(r"event: (\w+)\ndata: (.*)\n", answer.text)
    names = [name for name, _ in events]
    assert names == ["start", *["step"] * 6, "end"]
    start, *steps, end = (json.loads(data) for _, data in events)
    assert start == {"prompt": "<bos>the king", "titles": ["Baseline", "Steered", "Control"]}
    columns = end["steering"]["columns"]
    assert ["".join(step[n] for step in steps) for n in range(3)] == [c["text"] for c in columns]
    assert end == client.get(f"/api{STEER}", params=ASKED).json()


def test_what_goes_wrong_in_a_stream_is_its_last_event(client: TestClient) -> None:
    for params, sentence in (({"prompt": "busy"}, "waiting for the model"), ({"feature": "300000"}, "no feature")):
        answer = client.get(f"/api{STEER}/events", params=ASKED | params)
        (event,) = re.findall(r"event: (\w+)\ndata: (.*)\n", answer.text)
        assert event[0] == "problem" and sentence in event[1]


def test_a_page_that_was_streamed_is_not_run_again(client: TestClient, requests: list[SteerRequest]) -> None:
    client.get(f"/api{STEER}/events", params=ASKED)
    client.get(STEER, params=ASKED)
    client.get(f"/api{STEER}", params=ASKED)
    assert len(requests) == 1
    client.get(STEER, params=ASKED | {"seed": "1"})
    assert len(requests) == 2


@pytest.mark.parametrize(
    ("change", "status", "sentence"),
    [
        ({"prompt": "busy"}, 503, "waiting for the model"),
        ({"feature": "300000"}, 404, "no feature 300000"),
        ({"feature": ""}, 422, "No feature is chosen"),
        ({"strength": "-1", "mode": "clamp"}, 422, "cannot be set below 0"),
        ({"strength": "nan"}, 422, "strength"),
        ({"strength": "1e9"}, 422, "strength"),
        ({"length": "500"}, 422, "at most 256 tokens"),
        ({"temperature": "-1"}, 422, "temperature"),
        ({"prompt": "a\0"}, 422, "NUL"),
        ({"feature": ["3", "3"]}, 422, "twice"),
        ({"feature": [str(i) for i in range(9)]}, 422, "At most 8"),
    ],
)
def test_what_cannot_be_steered_is_said_in_a_sentence(
    change: dict[str, object], status: int, sentence: str, client: TestClient
) -> None:
    for address in (STEER, f"/api{STEER}"):
        answer = client.get(address, params=ASKED | change)  # type: ignore[arg-type]
        assert answer.status_code == status, answer.text
        assert sentence in unescape(answer.text)


def test_a_kept_steering_shows_the_texts_of_then(tmp_path: Path, prober: FakeProber) -> None:
    store = make_store(f"sqlite:///{tmp_path}/saescope.db")
    with TestClient(create_app(Settings(home=tmp_path), store=store, prober=prober)) as client:
        kept_and_shown(client, store, prober)
    store.close()


def kept_and_shown(client: TestClient, store: Store, prober: FakeProber) -> None:
    query = "feature=3&mode=clamp&strength=2&feature=&prompt=the+king&length=6&strip=1"
    page = client.get(f"{STEER}?{query}").text
    hidden = unescape(re.search(r'name="query" value="([^"]*)"', page)[1])  # type: ignore[index]
    assert hidden == query
    answer = client.post(STEER, data={"query": hidden, "author": "Ana"})
    assert answer.status_code == 200 and answer.url.path.startswith("/s/")
    assert written(answer.text) == written(page)
    assert "By Ana" in answer.text
    twin = client.get(f"/api{answer.url.path}").json()
    assert twin["report"] == client.get(f"/api{STEER}?{query}").json()
    assert twin["query"] == "prompt=the+king&feature=3&strength=2.0&mode=clamp&strip=1&length=6"
    again = client.get(f"{STEER}?{twin['query']}").text
    assert written(again) == written(page)
    # Neither the model nor the SAE needs to be there, and another SAE of its name is told apart.
    prober.answer = prober.stream = None  # type: ignore[method-assign, assignment]
    store.delete_sae("demo")
    gone = client.get(answer.url.path).text
    assert written(gone) == written(page) and "has been deleted since" in gone
    store.add_sae(make_sae(), make_vocabulary())
    assert client.get(answer.url.path).status_code == 200


def test_a_steering_is_kept_by_json_too(client: TestClient) -> None:
    answer = client.post(f"/api{STEER}", params=ASKED | {"author": "ben"})
    assert answer.status_code == 200
    kept = answer.json()
    assert client.get(f"/api/s/{kept['steering_id']}").json() == kept
    assert kept["author"] == "ben"
    assert client.get(f"/s/{kept['steering_id']}").status_code == 200
    for address in ("/s/nope", "/api/s/nope"):
        missing = client.get(address)
        assert missing.status_code == 404 and "no such steering" in missing.text


def test_a_chat_goes_on_from_the_answer_that_is_replied_to(client: TestClient, requests: list[SteerRequest]) -> None:
    query = ASKED | {"chat": "1", "strength": "0.5", "corpus": "stories", "seed": "3"}
    page = client.get(STEER, params=query).text
    replies = [unescape(href) for href in re.findall(r'<a href="([^"]*)">Reply to this', page)]
    assert len(replies) == 3 and "Reply to this" not in client.get(STEER, params=ASKED).text
    answer = client.get(f"/api{STEER}", params=query).json()["steering"]["columns"][1]["text"]
    asking = client.get(replies[1]).text  # shows the conversation, and asks the model nothing
    turns = re.findall(r'<textarea name="turn"[^>]*>\n?(.*?)</textarea>', asking, re.DOTALL)
    assert [unescape(said) for said in turns] == ["the king", answer]
    assert len(requests) == 2
    again = client.get(f"{replies[1]}&prompt=why&turn=&turn=+")  # an exchange that was emptied is none
    assert requests[-1] == dataclasses.replace(requests[0], prompt="why", turns=("the king", answer))
    third = unescape(re.findall(r'<a href="([^"]*)">Reply to this', again.text)[0])
    assert parse_qs(urlsplit(third).query)["turn"][:3] == ["the king", answer, "why"]
    kept = client.post(STEER, data={"query": urlsplit(f"{replies[1]}&prompt=why").query})
    assert kept.url.path.startswith("/s/") and written(kept.text) == written(again.text)
    stored = client.get(f"/api{kept.url.path}").json()
    assert stored["report"]["steering"]["request"]["turns"] == ["the king", answer]
    refused = client.get(STEER, params=query | {"turn": "hello"})
    assert refused.status_code == 422 and "followed by the model" in unescape(refused.text)


def test_kept_steerings_are_listed_and_deleted(tmp_path: Path, prober: FakeProber) -> None:
    store = make_store(f"sqlite:///{tmp_path}/saescope.db")
    with TestClient(create_app(Settings(home=tmp_path), store=store, prober=prober)) as client:
        assert not any('id="kept-title"' in client.get(path).text for path in ("/", STEER))
        first, second = (
            client.post(f"/api{STEER}", params=ASKED | {"prompt": f"<i>the {word}", "author": "Ana"}).json()
            for word in ("king", "sea")
        )
        items = client.get("/api/steerings").json()["items"]
        assert [item["query"] for item in items] == [second["query"], first["query"]]
        assert client.get("/api/steerings?slug=unindexed").json() == {"items": [], "next": None}
        for path in ("/", STEER):
            section = client.get(path).text.split('id="kept-title"')[1].split("</section>")[0]
            assert re.findall(r'href="/s/(\w+)">(.*?)</a>', section) == [
                (second["steering_id"], "#1: &lt;i&gt;the sea"), (first["steering_id"], "#1: &lt;i&gt;the king")
            ]  # fmt: skip
        assert "kept-title" not in client.get("/saes/unindexed/steer").text
        assert client.delete(f"/api/s/{first['steering_id']}").json() == first
        page = client.get(f"/s/{second['steering_id']}").text
        action = re.search(r'action="(/s/\w+/delete)"', page)[1]  # type: ignore[index]
        assert client.post(action, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
        assert client.post(action, follow_redirects=False).headers["location"] == "/"
        assert store.steerings() == [] and client.post(action).status_code == 404
        assert [client.get(f"/s/{kept['steering_id']}").status_code for kept in (first, second)] == [404, 404]
    store.close()


def test_a_form_that_asks_for_nonsense_is_refused(client: TestClient) -> None:
    for query, sentence in (
        ("", "empty"),
        ("feature=3&prompt=a&length=x", "length"),
        ("feature=x&prompt=a", "feature"),
    ):
        answer = client.post(STEER, data={"query": query})
        assert answer.status_code == 422 and sentence in unescape(answer.text)


def test_a_read_only_server_steers_but_keeps_nothing(store: Store) -> None:
    app: FastAPI = create_app(Settings(read_only=True), store=store, prober=FakeProber())
    with TestClient(app) as client:
        page = client.get(STEER, params=ASKED)
        assert page.status_code == 200 and "Keep under a link" not in page.text
        assert client.post(f"/api{STEER}", params=ASKED).status_code == 403
        kept = store.add_steering("demo", query="", report=client.get(f"/api{STEER}", params=ASKED).json())
        assert "/delete" not in client.get(f"/s/{kept}").text
        assert client.delete(f"/api/s/{kept}").status_code == client.post(f"/s/{kept}/delete").status_code == 403
        store.delete_steering(kept)


def test_the_server_says_how_much_it_writes(store: Store) -> None:
    app = create_app(Settings(steer_tokens=5), store=store, prober=FakeProber())
    with TestClient(app) as client:
        assert 'max="5"' in client.get(STEER).text
        assert client.get(f"/api{STEER}", params=ASKED).status_code == 422
