"""SAELens: `cfg.json` and `sae_weights.safetensors` (decoderesearch/SAELens, v6 and older).

Tensors are `W_enc` (d_in, d_sae), `b_enc`, `W_dec` (d_sae, d_in), `b_dec`; JumpReLU adds `threshold` (d_sae,), gated
has `b_gate`, `b_mag`, `r_mag` in place of `b_enc`, skip transcoders add `W_skip` (d_out, d_in). BatchTopK and
Matryoshka are saved as JumpReLU. From v6 on the model and hook stand in `metadata`; before, beside the other settings,
under names that changed.

    apply_b_dec_to_input            subtracts_b_dec
    normalize_activations           none; layer_norm, constant_norm_rescale (`input_norm`); expected_average_only_in
                                    says that a factor was not folded in: it is, if the file or the user says it
    rescale_acts_by_decoder_norm    folded: acts · ‖W_dec‖ is what competes
    reshape_activations hook_z      one head after another, as the model has them
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sae_core.errors import ConfigError, WeightsError
from sae_core.formats.foreign import (
    ForeignSAE,
    dtype_name,
    fold_decoder_norms,
    fold_input_scale,
    in_float32,
    is_count,
    made,
    positive,
    text,
)
from sae_core.formats.hook_points import our_hook_name, transformer_lens_name
from sae_core.formats.source import Source
from sae_core.sae import BatchTopKSAE, GatedSAE, JumpReLUSAE

if TYPE_CHECKING:
    from sae_core.formats.exporting import Outgoing

_ARCHITECTURES = {
    "standard": "relu",
    "gated": "gated",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
    "batchtopk": "batchtopk",  # of a training checkpoint
    "matryoshka_batchtopk": "batchtopk",
}
_OLD_NAMES = {"hook_point": "hook_name", "hook_point_layer": "hook_layer", "activation_fn_str": "activation_fn"}
_NORMS = {"none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "constant_norm"}
_GATED = {"W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"}
_PLAIN = {"W_enc", "W_dec", "b_dec", "b_enc"}
_SCALER_FILE = "activation_scaler.json"
_WEIGHTS_FILE = "sae_weights.safetensors"
_VERSION = "6.0.0"  # whose settings are written: from it on they have these names
_FACTORS = ("scaling_factor", "finetuning_scaling_factor")


def recognises(source: Source) -> bool:
    """Its names, `W_enc` as (d_in, d_sae), and settings that give both widths."""
    names, shapes = set(source.shapes), source.shapes
    if not (names >= _PLAIN or names >= _GATED) or source.weights.suffix != ".safetensors":
        return False
    return shapes["W_enc"] == (source.config.get("d_in"), source.config.get("d_sae"))


def read(source: Source) -> ForeignSAE:
    """The SAE of SAELens's files. Raises WeightsError for what cannot be computed as it was."""
    config = _settings(source.config)
    kind = config.get("architecture", "standard")
    if kind not in _ARCHITECTURES:
        raise WeightsError(
            f"SAELens's architecture {kind!r} computes what saescope has no class for; "
            f"it imports {', '.join(_ARCHITECTURES)}."
        )
    if config.get("activation_fn", "relu") not in ("relu", "topk"):
        raise WeightsError(f"The activation function {config['activation_fn']!r} is none that saescope computes.")
    tensors = source.tensors()
    dtype = dtype_name(tensors["W_enc"])
    notes: list[str] = []
    tensors = _with_finetuning(in_float32(tensors), config, notes)
    doubts: list[str] = []
    norm = str(config.get("normalize_activations", "none"))
    if norm == "expected_average_only_in":
        scale = _saved_scale(source)
        if scale is None:
            doubts.append(
                "normalisation: it was trained on normalised activations (expected_average_only_in) and the factor "
                "is not in the file: give √d_in / (mean norm of the model's vectors) with --input-scale"
            )
        else:
            tensors = fold_input_scale(tensors, scale)
            notes.append(f"The input scale {scale:g} was folded into the weights.")
        norm = "none"
    if norm not in _NORMS:
        raise WeightsError(f"The normalisation {norm!r} is not folded into these weights; fold it with SAELens first.")
    tensors, k, others = _by_kind(_ARCHITECTURES[kind], tensors, config, notes)
    is_transcoder = "transcoder" in kind
    sae = made(
        _ARCHITECTURES[kind],
        {**{name: tensors[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")}, **others},
        k=k,
        is_transcoder=is_transcoder,
        subtracts_b_dec=None if is_transcoder else bool(config.get("apply_b_dec_to_input", True)),
        input_norm=_NORMS[norm],
    )
    said = config | (config["metadata"] if isinstance(config.get("metadata"), dict) else {})
    hook = said.get("hook_name")
    return ForeignSAE(
        sae=sae,
        hook_name=our_hook_name(hook) or our_hook_name(said.get("hf_hook_name")),
        target_hook_name=our_hook_name(said.get("hook_name_out")) or our_hook_name(said.get("hf_hook_name_out")),
        declared_hook=text(hook),
        model_name=text(said.get("model_name")),
        context_size=said["context_size"] if is_count(said.get("context_size")) else None,
        prepend_bos=said["prepend_bos"] if isinstance(said.get("prepend_bos"), bool) else None,
        k=k,
        l0=float(k) if k else None,
        dtype=dtype,
        notes=tuple(notes),
        doubts=tuple(doubts),
    )


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings under their newest names."""
    config = {_OLD_NAMES.get(name, name): value for name, value in config.items()}
    kwargs = config.get("activation_fn_kwargs")
    if config.get("activation_fn") == "topk" and isinstance(kwargs, dict) and "k" in kwargs:
        config |= {"architecture": "topk", "k": kwargs["k"]}
    norm = config.get("normalize_activations")
    if norm is None or isinstance(norm, bool):
        config["normalize_activations"] = "expected_average_only_in" if norm else "none"
    if config.get("architecture") is None:
        config["architecture"] = "standard"
    return config


def _with_finetuning(tensors: dict[str, Tensor], config: dict[str, Any], notes: list[str]) -> dict[str, Tensor]:
    """With the factors that old versions multiplied activations by before decoding in the decoder, if they are used."""
    kept = {name: tensor for name, tensor in tensors.items() if name not in _FACTORS}
    for name in _FACTORS:
        if name not in tensors or bool(torch.allclose(tensors[name], torch.ones_like(tensors[name]))):
            continue
        if not config.get("finetuning_scaling_factor"):
            raise WeightsError(f"{name} is in the file, is not 1, and the settings do not say that it is used.")
        kept["W_dec"] = kept["W_dec"] * tensors[name].unsqueeze(1)
        notes.append(f"The factors of a finetuning ({name}) were folded into the decoder.")
    return kept


def _saved_scale(source: Source) -> float | None:
    """The factor that a training checkpoint keeps beside its weights."""
    path = source.weights.parent / _SCALER_FILE
    try:
        value = json.loads(path.read_text())["scaling_factor"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(value) if isinstance(value, int | float) and value > 0 else None


def _by_kind(
    architecture: str, tensors: dict[str, Tensor], config: dict[str, Any], notes: list[str]
) -> tuple[dict[str, Tensor], int | None, dict[str, Tensor]]:
    """The tensors, k, and those that only this architecture has, under our names."""
    others = {"W_skip": tensors["W_skip"]} if "W_skip" in tensors else {}
    k = None
    if architecture == "gated":
        tensors = {**tensors, "b_enc": tensors["b_gate"]}
        others |= {"r_mag": tensors["r_mag"], "b_mag": tensors["b_mag"]}
    elif architecture == "jumprelu":
        if "threshold" not in tensors:
            raise WeightsError("This JumpReLU SAE has no thresholds; the file is not whole.")
        others["fixed_threshold"] = tensors["threshold"].clamp_min(0)  # a ReLU follows: below 0 is 0
    elif architecture in ("topk", "batchtopk"):
        k = positive(config.get("k"), "k")
        if config.get("rescale_acts_by_decoder_norm", architecture == "batchtopk"):
            tensors = fold_decoder_norms(tensors)
            notes.append("The norms of the decoder's rows were folded into the encoder (rescale_acts_by_decoder_norm).")
        if architecture == "batchtopk":
            others["threshold"] = tensors["topk_threshold"]
    return tensors, k, others


def write(outgoing: "Outgoing", folder: Path) -> tuple[str, ...]:
    """Files that SAELens 6 loads with `SAE.load_from_disk`."""
    sae, info = outgoing.sae, outgoing.info
    tensors = {name: getattr(sae, name) for name in ("W_enc", "W_dec", "b_dec")}
    config: dict[str, Any] = {
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.encoder_bias is not None,
        "normalize_activations": next(theirs for theirs, ours in _NORMS.items() if ours == sae.input_norm),
        "reshape_activations": "hook_z" if info.hook_name.endswith("hook_z") else "none",
    }
    kind = {"relu": "standard", "batchtopk": "jumprelu", "matryoshka": "jumprelu"}.get(
        sae.architecture, sae.architecture
    )
    if isinstance(sae, GatedSAE):
        tensors |= {"b_gate": sae.b_enc, "b_mag": sae.b_mag, "r_mag": sae.r_mag}
    else:
        tensors["b_enc"] = sae.b_enc
    if isinstance(sae, JumpReLUSAE | BatchTopKSAE):
        tensors["threshold"] = sae.threshold.expand(sae.d_sae)
    if kind == "topk":
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    if sae.W_skip is not None and not sae.is_transcoder:
        raise ConfigError("SAELens has skip connections in transcoders only; this is an SAE with one.")
    if sae.is_transcoder:
        if kind not in ("standard", "jumprelu"):
            raise ConfigError(f"SAELens has transcoders of ReLU and JumpReLU only; this one is {sae.architecture}.")
        kind = ("jumprelu_" if kind == "jumprelu" else "") + ("skip_" if sae.W_skip is not None else "") + "transcoder"
        config["d_out"] = sae.d_out
    if sae.W_skip is not None:
        tensors["W_skip"] = sae.W_skip
    known = outgoing.original_config.get("metadata")
    config["metadata"] = {
        **(known if isinstance(known, dict) else {}),
        "sae_lens_version": _VERSION,
        "model_name": info.model.model_name,
        "hook_name": transformer_lens_name(info.hook_name),
        "context_size": info.config.get("context_size"),
        "prepend_bos": info.config.get("prepend_bos"),
        "k": info.k,
        "trained_with": info.config.get("format", "saescope"),
    }
    if sae.is_transcoder:
        config["metadata"]["hook_name_out"] = transformer_lens_name(info.target_hook_name)
    config["architecture"] = kind
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, folder / _WEIGHTS_FILE)
    (folder / "cfg.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if sae.architecture in ("batchtopk", "matryoshka"):
        return ("SAELens keeps such an SAE as JumpReLU with one threshold for all features, and so it is written.",)
    return ()
