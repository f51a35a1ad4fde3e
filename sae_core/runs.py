"""Reads what training and indexing jobs write while they work (`run_log`), as records: who is at work, and how it goes.

A run is one SAE's training, `runs/{slug}`, or one SAE's index on one corpus, `indexes/{slug}/run-{corpus}.jsonl`; when
a stopped job goes on, it is the same run. SAEs that a sweep trains on one pass are a run each, with their own curves.
A run that says that it is at work is believed while its last sign of life is fresh, or its process is there.

Clocks jump, and those of two machines differ: a sign of life from a time to come is as old as one from as long ago, and
one from another machine counts as fresh too while it changes between two looks.

Standard library only; a line or file that is half-written or damaged counts as not there.
"""

import heapq
import json
import math
import os
import re
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from sae_core.errors import NotFoundError
from sae_core.run_log import CONFIG_FILE, METRICS_FILE, RunFiles, birth, measured

SHAPE_FILE = "sae.json"  # of a finished SAE, as `sae` names it
FRESH_SECONDS = 5.0  # a sign of life from this machine
FRESH_SECONDS_ELSEWHERE = 60.0  # and from another, whose clock may be off
MOST_HEARD = 1000  # jobs of other machines whose last sign of life is remembered
LOG_LINES = 30
BEGINNINGS = ("announced", "started")
Kind = Literal["training", "indexing"]
State = Literal["running", "stopped", "failed", "finished"]
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress:
    """The progress bar of a run: how far it is with what it does at the moment."""

    what: str
    unit: str
    done: int
    total: int | None
    rate: float | None = None
    seconds_left: float | None = None
    said: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPoint:
    """What training measured over the steps up to `tokens`; None where the number did not exist."""

    tokens: int
    loss: float | None
    fvu: float | None
    l0: float | None
    dead_share: float | None
    at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """Something that happened."""

    at: datetime
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training or indexing job, as far as it has told."""

    run_id: str
    kind: Kind
    slug: str
    state: State
    problem: str | None = None
    """Why it failed, in a sentence that says what to do."""
    corpus: str | None = None
    """The name of the corpus that is indexed."""
    shard: str | None = None
    """The part of it, "2/8", where several jobs share it."""
    config: Mapping[str, Any]
    """The settings of training or indexing."""
    folder: str
    starts: int = 0
    """How many times it was started."""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    """When it ended, or gave its last sign of life; None while it runs."""
    seconds: float = 0.0
    """At work, over all starts."""
    processes: int = 1
    together: tuple[str, ...] = ()
    """The SAEs that are trained on the same pass, if there are others."""
    progress: RunProgress | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDetail:
    """A run with its curves and the end of its log."""

    run: Run
    points: tuple[RunPoint, ...]
    log: tuple[LogLine, ...]


def list_runs(home: Path) -> list[Run]:
    """All runs, those at work first, then by when they last gave a sign of life."""
    found = [_read(home, run_id) for run_id in _run_ids(home)]
    known = [run for run in found if run is not None]
    never = datetime.fromtimestamp(0, tz=UTC)
    return sorted(
        known, key=lambda run: (run.state != "running", -(run.ended_at or run.started_at or never).timestamp())
    )


def read_run(home: Path, run_id: str) -> Run:
    """One run. Raises NotFoundError."""
    run = _read(home, run_id)
    if run is None:
        raise NotFoundError("There is no run of this name: the list of runs has those that are here.")
    return run


def has_run(home: Path, run_id: str) -> bool:
    return _read(home, run_id) is not None


def read_detail(home: Path, run_id: str) -> RunDetail:
    """One run with everything that it measured. Raises NotFoundError."""
    run = read_run(home, run_id)
    points = PointsReader(home, run_id).new()[1]
    return RunDetail(run=run, points=tuple(points), log=log_tail(home, run_id, points))


def log_tail(home: Path, run_id: str, points: Sequence[RunPoint]) -> tuple[LogLine, ...]:
    """The last lines of a run's log, with what it measured; each in its own order, whatever the clock did."""
    events = [event for event in _events(_files(home, run_id).events) if event["event"] != "announced"]
    told = [LogLine(at=_moment(event["at"]), text=_told(event)) for event in events]
    said = [LogLine(at=p.at, text=_measured(p)) for p in points[-LOG_LINES:] if p.at is not None]
    return tuple(heapq.merge(told, said, key=lambda line: line.at))[-LOG_LINES:]


