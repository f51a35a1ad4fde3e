"""The page Why, and its twin: which features made the model say a token, and what it says without them."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from app.causal.why_report import WhyReport, why_report, why_view
from app.deps import LARGEST_INDEX, LONGEST_TEXT, CorpusQuery, Index, InferenceDep, Name, SettingsDep, Slug, StoreDep
from app.leaving import while_wanted
from app.rendering import page, query_without
from app.urls import url
from sae_core.causal.records import MAX_ABLATED
from sae_core.errors import SaescopeError
from sae_core.records import SAESummary
from sae_core.store import Store

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
api = APIRouter(prefix="/api")


class WhyQuery(CorpusQuery):
    """A text, the token after which the model is asked, and what it might say."""

    text: str = Field(default="", max_length=LONGEST_TEXT)
    token: Index = Field(default=None, description="the token whose next one is explained; default the last")
    target: Name = Field(default=None, description="the next token: its text, or # and its id; default the likeliest")
    against: Name = Field(default=None, description="another one, so that the difference of the two is explained")
    ablate: list[Annotated[int, Field(ge=0, le=LARGEST_INDEX)]] = Field(
        default=[], max_length=MAX_ABLATED, description="features to take out, so that the model answers without them"
    )


class WhyPageQuery(WhyQuery):
    """The same; `all` shows every feature of the answer."""

    all: bool = False


@router.get("/saes/{slug}/why")
async def why_page(
    request: Request, store: StoreDep, inference: InferenceDep, settings: SettingsDep, slug: Slug,
    query: Annotated[WhyPageQuery, Query()],
) -> Response:  # fmt: skip
    summary = await run_in_threadpool(store.sae, slug)
    values: dict[str, object] = dict.fromkeys(("report", "view", "problem"))
    status = 200
    if not query.text.strip():
        inference.warm(summary.sae)
        values["json_url"] = url(f"/api/saes/{slug}", corpus=query.corpus)
    else:
        try:
            report = await _why(request, store, inference, summary, query)
            values |= {"report": report, "view": why_view(report, shows_all=query.all)}
        except SaescopeError as error:
            values["problem"], status = str(error), error.http_status
    return page(
        request, "why.html", status_code=status, summary=summary, slug=slug, corpus=query.corpus, query=query,
        has_index=bool(summary.indexes), most_ablated=MAX_ABLATED,
        max_tokens=settings.max_prompt_tokens, here=f"/saes/{slug}/why",
        all_url=url(f"/saes/{slug}/why", **query_without(request, "all", "ablate"), all=True) + "#rows", **values,
    )  # fmt: skip


@api.get("/saes/{slug}/why", summary="Which features made the model say a token")
async def why(
    request: Request, store: StoreDep, inference: InferenceDep, slug: Slug, query: Annotated[WhyQuery, Query()]
) -> WhyReport:
    return await _why(request, store, inference, await run_in_threadpool(store.sae, slug), query)


async def _why(
    request: Request, store: Store, inference: InferenceDep, summary: SAESummary, query: WhyQuery
) -> WhyReport:
    report = why_report(
        store, inference, summary=summary, text=query.text, token=query.token, target=query.target,
        against=query.against, ablated=query.ablate,
    )  # fmt: skip
    return await while_wanted(request, report)
