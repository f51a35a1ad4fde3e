from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from sae_core.collect import KEY, BestK, random_keys

Stream = list[tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint64]]]


@dataclass
class SlowBestK:
    """Everything that was offered, sorted when asked."""

    k: int
    distinct: bool = False
    offered: dict[int, list[tuple[int, list[int]]]] = field(default_factory=dict)

    def offer(self, groups: NDArray[np.int64], keys: NDArray[np.uint64], payload: NDArray[np.uint64]) -> None:
        for group, key, integers in zip(groups.tolist(), keys.tolist(), payload.tolist(), strict=True):
            self.offered.setdefault(group, []).append((key, integers))

    def entries(self) -> list[tuple[int, int, int, list[int]]]:
        found = []
        for group in sorted(self.offered):
            best: list[tuple[int, list[int]]] = []
            for key, integers in sorted(self.offered[group], reverse=True):
                if not self.distinct or all(integers[-1] != kept[-1] for _, kept in best):
                    best.append((key, integers))
            found += [(group, rank, key, integers) for rank, (key, integers) in enumerate(best[: self.k])]
        return found


def entries(collector: BestK, first: int = 0, last: int | None = None) -> list[tuple[int, int, int, list[int]]]:
    return list(zip(*(column.tolist() for column in collector.entries(first, last)), strict=True))


def random_stream(*, seed: int, n_groups: int, n_offers: int, size: int, n_texts: int = 1 << 62) -> Stream:
    """Batches of candidates with keys that never repeat; the last integer of their payload repeats if so asked."""
    rng = np.random.default_rng(seed)
    keys = rng.permutation(np.arange(1, n_offers * size + 1)).astype(np.uint64) << np.uint64(40)
    return [
        (
            rng.integers(n_groups, size=size),
            keys[offer * size : (offer + 1) * size],
            rng.integers(n_texts, size=(size, 2)).astype(np.uint64),
        )
        for offer in range(n_offers)
    ]


SHAPES = [(1, 10, 7), (200, 10, 200), (20, 30, 50), (5, 40, 1), (3, 2, 400)]


@pytest.mark.parametrize("k", [1, 2, 3, 20])
@pytest.mark.parametrize(("n_groups", "n_offers", "size"), SHAPES)
@pytest.mark.parametrize("distinct", [False, True], ids=["all", "distinct"])
def test_the_best_k_of_a_random_stream_are_those_of_a_plain_sort(
    k: int, n_groups: int, n_offers: int, size: int, distinct: bool
) -> None:
    for seed in range(3):
        fast = BestK(n_groups=n_groups, k=k, payload_size=2, distinct=distinct)
        slow = SlowBestK(k, distinct)
        for offer in random_stream(seed=seed, n_groups=n_groups, n_offers=n_offers, size=size, n_texts=9):
            fast.offer(*offer)
            slow.offer(*offer)
        assert entries(fast) == slow.entries()


@pytest.mark.parametrize("distinct", [False, True], ids=["all", "distinct"])
def test_order_and_parts_do_not_show(distinct: bool) -> None:
    stream = random_stream(seed=1, n_groups=7, n_offers=12, size=60, n_texts=12)
    whole, backwards, first, second = (BestK(n_groups=7, k=6, payload_size=2, distinct=distinct) for _ in range(4))
    for number, offer in enumerate(stream):
        whole.offer(*offer)
        (first if number < 5 else second).offer(*offer)
    for offer in reversed(stream):
        backwards.offer(*(column[::-1].copy() for column in offer))
    first.merge(second)

    assert entries(whole) == entries(backwards) == entries(first)


def test_entries_of_some_groups_are_those_of_all() -> None:
    collector = BestK(n_groups=9, k=3, payload_size=2)
    for offer in random_stream(seed=2, n_groups=9, n_offers=3, size=9):
        collector.offer(*offer)

    assert entries(collector, 2, 5) == [entry for entry in entries(collector) if 2 <= entry[0] < 5]


def test_nothing_offered_is_nothing_kept() -> None:
    collector = BestK(n_groups=3, k=2, payload_size=4)
    collector.offer(np.zeros(0, np.int64), np.zeros(0, np.uint64), np.zeros((0, 4), np.uint64))

    groups, ranks, keys, payload = collector.entries()

    assert (len(groups), len(ranks), len(keys), payload.shape) == (0, 0, 0, (0, 4))


def test_numbers_of_64_bits_stay_exact() -> None:
    collector = BestK(n_groups=1, k=2, payload_size=2)
    large = np.array([[2**53 + 1, 2**64 - 1], [5, 2**63 + 1]], np.uint64)

    collector.offer(np.zeros(2, np.int64), np.array([2**64 - 2, 2**64 - 1], np.uint64), large)

    assert entries(collector) == [(0, 0, 2**64 - 1, [5, 2**63 + 1]), (0, 1, 2**64 - 2, [2**53 + 1, 2**64 - 1])]


def test_random_keys_are_those_of_the_candidate_and_never_empty() -> None:
    places = np.arange(1000, dtype=np.uint64)
    keys = random_keys(np.uint64(3), places, np.uint64(8))

    assert keys.tolist() == random_keys(np.uint64(3), places, np.uint64(8)).tolist()
    assert len(np.unique(keys)) == 1000 and keys.min() > 0
    for other in (random_keys(np.uint64(4), places, np.uint64(8)), random_keys(np.uint64(3), places, np.uint64(9))):
        assert not np.any(other == keys)


def test_random_keys_give_every_candidate_the_same_chance() -> None:
    """Each group is a repeat: 40 candidates, 8 kept. All of them must be kept equally often."""
    n_groups, n_candidates, k = 4000, 40, 8
    collector = BestK(n_groups=n_groups, k=k, payload_size=1)
    places = np.arange(n_candidates, dtype=np.uint64)
    for group in range(n_groups):
        keys = random_keys(np.uint64(0), places, np.uint64(group))
        collector.offer(np.full(n_candidates, group), keys, places[:, None].copy())

    kept = np.bincount(collector.entries()[3].ravel().astype(np.int64), minlength=n_candidates)

    expected = n_groups * k / n_candidates
    variance = n_groups * (k / n_candidates) * (1 - k / n_candidates)
    deviation = float(((kept - expected) ** 2 / variance).sum())  # about chi-square with 39 degrees of freedom
    assert 12 < deviation < 80
    assert collector.slots[:, :, KEY].min() > 0
