"""Runs the web app: takes the port first, so that a busy one is said in a sentence, then serves until Ctrl-C."""

import errno
import socket as sockets
import sys

from app.settings import Settings
from sae_core.errors import BusyError, ConfigError


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


def serve(settings: Settings, *, socket: sockets.socket) -> None:
    """Serves the dashboard on `socket` until it is stopped."""
    import uvicorn

    from app.main import create_app

    app = create_app(settings)
    host, port = socket.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    sys.stdout.write(f"saescope is at http://{shown}:{port}  (Ctrl-C stops it)\n")
    sys.stdout.flush()
    config = uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=3)
    uvicorn.Server(config).run(sockets=[socket])
