"""Probing gives exactly what the index stored, on any text, within its limits."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sae_core.config import IndexConfig
from sae_core.errors import PromptError, PromptTooLongError
from sae_core.index import build_index
from sae_core.model import LanguageModel, load_model
from sae_core.probe import Prober
from sae_core.records import SAEInfo
from sae_core.sae import load_sae
from sae_core.tokens import vocabulary
from sae_core.tokens_text import display_strings
from tests.packed import plain
from tests.planted import dense_encode, random_sae, save_sae
from tests.tiny import TEXTS

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

    assert [t.token_id for t in written.tokens] == [t.token_id for t in plain_text.tokens]
    assert written.features == plain_text.features
    with pytest.raises(PromptError, match="only a start token"):
        prober.probe(bos)


@pytest.fixture(scope="module")
def prober(info: SAEInfo, model: LanguageModel) -> Prober:
    return Prober(info, model=model)


def test_every_activation_equals_the_plain_forward_and_dense_encode(prober: Prober, model: LanguageModel) -> None:
    result = prober.probe(TEXTS[0], top_k=6)
    ids = torch.tensor([[token.token_id for token in result.tokens]])
    with torch.inference_mode():
        hidden = model.module(ids, output_hidden_states=True).hidden_states[2][0]
        truth = dense_encode(load_sae(Path(prober.info.weights_path)), hidden)
    for position, token in enumerate(result.tokens):
        if token.is_special:
            assert token.features == ()
            continue
        found = {f.feature_index: f.activation for f in token.features}
        expected = {i: v for i, v in enumerate(truth[position].tolist()) if v > 0}
        assert found == pytest.approx(expected, rel=1e-3)
        assert list(found.values()) == sorted(found.values(), reverse=True)


def test_features_of_the_text_are_the_maxima_over_its_tokens(prober: Prober) -> None:
    result = prober.probe(TEXTS[1], top_k=6)
    for feature in result.features:
        per_token = [
            next((f.activation for f in token.features if f.feature_index == feature.feature_index), 0.0)
            for token in result.tokens
        ]
        assert list(feature.on_every_token(len(result.tokens))) == per_token
        assert min(feature.activations) > 0
        assert feature.max_activation == max(per_token) == per_token[feature.max_position]
    maxima = [feature.max_activation for feature in result.features]
    assert maxima == sorted(maxima, reverse=True)


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
        feature = next(f for f in result.features if f.feature_index == example.feature_index)
        assert feature.positions == example.positions
        assert list(feature.activations) == pytest.approx(example.values, rel=1e-3)
        compared += 1
    assert compared > 20


def test_text_in_any_language_comes_back_as_itself(prober: Prober) -> None:
    result = prober.probe(NON_ASCII)
    assert "".join(token.token for token in result.tokens if not token.is_special) == NON_ASCII
    assert len(result.tokens[1].features) > 0


def test_top_k_limits_what_is_given_per_token_but_not_per_text(prober: Prober) -> None:
    few, all_of_them = prober.probe(TEXTS[0], top_k=2), prober.probe(TEXTS[0], top_k=6)
    assert max(len(token.features) for token in few.tokens) == 2
    assert few.features == all_of_them.features


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
    assert all(token.is_special and token.features == () for token in inside)


def test_half_a_character_is_refused(prober: Prober) -> None:
    with pytest.raises(PromptError, match="half of a character"):
        prober.probe("a\ud800b")
