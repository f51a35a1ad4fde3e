"""The model worker with a stand-in for the model: one process, a bounded queue, deaths, timeouts, a clean end."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from app.inference import DecomposeJob, ModelWorker, ProbeJob, Stream, WorkerState
from app.inference.process import NICENESS
from sae_core.errors import BusyError, PromptTooLongError, SaescopeError, WeightsError
from sae_core.records import ProbeResult, Prompt, SAEInfo
from tests.app.fake_loaders import CountStream, load
from tests.factories import make_sae

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def worker(**options: object) -> AsyncIterator[ModelWorker]:
    opened = ModelWorker(**{"loader": load, "timeout": 30.0, **options})  # type: ignore[arg-type]
    try:
        yield opened
    finally:
        await opened.close()


def run(test: Callable[[], Coroutine[object, object, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


def probing(text: str, sae: SAEInfo | None = None) -> ProbeJob:
    return ProbeJob(sae=sae or make_sae(), prompt=Prompt(text=text))


async def collected(inference: ModelWorker, stream: Stream[int]) -> list[int]:
    return [number async for number in inference.stream(stream)]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_errors_cross_the_process_boundary_as_themselves() -> None:
    async def test() -> None:
        async with worker(max_tokens=7) as inference:
            assert (await inference.answer(probing("the king"))).tokens[1].token == "the"
            with pytest.raises(PromptTooLongError, match="over 7"):
                await inference.answer(probing("too long"))
            with pytest.raises(WeightsError, match="half-written"):
                await inference.answer(probing("king", make_sae("broken")))
            with pytest.raises(SaescopeError, match="ZeroDivisionError") as caught:
                await inference.answer(probing("fail"))
            assert "secret" not in str(caught.value)

    run(test)


def test_a_token_is_decomposed_in_the_worker_and_its_errors_cross_too() -> None:
    async def test() -> None:
        async with worker(max_tokens=7) as inference:
            found = await inference.answer(DecomposeJob(sae=make_sae(), text="the king", token=1))
            assert (found.position, found.tokens[1].token) == (1, "the")
            assert found.parts and len(found.model_acts) == make_sae().d_in
            assert (await inference.answer(DecomposeJob(sae=make_sae(), text="the king"))).position == 2
            with pytest.raises(PromptTooLongError, match="over 7"):
                await inference.answer(DecomposeJob(sae=make_sae(), text="too long"))
            with pytest.raises(WeightsError, match="half-written"):
                await inference.answer(DecomposeJob(sae=make_sae("broken"), text="king"))

    run(test)


def test_a_stream_comes_in_parts_and_other_jobs_are_answered_between_them() -> None:
    async def test() -> None:
        async with worker(queue_size=2) as inference:
            seen = []
            async for number in inference.stream(CountStream(end=3)):
                seen.append(number)
                assert (await inference.answer(probing("king"))).tokens
            assert seen == [0, 1, 2]
            both = await asyncio.gather(*(collected(inference, CountStream(end=50)) for _ in range(2)))
            assert both == [list(range(50))] * 2

    run(test)


def test_a_failing_stream_says_so_after_its_parts_and_harms_no_other() -> None:
    async def test() -> None:
        async with worker(max_tokens=7) as inference:
            other = aiter(inference.stream(CountStream(end=2)))
            assert await anext(other) == 0
            seen = []
            with pytest.raises(PromptTooLongError, match="over 7"):
                async for number in inference.stream(CountStream(fails_at=2)):
                    seen.append(number)
            assert seen == [0, 1]
            assert [number async for number in other] == [1]
            with pytest.raises(BusyError, match="died"):
                await collected(inference, CountStream(dies_at=1))
            assert await collected(inference, CountStream()) == [0, 1, 2]

    run(test)


def test_a_stream_whose_reader_leaves_is_closed_in_the_worker(tmp_path: Path) -> None:
    async def test() -> None:
        async with worker(queue_size=1) as inference:
            async with aclosing(inference.stream(CountStream(end=10**9, closed=tmp_path / "left"))) as numbers:
                assert await anext(numbers) == 0
                with pytest.raises(BusyError, match="waiting"):
                    await collected(inference, CountStream())
            assert await collected(inference, CountStream()) == [0, 1, 2]
            assert (tmp_path / "left").exists()
            task = asyncio.create_task(collected(inference, CountStream(end=10**9, closed=tmp_path / "cancelled")))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await collected(inference, CountStream()) == [0, 1, 2]
            assert (tmp_path / "cancelled").exists()

    run(test)


def test_a_stream_ends_with_the_time_limit() -> None:
    async def test() -> None:
        async with worker(timeout=3.0) as inference:
            with pytest.raises(BusyError, match="within 3 seconds"):
                await collected(inference, CountStream(end=10**9))

    run(test)


def test_probes_that_wait_at_the_same_time_are_run_together_and_fail_apart() -> None:
    async def test() -> None:
        async with worker(max_tokens=7) as inference:
            first = asyncio.create_task(inference.answer(probing("sleep 0.5")))
            await asyncio.sleep(0.1)
            texts = ["together", "king", "too long", "together"]
            jobs = [inference.answer(probing(text)) for text in texts]
            other, *found = await asyncio.gather(
                inference.answer(probing("together", make_sae("other"))), *jobs, return_exceptions=True
            )
            assert isinstance(other, ProbeResult) and other.text == "1"
            assert [getattr(one, "text", type(one)) for one in found] == ["4", "king", PromptTooLongError, "4"]
            assert (await first).text == "sleep 0.5"

    run(test)


@pytest.mark.parametrize("culprit", ["die", "fail"])
def test_one_request_that_breaks_the_model_harms_no_other(culprit: str) -> None:
    async def test() -> None:
        async with worker() as inference:
            first = asyncio.create_task(inference.answer(probing("sleep 0.5")))
            await asyncio.sleep(0.1)
            found = await asyncio.gather(
                *(inference.answer(probing(text)) for text in ("king", culprit, "queen")), return_exceptions=True
            )
            assert isinstance(found[1], SaescopeError)
            assert [getattr(one, "text", None) for one in found] == ["king", None, "queen"]
            await first

    run(test)


def test_who_leaves_before_their_turn_is_not_answered(tmp_path: Path) -> None:
    async def test() -> None:
        async with worker(queue_size=2) as inference:
            first = asyncio.create_task(inference.answer(probing("sleep 0.5")))
            await asyncio.sleep(0.1)
            left = asyncio.create_task(inference.answer(probing(f"die once at {tmp_path / 'died'}")))
            await asyncio.sleep(0.1)
            left.cancel()
            await asyncio.sleep(0.1)
            assert (await inference.answer(probing("king"))).text == "king"  # there is room again
            await first
            assert not (tmp_path / "died").exists()

    run(test)


def test_a_worker_that_died_is_started_again_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with worker() as inference:
            answer = await inference.answer(probing(f"die once at {tmp_path / 'died'}"))
            assert answer.tokens
            with pytest.raises(BusyError, match="died twice"):
                await inference.answer(probing("die"))
            assert (await inference.answer(probing("king"))).tokens

    run(test)


def test_models_are_kept_until_their_weights_change(tmp_path: Path) -> None:
    async def loaded_at(inference: ModelWorker, weights: Path) -> str:
        return (await inference.answer(probing("loaded at", make_sae(weights_path=str(weights))))).text

    async def test() -> None:
        weights = tmp_path / "sae.safetensors"
        weights.touch()
        async with worker() as inference:
            first = await loaded_at(inference, weights)
            assert await loaded_at(inference, weights) == first
            os.utime(weights, (1, 1))
            assert await loaded_at(inference, weights) != first

    run(test)


def test_a_full_queue_and_a_timeout_are_busy_and_the_loop_goes_on() -> None:
    async def test() -> None:
        async with worker(queue_size=2, timeout=3.0) as inference:
            pid = int((await inference.answer(probing("pid"))).text)
            slow = [asyncio.create_task(inference.answer(probing("sleep 60"))) for _ in range(2)]
            await asyncio.sleep(0.2)
            started = time.monotonic()
            with pytest.raises(BusyError, match="2 probes are waiting"):
                await inference.answer(probing("king"))
            assert time.monotonic() - started < 0.5
            answers = await asyncio.gather(*slow, return_exceptions=True)
            assert [type(answer) for answer in answers] == [BusyError, BusyError]
            assert not is_running(pid)
            assert (await inference.answer(probing("king"))).tokens

    run(test)


def test_what_is_loading_can_be_told_meanwhile() -> None:
    async def test() -> None:
        async with worker() as inference:
            assert inference.state() == WorkerState(pending=0, loading=None)
            await inference.answer(probing("king"))
            probe = asyncio.create_task(inference.answer(probing("king", make_sae("slow"))))
            told = set()
            while not probe.done():
                told.add(inference.state())
                await asyncio.sleep(0.01)
            assert any(state.pending == 1 and "the SAE slow, 0 MB" in (state.loading or "") for state in told)
            assert inference.state() == WorkerState(pending=0, loading=None)

    run(test)


def test_warming_loads_ahead_and_failing_to_is_no_error() -> None:
    async def test() -> None:
        async with worker() as inference:
            inference.warm(make_sae("broken"))
            answer = await inference.answer(probing("king"))
            assert answer.tokens
            inference.warm(make_sae())

    run(test)


def test_pages_go_before_the_model() -> None:
    async def test() -> None:
        async with worker() as inference:
            pid = int((await inference.answer(probing("pid"))).text)
            ours = os.getpriority(os.PRIO_PROCESS, 0)
            assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, ours + NICENESS)

    run(test)


def test_closing_ends_the_process_at_once_even_at_work() -> None:
    async def test() -> None:
        inference = ModelWorker(loader=load)
        pid = int((await inference.answer(probing("pid"))).text)
        task = asyncio.create_task(inference.answer(probing("sleep 60")))
        await asyncio.sleep(0.2)
        started = time.monotonic()
        await inference.close()
        assert time.monotonic() - started < 5
        assert not is_running(pid)
        with pytest.raises(BusyError):
            await task
        with pytest.raises(BusyError, match="shutting down"):
            await inference.answer(probing("king"))

    run(test)


def test_a_killed_app_leaves_no_worker_behind() -> None:
    code = (
        "import asyncio\n"
        "from app.inference import ModelWorker, ProbeJob\nfrom sae_core.records import Prompt\n"
        "from tests.app.fake_loaders import load\n"
        "from tests.factories import make_sae\n"
        "async def main():\n"
        "    worker = ModelWorker(loader=load)\n"
        "    print((await worker.answer(ProbeJob(sae=make_sae(), prompt=Prompt(text='pid')))).text, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    asyncio.run(main())\n"
    )
    app = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert app.stdout is not None
    pid = int(app.stdout.readline())
    app.send_signal(signal.SIGKILL)
    app.wait()
    app.stdout.close()
    for _ in range(100):
        if not is_running(pid):
            return
        time.sleep(0.05)
    pytest.fail("the worker outlived the app")
