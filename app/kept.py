"""Answers that are kept: one that follows from its request and the database alone is made once and sent again for as
long as nothing is committed to the database, by whatever process.

1. A route says that its answer may be kept (`Keeps`, or `keep` with what else must hold).
2. What it depends on of the request is the key: the address as it was asked for, who asks, cookies, accepted encodings.
3. All that is kept is thrown away with the first change of the database's count of commits. PostgreSQL has no such
   count: nothing is kept there.

What is kept is what travels, compressed, with a tag of its content (`ETag`): a browser that has it is answered 304.
"""

import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import Depends, Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 32 << 20  # of all answers together
MOST_BYTES_EACH = 1 << 20
MADE_AT_ONCE = 2  # answers that are made at a time: Python computes for one, while another's query is answered
_SAID = ("accept-encoding", "cookie", "host")  # headers that an answer may depend on
_STATE = ("is_framed", "has_webgl")  # what a route tells `Watch`


def keep(request: Request, *, as_long_as: Callable[[], bool]) -> None:
    """The answer to this request may be kept while the database stays as it is and `as_long_as` says yes."""
    request.state.kept_as_long_as = as_long_as


async def _in_turn(request: Request) -> AsyncIterator[None]:
    async with request.app.state.turns:  # more would only take turns, each with a database connection of its own
        yield


async def _keep(request: Request) -> None:
    keep(request, as_long_as=lambda: True)


TakesTurns = Depends(_in_turn, scope="function")
Keeps = [Depends(_keep), TakesTurns]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer as it was sent, and what the request's scope said then."""

    headers: list[tuple[bytes, bytes]]
    body: bytes
    tag: str
    route: Any
    state: dict[str, Any]
    as_long_as: Callable[[], bool]


class Kept:
    """ASGI middleware behind the gate, which says who asks, and around compression. `commits`: the database's count."""

    def __init__(self, app: ASGIApp, *, commits: Callable[[], int | None]) -> None:
        self._app = app
        self._commits = commits
        self._seen: int | None = None
        self._answers: OrderedDict[tuple[object, ...], Answer] = OrderedDict()  # least recently used first
        self._n_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        commits = self._commits() if scope["type"] == "http" and scope["method"] == "GET" else None
        if commits is None:
            return await self._app(scope, receive, send)
        if commits != self._seen:
            self._answers.clear()
            self._n_bytes, self._seen = 0, commits
        key = _key(scope)
        answer = self._answers.get(key)
        if answer is not None and answer.as_long_as():
            self._answers.move_to_end(key)
            scope["route"] = answer.route
            scope["state"].update(answer.state)
            return await _sent(answer, scope, send)
        return await self._app(scope, receive, self._keeping(scope, send, key, commits))

    def _keeping(self, scope: Scope, send: Send, key: tuple[object, ...], commits: int) -> Send:
        start: Message | None = None

        async def sent(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and _may_be_kept(scope, message):
                start = message  # held back until the body says what its tag is
            elif start is None:
                await send(message)
            elif message.get("more_body") or len(message.get("body", b"")) > MOST_BYTES_EACH:
                beginning, start = start, None
                await send(beginning)
                await send(message)
            else:
                answer = _answer(scope, start, message.get("body", b""))
                if commits == self._seen:  # else it may be older than what is there by now
                    self._put(key, answer)
                await _sent(answer, scope, send)

        return sent

    def _put(self, key: tuple[object, ...], answer: Answer) -> None:
        before = self._answers.pop(key, None)
        self._answers[key] = answer
        self._n_bytes += len(answer.body) - (len(before.body) if before else 0)
        while self._n_bytes > MOST_BYTES:
            self._n_bytes -= len(self._answers.popitem(last=False)[1].body)


def _key(scope: Scope) -> tuple[object, ...]:
    headers = Headers(scope=scope)
    said = (tuple(headers.getlist(name)) for name in _SAID)
    return (
        scope["scheme"], scope.get("root_path", ""), scope["path"], scope["query_string"], scope["state"]["identity"],
        *said,
    )  # fmt: skip


def _may_be_kept(scope: Scope, start: Message) -> bool:
    return start["status"] == 200 and "kept_as_long_as" in scope["state"] and "set-cookie" not in Headers(scope=start)


def _answer(scope: Scope, start: Message, body: bytes) -> Answer:
    tag = f'"{hashlib.sha256(body).hexdigest()[:24]}"'
    headers = MutableHeaders(raw=list(start["headers"]))
    headers["ETag"] = tag
    headers.setdefault("Cache-Control", "no-cache")  # a browser may keep it, and asks each time whether it still holds
    return Answer(
        headers=headers.raw,
        body=body,
        tag=tag,
        route=scope.get("route"),
        state={name: scope["state"][name] for name in _STATE if name in scope["state"]},
        as_long_as=scope["state"]["kept_as_long_as"],
    )


async def _sent(answer: Answer, scope: Scope, send: Send) -> None:
    headers, body, status = answer.headers, answer.body, 200
    known = Headers(scope=scope).get("if-none-match", "")
    if answer.tag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        headers = [(name, value) for name, value in headers if name not in (b"content-length", b"content-encoding")]
        body, status = b"", 304
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})
