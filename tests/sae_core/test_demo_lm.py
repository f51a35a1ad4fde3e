"""The model that ships: loads with plain transformers, is small, has learned, and its card is true."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_core.demo_lm import DEMO_LM_FOLDER
from sae_core.demo_lm.bpe import train_tokenizer
from sae_core.demo_lm.measure import measure
from sae_core.demo_lm.text import HELD_OUT_ONE_IN, SourceText, is_held_out
from sae_core.demo_lm.train import learning_rate_share, new_model, windows

FOLDER = DEMO_LM_FOLDER / "weights"


def test_it_is_a_llama_that_plain_transformers_loads_and_that_continues_python() -> None:
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    ids = tokenizer("import os\n\nclass Reader:\n    def __init__(", return_tensors="pt")["input_ids"]
    assert ids[0, 0] == tokenizer.bos_token_id
    after = tokenizer.decode(model(ids).logits[0, -1].argmax())
    assert after == "self"


def test_its_weights_are_at_most_16_mb() -> None:
    assert sum(path.stat().st_size for path in FOLDER.glob("*.safetensors")) <= 16_000_000


def test_its_card_states_bits_per_byte_under_the_bar_and_how_to_reproduce_it() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    stdlib = re.search(r"standard library files \|[^\n]*\*\*([0-9.]+)\*\* \| ([0-9.]+)", card)
    assert stdlib is not None
    assert float(stdlib[1]) <= 1.35
    assert "python -m sae_core.demo_lm.train --minutes" in card


def test_text_in_any_language_survives_its_tokenizer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    text = "naïve 中文 🙂\n\tdef f(x):\r\n        return x  # ok"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_bits_per_byte_of_a_model_that_knows_nothing_are_those_of_guessing() -> None:
    texts = ["def f(a, b):\n    return a + b\n" * 40, "Every word counts, and every byte. " * 60]
    tokenizer = train_tokenizer(texts, vocab_size=300)
    model = new_model(len(tokenizer), bos=tokenizer.bos_token_id, eos=tokenizer.eos_token_id)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    documents = [SourceText(str(i), t, is_prose=False, is_held_out=True, is_stdlib=True) for i, t in enumerate(texts)]
    result = measure("all", documents, model=model, tokenizer=tokenizer)
    n_tokens = sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts)
    guessing = n_tokens * torch.log2(torch.tensor(float(len(tokenizer)))).item() / sum(len(t.encode()) for t in texts)
    assert result.bits_per_byte == pytest.approx(guessing, rel=1e-3)
    assert result.xz_bits_per_byte < 1


def test_about_one_file_in_fifty_is_held_out_whatever_the_order() -> None:
    names = [f"stdlib/module{i}.py" for i in range(20_000)]
    share = sum(map(is_held_out, names)) / len(names)
    assert share == pytest.approx(1 / HELD_OUT_ONE_IN, rel=0.15)


def test_training_windows_start_with_bos_and_hold_the_stream() -> None:
    import numpy as np

    stream = np.arange(10, 1010, dtype=np.uint16)
    batch = next(windows(stream, size=16, bos=0, seed=3, batch=4))
    assert batch.shape == (4, 17)
    assert (batch[:, 0] == 0).all()
    assert (batch[:, 2:] - batch[:, 1:-1] == 1).all()


def test_the_learning_rate_rises_and_falls() -> None:
    shares = [learning_rate_share(p / 100) for p in range(101)]
    assert shares[0] == 0 == shares[-1]
    assert max(shares) == 1


def test_only_the_folder_is_needed(tmp_path: Path) -> None:
    expected = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    assert expected <= {path.name for path in FOLDER.iterdir()}
