"""Comparisons as pages print them: metrics in rows, texts coloured for each side, charts as SVG geometry."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.charts import Bar, BarChart, Tick
from app.comparisons import Comparison, CorpusComparison, DensityRow, FeatureComparison, FeatureSide, SAEComparison
from app.examples import ExampleView, LineView, TokenView, example_view, one_line, token_views
from app.numbers import number, percent
from sae_core.comparison import SharedContext
from sae_core.records import TOP_BAND, Example, Histogram, IndexInfo, IndexMetrics

TOP_SHOWN = 5
BEFORE, AFTER = 14, 10  # tokens shown around the peaks of both
NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A row of a table: a term of the glossary, and a number for each column."""

    term: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedExample:
    """A context that both features have among their examples, in the same window, coloured for each."""

    source: str
    activation_a: str
    activation_b: str
    n_both: int
    cut_before: bool
    cut_after: bool
    a: tuple[TokenView, ...]
    b: tuple[TokenView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferenceView:
    """A feature in the list of those whose density differs."""

    row: DensityRow
    ratio: str  # "×12", or "only here"
    line_a: LineView | None
    line_b: LineView | None


def values_of(comparison: Comparison) -> dict[str, object]:
    """What a comparison's template needs beside the record."""
    if isinstance(comparison, FeatureComparison):
        return _feature_values(comparison)
    return _sae_values(comparison) if isinstance(comparison, SAEComparison) else _corpus_values(comparison)


def measures(indexes: Sequence[IndexInfo | None]) -> list[Measure]:
    """The metrics of several indexes in columns, as the SAE page shows them for one."""

    def row(term: str, text: Callable[[IndexMetrics], str]) -> Measure:
        return Measure(term=term, values=tuple("not indexed" if i is None else text(i.metrics) for i in indexes))

    def plain(name: str) -> Callable[[IndexMetrics], str]:
        return lambda metrics: _measured(getattr(metrics, name))

    return [
        row("l0", plain("l0")),
        row("fvu", plain("fvu")),
        row("cosine", plain("cosine")),
        row("reconstruction_bias", plain("reconstruction_bias")),
        row("ce_recovered", plain("ce_recovered")),
        row("ce_loss", plain("ce_loss")),
        row("ce_loss_with_sae", plain("ce_loss_with_sae")),
        row("kl", plain("kl")),
        row("alive", lambda metrics: percent(1 - metrics.dead_share)),
        row("dense", lambda metrics: percent(metrics.dense_share)),
        row("encoder_decoder", plain("encoder_decoder_cosine")),
    ]


def match_chart(histogram: Histogram, *, width: float = 420, height: float = 120) -> BarChart:
    """How many features have which best cosine, from 0 to 1."""
    ticks = [(x, f"{x:g}") for x in (0, 0.25, 0.5, 0.75, 1)]
    return _bars(histogram, ticks, width, height, unit=lambda x: f"{x:.2f}")


def ratio_chart(histogram: Histogram, *, width: float = 560, height: float = 120) -> BarChart:
    """How many features have which density ratio, from 1/32 to 32."""
    ticks = [(x, f"×{2**x}" if x >= 0 else f"÷{2**-x}") for x in (-5, -3, -1, 0, 1, 3, 5)]
    return _bars(histogram, ticks, width, height, unit=lambda x: f"×{number(2**x, digits=2)}")


def _feature_values(comparison: FeatureComparison) -> dict[str, object]:
    a, b = comparison.a, comparison.b
    return {
        "measures": _feature_measures(a, b),
        "shared": [_paired(shared, comparison) for shared in comparison.shared or ()],
        "top_a": _top(a),
        "top_b": _top(b),
    }


def _feature_measures(a: FeatureSide, b: FeatureSide) -> list[Measure]:
    features = (a.feature, b.feature)
    return [
        Measure(term="density", values=tuple(percent(f.density) for f in features)),
        Measure(term="max", values=tuple(number(f.max_activation) for f in features)),
        Measure(term="mean", values=tuple(number(f.mean_activation) for f in features)),
        Measure(term="encoder_decoder", values=tuple(number(f.encoder_decoder_cosine) for f in features)),
    ]


def _sae_values(comparison: SAEComparison) -> dict[str, object]:
    sides = (comparison.a, comparison.b)
    texts = {side.index.corpus.fingerprint for side in sides if side.index}
    return {
        "measures": measures([side.index for side in sides]),
        "same_text": len(texts) < 2,
        "charts": [match_chart(side.cosines) if side.cosines else None for side in sides],
    }


def _corpus_values(comparison: CorpusComparison) -> dict[str, object]:
    return {
        "measures": measures([comparison.a, comparison.b]),
        "chart": ratio_chart(comparison.ratios),
        "more": [
            (comparison.a, comparison.b, comparison.n_more_on_a, _different(comparison.more_on_a, comparison)),
            (comparison.b, comparison.a, comparison.n_more_on_b, _different(comparison.more_on_b, comparison)),
        ],
    }


def _different(rows: Sequence[DensityRow], comparison: CorpusComparison) -> list[DifferenceView]:
    return [
        DifferenceView(
            row=row,
            ratio="only here"
            if 0 in (row.difference.n_a, row.difference.n_b)
            else f"×{number(2 ** abs(row.difference.log2_ratio), digits=2)}",
            line_a=_line(row.example_a, scale=row.max_a, has_bos=comparison.a.corpus.prepend_bos),
            line_b=_line(row.example_b, scale=row.max_b, has_bos=comparison.b.corpus.prepend_bos),
        )
        for row in rows
    ]


def _line(example: Example | None, *, scale: float, has_bos: bool) -> LineView | None:
    return one_line(example, scale=scale, has_bos=has_bos) if example else None


def _paired(shared: SharedContext, comparison: FeatureComparison) -> PairedExample:
    a, b = shared.a, shared.b
    first, last = min(a.position, b.position), max(a.position, b.position)
    start, end = max(0, first - BEFORE), min(len(a.tokens), last + AFTER + 1)

    def views(example: Example, side: FeatureSide) -> tuple[TokenView, ...]:
        scale = side.feature.max_activation
        return tuple(token_views(example, scale=scale, has_bos=side.has_bos, span=(start, end)))

    return PairedExample(
        source=a.source,
        activation_a=number(a.activation),
        activation_b=number(b.activation),
        n_both=shared.n_both,
        cut_before=start > 0,
        cut_after=end < len(a.tokens),
        a=views(a, comparison.a),
        b=views(b, comparison.b),
    )


def _top(side: FeatureSide) -> list[ExampleView]:
    top = [example for example in side.examples if example.band == TOP_BAND][:TOP_SHOWN]
    scale = side.feature.max_activation
    return [example_view(e, scale=scale, has_bos=side.has_bos, width="short") for e in top]


def _bars(
    histogram: Histogram,
    ticks: Sequence[tuple[float, str]],
    width: float,
    height: float,
    *,
    unit: Callable[[float], str],
) -> BarChart:
    low, high = histogram.edges[0], histogram.edges[-1]
    top = max(histogram.counts) or 1

    def place(value: float) -> float:
        return width * (value - low) / (high - low)

    bars = [
        Bar(
            x=place(left),
            width=place(right) - place(left) - 1,
            height=height * n / top,
            title=f"{unit(left)} to {unit(right)}: {n:,} features",
        )
        for left, right, n in zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False)
        if n
    ]
    marks = tuple(Tick(x=place(value), text=text) for value, text in ticks)
    return BarChart(width=width, height=height, bars=tuple(bars), ticks=marks)


def _measured(value: float | None) -> str:
    return NOT_MEASURED if value is None or value != value else number(value)
