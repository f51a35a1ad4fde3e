"""Contexts on disk against the plain list."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from sae_core import context_file
from sae_core.context_file import ContextFile, text_keys
from sae_core.tokens import TokenContext


def contexts_of(n: int, *, seed: int = 0, n_tokens: int = 5) -> list[TokenContext]:
    """Short contexts of few different tokens, so that many places read the same."""
    rng = np.random.default_rng(seed)
    return [
        TokenContext(rng.integers(n_tokens, size=rng.integers(1, 30)).astype(np.int64), f"document {i // 3}")
        for i in range(n)
    ]


def around(context: TokenContext, position: int) -> tuple[int, ...]:
    padded = [-1] * 8 + context.token_ids.tolist() + [-1]
    return tuple(padded[position : position + 10])


@pytest.fixture(params=[1, 4, 4096], ids=["blocks-of-1", "blocks-of-4", "one-block"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_file, "_BLOCK_CONTEXTS", request.param)


def test_contexts_come_back(tmp_path: Path) -> None:
    contexts = contexts_of(50)
    on_disk = ContextFile(iter(contexts), folder=tmp_path / "new")
    assert len(on_disk) == 50 and on_disk.n_documents == 17
    for mine, theirs in zip(on_disk, contexts, strict=True):
        assert mine.token_ids.tolist() == theirs.token_ids.tolist() and mine.source == theirs.source
    assert on_disk[49].token_ids.dtype == np.int64
    assert list((tmp_path / "new").iterdir()) == []  # nothing to clean up


def test_none_are_none(tmp_path: Path) -> None:
    empty = ContextFile([], folder=tmp_path)
    assert len(empty) == 0 and list(empty) == []
    assert empty.copies(np.zeros(0, np.uint64)).tolist() == []
    assert empty.fingerprint() == hashlib.sha256().hexdigest()


@pytest.mark.usefixtures("blocks")
def test_fingerprint_is_of_the_tokens_and_where_contexts_end(tmp_path: Path) -> None:
    contexts = contexts_of(50)
    digest = hashlib.sha256()
    for context in contexts[:20]:
        digest.update(context.token_ids.astype("<u4").tobytes() + b"\xff\xff\xff\xff")
    assert ContextFile(contexts, folder=tmp_path).fingerprint(20) == digest.hexdigest()
    assert ContextFile(contexts[:20], folder=tmp_path).fingerprint() == digest.hexdigest()
    moved = [TokenContext(np.arange(3), "a"), TokenContext(np.arange(3, 5), "a")]
    other = [TokenContext(np.arange(2), "a"), TokenContext(np.arange(2, 5), "a")]
    assert ContextFile(moved, folder=tmp_path).fingerprint() != ContextFile(other, folder=tmp_path).fingerprint()


@pytest.mark.usefixtures("blocks")
def test_copies_are_the_places_that_read_the_same(tmp_path: Path) -> None:
    contexts = contexts_of(60, n_tokens=2)
    keys = text_keys(contexts)
    texts = [around(context, position) for context in contexts for position in range(len(context.token_ids))]
    assert len(set(keys.tolist())) == len(set(texts)) < len(texts)
    counts = ContextFile(contexts, folder=tmp_path).copies(keys)
    assert counts.tolist() == [texts.count(text) for text in texts]


def test_a_key_does_not_depend_on_the_neighbours_of_a_context() -> None:
    contexts = contexts_of(9)
    alone = np.concatenate([text_keys([context]) for context in contexts])
    assert text_keys(contexts).tolist() == alone.tolist()


def test_tokens_at_places_and_outside(tmp_path: Path) -> None:
    contexts = contexts_of(20, n_tokens=1000)
    on_disk = ContextFile(contexts, folder=tmp_path)
    places = [(c, p) for c in range(20) for p in range(-2, len(contexts[c].token_ids) + 2)]
    numbers, positions = (np.array(column) for column in zip(*places, strict=True))
    expected = [int(contexts[c].token_ids[p]) if 0 <= p < len(contexts[c].token_ids) else -1 for c, p in places]
    assert on_disk.token_ids_at(numbers, positions).tolist() == expected
