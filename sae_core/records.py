"""The frozen records that cross modules: what the index hands to the store, and the store and probe to the pages.

Standard library only. Tensors never appear here: packed numbers are `bytes`, little-endian.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sae_core.access_records import Visibility
from sae_core.bands import N_BANDS, band_edges
from sae_core.explain.records import PackedSample
from sae_core.tokens_text import whole_text

TOP_BAND = 0
MAP_SIDE = 65_535  # a map's places go from 0 to this, in both directions
RANDOM_BAND = N_BANDS + 1  # bands 1..N_BANDS are octaves of activation, the weakest first (`bands`)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One text of a corpus and where it came from (a path, a path with line number, or a data set row).

    A conversation has `messages` (role, content) and no text: the model's chat template makes one of them (`tokens`).
    """

    text: str
    source: str
    messages: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What each token id of a model stands for: raw UTF-8 bytes (a character may be split), and the special ids."""

    tokens: tuple[bytes, ...]
    special_ids: frozenset[int]
    texts: tuple[str | None, ...] = field(init=False, compare=False, repr=False)  # None: a part of a character

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", tuple(map(whole_text, self.tokens)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A language model: where it was loaded from and what is needed to reproduce its numbers."""

    model_name: str  # Hugging Face id or folder
    revision: str  # hub commit, or a fingerprint of the folder's weight files
    architecture: str  # transformers class name
    n_layers: int
    d_model: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SAEInfo:
    """A trained SAE. `config` is the training configuration as saved beside the weights."""

    slug: str
    model: ModelInfo
    hook_name: str  # blocks.{layer}.hook_resid_post and its like
    layer: int
    architecture: str  # topk
    d_in: int
    d_sae: int
    k: int | None
    n_training_tokens: int
    weights_path: str
    created_at: datetime
    config: Mapping[str, object] = field(default_factory=dict)

    @property
    def origin(self) -> str | None:
        """Where it was imported from; None if it was trained here."""
        origin = self.config.get("imported_from")
        return None if origin is None else str(origin)

    @property
    def target_hook_name(self) -> str:
        """Where stands what it reconstructs: where it reads, but for a transcoder."""
        target, layer = self.config.get("target_hook"), self.config.get("target_layer")
        if target is None or "." in str(target):  # the SAE's own, or a whole name
            return str(target or self.hook_name)
        return f"blocks.{self.layer if layer is None else layer}.hook_{target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusInfo:
    """A corpus as it was cut into contexts."""

    name: str
    fingerprint: str  # SHA-256 over the token ids of all contexts
    sources: tuple[str, ...]  # as given on the command line
    context_size: int  # tokens, BOS included
    prepend_bos: bool
    n_documents: int
    n_contexts: int
    n_tokens: int  # tokens that count: no padding, no special tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Counts between `edges` (one more edge than counts)."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexMetrics:
    """How good an SAE is on one corpus; definitions in `sae_core.metrics`. What may be None was not measured by older
    versions, or means nothing here (no prediction of an encoder, no mean over no feature)."""

    l0: float  # mean active features per token
    fvu: float  # share of variance not explained
    explained_variance: float  # 1 − fvu
    cosine: float | None = None  # of reconstructions and what they stand for, mean over tokens
    reconstruction_bias: float | None = None  # 1 = reconstructions are as long as they should be, below: too short
    ce_recovered: float | None  # 1 = the model predicts as well with sae_out in place of model_acts
    ce_loss: float | None = None  # nats per predicted token, the model as it is
    ce_loss_with_sae: float | None = None  # the same with sae_out in place of model_acts
    ce_loss_with_zeros: float | None = None  # the same with zeros there
    kl: float | None = None  # nats per predicted token, from the model as it is to the model with sae_out
    ce_tokens: int | None = None  # predicted tokens of the sample on which CE and KL were measured
    dead_share: float  # share of features with density 0 on this corpus
    dense_share: float  # share of features with density above `dense_threshold`
    dense_threshold: float
    encoder_decoder_cosine: float | None = None  # mean over features that are not dead
    encoder_decoder_histogram: Histogram | None = None  # of the same features, from −1 to 1


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexInfo:
    """One SAE measured on one corpus. `index_id` is None until the store has given it one."""

    slug: str
    corpus: CorpusInfo
    metrics: IndexMetrics
    dtype: str  # of the model's forward pass
    seed: int
    seconds: float  # wall time of the pass
    created_at: datetime
    index_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One SAE measured on one corpus without its features' evidence: what `saescope eval` prints."""

    slug: str
    model: ModelInfo
    hook_name: str
    target_hook_name: str  # what is reconstructed; differs from `hook_name` for a transcoder
    corpus: CorpusInfo
    metrics: IndexMetrics
    density_histogram: Histogram  # of log10 of density, features that are not dead
    dtype: str  # of the model's forward pass
    seconds: float  # wall time
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """A run of tokens fed to the model, stored once however many features point at it."""

    context_id: int  # position in the corpus
    source: str
    token_ids: bytes  # uint32


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenWeight:
    """A token and its logit attribution for one feature, in logits per unit of activation."""

    token: str
    token_id: int
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenShare:
    """A token that stands at, before or after a feature's firings, on a sample of them."""

    token: str
    token_id: int
    count: int  # firings of the sample where it stands there
    share: float  # of the sample's activation that falls on them


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionShare:
    """How often a feature fires at positions `first` to `last` of a context, which count from 0."""

    first: int
    last: int
    density: float  # share of the tokens at these positions on which it is active
    share: float  # of its firings that fall there


