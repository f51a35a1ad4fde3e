import math
from itertools import pairwise

import pytest

from sae_core.bands import BAND_STARTS, BINS, N_BANDS, band_edges, bin_edges


@pytest.mark.parametrize("top", [1.0, 1.999, 2.0, 41.5, 1e-3, 6e4])
def test_the_highest_band_holds_the_maximum_and_each_is_half_of_the_next(top: float) -> None:
    edges = band_edges(top)
    assert len(edges) == N_BANDS + 1 and edges[0] == 0
    assert edges[-2] <= top < edges[-1]
    assert all(high == 2 * low for low, high in pairwise(edges[1:]))
    assert math.frexp(edges[-1])[0] == 0.5  # a power of two


def test_bins_are_quarters_of_octaves_and_meet_the_bands() -> None:
    edges = bin_edges(41.5)
    assert len(edges) == BINS + 1 and edges[0] == 0 and edges[-1] == 64
    assert all(high == pytest.approx(low * 2**0.25) for low, high in pairwise(edges[1:]))
    assert edges[-5::-4][: N_BANDS - 1] == pytest.approx(band_edges(41.5)[-2:0:-1])


def test_bands_start_where_their_bins_do() -> None:
    assert (BINS, BAND_STARTS) == (40, (0, 24, 28, 32, 36))
    bins, bands = bin_edges(41.5), band_edges(41.5)
    assert [bins[start] for start in BAND_STARTS] == pytest.approx(bands[:-1])


@pytest.mark.parametrize("top", [0.0, -1.0, math.nan, math.inf])
def test_what_never_fired_has_no_bands(top: float) -> None:
    assert band_edges(top) == (0.0,) * (N_BANDS + 1)
