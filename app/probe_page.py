"""The probe page: a text with an SAE's features on it. Its script asks for the changing part alone, while one types."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Body, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from app.deps import (
    LONGEST_TEXT,
    SURPRISE,
    InferenceDep,
    PointsDep,
    ProbeParams,
    ProbeQuery,
    Session,
    SettingsDep,
    Slug,
    StoreDep,
    checked_slug,
)
from app.inference import Inference, PredictJob
from app.leaving import all_of, while_wanted
from app.points import PointsCache
from app.probe_views import TRACE_HEIGHT, TRACE_WIDTH, BesideView, ProbeView, beside_view, probe_view
from app.probing import Asked, ProbeReport, checked_text, probe_report
from app.rendering import page
from app.urls import url
from sae_core.dashboards import check_has_weights
from sae_core.errors import InputError, SaescopeError, WeightsError
from sae_core.records import Predictions, SAEInfo, SAESummary
from sae_core.store import Store

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

ORDERS = {"strength": "maximum", "sum": "sum", "mean": "mean when active", "rarity": "rarity"}
DENSITIES = {"": "all", "0.1": "to 10%", "0.01": "to 1%", "0.001": "to 0.1%"}  # the choices of max_density


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """All that a probe page shows of a text."""

    report: ProbeReport
    view: ProbeView
    beside: tuple[BesideView, ...]


class LiveQuery(ProbeQuery):
    """What the page's script asks for. Texts of one session are versions of each other."""

    session: Session = None


@router.get("/saes/{slug}/probe")
async def probe_page(
    request: Request, store: StoreDep, inference: InferenceDep, points: PointsDep, settings: SettingsDep, slug: Slug,
    query: ProbeParams,
) -> Response:  # fmt: skip
    summary = await run_in_threadpool(store.sae, slug)
    values, status = await answered(store, inference, points, summary=summary, query=query)
    if not query.text.strip():
        try:
            check_has_weights(summary.sae)
            inference.warm(summary.sae)
        except WeightsError as error:
            values["problem"] = str(error)
    return page(
        request, "probe.html", status_code=status, max_tokens=settings.max_prompt_tokens, shared=None,
        json_url=twin(slug, query), **values, **await run_in_threadpool(frame, store, summary, query),
    )  # fmt: skip


@router.post("/saes/{slug}/probe/live")
async def live(
    request: Request, store: StoreDep, inference: InferenceDep, points: PointsDep, slug: Slug,
    query: Annotated[LiveQuery, Body()],
) -> Response:  # fmt: skip
    """Only what changes with the text, for the page's script."""
    summary = await run_in_threadpool(store.sae, slug)
    values, status = await while_wanted(
        request, answered(store, inference, points, summary=summary, query=query, session=query.session)
    )
    return page(
        request, "_probe.html", status_code=status, slug=slug, corpus=query.corpus, query=query,
        trace_size=(TRACE_WIDTH, TRACE_HEIGHT), **values,
    )  # fmt: skip


@router.get("/probe")
def probe_any(sae: Annotated[str, Query()], text: Annotated[str, Query(max_length=LONGEST_TEXT)] = "") -> Response:
    return RedirectResponse(url(f"/saes/{sae}/probe", text=text), status_code=303)


def frame(store: Store, summary: SAESummary, query: ProbeQuery) -> dict[str, object]:
    """What the page prints around the answer."""
    slug = summary.sae.slug
    others = [s.sae for s in store.saes() if s.sae.model == summary.sae.model and s.sae.slug != slug]
    return {
        "summary": summary, "slug": slug, "corpus": query.corpus, "query": query,
        "has_index": bool(summary.indexes), "has_weights": bool(summary.sae.weights_path),
        "here": f"/saes/{slug}/probe", "others": others, "orders": ORDERS, "densities": DENSITIES,
        "trace_size": (TRACE_WIDTH, TRACE_HEIGHT),
    }  # fmt: skip


def twin(slug: str, query: ProbeQuery) -> str:
    """The address of the same facts as JSON."""
    if not query.text.strip():
        return url(f"/api/saes/{slug}", corpus=query.corpus)
    asked = query.model_dump(include={"text", "feature", "sort", "corpus", "max_density", "special"})
    return url(f"/api/saes/{slug}/probe", **asked, pin=",".join(str(pin) for pin in query.pin))


async def answered(
    store: Store, inference: Inference, points: PointsCache, *, summary: SAESummary, query: ProbeQuery,
    session: str | None = None,
) -> tuple[dict[str, object], int]:  # fmt: skip
    """What the answer is printed from, and the status: where there is none, a sentence says why."""
    values: dict[str, object] = {"report": None, "view": None, "beside": (), "problem": None}
    if not query.text.strip():
        return values, 200
    try:
        found = await probed(store, inference, points, summary=summary, query=query, session=session)
    except SaescopeError as error:
        return values | {"problem": str(error)}, error.http_status
    return values | {"report": found.report, "view": found.view, "beside": found.beside}, 200


async def probed(
    store: Store, inference: Inference, points: PointsCache, *, summary: SAESummary, query: ProbeQuery,
    session: str | None = None,
) -> Probed:  # fmt: skip
    """The text under the page's SAE and those beside it, with the model's predictions where they are shown."""
    pins = query.shown_pins
    asked = Asked(
        text=query.text, pins=pins, sort=query.sort, corpus=query.corpus, max_density=query.max_density,
        special=query.special, session=session, top_k=1, chosen=query.token,
    )  # fmt: skip
    besides = [await run_in_threadpool(store.sae, checked_slug(slug)) for slug in query.beside]
    for other in besides:
        if other.sae.model != summary.sae.model:
            raise InputError(f"{other.sae.slug} is an SAE of another model than {summary.sae.slug}: leave it out.")
    needs_predictions = query.feature == SURPRISE or query.token is not None
    report, predictions, *reports = await all_of(
        probe_report(store, inference, points=points, summary=summary, asked=asked),
        _predictions(inference, summary.sae, query.text, is_wanted=needs_predictions),
        *(
            probe_report(
                store, inference, points=points, summary=other,
                asked=Asked(text=query.text, special=query.special, session=session, top_k=1),
            )
            for other in besides
        ),
    )  # fmt: skip
    view = probe_view(report, colour=query.feature, token=query.token, pins=query.pin, predictions=predictions)
    beside = tuple(
        beside_view(found, other.sae, has_index=bool(other.indexes))
        for found, other in zip(reports, besides, strict=True)
    )
    return Probed(report=report, view=view, beside=beside)


async def _predictions(inference: Inference, sae: SAEInfo, text: str, *, is_wanted: bool) -> Predictions | None:
    return await inference.answer(PredictJob(sae=sae, text=checked_text(text))) if is_wanted else None
