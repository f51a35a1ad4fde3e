"""The sparse code of a whole corpus, spilled to disk by the index, and the examples drawn from it.

While the model runs, `CodeFile` takes each batch's active entries and `top` keeps each feature's best contexts. When
the pass is over each feature's maximum is known, and one cheap pass over the file, without the model, gives exact
histograms, unbiased samples of every activation band and of all firings, and the activations of every chosen context.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sae_core.collect import BestK
from sae_core.records import N_BANDS, RANDOM_BAND, TOP_BAND, PackedExample
from sae_core.tokens import TokenContext

HISTOGRAM_BINS = 40
WINDOW = (8, 1)  # tokens before and after the peak that make two top examples the same text
_ENTRY = np.dtype([("context", "<u4"), ("position", "<u2"), ("feature", "<u4"), ("value", "<f4")])
_BLOCK_ENTRIES = 2_000_000  # read at a time
_POSITIONS = 1 << 16  # more than a context can have


class Entries(NamedTuple):
    """Active entries of the code: context, position in it, feature and activation, all (M,), by context."""

    contexts: Tensor
    positions: Tensor
    features: Tensor
    values: Tensor


class CodeFile:
    """Active entries on disk (14 bytes each), appended batch by batch and read back in blocks of whole contexts."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder, prefix="saescope-code-")  # noqa: SIM115  closed by close()
        self._batch_sizes: list[int] = []

    def close(self) -> None:
        self._file.close()

    def append(self, entries: Entries) -> None:
        rows = np.empty(len(entries.values), dtype=_ENTRY)
        for name, column in zip(_ENTRY.names or (), entries, strict=True):
            rows[name] = column.numpy()
        self._file.write(rows.tobytes())
        self._batch_sizes.append(len(rows))

    def blocks(self) -> Iterator[Entries]:
        """All entries in order; a context is never split over two blocks."""
        self._file.flush()
        self._file.seek(0)
        waiting = 0
        for number, size in enumerate(self._batch_sizes, start=1):
            waiting += size
            if waiting >= _BLOCK_ENTRIES or number == len(self._batch_sizes):
                rows = np.frombuffer(self._file.read(waiting * _ENTRY.itemsize), dtype=_ENTRY)
                waiting = 0
                yield Entries(
                    contexts=torch.from_numpy(rows["context"].astype(np.int64)),
                    positions=torch.from_numpy(rows["position"].astype(np.int64)),
                    features=torch.from_numpy(rows["feature"].astype(np.int64)),
                    values=torch.from_numpy(rows["value"].copy()),
                )


