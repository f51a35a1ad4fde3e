import copy
import itertools
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest

from sae_core import tokens
from sae_core.errors import CorpusError, ModelError
from sae_core.records import Document
from sae_core.tokens import (
    MIN_TAIL_TOKENS,
    Framing,
    TokenContext,
    fingerprint,
    framing,
    iter_contexts,
    padded,
    shuffled,
    vocabulary,
)
from tests.tiny import TEXTS, TOKENIZER_KINDS, tiny_tokenizer

Refuses = Callable[..., AbstractContextManager[None]]
DOCUMENTS = [Document(text=text, source=f"text {number}") for number, text in enumerate(TEXTS)]
ALPHABET = "aZ é ß 中文語 😀🐋👩‍👩‍👧 \n\t ½﷽ \U0010ffff \x00 ▁"


@pytest.fixture(params=TOKENIZER_KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return tiny_tokenizer(request.param)


def context(*token_ids: int, source: str = "s") -> TokenContext:
    return TokenContext(np.array(token_ids, dtype=np.int64), source)


def contexts_of(texts: list[str], tokenizer: Any, *, context_size: int, frame: Framing) -> list[TokenContext]:
    documents = [Document(text=text, source=str(number)) for number, text in enumerate(texts)]
    return list(iter_contexts(documents, tokenizer, context_size=context_size, frame=frame))


def body(found: TokenContext, frame: Framing) -> list[int]:
    ids = found.token_ids.tolist()
    return ids[len(frame.prefix) : len(ids) - len(frame.suffix)]


def plain_ids(text: str, tokenizer: Any) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


# Framing


@pytest.mark.parametrize(
    ("kind", "prepend_bos", "prefix", "suffix"),
    [
        ("byte_bpe_bos", None, ["<|bos|>"], []),
        ("byte_bpe_bos", True, ["<|bos|>"], []),
        ("byte_bpe_bos", False, [], []),
        ("byte_bpe", None, [], []),
        ("byte_bpe", True, ["<|endoftext|>"], []),
        ("byte_bpe", False, [], []),
        ("sentencepiece", None, ["<bos>"], []),
        ("sentencepiece", True, ["<bos>"], []),
        ("sentencepiece", False, [], []),
        ("wordpiece", None, ["[CLS]"], ["[SEP]"]),
        ("wordpiece", True, ["[CLS]"], ["[SEP]"]),
        ("wordpiece", False, [], ["[SEP]"]),
    ],
)
def test_the_frame_is_what_the_tokenizer_adds_unless_bos_is_overridden(
    kind: str, prepend_bos: bool | None, prefix: list[str], suffix: list[str]
) -> None:
    tokenizer = tiny_tokenizer(kind)

    frame = framing(tokenizer, prepend_bos=prepend_bos)

    assert tokenizer.convert_ids_to_tokens(list(frame.prefix)) == prefix
    assert tokenizer.convert_ids_to_tokens(list(frame.suffix)) == suffix
    assert frame.n_special == len(prefix) + len(suffix)


def test_asking_for_bos_of_a_tokenizer_that_has_none_is_refused(refuses: Refuses) -> None:
    from transformers import PreTrainedTokenizerFast

    nameless = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer("byte_bpe").backend_tokenizer)

    assert framing(nameless) == framing(nameless, prepend_bos=False)
    assert framing(nameless).n_special == 0
    with refuses(ModelError, "no BOS token"):
        framing(nameless, prepend_bos=True)


# Contexts


@pytest.mark.parametrize("context_size", [3, 8, 64, 5000])
def test_the_contexts_of_a_document_hold_its_plain_tokens_in_order(tokenizer: Any, context_size: int) -> None:
    frame = framing(tokenizer)

    found = list(iter_contexts(DOCUMENTS, tokenizer, context_size=context_size, frame=frame))

    by_source = {source: list(group) for source, group in itertools.groupby(found, key=lambda entry: entry.source)}
    assert len(by_source) == len(DOCUMENTS)  # no context of one document stands between those of another
    for document in DOCUMENTS:
        bodies = [body(entry, frame) for entry in by_source[document.source]]
        ids = plain_ids(document.text, tokenizer)
        joined = [token_id for part in bodies for token_id in part]
        assert joined == ids[: len(joined)]
        assert len(ids) - len(joined) < MIN_TAIL_TOKENS
        assert all(len(part) == context_size - frame.n_special for part in bodies[:-1])


