"""Work for a reader who may leave: closing the page, or typing on, gives up what nobody waits for any more."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from sae_core.errors import BusyError

Answer = TypeVar("Answer")


async def while_wanted(request: Request, call: Coroutine[Any, Any, Answer]) -> Answer:
    """What `call` gives, which is cancelled when the request's connection ends. The request's body has been read."""
    work = asyncio.ensure_future(call)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise BusyError("The reader has left, so the model was not asked further.")
    finally:
        for task in (work, leaving):
            task.cancel()
        await asyncio.gather(work, leaving, return_exceptions=True)


async def all_of(*calls: Coroutine[Any, Any, Any]) -> list[Any]:
    """The answers of all calls; the first error ends the others."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
