"""What each architecture minimises, for a batch of scaled activations x (N, d_in) and targets y (N, d_out).

All losses are in units of the batch's variance Σ‖y−ȳ‖², so that the reconstruction term is its FVU. For an SAE y is x.

    topk, batchtopk   fvu(sae_out) + aux                               Gao et al. 2024, Bussmann et al. 2024
    multi-topk        fvu(sae_out of k) + fvu(sae_out of 4k) / 8 + aux                   Gao et al. 2024
    matryoshka        mean over nested groups of fvu(sae_out of the group) + aux         Bussmann et al. 2025
    relu              fvu(sae_out) + s · Σ feature_acts · ‖W_dec row‖                    Conerly et al. 2024
    gated             fvu(sae_out) + s · Σ ReLU(pre_acts) + fvu(ReLU(pre_acts) @ W_dec as it is)
                                                                                         Rajamanoharan et al. 2024
    jumprelu          fvu(sae_out) + s · (L0 / k − 1)²                                   Rajamanoharan et al. 2024

`aux` lets features that have long not fired reconstruct what is left of the error (AuxK, Gao et al. 2024).
Nothing here is dense: ReLU, gate and jump pass gradients only at entries that are active or near their threshold.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_core import select, sparse
from sae_core.sae import SAE, BatchTopKSAE, GatedSAE, JumpReLUSAE, MatryoshkaSAE, TopKSAE
from sae_core.shards import add_up, largest_of_rows, over_rows, same_on_all
from sae_core.sparse import SparseCode

JUMP_WIDTH = 0.5  # of the window around a threshold in which it gets a gradient; inputs have norm √d_in

THRESHOLD_PACE = 0.1  # share of the way that BatchTopK's threshold moves towards a batch's


@dataclass(slots=True)
class Outcome:
    """Of one batch: the loss, Σ‖y−sae_out‖², y − sae_out (N, d_out), how many features were active, which (d_sae,)."""

    loss: Tensor
    squared_error: Tensor
    error: Tensor
    n_active: Tensor
    fired: Tensor


@dataclass(frozen=True, slots=True)
class Terms:
    """What a loss needs besides the batch: Σ‖y−ȳ‖², the weight `s` of sparsity and whether to use multi-TopK."""

    variance: Tensor
    sparsity: float
    multi_topk: bool


def outcome(sae: SAE, x: Tensor, y: Tensor, terms: Terms) -> Outcome:
    """The architecture's loss on a batch, without the auxiliary loss."""
    return _LOSSES[sae.architecture](sae, x, y, terms)


