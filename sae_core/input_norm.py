"""What some SAEs do to a token's vector before they encode it, and how what comes out is scaled back.

    x, scale, offset = INPUT_NORMS[name](model_acts)          x is encoded; sae_out = decoded · scale + offset

    none            x = model_acts
    layer_norm      x = (model_acts − mean) / (std + 1e-5)    std with N − 1; Gao et al. 2024's released SAEs
    constant_norm   x = model_acts · √d_in / ‖model_acts‖

Norms that are the same for all tokens are folded into the weights instead. SAEs that are trained here have none.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

_EPSILON = 1e-5


class Normalised(NamedTuple):
    """Vectors as the encoder reads them, and each token's way back."""

    x: Tensor  # (N, d_in)
    scale: Tensor | None = None  # (N, 1)
    offset: Tensor | None = None  # (N, 1)


def _layer_norm(model_acts: Tensor) -> Normalised:
    mean = model_acts.mean(dim=-1, keepdim=True)
    x = model_acts - mean
    std = x.std(dim=-1, keepdim=True)
    return Normalised(x / (std + _EPSILON), std, mean)


def _constant_norm(model_acts: Tensor) -> Normalised:
    factor = model_acts.shape[-1] ** 0.5 / model_acts.norm(dim=-1, keepdim=True)
    return Normalised(model_acts * factor, 1 / factor)


INPUT_NORMS: dict[str, Callable[[Tensor], Normalised]] = {
    "none": Normalised,
    "layer_norm": _layer_norm,
    "constant_norm": _constant_norm,
}
