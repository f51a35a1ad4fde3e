"""The learning rate's course, the gradient's length, and decoder rows of unit norm."""

import math

import pytest
import torch
from torch import Tensor

from sae_core import optimise
from sae_core.config import TrainConfig
from sae_core.optimise import adam, learning_rate, learning_rate_share, move, normalise_gradient
from sae_core.sae import SAE, GatedSAE, JumpReLUSAE, TopKSAE

D_IN, D_SAE, K = 6, 20, 3


def config(**changes: object) -> TrainConfig:
    defaults: dict[str, object] = {"model": "m", "layer": 0, "corpus": ("texts",), "tokens": 1000, "batch_tokens": 10}
    return TrainConfig(**{**defaults, "buffer_tokens": 20, **changes})  # type: ignore[arg-type]


def sae_with_gradients(kind: type[SAE] = TopKSAE) -> SAE:
    torch.manual_seed(0)
    sae = kind(D_IN, D_SAE, K).double()
    for parameter in sae.parameters():
        parameter.grad = torch.randn_like(parameter)  # in its memory order, as autograd's
    return sae


def gradients(sae: SAE) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None}


def length(tensors: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors.values()))


# The learning rate


def test_the_rate_falls_with_the_square_root_of_the_width_unless_it_is_given() -> None:
    assert learning_rate(config(d_sae=4096)) == pytest.approx(4.8e-3)
    assert learning_rate(config(d_sae=4 * 4096)) == pytest.approx(4.8e-3 / 2)
    assert learning_rate(config(d_sae=64)) == learning_rate(config(d_sae=1024)) == pytest.approx(4.8e-3 * 2)
    assert learning_rate(config(d_sae=64, learning_rate=0.1)) == 0.1


def test_the_rate_rises_stays_and_falls_to_zero() -> None:
    own = config(warmup_share=0.1, decay_share=0.5)  # of 100 batches of 10 tokens

    shares = [learning_rate_share(own, n_tokens) for n_tokens in range(0, 1000, 10)]

    assert shares[:10] == pytest.approx([batch / 10 for batch in range(1, 11)])  # the first step is one already
    assert shares[10:51] == [1.0] * 41
    assert shares[50:] == pytest.approx([(100 - batch) / 50 for batch in range(50, 100)])
    assert min(shares) > 0  # no step is for nothing
    assert learning_rate_share(own, 1000) == learning_rate_share(own, 1500) == 0


@pytest.mark.parametrize(("warmup", "decay"), [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)])
def test_the_rate_can_rise_or_fall_all_the_time_or_never(warmup: float, decay: float) -> None:
    own = config(warmup_share=warmup, decay_share=decay)

    for n_tokens in range(0, 1000, 10):
        expected = min((n_tokens + 10) / 1000 if warmup else 1.0, (1000 - n_tokens) / 1000 if decay else 1.0)
        assert learning_rate_share(own, n_tokens) == pytest.approx(expected)


# The gradient


@pytest.mark.parametrize("kind", [TopKSAE, GatedSAE])
def test_the_gradient_of_all_parameters_together_is_set_to_length_one(kind: type[SAE]) -> None:
    sae = sae_with_gradients(kind)
    before = gradients(sae)

    normalise_gradient(sae)

    for name, gradient in gradients(sae).items():
        torch.testing.assert_close(gradient, before[name] / length(before))
    assert length(gradients(sae)) == pytest.approx(1)


def test_parameters_without_a_gradient_are_left_out() -> None:
    for missing in ("b_dec", "W_dec", "b_enc"):
        sae = sae_with_gradients()
        dict(sae.named_parameters())[missing].grad = None

        normalise_gradient(sae)

        assert missing not in gradients(sae) and length(gradients(sae)) == pytest.approx(1)


def test_a_gradient_of_zero_stays_zero() -> None:
    sae = sae_with_gradients()
    for parameter in sae.parameters():
        assert parameter.grad is not None
        parameter.grad.zero_()

    normalise_gradient(sae)

    assert length(gradients(sae)) == 0


