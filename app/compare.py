"""The comparison's routes: `/compare?a=…&b=…`, its twin below `/api`, and the twin of the SAE page's plot."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from app.choosing import choices, grouped
from app.compare_views import values_of
from app.comparing import Order, compared
from app.comparisons import Choices, CorpusComparison, FeatureComparison, SAEComparison
from app.deps import CorpusParams, Given, PointsDep, ShortText, Slug, StoreDep
from app.kept import Keeps
from app.matches import MatchCache
from app.pareto import Pareto, pareto
from app.probing import chosen_index
from app.references import pair
from app.rendering import page
from sae_core.errors import InputError, NotFoundError, SaescopeError
from sae_core.store import Store

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
api = APIRouter(prefix="/api")

Answer = FeatureComparison | SAEComparison | CorpusComparison | Choices


class CompareQuery(BaseModel):
    """What is compared. Boxes ticked on the start page come as `sae`, twice."""

    model_config = ConfigDict(frozen=True)
    a: Given = Field(default=None, description="an SAE, slug or slug@corpus, or a feature, slug/12 or slug/12@corpus")
    b: Given = Field(default=None, description="another of the same kind, or the same on another corpus")
    sae: list[ShortText] = Field(default=[], max_length=1000, description="two SAEs, in place of a and b")
    match: float = Field(default=0.7, ge=0, le=1, allow_inf_nan=False, description="least cosine of a match")
    order: Order = Field(default="furthest", description="which of those without a match come first")
    rows: int = Field(default=20, ge=1, le=1000, description="rows of each list")

    @property
    def given(self) -> tuple[str | None, str | None]:
        return self.a or next(iter(self.sae), None), self.b or next(iter(self.sae[1:]), None)


async def get_matches(request: Request) -> MatchCache:
    matches: MatchCache = request.app.state.matches
    return matches


MatchesDep = Annotated[MatchCache, Depends(get_matches)]
CompareParams = Annotated[CompareQuery, Query()]


@router.get("/compare", dependencies=Keeps)
def compare_page(
    request: Request, store: StoreDep, points: PointsDep, matches: MatchesDep, query: CompareParams
) -> Response:
    a, b = query.given
    problem, status = None, 200
    try:
        answer = _answer(store, points, matches, query)
        if not isinstance(answer, Choices):
            values: dict[str, Any] = values_of(answer)
            return page(request, f"compare_{answer.kind}.html", comparison=answer, query=query, a=a, b=b, **values)
    except SaescopeError as error:
        problem, status = str(error), error.http_status
        answer = Choices(a=a, b=b, items=())
    return page(
        request, "compare.html", status_code=status, answer=answer, a=a or "", b=b or "", problem=problem,
        groups=grouped(answer.items),
        everything=[] if status == 503 else choices(store, a=None, b=None).items,
    )  # fmt: skip


@api.get("/compare", summary="Two features, two SAEs, or one SAE on two corpora")
def compare(store: StoreDep, points: PointsDep, matches: MatchesDep, query: CompareParams) -> Answer:
    return _answer(store, points, matches, query)


@api.get("/saes/{slug}/pareto", summary="An SAE among those of the same model, hook and text")
def sae_pareto(store: StoreDep, slug: Slug, query: CorpusParams) -> Pareto:
    summary = store.sae(slug)
    found = pareto(store, summary, chosen_index(summary, corpus=query.corpus))
    if found is None:
        raise NotFoundError(f'The SAE "{slug}" was not measured yet; run `saescope index {slug} --corpus …`.')
    return found


def _answer(store: Store, points: PointsDep, matches: MatchesDep, query: CompareQuery) -> Answer:
    if len(query.sae) > 2:
        raise InputError(f"Two SAEs can be compared at a time, and {len(query.sae)} are ticked: leave two.")
    a, b = query.given
    if a is None or b is None:
        return choices(store, a=a, b=b)
    first, second = pair(a, b)
    return compared(store, points, matches, a=first, b=second, least=query.match, order=query.order, rows=query.rows)
