"""A model worker that several server processes share: what each gets is what `ModelWorker` itself would give."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from app.inference import ModelWorker
from app.inference.shared import Lender, SharedWorker
from app.observe.metrics import Worker
from sae_core.errors import BusyError, PromptTooLongError, SaescopeError, WeightsError
from tests.app.fake_loaders import CountStream, load
from tests.app.test_inference import collected, is_running, probing
from tests.factories import make_sae

pytestmark = pytest.mark.slow


@asynccontextmanager
async def shared(n: int = 2, **options: object) -> AsyncIterator[tuple[Lender, list[SharedWorker]]]:
    lender = Lender(ModelWorker(**{"loader": load, "timeout": 30.0, **options}))  # type: ignore[arg-type]
    borrowers = [SharedWorker(lender.link()) for _ in range(n)]
    try:
        for borrower in borrowers:
            await borrower.connect()
        yield lender, borrowers
    finally:
        for borrower in borrowers:
            await borrower.close()
        await asyncio.to_thread(lender.close)


def run(test: Callable[[], Coroutine[object, object, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.02)


def test_all_ask_one_process_and_errors_cross_as_themselves() -> None:
    async def test() -> None:
        async with shared(max_tokens=7) as (_, (one, other)):
            pids = [(await borrower.answer(probing("pid"))).text for borrower in (one, other)]
            assert pids[0] == pids[1]
            await until(lambda: other.process_id() == int(pids[0]))
            assert isinstance(one, Worker)
            with pytest.raises(PromptTooLongError, match="over 7"):
                await one.answer(probing("too long"))
            with pytest.raises(WeightsError, match="half-written"):
                await one.answer(probing("king", make_sae("broken")))
            with pytest.raises(SaescopeError) as caught:
                await other.answer(probing("fail"))
            assert "a secret detail" not in str(caught.value)

    run(test)


def test_texts_of_different_processes_are_run_together() -> None:
    async def test() -> None:
        async with shared() as (_, (one, other)):
            first = asyncio.create_task(one.answer(probing("sleep 0.5")))
            await until(lambda: one.n_pending() == other.n_pending() == 1)
            both = await asyncio.gather(*(borrower.answer(probing("together")) for borrower in (one, other)))
            assert [found.text for found in both] == ["2", "2"]
            await first
            await until(lambda: one.state().pending == 0)

    run(test)


def test_the_queue_is_one_for_all() -> None:
    async def test() -> None:
        async with shared(queue_size=1) as (_, (one, other)):
            first = asyncio.create_task(one.answer(probing("sleep 0.5")))
            await until(lambda: other.n_pending() == 1)
            with pytest.raises(BusyError, match="1 probes are waiting"):
                await other.answer(probing("king"))
            await first

    run(test)


def test_a_stream_comes_in_parts_and_one_that_fails_says_so() -> None:
    async def test() -> None:
        async with shared() as (_, (one, other)):
            counts = await asyncio.gather(collected(one, CountStream(end=3)), collected(other, CountStream(end=2)))
            assert counts == [[0, 1, 2], [0, 1]]
            parts: list[int] = []
            with pytest.raises(PromptTooLongError):
                async with aclosing(one.stream(CountStream(end=5, fails_at=2))) as stream:
                    async for part in stream:
                        parts.append(part)
            assert parts == [0, 1]

    run(test)


def test_who_leaves_ends_the_stream_in_the_worker(tmp_path: Path) -> None:
    async def test() -> None:
        async with shared() as (_, (one, other)):
            async with aclosing(one.stream(CountStream(end=10**6, closed=tmp_path / "left"))) as stream:
                assert await anext(stream) == 0
            await until((tmp_path / "left").exists)
            stream = other.stream(CountStream(end=10**6, closed=tmp_path / "gone"))
            assert await anext(stream) == 0
            await other.close()  # as a server process that is killed
            await until((tmp_path / "gone").exists)
            await until(lambda: one.n_pending() == 0)
            assert (await one.answer(probing("king"))).text == "king"
            with pytest.raises(BusyError):
                await anext(stream)

    run(test)


def test_who_leaves_before_their_turn_is_not_answered(tmp_path: Path) -> None:
    async def test() -> None:
        async with shared() as (_, (one, other)):
            first = asyncio.create_task(one.answer(probing("sleep 0.5")))
            await until(lambda: other.n_pending() == 1)
            second = asyncio.create_task(other.answer(probing(f"die once at {tmp_path / 'ran'}")))
            await until(lambda: other.n_pending() == 2)
            second.cancel()
            await first
            assert (await one.answer(probing("king"))).text == "king"
            assert not (tmp_path / "ran").exists()

    run(test)


def test_when_the_lender_ends_all_that_is_asked_is_answered_and_the_process_is_gone() -> None:
    async def test() -> None:
        async with shared() as (lender, (one, other)):
            pid = int((await one.answer(probing("pid"))).text)
            waiting = asyncio.create_task(other.answer(probing("sleep 60")))
            await until(lambda: one.n_pending() == 1)
            await asyncio.to_thread(lender.close)
            with pytest.raises(BusyError):
                await waiting
            with pytest.raises(BusyError, match="shutting down"):
                await one.answer(probing("king"))
            assert not is_running(pid)
            lender.close = lambda: None  # type: ignore[method-assign]

    run(test)


def test_the_model_is_loaded_ahead_for_whoever_asks() -> None:
    async def test() -> None:
        async with shared(1) as (_, (one,)):
            assert one.process_id() is None and one.state().pending == 0
            one.warm(make_sae())
            await until(lambda: one.process_id() is not None)

    run(test)
