"""The shuffled stream of activations."""

import itertools
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from sae_core.activations import ActivationStream, counted_activations
from sae_core.errors import CorpusError
from sae_core.model import LanguageModel, load_model
from sae_core.records import Document
from sae_core.tokens import TokenContext, framing, iter_contexts
from tests.tiny import TEXTS

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> LanguageModel:
    return load_model(str(tiny_llama))


def contexts_of(model: LanguageModel, *, size: int = 24) -> list[TokenContext]:
    frame = framing(model.tokenizer)
    documents = [Document(text=text, source=str(number)) for number, text in enumerate(TEXTS)]
    return list(iter_contexts(documents, model.tokenizer, context_size=size, frame=frame))


def stream_of(
    model: LanguageModel, contexts: Iterable[TokenContext], *, skip: int = 0, seed: int = 0
) -> ActivationStream:
    held = list(contexts)
    return ActivationStream(
        model,
        lambda epoch: held,
        hook_name=HOOK,
        frame=framing(model.tokenizer),
        batch_tokens=64,
        buffer_tokens=512,
        seed=seed,
        skip_contexts=skip,
    )


def rows_as_set(rows: torch.Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in rows.mul(1e3).round().tolist()}


def test_activations_are_those_of_the_text_tokens_one_context_at_a_time(model: LanguageModel) -> None:
    contexts = contexts_of(model)[:9]
    frame = framing(model.tokenizer)
    together = counted_activations(model, contexts, hook_name=HOOK, frame=frame)
    alone = []
    for context in contexts:
        ids = torch.from_numpy(context.token_ids).unsqueeze(0)
        acts = model.activations(ids, torch.ones_like(ids, dtype=torch.bool), HOOK)[0]
        alone.append(acts[1:])  # without BOS
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_the_first_buffer_holds_the_first_contexts_activations_in_another_order(model: LanguageModel) -> None:
    contexts = contexts_of(model)
    batches = list(itertools.islice(stream_of(model, contexts), 8))
    assert all(batch.shape == (64, model.info.d_model) for batch in batches)
    served = torch.cat(batches)
    expected = counted_activations(model, contexts, hook_name=HOOK, frame=framing(model.tokenizer))[:512]
    assert rows_as_set(served) <= rows_as_set(expected)
    assert len(rows_as_set(served)) == len(rows_as_set(expected))
    assert not torch.equal(served, expected)


def test_the_same_seed_gives_the_same_batches_and_another_seed_others(model: LanguageModel) -> None:
    contexts = contexts_of(model)
    first, again, other = (
        torch.cat(list(itertools.islice(stream_of(model, contexts, seed=seed), 4))) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_corpus_that_ends_is_read_again(model: LanguageModel) -> None:
    contexts = contexts_of(model)[:3]
    epochs: list[int] = []

    def of_epoch(epoch: int) -> list[TokenContext]:
        epochs.append(epoch)
        return contexts

    stream = ActivationStream(
        model, of_epoch, hook_name=HOOK, frame=framing(model.tokenizer), batch_tokens=32, buffer_tokens=256, seed=0
    )
    list(itertools.islice(stream, 8))
    assert epochs[:3] == [0, 1, 2]


def test_skipping_contexts_goes_on_where_they_end(model: LanguageModel) -> None:
    contexts = contexts_of(model)
    skipped = next(iter(stream_of(model, contexts, skip=5)))
    rest = counted_activations(model, contexts[5:], hook_name=HOOK, frame=framing(model.tokenizer))
    assert rows_as_set(skipped) <= rows_as_set(rest)
    assert not rows_as_set(skipped) <= rows_as_set(rest[256:])


def test_an_empty_corpus_is_an_error_not_an_endless_loop(model: LanguageModel) -> None:
    with pytest.raises(CorpusError):
        next(iter(stream_of(model, [])))
