"""One index laid out for labelling: each feature's texts, the patterns, and whose label is the baseline."""

import random
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property

from sae_core.explain.material import Material, Sample, material
from sae_core.explain.patterns import Patterns, Predicts, SampleWords, detects, fitted, fuzzes, reading
from sae_core.explain.records import LabelScore, Trial
from sae_core.explain.scoring import accuracy, answered, correlation, detection_trials, fuzzing_trials
from sae_core.labels import AUTHOR
from sae_core.records import FeatureDetail, Label
from sae_core.store import Store

BASELINES = 64  # features drawn from the index, with whose labels others are compared
VERSION = "patterns-1"  # goes up when the same texts give other patterns or scores


class Bench:
    """The store's answers about one index, kept while its features are labelled."""

    def __init__(self, store: Store, slug: str, *, corpus: str | None = None, seed: int = 0) -> None:
        self.store, self.slug, self.seed = store, slug, seed
        self.index = store.index(slug, corpus=corpus)
        self.corpus = self.index.corpus.name
        self._has_bos = self.index.corpus.prepend_bos
        self._fitted: dict[int, Patterns] = {}

    @cached_property
    def alive(self) -> list[int]:
        """The features that are active on the corpus, the densest first."""
        points = self.store.feature_points(self.slug, corpus=self.corpus)
        return [p.feature_index for p in sorted(points, key=lambda p: (-p.density, p.feature_index)) if p.density > 0]

    @cached_property
    def sample(self) -> Sample | None:
        found = self.store.sample(self.slug, corpus=self.corpus)
        if found is None:
            return None
        return Sample(*found, self.store.vocabulary(self.slug), has_bos=self._has_bos)

    @cached_property
    def _words(self) -> SampleWords | None:
        return None if self.sample is None else SampleWords(self.sample)

    def feature(self, feature_index: int) -> tuple[FeatureDetail, Material]:
        detail = self.store.feature(self.slug, feature_index, corpus=self.corpus)
        return detail, material(detail, self.sample, has_bos=self._has_bos, seed=self.seed)

    @cached_property
    def _others(self) -> list[int]:
        return random.Random(self.seed).sample(self.alive, min(BASELINES, len(self.alive)))

    def another(self, feature_index: int) -> int | None:
        """A feature whose label is the baseline of this one's: one of `BASELINES`, the same each time."""
        others = [number for number in self._others if number != feature_index]
        return random.Random(f"{self.seed} {feature_index}").choice(others) if others else None

    def patterns(self, feature_index: int, found: Material | None = None) -> Patterns:
        if feature_index not in self._fitted:
            if found is None:
                _, found = self.feature(feature_index)
            self._fitted[feature_index] = fitted(found, self._words)
        return self._fitted[feature_index]


def pattern_scores(bench: Bench, feature_index: int) -> tuple[Label | None, list[LabelScore]]:
    """The pattern that predicts a feature as a label, if there is one, and the scores of that and of its automatic
    label. No score where there are too few texts to test with."""
    detail, found = bench.feature(feature_index)
    patterns, other = bench.patterns(feature_index, found), bench.another(feature_index)
    scores = _judged(
        feature_index, "pattern", patterns.text, found, patterns.predictions,
        baseline=None if other is None else bench.patterns(other).predictions,
    )  # fmt: skip
    automatic = next((label for label in detail.labels if label.kind == "automatic"), None)
    if automatic is not None and (predicts := reading(automatic.text)) is not None:
        baseline = None if other is None else _automatic_reading(bench, other)
        scores += _judged(feature_index, "automatic", automatic.text, found, predicts, baseline=baseline)
    if not patterns.patterns:
        return None, scores
    score = next((score.balanced_accuracy for score in scores if score.kind == "pattern"), None)
    return _label(patterns.text, score), scores


def _label(text: str, score: float | None) -> Label:
    return Label(
        text=text, kind="pattern", author=AUTHOR, score=score, created_at=datetime.now(UTC), prompt_version=VERSION
    )


def _automatic_reading(bench: Bench, feature_index: int) -> Predicts | None:
    labels = bench.store.labels_of_feature(bench.slug, feature_index)
    return next((reading(label.text) for label in labels if label.kind == "automatic"), None)


def _judged(
    feature_index: int, kind: str, text: str, found: Material, predicts: Predicts, *, baseline: Predicts | None
) -> list[LabelScore]:
    """Detection and fuzzing by what is predicted, where there are texts enough."""
    scores = []
    for method, trials, judge in (
        ("detection", detection_trials(found), detects),
        ("fuzzing", fuzzing_trials(found, seed=feature_index), fuzzes),
    ):
        if not trials:
            continue
        pairs = [(x, y) for trial in trials for x, y in zip(predicts(trial), trial.activations, strict=True)]
        score = label_score(
            answered(trials, judge(predicts, trials)), feature_index=feature_index, kind=kind, method=method,
            text=text, scorer=AUTHOR, prompt_version=VERSION,
            baseline=None if baseline is None else answered(trials, judge(baseline, trials)),
        )  # fmt: skip
        scores.append(replace(score, correlation=correlation(pairs)) if method == "detection" else score)
    return scores


def label_score(
    trials: list[Trial],
    *,
    feature_index: int,
    kind: str,
    method: str,
    text: str,
    scorer: str,
    prompt_version: str | None,
    baseline: list[Trial] | None,
) -> LabelScore:
    """The score that answered trials give. `baseline`: the same trials as another feature's label answered them."""
    found = accuracy(trials)
    return LabelScore(
        feature_index=feature_index,
        kind=kind,
        method=method,
        text=text,
        scorer=scorer,
        prompt_version=prompt_version,
        balanced_accuracy=found.balanced_accuracy,
        precision=found.precision,
        recall=found.recall,
        n=found.n,
        unparsed=found.unparsed,
        baseline=None if baseline is None else accuracy(baseline).balanced_accuracy,
        correlation=None,
        trials=tuple(trials),
        created_at=datetime.now(UTC),
    )
