"""sparsify: a folder for each hook point with `cfg.json` and `sae.safetensors` (EleutherAI/sparsify).

Tensors are `encoder.weight` (d_sae, d_in), `encoder.bias`, `W_dec` (d_sae, d_in), which is not transposed, `b_dec` and,
with a skip connection, `W_skip` (d_in, d_in): sae_out gets model_acts @ W_skip.T. The pre-activations' ReLU stands
before the choice of the k largest, which comes to the same. `b_dec` is subtracted unless `transcode` is set, whatever
`normalize_decoder` says. `num_latents` 0 means d_in · expansion_factor. The folder's name is the hook point:
`layers.5`, `h.3.mlp`; a transcoder reads what that module reads and predicts what it writes. `groupmax` keeps the
largest of each of k groups of neighbouring features.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from sae_core.errors import ConfigError, WeightsError
from sae_core.formats.foreign import ForeignSAE, dtype_name, in_float32, made, positive, with_bias_subtraction
from sae_core.formats.hook_points import input_of, module_path, our_hook_name
from sae_core.formats.source import Source

if TYPE_CHECKING:
    from sae_core.formats.exporting import Outgoing

_TENSORS = {"encoder.weight", "encoder.bias", "W_dec", "b_dec"}
_ACTIVATIONS = {"topk": "topk", "groupmax": "groupmax"}
_WEIGHTS_FILE = "sae.safetensors"


def recognises(source: Source) -> bool:
    """`encoder.weight` beside a `W_dec` of the same shape."""
    shapes = source.shapes
    return set(shapes) - {"W_skip"} == _TENSORS and shapes["encoder.weight"] == shapes["W_dec"]


def read(source: Source) -> ForeignSAE:
    """The SAE or transcoder of sparsify's files. Raises WeightsError if settings and tensors do not fit."""
    config = source.config
    if not config:
        raise WeightsError(f"There is no cfg.json beside {source.weights}, which says k; put it there.")
    stored = source.tensors()
    tensors = in_float32(stored)
    d_sae, d_in = tensors["encoder.weight"].shape
    declared = config.get("num_latents") or d_in * config.get("expansion_factor", 0)
    if declared and declared != d_sae:
        raise WeightsError(f"cfg.json speaks of {declared} latents and the file has {d_sae}; they are not of one SAE.")
    activation = config.get("activation", "topk")
    if activation not in _ACTIVATIONS:
        raise WeightsError(f"The activation {activation!r} is none that saescope computes ({', '.join(_ACTIVATIONS)}).")
    k = positive(config.get("k"), "k")
    if activation == "groupmax" and d_sae % k:
        raise WeightsError(f"{d_sae} features do not make {k} equal groups, as groupmax needs.")
    is_transcoder = bool(config.get("transcode", False))
    named = {
        "W_enc": tensors["encoder.weight"].T,
        "W_dec": tensors["W_dec"],
        "b_enc": tensors["encoder.bias"],
        "b_dec": tensors["b_dec"],
        **{name: tensors[name] for name in ("W_skip",) if name in tensors},
    }
    sae = made(_ACTIVATIONS[activation], named, k=k, is_transcoder=is_transcoder)
    written = our_hook_name(source.folder.name)
    return ForeignSAE(
        sae=sae,
        hook_name=input_of(written) if is_transcoder else written,
        target_hook_name=written if is_transcoder else None,
        k=k,
        l0=float(k),
        dtype=dtype_name(stored["W_dec"]),
        doubts=("hook point: sparsify reads what comes out of the module that its folder is named after",)
        if written is None
        else (),
    )


def write(outgoing: "Outgoing", folder: Path) -> tuple[str, ...]:
    """Files that sparsify loads with `SparseCoder.load_from_disk`."""
    sae = outgoing.sae
    if sae.architecture not in _ACTIVATIONS.values():
        raise ConfigError(f"sparsify has TopK SAEs only and this one is {sae.architecture}; export it as saelens.")
    if sae.input_norm != "none":
        raise ConfigError(f"sparsify normalises no inputs and this SAE does ({sae.input_norm}); export it as saelens.")
    if sae.d_out != sae.d_in:
        raise ConfigError("sparsify's transcoders have one width for input and output; this one has two.")
    notes = []
    if not (sae.is_transcoder or sae.subtracts_b_dec):
        notes.append("b_dec's part in the encoder was folded into its bias.")
    place = _place(outgoing)
    if place is None:
        notes.append(f"A folder's name cannot say in sparsify that it reads {outgoing.info.hook_name}; tell its users.")
    else:
        folder = folder / place
        folder.mkdir()
    b_enc = sae.b_enc if sae.is_transcoder else with_bias_subtraction(sae, subtracts=True)
    tensors = {"encoder.weight": sae.W_enc.T, "encoder.bias": b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    if sae.W_skip is not None:
        tensors["W_skip"] = sae.W_skip
    config: dict[str, Any] = {
        "expansion_factor": max(1, sae.d_sae // sae.d_in),
        "normalize_decoder": True,
        "multi_topk": bool(outgoing.info.config.get("multi_topk", False)),
        **outgoing.original_config,
        "activation": next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == sae.architecture),
        "num_latents": sae.d_sae,
        "k": sae.k,
        "skip_connection": sae.W_skip is not None,
        "transcode": sae.is_transcoder,
        "d_in": sae.d_in,
    }
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, folder / _WEIGHTS_FILE)
    (folder / "cfg.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return tuple(notes)


def _place(outgoing: "Outgoing") -> str | None:
    """The name of the folder that says where it reads; None where none does."""
    info = outgoing.info
    if outgoing.sae.is_transcoder and input_of(info.target_hook_name) != info.hook_name:
        return None
    return module_path(info.target_hook_name, info.model.architecture)
