"""Probing gives exactly what the index stored, on any text, within its limits."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_core.config import IndexConfig
from sae_core.errors import ModelError, PromptError, PromptTooLongError
from sae_core.index import build_index
from sae_core.loading import load_model
from sae_core.model import LanguageModel
from sae_core.probe import Prober
from sae_core.records import ProbeResult, Prompt, SAEInfo
from sae_core.sae import load_sae
from sae_core.tokens import vocabulary
from sae_core.tokens_text import display_strings
from tests.packed import plain
from tests.planted import dense_encode, random_sae, save_sae
from tests.tiny import CAUSAL_KINDS, TEXTS, save_tiny_model

NON_ASCII = "Das Mädchen liest 中文 und lacht 🙂🦜 — naïve café"


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> LanguageModel:
    return load_model(str(tiny_llama))


@pytest.fixture(scope="module")
def info(model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> SAEInfo:
    sae = random_sae(model.info.d_model, 48, 6, seed=5)
    folder = tmp_path_factory.mktemp("saes") / "random"
    return save_sae(sae, folder, model, layer=1, hook="resid_post", context_size=32)


def test_a_start_token_in_the_text_is_not_repeated(prober: Prober) -> None:
    bos = prober.model.tokenizer.bos_token

    written, plain_text = prober.probe(f"{bos}The whale sang."), prober.probe("The whale sang.")

    assert written.tokens == plain_text.tokens
    with pytest.raises(PromptError, match="only a start token"):
        prober.probe(bos)


@pytest.fixture(scope="module")
def prober(info: SAEInfo, model: LanguageModel) -> Prober:
    return Prober(info, model=model)


def test_every_activation_equals_the_plain_forward_and_dense_encode(prober: Prober, model: LanguageModel) -> None:
    result = prober.probe(TEXTS[0])
    ids = torch.tensor([[token.token_id for token in result.tokens]])
    with torch.inference_mode():
        hidden = model.module(ids, output_hidden_states=True).hidden_states[2][0]
        truth = dense_encode(load_sae(Path(prober.info.weights_path)), hidden)
    for position, token in enumerate(result.tokens):
        if token.is_special:
            assert token.feature_indexes == ()
            continue
        found = dict(zip(token.feature_indexes, token.activations, strict=True))
        expected = {i: v for i, v in enumerate(truth[position].tolist()) if v > 0}
        assert found == pytest.approx(expected, rel=1e-3)
        assert list(found.values()) == sorted(found.values(), reverse=True)


def test_a_probe_of_an_examples_own_text_gives_its_activations(prober: Prober, info: SAEInfo, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number, text in enumerate(TEXTS):
        (texts / f"{number}.txt").write_text(text, encoding="utf-8")
    config = IndexConfig(slug="random", corpus=(str(texts),), tokens=None, context_size=512)
    records = build_index(info, config, home=tmp_path / "home")
    assert records is not None
    pieces = vocabulary(prober.model.tokenizer).tokens
    contexts = {c.context_id: np.frombuffer(c.token_ids, dtype="<u4").tolist() for c in records.contexts}
    list(records.features)
    compared = 0
    for example in plain(records.examples)[::7]:
        ids = contexts[example.context_id]
        result = prober.probe("".join(display_strings([pieces[i] for i in ids[1:]])))
        assert [token.token_id for token in result.tokens] == ids
        on_tokens = [dict(zip(t.feature_indexes, t.activations, strict=True)) for t in result.tokens]
        active = {at: acts[example.feature_index] for at, acts in enumerate(on_tokens) if example.feature_index in acts}
        assert tuple(active) == example.positions
        assert list(active.values()) == pytest.approx(example.values, rel=1e-3)
        compared += 1
    assert compared > 20


def test_text_in_any_language_comes_back_as_itself(prober: Prober) -> None:
    result = prober.probe(NON_ASCII)
    assert "".join(token.token for token in result.tokens if not token.is_special) == NON_ASCII
    assert len(result.tokens[1].feature_indexes) > 0


@pytest.mark.parametrize("text", ["", "   ", "\n\t"], ids=["nothing", "spaces", "line ends"])
def test_an_empty_prompt_is_refused(prober: Prober, text: str) -> None:
    with pytest.raises(PromptError, match="empty"):
        prober.probe(text)


def test_a_prompt_over_the_limit_is_refused_with_both_numbers(prober: Prober) -> None:
    with pytest.raises(PromptTooLongError, match=r"has \d+ tokens, over the limit of 10;"):
        prober.probe(TEXTS[0] * 3, max_tokens=10)


def test_control_characters_and_nul_are_text_like_any_other(prober: Prober) -> None:
    result = prober.probe("a\x00b\x07\u202ec")
    assert "".join(token.token for token in result.tokens if not token.is_special) == "a\x00b\x07\u202ec"


def test_the_text_of_a_special_token_in_a_prompt_is_marked_special(prober: Prober) -> None:
    bos = prober.model.tokenizer.bos_token
    result = prober.probe(f"one {bos} two")
    inside = [token for token in result.tokens[1:] if token.token_id == prober.model.tokenizer.bos_token_id]
    assert all(token.is_special and token.feature_indexes == () for token in inside)


def test_half_a_character_is_refused(prober: Prober) -> None:
    with pytest.raises(PromptError, match="half of a character"):
        prober.probe("a\ud800b")


def test_special_tokens_have_features_where_that_is_asked_for(prober: Prober) -> None:
    plain, special = prober.probe("one two"), prober.probed(Prompt(text="one two", special=True))
    assert plain.tokens[0].feature_indexes == () and len(special.tokens[0].feature_indexes) > 0
    assert special.tokens[1:] == plain.tokens[1:]


def test_texts_run_together_give_the_numbers_of_each_alone(prober: Prober) -> None:
    texts = [*TEXTS[:6], "a", "", "ok " * 40]
    together = prober.probe_all([Prompt(text=text) for text in texts], max_tokens=200)
    for text, found in zip(texts, together, strict=True):
        if not text:
            assert isinstance(found, PromptError)
            continue
        assert isinstance(found, ProbeResult)
        same_numbers(found, prober.probe(text))


@pytest.mark.parametrize("hook", ["resid_post", "attn_out", "mlp_in", "resid_pre"])
@pytest.mark.parametrize("kind", CAUSAL_KINDS)
def test_a_text_that_is_typed_gives_the_numbers_of_a_fresh_one(kind: str, hook: str, tmp_path: Path) -> None:
    model = load_model(str(save_tiny_model(tmp_path / "model", kind)))
    sae = random_sae(model.info.d_model, 48, 6, seed=5)
    prober = Prober(save_sae(sae, tmp_path / "sae", model, layer=1, hook=hook, context_size=32), model=model)
    versions = ["The king", "The king looked", "The king looked for a house", "The whale", "", "The whale", "The wh"]
    for version in [v * n for v in versions if v for n in (1, 4)]:
        same_numbers(prober.probed(Prompt(text=version, session="mine")), prober.probe(version))


def test_only_tokens_behind_the_first_changed_one_are_run(prober: Prober) -> None:
    first = prober.probed(Prompt(text="The king looked for a house", session="mine"))
    assert first.n_computed == len(first.tokens)
    longer = prober.probed(Prompt(text="The king looked for a house by the sea", session="mine"))
    shared = sum(a.token_id == b.token_id for a, b in zip(first.tokens, longer.tokens, strict=False))
    assert longer.n_computed == len(longer.tokens) - shared < len(longer.tokens)
    assert prober.probed(Prompt(text="The king looked for a house by the sea", session="mine")).n_computed == 0
    assert prober.probed(Prompt(text="The king looked for a house", session="mine")).n_computed == 0
    assert prober.probed(Prompt(text="The king looked for a house", session="other")).n_computed == len(first.tokens)


def test_numbers_that_are_not_finite_are_an_error_of_that_text_alone(
    info: SAEInfo, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prober = Prober(info, model=load_model(str(tiny_llama)))
    bad = prober.model.tokenizer.encode("the whale", add_special_tokens=False)[-1]
    with torch.no_grad():
        prober.model.module.get_input_embeddings().weight[bad] = float("nan")
    fine, broken = prober.probe_all([Prompt(text="ok"), Prompt(text="the whale")])
    assert isinstance(fine, ProbeResult) and isinstance(broken, ModelError) and "not finite" in str(broken)
    with pytest.raises(ModelError, match="not finite"):
        prober.probed(Prompt(text="the whale", session="mine"))


def test_predictions_are_those_of_the_whole_model(prober: Prober, model: LanguageModel) -> None:
    found = prober.predict(TEXTS[0])
    tokens = prober.probe(TEXTS[0]).tokens
    ids = torch.tensor([[token.token_id for token in tokens]])
    with torch.inference_mode():
        log_probs = model.module(ids).logits[0].log_softmax(1)
    assert len(found.tokens) == len(tokens) and found.tokens[0].surprise is None
    pieces = vocabulary(model.tokenizer).tokens
    for at, token in enumerate(found.tokens):
        likeliest = log_probs[at].argmax().item()
        assert token.next_tokens[0] == display_strings([pieces[likeliest]])[0]
        assert token.probabilities[0] == pytest.approx(log_probs[at, likeliest].exp().item(), rel=1e-4)
        if at:
            bits = -log_probs[at - 1, tokens[at].token_id].item() / math.log(2)
            assert token.surprise == pytest.approx(bits, rel=1e-4)


def same_numbers(found: ProbeResult, expected: ProbeResult) -> None:
    """Within 1e-4, token by token."""
    assert [t.token for t in found.tokens] == [t.token for t in expected.tokens]
    for one, other in zip(found.tokens, expected.tokens, strict=True):
        acts = dict(zip(one.feature_indexes, one.activations, strict=True))
        assert acts == pytest.approx(dict(zip(other.feature_indexes, other.activations, strict=True)), abs=1e-4)
