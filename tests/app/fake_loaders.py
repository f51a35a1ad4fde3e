"""Loaders for the model worker's tests. They run in the worker's process, which imports this file by its name."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from app import inference
from app.inference import Stream
from sae_core.errors import PromptTooLongError, WeightsError
from sae_core.records import Decomposition, ProbeResult, SAEInfo
from tests.app.fake_prober import PER_TOKEN, fake_decomposition, fake_result


class Loaded:
    """Does what its text says: "die", "die once at PATH", "sleep N", "fail", "too long", "pid"."""

    def __init__(self, sae: SAEInfo) -> None:
        self.sae = sae
        self.loaded_at = time.monotonic_ns()

    def probe(self, text: str, *, top_k: int, max_tokens: int) -> ProbeResult:
        if text == "die" or (text.startswith("die once at ") and not Path(text[12:]).exists()):
            if text != "die":
                Path(text[12:]).touch()
            os._exit(1)
        if text.startswith("sleep "):
            time.sleep(float(text[6:]))
        if text == "fail":
            raise ZeroDivisionError("a secret detail")
        if text == "too long":
            raise PromptTooLongError(f"over {max_tokens}")
        if text == "pid":
            text = str(os.getpid())
        if text == "loaded at":
            text = str(self.loaded_at)
        return fake_result(self.sae, text, top_k=top_k)

    def decompose(self, text: str, *, token: int | None, max_tokens: int) -> Decomposition:
        return fake_decomposition(self.probe(text, top_k=PER_TOKEN, max_tokens=max_tokens), self.sae, token)


@dataclass(frozen=True, slots=True, kw_only=True)
class CountStream(Stream[int]):
    """Counts to `end`; at `fails_at` it fails, at `dies_at` the process does. `closed` is written when it is closed."""

    end: int = 3
    fails_at: int | None = None
    dies_at: int | None = None
    closed: Path | None = None

    def run(self, loaded: inference.Loaded) -> Iterator[int]:
        try:
            for number in range(self.end):
                if number == self.fails_at:
                    raise PromptTooLongError(f"over {loaded.max_tokens}")
                if number == self.dies_at:
                    os._exit(1)
                yield number
        finally:
            if self.closed is not None:
                self.closed.touch()


def load(sae: SAEInfo, device: str | None) -> Loaded:
    if sae.slug == "broken":
        raise WeightsError(f"The weights of {sae.slug} are half-written; train it again.")
    return Loaded(sae)
