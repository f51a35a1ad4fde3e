"""Which entries are selected, against `torch.topk` and comparisons of the whole (N, d_sae) matrix."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from sae_core import select, sparse
from sae_core.sparse import SparseCode

D_IN = 6


class Inputs(NamedTuple):
    x: Tensor
    W_enc: Tensor
    b_enc: Tensor

    @property
    def pre_acts(self) -> Tensor:
        return torch.mm(self.x, self.W_enc) + self.b_enc


def random_inputs(n: int, d_sae: int, dtype: torch.dtype = torch.float32, *, d_in: int = D_IN) -> Inputs:
    generator = torch.Generator().manual_seed(1000 * n + d_sae)
    x, W_enc, b_enc = (torch.randn(*shape, generator=generator) for shape in ((n, d_in), (d_sae, d_in), (d_sae,)))
    return Inputs(x.to(dtype), W_enc.T.to(dtype), b_enc.to(dtype))


def made_of(pre_acts: Tensor) -> Inputs:
    """Inputs whose pre-activations (N, d_sae) are exactly these."""
    return Inputs(torch.eye(len(pre_acts), dtype=pre_acts.dtype), pre_acts, torch.zeros_like(pre_acts[0]))


def integers(n: int, d_sae: int, dtype: torch.dtype, high: int) -> Inputs:
    """Pre-activations with many ties: integers."""
    generator = torch.Generator().manual_seed(d_sae)
    return made_of(torch.randint(-high, high + 1, (n, d_sae), generator=generator).to(dtype))


class Way(NamedTuple):
    is_compiled: bool
    n_threads: int
    slice_bytes: int


ONE_SLICE, SOME_ROWS, ONE_ROW = 32 << 20, 5000, 1
COMPILED, EAGER = Way(True, 1, ONE_SLICE), Way(False, 1, ONE_SLICE)
WAYS = {
    "compiled": COMPILED,
    "compiled, slices of some rows": COMPILED._replace(slice_bytes=SOME_ROWS),
    "compiled, two threads": COMPILED._replace(n_threads=2),
    "compiled, two threads, slices of one row": Way(True, 2, ONE_ROW),
    "eager": EAGER,
    "eager, two threads, slices of some rows": Way(False, 2, SOME_ROWS),
}


@contextmanager
def going(way: Way) -> Iterator[None]:
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "CPU_SLICE_BYTES", way.slice_bytes)
        if not way.is_compiled:
            patch.setattr(sparse, "is_compiled", lambda tensor: False)
        torch.set_num_threads(way.n_threads)
        yield
        torch.set_num_threads(before)


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def _way(request: pytest.FixtureRequest) -> Iterator[None]:
    with going(request.param):
        yield


@pytest.fixture(params=[COMPILED, EAGER], ids=["compiled", "eager"])
def _path(request: pytest.FixtureRequest) -> Iterator[None]:
    with going(request.param):
        yield


every_way = pytest.mark.usefixtures("_way")
both_floats = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def assert_entries_of(code: SparseCode, pre_acts: Tensor) -> None:
    """Each entry is a pre-activation, each feature stands in a row at most once, and the types are as promised."""
    assert code.offsets.dtype == code.indices.dtype == torch.int64
    assert code.values.dtype == pre_acts.dtype and not code.values.requires_grad
    assert (code.n_rows, code.d_sae) == pre_acts.shape
    assert int(code.offsets[0]) == 0 and int(code.offsets[-1]) == len(code.indices) == len(code.values)
    places = code.rows * code.d_sae + code.indices
    assert len(places.unique()) == len(places)
    assert len(places) == 0 or 0 <= int(code.indices.min()) <= int(code.indices.max()) < code.d_sae
    torch.testing.assert_close(code.values, pre_acts.flatten()[places], equal_nan=True)


def assert_top_k(code: SparseCode, pre_acts: Tensor, k: int) -> None:
    """Of tied values any may be selected, so the sorted values are what must be equal."""
    assert_entries_of(code, pre_acts)
    assert torch.equal(code.offsets, torch.arange(len(pre_acts) + 1) * k)
    ours = code.values.view(len(pre_acts), k).sort(dim=1, descending=True).values
    torch.testing.assert_close(ours, pre_acts.topk(k, dim=1).values)


# The k largest of each row

WIDTHS = [1, 127, 128, 129, 400]


@every_way
@both_floats
@pytest.mark.parametrize("d_sae", WIDTHS)
def test_the_k_largest_of_random_rows_are_those_of_torch(d_sae: int, dtype: torch.dtype) -> None:
    inputs = random_inputs(66, d_sae, dtype)

    for k in sorted({1, min(40, d_sae), d_sae}):
        assert_top_k(select.top_k(*inputs, k), inputs.pre_acts, k)


@every_way
@pytest.mark.parametrize("n", [0, 1, 2, 64, 65])
def test_any_number_of_rows_is_selected_from(n: int) -> None:
    inputs = random_inputs(n, 200)

    assert_top_k(select.top_k(*inputs, 5), inputs.pre_acts, 5)
    assert_top_k(select.top_k(*inputs, 0), inputs.pre_acts, 0)


@pytest.mark.usefixtures("_path")
@both_floats
@pytest.mark.parametrize("high", [0, 1, 5, 100])
@pytest.mark.parametrize("d_sae", [50, 256, 300])
def test_among_ties_exactly_k_are_selected(d_sae: int, high: int, dtype: torch.dtype) -> None:
    inputs = integers(20, d_sae, dtype, high)

    for k in (1, 7, 31, d_sae):
        assert_top_k(select.top_k(*inputs, k), inputs.pre_acts, k)


def spread(d_sae: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Rows on which a search by halving could go astray."""
    info, steps = torch.finfo(dtype), torch.arange(d_sae, dtype=dtype)
    powers = torch.ldexp(torch.ones(d_sae, dtype=dtype), torch.linspace(-120, 120, d_sae).int())
    adjacent = torch.ones(d_sae, dtype=dtype) + (steps % 5) * info.eps
    return {
        "all negative": -1 - steps,
        "ascending": steps,
        "descending": -steps,
        "constant": torch.full((d_sae,), -3.5, dtype=dtype),
        "zeros of both signs": torch.where(steps % 2 == 0, 0.0, -0.0).to(dtype),
        "powers of two": powers,
        "negative powers of two": -powers,
        "powers of both signs": torch.where(steps % 2 == 0, powers, -powers),
        "neighbouring floats": adjacent,
        "subnormal": steps * info.smallest_normal / 1024,
        "the largest of all and tiny ones": torch.where(steps == 3, info.max, steps * info.tiny),
        "from the least to the largest": torch.linspace(-1, 1, d_sae).to(dtype) * info.max,
        "one outlier": torch.where(steps == d_sae - 1, 1e30, steps / d_sae),
        "half is infinite": torch.where(steps % 2 == 0, -torch.inf, steps),
        "a few are infinite": torch.where(steps < 3, torch.inf, -steps),
        "all but two are minus infinity": torch.where(steps < 2, steps, -torch.inf),
        "minus infinity": torch.full((d_sae,), -torch.inf, dtype=dtype),
        "infinity of both signs": torch.where(steps % 3 == 0, torch.inf, -torch.inf).to(dtype),
        "infinity and the largest": torch.where(steps < 2, torch.inf, torch.where(steps < 99, info.max, steps)),
    }


