"""What a feature is explained by and tested with: windows of text, of which it is known on which tokens it is active.

1. The feature's examples, of all bands, are dealt out by context: every other context explains, the others test. No
   text stands on both sides.
2. A positive window is cut around an example's peak. The activations of an example's whole context are known, so that
   every firing in it counts.
3. A negative window holds no firing. It comes from the sample of contexts on which all activations are known
   (`sample`): where a near or co-active feature fires and this one does not (`neighbour`), or from anywhere (`quiet`).
   Half of the sample explains, the other half tests. Without a sample (an older index) it comes from the tested
   examples' own contexts, far from their firings.

Standard library only, so that the web app can use it.
"""

import random
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from sae_core.explain.records import PackedSample, Trial
from sae_core.records import RANDOM_BAND, TOP_BAND, Example, FeatureDetail, Vocabulary
from sae_core.tokens_text import display_strings

BEFORE, AFTER = 16, 7  # tokens around a window's centre
NEGATIVES = 24  # at most, of each origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A whole context, and one feature's activations on it, 0 where it is inactive."""

    context_id: int
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    has_bos: bool

    def window(self, centre: int, *, origin: str) -> Trial:
        """The text around a token as a question whether the feature fires in it."""
        first = max(1 if self.has_bos else 0, centre - BEFORE)
        last = min(len(self.tokens), centre + AFTER + 1)
        activations = self.activations[first:last]
        return Trial(
            context_id=self.context_id,
            first=first,
            tokens=self.tokens[first:last],
            token_ids=self.token_ids[first:last],
            activations=activations,
            origin=origin,
            truth=any(activations),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """One feature's texts. The first three are to be explained by, the rest is to be tested with."""

    passages: tuple[Passage, ...]  # the whole contexts of its examples
    sampled: dict[int, dict[int, float]]  # of half the sample: its activations by number of the context and position
    positives: tuple[Trial, ...]
    test_positives: tuple[Trial, ...]  # the strongest first
    test_negatives: tuple[Trial, ...]  # neighbours' and quiet ones in turn


class Sample:
    """The contexts of a `PackedSample`, ready to be asked for a feature."""

    def __init__(
        self, packed: PackedSample, token_ids: Mapping[int, tuple[int, ...]], vocabulary: Vocabulary, *, has_bos: bool
    ) -> None:
        self._packed, self._starts = packed, memoryview(packed.starts).cast("I")
        self._places, self.has_bos = memoryview(packed.places).cast("I"), has_bos
        self.context_ids = tuple(memoryview(packed.context_ids).cast("I"))
        self.token_ids = [token_ids[context_id] for context_id in self.context_ids]
        self._vocabulary = vocabulary

    @cached_property
    def tokens(self) -> list[tuple[str, ...]]:
        known = self._vocabulary.tokens
        return [
            tuple(display_strings([known[i] if i < len(known) else b"[%d]" % i for i in ids])) for ids in self.token_ids
        ]

    def firings(self, feature_index: int) -> dict[int, dict[int, float]]:
        """The feature's activations by number of the context and position."""
        start, end = self._starts[feature_index : feature_index + 2]
        values = struct.unpack_from(f"<{end - start}e", self._packed.activations, 2 * start)
        found: dict[int, dict[int, float]] = {}
        for place, value in zip(self._places[start:end], values, strict=True):
            found.setdefault(place >> 16, {})[place & 0xFFFF] = value
        return found

    def passage(self, number: int, firings: Mapping[int, float]) -> Passage:
        ids = self.token_ids[number]
        return Passage(
            context_id=self.context_ids[number],
            token_ids=ids,
            tokens=self.tokens[number],
            activations=tuple(firings.get(position, 0.0) for position in range(len(ids))),
            has_bos=self.has_bos,
        )


def material(detail: FeatureDetail, sample: Sample | None, *, has_bos: bool, seed: int = 0) -> Material:
    """The texts of one feature; the same seed deals them out the same way."""
    feature_index = detail.feature.feature_index
    rng = random.Random(f"{seed} {feature_index}")
    explaining, testing = _dealt(detail.examples)
    own = [_passage(example, has_bos=has_bos) for example in _one_a_context(explaining)]
    tested = [_passage(example, has_bos=has_bos) for example in _one_a_context(testing)]
    positives = _positives(explaining, has_bos=has_bos)
    seen = {trial.token_ids for trial in positives}
    test_positives = [t for t in _positives(testing, has_bos=has_bos) if t.token_ids not in seen]
    if sample is None:
        quiet, neighbours, sampled = _far_from_firings(tested, rng), [], {}
    else:
        used = {example.context_id for example in detail.examples}
        firings = sample.firings(feature_index)
        numbers = [n for n, context_id in enumerate(sample.context_ids) if context_id not in used]
        sampled = {n: firings.get(n, {}) for n in numbers if n % 2 == 0}
        test_numbers = [n for n in numbers if n % 2]
        quiet = _quiet([sample.passage(n, firings.get(n, {})) for n in test_numbers], rng)
        near = [n.feature_index for n in detail.feature.nearest] + [c.feature_index for c in detail.feature.coactive]
        neighbours = _neighbours(sample, near, set(test_numbers), firings, rng)
    negatives = [t for pair in _in_turn(neighbours[:NEGATIVES], quiet[:NEGATIVES]) for t in pair]
    return Material(
        passages=tuple(own),
        sampled=sampled,
        positives=tuple(positives),
        test_positives=tuple(test_positives),
        test_negatives=tuple(_distinct(t for t in negatives if t.token_ids not in seen)),
    )


def _dealt(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Every other context of each band on either side; a context stays on the side that it came to first."""
    sides: dict[int, int] = {}
    dealt: tuple[list[Example], list[Example]] = ([], [])
    counts: dict[int, int] = {}
    for example in examples:
        if example.context_id not in sides:
            sides[example.context_id] = counts.get(example.band, 0) % 2
            counts[example.band] = counts.get(example.band, 0) + 1
        dealt[sides[example.context_id]].append(example)
    return dealt


def _one_a_context(examples: Sequence[Example]) -> list[Example]:
    return list({example.context_id: example for example in examples}.values())


def _passage(example: Example, *, has_bos: bool) -> Passage:
    return Passage(
        context_id=example.context_id,
        token_ids=example.token_ids,
        tokens=example.tokens,
        activations=example.activations,
        has_bos=has_bos,
    )


def _positives(examples: Sequence[Example], *, has_bos: bool) -> list[Trial]:
    """A window for each example, each text once."""
    windows = []
    for example in examples:
        origin = "top" if example.band == TOP_BAND else "band" if example.band < RANDOM_BAND else "random"
        window = _passage(example, has_bos=has_bos).window(example.position, origin=origin)
        if window.truth:
            windows.append(window)
    return _distinct(windows)


def _quiet(passages: Sequence[Passage], rng: random.Random) -> list[Trial]:
    """Windows without a firing, one a context, in any order."""
    windows = [
        passage.window(rng.randrange(min(BEFORE, len(passage.tokens) - 1), len(passage.tokens)), origin="quiet")
        for passage in passages
    ]
    windows = [window for window in windows if not window.truth]
    rng.shuffle(windows)
    return windows


def _far_from_firings(passages: Sequence[Passage], rng: random.Random) -> list[Trial]:
    """Of the tested examples' own contexts, a window each in which nothing fires."""
    windows = []
    for passage in passages:
        centres = list(range(0, len(passage.tokens), AFTER))
        rng.shuffle(centres)
        found = (passage.window(centre, origin="quiet") for centre in centres)
        windows += [window for window in found if not window.truth and len(window.tokens) > AFTER][:1]
    return windows


def _neighbours(
    sample: Sample, near: Sequence[int], numbers: set[int], own: Mapping[int, Mapping[int, float]], rng: random.Random
) -> list[Trial]:
    """Windows of these contexts around firings of near features in which the feature itself does not fire."""
    windows: list[Trial] = []
    for other in dict.fromkeys(near):
        places = [(n, p) for n, firings in sample.firings(other).items() if n in numbers for p in firings]
        rng.shuffle(places)
        found = (sample.passage(n, own.get(n, {})).window(p, origin="neighbour") for n, p in places[:6])
        windows += [window for window in found if not window.truth][:2]
    return _distinct(windows)


def _distinct(trials: Sequence[Trial] | Iterator[Trial]) -> list[Trial]:
    return list({trial.token_ids: trial for trial in reversed(list(trials))}.values())[::-1]


def _in_turn(some: Sequence[Trial], others: Sequence[Trial]) -> Iterator[Sequence[Trial]]:
    for n in range(max(len(some), len(others))):
        yield [*some[n : n + 1], *others[n : n + 1]]
