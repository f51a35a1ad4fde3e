"""dictionary_learning: `ae.pt`, a state_dict, and `config.json` with its trainer's settings.

From saprmarks/dictionary_learning. Linear layers are `encoder.weight` (d_sae, d_in) and `decoder.weight` (d_in, d_sae):

    class                    tensors beside those                                         subtracts b_dec
    AutoEncoder              encoder.bias, bias                                           yes
    AutoEncoderNew           encoder.bias, decoder.bias                                   no
    GatedAutoEncoder         decoder_bias, r_mag, gate_bias, mag_bias                     yes
    AutoEncoderTopK          encoder.bias, b_dec, k, threshold                            yes
    BatchTopKSAE             the same; active is what exceeds the threshold               yes
    MatryoshkaBatchTopKSAE   W_enc, W_dec as ours, b_enc, b_dec, k, threshold, group_sizes  yes
    JumpReluAutoEncoder      W_enc, W_dec as ours, b_enc, b_dec, threshold (d_sae,)       no

TopK and BatchTopK have the same tensors: `config.json` tells them apart. Its loader gives AutoEncoder's decoder rows
unit norm, and so does `read`. The normalisation of activations is folded in before it saves.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae_core.errors import ConfigError, WeightsError
from sae_core.formats.foreign import (
    ForeignSAE,
    dtype_name,
    fold_decoder_norms,
    in_float32,
    is_count,
    made,
    positive,
    text,
    with_bias_subtraction,
)
from sae_core.formats.hook_points import our_hook_name
from sae_core.formats.source import Source
from sae_core.sae import SAE, BatchTopKSAE, GatedSAE, JumpReLUSAE, MatryoshkaSAE

if TYPE_CHECKING:
    from sae_core.formats.exporting import Outgoing

_LINEAR = {"encoder.weight", "decoder.weight"}
_TENSORS: dict[str, set[str]] = {
    "AutoEncoder": {*_LINEAR, "encoder.bias", "bias"},
    "AutoEncoderNew": {*_LINEAR, "encoder.bias", "decoder.bias"},
    "GatedAutoEncoder": {*_LINEAR, "decoder_bias", "r_mag", "gate_bias", "mag_bias"},
    "AutoEncoderTopK": {*_LINEAR, "encoder.bias", "b_dec"},
    "BatchTopKSAE": {*_LINEAR, "encoder.bias", "b_dec"},
    "MatryoshkaBatchTopKSAE": {"W_enc", "W_dec", "b_enc", "b_dec", "k", "threshold", "group_sizes"},
    "JumpReluAutoEncoder": {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"},
}
_MAY_LACK = {"k", "threshold"}  # older files of TopK and BatchTopK
_ARCHITECTURES = {
    "AutoEncoder": "relu",
    "AutoEncoderNew": "relu",
    "GatedAutoEncoder": "gated",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batchtopk",
    "MatryoshkaBatchTopKSAE": "matryoshka",
    "JumpReluAutoEncoder": "jumprelu",
}
_OURS = {
    "encoder.bias": "b_enc", "bias": "b_dec", "decoder.bias": "b_dec", "decoder_bias": "b_dec", "gate_bias": "b_enc",
    "mag_bias": "b_mag",
}  # fmt: skip
_UNSET = -1.0  # a threshold that training never reached


def recognises(source: Source) -> bool:
    """The tensors of one of its classes; JumpReLU's, which others have too, only in a pickle with its settings."""
    return _class_of(source) is not None