@pytest.mark.usefixtures("_path")
@both_floats
@pytest.mark.parametrize("d_sae", [60, 300])
@pytest.mark.parametrize("kind", spread(8, torch.float32))
def test_extreme_rows_are_selected_from_exactly(kind: str, d_sae: int, dtype: torch.dtype) -> None:
    row = spread(d_sae, dtype)[kind].to(dtype)
    shuffled = torch.stack([row, row[torch.randperm(d_sae, generator=torch.Generator().manual_seed(2))]])
    inputs = Inputs(torch.ones(2, 1, dtype=dtype), torch.zeros(1, d_sae, dtype=dtype), shuffled[1])

    for k in (1, 33, d_sae):
        for b_enc in shuffled:
            assert_top_k(select.top_k(*inputs._replace(b_enc=b_enc), k), b_enc.expand(2, -1), k)


@every_way
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_rows_that_are_not_finite_end_with_valid_features_and_leave_other_rows_alone(bad: float) -> None:
    inputs = random_inputs(80, 300)
    inputs.x[[2, 79]] = bad
    inputs.x[40, 1] = bad
    broken = torch.tensor([2, 40, 79])
    whole = torch.ones(80, dtype=torch.bool).index_fill(0, broken, False)

    code = select.top_k(*inputs, 5)

    indices, values = code.indices.view(80, 5), code.values.view(80, 5)
    assert 0 <= int(indices.min()) <= int(indices.max()) < 300
    assert all(len(row.unique()) == 5 for row in indices)
    assert not values[broken].isfinite().any()  # so that the loss is not finite either
    rest = inputs._replace(x=inputs.x[whole])
    truth = rest.pre_acts.topk(5, dim=1).values
    torch.testing.assert_close(values[whole].sort(dim=1, descending=True).values, truth)


@every_way
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_rows_that_are_not_finite_end_for_every_selection(bad: float) -> None:
    inputs = random_inputs(80, 300)
    inputs.x[[2, 79]] = bad
    bounds = torch.zeros(300)

    for code in (select.above(*inputs, bounds), select.top_of_batch(*inputs, 200)):
        assert len(code.indices) == len(code.values) == int(code.offsets[-1])
        assert int(code.indices.max()) < 300
    assert not select.above(*inputs, torch.full((300,), torch.nan)).values.any()


