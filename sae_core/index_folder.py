"""The folder in which one SAE is indexed, `indexes/{slug}`: who is at work, and how far each corpus has been read.

lock, holder.json              who is at work (`holding`)
run-{corpus}.jsonl, progress-{corpus}.json   what happened and how far it is, for those who look (`run_log`)
{corpus}-{digest}/state.pt     what was gathered, a checkpoint every minute; kept when the index is done, so that
                               indexing again on more text goes on from there
{corpus}-{digest}/part-{i}-of-{n}.pt   the same of one shard of the contexts, until all are merged

The digest is of everything that decides what is gathered from a text.
"""

import hashlib
import json
import os
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_core.disk import saving
from sae_core.errors import ConfigError
from sae_core.memory import is_out_of_memory

_STATE = "state.pt"
_DAMAGE = (
    RuntimeError, LookupError, TypeError, ValueError, AttributeError, EOFError, OSError, pickle.PickleError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` equal runs of the corpus's contexts; `number` counts from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """From "2/8". Raises ConfigError."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(f"--shard {text[:40]!r} is not understood; write 1/4, 2/4, 3/4 and 4/4 for four jobs.")
        return cls(int(match[1]), int(match[2]))

    @property
    def suffix(self) -> str:
        """Of its files' names."""
        return f"-{self.number}-of-{self.count}"

    def contexts(self, n_contexts: int, *, batch_contexts: int) -> tuple[int, int]:
        """First and last context (the latter not included): whole batches, as one job alone would cut them."""
        n_batches = -(-n_contexts // batch_contexts)
        first, last = (batch_contexts * (n_batches * i // self.count) for i in (self.number - 1, self.number))
        return min(first, n_contexts), min(last, n_contexts)


class IndexFolder:
    """What is gathered from one SAE on one corpus."""

    def __init__(self, home: Path, *, slug: str, corpus: str, settings: dict[str, Any], shard: Shard | None) -> None:
        """`settings` is what decides the outcome beside the text: what was gathered with others is left alone."""
        self._sae = home / "indexes" / slug
        digest = hashlib.sha256(json.dumps([corpus, settings], sort_keys=True).encode()).hexdigest()[:12]
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", corpus)[:40].strip(".-") or "corpus"
        self.path = self._sae / f"{name}-{digest}"
        self._file = self.path / (f"part{shard.suffix}.pt" if shard else _STATE)
        with saving(self.path):
            self.path.mkdir(parents=True, exist_ok=True)

    def save(self, state: dict[str, Any]) -> None:
        """Writes what was gathered, whole or not at all."""
        new = self._file.with_suffix(".new")
        with saving(self.path):
            try:
                with new.open("wb") as file:
                    torch.save(_tensors(state), file)
                    file.flush()
                    os.fsync(file.fileno())
                new.replace(self._file)
            finally:
                new.unlink(missing_ok=True)

    def load(self) -> dict[str, Any] | None:
        """What was gathered; None if there is nothing that can be read."""
        return _loaded(self._file)

    def parts(self) -> list[dict[str, Any]]:
        """What all shards gathered, in order. Raises ConfigError if some are missing."""
        found = {}
        for path in self.path.glob("part-*-of-*.pt"):
            match = re.fullmatch(r"part-(\d+)-of-(\d+)\.pt", path.name)
            if match is not None:
                found[int(match[1]), int(match[2])] = path
        counts = sorted({count for _, count in found})
        if not counts:
            raise ConfigError(
                f"There is nothing to merge for {self._sae.name} with these settings; index it with --shard 1/N to N/N "
                "and the same other options first."
            )
        count = next((c for c in counts if all((i, c) in found for i in range(1, c + 1))), counts[-1])
        missing = [f"{i}/{count}" for i in range(1, count + 1) if (i, count) not in found]
        if missing:
            raise ConfigError(f"Before merging, index {self._sae.name} with --shard {', '.join(missing)}.")
        states = []
        for number in range(1, count + 1):
            state = _loaded(found[number, count])
            if state is None:
                raise ConfigError(f"{found[number, count]} cannot be read; index with --shard {number}/{count} again.")
            states.append(state)
        return states

    def remove_parts(self) -> None:
        """Removes what shards have left, once it is merged and stored."""
        for path in self.path.glob("part-*"):
            path.unlink(missing_ok=True)


def _loaded(path: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        return _arrays(state)  # type: ignore[no-any-return]
    except _DAMAGE as error:
        if is_out_of_memory(error):
            raise
        return None  # not there, or half-written by a machine that lost power


def _tensors(value: Any) -> Any:
    """Arrays as tensors, which `torch.load` reads without running anything."""
    if isinstance(value, dict):
        return {key: _tensors(item) for key, item in value.items()}
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _arrays(value: Any) -> Any:
    """The tensors of the dictionaries in `ARRAYS` as arrays again."""
    if isinstance(value, dict):
        return {
            key: {name: tensor.numpy() for name, tensor in item.items()} if key in ARRAYS else _arrays(item)
            for key, item in value.items()
        }
    return value


ARRAYS = ("firings", "coactivation")  # keys of a state that hold dictionaries of arrays
