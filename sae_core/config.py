"""One frozen configuration per job: validated when made, saved beside the result, never changed."""

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sae_core.errors import ConfigError

HOOKS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "z", "mlp_in", "mlp_post", "mlp_out")
ARCHITECTURES = ("topk", "batchtopk", "matryoshka", "jumprelu", "gated", "relu")
PENALISED = ("relu", "gated")  # their sparsity comes from an L1 penalty
LONGEST_CONTEXT = 65_536  # of an index: positions are packed into 16 bits
MOST_RANDOM = 100  # firings drawn at random from each feature, whose tokens are counted
QUANTISED = ("int8", "int4")  # weights; such a model computes in bfloat16
DTYPES = ("float32", "bfloat16", "float16", *QUANTISED)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How one SAE is trained."""

    model: str  # Hugging Face id or folder of the language model
    layer: int  # block whose activations are read, 0 first
    corpus: tuple[str, ...]  # files, folders, globs, `python-docs`, or `hub:NAME`
    hook: str = "resid_post"  # where in the block: one of HOOKS, as `model` says what they are
    target_hook: str | None = None  # hook that a transcoder predicts; None: an SAE, which predicts its input
    target_layer: int | None = None  # block of the transcoder's target; None: the same
    architecture: str = "topk"  # topk, batchtopk, matryoshka, jumprelu, gated, relu
    d_sae: int = 4096  # number of features
    k: int = 32  # active features per token: exactly (topk), on average (batchtopk, matryoshka), aimed at (others)
    tokens: int = 2_000_000  # activations trained on
    context_size: int = 128  # tokens per context, BOS included
    prepend_bos: bool | None = None  # None: as the tokenizer does by itself
    text_field: str = "text"  # column of JSONL and Parquet files
    batch_tokens: int = 4096  # activations per optimiser step
    buffer_tokens: int = 262_144  # activations held for shuffling
    learning_rate: float | None = None  # of Adam; None: 4.8e-3 / sqrt(d_sae / 4096)
    beta2: float = 0.99  # of Adam: the share of its second moment that is kept from step to step
    warmup_share: float = 0.05  # of the steps over which the learning rate rises
    decay_share: float = 0.55  # of the steps over which it falls to zero at the end
    bias_lift: float = 20.0  # of a dead feature's b_enc per step, in learning rates, until it fires
    aux_coefficient: float = 0.0  # TopK family: weight of the auxiliary loss AuxK (1/32 in Gao et al. 2024)
    dead_after_tokens: int | None = None  # tokens without firing until a feature counts as dead; None: tokens / 64
    multi_topk: bool = False  # topk: let 4k features reconstruct too, with weight 1/8 (Gao et al. 2024)
    sparsity: float | None = None  # weight of the sparsity term; None: steered to k (relu, gated), 1 (jumprelu)
    sparsity_warmup_share: float = 0.1  # of the steps over which the sparsity term rises to its weight
    seed: int = 0  # of the weights
    data_seed: int = 0  # of the order of the text
    dtype: str = "float32"  # of the language model: float32, bfloat16, float16, int8, int4
    cache_activations: bool = False  # keep activations on disk, so that the next SAE on them needs no model
    device: str | None = None  # None: cuda where it is there, else cpu; auto: the model over GPUs and main memory
    checkpoint_seconds: float = 60.0  # wall time between checkpoints

    def __post_init__(self) -> None:
        _require(bool(self.model), "model is empty: give a Hugging Face id or a folder")
        _require(self.layer >= 0, f"layer is {self.layer}: blocks are numbered from 0")
        _require(bool(self.corpus), "no corpus: give at least one file, folder, glob or built-in corpus")
        _require(self.hook in HOOKS, f"hook {self.hook!r} is not known: choose one of {', '.join(HOOKS)}")
        _require(
            self.target_hook is None or self.target_hook in HOOKS,
            f"target_hook {self.target_hook!r} is not known: choose one of {', '.join(HOOKS)}",
        )
        _require(
            self.target_layer is None or self.target_hook is not None,
            "target_layer is given without target_hook: name the hook that the transcoder predicts",
        )
        _require(
            self.target_layer is None or self.target_layer >= 0,
            f"target_layer is {self.target_layer}: blocks are numbered from 0",
        )
        _require(
            self.architecture in ARCHITECTURES,
            f"architecture {self.architecture!r} is not known: choose one of {', '.join(ARCHITECTURES)}",
        )
        _require(
            not self.multi_topk or self.architecture == "topk",
            f"multi_topk is for the architecture topk, not {self.architecture}",
        )
        _require(self.sparsity is None or self.sparsity >= 0, f"sparsity is {self.sparsity}: give 0 or more")
        _require(
            self.sparsity is None or self.architecture in (*PENALISED, "jumprelu"),
            f"sparsity is for the architectures {', '.join(PENALISED)} and jumprelu; {self.architecture} has k",
        )
        _require(
            0 <= self.sparsity_warmup_share <= 1,
            f"sparsity_warmup_share is {self.sparsity_warmup_share}: give a share between 0 and 1",
        )
        _require(self.d_sae >= 1, f"d_sae is {self.d_sae}: an SAE needs at least one feature")
        _require(self.k >= 1, f"k is {self.k}: at least one feature must be active per token")
        _require(self.k <= self.d_sae, f"k ({self.k}) is above d_sae ({self.d_sae}): lower k or raise d_sae")
        _require(self.tokens >= 1, f"tokens is {self.tokens}: give the number of activations to train on")
        _require(self.context_size >= 2, f"context_size is {self.context_size}: a context needs at least 2 tokens")
        _require(self.batch_tokens >= 1, f"batch_tokens is {self.batch_tokens}: give at least 1")
        _require(
            self.buffer_tokens >= 2 * self.batch_tokens,
            f"buffer_tokens ({self.buffer_tokens}) must be at least twice batch_tokens ({self.batch_tokens})",
        )
        _require(0 <= self.warmup_share <= 1, f"warmup_share is {self.warmup_share}: give a share between 0 and 1")
        _require(0 <= self.decay_share <= 1, f"decay_share is {self.decay_share}: give a share between 0 and 1")
        _require(self.learning_rate is None or self.learning_rate > 0, "learning_rate must be above 0")
        _require(0 <= self.beta2 < 1, f"beta2 is {self.beta2}: give a share from 0 to below 1")
        _require(self.bias_lift >= 0, f"bias_lift is {self.bias_lift}: give 0 or more")
        _require(self.aux_coefficient >= 0, f"aux_coefficient is {self.aux_coefficient}: give 0 or more")
        _require(
            self.dead_after_tokens is None or self.dead_after_tokens >= 1,
            f"dead_after_tokens is {self.dead_after_tokens}: give at least 1",
        )
        for name in ("seed", "data_seed"):
            _require(0 <= getattr(self, name) < 2**31, f"{name} is {getattr(self, name)}: give 0 to {2**31 - 1}")
        _require(self.dtype in DTYPES, f"dtype {self.dtype!r} is not known: choose one of {', '.join(DTYPES)}")

    @property
    def hook_name(self) -> str:
        """The hook point in the spelling that published SAEs use."""
        return f"blocks.{self.layer}.hook_{self.hook}"

    @property
    def target_hook_name(self) -> str | None:
        """The hook point that a transcoder predicts; None for an SAE."""
        if self.target_hook is None:
            return None
        layer = self.layer if self.target_layer is None else self.target_layer
        return f"blocks.{layer}.hook_{self.target_hook}"

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        values = json.loads(path.read_text())
        return cls(**{**values, "corpus": tuple(values["corpus"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexConfig:
    """How one SAE is measured on one corpus."""

    slug: str
    corpus: tuple[str, ...]
    name: str | None = None  # what the corpus is called; None: from its sources
    tokens: int | None = 1_000_000  # at most so many; None: all
    context_size: int | None = None  # tokens per context, BOS included; None: as the SAE was trained
    prepend_bos: bool | None = None  # None: as the SAE was trained
    text_field: str = "text"
    top_examples: int = 20  # contexts with different text kept per feature
    band_examples: int = 5  # firings sampled per activation band and feature
    random_examples: int = 10  # firings sampled per feature
    promoted_tokens: int = 10  # on either side of the logit attribution
    nearest_features: int = 20
    dense_threshold: float = 0.1  # density above which a feature is called dense
    batch_contexts: int = 32  # contexts per forward pass
    seed: int = 0
    device: str | None = None
    checkpoint_seconds: float = 60.0  # wall time between checkpoints

    def __post_init__(self) -> None:
        _require(bool(self.corpus), "no corpus: give at least one file, folder, glob or built-in corpus")
        _require(self.tokens is None or self.tokens >= 1, f"tokens is {self.tokens}: give the number of tokens to read")
        _require(
            self.context_size is None or self.context_size >= 2,
            f"context_size is {self.context_size}: a context needs at least 2 tokens",
        )
        _require(
            self.context_size is None or self.context_size <= LONGEST_CONTEXT,
            f"context_size is {self.context_size}: an index has room for {LONGEST_CONTEXT:,} positions",
        )
        _require(self.top_examples >= 1, f"top_examples is {self.top_examples}: keep at least one")
        for name in ("band_examples", "random_examples", "promoted_tokens", "nearest_features"):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}: keep at least one")
        _require(
            self.random_examples <= MOST_RANDOM,
            f"random_examples is {self.random_examples}: keep at most {MOST_RANDOM}",
        )
        _require(self.seed >= 0, f"seed is {self.seed}: give 0 or more")
        _require(0 < self.dense_threshold <= 1, f"dense_threshold is {self.dense_threshold}: give a share up to 1")
        _require(self.batch_contexts >= 1, f"batch_contexts is {self.batch_contexts}: give at least 1")


def check_slug(slug: str) -> str:
    """`slug` if it can stand in a URL as it is: lower-case letters, digits, dots, dashes, underscores."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,99}", slug):
        raise ConfigError(
            f"slug {slug!r} cannot be used: start with a letter or digit, then use a-z, 0-9, '.', '_' and '-'."
        )
    return slug


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise ConfigError(sentence + ".")
