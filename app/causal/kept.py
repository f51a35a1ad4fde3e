"""Steerings that were stored under a link: their pages, the newest of them in a list, and how one is deleted."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated
from urllib.parse import parse_qs

from fastapi import APIRouter, Path, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import TypeAdapter

from app.causal.steer_report import SteerReport, steer_view
from app.changes import Writable, seen_at
from app.deps import Name, StoreDep
from app.rendering import page
from sae_core.causal.records import SavedSteering, SteeringSummary
from sae_core.errors import NotFoundError
from sae_core.records import SAESummary
from sae_core.store import Store

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
api = APIRouter(prefix="/api")

SteeringId = Annotated[str, Path(max_length=40, description="as in the steering's address")]
REPORT: TypeAdapter[SteerReport] = TypeAdapter(SteerReport)
LISTED = 50  # that the API lists
SHOWN = 6  # on the start page, and on an SAE's page Steer


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSteering:
    """A steering under its link; `query` brings the same page again."""

    steering_id: str
    author: str
    created_at: str
    query: str
    report: SteerReport


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSteerings:
    """The newest that were stored, without what came of them; `next` is always null."""

    items: tuple[SteeringSummary, ...]
    next: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptView:
    """A steering in a list: what was pushed, and into what."""

    steering_id: str
    slug: str
    features: str
    prompt: str
    author: str
    created_at: datetime


def kept_views(store: Store, *, slug: str | None = None) -> list[KeptView]:
    """The newest, of one SAE or of all."""
    return [_view(summary) for summary in store.steerings(slug=slug, limit=SHOWN)]


@router.get("/s/{steering_id}")
def stored_page(request: Request, store: StoreDep, steering_id: SteeringId) -> Response:
    saved = store.steering(steering_id)
    report = REPORT.validate_python(saved.report)
    summary, problem = _sae_now(store, saved)
    has_index = summary is not None and bool(summary.indexes)
    return page(
        request, "steering.html", saved=saved, slug=saved.slug, report=report, view=steer_view(report), corpus=None,
        has_index=has_index, is_there=summary is not None, problem=problem,
        again=f"/saes/{saved.slug}/steer?{saved.query}",
    )  # fmt: skip


@router.post("/s/{steering_id}/delete", dependencies=[Writable])
def delete(store: StoreDep, steering_id: SteeringId) -> Response:
    store.delete_steering(steering_id)
    return seen_at("/")


@api.get("/steerings", summary="The newest stored steerings, of one SAE or of all")
def steerings(store: StoreDep, slug: Name = None) -> StoredSteerings:
    return StoredSteerings(items=tuple(store.steerings(slug=slug, limit=LISTED)))


@api.get("/s/{steering_id}", summary="A stored steering: what was asked, and what the model wrote")
def stored(store: StoreDep, steering_id: SteeringId) -> StoredSteering:
    saved = store.steering(steering_id)
    return StoredSteering(
        steering_id=saved.steering_id, author=saved.author, created_at=saved.created_at.isoformat(),
        query=saved.query, report=REPORT.validate_python(saved.report),
    )  # fmt: skip


@api.delete("/s/{steering_id}", summary="Delete a stored steering; the answer is what it was", dependencies=[Writable])
def delete_steering(store: StoreDep, steering_id: SteeringId) -> StoredSteering:
    found = stored(store, steering_id)
    store.delete_steering(steering_id)
    return found


def _view(summary: SteeringSummary) -> KeptView:
    asked = parse_qs(summary.query)
    return KeptView(
        steering_id=summary.steering_id, slug=summary.slug, author=summary.author, created_at=summary.created_at,
        features=", ".join(f"#{number}" for number in asked.get("feature", [])), prompt=asked.get("prompt", [""])[0],
    )  # fmt: skip


def _sae_now(store: Store, saved: SavedSteering) -> tuple[SAESummary | None, str | None]:
    """The SAE that was steered with; where it is not there, or is another one now, None and why."""
    try:
        summary = store.sae(saved.slug)
    except NotFoundError:
        return None, f'The SAE "{saved.slug}" has been deleted since; what was written stays.'
    if summary.sae.created_at != saved.sae_created_at:
        return None, f'The SAE "{saved.slug}" has been replaced since: its features are others now.'
    return summary, None
