"""Records as charts: Plotly figures for the SAE page, and plain SVG geometry for what must be there without a script.

The only module that knows Plotly. Figures are plain dictionaries in Plotly's own format, so that nothing heavy is
imported; the browser's script comes from the installed wheel.
"""

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.examples import step
from app.numbers import number, percent
from sae_core.bands import BINS_PER_OCTAVE, N_BANDS
from sae_core.errors import StoreError
from sae_core.metrics import BINS_PER_DECADE, LEAST_EXPONENT, density_histogram
from sae_core.records import Feature, FeaturePoint, Histogram

LEAST_DENSITY = 10.0**LEAST_EXPONENT  # the left end of every density axis
GL_POINTS = 8000  # above this many points the scatter is drawn on a WebGL canvas


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar of an SVG chart, in the chart's own units, with what it says on hover."""

    x: float
    width: float
    height: float
    title: str
    step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A mark on a horizontal axis."""

    x: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BarChart:
    """A histogram as SVG: bars stand on y = 0 within a box of `width` by `height`."""

    width: float
    height: float
    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    dividers: tuple[float, ...] = ()
    notes: tuple[Tick, ...] = ()
    summary: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One square of a two-dimensional histogram; `level` 1..5 by the logarithm of its count."""

    x: float
    y: float
    level: int
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Heatmap:
    """Density against another number as counts on a grid, for pages without a script."""

    columns: int
    rows: int
    cells: tuple[Cell, ...]
    x_ticks: tuple[Tick, ...]
    y_top: str
    y_bottom: str


def plotly_script() -> Path:
    """The browser script inside the installed plotly wheel; found without importing plotly."""
    spec = importlib.util.find_spec("plotly")
    if spec is None or spec.origin is None:
        raise StoreError("plotly is not installed: charts need `pip install plotly`.")
    return Path(spec.origin).parent / "package_data" / "plotly.min.js"


def density_share(density: float) -> float:
    """Where a density lies on the logarithmic scale from 1e-6 to 1, between 0 and 1."""
    if density <= LEAST_DENSITY:
        return 0.0
    return min(1.0, (math.log10(density) - LEAST_EXPONENT) / -LEAST_EXPONENT)


def activation_chart(feature: Feature, *, width: float = 360, height: float = 130) -> BarChart:
    """A feature's activation histogram, each band equally wide; heights are logarithmic, as weak firings abound.

    The first bar counts all that is weaker.
    """
    counts, edges = _in_bands(feature.histogram)
    top = max(counts, default=0)
    each = width / max(len(counts), 1)
    bars = [
        Bar(
            x=i * each,
            width=max(0.5, each - 0.6),
            height=height * math.log1p(n) / math.log1p(top),
            title=f"{number(low)} to {number(high)}: {n:,} firings",
            step=step((low + high) / 2, scale=feature.max_activation),
        )
        for i, (low, high, n) in enumerate(zip(edges, edges[1:], counts, strict=False))
        if n
    ]
    band = width / N_BANDS
    ticks = [Tick(x=i * band, text=number(edge, digits=2)) for i, edge in enumerate(feature.band_edges)]
    notes = [Tick(x=(i + 0.5) * band, text=_short_percent(share)) for i, share in enumerate(feature.band_shares)]
    return BarChart(
        width=width,
        height=height,
        bars=tuple(bars),
        ticks=tuple(ticks),
        dividers=tuple(i * band for i in range(1, N_BANDS)),
        notes=tuple(notes),
        summary=f"{feature.n_active:,} firings between 0 and {number(feature.max_activation)}; "
        + ", ".join(f"{percent(share)} in band {i}" for i, share in enumerate(feature.band_shares, start=1)),
    )


