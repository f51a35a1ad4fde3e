"""The JSON twins and their contract."""

import math

import pytest
from starlette.testclient import TestClient

from sae_core.errors import StoreError
from sae_core.store import Store


def test_lists_have_items_and_next(client: TestClient) -> None:
    saes = client.get("/api/saes").json()
    assert [item["sae"]["slug"] for item in saes["items"]] == ["unindexed", "demo"]
    assert saes["next"] is None
    first = client.get("/api/saes/demo/features?limit=200").json()
    second = client.get("/api/saes/demo/features", params={"limit": 200, "after": first["next"]}).json()
    numbers = [item["feature"]["feature_index"] for item in first["items"] + second["items"]]
    assert len(numbers) == len(set(numbers)) == 270
    assert second["next"] is None


def test_sae_has_its_indexes_newest_first(client: TestClient) -> None:
    answer = client.get("/api/saes/demo").json()
    assert [index["corpus"]["name"] for index in answer["indexes"]] == ["poems", "stories"]
    assert answer["sae"]["model"]["model_name"] == "demo-lm"


def test_feature_is_the_record(client: TestClient, store: Store) -> None:
    detail = store.feature("demo", 7, corpus="stories")
    answer = client.get("/api/saes/demo/features/7?corpus=stories").json()
    assert answer["feature"]["density"] == detail.feature.density
    assert [tuple(e["activations"]) for e in answer["examples"]] == [e.activations for e in detail.examples]


def test_probe_answers_tokens_and_ranked_features(client: TestClient) -> None:
    answer = client.post("/api/saes/demo/probe", json={"text": "the king of the sea", "top_k": 3}).json()
    assert [token["token"] for token in answer["tokens"]] == ["<bos>", "the", " king", " of", " the", " sea"]
    assert answer["tokens"][0]["is_special"]
    assert all(len(token["features"]) <= 3 for token in answer["tokens"])
    assert answer["tokens"][1]["n_active"] > 3
    strongest = [feature["max_activation"] for feature in answer["features"]]
    assert strongest == sorted(strongest, reverse=True)
    first = answer["features"][0]
    assert first["activations"][first["max_position"]] == first["max_activation"]
    assert set(first) >= {"label", "density", "corpus_max"}
    assert client.get("/api/saes/demo/probe?text=the+king+of+the+sea&top_k=3").json() == answer


def test_probe_has_labels_and_densities_of_the_corpus_asked_for(client: TestClient, store: Store) -> None:
    stats = store.feature_stats("demo", [0], corpus="stories")[0]
    answer = client.post("/api/saes/demo/probe", json={"text": "king", "pin": [0], "corpus": "stories"}).json()
    pinned = next(feature for feature in answer["features"] if feature["feature_index"] == 0)
    assert (pinned["label"], pinned["density"]) == ("words for a spouse", stats.density)


@pytest.mark.parametrize("sort", ["strength", "sum", "mean", "rarity"])
def test_probe_ranks_as_asked(client: TestClient, store: Store, sort: str) -> None:
    answer = client.post("/api/saes/demo/probe", json={"text": "the king of the sea", "sort": sort}).json()
    known = {p.feature_index: p for p in store.feature_points("demo")}
    scores = []
    for feature in answer["features"]:
        active = [value for value in feature["activations"] if value > 0]
        point = known[feature["feature_index"]]
        bits = math.log2(1 / point.density) if point.density else 31
        score = {
            "strength": max(active),
            "sum": sum(active),
            "mean": sum(active) / len(active),
            "rarity": max(active) / max(point.max_activation, *active) * bits,
        }[sort]
        name = {"strength": "max_activation", "sum": "sum_activation", "mean": "mean_activation"}.get(sort, sort)
        assert feature[name] == pytest.approx(score)
        scores.append(score)
    assert scores == sorted(scores, reverse=True) and len(set(scores)) > 3


