"""Every architecture's encoder and decoder against the dense formulas, what is folded into weights, and their files."""

import copy
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_core import select, sparse
from sae_core.errors import WeightsError
from sae_core.sae import (
    ARCHITECTURES,
    SAE,
    SHAPE_FILE,
    WEIGHTS_FILE,
    BatchTopKSAE,
    GatedSAE,
    JumpReLUSAE,
    MatryoshkaSAE,
    TopKSAE,
    load_sae,
)
from tests import planted

Refuses = Callable[..., AbstractContextManager[None]]
D_IN, D_SAE, K, D_OUT = 10, 60, 4, 7

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
sae_and_transcoders = pytest.mark.parametrize("d_out", [None, D_OUT, D_IN], ids=["sae", "transcoder", "same-width"])


def random_sae(architecture: str = "topk", d_out: int | None = None, *, seed: int = 0) -> SAE:
    """An SAE with nothing left at its initial value, rows of any norm, so that no term can be forgotten."""
    sae = planted.random_sae(D_IN, D_SAE, K, seed=seed, architecture=architecture, d_out=d_out)
    with torch.no_grad():
        sae.W_dec.mul_(torch.rand(D_SAE, 1, generator=torch.Generator().manual_seed(seed)) + 0.5)
    return sae.requires_grad_(False)


def model_acts(n: int, seed: int = 100) -> Tensor:
    return 2 * torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed)) + 1


def looped_feature_acts(sae: SAE, x: Tensor) -> Tensor:
    """(N, d_sae): ReLU of the k largest pre-activations, by a loop over rows."""
    pre_acts = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    feature_acts = torch.zeros_like(pre_acts)
    for row, values in enumerate(pre_acts.tolist()):
        for feature in sorted(range(D_SAE), key=lambda i: -values[i])[: sae.k]:
            feature_acts[row, feature] = max(0.0, values[feature])
    return feature_acts


@pytest.fixture(params=["compiled", "eager"])
def _path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "eager":
        monkeypatch.setattr(sparse, "is_compiled", lambda tensor: False)


# Encode and decode


def test_the_dense_reference_is_a_loop_over_rows() -> None:
    sae, x = random_sae(), model_acts(40)

    torch.testing.assert_close(planted.dense_encode(sae, x), looped_feature_acts(sae, x))


@every_architecture
@sae_and_transcoders
@pytest.mark.usefixtures("_path")
def test_encode_and_decode_are_the_dense_formula(architecture: str, d_out: int | None) -> None:
    sae, x = random_sae(architecture, d_out), model_acts(40)
    feature_acts = planted.dense_encode(sae, x)

    code = sae.encode(x)

    assert 0 < int((feature_acts > 0).sum()) < feature_acts.numel()
    assert (sae.d_in, sae.d_out, sae.is_transcoder) == (D_IN, d_out or D_IN, d_out is not None)
    torch.testing.assert_close(code.dense(), feature_acts)
    torch.testing.assert_close(sae.decode(code), feature_acts @ sae.W_dec + sae.b_dec)
    torch.testing.assert_close(sae.pre_acts(x), planted.dense_pre_acts(sae, x))


@every_architecture
@pytest.mark.parametrize("d_out", [None, D_OUT], ids=["sae", "transcoder"])
@pytest.mark.parametrize("is_training", [False, True], ids=["in-use", "training"])
@pytest.mark.usefixtures("_path")
def test_all_gradients_of_encode_and_decode_equal_dense_autograd(
    architecture: str, d_out: int | None, is_training: bool
) -> None:
    sae = random_sae(architecture, d_out).double().requires_grad_(True).train(is_training)
    x = model_acts(30).double().requires_grad_()
    target = torch.randn(30, sae.d_out, dtype=torch.float64)
    leaves = {"x": x, **dict(sae.named_parameters())}

    def of(feature_acts: Tensor, sae_out: Tensor) -> tuple[Tensor | None, ...]:
        loss = (sae_out - target).square().sum() + feature_acts.pow(3).sum()
        return torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)

    code, dense = sae.encode(x), planted.dense_encode(sae, x)
    ours, truth = of(code.values, sae.decode(code)), of(dense, dense @ sae.W_dec + sae.b_dec)

    for name, fast, slow in zip(leaves, ours, truth, strict=True):
        if name == "log_threshold":  # has its gradient from the loss alone: see test_losses
            assert fast is None and slow is None
        else:
            cancels = (architecture, name) == ("gated", "b_enc")  # it decides which gates are open, and no more
            assert fast is not None and slow is not None and bool(slow.any()) != cancels, name
            torch.testing.assert_close(fast, slow, msg=lambda text, name=name: f"{name}: {text}")


