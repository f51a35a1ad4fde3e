"""The sparse code, and encode and decode with gradients that touch only active features.

A code's entries are stored row by row (CSR): row n of N holds the entries `offsets[n]` to `offsets[n + 1]`, each the
index of a feature and its value. A dense `(N, d_sae)` gradient is never made:

    decode    sae_out[n] = Σ values[e] · W_dec[indices[e]]           over the entries e of row n
              d values[e] = grad[n] · W_dec[indices[e]]
              d W_dec[f]  = Σ values[e] · grad[row of e]             over the entries e of feature f
    encode    values[e]   = x[n] · W_enc[:, indices[e]] + b_enc[indices[e]]
              d W_enc[:, f] = Σ d values[e] · x[row of e]            over the entries e of feature f
              d x[n]      = Σ d values[e] · W_enc[:, indices[e]]     over the entries e of row n

So all of it is two operations, `bag_sum` and `bag_dot`, over bags of entries that are rows or, sorted, features. On the
CPU they are torch's embedding bag and a compiled loop (`sparse_cpu`), on a GPU Triton kernels (`sparse_triton`).
Which entries a code has is decided without gradients, by `select`.
"""

import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_CPU, _CUDA = "cpu", "cuda"
_EAGER_BYTES = 64 << 20  # of products that are made at a time where no compiled loop adds them up


class SparseCode:
    """Entries of N tokens over `d_sae` features: `offsets` (N + 1,) int64, `indices` (E,) int64, `values` (E,).

    An entry whose value is 0 is inactive. Within a row each feature stands at most once. Where an SAE normalises its
    input or has a skip connection, `row_scale` (N, 1) and `row_offset` (N, 1 or d_out) are what a row's decoded sum is
    multiplied by and what is then added to it.
    """

    def __init__(self, offsets: Tensor, indices: Tensor, values: Tensor, *, d_sae: int) -> None:
        self.offsets = offsets
        self.indices = indices
        self.values = values
        self.d_sae = d_sae
        self.row_scale: Tensor | None = None
        self.row_offset: Tensor | None = None
        self._by_feature: list[tuple[Tensor, Tensor, Tensor]] = []  # one, once made; of all codes of these entries

    @classmethod
    def of_rows(cls, indices: Tensor, values: Tensor, *, d_sae: int) -> "SparseCode":
        """From `indices` and `values` (N, k), as many entries in each row."""
        n, k = indices.shape
        offsets = torch.arange(0, n * k + 1, k, device=indices.device) if k else indices.new_zeros(n + 1)
        return cls(offsets, indices.flatten(), values.flatten(), d_sae=d_sae)

    @property
    def n_rows(self) -> int:
        return len(self.offsets) - 1

    @property
    def rows(self) -> Tensor:
        """The row of each entry, (E,)."""
        counts = self.offsets.diff()
        return torch.arange(self.n_rows, device=counts.device).repeat_interleave(counts, output_size=len(self.indices))

    def with_values(self, values: Tensor) -> "SparseCode":
        """The same entries with other values."""
        code = SparseCode(self.offsets, self.indices, values, d_sae=self.d_sae)
        code.row_scale, code.row_offset = self.row_scale, self.row_offset
        code._by_feature = self._by_feature
        return code

    def active(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, features and values of the active entries, row by row."""
        is_active = self.values > 0
        if bool(is_active.all()):  # as in most TopK codes: nothing to copy
            return self.rows, self.indices, self.values
        return self.rows[is_active], self.indices[is_active], self.values[is_active]

    def dense(self) -> Tensor:
        """`feature_acts` (N, d_sae)."""
        feature_acts = self.values.new_zeros(self.n_rows, self.d_sae)
        return feature_acts.index_put((self.rows, self.indices), self.values, accumulate=True)

    def by_feature(self) -> tuple[Tensor, Tensor, Tensor]:
        """Offsets (d_sae + 1,) of the features' bags, the order (E,) that sorts entries by feature, and their rows."""
        if not self._by_feature:
            if is_compiled(self.indices):
                from sae_core import sparse_cpu

                made = sparse_cpu.by_feature(self.offsets, self.indices, self.d_sae)
            elif _has_kernels(self.indices):
                from sae_core import sparse_triton

                made = sparse_triton.by_feature(self.offsets, self.indices, self.d_sae)
            else:
                features, order = self.indices.sort(stable=True)
                bounds = torch.arange(self.d_sae + 1, device=order.device)
                made = torch.searchsorted(features, bounds), order, self.rows[order]
            self._by_feature.append(made)
        return self._by_feature[0]


def decode(code: SparseCode, W_dec: Tensor) -> Tensor:
    """Σ values[e] · W_dec[indices[e]] of each row, (N, d_out); differentiable in the code's values and `W_dec`."""
    return _Decode.apply(code.values, W_dec, code)  # type: ignore[no-any-return, no-untyped-call]


def pre_acts_at(code: SparseCode, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor | None = None) -> Tensor:
    """The code's values (E,) as what they are, pre-activations of x (N, d_in): differentiable in all that made them.

    `W_enc` is (d_in, d_sae); it is fastest when its memory is that of a contiguous (d_sae, d_in). `b_dec` is given if
    it was subtracted from x: its gradient, −Σₙ d x[n], is −W_enc @ d b_enc, one small product (Gao et al. 2024).
    """
    return _PreActsAt.apply(x, W_enc, b_enc, b_dec, code)  # type: ignore[no-any-return, no-untyped-call]


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, code: SparseCode) -> Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.code = code
        return bag_sum(code.offsets, code.indices, values, W_dec)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, W_dec = ctx.saved_tensors
        code, grad = ctx.code, grads[0].contiguous()
        grad_values = bag_dot(code.offsets, code.indices, grad, W_dec) if ctx.needs_input_grad[0] else None
        return grad_values, sum_by_feature(code, values, grad) if ctx.needs_input_grad[1] else None, None


