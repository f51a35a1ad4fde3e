"""The shuffled stream of activations."""

import itertools
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_core import activations
from sae_core.activations import (
    Batch,
    FillingStopped,
    ModelFiller,
    Place,
    Watch,
    batches,
)
from sae_core.errors import CorpusError, TrainingError
from sae_core.loading import load_model
from sae_core.model import LanguageModel
from sae_core.records import Document
from sae_core.tokens import TokenContext, framing, iter_contexts
from tests.counted import counted_activations
from tests.tiny import TEXTS

HOOK = "blocks.1.hook_resid_post"
Stream = Callable[..., Iterator[Batch]]


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> LanguageModel:
    return load_model(str(tiny_llama))


@pytest.fixture
def stream_of(model: LanguageModel) -> Iterator[Stream]:
    """Batches of 64 from buffers of 512 rows; its thread ends with the test."""
    fillers = []

    def make(
        contexts: Iterable[TokenContext] | Callable[[int], Iterable[TokenContext]],
        *,
        hooks: tuple[str, ...] = (HOOK,),
        seed: int = 0,
        start: Place | None = None,
        watch: Watch | None = None,
        buffer_tokens: int = 512,
    ) -> Iterator[Batch]:
        held = contexts if callable(contexts) else list(contexts)
        of_epoch = held if callable(held) else lambda epoch: held
        filler = ModelFiller(
            model, of_epoch, hook_names=hooks, frame=framing(model.tokenizer), buffer_tokens=buffer_tokens
        )
        fillers.append(filler)
        return batches(filler, batch_tokens=64, seed=seed, start=start or Place(), watch=watch)

    yield make
    for filler in fillers:
        filler.close()


@pytest.fixture
def small_passes(monkeypatch: pytest.MonkeyPatch) -> int:
    """Forward passes of so many tokens, so that a buffer takes several."""
    monkeypatch.setitem(activations.FORWARD_TOKENS, "cpu", 128)
    return 128


def contexts_of(model: LanguageModel, *, size: int = 24) -> list[TokenContext]:
    frame = framing(model.tokenizer)
    documents = [Document(text=text, source=str(number)) for number, text in enumerate(TEXTS)]
    return list(iter_contexts(documents, model.tokenizer, context_size=size, frame=frame))


def acts_of(stream: Iterator[Batch], n: int, *, hook: str = HOOK) -> torch.Tensor:
    """The rows of the next n batches."""
    return torch.cat([batch.acts[hook] for batch in itertools.islice(stream, n)])


def rows_as_set(rows: torch.Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in rows.mul(1e3).round().tolist()}


# What is served


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


def test_the_first_buffer_holds_the_first_contexts_activations_in_another_order(
    model: LanguageModel, stream_of: Stream
) -> None:
    contexts = contexts_of(model)

    served = list(itertools.islice(stream_of(contexts), 8))

    assert all(batch.acts[HOOK].shape == (64, model.info.d_model) for batch in served)
    assert [batch.number for batch in served] == list(range(8))
    rows = torch.cat([batch.acts[HOOK] for batch in served])
    expected = counted_activations(model, contexts, hook_name=HOOK, frame=framing(model.tokenizer))[:512]
    assert rows_as_set(rows) <= rows_as_set(expected)
    assert len(rows_as_set(rows)) == len(rows_as_set(expected))
    assert not torch.equal(rows, expected)


def test_several_hooks_are_served_in_the_same_order_as_each_alone(model: LanguageModel, stream_of: Stream) -> None:
    hooks = ("blocks.2.hook_mlp_in", HOOK, "blocks.0.hook_attn_out")
    contexts = contexts_of(model)

    together = list(itertools.islice(stream_of(contexts, hooks=hooks), 10))

    for hook in hooks:
        alone = acts_of(stream_of(contexts, hooks=(hook,)), 10, hook=hook)
        assert torch.equal(torch.cat([batch.acts[hook] for batch in together]), alone)


def test_the_same_seed_gives_the_same_batches_and_another_seed_others(model: LanguageModel, stream_of: Stream) -> None:
    contexts = contexts_of(model)

    first, again, other = (acts_of(stream_of(contexts, seed=seed), 4) for seed in (1, 1, 2))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.usefixtures("small_passes")
def test_one_and_two_threads_give_the_same_batches(model: LanguageModel, stream_of: Stream) -> None:
    contexts = contexts_of(model)

    one = list(itertools.islice(stream_of(contexts), 20))
    torch.set_num_threads(2)
    try:
        two = list(itertools.islice(stream_of(contexts), 20))
    finally:
        torch.set_num_threads(1)

    assert [batch.place for batch in one] == [batch.place for batch in two]
    for ours, theirs in zip(one, two, strict=True):
        assert torch.equal(ours.acts[HOOK], theirs.acts[HOOK])


