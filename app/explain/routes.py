"""Labels' scores, who is asked for them, and how SAEs compare: forms and pages, and their twins below `/api`."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from app.changes import Fields, Writable, parsed, seen_at
from app.deps import CorpusParams, FeatureIndex, Name, Slug, StoreDep
from app.explain.background import Background, By, Work
from app.explain.comparison import Comparison, Kind, Method, comparison, grid
from app.kept import Keeps
from app.rendering import page
from app.urls import url
from sae_core.explain.records import LabelScore, ReplacedLabel

router = APIRouter()


async def get_background(request: Request) -> Background:
    background: Background = request.app.state.labelling
    return background


BackgroundDep = Annotated[Background, Depends(get_background)]


class Explain(BaseModel):
    """Who is to name a feature."""

    model_config = ConfigDict(frozen=True)
    by: By = Field(default="patterns", description="a language model, if one is set, or patterns")
    corpus: Name = Field(default=None, description="on whose texts; default the newest index")


class ScoresQuery(BaseModel):
    """Which scores are compared."""

    model_config = ConfigDict(frozen=True)
    kind: Kind = Field(default="pattern", description="of the labels")
    method: Method = Field(default="detection", description="by which they were tested")


ScoresParams = Annotated[ScoresQuery, Query()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """How a feature's labels were tested, what people's labels replaced, and what is being done now."""

    scores: tuple[LabelScore, ...]
    history: tuple[ReplacedLabel, ...]
    work: Work | None


@router.get("/api/saes/{slug}/features/{feature_index}/scores", summary="How a feature's labels were tested")
async def scores(
    store: StoreDep, background: BackgroundDep, slug: Slug, feature_index: FeatureIndex, query: CorpusParams
) -> Tested:
    return Tested(
        scores=tuple(store.scores(slug, [feature_index], corpus=query.corpus)),
        history=store.label_history(slug, feature_index),
        work=background.work(slug, feature_index, query.corpus),
    )


@router.post(
    "/api/saes/{slug}/features/{feature_index}/explain", summary="Have a feature named", dependencies=[Writable]
)
async def explain(
    store: StoreDep, background: BackgroundDep, slug: Slug, feature_index: FeatureIndex, asked: Explain
) -> Work:
    store.feature(slug, feature_index, corpus=asked.corpus)  # an unknown feature is an error here
    return background.start(store, slug, feature_index, asked.corpus, by=asked.by)


@router.post("/saes/{slug}/features/{feature_index}/explain", include_in_schema=False, dependencies=[Writable])
async def explain_form(
    store: StoreDep, background: BackgroundDep, slug: Slug, feature_index: FeatureIndex, fields: Fields
) -> Response:
    asked = parsed(Explain, fields)
    await explain(store, background, slug, feature_index, asked)
    return seen_at(url(f"/saes/{slug}/features/{feature_index}", corpus=asked.corpus) + "#tested")


@router.get("/api/scores", summary="How well labels tell the features of each SAE apart")
def compared_scores(store: StoreDep, query: ScoresParams) -> Comparison:
    return comparison(store, kind=query.kind, method=query.method)


@router.get("/scores", include_in_schema=False, response_class=HTMLResponse, dependencies=Keeps)
def scores_page(request: Request, store: StoreDep, query: ScoresParams) -> Response:
    found = comparison(store, kind=query.kind, method=query.method)
    return page(request, "scores.html", found=found, grids=[grid(group) for group in found.groups], query=query)
