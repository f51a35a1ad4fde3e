"""Tiny seeded language models with their tokenizers, made in code: what the tests load in place of the hub's.

`save_tiny_model(folder, kind)` writes what `save_pretrained` would: a model of one of `MODEL_KINDS` with random weights
(large enough that activations vary from token to token) and a tokenizer fitted on `TEXTS`. `tiny_tokenizer(kind)` is
the tokenizer alone. Weights and texts are seeded apart, so that a test can change one and keep the other.
"""

import functools
import json
import random
from pathlib import Path
from typing import Any

from sae_core.config import HOOKS

D_MODEL = 32
N_LAYERS = 3
CONTEXT_LIMIT = 512  # positions that the models know
TOKENIZER_KINDS = ("byte_bpe_bos", "byte_bpe", "sentencepiece", "wordpiece")
# The tokenizer that each kind of model has in the wild.
_TOKENIZER_OF = {
    "llama": "byte_bpe_bos",
    "llama3": "byte_bpe_bos",  # as Llama 3.2: embeddings tied, rotations scaled
    "gpt2": "byte_bpe",
    "gpt_neox": "byte_bpe",
    "gemma2": "sentencepiece",
    "gemma3": "sentencepiece",
    "gemma3_vision": "sentencepiece",  # the text model inside one that reads pictures, as from 4B on
    "qwen2": "byte_bpe",
    "qwen3": "byte_bpe",
    "mistral": "sentencepiece",
    "bert": "wordpiece",
}
MODEL_KINDS = tuple(_TOKENIZER_OF)
CAUSAL_KINDS = tuple(kind for kind in MODEL_KINDS if kind != "bert")
# Every hook point but what GPT-NeoX lacks, whose attention and MLP read the same vectors.
HOOKS_OF = dict.fromkeys(MODEL_KINDS, HOOKS) | {"gpt_neox": tuple(hook for hook in HOOKS if hook != "resid_mid")}
KINDS_WITH_HOOKS = [(kind, hook) for kind in MODEL_KINDS for hook in HOOKS_OF[kind]]
CAUSAL_KINDS_WITH_HOOKS = [(kind, hook) for kind, hook in KINDS_WITH_HOOKS if kind in CAUSAL_KINDS]
_WEIGHT_SEED = 7_000

_WRITTEN = [
    "The whale sang all night, and in the morning the sea was full of light.",
    "中文的句子也是文字。模型读到每一个字,都会想一想它的意思。",
    "Ein Bär läuft über die Brücke; es regnet, und niemand außer ihm hört den Fluss.",
    "Où est le café? Là-bas, près de la fenêtre où le garçon déçu attend Zoë.",
    "😀 laughing, 🐋 a whale, 👩‍👩‍👧 a family: emoji are several code points, and more bytes.",
    "def area(width: float, height: float) -> float:\n    return width * height\n",
    "for index, value in enumerate(values):\n    if value > threshold:\n        found.append((index, value))\n",
    "Прилетела птица и села на крышу старого дома.",
    "今日は良い天気ですね。海へ行きましょう。",
    "    indented by four spaces\n\tand by a tab\n\n\nthree line ends before this",
    "x = 3.14159; y = 2.71828; z = x ** 2 + y ** 2  # 1,000 and 2,000",
    "1. First\n2. Second\n3. Third\n",
    "naïve façade, coöperate, résumé, señor, smörgåsbord",
    "He said \"no\", she said 'yes', and the judge said: [both] {are} (right)!",
    "https://example.org/path?query=1&other=two#part",
    "مرحبا بالعالم",
    "ok",
    "A",
    "the the the the the the the the the the the the the the the the the the the the",
    "🏴‍☠️🏴‍☠️ ﷽ ½ ß ſ ﬁ é é",
]
_WHO = ["The king", "A young sailor", "My sister", "The old whale", "Every child in town", "The queen's cat", "Nobody"]
_DID = ["looked for", "sang about", "was afraid of", "remembered", "sold", "carried home", "dreamt of", "forgot"]
_WHAT = ["the golden key", "a red house by the sea", "seven ships", "the winter night", "an apple", "their own name"]
_WHY = [
    "because the door was open",
    "when the rain stopped",
    "while the others slept",
    "and said nothing",
    "for no reason",
]


def _told(seed: int, n_sentences: int) -> str:
    rng = random.Random(seed)
    return " ".join(
        f"{rng.choice(_WHO)} {rng.choice(_DID)} {rng.choice(_WHAT)} {rng.choice(_WHY)}." for _ in range(n_sentences)
    )


TEXTS: list[str] = [*_WRITTEN, *(_told(seed, 1 + seed % 7) for seed in range(60))]


