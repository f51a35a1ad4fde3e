import pytest
import torch
from torch import Tensor

from sae_core import directions
from sae_core.directions import encoder_decoder_cosine, logit_attribution, nearest_features

D_SAE, D_MODEL, VOCAB = 37, 12, 53


def matrix(rows: int, columns: int, *, seed: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[64 << 20, 1, 4 * VOCAB * 5], ids=["one-block", "single-rows", "blocks-of-some-rows"])
def _block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directions, "_BLOCK_BYTES", request.param)


@pytest.mark.usefixtures("_block_bytes")
def test_promoted_and_suppressed_tokens_are_the_ends_of_the_sorted_logits() -> None:
    W_dec, W_U = matrix(D_SAE, D_MODEL, seed=0), matrix(D_MODEL, VOCAB, seed=1)

    promoted_ids, promoted, suppressed_ids, suppressed = logit_attribution(W_dec, W_U, n=6)

    logits = W_dec @ W_U
    order = logits.argsort(dim=1, descending=True)
    assert torch.equal(promoted_ids, order[:, :6])
    assert torch.equal(suppressed_ids, order.flip(1)[:, :6])
    torch.testing.assert_close(promoted, logits.gather(1, promoted_ids))
    torch.testing.assert_close(suppressed, logits.gather(1, suppressed_ids))


def test_more_tokens_than_there_are_gives_all_of_them() -> None:
    W_dec, W_U = matrix(3, D_MODEL, seed=0), matrix(D_MODEL, 4, seed=1)

    promoted_ids, _, suppressed_ids, _ = logit_attribution(W_dec, W_U, n=10)

    assert promoted_ids.sort(dim=1).values.tolist() == [[0, 1, 2, 3]] * 3
    assert torch.equal(suppressed_ids, promoted_ids.flip(1))


@pytest.mark.usefixtures("_block_bytes")
def test_nearest_features_are_the_largest_cosines_without_the_feature_itself() -> None:
    W_dec = matrix(D_SAE, D_MODEL, seed=2) * torch.linspace(0.1, 9, D_SAE)[:, None]  # lengths must not matter

    indices, cosines = nearest_features(W_dec, n=5)

    for feature in range(D_SAE):
        by_cosine = sorted(
            (
                (-float(torch.cosine_similarity(W_dec[feature], W_dec[other], dim=0)), other)
                for other in range(D_SAE)
                if other != feature
            ),
        )[:5]
        assert indices[feature].tolist() == [other for _, other in by_cosine]
        assert cosines[feature].tolist() == pytest.approx([-negative for negative, _ in by_cosine], abs=1e-6)


def test_a_feature_with_a_twin_has_the_twin_as_its_nearest() -> None:
    W_dec = matrix(6, D_MODEL, seed=3)
    W_dec[4] = 2.5 * W_dec[1]

    indices, cosines = nearest_features(W_dec, n=1)

    assert (int(indices[1]), int(indices[4])) == (4, 1)
    assert float(cosines[1]) == pytest.approx(1)


@pytest.mark.parametrize(("d_sae", "expected"), [(1, 0), (2, 1), (4, 3)])
def test_a_small_sae_has_fewer_neighbours_than_asked_for(d_sae: int, expected: int) -> None:
    indices, cosines = nearest_features(matrix(d_sae, D_MODEL, seed=4), n=20)

    assert tuple(indices.shape) == tuple(cosines.shape) == (d_sae, expected)


def test_encoder_decoder_cosine_compares_columns_with_rows() -> None:
    W_enc, W_dec = matrix(D_MODEL, D_SAE, seed=5), matrix(D_SAE, D_MODEL, seed=6)
    W_enc[:, 0], W_enc[:, 1] = 3 * W_dec[0], -W_dec[1]

    cosines = encoder_decoder_cosine(W_enc, W_dec)

    expected = [float(torch.cosine_similarity(W_enc[:, i], W_dec[i], dim=0)) for i in range(D_SAE)]
    assert cosines.tolist() == pytest.approx(expected, abs=1e-6)
    assert cosines[:2].tolist() == pytest.approx([1, -1], abs=1e-6)
