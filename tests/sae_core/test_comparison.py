"""What two features or corpora have in common, against references that are slow and plain."""

import math
import random
from dataclasses import replace

import pytest

from sae_core.comparison import (
    LEAST_EXPECTED,
    LEAST_Z,
    Match,
    Matches,
    chance_cosine,
    density_differences,
    match_histogram,
    place_among,
    share_matched,
    shared_contexts,
    token_differences,
)
from sae_core.records import Example, Feature, FeaturePoint, TokenWeight
from tests.factories import make_features


def example(context_id: int, activations: list[float], *, rank: int = 0) -> Example:
    peak = max(range(len(activations)), key=activations.__getitem__)
    return Example(
        feature_index=0, context_id=context_id, source="s", band=0, rank=rank, position=peak,
        activation=activations[peak], tokens=("x",) * len(activations), token_ids=(1,) * len(activations),
        activations=tuple(activations),
    )  # fmt: skip


def feature(promoted: dict[str, float], suppressed: dict[str, float]) -> Feature:
    def weights(given: dict[str, float]) -> tuple[TokenWeight, ...]:
        return tuple(TokenWeight(token=t, token_id=ord(t), weight=w) for t, w in given.items())

    return replace(make_features(n=1)[0], promoted_tokens=weights(promoted), suppressed_tokens=weights(suppressed))


def points(counts: list[int], n_tokens: int) -> list[FeaturePoint]:
    return [
        FeaturePoint(feature_index=i, density=n / n_tokens, max_activation=float(n > 0)) for i, n in enumerate(counts)
    ]


def test_shared_contexts_are_those_that_both_have_and_the_strongest_come_first() -> None:
    a = [example(1, [0, 4, 2]), example(2, [0, 1, 0]), example(3, [8, 0, 0]), example(1, [0, 3, 0], rank=1)]
    b = [example(2, [0, 0, 5]), example(1, [0, 1, 9]), example(7, [1, 1, 1])]
    shared = shared_contexts(a, b)
    assert [(s.context_id, s.a.activation, s.b.activation, s.n_both) for s in shared] == [(1, 4, 9, 2), (2, 1, 5, 0)]
    assert shared_contexts(a, []) == shared_contexts([], b) == []


def test_token_differences_are_exact_where_both_know_the_token_and_bounds_where_one_does() -> None:
    a = feature({"p": 3.0, "q": 2.0, "r": 1.0}, {"x": -3.0, "y": -1.0})
    b = feature({"q": 2.5, "s": 0.5}, {"p": -1.0, "z": -0.25})
    found = token_differences(a, b, same_vocabulary=True)
    assert [(d.token, d.difference, d.is_exact) for d in found.more_by_a] == [("p", 4.0, True), ("r", 0.5, False)]
    # y: of b between −0.25 and 0.5, so a − b is at most −0.75; x likewise
    assert [(d.token, d.difference, d.is_exact) for d in found.more_by_b] == [
        ("x", -2.75, False),
        ("y", -0.75, False),
        ("q", -0.5, True),
    ]
    assert found.n_undecided == 2  # s and z: of a somewhere between −1 and 1
    assert (found.more_by_a[0].a, found.more_by_a[0].b, found.more_by_a[1].b) == (3.0, -1.0, None)


def test_token_differences_hold_for_the_whole_vocabulary() -> None:
    rng = random.Random(0)
    for _ in range(50):
        tokens = [chr(97 + i) for i in range(20)]
        truth = [{t: rng.gauss(0, 1) for t in tokens} for _ in range(2)]
        stored = []
        for weights in truth:
            ranked = sorted(tokens, key=lambda t: -weights[t])
            stored.append(feature({t: weights[t] for t in ranked[:5]}, {t: weights[t] for t in ranked[:-6:-1]}))
        found = token_differences(*stored, same_vocabulary=True, most=100)
        for d in (*found.more_by_a, *found.more_by_b):
            real = truth[0][d.token] - truth[1][d.token]
            assert real == pytest.approx(d.difference) if d.is_exact else abs(real) >= abs(d.difference) - 1e-9
            assert (real > 0) == (d.difference > 0)


