"""Refuses a client that asks more often than a minute allows: a bucket each, which fills again as time goes by."""

import time
from collections import OrderedDict

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.access.identity import identity_of
from app.error_pages import error_response
from sae_core.errors import TooManyError

MOST_CLIENTS = 10_000  # of which a bucket is kept; those that have not asked for longest are forgotten
EXEMPT = ("/static/", "/healthz", "/readyz")


class RateLimit:
    """ASGI middleware behind the gate, which says who asks."""

    def __init__(self, app: ASGIApp, *, a_minute: int) -> None:
        self._app = app
        self._a_minute = a_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, and when that was so

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._a_minute or any(part in scope["path"] for part in EXEMPT):
            return await self._app(scope, receive, send)
        request = Request(scope)
        if self._takes(_client(request), now=time.monotonic()):
            return await self._app(scope, receive, send)
        message = f"You have asked more than {self._a_minute:,} times in a minute: wait a few seconds."
        return await error_response(request, status=TooManyError.http_status, message=message)(scope, receive, send)

    def _takes(self, client: str, *, now: float) -> bool:
        left, then = self._buckets.pop(client, (float(self._a_minute), now))
        left = min(float(self._a_minute), left + (now - then) * self._a_minute / 60)
        self._buckets[client] = (max(0.0, left - 1), now)
        if len(self._buckets) > MOST_CLIENTS:
            self._buckets.popitem(last=False)
        return left >= 1


def _client(request: Request) -> str:
    identity = identity_of(request)
    if identity.is_logged_in:
        return f"token {identity.name}"
    return f"address {request.client.host if request.client else ''}"