def test_dense_features_and_special_tokens_are_left_out_before_ranking(client: TestClient, store: Store) -> None:
    text = "the king of the sea and the whale"
    everything = client.post("/api/saes/demo/probe", json={"text": text, "top_features": 1000}).json()
    densities = sorted(feature["density"] for feature in everything["features"])
    limit = densities[len(densities) // 2]
    assert densities[0] <= limit < densities[-1]
    few = client.post("/api/saes/demo/probe", json={"text": text, "max_density": limit, "top_features": 3}).json()
    kept = [f for f in everything["features"] if f["density"] <= limit]
    assert few["features"] == kept[:3] and few["n_features"] == len(kept)
    assert all(f["density"] <= limit for token in few["tokens"] for f in token["features"])
    assert everything["tokens"][0]["features"] == []
    special = client.post("/api/saes/demo/probe", json={"text": text, "special": True}).json()
    assert special["tokens"][0]["is_special"] and len(special["tokens"][0]["features"]) > 0
    unindexed = client.post("/api/saes/unindexed/probe", json={"text": text, "max_density": 0.1})
    assert unindexed.status_code == 422 and "no index" in unindexed.json()["error"]


def test_the_models_own_predictions(client: TestClient) -> None:
    answer = client.get("/api/saes/demo/predictions?text=the+king").json()
    assert [token["surprise"] for token in answer["tokens"]] == [None, 1.5, 2.5]
    assert answer["tokens"][1]["next_tokens"][0] == "<next>"
    assert client.get("/api/saes/demo/predictions?text=+").status_code == 422


def test_what_the_worker_is_at(client: TestClient) -> None:
    assert client.get("/api/worker").json() == {"pending": 0, "loading": None}


def test_pinned_feature_is_in_the_answer_wherever_it_ranks(client: TestClient) -> None:
    everything = client.post("/api/saes/demo/probe", json={"text": "the king", "top_features": 1000}).json()
    last = everything["features"][-1]["feature_index"]
    answer = client.post("/api/saes/demo/probe", json={"text": "the king", "top_features": 1, "pin": [last]}).json()
    assert [f["feature_index"] for f in answer["features"]] == [everything["features"][0]["feature_index"], last]
    assert answer["n_features"] == everything["n_features"]


def test_probe_of_an_unindexed_sae_has_no_densities(client: TestClient) -> None:
    answer = client.post("/api/saes/unindexed/probe", json={"text": "the king"}).json()
    assert answer["features"][0]["density"] is None


def test_what_a_form_leaves_empty_counts_as_not_given(client: TestClient) -> None:
    body = {"text": "king", "pin": [], "corpus": None}
    assert client.post("/api/saes/demo/probe", json=body).status_code == 200
    for path in ("/saes/demo/probe?text=king&feature=&token=&corpus=", "/saes/demo/features?q=&min_density=&corpus="):
        assert client.get(path).status_code == 200


def test_charts_are_plotly_figures(client: TestClient, store: Store) -> None:
    answer = client.get("/api/saes/demo/charts?corpus=stories").json()
    alive = [p for p in store.feature_points("demo", corpus="stories") if p.density > 0]
    assert answer["scatter"]["data"][0]["customdata"] == [p.feature_index for p in alive]
    assert sum(answer["density"]["data"][0]["y"]) == len(alive)


def test_alive_and_ready(client: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.get("/healthz").json()["status"] == "ok"
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["status"], ready.json()["database"]) == (200, "ok", "ok")
    monkeypatch.setattr(Store, "is_current", lambda self: False)
    older = client.get("/readyz")
    assert older.status_code == 503 and "saescope db upgrade" in older.json()["migrations"]

    def fail(self: Store) -> bool:
        raise StoreError("The database cannot be reached.")

    monkeypatch.setattr(Store, "is_current", fail)
    gone = client.get("/readyz")
    assert (gone.status_code, gone.json()["database"]) == (503, "unreachable")
    assert client.get("/healthz").status_code == 200  # the process answers; a restart would not help


def test_openapi_and_docs_list_every_route(client: TestClient) -> None:
    spec, docs = client.get("/openapi.json").json(), client.get("/docs").text
    assert "/api/saes/{slug}/features/{feature_index}" in spec["paths"]
    for path in spec["paths"]:
        assert path in docs
    names = {p["name"] for p in spec["paths"]["/api/saes/{slug}/features"]["get"]["parameters"]}
    assert names == {
        "slug",
        "corpus",
        "sort",
        "q",
        "within",
        "min_density",
        "max_density",
        "min_confidence",
        "alive",
        "after",
        "limit",
    }


def test_answers_are_compressed(client: TestClient) -> None:
    assert client.get("/api/saes/demo/features").headers["content-encoding"] == "gzip"
    assert client.get("/saes/demo/features").headers["content-encoding"] == "gzip"


def probe_maxima(client: TestClient, text: str) -> dict[int, float]:
    """Each active feature's largest activation, from a probe of this text alone."""
    answer = client.post("/api/saes/demo/probe", json={"text": text, "top_features": 1000}).json()
    return {feature["feature_index"]: feature["max_activation"] for feature in answer["features"]}
