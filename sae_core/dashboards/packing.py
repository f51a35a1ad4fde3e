"""What bulk files say of a feature, as the columns of packed numbers that the store keeps.

Intervals become bands: octaves where they are octaves, as in saescope's own export, else fifths of the maximum. An
interval that holds all firings is a random sample of them, and an example of no interval is a top example.
"""

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sae_core.bands import N_BANDS, band_edges, bin_edges
from sae_core.dashboards.spool import Part
from sae_core.records import RANDOM_BAND, TOP_BAND

_LARGEST_HALF = 65_504.0


@dataclass(frozen=True, slots=True)
class Row:
    band: int
    context_id: int
    position: int
    activation: float
    positions: NDArray[np.int64]
    values: NDArray[np.float32]


def row_of(part: Part, row: int, context_id: int, most: float, *, are_octaves: bool) -> Row:
    values = part.value[part.start[row] : part.start[row + 1]]
    positions = np.flatnonzero(values > 0)
    low, high, contains = part.bins[row].tolist()
    band = band_of(low, high, most, are_octaves=are_octaves) if 0 <= contains < 1 else RANDOM_BAND
    position = int(part.position[row])
    return Row(
        band=TOP_BAND if contains < 0 else band,
        context_id=context_id,
        position=position,
        activation=float(values[position]),
        positions=positions,
        values=np.minimum(values[positions], _LARGEST_HALF),
    )


def are_octaves_of(intervals: list[tuple[float, float]], most: float) -> bool:
    edges = band_edges(most)
    own = list(pairwise(edges))
    return bool(intervals) and all(any(np.allclose(pair, octave, rtol=1e-5) for octave in own) for pair in intervals)


def band_of(low: float, high: float, most: float, *, are_octaves: bool) -> int:
    middle = (low + high) / 2
    if are_octaves:
        return max(1, sum(middle > edge for edge in band_edges(most)[:-1]))
    return min(N_BANDS, max(1, 1 + int(N_BANDS * middle / most))) if most > 0 else 1


def packed_histogram(values: tuple[float, ...], heights: tuple[int, ...], most: float) -> bytes:
    """As the store keeps it: no edges where they are those of `bands`, else the middles give them."""
    if not values or any(b <= a for a, b in pairwise(values)):
        return b""
    own = bin_edges(most)
    middles = [(a + b) / 2 for a, b in pairwise(own)]
    counts = struct.pack(f"<{len(heights)}I", *(min(height, 2**32 - 1) for height in heights))
    if len(middles) == len(values) and np.allclose(values, middles, rtol=1e-5):
        return struct.pack("<H", 0) + counts
    half = (values[1] - values[0]) / 2 if len(values) > 1 else values[0] or 0.5
    edges = [max(0.0, values[0] - half), *((a + b) / 2 for a, b in pairwise(values))]
    edges.append(values[-1] + half)
    return struct.pack("<H", len(edges)) + struct.pack(f"<{len(edges)}d", *edges) + counts


def packed_pairs(pairs: Iterable[tuple[int, float]]) -> bytes:
    return b"".join(struct.pack("<If", number, value) for number, value in pairs)


def context_hash(token_ids: NDArray[np.uint32]) -> bytes:
    # NumPy's byte strings lose zeros at their end, so the last byte is never one.
    return hashlib.blake2b(token_ids.tobytes(), digest_size=15).digest() + b"\x01"
