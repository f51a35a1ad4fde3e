"""A search over the features of all SAEs: the first few of each, those called so before others, a way to the rest."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from app.deps import Name, StoreDep, Where
from app.kept import Keeps
from app.list_rows import ListRow, RowsCache
from app.rendering import page
from sae_core.records import FeatureRow, IndexInfo
from sae_core.store import Store

SHOWN_EACH = 5
PLACES = [
    ("", "anywhere"), ("label", "labels"), ("fires_on", "tokens it fires on"), ("promotes", "promoted tokens"),
    ("examples", "example text"),
]  # fmt: skip

router = APIRouter()


class SearchQuery(BaseModel):
    """What is looked for."""

    model_config = ConfigDict(frozen=True)
    q: Name = Field(default=None, description="words, all of which must stand somewhere")
    within: Where = Field(default=None, description="where to look; default everywhere")


SearchParams = Annotated[SearchQuery, Query()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The first matches in one SAE, on its newest corpus; `more` if there are others."""

    slug: str
    corpus: str
    items: tuple[FeatureRow, ...]
    more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The matches by SAE, newest SAE first; SAEs without one are left out."""

    items: tuple[Found, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The same as the page prints it."""

    slug: str
    corpus: str
    rows: list[ListRow]
    more: bool


@router.get("/api/search", summary="Features of all SAEs by words", dependencies=Keeps)
def search(store: StoreDep, query: SearchParams) -> SearchResult:
    with store.at_one_moment() as now:
        return SearchResult(items=tuple(found for _, found in _found(now, query)))


@router.get("/search", include_in_schema=False, response_class=HTMLResponse, dependencies=Keeps)
def search_page(request: Request, store: StoreDep, query: SearchParams) -> Response:
    kept: RowsCache = request.app.state.rows
    with store.at_one_moment() as now:
        groups = [
            Group(
                slug=found.slug,
                corpus=found.corpus,
                rows=kept.rows(now, index, found.items),
                more=found.more,
            )
            for index, found in _found(now, query, examples=False)
        ]
    return page(request, "search.html", query=query, groups=groups, places=PLACES)


def _found(store: Store, query: SearchQuery, *, examples: bool = True) -> list[tuple[IndexInfo, Found]]:
    if not (query.q and query.q.strip()):
        return []
    groups = []
    for summary in store.saes():
        if summary.indexes:
            slug, index = summary.sae.slug, summary.indexes[0]
            found = store.features(slug, q=query.q, within=query.within, limit=SHOWN_EACH, examples=examples)
            items, more = found.items, found.next is not None
            if more and query.within is None:
                named = store.features(slug, q=query.q, within="label", limit=SHOWN_EACH, examples=examples).items
                by_number = {row.feature.feature_index: row for row in (*named, *items)}
                items = tuple(by_number.values())[:SHOWN_EACH]
            if items:
                groups.append((index, Found(slug=slug, corpus=index.corpus.name, items=items, more=more)))
    return groups
