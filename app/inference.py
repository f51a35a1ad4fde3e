"""The model worker: one process that owns the models, so that pages answer at once and never load torch.

    route ── probe() ──> one dispatcher thread ──pipe──> worker process: an LRU of Probers
      ^                  (first come, first served)              │
      └───────────── ProbeResult or SaescopeError <──────────────┘

`decompose` asks about one token of a text in the same way, and is answered with a Decomposition.

The process starts with the first probe. One that died is started again and the probe is tried once more; one that
takes longer than the timeout is killed. It ends with the app: at shutdown, or by itself when the app's process is gone.
"""

import asyncio
import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Protocol

from sae_core import errors
from sae_core.errors import BusyError, SaescopeError
from sae_core.records import Decomposition, ProbeResult, SAEInfo

log = logging.getLogger(__name__)
MODELS_KEPT = 2  # loaded SAEs, each with its model, that the worker holds at a time


class LoadedProber(Protocol):
    """What the worker needs of `sae_core.probe.Prober`."""

    def probe(self, text: str, *, top_k: int, max_tokens: int) -> ProbeResult: ...
    def decompose(self, text: str, *, token: int | None, max_tokens: int) -> Decomposition: ...


Loader = Callable[[SAEInfo, str | None], LoadedProber]


class Inference(Protocol):
    """What the routes need: the real one is `ModelWorker`, tests inject their own."""

    async def probe(self, sae: SAEInfo, text: str, *, top_k: int = 10) -> ProbeResult: ...
    async def decompose(self, sae: SAEInfo, text: str, *, token: int | None = None) -> Decomposition: ...
    def warm(self, sae: SAEInfo) -> None: ...
    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request to the worker. A text of None only loads the model."""

    sae: SAEInfo
    text: str | None
    top_k: int
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenJob:
    """A request to decompose one token of a text; None is for the worker to choose."""

    sae: SAEInfo
    text: str
    token: int | None
    max_tokens: int


Answer = ProbeResult | Decomposition | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error on its way back through the pipe, by name, so that no exception needs to survive pickling."""

    kind: str
    message: str
    trace: str | None = None

    def error(self) -> SaescopeError:
        kind = getattr(errors, self.kind, None)
        if isinstance(kind, type) and issubclass(kind, SaescopeError):
            return kind(self.message)
        return SaescopeError(f"The model failed on this text ({self.kind}); the server's log has the details.")


def load_prober(sae: SAEInfo, device: str | None) -> LoadedProber:
    """The default loader; runs in the worker process, the only place where torch is imported."""
    from sae_core.probe import Prober

    return Prober(sae, device=device)


