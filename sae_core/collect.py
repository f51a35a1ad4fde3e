"""The best k per group by a key, from a stream: one mechanism for top examples and unbiased samples.

    group = feature,          key = activation   the examples that activate it most
    group = (feature, band),  key = random       an unbiased sample of each activation band
    group = feature,          key = random       random firings

A candidate that cannot enter is rejected by one comparison with the smallest key of its group, so that after warm-up
almost nothing moves. What is kept depends on the candidates alone, not on the order in which they come: random keys are
hashes of what a candidate is (`random_key`), so two collectors of two halves of a stream merge into the one of all.
Knows nothing of language or of SAEs. The loops are compiled by Numba.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_core.compiled import compiled

EMPTY = 0  # the key of a slot that holds nothing; real keys are above
KEY = 0  # column of a slot; the payload's columns follow


class BestK:
    """Keeps, for each of `n_groups`, the `k` candidates with the largest keys, each with a payload of integers.

    With `distinct`, the last integer of the payload says what the candidate is a copy of: of those that share it in a
    group only the one with the largest key is kept.
    """

    def __init__(self, *, n_groups: int, k: int, payload_size: int, distinct: bool = False) -> None:
        self.k = k
        self.distinct = distinct
        # (n_groups, k, 1 + payload_size): key and payload, each group a heap with the smallest key first
        self.slots: NDArray[np.uint64] = np.zeros((n_groups, k, 1 + payload_size), np.uint64)

    def offer(self, groups: NDArray[np.int64], keys: NDArray[np.uint64], payload: NDArray[np.uint64]) -> None:
        """Offers M candidates: groups (M,), keys (M,) above 0, payload (M, payload_size)."""
        _offer(self.slots, groups, keys, payload, self.distinct)

    def merge(self, other: "BestK") -> None:
        """Offers everything that the other keeps."""
        groups, _, keys, payload = other.entries()
        self.offer(groups, keys, payload)

    def entries(
        self, first: int = 0, last: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint64]]:
        """Everything kept in the groups first..last, the latter not included; all of them if none are named.

        Groups (M,), ranks (M,) from 0, keys (M,), payload (M, payload_size); by group and rank.
        """
        slots = self.slots[first:last]
        order = np.argsort(slots[:, :, KEY], axis=1)[:, ::-1]  # (groups, k)
        keys = np.take_along_axis(slots[:, :, KEY], order, axis=1)
        groups, ranks = np.nonzero(keys != EMPTY)
        return groups + first, ranks, keys[groups, ranks], slots[groups, order[groups, ranks], 1:]


@compiled
def random_key(seed: Any, place: Any, group: Any) -> Any:
    """64 bits that look random, the same for the same three 64-bit numbers; never `EMPTY`."""
    mixed = _mixed(_mixed(_mixed(seed) ^ place) ^ group)
    return mixed | np.uint64(1)


@compiled
def random_keys(seed: Any, places: Any, group: Any) -> Any:
    """The keys (M,) of M places in one group."""
    keys = np.empty(len(places), np.uint64)
    for i in range(len(places)):
        keys[i] = random_key(seed, places[i], group)
    return keys


@compiled
def enter(heap: Any, key: Any, payload: Any, distinct: bool) -> bool:
    """Puts a candidate into the heap (k, 1 + payload_size) if it belongs there; returns whether it did."""
    if key <= heap[0, KEY]:
        return False
    at = 0
    if distinct:
        last = heap.shape[1] - 1
        for i in range(len(heap)):
            if heap[i, KEY] != np.uint64(EMPTY) and heap[i, last] == payload[last - 1]:
                if heap[i, KEY] >= key:
                    return False
                at = i
                break
    _sink(heap, at, key, payload)
    return True


@compiled
def _sink(heap: Any, at: int, key: Any, payload: Any) -> None:
    """Puts a candidate with a key above the one at `at` in its place, or further from the root."""
    k, width = heap.shape
    while True:
        child = 2 * at + 1
        if child >= k:
            break
        if child + 1 < k and heap[child + 1, KEY] < heap[child, KEY]:
            child += 1
        if key <= heap[child, KEY]:
            break
        for column in range(width):
            heap[at, column] = heap[child, column]
        at = child
    heap[at, KEY] = key
    for column in range(width - 1):
        heap[at, column + 1] = payload[column]


@compiled
def _offer(slots: Any, groups: Any, keys: Any, payload: Any, distinct: bool) -> None:
    for i in range(len(groups)):
        enter(slots[groups[i]], keys[i], payload[i], distinct)


@compiled
def _mixed(number: Any) -> Any:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    number = number + np.uint64(0x9E3779B97F4A7C15)
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number ^ (number >> np.uint64(31))