@pytest.mark.parametrize("prepend_bos", [None, True, False])
def test_every_context_stands_in_its_frame_and_is_never_longer_than_asked(
    tokenizer: Any, prepend_bos: bool | None
) -> None:
    frame = framing(tokenizer, prepend_bos=prepend_bos)

    found = list(iter_contexts(DOCUMENTS, tokenizer, context_size=16, frame=frame))

    for entry in found:
        ids = entry.token_ids.tolist()
        assert ids == [*frame.prefix, *body(entry, frame), *frame.suffix]
        assert frame.n_special < len(ids) <= 16
        assert entry.token_ids.dtype == np.int64
    assert max(len(entry.token_ids) for entry in found) == 16


@pytest.mark.parametrize(
    ("n_tokens", "expected"),
    [(1, [1]), (3, [3]), (10, [10]), (11, [10]), (13, [10]), (14, [10, 4]), (20, [10, 10]), (23, [10, 10])],
)
def test_only_a_tail_too_short_to_mean_anything_is_dropped(n_tokens: int, expected: list[int]) -> None:
    tokenizer = tiny_tokenizer("byte_bpe")
    text = "z" * n_tokens  # no merge has two of them

    found = contexts_of([text], tokenizer, context_size=10, frame=Framing((), ()))

    assert len(plain_ids(text, tokenizer)) == n_tokens
    assert [len(entry.token_ids) for entry in found] == expected


def test_documents_without_text_have_no_contexts() -> None:
    tokenizer = tiny_tokenizer("byte_bpe_bos")

    found = contexts_of(["", "abc", "", ""], tokenizer, context_size=8, frame=framing(tokenizer))

    assert [entry.source for entry in found] == ["1"]


def test_how_many_documents_are_tokenised_at_a_time_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer("sentencepiece")
    frame = framing(tokenizer)
    together = contexts_of(TEXTS, tokenizer, context_size=20, frame=frame)

    monkeypatch.setattr(tokens, "_DOCUMENTS_PER_CALL", 3)
    in_threes = contexts_of(TEXTS, tokenizer, context_size=20, frame=frame)

    assert fingerprint(in_threes) == fingerprint(together)
    assert [entry.source for entry in in_threes] == [entry.source for entry in together]