# The n largest of a batch


def assert_top_of_batch(code: SparseCode, pre_acts: Tensor, n: int) -> None:
    assert_entries_of(code, pre_acts)
    positive = pre_acts[pre_acts > 0]
    ours = code.values.sort(descending=True).values
    torch.testing.assert_close(ours, positive.sort(descending=True).values[:n])
    features = code.rows * code.d_sae + code.indices
    assert bool((features.diff() > 0).all())  # row by row, in the order of the features: Matryoshka needs that


@every_way
@both_floats
@pytest.mark.parametrize("d_sae", [1, 150])
def test_the_largest_of_a_random_batch_are_those_of_torch(d_sae: int, dtype: torch.dtype) -> None:
    inputs = random_inputs(150, d_sae, dtype)
    n_positive = int((inputs.pre_acts > 0).sum())

    for n in (0, 150 * min(4, d_sae), n_positive, n_positive + 1):
        assert_top_of_batch(select.top_of_batch(*inputs, n), inputs.pre_acts, n)


@every_way
@pytest.mark.parametrize("n_rows", [0, 1, 127, 129, 300])
def test_any_number_of_rows_makes_a_batch(n_rows: int) -> None:
    inputs = random_inputs(n_rows, 50)

    assert_top_of_batch(select.top_of_batch(*inputs, 3 * n_rows), inputs.pre_acts, 3 * n_rows)


@pytest.mark.usefixtures("_path")
def test_a_batch_whose_sampled_rows_say_nothing_of_the_others_is_selected_from_exactly() -> None:
    inputs = random_inputs(512, 50, torch.float64)
    step = 512 // 128
    for sampled, rest in ((100.0, 1.0), (0.01, 1.0), (-1.0, 1.0), (1.0, 0.0)):  # bounds too high, or too low
        scales = torch.full((512, 1), rest, dtype=torch.float64)
        scales[::step] = sampled
        skewed = inputs._replace(x=inputs.x * scales, b_enc=inputs.b_enc * 0)
        for n in (10, 512, 4096):
            assert_top_of_batch(select.top_of_batch(*skewed, n), skewed.pre_acts, n)


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("high", [0, 1, 5])
def test_among_ties_of_a_batch_exactly_n_are_selected(high: int) -> None:
    inputs = integers(40, 100, torch.float32, high)

    for n in (1, 77, 500, 4000):
        assert_top_of_batch(select.top_of_batch(*inputs, n), inputs.pre_acts, n)


@pytest.mark.usefixtures("_path")
def test_from_a_batch_without_positive_pre_activations_nothing_is_selected() -> None:
    inputs = random_inputs(50, 100)
    inputs.b_enc.sub_(100)

    code = select.top_of_batch(*inputs, 200)

    assert (code.n_rows, len(code.values)) == (50, 0)


# Those above thresholds


@every_way
@both_floats
@pytest.mark.parametrize("d_sae", [1, 150])
def test_those_above_the_thresholds_are_those_of_a_comparison(d_sae: int, dtype: torch.dtype) -> None:
    inputs = random_inputs(90, d_sae, dtype)
    of_features = torch.rand(d_sae, generator=torch.Generator().manual_seed(4), dtype=dtype)

    for thresholds in (torch.zeros(d_sae, dtype=dtype), of_features, -of_features, of_features + 50, of_features - 50):
        code = select.above(*inputs, thresholds)

        passing = inputs.pre_acts > thresholds
        assert_entries_of(code, inputs.pre_acts)
        assert torch.equal(code.offsets.diff(), passing.sum(dim=1))
        assert torch.equal(code.indices, passing.nonzero()[:, 1])


@every_way
@pytest.mark.parametrize("n_rows", [0, 1, 64, 65])
def test_any_number_of_rows_is_compared(n_rows: int) -> None:
    inputs = random_inputs(n_rows, 50)

    assert_entries_of(select.above(*inputs, torch.zeros(50)), inputs.pre_acts)


@pytest.mark.usefixtures("_path")
def test_a_pre_activation_that_equals_its_threshold_is_not_above_it() -> None:
    inputs = integers(20, 60, torch.float32, 2)

    assert torch.equal(select.above(*inputs, torch.ones(60)).dense(), 2.0 * (inputs.pre_acts == 2))


@pytest.mark.usefixtures("_path")
def test_an_infinite_threshold_or_bias_turns_a_feature_off() -> None:
    inputs = random_inputs(20, 60)
    thresholds = torch.zeros(60).index_fill(0, torch.tensor([3]), torch.inf)
    inputs.b_enc[5] = -torch.inf

    code = select.above(*inputs, thresholds)

    passing = inputs.pre_acts > thresholds
    assert not passing[:, [3, 5]].any()
    assert torch.equal(code.indices, passing.nonzero()[:, 1])


