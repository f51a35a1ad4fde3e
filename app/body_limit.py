"""Refuses a request body above a size, before any of it is parsed: by its stated length, and while it is read. One that
takes too long to come is given up, so that nobody holds a connection open a byte at a time.
"""

import asyncio

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.error_pages import error_response


class BodyLimit:
    """ASGI middleware around the routes."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, seconds: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._too_large = f"The request is over the {max_bytes:,} bytes that this server reads: send a shorter text."
        self._too_slow = f"The request did not arrive within {seconds:g} seconds: send it again."

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if stated.isdigit() and int(stated) > self._max_bytes:
            refusal = error_response(Request(scope), status=413, message=self._too_large)
            return await refusal(scope, receive, send)
        seen, is_whole = 0, False
        deadline = asyncio.get_running_loop().time() + self._seconds

        async def counted() -> Message:
            nonlocal seen, is_whole
            if is_whole:
                return await receive()  # waits for the client to go
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, self._too_slow) from None
            is_whole = not message.get("more_body", False)
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                raise HTTPException(413, self._too_large)
            return message

        return await self._app(scope, counted, send)