def _in_bands(histogram: Histogram) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The counts and edges of as many bins as the bands have, with those of weaker activations in the first."""
    beyond = len(histogram.counts) - N_BANDS * BINS_PER_OCTAVE
    if beyond <= 0 or histogram.edges[1] > histogram.edges[-1] / 100:  # of an index made before revision 0003
        return histogram.counts, histogram.edges
    first = sum(histogram.counts[: beyond + 1])
    return (first, *histogram.counts[beyond + 1 :]), (0.0, *histogram.edges[beyond + 1 :])


def sparkline(histogram: Histogram, *, width: int = 72, height: int = 20, bars: int = 24) -> str:
    """An SVG path of a histogram, logarithmic, with bins joined until at most `bars` are left."""
    counts = _joined(_in_bands(histogram)[0], bars)
    top = max(counts, default=0)
    if top == 0:
        return ""
    each, tallest = width / len(counts), math.log1p(top)
    parts = []
    for i, n in enumerate(counts):
        if n:
            tall = max(1.0, height * math.log1p(n) / tallest)
            parts.append(f"M{i * each:.1f} {height}v-{tall:.1f}h{each - 0.5:.1f}v{tall:.1f}z")
    return "".join(parts)


def token_sparkline(
    activations: Sequence[float], *, scale: float, width: int = 120, height: int = 20, most_columns: int = 60
) -> str:
    """An SVG path of a feature's activations along a text, joined into at most `most_columns` by their maximum."""
    n = len(activations)
    if n == 0 or not scale > 0:
        return ""
    columns = min(n, most_columns)
    each = width / columns
    parts = []
    for i in range(columns):
        peak = max(activations[i * n // columns : (i + 1) * n // columns])
        if peak > 0:
            tall = max(1.5, height * min(1.0, peak / scale))
            parts.append(f"M{i * each:.1f} {height}v-{tall:.1f}h{max(0.8, each - 0.5):.1f}v{tall:.1f}z")
    return "".join(parts)


def density_chart(points: Sequence[FeaturePoint], *, width: float = 560, height: float = 150) -> BarChart:
    """How many features have which density; dead ones are left out and counted elsewhere."""
    return densities_chart([point.density for point in points], width=width, height=height)


def densities_chart(densities: Sequence[float], *, width: float = 560, height: float = 150) -> BarChart:
    """The same of densities alone."""
    counts = density_histogram(densities).counts
    top = max(counts) or 1
    each = width / len(counts)
    bars = [
        Bar(x=i * each, width=each - 1, height=height * n / top, title=f"{_density_range(i)}: {n:,} features")
        for i, n in enumerate(counts)
        if n
    ]
    decades = range(LEAST_EXPONENT, 1)
    ticks = [Tick(x=width * (i / -LEAST_EXPONENT), text=_decade(e)) for i, e in enumerate(decades)]
    return BarChart(width=width, height=height, bars=tuple(bars), ticks=tuple(ticks))


def cosine_chart(histogram: Histogram, *, width: float = 560, height: float = 150) -> BarChart:
    """How many features have which encoder·decoder cosine, from −1 to 1."""
    counts, edges = histogram.counts, histogram.edges
    top = max(counts, default=0)
    bars = [
        Bar(
            x=width * (low + 1) / 2,
            width=width * (high - low) / 2 - 1,
            height=height * n / top,
            title=f"{number(low, digits=2)} to {number(high, digits=2)}: {n:,} features",
        )
        for low, high, n in zip(edges, edges[1:], counts, strict=False)
        if n
    ]
    ticks = [Tick(x=width * (mark + 1) / 2, text=number(mark, digits=1)) for mark in (-1, -0.5, 0, 0.5, 1)]
    return BarChart(width=width, height=height, bars=tuple(bars), ticks=tuple(ticks))


def density_heatmap(points: Sequence[FeaturePoint]) -> Heatmap:
    """Density against maximum activation, counted on a grid."""
    drawn = [(point.density, point.max_activation) for point in points if point.density > 0]
    top = max((highest for _, highest in drawn), default=1.0) or 1.0
    return _heatmap(drawn, bottom=0.0, top=top, y_top=f"max {number(top)}", y_bottom="0")


def cosine_heatmap(points: Sequence[FeaturePoint]) -> Heatmap:
    """Density against encoder·decoder cosine, counted on a grid."""
    drawn = _with_cosine(points)
    bottom = -1.0 if any(cosine < 0 for _, cosine in drawn) else 0.0
    return _heatmap(drawn, bottom=bottom, top=1.0, y_top="cosine 1", y_bottom=number(bottom))


def _heatmap(drawn: Sequence[tuple[float, float]], *, bottom: float, top: float, y_top: str, y_bottom: str) -> Heatmap:
    columns, rows = 48, 20
    counts: dict[tuple[int, int], int] = {}
    for density, value in drawn:
        x = min(columns - 1, int(columns * density_share(density)))
        y = max(0, min(rows - 1, int(rows * (value - bottom) / (top - bottom))))
        counts[x, y] = counts.get((x, y), 0) + 1
    most = math.log1p(max(counts.values(), default=1))
    cells = [
        Cell(x=x, y=rows - 1 - y, level=max(1, math.ceil(5 * math.log1p(n) / most)), title=f"{n:,} features")
        for (x, y), n in sorted(counts.items())
    ]
    decades = range(LEAST_EXPONENT, 1)
    ticks = [Tick(x=columns * (i / -LEAST_EXPONENT), text=_decade(e)) for i, e in enumerate(decades)]
    return Heatmap(
        columns=columns, rows=rows, cells=tuple(cells), x_ticks=tuple(ticks), y_top=y_top, y_bottom=y_bottom
    )  # fmt: skip


def _with_cosine(points: Sequence[FeaturePoint]) -> list[tuple[float, float]]:
    """Density and cosine of those alive that have one."""
    return [
        (point.density, point.encoder_decoder_cosine)
        for point in points
        if point.density > 0 and point.encoder_decoder_cosine is not None
    ]


def density_figure(points: Sequence[FeaturePoint]) -> dict[str, object]:
    """The Plotly histogram of log densities."""
    counts = density_histogram(point.density for point in points).counts
    centres = [10 ** (LEAST_EXPONENT + (i + 0.5) / BINS_PER_DECADE) for i in range(len(counts))]
    trace = {
        "type": "bar",
        "x": [math.log10(centre) for centre in centres],
        "y": counts,
        "width": 0.92 / BINS_PER_DECADE,
        "text": [_density_range(i) for i in range(len(counts))],
        "textposition": "none",
        "hovertemplate": "%{text}<br>%{y:,} features<extra></extra>",
    }
    return {"data": [trace], "layout": _layout(y_title="features")}


def scatter_figure(points: Sequence[FeaturePoint]) -> dict[str, object]:
    """The Plotly scatter of density against maximum; a point carries its feature index, which the page links."""
    alive = [point for point in points if point.density > 0]
    trace = _scatter(alive, [float(f"{point.max_activation:.5g}") for point in alive], name="max")
    return {"data": [trace], "layout": _layout(y_title="max activation")}


def cosine_figure(points: Sequence[FeaturePoint]) -> dict[str, object]:
    """The same against the cosine of encoder and decoder directions."""
    drawn = [point for point in points if point.density > 0 and point.encoder_decoder_cosine is not None]
    trace = _scatter(drawn, [round(point.encoder_decoder_cosine or 0.0, 4) for point in drawn], name="cosine")
    return {"data": [trace], "layout": _layout(y_title="encoder·decoder cosine")}


def _scatter(drawn: Sequence[FeaturePoint], values: list[float], *, name: str) -> dict[str, object]:
    return {
        "type": "scattergl" if len(drawn) > GL_POINTS else "scatter",
        "mode": "markers",
        "x": [round(math.log10(max(point.density, LEAST_DENSITY)), 4) for point in drawn],
        "y": values,
        "customdata": [point.feature_index for point in drawn],
        "text": [percent(point.density) for point in drawn],
        "marker": {"size": 5, "opacity": 0.55},
        "hovertemplate": f"feature %{{customdata}}<br>density %{{text}}<br>{name} %{{y:.3g}}<extra></extra>",
    }


def _layout(*, y_title: str) -> dict[str, object]:
    """Everything but the colours, which the browser takes from the stylesheet."""
    decades = range(LEAST_EXPONENT, 1)
    return {
        "xaxis": {
            "title": {"text": "density (share of tokens, logarithmic)"},
            "range": [LEAST_EXPONENT - 0.1, 0.1],
            "tickvals": list(decades),
            "ticktext": [_decade(exponent) for exponent in decades],
            "zeroline": False,
        },
        "yaxis": {"title": {"text": y_title}, "rangemode": "tozero", "zeroline": False},
        "margin": {"l": 56, "r": 8, "t": 8, "b": 44},
        "showlegend": False,
        "hovermode": "closest",
        "dragmode": False,
    }


def _density_range(position: int) -> str:
    low = 10 ** (LEAST_EXPONENT + position / BINS_PER_DECADE)
    return f"{percent(low)} to {percent(low * 10 ** (1 / BINS_PER_DECADE))}"


def _decade(exponent: int) -> str:
    return f"{100 * 10**exponent:.4f}".rstrip("0").rstrip(".") + "%"


def _short_percent(share: float) -> str:
    if share == 0:
        return "0"
    return "<1%" if share < 0.01 else f"{100 * share:.0f}%"


def _joined(counts: Sequence[int], bars: int) -> list[int]:
    every = max(1, math.ceil(len(counts) / bars))
    return [sum(counts[i : i + every]) for i in range(0, len(counts), every)]
