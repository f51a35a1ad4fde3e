"""Labelling with a language model from end to end: an oracle, a coin and a liar; faults, death and coming back."""

import asyncio
import json
import shutil
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_core.errors import EndpointError
from sae_core.explain import job as job_module
from sae_core.explain.bench import Bench
from sae_core.explain.client import Client, Endpoint
from sae_core.explain.job import Labelling, Prices
from sae_core.explain.records import LabelScore
from sae_core.store import Store
from tests.factories import make_label
from tests.sae_core.explain.planted import PLANTED
from tests.stub_llm import StubLLM, serving

KEY = "sk-secret-123"
WORD = f" {PLANTED[0]}"


@pytest.fixture
def store(planted_file: Path, tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(f"sqlite:///{shutil.copy(planted_file, tmp_path)}")
    opened.add_labels("planted", {n: make_label(f"something else {n}", kind="automatic") for n in range(12)})
    yield opened
    opened.close()


def sea(text: str, marked: list[str] | None) -> bool:
    """The truth about feature 0."""
    return WORD in text if marked is None else all(set(run.split()) == {PLANTED[0]} for run in marked)


def label(store: Store, stub: StubLLM, features: list[int], **options: Any) -> Labelling:
    async def nothing(seconds: float) -> None:
        pass

    async def run() -> Labelling:
        concurrency = options.pop("concurrency", 2)
        endpoint = Endpoint(base_url=stub.base_url, model="stub-7b", key=KEY, timeout=0.5, concurrency=concurrency)
        stop = options.pop("stop", lambda: False)
        async with Client(endpoint, sleep=nothing) as client:
            job = Labelling(Bench(store, "planted"), client, **options)
            await job.run(job.unfinished(features), stop=stop)
            return job

    return asyncio.run(run())


def scores(store: Store, feature_index: int = 0) -> dict[str, LabelScore]:
    return {s.method: s for s in store.scores("planted", [feature_index]) if s.kind == "model"}


@pytest.mark.parametrize("style", ["plain", "prose", "fenced", "thinking", "streamed"])
def test_an_oracle_scores_one(store: Store, style: str) -> None:
    with serving(StubLLM(fires=sea, style=style, key=KEY)) as stub:
        job = label(store, stub, [0])
    shown = store.labels("planted", [0])[0]
    assert (shown.text, shown.kind, shown.author, shown.certainty) == ("words of the sea", "model", "stub-7b", 0.8)
    assert shown.prompt_version and shown.score == 1.0
    found = scores(store)
    assert {method: score.balanced_accuracy for method, score in found.items()} == {"detection": 1.0, "fuzzing": 1.0}
    detection = found["detection"]
    assert (detection.n, detection.unparsed, detection.scorer) == (14, 0, "stub-7b")
    assert detection.baseline is not None and detection.baseline < 1
    assert all(trial.is_hit for trial in detection.trials)
    assert stub.kinds == ["explain", "detection", "detection", "fuzzing", "fuzzing"]
    assert (job.progress.requests, job.progress.prompt_tokens, job.progress.answer_tokens) == (5, 500, 50)
    assert [row.feature.feature_index for row in store.features("planted", q="words sea", within="label").items] == [0]


def test_a_liar_scores_nothing_and_a_coin_a_half(store: Store) -> None:
    with serving(StubLLM(fires=sea, character="liar")) as stub:
        label(store, stub, [0])
    assert {score.balanced_accuracy for score in scores(store).values()} == {0.0}
    coins = []
    for seed in range(12):
        with serving(StubLLM(fires=sea, character="coin", label=f"coin {seed}")) as stub:
            stub.rng.seed(seed)
            store.add_labels("planted", {0: make_label("away", kind="model", author="nobody")})
            label(store, stub, [0])
        coins += [score.balanced_accuracy for score in scores(store).values()]
    assert len(coins) == 24 and sum(coins) / len(coins) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("content", ["refusal", "empty", "null", "broken", "out of range", "words"])
def test_answers_that_cannot_be_read_are_counted_and_wrong(store: Store, content: str) -> None:
    with serving(StubLLM(fires=sea, always=f"detection:{content}")) as stub:
        label(store, stub, [0])
    found = scores(store)["detection"]
    assert (found.unparsed, found.n, found.balanced_accuracy, found.precision) == (14, 14, 0.0, None)
    assert scores(store)["fuzzing"].balanced_accuracy == 1.0


@pytest.mark.parametrize("content", ["refusal", "empty", "null", "broken", "words", "400"])
def test_a_feature_without_a_label_is_said_and_others_go_on(store: Store, content: str) -> None:
    with serving(StubLLM(fires=sea, faults=deque([content]))) as stub:
        job = label(store, stub, [1, 0], concurrency=1)
    assert len(job.progress.problems) == 1 and job.progress.problems[0].startswith("Feature 1: ")
    assert store.labels("planted", [1])[1].kind == "automatic"
    assert scores(store)["detection"].balanced_accuracy == 1.0


def test_faults_that_pass_change_nothing(store: Store) -> None:
    faults = deque(["429", "500", "closes", "", "malformed", "503", "no choices", ""] * 2)
    with serving(StubLLM(fires=sea, faults=faults)) as stub:
        label(store, stub, [0], concurrency=1)
    assert {score.balanced_accuracy for score in scores(store).values()} == {1.0}


def test_nothing_is_lost_when_the_endpoint_dies_and_nothing_asked_twice(store: Store) -> None:
    with serving(StubLLM(fires=sea, dies_after=7)) as stub:
        with pytest.raises(EndpointError, match="does not answer"):
            label(store, stub, [0, 1, 2], concurrency=1)
        asked = stub.requests[:7]
    assert scores(store)["detection"].balanced_accuracy == 1.0
    assert store.labels("planted", [1])[1].kind == "model"
    with serving(StubLLM(fires=sea)) as stub:
        label(store, stub, [0, 1, 2], concurrency=1)
        assert len(stub.requests) == 15 - 6  # the seventh was one of two that make a score
        assert len({json.dumps(request) for request in stub.requests if request in asked}) == 1
        count = len(stub.requests)
        label(store, stub, [0, 1, 2])
        assert len(stub.requests) == count


def test_stopping_keeps_what_was_answered(store: Store) -> None:
    with serving(StubLLM(fires=sea, delay=0.02)) as stub:
        label(store, stub, list(range(12)), stop=lambda: len(stub.requests) > 6)
        n = len(stub.requests)
    assert 6 < n < 40
    assert [own.kind for own in store.labels("planted", range(12)).values()].count("model") >= 1


def test_the_cost_that_is_allowed_is_kept_to(store: Store) -> None:
    prices = Prices(asked=1000.0, answered=10_000.0)  # 0.1 + 0.1 a request
    with serving(StubLLM(fires=sea)) as stub:
        job = label(store, stub, list(range(12)), prices=prices, max_cost=1.0, concurrency=1)
    assert job.progress.stopped_by_cost
    assert job.progress.cost == pytest.approx(1.0)
    assert len(stub.requests) == 5


def test_the_estimate_is_near_what_is_asked(store: Store) -> None:
    with serving(StubLLM(fires=sea, usage=False)) as stub:
        endpoint = Endpoint(base_url=stub.base_url, model="stub-7b")
        job = Labelling(Bench(store, "planted"), Client(endpoint), prices=Prices(asked=1.0, answered=2.0))
        estimate = job.estimate(range(12))
        assert stub.requests == []
        done = label(store, stub, list(range(12)))
        assert (estimate.features, estimate.done) == (12, 0)
        assert estimate.requests == pytest.approx(len(stub.requests), abs=5)
        assert estimate.prompt_tokens == pytest.approx(done.progress.prompt_tokens, rel=0.2)
        assert estimate.cost == pytest.approx((estimate.prompt_tokens + 2 * estimate.answer_tokens) / 1e6)
        again = job.estimate(range(12))
        assert (again.features, again.done, again.requests) == (0, 12, 0)


def test_what_there_are_no_texts_to_test_with_is_not_left_to_do(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(StubLLM(fires=sea)) as stub:
        job = Labelling(Bench(store, "planted"), Client(Endpoint(base_url=stub.base_url, model="stub-7b")))
        with monkeypatch.context() as patch:
            patch.setattr(job_module, "fuzzing_trials", lambda *_, **__: [])
            label(store, stub, [0, 1])
            n_requests = len(stub.requests)
            assert job.unfinished([0, 1]) == [] and job.estimate([0, 1]).requests == 0
        assert job.unfinished([0, 1]) == [0, 1] and job.estimate([0, 1]).requests == 4  # one method, and its baseline
        label(store, stub, [0, 1])
        assert len(stub.requests) == n_requests + 4


def test_a_persons_label_stays_and_is_tested(store: Store) -> None:
    store.add_labels("planted", {0: make_label("the sea, says Ana")})
    with serving(StubLLM(fires=sea)) as stub:
        label(store, stub, [0])
    assert store.labels("planted", [0])[0].text == "the sea, says Ana"
    tested = {(score.kind, score.method): score.text for score in store.scores("planted", [0])}
    assert tested["human", "detection"] == "the sea, says Ana"
    assert tested["model", "fuzzing"] == "words of the sea"


def test_the_key_never_reaches_the_database(store: Store, tmp_path: Path) -> None:
    with serving(StubLLM(fires=sea, key=KEY)) as stub:
        label(store, stub, [0, 1])
    store.close()
    for path in tmp_path.iterdir():
        assert KEY.encode() not in path.read_bytes()
