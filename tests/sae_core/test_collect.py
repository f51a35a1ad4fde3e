from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from sae_core.collect import BestK


@dataclass
class SlowBestK:
    """Everything that was offered, sorted when asked."""

    k: int
    offered: dict[int, list[tuple[float, list[int]]]] = field(default_factory=dict)

    def offer(self, groups: Tensor, keys: Tensor, payload: Tensor) -> None:
        for group, key, integers in zip(groups.tolist(), keys.tolist(), payload.tolist(), strict=True):
            self.offered.setdefault(group, []).append((key, integers))

    def entries(self) -> list[tuple[int, int, list[int]]]:
        return [
            (group, rank, integers)
            for group in sorted(self.offered)
            # A stable sort: of equal keys the earlier stands first.
            for rank, (_, integers) in enumerate(sorted(self.offered[group], key=lambda pair: -pair[0])[: self.k])
        ]


def entries(collector: BestK) -> list[tuple[int, int, list[int]]]:
    return [
        (group, rank, integers)
        for group, rank, integers in zip(*(column.tolist() for column in collector.entries()), strict=True)
    ]


def offer_all(collector: BestK | SlowBestK, stream: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    for groups, keys, payload in stream:
        collector.offer(groups, keys, payload)


def random_stream(
    *, seed: int, n_groups: int, n_offers: int, size: int, distinct_keys: int | None
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Batches of candidates whose payload is their number in the stream, and its square; keys repeat if so asked."""
    generator = torch.Generator().manual_seed(seed)
    stream = []
    for offer in range(n_offers):
        groups = torch.randint(n_groups, (size,), generator=generator)
        if distinct_keys is None:
            keys = torch.randn(size, generator=generator)
        else:
            keys = torch.randint(distinct_keys, (size,), generator=generator).float()
        number = offer * size + torch.arange(size)
        stream.append((groups, keys, torch.stack([number, number**2], dim=1)))
    return stream


@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.parametrize(
    ("n_groups", "n_offers", "size", "distinct_keys"),
    [(1, 10, 7, None), (200, 10, 200, None), (20, 30, 50, 4), (5, 40, 1, 2), (3, 2, 400, 3)],
    ids=["one-group", "many-groups", "few-keys", "one-at-a-time", "large-offers"],
)
def test_the_best_k_of_a_random_stream_are_those_of_a_plain_sort(
    k: int, n_groups: int, n_offers: int, size: int, distinct_keys: int | None
) -> None:
    fast, slow = BestK(n_groups=n_groups, k=k, payload_size=2), SlowBestK(k)
    for seed in range(3):
        stream = random_stream(seed=seed, n_groups=n_groups, n_offers=n_offers, size=size, distinct_keys=distinct_keys)
        offer_all(fast, stream)
        offer_all(slow, stream)

        assert entries(fast) == slow.entries()


def test_of_equal_keys_the_earlier_offered_stays_within_and_across_offers() -> None:
    collector = BestK(n_groups=1, k=2, payload_size=1)
    group = torch.zeros(3, dtype=torch.int64)

    collector.offer(group, torch.tensor([1.0, 1.0, 1.0]), torch.tensor([[10], [11], [12]]))
    collector.offer(group, torch.tensor([1.0, 2.0, 1.0]), torch.tensor([[20], [21], [22]]))

    assert entries(collector) == [(0, 0, [21]), (0, 1, [10])]


def test_a_group_with_fewer_candidates_than_k_has_only_those() -> None:
    collector = BestK(n_groups=4, k=5, payload_size=1)

    collector.offer(torch.tensor([3, 1, 3]), torch.tensor([0.5, -2.0, 0.7]), torch.tensor([[1], [2], [3]]))

    assert entries(collector) == [(1, 0, [2]), (3, 0, [3]), (3, 1, [1])]


def test_nothing_offered_is_nothing_kept() -> None:
    collector = BestK(n_groups=3, k=2, payload_size=4)
    collector.offer(torch.empty(0, dtype=torch.int64), torch.empty(0), torch.empty(0, 4, dtype=torch.int64))

    groups, ranks, payload = collector.entries()

    assert (len(groups), len(ranks), tuple(payload.shape)) == (0, 0, (0, 4))


def test_keys_fall_with_the_rank_and_the_threshold_is_the_last_of_them() -> None:
    collector = BestK(n_groups=30, k=4, payload_size=2)
    offer_all(collector, random_stream(seed=5, n_groups=30, n_offers=10, size=100, distinct_keys=None))

    assert bool((collector.keys.diff(dim=1) <= 0).all())
    assert torch.equal(collector.thresholds, collector.keys[:, -1])


def test_large_payloads_stay_exact() -> None:
    collector = BestK(n_groups=1, k=1, payload_size=2)

    collector.offer(torch.tensor([0]), torch.tensor([1.0]), torch.tensor([[2**53 + 1, -(2**62)]]))

    assert entries(collector) == [(0, 0, [2**53 + 1, -(2**62)])]


def test_uniform_keys_give_every_candidate_the_same_chance() -> None:
    """Each group is a repeat: 40 candidates, 8 kept. Early and late ones must be kept equally often."""
    n_groups, n_candidates, k = 4000, 40, 8
    generator = torch.Generator().manual_seed(3)
    collector = BestK(n_groups=n_groups, k=k, payload_size=1)
    for candidate in range(n_candidates):
        collector.offer(
            torch.arange(n_groups),
            torch.rand(n_groups, generator=generator),
            torch.full((n_groups, 1), candidate),
        )

    kept = torch.bincount(collector.payload.flatten(), minlength=n_candidates).double()

    expected = n_groups * k / n_candidates
    variance = n_groups * (k / n_candidates) * (1 - k / n_candidates)
    deviation = float(((kept - expected).square() / variance).sum())  # about chi-square with 39 degrees of freedom
    assert 12 < deviation < 80
