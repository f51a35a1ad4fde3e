"""A run's curves: within their box, on an axis that stays, and figures that Plotly takes."""

import re

import pytest

from app.curves import COLUMNS, CURVES, curve_figures, line_chart
from sae_core.runs import RunPoint

FVU, LOSS, L0, DEAD = CURVES


def points(n: int, **changes: float | None) -> list[RunPoint]:
    return [
        RunPoint(**{"tokens": 100 * i, "loss": 2 / i, "fvu": 1 / i, "l0": 15.0, "dead_share": 0.0, **changes})  # type: ignore[arg-type]
        for i in range(1, n + 1)
    ]


def places(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](\S+) ([^L]+)", path)]


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
@pytest.mark.parametrize("n", [1, 2, 50, 5000])
def test_a_curve_stays_in_its_box(curve: object, n: int) -> None:
    chart = line_chart(curve, points(n), tokens=10_000)  # type: ignore[arg-type]
    drawn = places(chart.path)
    assert len(drawn) == min(n, COLUMNS)
    assert all(0 <= x <= chart.width + 0.05 and 0 <= y <= chart.height + 0.05 for x, y in drawn)
    assert [x for x, _ in drawn] == sorted(x for x, _ in drawn)


def test_the_axis_reaches_to_the_end_of_the_run_from_the_start_on() -> None:
    first, later = (line_chart(FVU, points(n), tokens=10_000) for n in (2, 50))
    assert [tick.text for tick in first.ticks] == [tick.text for tick in later.ticks] == [
        "0", "2,500", "5,000", "7,500", "10,000",
    ]  # fmt: skip
    assert places(first.path)[1][0] == places(later.path)[1][0] == 560 * 200 / 10_000


def test_a_falling_measure_is_logarithmic_and_a_count_stands_on_zero() -> None:
    halved = [*points(1, fvu=0.8), *points(2, fvu=0.4)[1:], *points(4, fvu=0.2)[3:]]
    (_, top), (_, middle), (_, bottom) = places(line_chart(FVU, halved, tokens=400).path)
    assert (top, middle, bottom) == (0.0, 75.0, 150.0)
    chart = line_chart(L0, points(3), tokens=300)
    assert {y for _, y in places(chart.path)} == {0.0}
    assert (chart.top, chart.bottom) == ("15.0", "0")


def test_what_was_not_a_number_is_left_out() -> None:
    chart = line_chart(LOSS, [*points(3, loss=None), *points(2, loss=0.0), *points(5)[4:]], tokens=500)
    assert len(places(chart.path)) == 1
    assert chart.summary == "0.400 at first, 0.400 now"
    empty = line_chart(DEAD, [], tokens=500)
    assert (empty.path, empty.summary) == ("", "nothing is measured yet")


def test_plotly_takes_the_figures() -> None:
    from plotly.graph_objects import Figure

    figures = curve_figures([*points(3), *points(1, fvu=None)], tokens=1000)
    assert list(figures) == ["fvu", "loss", "l0", "dead_share"]
    for figure in figures.values():
        assert Figure(figure)
    assert figures["fvu"]["data"][0]["y"] == [1.0, 0.5, pytest.approx(1 / 3), None]  # type: ignore[index]
    assert figures["fvu"]["layout"]["xaxis"]["range"] == [0, 1000]  # type: ignore[index]
