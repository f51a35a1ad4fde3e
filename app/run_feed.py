"""The streams of events that follow runs: one poller looks at a run's files each second, however many listen to it.

What a poller finds is put into words and into bytes once and handed to all listeners of that run, some at a time, so
that a thousand of them cost the server what they are sent, no thread, and no page waits for all of them. A stream ends
by itself after a while, and a browser opens it again with the id of the last event that it has: so one whose token was
revoked does not listen for ever.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import TypeAdapter

from app.runs import MOST_POINTS, NewPoints, RunTick, run_tick
from sae_core.errors import NotFoundError
from sae_core.runs import PointsReader, RunPoint, read_run, thinned

LOOK_SECONDS = 1.0  # between two looks at a run that is at work
STREAM_SECONDS = 300.0  # until a listener has to come through the gate again
SILENCE_SECONDS = 15.0  # after which something is sent, so that who has gone is noticed, and no proxy gives up
RETRY_MS = 2000  # until a browser opens again what ended
WOKEN_AT_A_TIME = 25  # listeners; between them the server does what else there is

_TICK, _POINTS = TypeAdapter(RunTick), TypeAdapter(NewPoints)


@dataclass(frozen=True, slots=True)
class _Look:
    """What the last look found. `taken_back`: how often points were, as a run does that goes on from its checkpoint."""

    tick: RunTick
    tick_json: str
    tick_event: bytes
    starts: int
    taken_back: int
    n_points: int


class RunFeeds:
    """The runs of one server process that somebody listens to."""

    def __init__(self) -> None:
        self._followed: dict[tuple[Path, str], _Followed] = {}

    async def events(
        self, home: Path, run_id: str, *, last_event_id: str | None, stopping: asyncio.Event
    ) -> AsyncIterator[bytes]:
        """A run as it goes on: `run` and `points` when something is new, `end` when it ends; then the stream is over.

        The id of an event counts the points sent so far, so that a listener who comes back gets those that it missed.
        """
        followed = self._followed.get((home, run_id))
        if followed is None:
            followed = self._followed[home, run_id] = _Followed(home, run_id)
            followed.task = asyncio.create_task(self._follow(followed, stopping))
        woken = asyncio.Event()
        followed.listeners.append(woken)
        try:
            async for events in _told(followed, woken, last_event_id=last_event_id):
                yield events
        finally:
            followed.listeners.remove(woken)
            if not followed.listeners and followed.task is not None:
                self._forget(followed)
                followed.task.cancel()

    async def _follow(self, followed: "_Followed", stopping: asyncio.Event) -> None:
        try:
            while not stopping.is_set() and (await followed.look()).tick.state == "running":
                try:
                    async with asyncio.timeout(LOOK_SECONDS):
                        await stopping.wait()
                except TimeoutError:
                    continue
        except NotFoundError:  # its folder was deleted
            pass
        finally:
            self._forget(followed)
            followed.is_over = True
            for woken in followed.listeners:
                woken.set()

    def _forget(self, followed: "_Followed") -> None:
        key = (followed.home, followed.run_id)
        if self._followed.get(key) is followed:
            del self._followed[key]


class _Followed:
    """A run that is followed. `listeners` are woken when there is another `last` look, or none will come: `is_over`."""

    def __init__(self, home: Path, run_id: str) -> None:
        self.home, self.run_id = home, run_id
        self.listeners: list[asyncio.Event] = []
        self.task: asyncio.Task[None] | None = None
        self.last: _Look | None = None
        self.is_over = False
        self._reader = PointsReader(home, run_id)
        self._points: list[RunPoint] = []
        self._events: dict[tuple[int, bool], bytes] = {}  # of points, since the last look

    async def look(self) -> _Look:
        """Looks, and tells those who listen if anything is new. Raises NotFoundError."""
        found, new = await asyncio.to_thread(self._found)
        if found != self.last:
            if self.last is not None and found.taken_back != self.last.taken_back:
                self._points = []
            self._points += new
            self.last, self._events = found, {}
            for number, woken in enumerate(tuple(self.listeners), start=1):
                woken.set()
                if number % WOKEN_AT_A_TIME == 0:
                    await asyncio.sleep(0)
        return found

    def points_event(self, now: _Look, first: int, *, replaces: bool) -> bytes:
        """The points from number `first` on, no more than a curve needs."""
        if (first, replaces) not in self._events:
            news = NewPoints(replaces=replaces, points=tuple(thinned(self._points[first:], MOST_POINTS)))
            data = _POINTS.dump_json(news).decode()
            event = format_sse_event(data_str=data, event="points", id=f"{now.starts}-{now.n_points}")
            self._events[first, replaces] = event
        return self._events[first, replaces]

    def _found(self) -> tuple[_Look, list[RunPoint]]:
        """And the points that are new."""
        last, run = self.last, read_run(self.home, self.run_id)
        first, points = self._reader.new()  # after the run's state, so that one that has ended has all its points
        tick = run_tick(self.home, run, self._reader.last)
        taken_back = 0 if last is None else last.taken_back + (first < last.n_points)
        if last is not None and tick == last.tick:
            data, event = last.tick_json, last.tick_event
        else:
            data = _TICK.dump_json(tick).decode()
            event = format_sse_event(data_str=data, event="run")
        return _Look(tick, data, event, run.starts, taken_back, first + len(points)), points


async def _told(followed: _Followed, woken: asyncio.Event, *, last_event_id: str | None) -> AsyncIterator[bytes]:
    """What one listener is told, an event or more at a time."""
    told: _Look | None = None
    sent = 0
    ends = time.monotonic() + STREAM_SECONDS
    while True:
        woken.clear()
        now = followed.last
        if now is not None and now is not told:
            if told is None:
                sent = _known(last_event_id, starts=now.starts, most=now.n_points)
                replaces = sent == 0
            elif replaces := now.taken_back != told.taken_back:
                sent = 0
            events = [followed.points_event(now, sent, replaces=replaces)] if sent < now.n_points or replaces else []
            if told is None:
                events.append(format_sse_event(data_str=now.tick_json, event="run", retry=RETRY_MS))
            elif now.tick != told.tick:
                events.append(now.tick_event)
            if now.tick.state != "running":
                yield b"".join([*events, format_sse_event(data_str=f'"{now.tick.state}"', event="end")])
                return
            told, sent = now, now.n_points
            if events:
                yield b"".join(events)
        if followed.is_over or time.monotonic() > ends:
            return
        try:
            async with asyncio.timeout(min(SILENCE_SECONDS, ends - time.monotonic())):
                await woken.wait()
        except TimeoutError:
            yield KEEPALIVE_COMMENT


def _known(last_event_id: str | None, *, starts: int, most: int) -> int:
    """How many points a listener has already; 0 if what it has may have been taken back since."""
    started, _, known = (last_event_id or "").partition("-")
    if started != str(starts) or not known.isdecimal() or len(known) > 12:
        return 0
    return int(known) if int(known) <= most else 0
