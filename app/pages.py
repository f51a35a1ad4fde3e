"""The pages: each route parses, makes one call and renders. The same facts are at the same address below `/api`."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from app import charts, provenance
from app.causal.kept import kept_views
from app.changes import author_of
from app.declared import declared_statistics
from app.deps import (
    CorpusParams,
    FeatureIndex,
    FeaturePageParams,
    FeatureParams,
    FeatureQuery,
    Index,
    PointsDep,
    RunsDep,
    SettingsDep,
    Slug,
    StoreDep,
    as_seen,
)
from app.ends import ends
from app.examples import example_groups, unfurled
from app.explain.routes import BackgroundDep
from app.explain.views import tested
from app.kept import Keeps, TakesTurns, keep
from app.pareto import own_corpora, pareto
from app.pareto_plot import plots
from app.probing import chosen_index, indexed
from app.rendering import STATIC, absolute, page, query_without
from app.runs import run_news, run_view, unfinished
from app.search import PLACES
from app.urls import url
from sae_core.records import FeatureDetail, IndexInfo
from sae_core.runs import has_run
from sae_core.store import Store

ORDERS = [
    ("-density", "most frequent"), ("density", "rarest"), ("-max", "strongest"), ("max", "weakest"),
    ("-mean", "strongest on average"), ("mean", "weakest on average"), ("label", "label, A to Z"),
    ("-label", "label, Z to A"), ("-confidence", "surest label"), ("confidence", "least sure label"),
    ("-cosine", "largest encoder·decoder"), ("cosine", "smallest encoder·decoder"), ("index", "number"),
    ("-index", "number, last first"),
]  # fmt: skip
SHARED_ON_HOME = 6  # the newest shared probes
RECENT_LISTS = 5  # on the start page
MAX_OFFERED_LISTS = 100  # on a feature's page, to add it to: those that changed last

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


@router.get("/", dependencies=[TakesTurns])
def home(request: Request, store: StoreDep, settings: SettingsDep, all_runs: RunsDep) -> Response:
    runs = run_news(settings.home, unfinished(all_runs))
    with store.at_one_moment() as now:
        saes = sorted(now.saes(), key=lambda summary: not summary.indexes)  # those that can be browsed come first
        shared = [probe for probe in now.probes(limit=SHARED_ON_HOME) if not probe.problem]
        lists, kept = now.lists(limit=RECENT_LISTS), kept_views(now)
    return page(request, "home.html", saes=saes, runs=runs, shared=shared, lists=lists, kept=kept, json_url="/api/saes")


@router.get("/saes")
def saes() -> Response:
    return RedirectResponse("/", status_code=308)


@router.get("/saes/{slug}", dependencies=[TakesTurns])
def sae_page(
    request: Request, store: StoreDep, settings: SettingsDep, points: PointsDep, slug: Slug, query: CorpusParams
) -> Response:
    summary = store.sae(slug)
    index = chosen_index(summary, corpus=query.corpus)
    found = list(points.points(store, index).values()) if index else []
    cosines = index.metrics.encoder_decoder_histogram if index else None
    like = pareto(store, summary, index)
    trained = has_run(settings.home, slug)
    keep(request, as_long_as=lambda: has_run(settings.home, slug) == trained)
    return page(
        request, "sae.html", has_webgl=len(found) > charts.GL_POINTS, summary=summary, sae=summary.sae, index=index,
        has_index=bool(index),
        has_weights=bool(summary.sae.weights_path), corpus=query.corpus,
        ends=ends(store, index, found) if index else None, **(_drawn(store, points, index) if index else {}),
        cosines=charts.cosine_chart(cosines) if cosines else None,
        train_command=provenance.train_command(summary.sae),
        index_command=provenance.index_command(index) if index and summary.sae.weights_path else None,
        declared=declared_statistics(summary.sae),
        settings_rows=provenance.settings_rows(summary.sae.config), has_run=trained,
        like=like, plots=plots(like) if like else (),
        own=own_corpora(summary, index) if index else None,
        charts_url=url(f"/api/saes/{slug}/charts", corpus=query.corpus),
    )  # fmt: skip


def _drawn(store: StoreDep, points: PointsDep, index: IndexInfo) -> dict[str, Any]:
    return {
        "density": points.drawn(store, index, charts.density_chart),
        "heatmap": points.drawn(store, index, charts.density_heatmap),
        "cosine_heatmap": points.drawn(store, index, charts.cosine_heatmap),
    }


@router.get("/saes/{slug}/features", dependencies=Keeps)
def features_page(request: Request, store: StoreDep, slug: Slug, query: FeaturePageParams) -> Response:
    with store.at_one_moment() as now:
        summary = now.sae(slug)
        index = indexed(summary, corpus=query.corpus)
        found = now.features(slug, **query.selection(), examples=False)
        rows = found.items if query.view == "table" else request.app.state.rows.rows(now, index, found.items)
    here, kept = f"/saes/{slug}/features", query_without(request, "after")
    selection = query_without(request, "after", "limit", "view")
    return page(
        request, "features.html", summary=summary, sae=summary.sae, index=index, has_index=True,
        has_weights=bool(summary.sae.weights_path), query=query,
        corpus=query.corpus, rows=rows, next=found.next, here=here,
        kept=kept, next_url=url(here, **kept, after=found.next),
        views={view: url(here, **query_without(request, "view"), view=view) for view in ("", "table")},
        orders=ORDERS, places=PLACES,
        exports={kind: url(f"{here}.{kind}", **selection) for kind in ("csv", "jsonl")},
    )  # fmt: skip


@router.get("/saes/{slug}/features/random")
def random_feature(store: StoreDep, slug: Slug, query: CorpusParams) -> Response:
    feature_index = store.random_feature(slug, corpus=query.corpus)
    target = url(f"/saes/{slug}/features/{feature_index}", corpus=query.corpus)
    return RedirectResponse(target, status_code=303, headers={"Cache-Control": "no-store"})


@router.get("/saes/{slug}/features/{feature_index}", dependencies=[TakesTurns])
def feature_page(
    request: Request, store: StoreDep, labelling: BackgroundDep, slug: Slug, feature_index: FeatureIndex,
    query: FeatureParams,
) -> Response:  # fmt: skip
    with store.at_one_moment() as now:
        summary = now.sae(slug)
        n_top = query.examples if query.embed else None
        detail = now.feature(slug, feature_index, corpus=query.corpus, n_top=n_top)
        around = {} if query.embed else _around(now, request, detail, slug=slug, query=query)
    index, here = indexed(summary, corpus=query.corpus), f"/saes/{slug}/features/{feature_index}"
    work = labelling.work(slug, feature_index, query.corpus)
    keep(request, as_long_as=lambda: labelling.work(slug, feature_index, query.corpus) is work)
    return page(
        request, "feature_embed.html" if query.embed else "feature.html",
        slug=slug, index=index, has_index=True, corpus=query.corpus, query=query, here=here,
        has_weights=bool(summary.sae.weights_path),
        kept_width=None if query.width == "short" else query.width,
        detail=detail, feature=detail.feature, chart=charts.activation_chart(detail.feature),
        groups=example_groups(
            detail.feature, detail.examples, signs=query.breaks, has_bos=index.corpus.prepend_bos, width=query.width
        ),
        description=unfurled(detail.feature, detail.examples), permalink=absolute(request, here),
        work=work, llm=labelling.model, **around,
    )  # fmt: skip


def _around(store: Store, request: Request, detail: FeatureDetail, *, slug: str, query: FeatureQuery) -> dict[str, Any]:
    """What people and language models have made of a feature: scores, earlier labels, lists."""
    feature_index = detail.feature.feature_index
    scores = store.scores(slug, [feature_index], corpus=query.corpus)
    return {
        "tested": tested(detail, scores, opened=query.tested),
        "history": store.label_history(slug, feature_index),
        "lists": store.lists(limit=MAX_OFFERED_LISTS),
        "held": store.lists_with(slug, feature_index),
        "author": author_of(request),
    }


@router.get("/saes/{slug}/contexts/{context_id}/probe")
def probe_context(
    store: StoreDep, slug: Slug, context_id: FeatureIndex, query: CorpusParams, feature: Index = None
) -> Response:
    """On to the probe page with the text of an example, which a page of forty would else hold twice."""
    text = store.context_text(slug, context_id, corpus=query.corpus)
    return RedirectResponse(
        url(f"/saes/{slug}/probe", text=text, feature=feature, corpus=query.corpus), status_code=303
    )


@router.get("/runs")
def runs(request: Request, settings: SettingsDep, all_runs: RunsDep) -> Response:
    return page(request, "runs.html", runs=run_news(settings.home, all_runs))


@router.get("/runs/{run_id}")
def run_page(
    request: Request, store: StoreDep, settings: SettingsDep, run_id: str, follow: Annotated[bool, Query()] = False
) -> Response:
    view = run_view(store, settings.home, run_id)
    run = as_seen(request, view.news.run)
    return page(request, "run.html", view=view, run=run, follow=follow, json_url=url(f"/api/runs/{run_id}"))


@router.get("/glossary", dependencies=Keeps)
def glossary(request: Request) -> Response:
    return page(request, "glossary.html")


@router.get("/docs", dependencies=Keeps)
def docs(request: Request) -> Response:
    return page(request, "docs.html", spec=request.app.openapi(), json_url="/openapi.json")


@router.get("/favicon.ico")
def favicon() -> Response:
    return FileResponse(STATIC / "favicon.svg", media_type="image/svg+xml")