# All of them


@every_way
def test_no_features_have_no_entries() -> None:
    inputs = random_inputs(70, 0)

    for code in (
        select.top_k(*inputs, 0),
        select.top_of_batch(*inputs, 10),
        select.above(*inputs, torch.zeros(0)),
    ):
        assert_entries_of(code, inputs.pre_acts)


@pytest.mark.parametrize("kind", ["top_k", "top_of_batch", "above"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_compiled_and_the_eager_way_agree(kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = random_inputs(100, 500, dtype)

    def dense() -> Tensor:
        if kind == "top_k":
            return select.top_k(*inputs, 7).dense()
        if kind == "top_of_batch":
            return select.top_of_batch(*inputs, 700).dense()
        return select.above(*inputs, inputs.b_enc.abs() + 1).dense()

    compiled = dense()
    monkeypatch.setattr(sparse, "is_compiled", lambda tensor: False)

    assert torch.equal(compiled, dense())


@every_way
def test_selecting_twice_gives_the_same_bits() -> None:
    inputs = random_inputs(300, 500)
    for make in (
        lambda: select.top_k(*inputs, 7),
        lambda: select.top_of_batch(*inputs, 2000),
        lambda: select.above(*inputs, inputs.b_enc),
    ):
        one, other = make(), make()
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("offsets", "indices", "values"))


@every_way
@pytest.mark.parametrize("kind", ["top_k", "top_of_batch"])
def test_selecting_in_bfloat16_differs_among_near_ties_only_and_values_are_exact(kind: str) -> None:
    inputs = random_inputs(200, 500, d_in=32)
    pre_acts = inputs.pre_acts
    # Products of rounded factors, rounded: each of the three is off by 2⁻⁹ at most, as is the bias, and the sum again.
    slack = 2**-7 * (inputs.x.abs() @ inputs.W_enc.abs() + inputs.b_enc.abs()).max()

    if kind == "top_k":
        code = select.top_k(*inputs, 8, in_bfloat16=True)
        exact = select.top_k(*inputs, 8)
        bound = pre_acts.topk(8, dim=1).values.amin(dim=1, keepdim=True).expand_as(pre_acts)
    else:
        code = select.top_of_batch(*inputs, 1600, in_bfloat16=True)
        exact = select.top_of_batch(*inputs, 1600)
        bound = pre_acts.flatten().topk(1600).values.amin().expand_as(pre_acts)

    assert_entries_of(code, pre_acts)  # float32, to its rounding
    assert torch.equal(code.offsets.diff().sum(), exact.offsets.diff().sum())
    selected = code.dense() != 0
    differing = selected != (exact.dense() != 0)
    assert 0 < int(differing.sum()) < 0.1 * len(code.values)  # near-ties there are, and they are few
    assert bool(((pre_acts - bound).abs()[differing] <= slack).all())


@pytest.mark.usefixtures("_path")
def test_selected_values_have_no_gradients_even_of_parameters() -> None:
    inputs = Inputs(*(tensor.requires_grad_() for tensor in random_inputs(150, 60)))

    for code in (
        select.top_k(*inputs, 3),
        select.top_k(*inputs, 3, in_bfloat16=True),
        select.top_of_batch(*inputs, 300),
        select.top_of_batch(*inputs, 300, in_bfloat16=True),
        select.above(*inputs, torch.zeros(60)),
    ):
        assert not code.values.requires_grad


@every_way
def test_selecting_works_in_inference_mode_and_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select._memory, "kept", None, raising=False)
    inputs = random_inputs(150, 60)

    def dense() -> list[Tensor]:
        codes = (
            select.top_k(*inputs, 3),
            select.top_of_batch(*inputs, 300),
            select.above(*inputs, torch.zeros(60)),
        )
        return [code.dense() for code in codes]

    with torch.inference_mode():
        during = dense()

    assert all(torch.equal(ours, same) for ours, same in zip(during, dense(), strict=True))


def test_a_slice_takes_memory_once_for_all_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "CPU_SLICE_BYTES", 4 * 500 * 10)
    monkeypatch.setattr(select._memory, "kept", None, raising=False)
    inputs = random_inputs(100, 500)
    select.top_k(*inputs, 3)
    kept = select._memory.kept

    select.top_k(*inputs, 3, in_bfloat16=True)
    select.above(*inputs, torch.zeros(500))
    select.top_k(inputs.x, inputs.W_enc[:, :100], inputs.b_enc[:100], 3)

    assert select._memory.kept is kept and len(kept) == 4 * 500 * 10


def test_of_cpus_only_those_with_matrix_units_select_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_amx in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has_amx=has_amx: has_amx)
        assert select.bfloat16_is_faster(torch.device("cpu")) is has_amx
    assert not select.bfloat16_is_faster(torch.device("mps"))
