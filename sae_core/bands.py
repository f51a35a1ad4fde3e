"""Octaves of activation: the bands that examples are sampled from, and the bins of a feature's histogram.

A feature's maximum lies in one octave, [2^(e−1), 2^e). Band 5 is that octave, band 4 the one below it, and so on; band
1 is everything below band 2. Edges are powers of two whatever the maximum, so a pass over the text never has to sort
again what it has sampled: when the maximum rises by an octave, each band becomes the one below.

Standard library only.
"""

import math
from functools import lru_cache

N_BANDS = 5
BINS_PER_OCTAVE = 4
OCTAVES = 10  # of the histogram; weaker activations are counted in its first bin
BINS = BINS_PER_OCTAVE * OCTAVES
BAND_STARTS = (0, *range(BINS - BINS_PER_OCTAVE * (N_BANDS - 1), BINS, BINS_PER_OCTAVE))  # first bin of each band


def band_edges(max_activation: float) -> tuple[float, ...]:
    """The N_BANDS + 1 activations between which the bands lie: from 0 up to the power of two above the maximum."""
    if not max_activation > 0 or math.isinf(max_activation):
        return (0.0,) * (N_BANDS + 1)
    exponent = math.frexp(max_activation)[1]
    return (0.0, *(math.ldexp(1.0, exponent - N_BANDS + band) for band in range(1, N_BANDS + 1)))


def bin_edges(max_activation: float) -> tuple[float, ...]:
    """The BINS + 1 activations between which the bins of the histogram lie; the first is 0."""
    return _bin_edges_below(band_edges(max_activation)[-1])


@lru_cache(maxsize=256)
def _bin_edges_below(end: float) -> tuple[float, ...]:
    return (0.0, *(end * 2 ** (-(BINS - i) / BINS_PER_OCTAVE) for i in range(1, BINS + 1)))
