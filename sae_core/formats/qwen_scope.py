"""Qwen Scope: `layerN.sae.pt` in a repository whose name ends in `-W32K-L0_50`.

Tensors are `W_enc` (d_sae, d_in) and `W_dec` (d_in, d_sae), named as others' and turned the other way: the vectors'
lengths tell. TopK without subtraction of b_dec; k stands in the repository's name alone.
"""

import re

from sae_core.errors import WeightsError
from sae_core.formats.foreign import ForeignSAE, dtype_name, in_float32, made
from sae_core.formats.source import Source

_TENSORS = {"W_enc", "W_dec", "b_enc", "b_dec"}


def recognises(source: Source) -> bool:
    """Four tensors, `W_enc` turned."""
    shapes = source.shapes
    if set(shapes) != _TENSORS or len(shapes["W_enc"]) != 2:
        return False
    return (shapes["W_enc"][:1], shapes["W_enc"][1:]) == (shapes["b_enc"], shapes["b_dec"])


def read(source: Source) -> ForeignSAE:
    """The SAE of this file. Raises WeightsError if no folder above it says k."""
    path = "/".join(source.weights.absolute().parts[-6:])
    found = re.search(r"L0_(\d+)", path)
    k = int(found[1]) if found else 0
    if not k:
        raise WeightsError(
            f"Qwen's files do not say k; it stands in their repository's name (…-L0_50): name the folder of "
            f"{source.weights.name} so."
        )
    stored = source.tensors()
    tensors = in_float32(stored)
    sae = made(
        "topk",
        W_enc=tensors["W_enc"].T,
        W_dec=tensors["W_dec"].T,
        b_enc=tensors["b_enc"],
        b_dec=tensors["b_dec"],
        k=k,
        subtracts_b_dec=False,
    )
    layer = re.search(r"layer(\d+)", source.weights.name)
    return ForeignSAE(
        sae=sae,
        hook_name=f"blocks.{int(layer[1])}.hook_resid_post" if layer else None,
        k=k,
        l0=float(k),
        dtype=dtype_name(stored["W_dec"]),
    )
