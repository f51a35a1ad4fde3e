"""What the pages show of every feature, made of the firings that the pass kept (`firings`) and the corpus.

`Evidence` reads the collectors feature by feature, in blocks, so that it needs little memory beside them:

    examples      top contexts, samples of the bands, random firings, each with the activations around it
    statistics    counts, means, histogram, profile by position
    tokens        on which a sample of the feature's firings fall, and what comes before and after them
    co-activation from a sample of tokens with all features that are active on them
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_core.bands import BINS, N_BANDS, band_counts, bin_edges
from sae_core.collect import BestK
from sae_core.compiled import compiled
from sae_core.context_file import ContextFile
from sae_core.firings import LENGTH, TEXT, Firings, places_of, profile_buckets, values_of
from sae_core.records import RANDOM_BAND, TOP_BAND, CoactiveFeature, Context, Histogram, PackedExamples, PositionShare

BLOCK_FEATURES = 4096
SHOWN_TOKENS = 8
SHOWN_COACTIVE = 10
LEAST_TOGETHER = 3  # tokens of the sample, fewer are chance


class SampledTokens(NamedTuple):
    """The tokens that a sample of a feature's firings fall on: ids and counts, and their share of the activation."""

    ids: NDArray[np.int64]
    counts: NDArray[np.int64]
    shares: NDArray[np.float64]


class Sampled(NamedTuple):
    """What stands at, before and after the sampled firings of one feature."""

    n: int
    on: SampledTokens
    before: SampledTokens
    after: SampledTokens
    followers: SampledTokens  # all that come after, not only the most frequent


def context_records(firings: Firings, contexts: ContextFile) -> Iterator[Context]:
    """The contexts that any example points at, in order."""
    used = [
        np.unique(places_of(collector.entries()[3])[0]) for collector in (firings.top, firings.banded, firings.random)
    ]
    for number in np.unique(np.concatenate(used)).tolist():
        context = contexts[number]
        yield Context(context_id=number, source=context.source, token_ids=context.token_ids.astype("<u4").tobytes())


