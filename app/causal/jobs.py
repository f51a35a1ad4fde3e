"""What these pages ask of the model worker; torch is imported where the jobs run."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from app.inference import Job, Loaded, Stream
from sae_core.causal.records import Ablation, Attribution, SteerPart, SteerRequest
from sae_core.records import SAEInfo

if TYPE_CHECKING:
    from sae_core.probe import Prober


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeJob(Job[Attribution]):
    """Why the model would say `target` after a token of the text."""

    sae: SAEInfo
    text: str
    token: int | None = None
    target: str | None = None
    against: str | None = None

    def run(self, loaded: Loaded) -> Attribution:
        from sae_core.causal.attribution import attribute

        prober = cast("Prober", loaded.prober(self.sae))
        return attribute(
            prober, self.text, token=self.token, target=self.target, against=self.against, max_tokens=loaded.max_tokens
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AblateJob(Job[Ablation]):
    """The same question to the model without some features."""

    question: AttributeJob
    features: tuple[int, ...]

    def run(self, loaded: Loaded) -> Ablation:
        from sae_core.causal.ablation import ablate

        asked = self.question
        return ablate(
            cast("Prober", loaded.prober(asked.sae)), asked.text, features=self.features, token=asked.token,
            target=asked.target, against=asked.against, max_tokens=loaded.max_tokens,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SteerStream(Stream[SteerPart]):
    """A prompt gone on with while features are pushed, a part for each token."""

    sae: SAEInfo
    asked: SteerRequest
    max_seconds: float

    def run(self, loaded: Loaded) -> Iterator[SteerPart]:
        from sae_core.causal.steering import steer

        prober = cast("Prober", loaded.prober(self.sae))
        yield from steer(prober, self.asked, max_tokens=loaded.max_tokens, max_seconds=self.max_seconds)
