"""Loops of the sparse code that torch has no fast operation for, compiled by Numba, spread over the CPU's cores.

    top_k        the k largest of each row. torch takes 17 µs for a row of 4,096: it copies values and indices into
                 pairs and heaps them. Here a row is read once, four times faster: the maxima of groups of 8 give a
                 bound that at least k values reach, and only groups that reach it are looked into.
    above        the entries above a threshold, row by row
    by_feature   a counting sort of entries by feature
    bag_dot      the products of rows with the table's rows that they refer to

Imported when the first code is made, so that importing saescope compiles nothing; the machine code is kept on disk.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from sae_core.compiled import compiled
from sae_core.threads import on_all_cores, share_out

_LANES = 16  # values side by side, as a vector register or two hold them
_GROUP = 8  # values of a group, `_LANES` apart

_F = TypeVar("_F", bound=Callable[..., Any])


def _compiled_sum(function: _F) -> _F:
    """The same with sums taken in any order. All of fastmath would have the compiler believe that nothing is NaN."""
    return compiled(function, fastmath={"reassoc", "contract"})


def top_k(products: Tensor, biases: Tensor, k: int, indices: Tensor, values: Tensor) -> None:
    """Writes the k largest of each row of products + biases, (N, d_sae) + (d_sae,), into `indices` and `values` (N, k).

    In no order. The sum is not made as a whole: writing it would take as long as the rest. NaN are passed over; a row
    of fewer than k numbers gets k NaN.
    """
    _top_k(products.numpy(), biases.detach().numpy(), k, indices.numpy(), values.numpy())


def above(products: Tensor, biases: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Counts (N,), features (E,) and values (E,) of the entries of products + biases above thresholds (d_sae,)."""
    bounds = (thresholds - biases.detach()).numpy()
    counts = torch.empty(len(products), dtype=torch.int64)
    _count_above(products.numpy(), bounds, counts.numpy())
    n_entries = int(counts.sum())
    indices = torch.empty(n_entries, dtype=torch.int64)
    values = torch.empty(n_entries, dtype=products.dtype)
    _write_above(products.numpy(), bounds, indices.numpy(), values.numpy())
    return counts, indices, values + biases.detach()[indices]


