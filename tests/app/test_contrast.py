"""What tells two sets of texts apart, against the obvious sums over all pairs and all orders."""

import itertools
import math
import random

import pytest

from app.contrast import adjusted, contrasts


def planted(rng: random.Random, n: int, shift: float) -> list[dict[int, float]]:
    texts = []
    for _ in range(n):
        values = {1: round(rng.gauss(shift, 1), 1), 2: float(rng.randrange(3)), 3: rng.random()}
        texts.append({i: value for i, value in values.items() if value > 0})
    return texts


def test_delta_and_counts_are_those_of_all_pairs() -> None:
    rng = random.Random(3)
    a, b = planted(rng, 13, 1.5), planted(rng, 9, 0.3)
    for row in contrasts(a, b):
        values = [[text.get(row.feature_index, 0.0) for text in texts] for texts in (a, b)]
        pairs = list(itertools.product(*values))
        assert row.delta == pytest.approx(sum((x > y) - (x < y) for x, y in pairs) / len(pairs))
        assert (row.n_active_a, row.n_active_b) == tuple(sum(v > 0 for v in found) for found in values)
        assert (row.mean_a, row.mean_b) == pytest.approx((sum(values[0]) / 13, sum(values[1]) / 9))


def test_p_is_about_how_often_a_random_split_gives_as_much() -> None:
    rng = random.Random(5)
    a, b = planted(rng, 20, 0.9), planted(rng, 20, 0.3)
    found = {row.feature_index: row for row in contrasts(a, b)}
    for feature_index in (1, 2):
        observed, hits = abs(found[feature_index].delta), 0
        everything = a + b
        for _ in range(2000):
            rng.shuffle(everything)
            split = {row.feature_index: row.delta for row in contrasts(everything[:20], everything[20:])}
            hits += abs(split[feature_index]) >= observed - 1e-12
        assert found[feature_index].p == pytest.approx(hits / 2000, abs=0.05)


def test_q_is_benjamini_and_hochbergs() -> None:
    p = [0.01, 0.04, 0.03, 0.005, 0.8]
    expected = []
    for value in p:
        larger = [other for other in p if other >= value]
        expected.append(min(other * len(p) / sum(o <= other for o in p) for other in larger))
    assert adjusted(p) == pytest.approx(expected)
    assert adjusted([]) == []


def test_a_planted_feature_comes_first_and_few_texts_say_nothing_of_chance() -> None:
    a = [{7: 3.0 + i, 1: 1.0} for i in range(9)]
    b = [{1: 1.0, 8: 0.5} for _ in range(9)]
    first, second, *_ = contrasts(a, b)
    assert {first.feature_index, second.feature_index} == {7, 8} and (first.delta, second.delta) == (1, -1)
    assert first.q is not None and first.q < 0.01
    everywhere = next(row for row in contrasts(a, b) if row.feature_index == 1)
    assert everywhere.delta == 0 and everywhere.p == 1
    assert all(row.p is None and row.q is None for row in contrasts(a[:3], b))
    assert not any(math.isnan(row.delta) for row in contrasts(a[:1], b[:1]))