def read(source: Source) -> ForeignSAE:
    """The dictionary of these files. Raises WeightsError if no class has such tensors."""
    name = _class_of(source)
    if name is None:
        raise WeightsError(f"{source.weights} has the tensors of no class of dictionary_learning.")
    trainer = _trainer(source)
    stored = source.tensors()
    tensors = {_OURS.get(key, key): tensor for key, tensor in in_float32(stored).items()}
    if "encoder.weight" in tensors:
        tensors |= {"W_enc": tensors.pop("encoder.weight").T, "W_dec": tensors.pop("decoder.weight").T}
    notes: list[str] = []
    doubts: list[str] = []
    if name == "AutoEncoder" and not _is_unit(tensors["W_dec"]):
        tensors = fold_decoder_norms(tensors)
        notes.append(
            "The norms of the decoder's rows were folded into the encoder, as dictionary_learning's loader does."
        )
    k = _k(stored, trainer) if "TopK" in name else None
    sae, extras = _made(name, tensors, k)
    if isinstance(sae, BatchTopKSAE) and float(sae.threshold) < 0:
        doubts.append("threshold: training was too short to set one, so that every positive activation counts")
    target_l0 = trainer.get("target_l0")
    layer, submodule = trainer.get("layer"), trainer.get("submodule_name")
    hook = our_hook_name(submodule)
    if hook is None and isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0 and not submodule:
        hook = f"blocks.{layer}.hook_resid_post"  # what its scripts read
    buffer = source.config.get("buffer")
    context_size = buffer.get("ctx_len") if isinstance(buffer, dict) else None
    return ForeignSAE(
        sae=sae,
        hook_name=hook,
        declared_hook=text(submodule),
        model_name=text(trainer.get("lm_name")),
        context_size=context_size if is_count(context_size) else None,
        k=k,
        l0=float(k) if k else float(target_l0) if isinstance(target_l0, int | float) and target_l0 > 0 else None,
        dtype=dtype_name(stored[next(key for key in ("W_dec", "decoder.weight") if key in stored)]),
        notes=tuple(notes),
        doubts=tuple(doubts),
        extras=extras,
    )


def _is_unit(W_dec: Tensor) -> bool:
    """As its loader asks."""
    norms = W_dec.norm(dim=1)
    return bool(torch.allclose(norms, torch.ones_like(norms)))


def _trainer(source: Source) -> Mapping[str, Any]:
    trainer = source.config.get("trainer")
    return trainer if isinstance(trainer, dict) else {}


def _class_of(source: Source) -> str | None:
    shapes = source.shapes
    fitting = [
        name
        for name, wanted in _TENSORS.items()
        if wanted <= set(shapes) and set(shapes) - wanted <= _MAY_LACK and _is_turned_right(shapes)
    ]
    declared = _trainer(source).get("dict_class")
    if declared in fitting:
        return str(declared)
    if fitting == ["AutoEncoderTopK", "BatchTopKSAE"]:
        said = str(_trainer(source).get("trainer_class", "")) + str(source.config.get("dict_class", ""))
        return "BatchTopKSAE" if "BatchTopK" in said else "AutoEncoderTopK"
    if "JumpReluAutoEncoder" in fitting and not _trainer(source):
        fitting.remove("JumpReluAutoEncoder")
    return fitting[0] if fitting else None


