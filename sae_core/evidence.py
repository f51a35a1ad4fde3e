"""What the pages show of every feature, made of the firings that the pass kept (`firings`) and the corpus.

The collectors are read in blocks of features, so that it needs little memory beside them:

    examples      top contexts, samples of the bands, random firings, each with the activations around it
    histograms    of the activations, their shares in the bands, and the profile by position
    tokens        on which a sample of the feature's firings fall, and what comes before and after them
    co-activation from a sample of tokens with all features that are active on them
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sae_core import sparse_cpu
from sae_core.bands import BAND_STARTS, N_BANDS
from sae_core.collect import BestK
from sae_core.compiled import compiled
from sae_core.context_file import ContextFile
from sae_core.firings import LENGTH, TEXT, Firings, places_of, profile_buckets, values_of
from sae_core.records import RANDOM_BAND, TOP_BAND, Context, PackedExamples

BLOCK_FEATURES = 4096
SHOWN_TOKENS = 8
SHOWN_COACTIVE = 10
LEAST_TOGETHER = 3  # tokens of the sample, fewer are chance


class Columns(NamedTuple):
    """A table of several rows for each of some features: packed, and where the rows of each begin and end."""

    rows: NDArray[Any]  # (R,) of a structured type
    bounds: list[int]  # of n features n + 1

    def packed(self, number: int) -> bytes:
        return self.rows[self.bounds[number] : self.bounds[number + 1]].tobytes()

    def listed(self, number: int) -> list[tuple[Any, ...]]:
        listed: list[tuple[Any, ...]] = self.rows[self.bounds[number] : self.bounds[number + 1]].tolist()
        return listed


TOKEN_ROW = np.dtype([("token_id", "<u4"), ("count", "<u2"), ("share", "<f4")])
PLACE_ROW = np.dtype([("first", "<u2"), ("last", "<u2"), ("density", "<f4"), ("share", "<f4")])
COACTIVE_ROW = np.dtype([("feature_index", "<u4"), ("together", "<u4"), ("jaccard", "<f4")])


class Sampled(NamedTuple):
    """What stands at, before and after a sample of the firings of some features."""

    n: list[int]  # firings drawn
    on: Columns  # of TOKEN_ROW; the largest share of the activation first
    before: Columns  # the most frequent first
    after: Columns
    followed: list[int]  # firings that one of the feature's promoted tokens follows


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


def histograms(firings: Firings) -> list[bytes]:
    """Of each feature: no edges, since they follow from its maximum, and the counts; nothing of a dead one."""
    counts = firings.histogram.astype("<u4")
    return [b"\0\0" + row.tobytes() if n else b"" for row, n in zip(counts, firings.n.tolist(), strict=True)]


def band_shares(firings: Firings) -> list[bytes]:
    """Share of each feature's firings in bands 1..N_BANDS, float64."""
    counts = np.add.reduceat(firings.histogram, BAND_STARTS, axis=1)
    shares = (counts / np.maximum(firings.n, 1)[:, None]).astype("<f8")
    return [row.tobytes() for row in shares]


def profiles(firings: Firings, *, context_size: int) -> Columns:
    """Where in the context each feature fires; nothing of a dead one."""
    buckets = np.array(profile_buckets(context_size)).reshape(-1, 2)
    totals = firings.bucket_tokens[: len(buckets)]
    buckets, counts = buckets[totals > 0], firings.profile[:, : len(buckets)][:, totals > 0]
    alive = np.flatnonzero(firings.n)
    rows = np.zeros((len(alive), len(buckets)), PLACE_ROW)
    rows["first"], rows["last"] = buckets[:, 0], buckets[:, 1]
    rows["density"] = counts[alive] / totals[totals > 0]
    rows["share"] = counts[alive] / firings.n[alive, None]
    return Columns(rows.reshape(-1), _bounds(np.where(firings.n > 0, len(buckets), 0)))


