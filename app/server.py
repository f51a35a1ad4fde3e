"""Runs the web app: takes the port first, so that a busy one is said in a sentence, then serves until Ctrl-C."""

import asyncio
import ctypes
import errno
import socket as sockets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.main import create_app
from app.observe.logs import configure_logs
from app.settings import Settings
from app.workers import serve_with_workers
from sae_core.errors import BusyError, ConfigError

M_ARENA_MAX = -8  # of malloc.h
SPARE_FILES = 200  # beside a connection each: the database, static files, the model worker
KEEP_ALIVE = 60  # seconds a connection may be silent: closing it just as its reader asks again is an error to them


def listen(settings: Settings) -> sockets.socket:
    """A socket bound to the settings' host and port; BusyError or ConfigError in one sentence if that fails."""
    try:
        family, kind, protocol, _, address = sockets.getaddrinfo(
            settings.host, settings.port, type=sockets.SOCK_STREAM, flags=sockets.AI_PASSIVE
        )[0]
    except sockets.gaierror as error:
        raise ConfigError(
            f"The host {settings.host!r} is not an address of this machine; use --host 127.0.0.1."
        ) from error
    socket = sockets.socket(family, kind, protocol)
    socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
    try:
        socket.bind(address)
        socket.listen()
    except OSError as error:
        socket.close()
        if error.errno == errno.EADDRINUSE:
            raise BusyError(
                f"Port {settings.port} is taken by another program (perhaps a saescope that still runs); "
                f"stop it, or use --port {settings.port + 1}."
            ) from error
        if error.errno == errno.EACCES:
            raise ConfigError(f"Port {settings.port} needs more rights than you have; use --port 8000.") from error
        raise ConfigError(
            f"The host {settings.host!r} is not an address of this machine; use --host 127.0.0.1."
        ) from error
    return socket


def allow_files(n: int) -> int:
    """Raises the limit of open files (`ulimit -n`) to `n`, as far as the system lets it; returns the limit."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return n
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= n:
        return n
    wanted = n if hard == resource.RLIM_INFINITY else min(n, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # macOS has another limit behind the one that it tells
        return soft
    return wanted


def files_problem(settings: Settings) -> str | None:
    """Raises the limit for as many connections as the settings allow; a sentence where the system does not."""
    needed = settings.max_connections + SPARE_FILES
    allowed = allow_files(needed)
    if allowed >= needed:
        return None
    return (
        f"The system allows a process {allowed:,} open files, too few for {settings.max_connections:,} connections: "
        f"raise it (ulimit -n {needed}), or set SAESCOPE_MAX_CONNECTIONS to {max(1, allowed - SPARE_FILES)}."
    )


def use_few_arenas() -> None:
    """By itself glibc keeps what threads free in up to eight heaps a core, each as large as that thread's largest page:
    with many readers the process grows by a quarter for nothing."""
    with suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


class ImpatientProtocol(H11Protocol):
    """HTTP as uvicorn speaks it, which by itself would wait for ever for the rest of a request's head: so a client that
    sends none within `head_seconds` is left, and cannot take the place of others. How long a head is, h11 bounds."""

    head_seconds = 30.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer: asyncio.TimerHandle | None = None
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:  # a request is being answered
            self._stop_waiting()
        elif self._head_timer is None:  # it began to send another
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_seconds, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class Server(uvicorn.Server):
    """Uvicorn, which tells streams of events to end before it waits for open answers.

    Where no login is asked for, nothing is believed that a proxy would say: the gate must see who really asks.
    """

    def __init__(self, app: FastAPI) -> None:
        settings: Settings = app.state.settings
        protocol = type("Protocol", (ImpatientProtocol,), {"head_seconds": settings.body_timeout})
        super().__init__(
            uvicorn.Config(
                app, http=protocol, proxy_headers=settings.needs_login or settings.insecure, log_config=None,
                access_log=False, lifespan="on", timeout_graceful_shutdown=3, server_header=False,
                timeout_keep_alive=KEEP_ALIVE,
                forwarded_allow_ips=settings.trusted_proxies, limit_concurrency=settings.max_connections,
            )
        )  # fmt: skip
        self._app = app

    async def startup(self, sockets: list[sockets.socket] | None = None) -> None:
        use_few_arenas()
        await super().startup(sockets)
        compiling = self._app.state.templates.compile_all  # a second of work, while the first page is being read
        threading.Thread(target=compiling, name="saescope-templates", daemon=True).start()

    async def shutdown(self, sockets: list[sockets.socket] | None = None) -> None:
        self._app.state.stopping.set()
        await super().shutdown(sockets)


def serve(settings: Settings, *, socket: sockets.socket, said: str = "") -> None:
    """Serves the dashboard on `socket` until it is stopped; `said`: what is to be known about it."""
    configure_logs(settings.log)
    said = "\n".join(filter(None, (said, files_problem(settings))))
    if settings.workers > 1:
        _say(f"saescope is at {address(socket)}, with {settings.workers} processes  (Ctrl-C stops it)", said)
        return serve_with_workers(settings, socket=socket)
    server = Server(create_app(settings))
    _say(f"saescope is at {address(socket)}  (Ctrl-C stops it)", said)
    return server.run(sockets=[socket])


@contextmanager
def serving(settings: Settings, *, socket: sockets.socket) -> Iterator[threading.Thread]:
    """Serves on `socket` beside what this process does, in a thread, until the end of the block."""
    files_problem(settings)
    server = Server(create_app(settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, name="saescope-server")
    try:
        thread.start()
        while thread.is_alive() and not server.started:  # so that it is there, and imports nothing beside us
            time.sleep(0.01)
        _say(f"saescope is at {address(socket)}  (Ctrl-C stops it)")
        yield thread
    finally:
        server.should_exit = True
        thread.join()


def address(socket: sockets.socket) -> str:
    """Where a browser finds what listens on `socket`."""
    host, port = socket.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _say(*texts: str) -> None:
    sys.stdout.write("".join(f"{text}\n" for text in texts if text))
    sys.stdout.flush()
