"""Scores of labels as pages print them: a line each, and the texts of one of them, what it got wrong first."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.examples import TokenView, step
from sae_core.explain.records import LabelScore, Trial
from sae_core.records import FeatureDetail

KINDS = {"human": "a person's label", "model": "a language model's label", "automatic": "the automatic label",
         "pattern": "a pattern"}  # fmt: skip
ORIGINS = {
    "top": "a top example",
    "band": "a weaker example",
    "random": "a random firing",
    "quiet": "a text without a firing",
    "neighbour": "a text in which a near feature fires",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialView:
    """A text that a label was tested on."""

    verdict: str
    is_hit: bool
    origin: str
    tokens: tuple[TokenView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreView:
    """A score in a line. `is_stale`: the label has been changed since."""

    key: str
    score: LabelScore
    who: str
    is_stale: bool
    trials: tuple[TrialView, ...]  # where they are shown
    misses: int


def tested(detail: FeatureDetail, scores: Sequence[LabelScore], *, opened: str | None) -> list[ScoreView]:
    """The scores of a feature's labels; the texts of the one that is `opened`."""
    texts = {label.kind: label.text for label in detail.labels}
    views = []
    for score in scores:
        key = f"{score.kind}-{score.method}"
        trials = trial_views(score, scale=detail.feature.max_activation) if key == opened else []
        views.append(
            ScoreView(
                key=key,
                score=score,
                who=KINDS[score.kind],
                is_stale=bool(score.text) and score.text != texts.get(score.kind),
                trials=tuple(trials),
                misses=sum(not trial.is_hit for trial in score.trials),
            )
        )
    return views


def trial_views(score: LabelScore, *, scale: float) -> list[TrialView]:
    """Misses first; each kind of them together."""
    order = sorted(score.trials, key=lambda trial: (trial.is_hit, trial.answer is not None, not trial.truth))
    return [
        TrialView(
            verdict=_verdict(trial, score.method),
            is_hit=trial.is_hit,
            origin=ORIGINS[trial.origin],
            tokens=tuple(
                TokenView(text, step(value, scale=scale), False, token_id, value, is_chosen=at in trial.marked)
                for at, (text, token_id, value) in enumerate(
                    zip(trial.tokens, trial.token_ids, trial.activations, strict=True)
                )
            ),
        )
        for trial in order
    ]


def _verdict(trial: Trial, method: str) -> str:
    if trial.answer is None:
        return "not readable"
    if method == "fuzzing":
        said, is_so = ("right marks" if trial.answer else "wrong marks"), ("right" if trial.truth else "wrong")
        return said if trial.is_hit else f"said {said}, they are {is_so}"
    if trial.is_hit:
        return "fires, found" if trial.truth else "quiet, left out"
    return "fires, missed" if trial.truth else "quiet, taken for a firing"
