"""Documents to contexts of fixed length, and what each token id stands for.

BOS and special tokens are explicit. Each context is `prefix + tokens + suffix`, where prefix and suffix are the special
tokens that the tokenizer adds by itself (BOS for most causal models, none for GPT-2, `[CLS]` and `[SEP]` for BERT),
unless `prepend_bos` overrides the prefix. Contexts never mix documents: a document's tail is a shorter context.
A BOS that stands in the text itself, as chat templates write it, is not repeated.
Only the tokens between prefix and suffix count as activations, and of these no special token that stands in the text;
padding never exists outside a batch.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_core.errors import CorpusError, ModelError
from sae_core.records import Document, Vocabulary

MIN_TAIL_TOKENS = 4  # a document's tail shorter than this is dropped, unless it is the whole document
_DOCUMENTS_PER_CALL = 64
_CHARACTERS_PER_PIECE = 200_000  # long documents are tokenised in pieces cut at line ends


@dataclass(frozen=True, slots=True)
class Framing:
    """The special token ids that stand before and after the text of every context, and all that there are."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    special_ids: frozenset[int] = frozenset()

    @property
    def n_special(self) -> int:
        return len(self.prefix) + len(self.suffix)


@dataclass(frozen=True, slots=True)
class TokenContext:
    """One context: its token ids with prefix and suffix, and the source of its document."""

    token_ids: np.ndarray  # (T,) int64
    source: str


def framing(tokenizer: Any, *, prepend_bos: bool | None = None) -> Framing:
    """What the tokenizer puts around a text; `prepend_bos` True or False overrides what stands before it."""
    bare = tokenizer.encode("a", add_special_tokens=False)
    framed = tokenizer.encode("a", add_special_tokens=True)
    start = next(i for i in range(len(framed)) if framed[i : i + len(bare)] == bare)
    prefix, suffix = tuple(framed[:start]), tuple(framed[start + len(bare) :])
    if prepend_bos is False:
        prefix = ()
    elif prepend_bos and not prefix:
        if tokenizer.bos_token_id is None:
            raise ModelError("This tokenizer has no BOS token; leave out --bos, or use a model that has one.")
        prefix = (tokenizer.bos_token_id,)
    return Framing(prefix, suffix, special_ids(tokenizer))


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of BOS, EOS and the like, and of every added token that the tokenizer marks as special."""
    added = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = frozenset(tokenizer.all_special_ids) | added
    framing_ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    if tokenizer.unk_token_id in framing_ids:  # GPT-2 has one token for all of them
        return special
    return special - {tokenizer.unk_token_id}  # an unknown word is text


def iter_contexts(
    documents: Iterable[Document], tokenizer: Any, *, context_size: int, frame: Framing
) -> Iterator[TokenContext]:
    """Contexts of at most `context_size` tokens (prefix and suffix included), in the order of the documents."""
    body = context_size - frame.n_special
    if body < 1:
        raise CorpusError(f"A context of {context_size} tokens leaves no room beside {frame.n_special} special tokens.")
    pieces = (piece for document in documents for piece in _pieces(_as_text(document, tokenizer)))
    went_on = False
    while batch := list(itertools.islice(pieces, _DOCUMENTS_PER_CALL)):
        encoded = tokenizer([text for text, _, _ in batch], add_special_tokens=False, verbose=False)["input_ids"]
        for ids, (_, source, goes_on) in zip(encoded, batch, strict=True):
            if not went_on:
                ids = without_prefix(ids, frame)
            went_on = goes_on
            for start in range(0, len(ids), body):
                chunk = ids[start : start + body]
                if len(chunk) >= min(MIN_TAIL_TOKENS, body) or start == 0 or goes_on:
                    yield TokenContext(np.array([*frame.prefix, *chunk, *frame.suffix], dtype=np.int64), source)


def without_prefix(ids: list[int], frame: Framing) -> list[int]:
    """The ids of a text without a BOS that is written in it, as chat templates do: every context starts with one."""
    n = len(frame.prefix)
    return ids[n:] if n and tuple(ids[:n]) == frame.prefix else ids


def _as_text(document: Document, tokenizer: Any) -> Document:
    """A conversation as the model's chat template writes it, special tokens included; a text as it is."""
    if not document.messages:
        return document
    messages = [{"role": role, "content": content} for role, content in document.messages]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception as error:  # whatever the template's own rules raise
        if not getattr(tokenizer, "chat_template", None):
            raise CorpusError(
                f"{document.source} is a conversation and this model's tokenizer has no chat template: use the "
                "model's instruction-tuned version, or name a field that holds text with --text-field."
            ) from error
        said = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise CorpusError(
            f"The model's chat template refuses the conversation {document.source} ({said}); leave it out."
        ) from error
    return Document(text=text, source=document.source)


