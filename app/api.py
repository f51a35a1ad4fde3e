"""The JSON twins: the same facts as the pages, as records. Lists are `{"items": […], "next": cursor or null}`."""

import asyncio
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from app import charts
from app.deps import (
    LONGEST_TEXT,
    Colour,
    CorpusParams,
    FeatureIndex,
    FeatureListParams,
    InferenceDep,
    Name,
    Pins,
    PointsDep,
    ProbeSort,
    RunsDep,
    Session,
    SettingsDep,
    Share,
    Slug,
    StoreDep,
    as_seen,
    shown_pins,
)
from app.glossary import TERMS, Term
from app.inference import PredictJob, WorkerState
from app.kept import Keeps
from app.leaving import while_wanted
from app.probing import TOP_FEATURES, TOP_K, Asked, ProbeReport, checked_text, chosen_index, probe_report
from app.run_feed import RunFeeds
from app.runs import run_figures, short_detail
from sae_core.records import FeatureDetail, FeaturePage, Predictions, SAESummary
from sae_core.runs import Run, RunDetail, read_run

router = APIRouter(prefix="/api")


@dataclass(frozen=True, slots=True, kw_only=True)
class SAEList:
    """All SAEs, newest first; `next` is always null."""

    items: tuple[SAESummary, ...]
    next: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunList:
    """All runs, those at work first, then the newest; `next` is always null."""

    items: tuple[Run, ...]
    next: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureLink:
    """Where to find one feature."""

    slug: str
    feature_index: int


class ProbeRequest(BaseModel):
    """A text to probe, and how much of the answer is wanted."""

    model_config = ConfigDict(frozen=True)
    text: str = Field(description="the text, at most the server's limit of tokens")
    top_k: int = Field(default=TOP_K, ge=1, le=512, description="features per token")
    top_features: int = Field(default=TOP_FEATURES, ge=0, le=1000, description="features over the whole text")
    pin: Pins = Field(default=[], description="features to have in the answer wherever they rank")
    feature: Colour = Field(default=None, description="one more of them; what colours the page may stand here too")
    sort: ProbeSort = Field(default="strength", description="how `features` are ranked, after all filters")
    corpus: Name = Field(default=None, description="the corpus that densities and maxima come from")
    max_density: Share = Field(default=None, description="leave out features that are active more often than this")
    special: bool = Field(default=False, description="features of special tokens (BOS and the like) too")
    session: Session = None


@router.get("/saes", summary="All SAEs")
def saes(store: StoreDep) -> SAEList:
    return SAEList(items=tuple(store.saes()))


@router.get("/saes/{slug}", summary="One SAE and its indexes")
def sae(store: StoreDep, slug: Slug, query: CorpusParams) -> SAESummary:
    summary = store.sae(slug)
    chosen_index(summary, corpus=query.corpus)  # an unknown corpus is an error here as it is on the page
    return summary


@router.get("/saes/{slug}/charts", summary="The SAE page's charts as Plotly figures", dependencies=Keeps)
def sae_charts(store: StoreDep, points: PointsDep, slug: Slug, query: CorpusParams) -> dict[str, Any]:
    index = store.index(slug, corpus=query.corpus)
    return {
        "density": points.drawn(store, index, charts.density_figure),
        "scatter": points.drawn(store, index, charts.scatter_figure),
        "cosine": points.drawn(store, index, charts.cosine_figure),
    }


@router.get("/saes/{slug}/features", summary="A page of features", dependencies=Keeps)
def features(store: StoreDep, slug: Slug, query: FeatureListParams) -> FeaturePage:
    return store.features(slug, **query.model_dump())


@router.get("/saes/{slug}/features/random", summary="A random feature that is alive")
def random_feature(store: StoreDep, slug: Slug, query: CorpusParams) -> FeatureLink:
    return FeatureLink(slug=slug, feature_index=store.random_feature(slug, corpus=query.corpus))


@router.get("/saes/{slug}/features/{feature_index}", summary="One feature with its examples", dependencies=Keeps)
def feature(store: StoreDep, slug: Slug, feature_index: FeatureIndex, query: CorpusParams) -> FeatureDetail:
    return store.feature(slug, feature_index, corpus=query.corpus)


@router.get("/saes/{slug}/probe", summary="Probe a short text by its address")
async def probe_by_address(
    store: StoreDep, inference: InferenceDep, points: PointsDep, slug: Slug, query: Annotated[ProbeRequest, Query()]
) -> ProbeReport:
    return await _probe(store, inference, points, slug=slug, asked=query)


@router.post("/saes/{slug}/probe", summary="Probe a text")
async def probe(
    request: Request,
    store: StoreDep,
    inference: InferenceDep,
    points: PointsDep,
    slug: Slug,
    asked: Annotated[ProbeRequest, Body()],
) -> ProbeReport:
    return await while_wanted(request, _probe(store, inference, points, slug=slug, asked=asked))


@router.get("/saes/{slug}/predictions", summary="What the model itself expects along a text")
async def predictions_by_address(
    store: StoreDep, inference: InferenceDep, slug: Slug, text: Annotated[str, Query(max_length=LONGEST_TEXT)]
) -> Predictions:
    summary = await run_in_threadpool(store.sae, slug)
    return await inference.answer(PredictJob(sae=summary.sae, text=checked_text(text)))


@router.get("/worker", summary="What the model worker is at")
def worker(inference: InferenceDep) -> WorkerState:
    return inference.state()


@router.get("/runs", summary="All training and indexing runs")
def runs(all_runs: RunsDep) -> RunList:
    return RunList(items=tuple(all_runs))


@router.get("/runs/{run_id}", summary="One run with its curves and the end of its log")
def run(request: Request, settings: SettingsDep, run_id: str) -> RunDetail:
    detail = short_detail(settings.home, run_id)
    return replace(detail, run=as_seen(request, detail.run))


@router.get("/runs/{run_id}/charts", summary="A training run's curves as Plotly figures")
def run_charts(settings: SettingsDep, run_id: str) -> dict[str, Any]:
    return run_figures(settings.home, run_id)


def _known_run(settings: SettingsDep, run_id: str) -> str:
    """Raises NotFoundError, which must come before the stream begins."""
    read_run(settings.home, run_id)
    return run_id


@router.get(
    "/runs/{run_id}/events",
    summary="A run as it goes on, as server-sent events: points, run, and end when it ends",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def run_stream(
    request: Request,
    settings: SettingsDep,
    run_id: Annotated[str, Depends(_known_run)],
    last_event_id: Annotated[str | None, Header(description="the id of the last event that was received")] = None,
) -> StreamingResponse:
    feeds: RunFeeds = request.app.state.run_feeds
    stopping: asyncio.Event = request.app.state.stopping
    events = feeds.events(settings.home, run_id, last_event_id=last_event_id, stopping=stopping)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the second: for nginx
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


@router.get("/glossary", summary="What the words mean")
def glossary() -> dict[str, Term]:
    return TERMS


async def _probe(
    store: StoreDep, inference: InferenceDep, points: PointsDep, *, slug: str, asked: ProbeRequest
) -> ProbeReport:
    summary = await run_in_threadpool(store.sae, slug)
    wanted = asked.model_dump(exclude={"pin", "feature"})
    pins = shown_pins(asked.pin, asked.feature)
    return await probe_report(store, inference, points=points, summary=summary, asked=Asked(**wanted, pins=pins))
