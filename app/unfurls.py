"""Where the pictures of features and lists are: the pages name them, and chats that unfurl a link fetch them."""

from fastapi import APIRouter
from fastapi.responses import Response

from app.deps import CorpusParams, FeatureIndex, Slug, StoreDep
from app.kept import Keeps
from app.lists_api import ListId
from app.pictures import feature_picture, list_picture
from sae_core.records import TOP_BAND

router = APIRouter(include_in_schema=False)

KEPT = {"Cache-Control": "public, max-age=300"}  # a label may change


@router.get("/saes/{slug}/features/{feature_index}/card.png", dependencies=[Keeps])
def feature_card(store: StoreDep, slug: Slug, feature_index: FeatureIndex, query: CorpusParams) -> Response:
    index = store.index(slug, corpus=query.corpus)
    detail = store.feature(slug, feature_index, corpus=query.corpus)
    top = next((example for example in detail.examples if example.band == TOP_BAND), None)
    drawn = feature_picture(slug, detail.feature, top, has_bos=index.corpus.prepend_bos)
    return Response(drawn, media_type="image/png", headers=KEPT)


@router.get("/lists/{list_id}/card.png", dependencies=[Keeps])
def list_card(store: StoreDep, list_id: ListId) -> Response:
    return Response(list_picture(store.feature_list(list_id)), media_type="image/png", headers=KEPT)
