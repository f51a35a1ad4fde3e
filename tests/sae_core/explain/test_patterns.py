"""Texts that a label is tested on, patterns that are fitted to them, and the scores that answers give."""

import random
import statistics
from dataclasses import replace

import pytest

from sae_core.explain.bench import Bench, pattern_scores
from sae_core.explain.material import AFTER as TOKENS_AFTER
from sae_core.explain.patterns import Patterns, SampleWords, detects, ending_at, fitted, reading
from sae_core.explain.records import Trial
from sae_core.explain.scoring import accuracy, answered, correlation, detection_trials, fuzzing_trials, shuffled
from sae_core.store import Store
from tests.sae_core.explain.planted import AFTER, PLANTED, SIZE, firing, make_texts, planted_store


def truth(feature_index: int, trial: Trial) -> tuple[float, ...]:
    """The activations on a trial's text by the rule that planted them."""
    words = make_texts()[trial.context_id]
    return tuple(firing(feature_index, words, trial.first + at - 1) for at in range(len(trial.tokens)))


@pytest.mark.parametrize("feature_index", range(8))
def test_trials_say_of_every_text_what_is_so(bench: Bench, feature_index: int) -> None:
    _, found = bench.feature(feature_index)
    trials = detection_trials(found)
    assert {trial.origin for trial in trials} >= {"top", "band", "quiet"}
    for trial in trials:
        assert trial.activations == pytest.approx(truth(feature_index, trial), abs=2e-3)
        assert trial.truth == any(truth(feature_index, trial))
        assert trial.first >= 1 and len(trial.tokens) >= TOKENS_AFTER
    explained = {trial.token_ids for trial in found.positives}
    assert not explained & {trial.token_ids for trial in trials}
    assert not {passage.context_id for passage in found.passages} & {trial.context_id for trial in trials}


def test_hard_negatives_hold_a_firing_of_a_near_feature(bench: Bench) -> None:
    detail, found = bench.feature(0)
    near = {n.feature_index for n in detail.feature.nearest} | {c.feature_index for c in detail.feature.coactive}
    hard = [trial for trial in found.test_negatives if trial.origin == "neighbour"]
    assert hard
    for trial in hard:
        assert any(any(truth(other, trial)) for other in near)


