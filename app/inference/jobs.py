"""What can be asked of the model worker. A job is sent as it is, and its `run` is called where the models are."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from sae_core.records import Decomposition, ProbeResult, SAEInfo

Answer_co = TypeVar("Answer_co", covariant=True)


class LoadedProber(Protocol):
    """What these jobs need of `sae_core.probe.Prober`."""

    def probe(self, text: str, *, top_k: int, max_tokens: int) -> ProbeResult: ...
    def decompose(self, text: str, *, token: int | None, max_tokens: int) -> Decomposition: ...


class Loaded(Protocol):
    """What the worker holds: models with their SAEs, loaded when they are asked for."""

    @property
    def max_tokens(self) -> int:
        """The longest text that is taken."""

    def prober(self, sae: SAEInfo) -> LoadedProber:
        """The SAE with its model; loading it may take long. Raises ModelError and WeightsError."""


class Job(Generic[Answer_co]):
    """A request with one answer. Jobs are frozen dataclasses, and so are answers: both are pickled."""

    __slots__ = ()

    def run(self, loaded: Loaded) -> Answer_co:
        """The answer; runs in the worker's process. A SaescopeError reaches whoever asked, in its words."""
        raise NotImplementedError


class Stream(Generic[Answer_co]):
    """A request that is answered in parts. `run` is a generator; it is closed when nobody wants the rest."""

    __slots__ = ()

    def run(self, loaded: Loaded) -> Iterator[Answer_co]:
        """The parts. Between two of them the worker may do other jobs: leave no hook on the model meanwhile."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadJob(Job[None]):
    """Load an SAE and its model, so that what is asked next is answered at once."""

    sae: SAEInfo

    def run(self, loaded: Loaded) -> None:
        loaded.prober(self.sae)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeJob(Job[ProbeResult]):
    """The features of a text, with the `top_k` strongest of each token."""

    sae: SAEInfo
    text: str
    top_k: int = 10

    def run(self, loaded: Loaded) -> ProbeResult:
        return loaded.prober(self.sae).probe(self.text, top_k=self.top_k, max_tokens=loaded.max_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecomposeJob(Job[Decomposition]):
    """One token's vector as its parts; a token of None is for the worker to choose."""

    sae: SAEInfo
    text: str
    token: int | None = None

    def run(self, loaded: Loaded) -> Decomposition:
        return loaded.prober(self.sae).decompose(self.text, token=self.token, max_tokens=loaded.max_tokens)