class _PreActsAt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor | None, code: SparseCode) -> Tensor:
        ctx.save_for_backward(x, W_enc)
        ctx.code = code
        return code.values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, None]:
        x, W_enc = ctx.saved_tensors
        code, grad_values = ctx.code, grads[0].contiguous()
        needs_x, needs_W_enc, needs_b_enc, needs_b_dec, _ = ctx.needs_input_grad
        grad_x = bag_sum(code.offsets, code.indices, grad_values, W_enc.T) if needs_x else None
        grad_W_enc = sum_by_feature(code, grad_values, x).T if needs_W_enc else None
        grad_b_enc = _total_by_feature(code, grad_values) if needs_b_enc or needs_b_dec else None
        grad_b_dec = -(W_enc @ grad_b_enc.to(W_enc.dtype)) if grad_b_enc is not None and needs_b_dec else None
        return grad_x, grad_W_enc, grad_b_enc, grad_b_dec, None


def sum_by_feature(code: SparseCode, values: Tensor, rows: Tensor) -> Tensor:
    """Σ values[e] · rows[row of e] over the entries of each feature, (d_sae, d) for rows (N, d); float32 or wider."""
    offsets, order, row_of = code.by_feature()
    wide = torch.promote_types(rows.dtype, torch.float32)
    return bag_sum(offsets, row_of, values[order], rows, out_dtype=wide)


def _total_by_feature(code: SparseCode, values: Tensor) -> Tensor:
    """Σ values[e] over the entries of each feature, (d_sae,); two runs give the same bits."""
    if code.indices.device.type == _CUDA:  # where index_add_ adds in whatever order it comes to
        offsets, order, _ = code.by_feature()
        return torch.segment_reduce(values[order], "sum", offsets=offsets, unsafe=True)
    return values.new_zeros(code.d_sae).index_add_(0, code.indices, values)


def bag_sum(
    offsets: Tensor, indices: Tensor, values: Tensor, table: Tensor, *, out_dtype: torch.dtype | None = None
) -> Tensor:
    """Σ values[e] · table[indices[e]] over each bag's entries, (bags, d) for a table (R, d).

    Of the table's type, or of the wider `out_dtype`.
    """
    if _has_kernels(table):
        from sae_core import sparse_triton

        return sparse_triton.bag_sum(
            offsets, indices, values.contiguous(), table.contiguous(), out_dtype=out_dtype or table.dtype
        )
    table = table.to(out_dtype or table.dtype)
    if not len(indices):
        return table.new_zeros(len(offsets) - 1, table.shape[1])
    return functional.embedding_bag(
        indices, table, offsets, per_sample_weights=values.to(table.dtype), mode="sum", include_last_offset=True
    )


def bag_dot(offsets: Tensor, indices: Tensor, rows: Tensor, table: Tensor) -> Tensor:
    """rows[bag of e] · table[indices[e]] of every entry, (E,), for rows (bags, d) and a table (R, d)."""
    if _has_kernels(table):
        from sae_core import sparse_triton

        return sparse_triton.bag_dot(offsets, indices, rows.contiguous(), table.contiguous())
    if is_compiled(table):
        from sae_core import sparse_cpu

        return sparse_cpu.bag_dot(offsets, indices, rows, table)
    n_bags = len(offsets) - 1
    bags = torch.arange(n_bags, device=offsets.device).repeat_interleave(offsets.diff(), output_size=len(indices))
    at_a_time = max(1, _EAGER_BYTES // (table.element_size() * max(1, table.shape[1])))
    parts = zip(torch.split(bags, at_a_time), torch.split(indices, at_a_time), strict=True)
    return torch.cat([(rows[bag] * table[index]).sum(dim=1) for bag, index in parts])


def _has_kernels(tensor: Tensor) -> bool:
    """Whether `sparse_triton` works on this tensor."""
    return tensor.device.type == _CUDA and tensor.dtype != torch.float64 and _triton_runs_on(tensor.device)


def is_compiled(tensor: Tensor) -> bool:
    """Whether `sparse_cpu` works on this tensor: Numba knows no floats of 16 bits."""
    is_known = tensor.dtype in (torch.float32, torch.float64, torch.int64)
    return tensor.device.type == _CPU and is_known and _is_installed("numba")


@cache
def _triton_runs_on(device: torch.device) -> bool:
    return _is_installed("triton") and torch.cuda.get_device_capability(device) >= (7, 0)


@cache
def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
