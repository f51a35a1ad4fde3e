"""OpenAI's sparse_autoencoder: one `.pt` with tensors, strings and statistics (Gao et al. 2024's GPT-2 SAEs).

Tensors are `encoder.weight` (d_sae, d_in), `latent_bias`, `decoder.weight` (d_in, d_sae), `pre_bias`, which is
subtracted and added again; a file without `decoder.weight` has the encoder's transposed. `activation` is a name: TopK,
with k in `activation_state_dict`, normalises each token (layer norm, std with N − 1) and scales back what comes out;
ReLU does not. What the file says of its features (frequency, mean square, last firing) is kept.
"""

import re
from typing import Any

from torch import Tensor

from sae_core.errors import WeightsError
from sae_core.formats.foreign import ForeignSAE, dtype_name, in_float32, made, positive
from sae_core.formats.hook_points import our_hook_name
from sae_core.formats.source import Source

_TENSORS = {"encoder.weight", "latent_bias", "pre_bias"}
_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
_NAME = re.compile(r"(resid_post_attn|resid_post_mlp|resid_delta_attn|resid_delta_mlp|mlp_post_act)")
_HOOKS = {
    "resid_post_attn": "resid_mid",
    "resid_post_mlp": "resid_post",
    "resid_delta_attn": "attn_out",
    "resid_delta_mlp": "mlp_out",
    "mlp_post_act": "mlp_post",
}


def recognises(source: Source) -> bool:
    """Its two biases beside an encoder."""
    return set(source.shapes) >= _TENSORS


def read(source: Source) -> ForeignSAE:
    """The autoencoder of these files. Raises WeightsError for an activation function that is neither TopK nor ReLU."""
    stored = source.tensors()
    tensors = in_float32({name: stored[name] for name in stored if name not in _STATISTICS})
    activation = source.values.get("activation", "ReLU")
    k = None
    if activation == "TopK":
        k = _k(source.values.get("activation_state_dict"))
    elif activation != "ReLU":
        raise WeightsError(f"The activation function {activation!r} is none that saescope computes: TopK and ReLU.")
    W_dec = tensors["decoder.weight"].T if "decoder.weight" in tensors else tensors["encoder.weight"]
    sae = made(
        "topk" if k else "relu",
        {
            "W_enc": tensors["encoder.weight"].T,
            "W_dec": W_dec,
            "b_enc": tensors["latent_bias"],
            "b_dec": tensors["pre_bias"],
        },
        k=k,
        subtracts_b_dec=True,
        input_norm="layer_norm" if k else "none",
    )
    path = "/".join(source.weights.absolute().parts[-6:])
    place, layer = _NAME.search(path), re.search(r"layer_?(\d+)|/(\d+)(?:\.pt|/autoencoder\.pt)$", path)
    number = (layer[1] or layer[2]) if layer else None
    declared = f"blocks.{number}.{place[1]}" if place and number else None
    kind = _HOOKS.get(place[1]) if place else None
    return ForeignSAE(
        sae=sae,
        hook_name=our_hook_name(f"blocks.{number}.hook_{kind}") if number and kind else None,
        declared_hook=declared,
        k=k,
        l0=float(k) if k else None,
        dtype=dtype_name(stored["encoder.weight"]),
        extras={name: stored[name] for name in _STATISTICS if isinstance(stored.get(name), Tensor)},
    )


def _k(state: Any) -> int:
    if not isinstance(state, dict):
        raise WeightsError("The file names TopK and does not say k (activation_state_dict); it is not whole.")
    after = state.get("postact_fn", "ReLU")
    if after != "ReLU":
        raise WeightsError(f"Behind TopK stands {after!r}, which saescope does not compute: only ReLU.")
    return positive(state.get("k"), "k")
