"""The demo model's tokenizer and its training stream: documents to one long row of token ids, made once and kept."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sae_core.demo_lm.text import SourceText, gather_text, installed_versions

BOS_TOKEN = "<|bos|>"
EOS_TOKEN = "<|eos|>"
VOCAB_SIZE = 6144
MAX_TOKENS = 1024
PROSE_EPOCHS = 2
_SAMPLE_CHARACTERS = 40_000_000  # of training text that the tokenizer is fitted on
# Newlines take the indentation that follows; a word takes the one sign or space before it; digits go by threes.
_PRE_TOKEN_PATTERN = r"\n+[ \t]*|[^\s\p{L}\p{N}]?\p{L}+| \p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that training reads."""

    tokenizer: Any
    stream: np.ndarray  # (n_tokens,) uint16, documents in random order, each between BOS and EOS
    held_out: list[SourceText]
    facts: dict[str, object]  # about the data, for the card


def train_tokenizer(texts: list[str], *, vocab_size: int = VOCAB_SIZE) -> Any:
    """A byte-level BPE that adds BOS to everything it encodes."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PRE_TOKEN_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS_TOKEN, EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS_TOKEN} $A", special_tokens=[(BOS_TOKEN, bpe.token_to_id(BOS_TOKEN))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS_TOKEN, eos_token=EOS_TOKEN, model_max_length=MAX_TOKENS
    )


def prepare(work: Path, *, seed: int) -> Prepared:
    """Gathers the text; fits the tokenizer and tokenises, unless `work` holds the result already."""
    work.mkdir(parents=True, exist_ok=True)
    documents = list(gather_text())
    if not (work / "data.json").exists():
        training = [document for document in documents if not document.is_held_out]
        random.Random(seed).shuffle(training)
        _tokenise(training, work, seed=seed)
    return Prepared(
        tokenizer=PreTrainedTokenizerFast.from_pretrained(work / "tokenizer"),
        stream=np.load(work / "stream.npy", mmap_mode="r"),
        held_out=[document for document in documents if document.is_held_out],
        facts=json.loads((work / "data.json").read_text()),
    )


def _tokenise(training: list[SourceText], work: Path, *, seed: int) -> None:
    sample: list[str] = []
    n_characters = 0
    for document in training:
        sample.append(document.text)
        n_characters += len(document.text)
        if n_characters > _SAMPLE_CHARACTERS:
            break
    tokenizer = train_tokenizer(sample)
    tokenizer.save_pretrained(work / "tokenizer")
    repeated = [document for document in training for _ in range(PROSE_EPOCHS if document.is_prose else 1)]
    random.Random(seed + 1).shuffle(repeated)
    rows = []
    for start in range(0, len(repeated), 256):
        texts = [document.text for document in repeated[start : start + 256]]
        encoded = tokenizer(texts, verbose=False)["input_ids"]
        rows += [np.array([*ids, tokenizer.eos_token_id], dtype=np.uint16) for ids in encoded]
    stream = np.concatenate(rows)
    np.save(work / "stream.npy", stream)
    facts = {
        "n_documents": len(training),
        "code_bytes": sum(len(document.text.encode()) for document in training if not document.is_prose),
        "prose_bytes": sum(len(document.text.encode()) for document in training if document.is_prose),
        "prose_epochs": PROSE_EPOCHS,
        "stream_tokens": len(stream),
        "versions": installed_versions(),
    }
    (work / "data.json").write_text(json.dumps(facts, indent=2))
    print(f"{len(stream):,} tokens in the stream", flush=True)
