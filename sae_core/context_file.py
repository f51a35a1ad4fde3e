"""A corpus cut into contexts, on disk: written once from its text, then read by number as often as needed.

4 bytes a token in a file of its own that vanishes with the process; 16 bytes a context and the names of documents
in memory.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sae_core.tokens import TokenContext

WINDOW = (8, 1)  # tokens before and after a token that make two places read the same
_NOTHING = np.uint64(0xFFFF_FFFF)  # no token id: what stands before a context's first and behind its last token
_PRIME = np.uint64(0x100000001B3)
_BLOCK_CONTEXTS = 4096


class ContextFile:
    """Contexts in the order of the corpus."""

    def __init__(self, contexts: Iterable[TokenContext], *, folder: Path) -> None:
        """Writes all contexts to a file in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        lengths: list[int] = []
        documents: list[int] = []
        self._sources: list[str] = []
        with tempfile.TemporaryFile(dir=folder, prefix="saescope-contexts-") as file:
            for context in contexts:
                if not self._sources or self._sources[-1] != context.source:
                    self._sources.append(context.source)
                lengths.append(len(context.token_ids))
                documents.append(len(self._sources) - 1)
                file.write(context.token_ids.astype("<u4").tobytes())
            file.flush()
            # The mapping outlives the file, whose place on disk is free when the last of both is gone.
            is_empty = not lengths
            self._ids: NDArray[np.uint32] = np.zeros(0, np.uint32) if is_empty else np.memmap(file, "<u4", "r")
        self.lengths = np.array(lengths, np.int64)  # of each context, special tokens included
        self._documents = np.array(documents, np.int64)
        self._ends = np.cumsum(self.lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> TokenContext:
        end = self._ends[number]
        ids = self._ids[end - self.lengths[number] : end].astype(np.int64)
        return TokenContext(ids, self._sources[self._documents[number]])

    def __iter__(self) -> Iterator[TokenContext]:
        return (self[number] for number in range(len(self)))

    @property
    def n_documents(self) -> int:
        return len(set(self._sources))

    def fingerprint(self, first: int | None = None) -> str:
        """SHA-256 over the token ids of the first so many contexts, and where each ends: equal if they are equal."""
        digest = hashlib.sha256()
        for ids, lengths in self._blocks(len(self) if first is None else first):
            digest.update(np.insert(ids, np.cumsum(lengths), np.uint32(0xFFFF_FFFF)).astype("<u4").tobytes())
        return digest.hexdigest()

    def token_ids_at(self, contexts: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The token at each of M places; −1 where the position lies outside of its context."""
        inside = (positions >= 0) & (positions < self.lengths[contexts])
        starts = self._ends[contexts] - self.lengths[contexts]
        ids = np.full(len(positions), -1, np.int64)
        ids[inside] = self._ids[(starts + positions)[inside]]
        return ids

    def copies(self, texts: NDArray[np.uint64]) -> NDArray[np.int64]:
        """How often each of M texts (`text_keys`) stands in the whole corpus."""
        known, inverse = np.unique(texts, return_inverse=True)
        counts = np.zeros(len(known), np.int64)
        for ids, lengths in self._blocks(len(self)):
            keys = _keys(ids, lengths)
            place = np.searchsorted(known, keys)
            place[place == len(known)] = 0
            counts += np.bincount(place[known[place] == keys], minlength=len(known)) if len(known) else 0
        return counts[inverse]

    def _blocks(self, n_contexts: int) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.int64]]]:
        """Token ids and lengths of runs of the first so many contexts."""
        for start in range(0, n_contexts, _BLOCK_CONTEXTS):
            stop = min(start + _BLOCK_CONTEXTS, n_contexts)
            begin = self._ends[start] - self.lengths[start]
            yield self._ids[begin : self._ends[stop - 1]], self.lengths[start:stop]


def text_keys(contexts: Sequence[TokenContext]) -> NDArray[np.uint64]:
    """A number for what is read around each token of the contexts, one context after the other: the same for the same
    `WINDOW`."""
    ids = np.concatenate([context.token_ids for context in contexts])
    return _keys(ids, np.array([len(context.token_ids) for context in contexts]))


def _keys(ids: NDArray[np.uint32] | NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.uint64]:
    before, after = WINDOW
    gap = before + after
    # Contexts with so much nothing between them that no window reaches into a neighbour.
    starts = np.arange(len(lengths)) * gap + np.cumsum(lengths) - lengths + before
    places = np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(len(ids))
    spaced = np.full(len(ids) + gap * len(lengths), _NOTHING)
    spaced[places] = ids.astype(np.uint64)
    keys = np.zeros(len(ids), np.uint64)
    for step in range(-before, after + 1):
        token = spaced[places + step]
        token ^= token >> np.uint64(15)
        keys = (keys ^ token) * _PRIME
        keys ^= keys >> np.uint64(29)
    return keys
