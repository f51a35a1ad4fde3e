"""Several server processes on one socket: the first binds it and starts the others, which take connections from it in
turn and ask its one model worker. One that dies is started again; Ctrl-C and SIGTERM end them all.
"""

import logging
import multiprocessing
import signal
import socket as sockets
import threading
import time
from multiprocessing.context import SpawnProcess

from app.inference.shared import Lender, SharedWorker
from app.main import create_app, model_worker
from app.settings import Settings

log = logging.getLogger(__name__)
LOOK_SECONDS = 0.2
LEAST_SECONDS = 2.0  # that a process lived, or it is not started again at once


def serve_with_workers(settings: Settings, *, socket: sockets.socket) -> None:
    """Serves on `socket` with `settings.workers` processes, until a signal."""
    stopped = threading.Event()
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    running: list[tuple[SpawnProcess, float]] = []
    lender = Lender(model_worker(settings))
    try:
        running = [_started(settings, socket, lender) for _ in range(settings.workers)]
        while not stopped.wait(LOOK_SECONDS):
            for place, (process, since) in enumerate(running):
                if not process.is_alive() and time.monotonic() - since > LEAST_SECONDS:
                    log.warning("server process %s ended (%s); another takes its place", process.pid, process.exitcode)
                    running[place] = _started(settings, socket, lender)
    finally:
        for process, _ in running:
            process.terminate()
        for process, _ in running:
            process.join()
        lender.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _started(settings: Settings, socket: sockets.socket, lender: Lender) -> tuple[SpawnProcess, float]:
    context = multiprocessing.get_context("spawn")
    with lender.link() as link:
        process = context.Process(target=_work, args=(settings, socket, link), name="saescope-server")
        process.start()
    return process, time.monotonic()


def _work(settings: Settings, socket: sockets.socket, link: sockets.socket) -> None:
    from app.observe.logs import configure_logs
    from app.server import Server

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal: the first one decides
    configure_logs(settings.log)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    Server(create_app(settings, prober=SharedWorker(link))).run(sockets=[socket])


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        signal.raise_signal(signal.SIGTERM)  # it was killed: finish what is asked, then end
