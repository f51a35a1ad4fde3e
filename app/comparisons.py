"""What a comparison answers, as records: `comparing` makes them, the JSON twin is them, the pages print them."""

from dataclasses import dataclass
from typing import Literal

from sae_core.comparison import DensityDifference, SharedContext, TokenDifferences
from sae_core.records import Example, Feature, Histogram, IndexInfo, SAEInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSide:
    """One of two features, as its index knows it. `n_contexts` counts those among its examples."""

    reference: str
    slug: str
    corpus: str
    has_bos: bool
    feature: Feature
    examples: tuple[Example, ...]
    n_contexts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosine:
    """Of two decoder directions, and where it comes from; `problem` says why there is none, `note` what to mind."""

    value: float | None
    source: Literal["weights", "index"] | None = None
    problem: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """Where b stands among the features most often active with a, and the reverse; None: not among those stored."""

    jaccard: float | None
    n_together: int | None  # tokens of the sample on which both are active
    place_of_b: int | None
    place_of_a: int | None
    at_most: float | None  # the Jaccard index, where neither is stored of the other


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureComparison:
    """Two features. `shared` has the first of `n_shared` contexts; None where they were indexed on different texts.

    `together` is None for features of two SAEs or corpora, where it is not measured.
    """

    a: FeatureSide
    b: FeatureSide
    cosine: Cosine
    together: Together | None
    shared: tuple[SharedContext, ...] | None
    n_shared: int | None
    differences: TokenDifferences
    kind: Literal["features"] = "features"


@dataclass(frozen=True, slots=True, kw_only=True)
class SAESide:
    """One of two SAEs, and how many of its features were asked about, looked for a match, and have one."""

    reference: str
    sae: SAEInfo
    index: IndexInfo | None
    n_features: int = 0
    n_looked: int = 0
    share_matched: float | None = None
    cosines: Histogram | None = None  # of the best matches


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchRow:
    """A feature, its best match in the other SAE, and what is known of both. Densities are of each SAE's index."""

    feature_index: int
    other_index: int
    cosine: float
    label: str | None
    other_label: str | None
    density: float | None
    other_density: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SAEComparison:
    """Two SAEs. Where the weights cannot be compared `problem` says why, and there are no matches.

    `best` are features of a and their closest in b; `unmatched_a` and `unmatched_b` those of each whose closest is
    below `least`, the furthest or the most frequent first.
    """

    a: SAESide
    b: SAESide
    least: float
    chance: float | None
    is_sample: bool
    problem: str | None
    notes: tuple[str, ...]
    best: tuple[MatchRow, ...]
    unmatched_a: tuple[MatchRow, ...]
    unmatched_b: tuple[MatchRow, ...]
    kind: Literal["saes"] = "saes"


@dataclass(frozen=True, slots=True, kw_only=True)
class DensityRow:
    """A feature that fires more often on one corpus, with its strongest example on each."""

    difference: DensityDifference
    label: str | None
    max_a: float
    max_b: float
    example_a: Example | None
    example_b: Example | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusComparison:
    """One SAE on two corpora: `more_on_a` and `more_on_b` are the first of `n_more_on_a` and `n_more_on_b`."""

    reference_a: str
    reference_b: str
    sae: SAEInfo
    a: IndexInfo
    b: IndexInfo
    n_alive_on_both: int
    n_only_on_a: int
    n_only_on_b: int
    n_dead_on_both: int
    n_rare: int
    n_alike: int
    n_more_on_a: int
    n_more_on_b: int
    ratios: Histogram
    more_on_a: tuple[DensityRow, ...]
    more_on_b: tuple[DensityRow, ...]
    kind: Literal["corpora"] = "corpora"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Something that could be compared, as it stands in an address; what it is to what is chosen; a fact about it."""

    reference: str
    group: str
    fact: str
    label: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """An unfinished comparison: what is chosen, and what could stand beside it."""

    a: str | None
    b: str | None
    items: tuple[Choice, ...]
    next: str | None = None
    kind: Literal["choices"] = "choices"


Comparison = FeatureComparison | SAEComparison | CorpusComparison
