"""The collectors of a pass against everything that was seen, kept and sorted."""

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from sae_core.bands import BINS, N_BANDS, bin_edges
from sae_core.collect import random_keys
from sae_core.firings import PLACE, PROFILE_EDGES, Firings, places_of, profile_buckets, values_of

D_SAE, SEED = 11, 4


@dataclass
class Seen:
    """All firings, one by one."""

    context: int
    position: int
    feature: int
    value: float
    text: int


def stream(*, n_batches: int, seed: int, growing: bool = False) -> list[dict[str, Any]]:
    """Batches of a few contexts with a handful of features active on each token; feature 7 never is."""
    rng = np.random.default_rng(seed)
    batches, context = [], 0
    for number in range(n_batches):
        lengths = rng.integers(2, 14, size=5)
        contexts = np.repeat(np.arange(context, context + 5), lengths)
        context += 5
        positions = np.concatenate([np.arange(1, n + 1) for n in lengths])
        rows, features = np.nonzero(rng.random((len(contexts), D_SAE)) < 0.3)
        features = np.where(features == 7, 6, features)
        pairs = np.unique(np.column_stack([rows, features]), axis=0)
        scale = 2.0 ** (number - n_batches) if growing else 1.0
        values = np.exp(rng.normal(0, 2, len(pairs))).astype(np.float32) * np.float32(scale)
        values[rng.random(len(values)) < 0.1] = np.float32(scale)  # ties
        batches.append(
            {
                "rows": torch.from_numpy(pairs[:, 0].copy()),
                "features": torch.from_numpy(pairs[:, 1].copy()),
                "values": torch.from_numpy(values),
                "contexts": contexts,
                "positions": positions,
                "texts": rng.integers(9, size=len(contexts)).astype(np.uint64),
            }
        )
    return batches


def firings_of(batches: list[dict[str, Any]]) -> Firings:
    firings = Firings(D_SAE, n_top=4, per_band=3, n_random=5, seed=SEED)
    for batch in batches:
        firings.add(**batch)
    return firings


def all_seen(batches: list[dict[str, Any]]) -> dict[int, list[Seen]]:
    seen = defaultdict(list)
    for batch in batches:
        for row, feature, value in zip(*(batch[name].tolist() for name in ("rows", "features", "values")), strict=True):
            place = (int(batch[name][row]) for name in ("contexts", "positions"))
            seen[feature].append(Seen(*place, feature, value, int(batch["texts"][row])))
    return seen


BATCHES = [
    pytest.param(stream(n_batches=20, seed=0), id="steady"),
    pytest.param(stream(n_batches=30, seed=1, growing=True), id="maxima-that-rise"),
    pytest.param(stream(n_batches=1, seed=2), id="one-batch"),
]


@pytest.mark.parametrize("batches", BATCHES)
def test_statistics_are_those_of_all_firings(batches: list[dict[str, Any]]) -> None:
    firings, seen = firings_of(batches), all_seen(batches)
    for feature in range(D_SAE):
        values = [firing.value for firing in seen[feature]]
        assert firings.n[feature] == len(values)
        if not values:
            assert (firings.means[feature], firings.mean_squares[feature], firings.maxima[feature]) == (0, 0, 0)
            continue
        assert firings.maxima[feature] == max(values)
        assert firings.means[feature] == math.fsum(values) / len(values)
        assert firings.mean_squares[feature] == math.fsum(v * v for v in values) / len(values)
        edges = np.array(bin_edges(max(values)))
        bins = np.searchsorted(edges, values, side="right") - 1
        assert firings.histogram[feature].tolist() == np.bincount(bins, minlength=BINS).tolist()
        buckets = np.searchsorted(PROFILE_EDGES, [f.position for f in seen[feature]], side="right") - 1
        assert firings.profile[feature].tolist() == np.bincount(buckets, minlength=len(PROFILE_EDGES)).tolist()
    positions = np.concatenate([batch["positions"] for batch in batches])
    assert firings.bucket_tokens.sum() == len(positions)


@pytest.mark.parametrize("batches", BATCHES)
def test_top_examples_are_the_strongest_contexts_of_each_text(batches: list[dict[str, Any]]) -> None:
    firings, seen = firings_of(batches), all_seen(batches)
    features, _, _, payload = firings.top.entries()
    contexts, positions = places_of(payload)
    for feature in range(D_SAE):
        peaks: dict[int, Seen] = {}
        for firing in seen[feature]:
            if firing.context not in peaks or firing.value > peaks[firing.context].value:
                peaks[firing.context] = firing
        expected: dict[int, Seen] = {}
        for peak in sorted(peaks.values(), key=lambda p: (-p.value, p.context)):
            expected.setdefault(peak.text, peak)
        mine = features == feature
        found = list(zip(contexts[mine], positions[mine], values_of(payload[mine]), strict=True))
        assert found == [(p.context, p.position, p.value) for p in list(expected.values())[:4]]


