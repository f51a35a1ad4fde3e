"""How weights move: the learning rate's course, the gradient's length, Adam.

The gradient shrinks as training goes on, faster than Adam's second moment forgets. So the gradient of all parameters
together is set to length 1 before each step: at the same learning rate that took the FVU of a synthetic run from 0.272
to 0.152; and the second moment is one of the last hundred steps, not thousand (docs/training.md).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sae_core.config import TrainConfig
from sae_core.sae import SAE, JumpReLUSAE

THRESHOLD_SHARE = 1.0  # of the learning rate: JumpReLU's thresholds have the length of a short run to find k


def adam(config: TrainConfig, sae: SAE) -> torch.optim.Adam:
    """Adam over the SAE's parameters, fused where the device has it; epsilon as in Gao et al. 2024."""
    is_fused = sae.W_dec.device.type in ("cpu", "cuda")
    others = [parameter for name, parameter in sae.named_parameters() if name != "log_threshold"]
    groups: list[dict[str, Any]] = [{"params": others, "share": 1.0}]
    if isinstance(sae, JumpReLUSAE):
        groups.append({"params": [sae.log_threshold], "share": THRESHOLD_SHARE})
    return torch.optim.Adam(groups, lr=learning_rate(config), betas=(0.9, config.beta2), eps=6.25e-10, fused=is_fused)


def learning_rate(config: TrainConfig) -> float:
    """The full learning rate: as given, or 4.8e-3 at 4,096 features, falling with the square root of the width."""
    return config.learning_rate or 4.8e-3 / math.sqrt(max(config.d_sae, 1024) / 4096)


def learning_rate_share(config: TrainConfig, n_tokens: int) -> float:
    """Share of the full learning rate after `n_tokens`: linear up, constant, linear to zero."""
    done = n_tokens / config.tokens
    rising = (done + config.batch_tokens / config.tokens) / config.warmup_share if config.warmup_share else 1.0
    falling = (1 - done) / config.decay_share if config.decay_share else 1.0
    return max(0.0, min(1.0, rising, falling))


@torch.no_grad()
def move(
    sae: SAE,
    optimizer: torch.optim.Optimizer,
    *,
    rate: float,
    keeps_unit_norm: bool,
    total_of: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """One step along the gradient set to length 1. `total_of` adds up squared lengths over the ranks' shards.

    With `keeps_unit_norm` the part of W_dec's gradient that would only change row norms is taken out before, and the
    rows are set back to unit norm after.
    """
    rows, grad = sae.W_dec, sae.W_dec.grad
    if keeps_unit_norm and grad is not None:
        grad.addcmul_((grad * rows).sum(dim=1, keepdim=True), rows, value=-1)
    normalise_gradient(sae, total_of=total_of)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]
    optimizer.step()
    if keeps_unit_norm:
        sae.normalise_decoder()


def normalise_gradient(sae: SAE, *, total_of: Callable[[Tensor], Tensor] | None = None) -> None:
    """Scales the gradient of all parameters together to length 1."""
    own = [p.grad for name, p in sae.named_parameters() if p.grad is not None and name != "b_dec"]
    square = torch.nn.utils.get_total_norm(own).square()
    if total_of is not None:
        square = total_of(square)
    grads = list(own)
    if sae.b_dec.grad is not None:  # whole on every rank
        square = square + sae.b_dec.grad.square().sum()
        grads.append(sae.b_dec.grad)
    torch._foreach_div_(grads, square.sqrt().clamp_min(1e-12))
