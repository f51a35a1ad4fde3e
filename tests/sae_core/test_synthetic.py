"""Synthetic activations and recovery, against slow, obvious references."""

import pytest
import torch

from sae_core.metrics import RunningFVU
from sae_core.synthetic import SyntheticActs, recovery, synthetic_acts


@pytest.fixture(scope="module")
def acts() -> SyntheticActs:
    return synthetic_acts(4000, d_in=32, n_directions=64, mean_active=4.0, noise_fvu=0.05, seed=3)


def test_the_record_has_rows_and_unit_directions(acts: SyntheticActs) -> None:
    assert acts.rows.shape == (4000, 32)
    assert acts.rows.dtype == torch.float32
    assert acts.directions.shape == (64, 32)
    torch.testing.assert_close(acts.directions.norm(dim=1), torch.ones(64))
    assert acts.seed == 3


def test_the_same_seed_gives_the_same_rows_and_another_gives_others(acts: SyntheticActs) -> None:
    again = synthetic_acts(4000, d_in=32, n_directions=64, mean_active=4.0, noise_fvu=0.05, seed=3)
    other = synthetic_acts(4000, d_in=32, n_directions=64, mean_active=4.0, noise_fvu=0.05, seed=4)
    assert torch.equal(acts.rows, again.rows)
    assert not torch.allclose(acts.directions, other.directions)


def test_densities_are_skewed_and_sum_to_the_mean_number_of_active_directions(acts: SyntheticActs) -> None:
    assert acts.densities.sum().item() == pytest.approx(4.0)
    assert acts.densities.sort(descending=True).values.equal(acts.densities)
    assert (acts.densities[0] / acts.densities[-1]).item() == pytest.approx(8.0)


def test_rows_are_sparse_sums_of_exponential_magnitudes() -> None:
    """With orthogonal directions and next to no noise the magnitudes can be read off."""
    acts = synthetic_acts(20_000, d_in=64, n_directions=8, mean_active=2.0, noise_fvu=1e-9, seed=5)
    code = acts.rows @ torch.linalg.pinv(acts.directions)  # (N, 8)
    is_active = code > 1e-3
    torch.testing.assert_close(is_active.float().mean(dim=0), acts.densities, atol=0.02, rtol=0)
    magnitudes = code[is_active]
    assert magnitudes.mean().item() == pytest.approx(1.0, abs=0.03)
    assert magnitudes.square().mean().item() == pytest.approx(2.0, abs=0.15)


def test_the_noise_floor_is_the_fvu_of_the_noiseless_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise is caught on its way into the rows; the FVU is that of the pages."""
    caught: list[torch.Tensor] = []
    draw = torch.randn

    def caught_randn(*args: object, **kwargs: object) -> torch.Tensor:
        caught.append(draw(*args, **kwargs))  # type: ignore[arg-type]
        return caught[-1].clone()

    monkeypatch.setattr(torch, "randn", caught_randn)
    monkeypatch.setattr("sae_core.synthetic._BLOCK_BYTES", 1000 * 4 * 64)
    acts = synthetic_acts(3000, d_in=32, n_directions=64, mean_active=4.0, noise_fvu=0.05, seed=3)
    assert len(caught) == 4  # the directions, and the noise of three blocks
    p = acts.densities.double()
    deviation = (0.05 / 0.95 * (2 * p - p**2).sum() / 32).sqrt().item()
    fvu = RunningFVU()
    fvu.add(acts.rows, sum((noise * deviation).square().sum().item() for noise in caught[1:]))
    assert acts.noise_floor_fvu == pytest.approx(fvu.value, rel=1e-4)
    assert acts.noise_floor_fvu == pytest.approx(0.05, rel=0.05)


def test_too_many_active_directions_are_refused() -> None:
    with pytest.raises(ValueError, match="mean_active"):
        synthetic_acts(10, d_in=8, n_directions=4, mean_active=3.9, seed=0)


def test_a_model_seeded_like_the_data_would_start_with_the_truth(acts: SyntheticActs) -> None:
    """The reason for the docstring's warning."""
    torch.manual_seed(acts.seed)
    assert recovery(torch.randn(128, 32), acts.directions).mmcs == pytest.approx(1.0)
    torch.manual_seed(acts.seed + 1)
    assert recovery(torch.randn(128, 32), acts.directions).mmcs < 0.7


def test_recovery_agrees_with_the_slow_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(50, 16, generator=generator)
    W_dec = torch.cat([3 * directions[:20] + 0.3 * torch.randn(20, 16, generator=generator), torch.randn(30, 16)])
    cosines = [
        max(float(row @ true / row.norm() / true.norm()) for row in W_dec) for true in directions
    ]  # largest for each true direction
    monkeypatch.setattr("sae_core.synthetic._BLOCK_BYTES", 7 * 4 * 50)  # blocks of seven
    found = recovery(W_dec, directions)
    assert found.mmcs == pytest.approx(sum(cosines) / 50, rel=1e-5)
    assert found.found_share == pytest.approx(sum(cosine > 0.9 for cosine in cosines) / 50)
    assert 0.3 < found.found_share < 0.6
    assert recovery(W_dec, directions, threshold=-1.0).found_share == 1.0
