"""The map of an SAE's features: its page, its twin below `/api`, and the labels that the page shows on hover.

What is selected is in the address: by a search, by an area of the map, or what both have in common.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BeforeValidator, Field

from app.changes import author_of
from app.deps import CorpusQuery, Name, PointsDep, Slug, StoreDep, Where
from app.export import number_ranges
from app.kept import Keeps
from app.list_rows import list_rows
from app.map_areas import Place, cells, corners, inside, outline_points, squares
from app.pages import MAX_OFFERED_LISTS
from app.rendering import PLOTLY, page, static_url
from app.search import PLACES
from app.urls import url
from sae_core.errors import NotFoundError
from sae_core.records import FeatureMap, FeaturePoint, IndexInfo, LabelText
from sae_core.store import Store
from sae_core.store_lists import MAX_ITEMS

MOST_FOUND = 5000  # features that light up
Colour = Literal["density", "max", "cosine", "confidence"]
COLOURS = {"density": "density", "max": "maximum", "cosine": "encoder·decoder cosine", "confidence": "confidence"}

router = APIRouter()


class MapQuery(CorpusQuery):
    """What is selected on a map, and how it is drawn."""

    q: Name = Field(default=None, description="words, all of which must stand somewhere")
    within: Where = Field(default=None, description="where to look; default everywhere")
    area: Annotated[Annotated[str, Field(max_length=3000)] | None, BeforeValidator(lambda value: value or None)] = (
        Field(default=None, description="two corners of a box, x,y,x,y, or those of any outline, x,y,x,y,x,y,…")
    )
    alive: bool = Field(default=True, description="leave out features that never fired")
    colour: Colour = Field(default="density", description="what a point's colour says")
    limit: int = Field(default=20, ge=1, le=MAX_ITEMS, description="how many of the selected features are listed")


class MapDataQuery(MapQuery):
    """The same, and whether every feature's place is wanted too."""

    points: bool = Field(default=True, description="with the place and the numbers of every feature")


MapParams = Annotated[MapQuery, Query()]
MapDataParams = Annotated[MapDataQuery, Query()]


@dataclass(frozen=True, slots=True, kw_only=True)
class MapPoints:
    """Every feature, dead ones included: columns in the order of their numbers. Places go from 0 to 65,535."""

    x: tuple[int, ...]
    y: tuple[int, ...]
    density: tuple[float, ...]
    max_activation: tuple[float, ...]
    encoder_decoder_cosine: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MapReport:
    """A map and what is selected on it, densest first; `found` are the matches of the search, wherever they lie."""

    slug: str
    corpus: str
    n_neighbours: int
    seed: int
    n_alive: int
    n_found: int | None
    found: tuple[int, ...]
    n_selected: int | None
    selected: tuple[int, ...]
    points: MapPoints | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTexts:
    """What every feature is called that has a label; `next` is always null."""

    items: tuple[LabelText, ...]
    next: str | None = None


@router.get("/api/saes/{slug}/map", summary="The features in the plane, and those selected there", dependencies=Keeps)
def map_data(store: StoreDep, points: PointsDep, slug: Slug, query: MapDataParams) -> MapReport:
    index = store.index(slug, corpus=query.corpus)
    known, made = points.points(store, index), _map(store, slug)
    return _report(store, index, made, known, query=query, with_points=query.points)


@router.get("/api/saes/{slug}/labels", summary="What every feature is called")
def labels(store: StoreDep, slug: Slug) -> LabelTexts:
    return LabelTexts(items=tuple(store.label_texts(slug)))


