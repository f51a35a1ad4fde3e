"""What a reader has left is given up: the work is cancelled, and nobody is answered."""

import asyncio
from typing import Any

import pytest
from fastapi import Request

from app.leaving import all_of, while_wanted
from sae_core.errors import BusyError, PromptError


def request_that_ends_after(seconds: float) -> Request:
    async def receive() -> dict[str, Any]:
        await asyncio.sleep(seconds)
        return {"type": "http.disconnect"}

    return Request({"type": "http", "headers": []}, receive)


def test_the_answer_comes_through_and_so_do_errors() -> None:
    async def answer() -> int:
        await asyncio.sleep(0)
        return 7

    async def fail() -> int:
        raise PromptError("no")

    assert asyncio.run(while_wanted(request_that_ends_after(60), answer())) == 7
    with pytest.raises(PromptError):
        asyncio.run(while_wanted(request_that_ends_after(60), fail()))


def test_work_ends_when_the_reader_leaves() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    with pytest.raises(BusyError, match="has left"):
        asyncio.run(asyncio.wait_for(while_wanted(request_that_ends_after(0.05), work()), 10))
    assert ended == [True]


def test_the_first_error_ends_the_other_calls() -> None:
    ended = []

    async def long() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    async def fail() -> None:
        await asyncio.sleep(0.01)
        raise PromptError("no")

    async def both() -> None:
        with pytest.raises(PromptError):
            await all_of(long(), fail())
        await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(both(), 10))
    assert ended == [True]
