"""Triton kernels for a TopK-family SAE's sparse work on NVIDIA GPUs: `sae_core/sparse.py` takes them for CUDA tensors.

Importing this needs triton, which only PyTorch's CUDA builds for Linux bring along.

A sparse code is a CSR matrix, `offsets` (B+1,) int64 from 0 to nnz, `indices` (nnz,) int64 and `values` (nnz,): bag b
holds the entries offsets[b] … offsets[b+1]-1, any number of them, none included. With a `table` (R, d):

    bag_sum       out[b] = Σ_{e in bag b} values[e] · table[indices[e]]          (B, d)
    bag_dot       out[e] = rows[b(e)] · table[indices[e]]                        (nnz,)
    by_feature    the transposed matrix's offsets, where its entries stood, and its indices

    decode        bag_sum(offsets, indices, feature_acts, W_dec); the activations' gradient is bag_dot(…, grad, W_dec)
    d W           Cᵀ @ grad of the (N, d_sae) code C: bag_sum over the bags of by_feature, with table = grad

Sums are taken in float32, always in the same order and without atomics: two runs give the same bits. No call waits for
the GPU: every size is a bound known from the arguments' shapes, and programs beyond what the data needs end at once.

Launch layout of bag_sum. A program sums one run of entries over one slab of columns; it reads `_TILE` rows' slabs at a
time, each thread 16 bytes of each, so a row's slab is one coalesced read and its threads never exchange sums. Programs
are numbered bag first, slab last: all bags pass over one slab of the table (1 KiB a row) before the next, so that the
slab of a batch (16k rows: 16 MiB) stays in L2, where every row is read about k times.

1.  Features' bags are skewed: a few hold most of the batch's rows. What a bag has beyond its first `_CHUNK` entries is
    cut into extra chunks, of which there are at most nnz // _CHUNK; a program each writes their float32 sums aside.
2.  A program for each bag sums its first `_CHUNK` entries, adds the bag's extra chunks in order, and writes the row.

Launch layout of bag_dot. A program is one warp, which takes one chunk of one bag's entries over all columns (there are
at most B + nnz // `_DOT_CHUNK` chunks). Its lanes hold 16 bytes each of `_TILE` table rows and of the bag's own row, so
the loop over columns neither exchanges nor waits, and each product is finished by shuffles.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)

# None of these was tuned on a GPU yet; the reasons are arithmetic on an H100 (and hold for an A100).
_CHUNK = 256  # entries: 256 KiB to read is some 20 µs for one program, and partial sums add 1/64 to the traffic
_DOT_CHUNK = 32  # entries: fewer, as one warp reads whole rows; a cut costs only another read of the bag's row
_TILE = 8  # rows on the way before any is added: 4 KiB a warp; more would not fit the registers of 16 warps an SM
_WARP_BYTES = 32 * 16  # of one row: 16 bytes is the widest load of a thread
_SLAB_WARPS = 2  # 1 KiB slabs keep a batch's slab in L2; narrower ones would read the entries more often


def bag_sum(
    offsets: Tensor, indices: Tensor, values: Tensor, table: Tensor, *, out_dtype: torch.dtype | None = None
) -> Tensor:
    """Σ_e values[e] · table[indices[e]] over each bag's entries, (B, d); an empty bag gives zeros.

    The result is rounded once, from float32 to `out_dtype`, which is the table's own unless given: a decode has the
    weights' type, while a gradient from bfloat16 rows can ask for float32.
    ValueError: a tensor's type, shape or layout.
    """
    _check(offsets, indices, table, values=values)
    n_bags, d, nnz = len(offsets) - 1, table.shape[1], len(indices)
    out = table.new_empty(n_bags, d, dtype=out_dtype or table.dtype)
    if out.numel() == 0 or nnz == 0:
        return out.zero_()
    columns, layout = _layout(table, _SLAB_WARPS)
    slabs = triton.cdiv(d, columns)
    n_extra = nnz // _CHUNK  # Σ_b (length_b - 1) // _CHUNK is never more
    with torch.cuda.device_of(table):  # type: ignore[no-untyped-call]
        extra_offsets = partials = None
        if n_extra:
            extra_offsets, extra_bags = _chunks((offsets.diff() - 1).clamp_(min=0) // _CHUNK, n_extra)
            partials = table.new_empty(n_extra, d, dtype=torch.float32)
            _extra_sums[(n_extra, slabs)](
                offsets, indices, values, table, extra_offsets, extra_bags, partials, n_bags, d,
                CHUNK=_CHUNK, **layout,
            )  # fmt: skip
        _bag_sums[(n_bags, slabs)](
            offsets, indices, values, table, extra_offsets, partials, out, d, CHUNK=_CHUNK, **layout
        )
    return out


def bag_dot(offsets: Tensor, indices: Tensor, rows: Tensor, table: Tensor) -> Tensor:
    """rows[b] · table[indices[e]] for each entry e of each bag b, (nnz,) float32; `rows` is (B, d).

    `rows` and `table` need not have one type. ValueError: a tensor's type, shape or layout.
    """
    _check(offsets, indices, table, rows=rows)
    n_bags, d, nnz = len(offsets) - 1, table.shape[1], len(indices)
    out = table.new_empty(nnz, dtype=torch.float32)
    if nnz == 0:
        return out
    _, layout = _layout(table, 1)
    n_chunks = n_bags + nnz // _DOT_CHUNK  # Σ_b ⌈length_b / _DOT_CHUNK⌉ is never more
    with torch.cuda.device_of(table):  # type: ignore[no-untyped-call]
        lengths = offsets.diff()
        chunk_offsets, chunk_bags = _chunks((lengths + (_DOT_CHUNK - 1)) // _DOT_CHUNK, n_chunks)
        _bag_dots[(n_chunks,)](
            offsets, indices, rows, table, chunk_offsets, chunk_bags, out, n_bags, d,
            CHUNK=_DOT_CHUNK, **layout,
        )  # fmt: skip
    return out


def by_feature(offsets: Tensor, indices: Tensor, n_features: int) -> tuple[Tensor, Tensor, Tensor]:
    """The transposed code, as (feature_offsets (n_features+1,), order (nnz,), rows (nnz,)), all int64.

    Entry e of the transposed code is entry order[e] of the code and belongs to row rows[e]; a feature's entries keep
    their order. So the (n_features, d) product Cᵀ @ x is bag_sum(feature_offsets, rows, values[order], x).
    """
    # 32-bit keys take half the passes of a radix sort; bincount would wait for the GPU to see the largest feature.
    features, order = indices.to(torch.int32).sort(stable=True)
    edges = torch.arange(n_features + 1, dtype=torch.int32, device=indices.device)
    bags = torch.repeat_interleave(offsets.diff(), output_size=len(indices))  # a size that is known spares a wait
    return torch.searchsorted(features, edges), order, bags[order]


def _chunks(counts: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Bags with `counts` (B,) chunks each: chunk offsets (B+1,), and the bag (most,) of each chunk, B for no bag."""
    offsets = counts.new_zeros(len(counts) + 1)
    torch.cumsum(counts, 0, out=offsets[1:])
    chunk = torch.arange(most, device=counts.device)
    return offsets, torch.searchsorted(offsets[1:], chunk, right=True)  # bags without chunks are passed over


