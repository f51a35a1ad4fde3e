"""Goodfire's SAEs of Llama: one `.pth` or `.pt`, its layer in the file's name (`Llama-3.1-8B-Instruct-SAE-l19.pth`).

Tensors are `encoder_linear.weight` (d_sae, d_in), `encoder_linear.bias`, `decoder_linear.weight` (d_in, d_sae),
`decoder_linear.bias`; ReLU without subtraction of b_dec, at the residual stream leaving the block.
"""

import re

from sae_core.formats.foreign import ForeignSAE, dtype_name, in_float32, made
from sae_core.formats.source import Source

_TENSORS = {f"{layer}_linear.{part}" for layer in ("encoder", "decoder") for part in ("weight", "bias")}


def recognises(source: Source) -> bool:
    """Its four tensors."""
    return set(source.shapes) == _TENSORS


def read(source: Source) -> ForeignSAE:
    """The SAE of this file."""
    stored = source.tensors()
    tensors = in_float32(stored)
    sae = made(
        "relu",
        W_enc=tensors["encoder_linear.weight"].T,
        W_dec=tensors["decoder_linear.weight"].T,
        b_enc=tensors["encoder_linear.bias"],
        b_dec=tensors["decoder_linear.bias"],
        subtracts_b_dec=False,
    )
    layer = re.search(r"-l(\d+)$", source.weights.stem)
    return ForeignSAE(
        sae=sae,
        hook_name=f"blocks.{int(layer[1])}.hook_resid_post" if layer else None,
        dtype=dtype_name(stored["decoder_linear.weight"]),
    )
