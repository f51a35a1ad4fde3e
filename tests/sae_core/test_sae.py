import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_core.errors import WeightsError
from sae_core.sae import SHAPE_FILE, WEIGHTS_FILE, SparseCode, TopKSAE, load_sae

Refuses = Callable[..., AbstractContextManager[None]]
D_IN, D_SAE, K = 10, 60, 4


def random_sae(seed: int = 0) -> TopKSAE:
    """An SAE with nothing left at its initial value, so that no term of the formulas can be forgotten."""
    torch.manual_seed(seed)
    sae = TopKSAE(D_IN, D_SAE, K)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return sae.requires_grad_(False)


def model_acts(n: int, seed: int = 100) -> Tensor:
    return 2 * torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed)) + 1


def dense_feature_acts(sae: TopKSAE, x: Tensor) -> Tensor:
    """(N, d_sae): ReLU of the k largest pre-activations, by a loop over rows."""
    pre_acts = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    feature_acts = torch.zeros_like(pre_acts)
    for row, values in enumerate(pre_acts.tolist()):
        for feature in sorted(range(D_SAE), key=lambda i: -values[i])[: sae.k]:
            feature_acts[row, feature] = max(0.0, values[feature])
    return feature_acts


def as_dense(code: SparseCode) -> Tensor:
    return torch.zeros(len(code.indices), D_SAE).scatter_(1, code.indices, code.values)


def test_encode_is_the_dense_formula() -> None:
    sae, x = random_sae(), model_acts(40)

    torch.testing.assert_close(as_dense(sae.encode(x)), dense_feature_acts(sae, x))


def test_activations_are_never_negative_even_where_fewer_than_k_features_fire() -> None:
    sae, x = random_sae(), model_acts(40)
    sae.b_enc -= 4

    code = sae.encode(x)

    assert float(code.values.min()) == 0
    torch.testing.assert_close(as_dense(code), dense_feature_acts(sae, x))


def test_forward_is_the_dense_formula_for_any_leading_shape() -> None:
    sae, x = random_sae(), model_acts(24)
    expected = dense_feature_acts(sae, x) @ sae.W_dec + sae.b_dec

    torch.testing.assert_close(sae(x), expected)
    torch.testing.assert_close(sae(x.view(2, 3, 4, D_IN)), expected.view(2, 3, 4, D_IN))
    torch.testing.assert_close(sae(x[5]), expected[5])


def test_a_new_sae_is_tied_with_decoder_rows_of_unit_norm() -> None:
    sae = TopKSAE(D_IN, D_SAE, K)

    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert sae.W_enc.data_ptr() != sae.W_dec.data_ptr()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert (sae.d_in, sae.d_sae, sae.k) == (D_IN, D_SAE, K)


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


@pytest.mark.parametrize("scale", [0.125, 7.0])
def test_folding_the_scale_gives_the_same_sae_for_unscaled_activations(scale: float) -> None:
    sae, x = random_sae(), model_acts(30)
    expected, code = sae(x * scale) / scale, sae.encode(x * scale)

    sae.fold_input_scale(scale)

    torch.testing.assert_close(sae(x), expected)
    torch.testing.assert_close(as_dense(sae.encode(x)), as_dense(code) / scale)


def test_saved_weights_load_exactly_and_in_the_same_memory_order(tmp_path: Path) -> None:
    sae, x = random_sae(), model_acts(10)

    sae.save(tmp_path / "deep" / "folder")
    loaded = load_sae(tmp_path / "deep" / "folder")

    assert {name: tuple(p.shape) for name, p in loaded.named_parameters()} == {
        "W_dec": (D_SAE, D_IN),
        "W_enc": (D_IN, D_SAE),
        "b_enc": (D_SAE,),
        "b_dec": (D_IN,),
    }
    assert all(torch.equal(p, dict(sae.named_parameters())[name]) for name, p in loaded.named_parameters())
    assert loaded.W_enc.stride() == (1, D_IN)
    assert torch.equal(loaded(x), sae(x)) and loaded.k == K
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


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


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"d_in": 10',
        "{}",
        json.dumps({"d_in": D_IN, "d_sae": D_SAE}),
        json.dumps({"d_in": D_IN + 1, "d_sae": D_SAE, "k": K}),
        json.dumps({"d_in": -1, "d_sae": D_SAE, "k": K}),
    ],
    ids=["empty", "half-written", "no-fields", "one-field-missing", "another-width", "negative-width"],
)
def test_a_wrong_shape_file_is_damaged(text: str, tmp_path: Path, refuses: Refuses) -> None:
    random_sae().save(tmp_path)
    (tmp_path / SHAPE_FILE).write_text(text)

    with refuses(WeightsError, "damaged"):
        load_sae(tmp_path)


def test_weights_with_a_tensor_missing_are_damaged(tmp_path: Path, refuses: Refuses) -> None:
    from safetensors.torch import load_file, save_file

    random_sae().save(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    save_file({name: tensor for name, tensor in tensors.items() if name != "b_enc"}, tmp_path / WEIGHTS_FILE)

    with refuses(WeightsError, "damaged"):
        load_sae(tmp_path)
