"""What was computed for texts that are being typed, kept so that only what changed is computed again.

A session is one reader at one page. Of its newest text are kept the token ids, the keys and values of attention in all
layers up to the SAE's hook, and the active features of each token. The next text shares a prefix of tokens with it;
only the tokens behind that are run. Kept is no more than `max_bytes`, and nothing for longer than `max_age`.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

ActiveRow = tuple[tuple[int, ...], tuple[float, ...]]  # one token's features and activations, the strongest first


@dataclass(frozen=True, slots=True)
class KeyValues:
    """Keys and values (1, heads, T, d_head) of the first T tokens of a text, layer by layer."""

    layers: tuple[tuple[Tensor, Tensor], ...]

    def first(self, n: int) -> "KeyValues":
        return KeyValues(tuple((keys[..., :n, :], values[..., :n, :]) for keys, values in self.layers))

    @property
    def n_bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for pair in self.layers for tensor in pair)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """A text that was run, as far as the next one may share it."""

    token_ids: tuple[int, ...]
    key_values: KeyValues
    rows: tuple[ActiveRow, ...]

    def shared_with(self, token_ids: Sequence[int]) -> int:
        """How many of its first tokens are also those of `token_ids`."""
        n = min(len(self.token_ids), len(token_ids))
        return next((i for i in range(n) if self.token_ids[i] != token_ids[i]), n)


MOST_BYTES = 256 << 20  # of keys and values: 15 texts of 512 tokens in the middle of Llama 3.2 1B


class Prefixes:
    """The newest text of each session; the longest untouched go first."""

    def __init__(
        self, *, max_bytes: int = MOST_BYTES, max_age: float = 600.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`max_age` in seconds."""
        self._max_bytes, self._max_age, self._clock = max_bytes, max_age, clock
        self._kept: OrderedDict[str, tuple[float, Prefix]] = OrderedDict()
        self.n_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, session: str) -> Prefix | None:
        """The session's text, which is not kept any more: what is run next may grow from it, or fail."""
        self._drop_old()
        if session not in self._kept:
            return None
        _, prefix = self._kept.pop(session)
        self.n_bytes -= prefix.key_values.n_bytes
        return prefix

    def keep(self, session: str, prefix: Prefix) -> None:
        self.take(session)
        self._kept[session] = (self._clock(), prefix)
        self.n_bytes += prefix.key_values.n_bytes
        self._drop_old()

    def _drop_old(self) -> None:
        oldest = self._clock() - self._max_age
        while self._kept and (self.n_bytes > self._max_bytes or next(iter(self._kept.values()))[0] < oldest):
            _, (_, prefix) = self._kept.popitem(last=False)
            self.n_bytes -= prefix.key_values.n_bytes
