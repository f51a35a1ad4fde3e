"""Which features are active: the one dense product of an SAE, made slice by slice and never kept.

    top_k          the k largest pre-activations of each row                     TopK
    top_of_batch   the n largest positive pre-activations of all rows together   BatchTopK, Matryoshka
    above          the pre-activations above each feature's threshold            ReLU, gated, JumpReLU; BatchTopK in use

    pre_acts = x @ W_enc + b_enc                (N, d_sae), in slices of `_slice_rows`

Each core takes its own share of the rows, with a memory of its own for the slice's pre-activations that is used again:
touching 64 MB of fresh memory takes a third of the time that the product does. Where the hardware multiplies bfloat16
faster, `in_bfloat16` chooses by products of bfloat16 and computes the chosen values again in float32.
"""

from collections.abc import Callable
from threading import local
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from sae_core import sparse
from sae_core.sparse import SparseCode
from sae_core.threads import on_all_cores, share_out

T = TypeVar("T")

CPU_SLICE_BYTES = 32 << 20  # of pre-activations that a core makes at a time
GPU_SLICE_BYTES = 1 << 30
_SAMPLE_ROWS = 128  # on which `top_of_batch` guesses its bound
_memory = local()


def bfloat16_is_faster(device: torch.device) -> bool:
    """Whether this hardware selects faster by bfloat16 products than by float32 ones.

    Of CPUs those with AMX do: that PyTorch supports bfloat16 may mean that AVX-512 emulates it, several times slower.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()


@torch.no_grad()
def top_k(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, *, in_bfloat16: bool = False) -> SparseCode:
    """The k largest pre-activations of each row of x (N, d_in), negative ones too."""
    d_sae = W_enc.shape[1]
    indices = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    values = x.new_empty(len(x), k, dtype=torch.bfloat16 if in_bfloat16 else x.dtype)

    def choose(rows: slice, products: Tensor, biases: Tensor) -> None:
        if sparse.is_compiled(products):
            from sae_core import sparse_cpu

            sparse_cpu.top_k(products, biases, k, indices[rows], values[rows])
        else:
            values[rows], indices[rows] = products.add_(biases).topk(k, dim=1, sorted=False)

    _for_slices(x, W_enc, b_enc, choose, in_bfloat16=in_bfloat16)
    return _in_full_precision(SparseCode.of_rows(indices, values, d_sae=d_sae), x, W_enc, b_enc, in_bfloat16)


@torch.no_grad()
def top_of_batch(x: Tensor, W_enc: Tensor, b_enc: Tensor, n: int, *, in_bfloat16: bool = False) -> SparseCode:
    """The n largest positive pre-activations of all rows of x (N, d_in) together; fewer if fewer are positive."""
    for bound in _guesses(x, W_enc, b_enc, n):
        code = _above(x, W_enc, b_enc, bound.expand(W_enc.shape[1]).contiguous(), in_bfloat16=in_bfloat16)
        if len(code.values) >= n or not bound:
            break
    if len(code.values) > n:
        kept = torch.zeros(len(code.values), dtype=torch.bool, device=x.device)
        kept[code.values.topk(n, sorted=False).indices] = True
        offsets = functional.pad(kept.cumsum(0), (1, 0))[code.offsets]
        code = SparseCode(offsets, code.indices[kept], code.values[kept], d_sae=code.d_sae)
    return _in_full_precision(code, x, W_enc, b_enc, in_bfloat16)


@torch.no_grad()
def above(x: Tensor, W_enc: Tensor, b_enc: Tensor, thresholds: Tensor) -> SparseCode:
    """The pre-activations of each row of x (N, d_in) that lie above the features' thresholds (d_sae,)."""
    return _above(x, W_enc, b_enc, thresholds, in_bfloat16=False)


def _guesses(x: Tensor, W_enc: Tensor, b_enc: Tensor, n: int) -> list[Tensor]:
    """Bounds to try in turn: one that likely somewhat more than n pass, one that far more pass, 0."""
    sample = x[:: max(1, len(x) // _SAMPLE_ROWS)]
    pre_acts = functional.linear(sample, W_enc.T, b_enc).flatten()
    zero = x.new_zeros(())
    bounds = []
    for factor in (1.15, 2.0):
        rank = int(factor * n * len(sample) / max(len(x), 1)) + 1
        if rank < len(pre_acts):
            bounds.append(pre_acts.topk(rank, sorted=False).values.amin().clamp_min(0))
    return [*bounds, zero]


def _above(x: Tensor, W_enc: Tensor, b_enc: Tensor, thresholds: Tensor, *, in_bfloat16: bool) -> SparseCode:
    def choose(rows: slice, products: Tensor, biases: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if sparse.is_compiled(products):
            from sae_core import sparse_cpu

            return sparse_cpu.above(products, biases, thresholds)
        pre_acts = products.add_(biases)
        passing = pre_acts > thresholds
        return passing.sum(dim=1), passing.nonzero()[:, 1], pre_acts[passing]

    parts = _for_slices(x, W_enc, b_enc, choose, in_bfloat16=in_bfloat16)
    if not parts:
        empty = torch.zeros(0, dtype=torch.int64, device=x.device)
        parts = [(empty, empty, x.new_zeros(0))]
    counts, indices, values = (torch.cat(column) for column in zip(*parts, strict=True))
    return SparseCode(functional.pad(counts.cumsum(0), (1, 0)), indices, values, d_sae=W_enc.shape[1])


def _in_full_precision(code: SparseCode, x: Tensor, W_enc: Tensor, b_enc: Tensor, in_bfloat16: bool) -> SparseCode:
    if not in_bfloat16:
        return code
    return code.with_values(sparse.bag_dot(code.offsets, code.indices, x, W_enc.T) + b_enc[code.indices])


def _for_slices(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, choose: Callable[[slice, Tensor, Tensor], T], *, in_bfloat16: bool
) -> list[T]:
    """`choose(rows, products, biases)` of all slices of rows, in order; the next slice overwrites `products`."""
    dtype = torch.bfloat16 if in_bfloat16 else x.dtype
    x, weights, biases = x.to(dtype), W_enc.T.to(dtype).T, b_enc.to(dtype)
    is_cpu = x.device.type == "cpu"
    budget = CPU_SLICE_BYTES if is_cpu else GPU_SLICE_BYTES
    size = max(1, budget // max(1, dtype.itemsize * W_enc.shape[1]))

    def of_share(share: slice) -> list[T]:
        results = []
        for start in range(share.start, share.stop, size):
            rows = slice(start, min(start + size, share.stop))
            memory = _slice_memory(rows.stop - rows.start, W_enc.shape[1], dtype, x.device)
            results.append(choose(rows, torch.mm(x[rows], weights, out=memory), biases))
        return results

    shares = share_out(len(x), at_least=32) if is_cpu else [slice(0, len(x))]
    return [result for results in on_all_cores(of_share, shares) for result in results]


def _slice_memory(n_rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory (n_rows, width) that this thread uses again for its next slice."""
    wanted = n_rows * width * dtype.itemsize
    kept: Tensor | None = getattr(_memory, "kept", None)
    if kept is None or kept.device != device or len(kept) < wanted:
        with torch.inference_mode(False):  # what inference mode makes could not be written to outside of it
            kept = _memory.kept = torch.empty(wanted, dtype=torch.uint8, device=device)
    return kept[:wanted].view(dtype).view(n_rows, width)
