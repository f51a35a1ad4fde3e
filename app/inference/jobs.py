"""What can be asked of the model worker. A job is sent as it is, and its `run` is called where the models are."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from sae_core.errors import SaescopeError
from sae_core.explain.records import Embedded, EmbeddingModel
from sae_core.records import Decomposition, Predictions, ProbeResult, Prompt, SAEInfo, TextActivations

Answer_co = TypeVar("Answer_co", covariant=True)


class LoadedProber(Protocol):
    """What these jobs need of `sae_core.probe.Prober`."""

    def probe_all(self, prompts: Sequence[Prompt], *, max_tokens: int) -> list[ProbeResult | SaescopeError]: ...
    def predict(self, text: str, *, max_tokens: int) -> Predictions: ...
    def decompose(self, text: str, *, token: int | None, max_tokens: int) -> Decomposition: ...


class LoadedEmbedder(Protocol):
    """What is needed of `sae_core.embedding.Embedder`."""

    @property
    def info(self) -> EmbeddingModel: ...
    def embedded(self, texts: Sequence[str]) -> Embedded: ...


class Loaded(Protocol):
    """What the worker holds: models with their SAEs, loaded when they are asked for."""

    @property
    def max_tokens(self) -> int:
        """The longest text that is taken."""

    def prober(self, sae: SAEInfo) -> LoadedProber:
        """The SAE with its model; loading it may take long. Raises ModelError and WeightsError."""

    def embedder(self, model: EmbeddingModel) -> LoadedEmbedder:
        """A model that makes vectors of texts. Raises ModelError, also where it is another revision by now."""


class Job(Generic[Answer_co]):
    """A request with one answer. Jobs are frozen dataclasses, and so are answers: both are pickled."""

    __slots__ = ()

    def run(self, loaded: Loaded) -> Answer_co:
        """The answer; runs in the worker's process. A SaescopeError reaches whoever asked, in its words."""
        raise NotImplementedError

    def alike(self) -> Hashable | None:
        """Waiting jobs for which this is the same are run by one `run_all`; None: this one is run alone."""
        return None

    def run_all(self, jobs: Sequence[Any], loaded: Loaded) -> list[Any]:
        """The answer or SaescopeError of each of `jobs`, which are alike; called on the first of them."""
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
    """The features of a text. Texts for one SAE that wait at the same time are run together."""

    sae: SAEInfo
    prompt: Prompt

    def run(self, loaded: Loaded) -> ProbeResult:
        (found,) = self.run_all([self], loaded)
        if isinstance(found, SaescopeError):
            raise found
        return found

    def alike(self) -> Hashable:
        return ProbeJob, self.sae.slug, self.sae.weights_path

    def run_all(self, jobs: Sequence["ProbeJob"], loaded: Loaded) -> list[ProbeResult | SaescopeError]:
        prompts = [job.prompt for job in jobs]
        return loaded.prober(self.sae).probe_all(prompts, max_tokens=loaded.max_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictJob(Job[Predictions]):
    """What the model itself expects along a text."""

    sae: SAEInfo
    text: str

    def run(self, loaded: Loaded) -> Predictions:
        return loaded.prober(self.sae).predict(self.text, max_tokens=loaded.max_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecomposeJob(Job[Decomposition]):
    """One token's vector as its parts; a token of None is for the worker to choose."""

    sae: SAEInfo
    text: str
    token: int | None = None

    def run(self, loaded: Loaded) -> Decomposition:
        return loaded.prober(self.sae).decompose(self.text, token=self.token, max_tokens=loaded.max_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedJob(Job[Embedded]):
    """Texts as vectors by an embedding model, which is loaded beside the SAEs."""

    model: EmbeddingModel
    texts: tuple[str, ...]

    def run(self, loaded: Loaded) -> Embedded:
        return loaded.embedder(self.model).embedded(self.texts)


TEXTS_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TextsJob(Stream[tuple[TextActivations, ...]]):
    """Many texts, a few at a time. Errors name a text by its set: the first `n_first` are A's, the others B's."""

    sae: SAEInfo
    texts: tuple[str, ...]
    n_first: int

    def run(self, loaded: Loaded) -> Iterator[tuple[TextActivations, ...]]:
        for start in range(0, len(self.texts), TEXTS_AT_ONCE):
            prompts = [Prompt(text=text) for text in self.texts[start : start + TEXTS_AT_ONCE]]
            found = loaded.prober(self.sae).probe_all(prompts, max_tokens=loaded.max_tokens)
            yield tuple(self._activations(result, at) for at, result in enumerate(found, start=start))

    def _activations(self, result: ProbeResult | SaescopeError, at: int) -> TextActivations:
        if isinstance(result, SaescopeError):
            name, number = ("A", at + 1) if at < self.n_first else ("B", at - self.n_first + 1)
            raise type(result)(f"Text {number} of {name}: {result}")
        peaks: dict[int, tuple[float, int]] = {}
        for position, token in enumerate(result.tokens):
            for feature_index, activation in zip(token.feature_indexes, token.activations, strict=True):
                if feature_index not in peaks or activation > peaks[feature_index][0]:
                    peaks[feature_index] = activation, position
        return TextActivations(
            tokens=tuple(token.token for token in result.tokens),
            token_ids=tuple(token.token_id for token in result.tokens),
            feature_indexes=tuple(peaks),
            maxima=tuple(value for value, _ in peaks.values()),
            positions=tuple(position for _, position in peaks.values()),
        )
