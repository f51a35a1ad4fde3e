"""The walk-through of the page Learn: one token's vector as the chosen SAE writes it.

text, token ── inference.answer ──> Decomposition ─────┐
store: labels ─────────────────────────────────────────┴──> Walk ──> the API's answer
                                                              └──> WalkView ──> the page
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from app.deps import clean_text
from app.examples import TokenView
from app.inference import DecomposeJob, Inference
from sae_core.dashboards import check_has_weights
from sae_core.errors import NotFoundError, PromptError
from sae_core.records import Decomposition, SAESummary
from sae_core.store import Store

SHOWN_PARTS = 12  # features listed one by one; the rest are one row
LARGEST = 5  # components named under a vector
WIDTH, HEIGHT = 720.0, 44.0  # of a strip
TEXT = "The ship left the harbour before the storm came in."
CODE = 'def greet(name):\n    """Return a greeting."""\n    return "Hello, " + name'


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """One token taken apart, with what the corpus says: labels, and the FVU that its error compares with."""

    slug: str
    hook_name: str
    target_hook_name: str
    corpus: str | None
    fvu: float | None  # on that corpus
    token: Decomposition
    labels: Mapping[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """A vector as bars around a line: an SVG path, its length ‖x‖, and its largest numbers with their places."""

    path: str
    length: float
    n: int
    n_joined: int  # neighbours that share a bar, of which the largest is drawn
    largest: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartView:
    """One row of what is added up: a feature, or `n` of them at once."""

    feature_index: int | None
    n: int
    label: str | None
    activation: float | None
    strength: float  # the activation over the largest of this token
    share: float
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepView:
    """How much is left over after b_dec and the first `n` features."""

    n: int
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkView:
    """A walk as the page prints it. Where the token is special, only its vector."""

    tokens: tuple[TokenView, ...]
    chosen: TokenView
    read: Strip
    target: Strip  # what is reconstructed: for an SAE the same
    is_transcoder: bool
    rebuilt: Strip | None
    left: Strip | None
    parts: tuple[PartView, ...]
    steps: tuple[StepView, ...]
    left_share: float  # of the vector, along it: with b_dec's and the features' shares it makes 1


def chosen_sae(saes: Sequence[SAESummary], slug: str | None) -> SAESummary | None:
    """The SAE asked for, or the newest that is indexed, or the newest; None where there is none.

    One without weights, which cannot take anything apart, only if there is no other.
    """
    if slug is None:
        able = [summary for summary in saes if summary.sae.weights_path] or saes
        return next((s for s in able if s.indexes), able[0] if able else None)
    for summary in saes:
        if summary.sae.slug == slug:
            return summary
    raise NotFoundError("There is no SAE of this name: the start page lists those that are here.")


def own_text(summary: SAESummary | None) -> str:
    """A short text of the kind that the SAE was indexed on: a program, or else a sentence."""
    reads_code = summary and any("python-docs" in index.corpus.sources for index in summary.indexes)
    return CODE if reads_code else TEXT


async def walk(store: Store, inference: Inference, *, summary: SAESummary, text: str, token: int | None = None) -> Walk:
    """Take a token of `text` apart; by default the last one."""
    check_has_weights(summary.sae)
    text = clean_text(text)
    if not text.strip():
        raise PromptError("The text is empty: type a few words to take one of them apart.")
    found = await inference.answer(DecomposeJob(sae=summary.sae, text=text, token=token))
    labels = await run_in_threadpool(store.labels, summary.sae.slug, [part.feature_index for part in found.parts])
    index = summary.indexes[0] if summary.indexes else None
    return Walk(
        slug=summary.sae.slug,
        hook_name=summary.sae.hook_name,
        target_hook_name=summary.sae.target_hook_name,
        corpus=index.corpus.name if index else None,
        fvu=index.metrics.fvu if index else None,
        token=found,
        labels={feature_index: label.text for feature_index, label in labels.items()},
    )


def walk_view(found: Walk) -> WalkView:
    """The page's picture of a walk."""
    token = found.token
    tokens = tuple(
        TokenView(
            text=t.token,
            step=0,
            is_peak=False,
            token_id=t.token_id,
            activation=0.0,
            position=position,
            is_special=t.is_special,
            is_chosen=position == token.position,
        )
        for position, t in enumerate(token.tokens)
    )
    left = tuple(x - y for x, y in zip(token.vector, token.sae_out, strict=True)) if token.sae_out else ()
    scale = max(map(abs, (*token.vector, *token.sae_out)), default=0.0)
    return WalkView(
        tokens=tokens,
        chosen=tokens[token.position],
        read=strip(token.model_acts, scale=max(map(abs, token.model_acts), default=0.0)),
        target=strip(token.vector, scale=scale),
        is_transcoder=bool(token.target_acts),
        rebuilt=strip(token.sae_out, scale=scale) if token.sae_out else None,
        left=strip(left, scale=scale) if left else None,
        parts=_parts(found),
        steps=_steps(token),
        left_share=1 - (token.bias_share or 0.0) - sum(part.share for part in token.parts),
    )


def strip(vector: Sequence[float], *, scale: float) -> Strip:
    """A vector as bars up and down from the middle; where it is long, neighbours share a bar as tall as the tallest."""
    n_joined = max(1, math.ceil(len(vector) * 2 / WIDTH))  # a bar takes at least two units
    bars = [max(vector[at : at + n_joined], key=abs) for at in range(0, len(vector), n_joined)]
    each = WIDTH / max(len(bars), 1)
    path = "".join(
        f"M{i * each:.1f} {HEIGHT / 2:g}v{-value / scale * HEIGHT / 2:.1f}h{each * 0.8:.1f}V{HEIGHT / 2:g}z"
        for i, value in enumerate(bars)
        if scale > 0
    )
    ranked = sorted(range(len(vector)), key=lambda i: -abs(vector[i]))
    return Strip(
        path=path,
        length=math.hypot(*vector),
        n=len(vector),
        n_joined=n_joined,
        largest=tuple((i, vector[i]) for i in ranked[:LARGEST]),
    )


def _parts(found: Walk) -> tuple[PartView, ...]:
    parts = found.token.parts
    strongest = max((part.activation for part in parts), default=1.0)
    n_single = len(parts) if len(parts) <= SHOWN_PARTS + 1 else SHOWN_PARTS  # "1 more" would take as much space
    rows = [
        PartView(
            feature_index=part.feature_index,
            n=1,
            label=found.labels.get(part.feature_index),
            activation=part.activation,
            strength=part.activation / strongest,
            share=part.share,
            error=part.error,
        )
        for part in parts[:n_single]
    ]
    if rest := parts[n_single:]:
        rows.append(
            PartView(
                feature_index=None,
                n=len(rest),
                label=None,
                activation=None,
                strength=0.0,
                share=sum(part.share for part in rest),
                error=rest[-1].error,
            )
        )
    return tuple(rows)


def _steps(token: Decomposition) -> tuple[StepView, ...]:
    """After 0, 1, 2, 4, 8, … and all features."""
    if token.bias_error is None:
        return ()
    n = len(token.parts)
    counts = sorted({2**power for power in range(n.bit_length()) if 2**power <= n} | {n})
    steps = [StepView(n=0, error=token.bias_error)]
    return (*steps, *(StepView(n=at, error=token.parts[at - 1].error) for at in counts if at))
