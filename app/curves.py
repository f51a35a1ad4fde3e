"""A run's curves against tokens: SVG geometry that needs no script, and the Plotly figures that take its place.

The horizontal axis reaches from the start to the end of the run, so that nothing moves while a curve grows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.charts import Tick
from app.numbers import approximate, number, percent
from sae_core.runs import RunPoint, thinned

COLUMNS = 280  # points of a drawn curve: one for two units of its box


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One measure of a run: which field of a point, what it is called, how it is drawn and said."""

    name: str
    title: str
    is_log: bool
    say: Callable[[float], str] = number
    tick_format: str = ""


CURVES = (
    Curve(name="fvu", title="FVU", is_log=True),
    Curve(name="loss", title="loss", is_log=True),
    Curve(name="l0", title="L0", is_log=False),
    Curve(name="dead_share", title="dead features", is_log=False, say=percent, tick_format=".1~%"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LineChart:
    """A curve as SVG: a path in a box of `width` by `height`, with its highest and lowest mark."""

    width: float
    height: float
    path: str
    ticks: tuple[Tick, ...]
    top: str
    bottom: str
    summary: str


def line_chart(
    curve: Curve, points: Sequence[RunPoint], *, tokens: int, width: float = 560, height: float = 150
) -> LineChart:
    """`tokens` is where the axis ends."""
    known = [(p.tokens, v) for p in points if (v := getattr(p, curve.name)) is not None and (v > 0 or not curve.is_log)]
    end = max([tokens, *(at for at, _ in known)])
    values = [value for _, value in known]
    low = min(values, default=0.0) if curve.is_log else 0.0
    high = max(values, default=0.0)
    scale = math.log if curve.is_log else float
    span = (scale(high) - scale(low)) if high > low else 1.0

    def place(at: int, value: float) -> str:
        return f"{width * at / end:.1f} {height * (1 - (scale(value) - scale(low)) / span):.1f}"

    drawn = thinned(known, COLUMNS)
    path = "M" + "L".join(place(at, value) for at, value in drawn) if drawn else ""
    ticks = [Tick(x=width * part, text=approximate(round(end * part))) for part in (0, 0.25, 0.5, 0.75, 1)]
    said = f"{curve.say(values[0])} at first, {curve.say(values[-1])} now" if values else "nothing is measured yet"
    return LineChart(
        width=width, height=height, path=path, ticks=tuple(ticks), summary=said,
        top=curve.say(high) if values else "", bottom=curve.say(low) if values and low < high else "",
    )  # fmt: skip


def curve_figures(points: Sequence[RunPoint], *, tokens: int) -> dict[str, dict[str, object]]:
    """The Plotly figure of each curve, by its name; `tokens` is where the axis ends."""
    return {curve.name: _figure(curve, points, tokens=tokens) for curve in CURVES}


def _figure(curve: Curve, points: Sequence[RunPoint], *, tokens: int) -> dict[str, object]:
    trace = {
        "type": "scatter",
        "mode": "lines",
        "x": [point.tokens for point in points],
        "y": [getattr(point, curve.name) for point in points],
        "line": {"width": 2},
        "marker": {},
        "hovertemplate": f"{curve.title} %{{y:{curve.tick_format or '.4~g'}}}<br>%{{x:,}} tokens<extra></extra>",
    }
    layout = {
        "xaxis": {
            "range": [0, max([tokens, *(p.tokens for p in points[-1:])])],
            "zeroline": False,
            "tickformat": "~s",
        },
        "yaxis": {
            "type": "log" if curve.is_log else "linear",
            "rangemode": "normal" if curve.is_log else "tozero",
            "zeroline": False,
            "tickformat": curve.tick_format or "~g",
            "nticks": 6,
            **({"dtick": "D2"} if curve.is_log else {}),  # 1, 2, 5, 10, …
        },
        "margin": {"l": 56, "r": 8, "t": 8, "b": 28},
        "showlegend": False,
        "hovermode": "x",
        "dragmode": False,
        "uirevision": "same",
    }
    return {"data": [trace], "layout": layout}
