"""What one pass over a corpus keeps of every feature: counts, and the firings that its page will show.

Fed batch by batch with the sparse code (`add`). Per feature:

    n, maximum, sums        on how many tokens it is active, how strongly, Σa and Σa²
    histogram               of its activations, four bins to an octave, ten octaves down from its maximum
    profile                 firings by position in the context
    top                     the contexts with its strongest activations; of contexts that read the same there, the best
    banded                  a uniform sample of the firings in each activation band (`bands`)
    random                  a uniform sample of all its firings
    sample                  a larger one without the activations around: which tokens it fires on, and what comes before
                            and after

The first four kinds are sums and the others `collect.BestK`, so the firings of two halves of a corpus merge into those
of the whole, and all of it is bounded by features × kept examples, however long the text. Around a kept firing the
feature's activations over the whole context are kept too, in an arena that is swept when half of it is unused.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_core import sparse_cpu
from sae_core.bands import BINS, BINS_PER_OCTAVE, N_BANDS
from sae_core.collect import EMPTY, KEY, BestK, enter, random_key
from sae_core.compiled import compiled
from sae_core.config import MOST_RANDOM

# Columns of a slot's payload. `sample` has the first two, only `top` has the last.
PLACE, VALUE, OFFSET, LENGTH, TEXT = range(5)
PROFILE_EDGES = (0, 1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)  # first positions of the buckets
_POSITION_BITS = 16
_COUNTS = ("n", "maxima", "exponents", "sums", "histogram", "profile", "bucket_tokens")


class Firings:
    """The collectors of an SAE's features and their arena."""

    def __init__(self, d_sae: int, *, n_top: int, per_band: int, n_random: int, seed: int) -> None:
        self.d_sae = d_sae
        self.seed = seed
        self.n = np.zeros(d_sae, np.int64)
        self.maxima = np.zeros(d_sae, np.float32)
        self.exponents = np.full(d_sae, _NEVER, np.int32)  # the maximum is in [2^(e−1), 2^e)
        self.sums = np.zeros((d_sae, 4))  # Σa and Σa², each in two parts (Neumaier), so that no order matters
        self.histogram = np.zeros((d_sae, BINS), np.int64)  # the last bin ends at 2^e, the first starts at 0
        self.profile = np.zeros((d_sae, len(PROFILE_EDGES)), np.int64)
        self.bucket_tokens = np.zeros(len(PROFILE_EDGES), np.int64)  # tokens of the corpus at those positions
        self.top = BestK(n_groups=d_sae, k=n_top, payload_size=5, distinct=True)
        self.banded = BestK(n_groups=d_sae * N_BANDS, k=per_band, payload_size=4)
        self.random = BestK(n_groups=d_sae, k=n_random, payload_size=4)
        self.sample = BestK(n_groups=d_sae, k=MOST_RANDOM, payload_size=2)
        self._positions = np.zeros(0, np.uint16)
        self._values = np.zeros(0, np.float16)
        self._used = np.zeros(1, np.int64)

    def add(
        self,
        rows: Tensor,
        features: Tensor,
        values: Tensor,
        *,
        contexts: NDArray[np.int64],
        positions: NDArray[np.int64],
        texts: NDArray[np.uint64],
    ) -> None:
        """Adds the active entries of a batch of N tokens, row by row: rows, features and values, each (E,).

        Of each token: its context and position, in this order ascending, and a number that says what is read around
        it, all (N,).
        """
        n_rows = len(contexts)
        offsets = torch.zeros(n_rows + 1, dtype=torch.int64)
        torch.cumsum(torch.bincount(rows, minlength=n_rows), 0, out=offsets[1:])
        bounds, order, rows_of = sparse_cpu.by_feature(offsets, features.to(torch.int64), self.d_sae)
        buckets = np.searchsorted(PROFILE_EDGES, positions, side="right") - 1
        self.bucket_tokens += np.bincount(buckets, minlength=len(PROFILE_EDGES))
        self._make_room(len(values))
        sorted_values = values.float()[order].numpy()
        _collect(
            bounds.numpy(),
            rows_of.numpy(),
            sorted_values,
            sorted_values.view(np.uint32),
            sorted_values.astype(np.float16).view(np.uint16),
            contexts,
            positions,
            texts,
            buckets,
            np.uint64(self.seed),
            self.n,
            self.maxima,
            self.exponents,
            self.sums,
            self.histogram,
            self.profile,
            self.top.slots,
            self.banded.slots.reshape(self.d_sae, N_BANDS, self.banded.k, -1),
            self.random.slots,
            self.sample.slots,
            self._positions,
            self._values.view(np.uint16),
            self._used,
        )

    @property
    def means(self) -> NDArray[np.float64]:
        """Mean activation over the tokens on which a feature is active, (d_sae,); 0 if there are none."""
        return (self.sums[:, 0] + self.sums[:, 1]) / np.maximum(self.n, 1)

    @property
    def mean_squares(self) -> NDArray[np.float64]:
        """Mean squared activation over the same tokens, (d_sae,)."""
        return (self.sums[:, 2] + self.sums[:, 3]) / np.maximum(self.n, 1)

    def around(self, payload: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.uint16], NDArray[np.float16]]:
        """The activations around M kept firings: lengths (M,), then positions and values of all, one by one."""
        lengths = payload[:, LENGTH].astype(np.int64)
        picked = _ranges(payload[:, OFFSET].astype(np.int64), lengths)
        return lengths, self._positions[picked], self._values[picked]

    def state(self) -> dict[str, NDArray[Any]]:
        """All of it as arrays."""
        self._sweep(spare=0)
        arrays = {name: getattr(self, name) for name in _COUNTS}
        collectors = {name: collector.slots for name, collector in self._collectors().items()}
        return {**arrays, **collectors, "arena_positions": self._positions, "arena_values": self._values}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Goes on from what `state` gave. Raises ValueError if it is of other features or other numbers of examples."""
        new = {name: state[name] for name in (*_COUNTS, *self._collectors())}
        old = {**{name: getattr(self, name) for name in _COUNTS}, **{n: c.slots for n, c in self._collectors().items()}}
        for name, array in new.items():
            if array.shape != old[name].shape or array.dtype != old[name].dtype:
                raise ValueError(f"{name} is {array.shape}, not {old[name].shape}")
            old[name][...] = array
        self._positions, self._values = state["arena_positions"], state["arena_values"]
        self._used[0] = len(self._positions)

    def merge(self, other: "Firings") -> None:
        """Adds what was collected from other contexts."""
        offset = int(self._used[0])
        n_new = int(other._used[0])
        self._make_room(n_new)
        offset = int(self._used[0])  # after a sweep
        self._positions[offset : offset + n_new] = other._positions[:n_new]
        self._values[offset : offset + n_new] = other._values[:n_new]
        self._used[0] += n_new
        for name, collector in other._collectors().items():
            if name != "sample":
                slots = collector.slots.copy()
                slots[:, :, 1 + OFFSET] += np.uint64(offset)
                collector.slots = slots
        exponents = np.maximum(self.exponents, other.exponents)
        for firings in (self, other):
            _rise(
                exponents,
                firings.exponents,
                firings.histogram,
                firings.banded.slots.reshape(self.d_sae, N_BANDS, firings.banded.k, -1),
            )
        self.maxima = np.maximum(self.maxima, other.maxima)
        self.histogram += other.histogram
        self.n += other.n
        self.profile += other.profile
        self.bucket_tokens += other.bucket_tokens
        _add_sums(self.sums, other.sums)
        for name, collector in self._collectors().items():
            collector.merge(other._collectors()[name])

    def _collectors(self) -> dict[str, BestK]:
        return {"top": self.top, "banded": self.banded, "random": self.random, "sample": self.sample}

    def _make_room(self, n_entries: int) -> None:
        """Room for so many more entries of the arena."""
        if self._used[0] + n_entries > len(self._positions):
            self._sweep(spare=n_entries)

    def _sweep(self, *, spare: int) -> None:
        """Moves what is still referred to into a new arena, with as much room again and `spare` more if not 0."""
        with_runs = [self.top, self.banded, self.random]
        offsets = np.concatenate([c.slots[:, :, 1 + OFFSET].ravel() for c in with_runs])
        lengths = np.concatenate(
            [np.where(c.slots[:, :, KEY] != EMPTY, c.slots[:, :, 1 + LENGTH], 0).ravel() for c in with_runs]
        )
        kept = np.flatnonzero(lengths)
        places, first, inverse = np.unique(offsets[kept], return_index=True, return_inverse=True)
        sizes = lengths[kept][first].astype(np.int64)
        picked = _ranges(places.astype(np.int64), sizes)
        n_live = len(picked)
        n_room = n_live + (max(n_live, _LEAST_ROOM) + spare if spare else 0)
        positions, values = np.zeros(n_room, np.uint16), np.zeros(n_room, np.float16)
        positions[:n_live], values[:n_live] = self._positions[picked], self._values[picked]
        self._positions, self._values = positions, values
        self._used[0] = n_live
        moved = np.zeros(len(offsets), np.uint64)
        moved[kept] = (np.cumsum(sizes) - sizes).astype(np.uint64)[inverse]
        start = 0
        for collector in with_runs:
            shape = collector.slots.shape[:2]
            collector.slots[:, :, 1 + OFFSET] = moved[start : start + shape[0] * shape[1]].reshape(shape)
            start += shape[0] * shape[1]


def places_of(payload: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Contexts and positions (M,) of kept firings."""
    places = payload[:, PLACE].astype(np.int64)
    return places >> _POSITION_BITS, places & ((1 << _POSITION_BITS) - 1)


