import math

import pytest
import torch
from torch import Tensor

from sae_core.metrics import DEFINITIONS, RunningFVU, ce_recovered


def plain_fvu(x: Tensor, x_hat: Tensor) -> float:
    x, x_hat = x.double(), x_hat.double()
    return float((x - x_hat).square().sum() / (x - x.mean(dim=0)).square().sum())


def running_fvu(x: Tensor, x_hat: Tensor, batch_sizes: list[int]) -> float:
    running = RunningFVU()
    for batch, guess in zip(x.split(batch_sizes), x_hat.split(batch_sizes), strict=True):
        running.add(batch, float((batch - guess).double().square().sum()))
    return running.value


def vectors(n: int, *, seed: int, offset: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 24, generator=generator) * torch.linspace(0.1, 3, 24) + offset


@pytest.mark.parametrize("batch_sizes", [[200], [100, 100], [1, 5, 190, 4], [1] * 200], ids=["one", "two", "odd", "1s"])
@pytest.mark.parametrize("offset", [0.0, -3.0, 500.0])
def test_fvu_over_batches_is_the_formula_over_everything(batch_sizes: list[int], offset: float) -> None:
    x = vectors(200, seed=0, offset=offset)
    x_hat = x + 0.3 * vectors(200, seed=1)

    assert running_fvu(x, x_hat, batch_sizes) == pytest.approx(plain_fvu(x, x_hat), rel=1e-4)


def test_fvu_counts_a_mean_that_moves_between_batches_as_variance() -> None:
    x = torch.cat([vectors(100, seed=0, offset=-4.0), vectors(100, seed=1, offset=4.0)])
    x_hat = x + vectors(200, seed=2)

    assert running_fvu(x, x_hat, [100, 100]) == pytest.approx(plain_fvu(x, x_hat), rel=1e-5)


def test_a_perfect_reconstruction_has_fvu_0() -> None:
    x = vectors(60, seed=0, offset=20.0)

    assert running_fvu(x, x, [20, 40]) == 0


def test_the_mean_as_reconstruction_has_fvu_1() -> None:
    x = vectors(60, seed=0, offset=20.0)

    assert running_fvu(x, x.mean(dim=0).expand_as(x), [20, 40]) == pytest.approx(1, rel=1e-5)


def test_fvu_counts_the_vectors_it_has_seen() -> None:
    running = RunningFVU()
    running.add(vectors(7, seed=0), 1.0)
    running.add(vectors(5, seed=1), 2.0)

    assert (running.n, running.squared_error) == (12, 3.0)


def test_fvu_of_nothing_or_of_vectors_that_are_all_equal_is_nan() -> None:
    constant = RunningFVU()
    constant.add(torch.full((10, 4), 3.0), 1.0)

    assert math.isnan(RunningFVU().value)
    assert math.isnan(constant.value)


@pytest.mark.parametrize(
    ("loss", "loss_with_sae", "loss_with_zeros", "expected"),
    [
        (2.0, 2.0, 10.0, 1.0),
        (2.0, 10.0, 10.0, 0.0),
        (2.0, 4.0, 10.0, 0.75),
        (2.0, 12.0, 10.0, -0.25),
        (2.0, 3.0, 2.0, None),
        (2.0, 3.0, 1.5, None),
    ],
    ids=["all", "none", "most", "worse-than-zeros", "zeros-do-not-hurt", "zeros-help"],
)
def test_ce_recovered_is_the_share_of_the_damage_that_the_sae_avoids(
    loss: float, loss_with_sae: float, loss_with_zeros: float, expected: float | None
) -> None:
    assert ce_recovered(loss=loss, loss_with_sae=loss_with_sae, loss_with_zeros=loss_with_zeros) == expected


def test_every_metric_is_defined_in_sentences() -> None:
    assert set(DEFINITIONS) == {"l0", "fvu", "ce_recovered", "density", "dead", "dense"}
    assert all(sentence.endswith(".") for sentence in DEFINITIONS.values())
