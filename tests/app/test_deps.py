"""What routes depend on."""

import inspect
from collections.abc import Iterator

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant

from app.api import _known_run
from app.deps import get_runs
from tests.app.routes import routes_of

WAIT_FOR_FILES = {get_runs, _known_run}


def below(dependant: Dependant) -> Iterator[object]:
    for part in dependant.dependencies:
        yield part.call
        yield from below(part)


def test_only_dependencies_that_wait_are_sent_to_a_thread(app: FastAPI) -> None:
    """Each that is would cost a request two changes of thread, and its turn among all others."""
    found = {call for route in routes_of(app) for call in below(route.dependant)}
    sent = {call for call in found if inspect.isfunction(call) and not inspect.iscoroutinefunction(call)}
    assert {call for call in sent if not inspect.isasyncgenfunction(call)} == WAIT_FOR_FILES