def test_tokens_of_two_vocabularies_are_the_same_where_their_texts_are() -> None:
    a = feature({"p": 3.0}, {"x": -3.0})
    b = replace(a, promoted_tokens=(TokenWeight(token="p", token_id=9, weight=1.0),))
    assert [(d.token, d.difference) for d in token_differences(a, b, same_vocabulary=False).more_by_a] == [("p", 2.0)]
    assert token_differences(a, b, same_vocabulary=True).more_by_a[0].is_exact is False


def test_a_feature_without_stored_tokens_has_no_differences() -> None:
    found = token_differences(feature({}, {}), feature({"p": 1.0}, {}), same_vocabulary=True)
    assert (found.more_by_a, found.more_by_b, found.n_undecided) == ((), (), 0)


def test_place_counts_from_one() -> None:
    nearest = make_features(n=9)[2].nearest
    assert [place_among(i, nearest) for i in (3, 4, 5, 6)] == [1, 2, 3, None]


def test_densities_differ_by_the_test_of_two_proportions() -> None:
    rng = random.Random(1)
    n_a, n_b = 20_000, 50_000
    a = [rng.choice([0, 1, 30, 200, 5000, rng.randrange(400)]) for _ in range(300)]
    b = [rng.choice([0, 2, 75, 500, 9000, rng.randrange(900)]) for _ in range(300)]
    found = density_differences(points(a, n_a), points(b, n_b), n_tokens_a=n_a, n_tokens_b=n_b)
    expected: dict[int, float] = {}
    n_rare = n_alike = 0
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        p = (x + y) / (n_a + n_b)
        if min(p * n_a, p * n_b) < LEAST_EXPECTED:
            n_rare += x + y > 0
            continue
        z = (x / n_a - y / n_b) / math.sqrt(p * (1 - p) / n_a + p * (1 - p) / n_b)
        if abs(z) < LEAST_Z:
            n_alike += 1
        else:
            expected[i] = z
    listed = (*found.more_on_a, *found.more_on_b)
    assert {d.feature_index: pytest.approx(d.z) for d in listed} == expected
    assert (found.n_rare, found.n_alike, sum(found.ratios.counts)) == (n_rare, n_alike, n_alike + len(expected))
    assert {d.feature_index for d in found.more_on_a} == {i for i, z in expected.items() if z > 0}
    for side in (found.more_on_a, found.more_on_b):
        sizes = [abs(d.log2_ratio) for d in side]
        assert sizes == sorted(sizes, reverse=True) and len(sizes) > 10
    alive = [(x > 0, y > 0) for x, y in zip(a, b, strict=True)]
    counted = (found.n_alive_on_both, found.n_only_on_a, found.n_only_on_b, found.n_dead_on_both)
    assert counted == tuple(alive.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False)))


def test_a_feature_that_is_silent_on_one_corpus_still_has_a_ratio() -> None:
    found = density_differences(points([200], 1000), points([0], 1000), n_tokens_a=1000, n_tokens_b=1000)
    assert found.more_on_a[0].log2_ratio == pytest.approx(math.log2(200.5 / 0.5))


def test_histograms_count_every_one_once_and_shares_are_of_all() -> None:
    matches = [Match(feature_index=i, other_index=0, cosine=c) for i, c in enumerate([-0.4, 0.0, 0.69, 0.7, 1.0])]
    counts = match_histogram(matches).counts
    assert (sum(counts), counts[0], counts[13], counts[14], counts[19]) == (5, 2, 1, 1, 1)
    assert share_matched(matches, least=0.7) == 0.4
    assert share_matched([], least=0.7) is None
    whole = Matches(width=2, n_a=5, n_b=5, a=tuple(matches), b=tuple(matches))
    assert not whole.is_sample and replace(whole, n_a=6).is_sample


def test_chance_is_what_random_directions_give() -> None:
    rng = random.Random(0)

    def direction(width: int) -> list[float]:
        numbers = [rng.gauss(0, 1) for _ in range(width)]
        norm = math.hypot(*numbers)
        return [x / norm for x in numbers]

    for n, width in ((200, 16), (500, 64)):
        largest = []
        for _ in range(20):
            mine = direction(width)
            largest.append(max(sum(x * y for x, y in zip(mine, direction(width), strict=True)) for _ in range(n)))
        assert chance_cosine(n, width=width) == pytest.approx(sum(largest) / 20, abs=0.03)
    assert chance_cosine(1, width=8) == chance_cosine(9, width=1) == 0
