"""A stand-in for the model: words are tokens, and what is active on them follows from their letters."""

import re
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TypeVar

from app.causal.jobs import AblateJob, AttributeJob, SteerStream
from app.inference import Job, Stream
from sae_core.errors import BusyError, PromptError, PromptTooLongError
from sae_core.records import (
    ActiveFeature,
    Decomposition,
    ProbeFeature,
    ProbeResult,
    ProbeToken,
    SAEInfo,
    TokenPart,
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
        return self.prober(sae).probe(text, top_k=PER_TOKEN, max_tokens=MAX_TOKENS)

    def warm(self, sae: SAEInfo) -> None:
        self.warmed.append(sae.slug)

    async def close(self) -> None:
        self.closed = True


class FakeSAE:
    """Has the interface of `sae_core.probe.Prober`."""

    def __init__(self, sae: SAEInfo, texts: list[str]) -> None:
        self.sae, self.texts = sae, texts

    def probe(self, text: str, *, top_k: int, max_tokens: int) -> ProbeResult:
        self.texts.append(text)
        if "busy" in text:
            raise BusyError("3 probes are waiting for the model: try again in a few seconds.")
        if "crash" in text:
            raise RuntimeError("a secret detail")
        return fake_result(self.sae, text, top_k=top_k)

    def decompose(self, text: str, *, token: int | None, max_tokens: int) -> Decomposition:
        return fake_decomposition(self.probe(text, top_k=PER_TOKEN, max_tokens=max_tokens), self.sae, token)


def fake_result(sae: SAEInfo, text: str, *, top_k: int) -> ProbeResult:
    words = ["<bos>", *re.findall(r"\s?[^\s]+|\s", text)]
    if len(words) > MAX_TOKENS:
        raise PromptTooLongError(f"The text has {len(words)} tokens; at most {MAX_TOKENS} are taken: shorten it.")
    tokens = [
        ProbeToken(token=word, token_id=at, is_special=at == 0, features=_active(word, sae, top_k, at))
        for at, word in enumerate(words)
    ]
    found = sorted({active.feature_index for token in tokens for active in token.features})
    features = [_over_text(feature_index, tokens) for feature_index in found]
    features.sort(key=lambda feature: (-feature.max_activation, feature.feature_index))
    return ProbeResult(slug=sae.slug, text=text, tokens=tuple(tokens), features=tuple(features), seconds=0.018)


def fake_decomposition(result: ProbeResult, sae: SAEInfo, token: int | None) -> Decomposition:
    """Each feature takes half of what is left; token 0 is special."""
    position = len(result.tokens) - 1 if token is None else token
    if position >= len(result.tokens):
        raise PromptError(f"The text has no token {position}; pick another.")
    chosen = result.tokens[position]
    model_acts = tuple(((i * 37 + position) % 19 - 9) / 3 for i in range(sae.d_in))
    parts = tuple(
        TokenPart(feature_index=a.feature_index, activation=a.activation, share=0.45 / 2**n, error=0.45 / 2**n)
        for n, a in enumerate(chosen.features, start=1)
    )
    return Decomposition(
        slug=result.slug,
        text=result.text,
        tokens=tuple(replace(t, features=()) for t in result.tokens),
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


def _active(word: str, sae: SAEInfo, top_k: int, position: int) -> tuple[ActiveFeature, ...]:
    if position == 0:
        return ()
    seed = zlib.crc32(word.encode("utf-8", "replace"))
    active = {(seed >> shift) % sae.d_sae: ((seed >> shift) % 97) / 12 + 0.1 for shift in range(PER_TOKEN)}
    ranked = sorted(active.items(), key=lambda pair: -pair[1])
    return tuple(ActiveFeature(feature_index=index, activation=value) for index, value in ranked[:top_k])


def _over_text(feature_index: int, tokens: list[ProbeToken]) -> ProbeFeature:
    values = {
        position: active.activation
        for position, token in enumerate(tokens)
        for active in token.features
        if active.feature_index == feature_index
    }
    strongest = max(values, key=lambda position: (values[position], -position))
    return ProbeFeature(
        feature_index=feature_index,
        max_activation=values[strongest],
        max_position=strongest,
        positions=tuple(values),
        activations=tuple(values.values()),
    )
