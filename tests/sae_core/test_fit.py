"""Training one SAE from batches: against a slow, dense step, and what a `Trainee` promises whoever holds one."""

import copy
import dataclasses
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_core import fit
from sae_core.config import ARCHITECTURES, TrainConfig
from sae_core.errors import TrainingError
from sae_core.fit import Trainee
from sae_core.optimise import learning_rate, learning_rate_share, normalise_gradient
from sae_core.sae import TopKSAE
from sae_core.synthetic import synthetic_acts

Refuses = Callable[..., AbstractContextManager[None]]
D_IN = 16


def config_of(**values: Any) -> TrainConfig:
    defaults = {
        "model": "none", "layer": 0, "corpus": ("none",), "d_sae": 48, "k": 4, "tokens": 64 * 100, "batch_tokens": 64,
        "buffer_tokens": 128,
    }  # fmt: skip
    return TrainConfig(**{**defaults, **values})


def batches_of(n: int, *, rows: int = 64, seed: int = 1) -> list[Tensor]:
    """Sparse sums of 40 directions, far from the origin and longer than they are when training."""
    acts = synthetic_acts(n * rows, d_in=D_IN, n_directions=40, mean_active=3.0, seed=seed).rows
    return list((5 * acts + 2).split(rows))


def trained(trainee: Trainee, batches: list[Tensor], targets: list[Tensor] | None = None) -> Trainee:
    for i, batch in enumerate(batches):
        trainee.step(batch, None if targets is None else targets[i])
    return trainee