@dataclass(frozen=True, slots=True, kw_only=True)
class CoactiveFeature:
    """Another feature that is active on the same tokens, on a sample of tokens."""

    feature_index: int
    together: int  # tokens of the sample on which both are active
    jaccard: float  # together ÷ tokens on which either is
    label: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NearestFeature:
    """Another feature of the same SAE whose decoder direction is close."""

    feature_index: int
    cosine: float
    label: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What a feature is called, and who says so. `kind`: one of `labels.KINDS`."""

    text: str
    kind: str
    author: str
    score: float | None
    created_at: datetime
    certainty: float | None = None  # of the language model that wrote it, as it says itself
    prompt_version: str | None = None  # what that model was asked


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelText:
    """What a feature is called, and how well its automatic label does; the rest of a label where there are many."""

    feature_index: int
    text: str
    confidence: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSummary:
    """What a list shows of a feature on one corpus. A dead feature has density 0."""

    feature_index: int
    density: float  # share of indexed tokens on which it is active
    n_active: int  # tokens on which it is active
    max_activation: float
    mean_activation: float  # mean over the tokens on which it is active
    encoder_decoder_cosine: float
    histogram: Histogram  # of its activations above 0; four bins to an octave
    promoted_tokens: tuple[TokenWeight, ...]
    label: Label | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature(FeatureSummary):
    """All that is known of one feature on one corpus. A dead feature has empty evidence."""

    band_shares: tuple[float, ...]  # share of firings in bands 1..N_BANDS
    suppressed_tokens: tuple[TokenWeight, ...]
    nearest: tuple[NearestFeature, ...]
    # None and empty in what follows: not measured, as in indexes made before revision 0003 of the database.
    mean_square: float | None = None  # of its activations, over the tokens on which it is active
    encoder_norm: float | None = None
    decoder_norm: float | None = None
    profile: tuple[PositionShare, ...] = ()
    n_sampled: int = 0  # firings drawn at random, of which the next three count the tokens
    tokens_on: tuple[TokenShare, ...] = ()  # on which it fires, the largest share first
    tokens_before: tuple[TokenShare, ...] = ()  # the most frequent first
    tokens_after: tuple[TokenShare, ...] = ()
    promoted_share: float | None = None  # of the sample's firings that one of the promoted tokens follows
    coactive: tuple[CoactiveFeature, ...] = ()  # the largest Jaccard index first

    @property
    def band_edges(self) -> tuple[float, ...]:
        """The N_BANDS + 1 activations between which its bands lie; before revision 0003 they were fifths of its max."""
        if self.mean_square is None:
            return tuple(self.max_activation * i / N_BANDS for i in range(N_BANDS + 1))
        return band_edges(self.max_activation)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFeature:
    """One feature as the index writes it: numbers, and columns of packed numbers in the form that the store keeps.

    What each means stands at `Feature`, which the store makes of it for a page.
    """

    feature_index: int
    density: float
    n_active: int
    max_activation: float
    mean_activation: float
    encoder_decoder_cosine: float
    mean_square: float | None
    encoder_norm: float | None
    decoder_norm: float | None
    histogram: bytes  # number of edges (uint16) and the edges (float64), 0 where they are `bin_edges`; counts (uint32)
    band_shares: bytes  # float64
    promoted_tokens: bytes  # (token_id uint32, weight float32), strongest first
    suppressed_tokens: bytes
    nearest: bytes  # (feature_index uint32, cosine float32), nearest first
    profile: bytes  # (first uint16, last uint16, density float32, share float32)
    # Firings drawn (uint16); of the tokens on, before and after them how many (uint8), and of each (token_id uint32,
    # count uint16, share float32).
    sampled_tokens: bytes
    promoted_share: float | None
    coactive: bytes  # (feature_index uint32, together uint32, jaccard float32), the strongest first
    label: Label | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedExamples:
    """All examples of one feature as the index writes them, by band and rank: columns of packed numbers."""

    feature_index: int
    bands: bytes  # uint8: TOP_BAND, 1..N_BANDS or RANDOM_BAND, ascending
    context_ids: bytes  # uint32
    positions: bytes  # uint16: the token that each was chosen for
    activations: bytes  # float32: there
    copies: (
        bytes  # uint32: places of the corpus that read the same around that token, this one included; 0: not counted
    )
    lengths: bytes  # uint16: tokens of the context on which the feature is active
    active_positions: bytes  # uint16: these tokens, ascending, of one example after the other
    active_values: bytes  # float16: the activations there


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRecords:
    """A finished index on its way to the store. The iterables are consumed once, in this order.

    Contexts are those that an example points at, and those of the sample.
    """

    info: IndexInfo
    contexts: Iterable[Context]
    features: Iterable[PackedFeature]
    examples: Iterable[PackedExamples]
    sample: PackedSample | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One feature on one context as a page shows it: tokens as text, one activation per token (0 where inactive)."""

    feature_index: int
    context_id: int
    source: str
    band: int
    rank: int
    position: int
    activation: float
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    activations: tuple[float, ...]
    copies: int = 0  # places of the corpus that read the same around the peak, this one included; 0: not counted


