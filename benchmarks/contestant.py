"""Contestants: processes that train when they are told to, one at a time, over a pipe.

Every contestant lives in its own process, with the Python of its own environment, and waits. The parent writes a line
of JSON to its stdin and reads one back from a pipe whose number is the command's last argument (stdout goes to the log:
peers print there):

    {"do": "start", …job}                 {"version": "sae-lens 6.54.12", "torch": "2.13.0+cpu"}
    {"do": "run", "steps": 5}             {"cpu_s": 4.1}
    {"do": "finish", "folder": "/tmp/…"}  {"l0": 31.9}, with arrays in the folder (`peers/child.py` says which)

Since only the one that was asked works, repeats can go around in rotation, and drift of the machine hits all alike.
This file is the parent's side; it needs the standard library alone.
"""

import contextlib
import dataclasses
import json
import os
import select
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self


class ContestantFailed(Exception):
    """A contestant died, said nothing in time or reported an error; the message is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What every contestant is told to train: the same SAE on the same rows in the same order."""

    train: str  # .npy file of training rows, (N, d_in) float32
    held_out: str  # .npy file of rows to reconstruct
    variant: str  # `default`: a peer as it comes; `1e-3`: tuned to the run, at this learning rate
    d_sae: int
    k: int
    batch_rows: int
    steps: int  # of the whole run, which learning rate schedules need to know
    dead_after_rows: int  # tuned peers' window until a feature counts as dead
    firing_rows: int  # training rows on which features are looked for that never fire
    seed: int  # of the model
    order_seed: int  # of the order of the rows
    threads: int


class Contestant:
    """One waiting process."""

    def __init__(
        self, command: list[str], *, cwd: Path, environment: Mapping[str, str], log: Path, timeout_s: float = 3600
    ) -> None:
        """Starts `command`, with the number of the pipe for its answers; what it prints goes to the file `log`."""
        self._timeout_s = timeout_s
        self._log = log
        answers, its_end = os.pipe()
        self._answers = os.fdopen(answers)
        with log.open("w") as printed:
            self._process = subprocess.Popen(
                [*command, str(its_end)],
                cwd=cwd,
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=printed,
                stderr=printed,
                pass_fds=[its_end],
                text=True,
            )
        os.close(its_end)

    def ask(self, do: str, **details: Any) -> dict[str, Any]:
        """The answer to one request; raises ContestantFailed if there is none in time, or if it is an error."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **details}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise ContestantFailed(self._last_words()) from error
        if not select.select([self._answers], [], [], self._timeout_s)[0]:
            raise ContestantFailed(f"no answer to {do!r} within {self._timeout_s:.0f} s")
        line = self._answers.readline()
        if not line:
            raise ContestantFailed(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ContestantFailed(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the process: by closing its stdin, and if that does not do within seconds, by killing it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is gone already
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else f"ended with exit code {self._process.poll()}"


class Field:
    """All contestants of a benchmark by name. One that fails leaves the field with its reason, and the rest goes on."""

    def __init__(self) -> None:
        self.contestants: dict[str, Contestant] = {}
        self.failures: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for contestant in self.contestants.values():
            contestant.close()

    def enter(self, name: str, contestant: Contestant, job: Job) -> dict[str, Any] | None:
        """Adds a contestant and starts its job; its answer, or None if it failed."""
        self.contestants[name] = contestant
        return self.ask(name, "start", **dataclasses.asdict(job))

    def ask(self, name: str, do: str, **details: Any) -> dict[str, Any] | None:
        """The contestant's answer; None if it failed now or before."""
        if name not in self.contestants:
            return None
        try:
            return self.contestants[name].ask(do, **details)
        except ContestantFailed as failure:
            self.fail(name, str(failure))
            return None

    def fail(self, name: str, reason: str) -> None:
        """Takes a contestant out of the field and remembers why; it may have failed before it came in."""
        self.failures[name] = reason
        if name in self.contestants:
            self.leave(name)

    def leave(self, name: str) -> None:
        self.contestants.pop(name).close()

    def rotation(self, rounds: int, *, first: int = 0) -> Iterator[str]:
        """Every name once a round; each round starts with the next name, the first one with name number `first`."""
        names = list(self.contestants)
        for number in range(first, first + rounds):
            start = number % max(1, len(names))
            yield from names[start:] + names[:start]
