"""What attribution, ablation and steering ask and answer. Standard library only: these cross to the pages.

A *push* changes the model's vector by a multiple of one feature's decoder direction. A *column* is one continuation of
a prompt: the baseline, a steered one at a dose, or the control.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sae_core.errors import PromptError
from sae_core.records import ProbeToken

Mode = Literal["add", "clamp"]
Where = Literal["everywhere", "after"]
Kind = Literal["baseline", "steered", "control"]
Finish = Literal["length", "end", "time"]
DOSES = (0.25, 0.5, 1.0, 2.0)  # of the dose strip; 0 is the baseline
MAX_PUSHES = 8
MAX_ABLATED = 16
MAX_TURNS = 32  # of a conversation before the prompt
SWAMPS = 1.0  # a push as long as the vector it changes


@dataclass(frozen=True, slots=True, kw_only=True)
class NextToken:
    """A token that may come next. `name` is what a person types for it: its text, or # and its id."""

    token: str
    name: str
    token_id: int
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureEffect:
    """What one feature did to the explained number, over the whole text up to the chosen token.

    `direct` is what it adds on the chosen token straight to the output, None where the hook's vector is not added to
    the residual stream; `total` is activation × gradient · decoder direction, summed over the text's tokens.
    """

    feature_index: int
    total: float
    direct: float | None
    activation: float  # on the chosen token
    position: int  # the token on which its total effect is largest
    activation_there: float
    share_there: float  # of its total effect that comes from that token


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherEffect:
    """A row that is no feature: what the features leave over, so that the rows add up to the explained number."""

    name: Literal["others", "error", "bias", "special", "rest"]
    total: float
    direct: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """Why the model's next token after `position` may be `target`: the logit (or a difference of two), in parts.

    Σ total over `features` and `others` is `explained`, and so is Σ direct where it is not None.
    """

    slug: str
    text: str
    tokens: tuple[ProbeToken, ...]  # of the whole text, without their features
    position: int
    target: NextToken
    against: NextToken | None
    explained: float  # the target's logit, or how far it is above that of `against`
    predictions: tuple[NextToken, ...]  # the most probable next tokens
    n_features: int  # active on at least one token up to `position`
    features: tuple[FeatureEffect, ...]  # the largest |total| first
    others: tuple[OtherEffect, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """One token's probability before and after an ablation."""

    token: str
    token_id: int
    before: float
    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AblatedFeature:
    """One feature taken out alone: the change of the explained number, measured and as the gradient has it."""

    feature_index: int
    measured: float
    predicted: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """The model run again without what the chosen features add, on every token up to the chosen one."""

    feature_indices: tuple[int, ...]
    measured: float  # change of the explained number
    predicted: float  # minus the sum of the features' total effects
    before: float  # the explained number
    kl: float  # nats, from the next-token distribution before to that after
    shifts: tuple[Shift, ...]  # the most probable before or after, by the larger of the two
    alone: tuple[AblatedFeature, ...]  # each by itself, where several were chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """One feature's part in steering. `value` is in the units of its activation."""

    feature_index: int
    mode: Mode
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SteerRequest:
    """All that decides what steering gives, but for the SAE and its model.

    `turns` is what was said before the prompt in a chat: by the user, by the model, by the user, …
    """

    prompt: str
    pushes: tuple[Push, ...]
    where: Where = "everywhere"
    doses: tuple[float, ...] = (1.0,)
    temperature: float = 0.7
    top_p: float = 0.9
    n_tokens: int = 48
    seed: int = 0
    chat: bool = False
    turns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.turns and not self.chat:
            raise PromptError("Earlier turns are those of a chat: ask for a chat, or leave them out.")
        if len(self.turns) % 2:
            raise PromptError(
                "The last of the earlier turns is the user's: each must be followed by the model's answer."
            )
        for number, said in enumerate(self.turns[::2], start=1):
            if not said.strip():
                raise PromptError(f"What the user said in turn {number} of the chat is empty; fill it in.")
        if len(self.pushes) > MAX_PUSHES:
            raise PromptError(f"At most {MAX_PUSHES} features can be steered at once; take some out.")
        if len({push.feature_index for push in self.pushes}) < len(self.pushes):
            raise PromptError("A feature is named twice; name each once.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A pushed feature's activation, the mean over the tokens that were changed; `after` as the encoder reads it back.

    None for a transcoder, whose encoder reads another place than the one that is changed.
    """

    feature_index: int
    before: float
    after: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """What the model wrote in one column, and how it was changed meanwhile."""

    kind: Kind
    dose: float
    text: str
    token_ids: tuple[int, ...]
    finish: Finish
    push_norm: float | None  # mean length of the change, over the tokens that were changed
    push_ratio: float | None  # mean of that length over the length of the vector itself
    measured: tuple[Measured, ...]
    kl: float | None  # nats, of the first next token, from the baseline's distribution to this one
    surprise: float | None  # nats per token of what was written, to the model as it is
    repeats: float | None  # share of pairs of neighbouring tokens that stood there before


@dataclass(frozen=True, slots=True, kw_only=True)
class SteerStart:
    """The first part of a steering's answer: the prompt as the model reads it, and which columns there will be."""

    tokens: tuple[ProbeToken, ...]
    columns: tuple[tuple[Kind, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SteerStep:
    """One more token in every column: what each grows by, "" where one has ended or a character is not whole yet."""

    added: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Steering:
    """The last part: everything, columns in the order of the start."""

    request: SteerRequest
    tokens: tuple[ProbeToken, ...]
    columns: tuple[Column, ...]
    seconds: float


SteerPart = SteerStart | SteerStep | Steering


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedSteering:
    """A steering that was stored: what was asked, as the page's address has it, and what came of it then, as JSON."""

    steering_id: str
    slug: str
    sae_created_at: datetime
    author: str
    created_at: datetime
    query: str
    report: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringSummary:
    """A steering that was stored, without what came of it."""

    steering_id: str
    slug: str
    author: str
    created_at: datetime
    query: str
