"""What two features, two SAEs or two corpora have in common: plain arithmetic on records, standard library only.

Two features   `shared_contexts` of their examples, `token_differences` of their logit attribution, `place_among` the
               features active with or nearest to the other
Two SAEs       `Matches`, which `matching` computes from the weights
Two corpora    `density_differences` of one SAE's features
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sae_core.records import (
    CoactiveFeature,
    Example,
    Feature,
    FeaturePoint,
    Histogram,
    NearestFeature,
    TokenWeight,
)

MATCH_BINS = 20  # of best cosines, from 0 to 1
LEAST_EXPECTED = 10  # firings on each corpus below which two densities are not compared
LEAST_Z = 5.0  # standard errors between two densities that count as different


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A feature and the feature of the other SAE whose decoder direction is closest."""

    feature_index: int
    other_index: int
    cosine: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """The best match of features of SAE a in SAE b, and the reverse; by feature index.

    Where there are fewer matches than features they are of a sample, evenly spaced among the features.
    """

    width: int  # of the decoder directions
    n_a: int  # features that were asked about
    n_b: int
    a: tuple[Match, ...]
    b: tuple[Match, ...]

    @property
    def is_sample(self) -> bool:
        return len(self.a) < self.n_a or len(self.b) < self.n_b


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDifference:
    """A token's logit attribution for two features. None: not among the tokens that are stored of that feature.

    Then its attribution lies between the weakest promoted and the weakest suppressed token that are, and `difference`
    is what it is at least (or, below 0, at most): `is_exact` is False.
    """

    token: str
    token_id: int
    a: float | None
    b: float | None
    difference: float  # a − b, in logits per unit of activation
    is_exact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDifferences:
    """The tokens that two features treat most differently, the largest difference first."""

    more_by_a: tuple[TokenDifference, ...]
    more_by_b: tuple[TokenDifference, ...]
    n_undecided: int  # stored of one feature, and what is stored of the other leaves open which weighs more


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedContext:
    """A context that is among the examples of both features, with the strongest example of each there."""

    context_id: int
    a: Example
    b: Example
    n_both: int  # tokens on which both are active


@dataclass(frozen=True, slots=True, kw_only=True)
class DensityDifference:
    """A feature whose densities on two corpora differ by more than chance. Counts are of active tokens."""

    feature_index: int
    n_a: int
    n_b: int
    density_a: float
    density_b: float
    log2_ratio: float  # of a over b, half a token added to each count so that 0 has a logarithm
    z: float  # of a − b, in standard errors


@dataclass(frozen=True, slots=True, kw_only=True)
class DensityDifferences:
    """All features of an SAE on two corpora, counted, and those that differ, the largest ratio first."""

    more_on_a: tuple[DensityDifference, ...]
    more_on_b: tuple[DensityDifference, ...]
    n_alive_on_both: int
    n_only_on_a: int
    n_only_on_b: int
    n_dead_on_both: int
    n_rare: int  # alive, but too rare for a comparison
    n_alike: int  # compared, and no different beyond chance
    ratios: Histogram  # log2 of the density ratio, of all that were compared


def share_matched(matches: Sequence[Match], *, least: float) -> float | None:
    """The share of features with a match of at least this cosine; None of no features."""
    return sum(match.cosine >= least for match in matches) / len(matches) if matches else None


def match_histogram(matches: Iterable[Match]) -> Histogram:
    """How many features have which best cosine; those below 0 stand in the first bin."""
    counts = [0] * MATCH_BINS
    for match in matches:
        counts[min(MATCH_BINS - 1, max(0, math.floor(match.cosine * MATCH_BINS)))] += 1
    return Histogram(edges=tuple(i / MATCH_BINS for i in range(MATCH_BINS + 1)), counts=tuple(counts))


def chance_cosine(n: int, *, width: int) -> float:
    """About the largest of `n` cosines between a direction and others drawn at random in `width` dimensions: the one
    that a random direction exceeds with a probability of 1/n. Such a cosine t has a density ∝ (1 − t²)^((width − 3)/2).
    """
    if n < 3 or width < 2:
        return 0.0
    cosines = [(i + 0.5) / 2000 for i in range(2000)]
    densities = [(1 - t * t) ** ((width - 3) / 2) for t in cosines]
    rest = 2 * sum(densities) / n
    for t, density in zip(reversed(cosines), reversed(densities), strict=True):
        rest -= density
        if rest <= 0:
            return t
    return 0.0


def shared_contexts(a: Sequence[Example], b: Sequence[Example]) -> list[SharedContext]:
    """Contexts that both have among their examples, those first on which both come closest to their strongest.

    Of the same corpus, or context numbers mean nothing.
    """
    of_a, of_b = _strongest_by_context(a), _strongest_by_context(b)
    top_a = max((example.activation for example in of_a.values()), default=0.0) or 1.0
    top_b = max((example.activation for example in of_b.values()), default=0.0) or 1.0
    found = [
        SharedContext(
            context_id=context_id,
            a=of_a[context_id],
            b=of_b[context_id],
            n_both=sum(
                x > 0 and y > 0 for x, y in zip(of_a[context_id].activations, of_b[context_id].activations, strict=True)
            ),
        )
        for context_id in of_a.keys() & of_b.keys()
    ]
    return sorted(found, key=lambda s: (-min(s.a.activation / top_a, s.b.activation / top_b), s.context_id))


