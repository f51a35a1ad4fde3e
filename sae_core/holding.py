"""Who is at work on an SAE, so that nobody takes it away meanwhile.

An index job holds `indexes/{slug}/lock`, one of a shard `lock-{i}-of-{n}`; `holder…json` beside it says by whom. The
system gives a lock back when its process ends, however that happens. A training job is believed by its signs of life
(`runs`), and so is whatever goes on on another machine.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from sae_core.disk import saving
from sae_core.errors import BusyError
from sae_core.runs import list_runs

_LOCK = "lock"


@contextmanager
def held(home: Path, *, slug: str, suffix: str = "") -> Iterator[None]:
    """Raises BusyError if another process indexes this SAE, with which. `suffix`: of the shard, if it is one."""
    folder = home / "indexes" / slug
    holder = _holder(folder / f"{_LOCK}{suffix}")
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f"{_LOCK}{suffix}", slug=slug):
        try:
            with saving(folder):
                holder.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}))
            yield
        finally:
            holder.unlink(missing_ok=True)


@contextmanager
def held_alone(home: Path, *, slug: str) -> Iterator[None]:
    """Raises BusyError if anybody trains or indexes this SAE; while it is open no index job begins that is not of a
    new shard."""
    folder = home / "indexes" / slug
    with ExitStack() as locks:
        if folder.is_dir():
            for lock in sorted({folder / _LOCK, *folder.glob(f"{_LOCK}-*")}):
                locks.enter_context(_locked(lock, slug=slug))
        for run in list_runs(home):
            if run.slug == slug and run.state == "running":
                doing = "trained" if run.kind == "training" else "indexed"
                raise BusyError(f"The SAE {slug} is being {doing}; wait until it is done, or stop it.")
        yield


@contextmanager
def _locked(path: Path, *, slug: str) -> Iterator[None]:
    lock = FileLock(path, timeout=0)
    try:
        with saving(path.parent):
            lock.acquire()
    except Timeout as error:
        raise BusyError(_said(_holder(path), slug)) from error
    try:
        yield
    finally:
        lock.release()


def _holder(lock: Path) -> Path:
    return lock.with_name(f"holder{lock.name.removeprefix(_LOCK)}.json")


def _said(holder: Path, slug: str) -> str:
    try:
        by = json.loads(holder.read_text())
        who = f"process {by['pid']} on {by['host']} (since {by['since']})"
    except (OSError, ValueError, LookupError, TypeError):
        who = "another process"
    return f"The SAE {slug} is being indexed by {who}; wait until it is done, or stop it."


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