@every_architecture
def test_activations_are_never_negative_even_where_few_features_fire(architecture: str) -> None:
    sae, x = random_sae(architecture), model_acts(40)
    sae.b_enc -= 3

    for is_training in (False, True):
        code = sae.train(is_training).encode(x)

        assert code.values.min() >= 0
        assert 0 < int((code.values > 0).sum()) < K * 40
        torch.testing.assert_close(code.dense(), planted.dense_encode(sae, x))


@every_architecture
def test_an_sae_in_which_nothing_fires_gives_its_bias(architecture: str) -> None:
    sae, x = random_sae(architecture), model_acts(5)
    sae.b_enc -= 1000

    code = sae.encode(x)

    assert not code.values.any()
    assert torch.equal(sae.decode(code), sae.b_dec.expand(5, -1))


@every_architecture
def test_no_rows_are_encoded_to_no_rows(architecture: str) -> None:
    for sae in (random_sae(architecture), random_sae(architecture).train()):
        code = sae.encode(model_acts(0))

        assert (code.n_rows, len(code.values)) == (0, 0)
        assert sae.decode(code).shape == sae(model_acts(0)).shape == (0, D_IN)


@every_architecture
@pytest.mark.parametrize("d_out", [None, D_OUT], ids=["sae", "transcoder"])
def test_forward_is_the_dense_formula_for_any_leading_shape(architecture: str, d_out: int | None) -> None:
    sae, x = random_sae(architecture, d_out), model_acts(24)
    expected = planted.dense_encode(sae, x) @ sae.W_dec + sae.b_dec

    torch.testing.assert_close(sae(x), expected)
    torch.testing.assert_close(sae(x.view(2, 3, 4, D_IN)), expected.view(2, 3, 4, sae.d_out))
    torch.testing.assert_close(sae(x[5]), expected[5])


def test_topk_can_encode_with_another_k_up_to_all_features() -> None:
    sae, x = random_sae(), model_acts(20)
    assert isinstance(sae, TopKSAE)

    for k in (1, 3 * K, D_SAE, 5 * D_SAE):
        sae.k = min(k, D_SAE)
        torch.testing.assert_close(sae.encode_top(x, k).dense(), planted.dense_encode(sae, x))


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka"])
def test_a_batch_in_training_shares_k_times_its_rows_and_one_in_use_has_a_threshold(architecture: str) -> None:
    sae, x = random_sae(architecture), model_acts(200)
    x[100:] *= 3  # rows that need more features than others

    training, in_use = sae.train().encode(x), sae.eval().encode(x)

    counts = torch.bincount(training.active()[0], minlength=200)
    assert int(counts.sum()) == K * 200
    assert counts[100:].sum() > 1.5 * counts[:100].sum()
    assert isinstance(sae, BatchTopKSAE)
    assert float(in_use.values.min()) > float(sae.threshold)
    single = torch.cat([sae.encode(row.unsqueeze(0)).dense() for row in x])
    torch.testing.assert_close(single, in_use.dense())  # in use a row does not depend on those beside it


def test_the_groups_of_matryoshka_double_up_to_all_features() -> None:
    assert MatryoshkaSAE(4, 4096, 32).group_ends == (256, 512, 1024, 2048, 4096)
    assert MatryoshkaSAE(4, 60, 4).group_ends == (4, 8, 15, 30, 60)
    assert MatryoshkaSAE(4, 3, 1).group_ends == (1, 2, 3)
    assert MatryoshkaSAE(4, 1, 1).group_ends == (1,)


def test_open_gates_and_their_code_are_of_the_same_entries() -> None:
    sae, x = random_sae("gated"), model_acts(30)
    assert isinstance(sae, GatedSAE)

    gates, code = sae.encode_gates(x)

    torch.testing.assert_close(gates.dense(), planted.dense_pre_acts(sae, x).relu())
    torch.testing.assert_close(code.dense(), planted.dense_encode(sae, x))
    assert gates.indices is code.indices
    assert bool(((code.values == 0) & (gates.values > 0)).any())  # open, but no magnitude


@pytest.mark.parametrize("margin", [0.0, 0.1, 5.0])
def test_near_a_threshold_are_all_above_it_and_the_positive_ones_within_the_margin(margin: float) -> None:
    sae, x = random_sae("jumprelu"), model_acts(30)
    assert isinstance(sae, JumpReLUSAE)
    pre_acts = planted.dense_pre_acts(sae, x)
    near = (pre_acts > 0) & (pre_acts > sae.log_threshold.exp() - margin)

    torch.testing.assert_close(sae.encode_near_threshold(x, margin).dense(), pre_acts * near)


