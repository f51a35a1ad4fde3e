"""Login and logout, who one is, the audit trail, and who sees an SAE: pages and their twins."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import BaseModel, ConfigDict

from app.access.identity import SESSION_COOKIE, identity_of
from app.changes import Fields, Writable, parsed, seen_at
from app.deps import Index, SettingsDep, Slug, StoreDep
from app.rendering import page
from app.urls import url
from sae_core.access_records import AuditEntry, Role, Visibility
from sae_core.errors import LoginNeededError
from sae_core.records import SAESummary

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
api = APIRouter(prefix="/api")

ENTRIES = 100  # of the audit trail, on a page


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who one is to this server. A role of null may not read."""

    name: str
    role: Role | None
    needs_login: bool


class VisibilityChange(BaseModel):
    """Who finds an SAE: everybody, those who have its address, or editors and admins only."""

    model_config = ConfigDict(frozen=True)
    visibility: Visibility


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPage:
    """Writes, the newest first; `next` goes into `before` for those before them."""

    items: tuple[AuditEntry, ...]
    next: int | None


Before = Annotated[Index, Query(description="`next` of the page before")]


@router.get("/login")
def login_page(request: Request, next: Annotated[str, Query(max_length=4000)] = "/") -> Response:
    return page(request, "login.html", next=own_path(next), problem=None, json_url="/api/access")


@router.post("/login")
def login(request: Request, store: StoreDep, settings: SettingsDep, fields: Fields) -> Response:
    wanted = own_path(fields.get("next", "/"))
    session = store.accounts.begin_session(fields.get("token", "").strip(), days=settings.session_days)
    if session is None:
        problem = "This token opens nothing here: it is misspelt or was revoked."
        return page(
            request, "login.html", status_code=LoginNeededError.http_status, next=wanted, problem=problem,
            json_url="/api/access",
        )  # fmt: skip
    response = RedirectResponse(wanted, status_code=303)
    response.set_cookie(
        SESSION_COOKIE, session, max_age=int(settings.session_days * 24 * 3600), path=settings.root_path or "/",
        secure=request.url.scheme == "https", httponly=True, samesite="lax",
    )  # fmt: skip
    return response


@router.post("/logout")
def logout(request: Request, store: StoreDep, settings: SettingsDep) -> Response:
    if session := request.cookies.get(SESSION_COOKIE):
        store.accounts.end_session(session)
    response = RedirectResponse("/login", status_code=303)
    response.delete_cookie(SESSION_COOKIE, path=settings.root_path or "/", httponly=True, samesite="lax")
    return response


@api.get("/access", summary="Who you are to this server, and what you may do")
def access(request: Request, settings: SettingsDep) -> Access:
    identity = identity_of(request)
    return Access(name=identity.name, role=identity.role, needs_login=settings.needs_login)


@router.get("/audit")
def audit_page(request: Request, store: StoreDep, before: Before = None) -> Response:
    found = audit(store, before)
    following = url("/audit", before=found.next) if found.next is not None else None
    return page(request, "audit.html", entries=found.items, next_url=following, is_first=before is None)


@api.get("/audit", summary="Who changed what, and when")
def audit(store: StoreDep, before: Before = None) -> AuditPage:
    entries = store.accounts.audit_trail(before=before, limit=ENTRIES + 1)
    shown = tuple(entries[:ENTRIES])
    return AuditPage(items=shown, next=shown[-1].audit_id if len(entries) > ENTRIES else None)


@router.post("/saes/{slug}/visibility", dependencies=[Writable])
def change_visibility(store: StoreDep, slug: Slug, fields: Fields) -> Response:
    store.set_visibility(slug, parsed(VisibilityChange, fields).visibility)
    return seen_at(f"/saes/{slug}#visibility")


@api.put("/saes/{slug}/visibility", summary="Say who finds an SAE", dependencies=[Writable])
def put_visibility(store: StoreDep, slug: Slug, asked: VisibilityChange) -> SAESummary:
    store.set_visibility(slug, asked.visibility)
    return store.sae(slug)


def own_path(address: str) -> str:
    """Where to go after the login: a path of this server, never another site."""
    plain = address.startswith("/") and not address.startswith(("//", "/\\")) and address.isprintable()
    return address if plain else "/"
