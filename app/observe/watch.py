"""Around everything else: a request gets an id, its answer the security headers, its end a line in the log and a count.

What goes wrong unexpectedly ends here, so that its page has the headers and the id too.
"""

import logging
import re
import secrets
import time
from contextvars import ContextVar

from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access.identity import identity_of
from app.error_pages import unexpected
from app.observe.metrics import Metrics
from app.settings import Settings

log = logging.getLogger("saescope.requests")
request_id_of: ContextVar[str] = ContextVar("request_id", default="")

# Plotly makes an empty style element, to which its script adds rules, and one for maps, which are never drawn. These
# are their hashes; with another Plotly the second may be refused, which a browser's console says and nobody sees.
PLOTLY_STYLES = (
    "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=' 'sha256-ji27qzEtxXZW+7dun6UwjHXJ18e6WAin1VvNtkzIE/o='"
)
# On pages that draw points by WebGL (the map, an SAE of many features): Plotly puts together functions for it while it
# runs, and sets a style.
WITH_WEBGL = ("script-src 'self'", "script-src 'self' 'unsafe-eval'; style-src-attr 'unsafe-inline'")
POLICY = (
    f"default-src 'none'; script-src 'self'; style-src 'self' {PLOTLY_STYLES}; img-src 'self' data: blob:; "
    "font-src 'self'; connect-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors "
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # and not none: our own forms must say where they come from
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
GIVEN_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")  # by a proxy, which logs it too
STATIC = "/static/"


class Watch:
    """ASGI middleware, outside of all others."""

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        root = self._settings.root_path
        if root:
            scope["root_path"] = root
            if not f"{scope['path']}/".startswith(root + "/"):  # a proxy may leave it out or in
                scope["path"] = root + scope["path"]
        request = Request(scope)
        given = request.headers.get("x-request-id", "")
        request.state.request_id = given if GIVEN_ID.fullmatch(given) else secrets.token_hex(6)
        token = request_id_of.set(request.state.request_id)
        began, status = time.perf_counter(), 0
        metrics: Metrics = request.app.state.metrics

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._add_headers(request, MutableHeaders(scope=message))
                metrics.began(request, status, time.perf_counter() - began)
            await send(message)

        metrics.in_flight += 1
        try:
            await self._app(scope, receive, sent)
        except Exception as error:
            if status:  # the answer has begun: all that can be done is to break it off
                raise
            await unexpected(request, error)(scope, receive, sent)
        finally:
            metrics.in_flight -= 1
            self._log(request, status, time.perf_counter() - began)
            request_id_of.reset(token)

    def _add_headers(self, request: Request, headers: MutableHeaders) -> None:
        headers["X-Request-ID"] = request.state.request_id
        headers.update(HEADERS)
        is_framed = getattr(request.state, "is_framed", False)
        policy = POLICY.replace(*WITH_WEBGL) if getattr(request.state, "has_webgl", False) else POLICY
        headers["Content-Security-Policy"] = policy + ("*" if is_framed else "'none'")
        if not is_framed:
            headers["X-Frame-Options"] = "DENY"
        root = self._settings.root_path
        location = headers.get("location", "")
        if root and location.startswith("/") and not location.startswith((root + "/", "//")):
            headers["location"] = root + location
        if self._settings.needs_login and STATIC not in request.url.path:
            # What one may see, a cache that is shared must not show another.
            is_stored = "no-store" not in headers.get("cache-control", "")
            headers["Cache-Control"] = "private, no-cache" if is_stored else "private, no-store"

    def _log(self, request: Request, status: int, seconds: float) -> None:
        if log.isEnabledFor(logging.INFO):
            facts = {
                "method": request.method,
                "path": request.url.path,
                "status": status,
                "ms": round(1000 * seconds, 1),
                "who": identity_of(request).name,
                "client": request.client.host if request.client else "",
            }
            text = "%(method)s %(path)s %(status)s %(ms)s ms, %(who)s from %(client)s"
            log.info(text, facts, extra={"facts": facts})