@pytest.mark.parametrize("at_once", [1, 3, 50])
@pytest.mark.usefixtures("small_passes")
def test_how_many_passes_are_handed_out_together_changes_nothing(
    at_once: int, model: LanguageModel, stream_of: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = list(itertools.islice(stream_of(contexts_of(model)), 20))
    monkeypatch.setattr(activations, "_PASSES_AT_ONCE", at_once)

    served = list(itertools.islice(stream_of(contexts_of(model)), 20))

    assert [batch.place for batch in served] == [batch.place for batch in usual]
    assert all(torch.equal(a.acts[HOOK], b.acts[HOOK]) for a, b in zip(served, usual, strict=True))


def test_a_buffer_takes_no_more_forward_passes_than_it_needs(
    model: LanguageModel, stream_of: Stream, small_passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, n_tokens = activations.counted, []

    def count(model: LanguageModel, contexts: list[TokenContext], *args: object, **kwargs: object) -> object:
        n_tokens.append(sum(len(context.token_ids) for context in contexts))
        return real(model, contexts, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(activations, "counted", count)
    stream = stream_of(contexts_of(model, size=16))
    next(stream)

    assert all(small_passes <= n < small_passes + 16 for n in n_tokens)
    rows_per_pass = small_passes * 15 / 16 * 0.9  # BOS does not count; some contexts are short
    assert len(n_tokens) <= 512 / rows_per_pass + 1


def test_a_corpus_that_ends_is_read_again(model: LanguageModel, stream_of: Stream) -> None:
    contexts = contexts_of(model)[:3]
    epochs: list[int] = []

    def of_epoch(epoch: int) -> list[TokenContext]:
        epochs.append(epoch)
        return contexts

    acts_of(stream_of(of_epoch, buffer_tokens=256), 8)

    assert epochs[:3] == [0, 1, 2]


# Places


@pytest.mark.usefixtures("small_passes")
def test_from_the_place_of_any_batch_the_stream_goes_on_behind_it(model: LanguageModel, stream_of: Stream) -> None:
    contexts = contexts_of(model)
    whole = list(itertools.islice(stream_of(contexts), 20))

    for last in (0, 3, 7, 8, 15, 18):  # 7 and 15 are the last of their buffers
        again = itertools.dropwhile(
            lambda batch, last=last: batch.number <= last, stream_of(contexts, start=whole[last].place)
        )
        following = next(again)
        assert following.number == last + 1
        assert following.place == whole[last + 1].place
        assert torch.equal(following.acts[HOOK], whole[last + 1].acts[HOOK])


@pytest.mark.usefixtures("small_passes")
def test_behind_the_last_batch_of_a_buffer_nothing_of_it_is_filled_again(
    model: LanguageModel, stream_of: Stream
) -> None:
    served = list(itertools.islice(stream_of(contexts_of(model)), 8))

    assert [batch.place.buffer for batch in served] == [0] * 7 + [1]
    assert served[-1].place.n_batches == 8
    assert next(stream_of(contexts_of(model), start=served[-1].place)).number == 8


def test_a_place_behind_what_was_read_is_a_programming_error(model: LanguageModel) -> None:
    contexts = contexts_of(model)
    filler = ModelFiller(
        model, lambda _: contexts, hook_names=(HOOK,), frame=framing(model.tokenizer), buffer_tokens=128
    )
    filler.fill(Place(), Watch())

    with pytest.raises(ValueError, match="no buffer can begin at context 1"):
        filler.fill(Place(0, 1, 0), Watch())
    filler.close()


# What goes wrong


def test_an_empty_corpus_is_an_error_not_an_endless_loop(stream_of: Stream) -> None:
    with pytest.raises(CorpusError, match="no text"):
        next(stream_of([]))


def test_a_corpus_of_special_tokens_only_is_an_error_not_an_endless_loop(
    model: LanguageModel, stream_of: Stream
) -> None:
    special = model.tokenizer.eos_token * 40
    frame = framing(model.tokenizer)
    contexts = list(
        iter_contexts([Document(text=special, source="a.txt")], model.tokenizer, context_size=24, frame=frame)
    )

    with pytest.raises(CorpusError, match="nothing but special tokens"):
        next(stream_of(contexts))


def test_an_error_of_the_corpus_comes_out_where_the_text_would_have_and_again_when_asked_again(
    model: LanguageModel,
) -> None:
    def cut_short(epoch: int) -> Iterator[TokenContext]:
        yield from itertools.islice(itertools.cycle(contexts_of(model)), 100)
        raise CorpusError("b.jsonl line 7 is not JSON.")

    filler = ModelFiller(model, cut_short, hook_names=(HOOK,), frame=framing(model.tokenizer), buffer_tokens=1 << 20)

    for place in (Place(), Place(0, 100, 0), Place(0, 100, 0)):
        with pytest.raises(CorpusError, match="line 7"):
            filler.fill(place, Watch())
    filler.close()


@pytest.fixture(scope="module")
def broken_model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A model whose activations are NaN from the first "😀" of a context on."""
    folder = tmp_path_factory.mktemp("broken") / "model"
    shutil.copytree(tiny_llama, folder)
    tokenizer = load_model(str(tiny_llama)).tokenizer
    tensors = load_file(folder / "model.safetensors")
    (token_id, *_) = tokenizer.encode("😀", add_special_tokens=False)
    name = next(name for name in tensors if name.endswith("embed_tokens.weight"))
    tensors[name][token_id, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return load_model(str(folder))


def test_activations_that_are_not_numbers_are_said_with_their_text(broken_model: LanguageModel) -> None:
    frame = framing(broken_model.tokenizer)
    documents = [Document(text=text, source=f"texts/{number}.txt") for number, text in enumerate(TEXTS)]
    contexts = list(iter_contexts(documents, broken_model.tokenizer, context_size=64, frame=frame))
    filler = ModelFiller(broken_model, lambda _: contexts, hook_names=(HOOK,), frame=frame, buffer_tokens=1024)

    guilty = next(number for number, text in enumerate(TEXTS) if "😀" in text)
    with pytest.raises(TrainingError, match=rf"NaN or infinity on a text from texts/{guilty}\.txt; load .* --dtype"):
        filler.fill(Place(), Watch())
    filler.close()


# Being stopped


def test_a_filling_tells_how_far_it_is_and_stops_between_two_passes(
    model: LanguageModel, stream_of: Stream, small_passes: int
) -> None:
    told: list[str] = []
    watch = Watch(lambda: len(told) == 3, told.append)

    served = list(stream_of(contexts_of(model), buffer_tokens=16 * 1024, watch=watch))

    assert served == []
    assert told[:2] == ["filling the buffer 0%", "filling the buffer 6%"]
    assert len(told) == 3


def test_when_a_buffer_is_full_there_is_nothing_left_to_tell(model: LanguageModel, stream_of: Stream) -> None:
    told: list[str] = []

    next(stream_of(contexts_of(model), watch=Watch(tell=told.append)))

    assert told[0] == "filling the buffer 0%"
    assert told[-1] == ""


@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_stop_is_seen_before_the_next_forward_pass_on_any_core(
    n_threads: int, model: LanguageModel, stream_of: Stream, small_passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, n_passes = activations.counted, []
    monkeypatch.setattr(activations, "counted", lambda *args, **kwargs: [n_passes.append(1), real(*args, **kwargs)][1])
    torch.set_num_threads(n_threads)
    try:
        served = list(
            stream_of(contexts_of(model), buffer_tokens=4096, watch=Watch(is_stopped=lambda: len(n_passes) > 2))
        )
    finally:
        torch.set_num_threads(1)

    assert served == []
    assert 3 <= len(n_passes) <= 2 + n_threads


def test_a_stop_is_seen_while_a_slow_corpus_is_waited_for(model: LanguageModel, stream_of: Stream) -> None:
    goes_on = threading.Event()

    def slow(epoch: int) -> Iterator[TokenContext]:
        goes_on.wait(30)
        yield from contexts_of(model)

    started = time.monotonic()
    served = list(stream_of(slow, watch=Watch(is_stopped=lambda: time.monotonic() - started > 0.2)))
    goes_on.set()

    assert served == []
    assert time.monotonic() - started < 2


def test_reading_on_to_where_a_run_stopped_is_told_and_can_be_stopped(model: LanguageModel, stream_of: Stream) -> None:
    told: list[str] = []
    watch = Watch(lambda: len(told) == 2, told.append)

    assert list(stream_of(contexts_of(model), start=Place(9, 10_240, 72), watch=watch)) == []
    assert told == ["reading on to where it stopped 0%", "reading on to where it stopped 10%"]


def test_a_closed_filler_leaves_no_thread(model: LanguageModel) -> None:
    contexts = contexts_of(model)
    filler = ModelFiller(
        model, lambda _: contexts, hook_names=(HOOK,), frame=framing(model.tokenizer), buffer_tokens=128
    )
    filler.fill(Place(), Watch())
    assert "saescope-contexts" in [thread.name for thread in threading.enumerate()]

    filler.close()

    assert "saescope-contexts" not in [thread.name for thread in threading.enumerate()]


def test_a_stopped_filling_can_be_told_from_an_error(model: LanguageModel) -> None:
    contexts = contexts_of(model)
    filler = ModelFiller(
        model, lambda _: contexts, hook_names=(HOOK,), frame=framing(model.tokenizer), buffer_tokens=128
    )

    with pytest.raises(FillingStopped):
        filler.fill(Place(), Watch(is_stopped=lambda: True))
    filler.close()


def test_the_buffer_before_is_gone_while_the_next_is_filled(model: LanguageModel) -> None:
    contexts = contexts_of(model)
    alive: list[int] = []

    class Counting(ModelFiller):
        def fill(self, place: Place, watch: Watch) -> tuple[dict[str, torch.Tensor], int]:
            alive.append(sum(1 for held in kept if held() is not None))
            buffer, n_contexts = super().fill(place, watch)
            kept.append(weakref.ref(buffer[HOOK]))
            return buffer, n_contexts

    kept: list[Callable[[], object]] = []
    filler = Counting(model, lambda _: contexts, hook_names=(HOOK,), frame=framing(model.tokenizer), buffer_tokens=128)
    for _ in itertools.islice(batches(filler, batch_tokens=64, seed=0, start=Place()), 6):
        pass
    filler.close()

    assert alive == [0, 0, 0]