def token_differences(a: Feature, b: Feature, *, same_vocabulary: bool, most: int = 10) -> TokenDifferences:
    """The tokens that two features treat differently, from the promoted and suppressed tokens stored of each.

    Tokens of two vocabularies are the same where their texts are.
    """
    known_a, known_b = _weights(a, same_vocabulary), _weights(b, same_vocabulary)
    if not known_a or not known_b:
        return TokenDifferences(more_by_a=(), more_by_b=(), n_undecided=0)
    found: list[TokenDifference] = []
    n_undecided = 0
    for key in [*known_a, *(key for key in known_b if key not in known_a)]:
        difference = _token_difference(known_a.get(key), known_b.get(key), a, b)
        if difference is None:
            n_undecided += 1
        else:
            found.append(difference)
    found.sort(key=lambda d: (-abs(d.difference), d.token_id))
    return TokenDifferences(
        more_by_a=tuple(d for d in found if d.difference > 0)[:most],
        more_by_b=tuple(d for d in found if d.difference < 0)[:most],
        n_undecided=n_undecided,
    )


def place_among(feature_index: int, others: Sequence[CoactiveFeature | NearestFeature]) -> int | None:
    """Which it is among them, from 1; None if it is not there."""
    return next((i for i, other in enumerate(others, start=1) if other.feature_index == feature_index), None)


def density_differences(
    a: Iterable[FeaturePoint], b: Iterable[FeaturePoint], *, n_tokens_a: int, n_tokens_b: int
) -> DensityDifferences:
    """Which features of one SAE fire more often on corpus a or on corpus b, each of so many tokens.

    1. A feature with a density p over both corpora together is left out as too rare if p · n is below LEAST_EXPECTED
       on either: however its firings fell, chance could have done it.
    2. z = (p_a − p_b) / √(p (1 − p) (1/n_a + 1/n_b)), the test of two proportions; |z| below LEAST_Z is alike. Firings
       stand in clumps, so z is too large: hence a bound that chance would pass once in two million.
    """
    others = {point.feature_index: point for point in b}
    different: list[DensityDifference] = []
    ratios: list[float] = []
    alive = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    n_rare = n_alike = 0
    for point in a:
        other = others[point.feature_index]
        x, y = round(point.density * n_tokens_a), round(other.density * n_tokens_b)
        alive[x > 0, y > 0] += 1
        pooled = (x + y) / (n_tokens_a + n_tokens_b)
        if pooled * min(n_tokens_a, n_tokens_b) < LEAST_EXPECTED:
            n_rare += x + y > 0
            continue
        density_a, density_b = x / n_tokens_a, y / n_tokens_b
        error = math.sqrt(pooled * (1 - pooled) * (1 / n_tokens_a + 1 / n_tokens_b))
        z = (density_a - density_b) / error if error > 0 else 0.0  # 0: active on every token of both
        ratio = math.log2((x + 0.5) / (n_tokens_a + 1) / ((y + 0.5) / (n_tokens_b + 1)))
        ratios.append(ratio)
        if abs(z) < LEAST_Z:
            n_alike += 1
            continue
        different.append(
            DensityDifference(
                feature_index=point.feature_index, n_a=x, n_b=y, density_a=density_a, density_b=density_b,
                log2_ratio=ratio, z=z,
            )
        )  # fmt: skip
    different.sort(key=lambda d: (-abs(d.log2_ratio), d.feature_index))
    return DensityDifferences(
        more_on_a=tuple(d for d in different if d.z > 0),
        more_on_b=tuple(d for d in different if d.z < 0),
        n_alive_on_both=alive[True, True],
        n_only_on_a=alive[True, False],
        n_only_on_b=alive[False, True],
        n_dead_on_both=alive[False, False],
        n_rare=n_rare,
        n_alike=n_alike,
        ratios=_ratio_histogram(ratios),
    )


def _strongest_by_context(examples: Iterable[Example]) -> dict[int, Example]:
    found: dict[int, Example] = {}
    for example in examples:
        if example.context_id not in found or example.activation > found[example.context_id].activation:
            found[example.context_id] = example
    return found


def _weights(feature: Feature, same_vocabulary: bool) -> Mapping[int | str, TokenWeight]:
    return {(w.token_id if same_vocabulary else w.token): w for w in _stored(feature)}


def _stored(feature: Feature) -> tuple[TokenWeight, ...]:
    return (*feature.promoted_tokens, *feature.suppressed_tokens)


def _token_difference(x: TokenWeight | None, y: TokenWeight | None, a: Feature, b: Feature) -> TokenDifference | None:
    """None where the stored tokens leave the sign open."""
    either = x or y
    assert either is not None
    least_x, most_x = (x.weight, x.weight) if x else _bounds(a)
    least_y, most_y = (y.weight, y.weight) if y else _bounds(b)
    least, most = least_x - most_y, most_x - least_y
    if not (least > 0 or most < 0):
        return None
    return TokenDifference(
        token=either.token,
        token_id=either.token_id,
        a=x.weight if x else None,
        b=y.weight if y else None,
        difference=least if least > 0 else most,
        is_exact=x is not None and y is not None,
    )


def _bounds(feature: Feature) -> tuple[float, float]:
    """Between which the attribution of every token lies that is not stored."""
    promoted = [w.weight for w in feature.promoted_tokens]
    suppressed = [w.weight for w in feature.suppressed_tokens]
    return max(suppressed, default=-math.inf), min(promoted, default=math.inf)


def _ratio_histogram(ratios: Sequence[float]) -> Histogram:
    """In halves of an octave, from 1/32 to 32; what lies beyond stands in the outermost bins."""
    counts = [0] * 20
    for ratio in ratios:
        counts[min(19, max(0, math.floor(2 * (ratio + 5))))] += 1
    return Histogram(edges=tuple(i / 2 - 5 for i in range(21)), counts=tuple(counts))
