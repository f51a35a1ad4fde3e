"""Texts as vectors, against a plain forward of a tiny BERT, one text at a time."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from sae_core.embedding import BATCH, LONGEST, Embedder
from sae_core.errors import ModelError
from tests.tiny import TEXTS, save_tiny_model


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("embedding") / "bert", "bert")


@torch.no_grad()
def plain(folder: Path, text: str) -> torch.Tensor:
    """The mean over one text's tokens alone, of unit length."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    states = model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=LONGEST)).last_hidden_state[0]
    mean = states.mean(dim=0)
    return mean / mean.norm()


def test_a_vector_is_the_mean_over_the_texts_own_tokens_whatever_stands_beside_it(bert: Path) -> None:
    embedder = Embedder(str(bert))
    texts = [TEXTS[0], "A", TEXTS[17], "", "word " * 400]

    together = embedder.vectors(texts * (BATCH // 2))

    assert together.shape == (len(texts) * (BATCH // 2), 32)
    for number, text in enumerate(texts):
        torch.testing.assert_close(together[number], plain(bert, text), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together[number], together[number + len(texts)], atol=1e-5, rtol=1e-5)
    assert float((together[0] - together[1]).norm()) > 0.05


def test_half_precision_keeps_a_cosine_to_a_thousandth(bert: Path) -> None:
    embedder = Embedder(str(bert))

    found = embedder.embedded(TEXTS[:20])

    halves = np.stack([np.frombuffer(vector, "<f2") for vector in found.vectors]).astype(np.float32)
    exact = embedder.vectors(TEXTS[:20]).numpy()
    assert found.model == embedder.info and (found.model.width, len(found.model.revision)) == (32, 40)
    assert np.abs(halves @ halves.T - exact @ exact.T).max() < 1e-3
    assert embedder.embedded([]).vectors == ()


def test_a_causal_model_gives_what_stands_behind_its_final_norm(tiny_llama: Path) -> None:
    (vector,) = Embedder(str(tiny_llama)).vectors([TEXTS[0]])

    torch.testing.assert_close(vector, plain(tiny_llama, TEXTS[0]), atol=1e-5, rtol=1e-5)


def test_a_folder_is_remembered_by_its_whole_path(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bert.parent)

    assert Embedder("./bert").info.model_name == str(bert)


def test_what_is_no_model_is_one_sentence(tmp_path: Path) -> None:
    for name, said in ((str(tmp_path / "none"), "There is no model folder"), (str(tmp_path), "holds no config.json")):
        with pytest.raises(ModelError, match=re.escape(said)) as raised:
            Embedder(name)
        assert "\n" not in str(raised.value)
