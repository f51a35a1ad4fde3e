"""A page of the feature list: its query and its cursor.

A page starts after the last feature of the page before (keyset paging), so every page costs the same and a list that
changes meanwhile repeats and skips nothing. The cursor holds that feature's sort value and index.
"""

import base64
import json
import math
from typing import Any, Literal

import sqlalchemy as sa

from sae_core.errors import InputError
from sae_core.schema import feature_texts, features, labels
from sae_core.store_rows import search_key

Sort = Literal["density", "-density", "max", "-max", "index", "-index"]
MAX_LIMIT = 1000
MAX_SEARCH_CHARACTERS = 200
LARGEST_INTEGER = 2**31 - 1  # what an integer column holds

_SORT_COLUMNS = {"density": features.c.density, "max": features.c.max_activation, "index": features.c.feature_index}


def page_statement(
    *,
    index_id: int,
    sae_id: int,
    sort: Sort,
    q: str | None,
    min_density: float | None,
    max_density: float | None,
    alive: bool,
    after: str | None,
    limit: int,
) -> sa.Select[Any]:
    """Rows of `features`, one more than `limit` if there is a next page. Ties go by feature index, the same way."""
    column = _sort_column(sort)
    if not 1 <= limit <= MAX_LIMIT:
        raise InputError(f"A page has 1 to {MAX_LIMIT} features, not {limit}; choose a number between.")
    density = features.c.density if column is features.c.density else _unindexed(features.c.density)
    conditions = [features.c.index_id == index_id]
    if alive:
        conditions.append(density > 0)
    if min_density is not None:
        conditions.append(density >= _number("min_density", min_density))
    if max_density is not None:
        conditions.append(density <= _number("max_density", max_density))
    if q and q.strip():
        conditions.append(features.c.feature_index.in_(_matches(q, index_id=index_id, sae_id=sae_id)))
    keys = [column] if column is features.c.feature_index else [column, features.c.feature_index]
    if after is not None:
        last = _decoded(after, sort=sort)[-len(keys) :]
        here, there = sa.tuple_(*keys), sa.tuple_(*last)
        conditions.append(here < there if sort.startswith("-") else here > there)
    order = [key.desc() if sort.startswith("-") else key.asc() for key in keys]
    return sa.select(features).where(*conditions).order_by(*order).limit(limit + 1)


def feature_number(q: str | None) -> int | None:
    """The feature that a search asks for by its number."""
    q = (q or "").strip()
    return int(q) if q.isascii() and q.isdigit() and len(q) < 11 and int(q) <= LARGEST_INTEGER else None


def cursor_after(row: sa.RowMapping, *, sort: Sort) -> str:
    content = json.dumps([sort, row[_sort_column(sort).name], row["feature_index"]], separators=(",", ":"))
    return base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")


def _decoded(cursor: str, *, sort: Sort) -> tuple[float, int]:
    wrong = InputError("This link to a page of the list is damaged or of another order; start at the first page.")
    try:
        content = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, RecursionError) as error:
        raise wrong from error
    match content:
        case [str() as its_sort, float() | int() as value, int() as feature_index] if (
            its_sort == sort
            and not isinstance(value, bool)
            and abs(value) < math.inf
            and abs(value) <= 1e300
            and not isinstance(feature_index, bool)
            and 0 <= feature_index <= LARGEST_INTEGER
        ):
            return float(value), feature_index
    raise wrong


def _sort_column(sort: Sort) -> sa.Column[Any]:
    column = _SORT_COLUMNS.get(sort.removeprefix("-"))
    if column is None:
        raise InputError(f'A feature list has no order "{sort}"; choose density, max or index, with - for descending.')
    return column


def _unindexed(column: sa.Column[float]) -> sa.ColumnElement[float]:
    """`column` as something no index is chosen for, so that a list by maximum is read from the index by maximum."""
    return column + 0.0


def _number(name: str, value: float) -> float:
    if math.isnan(value):
        raise InputError(f"{name} is not a number; give a share between 0 and 1.")
    return value


def _matches(q: str, *, index_id: int, sae_id: int) -> sa.CompoundSelect[Any]:
    """Features whose label, promoted tokens or peak tokens contain `q`, whatever the case."""
    key = search_key(q.strip())
    if len(key) > MAX_SEARCH_CHARACTERS:
        raise InputError(f"A search has at most {MAX_SEARCH_CHARACTERS} characters; shorten it.")
    return sa.union(
        sa.select(feature_texts.c.feature_index).where(
            feature_texts.c.index_id == index_id, feature_texts.c.search_text.contains(key, autoescape=True)
        ),
        sa.select(labels.c.feature_index).where(
            labels.c.sae_id == sae_id, labels.c.search_text.contains(key, autoescape=True)
        ),
    )