def by_feature(offsets: Tensor, indices: Tensor, n_features: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bags by feature: offsets (n_features + 1,), the order (E,) that sorts the entries, their rows (E,). Stable."""
    bounds = torch.zeros(n_features + 1, dtype=torch.int64)
    order = torch.empty_like(indices)
    rows = torch.empty_like(indices)
    _by_feature(offsets.numpy(), indices.numpy(), bounds.numpy(), order.numpy(), rows.numpy())
    return bounds, order, rows


def bag_dot(offsets: Tensor, indices: Tensor, rows: Tensor, table: Tensor) -> Tensor:
    """rows[bag of e] · table[indices[e]] of every entry, (E,), for rows (bags, d) and a table (R, d)."""
    products = torch.empty(len(indices), dtype=table.dtype)
    arrays = [tensor.detach().contiguous().numpy() for tensor in (offsets, indices, rows, table, products)]
    on_all_cores(lambda bags: _bag_dot(bags.start, bags.stop, *arrays), share_out(len(rows), at_least=64))
    return products


@compiled
def _top_k(products: Any, biases: Any, k: int, indices: Any, values: Any) -> None:
    n_rows, width = products.shape
    n_blocks = width // (_LANES * _GROUP)
    n_groups = n_blocks * _LANES
    if n_groups < 2 * k:  # too few groups to bound anything: every value is a candidate
        n_blocks = n_groups = 0
    maxima = np.empty(n_groups, products.dtype)
    groups = np.empty(n_groups + 1, np.int32)  # one more each: what does not count is written behind what does
    candidates = np.empty(width + 1, np.int32)
    candidate_values = np.empty(width + 1, products.dtype)
    for n in range(n_rows):
        row = products[n]
        for block in range(n_blocks):
            start = block * _LANES * _GROUP
            for lane in range(_LANES):
                largest = row[start + lane] + biases[start + lane]
                for step in range(1, _GROUP):
                    at = start + step * _LANES + lane
                    largest = max(largest, row[at] + biases[at])
                maxima[block * _LANES + lane] = largest
        n_candidates = 0
        if n_groups:
            bound = _reached_by(maxima, n_groups, k, k // 4)
            n_reaching = 0
            for group in range(n_groups):  # counted without a branch, which the processor could not foresee
                groups[n_reaching] = group
                n_reaching += maxima[group] >= bound
            for group in groups[:n_reaching]:
                start = (group // _LANES) * _LANES * _GROUP + group % _LANES
                for step in range(_GROUP):
                    at = start + step * _LANES
                    candidates[n_candidates] = at
                    candidate_values[n_candidates] = row[at] + biases[at]
                    n_candidates += candidate_values[n_candidates] >= bound
            for feature in range(n_groups * _GROUP, width):
                candidates[n_candidates] = feature
                candidate_values[n_candidates] = row[feature] + biases[feature]
                n_candidates += candidate_values[n_candidates] >= bound
        else:
            for feature in range(width):
                candidates[feature] = feature
                candidate_values[feature] = row[feature] + biases[feature]
            n_candidates = width
        bound = _reached_by(candidate_values, n_candidates, k, 0)
        n_chosen = 0
        for i in range(n_candidates):  # fewer than k are above the bound
            if candidate_values[i] > bound and n_chosen < k:
                indices[n, n_chosen] = candidates[i]
                values[n, n_chosen] = candidate_values[i]
                n_chosen += 1
        for i in range(n_candidates):
            if candidate_values[i] == bound and n_chosen < k:
                indices[n, n_chosen] = candidates[i]
                values[n, n_chosen] = candidate_values[i]
                n_chosen += 1
        if n_chosen < k:  # there are not k numbers in the row
            for i in range(k):
                indices[n, i] = i
                values[n, i] = np.nan


@compiled
def _reached_by(array: Any, n: int, k: int, slack: int) -> Any:
    """The largest bound found by halving that k to k + slack of array[:n] reach; where equal values forbid that, the
    k-th largest itself. In any case at least k reach it."""
    least, most = np.finfo(array.dtype).min, np.finfo(array.dtype).max
    low, high = array.dtype.type(np.inf), array.dtype.type(-np.inf)
    for i in range(n):
        low = min(low, array[i])  # NaN is neither smaller nor larger
        high = max(high, array[i])
    if _count(array, n, high) >= k:
        return high
    if high > most:
        high = most
        if _count(array, n, high) >= k:
            return high
    if low < least:
        low = least
        if _count(array, n, low) < k:
            return array.dtype.type(-np.inf)
    # `low` is reached by at least k, `high` is not. With slack 0 the search ends when exactly k reach `low` or when no
    # number lies between the two: after 10 to 20 halvings, 2,100 in the worst case of float64.
    half = array.dtype.type(0.5)
    while True:
        middle = half * low + half * high
        if not (low < middle and middle < high):
            return low
        count = _count(array, n, middle)
        if count >= k:
            low = middle
            if count <= k + slack:
                return low
        else:
            high = middle


@compiled
def _count(array: Any, n: int, bound: Any) -> Any:
    count = np.int32(0)
    for i in range(n):
        count += np.int32(array[i] >= bound)
    return count


@compiled
def _count_above(products: Any, bounds: Any, counts: Any) -> None:
    for n in range(len(products)):
        row = products[n]
        count = np.int32(0)
        for feature in range(len(bounds)):
            count += np.int32(row[feature] > bounds[feature])
        counts[n] = count


@compiled
def _write_above(products: Any, bounds: Any, indices: Any, values: Any) -> None:
    n_written = 0
    for n in range(len(products)):
        row = products[n]
        for feature in range(len(bounds)):
            if row[feature] > bounds[feature]:
                indices[n_written] = feature
                values[n_written] = row[feature]
                n_written += 1


@compiled
def _by_feature(offsets: Any, indices: Any, bounds: Any, order: Any, rows: Any) -> None:
    for entry in range(len(indices)):
        bounds[indices[entry] + 1] += 1
    for feature in range(len(bounds) - 1):
        bounds[feature + 1] += bounds[feature]
    following = bounds[:-1].copy()
    for row in range(len(offsets) - 1):
        for entry in range(offsets[row], offsets[row + 1]):
            place = following[indices[entry]]
            following[indices[entry]] = place + 1
            order[place] = entry
            rows[place] = row


@_compiled_sum
def _bag_dot(first: int, last: int, offsets: Any, indices: Any, rows: Any, table: Any, products: Any) -> None:
    d = rows.shape[1]
    for bag in range(first, last):
        row = rows[bag]
        for entry in range(offsets[bag], offsets[bag + 1]):
            other = table[indices[entry]]
            product = table.dtype.type(0)
            for i in range(d):
                product += row[i] * other[i]
            products[entry] = product