# Weights


@every_architecture
def test_a_new_sae_is_tied_with_decoder_rows_of_unit_norm(architecture: str) -> None:
    sae = ARCHITECTURES[architecture](D_IN, D_SAE, K)

    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert sae.W_enc.data_ptr() != sae.W_dec.data_ptr()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert (sae.d_in, sae.d_out, sae.d_sae, sae.k, sae.is_transcoder) == (D_IN, D_IN, D_SAE, K, False)


@every_architecture
@pytest.mark.parametrize("d_out", [D_IN, D_OUT])
def test_a_new_transcoder_is_not_tied(architecture: str, d_out: int) -> None:
    sae = ARCHITECTURES[architecture](D_IN, D_SAE, K, d_out=d_out)

    assert sae.is_transcoder and sae.W_dec.shape == (D_SAE, d_out) and sae.b_dec.shape == (d_out,)
    assert sae.encoder_bias is None
    assert d_out != D_IN or not torch.equal(sae.W_enc, sae.W_dec.T)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))


def test_normalising_the_decoder_keeps_directions_and_gives_unit_norms() -> None:
    sae = random_sae()
    before = sae.W_dec.clone()

    sae.normalise_decoder()

    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))
    torch.testing.assert_close(torch.cosine_similarity(before, sae.W_dec), torch.ones(D_SAE))


def test_normalising_leaves_a_row_of_zeros_alone() -> None:
    sae = random_sae()
    sae.W_dec[3] = 0

    sae.normalise_decoder()

    assert not sae.W_dec[3].any()


@every_architecture
@pytest.mark.parametrize("scale", [0.125, 7.0])
def test_folding_the_scale_gives_the_same_sae_for_unscaled_activations(architecture: str, scale: float) -> None:
    sae, x = random_sae(architecture).double(), model_acts(30).double()
    expected, code = sae(x * scale) / scale, sae.encode(x * scale).dense()

    sae.fold_input_scale(scale)

    torch.testing.assert_close(sae(x), expected)
    torch.testing.assert_close(sae.encode(x).dense(), code / scale)


@every_architecture
@pytest.mark.parametrize("d_out", [D_OUT, D_IN])
@pytest.mark.parametrize(("scale", "target_scale"), [(0.125, 3.0), (7.0, 0.5), (2.0, 2.0)])
def test_folding_both_scales_gives_the_same_transcoder_for_unscaled_activations(
    architecture: str, d_out: int, scale: float, target_scale: float
) -> None:
    sae, x = random_sae(architecture, d_out).double(), model_acts(30).double()
    expected, code = sae(x * scale) / target_scale, sae.encode(x * scale).dense()

    sae.fold_input_scale(scale, target_scale)

    torch.testing.assert_close(sae(x), expected)
    torch.testing.assert_close(sae.encode(x).dense(), code / target_scale)


@every_architecture
@pytest.mark.parametrize("d_out", [None, D_OUT], ids=["sae", "transcoder"])
def test_decoder_norms_are_folded_without_changing_the_output_or_not_at_all(
    architecture: str, d_out: int | None
) -> None:
    sae, x = random_sae(architecture, d_out).double(), model_acts(30).double()
    sae.W_dec[5] = 0
    before, norms = copy.deepcopy(sae), sae.W_dec.norm(dim=1)

    if architecture in ("topk", "batchtopk", "matryoshka"):  # the longer a feature's row, the more often it would win
        with pytest.raises(ValueError, match=architecture):
            sae.fold_decoder_norms()
        assert all(torch.equal(sae.state_dict()[name], tensor) for name, tensor in before.state_dict().items())
        return
    sae.fold_decoder_norms()

    live = norms > 0
    torch.testing.assert_close(sae.W_dec.norm(dim=1), live.double())
    torch.testing.assert_close(sae(x), before(x))
    torch.testing.assert_close(sae.encode(x).dense()[:, live], (before.encode(x).dense() * norms)[:, live])


# Files


