"""The gate before every route, static file and mounted app: who asks, from where, and whether they may.

1. Where no login is asked for, the server answers this machine's own browser only: a name that a foreign page had
   resolved to 127.0.0.1, and a proxy that may bring anybody, are refused.
2. A session's cookie or a bearer token says who it is. What a browser sends by itself, the cookie, counts for a change
   only if the browser also says that one of our own pages asked for it.
3. The role must be that which the address needs (`policy`).
"""

import ipaddress
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from app.access.identity import LOCAL, NOBODY, SESSION_COOKIE, VISITOR, Identity, identity_of, of_token
from app.access.policy import SAFE_METHODS, needed_role
from app.changes import from_this_site
from app.error_pages import error_response
from app.rendering import is_data, path_of
from app.settings import Settings
from app.urls import url
from sae_core.access_records import Token
from sae_core.errors import ForbiddenError, LoginNeededError, SaescopeError
from sae_core.store import Store

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
FORWARDED = ("x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "forwarded", "via")


class Gate:
    """ASGI middleware around the whole app."""

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})  # there are none
        request = Request(scope)
        refusal: Response | None = None
        try:
            request.state.identity = NOBODY
            request.state.identity = await self._identity(request)
            admit(request)
        except LoginNeededError as error:
            refusal = _login(request, error)
        except SaescopeError as error:
            refusal = error_response(request, status=error.http_status, message=str(error))
        return await (refusal or self._app)(scope, receive, send)

    async def _identity(self, request: Request) -> Identity:
        if not self._settings.needs_login:
            if not self._settings.insecure:
                check_local(request)
            return LOCAL
        store: Store = request.app.state.store
        kind, _, secret = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            token = await run_in_threadpool(store.accounts.by_token, secret.strip())
            if token is None:
                raise LoginNeededError("This token opens nothing: it is misspelt or was revoked; ask for a new one.")
            return of_token(token, has_session=False)
        session = request.cookies.get(SESSION_COOKIE)
        token = await self._of_session(store, session) if session else None
        if token is not None:
            return of_token(token, has_session=True)
        return VISITOR if self._settings.visitors else NOBODY

    async def _of_session(self, store: Store, session: str) -> Token | None:
        days = self._settings.session_days
        return await run_in_threadpool(lambda: store.accounts.by_session(session, days=days))


def admit(request: Request) -> None:
    """Raises ForbiddenError or LoginNeededError."""
    identity = identity_of(request)
    from_this_site(request, by_cookie=identity.has_session)
    role = needed_role(request.method, path_of(request))
    if role is None or identity.may(role):
        return
    if not identity.is_logged_in:
        raise LoginNeededError("This needs a token: log in with one, or send it as a bearer token.")
    what = "read" if request.method in SAFE_METHODS else "change"
    raise ForbiddenError(f"To {what} this you need the role {role}, and your token has the role {identity.role}.")


def check_local(request: Request) -> None:
    """Raises ForbiddenError unless this machine's own user asks. What says that a proxy has brought the request comes
    first: a page of a foreign name may send that too, and who the client is could then be what it says."""
    if any(header in request.headers for header in FORWARDED):
        raise ForbiddenError(
            "This server asks for no login, and a proxy has brought this request; start it with --login behind one."
        )
    host = request.client.host if request.client else ""
    if not _is_loopback(host):
        return  # no address of a socket that listens on this machine only: a test's own client
    name = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    if name not in LOCAL_NAMES and not name.endswith(".localhost"):
        raise ForbiddenError(
            f'This server asks for no login, so it answers only to this machine\'s own name, and not as "{name}"; '
            "start it with --login to be reached under another."
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _login(request: Request, error: LoginNeededError) -> Response:
    """A browser that wants a page is led to the login; everything else is told."""
    path = path_of(request)
    if request.method in ("GET", "HEAD") and not is_data(path):
        wanted = path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(url("/login", next=wanted), status_code=303)
    response = error_response(request, status=error.http_status, message=str(error))
    response.headers["WWW-Authenticate"] = "Bearer"
    return response