class PointsReader:
    """Reads a run's measurements as they are appended."""

    def __init__(self, home: Path, run_id: str) -> None:
        self._path = None if "~" in run_id else home / "runs" / run_id / METRICS_FILE
        self._file = self._offset = self._count = 0
        self.last: tuple[RunPoint, ...] = ()
        """The newest points, as many as a log shows."""

    def new(self) -> tuple[int, list[RunPoint]]:
        """The points since the last call, and the number of the first of them.

        From 0 again when some were taken back, as a run does that goes on from its checkpoint.
        """
        try:
            if self._path is None:
                return 0, []
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._file or status.st_size < self._offset:
                    self._file, self._offset, self._count = status.st_ino, 0, 0
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return self._count, []
        whole = data[: data.rfind(b"\n") + 1]
        points = [point for line in whole.splitlines() if (point := _point(line)) is not None]
        first = self._count
        self.last = (*(self.last if first else ()), *points)[-LOG_LINES:]
        self._offset += len(whole)
        self._count += len(points)
        return first, points


def thinned(points: Sequence[Item], most: int) -> list[Item]:
    """At most so many of them, evenly spread, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def _run_ids(home: Path) -> Iterator[str]:
    for path in (home / "runs").glob(f"*/{CONFIG_FILE}"):
        yield path.parent.name
    for path in (home / "indexes").glob("*/run-*.jsonl"):
        yield f"{path.parent.name}~{path.stem.removeprefix('run-')}"


def _files(home: Path, run_id: str) -> RunFiles:
    slug, _, index = run_id.partition("~")
    return RunFiles(home / "indexes" / slug, f"-{index}") if index else RunFiles(home / "runs" / slug)


def _read(home: Path, run_id: str) -> Run | None:
    """None for what is no run, or cannot be one: an id becomes a path."""
    match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:~([A-Za-z0-9._-]+)(?:~(\d+)-of-(\d+))?)?", run_id)
    if match is None or len(run_id) > 200:
        return None
    files = _files(home, run_id)
    events = _events(files.events)
    starts = [event for event in events if event["event"] == "started"]
    start = next((event for event in reversed(events) if event["event"] in BEGINNINGS), None)
    if match[2] is None:
        config = _json(files.folder / CONFIG_FILE)
        is_made = (files.folder / SHAPE_FILE).exists()
    else:
        config = start.get("config") if start else None
        is_made = bool(events) and events[-1]["event"] == "finished"
    if not isinstance(config, dict):
        return None
    together = tuple(map(str, start.get("together", ()))) if start else ()
    lead = RunFiles(home / "runs" / together[0]) if together and together[0] != match[1] else files
    beat = _beat(lead, start)
    state = _state(events, start, beat, is_made=is_made)
    last_at = _last_at(events, beat)
    if last_at is None and is_made:
        last_at = _modified(files.folder / SHAPE_FILE)  # trained before runs kept a log
    return Run(
        run_id=run_id,
        kind="training" if match[2] is None else "indexing",
        slug=match[1],
        state=state,
        problem=str(events[-1].get("text")) if state == "failed" else None,
        corpus=None if match[2] is None or start is None else str(start.get("corpus", match[2])),
        shard=f"{match[3]}/{match[4]}" if match[3] else None,
        config=config,
        folder=str(files.folder),
        starts=len(starts),
        started_at=_moment(starts[0]["at"]) if starts else None,
        ended_at=None if state == "running" or last_at is None else _moment(last_at),
        seconds=_seconds(events, beat),
        processes=int(start.get("processes", 1)) if start else 1,
        together=together if len(together) > 1 else (),
        progress=_progress(beat),
    )


def _state(
    events: list[dict[str, Any]], start: dict[str, Any] | None, beat: dict[str, Any] | None, *, is_made: bool
) -> State:
    last = events[-1]["event"] if events else None
    if start is not None and last in (*BEGINNINGS, "note") and _is_alive(start, beat):
        return "running"
    if is_made:
        return "finished"
    return "failed" if last == "failed" else "stopped"


def _is_alive(start: Mapping[str, Any], beat: Mapping[str, Any] | None) -> bool:
    at: float = beat["at"] if beat else start["at"]
    silence = abs(time.time() - at)
    if start.get("host") != socket.gethostname():
        return silence < FRESH_SECONDS_ELSEWHERE or _still_beats(str(start.get("job")), at)
    if silence < FRESH_SECONDS:
        return True
    pid, born = start.get("pid"), start.get("birth")  # a busy job, or one that waits: is the process still that one?
    return isinstance(pid, int) and birth(pid) == (born if isinstance(born, int) else -1)


_heard: OrderedDict[str, tuple[float, float]] = (
    OrderedDict()
)  # by job: its last sign of life, and when it was new to us
_heard_lock = threading.Lock()


def _still_beats(job: str, at: float) -> bool:
    """Whether a sign of life of this job was new to us, by our own clock, less than a minute ago."""
    now = time.monotonic()
    with _heard_lock:
        known = _heard.pop(job, None)
        if known is None:
            known = at, -math.inf  # the first that we hear of it: it may be of any age
        elif known[0] != at:
            known = at, now
        _heard[job] = known
        while len(_heard) > MOST_HEARD:
            _heard.popitem(last=False)
    return now - known[1] < FRESH_SECONDS_ELSEWHERE


def _last_at(events: Sequence[Mapping[str, Any]], beat: Mapping[str, Any] | None) -> float | None:
    """When it gave its last sign of life: what ended it, else what came after the last event."""
    if beat is not None and (not events or events[-1]["event"] in (*BEGINNINGS, "note")):
        return float(beat["at"])
    return float(events[-1]["at"]) if events else None


def _beat(files: RunFiles, start: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The last sign of life of the job that was started last."""
    beat = _json(files.progress)
    if start is None or not isinstance(beat, dict) or beat.get("job") != start.get("job"):
        return None
    return beat if isinstance(beat.get("at"), int | float) else None