def _is_turned_right(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether `encoder.weight` is (d_sae, d_in), or `W_enc` (d_in, d_sae), as the vectors' lengths say."""
    if "W_enc" in shapes:
        return (shapes["W_enc"][1:], shapes["W_dec"]) == (shapes["b_enc"], shapes["W_enc"][::-1])
    d_sae = next((shapes[name] for name in ("encoder.bias", "gate_bias") if name in shapes), ())
    return (shapes["encoder.weight"][:1], shapes["decoder.weight"]) == (d_sae, shapes["encoder.weight"][::-1])


def _k(stored: Mapping[str, Tensor], trainer: Mapping[str, Any]) -> int:
    if "k" not in stored and "k" not in trainer:
        raise WeightsError("Neither the file nor a config.json beside it says k; put its config.json there.")
    return positive(stored["k"] if "k" in stored else trainer["k"], "k")


def _made(name: str, tensors: dict[str, Tensor], k: int | None) -> tuple[SAE, dict[str, Tensor]]:
    """The SAE, and the tensors that our class has no use for."""
    others: dict[str, Tensor] = {}
    extras: dict[str, Tensor] = {}
    architecture = _ARCHITECTURES[name]
    if architecture == "gated":
        others = {"r_mag": tensors["r_mag"], "b_mag": tensors["b_mag"]}
    elif architecture == "jumprelu":
        others = {"fixed_threshold": tensors["threshold"].clamp_min(0)}  # a ReLU follows: below 0 is 0
    elif architecture in ("batchtopk", "matryoshka"):
        others = {"threshold": tensors.get("threshold", torch.tensor(_UNSET))}
    elif architecture == "topk" and "threshold" in tensors:
        extras["threshold"] = tensors["threshold"]
    if architecture == "matryoshka":
        extras["group_sizes"] = tensors["group_sizes"].to(torch.int64)
    sae = made(
        architecture,
        **{part: tensors[part] for part in ("W_enc", "W_dec", "b_enc", "b_dec")},
        k=k,
        subtracts_b_dec=name not in ("AutoEncoderNew", "JumpReluAutoEncoder"),
        **others,
    )
    return sae, extras


def write(outgoing: "Outgoing", folder: Path) -> tuple[str, ...]:
    """Files that dictionary_learning loads with `load_dictionary`."""
    sae, info = outgoing.sae, outgoing.info
    if sae.is_transcoder or sae.W_skip is not None:
        raise ConfigError("dictionary_learning has no transcoders; export this one as saelens or sparsify.")
    if sae.input_norm != "none":
        raise ConfigError(f"dictionary_learning has no {sae.input_norm} of inputs; export this SAE as saelens.")
    name = next((known for known, ours in _ARCHITECTURES.items() if ours == sae.architecture), None)
    if name is None:
        raise ConfigError(f"dictionary_learning has no {sae.architecture}; export this SAE as sparsify.")
    if name == "AutoEncoder" and not (sae.subtracts_b_dec and _is_unit(sae.W_dec)):
        name = "AutoEncoderNew"  # whose loader leaves the decoder as it is
    subtracts = name not in ("AutoEncoderNew", "JumpReluAutoEncoder")
    notes = [] if sae.subtracts_b_dec == subtracts else ["b_dec's part in the encoder was folded into its bias."]
    tensors = _state_dict(name, sae, with_bias_subtraction(sae, subtracts=subtracts), outgoing.extras)
    original = outgoing.original_config
    known = original.get("trainer")
    trainer: dict[str, Any] = {
        **(known if isinstance(known, dict) else {}),
        "dict_class": name,
        "activation_dim": sae.d_in,
        "dict_size": sae.d_sae,
        "layer": info.layer,
        "lm_name": info.model.model_name,
    }
    trainer.setdefault("submodule_name", f"{info.hook_name.rpartition('hook_')[2]}_layer_{info.layer}")
    if "TopK" in name:
        trainer["k"] = sae.k
    config = {"buffer": {"ctx_len": info.config.get("context_size")}, **original, "trainer": trainer}
    torch.save(tensors, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return tuple(notes)


def _state_dict(name: str, sae: SAE, b_enc: Tensor, extras: Mapping[str, Tensor]) -> dict[str, Tensor]:
    biases = {"b_enc": b_enc, "b_dec": sae.b_dec}
    if "TopK" in name:
        biases |= {"k": torch.tensor(sae.k, dtype=torch.int32)}
        biases |= {"threshold": extras.get("threshold", torch.tensor(_UNSET))}
    if isinstance(sae, BatchTopKSAE):
        biases["threshold"] = sae.threshold
    if isinstance(sae, MatryoshkaSAE):
        ends = torch.tensor((0, *sae.group_ends))
        biases["group_sizes"] = extras.get("group_sizes", ends.diff())
    if isinstance(sae, GatedSAE):
        biases |= {"r_mag": sae.r_mag, "b_mag": sae.b_mag}
    if isinstance(sae, JumpReLUSAE):
        biases["threshold"] = sae.threshold
    tensors: dict[str, Tensor]
    if "W_enc" in _TENSORS[name]:
        tensors = {"W_enc": sae.W_enc, "W_dec": sae.W_dec, **biases}
    else:
        theirs = {ours: key for key, ours in _OURS.items() if key in _TENSORS[name]}
        tensors = {"encoder.weight": sae.W_enc.T, "decoder.weight": sae.W_dec.T}
        tensors |= {theirs.get(key, key): tensor for key, tensor in biases.items()}
    return {key: tensor.detach().clone().contiguous() for key, tensor in tensors.items()}
