"""The app's side of the model worker: a bounded queue, one thread that talks to the process, and the process's life.

It starts with the first job. One that died is started again and the job is tried once more; one that takes longer than
the timeout is killed. It ends with the app: at shutdown, or by itself when the app's process is gone.
"""

import asyncio
import itertools
import logging
import multiprocessing
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Hashable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Protocol, TypeVar

from app.inference.jobs import Job, LoadJob, Stream
from app.inference.process import Close, Failure, Loading, Message, Next, Open, Part, Run, RunAll, serve
from app.inference.shelf import Loader, ProberLoader
from sae_core.errors import BusyError, SaescopeError
from sae_core.records import SAEInfo

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

MAX_TOGETHER = 16  # jobs that are run as one
_CLOSING = "The server is shutting down."


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """What the model worker is at."""

    pending: int  # requests that wait or run
    loading: str | None  # what is being loaded, in words


class Inference(Protocol):
    """What the routes need: the real one is `ModelWorker`, tests inject their own."""

    async def answer(self, job: Job[Answer]) -> Answer: ...
    def stream(self, job: Stream[Answer]) -> AsyncIterator[Answer]: ...
    def state(self) -> WorkerState: ...
    def warm(self, sae: SAEInfo) -> None: ...
    async def close(self) -> None: ...


@dataclass(eq=False, slots=True, kw_only=True)
class _Turn:
    """A message that waits for the worker, and the promise of its answer."""

    message: Message
    deadline: float  # of `time.monotonic`
    future: Future[Any] = field(default_factory=Future)

    @property
    def alike(self) -> Hashable | None:
        return self.message.job.alike() if isinstance(self.message, Run) else None