def _progress(beat: Mapping[str, Any] | None) -> RunProgress | None:
    try:
        if beat is None or "what" not in beat:
            return None
        return RunProgress(
            what=str(beat["what"]),
            unit=str(beat["unit"]),
            done=int(beat["done"]),
            total=None if beat["total"] is None else int(beat["total"]),
            rate=beat.get("rate"),
            seconds_left=beat.get("seconds_left"),
            said=str(beat.get("said", "")),
        )
    except (LookupError, TypeError, ValueError):
        return None


def _seconds(events: Sequence[Mapping[str, Any]], beat: Mapping[str, Any] | None) -> float:
    """Time at work: from each start to its last sign of life."""
    goes: list[list[Mapping[str, Any]]] = []
    for event in events:
        if event["event"] in BEGINNINGS:
            goes.append([])
        if goes:
            goes[-1].append(event)
    if goes and beat is not None:
        goes[-1].append(beat)
    return sum(map(_seconds_of_one, goes))


def _seconds_of_one(signs: Sequence[Mapping[str, Any]]) -> float:
    """As the job itself counted; by the clock in the logs of older versions, which did not."""
    counted = [sign["seconds"] for sign in signs if isinstance(sign.get("seconds"), int | float)]
    return float(max(counted) if counted else max(sign["at"] for sign in signs) - signs[0]["at"])


def _events(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = (_parsed(line) for line in lines)
    return [e for e in found if isinstance(e, dict) and "event" in e and isinstance(e.get("at"), int | float)]


def _told(event: Mapping[str, Any]) -> str:
    if event["event"] == "started":
        return f"started: process {event.get('pid')} on {event.get('host')}"
    text = event.get("text")
    return str(text) if event["event"] == "note" else event["event"] + (f": {text}" if text else "")


def _measured(point: RunPoint) -> str:
    return f"{point.tokens:,} tokens  {measured(fvu=point.fvu, l0=point.l0, dead_share=point.dead_share)}"


def _point(line: bytes) -> RunPoint | None:
    found = _parsed(line)
    try:
        numbers = {name: _number(found.get(name)) for name in ("loss", "fvu", "l0", "dead_share")}
        at = _number(found.get("at"))
        return RunPoint(tokens=int(found["tokens"]), **numbers, at=None if at is None else _moment(at))
    except (AttributeError, LookupError, TypeError, ValueError):
        return None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _json(path: Path) -> Any:
    try:
        return _parsed(path.read_bytes())
    except OSError:
        return None


def _parsed(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, tz=UTC)
