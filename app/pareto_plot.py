"""The plots of an SAE among its like, as SVG geometry: FVU and CE recovered against L0."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.charts import Tick
from app.numbers import number
from app.pareto import Pareto, ParetoPoint
from app.urls import url

WIDTH, HEIGHT = 420.0, 230.0
LABEL_GAP = 14.0  # between the baselines of labels that would overlap


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A point of the plot: a circle, filled on the front, or a diamond for the SAE whose page it is."""

    x: float
    y: float
    slug: str
    href: str
    title: str
    is_this: bool
    on_front: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """SAEs of one kind, joined by a line in the order of L0, with their name beside the last."""

    name: str
    path: str
    x: float
    y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A scatter plot in a box of `width` by `height`; y grows downwards, as SVG has it."""

    width: float
    height: float
    marks: tuple[Mark, ...]
    series: tuple[Series, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]  # their `x` is the height at which they stand


def plots(found: Pareto) -> list[tuple[str, Plot]]:
    """The term on the vertical axis, and the plot; none of fewer than two SAEs."""
    drawn = [
        ("fvu", _plot(found, value=lambda p: p.fvu, on_front=lambda p: p.fvu_on_front)),
        ("ce_recovered", _plot(found, value=lambda p: p.ce_recovered, on_front=lambda p: bool(p.ce_on_front))),
    ]
    return [(term, plot) for term, plot in drawn if plot]


def _plot(
    found: Pareto,
    *,
    value: Callable[[ParetoPoint], float | None],
    on_front: Callable[[ParetoPoint], bool],
) -> Plot | None:
    """None of fewer than two points. L0 is logarithmic where it spans more than a factor of 3."""
    points = [(point, y) for point in found.items if (y := value(point)) is not None]
    if len(points) < 2:
        return None
    x_of, x_ticks = _scale([p.l0 for p, _ in points], WIDTH, logarithmic=True)
    y_of, y_ticks = _scale([y for _, y in points], HEIGHT, logarithmic=False)
    marks = [
        Mark(
            x=x_of(p.l0),
            y=HEIGHT - y_of(y),
            slug=p.slug,
            href=url(f"/saes/{p.slug}", corpus=p.page_corpus),
            title=_title(p) + (", on the front" if on_front(p) else ""),
            is_this=p.is_this,
            on_front=on_front(p),
        )
        for p, y in points
    ]
    kinds = [f"{p.architecture} {p.d_sae:,}" for p, _ in points]
    return Plot(
        width=WIDTH,
        height=HEIGHT,
        marks=tuple(sorted(marks, key=lambda mark: mark.is_this)),  # this SAE on top
        series=_series(kinds, marks),
        x_ticks=x_ticks,
        y_ticks=tuple(Tick(x=HEIGHT - tick.x, text=tick.text) for tick in y_ticks),
    )


def _title(point: ParetoPoint) -> str:
    ce = point.ce_recovered
    measured = f"L0 {number(point.l0)}, FVU {number(point.fvu)}"
    return f"{point.slug}: {measured}" + ("" if ce is None else f", CE recovered {number(ce)}")


def _series(kinds: Sequence[str], marks: Sequence[Mark]) -> tuple[Series, ...]:
    """Lines through the marks of each kind; their names, from the top down, moved apart."""
    lines = []
    for kind in dict.fromkeys(kinds):
        own = [mark for its_kind, mark in zip(kinds, marks, strict=True) if its_kind == kind]
        path = "M" + "L".join(f"{mark.x:.1f} {mark.y:.1f}" for mark in own)
        lines.append(Series(name=kind, path=path, x=own[-1].x, y=own[-1].y))
    placed: list[Series] = []
    for line in sorted(lines, key=lambda series: series.y):
        y = max(line.y, placed[-1].y + LABEL_GAP) if placed else line.y
        placed.append(Series(name=line.name, path=line.path, x=line.x, y=y))
    return tuple(placed)


def _scale(
    values: Sequence[float], length: float, *, logarithmic: bool
) -> tuple[Callable[[float], float], tuple[Tick, ...]]:
    """Where a value lies between 0 and `length`, with a margin, and the axis's marks."""
    low, high = min(values), max(values)
    is_log = logarithmic and low > 0 and high > 3 * low
    change: Callable[[float], float] = math.log if is_log else float
    start, end = change(low), change(high)
    margin = 0.08 * (end - start) or 0.1 * abs(start) or 1.0
    start, end = start - margin, end + margin

    def place(value: float) -> float:
        return length * (change(value) - start) / (end - start)

    marks = _octaves(low, high) if is_log else _round_numbers(start, end)
    shown = [(mark, place(mark)) for mark in marks]
    return place, tuple(Tick(x=x, text=_short(mark)) for mark, x in shown if 0 <= x <= length)


def _octaves(low: float, high: float) -> list[float]:
    return [2.0**e for e in range(math.floor(math.log2(low)) - 1, math.ceil(math.log2(high)) + 2)]


def _round_numbers(low: float, high: float) -> list[float]:
    """Four to seven multiples of 1, 2, 2.5 or 5 times a power of ten."""
    rough = (high - low) / 7
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step)
    return [step * i for i in range(first, math.floor(high / step) + 1)]


def _short(mark: float) -> str:
    return f"{mark:.6g}"
