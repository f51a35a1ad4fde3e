"""A shuffled stream of model activations: contexts through the model into a buffer, out of it in random order.

The buffer holds the activations of a few thousand contexts, which were themselves drawn in random order
(`tokens.shuffled`), so a training batch mixes many documents. Only tokens that count enter: no padding, no special
tokens. Memory is bounded by the buffer, nothing goes to the disk. The stream is deterministic: from a `Place` it goes
on as if everything before had been read, whoever reads it and however many hook points are read at once.

While one forward pass runs, the next contexts are read and tokenised in a thread; on the CPU each core runs forward
passes of its own, since one pass on several cores spends its time waiting at the end of every layer. A filling takes
minutes on a large model, so it looks between passes at whether it shall stop, and tells how far it is.
"""

import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sae_core.errors import CorpusError, TrainingError
from sae_core.model import LanguageModel
from sae_core.ranks import Ranks
from sae_core.threads import on_all_cores
from sae_core.tokens import Framing, TokenContext, padded

FORWARD_TOKENS = {"cpu": 2_048, "cuda": 16_384}  # per forward pass: as many as stay in a core's cache, fill a GPU
_PASSES_AT_ONCE = 8  # forward passes that are handed out together on a CPU, if it has no more cores
_PASSES_WITHOUT_TEXT = 8  # after which a corpus is taken to have none
_SKIPPED_AT_ONCE = 1_024  # contexts between two looks at whether to stop
_CONTEXTS_AHEAD = 4_096  # tokenised before the model asks for them
_BLOCK = 64  # of these, handed over together
_CLOSING_SECONDS = 5.0  # given to the document that is being tokenised


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a stream a buffer begins: its number, the contexts and the batches before it."""

    buffer: int = 0
    n_contexts: int = 0
    n_batches: int = 0


class Batch(NamedTuple):
    """Batch `number` of a stream: (batch_tokens, d) float32 for every hook. Whoever goes on behind it, now or after
    being stopped, starts at `place`, where its buffer began (behind the last batch of a buffer: where that ended).
    """

    number: int
    place: Place
    acts: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Watch:
    """What a filling asks and tells as it goes on. With several ranks each of them asks at the same points."""

    is_stopped: Callable[[], bool] = lambda: False
    tell: Callable[[str], None] = lambda text: None


class FillingStopped(Exception):
    """`is_stopped` said so before the buffer was full."""


class Filler(Protocol):
    """Whatever fills buffers: a model, or a disk on which its activations were kept."""

    def fill(self, place: Place, watch: Watch) -> tuple[dict[str, Tensor], int]:
        """The buffer that begins at `place`, (rows, d) for every hook, and the number of contexts read by its end.

        Raises FillingStopped.
        """

    def close(self) -> None:
        """Ends what runs ahead."""


def batches(
    filler: Filler, *, batch_tokens: int, seed: int, start: Place, watch: Watch | None = None
) -> Iterator[Batch]:
    """Batches from the buffer that begins at `start`: endless, unless a filling is stopped."""
    place = start
    while True:
        try:
            buffer, n_contexts = filler.fill(place, watch or Watch())
        except FillingStopped:
            return
        n_rows = len(next(iter(buffer.values())))
        generator = torch.Generator().manual_seed(seed + place.n_contexts)
        order = torch.randperm(n_rows, generator=generator)
        n_batches = n_rows // batch_tokens
        following = Place(place.buffer + 1, n_contexts, place.n_batches + n_batches)
        for i in range(n_batches):
            rows = order[i * batch_tokens : (i + 1) * batch_tokens]
            acts = {name: held[rows.to(held.device)].float() for name, held in buffer.items()}
            yield Batch(place.n_batches + i, place if i + 1 < n_batches else following, acts)
        place = following
        del buffer, acts  # else the next buffer would need its memory beside this one's


class ModelFiller:
    """Fills buffers from a corpus that is read again, in a new order, when it ends."""

    def __init__(
        self,
        model: LanguageModel,
        contexts: Callable[[int], Iterable[TokenContext]],
        *,
        hook_names: Sequence[str],
        frame: Framing,
        buffer_tokens: int,
        ranks: Ranks | None = None,
    ) -> None:
        """`contexts(epoch)` gives the corpus in the order of that epoch. Raises CorpusError if it is too small."""
        self._model = model
        self._hook_names = tuple(hook_names)
        self._frame = frame
        self._buffer_tokens = buffer_tokens
        self._ranks = ranks or Ranks()
        self._n_read = 0
        self._ahead = _Ahead(_all_epochs(contexts))

    def fill(self, place: Place, watch: Watch) -> tuple[dict[str, Tensor], int]:
        """The next buffer; `place` may lie ahead of what was read, never behind."""
        self._skip_to(place.n_contexts, watch)
        buffer: dict[str, Tensor] = {}
        filled = 0
        with self._model.reading(self._hook_names) as read:
            while filled < self._buffer_tokens:
                self._stop_if_asked(watch)
                watch.tell(f"filling the buffer {filled / self._buffer_tokens:.0%}")
                for acts in self._forward(self._next_passes(self._buffer_tokens - filled, watch), read, watch):
                    taken = min(len(acts[0]), self._buffer_tokens - filled)
                    for name, held in zip(self._hook_names, acts, strict=True):
                        if name not in buffer:
                            buffer[name] = held.new_empty(self._buffer_tokens, held.shape[1])
                        buffer[name][filled : filled + taken] = held[:taken]
                    filled += taken
        watch.tell("")
        return buffer, self._n_read

    def close(self) -> None:
        self._ahead.close()

    def _skip_to(self, n_contexts: int, watch: Watch) -> None:
        first, n_skipped = self._n_read, n_contexts - self._n_read
        if n_skipped < 0:
            raise ValueError(f"{self._n_read} contexts were read, so no buffer can begin at context {n_contexts}")
        while self._n_read < n_contexts:
            if (self._n_read - first) % _SKIPPED_AT_ONCE == 0:
                self._stop_if_asked(watch)
                watch.tell(f"reading on to where it stopped {(self._n_read - first) / n_skipped:.0%}")
            self._next_context(watch)

    def _next_passes(self, wanted: int, watch: Watch) -> list[list[TokenContext]]:
        """The contexts of the next forward passes, as many as give `wanted` rows, or as are handed out together."""
        at_once = _PASSES_AT_ONCE if self._is_on_cpu else 1
        if self._is_on_cpu and self._ranks.size == 1:  # several ranks may have several numbers of cores
            at_once = max(at_once, torch.get_num_threads())
        passes: list[list[TokenContext]] = []
        n_rows = 0
        while n_rows == 0 or (n_rows < wanted and len(passes) < at_once * self._ranks.size):
            contexts = self._next_contexts(watch)
            n_rows += int(padded(contexts, pad_id=self._model.pad_id, frame=self._frame)[2].sum())
            passes.append(contexts)
            if n_rows == 0 and len(passes) == _PASSES_WITHOUT_TEXT:
                raise CorpusError("The corpus holds nothing but special tokens; give files with text in them.")
        return passes

    def _forward(
        self, passes: list[list[TokenContext]], read: Callable[[Tensor, Tensor], list[Tensor]], watch: Watch
    ) -> list[list[Tensor]]:
        """Activations (rows, d) of every hook from each pass, spread over the ranks and over the cores."""

        def forward(contexts: list[TokenContext]) -> list[Tensor] | None:
            if self._ranks.size == 1 and watch.is_stopped():
                return None  # not an error, which would not wait for the passes on other cores
            return counted(self._model, contexts, read, frame=self._frame)

        own = passes[self._ranks.rank :: self._ranks.size]
        made = on_all_cores(forward, own) if self._is_on_cpu else [forward(contexts) for contexts in own]
        whole = [acts for acts in made if acts is not None]
        if len(whole) < len(made):
            raise FillingStopped
        return self._ranks.interleaved(whole, len(passes))

    def _next_contexts(self, watch: Watch) -> list[TokenContext]:
        """The contexts of one forward pass."""
        wanted = FORWARD_TOKENS.get(self._model.device.type, 8_192)
        contexts: list[TokenContext] = []
        n_tokens = 0
        while n_tokens < wanted:
            contexts.append(self._next_context(watch))
            n_tokens += len(contexts[-1].token_ids)
        return contexts

    def _next_context(self, watch: Watch) -> TokenContext:
        # Where several ranks read, all go on to the next point at which they stop together.
        context = self._ahead.take(watch.is_stopped if self._ranks.size == 1 else lambda: False)
        self._n_read += 1
        return context

    def _stop_if_asked(self, watch: Watch) -> None:
        if self._ranks.agree(watch.is_stopped()):
            raise FillingStopped

    @property
    def _is_on_cpu(self) -> bool:
        return self._model.device.type == "cpu"


def counted(
    model: LanguageModel,
    contexts: list[TokenContext],
    read: Callable[[Tensor, Tensor], list[Tensor]],
    *,
    frame: Framing,
) -> list[Tensor]:
    """Activations (N, d) at each hook of the tokens that count, in the order of the contexts.

    Raises TrainingError, naming the text, if they hold NaN or infinity.
    """
    ids, attention, is_counted = (
        torch.from_numpy(array).to(model.device) for array in padded(contexts, pad_id=model.pad_id, frame=frame)
    )
    acts = [at_hook[is_counted] for at_hook in read(ids, attention)]
    for at_hook in acts:
        if not bool(torch.isfinite(at_hook.sum(dtype=torch.float32))):
            raise TrainingError(_not_finite(model, contexts, read, frame))
    return acts


def _not_finite(
    model: LanguageModel,
    contexts: list[TokenContext],
    read: Callable[[Tensor, Tensor], list[Tensor]],
    frame: Framing,
) -> str:
    for context in contexts if len(contexts) > 1 else ():
        try:
            counted(model, [context], read, frame=frame)
        except TrainingError as error:
            return str(error)
    return (
        f"The model's activations hold NaN or infinity on a text from {contexts[0].source}; load the model in another "
        "--dtype (float16 overflows where bfloat16 does not), or leave that text out."
    )


class _Ahead:
    """Items that a thread reads some way ahead. Its errors come out where the items would have."""

    def __init__(self, items: Iterator[TokenContext]) -> None:
        self._items = items
        self._queue: queue.Queue[list[TokenContext] | BaseException] = queue.Queue(_CONTEXTS_AHEAD // _BLOCK)
        self._held: Iterator[TokenContext] = iter(())
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def take(self, is_stopped: Callable[[], bool]) -> TokenContext:
        """The next item; raises FillingStopped if it is not there and a stop is asked for."""
        if self._thread is None:  # not before it is needed: forking and signals dislike threads
            self._thread = threading.Thread(target=self._read, name="saescope-contexts", daemon=True)
            self._thread.start()
        for item in self._held:
            return item
        self._held = iter(self._next_block(is_stopped))
        return next(self._held)

    def close(self) -> None:
        """Ends the thread, which would else hold the model and what was read until the process ends."""
        self._is_closed = True
        while not self._queue.empty():  # it may wait for room
            self._queue.get_nowait()
        if self._thread is not None:
            self._thread.join(_CLOSING_SECONDS)

    def _next_block(self, is_stopped: Callable[[], bool]) -> list[TokenContext]:
        while True:
            try:
                following = self._queue.get(timeout=0.1)
            except queue.Empty:
                if is_stopped():
                    raise FillingStopped from None
                continue
            if isinstance(following, BaseException):
                self._queue.put(following)  # the thread is gone: whoever asks again hears the same
                raise following
            return following

    def _read(self) -> None:
        try:
            while not self._is_closed and (block := list(itertools.islice(self._items, _BLOCK))):
                self._queue.put(block)
        except BaseException as error:
            self._queue.put(error)


def _all_epochs(contexts: Callable[[int], Iterable[TokenContext]]) -> Iterator[TokenContext]:
    for epoch in itertools.count():
        is_empty = True
        for context in contexts(epoch):
            is_empty = False
            yield context
        if is_empty:
            raise CorpusError("The corpus holds no text; give files with text in them.")
