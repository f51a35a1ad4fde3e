"""A feature's page and its labels: scores with every text, what people replaced, and labelling in the background."""

import shutil
import time
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.explain.comparison import comparison, grid, scored
from app.main import create_app
from app.settings import Settings
from sae_core.explain.bench import Bench, pattern_scores
from sae_core.explain.records import ScoreRow
from sae_core.store import Store
from tests.app.fake_prober import FakeProber
from tests.factories import make_label, make_records, make_sae, make_vocabulary
from tests.sae_core.explain.planted import N_FEATURES, PLANTED, planted_records, planted_store
from tests.stub_llm import StubLLM, serving

KEY = "sk-secret-123"
PAGE, API = "/saes/planted/features/0", "/api/saes/planted/features/0"


@pytest.fixture(scope="module")
def planted_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planted") / "saescope.db"
    planted_store(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def store(planted_file: Path, tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(f"sqlite:///{shutil.copy(planted_file, tmp_path)}")
    opened.add_labels(
        "planted", {n: make_label(f"“<b>{n}</b>”", kind="automatic", author="saescope", score=0.5) for n in range(9)}
    )
    yield opened
    opened.close()


@pytest.fixture
def stub() -> Iterator[StubLLM]:
    def fires(text: str, marked: list[str] | None) -> bool:
        return f" {PLANTED[0]}" in text if marked is None else all(set(run.split()) == {PLANTED[0]} for run in marked)

    with serving(StubLLM(fires=fires, key=KEY, label="the <i>sea</i>")) as running:
        yield running


def opened(store: Store, stub: StubLLM | None = None, **settings: Any) -> TestClient:
    if stub is not None:
        settings |= {"llm_base_url": stub.base_url, "llm_model": "stub-7b", "llm_key": KEY}
    return TestClient(create_app(Settings(**settings), store=store, prober=FakeProber()))


def finished(client: TestClient) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        answer: dict[str, Any] = client.get(f"{API}/scores").json()
        if answer["work"] and not answer["work"]["is_running"]:
            return answer
        time.sleep(0.02)
    raise AssertionError("the labelling never ended")


def test_a_pattern_is_fitted_in_the_background_and_shown(store: Store) -> None:
    with opened(store) as client:
        before = client.get(PAGE).text
        assert 'id="tested"' not in before and "SAESCOPE_LLM_BASE_URL" in before
        answer = client.post(f"{PAGE}/explain", data={"by": "patterns"}, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, f"{PAGE}#tested")
        found = finished(client)
        assert found["work"]["problem"] is None
        kinds = {(score["kind"], score["method"]) for score in found["scores"]}
        assert kinds == {(kind, method) for kind in ("pattern", "automatic") for method in ("detection", "fuzzing")}
        page = unescape(client.get(PAGE).text)
        assert f"“{PLANTED[0]}”" in page and "How the labels were tested" in page
        assert "trials" not in page


def test_every_text_of_a_score_is_shown_what_it_got_wrong_first(store: Store) -> None:
    with opened(store) as client:
        client.post(f"{API}/explain", json={"by": "patterns"})
        scores = {(s["kind"], s["method"]): s for s in finished(client)["scores"]}
        automatic = scores["automatic", "detection"]  # a word that no text has: it never says yes
        page = client.get(f"{PAGE}?tested=automatic-detection").text
        assert (
            page.count('<li class="example miss">') == sum(t["answer"] != t["truth"] for t in automatic["trials"]) > 0
        )
        trials = page.split('class="examples trials"')[1]
        assert trials.count("<li class=") - trials.split("</ol>", 1)[1].count("<li class=") == automatic["n"]
        assert trials.index(">wrong<") < trials.index(">right<")
        assert "fires, missed · a top example" in trials
        assert "a text in which a near feature fires" in trials
        marked = client.get(f"{PAGE}?tested=pattern-fuzzing").text
        assert "chosen" in marked.split('class="examples trials"')[1]
        assert client.get(f"{PAGE}?tested=nonsense").status_code == 200


def test_a_language_model_is_asked_and_its_label_shown_as_text(store: Store, stub: StubLLM) -> None:
    store.add_labels("planted", {0: make_label("mine"), 1: make_label("other")})
    store.add_labels("planted", {0: make_label("mine, better")})
    with opened(store, stub) as client:
        assert "Ask stub-7b" in client.get(PAGE).text
        assert client.post(f"{PAGE}/explain", data={"by": "model"}, follow_redirects=False).status_code == 303
        answer = finished(client)
        assert answer["work"]["problem"] is None
        assert [old["text"] for old in answer["history"]] == ["mine", "“<b>0</b>”"]
        page = client.get(PAGE).text
    assert "<i>sea" not in page and "the &lt;i&gt;sea" in page
    assert "<title>mine, better" in page
    assert "2 earlier labels" in page and "stub-7b" in page
    assert KEY not in page and KEY not in str(answer)
    assert store.labels("planted", [0])[0].text == "mine, better"


def test_what_fails_is_said_on_the_page(store: Store, stub: StubLLM) -> None:
    stub.faults.extend(["404"])
    with opened(store, stub) as client:
        client.post(f"{API}/explain", json={"by": "model"})
        problem = finished(client)["work"]["problem"]
        assert "model not found" in problem and KEY not in problem
        assert problem in unescape(client.get(PAGE).text)


def test_while_it_goes_on_the_page_says_so_and_nobody_asks_twice(store: Store, stub: StubLLM) -> None:
    stub.delay = 0.3
    with opened(store, stub) as client:
        first = client.post(f"{API}/explain", json={"by": "model"}).json()
        assert first["is_running"]
        assert client.post(f"{API}/explain", json={"by": "model"}).json() == first
        page = client.get(PAGE).text
        assert f'data-working-url="{API}/scores"' in page and "Asking stub-7b" in page and "working.js" in page
        assert "test or find a label" not in page
        finished(client)
    assert stub.kinds.count("explain") == 1


def test_stopping_the_server_does_not_wait_for_answers(store: Store, stub: StubLLM) -> None:
    stub.delay = 5.0
    started = time.monotonic()
    with opened(store, stub) as client:
        client.post(f"{API}/explain", json={"by": "model"})
    assert time.monotonic() - started < 4


def test_what_cannot_be_done_is_refused(store: Store) -> None:
    with opened(store) as client:
        assert client.post(f"{API}/explain", json={"by": "model"}).status_code == 422
        assert "SAESCOPE_LLM_BASE_URL" in client.post(f"{API}/explain", json={"by": "model"}).text
        assert client.post(f"{API}/explain", json={"by": "magic"}).status_code == 422
        assert client.post("/api/saes/planted/features/99/explain", json={}).status_code == 404
        assert client.get("/api/saes/planted/features/0/scores?corpus=nope").status_code == 404
    with opened(store, read_only=True) as client:
        assert client.post(f"{API}/explain", json={}).status_code == 403
        assert "/explain" not in client.get(PAGE).text


# How SAEs compare


def test_scores_of_saes_are_compared_with_those_of_a_basis(store: Store) -> None:
    hook_name = store.sae("planted").sae.hook_name
    config = {"basis": "neurons", "basis_of": "planted", "compared_at": hook_name}
    neurons = make_sae(
        "other", d_sae=N_FEATURES, architecture="neurons", config=config, hook_name="blocks.1.hook_mlp_post"
    )
    store.add_sae(neurons, make_vocabulary())
    store.add_index(planted_records(slug="other"))
    for slug in ("planted", "other"):
        bench = Bench(store, slug)
        for number in bench.alive if slug == "planted" else bench.alive[:4]:
            store.add_scores(slug, pattern_scores(bench, number)[1])
    with opened(store) as client:
        answer = client.get("/api/scores").json()
        assert (answer["kind"], answer["method"], len(answer["groups"])) == ("pattern", "detection", 1)
        items = {item["slug"]: item for item in answer["groups"][0]["items"]}
        assert [items[slug]["basis"] for slug in ("planted", "other")] == [None, "neurons"]
        rows = store.score_rows("planted", kind="pattern", method="detection")
        whole = items["planted"]
        assert (whole["n_scored"], items["other"]["n_scored"]) == (len(rows), 4)
        threshold = sorted(row.baseline for row in rows if row.baseline is not None)[-1]
        assert whole["threshold"] == threshold  # of few baselines the largest
        above = sum(row.balanced_accuracy > threshold for row in rows) / len(rows)
        assert whole["share_above"] == above and 0 < above < 1
        assert whole["mean_score"] == pytest.approx(sum(row.balanced_accuracy for row in rows) / len(rows))
        page = client.get("/scores").text
        assert page.index("planted</a>") and "the neurons of the MLP in this layer" in page
        assert f"{len(rows)} of " in page
        assert client.get("/scores?kind=model").text.count("No label of this kind") == 1
        assert client.get("/scores?kind=magic").status_code == 422


def test_saes_are_compared_by_width_and_k(store: Store) -> None:
    kinds = {  # slug: width, k, features that are scored
        "wide": (4 * N_FEATURES, 8, 3),
        "wide-32": (4 * N_FEATURES, 32, 2),
        "narrow-32": (N_FEATURES, 32, 4),
        "also-32": (N_FEATURES, 32, 2),
        "no-k": (2 * N_FEATURES, None, 1),
        "coordinates": (64, 8, 2),
    }
    place = {"model": store.sae("planted").sae.model, "hook_name": store.sae("planted").sae.hook_name}
    for slug, (width, k, n) in kinds.items():
        config: dict[str, object] = {"basis": "neurons", "basis_of": "wide"} if slug == "coordinates" else {}
        store.add_sae(make_sae(slug, d_sae=width, k=k, config=config, **place), make_vocabulary())
        store.add_index(planted_records(slug=slug))
        bench = Bench(store, slug)
        for number in bench.alive[:n]:
            store.add_scores(slug, [s for s in pattern_scores(bench, number)[1] if s.kind == "pattern"])

    (group,) = comparison(store, kind="pattern", method="detection").groups
    table = grid(group)

    assert [item.slug for item in group.items][-1] == "coordinates" and group.items[-1].basis == "coordinates"
    assert table is not None
    l0 = round(store.index("no-k").metrics.l0)
    assert table.ks == tuple(sorted({8, 32, l0}))
    assert [width for width, _ in table.rows] == [N_FEATURES, 2 * N_FEATURES, 4 * N_FEATURES]
    cells = {(width, k): cell for width, row in table.rows for k, cell in zip(table.ks, row, strict=True)}
    assert {item.slug for item in cells[N_FEATURES, 32]} == {"narrow-32", "also-32"}
    assert [item.slug for item in cells[4 * N_FEATURES, 8]] == ["wide"]
    assert [item.slug for item in cells[2 * N_FEATURES, l0]] == ["no-k"] and cells[2 * N_FEATURES, 32] == ()
    for slug, (_, _, n) in kinds.items():
        rows = store.score_rows(slug, kind="pattern", method="detection")
        own = next(item for item in group.items if item.slug == slug)
        assert own.n_scored == len(rows) == n
        assert own.threshold is not None
        assert own.share_above == sum(row.balanced_accuracy > own.threshold for row in rows) / n
    with opened(store) as client:
        page = client.get("/scores").text
        assert page.count('<th scope="row">') == 3 + 6 and "32 active" in page and "no neurons" in page


def test_the_threshold_is_what_95_percent_of_baselines_do_not_exceed() -> None:
    rows = [
        ScoreRow(feature_index=n, balanced_accuracy=n / 100, baseline=n / 200, correlation=None) for n in range(100)
    ]
    info = make_records("demo").info
    found = scored(make_sae(), info, rows)
    assert found.threshold == 94 / 200
    assert found.share_above == pytest.approx(sum(n / 100 > 94 / 200 for n in range(100)) / 100)
    assert found.mean_correlation is None and found.mean_baseline == pytest.approx(99 / 400)
    assert found.margin == pytest.approx(1.96 * (found.share_above * (1 - found.share_above) / 100) ** 0.5)