class ModelWorker:
    """The real `Inference`: a bounded queue in front of one worker process."""

    def __init__(
        self,
        *,
        max_tokens: int = 1024,
        queue_size: int = 16,
        timeout: float = 120.0,
        device: str | None = None,
        model_memory: int | None = None,
        loader: Loader | None = None,
    ) -> None:
        """`timeout` in seconds, `model_memory` in bytes: by default a share of what is free."""
        self._queue_size, self._timeout = queue_size, timeout
        self._serve_arguments = (loader or ProberLoader(), device, max_tokens, model_memory)
        self._waiting: deque[_Turn] = deque()
        self._arrived = threading.Condition()  # guards what waits
        self._dispatcher: threading.Thread | None = None
        self._lock = threading.Lock()  # guards the process and its pipe
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._pending = 0  # jobs and streams that wait or run; touched by the event loop only
        self._tickets = itertools.count()
        self._warmed: set[str] = set()
        self._loading: str | None = None
        self._closed = False

    async def answer(self, job: Job[Answer]) -> Answer:
        """What the job's `run` returns; BusyError when the queue is full or the worker takes too long."""
        self._check_room()
        future = self._turn(Run(job), deadline=self._deadline())
        self._count(future)
        answer: Answer = await asyncio.wrap_future(future)
        return answer

    async def stream(self, job: Stream[Answer]) -> AsyncGenerator[Answer, None]:
        """What the job's `run` yields, part by part, within the timeout as a whole; BusyError as for `answer`.

        Nothing is checked or sent before the first part is asked for. Whoever stops early closes it
        (`contextlib.aclosing`, or the task's cancellation), and the worker stops too.
        """
        self._check_room()
        ticket, deadline = next(self._tickets), self._deadline()
        self._pending += 1
        try:
            await asyncio.wrap_future(self._turn(Open(ticket, job), deadline=deadline))
            while True:
                part: Part = await asyncio.wrap_future(self._turn(Next(ticket), deadline=deadline))
                if part.is_last:
                    return
                yield part.value
        finally:
            self._pending -= 1
            with suppress(BusyError):
                self._turn(Close(ticket), deadline=deadline + self._timeout)

    def state(self) -> WorkerState:
        return WorkerState(pending=self._pending, loading=self._loading)

    def warm(self, sae: SAEInfo) -> None:
        """Start loading the model in the background, unless the worker has other things to do."""
        if self._pending == 0 and sae.slug not in self._warmed and not self._closed:
            self._warmed.add(sae.slug)
            future = self._turn(Run(LoadJob(sae=sae)), deadline=self._deadline())
            self._count(future)
            future.add_done_callback(_log_failed_warming)

    def n_pending(self) -> int:
        """Jobs that wait or run."""
        return self._pending

    def process_id(self) -> int | None:
        """Of the worker's process; None while there is none."""
        with self._lock:
            return self._process.pid if self._process is not None and self._process.is_alive() else None

    async def close(self) -> None:
        """End the worker; what still waits is answered with BusyError."""
        with self._arrived:
            self._closed = True
            self._arrived.notify()
        self._stop(ask=True)
        if self._dispatcher is not None:
            await asyncio.to_thread(self._dispatcher.join)
        self._stop()  # a job that was under way may have started the process again
        for turn in self._waiting:
            if turn.future.set_running_or_notify_cancel():
                turn.future.set_exception(BusyError(_CLOSING))
        self._waiting.clear()

    def _deadline(self) -> float:
        return time.monotonic() + self._timeout

    def _check_room(self) -> None:
        if self._pending >= self._queue_size:
            raise BusyError(f"{self._pending} probes are waiting for the model: try again in a few seconds.")

    def _count(self, future: Future[Any]) -> None:
        """The future's job is pending until it is done."""
        loop = asyncio.get_running_loop()
        self._pending += 1
        future.add_done_callback(lambda _: _call_in_loop(loop, self._finish))

    def _finish(self) -> None:
        self._pending -= 1

    def _turn(self, message: Message, *, deadline: float) -> Future[Any]:
        """The message's place in the queue; its future is done when its turn is over."""
        turn = _Turn(message=message, deadline=deadline)
        with self._arrived:
            if self._closed:
                raise BusyError(_CLOSING)
            self._waiting.append(turn)
            self._arrived.notify()
            if self._dispatcher is None:
                self._dispatcher = threading.Thread(target=self._dispatch, name="model-worker", daemon=True)
                self._dispatcher.start()
        return turn.future

    def _dispatch(self) -> None:
        """The dispatcher's thread: one turn after the other, those of jobs that are alike together."""
        while turns := self._next_turns():
            if len(turns) > 1 and self._answered_together(turns):
                continue
            for turn in turns:
                try:
                    turn.future.set_result(self._answer(turn.message, deadline=turn.deadline))
                except Exception as error:
                    turn.future.set_exception(error)

    def _next_turns(self) -> list["_Turn"]:
        """Those that wait longest and are still wanted; nothing when the app ends."""
        with self._arrived:
            while True:
                while not self._waiting and not self._closed:
                    self._arrived.wait()
                if self._closed:
                    return []
                first = self._waiting.popleft()
                if not first.future.set_running_or_notify_cancel():
                    continue
                turns = [first]
                if (alike := first.alike) is not None:
                    also = [turn for turn in self._waiting if turn.alike == alike][: MAX_TOGETHER - 1]
                    for turn in also:
                        self._waiting.remove(turn)
                    turns += [turn for turn in also if turn.future.set_running_or_notify_cancel()]
                return turns

    def _answered_together(self, turns: list["_Turn"]) -> bool:
        """Whether one exchange answered them all; where not, each is tried alone, so that one harms no other."""
        jobs = tuple(turn.message.job for turn in turns if isinstance(turn.message, Run))
        try:
            answers = self._exchange(RunAll(jobs), deadline=min(turn.deadline for turn in turns))
        except (EOFError, OSError):
            self._stop()
            return False
        except SaescopeError:
            return False
        for turn, answer in zip(turns, answers, strict=True):
            if isinstance(answer, Failure):
                turn.future.set_exception(answer.error())
            else:
                turn.future.set_result(answer)
        return True

    def _answer(self, message: Message, *, deadline: float) -> Any:
        """Send one message to the worker and wait for its answer, with one more try if the worker died."""
        for attempt in (1, 2):
            try:
                return self._exchange(message, deadline=deadline)
            except (EOFError, OSError):
                self._stop()
                if self._closed:
                    raise BusyError(_CLOSING) from None
                log.warning("the model worker died (attempt %d)", attempt)
                if isinstance(message, Next):
                    raise BusyError("The model worker died, perhaps for lack of memory: try again.") from None
        raise BusyError("The model worker died twice on this text, perhaps for lack of memory: try a shorter one.")

    def _exchange(self, message: Message, *, deadline: float) -> Any:
        if deadline <= time.monotonic():
            raise BusyError(f"The model had no time for this text within {self._timeout:g} seconds: try again.")
        if isinstance(message, Close) and self._process is None:
            return None  # its stream is gone with the process
        pipe = self._started()
        pipe.send(message)
        answer: Any = Loading(None)
        while isinstance(answer, Loading):
            self._loading = answer.what
            if not pipe.poll(max(0.0, deadline - time.monotonic())):
                self._stop()
                raise BusyError(
                    f"The model did not answer within {self._timeout:g} seconds and was stopped: try again."
                )
            answer = pipe.recv()
        if isinstance(answer, Failure):
            if answer.trace:
                log.error("the model worker failed\n%s", answer.trace)
            raise answer.error()
        return answer

    def _started(self) -> Connection:
        with self._lock:
            if self._closed:
                raise BusyError(_CLOSING)
            if self._pipe is None or self._process is None or not self._process.is_alive():
                context = multiprocessing.get_context("spawn")
                self._pipe, worker_end = context.Pipe()
                self._process = context.Process(
                    target=serve, args=(worker_end, *self._serve_arguments), name="saescope-model", daemon=True
                )
                self._process.start()
                worker_end.close()  # so that a dead worker is seen as the end of the pipe
            return self._pipe

    def _stop(self, *, ask: bool = False) -> None:
        """End the process; with `ask` it may finish by itself for a moment, which is what an idle one does."""
        with self._lock:
            process, pipe, self._process, self._pipe = self._process, self._pipe, None, None
        self._warmed.clear()
        self._loading = None
        if process is None:
            return
        if ask and self._pending == 0 and pipe is not None:
            pipe.close()  # an idle worker reads the end of the pipe and returns
            process.join(1.0)
        process.kill()
        process.join()
        process.close()


def _log_failed_warming(future: Future[Any]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        log.info("the model could not be loaded ahead of the first probe: %s", error)


def _call_in_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(call)