@pytest.mark.parametrize("batches", BATCHES)
def test_samples_are_those_with_the_largest_random_keys(batches: list[dict[str, Any]]) -> None:
    firings, seen = firings_of(batches), all_seen(batches)
    for feature in range(D_SAE):
        places = np.array([(f.context << 16) | f.position for f in seen[feature]], np.uint64)
        keys = random_keys(np.uint64(SEED), places, np.uint64(feature))
        order = np.argsort(keys)[::-1]
        values = np.array([f.value for f in seen[feature]], np.float32)
        for collector, k in ((firings.random, 5), (firings.sample, 100)):
            _, _, found_keys, payload = collector.entries(feature, feature + 1)
            assert found_keys.tolist() == keys[order[:k]].tolist()
            assert payload[:, PLACE].tolist() == places[order[:k]].tolist()
            assert values_of(payload).tolist() == values[order[:k]].tolist()
        if not len(places):
            continue
        top = math.frexp(values.max())[1]
        bands = np.array([max(N_BANDS - (top - math.frexp(value)[1]), 1) for value in values])
        for band in range(1, N_BANDS + 1):
            group = feature * N_BANDS + band - 1
            _, _, found_keys, payload = firings.banded.entries(group, group + 1)
            mine = [i for i in order if bands[i] == band][:3]
            assert payload[:, PLACE].tolist() == places[mine].tolist()
            assert found_keys.tolist() == keys[mine].tolist()


@pytest.mark.parametrize("batches", BATCHES)
def test_around_a_kept_firing_are_all_of_its_context(
    batches: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_core.firings._LEAST_ROOM", 64)  # so that the arena is swept again and again
    firings, seen = firings_of(batches), all_seen(batches)
    for collector, groups in ((firings.top, 1), (firings.banded, N_BANDS), (firings.random, 1)):
        numbers, _, _, payload = collector.entries()
        contexts, positions = places_of(payload)
        lengths, around, values = firings.around(payload)
        ends = np.cumsum(lengths)
        for number, context, position, length, end in zip(numbers, contexts, positions, lengths, ends, strict=True):
            expected = [f for f in seen[number // groups] if f.context == context]
            run = slice(end - length, end)
            assert around[run].tolist() == [f.position for f in expected]
            assert values[run].tolist() == np.array([f.value for f in expected], np.float32).astype(np.float16).tolist()
            assert position in around[run]


def kept(firings: Firings) -> list[Any]:
    """Everything that can be told apart from outside."""
    found: list[Any] = [firings.n, firings.maxima, firings.means, firings.mean_squares, firings.histogram]
    found += [firings.profile, firings.bucket_tokens]
    for collector in (firings.top, firings.banded, firings.random, firings.sample):
        groups, ranks, keys, payload = collector.entries()
        columns = [0, 1] if collector is firings.sample else [0, 1, 3]
        found += [groups, ranks, keys, payload[:, columns]]
        if collector is not firings.sample:
            found += firings.around(payload)
    return [array.tolist() for array in found]


@pytest.mark.parametrize("split", [0, 1, 7, 19, 20])
@pytest.mark.parametrize("growing", [False, True])
def test_two_parts_merge_into_the_whole(split: int, growing: bool) -> None:
    batches = stream(n_batches=20, seed=5, growing=growing)
    merged = firings_of(batches[:split])
    merged.merge(firings_of(batches[split:]))
    assert kept(merged) == kept(firings_of(batches))


def test_it_goes_on_from_a_saved_state() -> None:
    batches = stream(n_batches=20, seed=6, growing=True)
    state = {name: array.copy() for name, array in firings_of(batches[:9]).state().items()}
    second = Firings(D_SAE, n_top=4, per_band=3, n_random=5, seed=SEED)
    second.restore(state)
    for batch in batches[9:]:
        second.add(**batch)
    assert kept(second) == kept(firings_of(batches))
    other = Firings(D_SAE, n_top=5, per_band=3, n_random=5, seed=SEED)
    with pytest.raises(ValueError, match="top is"):
        other.restore(state)


def test_memory_does_not_grow_with_the_text() -> None:
    firings = firings_of(stream(n_batches=30, seed=7))
    size = sum(array.nbytes for array in firings.state().values())
    for batch in stream(n_batches=300, seed=8):
        firings.add(**batch)
    assert sum(array.nbytes for array in firings.state().values()) < 1.5 * size


def test_buckets_of_the_profile_cover_the_context() -> None:
    buckets = profile_buckets(100)
    assert [position for first, last in buckets for position in range(first, last + 1)] == list(range(100))
    assert buckets[:6] == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 7), (8, 15)]
