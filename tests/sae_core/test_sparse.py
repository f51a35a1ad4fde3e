"""Encode, decode and all gradients of sparse codes against dense autograd, on every way of computing them."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sae_core import select, sparse, sparse_cpu
from sae_core.sparse import SparseCode

D_IN, D_SAE = 7, 40


@pytest.fixture(params=["compiled", "eager"])
def _path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba's loops, and what is there without Numba."""
    if request.param == "eager":
        monkeypatch.setattr(sparse, "is_compiled", lambda tensor: False)
        monkeypatch.setattr(sparse, "_EAGER_BYTES", 500)  # so that there is more than one part


class Weights(NamedTuple):
    """Leaves that ask for gradients."""

    x: Tensor
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor


def weights(n: int, *, d_in: int = D_IN, d_sae: int = D_SAE, dtype: torch.dtype = torch.float64) -> Weights:
    generator = torch.Generator().manual_seed(11)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    made = Weights(leaf(n, d_in), leaf(d_sae, d_in).T, leaf(d_sae), leaf(d_sae, d_in), leaf(d_in))
    return Weights(*(tensor.requires_grad_() for tensor in made))


def selected(w: Weights, kind: str, k: int) -> SparseCode:
    x = w.x - w.b_dec.detach()
    if kind == "top_k":
        return select.top_k(x, w.W_enc, w.b_enc, k)
    if kind == "top_of_batch":
        return select.top_of_batch(x, w.W_enc, w.b_enc, k * len(x))
    return select.above(x, w.W_enc, w.b_enc, torch.full_like(w.b_enc, 4.0))


def sparse_output(w: Weights, k: int, kind: str = "top_k") -> Tensor:
    code = selected(w, kind, k)
    values = sparse.pre_acts_at(code, w.x - w.b_dec.detach(), w.W_enc, w.b_enc, w.b_dec)
    return sparse.decode(code.with_values(values.relu()), w.W_dec) + w.b_dec


def dense_output(w: Weights, k: int, kind: str = "top_k") -> Tensor:
    """The same by dense autograd: every pre-activation that is not selected is set to zero."""
    pre_acts = (w.x - w.b_dec) @ w.W_enc + w.b_enc  # (N, d_sae)
    if kind == "top_k":
        kept = torch.zeros_like(pre_acts).scatter(1, pre_acts.topk(k, dim=1).indices, 1)
    elif kind == "top_of_batch":
        chosen = pre_acts.flatten().topk(k * len(w.x)).indices
        kept = torch.zeros_like(pre_acts).flatten().index_fill(0, chosen, 1).view_as(pre_acts)
    else:
        kept = (pre_acts > 4.0).to(pre_acts.dtype)
    return (pre_acts * kept).relu() @ w.W_dec + w.b_dec


def gradients(output: Tensor, w: Weights) -> Weights:
    target = torch.randn(output.shape, generator=torch.Generator().manual_seed(12)).to(output.dtype)
    return Weights(*torch.autograd.grad((output - target).square().sum(), list(w)))


def assert_equal(ours: Weights, truth: Weights, **tolerances: float) -> None:
    for name, fast, slow in zip(Weights._fields, ours, truth, strict=True):
        torch.testing.assert_close(fast, slow, msg=lambda text, name=name: f"{name}: {text}", **tolerances)


@pytest.fixture(params=[16 << 20, 8 * D_SAE * 3, 1], ids=["one-slice", "slices-of-some-rows", "slices-of-one-row"])
def _slice_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "CPU_SLICE_BYTES", request.param)


