"""The Triton kernels without a GPU: run in Triton's interpreter against dense float64 products, and compiled for GPUs.

Triton decides at its first import whether it interprets, so each of the two has a process of its own, which runs this
file as a program: this session never imports Triton. Both run at once.
"""

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
EPSILON = {F32: 2**-24, BF16: 2**-7, F16: 2**-10}  # of one rounding; the interpreter cuts off where a GPU rounds

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install triton (Linux only)"
)


class Case(NamedTuple):
    """A code with these bags, over a table of `n_rows` rows, and the length at which bags are cut (None: shipped)."""

    lengths: list[int]
    d: int = 24
    dtype: torch.dtype = F32
    n_rows: int = 9
    chunks: int | None = 4


CASES = {
    "short bags": Case([3, 2, 4, 1]),
    "empty bags": Case([0, 0, 3, 0, 6, 0]),
    "only empty bags": Case([0, 0, 0]),
    "no bags": Case([]),
    "one entry a bag": Case([1] * 7),
    "one bag": Case([5]),
    "one huge bag": Case([0, 70, 2, 0, 1]),
    "one bag is all": Case([27]),
    "several long bags": Case([13, 4, 5, 0, 8, 9, 1, 30]),
    "bags of exactly one and two chunks": Case([4, 8, 4]),
    "duplicates in a bag": Case([10, 10], n_rows=2),
    "a table of one row": Case([3, 11], n_rows=1),
    "one column": Case([3, 6], d=1),
    "a prime number of columns": Case([3, 6, 0], d=37),
    "several slabs of columns": Case([3, 6, 0], d=600),
    "a power of two": Case([3, 6, 0], d=256),
    "bfloat16": Case([3, 0, 14], dtype=BF16),
    "several slabs of bfloat16": Case([2, 7], d=1100, dtype=BF16),
    "float16": Case([3, 0, 14], dtype=F16),
    "longer than a chunk, as shipped": Case([0, 530, 1], chunks=None),
}


