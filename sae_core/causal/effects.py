"""One pass through the model and one back: a text's vectors, and how the next token's logits hang on them.

The explained number is a weighted sum of logits after one token: one logit, or the difference of two. Its gradient at
the place where the SAE writes gives total effects; its gradient behind the final norm gives direct ones.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sae_core.errors import ModelError
from sae_core.model import LanguageModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Effects:
    """All float32: `logits` (vocab) after the position; `read_acts` (T, d_in), `write_acts` and `gradient` (T, d_out).

    `readout` (d_out): its product with a part of the position's vector is what that part adds to the explained number
    straight through the final norm, None where the vector is not added to the residual stream.
    """

    logits: Tensor
    read_acts: Tensor
    write_acts: Tensor
    gradient: Tensor
    readout: Tensor | None


def check_predicts(model: LanguageModel) -> None:
    """Raises ModelError for a model without next tokens."""
    if not model.is_causal:
        raise ModelError(f"{model.info.model_name} predicts no next token, so there is nothing to explain or to steer.")


def effects(
    model: LanguageModel, token_ids: Tensor, *, hook_names: tuple[str, str], position: int, weights: Mapping[int, float]
) -> Effects:
    """What moves Σ weight · logit after `position` of token_ids (1, T). `hook_names`: where an SAE reads and writes."""
    read_at, write_at = hook_names
    norm, head = model.final_norm(), model.module.get_output_embeddings()
    seen: dict[str, Tensor] = {}

    def watch(read: Tensor, write: Tensor) -> Tensor:
        seen["read"], seen["write"] = read.detach().clone(), write.detach().clone().requires_grad_()
        return seen["write"] * 1  # a block may add to it in place

    def at_head(states: Tensor) -> Tensor:
        seen["head"] = states[:, position : position + 1]
        return seen["head"]

    with ExitStack() as stack:
        if norm is not None:
            stack.enter_context(model.before(norm, lambda x: seen.update(normed=x[0, position].detach())))
        stack.enter_context(model.before(head, at_head))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(model.edited((read_at, write_at), watch))
        logits = model.run(token_ids).logits[0, -1].to(model.device).float()
        explained = torch.stack([weight * logits[token_id] for token_id, weight in weights.items()]).sum()
        gradient, at_output = torch.autograd.grad(explained, [seen["write"], seen["head"]])
    scale, readout = model.stream_scale(write_at), None
    if norm is not None and scale:
        readout = scale * _readout(model, norm, seen["normed"], at_output[0, 0].float())
    return Effects(
        logits=logits.detach(),
        read_acts=seen["read"][0].float(),
        write_acts=seen["write"].detach()[0].float(),
        gradient=gradient[0].float(),
        readout=readout,
    )


@torch.no_grad()
def _readout(model: LanguageModel, norm: nn.Module, x: Tensor, at_output: Tensor) -> Tensor:
    """The vector u (d_model) for which u · v is what v, a part of the norm's input x, adds to the explained number.

    `at_output` is that number's gradient behind the norm, whose division by x's own size stays what it is for x.
    """
    gain, bias, subtracts_mean = model.gain_and_bias(norm, len(x), x.dtype)
    scaled = gain * (x.float() - x.float().mean() if subtracts_mean else x.float())
    size = (scaled @ scaled) / (scaled @ (norm(x).to(x.device).float() - bias))
    readout: Tensor = gain * at_output / size
    return readout - readout.mean() if subtracts_mean else readout
