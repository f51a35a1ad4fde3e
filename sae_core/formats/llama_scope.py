"""Llama Scope: `hyperparams.json` and `checkpoints/final.safetensors` (OpenMOSS); R1-Distill: `config.json`.

Tensors are `encoder.weight` (d_sae, d_in), `encoder.bias`, `decoder.weight` (d_out, d_sae), `decoder.bias`; JumpReLU
without subtraction of b_dec. The input was multiplied by √d / (mean norm there), and what comes out by the inverse for
the target, both of which are folded. One threshold for all features, `jump_relu_threshold`, is compared with
pre-activations of the normalised input, times the norm of the feature's decoder row where
`sparsity_include_decoder_norm` is set; R1-Distill has one for each, as a logarithm.
"""

from sae_core.errors import WeightsError
from sae_core.formats.foreign import ForeignSAE, dtype_name, in_float32, made, text
from sae_core.formats.hook_points import our_hook_name
from sae_core.formats.source import Source

_TENSORS = {"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"}
_LOG_THRESHOLD = "log_jumprelu_threshold"
_NORM = "dataset_average_activation_norm"
_CONTEXT_SIZE = 1024


def recognises(source: Source) -> bool:
    """Two linear layers with a threshold: among the tensors, or among the settings."""
    names = set(source.shapes)
    has_threshold = _LOG_THRESHOLD in names or "jump_relu_threshold" in source.config
    return names - {_LOG_THRESHOLD} == _TENSORS and has_threshold


def read(source: Source) -> ForeignSAE:
    """The SAE or transcoder of these files. Raises WeightsError for settings that are no numbers."""
    config, stored = source.config, source.tensors()
    tensors = in_float32(stored)
    W_enc, W_dec = tensors["encoder.weight"].T, tensors["decoder.weight"].T
    b_dec = tensors["decoder.bias"]
    norms = W_dec.norm(dim=1)
    if _LOG_THRESHOLD in tensors:
        threshold = tensors[_LOG_THRESHOLD].exp()
    else:
        threshold = norms.new_full(norms.shape, _number(config["jump_relu_threshold"], "jump_relu_threshold"))
    if config.get("sparsity_include_decoder_norm"):
        threshold = threshold / norms.clamp_min(1e-8)
    notes, doubts = [], []
    if isinstance(config.get(_NORM), dict):
        scale_in = W_enc.shape[0] ** 0.5 / _number(config[_NORM].get("in"), f"{_NORM}.in")
        scale_out = W_dec.shape[1] ** 0.5 / _number(config[_NORM].get("out", config[_NORM]["in"]), f"{_NORM}.out")
        W_enc, W_dec, b_dec = W_enc * scale_in, W_dec / scale_out, b_dec / scale_out
        notes.append(
            f"The input scale {scale_in:.4g} and the output scale {scale_out:.4g} were folded into the weights."
        )
        doubts.append(f"threshold: other loaders multiply it by {scale_in:.4g}, and here it is as the file has it")
    else:
        doubts.append(
            "normalisation: the mean norm of its input is not in the file; give √d_in / norm as --input-scale"
        )
    read_at, written_at = config.get("hook_point_in"), config.get("hook_point_out")
    is_transcoder = written_at is not None and written_at != read_at
    sae = made(
        "jumprelu",
        W_enc=W_enc,
        W_dec=W_dec,
        b_enc=tensors["encoder.bias"],
        b_dec=b_dec,
        is_transcoder=is_transcoder,
        fixed_threshold=threshold.clamp_min(0),
    )
    top_k = config.get("top_k")
    return ForeignSAE(
        sae=sae,
        hook_name=our_hook_name(read_at),
        target_hook_name=our_hook_name(written_at) if is_transcoder else None,
        declared_hook=text(read_at),
        model_name=text(config.get("model_name")),
        context_size=_CONTEXT_SIZE,
        prepend_bos=True,
        l0=float(top_k) if isinstance(top_k, int) and top_k > 0 else None,
        dtype=dtype_name(stored["decoder.weight"]),
        notes=tuple(notes),
        doubts=tuple(doubts),
    )


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise WeightsError(f"{name} is {value!r} in the settings; it must be a number above 0.")
    return float(value)