def test_without_a_sample_negatives_come_from_the_features_own_contexts(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    store = planted_store(f"sqlite:///{tmp_path_factory.mktemp('bare')}/saescope.db", with_sample=False)
    _, found = Bench(store, "planted").feature(5)
    store.close()
    assert found.test_negatives
    assert all(trial.origin == "quiet" and not any(truth(5, trial)) for trial in found.test_negatives)


@pytest.mark.parametrize("feature_index", range(len(PLANTED)))
def test_a_word_is_found_and_predicts_all(bench: Bench, feature_index: int) -> None:
    label, scores = pattern_scores(bench, feature_index)
    assert label is not None
    assert (label.text.split(",")[0], label.kind, label.score) == (f"“{PLANTED[feature_index]}”", "pattern", 1.0)
    by_kind = {(score.kind, score.method): score for score in scores}
    detection = by_kind["pattern", "detection"]
    assert (detection.balanced_accuracy, detection.precision, detection.recall) == (1.0, 1.0, 1.0)
    assert by_kind["pattern", "fuzzing"].balanced_accuracy == 1.0
    assert detection.correlation is not None and detection.correlation > 0.6
    assert detection.baseline is not None and detection.baseline < 0.8


def test_a_wildcard_stands_for_any_word(bench: Bench) -> None:
    label, scores = pattern_scores(bench, len(PLANTED))
    assert label is not None and label.text.split(",")[0] == f"“{AFTER} ∗”"
    assert scores[0].balanced_accuracy == 1.0


def test_noise_scores_like_noise(bench: Bench) -> None:
    """Features without a rule: whatever was fitted to them does not carry over to other texts."""
    found = [pattern_scores(bench, number)[1] for number in range(5, 12)]
    scores = [
        score.balanced_accuracy
        for own in found
        for score in own
        if (score.kind, score.method) == ("pattern", "detection")
    ]
    assert scores and sum(scores) / len(scores) < 0.6


def test_fitting_counts_like_a_slow_search(bench: Bench) -> None:
    """Every pattern's counts against a walk over all explaining texts."""
    assert bench.sample is not None
    words = SampleWords(bench.sample)
    for number in (0, 4, 6):
        _, found = bench.feature(number)
        texts = [(passage.tokens, passage.activations) for passage in found.passages]
        for n, firings in found.sampled.items():
            texts.append((bench.sample.tokens[n], tuple(firings.get(p, 0.0) for p in range(SIZE))))
        for pattern in fitted(found, words).patterns:
            matched = [
                acts[at]
                for tokens, acts in texts
                for at in range(1, len(tokens))
                if pattern.words in ending_at([token.strip().casefold() for token in tokens], at, first=1)
            ]
            assert (pattern.matches, pattern.firings) == (len(matched), sum(value > 0 for value in matched))
            assert pattern.activation == pytest.approx(sum(matched) / len(matched))


def make_trial(*tokens: str, first: int = 1, truth: bool = True, activations: tuple[float, ...] = ()) -> Trial:
    return Trial(
        context_id=0, first=first, tokens=tokens, token_ids=tuple(range(len(tokens))), origin="top", truth=truth,
        activations=activations or (0.0,) * len(tokens),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("label", "predicted"),
    [
        ("“of”", [0, 1, 0, 0, 1]),
        ("partly “of”, “Sea”", [0, 1, 0, 1, 1]),
        ("before “the”", [0, 1, 0, 0, 0]),
        ("after “Of”", [0, 0, 1, 0, 0]),
        ("promotes “the”, “x”", [0, 1, 0, 0, 0]),
        ("positions 4–5", [0, 1, 1, 0, 0]),
        ("position 3", [1, 0, 0, 0, 0]),
        ("dense", [1, 1, 1, 1, 1]),
        ("“·”", [0, 0, 0, 0, 0]),
    ],
)
def test_an_automatic_label_is_read_as_what_it_says(label: str, predicted: list[int]) -> None:
    predicts = reading(label)
    assert predicts is not None
    assert predicts(make_trial("x", " of", " the", "sea", "OF", first=3)) == predicted


def test_a_label_in_plain_words_predicts_nothing() -> None:
    assert reading("words about the sea") is None
    assert reading("“a”, and more") is None
    blanks = reading("“↵··”")
    assert blanks is not None and blanks(make_trial("\n  ", "↵··")) == [1.0, 0.0]


def test_no_pattern_never_fires() -> None:
    trials = [make_trial("a", truth=True)] * 3 + [make_trial("b", truth=False)] * 3
    assert accuracy(answered(trials, detects(Patterns(()).predictions, trials))).balanced_accuracy == 0.5


def test_accuracy_counts_what_was_not_answered_as_wrong() -> None:
    trials = [make_trial("a", truth=True)] * 4 + [make_trial("b", truth=False)] * 8
    perfect = accuracy(answered(trials, [trial.truth for trial in trials]))
    assert (perfect.balanced_accuracy, perfect.precision, perfect.recall, perfect.n, perfect.unparsed) == (
        1,
        1,
        1,
        12,
        0,
    )
    liar = accuracy(answered(trials, [not trial.truth for trial in trials]))
    assert (liar.balanced_accuracy, liar.precision, liar.recall) == (0, 0, 0)
    silent = accuracy(answered(trials, [None] * 12))
    assert (silent.balanced_accuracy, silent.precision, silent.n, silent.unparsed) == (0, None, 12, 12)
    half = accuracy(answered(trials, [True, None, True, False] + [False, None] * 4))
    assert (half.balanced_accuracy, half.recall, half.unparsed) == (0.5, 0.5, 5)
    assert accuracy(answered(trials, [True] * 12)).balanced_accuracy == 0.5


def test_a_coin_scores_a_half() -> None:
    rng = random.Random(0)
    trials = [make_trial("a", truth=True)] * 4000 + [make_trial("b", truth=False)] * 8000
    assert accuracy(answered(trials, [rng.random() < 0.3 for _ in trials])).balanced_accuracy == pytest.approx(
        0.5, abs=0.02
    )


def test_few_trials_cover_top_bands_and_random_firings(bench: Bench) -> None:
    _, found = bench.feature(0)
    trials = detection_trials(found, positives=6, negatives=8)
    assert [sum(t.truth for t in trials), sum(not t.truth for t in trials)] == [6, 8]
    assert {trial.origin for trial in trials} >= {"top", "band", "neighbour", "quiet"}
    order = shuffled(trials, seed=1)
    assert order != trials and sorted(map(id, order)) == sorted(map(id, trials))


def test_wrong_marks_stand_where_nothing_fires(bench: Bench) -> None:
    _, found = bench.feature(0)
    trials = fuzzing_trials(found, seed=1)
    assert {trial.truth for trial in trials} == {True, False}
    for trial in trials:
        assert trial.marked
        assert all((trial.activations[at] > 0) == trial.truth for at in trial.marked)


def test_correlation() -> None:
    rng = random.Random(0)
    pairs = [(x, 2 * x + rng.random()) for x in (rng.random() for _ in range(200))]
    assert correlation(pairs) == pytest.approx(statistics.correlation(*map(list, zip(*pairs, strict=True))))
    assert correlation([(1, 2), (1, 3)]) is None


def test_a_feature_with_too_few_texts_has_no_score(planted: Store) -> None:
    bench = Bench(planted, "planted")
    _, found = bench.feature(0)
    assert detection_trials(replace(found, test_positives=found.test_positives[:2])) == []
    assert detection_trials(replace(found, test_negatives=())) == []
