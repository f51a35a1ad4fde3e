"""The page Steer, its stream of events, its twin, and how a steering is stored (`kept` is where it is seen then).

Nothing but the model's own work happens when an address is opened: only storing changes anything, and goes through
`app.changes`.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from app.causal.kept import REPORT, StoredSteering, kept_views, stored
from app.causal.steer_report import (
    SteerCache,
    SteerPlan,
    SteerQuery,
    SteerReport,
    address_of,
    column_title,
    planned,
    reported,
    steer_parts,
    steer_report,
    steer_view,
    steered_features,
)
from app.changes import Fields, Writable, author_of, seen_at
from app.deps import InferenceDep, PointsDep, SettingsDep, Slug, StoreDep
from app.leaving import while_wanted
from app.rendering import page
from app.urls import url
from sae_core.causal.records import MAX_PUSHES, Steering, SteerStart
from sae_core.errors import SaescopeError
from sae_core.store import Store

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
api = APIRouter(prefix="/api")

SteerParams = Annotated[SteerQuery, Query()]


async def get_cache(request: Request) -> SteerCache:
    cache: SteerCache = request.app.state.steerings
    return cache


CacheDep = Annotated[SteerCache, Depends(get_cache)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The first event: the columns that will be filled."""

    prompt: str  # as the model reads it
    titles: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """The last event where something went wrong."""

    error: str
    status: int


@router.get("/saes/{slug}/steer")
async def steer_page(
    request: Request, store: StoreDep, inference: InferenceDep, points: PointsDep, settings: SettingsDep,
    cache: CacheDep, slug: Slug, query: SteerParams,
) -> Response:  # fmt: skip
    summary = await run_in_threadpool(store.sae, slug)
    values: dict[str, Any] = dict.fromkeys(("report", "view", "problem"))
    status, here = 200, f"/saes/{slug}/steer"
    features: tuple[Any, ...] = ()
    try:
        features = await run_in_threadpool(steered_features, store, points, summary, query)
        if query.prompt.strip():
            plan = await planned(store, points, summary, query, most=settings.steer_tokens)
            values["report"] = report = await while_wanted(
                request, steer_report(inference, cache, plan, max_seconds=settings.steer_seconds)
            )
            values["view"] = steer_view(report)
        else:
            inference.warm(summary.sae)
            values["json_url"] = url(f"/api/saes/{slug}", corpus=query.corpus)
    except SaescopeError as error:
        values["problem"], status = str(error), error.http_status
    return page(
        request, "steer.html", status_code=status, summary=summary, slug=slug, corpus=query.corpus, query=query,
        has_index=bool(summary.indexes), features=features, n_lines=max(1, min(len(features) + 1, MAX_PUSHES)),
        most=settings.steer_tokens, max_tokens=settings.max_prompt_tokens, here=here, author=author_of(request),
        address=request.url.query, kept=await run_in_threadpool(kept_views, store, slug=slug), **values,
    )  # fmt: skip


@router.post("/saes/{slug}/steer", dependencies=[Writable])
async def store_from_page(
    request: Request, store: StoreDep, inference: InferenceDep, points: PointsDep, settings: SettingsDep,
    cache: CacheDep, slug: Slug, fields: Fields,
) -> Response:  # fmt: skip
    query = _query_of(fields.get("query", ""))
    author = fields.get("author", "")
    plan = await _planned(store, points, slug, query, most=settings.steer_tokens)
    report = await while_wanted(request, steer_report(inference, cache, plan, max_seconds=settings.steer_seconds))
    steering_id = await run_in_threadpool(_stored, store, report, query, author)
    return seen_at(f"/s/{steering_id}", author=author)


@api.get("/saes/{slug}/steer", summary="What the model writes while features are pushed")
async def steered(
    request: Request, store: StoreDep, inference: InferenceDep, points: PointsDep, settings: SettingsDep,
    cache: CacheDep, slug: Slug, query: SteerParams,
) -> SteerReport:  # fmt: skip
    plan = await _planned(store, points, slug, query, most=settings.steer_tokens)
    return await while_wanted(request, steer_report(inference, cache, plan, max_seconds=settings.steer_seconds))


@api.post("/saes/{slug}/steer", summary="The same, stored under a link", dependencies=[Writable])
async def steer_and_store(
    request: Request, store: StoreDep, inference: InferenceDep, points: PointsDep, settings: SettingsDep,
    cache: CacheDep, slug: Slug, query: SteerParams, author: Annotated[str, Query()] = "",
) -> StoredSteering:  # fmt: skip
    report = await steered(request, store, inference, points, settings, cache, slug, query)
    steering_id = await run_in_threadpool(_stored, store, report, query, author)
    return await run_in_threadpool(stored, store, steering_id)


@api.get(
    "/saes/{slug}/steer/events",
    summary="Steering as it is written, as server-sent events: start, step for each token, and end or problem",
    response_class=EventSourceResponse,
)
async def steer_stream(
    store: StoreDep, inference: InferenceDep, points: PointsDep, settings: SettingsDep, cache: CacheDep, slug: Slug,
    query: SteerParams,
) -> AsyncIterator[ServerSentEvent]:  # fmt: skip
    try:
        plan = await _planned(store, points, slug, query, most=settings.steer_tokens)
        parts = steer_parts(inference, cache, plan, max_seconds=settings.steer_seconds)
        async with aclosing(parts) as found:  # type: ignore[type-var]
            async for part in found:
                yield _event(plan, part)
    except SaescopeError as error:
        yield ServerSentEvent(data=Problem(error=str(error), status=error.http_status), event="problem")


def _event(plan: SteerPlan, part: Any) -> ServerSentEvent:
    if isinstance(part, SteerStart):
        titles = tuple(column_title(kind, dose) for kind, dose in part.columns)
        return ServerSentEvent(data=Started(prompt="".join(t.token for t in part.tokens), titles=titles), event="start")
    if isinstance(part, Steering):
        return ServerSentEvent(data=reported(plan, part), event="end")
    return ServerSentEvent(data=part.added, event="step")


async def _planned(store: Store, points: PointsDep, slug: str, query: SteerQuery, *, most: int) -> SteerPlan:
    summary = await run_in_threadpool(store.sae, slug)
    return await planned(store, points, summary, query, most=most)


def _query_of(text: str) -> SteerQuery:
    """What the address of a page asks for; refused in the same words as there."""
    given = parse_qs(text, keep_blank_values=True, max_num_fields=100)
    lists = ("feature", "strength", "mode", "turn")
    try:
        return SteerQuery.model_validate({name: v if name in lists else v[-1] for name, v in given.items()})
    except ValidationError as error:
        raise RequestValidationError([{**one, "loc": ("query", *one["loc"])} for one in error.errors()]) from None


def _stored(store: Store, report: SteerReport, query: SteerQuery, author: str) -> str:
    as_json: dict[str, object] = REPORT.dump_python(report, mode="json")
    return store.add_steering(report.slug, query=address_of(query), report=as_json, author=author)
