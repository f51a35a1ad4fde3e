"""The page of many texts: two boxes, a table of features by texts, and what tells set A from set B."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from app.changes import Fields, parsed
from app.charts import token_sparkline
from app.contrast import FEWEST_TEXTS
from app.deps import CorpusParams, InferenceDep, Name, PointsDep, Share, Slug, StoreDep
from app.examples import TokenView, step, with_signs
from app.inference import Inference
from app.leaving import while_wanted
from app.points import PointsCache
from app.rendering import page, rendered
from app.texts import MAX_TEXTS, Evidence, Order, TextsReport, TextsRow, sets_of, texts_report
from sae_core.errors import SaescopeError
from sae_core.store import Store

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
api = APIRouter(prefix="/api")

STRIP_WIDTH, STRIP_HEIGHT, STRIP_COLUMNS = 320, 24, 160
ORDERS: dict[Order, str] = {
    "effect": "effect between A and B",
    "texts": "number of texts",
    "strength": "largest activation",
}
MOST_CHARACTERS = 2_000_000


class TextsAsked(BaseModel):
    """Texts of a set A, and if they are to be compared those of a set B: one on each line, or JSON lines."""

    model_config = ConfigDict(frozen=True)
    a: str = Field(default="", max_length=MOST_CHARACTERS, description='lines, or JSON lines {"text": …, "set": "A"}')
    b: str = Field(default="", max_length=MOST_CHARACTERS, description="the same; left out: nothing to compare with")
    order: Order = Field(default="effect", description='how features are ranked; without B "effect" means "texts"')
    corpus: Name = Field(default=None, description="the corpus that densities and maxima come from")
    max_density: Share = Field(default=None, description="leave out features that are active more often than this")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceView:
    """A text in which a feature is strong, cut to one line: its place, as "A 12", and its tokens."""

    place: str
    tokens: tuple[TokenView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowView:
    """A row with its values in the texts of A and of B as SVG paths, in the order in which they stand."""

    row: TextsRow
    strip_a: str
    strip_b: str
    evidence: tuple[EvidenceView, ...]


@router.get("/saes/{slug}/texts")
def texts_page(request: Request, store: StoreDep, slug: Slug, query: CorpusParams) -> Response:
    values = _frame(store, slug, TextsAsked(corpus=query.corpus))
    return page(request, "texts.html", json_url=f"/api/saes/{slug}", **values)


@router.post("/saes/{slug}/texts")
async def texts_answer(
    request: Request, store: StoreDep, inference: InferenceDep, points: PointsDep, slug: Slug, fields: Fields
) -> Response:
    """For browsers without a script: the page again, with the answer on it."""
    asked = parsed(TextsAsked, fields)
    values, status = _frame(store, slug, asked), 200
    try:
        values |= _answer(await while_wanted(request, _report(store, inference, points, slug, asked)))
    except SaescopeError as error:
        values["problem"], status = str(error), error.http_status
    return page(request, "texts.html", status_code=status, json_url=f"/api/saes/{slug}", **values)


@router.post("/saes/{slug}/texts/live")
async def texts_live(
    request: Request, store: StoreDep, inference: InferenceDep, points: PointsDep, slug: Slug,
    asked: Annotated[TextsAsked, Body()],
) -> Response:  # fmt: skip
    """For the page's script: lines of JSON, {"done": n, "of": N} while the texts run, {"html": …} at the end."""
    values = await run_in_threadpool(_frame, store, slug, asked)
    return StreamingResponse(
        _lines(request, store, inference, points, slug=slug, asked=asked, values=values),
        media_type="application/x-ndjson",
    )


@api.post("/saes/{slug}/texts", summary="Features by texts, and what tells two sets of texts apart")
async def texts_twin(
    request: Request, store: StoreDep, inference: InferenceDep, points: PointsDep, slug: Slug,
    asked: Annotated[TextsAsked, Body()],
) -> TextsReport:  # fmt: skip
    return await while_wanted(request, _report(store, inference, points, slug, asked))


async def _lines(
    request: Request, store: Store, inference: Inference, points: PointsCache, *, slug: str, asked: TextsAsked,
    values: dict[str, object],
) -> AsyncIterator[str]:  # fmt: skip
    news: asyncio.Queue[int | None] = asyncio.Queue()
    work = asyncio.ensure_future(_report(store, inference, points, slug, asked, progress=news.put_nowait))
    work.add_done_callback(lambda _: news.put_nowait(None))
    try:
        n_texts = sum(bool(line.strip()) for line in f"{asked.a}\n{asked.b}".split("\n"))
        while (done := await news.get()) is not None:
            yield json.dumps({"done": done, "of": n_texts}) + "\n"
        try:
            values |= _answer(work.result())
        except SaescopeError as error:
            values["problem"] = str(error)
        yield json.dumps({"html": await run_in_threadpool(rendered, request, "_texts.html", **values)}) + "\n"
    finally:
        work.cancel()


async def _report(
    store: Store, inference: Inference, points: PointsCache, slug: str, asked: TextsAsked, *,
    progress: Callable[[int], None] = lambda _: None,
) -> TextsReport:  # fmt: skip
    summary = await run_in_threadpool(store.sae, slug)
    texts_a, texts_b = sets_of(asked.a, asked.b)
    return await texts_report(
        store, inference, points=points, summary=summary, texts_a=texts_a, texts_b=texts_b, order=asked.order,
        corpus=asked.corpus, max_density=asked.max_density, progress=progress,
    )  # fmt: skip


def _frame(store: Store, slug: str, asked: TextsAsked) -> dict[str, Any]:
    summary = store.sae(slug)
    return {
        "summary": summary, "slug": slug, "corpus": asked.corpus, "has_index": bool(summary.indexes),
        "has_weights": bool(summary.sae.weights_path), "asked": asked,
        "here": f"/saes/{slug}/texts", "orders": ORDERS, "most": MAX_TEXTS, "fewest": FEWEST_TEXTS,
        "size": (STRIP_WIDTH, STRIP_HEIGHT), "report": None, "rows": (), "problem": None,
    }  # fmt: skip


def _answer(report: TextsReport) -> dict[str, object]:
    """The report, and its rows as they are printed."""
    return {"report": report, "rows": [_row(row, report) for row in report.rows]}


def _row(row: TextsRow, report: TextsReport) -> RowView:
    return RowView(
        row=row,
        strip_a=_strip(row.values[: report.n_a], row.max_activation),
        strip_b=_strip(row.values[report.n_a :], row.max_activation),
        evidence=tuple(
            EvidenceView(
                place=f"{one.set_name if report.n_b else ''} {one.number}".strip(),
                tokens=_tokens(one, scale=max(row.corpus_max or 0.0, row.max_activation)),
            )
            for one in row.evidence
        ),
    )


def _tokens(one: Evidence, *, scale: float) -> tuple[TokenView, ...]:
    """All but the peak's activation is left out: it is not known here."""
    return tuple(
        TokenView(
            text=with_signs(token).replace("\n", "") if "\n" in token else token,
            step=step(one.value, scale=scale) if at == one.peak else 0,
            is_peak=at == one.peak,
            token_id=token_id,
            activation=one.value if at == one.peak else 0.0,
            position=at,
        )
        for at, (token, token_id) in enumerate(zip(one.tokens, one.token_ids, strict=True))
    )


def _strip(values: tuple[float, ...], scale: float) -> str:
    return token_sparkline(values, scale=scale, width=STRIP_WIDTH, height=STRIP_HEIGHT, most_columns=STRIP_COLUMNS)
