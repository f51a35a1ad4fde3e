"""What each architecture minimises and all gradients of it, against dense autograd written down from the formulas."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from sae_core import losses, sparse
from sae_core.losses import JUMP_WIDTH, Outcome, Terms, aux_loss, outcome
from sae_core.sae import ARCHITECTURES, SAE, BatchTopKSAE, JumpReLUSAE, TopKSAE
from tests import planted
from tests.planted import largest

D_IN, D_SAE, K, D_OUT, N = 10, 60, 4, 7, 30
SPARSITY = 0.3

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
sae_and_transcoder = pytest.mark.parametrize("d_out", [None, D_OUT], ids=["sae", "transcoder"])


@pytest.fixture(params=["compiled", "eager"])
def _path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "eager":
        monkeypatch.setattr(sparse, "is_compiled", lambda tensor: False)


@dataclass
class Batch:
    sae: SAE
    x: Tensor
    y: Tensor

    @property
    def variance(self) -> Tensor:
        return (self.y - self.y.mean(dim=0)).square().sum()

    def terms(self, *, multi_topk: bool = False) -> Terms:
        return Terms(self.variance, SPARSITY, multi_topk)


def batch(architecture: str, d_out: int | None = None, *, seed: int = 0) -> Batch:
    """An SAE in training, decoder rows of any norm, on rows of norm about √d_in."""
    sae = planted.random_sae(D_IN, D_SAE, K, seed=seed, architecture=architecture, d_out=d_out).double().train()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        sae.W_dec.mul_(torch.rand(D_SAE, 1, generator=generator) + 0.5)
    x = torch.randn(N, D_IN, generator=generator, dtype=torch.float64)
    return Batch(sae, x, x if d_out is None else torch.randn(N, d_out, generator=generator, dtype=torch.float64))


def rectangle(distance: Tensor) -> Tensor:
    """The kernel K of the pseudo-gradients, of (pre_acts − threshold) / ε."""
    return (distance.abs() < 0.5).to(distance.dtype)


def with_slope(value: Tensor, parameter: Tensor, slope: Tensor) -> Tensor:
    """`value`, whose gradient with respect to `parameter` is `slope`."""
    return value + slope.detach() * (parameter - parameter.detach())


def dense_loss(own: Batch, *, multi_topk: bool = False) -> tuple[Tensor, Tensor]:
    """The loss and feature_acts, (N, d_sae), by formulas in which everything is dense."""
    sae, x, y = own.sae, own.x, own.y
    pre_acts = planted.dense_pre_acts(sae, x)

    def fvu(sae_out: Tensor) -> Tensor:
        return (y - sae_out).square().sum() / own.variance

    if sae.architecture == "topk":
        acts = pre_acts.relu() * largest(pre_acts, K)
        loss = fvu(acts @ sae.W_dec + sae.b_dec)
        if multi_topk:
            wide = pre_acts.relu() * largest(pre_acts, 4 * K)
            loss = loss + fvu(wide @ sae.W_dec + sae.b_dec) / 8
        return loss, acts
    if sae.architecture in ("batchtopk", "matryoshka"):
        acts = pre_acts.relu() * largest(pre_acts.view(1, -1), K * N).view_as(pre_acts)
        ends = [D_SAE] if sae.architecture == "batchtopk" else [4, 8, 15, 30, 60]
        groups = [fvu(acts[:, :end] @ sae.W_dec[:end] + sae.b_dec) for end in ends]
        return torch.stack(groups).mean(), acts
    if sae.architecture == "relu":
        acts = pre_acts.relu()
        penalty = sum((acts[:, feature] * sae.W_dec[feature].norm()).sum() for feature in range(D_SAE))
        return fvu(acts @ sae.W_dec + sae.b_dec) + SPARSITY * penalty / own.variance, acts
    if sae.architecture == "gated":
        gates = pre_acts.relu()
        magnitudes = (sae.r_mag.exp() * (pre_acts - sae.b_enc) + sae.b_mag).relu()
        acts = magnitudes * (pre_acts > 0)
        fixed = gates @ sae.W_dec.detach() + sae.b_dec.detach()
        penalty = SPARSITY * gates.sum() / own.variance
        return fvu(acts @ sae.W_dec + sae.b_dec) + penalty + fvu(fixed), acts
    assert isinstance(sae, JumpReLUSAE)
    threshold = sae.log_threshold.exp().expand_as(pre_acts)
    jumps = (pre_acts > threshold).double()
    kernel = rectangle((pre_acts - threshold) / JUMP_WIDTH) * (pre_acts > 0)  # negative ones get no gradient here
    acts = with_slope(pre_acts * jumps, threshold, -threshold / JUMP_WIDTH * kernel)
    l0 = with_slope(jumps, threshold, -kernel / JUMP_WIDTH).sum() / N
    return fvu(acts @ sae.W_dec + sae.b_dec) + SPARSITY * (l0 / K - 1) ** 2, acts


def gradients(loss: Tensor, sae: SAE) -> dict[str, Tensor]:
    parameters = dict(sae.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameters[name]) if gradient is None else gradient
        for name, gradient in zip(parameters, found, strict=True)
    }


def assert_same(ours: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    assert ours.keys() == truth.keys()
    for name, gradient in truth.items():
        assert bool(gradient.any()), name
        torch.testing.assert_close(ours[name], gradient, msg=lambda text, name=name: f"{name}: {text}")


def assert_outcome(ours: Outcome, own: Batch, acts: Tensor) -> None:
    error = own.y - (acts @ own.sae.W_dec + own.sae.b_dec)
    torch.testing.assert_close(ours.error, error.detach())
    torch.testing.assert_close(ours.squared_error.detach(), error.detach().square().sum())
    assert not ours.error.requires_grad and not ours.fired.requires_grad
    assert int(ours.n_active) == int((acts > 0).sum())
    assert torch.equal(ours.fired, (acts > 0).any(dim=0))


@pytest.mark.usefixtures("_path")
@every_architecture
@sae_and_transcoder
@pytest.mark.parametrize("seed", [0, 1])
def test_the_loss_and_all_gradients_equal_dense_autograd(architecture: str, d_out: int | None, seed: int) -> None:
    own = batch(architecture, d_out, seed=seed)
    truth, acts = dense_loss(own)

    ours = outcome(own.sae, own.x, own.y, own.terms())

    torch.testing.assert_close(ours.loss, truth)
    assert 0 < int((acts > 0).sum()) < acts.numel()
    assert_same(gradients(ours.loss, own.sae), gradients(truth, own.sae))
    assert_outcome(ours, own, acts)


@pytest.mark.usefixtures("_path")
@sae_and_transcoder
def test_multi_topk_and_all_its_gradients_equal_dense_autograd(d_out: int | None) -> None:
    own = batch("topk", d_out)
    truth, acts = dense_loss(own, multi_topk=True)

    ours = outcome(own.sae, own.x, own.y, own.terms(multi_topk=True))

    torch.testing.assert_close(ours.loss, truth)
    assert_same(gradients(ours.loss, own.sae), gradients(truth, own.sae))
    assert_outcome(ours, own, acts)  # those of k, not of 4k


def test_multi_topk_of_more_features_than_there_are_takes_all() -> None:
    own = batch("topk")
    own.sae.k = 20  # four times that is above d_sae
    pre_acts = planted.dense_pre_acts(own.sae, own.x)
    wide_error, error = (
        (own.y - ((pre_acts.relu() * kept) @ own.sae.W_dec + own.sae.b_dec)).square().sum()
        for kept in (torch.ones_like(pre_acts), largest(pre_acts, 20))
    )

    ours = outcome(own.sae, own.x, own.y, own.terms(multi_topk=True))

    torch.testing.assert_close(ours.loss, (error + wide_error / 8) / own.variance)


@every_architecture
def test_a_batch_in_which_nothing_is_active_has_a_finite_loss(architecture: str) -> None:
    own = batch(architecture)
    with torch.no_grad():
        own.sae.b_enc.sub_(1000)
        expected = (own.y - own.sae.b_dec).square().sum() / own.variance
        expected = {"gated": 2 * expected, "jumprelu": expected + SPARSITY}.get(architecture, expected)

    ours = outcome(own.sae, own.x, own.y, own.terms())
    found = gradients(ours.loss, own.sae)

    torch.testing.assert_close(ours.loss.detach(), expected)
    assert int(ours.n_active) == 0 and not ours.fired.any()
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert not found["W_enc"].any() and not found["W_dec"].any()


@every_architecture
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_batch_that_is_not_finite_has_a_loss_that_is_not(architecture: str, bad: float) -> None:
    own = batch(architecture)
    own.x[3] = bad
    own.x[5, 2] = bad

    assert not outcome(own.sae, own.x, own.y, own.terms()).loss.isfinite()


@every_architecture
def test_float32_gives_what_float64_gives_to_rounding(architecture: str) -> None:
    wide = batch(architecture)
    truth = outcome(wide.sae, wide.x, wide.y, wide.terms())
    exact = gradients(truth.loss, wide.sae)
    sae, x, y = wide.sae.float(), wide.x.float(), wide.y.float()

    ours = outcome(sae, x, y, Terms(wide.variance.float(), SPARSITY, False))

    torch.testing.assert_close(ours.loss.double(), truth.loss, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients(ours.loss, sae).items():
        tolerance = 1e-4 * float(exact[name].abs().max())
        torch.testing.assert_close(gradient.double(), exact[name], rtol=1e-3, atol=tolerance)


# The auxiliary loss


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka"])
@sae_and_transcoder
@pytest.mark.parametrize("n_dead", [1, 3, 5, 25, D_SAE])  # d_in / 2 = 5 of them take part
def test_the_auxiliary_loss_and_all_its_gradients_equal_dense_autograd(
    architecture: str, d_out: int | None, n_dead: int
) -> None:
    own = batch(architecture, d_out)
    sae = own.sae
    dead = torch.randperm(D_SAE, generator=torch.Generator().manual_seed(n_dead))[:n_dead].sort().values
    error = torch.randn(N, sae.d_out, dtype=torch.float64)
    pre_acts = planted.dense_pre_acts(sae, own.x)[:, dead]
    acts = pre_acts.relu() * largest(pre_acts, min(D_IN // 2, n_dead))
    truth = (error - acts @ sae.W_dec[dead]).square().sum() / error.square().sum()

    ours = aux_loss(sae, own.x, error, dead)

    torch.testing.assert_close(ours, truth)
    found, expected = gradients(ours, sae), gradients(truth, sae)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=lambda text, name=name: f"{name}: {text}")
    alive = torch.ones(D_SAE, dtype=torch.bool).index_fill(0, dead, False)
    assert not found["W_dec"][alive].any() and not found["W_enc"][:, alive].any() and not found["b_enc"][alive].any()
    assert bool(found["b_dec"].any()) == (d_out is None)  # only through the encoder: the error is given


def test_the_auxiliary_loss_of_a_narrow_sae_or_no_error_is_finite() -> None:
    sae = TopKSAE(1, 4, 1)
    x = torch.randn(3, 1)

    assert aux_loss(sae, x, torch.randn(3, 1), torch.tensor([1, 2])).isfinite()
    assert aux_loss(sae, x, torch.zeros(3, 1), torch.tensor([1, 2])).isfinite()


# JumpReLU's thresholds


@pytest.mark.parametrize("l0_before", ["above", "below"])
def test_jumprelus_thresholds_move_l0_towards_k(l0_before: str) -> None:
    own = batch("jumprelu")
    sae = own.sae
    assert isinstance(sae, JumpReLUSAE)
    with torch.no_grad():
        sae.W_dec.zero_()  # so that only the sparsity term has a gradient
        sae.log_threshold.fill_(0.1 if l0_before == "above" else 1.7).log_()
    optimizer = torch.optim.Adam([sae.log_threshold], lr=0.05)
    x = torch.randn(500, D_IN, generator=torch.Generator().manual_seed(8), dtype=torch.float64)

    def l0() -> float:
        return int((sae.encode(x).values > 0).sum()) / 500

    first = l0()
    for _ in range(100):
        optimizer.zero_grad()
        outcome(sae, x, x, Terms(x.var(), SPARSITY, False)).loss.backward()
        optimizer.step()

    assert first > 3 * K if l0_before == "above" else first < K / 2
    assert l0() == pytest.approx(K, rel=0.1)


def test_a_threshold_has_a_gradient_from_its_window_alone() -> None:
    own = batch("jumprelu")
    sae = own.sae
    assert isinstance(sae, JumpReLUSAE)
    pre_acts = planted.dense_pre_acts(sae, own.x)
    near = ((pre_acts - sae.threshold).abs() < JUMP_WIDTH / 2) & (pre_acts > 0)

    gradient = gradients(outcome(sae, own.x, own.y, own.terms()).loss, sae)["log_threshold"]

    assert 0 < int(near.any(dim=0).sum()) < D_SAE
    assert torch.equal(gradient != 0, near.any(dim=0))


# BatchTopK's threshold


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka"])
def test_the_threshold_in_use_gives_about_k_a_token_on_what_it_was_trained_on(architecture: str) -> None:
    sae = batch(architecture).sae
    assert isinstance(sae, BatchTopKSAE)
    sae.threshold.zero_()
    generator = torch.Generator().manual_seed(8)

    def rows(n: int) -> Tensor:
        return torch.randn(n, D_IN, generator=generator, dtype=torch.float64)

    for _ in range(200):
        x = rows(64)
        outcome(sae, x, x, Terms(x.var(), 0.0, False))
    in_use = sae.eval().encode(rows(5000))

    assert len(in_use.active()[0]) / 5000 == pytest.approx(K, rel=0.05)


def test_the_threshold_starts_at_a_batchs_and_follows_the_smallest_that_each_keeps() -> None:
    own = batch("batchtopk")
    sae = own.sae
    assert isinstance(sae, BatchTopKSAE)
    sae.threshold.zero_()

    def step(x: Tensor) -> float:
        pre_acts = planted.dense_pre_acts(sae, x)
        outcome(sae, x, x, own.terms())
        return float(pre_acts.detach().flatten().topk(K * len(x)).values.min())

    smallest = step(own.x)
    assert float(sae.threshold) == pytest.approx(smallest)
    other = step(2 * own.x)
    assert other != smallest
    assert float(sae.threshold) == pytest.approx(smallest + losses.THRESHOLD_PACE * (other - smallest))
    before = float(sae.threshold)
    with torch.no_grad():
        sae.b_enc.sub_(1000)
    outcome(sae, own.x, own.y, own.terms())  # keeps nothing
    assert float(sae.threshold) == before


def test_where_few_are_positive_the_threshold_is_the_smallest_of_those() -> None:
    own = batch("batchtopk")
    sae = own.sae
    assert isinstance(sae, BatchTopKSAE)
    sae.threshold.zero_()
    with torch.no_grad():
        sae.b_enc.sub_(2.0)
    pre_acts = planted.dense_pre_acts(sae, own.x).detach()
    assert 0 < int((pre_acts > 0).sum()) < K * N

    outcome(sae, own.x, own.y, own.terms())

    assert float(sae.threshold) == pytest.approx(float(pre_acts[pre_acts > 0].min()))
