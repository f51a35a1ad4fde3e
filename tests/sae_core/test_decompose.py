"""One token taken apart: every number equals that of a dense encode and plain sums, for each architecture."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_core.errors import PromptError, PromptTooLongError
from sae_core.loading import load_model
from sae_core.model import LanguageModel
from sae_core.probe import Prober
from sae_core.records import Decomposition, SAEInfo
from sae_core.sae import ARCHITECTURES, SAE, load_sae
from tests.planted import dense_encode, random_sae, save_sae
from tests.tiny import TEXTS

LAYER = 1


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> LanguageModel:
    return load_model(str(tiny_llama))


def make_info(model: LanguageModel, folder: Path, *, architecture: str = "topk", d_out: int | None = None) -> SAEInfo:
    sae = random_sae(model.info.d_model, 48, 6, seed=5, architecture=architecture, d_out=d_out)
    return save_sae(sae, folder, model, layer=LAYER, hook="resid_post", context_size=32)


@torch.no_grad()
def plain_forward(model: LanguageModel, ids: list[int]) -> tuple[Tensor, Tensor]:
    """The residual stream after the block, and what its MLP added: both (T, d_model)."""
    seen: list[Tensor] = []
    with model.module.model.layers[LAYER].mlp.register_forward_hook(lambda _, __, out: seen.append(out[0].clone())):
        hidden = model.module(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return hidden[LAYER + 1][0], seen[0]


def assert_sums_to_plain(found: Decomposition, sae: SAE, x: Tensor, target: Tensor) -> None:
    """`x` (d_in) is what the SAE reads, `target` (d_out) what it stands for."""
    acts = dense_encode(sae, x.unsqueeze(0))[0].double()
    target, W_dec, b_dec = target.double(), sae.W_dec.double(), sae.b_dec.double()
    size = target @ target
    ranked = [i for i in acts.argsort(descending=True).tolist() if acts[i] > 0]
    assert [part.feature_index for part in found.parts] == ranked
    assert [part.activation for part in found.parts] == pytest.approx(acts[ranked].tolist(), rel=1e-3)
    for n, part in enumerate(found.parts, start=1):
        x_hat = acts[ranked[:n]] @ W_dec[ranked[:n]] + b_dec
        assert part.error == pytest.approx(float((target - x_hat).square().sum() / size), rel=1e-3)
        along = acts[part.feature_index] * (W_dec[part.feature_index] @ target) / size
        assert part.share == pytest.approx(float(along), rel=1e-3, abs=1e-5)
    assert found.model_acts == pytest.approx(x.tolist(), rel=1e-3, abs=1e-5)
    assert found.vector == pytest.approx(target.tolist(), rel=1e-3, abs=1e-5)
    assert found.sae_out == pytest.approx((acts @ W_dec + b_dec).tolist(), rel=1e-3, abs=1e-4)
    assert found.bias_error == pytest.approx(float((target - b_dec).square().sum() / size), rel=1e-3)
    assert found.bias_share == pytest.approx(float(b_dec @ target / size), rel=1e-3)
    # The shares are those of the reconstruction: with what is left over they are the whole vector.
    left = float((target - (acts @ W_dec + b_dec)) @ target / size)
    assert found.bias_share + sum(part.share for part in found.parts) + left == pytest.approx(1, abs=1e-4)
    assert found.error == found.parts[-1].error


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_every_number_equals_dense_sums(model: LanguageModel, architecture: str, tmp_path: Path) -> None:
    prober = Prober(make_info(model, tmp_path / "random", architecture=architecture), model=model)
    found = prober.decompose(TEXTS[0], token=5)
    x, _ = plain_forward(model, [token.token_id for token in found.tokens])
    assert found.target_acts == ()
    assert_sums_to_plain(found, load_sae(Path(prober.info.weights_path)), x[5], x[5])
    assert len(found.parts) > 1


@pytest.mark.parametrize("input_norm", ["layer_norm", "constant_norm"])
@pytest.mark.parametrize("skips", [False, True])
def test_the_parts_of_an_sae_that_normalises_or_skips_make_its_reconstruction(
    model: LanguageModel, input_norm: str, skips: bool, tmp_path: Path
) -> None:
    sae = random_sae(model.info.d_model, 48, 6, seed=5)
    sae.input_norm = input_norm
    if skips:
        sae.W_skip = torch.nn.Parameter(0.1 * torch.randn(model.info.d_model, model.info.d_model))
    info = save_sae(sae, tmp_path / "sae", model, layer=LAYER, hook="resid_post", context_size=32)

    found = Prober(info, model=model).decompose(TEXTS[0], token=5)

    x, _ = plain_forward(model, [token.token_id for token in found.tokens])
    x = x[5]
    with torch.no_grad():
        sae_out = sae(x)
    size = float(x @ x)
    assert found.sae_out == pytest.approx(sae_out.tolist(), rel=1e-3, abs=1e-4)
    assert found.error == pytest.approx(float((x - sae_out).square().sum()) / size, rel=1e-3)
    assert found.bias_share is not None
    shares = found.bias_share + sum(part.share for part in found.parts)
    assert shares == pytest.approx(float(sae_out @ x) / size, rel=1e-3)


@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
def test_a_transcoder_is_held_against_what_it_stands_for(
    model: LanguageModel, architecture: str, tmp_path: Path
) -> None:
    plain = make_info(model, tmp_path / "transcoder", architecture=architecture, d_out=model.info.d_model)
    info = dataclasses.replace(plain, config={**plain.config, "target_hook": "mlp_out"})
    found = Prober(info, model=model).decompose(TEXTS[0], token=5)
    x, target = plain_forward(model, [token.token_id for token in found.tokens])
    assert found.target_acts != found.model_acts
    assert_sums_to_plain(found, load_sae(Path(info.weights_path)), x[5], target[5])


def test_it_is_what_the_probe_shows_of_the_token(model: LanguageModel, tmp_path: Path) -> None:
    prober = Prober(make_info(model, tmp_path / "random"), model=model)
    probed = prober.probe(TEXTS[1])
    for position, token in enumerate(probed.tokens):
        found = prober.decompose(TEXTS[1], token=position)
        assert [dataclasses.replace(t, feature_indexes=(), activations=()) for t in probed.tokens] == list(found.tokens)
        assert {p.feature_index: p.activation for p in found.parts} == pytest.approx(
            dict(zip(token.feature_indexes, token.activations, strict=True)), rel=1e-4
        )
        assert all(a.activation >= b.activation for a, b in pairwise(found.parts))


def test_a_special_token_has_a_vector_but_no_parts(model: LanguageModel, tmp_path: Path) -> None:
    prober = Prober(make_info(model, tmp_path / "random"), model=model)
    text = f"one {model.tokenizer.bos_token} two"
    specials = [at for at, token in enumerate(prober.decompose(text).tokens) if token.is_special]
    assert len(specials) == 2 and specials[0] == 0
    for position in specials:
        found = prober.decompose(text, token=position)
        x, _ = plain_forward(model, [token.token_id for token in found.tokens])
        assert found.model_acts == pytest.approx(x[position].tolist(), rel=1e-3, abs=1e-5)
        assert (found.parts, found.sae_out) == ((), ())
        assert (found.bias_share, found.bias_error, found.error) == (None, None, None)


def test_without_a_token_it_is_the_last_that_is_not_special(model: LanguageModel, tmp_path: Path) -> None:
    prober = Prober(make_info(model, tmp_path / "random"), model=model)
    assert prober.decompose("one two three").position == len(prober.decompose("one two three").tokens) - 1
    ended = prober.decompose(f"one two{model.tokenizer.eos_token}")
    assert ended.tokens[-1].is_special and ended.position == len(ended.tokens) - 2
    with pytest.raises(PromptError, match="only a start token"):
        prober.decompose(model.tokenizer.bos_token)


@pytest.mark.parametrize(
    ("text", "token", "error", "sentence"),
    [
        ("   ", None, PromptError, "is empty"),
        ("a\ud800b", None, PromptError, "half of a character"),
        ("one", 99, PromptError, r"tokens 0 to \d+, and no token 99"),
        (TEXTS[0] * 3, None, PromptTooLongError, "over the limit of 10;"),
    ],
    ids=["empty", "surrogate", "no such token", "too long"],
)
def test_what_cannot_be_taken_apart_is_refused(
    model: LanguageModel, tmp_path: Path, text: str, token: int | None, error: type[Exception], sentence: str
) -> None:
    prober = Prober(make_info(model, tmp_path / "random"), model=model)
    with pytest.raises(error, match=sentence):
        prober.decompose(text, token=token, max_tokens=10)
