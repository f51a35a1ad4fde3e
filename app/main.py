"""Builds the web app: `create_app(settings)` puts routes, static files and error pages around a store and a model.

Nothing heavy is imported: torch lives in the worker process that `inference` starts with the first probe.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from starlette.middleware.gzip import GZipMiddleware

from app import (
    api,
    compare,
    deletion,
    embeds,
    feature_files,
    learn,
    lists,
    lists_api,
    maps,
    pages,
    patterns,
    probe_page,
    probe_share,
    search,
    texts_page,
    unfurls,
)
from app.access import pages as access_pages
from app.access.gate import Gate
from app.body_limit import BodyLimit
from app.causal import kept, steer, why
from app.causal.steer_report import SteerCache
from app.deps import check_run
from app.error_pages import add_error_pages
from app.explain import meaning
from app.explain.background import Background
from app.explain.routes import router as explain_router
from app.inference import Inference, ModelWorker
from app.inference.shared import SharedWorker
from app.kept import MADE_AT_ONCE, Kept
from app.list_rows import RowsCache
from app.matches import MatchCache
from app.observe import health
from app.observe.metrics import Metrics
from app.observe.watch import Watch
from app.points import PointsCache
from app.rate_limit import RateLimit
from app.rendering import STATIC, HashedStaticFiles, make_environment, saescope_version
from app.run_feed import RunFeeds
from app.settings import Settings
from sae_core.store import Store

DESCRIPTION = "What the features of sparse autoencoders are active on. Every page of the dashboard has its twin here."


def create_app(settings: Settings, *, store: Store | None = None, prober: Inference | None = None) -> FastAPI:
    """The dashboard. Opens the store at `settings.database_url` and a model worker unless they are given."""
    own_store = Store.open(settings.database_url, new_saes=settings.visibility) if store is None else None
    inference = prober if prober is not None else model_worker(settings)

    @asynccontextmanager
    async def lifespan(opened: FastAPI) -> AsyncIterator[None]:
        opened.state.stopping = asyncio.Event()  # ends the streams of events
        if isinstance(inference, SharedWorker):
            await inference.connect()
        yield
        opened.state.stopping.set()
        await labelling.close()
        await inference.close()
        if own_store is not None:
            own_store.close()

    version = saescope_version()
    app = FastAPI(
        title="saescope", version=version, description=DESCRIPTION, docs_url=None, redoc_url=None, lifespan=lifespan,
        dependencies=[Depends(check_run)],
    )  # fmt: skip
    app.state.settings = settings
    app.state.store = store if store is not None else own_store
    app.state.inference = inference
    app.state.labelling = labelling = Background(settings, app.state.store)
    app.state.points = PointsCache()
    app.state.rows = RowsCache()
    app.state.matches = MatchCache()
    app.state.steerings = SteerCache()
    app.state.run_feeds = RunFeeds()
    app.state.metrics = Metrics()
    app.state.turns = asyncio.Semaphore(MADE_AT_ONCE)
    app.state.templates = make_environment(version=version, read_only=settings.read_only)
    app.add_middleware(GZipMiddleware, minimum_size=1000, compresslevel=3)  # half the time of 5, a tenth more
    app.add_middleware(Kept, commits=app.state.store.commits)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, seconds=settings.body_timeout)
    app.add_middleware(RateLimit, a_minute=settings.rate_limit if settings.needs_login else 0)
    app.add_middleware(Gate, settings=settings)
    app.add_middleware(Watch, settings=settings)  # the last one added is the first that a request meets
    app.include_router(pages.router)
    for module in (probe_page, probe_share, texts_page, search, feature_files, maps, lists, embeds, unfurls, lists_api):
        app.include_router(module.router)
    app.include_router(explain_router)
    app.include_router(meaning.router)
    app.include_router(api.router)
    app.include_router(probe_share.api)
    app.include_router(texts_page.api)
    app.include_router(compare.router)
    app.include_router(compare.api)
    for router in (learn.router, learn.api, patterns.router):
        app.include_router(router)
    for router in (why.router, why.api, steer.router, steer.api, kept.router, kept.api):
        app.include_router(router)
    for router in (access_pages.router, access_pages.api, deletion.router, deletion.api, health.router):
        app.include_router(router)
    app.mount("/static", HashedStaticFiles(directory=STATIC), name="static")
    add_error_pages(app)
    return app


def model_worker(settings: Settings) -> ModelWorker:
    """As the settings have it. Its process starts with the first job."""
    return ModelWorker(
        max_tokens=settings.max_prompt_tokens,
        queue_size=settings.probe_queue,
        timeout=settings.probe_timeout,
        device=settings.device,
        model_memory=settings.model_memory,
    )
