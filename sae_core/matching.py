"""Decoder directions of two saved SAEs beside each other, with numpy alone: pages compare SAEs without loading torch.

    decoder_cosine    of two features: two rows are read
    closest_match     of one feature among another SAE's
    best_matches      for every feature of one SAE the feature of the other with the largest cosine, and the reverse

1. Rows are read from the safetensors file in blocks, made float32 and of unit norm; a block of one SAE times a block of
   the other gives cosines, of which each row keeps its largest. Memory is bounded by the blocks, whatever the SAEs.
2. All against all takes 2 · n_a · n_b · width multiplications. More than MOST_WORK, and only a sample of each SAE's
   features, evenly spaced, looks for its match (among all of the other's): as many as MOST_WORK allows.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from sae_core.comparison import Match, Matches
from sae_core.errors import InputError, WeightsError
from sae_core.store_check import WEIGHTS_FILE

MOST_WORK = 10**11  # multiplications: a few seconds on two cores
LEAST_SAMPLE = 50  # features; fewer say too little
BLOCK_ROWS = 2048
BLOCK_BYTES = 16 << 20

Rows = NDArray[np.float32]
Numbers = NDArray[np.int64]


class Decoder:
    """W_dec (d_sae, width) of the SAE in `folder`. Raises WeightsError if it is not there or cannot be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / WEIGHTS_FILE
        if not path.is_file():
            raise WeightsError(f"The weights are not in {folder}; put them back to compare directions.")
        try:
            file: Any = safe_open(path, framework="np")
            self._rows = file.get_slice("W_dec")
            self.d_sae, self.width = (int(size) for size in self._rows.get_shape())
        except (SafetensorError, OSError, ValueError, LookupError) as error:
            raise self._damaged() from error

    def unit_rows(self, start: int, stop: int) -> Rows:
        """Rows from `start` to before `stop`, each divided by its norm; a zero row stays zero."""
        return _unit(self._read(start, stop))

    def blocks(self, features: Numbers) -> Iterator[tuple[Numbers, Rows]]:
        """These features (ascending) and their unit rows. Where few are asked for, a block gathers them from afar."""
        size = max(1, min(BLOCK_ROWS, BLOCK_BYTES // (4 * self.width)))
        numbers: list[Numbers] = []
        rows: list[Rows] = []
        for start in range(0, self.d_sae, size):
            stop = min(start + size, self.d_sae)
            first, last = np.searchsorted(features, [start, stop])
            if first < last:
                numbers.append(features[first:last])
                rows.append(_unit(self._read(start, stop)[numbers[-1] - start]))
            if rows and (sum(map(len, rows)) >= size or stop == self.d_sae):
                yield np.concatenate(numbers), np.concatenate(rows)
                numbers, rows = [], []

    def _read(self, start: int, stop: int) -> Rows:
        try:
            return np.asarray(self._rows[start:stop], dtype=np.float32)
        except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise self._damaged() from error

    def _damaged(self) -> WeightsError:
        return WeightsError(f"The weights in {self.folder} cannot be read; put back what was trained.")


def decoder_cosine(a: Decoder, feature_a: int, b: Decoder, feature_b: int) -> float:
    """Of two features' decoder directions. Raises InputError where they are not in spaces of the same width."""
    _check_widths(a, b)
    return float((_unit_row(a, feature_a) * _unit_row(b, feature_b)).sum())


def closest_match(a: Decoder, feature_a: int, b: Decoder) -> Match:
    """The feature of b whose direction is closest to this one of a. Raises InputError where widths differ."""
    _check_widths(a, b)
    row, best = _unit_row(a, feature_a), Match(feature_index=feature_a, other_index=0, cosine=-1.0)
    for theirs, directions in b.blocks(_features(b, None)):
        cosines = directions @ row[0]  # (theirs,)
        at = int(cosines.argmax())
        if cosines[at] > best.cosine:
            best = Match(feature_index=feature_a, other_index=int(theirs[at]), cosine=min(1.0, float(cosines[at])))
    return best


def best_matches(
    a: Decoder,
    b: Decoder,
    *,
    alive_a: Sequence[int] | None = None,
    alive_b: Sequence[int] | None = None,
    most_work: int = MOST_WORK,
) -> Matches:
    """Of the features that are alive (all, if not said) among those of the other that are.

    Raises InputError where widths differ, or where even a small sample is more than `most_work`.
    """
    _check_widths(a, b)
    of_a, of_b = _features(a, alive_a), _features(b, alive_b)
    if not len(of_a) or not len(of_b):
        raise InputError("One of the two SAEs has no feature that is alive, so there is nothing to match.")
    from_a, from_b = of_a, of_b
    if 2 * len(of_a) * len(of_b) * a.width > most_work:
        most = most_work // (a.width * (len(of_a) + len(of_b)))
        if most < LEAST_SAMPLE:
            raise InputError(
                f"{len(of_a):,} and {len(of_b):,} directions of {a.width:,} numbers are too many to match for a page; "
                "call `sae_core.matching.best_matches` with more `most_work`."
            )
        from_a, from_b = _evenly(of_a, most), _evenly(of_b, most)
    return Matches(
        width=a.width, n_a=len(of_a), n_b=len(of_b), a=_closest(a, from_a, b, of_b), b=_closest(b, from_b, a, of_a)
    )


def _closest(mine: Decoder, features: Numbers, other: Decoder, among: Numbers) -> tuple[Match, ...]:
    """For each of these features of mine the one among the other's features with the largest cosine."""
    found: list[Match] = []
    for chosen, rows in mine.blocks(features):
        best = np.full(len(chosen), -np.inf, dtype=np.float32)
        at = np.zeros(len(chosen), dtype=np.int64)
        for theirs, directions in other.blocks(among):
            cosines = rows @ directions.T  # (chosen, theirs)
            closest = cosines.argmax(axis=1)
            cosine = cosines[np.arange(len(chosen)), closest]
            better = cosine > best
            best[better], at[better] = cosine[better], theirs[closest[better]]
        found += [
            Match(feature_index=i, other_index=j, cosine=c)
            for i, j, c in zip(chosen.tolist(), at.tolist(), np.clip(best, -1, 1).tolist(), strict=True)
        ]
    return tuple(found)


def _unit(rows: Rows) -> Rows:
    norms: Any = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Rows = rows / np.maximum(norms, 1e-12)
    return unit


def _unit_row(decoder: Decoder, feature_index: int) -> Rows:
    """(1, width)."""
    if feature_index >= decoder.d_sae:
        raise WeightsError(f"The weights in {decoder.folder} have no feature {feature_index}; index the SAE again.")
    return decoder.unit_rows(feature_index, feature_index + 1)


def _check_widths(a: Decoder, b: Decoder) -> None:
    if a.width != b.width:
        raise InputError(
            f"One SAE writes vectors of {a.width:,} numbers and the other of {b.width:,}, so their directions have no "
            "cosine."
        )


def _features(decoder: Decoder, alive: Sequence[int] | None) -> Numbers:
    if alive is None:
        return np.arange(decoder.d_sae, dtype=np.int64)
    return np.array(sorted(i for i in alive if 0 <= i < decoder.d_sae), dtype=np.int64)


def _evenly(features: Numbers, most: int) -> Numbers:
    """At most so many of them, evenly spaced."""
    if len(features) <= most:
        return features
    return features[np.linspace(0, len(features) - 1, most).round().astype(np.int64)]