def values_of(payload: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Activations (M,) of kept firings."""
    return payload[:, VALUE].astype(np.uint32).view(np.float32)


def profile_buckets(context_size: int) -> list[tuple[int, int]]:
    """First and last position of each bucket of the profile that contexts of this size reach."""
    ends = (*PROFILE_EDGES[1:], 1 << _POSITION_BITS)
    buckets = zip(PROFILE_EDGES, ends, strict=True)
    return [(first, min(end, context_size) - 1) for first, end in buckets if first < context_size]


_NEVER = -(1 << 30)  # the exponent of a feature that has not fired
_LEAST_ROOM = 1 << 16


def _ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """start, start + 1, … of each range, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)


@compiled
def _collect(
    bounds: Any,
    rows: Any,
    values: Any,
    bits: Any,
    halves: Any,
    contexts: Any,
    positions: Any,
    texts: Any,
    buckets: Any,
    seed: Any,
    n: Any,
    maxima: Any,
    exponents: Any,
    sums: Any,
    histogram: Any,
    profile: Any,
    top: Any,
    banded: Any,
    random: Any,
    sample: Any,
    arena_positions: Any,
    arena_halves: Any,
    used: Any,
) -> None:
    payload = np.zeros(5, np.uint64)
    for feature in range(len(bounds) - 1):
        entry, end = bounds[feature], bounds[feature + 1]
        if entry == end:
            continue
        n[feature] += end - entry
        best, samples, randoms, bands = top[feature], sample[feature], random[feature], banded[feature]
        its_sums, bins, its_profile = sums[feature], histogram[feature], profile[feature]
        while entry < end:
            # One context's firings of the feature: entry..after.
            context = contexts[rows[entry]]
            after, peak = entry, entry
            while after < end and contexts[rows[after]] == context:
                if values[after] > values[peak]:
                    peak = after
                after += 1
            offset = used[0]  # where they are kept, if any of them is
            is_kept = False
            payload[OFFSET] = np.uint64(offset)
            payload[LENGTH] = np.uint64(after - entry)
            if values[peak] > maxima[feature]:
                maxima[feature] = values[peak]
                if _exponent(bits[peak]) > exponents[feature]:
                    _raise_exponent(feature, _exponent(bits[peak]), exponents, histogram, banded)
            exponent = exponents[feature]
            # Positive floats are in the order of their bits. Of equal ones the earlier context stays.
            key = (np.uint64(bits[peak]) << np.uint64(32)) | (np.uint64(0xFFFFFFFF) - np.uint64(context))
            if key > best[0, KEY]:
                payload[PLACE] = _place(context, positions[rows[peak]])
                payload[VALUE] = np.uint64(bits[peak])
                payload[TEXT] = texts[rows[peak]]
                is_kept |= enter(best, key, payload, True)
            for i in range(entry, after):
                row = rows[i]
                _add(its_sums, 0, np.float64(values[i]))
                _add(its_sums, 2, np.float64(values[i]) * np.float64(values[i]))
                its_profile[buckets[row]] += 1
                bins[_bin(bits[i], exponent)] += 1
                payload[PLACE] = _place(context, positions[row])
                payload[VALUE] = np.uint64(bits[i])
                key = random_key(seed, payload[PLACE], np.uint64(feature))
                if key > samples[0, KEY]:
                    enter(samples, key, payload, False)
                    if key > randoms[0, KEY]:
                        is_kept |= enter(randoms, key, payload, False)
                band = N_BANDS - 1 - min(exponent - _exponent(bits[i]), N_BANDS - 1)
                if key > bands[band, 0, KEY]:
                    is_kept |= enter(bands[band], key, payload, False)
            if is_kept:
                for i in range(entry, after):
                    arena_positions[offset + i - entry] = positions[rows[i]]
                    arena_halves[offset + i - entry] = halves[i]
                used[0] = offset + after - entry
            entry = after


