"""A search by meaning over an SAE's labels: the page, and its twin.

    query ── EmbedJob (model worker) ──> vector ──> store: compared with the vector of every label ──> features

Labels that changed since are made vectors of in the same job, a few hundred at a time, and kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from app.deps import CorpusQuery, InferenceDep, Name, SettingsDep, Share, Slug, StoreDep
from app.explain.background import Background
from app.explain.routes import BackgroundDep
from app.inference import EmbedJob, Inference
from app.leaving import while_wanted
from app.list_rows import list_rows
from app.rendering import page
from app.settings import Settings
from app.urls import url
from sae_core.errors import NotFoundError, PromptError, SaescopeError
from sae_core.explain.records import LabelVectors
from sae_core.records import FeatureRow
from sae_core.store import Store

MENDED = 256  # labels without a vector that a search makes vectors of

router = APIRouter()


class MeaningQuery(CorpusQuery):
    """What labels should mean, and which features are looked at."""

    q: Name = Field(default=None, description="words for what is looked for; none of them must stand in a label")
    min_density: Share = Field(default=None, description="least density, a share between 0 and 1")
    max_density: Share = Field(default=None, description="largest density, a share between 0 and 1")
    min_confidence: Share = Field(default=None, description="least confidence of the automatic label")
    alive: bool = Field(default=True, description="leave out features that never fired")
    limit: int = Field(default=50, ge=1, le=200, description="how many of the nearest")


MeaningParams = Annotated[MeaningQuery, Query()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Near:
    """A feature, and the cosine of its label's vector with the query's."""

    cosine: float
    row: FeatureRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """The features whose labels are nearest to the query, and by which model's vectors."""

    vectors: LabelVectors
    items: tuple[Near, ...]


@router.get("/api/saes/{slug}/meaning", summary="Features whose labels mean something like a query")
async def meaning(
    request: Request, store: StoreDep, background: BackgroundDep, inference: InferenceDep, settings: SettingsDep,
    slug: Slug, query: MeaningParams,
) -> Nearest:  # fmt: skip
    return await while_wanted(request, _nearest(store, background, inference, settings, slug, query))


@router.get("/saes/{slug}/meaning", include_in_schema=False, response_class=HTMLResponse)
async def meaning_page(
    request: Request, store: StoreDep, background: BackgroundDep, inference: InferenceDep, settings: SettingsDep,
    slug: Slug, query: MeaningParams,
) -> Response:  # fmt: skip
    index = await run_in_threadpool(store.index, slug, corpus=query.corpus)
    vectors = await run_in_threadpool(store.label_vectors, slug)
    found, problem, status = None, None, 200
    values: dict[str, object] = {}
    if query.q and query.q.strip() and vectors:
        try:
            found = await meaning(request, store, background, inference, settings, slug, query)
        except SaescopeError as error:
            problem, status = str(error), error.http_status
    if not (query.q and vectors):
        values["json_url"] = url(f"/api/saes/{slug}", corpus=query.corpus)  # nothing was looked for
    rows = list_rows([near.row for near in found.items], has_bos=index.corpus.prepend_bos) if found else []
    return page(
        request, "meaning.html", status_code=status, summary=await run_in_threadpool(store.sae, slug), slug=slug,
        index=index, has_index=True, corpus=query.corpus, query=query, problem=problem,
        vectors=found.vectors if found else vectors, rows=rows,
        near={near.row.feature.feature_index: near.cosine for near in found.items} if found else {},
        words_url=url(f"/saes/{slug}/features", q=query.q, corpus=query.corpus),
        **values,
    )  # fmt: skip


async def _nearest(
    store: Store, background: Background, inference: Inference, settings: Settings, slug: str, query: MeaningQuery
) -> Nearest:
    vectors = await run_in_threadpool(store.label_vectors, slug)
    if not query.q or not query.q.strip():
        raise PromptError("There is nothing to look for: give words for what labels should mean.")
    if vectors is None:
        raise NotFoundError(f'The labels of "{slug}" are no vectors yet; run `saescope label {slug} --embed MODEL`.')
    missing: Mapping[int, str] = {}
    if vectors.n_missing and not settings.read_only:
        missing = await run_in_threadpool(store.labels_without_vectors, slug, limit=MENDED)
    found = await inference.answer(EmbedJob(model=vectors.model, texts=(query.q, *missing.values())))
    if missing:
        await run_in_threadpool(background.keep_vectors, slug, found, missing, found.vectors[1:])
        vectors = await run_in_threadpool(store.label_vectors, slug) or vectors
    asked = query.model_dump(exclude={"q"})
    items = await run_in_threadpool(store.features_by_meaning, slug, found.vectors[0], **asked)
    return Nearest(vectors=vectors, items=tuple(Near(cosine=cosine, row=row) for row, cosine in items))