@every_architecture
@sae_and_transcoders
def test_saved_weights_load_exactly_and_in_the_same_memory_order(
    architecture: str, d_out: int | None, tmp_path: Path
) -> None:
    sae, x = random_sae(architecture, d_out), model_acts(10)

    sae.save(tmp_path / "deep" / "folder")
    loaded = load_sae(tmp_path / "deep" / "folder")

    assert type(loaded) is type(sae)
    assert loaded.state_dict().keys() == sae.state_dict().keys() >= {"W_enc", "W_dec", "b_enc", "b_dec"}
    assert all(torch.equal(tensor, sae.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert loaded.W_enc.stride() == (1, D_IN)
    assert (loaded.k, loaded.d_in, loaded.d_out, loaded.is_transcoder) == (K, D_IN, sae.d_out, sae.is_transcoder)
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    ours, same = sae.encode(x), loaded.encode(x)
    assert all(torch.equal(getattr(ours, name), getattr(same, name)) for name in ("offsets", "indices", "values"))
    assert torch.equal(loaded(x), sae(x))


def test_an_sae_in_training_loads_as_one_in_use(tmp_path: Path) -> None:
    sae = random_sae("batchtopk").train()
    sae.save(tmp_path)

    assert torch.equal(load_sae(tmp_path)(model_acts(10)), sae.eval()(model_acts(10)))


def test_saving_leaves_two_files_and_replaces_what_was_there(tmp_path: Path) -> None:
    random_sae(seed=1).save(tmp_path)
    random_sae(seed=2).save(tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == [SHAPE_FILE, WEIGHTS_FILE]
    assert torch.equal(load_sae(tmp_path).W_dec, random_sae(seed=2).W_dec)


@pytest.mark.parametrize("missing", [WEIGHTS_FILE, SHAPE_FILE])
def test_a_missing_file_is_named_as_missing_weights(missing: str, tmp_path: Path, refuses: Refuses) -> None:
    random_sae().save(tmp_path)
    (tmp_path / missing).unlink()

    with refuses(WeightsError, "no SAE weights", str(tmp_path)):
        load_sae(tmp_path)


def test_a_missing_folder_is_named_as_missing_weights(tmp_path: Path, refuses: Refuses) -> None:
    with refuses(WeightsError, "no SAE weights"):
        load_sae(tmp_path / "nowhere")


@pytest.mark.parametrize("kept", [0, 4, 100, -1], ids=["empty", "half-a-length", "half-a-header", "one-byte-short"])
def test_half_written_weights_are_damaged(kept: int, tmp_path: Path, refuses: Refuses) -> None:
    random_sae().save(tmp_path)
    data = (tmp_path / WEIGHTS_FILE).read_bytes()
    (tmp_path / WEIGHTS_FILE).write_bytes(data[:kept])

    with refuses(WeightsError, "damaged", str(tmp_path)):
        load_sae(tmp_path)


SHAPE = {"architecture": "topk", "d_in": D_IN, "d_sae": D_SAE, "k": K}
DAMAGED: dict[str, str] = {
    "empty": "",
    "half-written": '{"d_in": 10',
    "no-fields": "{}",
    "a-list": "[]",
    "nothing": "null",
    "no-text": "\x00\x01",
    **{f"without-{name}": json.dumps({key: SHAPE[key] for key in SHAPE if key != name}) for name in SHAPE},
    **{
        f"{name}-{value}": json.dumps({**SHAPE, name: value})
        for name, value in (
            ("d_in", D_IN + 1),
            ("d_in", -1),
            ("d_in", float("inf")),
            ("d_sae", D_SAE - 1),
            ("d_out", D_IN + 1),
            ("d_out", "wide"),
            ("k", 0),
            ("k", D_SAE + 1),
            ("k", "many"),
            ("architecture", "unheard-of"),
            ("architecture", ["topk"]),
            ("architecture", "gated"),  # whose tensors are not there
        )
    },
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_wrong_shape_file_is_damaged(text: str, tmp_path: Path, refuses: Refuses) -> None:
    random_sae().save(tmp_path)
    (tmp_path / SHAPE_FILE).write_text(text)

    with refuses(WeightsError, "damaged"):
        load_sae(tmp_path)


@every_architecture
def test_weights_with_a_tensor_missing_are_damaged(architecture: str, tmp_path: Path, refuses: Refuses) -> None:
    from safetensors.torch import load_file, save_file

    random_sae(architecture).save(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    for missing in tensors:
        save_file({name: tensor for name, tensor in tensors.items() if name != missing}, tmp_path / WEIGHTS_FILE)

        with refuses(WeightsError, "damaged"):
            load_sae(tmp_path)


@every_architecture
def test_an_sae_works_in_inference_mode_and_trains_after(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select._memory, "kept", None, raising=False)
    sae, x = random_sae(architecture), model_acts(40)
    with torch.inference_mode():
        inferred = sae(x)

    sae.requires_grad_(True)(x).square().sum().backward()

    torch.testing.assert_close(inferred, sae(x))
    assert bool(sae.W_enc.grad is not None and sae.W_enc.grad.any())


# What was trained elsewhere


def looped_norm(kind: str, row: list[float]) -> tuple[list[float], float, float]:
    """A token as it is encoded, and the scale and offset of the way back."""
    n = len(row)
    if kind == "layer_norm":
        mean = sum(row) / n
        std = (sum((value - mean) ** 2 for value in row) / (n - 1)) ** 0.5
        return [(value - mean) / (std + 1e-5) for value in row], std, mean
    norm = sum(value**2 for value in row) ** 0.5
    return [value * n**0.5 / norm for value in row], norm / n**0.5, 0.0


@every_architecture
@pytest.mark.parametrize("kind", ["layer_norm", "constant_norm"])
@pytest.mark.parametrize("skips", [False, True])
def test_a_normalised_input_is_encoded_and_scaled_back_and_skips_are_added(
    architecture: str, kind: str, skips: bool
) -> None:
    sae, x = random_sae(architecture), model_acts(20)
    normalised, scales, offsets = zip(*(looped_norm(kind, row) for row in x.tolist()), strict=True)
    inner = torch.tensor(normalised)
    feature_acts = planted.dense_encode(sae, inner)
    expected = (feature_acts @ sae.W_dec + sae.b_dec) * torch.tensor(scales).unsqueeze(1)
    expected = expected + torch.tensor(offsets).unsqueeze(1)
    sae.input_norm = kind
    if skips:
        sae.W_skip = torch.nn.Parameter(torch.randn(D_IN, D_IN), requires_grad=False)
        expected = expected + x @ sae.W_skip.T

    code = sae.encode(x)

    torch.testing.assert_close(code.dense(), feature_acts, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(sae.decode(code), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sae.pre_acts(x), planted.dense_pre_acts(sae, inner), atol=1e-5, rtol=1e-4)
    doubled = code.with_values(2 * code.values)
    again = sae.decode(doubled) - sae.decode(code)
    torch.testing.assert_close(
        again, (feature_acts @ sae.W_dec) * torch.tensor(scales).unsqueeze(1), atol=1e-4, rtol=1e-4
    )


@every_architecture
@sae_and_transcoders
def test_all_that_is_particular_to_an_sae_is_saved_and_loaded(
    architecture: str, d_out: int | None, tmp_path: Path
) -> None:
    sae, x = random_sae(architecture, d_out), model_acts(20)
    sae.subtracts_b_dec = not sae.subtracts_b_dec
    sae.input_norm = "layer_norm"
    sae.W_skip = torch.nn.Parameter(torch.randn(sae.d_out, D_IN), requires_grad=False)
    if isinstance(sae, JumpReLUSAE):
        sae.fixed_threshold = torch.rand(D_SAE)

    sae.save(tmp_path)
    loaded = load_sae(tmp_path)

    assert (loaded.subtracts_b_dec, loaded.input_norm) == (sae.subtracts_b_dec, "layer_norm")
    assert torch.equal(loaded(x), sae(x)) and torch.equal(loaded.encode(x).dense(), sae.encode(x).dense())
    if isinstance(sae, JumpReLUSAE) and isinstance(loaded, JumpReLUSAE):
        assert torch.equal(loaded.threshold, sae.fixed_threshold)  # type: ignore[arg-type]


def test_a_fixed_threshold_is_folded_as_a_learned_one_is() -> None:
    sae, x = random_sae("jumprelu"), model_acts(40)
    assert isinstance(sae, JumpReLUSAE)
    fixed = copy.deepcopy(sae)
    fixed.fixed_threshold = sae.threshold.clone()

    for each in (sae, fixed):
        each.fold_decoder_norms()
        each.fold_input_scale(0.5)

    torch.testing.assert_close(fixed.threshold, sae.threshold)
    torch.testing.assert_close(fixed(x), sae(x))


@pytest.mark.parametrize(
    "changed", [{"input_norm": "batch_norm"}, {"k": 0}, {"k": D_SAE + 1}, {"architecture": "temporal"}]
)
def test_a_shape_that_saescope_does_not_know_is_damage(changed: dict[str, object], tmp_path: Path) -> None:
    random_sae().save(tmp_path)
    shape = json.loads((tmp_path / SHAPE_FILE).read_text())
    (tmp_path / SHAPE_FILE).write_text(json.dumps({**shape, **changed}))

    with pytest.raises(WeightsError, match="damaged"):
        load_sae(tmp_path)
