"""Comparisons: page and twin say the same, numbers are those of a slow reference, hostile input is refused."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from app import matches
from app.comparing import _notes, _seed_notes
from app.main import create_app
from app.matches import MatchCache
from app.points import PointsCache
from app.settings import Settings
from sae_core import matching
from sae_core.comparison import Match
from sae_core.errors import BusyError
from sae_core.store import Store
from tests.app.fake_prober import FakeProber
from tests.app.test_pages import Checked, tokens_of
from tests.compared import N_OTHER, directions, make_compared_store
from tests.factories import make_model, make_sae


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compared")


@pytest.fixture(scope="module")
def compared_store(folder: Path) -> Iterator[Store]:
    opened = make_compared_store(f"sqlite:///{folder}/saescope.db", folder)
    yield opened
    opened.close()


@pytest.fixture
def asked(compared_store: Store) -> Iterator[TestClient]:
    app = create_app(Settings(), store=compared_store, prober=FakeProber())
    with TestClient(app, raise_server_exceptions=False) as opened:
        yield opened


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", "", page)))


def cosines(a: str, b: str) -> np.ndarray[Any, Any]:
    unit = {slug: W / np.linalg.norm(W, axis=1, keepdims=True) for slug, W in directions().items()}
    return unit[a] @ unit[b].T


PAGES = [
    "/compare", "/compare?a=&b=", "/compare?a=demo", "/compare?b=demo", "/compare?a=demo/0",
    "/compare?b=demo/0@stories",
    "/compare?a=demo/0&b=demo/1", "/compare?a=demo/0&b=other/3", "/compare?a=demo/3&b=demo/0",
    "/compare?a=demo/5@stories&b=demo/5@poems", "/compare?a=demo/0&b=wide/7", "/compare?a=gone/0&b=gone/1",
    "/compare?a=demo&b=other", "/compare?a=demo&b=wide", "/compare?a=demo&b=gone", "/compare?a=demo&b=unindexed",
    "/compare?sae=demo&sae=other", "/compare?a=demo&b=other&match=0.95&rows=3",
    "/compare?a=demo@stories&b=demo@poems", "/compare?a=demo&b=demo&rows=2",
]  # fmt: skip


@pytest.mark.parametrize("path", PAGES)
def test_page_is_wellformed_and_has_a_twin(asked: TestClient, path: str) -> None:
    response = asked.get(path)
    assert response.status_code == 200
    checked = Checked(response.text)
    assert (checked.refused, checked.open) == ([], [])
    assert len(set(checked.ids)) == len(checked.ids)
    twin = asked.get(checked.alternate or "")
    assert twin.status_code == 200
    assert twin.json()["kind"] in ("choices", "features", "saes", "corpora")
    others = sorted(address for address in set(checked.addresses) if address.startswith("/compare?"))
    for address in others[:3] + others[-3:]:
        assert asked.get(unescape(address)).status_code == 200, address


BAD = [
    ("/compare?a=demo/0&b=other", 422), ("/compare?a=demo&b=demo@poems&sae=x&sae=y&sae=z", 422),
    ("/compare?a=nope&b=demo", 404), ("/compare?a=nope", 404), ("/compare?a=demo/0&b=demo/300", 404),
    ("/compare?a=demo/99999999999&b=demo/1", 422), ("/compare?a=demo/9999999999&b=demo/1", 404),
    ("/compare?a=unindexed/0&b=demo/1", 404), ("/compare?a=demo@nope&b=other", 404),
    ("/compare?a=other&b=other", 422), ("/compare?a=%3Cscript%3E&b=demo", 422), ("/compare?a=a%00b&b=demo", 422),
    ("/compare?a=" + "x" * 600, 422), ("/compare?a=demo&b=other&match=nan", 422),
    ("/compare?a=demo&b=other&match=2", 422), ("/compare?a=demo&b=other&rows=0", 422),
    ("/compare?a=demo&b=other&rows=100000", 422), ("/compare?a=demo&b=other&order=x", 422),
    ("/compare?a=..%2F..%2Fetc&b=demo", 422),
]  # fmt: skip


@pytest.mark.parametrize(("path", "status"), BAD)
def test_hostile_input_gets_one_sentence_and_the_form(asked: TestClient, path: str, status: int) -> None:
    page, twin = asked.get(path), asked.get("/api" + path)
    assert page.status_code == twin.status_code == status
    sentence = twin.json()["error"]
    assert sentence.endswith(".") and len(sentence) < 300
    assert "<script>" not in page.text.replace("<script src", "").replace("<script type", "")
    assert sentence in text_of(page.text)


def test_a_refused_comparison_keeps_what_was_typed(asked: TestClient) -> None:
    page = asked.get("/compare?a=demo/0&b=other").text
    assert 'name="a" value="demo/0"' in page and 'name="b" value="other"' in page
    assert '<option value="wide">' in page


def test_two_features_of_one_sae(asked: TestClient, compared_store: Store) -> None:
    answer = asked.get("/api/compare?a=demo/0&b=demo/5").json()
    a, b = compared_store.feature("demo", 0), compared_store.feature("demo", 5)
    assert answer["cosine"]["value"] == pytest.approx(cosines("demo", "demo")[0, 5], abs=1e-6)
    assert (answer["a"]["corpus"], answer["a"]["reference"]) == ("poems", "demo/0@poems")
    assert answer["a"]["feature"]["density"] == a.feature.density
    both = {e.context_id for e in a.examples} & {e.context_id for e in b.examples}
    assert both and answer["n_shared"] == len(both)
    assert {s["context_id"] for s in answer["shared"]} == both
    assert answer["a"]["n_contexts"] == len({e.context_id for e in a.examples})
    assert answer["together"] == {
        "jaccard": 0.5, "n_together": 17, "place_of_b": 1, "place_of_a": None, "at_most": None
    }  # fmt: skip
    page = text_of(asked.get("/compare?a=demo/0&b=demo/5").text)
    for fact in (
        f"{answer['cosine']['value']:.2f} is the cosine".replace("-", "−"),
        f"{len(both)} of {answer['a']['n_contexts']} contexts",
        "0.50 is the Jaccard index: both were active on 17 tokens",
        "B is number 1; of those active with B, A is not among the strongest",
    ):
        assert fact in page


def test_shared_contexts_stand_side_by_side_in_the_same_window(asked: TestClient) -> None:
    answer = asked.get("/api/compare?a=demo/0&b=demo/5").json()
    texts = tokens_of(asked.get("/compare?a=demo/0&b=demo/5").text)[: 2 * answer["n_shared"]]
    assert texts[0::2] == texts[1::2]
    for shown, shared in zip(texts[0::2], answer["shared"], strict=True):
        assert shown.strip("…") in "".join(shared["a"]["tokens"])
        first, last = sorted((shared["a"]["position"], shared["b"]["position"]))
        assert "".join(shared["a"]["tokens"][first : last + 1]) in shown


def test_features_that_are_not_stored_of_each_other_have_a_bound(asked: TestClient) -> None:
    together = asked.get("/api/compare?a=demo/0&b=demo/7").json()["together"]
    assert (together["jaccard"], together["at_most"]) == (None, 0.5)
    assert "at most 0.50" in text_of(asked.get("/compare?a=demo/0&b=demo/7").text)


def test_features_of_two_saes(asked: TestClient) -> None:
    answer = asked.get("/api/compare?a=demo/4&b=other/4").json()
    assert answer["cosine"]["value"] == pytest.approx(cosines("demo", "other")[4, 4], abs=1e-6)
    assert answer["cosine"]["value"] > 0.9
    assert answer["together"] is None and answer["shared"] is not None  # the same poems


def test_features_of_two_models_have_neither_cosine_nor_contexts(asked: TestClient) -> None:
    answer = asked.get("/api/compare?a=demo/0&b=wide/7").json()
    assert answer["cosine"]["value"] is None and "64" in answer["cosine"]["problem"]
    assert answer["shared"] is answer["n_shared"] is None
    assert "indexed on different texts" in text_of(asked.get("/compare?a=demo/0&b=wide/7").text)


def test_where_weights_are_gone_the_rest_is_still_shown(asked: TestClient) -> None:
    near, far = (asked.get(f"/api/compare?a=gone/0&b=gone/{i}").json() for i in (2, 9))
    assert near["cosine"]["value"] == 0.375 and near["cosine"]["source"] == "index"
    assert far["cosine"]["value"] is None and "put them back" in far["cosine"]["problem"]
    page = text_of(asked.get("/compare?a=gone/0&b=gone/9").text)
    assert "put them back" in page and "Top examples of each" in page


def test_differences_are_those_of_the_stored_tokens(asked: TestClient, compared_store: Store) -> None:
    answer = asked.get("/api/compare?a=demo/0&b=demo/1").json()["differences"]
    stored = [
        {w.token_id: w.weight for w in (*f.promoted_tokens, *f.suppressed_tokens)}
        for f in (compared_store.feature("demo", i).feature for i in (0, 1))
    ]
    listed = [*answer["more_by_a"], *answer["more_by_b"]]
    assert len(listed) + answer["n_undecided"] == len(stored[0].keys() | stored[1].keys())
    for d in listed:
        a, b = stored[0].get(d["token_id"]), stored[1].get(d["token_id"])
        assert (d["a"], d["b"], d["is_exact"]) == (a, b, a is not None and b is not None)
        if a is not None and b is not None:
            assert d["difference"] == pytest.approx(a - b)
        elif a is not None:  # of b it weighs less than the weakest promoted, 1.5, and more than the weakest suppressed
            assert d["difference"] == pytest.approx(a - 1.5 if a > 0 else a + 1.5)


def test_two_saes_match_as_a_plain_product_says(asked: TestClient, compared_store: Store) -> None:
    answer = asked.get("/api/compare?a=demo&b=other&rows=1000").json()
    table = cosines("demo", "other")
    alive_a = [p.feature_index for p in compared_store.feature_points("demo", corpus="poems") if p.density > 0]
    alive_b = [p.feature_index for p in compared_store.feature_points("other", corpus="poems") if p.density > 0]
    best = {i: max(alive_b, key=lambda j: table[i, j]) for i in alive_a}
    n_matched = sum(table[i, j] >= 0.7 for i, j in best.items())
    assert answer["a"]["share_matched"] == pytest.approx(n_matched / len(alive_a))
    assert (answer["a"]["n_features"], answer["b"]["n_features"]) == (len(alive_a), len(alive_b))
    assert {m["feature_index"]: m["other_index"] for m in answer["best"]} == best
    assert len(answer["unmatched_a"]) == len(alive_a) - n_matched
    for rows, mine in ((answer["unmatched_a"], "demo"), (answer["unmatched_b"], "other")):
        found = [row["cosine"] for row in rows]
        assert found == sorted(found) and max(found) < 0.7
        density = compared_store.feature_stats(mine, [rows[0]["feature_index"]], corpus="poems")
        assert rows[0]["density"] == density[rows[0]["feature_index"]].density
    assert sum(answer["b"]["cosines"]["counts"]) == len(alive_b) < N_OTHER
    page = text_of(asked.get("/compare?a=demo&b=other").text)
    assert f"{100 * answer['a']['share_matched']:.1f}% of A's {len(alive_a)} alive features have a match in B." in page
    assert "sample" not in page.split("Closest")[0].split("Which features")[1]


def test_the_least_cosine_of_a_match_is_in_the_address(asked: TestClient) -> None:
    shares = [asked.get(f"/api/compare?a=demo&b=other&match={m}").json()["a"]["share_matched"] for m in (0, 0.7, 0.999)]
    assert shares[0] == 1 > shares[1] > shares[2] == 0


def test_those_without_a_match_can_be_had_by_their_density(asked: TestClient) -> None:
    furthest = asked.get("/api/compare?a=demo&b=other&rows=1000").json()
    frequent = asked.get("/api/compare?a=demo&b=other&rows=1000&order=frequent").json()
    for side in ("unmatched_a", "unmatched_b"):
        densities = [row["density"] for row in frequent[side]]
        assert densities == sorted(densities, reverse=True)
        assert {row["feature_index"] for row in frequent[side]} == {row["feature_index"] for row in furthest[side]}
    assert frequent["best"] == furthest["best"]


def test_saes_without_an_index_are_matched_by_all_their_features(asked: TestClient) -> None:
    answer = asked.get("/api/compare?a=unindexed&b=other").json()
    assert (answer["a"]["n_features"], answer["a"]["index"]) == (300, None)
    page = text_of(asked.get("/compare?a=unindexed&b=other").text)
    assert "not indexed" in page and "300 features have a match" in page


@pytest.mark.parametrize(("b", "sentence"), [("wide", "64 numbers and the other of 96"), ("gone", "put them back")])
def test_saes_that_cannot_be_matched_still_show_their_metrics(asked: TestClient, b: str, sentence: str) -> None:
    page = text_of(asked.get(f"/compare?a=demo&b={b}").text)
    assert sentence in page and "CE recovered" in page and "0.969" in page


def test_a_sample_is_called_a_sample(asked: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "LEAST_SAMPLE", 10)
    matched = matching.best_matches

    def little_work(*args: Any, **kwargs: Any) -> Any:
        return matched(*args, **kwargs, most_work=64 * 470 * 30)

    monkeypatch.setattr(matching, "best_matches", little_work)
    answer = asked.get("/api/compare?a=demo&b=other").json()
    assert answer["is_sample"] and 25 <= answer["a"]["n_looked"] <= 40
    assert "estimated from a sample of" in text_of(asked.get("/compare?a=demo&b=other").text)


def test_directions_at_different_places_are_said_to_be() -> None:
    a = make_sae("a")
    assert _notes(a, make_sae("b")) == []
    assert "different models" in _notes(a, make_sae("b", model=make_model(revision="r2")))[0]
    (note,) = _notes(a, make_sae("b", config={"target_hook": "mlp_out", "target_layer": 4}))
    assert "blocks.3.hook_resid_post and blocks.4.hook_mlp_out" in note


def test_saes_from_one_seed_are_said_to_have_begun_alike() -> None:
    found = [Match(feature_index=1, other_index=1, cosine=0.9), Match(feature_index=2, other_index=9, cosine=0.8)]
    a, b, c = (make_sae(slug, config={"seed": seed}) for slug, seed in (("a", 0), ("b", 0), ("c", 1)))
    (note,) = _seed_notes(a, b, found, least=0.7)
    assert "1 of A's 2 matches" in note
    assert _seed_notes(a, c, found, least=0.7) == []


def test_a_comparison_unfurls_where_its_link_is_pasted(asked: TestClient) -> None:
    features = asked.get("/compare?a=demo/0&b=demo/2").text
    assert '<meta property="og:title" content="demo #0 and demo #2">' in features
    assert 'words for a spouse; numbers &amp; &lt;dates&gt;.">' in features
    for path in ("/compare?a=demo&b=other", "/compare?a=demo&b=demo"):
        assert '<meta property="og:description" content="' in asked.get(path).text


def test_two_corpora(asked: TestClient, compared_store: Store) -> None:
    answer = asked.get("/api/compare?a=demo@stories&b=demo@poems&rows=1000").json()
    on_a, on_b = (compared_store.feature_stats("demo", range(300), corpus=corpus) for corpus in ("stories", "poems"))
    n_a, n_b = 1860, 1240
    expected = {}
    for i in range(300):
        x, y = on_a[i].n_active, on_b[i].n_active
        p = (x + y) / (n_a + n_b)
        if p * n_b >= 10:
            z = (x / n_a - y / n_b) / (p * (1 - p) * (1 / n_a + 1 / n_b)) ** 0.5
            if abs(z) >= 5:
                expected[i] = (x, y, pytest.approx(z))
    listed = {
        d["feature_index"]: (d["n_a"], d["n_b"], d["z"])
        for d in (row["difference"] for row in answer["more_on_a"] + answer["more_on_b"])
    }
    assert listed == expected and listed
    alive = [(on_a[i].n_active > 0, on_b[i].n_active > 0) for i in range(300)]
    assert (answer["n_alive_on_both"], answer["n_dead_on_both"]) == (
        alive.count((True, True)),
        alive.count((False,) * 2),
    )
    for row in answer["more_on_a"]:
        top = compared_store.feature("demo", row["difference"]["feature_index"], corpus="stories").examples[0]
        assert row["example_a"]["activations"] == list(top.activations)
    page = text_of(asked.get("/compare?a=demo@stories&b=demo@poems").text)
    assert f"{answer['n_more_on_a']} fire more often on A, {answer['n_more_on_b']} on B" in page


def test_choices_of_a_feature_are_near_it_here_and_elsewhere(asked: TestClient, compared_store: Store) -> None:
    items = asked.get("/api/compare?a=demo/4").json()["items"]
    by_group: dict[str, list[str]] = {}
    for item in items:
        by_group.setdefault(item["group"], []).append(item["reference"])
    nearest = compared_store.feature("demo", 4).feature.nearest
    assert by_group["Nearest in this SAE"] == [f"demo/{n.feature_index}" for n in nearest]
    assert by_group["Active with it"] == ["demo/9"]
    closest = int(cosines("demo", "other")[4].argmax())
    assert by_group["Closest direction in other SAEs"] == [f"other/{closest}"]  # not the wide one, not the one gone
    assert by_group["The same feature on another corpus"] == ["demo/4@stories"]


def test_choices_of_an_sae(asked: TestClient) -> None:
    items = asked.get("/api/compare?a=demo@stories").json()["items"]
    assert [item["reference"] for item in items if "corpus" in item["group"]] == ["demo@poems"]
    assert {item["reference"] for item in items} == {"demo@poems", "other", "wide", "gone", "unindexed"}
    assert 'href="/compare?a=other&amp;b=demo"' in asked.get("/compare?b=demo").text


def test_matches_are_computed_once_and_again_when_a_file_changes(
    compared_store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    matched = matches._computed
    monkeypatch.setattr(matches, "_computed", lambda *a, **k: calls.append(1) or matched(*a, **k))
    cache, points = MatchCache(), PointsCache()
    demo, other = compared_store.sae("demo"), compared_store.sae("other")

    def ask() -> Any:
        a, b = (demo.sae, demo.indexes[0]), (other.sae, other.indexes[0])
        return cache.matches(compared_store, points, a=a, b=b)

    first = ask()
    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ask() is first and len(calls) == 1
    cache.matches(compared_store, points, a=(demo.sae, demo.indexes[1]), b=(other.sae, other.indexes[0]))
    assert len(calls) == 2  # others are alive there
    os.utime(folder / "other" / "sae.safetensors", (1, 1))
    ask()
    assert len(calls) == 3


def test_a_busy_server_says_so_and_keeps_what_was_asked(asked: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.BoundedSemaphore, "acquire", lambda *args, **kwargs: False)
    monkeypatch.setattr(asked.app.state.matches, "_kept", {})  # type: ignore[attr-defined]
    page, twin = asked.get("/compare?a=demo&b=other"), asked.get("/api/compare?a=demo&b=other")
    assert page.status_code == twin.status_code == 503
    assert twin.headers["retry-after"] == "5"
    assert "try again in a few seconds" in page.text and 'name="a" value="demo"' in page.text


def test_many_comparisons_at_once_are_told_to_come_back(compared_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(*args: Any, **kwargs: Any) -> str:
        begun.set()
        assert go_on.wait(20)
        return "found"

    monkeypatch.setattr(matches, "_computed", slow)
    cache, demo, other = MatchCache(), compared_store.sae("demo").sae, compared_store.sae("other").sae
    found: list[object] = []

    def ask() -> None:
        found.append(cache.matches(compared_store, PointsCache(), a=(demo, None), b=(other, None)))

    threads = [threading.Thread(target=ask) for _ in range(matches.MOST_WAITING)]
    for thread in threads:
        thread.start()
    assert begun.wait(20)
    while cache._waiting._value:  # type: ignore[attr-defined]  # until all of them wait
        pass
    with pytest.raises(BusyError, match="try again"):
        cache.matches(compared_store, PointsCache(), a=(demo, None), b=(other, None))
    go_on.set()
    for thread in threads:
        thread.join()
    assert found == ["found"] * matches.MOST_WAITING


@pytest.mark.slow
def test_pages_that_compare_load_no_torch(folder: Path, compared_store: Store) -> None:
    code = (
        "import sys\n"
        "from starlette.testclient import TestClient\n"
        "from app.main import create_app\n"
        "from app.settings import Settings\n"
        f"client = TestClient(create_app(Settings(database_url='sqlite:///{folder}/saescope.db')))\n"
        "for path in ('/compare?a=demo&b=other', '/compare?a=demo/1&b=other/1', '/compare?a=demo/1'):\n"
        "    assert client.get(path).status_code == 200\n"
        "assert 'numpy' in sys.modules\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