def _layout(table: Tensor, most_warps: int) -> tuple[int, dict[str, Any]]:
    """How many columns a program reads at a time, 16 bytes a thread, and the launch arguments that say so."""
    width, size = triton.next_power_of_2(table.shape[1]), table.element_size()
    columns = max(16, min(width, most_warps * _WARP_BYTES // size))
    warps = max(1, columns * size // _WARP_BYTES)
    return columns, {"TILE": _TILE, "COLUMNS": columns, "num_warps": warps, "enable_fp_fusion": True}


def _check(offsets: Tensor, indices: Tensor, table: Tensor, **others: Tensor) -> None:
    """ValueError where a kernel would read the wrong memory; `others` is `values` (nnz,) or `rows` (B, d)."""
    tensors = {"offsets": offsets, "indices": indices, "table": table, **others}
    shapes = {"offsets": 1, "indices": 1, "values": 1, "table": 2, "rows": 2}
    for name, tensor in tensors.items():
        floats = name not in ("offsets", "indices")
        if tensor.ndim != shapes[name] or not tensor.is_contiguous() or tensor.device != table.device:
            raise ValueError(f"{name} must be a contiguous tensor of {shapes[name]} dimensions, beside the table.")
        if tensor.dtype not in (_FLOATS if floats else (torch.int64,)):
            raise ValueError(f"{name} must be float32, bfloat16 or float16." if floats else f"{name} must be int64.")
    if len(offsets) == 0:
        raise ValueError("offsets must have one number more than there are bags.")
    if "values" in others and len(others["values"]) != len(indices):
        raise ValueError("values and indices must have one length.")
    if "rows" in others and others["rows"].shape != (len(offsets) - 1, table.shape[1]):
        raise ValueError("rows must have a row for each bag, as wide as the table's.")


# Entries and rows are counted in int64: nnz, and a row's number times d, may pass 2³¹. Loop counters stay within a bag.


@triton.jit  # type: ignore[untyped-decorator]
def _sum_entries(
    indices: tl.tensor, values: tl.tensor, table: tl.tensor,
    start: tl.tensor, length: tl.tensor, column: tl.tensor, d: tl.tensor,
    TILE: tl.constexpr, COLUMNS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Σ values[e] · table[indices[e], column] over `length` entries from `start`, (COLUMNS,) float32."""
    total = tl.zeros((COLUMNS,), dtype=tl.float32)
    for first in range(0, length, TILE):
        entry = first + tl.arange(0, TILE)
        there = entry < length
        index = tl.load(indices + start + entry, mask=there, other=0)
        value = tl.load(values + start + entry, mask=there, other=0.0).to(tl.float32)
        place = index[:, None] * d + column[None, :]  # (TILE, COLUMNS)
        part = tl.load(table + place, mask=there[:, None] & (column < d)[None, :], other=0.0).to(tl.float32)
        total += tl.sum(part * value[:, None], axis=0)
    return total


@triton.jit  # type: ignore[untyped-decorator]
def _extra_sums(
    offsets: tl.tensor, indices: tl.tensor, values: tl.tensor, table: tl.tensor,
    extra_offsets: tl.tensor, extra_bags: tl.tensor, partials: tl.tensor, n_bags: tl.tensor, d: tl.tensor,
    CHUNK: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """One extra chunk of a long bag over one slab of columns, into `partials` (n_extra, d) float32."""
    extra = tl.program_id(0).to(tl.int64)
    bag = tl.load(extra_bags + extra)
    if bag >= n_bags:
        return
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    start = tl.load(offsets + bag) + (1 + extra - tl.load(extra_offsets + bag)) * CHUNK
    length = tl.minimum(tl.load(offsets + bag + 1) - start, CHUNK).to(tl.int32)
    total = _sum_entries(indices, values, table, start, length, column, d, TILE, COLUMNS)
    tl.store(partials + extra * d + column, total, mask=column < d)


@triton.jit  # type: ignore[untyped-decorator]
def _bag_sums(
    offsets: tl.tensor, indices: tl.tensor, values: tl.tensor, table: tl.tensor,
    extra_offsets: tl.tensor, partials: tl.tensor, out: tl.tensor, d: tl.tensor,
    CHUNK: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """One bag over one slab of columns: its first chunk and, where there are `partials`, its extra ones."""
    bag = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    start = tl.load(offsets + bag)
    length = tl.minimum(tl.load(offsets + bag + 1) - start, CHUNK).to(tl.int32)
    total = _sum_entries(indices, values, table, start, length, column, d, TILE, COLUMNS)
    if partials is not None:
        first_extra = tl.load(extra_offsets + bag)
        n_extra = (tl.load(extra_offsets + bag + 1) - first_extra).to(tl.int32)
        for first in range(0, n_extra, TILE):
            extra = first + tl.arange(0, TILE)
            place = (first_extra + extra)[:, None] * d + column[None, :]  # (TILE, COLUMNS)
            there = (extra < n_extra)[:, None] & (column < d)[None, :]
            total += tl.sum(tl.load(partials + place, mask=there, other=0.0), axis=0)
    tl.store(out + bag * d + column, total.to(out.dtype.element_ty), mask=column < d)


@triton.jit  # type: ignore[untyped-decorator]
def _bag_dots(
    offsets: tl.tensor, indices: tl.tensor, rows: tl.tensor, table: tl.tensor,
    chunk_offsets: tl.tensor, chunk_bags: tl.tensor, out: tl.tensor, n_bags: tl.tensor, d: tl.tensor,
    CHUNK: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """The dot products of one chunk of a bag's entries, `TILE` of them at a time."""
    chunk = tl.program_id(0).to(tl.int64)
    bag = tl.load(chunk_bags + chunk)
    if bag >= n_bags:
        return
    start = tl.load(offsets + bag) + (chunk - tl.load(chunk_offsets + bag)) * CHUNK
    length = tl.minimum(tl.load(offsets + bag + 1) - start, CHUNK).to(tl.int32)
    for first in range(0, length, TILE):
        entry = first + tl.arange(0, TILE)
        there = entry < length
        index = tl.load(indices + start + entry, mask=there, other=0)
        total = tl.zeros((TILE, COLUMNS), dtype=tl.float32)
        for first_column in range(0, d, COLUMNS):
            column = first_column + tl.arange(0, COLUMNS)
            row = tl.load(rows + bag * d + column, mask=column < d, other=0.0).to(tl.float32)
            place = index[:, None] * d + column[None, :]  # (TILE, COLUMNS)
            part = tl.load(table + place, mask=there[:, None] & (column < d)[None, :], other=0.0).to(tl.float32)
            total += part * row[None, :]
        tl.store(out + start + entry, tl.sum(total, axis=1), mask=there)
