"""A selection of features as a file: CSV for a spreadsheet, JSON lines for a program; sent while it is read.

The query is that of the feature list, so what the page shows is what the file has, from the first page to the last.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import TypeAdapter

from app.deps import FeatureListParams, FeatureListQuery, Slug, StoreDep
from app.rendering import absolute
from app.urls import url
from sae_core.records import FeatureRow, TokenWeight
from sae_core.store import Store

ROWS_AT_A_TIME = 500
MEDIA_TYPES = {"csv": "text/csv; charset=utf-8", "jsonl": "application/x-ndjson"}
COLUMNS = (
    "feature_index", "label", "label_kind", "label_author", "label_confidence", "density", "n_active", "max_activation",
    "mean_activation", "encoder_decoder_cosine", "promoted_tokens", "top_example", "url",
)  # fmt: skip

router = APIRouter()
_AS_JSON = TypeAdapter(FeatureRow)
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@router.get("/saes/{slug}/features.{kind}", summary="A selection of features as CSV or JSON lines")
def export(
    request: Request, store: StoreDep, slug: Slug, kind: Literal["csv", "jsonl"], query: FeatureListParams
) -> StreamingResponse:
    """All features that the list's query selects, from its cursor on; `limit` is left aside."""
    index = store.index(slug, corpus=query.corpus)  # an unknown name is an error before the first byte
    pages = selected(store, slug, query)
    first = next(pages, ())  # so is a query that cannot be

    def address(feature_index: int) -> str:
        return absolute(request, url(f"/saes/{slug}/features/{feature_index}", corpus=query.corpus))

    lines = csv_lines if kind == "csv" else json_lines
    name = f"{slug}-{index.corpus.name}-features.{kind}"
    return StreamingResponse(
        lines(chain([first], pages), address=address),
        media_type=MEDIA_TYPES[kind],
        headers={"Content-Disposition": f'attachment; filename="{_plain(name)}"'},
    )


def selected(store: Store, slug: str, query: FeatureListQuery) -> Iterator[tuple[FeatureRow, ...]]:
    """The selection page by page."""
    after = query.after
    while True:
        found = store.features(slug, **query.model_dump() | {"after": after, "limit": ROWS_AT_A_TIME})
        yield found.items
        if found.next is None:
            return
        after = found.next


def csv_lines(pages: Iterable[tuple[FeatureRow, ...]], *, address: Callable[[int], str]) -> Iterator[str]:
    """For spreadsheets: with a byte order mark, and text that none takes for a formula."""
    yield "\ufeff" + _csv([COLUMNS])
    for rows in pages:
        yield _csv([map(harmless, _values(row, address=address)) for row in rows])


def json_lines(pages: Iterable[tuple[FeatureRow, ...]], *, address: Callable[[int], str]) -> Iterator[str]:
    """For programs: an object per feature, complete in itself."""
    for rows in pages:
        lines = ({**_AS_JSON.dump_python(row, mode="json"), "url": address(row.feature.feature_index)} for row in rows)
        yield "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def harmless(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value


def joined_tokens(weights: tuple[TokenWeight, ...]) -> str:
    """Tokens in one cell; JSON, since they may hold any sign that could stand between them."""
    return json.dumps([weight.token for weight in weights], ensure_ascii=False)


def _values(row: FeatureRow, *, address: Callable[[int], str]) -> list[object]:
    feature, label = row.feature, row.feature.label
    best = row.examples[0] if row.examples else None
    around = "" if best is None else "".join(best.tokens[max(0, best.position - 10) : best.position + 6])
    return [
        feature.feature_index,
        label.text if label else "",
        label.kind if label else "",
        label.author if label else "",
        "" if label is None or label.score is None else label.score,
        feature.density,
        feature.n_active,
        feature.max_activation,
        feature.mean_activation,
        feature.encoder_decoder_cosine,
        joined_tokens(feature.promoted_tokens),
        around,
        address(feature.feature_index),
    ]


def _csv(rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def _plain(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name)
