"""What a job tells those who look from outside while it works: a log of what happened, and each second how far it is.

Training writes into its run's folder, indexing into its SAE's; `runs` reads both, in another process. For `name` "":

run{name}.jsonl        a line for each event: announced, started, note, finished, stopped, failed; only appended to
progress{name}.json    the progress bar that is on the terminal, as it was a second ago; replaced whole

Each line, and the progress, says when that was by the clock, and after how many seconds of work, which no change of the
clock changes. Standard library only, and never in the way: a thread of its own writes the progress, and a disk that
cannot be written to is one warning. A process that is killed writes no last line, so the first line of each start says
who it is.
"""

import json
import logging
import os
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sae_core.errors import SaescopeError
from sae_core.progress import watched_by

CONFIG_FILE, METRICS_FILE = "config.json", "metrics.jsonl"  # of a training run's folder (`run_folder`)
BEAT_SECONDS = 1.0
UNEXPECTED = "An unexpected error ended it ({error}); the terminal in which it ran has the details."
Outcome = Literal["finished", "stopped", "failed"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Where one run's log and progress are."""

    folder: Path
    name: str = ""

    @classmethod
    def of_index(cls, home: Path, *, slug: str, corpus: str, shard: tuple[int, int] | None = None) -> "RunFiles":
        """Those of one SAE's index on one corpus, or of one shard of it (number, count)."""
        part = f"~{shard[0]}-of-{shard[1]}" if shard else ""
        return cls(home / "indexes" / slug, f"-{short_name(corpus)}{part}")

    @property
    def events(self) -> Path:
        return self.folder / f"run{self.name}.jsonl"

    @property
    def progress(self) -> Path:
        return self.folder / f"progress{self.name}.json"


class RunLog:
    """One job's log, in as many runs' files as it makes SAEs; the first run's progress counts for all."""

    def __init__(self, files: Sequence[RunFiles], facts: Mapping[str, object]) -> None:
        """`facts` go into the line that says that the job has started."""
        self.outcome: Outcome = "finished"
        self._files = files
        self._job = uuid.uuid4().hex
        self._facts = {**facts, "job": self._job, **_who()}
        self._bar: Any = None
        self._pace: dict[str, object] = {}
        self._has_warned = False
        self._began = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="saescope-progress", daemon=True)

    def start(self) -> None:
        self._append("started", **self._facts)
        self._write_progress()
        if self._files:
            self._thread.start()

    def look_at(self, bar: Any) -> None:
        """Tells from now on what this progress bar says."""
        self._bar, self._pace = bar, {}

    def note(self, text: str) -> None:
        """A line of the log."""
        self._append("note", text=text, seconds=self._seconds())

    def stop(self) -> None:
        """Says that the job ends because it was asked to."""
        self.outcome = "stopped"

    def end(self, outcome: Outcome, text: str | None = None) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        self._write_progress()
        self._append(outcome, text=text, seconds=self._seconds())

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            self._write_progress()

    def _append(self, event: str, **facts: object) -> None:
        for files in self._files:
            with self._never_in_the_way():
                _append(files, event, facts)

    def _write_progress(self) -> None:
        for files in self._files[:1]:
            with self._never_in_the_way():
                new = files.progress.with_suffix(".new")
                try:
                    when = {"at": round(time.time(), 3), "seconds": self._seconds()}
                    new.write_text(json.dumps({"job": self._job, **when, **self._shown()}))
                    new.replace(files.progress)
                finally:
                    new.unlink(missing_ok=True)

    def _seconds(self) -> float:
        """At work so far, whatever becomes of the clock."""
        return round(time.monotonic() - self._began, 3)

    def _shown(self) -> dict[str, object]:
        """What the bar says; its pace as it was before it closed."""
        bar = self._bar
        if bar is None:
            return {}
        done, total = int(bar.n), None if bar.total is None else int(bar.total)
        if not bar.disable:
            seconds = time.monotonic() - bar.start_t
            rate = (done - bar.initial) / seconds if seconds > 0 and done > bar.initial else None
            left = (total - done) / rate if rate and total is not None else None
            self._pace = {"rate": rate, "seconds_left": left, "said": str(bar.postfix or "").strip()}
        return {"what": bar.desc, "unit": bar.unit.strip(), "done": done, "total": total, **self._pace}

    @contextmanager
    def _never_in_the_way(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                log.warning("the run's page will not show how this goes: %s", error)


def announce(files: RunFiles) -> None:
    """Says that this process will start the run in a moment. Raises OSError."""
    _append(files, "announced", _who())


@contextmanager
def recorded(files: Sequence[RunFiles], **facts: object) -> Iterator[RunLog]:
    """Keeps the log of what happens inside, with its outcome; without files, as all ranks but one have it, none."""
    run_log = RunLog(files, facts)
    run_log.start()
    try:
        with watched_by(run_log.look_at):
            yield run_log
    except KeyboardInterrupt:
        run_log.end("stopped")
        raise
    except SaescopeError as error:
        run_log.end("failed", str(error))
        raise
    except BaseException as error:
        run_log.end("failed", UNEXPECTED.format(error=type(error).__name__))
        raise
    run_log.end(run_log.outcome)


def measured(*, fvu: float | None, l0: float | None, dead_share: float | None) -> str:
    """Metrics in a few words, for the progress bar and the log."""
    shown = (("FVU", fvu, ".3f"), ("L0", l0, ".1f"), ("dead", dead_share, ".1%"))
    return "  ".join(f"{name} {value:{form}}" for name, value, form in shown if value is not None)


def short_name(corpus: str) -> str:
    """A corpus's name as it can stand in a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", corpus)[:40].strip(".-") or "corpus"


def _append(files: RunFiles, event: str, facts: Mapping[str, object]) -> None:
    line = json.dumps({"event": event, "at": round(time.time(), 3), **facts})
    with files.events.open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n" if "pid" in facts else f"{line}\n")  # a killed process may have left half a line


def _who() -> dict[str, object]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "birth": birth(os.getpid())}


def birth(pid: int) -> int | None:
    """When a process of this machine began, in the kernel's ticks: with its number this is one process and no other.

    None if there is no such process, or the system does not say.
    """
    if sys.platform != "linux":
        return None
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else int(fields[18])
    except (OSError, ValueError, IndexError):
        return None