@functools.cache
def tiny_tokenizer(kind: str) -> Any:
    """A fast tokenizer of one of `TOKENIZER_KINDS`; the same object every time, so leave its settings alone."""
    return {
        "byte_bpe_bos": lambda: _byte_level(bos=True),
        "byte_bpe": lambda: _byte_level(bos=False),
        "sentencepiece": _sentencepiece,
        "wordpiece": _wordpiece,
    }[kind]()


def save_tiny_model(folder: Path, kind: str = "llama", *, seed: int = 0) -> Path:
    """Writes a model of one of `MODEL_KINDS` and its tokenizer into `folder`, and returns the folder.

    Another `seed` gives other weights, never another tokenizer.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = tiny_tokenizer(_TOKENIZER_OF[kind])
    model = _new_model(kind, tokenizer, seed=seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _new_model(kind: str, tokenizer: Any, *, seed: int) -> Any:
    import torch
    import transformers

    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": D_MODEL,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 2 * D_MODEL,
        "max_position_embeddings": CONTEXT_LIMIT,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    grouped = {"num_key_value_heads": 2, "head_dim": 8}
    if kind in ("llama", "llama3"):
        scaled = {
            "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
        }  # fmt: skip
        own = {"tie_word_embeddings": True, "rope_scaling": scaled} if kind == "llama3" else {}
        model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, **grouped, **own))
    elif kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=len(tokenizer), n_embd=D_MODEL, n_layer=N_LAYERS, n_head=4, n_positions=CONTEXT_LIMIT,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
    elif kind == "gpt_neox":
        model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**shape))
    elif kind == "gemma2":
        config = transformers.Gemma2Config(**shape, **grouped, query_pre_attn_scalar=8, sliding_window=16)
        model = transformers.Gemma2ForCausalLM(config)
    elif kind in ("gemma3", "gemma3_vision"):
        windows = ["sliding_attention", "full_attention", "sliding_attention"]
        text = shape | grouped | {"query_pre_attn_scalar": 8, "sliding_window": 16, "layer_types": windows}
        model = _gemma3(text) if kind == "gemma3" else _gemma3_with_vision(text)
    elif kind == "qwen2":
        model = transformers.Qwen2ForCausalLM(
            transformers.Qwen2Config(**shape, num_key_value_heads=2, tie_word_embeddings=True)
        )
    elif kind == "qwen3":
        model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**shape, **grouped))
    elif kind == "mistral":
        model = transformers.MistralForCausalLM(transformers.MistralConfig(**shape, **grouped, sliding_window=16))
    else:
        model = transformers.BertForMaskedLM(transformers.BertConfig(**shape))
    generator = torch.Generator().manual_seed(_WEIGHT_SEED + seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(0.15 * noise)
            else:  # biases around 0, gains of norms around what they start from
                parameter.add_(0.2 * noise)
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):  # else attention's averages drown what tells tokens apart
                module.weight.mul_(4)
    return model


def _gemma3(text: dict[str, Any]) -> Any:
    import transformers

    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**text))


def _gemma3_with_vision(text: dict[str, Any]) -> Any:
    """As many blocks in the part that reads pictures as in the language model."""
    import transformers

    vision = {
        "hidden_size": 16, "num_hidden_layers": N_LAYERS, "num_attention_heads": 2, "intermediate_size": 32,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return transformers.Gemma3ForConditionalGeneration(config)


def _fast(backend: Any, **special: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=CONTEXT_LIMIT, **special)


def _byte_level(*, bos: bool) -> Any:
    """As the demo model has it, with BOS; as GPT-2 has it, `<|endoftext|>` named BOS but never added, without."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    bos_token, eos_token = ("<|bos|>", "<|eos|>") if bos else ("<|endoftext|>", "<|endoftext|>")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=sorted({bos_token, eos_token}),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos_token} $A", special_tokens=[(bos_token, backend.token_to_id(bos_token))]
        )
    return _fast(backend, bos_token=bos_token, eos_token=eos_token)


def _sentencepiece() -> Any:
    """As Llama 2, Mistral and Gemma have it: "▁" for a space, byte tokens for rare characters, BOS added, padding."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    fitted = Tokenizer(models.BPE())
    fitted.normalizer = normalizers.Replace(" ", "▁")
    fitted.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    fitted.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=400, limit_alphabet=80, show_progress=False))
    model = json.loads(fitted.to_str())["model"]
    names = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(model["vocab"], key=model["vocab"].get)]
    backend = Tokenizer(
        models.BPE(
            vocab={name: token_id for token_id, name in enumerate(names)},
            merges=[tuple(merge) for merge in model["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1)]
    )
    backend.add_special_tokens(special)
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return _fast(backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")


def _wordpiece() -> Any:
    """As a cased BERT has it: `[CLS]` before and `[SEP]` after, `##` inside a word, no BOS."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    )
    return _fast(
        backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    )