def example_records(firings: Firings, contexts: ContextFile) -> Iterator[PackedExamples]:
    """The examples of each feature that has any, by band and rank."""
    copies = contexts.copies(firings.top.entries()[3][:, TEXT])
    n_counted = 0
    for first in range(0, firings.d_sae, BLOCK_FEATURES):
        last = min(first + BLOCK_FEATURES, firings.d_sae)
        features, _, _, payload = firings.top.entries(first, last)
        columns = [(features, np.full_like(features, TOP_BAND), payload[:, :TEXT])]
        own_copies = copies[n_counted : n_counted + len(features)]
        n_counted += len(features)
        groups, _, _, payload = firings.banded.entries(first * N_BANDS, last * N_BANDS)
        columns.append((groups // N_BANDS, groups % N_BANDS + 1, payload))
        features, _, _, payload = firings.random.entries(first, last)
        columns.append((features, np.full_like(features, RANDOM_BAND), payload))
        yield from _packed(firings, columns, own_copies)


def _packed(
    firings: Firings, columns: list[tuple[Any, Any, Any]], copies: NDArray[np.int64]
) -> Iterator[PackedExamples]:
    features, bands, payload = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    counted = np.zeros(len(features), np.int64)
    counted[: len(copies)] = copies
    order = np.lexsort((bands, features))  # stable: ranks stay in order
    features, bands, payload, counted = features[order], bands[order], payload[order], counted[order]
    ids, positions = places_of(payload)
    lengths, active_positions, active_values = firings.around(payload)
    ends = np.cumsum(lengths)
    bounds = [*np.flatnonzero(np.diff(features, prepend=-1)).tolist(), len(features)]
    packed = {
        "bands": (bands.astype("<u1").tobytes(), 1),
        "context_ids": (ids.astype("<u4").tobytes(), 4),
        "positions": (positions.astype("<u2").tobytes(), 2),
        "activations": (values_of(payload).astype("<f4").tobytes(), 4),
        "copies": (counted.astype("<u4").tobytes(), 4),
        "lengths": (payload[:, LENGTH].astype("<u2").tobytes(), 2),
    }
    around, values = active_positions.astype("<u2").tobytes(), active_values.astype("<f2").tobytes()
    starts = np.concatenate([[0], ends])
    for start, stop in pairwise(bounds):
        run = slice(2 * int(starts[start]), 2 * int(starts[stop]))
        yield PackedExamples(
            feature_index=int(features[start]),
            **{name: column[size * start : size * stop] for name, (column, size) in packed.items()},
            active_positions=around[run],
            active_values=values[run],
        )


class Statistics:
    """Numbers of each feature that are sums over the corpus."""

    def __init__(self, firings: Firings, *, n_tokens: int, context_size: int) -> None:
        self.n = firings.n.tolist()
        self.densities = (firings.n / max(n_tokens, 1)).tolist()
        self.maxima = firings.maxima.tolist()
        self.means = firings.means.tolist()
        self.mean_squares = firings.mean_squares.tolist()
        self._firings = firings
        self._buckets = profile_buckets(context_size)

    def histogram(self, feature_index: int) -> Histogram:
        if not self.n[feature_index]:
            return Histogram(edges=(), counts=())
        counts = tuple(self._firings.histogram[feature_index].tolist())
        return Histogram(edges=bin_edges(self.maxima[feature_index]), counts=counts)

    def band_shares(self, feature_index: int) -> tuple[float, ...]:
        n = max(self.n[feature_index], 1)
        assert self._firings.histogram.shape[1] == BINS
        return tuple(count / n for count in band_counts(tuple(self._firings.histogram[feature_index].tolist())))

    def profile(self, feature_index: int) -> tuple[PositionShare, ...]:
        n = self.n[feature_index]
        if not n:
            return ()
        counts, totals = self._firings.profile[feature_index].tolist(), self._firings.bucket_tokens.tolist()
        return tuple(
            PositionShare(first=first, last=last, density=count / total, share=count / n)
            for (first, last), count, total in zip(self._buckets, counts, totals, strict=False)
            if total
        )


def sampled_tokens(sample: BestK, contexts: ContextFile, first: int, last: int) -> dict[int, Sampled]:
    """Of the features first..last: the tokens at, before and after their sampled firings; dead ones are left out."""
    features, _, _, payload = sample.entries(first, last)
    where, positions = places_of(payload)
    values = values_of(payload).astype(np.float64)
    tables = [_counted(features, contexts.token_ids_at(where, positions + step), values) for step in (0, -1, 1)]
    found = {}
    numbers, counts = np.unique(features, return_counts=True)
    for number, n in zip(numbers.tolist(), counts.tolist(), strict=True):
        on, before, after = (table.get(number, _NONE) for table in tables)
        found[number] = Sampled(
            n=n,
            on=_first(on, by=on.shares),
            before=_first(before, by=before.counts),
            after=_first(after, by=after.counts),
            followers=after,
        )
    return found


def _first(tokens: SampledTokens, *, by: NDArray[Any]) -> SampledTokens:
    """Those with the largest `by`; of equal ones the lower id first."""
    order = np.argsort(-by, kind="stable")[:SHOWN_TOKENS]
    return SampledTokens(tokens.ids[order], tokens.counts[order], tokens.shares[order])


_NONE = SampledTokens(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))


def _counted(
    features: NDArray[np.int64], ids: NDArray[np.int64], values: NDArray[np.float64]
) -> dict[int, SampledTokens]:
    """By feature: its tokens, by id, how often each stands there, and its share of the feature's activation."""
    totals = np.bincount(features, weights=values) if len(features) else np.zeros(1)
    keys = (features << 32) | ids
    inside = ids >= 0
    known, inverse, counts = np.unique(keys[inside], return_inverse=True, return_counts=True)
    sums = np.bincount(inverse, weights=values[inside], minlength=len(known))
    owners = known >> 32
    shares = sums / np.maximum(totals[owners], 1e-30)
    bounds = np.flatnonzero(np.diff(owners, prepend=-1))
    ends = np.append(bounds[1:], len(owners))
    return {
        int(owners[start]): SampledTokens(known[start:end] & 0xFFFF_FFFF, counts[start:end], shares[start:end])
        for start, end in zip(bounds.tolist(), ends.tolist(), strict=True)
    }


class Coactivation:
    """A sample of tokens with all features active on each, as rows of a sparse matrix.

    A token is in the sample if its random key reaches `bound`; half of them at 2^63.
    """

    def __init__(self, bound: int) -> None:
        self._bound = np.uint64(bound)
        self._keys: list[NDArray[np.uint64]] = []
        self._lengths: list[NDArray[np.int64]] = []
        self._features: list[NDArray[np.int64]] = []

    def add(self, keys: NDArray[np.uint64], rows: NDArray[np.int64], features: NDArray[np.int64]) -> None:
        """Adds N tokens by their random keys (N,), and the active entries (E,) of them, row by row."""
        is_in = keys >= self._bound
        self._keys.append(keys[is_in])
        self._lengths.append(np.bincount(rows, minlength=len(keys))[is_in])
        self._features.append(features[is_in[rows]])

    def merge(self, other: "Coactivation") -> None:
        for keys, lengths, features in zip(other._keys, other._lengths, other._features, strict=True):
            self.add(keys, np.repeat(np.arange(len(lengths)), lengths), features)

    def state(self) -> dict[str, NDArray[Any]]:
        return {
            "keys": _joined(self._keys, np.uint64),
            "lengths": _joined(self._lengths),
            "features": _joined(self._features),
        }

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Goes on from what `state` gave, also with a higher bound."""
        lengths = state["lengths"]
        self._keys, self._lengths, self._features = [], [], []
        self.add(state["keys"], np.repeat(np.arange(len(lengths)), lengths), state["features"])

    @property
    def n_tokens(self) -> int:
        return sum(len(part) for part in self._lengths)

    def strongest(self, d_sae: int) -> list[tuple[CoactiveFeature, ...]]:
        """For each feature the others with the largest Jaccard index."""
        lengths, features = _joined(self._lengths), _joined(self._features)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        tokens = np.repeat(np.arange(len(lengths)), lengths)
        order = np.argsort(features, kind="stable")
        counts = np.bincount(features, minlength=d_sae)
        bounds = np.concatenate([[0], np.cumsum(counts)])
        others = np.zeros((d_sae, SHOWN_COACTIVE), np.int64)
        together = np.zeros((d_sae, SHOWN_COACTIVE), np.int64)
        _strongest(offsets, features, bounds, tokens[order], counts, others, together)
        own = counts[:, None]
        jaccard = together / np.maximum(own + counts[others] - together, 1)
        rows = zip(others.tolist(), together.tolist(), jaccard.tolist(), strict=True)
        return [
            tuple(
                CoactiveFeature(feature_index=other, together=n, jaccard=share)
                for other, n, share in zip(*row, strict=True)
                if n
            )
            for row in rows
        ]


def _joined(parts: list[NDArray[Any]], dtype: Any = np.int64) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


@compiled
def _strongest(offsets: Any, features: Any, bounds: Any, tokens: Any, counts: Any, others: Any, together: Any) -> None:
    """For one feature after the other: counts the others on its tokens, keeps those with the best Jaccard index."""
    d_sae, n_shown = others.shape
    met = np.zeros(d_sae, np.int64)
    touched = np.empty(d_sae, np.int64)
    scores = np.empty(n_shown)
    for feature in range(d_sae):
        n_touched = 0
        for entry in range(bounds[feature], bounds[feature + 1]):
            token = tokens[entry]
            for at in range(offsets[token], offsets[token + 1]):
                other = features[at]
                if met[other] == 0:
                    touched[n_touched] = other
                    n_touched += 1
                met[other] += 1
        scores[:] = 0.0
        for i in range(n_touched):
            other = touched[i]
            n = met[other]
            met[other] = 0
            if other == feature or n < LEAST_TOGETHER:
                continue
            score = n / (counts[feature] + counts[other] - n)
            place = n_shown
            # Of equal ones the lower number first, whatever the order of the tokens.
            while place > 0 and (
                score > scores[place - 1] or (score == scores[place - 1] and other < others[feature, place - 1])
            ):
                place -= 1
            if place == n_shown:
                continue
            for j in range(n_shown - 1, place, -1):
                scores[j] = scores[j - 1]
                others[feature, j] = others[feature, j - 1]
                together[feature, j] = together[feature, j - 1]
            scores[place] = score
            others[feature, place] = other
            together[feature, place] = n
