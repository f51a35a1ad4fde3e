"""Which features tell two sets of texts apart: effect size, counts, and how likely chance gives as much.

A feature's value on a text is its largest activation there, 0 where it is not active.

1. Effect: Cliff's delta (1993), P(value in A > value in B) − P(value in A < value in B) over all pairs of a text of A
   and one of B: 1 where every text of A is above every text of B, 0 where neither is, −1 the other way round.
2. Chance: the two-sided p of the Mann-Whitney test, whose U says the same as delta, by its normal approximation with
   the correction for ties; then Benjamini and Hochberg's q over all features that are active anywhere, as thousands are
   looked at at once: of the features with q below 0.05, one in twenty is expected to be there by chance.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FEWEST_TEXTS = 8  # in each set, for the normal approximation to hold


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """One feature in two sets of texts. `p` and `q` are None where a set is too small to say."""

    feature_index: int
    delta: float
    n_active_a: int
    n_active_b: int
    mean_a: float  # of the values of all texts of A
    mean_b: float
    p: float | None
    q: float | None


def contrasts(a: Sequence[Mapping[int, float]], b: Sequence[Mapping[int, float]]) -> list[Contrast]:
    """Of every feature that is active in any text, the largest effect first. Texts as feature -> largest activation."""
    values_a, values_b = _by_feature(a), _by_feature(b)
    enough = min(len(a), len(b)) >= FEWEST_TEXTS
    found = []
    for feature_index in sorted(values_a.keys() | values_b.keys()):
        in_a, in_b = values_a.get(feature_index, []), values_b.get(feature_index, [])
        wins, p = _compared(in_a, in_b, n_a=len(a), n_b=len(b))
        found.append((feature_index, wins, in_a, in_b, p if enough else None))
    q_values = adjusted([p for *_, p in found if p is not None])
    rows = [
        Contrast(
            feature_index=feature_index,
            delta=delta,
            n_active_a=len(in_a),
            n_active_b=len(in_b),
            mean_a=sum(in_a) / len(a),
            mean_b=sum(in_b) / len(b),
            p=p,
            q=q_values[at] if enough else None,
        )
        for at, (feature_index, delta, in_a, in_b, p) in enumerate(found)
    ]
    rows.sort(key=lambda row: (-abs(row.delta), -abs(row.mean_a - row.mean_b), row.feature_index))
    return rows


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's q of each p: the smallest p·n/rank of this and all larger ones."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__, reverse=True)
    q_values, least = [1.0] * len(p_values), 1.0
    for n_smaller, at in enumerate(order):
        rank = len(p_values) - n_smaller
        least = min(least, p_values[at] * len(p_values) / rank)
        q_values[at] = least
    return q_values


def _by_feature(texts: Sequence[Mapping[int, float]]) -> dict[int, list[float]]:
    values: dict[int, list[float]] = {}
    for text in texts:
        for feature_index, value in text.items():
            values.setdefault(feature_index, []).append(value)
    return values


def _compared(in_a: Sequence[float], in_b: Sequence[float], *, n_a: int, n_b: int) -> tuple[float, float]:
    """Delta and p from the values that are not 0; the other texts are tied at 0."""
    ranked = sorted([(value, 1) for value in in_a] + [(value, 0) for value in in_b])
    zeros_a, zeros_b = n_a - len(in_a), n_b - len(in_b)
    n = n_a + n_b
    rank_sum = zeros_a * (zeros_a + zeros_b + 1) / 2  # the zeros share the first ranks
    ties = (zeros_a + zeros_b) ** 3 - (zeros_a + zeros_b)
    at, groups = zeros_a + zeros_b, Counter(value for value, _ in ranked)
    of_a = Counter(value for value, is_a in ranked if is_a)
    for value in sorted(groups):
        size = groups[value]
        rank_sum += of_a[value] * (at + (size + 1) / 2)
        at += size
        ties += size**3 - size
    u = rank_sum - n_a * (n_a + 1) / 2
    variance = n_a * n_b / 12 * (n + 1 - ties / (n * (n - 1))) if n > 1 else 0.0
    z = (u - n_a * n_b / 2) / math.sqrt(variance) if variance > 0 else 0.0
    return 2 * u / (n_a * n_b) - 1, math.erfc(abs(z) / math.sqrt(2))