@router.get("/saes/{slug}/map", include_in_schema=False, response_class=HTMLResponse, dependencies=Keeps)
def map_page(request: Request, store: StoreDep, points: PointsDep, slug: Slug, query: MapParams) -> Response:
    summary = store.sae(slug)
    index = store.index(slug, corpus=query.corpus)
    known, made = points.points(store, index), _map(store, slug)
    report = _report(store, index, made, known, query=query)
    listed = report.selected[: query.limit]
    rows = store.feature_rows(slug, listed, corpus=query.corpus)
    places = [place for _, place in _places(made, known, alive=query.alive)]
    here = f"/saes/{slug}/map"
    state: dict[str, object] = query.model_dump(exclude={"limit", "alive"}, exclude_defaults=True)
    state |= {} if query.alive else {"alive": "0"}

    def without(*names: str, **changes: object) -> str:
        return url(here, **{name: value for name, value in state.items() if name not in names}, **changes)

    return page(
        request, "map.html", summary=summary, sae=summary.sae, index=index, has_index=True, corpus=query.corpus,
        query=query, report=report, cells=cells(places), here=here, colours=COLOURS,
        squares=squares(places, address=lambda area: without("area", area=area) + "#selection"),
        marked={"found": report.found, "selected": report.selected[:MOST_FOUND]},
        outline=outline_points(corners(query.area)) if query.area else "",
        rows=list_rows([rows[i] for i in listed if i in rows], has_bos=index.corpus.prepend_bos),
        more_url=without(limit=min(MAX_ITEMS, 5 * query.limit)) + "#selection", most=MAX_ITEMS, places=PLACES,
        cleared={"all": without("q", "within", "area"), "area": without("area"), "q": without("q", "within")},
        numbers=number_ranges(report.selected[:MAX_ITEMS]), lists=store.lists(limit=MAX_OFFERED_LISTS),
        author=author_of(request), plotly_url=static_url(PLOTLY),
        data_url=url(f"/api/saes/{slug}/map", corpus=query.corpus), labels_url=f"/api/saes/{slug}/labels",
    )  # fmt: skip


def _map(store: Store, slug: str) -> FeatureMap:
    made = store.feature_map(slug)
    if made is None:
        raise NotFoundError(f'The SAE "{slug}" has no map yet; run `saescope map {slug}`, which takes seconds.')
    return made


def _report(
    store: Store,
    index: IndexInfo,
    made: FeatureMap,
    known: Mapping[int, FeaturePoint],
    *,
    query: MapQuery,
    with_points: bool = False,
) -> MapReport:
    shown = _places(made, known, alive=query.alive)
    chosen: set[int] | None = None
    found: list[int] = []
    if query.q and query.q.strip():
        is_shown = {number for number, _ in shown}
        matching = store.matching_features(
            index.slug, query.q, corpus=query.corpus, within=query.within, limit=MOST_FOUND
        )
        found = [number for number in matching if number in is_shown]
        chosen = set(found)
    if query.area is not None:
        within = set(inside(corners(query.area), shown))
        chosen = within if chosen is None else chosen & within
    selected = sorted(chosen or (), key=lambda number: (-known[number].density, number))
    return MapReport(
        slug=index.slug,
        corpus=index.corpus.name,
        n_neighbours=made.n_neighbours,
        seed=made.seed,
        n_alive=sum(point.density > 0 for point in known.values()),
        n_found=len(found) if query.q and query.q.strip() else None,
        found=tuple(found),
        n_selected=None if chosen is None else len(selected),
        selected=tuple(selected),
        points=_points(made, known) if with_points else None,
    )


def _places(made: FeatureMap, known: Mapping[int, FeaturePoint], *, alive: bool) -> list[tuple[int, Place]]:
    """Those that are drawn."""
    return [
        (number, (made.xs[number], made.ys[number]))
        for number, point in known.items()
        if point.density > 0 or not alive
    ]


def _points(made: FeatureMap, known: Mapping[int, FeaturePoint]) -> MapPoints:
    """Rounded to what a chart can show: four digits."""
    points = known.values()
    return MapPoints(
        x=made.xs,
        y=made.ys,
        density=tuple(_rounded(point.density) for point in points),
        max_activation=tuple(_rounded(point.max_activation) for point in points),
        encoder_decoder_cosine=tuple(
            None if point.encoder_decoder_cosine is None else round(point.encoder_decoder_cosine, 3) for point in points
        ),
    )


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
