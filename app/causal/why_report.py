"""Why the model says a token: the worker's answer with labels, and as the page prints it.

text, token, target ── AttributeJob ──> Attribution ──┐
ticked features ────── AblateJob ─────> Ablation ─────┼──> WhyReport ──> the API's answer
store: labels ────────────────────────────────────────┘        └──> WhyView ──> the page
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from app.causal.jobs import AblateJob, AttributeJob
from app.deps import clean_text
from app.examples import TokenView
from app.inference import Inference
from sae_core.causal.records import Ablation, Attribution, FeatureEffect, NextToken, OtherEffect
from sae_core.errors import PromptError
from sae_core.records import ProbeToken, SAESummary
from sae_core.store import Store

SHOWN_ROWS = 20  # features listed one by one; `all` shows every one that the answer has
LABELLED = {"error": "reconstruction error", "bias": "b_dec", "special": "special tokens", "rest": "the rest"}


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyReport:
    """An attribution, the ablation of what was ticked, and what the features are called."""

    attribution: Attribution
    ablation: Ablation | None
    labels: Mapping[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowView:
    """One row: a feature, or what is none. `share` is the total's size over the largest of all rows."""

    key: str  # a glossary term for rows that are no feature
    feature_index: int | None
    name: str
    label: str | None
    total: float
    direct: float | None
    share: float
    activation: float | None
    where: TokenView | None  # the token on which the feature's effect is largest, where that is another one
    is_ticked: bool
    measured: float | None  # change when it alone is taken out


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyView:
    """A report as the page prints it."""

    tokens: tuple[TokenView, ...]
    chosen: TokenView
    rows: tuple[RowView, ...]
    total: float
    direct: float | None
    n_hidden: int  # features that the answer has and the page leaves out
    choices: tuple[tuple[NextToken, bool], ...]  # likely next tokens, and whether it is the target
    misleads: bool  # the ablation's measured and predicted changes point opposite ways


async def why_report(
    store: Store,
    inference: Inference,
    *,
    summary: SAESummary,
    text: str,
    token: int | None,
    target: str | None,
    against: str | None,
    ablated: Sequence[int] = (),
) -> WhyReport:
    """Ask the model; with `ablated`, also without these features."""
    text = clean_text(text)
    if not text.strip():
        raise PromptError("The text is empty: type the beginning of something that the model should go on with.")
    question = AttributeJob(sae=summary.sae, text=text, token=token, target=target, against=against)
    found = await inference.answer(question)
    ablation = await inference.answer(AblateJob(question=question, features=tuple(ablated))) if ablated else None
    named = {*(row.feature_index for row in found.features), *(ablation.feature_indices if ablation else ())}
    labels = await run_in_threadpool(store.labels, summary.sae.slug, named)
    return WhyReport(
        attribution=found,
        ablation=ablation,
        labels={feature_index: label.text for feature_index, label in labels.items()},
    )


def why_view(report: WhyReport, *, shows_all: bool) -> WhyView:
    """The page's picture of a report."""
    found = report.attribution
    tokens = tuple(token_views(found.tokens, chosen=found.position))
    ticked = report.ablation.feature_indices if report.ablation else ()
    shown = [row for i, row in enumerate(found.features) if shows_all or i < SHOWN_ROWS or row.feature_index in ticked]
    hidden = [row for row in found.features if row not in shown]
    sizes = [abs(row.total) for row in found.features] + [abs(r.total) for r in found.others if r.name != "rest"]
    largest = max(sizes, default=0.0) or 1.0
    rows = [_feature_row(row, report, tokens, largest=largest) for row in shown]
    rows += [
        _other_row(row, hidden, n_features=found.n_features - len(shown), largest=largest)
        for row in _others(found, hidden)
    ]
    return WhyView(
        tokens=tokens,
        chosen=tokens[found.position],
        rows=tuple(rows),
        total=sum(row.total for row in rows),
        direct=None if rows[-1].direct is None else sum(row.direct or 0.0 for row in rows),
        n_hidden=len(hidden),
        choices=tuple((one, one.token_id == found.target.token_id) for one in found.predictions),
        misleads=report.ablation is not None and report.ablation.measured * report.ablation.predicted < 0,
    )


def token_views(tokens: Sequence[ProbeToken], *, chosen: int | None) -> list[TokenView]:
    """Tokens without colour: ProbeTokens of a text that is picked from."""
    return [
        TokenView(
            text=t.token, step=0, is_peak=False, token_id=t.token_id, activation=0.0, position=position,
            is_special=t.is_special, is_chosen=position == chosen,
        )
        for position, t in enumerate(tokens)
    ]  # fmt: skip


def _others(found: Attribution, hidden: Sequence[FeatureEffect]) -> list[OtherEffect]:
    """The rows that are no feature, what the page leaves out among the others."""
    if not hidden:
        return list(found.others)
    own = next((row for row in found.others if row.name == "others"), None)
    total = sum(row.total for row in hidden) + (own.total if own else 0.0)
    direct = (
        None if hidden[0].direct is None else sum(row.direct or 0 for row in hidden) + ((own.direct or 0) if own else 0)
    )
    rest = [row for row in found.others if row.name != "others"]
    return [OtherEffect(name="others", total=total, direct=direct), *rest]


def _feature_row(row: FeatureEffect, report: WhyReport, tokens: Sequence[TokenView], *, largest: float) -> RowView:
    found, ablation = report.attribution, report.ablation
    alone = {one.feature_index: one.measured for one in ablation.alone} if ablation else {}
    if ablation and len(ablation.feature_indices) == 1:
        alone = {ablation.feature_indices[0]: ablation.measured}
    return RowView(
        key="",
        feature_index=row.feature_index,
        name=f"#{row.feature_index}",
        label=report.labels.get(row.feature_index),
        total=row.total,
        direct=row.direct,
        share=abs(row.total) / largest,
        activation=row.activation,
        where=tokens[row.position] if row.position != found.position else None,
        is_ticked=bool(ablation and row.feature_index in ablation.feature_indices),
        measured=alone.get(row.feature_index),
    )


def _other_row(row: OtherEffect, hidden: Sequence[FeatureEffect], *, n_features: int, largest: float) -> RowView:
    name = LABELLED.get(row.name) or f"{n_features:,} other features"
    return RowView(
        key=f"why_{row.name}", feature_index=None, name=name, label=None, total=row.total, direct=row.direct,
        share=min(1.0, abs(row.total) / largest), activation=None, where=None, is_ticked=False, measured=None,
    )  # fmt: skip
