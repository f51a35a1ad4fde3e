"""A feature inside somebody else's page: which parts of it, in which theme, how high, and the code to paste."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response
from markupsafe import escape
from pydantic import Field

from app.deps import EMBEDDED_PARTS, FeatureIndex, FeatureQuery, Part, Slug, StoreDep
from app.kept import Keeps
from app.rendering import absolute, page
from app.urls import url

router = APIRouter()

PARTS: dict[Part, str] = {
    "label": "what the feature is called",
    "statistics": "density, max, mean when active, encoder·decoder",
    "histogram": "the histogram of its activations",
    "tokens": "the tokens that it promotes and suppresses",
    "examples": "its top examples",
}


class EmbedQuery(FeatureQuery):
    """A feature page's switches, and the height that it is given."""

    height: int = Field(default=420, ge=80, le=4000)


EmbedParams = Annotated[EmbedQuery, Query()]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedCode:
    """The address of an embedded feature, and the HTML that puts it into a page."""

    url: str
    html: str


@router.get(
    "/saes/{slug}/features/{feature_index}/embed",
    include_in_schema=False,
    response_class=HTMLResponse,
    dependencies=Keeps,
)
def embed_page(
    request: Request, store: StoreDep, slug: Slug, feature_index: FeatureIndex, query: EmbedParams
) -> Response:
    feature = store.feature(slug, feature_index, corpus=query.corpus).feature
    return page(
        request, "embed.html", slug=slug, feature=feature, corpus=query.corpus, query=query, has_index=True,
        parts=PARTS, here=f"/saes/{slug}/features/{feature_index}",
        code=embed_code(request, slug, feature_index, query), address=embedded(slug, feature_index, query),
    )  # fmt: skip


@router.get("/api/saes/{slug}/features/{feature_index}/embed", summary="The code that embeds a feature")
def embed(request: Request, store: StoreDep, slug: Slug, feature_index: FeatureIndex, query: EmbedParams) -> EmbedCode:
    store.feature(slug, feature_index, corpus=query.corpus)  # an unknown feature is an error here as it is on the page
    return embed_code(request, slug, feature_index, query)


def embedded(slug: str, feature_index: int, query: EmbedQuery) -> str:
    """The embedded page's address on this server, with what differs from the defaults."""
    address = url(
        f"/saes/{slug}/features/{feature_index}",
        embed=1,
        corpus=query.corpus,
        parts=",".join(query.shown_parts) if query.shown_parts != EMBEDDED_PARTS else None,
        examples=query.examples if query.examples != FeatureQuery.model_fields["examples"].default else None,
        width=query.width if query.width != "short" else None,
        breaks=query.breaks,
        theme=query.theme,
    )
    return address.replace("%2C", ",")  # as people write it


def embed_code(request: Request, slug: str, feature_index: int, query: EmbedQuery) -> EmbedCode:
    address = absolute(request, embedded(slug, feature_index, query))
    html = (
        f'<iframe src="{escape(address)}" width="100%" height="{query.height}" style="border: 0" loading="lazy" '
        f'title="{escape(slug)}, feature {feature_index}"></iframe>'
    )
    return EmbedCode(url=address, html=html)