def shuffled(contexts: Iterable[TokenContext], *, seed: int, block: int = 16_384) -> Iterator[TokenContext]:
    """The contexts, each block of `block` of them in random order; the same order for the same seed."""
    generator = np.random.default_rng(seed)
    iterator = iter(contexts)
    while held := list(itertools.islice(iterator, block)):
        for position in generator.permutation(len(held)):
            yield held[position]


def check_corpus(contexts: Iterable[TokenContext], *, context_size: int, frame: Framing) -> None:
    """Raises CorpusError unless the corpus has at least one context's worth of tokens; reads no more than that."""
    wanted = context_size - frame.n_special
    n_tokens = 0
    for context in contexts:
        n_tokens += len(context.token_ids) - frame.n_special
        if n_tokens >= wanted:
            return
    if n_tokens == 0:
        raise CorpusError("The corpus holds no text; give files with text in them.")
    raise CorpusError(
        f"The corpus has {n_tokens} tokens, fewer than one context of {context_size}; "
        "give more text, or lower --context-size."
    )


def padded(contexts: list[TokenContext], *, pad_id: int, frame: Framing) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A batch: ids (B, T) int64, attention mask (B, T) bool, and which tokens count as activations (B, T) bool."""
    longest = max(len(context.token_ids) for context in contexts)
    ids = np.full((len(contexts), longest), pad_id, dtype=np.int64)
    attention = np.zeros((len(contexts), longest), dtype=bool)
    counted = np.zeros((len(contexts), longest), dtype=bool)
    for row, context in enumerate(contexts):
        length = len(context.token_ids)
        ids[row, :length] = context.token_ids
        attention[row, :length] = True
        counted[row, len(frame.prefix) : length - len(frame.suffix)] = True
    if frame.special_ids:
        counted &= ~np.isin(ids, list(frame.special_ids))
    return ids, attention, counted


def fingerprint(contexts: Iterable[TokenContext]) -> str:
    """SHA-256 over all token ids and context ends: equal exactly if the contexts are equal."""
    digest = hashlib.sha256()
    for context in contexts:
        digest.update(context.token_ids.astype("<u4").tobytes())
        digest.update(b"\xff\xff\xff\xff")
    return digest.hexdigest()


def vocabulary(tokenizer: Any) -> Vocabulary:
    """The raw bytes of every token id, for byte-level BPE, SentencePiece with byte fallback, and WordPiece."""
    size = max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)
    names = tokenizer.convert_ids_to_tokens(list(range(size)))
    special = special_ids(tokenizer)
    to_bytes = _decoder_of(tokenizer)
    literal = set(special)
    if to_bytes is not _sentencepiece_bytes:  # Gemma's runs of spaces, as "▁▁", are added tokens
        literal.update(tokenizer.added_tokens_decoder)
    return Vocabulary(
        tokens=tuple(
            to_bytes(name or "") if token_id not in literal else (name or "").encode()
            for token_id, name in enumerate(names)
        ),
        special_ids=special,
    )


def _pieces(document: Document) -> Iterator[tuple[str, str, bool]]:
    """Text and source of each piece, and whether more of the document follows."""
    text = document.text
    start = 0
    while start < len(text):
        end = start + _CHARACTERS_PER_PIECE
        if end < len(text):
            line_end = text.rfind("\n", start, end)
            end = line_end if line_end > start else end
        yield text[start:end], document.source, end < len(text)
        start = end


def _decoder_of(tokenizer: Any) -> Any:
    """The function that turns this tokenizer's spelling of a token into bytes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = str(getattr(backend, "decoder", None))
    if "ByteLevel" in decoder:
        return _byte_level_bytes
    if "WordPiece" in decoder:
        return lambda name: name[2:].encode() if name.startswith("##") else b" " + name.encode()
    return _sentencepiece_bytes


def _byte_level_alphabet() -> dict[str, int]:
    """Character to byte of byte-level BPE: printable Latin-1 bytes are themselves, the others 256, 257, … in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_level_alphabet()


def _byte_level_bytes(name: str) -> bytes:
    if all(character in _BYTE_OF for character in name):
        return bytes(_BYTE_OF[character] for character in name)
    return name.encode()


def _sentencepiece_bytes(name: str) -> bytes:
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        return bytes([int(name[3:5], 16)])
    return name.replace("\u2581", " ").encode()
