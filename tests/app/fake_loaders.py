"""Loaders for the model worker's tests. They run in the worker's process, which imports this file by its name."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from app import inference
from app.inference import Stream
from app.inference.shelf import Sizes
from sae_core.errors import PromptTooLongError, SaescopeError, WeightsError
from sae_core.records import Decomposition, Predictions, ProbeResult, Prompt, SAEInfo
from tests.app.fake_prober import fake_decomposition, fake_predictions, fake_result


class Loaded:
    """Does what its text says: "die", "die once at PATH", "sleep N", "fail", "too long", "pid", "together"."""

    def __init__(self, sae: SAEInfo) -> None:
        self.sae = sae
        self.loaded_at = time.monotonic_ns()

    def probe_all(self, prompts: Sequence[Prompt], *, max_tokens: int) -> list[ProbeResult | SaescopeError]:
        found: list[ProbeResult | SaescopeError] = []
        for prompt in prompts:
            if prompt.text == "too long":
                found.append(PromptTooLongError(f"over {max_tokens}"))
            else:
                found.append(self._probed(prompt.text, n_together=len(prompts)))
        return found

    def _probed(self, text: str, *, n_together: int) -> ProbeResult:
        if text == "die" or (text.startswith("die once at ") and not Path(text[12:]).exists()):
            if text != "die":
                Path(text[12:]).touch()
            os._exit(1)
        if text.startswith("sleep "):
            time.sleep(float(text[6:]))
        if text == "fail":
            raise ZeroDivisionError("a secret detail")
        told = {"pid": os.getpid(), "loaded at": self.loaded_at, "together": n_together}
        return fake_result(self.sae, str(told.get(text, text)))

    def predict(self, text: str, *, max_tokens: int) -> Predictions:
        return fake_predictions(self.sae, text)

    def decompose(self, text: str, *, token: int | None, max_tokens: int) -> Decomposition:
        if text == "too long":
            raise PromptTooLongError(f"over {max_tokens}")
        return fake_decomposition(self._probed(text, n_together=1), self.sae, token)


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


class FakeLoader:
    """Models of 100 bytes and SAEs of 10 or the config's "bytes"; "broken" fails, "slow" takes a second."""

    def budget(self, device: str | None) -> int:
        return 10**6

    def sizes(self, sae: SAEInfo) -> Sizes:
        return Sizes(model_key=sae.model.model_name, model_bytes=100, sae_bytes=int(str(sae.config.get("bytes", 10))))

    def load(self, sae: SAEInfo, device: str | None, like: inference.LoadedProber | None) -> Loaded:
        if sae.slug == "broken":
            raise WeightsError(f"The weights of {sae.slug} are half-written; train it again.")
        if sae.slug == "slow":
            time.sleep(1)
        return Loaded(sae)


load = FakeLoader()
