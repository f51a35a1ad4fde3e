"""Gemma Scope: `params.npz` in a folder like `layer_12/width_16k/average_l0_82`; Gemma Scope 2: `params.safetensors`.

Tensors are `W_enc` (d_in, d_sae), `W_dec` (d_sae, d_in), `b_enc`, `b_dec`, `threshold` (d_sae,), in small letters in
the second; JumpReLU without subtraction of b_dec, on the model's vectors as they are. `affine_skip_connection`
(d_in, d_out) is a skip connection. The first says only by its path which layer and hook point it reads; the second's
`config.json` names modules of `transformers`. SAEs of embeddings were trained before Gemma multiplies them by √d_in,
which is folded.
"""

import re
from typing import Any

from sae_core.errors import WeightsError
from sae_core.formats.foreign import ForeignSAE, dtype_name, in_float32, made, text
from sae_core.formats.hook_points import our_hook_name
from sae_core.formats.source import Source

_TENSORS = {"w_enc", "w_dec", "b_enc", "b_dec", "threshold"}
_MAY_HAVE = {"affine_skip_connection"}
_CONTEXT_SIZE = 1024
# What stands in the path -> the hook point; `gemma-scope-2b-pt-att` and `attn_out` read each head's own output.
_KINDS = (
    (r"transcoder|clt", "mlp_in"),
    (r"resid_post|-res\b|gemma-scope-\w+-\w+-res", "resid_post"),
    (r"mlp_out|gemma-scope-\w+-\w+-mlp", "mlp_out"),
    (r"attn_out|gemma-scope-\w+-\w+-att", "z"),
)


def recognises(source: Source) -> bool:
    """Its five tensors, `W_enc` as (d_in, d_sae), and no settings of SAELens or dictionary_learning."""
    shapes = {name.lower(): shape for name, shape in source.shapes.items()}
    if set(shapes) - _MAY_HAVE != _TENSORS or {"d_sae", "trainer"} & set(source.config):
        return False
    return shapes["w_enc"][1:] == shapes["b_enc"] == shapes["threshold"]


def read(source: Source) -> ForeignSAE:
    """The SAE or transcoder of these files."""
    stored = {name.lower(): tensor for name, tensor in source.tensors().items()}
    if stored["w_dec"].ndim == 3:
        raise WeightsError(
            "This is a transcoder across layers (its w_dec has three axes), which saescope has no class for."
        )
    tensors = in_float32(stored)
    config, path = source.config, "/".join(source.folder.absolute().parts[-6:])
    read_at, written_at = _hooks(config, path)
    notes: tuple[str, ...] = ()
    if "embedding" in path:
        root = stored["w_enc"].shape[0] ** 0.5
        tensors |= {
            "w_enc": tensors["w_enc"] / root,
            "w_dec": tensors["w_dec"] * root,
            "b_dec": tensors["b_dec"] * root,
        }
        notes = ("Gemma multiplies its embeddings by √d_in, which was folded into the weights.",)
        read_at = "blocks.0.hook_resid_pre"
    named = {
        "W_enc": tensors["w_enc"],
        "W_dec": tensors["w_dec"],
        "b_enc": tensors["b_enc"],
        "b_dec": tensors["b_dec"],
        "fixed_threshold": tensors["threshold"].clamp_min(0),
    }
    if "affine_skip_connection" in tensors:
        named["W_skip"] = tensors["affine_skip_connection"].T
    sae = made("jumprelu", named, is_transcoder=written_at is not None or "W_skip" in named)
    l0 = re.search(r"average_l0_(\d+)", path)
    return ForeignSAE(
        sae=sae,
        hook_name=our_hook_name(read_at),
        target_hook_name=our_hook_name(written_at),
        declared_hook=read_at,
        model_name=text(config.get("model_name")),
        context_size=_CONTEXT_SIZE,
        prepend_bos=True,
        l0=float(l0[1]) if l0 else None,
        dtype=dtype_name(stored["w_dec"]),
        notes=notes,
    )


def _hooks(config: dict[str, Any], path: str) -> tuple[str | None, str | None]:
    """Where it reads, and what a transcoder predicts."""
    declared = text(config.get("hf_hook_point_in"))
    if declared is not None:
        out = text(config.get("hf_hook_point_out"))
        return declared, None if out == declared else out
    layer = re.search(r"layer_(\d+)", path)
    kind = next((kind for pattern, kind in _KINDS if re.search(pattern, path)), "resid_post")
    if layer is None:
        return None, None
    return f"blocks.{layer[1]}.hook_{kind}", f"blocks.{layer[1]}.hook_mlp_out" if kind == "mlp_in" else None