def aux_loss(sae: SAE, x: Tensor, error: Tensor, dead: Tensor) -> Tensor:
    """Σ‖e−ê‖² / Σ‖e‖², with ê what dead features (indices, (D,)) reconstruct of the error e (N, d_out).

    Of each token the d_in/2 largest of their pre-activations take part, as in Gao et al. 2024.
    """
    k_aux = max(1, sae.d_in // 2)
    x, W_enc, b_enc = sae.centred(x), sae.W_enc.T[dead].T, sae.b_enc[dead]
    if len(dead):
        code = select.top_k(x, W_enc, b_enc, min(k_aux, len(dead)))
    else:  # other ranks' features are dead, none of this one's
        code = SparseCode.of_rows(dead.new_empty(len(x), 0), x.new_empty(len(x), 0), d_sae=0)
    code = largest_of_rows(code, k_aux, sae.ranks)
    bias = same_on_all(sae.encoder_bias, sae.ranks)
    values = sparse.pre_acts_at(code, x, W_enc, b_enc, bias).relu()
    reconstruction = add_up(sparse.decode(code.with_values(values), sae.W_dec[dead]), sae.ranks)
    total = error.square().sum()
    if sae.ranks.shares_rows:
        total = sae.ranks.sum(total)
    return (error - reconstruction).square().sum() / total.clamp_min(1e-12)


def _topk(sae: SAE, x: Tensor, y: Tensor, terms: Terms) -> Outcome:
    if terms.multi_topk:
        return _multi_topk(sae, x, y, terms)
    code = sae.encode(x)
    if isinstance(sae, BatchTopKSAE):
        _follow_threshold(sae, code)
    squared, error = _squared_error(y, sae.decode(code))
    return Outcome(squared / terms.variance, squared, error, *_firing(code))


def _multi_topk(sae: SAE, x: Tensor, y: Tensor, terms: Terms) -> Outcome:
    assert isinstance(sae, TopKSAE)
    wide = sae.encode_top(x, min(4 * sae.k, sae.d_sae))
    values = wide.values.view(len(x), -1)
    chosen = values.detach().topk(sae.k, dim=1, sorted=False).indices  # (N, k) places in the wide code's rows
    narrow = SparseCode.of_rows(
        wide.indices.view_as(values).gather(1, chosen), values.gather(1, chosen), d_sae=sae.d_sae
    )
    squared, error = _squared_error(y, sae.decode(narrow))
    wide_squared, _ = _squared_error(y, sae.decode(wide))
    return Outcome((squared + wide_squared / 8) / terms.variance, squared, error, *_firing(narrow))


def _matryoshka(sae: SAE, x: Tensor, y: Tensor, terms: Terms) -> Outcome:
    assert isinstance(sae, MatryoshkaSAE)
    code = sae.encode(x)
    _follow_threshold(sae, code)
    ends = torch.tensor(sae.group_ends, device=x.device)
    n_groups = len(ends)
    # Entries of a row are in the order of their features, so those of a group are a bag of their own.
    groups = code.rows * n_groups + torch.searchsorted(ends, code.indices, right=True)
    counts = torch.bincount(groups, minlength=n_groups * len(x))
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    by_group = SparseCode(offsets, code.indices, code.values, d_sae=code.d_sae)
    parts = add_up(sparse.decode(by_group, sae.W_dec), sae.ranks).view(len(x), n_groups, -1)
    errors = (y - sae.b_dec).unsqueeze(1) - parts.cumsum(dim=1)  # (N, groups, d_out)
    loss = errors.square().sum() / (n_groups * terms.variance)
    last = errors[:, -1].detach()
    return Outcome(loss, last.square().sum(), last, *_firing(code))


def _relu(sae: SAE, x: Tensor, y: Tensor, terms: Terms) -> Outcome:
    code = sae.encode(x)
    squared, error = _squared_error(y, sae.decode(code))
    penalty = (code.values * sae.W_dec.norm(dim=1)[code.indices]).sum()
    return Outcome((squared + terms.sparsity * penalty) / terms.variance, squared, error, *_firing(code))


def _gated(sae: SAE, x: Tensor, y: Tensor, terms: Terms) -> Outcome:
    assert isinstance(sae, GatedSAE)
    gates, code = sae.encode_gates(x)
    squared, error = _squared_error(y, sae.decode(code))
    fixed, _ = _squared_error(y, sparse.decode(gates, sae.W_dec.detach()) + sae.b_dec.detach())
    loss = (squared + fixed + terms.sparsity * gates.values.sum()) / terms.variance
    return Outcome(loss, squared, error, *_firing(code))


def _jumprelu(sae: SAE, x: Tensor, y: Tensor, terms: Terms) -> Outcome:
    assert isinstance(sae, JumpReLUSAE)
    near = sae.encode_near_threshold(x, JUMP_WIDTH / 2)  # all entries through which anything has a gradient
    thresholds = sae.threshold[near.indices]
    code = near.with_values(_Jump.apply(near.values, thresholds))  # type: ignore[no-untyped-call]
    squared, error = _squared_error(y, sae.decode(code))
    n_sharing = sae.ranks.size if sae.ranks.shares_rows else 1
    own_l0 = _Step.apply(near.values, thresholds).sum() / (n_sharing * len(x))  # type: ignore[no-untyped-call]
    penalty = (over_rows(own_l0, sae.ranks) / sae.k - 1).square()  # the whole batch's on every rank
    penalty = penalty - penalty.detach() * (1 - 1 / n_sharing)  # counts once in the sum of the ranks' losses
    return Outcome(squared / terms.variance + terms.sparsity * penalty, squared, error, *_firing(code))


_LOSSES: dict[str, Callable[[Any, Tensor, Tensor, Terms], Outcome]] = {
    "topk": _topk,
    "batchtopk": _topk,
    "matryoshka": _matryoshka,
    "relu": _relu,
    "gated": _gated,
    "jumprelu": _jumprelu,
}


def _squared_error(y: Tensor, sae_out: Tensor) -> tuple[Tensor, Tensor]:
    """Σ‖y−sae_out‖², and y − sae_out (N, d_out) without a gradient: three passes over memory instead of seven."""
    squared, error = _SquaredError.apply(y, sae_out)  # type: ignore[no-untyped-call]
    return squared, error


class _SquaredError(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, sae_out: Tensor) -> tuple[Tensor, Tensor]:
        error = y - sae_out
        ctx.save_for_backward(error)
        ctx.mark_non_differentiable(error)
        return torch.linalg.vector_norm(error).square(), error

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        (error,) = ctx.saved_tensors
        return None, error * (-2 * grads[0])


class _Jump(torch.autograd.Function):
    """pre_acts where they exceed their threshold, whose gradient is the paper's, from a rectangular window."""

    @staticmethod
    def forward(ctx: Any, pre_acts: Tensor, thresholds: Tensor) -> Tensor:
        ctx.save_for_backward(pre_acts, thresholds)
        return pre_acts * (pre_acts > thresholds)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        pre_acts, thresholds = ctx.saved_tensors
        in_window = (pre_acts - thresholds).abs() < JUMP_WIDTH / 2
        return grads[0] * (pre_acts > thresholds), -(thresholds / JUMP_WIDTH) * in_window * grads[0]


class _Step(torch.autograd.Function):
    """1 where pre_acts exceed their threshold; a gradient for the threshold alone."""

    @staticmethod
    def forward(ctx: Any, pre_acts: Tensor, thresholds: Tensor) -> Tensor:
        ctx.save_for_backward(pre_acts, thresholds)
        return (pre_acts > thresholds).to(pre_acts.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        pre_acts, thresholds = ctx.saved_tensors
        in_window = (pre_acts - thresholds).abs() < JUMP_WIDTH / 2
        return None, -(in_window * grads[0]) / JUMP_WIDTH


def _firing(code: SparseCode) -> tuple[Tensor, Tensor]:
    values = code.values.detach()
    largest = values.new_zeros(code.d_sae).scatter_reduce_(0, code.indices, values, "amax")
    return (values > 0).sum(), largest > 0


@torch.no_grad()
def _follow_threshold(sae: BatchTopKSAE, code: SparseCode) -> None:
    """Moves the threshold in use towards the smallest activation that this batch kept."""
    if len(code.values) or sae.ranks.size > 1:
        positive = torch.where(code.values > 0, code.values.detach(), torch.inf)
        smallest = sae.ranks.least(positive.amin() if len(positive) else sae.threshold + torch.inf)
        smallest = torch.where(smallest.isfinite(), smallest, sae.threshold)
        following = sae.threshold.lerp(smallest, THRESHOLD_PACE)
        sae.threshold.copy_(torch.where(sae.threshold == 0, smallest, following))
