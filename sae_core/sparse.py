"""Sparse decode and encode with gradients that touch only active features.

A sparse code is `(indices, values)`, both (N, k): per row the k features that may be active and their activations (a
value of 0 is inactive). A dense `(N, d_sae)` gradient is never made:

    decode    sae_out[n] = Σ_j values[n, j] · W_dec[indices[n, j]]
              d values[n, j] = grad[n] · W_dec[indices[n, j]]
              d W_dec = Cᵀ @ grad                 with C the (N, d_sae) sparse matrix of the code
    encode    pre_acts[n, j] = x[n] · W_enc[:, indices[n, j]] + b_enc[indices[n, j]]
              d W_enc = (Gᵀ @ x)ᵀ                 with G the sparse matrix of d pre_acts
              d x = G @ W_encᵀ
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_CPU_SLICE_BYTES = 16 << 20  # of pre-activations made at a time


def decode(indices: Tensor, values: Tensor, W_dec: Tensor) -> Tensor:
    """Σ_j values[n, j] · W_dec[indices[n, j]], (N, d_in); differentiable in `values` and `W_dec`."""
    return _Decode.apply(indices, values, W_dec)  # type: ignore[no-any-return, no-untyped-call]


def select(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest pre-activations of each row of x (N, d_in): indices and values (N, k), differentiable.

    `W_enc` is (d_in, d_sae); it is fastest when its memory is that of a contiguous (d_sae, d_in).
    """
    indices, values = _Select.apply(x, W_enc, b_enc, k)  # type: ignore[no-untyped-call]
    return indices, values


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, indices: Tensor, values: Tensor, W_dec: Tensor) -> Tensor:
        ctx.save_for_backward(indices, values, W_dec)
        return functional.embedding_bag(indices, W_dec, per_sample_weights=values, mode="sum")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor]:
        indices, values, W_dec = ctx.saved_tensors
        (grad,) = grads
        grad_values = _dot_rows(grad, W_dec, indices)
        return None, grad_values, _transposed_product(indices, values, grad, W_dec.shape[0])


class _Select(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
        indices, values = top_pre_acts(x, W_enc, b_enc, k)
        ctx.save_for_backward(x, indices, W_enc)
        ctx.mark_non_differentiable(indices)
        return indices, values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, indices, W_enc = ctx.saved_tensors
        grad_values = grads[1].contiguous()
        d_sae = W_enc.shape[1]
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = functional.embedding_bag(indices, W_enc.T, per_sample_weights=grad_values, mode="sum")
        grad_W_enc = _transposed_product(indices, grad_values, x, d_sae).T
        grad_b_enc = grad_values.new_zeros(d_sae).index_add_(0, indices.flatten(), grad_values.flatten())
        return grad_x, grad_W_enc, grad_b_enc, None


def top_pre_acts(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Indices and values (N, k) of each row's k largest pre-activations, without keeping (N, d_sae) of them.

    On the CPU the rows go in slices whose pre-activations fit the cache: half the time of one large product, most of
    which goes into touching fresh memory.
    """
    rows = max(1, _CPU_SLICE_BYTES // (4 * W_enc.shape[1])) if x.device.type == "cpu" else len(x)
    values = x.new_empty(len(x), k)
    indices = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        pre_acts = functional.linear(x[part], W_enc.T, b_enc)  # (rows, d_sae)
        values[part], indices[part] = pre_acts.topk(k, dim=1, sorted=False)
    return indices, values


def _dot_rows(rows: Tensor, table: Tensor, indices: Tensor) -> Tensor:
    """rows[n] · table[indices[n, j]], (N, k)."""
    n, k = indices.shape
    offsets = torch.arange(0, n * k, k, device=rows.device)
    bags = torch.arange(n, device=rows.device).repeat_interleave(k)
    products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        rows.contiguous(), table, indices.flatten(), offsets, bags, 0
    )
    return products.view(n, k)  # type: ignore[no-any-return]


def _transposed_product(indices: Tensor, values: Tensor, rows: Tensor, d_sae: int) -> Tensor:
    """Cᵀ @ rows, (d_sae, d_in), with C the (N, d_sae) sparse matrix of the code.

    Sorted by feature, the entries of one feature are one bag of rows: an embedding bag over `rows`.
    """
    flat = indices.flatten()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=d_sae)
    return functional.embedding_bag(
        order.div(indices.shape[1], rounding_mode="floor"),
        rows,
        counts.cumsum(0) - counts,  # where each feature's bag starts
        per_sample_weights=values.flatten()[order],
        mode="sum",
    )
