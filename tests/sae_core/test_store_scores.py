"""Labels of all kinds, what people's labels replaced, scores with their trials, and the sample of an index."""

from dataclasses import replace
from datetime import timedelta

import pytest

from sae_core.explain.bench import Bench, pattern_scores
from sae_core.explain.records import LabelScore
from sae_core.store import Store
from tests.factories import NOW, make_label, make_sae, make_vocabulary
from tests.sae_core.explain.planted import N_FEATURES, SIZE, planted_records


@pytest.fixture
def filled(store: Store) -> Store:
    store.add_sae(make_sae("planted", d_sae=N_FEATURES), make_vocabulary())
    store.add_index(planted_records())
    return store


def found(store: Store, words: str) -> list[int]:
    return sorted(row.feature.feature_index for row in store.features("planted", q=words, within="label").items)


def test_a_person_wins_over_a_model_over_the_index_over_a_pattern(filled: Store) -> None:
    for kind in ("pattern", "automatic", "model", "human"):
        label = make_label(f"by {kind}", kind=kind)
        if kind == "model":
            label = replace(label, certainty=0.75, prompt_version="1.abc")
        filled.add_labels("planted", {1: label})
        assert filled.labels("planted", [1]) == {1: label}
        assert found(filled, kind) == [1]
        assert filled.feature("planted", 1).labels[0] == label
    assert [label.kind for label in filled.labels_of_feature("planted", 1)] == [
        "human",
        "model",
        "automatic",
        "pattern",
    ]
    assert found(filled, "model") == []
    filled.delete_label("planted", 1)
    assert found(filled, "model") == [1]


def test_what_a_person_replaces_is_kept(filled: Store) -> None:
    filled.add_labels("planted", {1: make_label("guess", kind="automatic", author="describer")})
    for n, text in enumerate(("first", "second", "second")):
        filled.add_labels("planted", {1: replace(make_label(text), created_at=NOW + timedelta(hours=n))})
    filled.add_labels("planted", {1: make_label("model's", kind="model"), 2: make_label("only")})
    filled.delete_label("planted", 1)
    filled.delete_label("planted", 1)
    history = filled.label_history("planted", 1)
    assert [(old.text, old.kind) for old in history] == [
        ("second", "human"),
        ("first", "human"),
        ("guess", "automatic"),
    ]
    assert (history[1].created_at, history[1].replaced_at) == (NOW, NOW + timedelta(hours=1))
    assert history[2].author == "describer"
    assert filled.label_history("planted", 2) == ()


def scored(store: Store) -> list[LabelScore]:
    _, scores = pattern_scores(Bench(store, "planted"), 0)
    return scores


def test_scores_come_back_as_they_were_with_every_trial(filled: Store) -> None:
    scores = scored(filled)
    answers = [replace(trial, answer=None if n == 1 else n % 2 == 0) for n, trial in enumerate(scores[0].trials)]
    scores[0] = replace(scores[0], trials=tuple(answers), precision=None, baseline=None)
    filled.add_scores("planted", scores)
    back = filled.scores("planted", [0])
    assert len(back) == len(scores) >= 2
    for score, kept in zip(
        sorted(scores, key=lambda s: (s.kind, s.method)), sorted(back, key=lambda s: (s.kind, s.method)), strict=True
    ):
        assert replace(kept, trials=()) == replace(score, trials=())
        for trial, other in zip(score.trials, kept.trials, strict=True):
            assert other.activations == pytest.approx(trial.activations, abs=1e-3)
            assert replace(other, activations=()) == replace(trial, activations=())
    filled.add_scores("planted", [replace(scores[0], text="another", balanced_accuracy=0.25)])
    again = next(s for s in filled.scores("planted", [0]) if (s.kind, s.method) == ("pattern", "detection"))
    assert (again.text, again.balanced_accuracy) == ("another", 0.25)
    assert filled.scored_texts("planted")[0, "pattern", "detection"][0] == "another"
    rows = filled.score_rows("planted", kind="pattern", method="detection")
    assert [(row.feature_index, row.balanced_accuracy) for row in rows] == [(0, 0.25)]
    assert filled.score_rows("planted", kind="model", method="detection") == []
    assert filled.scores("planted", [1]) == []


def test_scores_and_sample_go_with_their_index(filled: Store) -> None:
    filled.add_scores("planted", scored(filled))
    filled.add_index(planted_records(with_sample=False))
    assert filled.scores("planted", [0]) == [] and filled.sample("planted") is None
    filled.delete_sae("planted")


def test_the_sample_holds_every_firing_of_its_contexts(filled: Store) -> None:
    bench = Bench(filled, "planted")
    assert bench.sample is not None
    assert {len(ids) for ids in bench.sample.token_ids} == {SIZE}
    detail = filled.feature("planted", 3)
    known = {example.context_id: example.activations for example in detail.examples}
    shared = 0
    for number, context_id in enumerate(bench.sample.context_ids):
        if context_id in known:
            firings = bench.sample.firings(3).get(number, {})
            assert [firings.get(p, 0.0) for p in range(SIZE)] == pytest.approx(known[context_id], abs=1e-3)
            shared += 1
    assert shared