@compiled
def _place(context: Any, position: Any) -> Any:
    return (np.uint64(context) << np.uint64(16)) | np.uint64(position)


@compiled
def _exponent(bits: Any) -> Any:
    """e such that the float32 with these bits is in [2^(e−1), 2^e)."""
    return np.int64(bits >> np.uint32(23)) - 126


@compiled
def _bin(bits: Any, exponent: Any) -> Any:
    """The bin of the histogram; an octave is cut where the mantissa is 2^(1/4), 2^(1/2), 2^(3/4)."""
    mantissa = bits & np.uint32(0x7FFFFF)
    quarter = 0
    if mantissa >= np.uint32(0x5744FD):
        quarter = 3
    elif mantissa >= np.uint32(0x3504F3):
        quarter = 2
    elif mantissa >= np.uint32(0x1837F0):
        quarter = 1
    return max(0, BINS - BINS_PER_OCTAVE * (1 + exponent - _exponent(bits)) + quarter)


@compiled
def _add(sums: Any, at: int, value: float) -> None:
    """Adds to a sum whose rounding errors are summed up beside it (Neumaier 1974)."""
    total = sums[at] + value
    if sums[at] >= value:
        sums[at + 1] += (sums[at] - total) + value
    else:
        sums[at + 1] += (value - total) + sums[at]
    sums[at] = total