def test_what_other_ranks_hold_counts_in_the_length_and_the_bias_that_all_hold_counts_once() -> None:
    sae = sae_with_gradients()
    before = gradients(sae)
    own = length(before) ** 2 - float(before["b_dec"].square().sum())
    asked = []

    def total_of(square: Tensor) -> Tensor:
        asked.append(float(square))
        return square + 100  # the other rank's

    normalise_gradient(sae, total_of=total_of)

    assert asked == [pytest.approx(own)]
    whole = math.sqrt(length(before) ** 2 + 100)
    for name, gradient in gradients(sae).items():
        torch.testing.assert_close(gradient, before[name] / whole)


# A step


def slow_step(sae: SAE, *, rate: float, keeps_unit_norm: bool) -> dict[str, Tensor]:
    """The parameters after Adam's first step, by the formulas: it goes g / (|g| + ε) along each number.

    JumpReLU's thresholds go half as far.
    """
    grads = gradients(sae)
    if keeps_unit_norm:
        for row, direction in enumerate(sae.W_dec.detach()):
            grads["W_dec"][row] -= (grads["W_dec"][row] @ direction) * direction
    total = length(grads)
    after = {}
    for name, parameter in sae.named_parameters():
        g = grads[name] / total
        own_rate = rate / 2 if name == "log_threshold" else rate
        after[name] = parameter.detach() - own_rate * g / (g.abs() + 6.25e-10)
    if keeps_unit_norm:
        after["W_dec"] = after["W_dec"] / after["W_dec"].norm(dim=1, keepdim=True)
    return after


@pytest.mark.parametrize("keeps_unit_norm", [True, False])
@pytest.mark.parametrize("kind", [TopKSAE, JumpReLUSAE])
def test_a_step_goes_along_the_gradient_of_length_one(
    kind: type[SAE], keeps_unit_norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimise, "THRESHOLD_SHARE", 0.5)
    sae = sae_with_gradients(kind)
    optimizer = adam(config(d_sae=D_SAE, k=K), sae)
    expected = slow_step(sae, rate=0.01, keeps_unit_norm=keeps_unit_norm)

    move(sae, optimizer, rate=0.01, keeps_unit_norm=keeps_unit_norm)

    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], msg=lambda text, name=name: f"{name}: {text}")
    assert optimizer.param_groups[0]["lr"] == 0.01


def test_only_the_part_along_its_row_is_taken_out_of_the_decoders_gradient() -> None:
    sae = sae_with_gradients()
    rows, before = sae.W_dec.detach().clone(), gradients(sae)["W_dec"]

    move(sae, adam(config(d_sae=D_SAE, k=K), sae), rate=0.0, keeps_unit_norm=True)

    after = gradients(sae)["W_dec"]
    torch.testing.assert_close((after * rows).sum(dim=1), torch.zeros(D_SAE).double())
    across = before - (before * rows).sum(dim=1, keepdim=True) * rows
    torch.testing.assert_close(after / after.norm(), across / across.norm())


def test_many_steps_keep_rows_of_unit_norm_and_the_memory_order() -> None:
    sae = sae_with_gradients().float()
    optimizer = adam(config(d_sae=D_SAE, k=K), sae)
    x = torch.randn(50, D_IN)

    for _ in range(20):
        optimizer.zero_grad(set_to_none=True)
        (x - sae(x)).square().sum().backward()
        move(sae, optimizer, rate=0.01, keeps_unit_norm=True)

    torch.testing.assert_close(sae.W_dec.detach().norm(dim=1), torch.ones(D_SAE))
    assert sae.W_enc.stride() == optimizer.state[sae.W_enc]["exp_avg"].stride() == (1, D_IN)
    assert math.isclose(length(gradients(sae)), 1, rel_tol=1e-5)


def test_a_decoder_without_a_gradient_can_step_too() -> None:
    sae = sae_with_gradients()
    sae.W_dec.grad = None

    move(sae, adam(config(d_sae=D_SAE, k=K), sae), rate=0.01, keeps_unit_norm=True)

    torch.testing.assert_close(sae.W_dec.detach().norm(dim=1), torch.ones(D_SAE).double())