@pytest.mark.usefixtures("_path", "_slice_bytes")
@pytest.mark.parametrize("kind", ["top_k", "top_of_batch", "above"])
@pytest.mark.parametrize("k", [1, 5, D_SAE])
@pytest.mark.parametrize("n", [1, 20, 0])
def test_output_and_all_gradients_equal_dense_autograd(n: int, k: int, kind: str) -> None:
    w = weights(n)
    fast, slow = sparse_output(w, k, kind), dense_output(w, k, kind)

    torch.testing.assert_close(fast, slow)
    assert_equal(gradients(fast, w), gradients(slow, w))


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("kind", ["top_k", "top_of_batch", "above"])
def test_float32_gradients_are_those_of_float64_to_rounding(kind: str) -> None:
    narrow = weights(50, dtype=torch.float32)
    wide = Weights(*(tensor.detach().double().requires_grad_() for tensor in narrow))

    ours, exact = gradients(sparse_output(narrow, 5, kind), narrow), gradients(dense_output(wide, 5, kind), wide)

    for gradient, truth in zip(ours, exact, strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient.double(), truth, rtol=1e-4, atol=1e-4 * float(truth.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_floats_of_16_bits_work_though_numba_does_not_know_them(dtype: torch.dtype) -> None:
    narrow = weights(50, dtype=dtype)
    code = selected(narrow, "top_k", 5)
    exact = Weights(*(tensor.detach().double() for tensor in narrow))
    values = code.values.detach().double()

    out = sparse.decode(code, narrow.W_dec)
    gradient = sparse.sum_by_feature(code, code.values, narrow.x.detach())
    dots = sparse.bag_dot(code.offsets, code.indices, narrow.x.detach(), narrow.W_dec.detach())

    assert (out.dtype, gradient.dtype, dots.dtype) == (dtype, torch.float32, dtype)
    wide = code.with_values(values).dense()
    torch.testing.assert_close(out.detach().double(), wide @ exact.W_dec, rtol=0.02, atol=0.2)
    torch.testing.assert_close(gradient.double(), wide.T @ exact.x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        dots.double(), (exact.x[code.rows] * exact.W_dec[code.indices]).sum(1), rtol=0.02, atol=0.2
    )


def test_frozen_weights_leave_the_gradient_of_the_input_alone() -> None:
    w = weights(20)
    frozen = Weights(w.x, *(tensor.detach() for tensor in w[1:]))

    (ours,) = torch.autograd.grad(sparse_output(frozen, 4).square().sum(), frozen.x)
    (truth,) = torch.autograd.grad(dense_output(frozen, 4).square().sum(), frozen.x)

    torch.testing.assert_close(ours, truth)


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("asking", range(1, 5))
def test_each_parameter_alone_gets_the_gradient_that_it_gets_with_the_others(asking: int) -> None:
    w = weights(20)
    alone = Weights(*(tensor if place == asking else tensor.detach() for place, tensor in enumerate(w)))
    together = torch.autograd.grad(sparse_output(w, 4).square().sum(), w[asking])

    torch.testing.assert_close(torch.autograd.grad(sparse_output(alone, 4).square().sum(), alone[asking]), together)


@pytest.mark.usefixtures("_path")
def test_decode_adds_up_a_feature_that_stands_twice_in_a_row() -> None:
    W_dec = weights(1).W_dec.detach()
    code = SparseCode.of_rows(torch.tensor([[3, 3, 9]]), torch.tensor([[1.0, 2.0, 0.5]]).double(), d_sae=D_SAE)

    torch.testing.assert_close(sparse.decode(code, W_dec)[0], 3 * W_dec[3] + 0.5 * W_dec[9])
    torch.testing.assert_close(code.dense()[0, [3, 9]], torch.tensor([3.0, 0.5]).double())


@pytest.mark.usefixtures("_path")
def test_features_that_are_never_selected_get_gradients_of_exactly_zero() -> None:
    w = weights(4)
    idle = torch.ones(D_SAE, dtype=torch.bool)
    idle[selected(w, "top_k", 2).indices] = False

    gradient = gradients(sparse_output(w, 2), w)

    assert int(idle.sum()) >= D_SAE - 8
    assert not gradient.W_enc[:, idle].any() and not gradient.b_enc[idle].any() and not gradient.W_dec[idle].any()


@pytest.mark.usefixtures("_path")
def test_an_encoder_in_the_other_memory_order_gives_the_same() -> None:
    w = weights(20)
    other = w._replace(W_enc=w.W_enc.detach().contiguous().requires_grad_())

    assert_equal(gradients(sparse_output(w, 3), w), gradients(sparse_output(other, 3), other))


def test_gradients_that_come_in_any_memory_order_give_the_same() -> None:
    w = weights(20)
    code = selected(w, "top_k", 3)
    values = code.values.detach().clone().requires_grad_()
    out = sparse.decode(code.with_values(values), w.W_dec)
    gradient = torch.randn(D_IN, 20, dtype=torch.float64).T

    ours = torch.autograd.grad(out, [values, w.W_dec], gradient, retain_graph=True)
    same = torch.autograd.grad(out, [values, w.W_dec], gradient.contiguous())

    assert all(torch.equal(a, b) for a, b in zip(ours, same, strict=True))


@pytest.mark.usefixtures("_path")
def test_the_encoder_gradient_lies_in_memory_as_the_encoder_does() -> None:
    w = weights(20)

    gradient = gradients(sparse_output(w, 3), w).W_enc

    assert w.W_enc.stride() == gradient.stride() == (1, D_IN)  # else autograd copies it at every step


class LargestTensor(TorchDispatchMode):
    """Remembers the number of bytes of the largest tensor that any operation gave back."""

    n_bytes = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch's compiler is imported, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.n_bytes = max([self.n_bytes, *(tensor.numel() * tensor.itemsize for tensor in tensors_in(result))])
        return result


def tensors_in(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, list | tuple):
        for part in result:
            yield from tensors_in(part)


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("kind", ["top_k", "top_of_batch", "above"])
def test_no_tensor_of_n_by_d_sae_is_ever_made(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    n, d_in, d_sae, k, sample = 1024, 8, 1024, 4, 128
    monkeypatch.setattr(select, "CPU_SLICE_BYTES", 4 * d_sae * 16)
    monkeypatch.setattr(select._memory, "kept", None, raising=False)  # what larger slices left
    w = weights(n, d_in=d_in, d_sae=d_sae, dtype=torch.float32)
    with torch.no_grad():
        w.b_enc.sub_(5)  # few are above the threshold
    with LargestTensor() as ours:
        gradients(sparse_output(w, k, kind), w)
    with LargestTensor() as dense:
        gradients(dense_output(w, k, kind), w)

    assert dense.n_bytes >= 4 * n * d_sae  # so the measure works
    slices = 4 * d_sae * (sample if kind == "top_of_batch" else 16)
    entries = 8 * len(selected(w, kind, k).indices)
    activations = 4 * n * d_in
    assert ours.n_bytes == max(slices, entries, activations, 4 * d_in * d_sae)
    assert ours.n_bytes <= dense.n_bytes // 8


def test_the_graph_of_a_step_keeps_no_tensor_of_n_by_d_sae() -> None:
    w = weights(512, d_in=8, d_sae=1024, dtype=torch.float32)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        sparse_output(w, 4)
        sparse_output(w, 4, "top_of_batch")

    assert max(kept) == 8 * 1024


# What stands in a code


def ragged(lengths: list[int], *, d_sae: int = 9, seed: int = 0) -> SparseCode:
    """Rows of these lengths, each feature at most once in a row, values of both signs and 0."""
    generator = torch.Generator().manual_seed(seed)
    indices = [torch.randperm(d_sae, generator=generator)[:length] for length in lengths]
    values = torch.randn(sum(lengths), generator=generator, dtype=torch.float64)
    values[::5] = 0
    return SparseCode(
        torch.tensor([0, *lengths]).cumsum(0), torch.cat([*indices, torch.zeros(0).long()]), values, d_sae=d_sae
    )


LENGTHS = [[3, 0, 5, 1], [0, 0], [], [9], [0, 9, 0], [1] * 6]


def entries(code: SparseCode) -> list[tuple[int, int, float]]:
    """(row, feature, value) of every entry, by the definition of `offsets`."""
    return [
        (row, int(code.indices[entry]), float(code.values[entry]))
        for row in range(len(code.offsets) - 1)
        for entry in range(int(code.offsets[row]), int(code.offsets[row + 1]))
    ]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_rows_dense_and_active_say_what_the_offsets_say(lengths: list[int]) -> None:
    code = ragged(lengths)
    dense = torch.zeros(len(lengths), code.d_sae, dtype=torch.float64)
    for row, feature, value in entries(code):
        dense[row, feature] = value

    assert code.n_rows == len(lengths)
    assert code.rows.tolist() == [row for row, _, _ in entries(code)]
    assert torch.equal(code.dense(), dense)
    assert list(zip(*(column.tolist() for column in code.active()), strict=True)) == [
        entry for entry in entries(code) if entry[2] > 0
    ]


@pytest.mark.parametrize(("n", "k"), [(3, 2), (0, 2), (3, 0), (1, 1)])
def test_as_many_entries_in_each_row_are_the_rows_of_a_matrix(n: int, k: int) -> None:
    indices, values = torch.arange(n * k).view(n, k), torch.rand(n, k)

    code = SparseCode.of_rows(indices, values, d_sae=10)

    assert code.n_rows == n
    assert code.offsets.tolist() == [row * k for row in range(n + 1)]
    assert code.offsets.dtype == code.indices.dtype == torch.int64
    assert torch.equal(code.indices.view(n, k), indices) and torch.equal(code.values.view(n, k), values)


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_by_feature_sorts_the_entries_and_keeps_their_order(lengths: list[int]) -> None:
    code = ragged(lengths)
    slow = sorted(range(len(entries(code))), key=lambda entry: entries(code)[entry][1])  # Python's sort is stable

    offsets, order, rows = code.by_feature()

    assert order.tolist() == slow
    assert rows.tolist() == [entries(code)[entry][0] for entry in slow]
    counts = [sum(feature == own for _, own, _ in entries(code)) for feature in range(code.d_sae)]
    assert offsets.tolist() == [0, *torch.tensor(counts).cumsum(0).tolist()]


def test_codes_of_the_same_entries_are_sorted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    sort = sparse_cpu.by_feature
    monkeypatch.setattr(sparse_cpu, "by_feature", lambda *args: calls.append(1) or sort(*args))
    w = weights(20)

    gradients(sparse_output(w, 4), w)  # the encoder's code and the decoder's

    assert len(calls) == 1


# The two operations


def in_each_bag(offsets: Tensor, of_entry: Callable[[int, int], None]) -> None:
    for bag in range(len(offsets) - 1):
        for entry in range(int(offsets[bag]), int(offsets[bag + 1])):
            of_entry(bag, entry)


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [1, 5, 64])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_sums_and_products_of_bags_equal_loops(lengths: list[int], d: int, dtype: torch.dtype) -> None:
    code = ragged(lengths)
    table, rows = torch.randn(9, d).to(dtype), torch.randn(len(lengths), d).to(dtype)
    values = code.values.to(dtype)
    sums, dots = torch.zeros(len(lengths), d, dtype=dtype), torch.zeros(len(values), dtype=dtype)

    def add(bag: int, entry: int) -> None:
        sums[bag] += values[entry] * table[code.indices[entry]]
        dots[entry] = rows[bag] @ table[code.indices[entry]]

    in_each_bag(code.offsets, add)

    torch.testing.assert_close(sparse.bag_sum(code.offsets, code.indices, values, table), sums)
    torch.testing.assert_close(sparse.bag_dot(code.offsets, code.indices, rows, table), dots, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("n_threads", [1, 2])
def test_products_of_many_bags_equal_loops_on_any_number_of_threads(n_threads: int) -> None:
    lengths = torch.randint(0, 6, (333,), generator=torch.Generator().manual_seed(3)).tolist()
    code, rows, table = ragged(lengths), torch.randn(333, 16), torch.randn(16, 9).T  # not contiguous
    truth = (rows[code.rows] * table[code.indices]).sum(dim=1)
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        ours = sparse.bag_dot(code.offsets, code.indices, rows, table)
    finally:
        torch.set_num_threads(before)

    torch.testing.assert_close(ours, truth)


def test_a_sum_can_be_wider_than_the_table() -> None:
    code = ragged([4, 0, 9])
    table = torch.randn(9, 5).to(torch.bfloat16)

    wide = sparse.bag_sum(code.offsets, code.indices, code.values.float(), table, out_dtype=torch.float32)

    assert wide.dtype == torch.float32
    torch.testing.assert_close(wide, code.dense().float() @ table.float())
    assert sparse.sum_by_feature(code, code.values, torch.randn(3, 5).double()).dtype == torch.float64
