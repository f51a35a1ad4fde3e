"""The records of labels and their scores. Standard library only."""

from dataclasses import dataclass
from datetime import datetime

ORIGINS = ("top", "band", "random", "quiet", "neighbour")  # of a trial's text; the last two hold no firing
METHODS = ("detection", "fuzzing")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedSample:
    """Some contexts with the activations of all features on them, in columns of packed numbers, by feature."""

    context_ids: bytes  # uint32
    starts: bytes  # uint32, d_sae + 1 of them: where each feature's entries start
    places: bytes  # uint32: number of the context among these << 16 | position
    activations: bytes  # float16


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One question that a label had to answer: whether the feature fires in a text, or whether the marks are right."""

    context_id: int
    first: int  # position of the text's first token in its context
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    activations: tuple[float, ...]  # of the feature, one per token
    origin: str
    truth: bool
    marked: tuple[int, ...] = ()  # tokens of the text that were marked (fuzzing)
    answer: bool | None = None  # None: there was none, or it could not be read

    @property
    def is_hit(self) -> bool:
        return self.answer == self.truth


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelScore:
    """How well a label told which texts a feature fires on. Its `text` is the label as it was tested."""

    feature_index: int
    kind: str  # of the label
    method: str
    text: str
    scorer: str  # who judged
    prompt_version: str | None
    balanced_accuracy: float  # mean of the shares of right answers among true and among false trials
    precision: float | None  # of the trials answered yes, the share that are true; None: no yes
    recall: float  # of the true trials, the share answered yes
    n: int
    unparsed: int  # trials without a readable answer; they count as wrong
    baseline: float | None  # balanced accuracy of another feature's label on the same trials
    correlation: float | None  # Pearson, of predicted activations with the true ones, over the trials' tokens
    trials: tuple[Trial, ...]
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacedLabel:
    """A label that stood for a feature until a person wrote another, or took theirs away."""

    text: str
    kind: str
    author: str
    created_at: datetime
    replaced_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow:
    """A score without its trials."""

    feature_index: int
    balanced_accuracy: float
    baseline: float | None
    correlation: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingModel:
    """Which model makes vectors of labels."""

    model_name: str
    revision: str
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelVectors:
    """The vectors of an SAE's labels, each of the label that its feature is called by."""

    model: EmbeddingModel
    n_vectors: int
    n_missing: int  # features whose label has changed, or is new
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """Texts as vectors of unit length, float16, one after the other's `width` numbers."""

    model: EmbeddingModel
    vectors: tuple[bytes, ...]
