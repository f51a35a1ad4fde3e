"""A probe as its page prints it: coloured tokens, lists of features, pinned traces, the model's own predictions."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.charts import token_sparkline
from app.deps import SURPRISE, Colour, ProbeSort
from app.examples import TokenView, step
from app.probing import ProbeReport, ReportFeature, TokenFeature
from sae_core.records import Predictions, SAEInfo

TRACE_WIDTH, TRACE_HEIGHT, TRACE_COLUMNS = 720, 36, 360
BESIDE_FEATURES = 6  # listed of each further SAE


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureView:
    """A feature in one of the page's lists: `share` is `value` over the largest known activation."""

    feature_index: int
    label: str | None
    density: float | None
    value: float
    share: float
    spark: str
    is_chosen: bool
    is_pinned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceView:
    """A pinned feature along the text, as an SVG path of `TRACE_WIDTH` by `TRACE_HEIGHT`; `scale` is its top."""

    feature_index: int
    label: str | None
    scale: float
    max_activation: float
    path: str
    is_chosen: bool
    peak: str  # the token of its maximum


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedView:
    """A next token that the model expects."""

    token: str
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ColouredText:
    """The tokens, and what their colours mean: 0 to `scale`."""

    tokens: tuple[TokenView, ...]
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BesideView:
    """Another SAE of the same model on the same text, each token coloured by its strongest feature there."""

    sae: SAEInfo
    text: ColouredText
    features: tuple[FeatureView, ...]
    n_features: int
    has_index: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeView:
    """A report as the page prints it. What is of the chosen token is empty where none is chosen."""

    text: ColouredText
    by_surprise: bool
    coloured_by: ReportFeature | None
    features: tuple[FeatureView, ...]
    traces: tuple[TraceView, ...]
    token: TokenView | None
    token_n_active: int
    token_features: tuple[FeatureView, ...]
    surprise: float | None  # of the chosen token, in bits
    expected: tuple[ExpectedView, ...]  # after the chosen token
    bits: float | None  # surprise of all tokens on average


def probe_view(
    report: ProbeReport,
    *,
    colour: Colour | None,
    token: int | None,
    pins: Sequence[int] = (),
    predictions: Predictions | None = None,
) -> ProbeView:
    """The page's picture of a report. `predictions` are there where the colour or the chosen token asks for them."""
    by_index = {row.feature_index: row for row in report.features}
    chosen = by_index.get(colour) if isinstance(colour, int) else None
    by_surprise = colour == SURPRISE and predictions is not None
    if by_surprise and predictions is not None:
        values = [found.surprise or 0.0 for found in predictions.tokens]
        text = coloured(report, values, scale=max(values, default=0.0), token=token)
    elif chosen is not None:
        scale = max(chosen.corpus_max or 0.0, chosen.max_activation)
        text = coloured(report, chosen.activations, scale=scale, token=token)
    else:
        text = by_strongest(report, token=token)
    at = report.tokens[token] if token is not None and token < len(report.tokens) else None
    expected = predictions.tokens[token] if predictions is not None and at is not None and token is not None else None
    known = [t.surprise for t in predictions.tokens if t.surprise is not None] if predictions else []
    return ProbeView(
        text=text,
        by_surprise=by_surprise,
        coloured_by=chosen,
        features=feature_views(report, chosen=colour, pins=pins),
        traces=tuple(_trace(row, report, chosen=chosen) for pin in pins if (row := by_index.get(pin)) is not None),
        token=text.tokens[token] if at is not None and token is not None else None,
        token_n_active=at.n_active if at else 0,
        token_features=tuple(
            _view(row, value=row.activation, chosen=colour, pins=pins) for row in (at.features if at else ())
        ),
        surprise=expected.surprise if expected else None,
        expected=tuple(
            ExpectedView(token=token, probability=probability)
            for token, probability in zip(expected.next_tokens, expected.probabilities, strict=True)
        )
        if expected
        else (),
        bits=sum(known) / len(known) if known else None,
    )


def by_strongest(report: ProbeReport, *, token: int | None = None) -> ColouredText:
    """Each token coloured by the largest activation on it."""
    values = [t.features[0].activation if t.features else 0.0 for t in report.tokens]
    return coloured(report, values, scale=max(values, default=0.0), token=token)


def coloured(report: ProbeReport, values: Sequence[float], *, scale: float, token: int | None) -> ColouredText:
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
    return ColouredText(tokens=views, scale=scale)


def beside_view(report: ProbeReport, sae: SAEInfo, *, has_index: bool) -> BesideView:
    return BesideView(
        sae=sae,
        text=by_strongest(report),
        features=feature_views(report)[:BESIDE_FEATURES],
        n_features=report.n_features,
        has_index=has_index,
    )


def feature_views(
    report: ProbeReport, *, chosen: Colour | None = None, pins: Sequence[int] = ()
) -> tuple[FeatureView, ...]:
    """The ranked features with the value that they are ranked by."""
    return tuple(
        _view(row, value=_value(row, report.sort), chosen=chosen, pins=pins, activations=row.activations)
        for row in report.features
    )


def _value(row: ReportFeature, sort: ProbeSort) -> float:
    match sort:
        case "strength":
            return row.max_activation
        case "sum":
            return row.sum_activation
        case "mean":
            return row.mean_activation
        case "rarity":
            return row.rarity or 0.0


def _trace(row: ReportFeature, report: ProbeReport, *, chosen: ReportFeature | None) -> TraceView:
    scale = max(row.corpus_max or 0.0, row.max_activation)
    return TraceView(
        feature_index=row.feature_index,
        label=row.label,
        scale=scale,
        max_activation=row.max_activation,
        path=token_sparkline(
            row.activations, scale=scale, width=TRACE_WIDTH, height=TRACE_HEIGHT, most_columns=TRACE_COLUMNS
        ),
        is_chosen=row is chosen,
        peak=report.tokens[row.max_position].token if row.max_activation else "",
    )


def _view(
    row: TokenFeature | ReportFeature,
    *,
    value: float,
    chosen: Colour | None,
    pins: Sequence[int],
    activations: Sequence[float] = (),
) -> FeatureView:
    strength = row.max_activation if isinstance(row, ReportFeature) else row.activation
    scale = max(row.corpus_max or 0.0, strength)
    return FeatureView(
        feature_index=row.feature_index,
        label=row.label,
        density=row.density,
        value=value,
        share=strength / scale if scale > 0 else 0.0,
        spark=token_sparkline(activations, scale=scale),
        is_chosen=chosen == row.feature_index,
        is_pinned=row.feature_index in pins,
    )