@pytest.mark.parametrize("text", ["\n".join(TEXTS), "".join(TEXTS[:20]).replace("\n", " "), "\n" * 300])
@pytest.mark.parametrize("context_size", [6, 50])
def test_a_long_document_cut_into_pieces_loses_no_text(
    text: str, context_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny_tokenizer("byte_bpe")
    vocab = vocabulary(tokenizer)
    monkeypatch.setattr(tokens, "_CHARACTERS_PER_PIECE", 70)

    found = contexts_of([text], tokenizer, context_size=context_size, frame=Framing((), ()))

    joined = b"".join(vocab.tokens[token_id] for entry in found for token_id in entry.token_ids).decode()
    dropped = text.removeprefix(joined)
    assert text == joined + dropped
    assert len(plain_ids(dropped, tokenizer)) < MIN_TAIL_TOKENS


def test_pieces_end_at_line_ends_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer("byte_bpe")
    lines = [f"line number {number} of a long document\n" for number in range(60)]
    whole = contexts_of(["".join(lines)], tokenizer, context_size=10_000, frame=Framing((), ()))

    monkeypatch.setattr(tokens, "_CHARACTERS_PER_PIECE", 500)
    pieces = contexts_of(["".join(lines)], tokenizer, context_size=10_000, frame=Framing((), ()))

    assert len(whole) == 1 and len(pieces) > 3
    assert [token_id for entry in pieces for token_id in entry.token_ids] == whole[0].token_ids.tolist()


@pytest.mark.parametrize("kind", ["byte_bpe_bos", "wordpiece"])
def test_a_context_too_small_for_its_special_tokens_is_refused(kind: str, refuses: Refuses) -> None:
    tokenizer = tiny_tokenizer(kind)
    frame = framing(tokenizer)

    with refuses(CorpusError, f"{frame.n_special} tokens"):
        contexts_of(["some text"], tokenizer, context_size=frame.n_special, frame=frame)


# Order


def numbered(n: int) -> list[TokenContext]:
    return [context(number) for number in range(n)]


def numbers(found: Any) -> list[int]:
    return [int(entry.token_ids[0]) for entry in found]


def test_shuffling_keeps_every_context_and_depends_only_on_the_seed() -> None:
    first, again, other = (numbers(shuffled(numbered(200), seed=seed)) for seed in (1, 1, 2))

    assert sorted(first) == list(range(200))
    assert first == again
    assert first != other and first != sorted(first)


def test_shuffling_holds_no_more_than_a_block() -> None:
    order = numbers(shuffled(numbered(100), seed=0, block=30))

    assert [sorted(order[start : start + 30]) for start in (0, 30, 60, 90)] == [
        list(range(start, min(start + 30, 100))) for start in (0, 30, 60, 90)
    ]
    assert order[:30] != [number - 30 for number in order[30:60]]  # each block has an order of its own


# Batches


@pytest.mark.parametrize("frame", [Framing((), ()), Framing((1,), ()), Framing((1,), (2,)), Framing((1, 7), (2,))])
def test_padding_is_that_of_an_obvious_loop(frame: Framing) -> None:
    rng = random.Random(0)
    bodies = [[rng.randrange(10, 99) for _ in range(rng.randrange(1, 12))] for _ in range(9)]
    found = [context(*frame.prefix, *ids, *frame.suffix) for ids in bodies]

    ids, attention, counted = padded(found, pad_id=5, frame=frame)

    width = max(map(len, bodies)) + frame.n_special
    assert ids.shape == attention.shape == counted.shape == (9, width)
    for row, own in enumerate(bodies):
        padding = width - len(own) - frame.n_special
        assert ids[row].tolist() == [*frame.prefix, *own, *frame.suffix, *[5] * padding]
        assert attention[row].tolist() == [True] * (len(own) + frame.n_special) + [False] * padding
        assert counted[row].tolist() == (
            [False] * len(frame.prefix) + [True] * len(own) + [False] * (len(frame.suffix) + padding)
        )
    assert (ids.dtype, attention.dtype, counted.dtype) == (np.int64, bool, bool)


def test_the_frame_and_the_padding_never_count(tokenizer: Any) -> None:
    frame = framing(tokenizer)
    found = list(iter_contexts(DOCUMENTS, tokenizer, context_size=24, frame=frame))

    ids, _, counted = padded(found, pad_id=0, frame=frame)

    assert ids[counted].tolist() == [token_id for entry in found for token_id in body(entry, frame)]
    assert not set(ids[counted].tolist()) & set(tokenizer.all_special_ids)


def test_special_tokens_that_a_text_spells_out_never_count() -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer("byte_bpe_bos"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    frame = framing(tokenizer)
    spelt = tokenizer.convert_tokens_to_ids(["<|eos|>", "<|turn|>", "<|bos|>"])
    found = contexts_of(
        ["a<|eos|>bc<|turn|><|bos|>d", "longer than the first document"], tokenizer, context_size=64, frame=frame
    )

    ids, attention, counted = padded(found, pad_id=0, frame=frame)

    assert set(spelt) <= frame.special_ids
    assert tokenizer.convert_ids_to_tokens(ids[0][counted[0]].tolist()) == ["a", "b", "c", "d"]
    assert int(attention[0].sum()) == 4 + len(spelt) + 1  # they are still read by the model


# Fingerprint


def test_equal_contexts_have_equal_fingerprints_whatever_their_source_and_integer_type() -> None:
    found = [context(1, 2, 3), context(4, 5)]
    others = [TokenContext(entry.token_ids.astype(np.uint32), "elsewhere") for entry in found]

    assert fingerprint(found) == fingerprint(iter(others))
    assert len(fingerprint(found)) == 64


@pytest.mark.parametrize(
    "changed",
    [
        [context(1, 2, 3), context(4, 6)],
        [context(4, 5), context(1, 2, 3)],
        [context(1, 2), context(3, 4, 5)],
        [context(1, 2, 3, 4, 5)],
        [context(1, 2, 3), context(4, 5), context(0)],
        [context(1, 2, 3)],
        [context(2, 1, 3), context(4, 5)],
        [context(1, 2, 3), context(4, 5 + 256)],
        [],
    ],
    ids=["id", "order", "cut", "joined", "added", "removed", "swapped", "higher-byte", "empty"],
)
def test_any_change_changes_the_fingerprint(changed: list[TokenContext]) -> None:
    assert fingerprint(changed) != fingerprint([context(1, 2, 3), context(4, 5)])


# Vocabulary


def decoded(text: str, tokenizer: Any) -> str:
    tokens_of_all = vocabulary(tokenizer).tokens
    return b"".join(tokens_of_all[token_id] for token_id in plain_ids(text, tokenizer)).decode()


def random_texts(alphabet: str, n: int) -> list[str]:
    rng = random.Random(4)
    return ["".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 40))) for _ in range(n)]


