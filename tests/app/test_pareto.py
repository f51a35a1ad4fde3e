"""An SAE among its like: who is on the front, where marks stand, and what is left out and counted."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.pareto import Pareto, pareto, save_evaluation
from app.pareto_plot import plots
from app.settings import Settings
from sae_core.records import Evaluation, Histogram, IndexMetrics, SAESummary
from sae_core.store import Store
from tests.app.fake_prober import FakeProber
from tests.app.test_pages import Checked
from tests.compared import make_compared_store
from tests.factories import NOW, make_model, make_records, make_sae

VALUES = {  # L0, FVU, CE recovered
    "a": (8.0, 0.30, 0.90), "b": (16.0, 0.20, 0.95), "c": (17.0, 0.21, 0.96), "d": (64.0, 0.10, None),
    "e": (64.0, 0.12, 0.94), "f": (30.0, float("nan"), 0.9),
}  # fmt: skip


def summary(slug: str, **changes: object) -> SAESummary:
    l0, fvu, ce = VALUES[slug]
    info = make_records(corpus="stories").info
    metrics: IndexMetrics = replace(info.metrics, l0=l0, fvu=fvu, ce_recovered=ce)
    return SAESummary(sae=make_sae(slug, **changes), indexes=(replace(info, slug=slug, metrics=metrics),))


@pytest.fixture
def summaries() -> list[SAESummary]:
    return [summary(slug, architecture="relu" if slug == "c" else "topk") for slug in VALUES]


def among(summaries: list[SAESummary], this: SAESummary) -> Pareto:
    found = pareto(SimpleNamespace(saes=lambda: summaries), this, this.indexes[0] if this.indexes else None)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_the_front_has_those_that_no_other_beats(summaries: list[SAESummary]) -> None:
    found = among(summaries, summaries[0])
    points = {p.slug: p for p in found.items}
    assert [p.l0 for p in found.items] == sorted(p.l0 for p in found.items)
    assert "f" not in points  # FVU is not a number
    assert {slug for slug, p in points.items() if p.fvu_on_front} == {"a", "b", "d"}
    assert {slug for slug, p in points.items() if p.ce_on_front} == {"a", "b", "c"}
    assert points["d"].ce_on_front is None
    assert [p.slug for p in points.values() if p.is_this] == ["a"]


def test_only_the_same_place_and_text_is_compared(summaries: list[SAESummary]) -> None:
    a, b, c, d, *_ = summaries
    elsewhere = replace(b, sae=replace(b.sae, hook_name="blocks.1.hook_resid_post"))
    other_model = replace(c, sae=replace(c.sae, model=make_model(revision="r2")))
    other_text = replace(d.indexes[0], corpus=replace(d.indexes[0].corpus, fingerprint="another"))
    transcoder = replace(b, sae=replace(b.sae, config={"target_hook": "mlp_out"}))
    unindexed = replace(b, indexes=())
    found = among([a, elsewhere, other_model, transcoder, replace(d, indexes=(other_text,)), unindexed], a)
    assert ([p.slug for p in found.items], found.n_elsewhere) == (["a"], 2)
    assert plots(found) == []


def test_a_sweep_is_plotted_by_what_it_left_beside_the_weights(summaries: list[SAESummary], tmp_path: Path) -> None:
    swept = []
    for s in summaries[:4]:
        (tmp_path / s.sae.slug).mkdir()
        info = make_records(corpus="poems").info
        save_evaluation(
            Evaluation(
                slug=s.sae.slug, model=s.sae.model, hook_name=s.sae.hook_name, target_hook_name=s.sae.hook_name,
                corpus=info.corpus, metrics=s.indexes[0].metrics, density_histogram=Histogram(edges=(), counts=()),
                dtype="float32", seconds=1.0, created_at=NOW,
            ),
            folder=tmp_path / s.sae.slug,
        )  # fmt: skip
        swept.append(replace(s, sae=replace(s.sae, weights_path=str(tmp_path / s.sae.slug)), indexes=()))
    (tmp_path / "d" / "evaluation.json").write_text('{"slug": "d", "corpus": 3}')
    found = among(swept, swept[0])
    assert [(p.slug, p.l0, p.fvu, p.page_corpus) for p in found.items] == [
        (slug, *VALUES[slug][:2], None) for slug in "abc"
    ]
    assert (found.source, found.corpus, found.n_elsewhere) == ("sweep", "poems", 1)
    # Indexed itself, it still stands among the sweep's: there are more of them. Not so among as many of the index.
    assert among([replace(swept[0], indexes=summaries[0].indexes), *swept[1:]], swept[0]).source == "sweep"
    indexed = [replace(s, indexes=full.indexes) for s, full in zip(swept, summaries, strict=False)]
    assert among(indexed, indexed[0]).source == "index"
    nothing = SimpleNamespace(saes=lambda: swept)
    assert pareto(nothing, swept[3], None) is None  # type: ignore[arg-type]


def test_marks_stand_within_the_box_in_the_order_of_their_values(summaries: list[SAESummary]) -> None:
    found = among(summaries, summaries[1])
    drawn = plots(found)
    assert [term for term, _ in drawn] == ["fvu", "ce_recovered"]
    for value, plot in drawn:
        points = {p.slug: p for p in found.items}
        marks = plot.marks
        assert all(0 < m.x < plot.width and 0 < m.y < plot.height for m in marks)
        by_value = sorted(marks, key=lambda m: -getattr(points[m.slug], value))
        assert [m.y for m in by_value] == sorted(m.y for m in marks)
        by_l0 = sorted(marks, key=lambda m: points[m.slug].l0)
        assert [m.x for m in by_l0] == sorted(m.x for m in marks)
        assert [m.slug for m in marks if m.is_this] == ["b"] == [marks[-1].slug]
        assert len(plot.x_ticks) >= 2 and 3 <= len(plot.y_ticks) <= 9
        assert {series.name for series in plot.series} == {"topk 300", "relu 300"}
        tick = next(t for t in plot.x_ticks if t.text == "16")
        assert tick.x == pytest.approx(next(m.x for m in marks if m.slug == "b"))


def test_one_value_for_all_is_still_drawn() -> None:
    same = [summary("a"), replace(summary("a"), sae=make_sae("z"))]
    for _, plot in plots(among(same, same[0])):
        assert all(0 < m.x < plot.width and 0 < m.y < plot.height for m in plot.marks)
        assert len({(m.x, m.y) for m in plot.marks}) == 1


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    store: Store = make_compared_store(f"sqlite:///{tmp_path}/x.db", tmp_path)
    with TestClient(create_app(Settings(), store=store, prober=FakeProber())) as opened:
        yield opened
    store.close()


def test_the_sae_page_shows_its_like_and_its_corpora(client: TestClient) -> None:
    page, twin = client.get("/saes/demo").text, client.get("/api/saes/demo/pareto").json()
    assert Checked(page).open == []
    assert {p["slug"] for p in twin["items"]} == {"demo", "other", "gone"}
    assert page.count('class="mark this"') == 2
    assert set(re.findall(r'<a href="(/saes/[^"]*)" aria-label', page)) == {
        f"/saes/{slug}?corpus=poems" for slug in ("demo", "other", "gone")
    }
    table = page.split('class="beside"')[1].split("</table>")[0]
    assert [slug for slug in ("demo", "other", "gone") if slug in table] == ["demo", "other", "gone"]
    assert "1 more of this place was not measured on this text" in page
    assert 'href="/compare?a=demo%40poems&amp;b=demo%40stories"' in page
    only = client.get("/saes/wide").text
    assert 'id="pareto"' not in only and 'id="corpora"' not in only
    assert client.get("/api/saes/unindexed/pareto").status_code == 404


def test_the_feature_page_leads_to_comparisons_and_so_does_the_start_page(client: TestClient) -> None:
    page = client.get("/saes/demo/features/0").text
    for address in ("/compare?a=demo%2F0&amp;b=demo%2F1", "/compare?a=demo%2F0&amp;b=demo%2F5", "/compare?a=demo%2F0"):
        assert f'href="{address}"' in page
    on_stories = client.get("/saes/demo/features/0?corpus=stories").text
    assert 'href="/compare?a=demo%2F0%40stories&amp;b=demo%2F1%40stories"' in on_stories
    assert client.get("/").text.count('name="sae" value="') == 5
