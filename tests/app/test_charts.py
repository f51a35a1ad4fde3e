"""Charts: figures that Plotly takes, and geometry that stays within its box."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app import charts
from app.points import PointsCache
from sae_core.metrics import cosine_histogram
from sae_core.records import FeaturePoint, Histogram
from sae_core.store import Store
from tests.factories import make_records, make_store


@pytest.fixture
def points(store: Store) -> list[FeaturePoint]:
    return store.feature_points("demo")


def test_plotly_takes_the_figures(points: list[FeaturePoint]) -> None:
    from plotly.graph_objects import Figure

    for figure in (charts.density_figure(points), charts.scatter_figure(points), charts.density_figure([])):
        assert Figure(figure)
    assert Figure(charts.cosine_figure(points)).data[0].y == tuple(
        pytest.approx(p.encoder_decoder_cosine, abs=1e-4) for p in points if p.density > 0
    )


def test_plotly_script_is_in_the_wheel() -> None:
    assert charts.plotly_script().stat().st_size > 1_000_000


def test_every_alive_feature_is_counted_once(points: list[FeaturePoint]) -> None:
    alive = sum(point.density > 0 for point in points)
    assert sum(int(bar.title.split(": ")[1].split()[0]) for bar in charts.density_chart(points).bars) == alive
    assert sum(int(cell.title.split()[0]) for cell in charts.density_heatmap(points).cells) == alive


def test_cosines_are_drawn_where_they_are() -> None:
    chart = charts.cosine_chart(cosine_histogram([-1.0, 0.01, 0.02, 0.03, 1.0]))
    assert [bar.title.split(": ")[1] for bar in chart.bars] == ["1 features", "3 features", "1 features"]
    assert [round(bar.x / chart.width, 3) for bar in chart.bars] == [0, 0.5, 0.975]
    assert [bar.height / chart.height for bar in chart.bars] == pytest.approx([1 / 3, 1, 1 / 3])
    assert [tick.text for tick in chart.ticks] == ["−1", "−0.5", "0", "0.5", "1"]


def test_charts_of_nothing_are_empty() -> None:
    assert charts.density_chart([]).bars == ()
    assert charts.cosine_chart(cosine_histogram([])).bars == ()
    assert charts.density_heatmap([]).cells == ()
    assert charts.sparkline(Histogram(edges=(), counts=())) == ""
    assert charts.token_sparkline([], scale=1) == ""
    assert charts.token_sparkline([0.0, 0.0], scale=0) == ""


def test_many_points_are_drawn_on_a_canvas() -> None:
    points = [FeaturePoint(feature_index=i, density=0.01, max_activation=1.0) for i in range(charts.GL_POINTS + 1)]
    assert charts.scatter_figure(points)["data"][0]["type"] == "scattergl"  # type: ignore[index]


@pytest.mark.parametrize(("density", "share"), [(0, 0), (1e-9, 0), (1e-6, 0), (1e-3, 0.5), (1, 1), (2, 1)])
def test_density_share_is_logarithmic(density: float, share: float) -> None:
    assert charts.density_share(density) == pytest.approx(share)


def test_activation_chart_stays_in_its_box(store: Store) -> None:
    for number in range(12):
        feature = store.feature("demo", number).feature
        chart = charts.activation_chart(feature)
        assert all(bar.x >= 0 and bar.x + bar.width <= chart.width + 1e-6 for bar in chart.bars)
        assert all(0 < bar.height <= chart.height and math.isfinite(bar.height) for bar in chart.bars)
        assert len(chart.ticks) == 6


def test_sparkline_keeps_the_highest_bar() -> None:
    path = charts.sparkline(Histogram(edges=tuple(range(51)), counts=(1,) * 49 + (100,)), height=20)
    assert "v-20.0" in path
    assert path.count("M") <= 25


def test_token_sparkline_shows_a_peak_in_a_long_text() -> None:
    activations = [0.0] * 1000
    activations[777] = 2.0
    path = charts.token_sparkline(activations, scale=2.0)
    assert path.count("M") == 1
    assert "v-20.0" in path


def test_what_is_drawn_of_an_index_is_drawn_once_and_again_for_another(own_store: Store) -> None:
    kept, drawings = PointsCache(), 0

    def total(found: Sequence[FeaturePoint]) -> float:
        nonlocal drawings
        drawings += 1
        return sum(point.density for point in found)

    def asked(corpus: str) -> float:
        return kept.drawn(own_store, own_store.index("demo", corpus=corpus), total)

    def expected(corpus: str) -> float:
        return sum(point.density for point in own_store.feature_points("demo", corpus=corpus))

    assert asked("stories") == asked("stories") == expected("stories") and drawings == 1
    assert asked("poems") == expected("poems") != asked("stories") and drawings == 2
    own_store.add_index(make_records(corpus="stories", seed=5))
    assert asked("stories") == expected("stories") and drawings == 3


@pytest.fixture
def own_store(tmp_path: Path) -> Iterator[Store]:
    """To be written to."""
    opened = make_store(f"sqlite:///{tmp_path}/saescope.db")
    yield opened
    opened.close()


def test_only_many_points_need_webgl_and_its_policy(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def policy(n_points: int) -> str:
        monkeypatch.setattr(charts, "GL_POINTS", n_points)
        answer = client.get("/saes/demo", params={"points": n_points})  # an address of its own: answers are kept
        return str(answer.headers["Content-Security-Policy"])

    assert "unsafe" not in policy(8000)
    assert "'unsafe-eval'" in policy(200)
