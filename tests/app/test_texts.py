"""Many texts: read from lines and JSON lines, run in parts, a table whose numbers are those of single probes."""

import json

import pytest
from starlette.testclient import TestClient

from app.texts import MAX_TEXTS, read_texts, sets_of
from sae_core.errors import PromptError
from sae_core.store import Store
from tests.app.test_api import probe_maxima

A, B = ["the king of the sea", "a king", "kings <b>and</b> whales"], ["the queen", "rain on the roof"]


def test_texts_are_lines_or_json_lines_that_may_name_their_set() -> None:
    assert read_texts(" one \r\n\n{not json\n", name="A") == ([" one ", "{not json"], [])
    lines = [{"text": "in a", "set": "a"}, {"text": "in b", "set": "B"}, {"text": "two\nlines"}]
    assert read_texts("\n".join(map(json.dumps, lines)), name="A") == (["in a", "two\nlines"], ["in b"])
    assert sets_of("x", json.dumps({"text": "y", "set": "A"})) == (["x", "y"], [])
    for bad in ('{"txt": "a"}', '{"text": 3}', '{"text": " "}', '{"text": "a", "set": "C"}'):
        with pytest.raises(PromptError, match="Line 2 of B"):
            read_texts(f"fine\n{bad}", name="B")
    with pytest.raises(PromptError, match="no texts in A"):
        sets_of(" \n", "b")
    with pytest.raises(PromptError, match="at most 1,000"):
        sets_of("a\n" * MAX_TEXTS, "b")


def test_the_table_holds_what_single_probes_give(client: TestClient, store: Store) -> None:
    answer = client.post("/api/saes/demo/texts", json={"a": "\n".join(A), "b": "\n".join(B)})
    assert answer.status_code == 200, answer.text
    report = answer.json()
    assert (report["n_a"], report["n_b"], report["n_separating"]) == (3, 2, None)
    single = [probe_maxima(client, text) for text in A + B]
    assert report["n_features"] == len({i for found in single for i in found})
    deltas = [abs(row["contrast"]["delta"]) for row in report["rows"]]
    assert deltas == sorted(deltas, reverse=True) and deltas[0] > 0
    for row in report["rows"]:
        assert row["values"] == pytest.approx([found.get(row["feature_index"], 0.0) for found in single])
        for one in row["evidence"]:
            at = one["number"] - 1 + (3 if one["set_name"] == "B" else 0)
            assert one["value"] == pytest.approx(row["values"][at]) and one["value"] > 0
            assert one["tokens"][one["peak"]] in (A + B)[at]
            assert one["set_name"] == ("B" if row["contrast"]["delta"] < 0 else "A")


def test_one_set_is_ranked_by_the_number_of_its_texts(client: TestClient) -> None:
    report = client.post("/api/saes/demo/texts", json={"a": "\n".join(A)}).json()
    counts = [row["n_active"] for row in report["rows"]]
    assert counts == sorted(counts, reverse=True) and report["rows"][0]["contrast"] is None
    limit = report["rows"][0]["density"]
    few = client.post("/api/saes/demo/texts", json={"a": "\n".join(A), "max_density": limit / 2}).json()
    assert 0 < few["n_features"] < report["n_features"]
    assert all(row["density"] <= limit / 2 for row in few["rows"])


def test_the_page_works_without_a_script_and_says_what_it_is_not(client: TestClient) -> None:
    page = client.get("/saes/demo/texts").text
    assert "not for an audit" in page and "<table" not in page
    answer = client.post(
        "/saes/demo/texts", data={"a": "\n".join(A), "b": "\n".join(B), "corpus": "", "max_density": ""}
    )
    assert answer.status_code == 200 and answer.text.count('<th scope="row">') > 5
    assert "With fewer than 8 texts" in answer.text and "<b>and" not in answer.text
    assert "&lt;b&gt;and&lt;/b&gt;" in answer.text
    empty = client.post("/saes/demo/texts", data={"a": ""})
    assert empty.status_code == 422 and "no texts in A" in empty.text
    assert client.post("/saes/demo/texts", data={"a": "fine\nbusy"}).status_code == 503


def test_the_script_hears_how_far_the_texts_are(client: TestClient) -> None:
    answer = client.post("/saes/demo/texts/live", json={"a": "\n".join(["the king"] * 40)})
    news = [json.loads(line) for line in answer.text.splitlines()]
    assert [(one["done"], one["of"]) for one in news[:-1]] == [(16, 40), (32, 40), (40, 40)]
    assert "40 texts" in news[-1]["html"]
    long = client.post("/saes/demo/texts/live", json={"a": "ok", "b": "word " * 300})
    assert "Text 1 of B: The text has" in json.loads(long.text.splitlines()[-1])["html"]
