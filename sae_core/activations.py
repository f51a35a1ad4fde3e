"""A shuffled stream of model activations: contexts through the model into a buffer, out of it in random order.

The buffer holds the activations of a few thousand contexts, which were themselves drawn in random order
(`tokens.shuffled`), so a training batch mixes many documents. Only tokens that count enter: no padding, no special
tokens. The stream is deterministic: after `skip_contexts` it goes on as if those contexts had been read.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from sae_core.errors import CorpusError
from sae_core.model import LanguageModel
from sae_core.tokens import Framing, TokenContext, padded

FORWARD_TOKENS = 8_192  # per forward pass of the language model


class ActivationStream:
    """Endless batches of `model_acts` from a corpus that is read again, in a new order, when it ends."""

    def __init__(
        self,
        model: LanguageModel,
        contexts: Callable[[int], Iterable[TokenContext]],
        *,
        hook_name: str,
        frame: Framing,
        batch_tokens: int,
        buffer_tokens: int,
        seed: int,
        skip_contexts: int = 0,
    ) -> None:
        """`contexts(epoch)` gives the corpus in the order of that epoch. Raises CorpusError if it is too small."""
        self.n_contexts = skip_contexts  # contexts that have entered the buffer
        self._model = model
        self._contexts = itertools.islice(_epochs(contexts), skip_contexts, None)
        self._hook_name = hook_name
        self._frame = frame
        self._batch_tokens = batch_tokens
        self._buffer_tokens = buffer_tokens
        self._seed = seed

    def __iter__(self) -> Iterator[Tensor]:
        """Batches (batch_tokens, d_in) float32 on the model's device."""
        buffer = torch.empty(self._buffer_tokens, self._model.info.d_model, device=self._model.device)
        while True:
            generator = torch.Generator().manual_seed(self._seed + self.n_contexts)
            filled = self._fill(buffer)
            order = torch.randperm(filled, generator=generator).to(buffer.device)
            for start in range(0, filled - self._batch_tokens + 1, self._batch_tokens):
                yield buffer[order[start : start + self._batch_tokens]]

    def _fill(self, buffer: Tensor) -> int:
        filled = 0
        while filled < len(buffer):
            batch = self._next_contexts()
            model_acts = counted_activations(self._model, batch, hook_name=self._hook_name, frame=self._frame)
            taken = min(len(model_acts), len(buffer) - filled)
            buffer[filled : filled + taken] = model_acts[:taken]
            filled += taken
        return filled

    def _next_contexts(self) -> list[TokenContext]:
        batch: list[TokenContext] = []
        n_tokens = 0
        while n_tokens < FORWARD_TOKENS:
            context = next(self._contexts)
            batch.append(context)
            n_tokens += len(context.token_ids)
        self.n_contexts += len(batch)
        return batch


def counted_activations(
    model: LanguageModel, contexts: list[TokenContext], *, hook_name: str, frame: Framing
) -> Tensor:
    """`model_acts` (N, d_in) of the tokens that count, in the order of the contexts."""
    ids, attention, counted = padded(contexts, pad_id=model.pad_id, frame=frame)
    model_acts = model.activations(
        torch.from_numpy(ids).to(model.device), torch.from_numpy(attention).to(model.device), hook_name
    )
    return model_acts[torch.from_numpy(counted).to(model.device)]


def _epochs(contexts: Callable[[int], Iterable[TokenContext]]) -> Iterator[TokenContext]:
    for epoch in itertools.count():
        is_empty = True
        for context in contexts(epoch):
            is_empty = False
            yield context
        if is_empty:
            raise CorpusError("The corpus holds no text; give files with text in them.")
