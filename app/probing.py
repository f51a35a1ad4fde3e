"""A reader's own text: run it, and put beside each feature what the corpus says about it.

text ── inference.answer ──> ProbeResult ─┐
store: labels; density and maximum ───────┴──> ProbeReport ──> the API's answer
                                                   └──> ProbeView ──> the page
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from app.charts import token_sparkline
from app.deps import ProbeSort, clean_text
from app.examples import TokenView, step
from app.inference import Inference, ProbeJob
from app.points import PointsCache
from sae_core.errors import NotFoundError, PromptError
from sae_core.records import FeaturePoint, IndexInfo, ProbeFeature, ProbeResult, SAESummary
from sae_core.store import Store

TOP_K, TOP_FEATURES = 10, 50
ALL_FEATURES = 512  # asked of an SAE without a fixed k, so that a pinned feature is found however weak


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFeature:
    """A feature on one token. `density` and `corpus_max` are None when the SAE has no index."""

    feature_index: int
    activation: float
    label: str | None
    density: float | None
    corpus_max: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportToken:
    """One token and its strongest features, strongest first; `n_active` counts all that are active on it."""

    token: str
    token_id: int
    is_special: bool
    n_active: int
    features: tuple[TokenFeature, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFeature:
    """A feature over the whole text, with its activation on every token."""

    feature_index: int
    label: str | None
    density: float | None
    corpus_max: float | None
    max_activation: float
    max_position: int
    activations: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReport:
    """What the features of an SAE do on one text. `n_features` counts all that are active, `features` the first."""

    slug: str
    text: str
    seconds: float
    sort: str
    n_features: int
    tokens: tuple[ReportToken, ...]
    features: tuple[ReportFeature, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureView:
    """A feature in one of the page's two lists: `share` is `value` over the largest known activation."""

    feature_index: int
    label: str | None
    density: float | None
    value: float
    share: float
    spark: str
    is_chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeView:
    """A report as the page prints it: coloured tokens, the list for the text, and that for the chosen token."""

    tokens: tuple[TokenView, ...]
    scale: float
    features: tuple[FeatureView, ...]
    coloured_by: ReportFeature | None
    token: TokenView | None
    token_n_active: int
    token_features: tuple[FeatureView, ...]


async def probe_report(
    store: Store,
    inference: Inference,
    *,
    points: PointsCache,
    summary: SAESummary,
    text: str,
    top_k: int = TOP_K,
    top_features: int = TOP_FEATURES,
    pinned: int | None = None,
    sort: ProbeSort = "strength",
    corpus: str | None = None,
) -> ProbeReport:
    """Probe `text`. The pinned feature is in the answer wherever it ranks, with zeros if it is not active."""
    sae, index = summary.sae, chosen_index(summary, corpus=corpus)
    text = clean_text(text)
    if not text.strip():
        raise PromptError("The text is empty: type something to see which features it activates.")
    if pinned is not None and pinned >= sae.d_sae:
        raise NotFoundError(f'The SAE "{sae.slug}" has no feature {pinned}; its features are 0 to {sae.d_sae - 1}.')
    result = await inference.answer(ProbeJob(sae=sae, text=text, top_k=max(top_k, sae.k or ALL_FEATURES)))
    features = _with_pinned(result, pinned)

    def report() -> ProbeReport:
        known = points.points(store, index) if index is not None else {}
        ranked = sorted(features, key=lambda feature: _rank(feature, known.get(feature.feature_index), sort=sort))
        shown = [f for i, f in enumerate(ranked) if i < top_features or f.feature_index == pinned]
        named = {a.feature_index for t in result.tokens for a in t.features[:top_k]}
        labels = store.labels(sae.slug, named | {f.feature_index for f in shown})
        texts = {feature_index: label.text for feature_index, label in labels.items()}
        return ProbeReport(
            slug=sae.slug,
            text=result.text,
            seconds=result.seconds,
            sort=sort,
            n_features=sum(f.max_activation > 0 for f in features),
            tokens=tuple(_report_tokens(result, top_k=top_k, labels=texts, known=known)),
            features=tuple(_report_feature(f, n_tokens=len(result.tokens), labels=texts, known=known) for f in shown),
        )

    return await run_in_threadpool(report)


