"""What every long job shows and how it is stopped: a progress bar with rate and time left, and a clean Ctrl-C."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import Any

from tqdm import tqdm

_watcher: ContextVar[Callable[[Any], None] | None] = ContextVar("watcher", default=None)


class _Bar(tqdm):  # type: ignore[misc]
    """A bar on a clock that never jumps: tqdm's own is that of the day, by which a rate may come out negative."""

    _time = property(lambda _: time.monotonic, lambda _, theirs: None)


def progress_bar(
    *, total: int | None, done: int = 0, what: str, unit: str = " tokens", is_shown: bool = True
) -> "tqdm[Any]":
    """A bar on the terminal; where there is none, a line every ten seconds. `total` None: nobody knows."""
    is_terminal = sys.stderr.isatty()
    counts = "{n_fmt}/{total_fmt}{unit} {rate_fmt} {remaining} left{postfix}"
    form = "{desc} {n_fmt}{unit} {rate_fmt}" if total is None else "{desc} {percentage:3.0f}% |{bar:24}| " + counts
    bar = _Bar(
        total=total,
        initial=done,
        disable=not is_shown,
        desc=what,
        unit=unit,
        unit_scale=True,
        dynamic_ncols=is_terminal,
        mininterval=0.2 if is_terminal else 10.0,
        smoothing=0,  # the mean since the start: batches come in bursts, one after each filling of the buffer
        leave=True,
        bar_format=form,
    )
    watcher = _watcher.get()
    if watcher is not None and is_shown:
        watcher(bar)
    return bar


@contextmanager
def watched_by(watcher: Callable[[Any], None]) -> Iterator[None]:
    """Shows every progress bar that is made while it is open to `watcher`, so that others can be told what it says."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def say(bar: "tqdm[Any]", text: str) -> None:
    """Shows a few words behind the bar, no more often than it moves by itself."""
    if bar.disable:
        return
    bar.set_postfix_str(text, refresh=False)
    if time.monotonic() - bar.last_print_t >= bar.mininterval:
        bar.refresh()
        bar.last_print_t = time.monotonic()


def say_line(text: str) -> None:
    """A line of its own on the terminal, above a bar that may be there."""
    tqdm.write(text, file=sys.stderr)


class StopRequest:
    """Whether the user asked the job to stop; jobs look between steps, so that what they save is whole."""

    def __init__(self) -> None:
        self.was_made = False

    def make(self, signum: int, frame: FrameType | None) -> None:
        if self.was_made:  # asked twice: stop now
            raise KeyboardInterrupt
        self.was_made = True


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Turns Ctrl-C and SIGTERM into a request for as long as it is open; outside the main thread it never comes."""
    request = StopRequest()
    try:
        previous = {number: signal.signal(number, request.make) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # signals can be handled in the main thread only
        yield request
        return
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def interrupts_heard() -> Iterator[None]:
    """Ends what is inside with a KeyboardInterrupt after a Ctrl-C, wherever that fell.

    Python drops what is raised in a destructor or a callback (one Ctrl-C in four while modules are imported), and a
    library may turn it into an error of its own.
    """
    heard = False
    handler, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal heard
        heard = True
        raise KeyboardInterrupt

    def make_again(dropped: "sys.UnraisableHookArgs") -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()  # raised here, it would be dropped too
        else:
            hook(dropped)

    is_heard_here = handler is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if is_heard_here:
        signal.signal(signal.SIGINT, note)
    sys.unraisablehook = make_again
    try:
        yield
    except Exception as error:
        if heard:
            raise KeyboardInterrupt from error
        raise
    finally:
        sys.unraisablehook = hook
        if is_heard_here:
            signal.signal(signal.SIGINT, handler)
