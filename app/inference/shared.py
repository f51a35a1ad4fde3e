"""One model worker for several server processes: their supervisor has it, and each of them asks it over a socket.

    SharedWorker, in a server process ──(number, verb, what)──> Lender, in the supervisor ──> ModelWorker
        ^                                                          │
        └───────────────(number, kind, what)───────────────────────┘

Questions of all processes wait in the one queue, so texts that come to different processes are still run together, and
the model is in memory once. A frame is a pickle behind its length: both ends are this program, and a pair of sockets is
theirs alone.
"""

import asyncio
import itertools
import pickle
import socket as sockets
import struct
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from app.inference.jobs import Job, Stream
from app.inference.process import Failure
from app.inference.worker import ModelWorker, WorkerState
from sae_core.errors import BusyError
from sae_core.records import SAEInfo

Answer = TypeVar("Answer")

TELL_SECONDS = 0.1  # between two looks at whether the worker's state is another
_LENGTH = struct.Struct("<Q")
_GONE = "The server is shutting down."


class Lender:
    """The supervisor's side: lends a model worker, in a thread of its own, to whoever has an end of `link()`."""

    def __init__(self, worker: ModelWorker) -> None:
        self._worker = worker
        self._loop = asyncio.new_event_loop()
        self._borrowers: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="saescope-lender", daemon=True)
        self._thread.start()

    def link(self) -> sockets.socket:
        """The borrower's end of a new connection. Who asked, and is gone, is not answered any more."""
        ours, theirs = sockets.socketpair()
        asyncio.run_coroutine_threadsafe(self._start(ours), self._loop).result()
        return theirs

    def close(self) -> None:
        """Ends the model worker; what is still asked is answered with BusyError."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self, socket: sockets.socket) -> None:
        task = asyncio.create_task(self._serve(socket))
        self._borrowers.add(task)
        task.add_done_callback(self._borrowers.discard)

    async def _end(self) -> None:
        await self._worker.close()
        for task in (tasks := list(self._borrowers)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, socket: sockets.socket) -> None:
        """One borrower, until its end is closed."""
        reader, writer = await asyncio.open_connection(sock=socket)
        tasks: dict[int, asyncio.Task[None]] = {}
        telling = asyncio.create_task(self._tell(writer))
        try:
            while True:
                number, verb, what = await _received(reader)
                if verb == "warm":
                    self._worker.warm(what)
                elif verb == "cancel":
                    if number in tasks:
                        tasks[number].cancel()
                else:
                    tasks = {n: task for n, task in tasks.items() if not task.done()}
                    tasks[number] = asyncio.create_task(self._answer(writer, number, verb, what))
        except (asyncio.IncompleteReadError, OSError):
            pass  # the borrower is gone
        finally:
            left = [telling, *tasks.values()]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, number: int, verb: str, what: Any) -> None:
        with suppress(OSError):  # the borrower is gone
            async with aclosing(self._replies(verb, what)) as replies:
                async for kind, found in replies:
                    await _send(writer, number, kind, found)

    async def _replies(self, verb: str, what: Any) -> AsyncGenerator[tuple[str, Any], None]:
        try:
            if verb == "answer":
                yield "value", await self._worker.answer(what)
                return
            async with aclosing(self._worker.stream(what)) as parts:
                async for part in parts:
                    yield "part", part
            yield "end", None
        except Exception as error:
            yield "error", Failure.of(error)

    async def _tell(self, writer: asyncio.StreamWriter) -> None:
        told = None
        while True:
            now = self._worker.state(), self._worker.process_id()
            if now != told:
                await _send(writer, 0, "state", now)
                told = now
            await asyncio.sleep(TELL_SECONDS)


class SharedWorker:
    """A server process's side: the `Inference` that its routes ask. Used by one event loop."""

    def __init__(self, link: sockets.socket) -> None:
        """`link`: of a `Lender`."""
        self._link = link
        self._numbers = itertools.count(1)
        self._replies: dict[int, asyncio.Queue[tuple[str, Any]]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()
        self._later: set[asyncio.Task[None]] = set()
        self._state = WorkerState(pending=0, loading=None)
        self._process_id: int | None = None

    async def connect(self) -> None:
        """From now on it knows the worker's state. The first question connects too."""
        await self._connected()

    async def answer(self, job: Job[Answer]) -> Answer:
        """As of `ModelWorker`."""
        async with aclosing(self._asked("answer", job)) as replies:
            answer: Answer = await anext(replies)
            return answer

    async def stream(self, job: Stream[Answer]) -> AsyncGenerator[Answer, None]:
        """As of `ModelWorker`."""
        async with aclosing(self._asked("stream", job)) as replies:
            async for part in replies:
                yield part

    def state(self) -> WorkerState:
        """What it was a moment ago."""
        return self._state

    def warm(self, sae: SAEInfo) -> None:
        """As of `ModelWorker`."""
        task = asyncio.create_task(self._tell("warm", sae))
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    def n_pending(self) -> int:
        """Jobs that wait or run, those of all server processes."""
        return self._state.pending

    def process_id(self) -> int | None:
        """Of the worker's process; None while there is none."""
        return self._process_id

    async def close(self) -> None:
        """Gives the connection up; the worker goes on for others."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()
        self._link.close()

    async def _asked(self, verb: str, what: object) -> AsyncGenerator[Any, None]:
        """The parts of the answer. Who stops early tells the worker so."""
        number, replies = next(self._numbers), asyncio.Queue[tuple[str, Any]]()
        writer = await self._connected()
        self._replies[number] = replies
        is_over = False
        try:
            await _send(writer, number, verb, what)
            while not is_over:
                kind, found = await replies.get()
                is_over = kind != "part"
                if kind == "error":
                    raise found.error()
                if kind != "end":
                    yield found
        except OSError as error:
            raise BusyError(_GONE) from error
        finally:
            del self._replies[number]
            if not is_over:
                with suppress(OSError):
                    writer.write(_frame(number, "cancel", None))

    async def _tell(self, verb: str, what: object) -> None:
        with suppress(OSError, BusyError):
            await _send(await self._connected(), 0, verb, what)

    async def _connected(self) -> asyncio.StreamWriter:
        async with self._connecting:
            if self._writer is None:
                reader, self._writer = await asyncio.open_connection(sock=self._link)
                self._reading = asyncio.create_task(self._read(reader))
            if self._reading is not None and self._reading.done():
                raise BusyError(_GONE)
            return self._writer

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                number, kind, what = await _received(reader)
                if kind == "state":
                    self._state, self._process_id = what
                elif number in self._replies:
                    self._replies[number].put_nowait((kind, what))
        except (asyncio.IncompleteReadError, OSError):
            pass  # the lender is gone
        finally:
            for replies in self._replies.values():
                replies.put_nowait(("error", Failure.of(BusyError(_GONE))))


async def _send(writer: asyncio.StreamWriter, number: int, what_it_is: str, what: object) -> None:
    writer.write(_frame(number, what_it_is, what))
    await writer.drain()


def _frame(*parts: object) -> bytes:
    packed = pickle.dumps(parts, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(packed)) + packed


async def _received(reader: asyncio.StreamReader) -> tuple[int, str, Any]:
    (n_bytes,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    number, what_it_is, what = pickle.loads(await reader.readexactly(n_bytes))  # which our own program wrote
    return number, what_it_is, what
