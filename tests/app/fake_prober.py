"""A stand-in for the model: words are tokens, and what is active on them follows from their letters."""

import re
import struct
import zlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import TypeVar

from app.causal.jobs import AblateJob, AttributeJob, SteerStream
from app.inference import Job, Stream, WorkerState
from sae_core.errors import BusyError, ModelError, PromptError, PromptTooLongError, SaescopeError
from sae_core.explain.records import Embedded, EmbeddingModel
from sae_core.records import (
    Decomposition,
    Predictions,
    ProbeResult,
    ProbeToken,
    Prompt,
    SAEInfo,
    TokenPart,
    TokenPrediction,
)
from tests.app.fake_causal import fake_ablation, fake_attribution, fake_steering

Answer = TypeVar("Answer")

MAX_TOKENS = 200
PER_TOKEN = 6


class FakeProber:
    """Has the interface of `app.inference.Inference`; jobs run here and now, on words instead of a model.

    The words "busy" and "crash" make it fail.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.warmed: list[str] = []
        self.closed = False
        self.max_tokens = MAX_TOKENS

    def prober(self, sae: SAEInfo) -> "FakeSAE":
        return FakeSAE(sae, self.texts)

    def embedder(self, model: EmbeddingModel) -> "FakeEmbedder":
        if model.model_name == "gone":
            raise ModelError("There is no model folder gone; check the path.")
        return FakeEmbedder(model, self.texts)

    async def answer(self, job: Job[Answer]) -> Answer:
        if isinstance(job, AttributeJob):
            return fake_attribution(job, self._probed(job.sae, job.text))  # type: ignore[return-value]
        if isinstance(job, AblateJob):
            return fake_ablation(job, self._probed(job.question.sae, job.question.text))  # type: ignore[return-value]
        return job.run(self)

    async def stream(self, job: Stream[Answer]) -> AsyncIterator[Answer]:
        steering = isinstance(job, SteerStream)
        parts = fake_steering(job, self._probed(job.sae, job.asked.prompt)) if steering else job.run(self)
        for part in parts:
            yield part

    def _probed(self, sae: SAEInfo, text: str) -> ProbeResult:
        return self.prober(sae)._probed(Prompt(text=text))

    def state(self) -> WorkerState:
        return WorkerState(pending=0, loading=None)

    def warm(self, sae: SAEInfo) -> None:
        self.warmed.append(sae.slug)

    async def close(self) -> None:
        self.closed = True


class FakeSAE:
    """Has the interface of `sae_core.probe.Prober`."""

    def __init__(self, sae: SAEInfo, texts: list[str]) -> None:
        self.sae, self.texts = sae, texts

    def probe_all(self, prompts: Sequence[Prompt], *, max_tokens: int) -> list[ProbeResult | SaescopeError]:
        found: list[ProbeResult | SaescopeError] = []
        for prompt in prompts:
            try:
                found.append(self._probed(prompt))
            except SaescopeError as error:
                found.append(error)
        return found

    def _probed(self, prompt: Prompt) -> ProbeResult:
        self.texts.append(prompt.text)
        if "busy" in prompt.text:
            raise BusyError("3 probes are waiting for the model: try again in a few seconds.")
        if "crash" in prompt.text:
            raise RuntimeError("a secret detail")
        return fake_result(self.sae, prompt.text, special=prompt.special)

    def predict(self, text: str, *, max_tokens: int) -> Predictions:
        return fake_predictions(self.sae, text)

    def decompose(self, text: str, *, token: int | None, max_tokens: int) -> Decomposition:
        return fake_decomposition(self._probed(Prompt(text=text)), self.sae, token)


def fake_result(sae: SAEInfo, text: str, *, special: bool = False) -> ProbeResult:
    words = ["<bos>", *re.findall(r"\s?[^\s]+|\s", text)]
    if len(words) > MAX_TOKENS:
        raise PromptTooLongError(f"The text has {len(words)} tokens; at most {MAX_TOKENS} are taken: shorten it.")
    tokens = []
    for at, word in enumerate(words):
        active = _active(word, sae) if at or special else {}
        tokens.append(
            ProbeToken(
                token=word, token_id=at, is_special=at == 0,
                feature_indexes=tuple(active), activations=tuple(active.values()),
            )
        )  # fmt: skip
    return ProbeResult(slug=sae.slug, text=text, tokens=tuple(tokens), n_computed=len(tokens), seconds=0.018)


def fake_predictions(sae: SAEInfo, text: str) -> Predictions:
    """After each word the model expects "<next>"; the longer a word, the more it surprises."""
    tokens = tuple(
        TokenPrediction(
            surprise=None if at == 0 else len(token.token) / 2,
            next_tokens=("<next>", "\n"), probabilities=(0.75, 0.125),
        )
        for at, token in enumerate(fake_result(sae, text).tokens)
    )  # fmt: skip
    return Predictions(text=text, tokens=tokens, seconds=0.021)


def fake_decomposition(result: ProbeResult, sae: SAEInfo, token: int | None) -> Decomposition:
    """Each feature takes half of what is left; token 0 is special."""
    position = len(result.tokens) - 1 if token is None else token
    if position >= len(result.tokens):
        raise PromptError(f"The text has no token {position}; pick another.")
    chosen = result.tokens[position]
    model_acts = tuple(((i * 37 + position) % 19 - 9) / 3 for i in range(sae.d_in))
    parts = tuple(
        TokenPart(feature_index=index, activation=activation, share=0.45 / 2**n, error=0.45 / 2**n)
        for n, (index, activation) in enumerate(zip(chosen.feature_indexes, chosen.activations, strict=True), start=1)
    )
    return Decomposition(
        slug=result.slug,
        text=result.text,
        tokens=tuple(replace(t, feature_indexes=(), activations=()) for t in result.tokens),
        position=position,
        model_acts=model_acts,
        target_acts=(),
        sae_out=() if chosen.is_special else tuple(value * 0.9 for value in model_acts),
        bias_share=None if chosen.is_special else 0.1,
        bias_error=None if chosen.is_special else 0.45,
        parts=parts,
        error=parts[-1].error if parts else None,
        seconds=0.012,
    )


def _active(word: str, sae: SAEInfo) -> dict[int, float]:
    seed = zlib.crc32(word.encode("utf-8", "replace"))
    active = {(seed >> shift) % sae.d_sae: ((seed >> shift) % 97) / 12 + 0.1 for shift in range(PER_TOKEN)}
    return dict(sorted(active.items(), key=lambda pair: -pair[1]))


class FakeEmbedder:
    """Texts with the same letters are near each other."""

    def __init__(self, model: EmbeddingModel, texts: list[str]) -> None:
        self.info = model
        self.texts = texts

    def embedded(self, texts: Sequence[str]) -> Embedded:
        self.texts += texts
        return Embedded(model=self.info, vectors=tuple(letters(text, self.info.width) for text in texts))


def letters(text: str, width: int) -> bytes:
    """How often each letter occurs, as a vector of unit length."""
    counts = [0.001] * width
    for letter in text.lower():
        if letter.isalpha():
            counts[ord(letter) % width] += 1
    size = sum(count * count for count in counts) ** 0.5
    return struct.pack(f"<{width}e", *(count / size for count in counts))