def offer_peaks(top: BestK, entries: Entries, *, d_sae: int) -> None:
    """Offers each feature's strongest token in each context; of equal tokens the first."""
    if len(entries.values) == 0:
        return
    keys = entries.contexts * d_sae + entries.features
    order = keys.argsort(stable=True)  # by context and feature, positions ascending within
    groups, counts = torch.unique_consecutive(keys[order], return_counts=True)
    group_of = torch.repeat_interleave(torch.arange(len(groups)), counts)
    values = entries.values[order]
    peaks = torch.full((len(groups),), -torch.inf).scatter_reduce_(0, group_of, values, "amax")
    at_peak = (values == peaks[group_of]).nonzero().squeeze(1)
    first = at_peak[
        torch.unique_consecutive(group_of[at_peak], return_inverse=True)[1].diff(prepend=torch.tensor([-1])) > 0
    ]
    payload = torch.stack([groups // d_sae, entries.positions[order][first]], dim=1)
    top.offer(groups % d_sae, peaks, payload)


@dataclass(frozen=True, slots=True)
class FiringCounts:
    """Per feature: firings in each band (d_sae, N_BANDS) and in each histogram bin (d_sae, HISTOGRAM_BINS)."""

    bands: Tensor
    histogram: Tensor


def draw_samples(
    code: CodeFile, maxima: Tensor, *, per_band: int, n_random: int, seed: int
) -> tuple[FiringCounts, BestK, BestK]:
    """One pass over the code: firing counts, a uniform sample of each (feature, band), and of each feature's firings.

    Band b of 1..N_BANDS holds activations in ((b−1)/N_BANDS, b/N_BANDS] of the feature's maximum.
    """
    d_sae = len(maxima)
    generator = torch.Generator().manual_seed(seed)
    banded = BestK(n_groups=d_sae * N_BANDS, k=per_band, payload_size=2)
    randoms = BestK(n_groups=d_sae, k=n_random, payload_size=2)
    band_counts = torch.zeros(d_sae * N_BANDS, dtype=torch.int64)
    bin_counts = torch.zeros(d_sae * HISTOGRAM_BINS, dtype=torch.int64)
    for block in code.blocks():
        share = block.values / maxima[block.features]  # in (0, 1]
        band = (share * N_BANDS).ceil().clamp(1, N_BANDS).long() - 1
        group = block.features * N_BANDS + band
        bins = (share * HISTOGRAM_BINS).ceil().clamp(1, HISTOGRAM_BINS).long() - 1
        band_counts += torch.bincount(group, minlength=len(band_counts))
        bin_counts += torch.bincount(block.features * HISTOGRAM_BINS + bins, minlength=len(bin_counts))
        payload = torch.stack([block.contexts, block.positions], dim=1)
        banded.offer(group, torch.rand(len(group), generator=generator), payload)
        randoms.offer(block.features, torch.rand(len(group), generator=generator), payload)
    counts = FiringCounts(bands=band_counts.view(d_sae, N_BANDS), histogram=bin_counts.view(d_sae, HISTOGRAM_BINS))
    return counts, banded, randoms


class Chosen(NamedTuple):
    """Chosen examples, each column (M,): feature, band, rank in the band, context and position in it."""

    features: Tensor
    bands: Tensor
    ranks: Tensor
    contexts: Tensor
    positions: Tensor


def choose(*, top: BestK, banded: BestK, randoms: BestK, contexts: list[TokenContext], n_top: int) -> Chosen:
    """The examples to store: the `n_top` strongest contexts with different text around the peak, and the samples."""
    features, ranks, places = top.entries()
    kept = first_of_its_text(features, places, contexts)
    features, places = features[kept], places[kept]
    first = features != features.roll(1)
    first[:1] = True
    starts = first.nonzero().squeeze(1)
    ranks = torch.arange(len(features)) - starts[first.cumsum(0) - 1]
    strongest = Chosen(features, torch.full_like(features, TOP_BAND), ranks, places[:, 0], places[:, 1])
    strongest = Chosen(*(column[ranks < n_top] for column in strongest))
    groups, ranks, places = banded.entries()
    in_bands = Chosen(groups // N_BANDS, groups % N_BANDS + 1, ranks, places[:, 0], places[:, 1])
    groups, ranks, places = randoms.entries()
    at_random = Chosen(groups, torch.full_like(groups, RANDOM_BAND), ranks, places[:, 0], places[:, 1])
    return Chosen(*(torch.cat(columns) for columns in zip(strongest, in_bands, at_random, strict=True)))


def first_of_its_text(features: Tensor, places: Tensor, contexts: list[TokenContext]) -> Tensor:
    """Which of a feature's candidates (by descending activation) are the first with their text around the peak.

    Licence headers and copied passages stand in many documents; `WINDOW` tokens that are equal count as one text.
    """
    before, after = WINDOW
    ids = np.full((len(features), before + 1 + after), -1, dtype=np.int64)
    for row, (context, position) in enumerate(places.tolist()):
        tokens = contexts[context].token_ids
        start = max(0, position - before)
        piece = tokens[start : position + after + 1]
        ids[row, start - position + before :][: len(piece)] = piece
    keys = np.column_stack([features.numpy(), ids])
    _, first = np.unique(keys, axis=0, return_index=True)  # the index of the first row of each kind
    kept = torch.zeros(len(features), dtype=torch.bool)
    kept[torch.from_numpy(first)] = True
    return kept


def packed_examples(code: CodeFile, chosen: Chosen, *, d_sae: int) -> list[PackedExample]:
    """The chosen examples with their feature's activations over the whole context, by feature, band and rank."""
    order = torch.from_numpy(np.lexsort((chosen.ranks.numpy(), chosen.bands.numpy(), chosen.features.numpy())))
    chosen = Chosen(*(column[order] for column in chosen))
    pair_keys = (chosen.contexts * d_sae + chosen.features).numpy()
    keys, positions, values = _entries_of_pairs(code, np.unique(pair_keys), d_sae=d_sae)
    starts, ends = np.searchsorted(keys, pair_keys, side="left"), np.searchsorted(keys, pair_keys, side="right")
    places = keys * _POSITIONS + positions
    activations = values[np.searchsorted(places, pair_keys * _POSITIONS + chosen.positions.numpy())]
    packed_positions, packed_values = positions.astype("<u2").tobytes(), values.astype("<f2").tobytes()
    return [
        PackedExample(
            feature_index=feature,
            context_id=context,
            band=band,
            rank=rank,
            position=position,
            activation=activation,
            positions=packed_positions[2 * start : 2 * end],
            values=packed_values[2 * start : 2 * end],
        )
        for feature, band, rank, context, position, activation, start, end in zip(
            *(column.tolist() for column in (*chosen, activations, starts, ends)), strict=True
        )
    ]


def _entries_of_pairs(code: CodeFile, wanted: np.ndarray, *, d_sae: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys (context · d_sae + feature), positions and values of the wanted pairs' entries, by key and position."""
    found = []
    for block in code.blocks():
        keys = (block.contexts * d_sae + block.features).numpy()
        rows = np.flatnonzero(np.isin(keys, wanted))
        rows = rows[np.argsort(keys[rows], kind="stable")]
        found.append((keys[rows], block.positions.numpy()[rows], block.values.numpy()[rows]))
    keys, positions, values = (np.concatenate(columns) for columns in zip(*found, strict=True))
    return keys, positions, values