@pytest.mark.parametrize("kind", ["byte_bpe_bos", "byte_bpe"])
def test_the_bytes_of_a_byte_level_tokenizer_join_to_any_text(kind: str) -> None:
    tokenizer = tiny_tokenizer(kind)

    for text in [*TEXTS, *random_texts(ALPHABET, 100)]:
        assert decoded(text, tokenizer) == text


def test_the_bytes_of_sentencepiece_join_to_any_text_after_the_dummy_space() -> None:
    tokenizer = tiny_tokenizer("sentencepiece")

    for text in [*TEXTS, *random_texts(ALPHABET.replace("▁", ""), 100)]:
        assert decoded(text, tokenizer).removeprefix(" ") == text.removeprefix(" ")


def test_the_bytes_of_wordpiece_join_to_the_text_up_to_spaces() -> None:
    tokenizer = tiny_tokenizer("wordpiece")
    known = "".join(sorted({character for text in TEXTS for character in text if character.isalnum()})) + "   \n"
    texts = [text for text in random_texts(known, 100) if tokenizer.unk_token_id not in plain_ids(text, tokenizer)]

    assert len(texts) > 5
    for text in [*texts, "The whale sang, all night (naïve)!"]:
        assert "".join(decoded(text, tokenizer).split()) == "".join(text.split())
    assert decoded("The whale remembered", tokenizer) == " The whale remembered"


def test_every_byte_has_a_token_where_text_may_be_anything() -> None:
    for kind in ("byte_bpe_bos", "byte_bpe", "sentencepiece"):
        assert {bytes([byte]) for byte in range(256)} <= set(vocabulary(tiny_tokenizer(kind)).tokens)


def test_the_vocabulary_has_every_id_and_names_the_special_ones(tokenizer: Any) -> None:
    found = vocabulary(tokenizer)

    assert len(found.tokens) == len(tokenizer)
    unknown = {tokenizer.unk_token_id} - {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert found.special_ids == frozenset(tokenizer.all_special_ids) - unknown  # an unknown word is text
    for token_id in found.special_ids:
        assert found.tokens[token_id].decode() == tokenizer.convert_ids_to_tokens(token_id)


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("byte_bpe", "  ", "  "),  # GPT-NeoX has runs of spaces as added tokens
        ("byte_bpe", "<thought>", "<thought>"),
        ("byte_bpe", "Ġ", "Ġ"),  # means itself, not the space that it stands for inside a token
        ("sentencepiece", "▁▁▁", "   "),  # Gemma has them spelt like this
        ("sentencepiece", "\n\n", "\n\n"),
        ("wordpiece", "##x", "##x"),
    ],
    ids=["spaces", "word", "spelt-like-a-byte", "metaspaces", "line-ends", "spelt-like-an-ending"],
)
def test_a_token_added_to_the_vocabulary_stands_for_its_text(kind: str, name: str, expected: str) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer(kind))
    tokenizer.add_tokens([name])

    found = vocabulary(tokenizer)

    assert found.tokens[tokenizer.convert_tokens_to_ids(name)].decode() == expected


