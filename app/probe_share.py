"""Shared probes: a text with what was picked out in it, stored, and shown again at a short address."""

from dataclasses import dataclass
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import APIRouter, Path, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import Field, ValidationError
from starlette.concurrency import run_in_threadpool

from app.changes import MAX_FIELDS, Fields, Writable, author_of, parsed, seen_at
from app.deps import InferenceDep, PointsDep, ProbeQuery, SettingsDep, Slug, StoreDep, checked_slug
from app.probe_page import answered, frame
from app.rendering import absolute, page
from sae_core.records import SharedProbe
from sae_core.store import Store

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
api = APIRouter(prefix="/api")

LISTED = 50  # shared probes that the API lists
_MANY = ("pin", "beside")  # fields that a form sends once for each value

ProbeId = Annotated[str, Path(max_length=40, description="as in the shared probe's address")]


class NewProbe(ProbeQuery):
    """A text to share, and all that is picked out in it."""

    slug: str = Field(max_length=200)
    author: str = Field(default="", description='your name; "anonymous" when empty')

    def state(self) -> dict[str, object]:
        return {name: value for name, value in super().state().items() if name not in ("slug", "author")}


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedProbes:
    """The newest shared probes; `next` is always null."""

    items: tuple[SharedProbe, ...]
    next: str | None = None


@router.post("/saes/{slug}/probe/share", dependencies=[Writable])
async def share(request: Request, store: StoreDep, slug: Slug, fields: Fields) -> Response:
    given = parse_qsl((await request.body()).decode(), max_num_fields=MAX_FIELDS)
    many = {name: ",".join(value for found, value in given if found == name) for name in _MANY}
    asked = parsed(NewProbe, {**fields, **many, "slug": slug, "author": author_of(request)})
    return seen_at(f"/p/{await run_in_threadpool(shared, store, asked)}")


@router.get("/p/{probe_id}")
async def shared_page(
    request: Request, store: StoreDep, inference: InferenceDep, points: PointsDep, settings: SettingsDep,
    probe_id: ProbeId,
) -> Response:  # fmt: skip
    found = await run_in_threadpool(store.probe, probe_id)
    permalink = absolute(request, f"/p/{probe_id}")
    if found.problem:
        return page(request, "shared_lost.html", shared=found, permalink=permalink, here=f"/p/{probe_id}")
    query, summary = query_of(found), await run_in_threadpool(store.sae, found.slug)
    values, status = await answered(store, inference, points, summary=summary, query=query)
    return page(
        request, "probe.html", status_code=status, shared=found, permalink=permalink,
        max_tokens=settings.max_prompt_tokens, **values, **await run_in_threadpool(frame, store, summary, query),
    )  # fmt: skip


@router.post("/p/{probe_id}/delete", dependencies=[Writable])
def delete(store: StoreDep, probe_id: ProbeId) -> Response:
    store.delete_probe(probe_id)
    return seen_at("/")


@api.post("/probes", summary="Share a probe; its page is at /p/ and its id", dependencies=[Writable])
def share_probe(store: StoreDep, asked: NewProbe) -> SharedProbe:
    return store.probe(shared(store, asked))


@api.get("/probes", summary="The newest shared probes")
def shared_probes(store: StoreDep) -> SharedProbes:
    return SharedProbes(items=tuple(store.probes(limit=LISTED)))


@api.get("/p/{probe_id}", summary="A shared probe: its text and what was picked out in it")
def shared_probe(store: StoreDep, probe_id: ProbeId) -> SharedProbe:
    return store.probe(probe_id)


@api.delete("/p/{probe_id}", summary="Delete a shared probe; the answer is what it was", dependencies=[Writable])
def delete_probe(store: StoreDep, probe_id: ProbeId) -> SharedProbe:
    found = store.probe(probe_id)
    store.delete_probe(probe_id)
    return found


def shared(store: Store, asked: NewProbe) -> str:
    """Stores it; returns its id."""
    return store.add_probe(checked_slug(asked.slug), text=asked.text, state=asked.state(), author=asked.author)


def query_of(found: SharedProbe) -> ProbeQuery:
    """The probe page's state; of one that another version stored, at least the text."""
    try:
        return ProbeQuery.model_validate({**found.state, "text": found.text})
    except ValidationError:
        return ProbeQuery(text=found.text)