def make(lengths: list[int], n_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """A code of random entries: offsets, indices, values."""
    nnz = sum(lengths)
    generator = torch.Generator().manual_seed(nnz)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return offsets, torch.randint(n_rows, (nnz,), generator=generator), torch.randn(nnz, generator=generator)


def dense(offsets: Tensor, indices: Tensor, values: Tensor, n_rows: int) -> Tensor:
    """The code as a float64 matrix (B, n_rows)."""
    matrix = torch.zeros(len(offsets) - 1, n_rows, dtype=torch.float64)
    for bag in range(len(offsets) - 1):
        for entry in range(int(offsets[bag]), int(offsets[bag + 1])):
            matrix[bag, indices[entry]] += float(values[entry])
    return matrix


def assert_product(ours: Tensor, code: Tensor, size: Tensor, table: Tensor) -> None:
    """`ours` is code @ table but for the rounding of float32 sums, and that of its own type.

    `size` is the code of absolute values, in which entries of one place do not cancel.
    """
    truth = code @ table.double()
    allowed = 4e-6 * (size @ table.double().abs()) + EPSILON[ours.dtype] * truth.abs()
    assert ours.shape == truth.shape
    assert ((ours.double() - truth).abs() <= allowed).all()


def check(case: Case) -> None:
    """Every kernel on one case; runs where Triton interprets."""
    from sae_core import sparse_triton

    assert type(sparse_triton._bag_sums).__name__ == "InterpretedFunction"
    shipped = sparse_triton._CHUNK, sparse_triton._DOT_CHUNK
    assert case.chunks or max(case.lengths) > 2 * max(shipped)
    generator = torch.Generator().manual_seed(1)
    offsets, indices, values = make(case.lengths, case.n_rows)
    table = torch.randn(case.n_rows, case.d, generator=generator).to(case.dtype)
    rows = torch.randn(len(case.lengths), case.d, generator=generator).to(case.dtype)
    code, size = dense(offsets, indices, values, case.n_rows), dense(offsets, indices, values.abs(), case.n_rows)
    bags = torch.arange(len(rows)).repeat_interleave(torch.tensor(case.lengths, dtype=torch.int64))
    try:
        if case.chunks:
            sparse_triton._CHUNK = sparse_triton._DOT_CHUNK = case.chunks

        ours = sparse_triton.bag_sum(offsets, indices, values, table)
        assert ours.dtype == case.dtype
        assert_product(ours, code, size, table)
        if case.dtype != F32:
            wide = sparse_triton.bag_sum(offsets, indices, values.to(case.dtype).float(), table, out_dtype=F32)
            narrow = sparse_triton.bag_sum(offsets, indices, values.to(case.dtype), table, out_dtype=F32)
            assert wide.dtype == F32
            assert torch.equal(wide, narrow)

        for dotted in {case.dtype: rows, F32: rows.float()}.values():  # a gradient may be wider than the weights
            dots = sparse_triton.bag_dot(offsets, indices, dotted, table)
            assert dots.dtype == F32
            assert dots.shape == indices.shape
            terms = rows.double()[bags] * table.double()[indices]  # (nnz, d)
            assert ((dots - terms.sum(1)).abs() <= 4e-6 * terms.abs().sum(1)).all()

        feature_offsets, order, members = sparse_triton.by_feature(offsets, indices, case.n_rows)
        assert torch.equal(members, bags[order])
        gradient = sparse_triton.bag_sum(feature_offsets, members, values[order], rows, out_dtype=F32)
        assert_product(gradient, code.T, size.T, rows)
    finally:
        sparse_triton._CHUNK, sparse_triton._DOT_CHUNK = shipped


REFUSED: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "a table that is not contiguous": lambda args: {"table": args["table"].T},
    "a table of float64": lambda args: {"table": args["table"].double()},
    "a table of one dimension": lambda args: {"table": args["table"][0]},
    "indices of int32": lambda args: {"indices": args["indices"].int()},
    "values that are too few": lambda args: {"values": args["values"][1:]},
    "values of a row and a place in it": lambda args: {"values": args["values"][None]},
    "no offsets": lambda args: {"offsets": args["offsets"][:0]},
    "rows that are too few": lambda args: {"rows": args["rows"][1:]},
    "rows that are too narrow": lambda args: {"rows": args["rows"][:, 1:].contiguous()},
}


