"""The worker process: it keeps what was loaded, and answers one message after the other until the pipe ends.

Run(job)           ──> the job's answer, or Failure
Open(ticket, job)  ──> None: the stream stands ready, or Failure
Next(ticket)       ──> Part(value), Part(None, is_last=True) at its end, or Failure
Close(ticket)      ──> None
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from app.inference.jobs import Job, LoadedProber, Stream
from sae_core import errors
from sae_core.errors import BusyError, SaescopeError
from sae_core.records import SAEInfo

MODELS_KEPT = 2  # loaded SAEs, each with its model, that the worker holds at a time

Loader = Callable[[SAEInfo, str | None], LoadedProber]


@dataclass(frozen=True, slots=True)
class Run:
    job: Job[Any]


@dataclass(frozen=True, slots=True)
class RunAll:
    """Jobs that are alike."""

    jobs: tuple[Job[Any], ...]


@dataclass(frozen=True, slots=True)
class Open:
    ticket: int
    stream: Stream[Any]


@dataclass(frozen=True, slots=True)
class Next:
    ticket: int


@dataclass(frozen=True, slots=True)
class Close:
    ticket: int


Message = Run | RunAll | Open | Next | Close


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of a stream's answer; after the last one there is no value."""

    value: Any
    is_last: bool = False


@dataclass(frozen=True, slots=True)
class Loading:
    """Sent on the way to an answer: what the worker is loading, in words; None when it is loaded."""

    what: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error on its way back through the pipe, by name, so that no exception needs to survive pickling."""

    kind: str
    message: str
    trace: str | None = None

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        trace = None if isinstance(error, SaescopeError) else "".join(traceback.format_exception(error))
        return cls(kind=type(error).__name__, message=str(error), trace=trace)

    def error(self) -> SaescopeError:
        kind = getattr(errors, self.kind, None)
        if isinstance(kind, type) and issubclass(kind, SaescopeError):
            return kind(self.message)
        return SaescopeError(f"The model failed on this text ({self.kind}); the server's log has the details.")


def load_prober(sae: SAEInfo, device: str | None) -> LoadedProber:
    """The default loader; runs in the worker process, the only place where torch is imported."""
    from sae_core.probe import Prober

    return Prober(sae, device=device)


class Shelf:
    """The loaded SAEs, the least recently used going first; `app.inference.jobs.Loaded` to the jobs."""

    def __init__(self, loader: Loader, *, device: str | None, max_tokens: int, tell: Callable[[Loading], None]) -> None:
        """`tell` hears what is being loaded."""
        self.max_tokens = max_tokens
        self._loader, self._device, self._tell = loader, device, tell
        self._probers: OrderedDict[tuple[str, str, int], LoadedProber] = OrderedDict()

    def prober(self, sae: SAEInfo) -> LoadedProber:
        """The SAE's prober, loaded again when its weights were written anew."""
        key = (sae.slug, sae.weights_path, _modified(Path(sae.weights_path)))
        if key in self._probers:
            self._probers.move_to_end(key)
            return self._probers[key]
        for stale in [other for other in self._probers if other[0] == sae.slug]:
            del self._probers[stale]
        while len(self._probers) >= MODELS_KEPT:  # before loading, so that memory is free by then
            self._probers.popitem(last=False)
        self._tell(Loading(f"Loading the model {sae.model.model_name} with the SAE {sae.slug}…"))
        try:
            self._probers[key] = self._loader(sae, self._device)
        finally:
            self._tell(Loading(None))
        return self._probers[key]


def serve(pipe: Connection, loader: Loader, device: str | None, max_tokens: int) -> None:
    """The worker process: answer messages until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the app, which then ends this process
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    loaded = Shelf(loader, device=device, max_tokens=max_tokens, tell=pipe.send)
    streams: dict[int, Iterator[Any]] = {}
    while True:
        try:
            message: Message = pipe.recv()
            pipe.send(_answer(message, loaded=loaded, streams=streams))
        except (EOFError, OSError):
            return


def _answer(message: Message, *, loaded: Shelf, streams: dict[int, Iterator[Any]]) -> Any:
    try:
        match message:
            case Run(job):
                return job.run(loaded)
            case RunAll(jobs):
                found = jobs[0].run_all(jobs, loaded)
                return [Failure.of(one) if isinstance(one, SaescopeError) else one for one in found]
            case Open(ticket, stream):
                streams[ticket] = stream.run(loaded)
            case Next(ticket):
                return _next_part(ticket, streams)
            case Close(ticket):
                _close(ticket, streams)
    except Exception as error:
        return Failure.of(error)
    return None


def _next_part(ticket: int, streams: dict[int, Iterator[Any]]) -> Part:
    if ticket not in streams:
        raise BusyError("The model worker was started anew meanwhile: try again.")
    try:
        return Part(value=next(streams[ticket]))
    except StopIteration:
        del streams[ticket]
        return Part(value=None, is_last=True)
    except Exception:
        del streams[ticket]
        raise


def _close(ticket: int, streams: dict[int, Iterator[Any]]) -> None:
    stream = streams.pop(ticket, None)
    close = getattr(stream, "close", None)
    if close is not None:
        close()


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
