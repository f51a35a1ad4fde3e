"""Loaders for the model worker's tests. They run in the worker's process, which imports this file by its name."""

import os
import time
from pathlib import Path

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


def load(sae: SAEInfo, device: str | None) -> Loaded:
    if sae.slug == "broken":
        raise WeightsError(f"The weights of {sae.slug} are half-written; train it again.")
    return Loaded(sae)