def flattened(state: Any, path: str = "") -> dict[str, Any]:
    """Every tensor and number of a nested state by its place in it."""
    if isinstance(state, dict):
        items = state.items()
    elif isinstance(state, list | tuple):
        items = dict(enumerate(state)).items()
    else:
        return {path: state}
    return {name: value for key, inner in items for name, value in flattened(inner, f"{path}/{key}").items()}


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Where two states differ in a single bit."""
    ours, theirs = flattened(one), flattened(other)
    assert ours.keys() == theirs.keys()
    return [
        name
        for name, value in ours.items()
        if not (torch.equal(value, theirs[name]) if isinstance(value, Tensor) else value == theirs[name])
    ]


# The step


def test_sparse_gradients_are_the_plain_dense_ones() -> None:
    torch.manual_seed(0)
    sae = TopKSAE(16, 32, 4)
    x = torch.randn(64, 16)
    dense = TopKSAE(16, 32, 4)
    dense.load_state_dict(sae.state_dict())
    loss = (x - sae.decode(sae.encode(x))).square().sum() / (x - x.mean(dim=0)).square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    pre_acts = (x - dense.b_dec) @ dense.W_enc + dense.b_enc
    mask = torch.zeros_like(pre_acts).scatter_(1, pre_acts.topk(4, dim=1).indices, 1.0)
    plain = ((pre_acts.relu() * mask) @ dense.W_dec + dense.b_dec - x).square().sum()
    (plain / (x - x.mean(dim=0)).square().sum()).backward()  # type: ignore[no-untyped-call]
    for ours, theirs in zip(sae.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)

    normalise_gradient(sae)

    total = sum(float(p.grad.square().sum()) for p in sae.parameters() if p.grad is not None)
    assert total == pytest.approx(1.0, rel=1e-4)


def slow_training(config: TrainConfig, start: TopKSAE, batches: list[Tensor]) -> dict[str, Tensor]:
    """TopK as its papers write it: dense, by autograd, with Adam spelt out. No feature is revived."""
    weights = {name: p.detach().clone().double().requires_grad_() for name, p in start.named_parameters()}
    first = batches[0].double()
    scale = math.sqrt(first.shape[1]) / first.norm(dim=1).mean()
    with torch.no_grad():
        weights["b_dec"].copy_(first.mean(dim=0) * scale)
    means = {name: torch.zeros_like(p) for name, p in weights.items()}
    squares = {name: torch.zeros_like(p) for name, p in weights.items()}
    for step, batch in enumerate(batches):
        x = batch.double() * scale
        pre_acts = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
        kept = torch.zeros_like(pre_acts).scatter_(1, pre_acts.topk(config.k, dim=1).indices, 1.0)
        sae_out = (pre_acts.relu() * kept) @ weights["W_dec"] + weights["b_dec"]
        loss = (x - sae_out).square().sum() / (x - x.mean(dim=0)).square().sum()
        grads = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        rows = weights["W_dec"].detach()
        grads["W_dec"] = grads["W_dec"] - (grads["W_dec"] * rows).sum(dim=1, keepdim=True) * rows
        length = torch.cat([grad.flatten() for grad in grads.values()]).norm()
        rate = learning_rate(config) * learning_rate_share(config, step * config.batch_tokens)
        with torch.no_grad():
            for name, weight in weights.items():
                grad = grads[name] / length
                means[name] = 0.9 * means[name] + 0.1 * grad
                squares[name] = 0.999 * squares[name] + 0.001 * grad**2
                mean, square = means[name] / (1 - 0.9 ** (step + 1)), squares[name] / (1 - 0.999 ** (step + 1))
                weight -= rate * mean / (square.sqrt() + 6.25e-10)
            weights["W_dec"] /= weights["W_dec"].norm(dim=1, keepdim=True)
    return {name: weight.detach().float() for name, weight in weights.items()}


def test_steps_are_the_slow_dense_ones() -> None:
    config = config_of(bias_lift=0.0)
    trainee = Trainee(config, d_in=D_IN)
    start = copy.deepcopy(trainee.sae)
    assert isinstance(start, TopKSAE)
    batches = batches_of(6)

    trained(trainee, batches)

    for name, expected in slow_training(config, start, batches).items():
        moved = float((expected - start.state_dict()[name]).abs().max())
        assert moved > 1e-3
        torch.testing.assert_close(trainee.sae.state_dict()[name], expected, rtol=0, atol=moved / 50)


def test_the_learning_rate_rises_holds_and_falls_to_zero() -> None:
    config = config_of()
    shares = [learning_rate_share(config, n) for n in range(0, config.tokens + 1, config.batch_tokens)]
    assert 0 < shares[0] < 1
    assert max(shares) == 1
    assert shares[-1] == 0
    assert shares == sorted(shares[: shares.index(1)]) + shares[shares.index(1) :]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_learns_about_as_many_features_as_it_is_asked_for(architecture: str) -> None:
    config = config_of(architecture=architecture, d_sae=80, tokens=64 * 300)
    trainee = trained(Trainee(config, d_in=D_IN), batches_of(300))
    test = batches_of(20, seed=1)

    sae = trainee.finished()

    x = torch.cat(test)
    fvu = float((x - sae(x)).square().sum() / (x - x.mean(dim=0)).square().sum())
    l0 = float((sae.encode(x).dense() > 0).sum(dim=1).float().mean())
    assert fvu < 0.35
    assert l0 == pytest.approx(config.k, rel=0.5)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(80))


@pytest.mark.slow
@pytest.mark.parametrize(
    "way", [{"aux_coefficient": 1 / 32, "bias_lift": 0.0}, {"bias_lift": 5.0}], ids=["auxiliary-loss", "bias-lift"]
)
def test_dead_features_are_revived(way: dict[str, float]) -> None:
    shares = []
    for revival in ({"bias_lift": 0.0}, way):
        config = config_of(tokens=1 << 20, dead_after_tokens=512, learning_rate=1e-2, d_sae=64, **revival)
        generator = torch.Generator().manual_seed(0)
        trainee = Trainee(config, d_in=32)
        trainee.step(torch.randn(256, 32, generator=generator))
        with torch.no_grad():
            trainee.sae.b_enc[:32] = -3  # half the features are never among the k largest
        for _ in range(150):
            trainee.step(torch.randn(256, 32, generator=generator))
        shares.append(float((trainee.tokens_since_fired >= 512).float().mean()))
    assert shares[0] > 0.2
    assert shares[1] < shares[0] / 2


# Beginnings and ends


def test_the_same_seed_starts_from_the_same_weights_whatever_was_drawn_before() -> None:
    one = Trainee(config_of(seed=3), d_in=D_IN).sae.state_dict()
    torch.randn(100)
    again = Trainee(config_of(seed=3, k=7, tokens=99), d_in=D_IN).sae.state_dict()
    other = Trainee(config_of(seed=4), d_in=D_IN).sae.state_dict()

    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["W_enc"], other["W_enc"])


def test_no_two_directions_are_drawn_alike_in_any_seed() -> None:
    drawn = [fit._directions(slice(0, 64), D_IN, seed=seed) for seed in (0, 1, 2, 2**31, 2**32 - 1)]
    cosines = torch.cat(drawn) @ torch.cat(drawn).T - torch.eye(5 * 64)

    assert float(cosines.abs().max()) < 0.95


def test_a_transcoder_starts_with_encoder_and_decoder_apart() -> None:
    sae = Trainee(config_of(target_hook="mlp_out"), d_in=D_IN, d_out=D_IN).sae

    assert float((sae.W_enc.T * sae.W_dec).sum(dim=1).detach().abs().max()) < 0.95


def test_a_features_first_direction_depends_on_its_number_and_the_seed_alone() -> None:
    whole = fit._directions(slice(0, 100), D_IN, seed=5)

    assert torch.equal(fit._directions(slice(37, 61), D_IN, seed=5), whole[37:61])
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(100))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_finished_sae_reads_the_models_own_activations_and_training_goes_on(architecture: str) -> None:
    config = config_of(architecture=architecture, learning_rate=1e-2)
    trainee = trained(Trainee(config, d_in=D_IN), batches_of(20))
    before = copy.deepcopy(trainee.state())
    scale = before["scales"][0]
    x = batches_of(1, seed=9)[0]

    sae = trainee.finished()

    trainee.sae.eval()
    own = trainee.sae(x * scale) / scale
    trainee.sae.train()
    torch.testing.assert_close(sae(x), own, rtol=1e-3, atol=1e-3)
    assert differing(before, trainee.state()) == []
    assert not any(p.requires_grad for p in sae.parameters())
    trainee.step(x)
    assert not torch.equal(trainee.sae.b_dec, before["sae"]["b_dec"])


def test_an_sae_that_never_took_a_step_is_finished_as_it_is() -> None:
    trainee = Trainee(config_of(), d_in=D_IN)

    assert torch.equal(trainee.finished().W_dec, trainee.sae.W_dec)


def test_it_is_done_when_all_tokens_are_seen() -> None:
    trainee = Trainee(config_of(tokens=130), d_in=D_IN)

    assert [trainee.is_done, *(trained(trainee, [batch]).is_done for batch in batches_of(3))] == [
        False, False, False, True,
    ]  # fmt: skip
    assert trainee.n_tokens == 192


# Metrics


def test_metrics_are_means_since_the_last_reading() -> None:
    config = config_of(tokens=64 * 1000, dead_after_tokens=200)
    trainee = Trainee(config, d_in=D_IN)
    assert trainee.read_metrics() is None
    trained(trainee, batches_of(2, seed=3))
    trainee.read_metrics()
    squares, variance, n_active = 0.0, 0.0, 0
    silent_since = trainee.tokens_since_fired.clone()
    for batch in batches_of(3, seed=4):
        x = batch * trainee.state()["scales"][0]
        feature_acts = trainee.sae.encode(x).dense().detach()
        sae_out = feature_acts @ trainee.sae.W_dec.detach() + trainee.sae.b_dec.detach()
        squares += float((x - sae_out).square().sum())
        variance += float((x - x.mean(dim=0)).square().sum())
        n_active += int((feature_acts > 0).sum())
        silent_since = torch.where((feature_acts > 0).any(dim=0), 0, silent_since + len(batch))
        trainee.step(batch)

    metrics = trainee.read_metrics()

    assert metrics is not None
    assert metrics.tokens == 5 * 64
    assert metrics.fvu == pytest.approx(squares / variance, rel=1e-4)
    assert metrics.l0 == pytest.approx(n_active / (3 * 64))
    assert metrics.dead_share == pytest.approx(float((silent_since >= 200).float().mean()))
    assert metrics.loss == pytest.approx(metrics.fvu, rel=0.1)
    assert trainee.read_metrics() is None


def test_features_count_as_dead_after_a_share_of_the_tokens_and_no_fewer_than_four_batches() -> None:
    assert Trainee(config_of(tokens=64 * 640), d_in=D_IN).dead_after_tokens == 640
    assert Trainee(config_of(tokens=64 * 16), d_in=D_IN).dead_after_tokens == 256
    assert Trainee(config_of(dead_after_tokens=77), d_in=D_IN).dead_after_tokens == 77


# Going on


KINDS = {
    **{architecture: {"architecture": architecture} for architecture in ARCHITECTURES},
    "multi-topk": {"multi_topk": True},
    "topk-with-auxiliary-loss": {"aux_coefficient": 1 / 32},
    "transcoder": {"target_hook": "mlp_out"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_trainee_goes_on_bit_for_bit(kind: str) -> None:
    config = config_of(**KINDS[kind], dead_after_tokens=128)
    d_out = 24 if kind == "transcoder" else None
    batches = batches_of(12)
    targets = [batch.repeat(1, 2)[:, :24].sin() for batch in batches] if d_out else None
    whole = trained(Trainee(config, d_in=D_IN, d_out=d_out), batches, targets)

    first = trained(Trainee(config, d_in=D_IN, d_out=d_out), batches[:5], targets)
    state = copy.deepcopy(first.state())
    trained(first, batches[5:7], targets[5:7] if targets else None)  # what is copied stays what it was
    second = Trainee(config, d_in=D_IN, d_out=d_out)
    second.restore(state)
    trained(second, batches[5:], targets[5:] if targets else None)

    assert differing(whole.state(), second.state()) == []
    assert whole.read_metrics() == second.read_metrics()


# Numbers that cannot be trained on


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_that_is_not_numbers_is_refused_by_its_number_and_changes_nothing(
    kind: str, bad: float, refuses: Refuses
) -> None:
    config = config_of(**KINDS[kind])
    d_out = D_IN if kind == "transcoder" else None
    trainee = Trainee(config, d_in=D_IN, d_out=d_out)
    good = batches_of(4)
    broken = good[3].clone()
    broken[5:9, 3] = bad
    places = [(broken, good[3] if d_out else None)] + ([(good[3], broken)] if d_out else [])

    for number in (1, 4):
        before = copy.deepcopy(trainee.state())
        for model_acts, targets in places:
            with refuses(TrainingError, f"Batch {number} ", "NaN or infinity", "--dtype"):
                trainee.step(model_acts, targets)
            assert differing(before, trainee.state()) == []
        trained(trainee, good[:3], good[:3] if d_out else None)  # it can go on


@pytest.mark.parametrize("kind", KINDS)
def test_activations_that_are_all_the_same_are_no_error(kind: str) -> None:
    d_out = D_IN if kind == "transcoder" else None
    same = torch.full((64, D_IN), 0.7)
    trainee = Trainee(config_of(**KINDS[kind]), d_in=D_IN, d_out=d_out)

    for value in (same, same, torch.zeros(64, D_IN)):
        trainee.step(value, value if d_out else None)

    assert all(bool(weight.isfinite().all()) for weight in trainee.finished().state_dict().values())


@pytest.mark.parametrize(
    "values",
    [{"d_sae": 1, "k": 1}, {"d_sae": 17, "k": 17}, {"batch_tokens": 1, "tokens": 3}, {"aux_coefficient": 1 / 32}],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_smallest_shapes_can_be_trained(kind: str, values: dict[str, Any]) -> None:
    config = config_of(**{**values, **KINDS[kind], "dead_after_tokens": 2})
    d_out = D_IN if kind == "transcoder" else None
    rows = torch.cat(batches_of(2))

    trainee = Trainee(config, d_in=D_IN, d_out=d_out)
    for batch in rows.split(config.batch_tokens)[:4]:
        trainee.step(batch, batch if d_out else None)

    assert all(bool(weight.isfinite().all()) for weight in trainee.finished().state_dict().values())


def test_a_configuration_changes_no_trainee(refuses: Refuses) -> None:
    trainee = Trainee(config_of(), d_in=D_IN)
    with pytest.raises(dataclasses.FrozenInstanceError):
        trainee.config.k = 1  # type: ignore[misc]
