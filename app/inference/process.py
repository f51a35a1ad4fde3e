"""The worker process: it answers one message after the other until the pipe ends.

Run(job)           ──> the job's answer, or Failure
Open(ticket, job)  ──> None: the stream stands ready, or Failure
Next(ticket)       ──> Part(value), Part(None, is_last=True) at its end, or Failure
Close(ticket)      ──> None
"""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from app.inference.jobs import Job, Stream
from app.inference.shelf import Loader, Shelf
from sae_core import errors
from sae_core.errors import BusyError, OutOfMemoryError, SaescopeError


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


NICENESS = 10  # of the worker: where cores are short, pages, which take little, go before a text through the model

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


def serve(pipe: Connection, loader: Loader, device: str | None, max_tokens: int, budget: int | None) -> None:
    """The worker process: answer messages until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the app, which then ends this process
    # torch's threads, which are made later, would spin while they wait for each other: the cores are not theirs alone.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if hasattr(os, "nice"):  # not on Windows
        os.nice(NICENESS)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    loaded = Shelf(
        loader, device=device, max_tokens=max_tokens, budget=budget, tell=lambda what: pipe.send(Loading(what))
    )
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
        return Failure.of(_out_of_memory(error) or error)
    return None


def _out_of_memory(error: Exception) -> OutOfMemoryError | None:
    """What torch says in a page of figures, in a sentence; what it held for this request is free again."""
    if "torch" not in sys.modules:
        return None
    from sae_core.memory import is_out_of_memory

    if not is_out_of_memory(error):
        return None
    return OutOfMemoryError("The model ran out of memory on this text: try a shorter one, or fewer at a time.")


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


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)  # the app was killed without a chance to close: leave no orphan
