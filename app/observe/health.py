"""Whether the server is alive, whether it can do its work, and what it counts: for balancers, containers, monitors."""

from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from app.deps import StoreDep, VersionDep
from app.observe.metrics import CONTENT_TYPE, Metrics, Worker
from sae_core.errors import StoreError

router = APIRouter()


@dataclass(frozen=True, slots=True, kw_only=True)
class Alive:
    """The process answers."""

    status: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What is needed to do the work, a word each: `ok`, or what is wrong."""

    status: str
    database: str
    migrations: str
    model_worker: str


@router.get("/healthz", summary="Is the server alive?")
def healthz(version: VersionDep) -> Alive:
    return Alive(status="ok", version=version)


@router.get("/readyz", summary="Can the server do its work?", responses={503: {"model": Ready}})
def readyz(request: Request, store: StoreDep) -> JSONResponse:
    database = migrations = "ok"
    try:
        if not store.is_current():
            migrations = "the database is not of this version: run saescope db upgrade"
    except StoreError:
        database, migrations = "unreachable", "unknown"
    worker = request.app.state.inference
    started = not isinstance(worker, Worker) or worker.process_id() is not None
    is_ready = (database, migrations) == ("ok", "ok")
    answer = {
        "status": "ok" if is_ready else "not ready",
        "database": database,
        "migrations": migrations,
        "model_worker": "ok" if started else "starts with the first probe",
    }
    return JSONResponse(answer, status_code=200 if is_ready else 503)


@router.get("/metrics", summary="What Prometheus reads", response_class=PlainTextResponse)
def metrics(request: Request) -> Response:
    found: Metrics = request.app.state.metrics
    return Response(found.text(request.app.state.inference), media_type=CONTENT_TYPE)
