"""From a feature's texts to trials, and from the answers to a score.

Detection   Which of these texts does the feature fire in? Positives are texts with a firing, from the top and from
            weaker bands; negatives have none, and half of them hold a firing of a near or co-active feature.
Fuzzing     Are the marked tokens the ones on which it fires? In true trials its own tokens are marked, in false ones
            as many others of the same text (Juang et al. 2024, arXiv 2410.13928).

Balanced accuracy is the mean of the shares of right answers among true and among false trials: 0.5 is what a coin
gives. An answer that cannot be read is wrong; it stays in the denominator, and is counted.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sae_core.explain.material import Material
from sae_core.explain.records import Trial

LEAST = 3  # true trials, and false ones; with fewer there is no score


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """What the answers to some trials amount to."""

    balanced_accuracy: float
    precision: float | None
    recall: float
    n: int
    unparsed: int


def detection_trials(found: Material, *, positives: int | None = None, negatives: int | None = None) -> list[Trial]:
    """So many of each, or all; positives from all bands, half of the negatives from neighbours. Empty: too few."""
    true = spread(found.test_positives, positives)
    false = list(found.test_negatives[:negatives])
    return _enough(true, false)


def fuzzing_trials(found: Material, *, each: int | None = None, seed: int = 0) -> list[Trial]:
    """The tested texts with marks, every other one with wrong marks. Empty: too few."""
    rng = random.Random(seed)
    true, false = [], []
    for number, trial in enumerate(spread(found.test_positives, None if each is None else 2 * each)):
        active = [at for at, value in enumerate(trial.activations) if value]
        others = [at for at, value in enumerate(trial.activations) if not value and trial.tokens[at].strip()]
        if number % 2 == 0:
            true.append(replace(trial, marked=tuple(active)))
        elif others:
            wrong = sorted(rng.sample(others, min(len(active), len(others))))
            false.append(replace(trial, marked=tuple(wrong), truth=False))
    return _enough(true, false)


def shuffled(trials: Sequence[Trial], *, seed: int = 0) -> list[Trial]:
    """In an order that says nothing."""
    order = list(trials)
    random.Random(seed).shuffle(order)
    return order


def answered(trials: Sequence[Trial], answers: Sequence[bool | None]) -> list[Trial]:
    return [replace(trial, answer=answer) for trial, answer in zip(trials, answers, strict=True)]


def accuracy(trials: Sequence[Trial]) -> Accuracy:
    """Of trials with answers, at least one of them true and one false."""
    true = [trial for trial in trials if trial.truth]
    false = [trial for trial in trials if not trial.truth]
    hits = sum(trial.answer is True for trial in true)
    alarms = sum(trial.answer is True for trial in false)
    rejected = sum(trial.answer is False for trial in false)
    return Accuracy(
        balanced_accuracy=(hits / len(true) + rejected / len(false)) / 2,
        precision=hits / (hits + alarms) if hits + alarms else None,
        recall=hits / len(true),
        n=len(trials),
        unparsed=sum(trial.answer is None for trial in trials),
    )


def correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Pearson's, of pairs of numbers; None where one of the two never changes."""
    n = len(pairs)
    if n < 2:
        return None
    mean_x, mean_y = sum(x for x, _ in pairs) / n, sum(y for _, y in pairs) / n
    xx = sum((x - mean_x) ** 2 for x, _ in pairs)
    yy = sum((y - mean_y) ** 2 for _, y in pairs)
    xy = sum((x - mean_x) * (y - mean_y) for x, y in pairs)
    return xy / math.sqrt(xx * yy) if xx > 0 and yy > 0 else None


def spread(trials: Sequence[Trial], n: int | None) -> list[Trial]:
    """n of them in turns from the top, the bands and the random firings."""
    if n is None or n >= len(trials):
        return list(trials)
    queues = [[t for t in trials if t.origin == origin] for origin in ("top", "band", "random")]
    # Bands are ordered from the weakest: every other one from the far end, so that few already cover all.
    queues[1] = [queues[1][i // 2 if i % 2 else -1 - i // 2] for i in range(len(queues[1]))]
    chosen: list[Trial] = []
    while len(chosen) < n and any(queues):
        for queue in queues:
            if queue and len(chosen) < n:
                chosen.append(queue.pop(0))
    return chosen


def _enough(true: list[Trial], false: list[Trial]) -> list[Trial]:
    return [*true, *false] if len(true) >= LEAST and len(false) >= LEAST else []
