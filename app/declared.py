"""What an import's own files say of its features (OpenAI's statistics), for the SAE's page, also without an index.

They stand beside the weights (`extras.safetensors`), as they were; files whose statistics were never measured have ones
and zeros there, which are not shown.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.charts import BarChart, densities_chart
from sae_core.records import SAEInfo

EXTRAS_FILE = "extras.safetensors"  # as in sae_core.formats.importing, which loads torch
SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredFeature:
    """One feature as the files have it."""

    feature_index: int
    density: float
    mean_square: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredStatistics:
    """All features as the files have them. Densities are shares of the tokens that their authors counted on."""

    n_features: int
    l0: float  # the sum of the densities
    median_density: float
    n_never: int
    longest_silence: int | None  # batches since the feature fired that has been silent longest
    densest: tuple[DeclaredFeature, ...]
    chart: BarChart


def declared_statistics(sae: SAEInfo) -> DeclaredStatistics | None:
    """None where the files say nothing of this sort, or cannot be read."""
    path = Path(sae.weights_path) / EXTRAS_FILE
    if sae.config.get("format") != "openai" or not path.is_file():
        return None
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        stored: dict[str, Any] = load_file(path)
    except (OSError, SafetensorError):
        return None
    density, squares = stored.get("latents_activation_frequency"), stored.get("latents_mean_square")
    silent = stored.get("stats_last_nonzero")
    if density is None or density.shape != (sae.d_sae,) or not np.isfinite(density).all() or (density == 1).all():
        return None
    if squares is not None and (squares.shape != density.shape or not squares.any()):
        squares = None
    order = np.argsort(-density, kind="stable")[:SHOWN]
    return DeclaredStatistics(
        n_features=sae.d_sae,
        l0=float(density.sum()),
        median_density=float(np.median(density)),
        n_never=int((density <= 0).sum()),
        longest_silence=int(silent.max()) if silent is not None and silent.size else None,
        densest=tuple(
            DeclaredFeature(
                feature_index=int(i),
                density=float(density[i]),
                mean_square=None if squares is None else float(squares[i]),
            )
            for i in order
        ),
        chart=densities_chart(density.tolist()),
    )