def check_refusal(spoil: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """What a kernel would misread is an error before any runs."""
    from sae_core import sparse_triton

    offsets, indices, values = make([2, 1], 3)
    whole = {"offsets": offsets, "indices": indices, "table": torch.ones(3, 16)}
    last = {"values": values, "rows": torch.ones(2, 16)}
    spoilt = {**whole, **last, **spoil({**whole, **last})}
    used = "rows" if spoilt["rows"] is not last["rows"] else "values"
    function: Any = {"rows": sparse_triton.bag_dot, "values": sparse_triton.bag_sum}[used]
    function(**whole, **{used: last[used]})
    with pytest.raises(ValueError, match=r"^(offsets|indices|values|table|rows) .*must .*\.$"):
        function(**{name: spoilt[name] for name in (*whole, used)})


class Leaves(NamedTuple):
    x: Tensor
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor


def leaves(*, in_order: bool = True) -> Leaves:
    """Of an SAE with 5 inputs and 12 features; unless `in_order`, nothing lies in memory as it is fastest."""
    generator = torch.Generator().manual_seed(3)

    def made(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    own = Leaves(made(5, 6).T, made(12, 5).T, made(12), made(5, 12).T, made(5))
    if in_order:
        own = Leaves(own.x.contiguous(), own.W_enc, own.b_enc, own.W_dec.contiguous(), own.b_dec)
    return Leaves(*(tensor.requires_grad_() for tensor in own))


def on_kernels(own: Leaves, *, in_bfloat16: bool = False) -> Tensor:
    """An SAE's output as `sparse` makes it; runs where `sparse` takes CPU tensors for a GPU's."""
    from sae_core import select, sparse

    x = own.x - own.b_dec.detach()
    code = select.top_k(x, own.W_enc, own.b_enc, 3, in_bfloat16=in_bfloat16)
    values = sparse.pre_acts_at(code, x, own.W_enc, own.b_enc, own.b_dec)
    return sparse.decode(code.with_values(values.relu()), own.W_dec) + own.b_dec


def densely(own: Leaves) -> Tensor:
    pre_acts = (own.x - own.b_dec) @ own.W_enc + own.b_enc
    kept = torch.zeros_like(pre_acts).scatter(1, pre_acts.topk(3, dim=1).indices, 1.0)
    return (pre_acts * kept).relu() @ own.W_dec + own.b_dec


def gradients(output: Tensor, own: Leaves) -> tuple[Tensor, ...]:
    return torch.autograd.grad((output - torch.linspace(-1, 1, 5)).square().sum(), list(own))


def check_gradients(in_order: bool) -> None:
    """Output and all gradients as `sparse` has them made by the kernels, every one of which is called."""
    from sae_core import sparse_triton

    own, calls = leaves(in_order=in_order), set()
    assert own.x.is_contiguous() == own.W_dec.is_contiguous() == in_order
    with pytest.MonkeyPatch.context() as patch:
        as_if_on_a_gpu(patch)
        for name in ("bag_sum", "bag_dot", "by_feature"):
            kernel = getattr(sparse_triton, name)
            patch.setattr(
                sparse_triton,
                name,
                lambda *args, name=name, kernel=kernel, **own: calls.add(name) or kernel(*args, **own),
            )
        patch.setattr(Tensor, "index_add_", None, raising=False)  # on a GPU it adds in any order
        ours = on_kernels(own)
        found, again = gradients(ours, own), gradients(on_kernels(own), own)
        chosen_in_bfloat16 = on_kernels(own, in_bfloat16=True)
    assert calls == {"bag_sum", "bag_dot", "by_feature"}
    torch.testing.assert_close(ours, densely(own))
    torch.testing.assert_close(chosen_in_bfloat16, ours)  # here no ties are so near
    for gradient, same, truth in zip(found, again, gradients(densely(own), own), strict=True):
        torch.testing.assert_close(gradient, truth, rtol=1e-4, atol=1e-4)
        assert torch.equal(gradient, same)


def check_wide_gradients() -> None:
    """A weight's gradient from rows of bfloat16 is not rounded to bfloat16."""
    from sae_core import sparse

    offsets, indices, values = make([3, 0, 4, 2], 9)
    rows = torch.randn(4, 24).to(BF16)
    code = sparse.SparseCode(offsets, indices, values.to(BF16), d_sae=9)
    with pytest.MonkeyPatch.context() as patch:
        as_if_on_a_gpu(patch)
        assert sparse.decode(code, torch.randn(9, 24).to(BF16)).dtype == BF16
        ours = sparse.sum_by_feature(code, code.values, rows)
    assert ours.dtype == F32
    truth = dense(offsets, indices, code.values, 9).T
    assert_product(ours, truth, dense(offsets, indices, code.values.abs(), 9).T, rows)


def as_if_on_a_gpu(patch: pytest.MonkeyPatch) -> None:
    from sae_core import sparse

    patch.setattr(sparse, "_CUDA", "cpu")
    patch.setattr(sparse, "_CPU", "elsewhere")
    patch.setattr(sparse, "_triton_runs_on", lambda device: True)


WITH_SPARSE: dict[str, Callable[[], None]] = {
    "output and gradients": partial(check_gradients, in_order=True),
    "output and gradients of what lies otherwise in memory": partial(check_gradients, in_order=False),
    "wide gradients": check_wide_gradients,
}


def interpret() -> dict[str, str]:
    """What went wrong with each case, empty where nothing did."""
    checks: dict[str, Callable[[], None]] = {name: partial(check, case) for name, case in CASES.items()}
    checks |= WITH_SPARSE
    checks |= {name: partial(check_refusal, spoil) for name, spoil in REFUSED.items()}
    found = {}
    for name, run in checks.items():
        try:
            run()
            found[name] = ""
        except (Exception, pytest.fail.Exception):
            found[name] = traceback.format_exc()
    return found


def assembly() -> dict[str, str]:
    """The PTX of every kernel for an A100 and an H100, bfloat16 tables of a width that is a multiple of 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sae_core import sparse_triton

    floats = {"table": "bf16", "rows": "bf16", "out": "fp32", "values": "fp32", "partials": "fp32"}
    launches = [
        (sparse_triton._extra_sums, 512, 2),
        (sparse_triton._bag_sums, 512, 2),
        (sparse_triton._bag_dots, 256, 1),
    ]
    made = {}
    for kernel, columns, warps in launches:
        constants = {"CHUNK": 64, "TILE": 8, "COLUMNS": columns}
        signature = {
            name: "constexpr"
            if name in constants
            else "i32"
            if name in ("d", "n_bags")
            else f"*{floats.get(name, 'i64')}"
            for name in kernel.arg_names
        }
        even = [place for place, name in enumerate(signature) if name not in {*constants, "n_bags"}]
        source = ASTSource(kernel, signature, constants, {(place,): [["tt.divisibility", 16]] for place in even})
        for capability in (80, 90):
            target, options = GPUTarget("cuda", capability, 32), {"num_warps": warps, "enable_fp_fusion": True}
            built = triton.compile(source, target=target, options=options)
            made[f"{kernel.__name__} sm_{capability}"] = built.asm["ptx"]
    return made


class FreshProcess:
    """Runs a function of this file in a process of its own, with these environment variables."""

    def __init__(self, function: str, folder: Path, **environment: str) -> None:
        self._result = folder / f"{function}.json"
        unset = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.sae_core.test_sparse_triton", function, str(self._result)],
            cwd=ROOT,
            env={**unset, "OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": str(folder / "triton"), **environment},
            stderr=subprocess.PIPE,
            text=True,
        )

    def result(self) -> dict[str, str]:
        _, errors = self._process.communicate()
        assert self._process.returncode == 0, errors
        found: dict[str, str] = json.loads(self._result.read_text())
        return found


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[FreshProcess, FreshProcess]:
    folder = tmp_path_factory.mktemp("triton")
    return FreshProcess("interpret", folder, TRITON_INTERPRET="1"), FreshProcess("assembly", folder)


@pytest.fixture(scope="module")
def interpreted(both: tuple[FreshProcess, FreshProcess]) -> dict[str, str]:
    return both[0].result()


@pytest.fixture(scope="module")
def assembled(both: tuple[FreshProcess, FreshProcess]) -> dict[str, str]:
    return both[1].result()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_kernels_equal_dense_products(name: str, interpreted: dict[str, str]) -> None:
    assert interpreted[name] == "", interpreted[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_a_kernel_would_misread_is_refused(name: str, interpreted: dict[str, str]) -> None:
    assert interpreted[name] == "", interpreted[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_SPARSE)
def test_sparse_takes_the_kernels_and_gets_what_dense_autograd_does(name: str, interpreted: dict[str, str]) -> None:
    assert interpreted[name] == "", interpreted[name]


@pytest.mark.slow
def test_the_kernels_compile_for_gpus_with_the_widest_loads_and_no_atomics(assembled: dict[str, str]) -> None:
    assert len(assembled) == 6
    for name, ptx in assembled.items():
        assert len(re.findall(r"ld\.global\S*\.v4\.b32", ptx)) >= 8, name  # 16 bytes of each row of a tile
        assert re.findall(r"\b(?:atom|red)\.", ptx) == [], name


def test_without_triton_this_module_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "sae_core.sparse_triton", raising=False)

    with pytest.raises(ImportError, match="triton"):
        importlib.import_module("sae_core.sparse_triton")


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps({"interpret": interpret, "assembly": assembly}[sys.argv[1]]()))