@dataclass(frozen=True, slots=True, kw_only=True)
class SAESummary:
    """An SAE with its ready indexes, newest first."""

    sae: SAEInfo
    indexes: tuple[IndexInfo, ...]
    visibility: Visibility = "public"


@dataclass(frozen=True, slots=True, kw_only=True)
class SAEContents:
    """How much hangs on an SAE: the first three go with it, the others stay and say that it is gone."""

    n_indexes: int
    n_labels: int
    n_human_labels: int
    n_list_items: int
    n_probes: int
    n_steerings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureRow:
    """A feature in a list, with its most telling examples."""

    feature: FeatureSummary
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturePage:
    """One page of a feature list; `next` is the cursor of the following page, or None."""

    items: tuple[FeatureRow, ...]
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureDetail:
    """Everything a feature page shows. `previous` and `following` are the neighbouring alive features."""

    feature: Feature
    examples: tuple[Example, ...]  # ordered by band, then rank
    previous: int | None
    following: int | None
    labels: tuple[Label, ...] = ()  # all of them, a person's first: the first is the one shown


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturePoint:
    """One feature as a point of an SAE's charts."""

    feature_index: int
    density: float
    max_activation: float
    encoder_decoder_cosine: float | None = None  # None: one of the directions is zero


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """The nearest features of every feature of an SAE, in the store's own packing."""

    d_sae: int
    packed: bytes  # (feature_index uint32, cosine float32), nearest first; as many for each feature

    @property
    def per_feature(self) -> int:
        return len(self.packed) // (8 * max(self.d_sae, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureMap:
    """An SAE's decoder directions in the plane: every feature's place, by feature index, 0 to `MAP_SIDE` each way.

    Neighbours in the plane are mostly neighbours in the SAE; distances between what is far apart mean little.
    """

    xs: tuple[int, ...]
    ys: tuple[int, ...]
    n_neighbours: int  # nearest features of each that it was made from
    seed: int
    seconds: float
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A text to be probed. Texts of one session are versions of each other, and only what changed is run again."""

    text: str
    special: bool = False  # whether special tokens (BOS and the like) have features too
    session: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeToken:
    """One token of a probe and all features that are active on it, the strongest first."""

    token: str
    token_id: int
    is_special: bool
    feature_indexes: tuple[int, ...] = ()
    activations: tuple[float, ...] = ()  # of these features


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What an SAE's features do on a reader's own text. Special tokens have features only where that was asked for."""

    slug: str
    text: str
    tokens: tuple[ProbeToken, ...]
    n_computed: int  # tokens that were run; the others were kept from the text before
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TextActivations:
    """One of many texts: each feature that is active in it, how strongly at most, and on which token."""

    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    feature_indexes: tuple[int, ...]
    maxima: tuple[float, ...]
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrediction:
    """What a model expects after one token: the likeliest next tokens, and how unexpected the token itself was."""

    surprise: float | None  # −log2 of the probability it had, in bits; None for a text's first token
    next_tokens: tuple[str, ...]  # the likeliest first
    probabilities: tuple[float, ...]  # of these


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """A language model's own predictions along a text, token by token as a probe has them."""

    text: str
    tokens: tuple[TokenPrediction, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPart:
    """What one feature adds to the reconstruction of one token's vector x: activation · W_dec[feature_index]."""

    feature_index: int
    activation: float
    share: float  # of x: what it adds along x, over the length of x; may be negative
    error: float  # ‖x − x̂‖² ÷ ‖x‖², x̂ being b_dec and all parts up to this one


@dataclass(frozen=True, slots=True, kw_only=True)
class Decomposition:
    """One token's vector as an SAE writes it: b_dec, the active features one by one, and what is left over.

    The vector x that is reconstructed is `target_acts` for a transcoder, else `model_acts`. A special token has no
    features, so that nothing is reconstructed there: its parts and `sae_out` are empty, its shares and errors None.
    """

    slug: str
    text: str
    tokens: tuple[ProbeToken, ...]  # of the whole text, without their features
    position: int  # of the token that was decomposed
    model_acts: tuple[float, ...]  # (d_in): what the SAE reads
    target_acts: tuple[float, ...]  # (d_out) of a transcoder; empty for an SAE
    sae_out: tuple[float, ...]  # (d_out)
    bias_share: float | None  # b_dec's part of x, as that of a feature
    bias_error: float | None  # ‖x − b_dec‖² ÷ ‖x‖²
    parts: tuple[TokenPart, ...]  # the largest activation first
    error: float | None  # ‖x − x̂‖² ÷ ‖x‖², x̂ being the whole reconstruction
    seconds: float

    @property
    def vector(self) -> tuple[float, ...]:
        """What is reconstructed."""
        return self.target_acts or self.model_acts


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedProbe:
    """A text that somebody shared with what they picked out in it. `problem` says why its SAE is not there."""

    probe_id: str
    slug: str
    text: str
    state: dict[str, Any]  # as the probe page's parameters
    author: str
    created_at: datetime
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListSummary:
    """A list of features that people collect, without its items."""

    list_id: str
    title: str
    description: str
    author: str
    created_at: datetime
    updated_at: datetime
    version: int  # goes up by one with every change but those of notes
    n_items: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ListItem:
    """A feature in a list. Where `problem` says why, the feature is not there to be shown: the rest is None."""

    item_id: int
    slug: str
    feature_index: int
    corpus: str | None  # as asked for when it was added; None stands for the newest index
    note: str
    author: str  # who added it, or changed the note last
    created_at: datetime
    updated_at: datetime
    version: int  # of the note
    label_then: str | None  # what it was called when it was added
    measured_on: CorpusInfo | None = None
    feature: Feature | None = None
    examples: tuple[Example, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureList:
    """A list with its items in order."""

    list_id: str
    title: str
    description: str
    author: str
    created_at: datetime
    updated_at: datetime
    version: int
    items: tuple[ListItem, ...]
