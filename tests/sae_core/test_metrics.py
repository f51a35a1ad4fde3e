"""Every metric against its formula, written out slowly over everything at once."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sae_core.metrics import (
    BINS_PER_DECADE,
    COSINE_BINS,
    DEFINITIONS,
    LEAST_EXPONENT,
    RunningDensity,
    RunningFVU,
    RunningPredictions,
    RunningReconstruction,
    ce_recovered,
    cosine_histogram,
    density_histogram,
    explained_variance,
    kl_divergence,
    mean_encoder_decoder,
)


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


# Reconstruction


@pytest.mark.parametrize("batch_sizes", [[200], [1, 5, 190, 4], [1] * 200], ids=["one", "odd", "1s"])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_reconstruction_over_batches_is_the_formula_over_everything(batch_sizes: list[int], offset: float) -> None:
    x = vectors(200, seed=0, offset=offset)
    x_hat = 0.9 * x + 0.3 * vectors(200, seed=1)
    running = RunningReconstruction()
    for batch, guess in zip(x.split(batch_sizes), x_hat.split(batch_sizes), strict=True):
        running.add(batch, guess)

    cosines, squares, dots = [], 0.0, 0.0
    for a, b in zip(x.double(), x_hat.double(), strict=True):
        cosines.append(float(a @ b) / math.sqrt(float(a @ a)) / math.sqrt(float(b @ b)))
        squares += float(b @ b)
        dots += float(a @ b)
    assert running.fvu == pytest.approx(plain_fvu(x, x_hat), rel=1e-4)
    assert running.cosine == pytest.approx(sum(cosines) / len(cosines), rel=1e-5)
    assert running.reconstruction_bias == pytest.approx(squares / dots, rel=1e-5)


def test_explained_variance_is_what_fvu_leaves() -> None:
    x = vectors(100, seed=0, offset=5.0)
    x_hat = x + 0.5 * vectors(100, seed=1)
    variance = float((x.double() - x.double().mean(dim=0)).square().sum())
    explained = 1 - float((x.double() - x_hat.double()).square().sum()) / variance

    assert explained_variance(running_fvu(x, x_hat, [30, 70])) == pytest.approx(explained, rel=1e-4)


def test_explained_variance_is_no_mean_of_per_token_ratios() -> None:
    """One token far from the others has nearly all the variance; a mean of ratios would hide that it is lost."""
    x = torch.cat([vectors(99, seed=0) / 10, 1000 * vectors(1, seed=1)])
    x_hat = torch.cat([x[:99], x[99:] / 2])
    variance = (x - x.mean(dim=0)).square().sum(dim=1)
    per_token = 1 - float(((x - x_hat).square().sum(dim=1) / variance).mean())

    assert per_token > 0.99
    assert explained_variance(running_fvu(x, x_hat, [50, 50])) < 0.8


@pytest.mark.parametrize(("scale", "bias"), [(1.0, 1.0), (0.8, 0.8), (1.5, 1.5)])
def test_reconstruction_bias_is_the_factor_by_which_reconstructions_are_too_long(scale: float, bias: float) -> None:
    running = RunningReconstruction()
    x = vectors(50, seed=0)
    running.add(x, scale * x)

    assert running.reconstruction_bias == pytest.approx(bias, rel=1e-5)
    assert running.cosine == pytest.approx(1, rel=1e-5)


def test_least_squares_reconstructions_are_short_but_not_biased() -> None:
    """Projections on a few directions lose length, as any reconstruction does, yet no scale of them fits better."""
    x = vectors(80, seed=0)
    x_hat = x.clone()
    x_hat[:, 12:] = 0
    running = RunningReconstruction()
    running.add(x, x_hat)

    assert running.reconstruction_bias == pytest.approx(1, rel=1e-5)
    assert float((x_hat.norm(dim=1) / x.norm(dim=1)).mean()) < 0.8


def test_a_reconstruction_of_zeros_has_cosine_0_and_no_bias() -> None:
    running = RunningReconstruction()
    running.add(vectors(10, seed=0), torch.zeros(10, 24))

    assert running.cosine == 0
    assert running.reconstruction_bias is None
    assert RunningReconstruction().cosine is None


# Features


def test_density_l0_dead_and_dense_over_batches_are_those_of_the_dense_matrix() -> None:
    generator = torch.Generator().manual_seed(3)
    shares = torch.tensor([0.0, 0.01, 0.02, 0.05, 0.1, 0.1, 0.11, 0.3, 0.9, 1.0])
    active = torch.rand(500, 10, generator=generator) < shares  # (tokens, features)
    running = RunningDensity(torch.zeros(10, dtype=torch.int64))
    for batch in active.split([1, 99, 400]):
        running.add(batch.nonzero()[:, 1], len(batch))

    per_token = [sum(row) for row in active.tolist()]
    per_feature = [sum(column) / 500 for column in active.T.tolist()]
    assert running.l0 == pytest.approx(sum(per_token) / 500)
    assert running.densities.tolist() == pytest.approx(per_feature)
    assert running.dead_share == pytest.approx(sum(share == 0 for share in per_feature) / 10)
    assert running.dense_share(0.1) == pytest.approx(sum(share > 0.1 for share in per_feature) / 10)
    assert running.n_tokens == 500


def test_a_feature_at_the_threshold_is_not_dense() -> None:
    running = RunningDensity(torch.zeros(2, dtype=torch.int64))
    running.add(torch.tensor([0, 1, 1]), 10)

    assert running.dense_share(0.1) == 0.5


def test_encoder_decoder_mean_leaves_dead_features_out() -> None:
    cosines, counts = torch.tensor([0.5, 0.9, -0.2, 0.1]), torch.tensor([3, 0, 1, 9])

    assert mean_encoder_decoder(cosines, counts) == pytest.approx((0.5 - 0.2 + 0.1) / 3)
    assert mean_encoder_decoder(cosines, torch.zeros(4)) is None


def test_density_histogram_is_numpys_over_log10() -> None:
    densities = (10 ** (-7 * torch.rand(1000, generator=torch.Generator().manual_seed(0)))).tolist()
    histogram = density_histogram([*densities, 0.0, 0.0, 1.0])
    counts, edges = np.histogram(
        np.clip(np.log10([*densities, 1.0]), LEAST_EXPONENT, 0),
        bins=-LEAST_EXPONENT * BINS_PER_DECADE,
        range=(LEAST_EXPONENT, 0),
    )

    assert histogram.edges == pytest.approx(edges)
    assert list(histogram.counts) == counts.tolist()
    assert sum(histogram.counts) == 1001  # dead ones are left out, what is rarer than the left end is not


def test_cosine_histogram_is_numpys() -> None:
    cosines = (2 * torch.rand(1000, generator=torch.Generator().manual_seed(0)) - 1).tolist()
    histogram = cosine_histogram([*cosines, -1.0, 1.0, 1.0000001, math.nan])
    counts, edges = np.histogram([*cosines, -1.0, 1.0, 1.0], bins=COSINE_BINS, range=(-1, 1))

    assert histogram.edges == pytest.approx(edges)
    assert list(histogram.counts) == counts.tolist()


# Predictions


def random_log_probs(n: int, vocab: int, *, seed: int) -> Tensor:
    logits = 3 * torch.randn(n, vocab, generator=torch.Generator().manual_seed(seed))
    return logits.log_softmax(dim=1)


@pytest.mark.parametrize("sizes", [[30], [1, 28, 1]], ids=["one", "three"])
def test_losses_and_kl_over_parts_are_the_formulas_token_by_token(sizes: list[int]) -> None:
    own, spliced, zeroed = (random_log_probs(30, 17, seed=seed) for seed in range(3))
    token_ids = torch.arange(30) % 17
    running = RunningPredictions()
    for part in zip(*(tensor.split(sizes) for tensor in (token_ids, own, spliced, zeroed)), strict=True):
        running.add(part[0], own=part[1], with_sae=part[2], with_zeros=part[3])

    def plain_loss(log_probs: Tensor) -> float:
        return sum(-math.log(math.exp(float(log_probs[n, token_ids[n]]))) for n in range(30)) / 30

    kl = 0.0
    for n in range(30):
        for v in range(17):
            p, q = math.exp(float(own[n, v])), math.exp(float(spliced[n, v]))
            kl += p * math.log(p / q) / 30
    assert running.n == 30
    assert running.ce_loss == pytest.approx(plain_loss(own), rel=1e-5)
    assert running.ce_loss_with_sae == pytest.approx(plain_loss(spliced), rel=1e-5)
    assert running.ce_loss_with_zeros == pytest.approx(plain_loss(zeroed), rel=1e-5)
    assert running.kl == pytest.approx(kl, rel=1e-5)
    recovered = ce_recovered(
        loss=plain_loss(own), loss_with_sae=plain_loss(spliced), loss_with_zeros=plain_loss(zeroed)
    )
    assert running.ce_recovered == (recovered if recovered is None else pytest.approx(recovered, rel=1e-4))


def test_kl_is_torchs_and_0_only_of_the_same() -> None:
    own, other = random_log_probs(20, 50, seed=0), random_log_probs(20, 50, seed=1)
    plain = torch.nn.functional.kl_div(other, own, reduction="none", log_target=True).sum(dim=1)

    torch.testing.assert_close(kl_divergence(own, other), plain)
    assert bool((kl_divergence(own, other) > 0).all())
    assert torch.equal(kl_divergence(own, own), torch.zeros(20))


def test_kl_looks_from_the_model_to_the_model_with_the_sae() -> None:
    """What the model thinks likely and the SAE makes impossible costs much; the other way round little."""
    own, other = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1 - 1e-6, 1e-6]]).log()

    assert float(kl_divergence(own, other)) == pytest.approx(0.5 * math.log(0.5) + 0.5 * math.log(0.5e6), rel=1e-3)
    assert float(kl_divergence(other, own)) == pytest.approx(math.log(2), rel=1e-3)


def test_every_metric_is_defined_in_sentences() -> None:
    assert set(DEFINITIONS) == {
        "l0", "fvu", "explained_variance", "cosine", "reconstruction_bias", "ce_recovered", "ce_loss",
        "ce_loss_with_sae", "ce_loss_with_zeros", "kl", "density", "dead", "dense", "encoder_decoder",
    }  # fmt: skip
    assert all(sentence.endswith(".") for sentence in DEFINITIONS.values())