class ModelWorker:
    """The real `Inference`: a bounded queue in front of one worker process."""

    def __init__(
        self,
        *,
        max_tokens: int = 1024,
        queue_size: int = 16,
        timeout: float = 120.0,
        device: str | None = None,
        loader: Loader = load_prober,
    ) -> None:
        self._max_tokens, self._queue_size, self._timeout = max_tokens, queue_size, timeout
        self._device, self._loader = device, loader
        self._dispatcher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model-worker")
        self._lock = threading.Lock()  # guards the process and its pipe
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._pending = 0  # jobs that wait or run; touched by the event loop only
        self._warmed: set[str] = set()
        self._closed = False

    async def probe(self, sae: SAEInfo, text: str, *, top_k: int = 10) -> ProbeResult:
        """The features of `text`; BusyError when the queue is full or the worker takes too long."""
        job = Job(sae=sae, text=text, top_k=top_k, max_tokens=self._max_tokens)
        answer = await asyncio.wrap_future(self._submit(job))
        if not isinstance(answer, ProbeResult):
            raise BusyError("The model worker gave no answer: try again.")
        return answer

    async def decompose(self, sae: SAEInfo, text: str, *, token: int | None = None) -> Decomposition:
        """The parts of one token's vector; BusyError as for `probe`."""
        job = TokenJob(sae=sae, text=text, token=token, max_tokens=self._max_tokens)
        answer = await asyncio.wrap_future(self._submit(job))
        if not isinstance(answer, Decomposition):
            raise BusyError("The model worker gave no answer: try again.")
        return answer

    def warm(self, sae: SAEInfo) -> None:
        """Start loading the model in the background, unless the worker has other things to do."""
        if self._pending == 0 and sae.slug not in self._warmed and not self._closed:
            self._warmed.add(sae.slug)
            future = self._submit(Job(sae=sae, text=None, top_k=1, max_tokens=self._max_tokens))
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
        self._closed = True
        self._stop(ask=True)
        await asyncio.to_thread(self._dispatcher.shutdown, wait=True, cancel_futures=True)
        self._stop()  # a job that was under way may have started the process again

    def _submit(self, job: Job | TokenJob) -> Future[Answer]:
        if self._closed:
            raise BusyError("The server is shutting down.")
        if self._pending >= self._queue_size:
            raise BusyError(f"{self._pending} probes are waiting for the model: try again in a few seconds.")
        loop = asyncio.get_running_loop()
        self._pending += 1
        future = self._dispatcher.submit(self._answer, job, deadline=time.monotonic() + self._timeout)
        future.add_done_callback(lambda _: _call_in_loop(loop, self._finish))
        return future

    def _finish(self) -> None:
        self._pending -= 1

    def _answer(self, job: Job | TokenJob, *, deadline: float) -> Answer:
        """Send one job to the worker and wait for its answer, with one more try if the worker died."""
        for attempt in (1, 2):
            try:
                return self._exchange(job, deadline=deadline)
            except (EOFError, OSError):
                self._stop()
                if self._closed:
                    raise BusyError("The server is shutting down.") from None
                log.warning("the model worker died (attempt %d)", attempt)
        raise BusyError("The model worker died twice on this text, perhaps for lack of memory: try a shorter one.")

    def _exchange(self, job: Job | TokenJob, *, deadline: float) -> Answer:
        left = deadline - time.monotonic()
        if left <= 0:
            raise BusyError(f"The model had no time for this text within {self._timeout:g} seconds: try again.")
        pipe = self._started()
        pipe.send(job)
        if not pipe.poll(left):
            self._stop()
            raise BusyError(f"The model did not answer within {self._timeout:g} seconds and was stopped: try again.")
        answer = pipe.recv()
        if isinstance(answer, Failure):
            if answer.trace:
                log.error("the model worker failed\n%s", answer.trace)
            raise answer.error()
        return answer if isinstance(answer, ProbeResult | Decomposition) else None

    def _started(self) -> Connection:
        with self._lock:
            if self._closed:
                raise BusyError("The server is shutting down.")
            if self._pipe is None or self._process is None or not self._process.is_alive():
                context = multiprocessing.get_context("spawn")
                self._pipe, worker_end = context.Pipe()
                self._process = context.Process(
                    target=serve, args=(worker_end, self._loader, self._device), name="saescope-model", daemon=True
                )
                self._process.start()
                worker_end.close()  # so that a dead worker is seen as the end of the pipe
            return self._pipe

    def _stop(self, *, ask: bool = False) -> None:
        """End the process; with `ask` it may finish by itself for a moment, which is what an idle one does."""
        with self._lock:
            process, pipe, self._process, self._pipe = self._process, self._pipe, None, None
        self._warmed.clear()
        if process is None:
            return
        if ask and self._pending == 0 and pipe is not None:
            pipe.close()  # an idle worker reads the end of the pipe and returns
            process.join(1.0)
        process.kill()
        process.join()
        process.close()


def serve(pipe: Connection, loader: Loader, device: str | None) -> None:
    """The worker process: answer jobs until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the app, which then ends this process
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    probers: OrderedDict[tuple[str, str, int], LoadedProber] = OrderedDict()
    while True:
        try:
            job: Job | TokenJob = pipe.recv()
            pipe.send(_result(job, probers=probers, loader=loader, device=device))
        except (EOFError, OSError):
            return


def _result(
    job: Job | TokenJob, *, probers: OrderedDict[tuple[str, str, int], LoadedProber], loader: Loader, device: str | None
) -> Answer | Failure:
    try:
        prober = _loaded(job.sae, probers=probers, loader=loader, device=device)
        if isinstance(job, TokenJob):
            return prober.decompose(job.text, token=job.token, max_tokens=job.max_tokens)
        return None if job.text is None else prober.probe(job.text, top_k=job.top_k, max_tokens=job.max_tokens)
    except SaescopeError as error:
        return Failure(kind=type(error).__name__, message=str(error))
    except Exception as error:
        return Failure(kind=type(error).__name__, message=str(error), trace=traceback.format_exc())


def _loaded(
    sae: SAEInfo, *, probers: OrderedDict[tuple[str, str, int], LoadedProber], loader: Loader, device: str | None
) -> LoadedProber:
    """The SAE's prober, loaded again when its weights were written anew."""
    key = (sae.slug, sae.weights_path, _modified(Path(sae.weights_path)))
    if key in probers:
        probers.move_to_end(key)
        return probers[key]
    for stale in [other for other in probers if other[0] == sae.slug]:
        del probers[stale]
    while len(probers) >= MODELS_KEPT:  # before loading, so that memory is free by then
        probers.popitem(last=False)
    probers[key] = loader(sae, device)
    return probers[key]


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0  # the loader says what is missing


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)  # the app was killed without a chance to close: leave no orphan


def _log_failed_warming(future: Future[Answer]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        log.info("the model could not be loaded ahead of the first probe: %s", error)


def _call_in_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(call)
