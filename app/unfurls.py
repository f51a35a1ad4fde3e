"""Where the pictures of features, lists and shared probes are: the pages name them, and chats that unfurl a link fetch
them.
"""

from contextlib import suppress

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from app.deps import CorpusParams, FeatureIndex, InferenceDep, PointsDep, Slug, StoreDep
from app.kept import Keeps
from app.lists_api import ListId
from app.pictures import feature_picture, list_picture, probe_picture
from app.probe_page import probed
from app.probe_share import ProbeId, query_of
from app.probe_views import ProbeView
from sae_core.errors import SaescopeError
from sae_core.records import TOP_BAND

router = APIRouter(include_in_schema=False)

KEPT = {"Cache-Control": "public, max-age=300"}  # a label may change


@router.get("/saes/{slug}/features/{feature_index}/card.png", dependencies=Keeps)
def feature_card(store: StoreDep, slug: Slug, feature_index: FeatureIndex, query: CorpusParams) -> Response:
    index = store.index(slug, corpus=query.corpus)
    detail = store.feature(slug, feature_index, corpus=query.corpus)
    top = next((example for example in detail.examples if example.band == TOP_BAND), None)
    drawn = feature_picture(slug, detail.feature, top, has_bos=index.corpus.prepend_bos)
    return Response(drawn, media_type="image/png", headers=KEPT)


@router.get("/lists/{list_id}/card.png", dependencies=Keeps)
def list_card(store: StoreDep, list_id: ListId) -> Response:
    return Response(list_picture(store.feature_list(list_id)), media_type="image/png", headers=KEPT)


@router.get("/p/{probe_id}/card.png")
async def probe_card(store: StoreDep, inference: InferenceDep, points: PointsDep, probe_id: ProbeId) -> Response:
    found = await run_in_threadpool(store.probe, probe_id)
    view: ProbeView | None = None
    if not found.problem:
        summary = await run_in_threadpool(store.sae, found.slug)
        with suppress(SaescopeError):  # without the model, or for those who may not ask it: the text alone
            view = (await probed(store, inference, points, summary=summary, query=query_of(found))).view
    drawn = await run_in_threadpool(probe_picture, found, view)
    return Response(drawn, media_type="image/png", headers=KEPT if view else {"Cache-Control": "no-store"})
