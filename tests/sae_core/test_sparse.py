from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sae_core import sparse

D_IN, D_SAE = 7, 40


class Weights(NamedTuple):
    """Leaves that ask for gradients."""

    x: Tensor
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor


def weights(n: int, *, d_in: int = D_IN, d_sae: int = D_SAE, dtype: torch.dtype = torch.float64) -> Weights:
    generator = torch.Generator().manual_seed(11)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    made = Weights(leaf(n, d_in), leaf(d_sae, d_in).T, leaf(d_sae), leaf(d_sae, d_in))
    return Weights(*(tensor.requires_grad_() for tensor in made))


def sparse_output(w: Weights, k: int) -> Tensor:
    indices, pre_acts = sparse.select(w.x, w.W_enc, w.b_enc, k)
    return sparse.decode(indices, pre_acts.relu(), w.W_dec)


def dense_output(w: Weights, k: int) -> Tensor:
    """The same by dense autograd: everything but the k largest pre-activations of a row is set to zero."""
    pre_acts = w.x @ w.W_enc + w.b_enc  # (N, d_sae)
    kept = torch.zeros_like(pre_acts).scatter(1, pre_acts.topk(k, dim=1).indices, 1)
    return (pre_acts * kept).relu() @ w.W_dec


def gradients(output: Tensor, w: Weights) -> list[Tensor]:
    target = torch.randn(output.shape, generator=torch.Generator().manual_seed(12)).to(output.dtype)
    return list(torch.autograd.grad((output - target).square().sum(), list(w)))


@pytest.fixture(params=[16 << 20, 8 * D_SAE * 3, 1], ids=["one-slice", "slices-of-some-rows", "slices-of-one-row"])
def _slice_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "_CPU_SLICE_BYTES", request.param)


@pytest.mark.usefixtures("_slice_bytes")
@pytest.mark.parametrize("k", [1, 5, D_SAE])
@pytest.mark.parametrize("n", [1, 20, 0])
def test_output_and_all_gradients_equal_dense_autograd(n: int, k: int) -> None:
    w = weights(n)
    fast, slow = sparse_output(w, k), dense_output(w, k)

    torch.testing.assert_close(fast, slow)
    for name, ours, dense in zip(Weights._fields, gradients(fast, w), gradients(slow, w), strict=True):
        torch.testing.assert_close(ours, dense, msg=lambda text, name=name: f"{name}: {text}")


def test_float32_gradients_are_those_of_float64_to_rounding() -> None:
    narrow = weights(50, dtype=torch.float32)
    wide = Weights(*(tensor.detach().double().requires_grad_() for tensor in narrow))

    ours, exact = gradients(sparse_output(narrow, 5), narrow), gradients(dense_output(wide, 5), wide)

    for gradient, truth in zip(ours, exact, strict=True):
        torch.testing.assert_close(gradient.double(), truth, rtol=1e-4, atol=1e-4 * float(truth.abs().max()))


@pytest.mark.usefixtures("_slice_bytes")
def test_the_selected_features_are_the_k_largest_pre_activations_each_once() -> None:
    w = weights(30)

    with torch.no_grad():
        indices, values = sparse.top_pre_acts(w.x, w.W_enc, w.b_enc, 6)
        pre_acts = w.x @ w.W_enc + w.b_enc
        expected = pre_acts.topk(6, dim=1)

    assert torch.equal(indices.sort(dim=1).values, expected.indices.sort(dim=1).values)
    torch.testing.assert_close(values, pre_acts.gather(1, indices))


def test_decode_adds_up_a_feature_that_stands_twice_in_a_row() -> None:
    W_dec = weights(1).W_dec.detach()
    indices, values = torch.tensor([[3, 3, 9]]), torch.tensor([[1.0, 2.0, 0.5]], dtype=torch.float64)

    torch.testing.assert_close(sparse.decode(indices, values, W_dec)[0], 3 * W_dec[3] + 0.5 * W_dec[9])


def test_features_that_are_never_selected_get_gradients_of_exactly_zero() -> None:
    w = weights(4)
    indices, _ = sparse.select(w.x, w.W_enc, w.b_enc, 2)
    idle = torch.ones(D_SAE, dtype=torch.bool)
    idle[indices.flatten()] = False

    _, grad_W_enc, grad_b_enc, grad_W_dec = gradients(sparse_output(w, 2), w)

    assert int(idle.sum()) >= D_SAE - 8
    assert not grad_W_enc[:, idle].any() and not grad_b_enc[idle].any() and not grad_W_dec[idle].any()


def test_an_encoder_in_the_other_memory_order_gives_the_same() -> None:
    w = weights(20)
    other = w._replace(W_enc=w.W_enc.detach().contiguous().requires_grad_())

    for ours, same in zip(gradients(sparse_output(w, 3), w), gradients(sparse_output(other, 3), other), strict=True):
        torch.testing.assert_close(ours, same)


def test_the_encoder_gradient_lies_in_memory_as_the_encoder_does() -> None:
    w = weights(20)

    _, grad_W_enc, _, _ = gradients(sparse_output(w, 3), w)

    assert w.W_enc.stride() == grad_W_enc.stride() == (1, D_IN)  # else autograd copies it at every step


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation gave back."""

    n_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.n_elements = max([self.n_elements, *(tensor.numel() for tensor in tensors_in(result))])
        return result


def tensors_in(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, list | tuple):
        for part in result:
            yield from tensors_in(part)


def test_no_tensor_of_n_by_d_sae_is_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    n, d_in, d_sae, k = 512, 8, 1024, 4
    monkeypatch.setattr(sparse, "_CPU_SLICE_BYTES", 4 * d_sae * 16)
    w = weights(n, d_in=d_in, d_sae=d_sae, dtype=torch.float32)
    with LargestTensor() as ours:
        gradients(sparse_output(w, k), w)
    with LargestTensor() as dense:
        gradients(dense_output(w, k), w)

    assert dense.n_elements == n * d_sae  # so the measure works
    assert ours.n_elements == max(16 * d_sae, d_in * d_sae)
