"""The Triton kernels on a GPU at the sizes of real SAEs, against float64 sums made by PyTorch a slice at a time."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
EPSILON = {F32: 2**-24, BF16: 2**-8, F16: 2**-11}  # of rounding once to the nearest
_ENTRIES_AT_A_TIME = 1 << 14

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
]


class Size(NamedTuple):
    """A batch of `n` rows, `k` features a row in the mean, of an SAE of `d_in` and `d_sae`."""

    n: int
    k: int
    d_in: int
    d_sae: int


SIZES = {
    "gpt2": Size(4096, 32, 768, 24576),
    "llama-1b": Size(16384, 64, 2048, 65536),
    "wide": Size(2048, 64, 8192, 16384),
    "many features": Size(16384, 64, 256, 131072),
    "no power of two, odd": Size(1000, 20, 777, 5000),
    "k=1": Size(4096, 1, 512, 8192),
}


class Code(NamedTuple):
    offsets: Tensor
    indices: Tensor
    values: Tensor

    @property
    def bags(self) -> Tensor:
        """Each entry's bag, (nnz,)."""
        return torch.arange(len(self.offsets) - 1, device=self.offsets.device).repeat_interleave(self.offsets.diff())


def make_code(size: Size, generator: torch.Generator) -> Code:
    """Rows of 0 to 2k features, one row of all lengths put together; a few features hold most of the entries."""
    lengths = torch.randint(2 * size.k + 1, (size.n,), generator=generator)
    lengths[size.n // 3] = 5000
    lengths[:3] = 0
    nnz = int(lengths.sum())
    drawn = torch.rand(nnz, generator=generator, dtype=torch.float64) ** 6 * size.d_sae  # some twice in a row
    values = torch.randn(nnz, generator=generator)
    return Code(
        torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).cuda(), drawn.long().cuda(), values.cuda()
    )


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest) -> Size:
    return SIZES[request.param]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def matrix(n_rows: int, d: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.randn(n_rows, d, generator=generator).cuda().to(dtype)


def slices(n_entries: int) -> list[slice]:
    return [slice(start, start + _ENTRIES_AT_A_TIME) for start in range(0, n_entries, _ENTRIES_AT_A_TIME)]


def slow_sums(to: Tensor, n_out: int, members: Tensor, values: Tensor, table: Tensor) -> Tensor:
    """out[to[e]] += values[e] · table[members[e]], (n_out, d) in float64."""
    out = torch.zeros(n_out, table.shape[1], dtype=torch.float64, device=table.device)
    for at in slices(len(to)):
        out.index_add_(0, to[at], values[at, None].double() * table[members[at]].double())
    return out


def assert_sums(ours: Tensor, to: Tensor, members: Tensor, values: Tensor, table: Tensor) -> None:
    """`ours` is the slow sums but for rounding: of float32 sums, in proportion to their terms, and of its own type."""
    truth = slow_sums(to, len(ours), members, values, table)
    allowed = slow_sums(to, len(ours), members, values.abs(), table.abs()).mul_(1e-5)
    allowed += 1.01 * EPSILON[ours.dtype] * truth.abs()
    assert ours.shape == truth.shape
    assert (truth.sub_(ours).abs_() <= allowed).all()


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_a_decode_equals_slow_sums(size: Size, dtype: torch.dtype, generator: torch.Generator) -> None:
    from sae_core import sparse_triton

    code = make_code(size, generator)
    W_dec = matrix(size.d_sae, size.d_in, dtype, generator)

    sae_out = sparse_triton.bag_sum(*code, W_dec)

    assert sae_out.dtype == dtype
    assert_sums(sae_out, code.bags, code.indices, code.values, W_dec)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_a_weight_gradient_equals_slow_sums(size: Size, dtype: torch.dtype, generator: torch.Generator) -> None:
    from sae_core import sparse_triton

    code = make_code(size, generator)
    error = matrix(size.n, size.d_in, dtype, generator)

    feature_offsets, order, rows = sparse_triton.by_feature(code.offsets, code.indices, size.d_sae)
    gradient = sparse_triton.bag_sum(feature_offsets, rows, code.values[order], error, out_dtype=F32)

    lengths = code.indices.bincount(minlength=size.d_sae)
    assert int(lengths.max()) > 256  # so bags are cut
    assert torch.equal(feature_offsets.diff(), lengths)
    assert torch.equal(rows, code.bags[order])
    assert gradient.dtype == F32
    assert_sums(gradient, code.indices, code.bags, code.values, error)


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_dot_products_equal_slow_ones(size: Size, dtype: torch.dtype, generator: torch.Generator) -> None:
    from sae_core import sparse_triton

    code = make_code(size, generator)
    W_dec = matrix(size.d_sae, size.d_in, dtype, generator)
    for grad in {
        dtype: matrix(size.n, size.d_in, dtype, generator),
        F32: matrix(size.n, size.d_in, F32, generator),
    }.values():
        dots = sparse_triton.bag_dot(code.offsets, code.indices, grad, W_dec)

        assert dots.dtype == F32 and dots.shape == code.indices.shape
        for at in slices(len(dots)):
            terms = grad[code.bags[at]].double() * W_dec[code.indices[at]].double()
            assert ((dots[at] - terms.sum(1)).abs() <= 1e-5 * terms.abs().sum(1)).all()


def every_kernel(size: Size, code: Code, W_dec: Tensor, error: Tensor) -> list[Tensor]:
    """What a training step asks for: decode, its activations' gradient, its weights' gradient."""
    from sae_core import sparse_triton

    feature_offsets, order, rows = sparse_triton.by_feature(code.offsets, code.indices, size.d_sae)
    return [
        feature_offsets,
        order,
        rows,
        sparse_triton.bag_sum(*code, W_dec),
        sparse_triton.bag_dot(code.offsets, code.indices, error, W_dec),
        sparse_triton.bag_sum(feature_offsets, rows, code.values[order], error, out_dtype=F32),
    ]


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_runs_give_the_same_bits(size: Size, dtype: torch.dtype, generator: torch.Generator) -> None:
    code = make_code(size, generator)
    W_dec, error = (matrix(n_rows, size.d_in, dtype, generator) for n_rows in (size.d_sae, size.n))

    first = every_kernel(size, code, W_dec, error)

    for _ in range(5):
        again = every_kernel(size, code, W_dec, error)
        assert all(torch.equal(ours, same) for ours, same in zip(again, first, strict=True))


@contextmanager
def no_waiting() -> Iterator[None]:
    """Every PyTorch call that waits for the GPU is an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_no_call_waits_for_the_gpu(generator: torch.Generator) -> None:
    size = SIZES["gpt2"]
    code = make_code(size, generator)
    W_dec, error = (matrix(n_rows, size.d_in, BF16, generator) for n_rows in (size.d_sae, size.n))
    every_kernel(size, code, W_dec, error)  # compiles

    with no_waiting():
        every_kernel(size, code, W_dec, error)
        with pytest.raises(RuntimeError):
            code.values.sum().item()  # so the measure works


@pytest.mark.parametrize("lengths", [[], [0, 0], [1], [0, 3000, 0, 1], [256, 512, 32, 64, 257]], ids=str)
@pytest.mark.parametrize("d", [1, 16, 37, 512])
def test_edges(lengths: list[int], d: int, generator: torch.Generator) -> None:
    from sae_core import sparse_triton

    nnz, n_rows = sum(lengths), 50
    indices = torch.randint(n_rows, (nnz,), generator=generator).cuda()
    code = Code(torch.tensor([0, *lengths]).cumsum(0).cuda(), indices, torch.randn(nnz, generator=generator).cuda())
    table, rows = matrix(n_rows, d, F32, generator), matrix(len(lengths), d, F32, generator)

    assert_sums(sparse_triton.bag_sum(*code, table), code.bags, indices, code.values, table)
    dots = sparse_triton.bag_dot(code.offsets, indices, rows, table)
    terms = rows[code.bags].double() * table[indices].double()
    assert ((dots - terms.sum(1)).abs() <= 1e-5 * terms.abs().sum(1)).all()


def test_tables_and_outputs_of_more_than_2_to_the_31_numbers(generator: torch.Generator) -> None:
    from sae_core import sparse_triton

    n_rows, d = (1 << 18) + 100, 8192
    if torch.cuda.mem_get_info()[0] < 16 << 30:
        pytest.skip("needs 16 GiB of free GPU memory")
    last = torch.arange(n_rows - 100, n_rows, device="cuda")
    table = torch.zeros(n_rows, d, dtype=BF16, device="cuda")
    table[last] = matrix(100, d, BF16, generator)
    # The last 100 of n_rows bags hold the last 100 rows, one each; those before are empty.
    offsets = (torch.arange(n_rows + 1, device="cuda") - (n_rows - 100)).clamp(min=0)
    values = torch.full((100,), 2.0, device="cuda")

    out = sparse_triton.bag_sum(offsets, last, values, table)
    dots = sparse_triton.bag_dot(offsets, last, out, table)

    assert torch.equal(out[last], 2 * table[last])
    assert not out[: n_rows - 100].any()
    torch.testing.assert_close(dots.double(), 2 * table[last].double().square().sum(1))


def test_a_tensor_on_another_device_is_refused() -> None:
    from sae_core import sparse_triton

    offsets, indices = torch.tensor([0, 3]).cuda(), torch.tensor([0, 1, 2]).cuda()
    values, table = torch.ones(3).cuda(), torch.ones(3, 16).cuda()
    sparse_triton.bag_sum(offsets, indices, values, table)
    with pytest.raises(ValueError, match="values must"):
        sparse_triton.bag_sum(offsets, indices, values.cpu(), table)


# What `sparse`, `select` and the losses make of them


def loss_and_gradients(
    architecture: str, device: str, *, seed: int = 0, in_bfloat16: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Of one batch in training, on this device, copied to the CPU."""
    from sae_core.losses import Terms, outcome
    from tests import planted

    sae = planted.random_sae(64, 512, 8, seed=seed, architecture=architecture).train().to(device)
    sae.selects_in_bfloat16 = in_bfloat16
    x = torch.randn(300, 64, generator=torch.Generator().manual_seed(seed)).to(device)
    loss = outcome(sae, x, x, Terms((x - x.mean(dim=0)).square().sum(), 0.3, False)).loss
    loss.backward()
    gradients = {name: p.grad.cpu() for name, p in sae.named_parameters() if p.grad is not None}
    return loss.detach().cpu(), gradients


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka", "jumprelu", "gated", "relu"])
def test_a_loss_and_its_gradients_are_those_of_the_cpu(architecture: str) -> None:
    ours, gradients = loss_and_gradients(architecture, "cuda")
    truth, expected = loss_and_gradients(architecture, "cpu")

    torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradients[name].stride() == gradient.stride()
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-2, atol=1e-3 * float(gradient.abs().max()))


@pytest.mark.parametrize("in_bfloat16", [False, True])
@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka"])
def test_a_batch_gives_the_same_bits_again(architecture: str, in_bfloat16: bool) -> None:
    loss, gradients = loss_and_gradients(architecture, "cuda", in_bfloat16=in_bfloat16)

    for _ in range(5):
        again, same = loss_and_gradients(architecture, "cuda", in_bfloat16=in_bfloat16)
        assert torch.equal(again, loss)
        assert all(torch.equal(same[name], gradient) for name, gradient in gradients.items())


def test_adding_up_by_feature_waits_for_nothing_and_gives_the_same_bits(generator: torch.Generator) -> None:
    from sae_core import sparse

    code = make_code(SIZES["gpt2"], generator)
    sparse_code = sparse.SparseCode(*code, d_sae=SIZES["gpt2"].d_sae)
    truth = torch.zeros(sparse_code.d_sae, dtype=torch.float64, device="cuda")
    truth.index_add_(0, code.indices, code.values.double())
    first = sparse._total_by_feature(sparse_code, code.values)

    with no_waiting():
        again = [sparse._total_by_feature(sparse_code, code.values) for _ in range(5)]

    torch.testing.assert_close(first.double(), truth, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(same, first) for same in again)
