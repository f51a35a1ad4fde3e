"""The compiled loops themselves; what they are for is tested in test_select and test_sparse."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sae_core import compiled, sparse_cpu

both_floats = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def reached(array: np.ndarray, k: int, slack: int, n: int | None = None) -> tuple[float, int]:
    """The bound that is found and how many of the array reach it."""
    n = len(array) if n is None else n
    bound = sparse_cpu._reached_by(array, n, k, slack)
    assert type(bound) is type(array[0]) or isinstance(bound, float)
    return float(bound), int((array[:n] >= bound).sum())


@both_floats
@pytest.mark.parametrize("slack", [0, 3])
def test_a_bound_is_reached_by_k_to_k_and_slack_values(dtype: type, slack: int) -> None:
    array = np.random.default_rng(0).normal(size=200).astype(dtype)

    for k in (1, 2, 10, 100, 199, 200):
        assert k <= reached(array, k, slack)[1] <= k + slack
        assert k <= reached(array, min(k, 50), slack, n=50)[1] + 150


@both_floats
def test_where_equal_values_forbid_that_the_bound_is_the_kth_largest_itself(dtype: type) -> None:
    array = np.repeat(np.array([3, -1, 7, 2], dtype), 5)

    for k in range(1, 21):
        bound, n_reaching = reached(array, k, 0)
        kth = np.sort(array)[-k]
        assert n_reaching == int((array >= kth).sum()) >= k
        assert n_reaching == k or bound == kth


@both_floats
def test_values_next_to_each_other_and_far_apart_are_told_apart(dtype: type) -> None:
    info = np.finfo(dtype)
    one = np.array(1, dtype)
    rows = [
        np.array([one, np.nextafter(one, np.array(2, dtype)), np.nextafter(one, np.array(0, dtype))], dtype),
        np.array([0, info.smallest_subnormal, 2 * info.smallest_subnormal, -info.smallest_subnormal], dtype),
        np.array([info.max, info.min, info.tiny, -info.tiny, 0], dtype),
        np.array([np.inf, -np.inf, info.max, 0], dtype),
    ]
    for row in rows:
        for k in range(1, len(row) + 1):
            assert reached(row, k, 0)[1] == k


@both_floats
@pytest.mark.parametrize("n_nan", [1, 5, 6])
def test_the_search_ends_and_passes_over_nan(dtype: type, n_nan: int) -> None:
    for at_end in (False, True):
        array = np.arange(6).astype(dtype)
        array[slice(6 - n_nan, None) if at_end else slice(n_nan)] = np.nan
        for k in range(1, 7):
            n_reaching = reached(array, k, 0)[1]
            assert n_reaching == k if k <= 6 - n_nan else n_reaching <= 6 - n_nan


@pytest.mark.parametrize("place", [0, 5, 127, 128, 299])
def test_a_feature_that_is_nan_is_never_selected_while_there_are_others(place: int) -> None:
    products = torch.randn(4, 300, generator=torch.Generator().manual_seed(0))
    products[:, place] = torch.nan
    indices, values = torch.empty(4, 9, dtype=torch.int64), torch.empty(4, 9)

    sparse_cpu.top_k(products, torch.zeros(300), 9, indices, values)

    assert values.isfinite().all() and not (indices == place).any()
    assert all(len(row.unique()) == 9 for row in indices)


def test_a_row_of_too_few_numbers_gets_nan_at_features_that_exist() -> None:
    products = torch.full((2, 300), torch.nan)
    products[1, 40:44] = 1
    indices, values = torch.full((2, 5), 10**12), torch.zeros(2, 5)

    sparse_cpu.top_k(products, torch.zeros(300), 5, indices, values)

    assert values.isnan().all()
    assert indices.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_products_with_nan_and_infinity_are_those_of_arithmetic() -> None:
    rows = torch.tensor([[1.0, 2.0], [torch.nan, 0.0], [torch.inf, 1.0]])
    table = torch.tensor([[1.0, 1.0], [0.0, torch.inf]])
    offsets, indices = torch.tensor([0, 2, 3, 5]), torch.tensor([0, 1, 0, 0, 1])

    ours = sparse_cpu.bag_dot(offsets, indices, rows, table)

    torch.testing.assert_close(ours, torch.tensor([3.0, torch.inf, torch.nan, torch.inf, torch.nan]), equal_nan=True)


def test_where_machine_code_cannot_be_kept_it_is_compiled_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def njit(**options: Any) -> Callable[[Any], Any]:
        def decorate(function: Any) -> Any:
            asked.append(options)
            if options.get("cache"):
                raise RuntimeError("cannot cache function: no locator available")  # as Numba says it
            return function

        return decorate

    monkeypatch.setattr(compiled, "njit", njit)

    def function() -> int:
        return 3

    assert compiled.compiled(function) is function
    assert [options.get("cache", False) for options in asked] == [True, False]
    assert asked[0] == {**asked[1], "cache": True}