def sampled_tokens(
    sample: BestK, contexts: ContextFile, first: int, last: int, *, promoted: NDArray[np.int64]
) -> Sampled:
    """Of the features first..last: the tokens at, before and after their sampled firings.

    `promoted` (last − first, P) are the tokens that each promotes.
    """
    features, _, _, payload = sample.entries(first, last)
    features = features - first
    where, positions = places_of(payload)
    values = values_of(payload).astype(np.float64)
    totals = np.bincount(features, weights=values, minlength=last - first)
    tables = []
    for step in (0, -1, 1):
        ids = contexts.token_ids_at(where, positions + step)
        inside = ids >= 0
        keys, inverse, counts = np.unique((features << 32 | ids)[inside], return_inverse=True, return_counts=True)
        sums = np.bincount(inverse, weights=values[inside], minlength=len(keys))
        owners = keys >> 32
        rows = np.zeros(len(keys), TOKEN_ROW)
        rows["token_id"], rows["count"], rows["share"] = keys & 0xFFFF_FFFF, counts, sums / totals[owners]
        tables.append((owners, rows))
    owners, rows = tables[2]
    is_promoted = (promoted[owners] == rows["token_id"][:, None]).any(axis=1)
    followed = np.bincount(owners[is_promoted], weights=rows["count"][is_promoted], minlength=last - first)
    on, before, after = (
        _first(*table, by=name, n=last - first) for table, name in zip(tables, ("share", "count", "count"), strict=True)
    )
    n = np.bincount(features, minlength=last - first)
    return Sampled(n=n.tolist(), on=on, before=before, after=after, followed=followed.astype(np.int64).tolist())


def _first(owners: NDArray[np.int64], rows: NDArray[Any], *, by: str, n: int) -> Columns:
    """The SHOWN_TOKENS rows of each of n owners with the largest `by`; of equal ones the first."""
    order = np.lexsort((-rows[by].astype(np.float64), owners))
    owners, rows = owners[order], rows[order]
    counts = np.bincount(owners, minlength=n)
    ranks = np.arange(len(owners)) - (np.cumsum(counts) - counts)[owners]
    return Columns(rows[ranks < SHOWN_TOKENS], _bounds(np.minimum(counts, SHOWN_TOKENS)))


def _bounds(counts: NDArray[np.int64]) -> list[int]:
    return [0, *np.cumsum(counts).tolist()]


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

    def strongest(self, d_sae: int) -> Columns:
        """For each feature the others with the largest Jaccard index."""
        lengths, features = _joined(self._lengths), _joined(self._features)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        bounds, _, tokens = (
            column.numpy()
            for column in sparse_cpu.by_feature(torch.from_numpy(offsets), torch.from_numpy(features), d_sae)
        )
        counts = np.diff(bounds)
        rows = np.zeros((d_sae, SHOWN_COACTIVE), COACTIVE_ROW)
        others = np.zeros(rows.shape, np.int64)
        together = np.zeros(rows.shape, np.int64)
        # In 32 bits, of which the cache holds twice as many.
        _strongest(offsets, features.astype(np.int32), bounds, tokens.astype(np.int32), counts, others, together)
        rows["feature_index"], rows["together"] = others, together
        rows["jaccard"] = together / np.maximum(counts[:, None] + counts[others] - together, 1)
        return Columns(rows[together > 0], _bounds((together > 0).sum(axis=1)))


def _joined(parts: list[NDArray[Any]], dtype: Any = np.int64) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


@compiled
def _strongest(offsets: Any, features: Any, bounds: Any, tokens: Any, counts: Any, others: Any, together: Any) -> None:
    """For one feature after the other: counts the others on its tokens, keeps those with the best Jaccard index."""
    d_sae, n_shown = others.shape
    met = np.zeros(d_sae, np.int32)
    touched = np.empty(d_sae + 1, np.int32)
    scores = np.empty(n_shown)
    for feature in range(d_sae):
        n_touched = 0
        for entry in range(bounds[feature], bounds[feature + 1]):
            token = tokens[entry]
            for at in range(offsets[token], offsets[token + 1]):
                other = features[at]
                touched[n_touched] = other
                n_touched += met[other] == 0
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
