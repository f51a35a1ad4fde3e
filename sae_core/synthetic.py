"""Activations whose features are known, and how many of them an SAE found: ground truth for benchmarks and tests.

A row is a sparse sum of known directions plus noise:

1. Draw `n_directions` random unit directions in `d_in` dimensions.
2. Direction i is active on a row with probability p_i ∝ 1/√(i + 1), scaled so that on average `mean_active` are.
3. An active direction is added with a magnitude of its own, drawn from an exponential distribution of mean 1.
4. Isotropic Gaussian noise is added that makes up the share `noise_fvu` of the rows' variance: the FVU of an SAE that
   finds every direction and magnitude, and nothing of the noise.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

_BLOCK_BYTES = 64 << 20  # of a product or of random numbers made at a time


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SyntheticActs:
    """Rows and what they are made of."""

    rows: Tensor  # (N, d_in) float32
    directions: Tensor  # (n_directions, d_in) float32, of unit norm, the most frequent first
    densities: Tensor  # (n_directions,): on which share of rows each was drawn to be active
    noise_floor_fvu: float  # of these rows: the FVU of their noiseless sums
    seed: int


class Recovery(NamedTuple):
    """How much of a ground truth an SAE has found."""

    mmcs: float  # mean over true directions of the largest cosine with any decoder row
    found_share: float  # of true directions with a decoder row at a cosine above the threshold


def synthetic_acts(
    n_rows: int,
    *,
    d_in: int = 256,
    n_directions: int = 2048,
    mean_active: float = 12.0,
    noise_fvu: float = 0.026,
    seed: int,
) -> SyntheticActs:
    """`n_rows` rows with `mean_active` directions active on a row; the same for the same arguments.

    `seed` must not be the one that the model is initialised with. `torch.randn` gives the same numbers for the same
    seed, so an SAE whose decoder starts as normalised `torch.randn(d_sae, d_in)` would start with the true directions
    in its first rows, and every run would look as if it had found them.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = normalize(torch.randn(n_directions, d_in, generator=generator), dim=1)
    densities = _densities(n_directions, mean_active)
    deviation = _noise_deviation(densities, d_in, noise_fvu)
    rows, noise_squares = torch.empty(n_rows, d_in), 0.0
    for block in torch.split(rows, max(1, _BLOCK_BYTES // (4 * n_directions))):
        noise = torch.randn(block.shape, generator=generator) * deviation
        torch.add(_sparse_sums(len(block), directions, densities, generator), noise, out=block)
        noise_squares += float(noise.double().square().sum())
    variance = float((rows - rows.mean(dim=0)).double().square().sum())
    return SyntheticActs(
        rows=rows, directions=directions, densities=densities, noise_floor_fvu=noise_squares / variance, seed=seed
    )


def recovery(W_dec: Tensor, directions: Tensor, *, threshold: float = 0.9) -> Recovery:
    """How much of `directions` (n_directions, d_in) is among the rows of `W_dec` (d_sae, d_in), of any norm."""
    unit = normalize(W_dec, dim=1)
    best = torch.cat(
        [
            (block @ unit.T).amax(dim=1)  # (block,) of (block, d_sae)
            for block in torch.split(normalize(directions, dim=1), max(1, _BLOCK_BYTES // (4 * len(W_dec))))
        ]
    )
    return Recovery(mmcs=float(best.mean()), found_share=float((best > threshold).double().mean()))


def _densities(n_directions: int, mean_active: float) -> Tensor:
    weights = torch.arange(1, n_directions + 1, dtype=torch.float64).rsqrt()
    densities = weights * (mean_active / weights.sum())
    if densities[0] > 1:
        raise ValueError(f"mean_active is {mean_active}: too many for {n_directions} directions of skewed frequency")
    return densities.float()


def _noise_deviation(densities: Tensor, d_in: int, noise_fvu: float) -> float:
    """Standard deviation of the noise in each dimension.

    An exponential magnitude m of mean 1 has E[m²] = 2, so direction i adds a variance of 2 p_i − p_i², all of it along
    one unit vector.
    """
    p = densities.double()
    signal = float((2 * p - p.square()).sum())
    return math.sqrt(signal * noise_fvu / (1 - noise_fvu) / d_in)


def _sparse_sums(n_rows: int, directions: Tensor, densities: Tensor, generator: torch.Generator) -> Tensor:
    """Σ magnitude · direction over each row's active directions, (n_rows, d_in)."""
    is_active = torch.rand(n_rows, len(directions), generator=generator) < densities
    counts = is_active.sum(dim=1)
    magnitudes = torch.empty(int(counts.sum())).exponential_(generator=generator)
    indices = is_active.nonzero()[:, 1]
    return embedding_bag(indices, directions, counts.cumsum(0) - counts, per_sample_weights=magnitudes, mode="sum")
