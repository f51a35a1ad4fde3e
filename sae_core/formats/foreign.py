"""What a reader of a format returns, and what all readers need: an SAE of ours, and what was said about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sae_core.errors import WeightsError
from sae_core.sae import SAE, sae_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignSAE:
    """An SAE from elsewhere in our classes, and what its files declare; None where they say nothing."""

    sae: SAE
    hook_name: str | None = None  # in our spelling
    target_hook_name: str | None = None  # of a transcoder
    declared_hook: str | None = None  # as it stands in the file, where it is none of ours
    model_name: str | None = None
    context_size: int | None = None
    prepend_bos: bool | None = None
    k: int | None = None
    l0: float | None = None  # active features per token, declared
    dtype: str = "float32"  # of the weights in the file
    notes: tuple[str, ...] = ()  # what was folded or decided, a sentence each
    doubts: tuple[str, ...] = ()  # what to look at first if the self-check fails
    extras: Mapping[str, Tensor] = field(default_factory=dict)  # tensors without a place in our classes


def made(
    architecture: str,
    *,
    W_enc: Tensor,
    W_dec: Tensor,
    b_enc: Tensor,
    b_dec: Tensor,
    k: int | None = None,
    is_transcoder: bool = False,
    subtracts_b_dec: bool | None = None,
    input_norm: str = "none",
    **others: Tensor,
) -> SAE:
    """An SAE of ours from tensors of `W_enc` (d_in, d_sae) and `W_dec` (d_sae, d_out).

    Raises WeightsError if they do not fit each other. Where nobody says k, it is no bound.
    """
    if W_enc.ndim != 2 or W_dec.ndim != 2:
        raise WeightsError(f"W_enc {_size(W_enc)} and W_dec {_size(W_dec)} are no matrices; this is no SAE.")
    d_in, d_sae = W_enc.shape
    shape: dict[str, Any] = {"architecture": architecture, "d_in": d_in, "d_sae": d_sae, "k": k or d_sae}
    if is_transcoder:
        shape["d_out"] = W_dec.shape[1]
    if subtracts_b_dec is not None:
        shape["subtracts_b_dec"] = subtracts_b_dec
    shape["input_norm"] = input_norm
    tensors = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec, **others}
    try:
        with torch.no_grad():
            return sae_of(shape, tensors)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        sizes = ", ".join(f"{name} {_size(tensor)}" for name, tensor in tensors.items())
        raise WeightsError(f"The tensors do not make an SAE ({error}): k {k}, {sizes}.") from error


def fold_input_scale(tensors: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Tensors of an SAE of `model_acts · scale` as those of one of model_acts, with the same feature_acts."""
    changed = {"W_enc": tensors["W_enc"] * scale, "W_dec": tensors["W_dec"] / scale, "b_dec": tensors["b_dec"] / scale}
    return {**tensors, **changed}


def fold_decoder_norms(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same SAE with decoder rows of unit norm; pre-activations, biases and thresholds grow by the norms."""
    norms = tensors["W_dec"].norm(dim=1).clamp_min(1e-8)
    changed = {"W_enc": tensors["W_enc"] * norms, "W_dec": tensors["W_dec"] / norms.unsqueeze(1)}
    grown = {name: tensors[name] * norms for name in ("b_enc", "b_mag", "fixed_threshold") if name in tensors}
    return {**tensors, **changed, **grown}


def with_bias_subtraction(sae: SAE, *, subtracts: bool) -> Tensor:
    """`b_enc` of the same SAE where `b_dec` is subtracted from the input, or not: what that changes is in the bias."""
    is_subtracted = sae.encoder_bias is not None
    if is_subtracted == subtracts:
        return sae.b_enc
    change = (sae.b_dec.double() @ sae.W_enc.double()).to(sae.b_enc.dtype)
    return sae.b_enc + change if subtracts else sae.b_enc - change


def in_float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(torch.float32) for name, tensor in tensors.items()}


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def positive(value: object, what: str) -> int:
    """A count that a file declares. Raises WeightsError if it is none."""
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(number, bool) or not isinstance(number, int | float) or number != int(number) or number < 1:
        raise WeightsError(f"{what} is {value!r} in the file; it must be a whole number above 0.")
    return int(number)


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _size(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"
