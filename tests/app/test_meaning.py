"""The search by meaning: the page, its twin, the command, and what they say where something is missing."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.cli import main
from app.inference import EmbedJob
from app.inference.shelf import ProberLoader, Shelf
from app.main import create_app
from app.settings import Settings
from sae_core.errors import ModelError
from sae_core.explain.records import EmbeddingModel
from sae_core.store import Store
from tests.app.fake_prober import FakeProber, letters
from tests.factories import N_FEATURES, make_label, make_store
from tests.tiny import save_tiny_model

MODEL = EmbeddingModel(model_name="letters", revision="1", width=26)
WORDS = ("ships at sea", "a winter night", "kings and queens", "the golden key", "an old whale")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = make_store(f"sqlite:///{tmp_path}/meaning.db")
    dense = [row.feature.feature_index for row in store.features("demo", limit=len(WORDS)).items]
    for number in range(N_FEATURES):
        store.delete_label("demo", number)
    store.add_labels("demo", {number: make_label(text) for number, text in zip(dense, WORDS, strict=True)})
    yield store
    store.close()


@pytest.fixture
def prober() -> FakeProber:
    return FakeProber()


@pytest.fixture
def client(store: Store, prober: FakeProber, tmp_path: Path) -> Iterator[TestClient]:
    app: FastAPI = create_app(Settings(home=tmp_path), store=store, prober=prober)
    with TestClient(app) as client:
        yield client


def embed(store: Store, model: EmbeddingModel = MODEL) -> None:
    store.start_label_vectors("demo", model)
    texts = store.labels_without_vectors("demo")
    store.add_label_vectors("demo", model, texts, [letters(text, 26) for text in texts.values()])


def test_the_nearest_label_comes_first_and_the_model_is_named(client: TestClient, store: Store) -> None:
    embed(store)

    found = client.get("/api/saes/demo/meaning", params={"q": "hips at seas", "limit": 3}).json()
    page = client.get("/saes/demo/meaning", params={"q": "hips at seas"})

    texts = [near["row"]["feature"]["label"]["text"] for near in found["items"]]
    assert texts[0] == "ships at sea" and len(texts) == 3
    assert found["items"][0]["cosine"] > found["items"][1]["cosine"] > 0
    assert found["vectors"]["model"] == {"model_name": "letters", "revision": "1", "width": 26}
    assert page.status_code == 200 and "embedding model letters" in page.text
    assert page.text.index("ships at sea") < page.text.index("kings and queens")
    assert 'href="/api/saes/demo/meaning?q=hips+at+seas"' in page.text.replace("%20", "+")
    marked = client.get("/saes/demo/meaning", params={"q": "<b>sea</b>"}).text
    assert "<b>sea" not in marked and "&lt;b&gt;sea" in marked
    assert 'formaction="/saes/demo/meaning"' in client.get("/saes/demo/features").text


def test_labels_that_changed_are_made_vectors_of_by_the_next_search(
    client: TestClient, store: Store, prober: FakeProber
) -> None:
    embed(store)
    number = store.features("demo", q="whale").items[0].feature.feature_index
    store.add_labels("demo", {number: make_label("zebras")})

    found = client.get("/api/saes/demo/meaning", params={"q": "zebra"}).json()

    assert found["items"][0]["row"]["feature"]["label"]["text"] == "zebras"
    assert (found["vectors"]["n_vectors"], found["vectors"]["n_missing"]) == (len(store.label_texts("demo")), 0)
    assert prober.texts == ["zebra", "zebras"]
    client.get("/api/saes/demo/meaning", params={"q": "zebra"})
    assert prober.texts == ["zebra", "zebras", "zebra"]


def test_a_server_that_changes_nothing_keeps_no_vectors(store: Store, prober: FakeProber, tmp_path: Path) -> None:
    embed(store)
    number = store.features("demo", q="whale").items[0].feature.feature_index
    store.add_labels("demo", {number: make_label("zebras")})
    with TestClient(create_app(Settings(home=tmp_path, read_only=True), store=store, prober=prober)) as client:
        answer = client.get("/api/saes/demo/meaning", params={"q": "zebra"})
        assert answer.status_code in (200, 403) and prober.texts in ([], ["zebra"])
        assert "formaction" not in client.get("/saes/demo/features").text
    assert store.labels_without_vectors("demo") == {number: "zebras"}


def test_without_vectors_the_command_is_said(client: TestClient) -> None:
    page = client.get("/saes/demo/meaning", params={"q": "whales"})
    answer = client.get("/api/saes/demo/meaning", params={"q": "whales"})

    assert page.status_code == 200 and "saescope label demo --embed MODEL" in page.text
    assert answer.status_code == 404 and "saescope label demo --embed MODEL" in answer.json()["error"]


def test_a_model_that_is_gone_is_one_sentence_on_the_page(client: TestClient, store: Store) -> None:
    embed(store, replace(MODEL, model_name="gone"))

    page = client.get("/saes/demo/meaning", params={"q": "whales"})
    answer = client.get("/api/saes/demo/meaning", params={"q": "whales"})

    assert page.status_code == answer.status_code == 422
    sentence = "There is no model folder gone; check the path."
    assert sentence in page.text and 'value="whales"' in page.text and answer.json()["error"] == sentence
    assert client.get("/api/saes/demo/meaning").status_code == 422
    assert client.get("/api/saes/nope/meaning?q=whale").status_code == 404


def test_the_command_makes_vectors_once_and_the_worker_searches_them(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bert = save_tiny_model(tmp_path / "bert", "bert")
    command = ["label", "demo", "--embed", str(bert), "--database", f"sqlite:///{tmp_path}/meaning.db"]
    command += ["--home", str(tmp_path)]

    assert main(command) == 0
    n = len(store.label_texts("demo"))
    assert f"{n} labels can be searched by meaning, {n} of them made vectors" in capsys.readouterr().out
    assert main(command) == 0
    assert "0 of them made vectors" in capsys.readouterr().out

    known = store.label_vectors("demo")
    assert known is not None and known.model.model_name == str(bert)
    shelf = Shelf(ProberLoader(), device="cpu", max_tokens=9)
    job = EmbedJob(model=known.model, texts=("the golden key",))
    found = job.run(shelf)
    row, cosine = store.features_by_meaning("demo", found.vectors[0], limit=1)[0]
    assert row.feature.label is not None and row.feature.label.text == "the golden key"
    assert cosine == pytest.approx(1, abs=2e-3)

    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps({**config, "a_setting": "another"}))
    again = Shelf(ProberLoader(), device="cpu", max_tokens=9)
    with pytest.raises(ModelError, match="has changed since"):
        job.run(again)
    assert main([*command, "--patterns"]) == 2
    assert "give it alone" in capsys.readouterr().err
    assert main([*command[:3], str(tmp_path / "none"), *command[4:]]) == 2
    assert "There is no model folder" in capsys.readouterr().err
