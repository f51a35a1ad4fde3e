"""Activations kept on disk, if asked to: one file per buffer, in bfloat16, so that the next SAE on them needs no model.

    HOME/activations/{key}/cache.json          what the activations are of: model, hooks, corpus, contexts, order
    HOME/activations/{key}/000000.safetensors  buffer 0: (rows, d) for every hook; its metadata: the number of contexts
                                               read by its end, and checksums

The key is a fingerprint of what the activations are of: another model, hook or corpus, or a changed file, is another
folder. A buffer is written whole or not at all; a run that was stopped goes on behind the last one, and a damaged or
missing buffer is made again. bfloat16 keeps 8 bits of each number and the whole range of float32: as noise that is
an FVU of about 1e-5, and every SAE trained with the cache sees the same rounded numbers, the first one too.
"""

import hashlib
import itertools
import json
import os
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_core.activations import Filler, Place, Watch
from sae_core.config import TrainConfig
from sae_core.corpus import corpus_state
from sae_core.disk import saving
from sae_core.ranks import Ranks
from sae_core.records import ModelInfo

CACHE_FILE = "cache.json"
_ABANDONED_SECONDS = 3600.0  # after which a half-written file is taken to be of a killed run


class ActivationCache:
    """The kept buffers of one model, corpus and set of hooks."""

    def __init__(self, root: Path, config: TrainConfig, hook_names: tuple[str, ...], buffer_tokens: int) -> None:
        what = {
            "model": config.model,
            "dtype": config.dtype,
            "hooks": sorted(hook_names),
            "corpus": corpus_state(config.corpus),
            "text_field": config.text_field,
            "context_size": config.context_size,
            "prepend_bos": config.prepend_bos,
            "data_seed": config.data_seed,
            "buffer_tokens": buffer_tokens,
        }
        key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = root / key
        self._what = what

    def model_info(self) -> ModelInfo | None:
        """The model whose activations are kept; None if none are."""
        try:
            known: dict[str, Any] = json.loads((self.folder / CACHE_FILE).read_text())
            return ModelInfo(**known["model_info"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def remember(self, info: ModelInfo) -> None:
        """Notes which model the buffers are of; those of another revision of it, or of none known, are removed."""
        known = self.model_info()
        if known is None or known.revision != info.revision:
            for path in self.folder.glob("*.safetensors"):
                path.unlink()
        for path in self.folder.glob("*.new"):
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                path.unlink()
        with saving(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            described = {**self._what, "model_info": asdict(info)}
            (self.folder / CACHE_FILE).write_text(json.dumps(described, indent=2) + "\n")

    def holds(self, n_batches: int, *, batch_tokens: int) -> bool:
        """Whether the buffers from the first on are enough for so many batches, as far as their headers tell."""
        n_held = 0
        for number in itertools.count():
            try:
                with safe_open(self._path(number), framework="pt") as file:
                    n_rows = file.get_slice(next(iter(file.keys()))).get_shape()[0]
            except (OSError, SafetensorError, StopIteration):
                return False
            n_held += n_rows // batch_tokens
            if n_held >= n_batches:
                return True
        return False

    def widths(self) -> dict[str, int]:
        """How many numbers a token has at each hook, as the first buffer's header tells, which must be there."""
        with safe_open(self._path(0), framework="pt") as file:
            return {name: int(file.get_slice(name).get_shape()[1]) for name in file.keys()}  # noqa: SIM118

    def load(self, number: int) -> tuple[dict[str, Tensor], int] | None:
        """Buffer `number` and the number of contexts read by its end; None if it is not there or not whole."""
        try:
            with safe_open(self._path(number), framework="pt") as file:
                metadata = file.metadata() or {}
                buffer = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if any(metadata[name] != _checksum(acts) for name, acts in buffer.items()):
                return None
            return buffer, int(metadata["n_contexts"])
        except (OSError, SafetensorError, KeyError, ValueError):
            return None

    def save(self, number: int, buffer: dict[str, Tensor], n_contexts: int) -> None:
        """Writes a buffer of bfloat16."""
        on_cpu = {name: acts.cpu().contiguous() for name, acts in buffer.items()}
        metadata = {"n_contexts": str(n_contexts), **{name: _checksum(acts) for name, acts in on_cpu.items()}}
        path = self._path(number)
        new = path.with_suffix(f".{os.getpid()}.new")  # another run may be making the same buffer
        with saving(self.folder):
            try:
                save_file(on_cpu, new, metadata=metadata)
                new.replace(path)
            finally:
                new.unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"


class CachingFiller:
    """Fills buffers from the disk where they are kept, else from a model, and keeps those."""

    def __init__(
        self, cache: ActivationCache, make_source: Callable[[], Filler], *, device: torch.device, ranks: Ranks
    ) -> None:
        """`make_source` gives what fills the buffers that are not kept; it is called for the first of them."""
        self._cache = cache
        self._make_source = make_source
        self._source: Filler | None = None
        self._device = device
        self._ranks = ranks

    def fill(self, place: Place, watch: Watch) -> tuple[dict[str, Tensor], int]:
        """The buffer that begins at `place`, in bfloat16."""
        kept = self._cache.load(place.buffer)
        if not self._ranks.agree(kept is None):  # all ranks fill it together, or none
            assert kept is not None
            return {name: acts.to(self._device) for name, acts in kept[0].items()}, kept[1]
        del kept
        if self._source is None:
            self._source = self._make_source()
        buffer, n_contexts = self._source.fill(place, watch)
        for name in buffer:  # one by one, as both kinds together need more memory
            buffer[name] = buffer[name].to(torch.bfloat16)
        if self._ranks.is_first:
            self._cache.save(place.buffer, buffer, n_contexts)
        return buffer, n_contexts

    def close(self) -> None:
        if self._source is not None:
            self._source.close()


def _checksum(acts: Tensor) -> str:
    return f"{zlib.crc32(acts.view(torch.uint8).numpy().data):08x}"