def test_an_id_that_no_token_has_stands_for_no_text() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"a": 0, "b": 5}, unk_token="a"))
    backend.decoder = decoders.ByteLevel()

    found = vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend))

    assert found.tokens == (b"a", b"", b"", b"", b"", b"b")


# Conversations

LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'oracle' %}"
    "{{ raise_exception('There is no oracle here') }}{% endif %}"
    "<|start|>{{ message['role'] }}<|end|>\n\n{{ message['content'] | trim }}{{ eos_token }}{% endfor %}"
)
SAID = (("user", "Where is the café?"), ("assistant", " By the sea. "))


@pytest.fixture
def chatting() -> Any:
    """As Llama 3's: the template writes BOS, and roles between special tokens."""
    tokenizer = copy.deepcopy(tiny_tokenizer("byte_bpe_bos"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>"]})
    tokenizer.chat_template = LLAMA_3
    return tokenizer


def test_a_conversation_is_what_the_chat_template_makes_of_it_with_one_bos(chatting: Any) -> None:
    frame = framing(chatting)
    document = Document(text="", source="s", messages=SAID)
    messages = [{"role": role, "content": content} for role, content in SAID]
    templated = chatting.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert templated[0] == chatting.bos_token_id and templated.count(chatting.bos_token_id) == 1

    (found,) = iter_contexts([document], chatting, context_size=200, frame=frame)

    assert found.token_ids.tolist() == templated
    _, _, counted = padded([found], pad_id=0, frame=frame)
    kept = [token for token, counts in zip(templated, counted[0], strict=True) if counts]
    assert chatting.decode(kept) == "user\n\nWhere is the café?assistant\n\nBy the sea."


def test_a_long_conversation_starts_each_context_with_bos_and_loses_nothing(chatting: Any) -> None:
    frame = framing(chatting)
    document = Document(text="", source="s", messages=SAID * 20)
    text = chatting.apply_chat_template([{"role": r, "content": c} for r, c in SAID * 20], tokenize=False)

    found = list(iter_contexts([document], chatting, context_size=16, frame=frame))

    assert len(found) > 3 and all(context.token_ids[0] == chatting.bos_token_id for context in found)
    joined = [token for context in found for token in context.token_ids[1:].tolist()]
    assert joined == chatting.encode(text, add_special_tokens=False)[1 : len(joined) + 1]


def test_a_bos_in_a_plain_text_is_not_repeated_either(chatting: Any) -> None:
    frame = framing(chatting)
    texts = [f"{chatting.bos_token}The sea is red.", "The sea is red."]

    written, plain = contexts_of(texts, chatting, context_size=50, frame=frame)

    assert written.token_ids.tolist() == plain.token_ids.tolist()


@pytest.mark.parametrize(
    ("template", "messages", "words"),
    [
        (None, SAID, ["no chat template", "--text-field"]),
        (LLAMA_3, (("oracle", "So."),), ["There is no oracle here", "talk.jsonl:3", "leave it out"]),
    ],
)
def test_a_conversation_that_cannot_be_written_is_refused(
    template: str | None, messages: tuple[tuple[str, str], ...], words: list[str], chatting: Any, refuses: Refuses
) -> None:
    chatting.chat_template = template

    with refuses(CorpusError, *words):
        list(
            iter_contexts(
                [Document(text="", source="talk.jsonl:3", messages=messages)], chatting, context_size=50,
                frame=framing(chatting),
            )
        )  # fmt: skip
