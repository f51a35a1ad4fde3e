"""Labels that a program makes and judges by: which tokens predict a feature's activation, and how strongly.

A pattern is a run of up to four words, the last of which stands at the firing; any but the first may be a wildcard.
The model is causal, so that what follows a token cannot have made it active. After N2G (Foote et al. 2023,
arXiv 2305.19911), with patterns found by counting, which needs neither the language model nor another one:

1. Every firing of the explaining texts offers the patterns that end at it.
2. Each is counted over all explaining texts: on how many tokens it matches, how many of them fire, their activations.
3. Of those that fire more often than not, the one that accounts for the most activation not yet accounted for is taken,
   again and again, up to eight.
4. A token's predicted activation is the mean that was counted for the most specific of the patterns that match there;
   0 where none does.

Words are compared without blanks around them and without case, as in automatic labels. Those can predict too: `reading`
turns one into a prediction of 1 wherever what it says is so.

Standard library only.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from sae_core.explain.material import Material, Sample
from sae_core.explain.records import Trial

MOST_PATTERNS = 8
SHOWN_PATTERNS = 4
LEAST_PRECISION = 0.5  # of a pattern's matches, the share that fire

Words = tuple[str | None, ...]
Predicts = Callable[[Trial], list[float]]  # an activation for each token of a text


class Pattern(NamedTuple):
    """Words that end at a firing, None for any, and what was counted of it."""

    words: Words
    activation: float  # mean over all tokens that match
    matches: int
    firings: int

    @property
    def text(self) -> str:
        shown = " ".join("∗" if word is None else _visible(word) for word in self.words)
        return f"“{shown}”"


@dataclass(frozen=True, slots=True)
class Patterns:
    """What was fitted to one feature, the pattern that accounts for the most activation first."""

    patterns: tuple[Pattern, ...]

    @property
    def text(self) -> str:
        """As a label."""
        return ", ".join(pattern.text for pattern in self.patterns[:SHOWN_PATTERNS])

    def predictions(self, trial: Trial) -> list[float]:
        known = {pattern.words: pattern.activation for pattern in self.patterns}
        return [
            max(
                ((_specificity(words), known[words]) for words in ending_at(keys, at) if words in known),
                default=(0, 0.0),
            )[1]
            for keys in [_keys(trial.tokens)]
            for at in range(len(keys))
        ]


class SampleWords:
    """Where each pattern matches in the half of a sample that explains: made once for all features of an index."""

    def __init__(self, sample: Sample) -> None:
        self.first = int(sample.has_bos)
        self.keys = {number: _keys(tokens) for number, tokens in enumerate(sample.tokens) if number % 2 == 0}
        self._numbers: dict[Words, Counter[int]] = defaultdict(Counter)  # matches by number of the context
        for number, keys in self.keys.items():
            for at in range(self.first, len(keys)):
                for words in ending_at(keys, at, first=self.first):
                    self._numbers[words][number] += 1

    def matches(self, words: Words, numbers: Collection[int]) -> int:
        """On how many tokens of these contexts."""
        return sum(n for number, n in self._numbers.get(words, {}).items() if number in numbers)


def fitted(found: Material, sample: SampleWords | None) -> Patterns:
    """The patterns of a feature, from its explaining texts; none if nothing predicts it."""
    offered: dict[Words, list[tuple[int, int]]] = defaultdict(list)  # the firings that each pattern ends at
    activations: dict[tuple[int, int], float] = {}

    def offer(number: int, keys: Sequence[str], at: int, activation: float, *, first: int) -> None:
        activations[number, at] = activation
        for words in ending_at(keys, at, first=first):
            offered[words].append((number, at))

    own = [(-1 - n, _keys(passage.tokens), passage) for n, passage in enumerate(found.passages)]
    for number, keys, passage in own:
        for at in range(passage.has_bos, len(keys)):
            if passage.activations[at]:
                offer(number, keys, at, passage.activations[at], first=passage.has_bos)
    if sample is not None:
        for number, firings in found.sampled.items():
            for at, activation in firings.items():
                offer(number, sample.keys[number], at, activation, first=sample.first)
    matches: Counter[Words] = Counter()
    for _, keys, passage in own:
        for at in range(passage.has_bos, len(keys)):
            matches.update(words for words in ending_at(keys, at, first=passage.has_bos) if words in offered)
    if sample is not None:
        for words in offered:
            matches[words] += sample.matches(words, found.sampled)
    return Patterns(tuple(_chosen(offered, matches, activations)))


def _chosen(
    offered: dict[Words, list[tuple[int, int]]], matches: Counter[Words], activations: dict[tuple[int, int], float]
) -> list[Pattern]:
    """Greedily, by the activation that each adds; of equals the shortest."""
    sums = {words: sum(activations[place] for place in places) for words, places in offered.items()}
    left = {
        words: places
        for words, places in offered.items()
        if len(places) >= LEAST_PRECISION * matches[words] and (len(places) > 1 or len(activations) < 4)
    }
    chosen: list[Pattern] = []
    uncovered = dict(activations)
    while left and len(chosen) < MOST_PATTERNS:
        gains = {
            words: sum(uncovered.get(place, 0.0) for place in places)
            - (matches[words] - len(places)) * sums[words] / matches[words]
            for words, places in left.items()
        }
        best = max(left, key=lambda words: (gains[words], -len(words), -_specificity(words)))
        if gains[best] <= 0:
            break
        places = left[best]
        chosen.append(Pattern(best, sums[best] / matches[best], matches[best], len(places)))
        for place in places:
            uncovered.pop(place, None)
        left = {words: own for words, own in left.items() if gains[words] > 0 and words != best}
    return chosen


def ending_at(keys: Sequence[str], at: int, *, first: int = 0) -> list[Words]:
    """All patterns that match at a token, reaching back no further than `first`: a run of up to four words, and the
    same with wildcards in place of all but the first, or of all but the first and the last."""
    d = keys[at]
    found: list[Words] = [(d,)]
    if at - first >= 1:
        c = keys[at - 1]
        found += ((c, d), (c, None))
    if at - first >= 2:
        b = keys[at - 2]
        found += ((b, c, d), (b, None, d), (b, c, None), (b, None, None))
    if at - first >= 3:
        a = keys[at - 3]
        found += ((a, b, c, d), (a, None, None, d))
    return found


def reading(label: str) -> Predicts | None:
    """An automatic label as a prediction: 1 where what it says is so, else 0. None where it says nothing of the text.

    “promotes …” is read as firing before one of the promoted tokens.
    """
    if label == "dense":
        return lambda trial: [1.0] * len(trial.tokens)
    if match := re.fullmatch(r"positions? (\d+)(?:–(\d+))?", label):
        first, last = int(match[1]), int(match[2] or match[1])
        return lambda trial: [float(first <= trial.first + at <= last) for at in range(len(trial.tokens))]
    match = re.fullmatch(r"(before |after |partly |promotes )?(“.+”)", label, re.DOTALL)
    if match is None:
        return None
    words = {_invisible(word) for word in match[2][1:-1].split("”, “")}
    step = {"before ": 1, "promotes ": 1, "after ": -1}.get(match[1] or "", 0)

    def predictions(trial: Trial) -> list[float]:
        keys = _keys(trial.tokens)
        return [float(0 <= at + step < len(keys) and keys[at + step] in words) for at in range(len(keys))]

    return predictions


def detects(predicts: Predicts, trials: Sequence[Trial]) -> list[bool | None]:
    """Whether anything is predicted in each text."""
    return [any(predicts(trial)) for trial in trials]


def fuzzes(predicts: Predicts, trials: Sequence[Trial]) -> list[bool | None]:
    """Whether an activation is predicted at most of the marked tokens of each text."""
    answers: list[bool | None] = []
    for trial in trials:
        predicted = predicts(trial)
        answers.append(2 * sum(predicted[at] > 0 for at in trial.marked) >= len(trial.marked))
    return answers


def _specificity(words: Words) -> int:
    return sum(word is not None for word in words)


def _keys(tokens: Sequence[str]) -> list[str]:
    return [_key(token) for token in tokens]


@lru_cache(maxsize=1 << 16)
def _key(token: str) -> str:
    return token.strip().casefold() or token


_SIGNS = str.maketrans({"\n": "↵", "\t": "⇥", "\r": "␍", " ": "·"})  # as in `labels`
_CHARACTERS = str.maketrans({"↵": "\n", "⇥": "\t", "␍": "\r", "·": " "})


def _visible(word: str) -> str:
    return word.translate(_SIGNS)


def _invisible(word: str) -> str:
    blank = word.translate(_CHARACTERS)
    return _key(word if blank.strip() else blank)
