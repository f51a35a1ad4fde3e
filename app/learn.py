"""The page Learn: its explanation stands at once, the walk-through comes after it, from the model worker."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from app.deps import LONGEST_TEXT, Index, InferenceDep, Name, SettingsDep, StoreDep
from app.literature import ARCHITECTURES, PAPERS, TOOLS
from app.rendering import page
from app.urls import url
from app.walk import Walk, chosen_sae, own_text, walk, walk_view
from sae_core.errors import NotFoundError, SaescopeError
from sae_core.records import SAESummary
from sae_core.store import Store

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
api = APIRouter(prefix="/api")


class WalkQuery(BaseModel):
    """Which SAE takes apart which token of which text; each has a default."""

    model_config = ConfigDict(frozen=True)
    slug: Name = Field(default=None, description="the SAE; default the newest that is indexed")
    text: str = Field(default="", max_length=LONGEST_TEXT, description="default a short one")
    token: Index = Field(default=None, description="the token's position; default the last one")


class LearnQuery(WalkQuery):
    """The same; `live` asks for the walk-through within the page, for browsers without a script."""

    live: bool = False


WalkParams = Annotated[WalkQuery, Query()]
LearnParams = Annotated[LearnQuery, Query()]


@router.get("/learn")
async def learn(
    request: Request, store: StoreDep, inference: InferenceDep, settings: SettingsDep, query: LearnParams
) -> Response:
    saes = await run_in_threadpool(store.saes)
    summary = chosen_sae(saes, query.slug)
    values, status = await _walked(store, inference, summary, query) if query.live else (_nothing(summary), 200)
    asked = query.model_dump(include={"slug", "text", "token"})
    return page(
        request, "learn.html", status_code=status, saes=saes, query=query,
        text=query.text or own_text(summary), max_tokens=settings.max_prompt_tokens, architectures=ARCHITECTURES,
        papers=PAPERS, tools=TOOLS, live_url=url("/learn", **asked, live=True) + "#walk",
        json_url=url("/api/learn", **asked) if summary else "/api/saes", **values,
    )  # fmt: skip


@router.get("/learn/live")
async def live(request: Request, store: StoreDep, inference: InferenceDep, query: WalkParams) -> Response:
    """Only the walk-through, for the page's script."""
    summary = chosen_sae(await run_in_threadpool(store.saes), query.slug)
    values, status = await _walked(store, inference, summary, query)
    return page(request, "_walk.html", status_code=status, **values)


@api.get("/learn", summary="One token's vector, taken apart into the parts that features add")
async def decomposed(store: StoreDep, inference: InferenceDep, query: WalkParams) -> Walk:
    summary = chosen_sae(await run_in_threadpool(store.saes), query.slug)
    return await _walk(store, inference, summary, query)


async def _walk(store: Store, inference: InferenceDep, summary: SAESummary | None, query: WalkQuery) -> Walk:
    if summary is None:
        raise NotFoundError("There is no SAE here yet: train one (make demo), then come back.")
    return await walk(store, inference, summary=summary, text=query.text or own_text(summary), token=query.token)


async def _walked(
    store: Store, inference: InferenceDep, summary: SAESummary | None, query: WalkQuery
) -> tuple[dict[str, object], int]:
    """What the walk-through is printed from, and the status: where the model cannot answer, a sentence says why."""
    values = _nothing(summary)
    try:
        values["walk"] = found = await _walk(store, inference, summary, query)
    except SaescopeError as error:
        values["problem"] = str(error)
        return values, error.http_status
    values["view"] = walk_view(found)
    return values, 200


def _nothing(summary: SAESummary | None) -> dict[str, object]:
    return {"summary": summary, "walk": None, "view": None, "problem": None}