@compiled
def _add_sums(sums: Any, others: Any) -> None:
    for feature in range(len(sums)):
        for at in (0, 2):
            _add(sums[feature], at, others[feature, at])
            sums[feature, at + 1] += others[feature, at + 1]


@compiled
def _rise(goals: Any, exponents: Any, histogram: Any, banded: Any) -> None:
    for feature in range(len(goals)):
        _raise_exponent(feature, goals[feature], exponents, histogram, banded)


@compiled
def _raise_exponent(feature: Any, exponent: Any, exponents: Any, histogram: Any, banded: Any) -> None:
    """Moves bins and bands down by as many octaves as the maximum has risen; what falls out joins the lowest."""
    octaves = exponent - exponents[feature]
    if octaves <= 0:
        return
    exponents[feature] = exponent
    bins = histogram[feature]
    steps = min(BINS, BINS_PER_OCTAVE * octaves)
    for i in range(1, BINS):
        goal = max(0, i - steps)
        count = bins[i]
        bins[i] = 0
        bins[goal] += count
    bands = banded[feature]
    for band in range(1, N_BANDS):
        goal = max(0, band - octaves)
        if goal == 0:
            for slot in range(bands.shape[1]):
                if bands[band, slot, KEY] != np.uint64(EMPTY):
                    enter(bands[0], bands[band, slot, KEY], bands[band, slot, 1:], False)
        else:
            bands[goal] = bands[band]
        bands[band] = np.uint64(0)