def chosen_index(summary: SAESummary, *, corpus: str | None) -> IndexInfo | None:
    """The index of this corpus, or the newest; None where there is none yet."""
    if corpus is None:
        return summary.indexes[0] if summary.indexes else None
    for index in summary.indexes:
        if index.corpus.name == corpus:
            return index
    raise NotFoundError(f'The SAE "{summary.sae.slug}" is not indexed on a corpus "{corpus}".')


def probe_view(report: ProbeReport, *, feature: int | None, token: int | None) -> ProbeView:
    """The page's picture of a report, coloured by `feature` or else by each token's strongest one."""
    chosen = next((row for row in report.features if row.feature_index == feature), None)
    if chosen is not None:
        values: Sequence[float] = chosen.activations
        scale = max(chosen.corpus_max or 0.0, chosen.max_activation)
    else:
        values = [t.features[0].activation if t.features else 0.0 for t in report.tokens]
        scale = max(values, default=0.0)
    peak = max(range(len(values)), key=values.__getitem__) if any(values) else -1
    views = tuple(
        TokenView(
            text=t.token,
            step=step(value, scale=scale),
            is_peak=position == peak,
            token_id=t.token_id,
            activation=value,
            position=position,
            is_special=t.is_special,
            is_chosen=position == token,
        )
        for position, (t, value) in enumerate(zip(report.tokens, values, strict=True))
    )
    at = report.tokens[token] if token is not None and token < len(views) else None
    return ProbeView(
        tokens=views,
        scale=scale,
        features=tuple(
            _view(row, value=row.max_activation, chosen=chosen, activations=row.activations) for row in report.features
        ),
        coloured_by=chosen,
        token=views[token] if at is not None and token is not None else None,
        token_n_active=at.n_active if at else 0,
        token_features=tuple(_view(row, value=row.activation, chosen=chosen) for row in (at.features if at else ())),
    )


def _with_pinned(result: ProbeResult, pinned: int | None) -> list[ProbeFeature]:
    features = list(result.features)
    if pinned is not None and all(feature.feature_index != pinned for feature in features):
        features.append(
            ProbeFeature(feature_index=pinned, max_activation=0.0, max_position=0, positions=(), activations=())
        )
    return features


def _rank(feature: ProbeFeature, known: FeaturePoint | None, *, sort: ProbeSort) -> tuple[float, float]:
    """What to sort by, smallest first. "share" is the activation over the feature's maximum on the corpus."""
    if sort == "rarity":
        return (known.density if known else 1.0), -feature.max_activation
    if sort == "share":
        largest = max(known.max_activation if known else 0.0, feature.max_activation)
        return -feature.max_activation / (largest or 1.0), -feature.max_activation
    return -feature.max_activation, feature.feature_index


def _report_tokens(
    result: ProbeResult, *, top_k: int, labels: Mapping[int, str], known: Mapping[int, FeaturePoint]
) -> list[ReportToken]:
    return [
        ReportToken(
            token=t.token,
            token_id=t.token_id,
            is_special=t.is_special,
            n_active=len(t.features),
            features=tuple(
                TokenFeature(
                    feature_index=active.feature_index,
                    activation=active.activation,
                    label=labels.get(active.feature_index),
                    density=point.density if (point := known.get(active.feature_index)) else None,
                    corpus_max=point.max_activation if point else None,
                )
                for active in t.features[:top_k]
            ),
        )
        for t in result.tokens
    ]


def _report_feature(
    feature: ProbeFeature, *, n_tokens: int, labels: Mapping[int, str], known: Mapping[int, FeaturePoint]
) -> ReportFeature:
    point = known.get(feature.feature_index)
    return ReportFeature(
        feature_index=feature.feature_index,
        label=labels.get(feature.feature_index),
        density=point.density if point else None,
        corpus_max=point.max_activation if point else None,
        max_activation=feature.max_activation,
        max_position=feature.max_position,
        activations=feature.on_every_token(n_tokens),
    )


def _view(
    row: TokenFeature | ReportFeature, *, value: float, chosen: ReportFeature | None, activations: Sequence[float] = ()
) -> FeatureView:
    scale = max(row.corpus_max or 0.0, value)
    return FeatureView(
        feature_index=row.feature_index,
        label=row.label,
        density=row.density,
        value=value,
        share=value / scale if scale > 0 else 0.0,
        spark=token_sparkline(activations, scale=scale),
        is_chosen=chosen is not None and chosen.feature_index == row.feature_index,
    )
