"""A page of the feature list: its query and its cursor.

A page starts after the last feature of the page before (keyset paging), so every page costs the same and a list that
changes meanwhile repeats and skips nothing. The cursor holds that feature's sort value and index.

A search in a list by density reads matches in that order and stops after a page of them (`store_search`); in another
order all that match are sorted.
"""

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import sqlalchemy as sa

from sae_core import store_search
from sae_core.errors import InputError
from sae_core.records import FeatureSummary
from sae_core.schema import LABEL_KEY, feature_texts, features, labels
from sae_core.search_terms import FIELDS, Phrase, phrases

Sort = Literal[
    "density", "-density", "max", "-max", "mean", "-mean", "cosine", "-cosine", "label", "-label",
    "confidence", "-confidence", "index", "-index",
]  # fmt: skip
MAX_LIMIT = 1000
MAX_SEARCH_CHARACTERS = 200
LARGEST_INTEGER = 2**31 - 1  # what an integer column holds

_LISTED = [features.c[field.name] for field in fields(FeatureSummary) if field.name != "label"]
_BY_LABEL = sa.literal_column(LABEL_KEY.replace("label", "feature_texts.label"), sa.Text)
_SORT_COLUMNS: dict[str, sa.ColumnElement[Any]] = {
    "density": features.c.density,
    "max": features.c.max_activation,
    "mean": features.c.mean_activation,
    "cosine": features.c.encoder_decoder_cosine,  # of the feature's encoder and decoder directions
    "label": _BY_LABEL,  # of those that have one, as their terms
    "confidence": labels.c.score,  # of those with an automatic label that has one
    "index": features.c.feature_index,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which features of an index a reader asks for, checked."""

    sort: Sort
    q: str | None
    within: str | None
    min_density: float | None
    max_density: float | None
    min_confidence: float | None
    alive: bool
    after: str | None
    limit: int

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= MAX_LIMIT:
            raise InputError(f"A page has 1 to {MAX_LIMIT} features, not {self.limit}; choose a number between.")
        for name in ("min_density", "max_density", "min_confidence"):
            value = getattr(self, name)
            if value is not None and math.isnan(value):
                raise InputError(f"{name} is not a number; give a share between 0 and 1.")
        _check_search(self.q, self.within)

    @property
    def column(self) -> sa.ColumnElement[Any]:
        column = _SORT_COLUMNS.get(self.sort.removeprefix("-"))
        if column is None:
            known = ", ".join(_SORT_COLUMNS)
            raise InputError(f'A feature list has no order "{self.sort}"; choose {known}, with - for descending.')
        return column

    @property
    def falls(self) -> bool:
        return self.sort.startswith("-")

    @property
    def last(self) -> tuple[float | str, int] | None:
        """Sort value and number of the last feature of the page before."""
        return None if self.after is None else _decoded(self.after, sort=self.sort)

    def density(self, column: Any) -> tuple[list[Any], list[Any]]:
        """Conditions from below and from above."""
        at_least = [column > 0] if self.alive else []
        if self.min_density is not None:
            at_least.append(column >= self.min_density)
        return at_least, [] if self.max_density is None else [column <= self.max_density]


def page_rows(connection: sa.Connection, asked: Asked, *, index_id: int, sae_id: int) -> Sequence[sa.RowMapping]:
    """What a list shows, one row more than `limit` if there is a next page. Ties go by feature index, the same way."""
    statement = page_statement(connection, asked, index_id=index_id, sae_id=sae_id)
    return [] if statement is None else connection.execute(statement).mappings().all()


def page_statement(connection: sa.Connection, asked: Asked, *, index_id: int, sae_id: int) -> sa.Select[Any] | None:
    """The query of `page_rows`; None if nothing can be found."""
    column, last = asked.column, asked.last
    wanted = phrases(asked.q) if asked.q and asked.q.strip() else None
    if wanted == []:  # only blanks and quotes
        return None
    conditions = [features.c.index_id == index_id]
    if wanted and column is features.c.density:
        return _found_by_density(connection, asked, wanted, last=last, index_id=index_id, sae_id=sae_id)
    if wanted:
        place, key, is_found = store_search.is_match(wanted, asked.within, dialect=connection.dialect.name)
        matches = sa.select(feature_texts.c.feature_index).select_from(place)
        matches = matches.where(is_found, key.between(*store_search.search_ids(index_id)))
        conditions.append(features.c.feature_index.in_(matches))
    if asked.min_confidence is not None:
        conditions.append(is_confident(features.c.feature_index, asked.min_confidence, sae_id=sae_id))
    at_least, at_most = asked.density(column if column is features.c.density else _unindexed(features.c.density))
    query = sa.select(*_LISTED, column.label("sorted_by"))
    number: sa.ColumnElement[int] = features.c.feature_index
    if column is _BY_LABEL:
        number = feature_texts.c.feature_index
        query = query.join(feature_texts, _SAME_FEATURE)
        conditions += [feature_texts.c.index_id == index_id, column > ""]
    elif column is labels.c.score:
        number = labels.c.feature_index
        query = query.join(labels, labels.c.feature_index == features.c.feature_index)
        conditions += [labels.c.sae_id == sae_id, labels.c.kind == "automatic", column.is_not(None)]
    elif column is features.c.encoder_decoder_cosine:
        conditions.append(column.is_not(None))
    keys = [column] if column is number else [column, number]
    if last is not None:
        here, there = sa.tuple_(*keys), sa.tuple_(*last[-len(keys) :])
        conditions.append(here < there if asked.falls else here > there)
    order = [key.desc() if asked.falls else key.asc() for key in keys]
    return query.where(*conditions, *at_least, *at_most).order_by(*order).limit(asked.limit + 1)


def matching_numbers(connection: sa.Connection, q: str, within: str | None, *, index_id: int, limit: int) -> list[int]:
    """The features that a search finds, dead or alive, densest first, without reading anything else of them."""
    _check_search(q, within)
    wanted = phrases(q) if q.strip() else []
    if not wanted:
        return []
    place, key, is_found = store_search.is_match(wanted, within, dialect=connection.dialect.name)
    found = sa.select(feature_texts.c.feature_index).select_from(place)
    found = found.where(is_found, key.between(*store_search.search_ids(index_id)))
    return list(connection.scalars(found.order_by(key).limit(limit)))


def _check_search(q: str | None, within: str | None) -> None:
    if within is not None and within not in FIELDS:
        raise InputError(f'A search looks in {", ".join(FIELDS)}, not in "{within}"; choose one, or none for all.')
    if q and len(q.strip()) > MAX_SEARCH_CHARACTERS:
        raise InputError(f"A search has at most {MAX_SEARCH_CHARACTERS} characters; shorten it.")


def _found_by_density(
    connection: sa.Connection,
    asked: Asked,
    wanted: list[Phrase],
    *,
    last: tuple[float | str, int] | None,
    index_id: int,
    sae_id: int,
) -> sa.Select[Any] | None:
    """Matches in the order of their keys, which count from the densest feature on."""
    span = _span(connection, asked, last=last, index_id=index_id)
    if span is None:
        return None
    place, key, is_found = store_search.is_match(wanted, asked.within, dialect=connection.dialect.name)
    found = sa.select(feature_texts.c.search_id, feature_texts.c.feature_index).select_from(place)
    found = found.where(is_found, key.between(*span))
    if asked.min_confidence is not None:
        found = found.where(is_confident(feature_texts.c.feature_index, asked.min_confidence, sae_id=sae_id))
    few = found.order_by(key.asc() if asked.falls else key.desc()).limit(asked.limit + 1).subquery()
    query = sa.select(*_LISTED, features.c.density.label("sorted_by")).join(
        few, features.c.feature_index == few.c.feature_index
    )
    order = few.c.search_id.asc() if asked.falls else few.c.search_id.desc()
    return query.where(features.c.index_id == index_id).order_by(order)


def _span(
    connection: sa.Connection, asked: Asked, *, last: tuple[float | str, int] | None, index_id: int
) -> tuple[int, int] | None:
    """The first and last key that the density and the page before leave; None if there is none."""

    def key(*conditions: Any, order: Sequence[Any] = ()) -> Any:
        query = sa.select(feature_texts.c.search_id).join(features, _SAME_FEATURE)
        return query.where(features.c.index_id == index_id, *conditions).order_by(*order).limit(1).scalar_subquery()

    first, end = store_search.search_ids(index_id)
    keys = (features.c.density, features.c.feature_index)
    at_least, at_most = asked.density(features.c.density)
    bounds = (
        key(*at_most, order=[key.desc() for key in keys]) if at_most else sa.literal(first),
        key(*at_least, order=keys) if at_least else sa.literal(end),
        sa.literal(None) if last is None else key(features.c.feature_index == last[1]),
    )
    low, high, before = connection.execute(sa.select(*bounds)).one()
    if low is None or high is None:
        return None
    if before is not None:
        low, high = (max(low, before + 1), high) if asked.falls else (low, min(high, before - 1))
    return low, high


_SAME_FEATURE = sa.and_(
    features.c.index_id == feature_texts.c.index_id, features.c.feature_index == feature_texts.c.feature_index
)


def is_confident(feature_index: Any, least: float, *, sae_id: int) -> Any:
    """The feature has an automatic label with at least this confidence."""
    its = labels.alias("its_label")  # a list by confidence has another row of labels
    own = (its.c.sae_id == sae_id, its.c.feature_index == feature_index, its.c.kind == "automatic")
    return sa.exists().where(*own, its.c.score >= least)


def feature_number(q: str | None) -> int | None:
    """The feature that a search asks for by its number."""
    q = (q or "").strip()
    return int(q) if q.isascii() and q.isdigit() and len(q) < 11 and int(q) <= LARGEST_INTEGER else None


def cursor_after(row: sa.RowMapping, *, sort: Sort) -> str:
    content = json.dumps([sort, row["sorted_by"], row["feature_index"]], separators=(",", ":"))
    return base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")


def _decoded(cursor: str, *, sort: Sort) -> tuple[float | str, int]:
    wrong = InputError("This link to a page of the list is damaged or of another order; start at the first page.")
    try:
        content = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, RecursionError) as error:
        raise wrong from error
    match content:
        case [str() as its_sort, str() as value, int() as feature_index] if (
            its_sort == sort
            and _SORT_COLUMNS[sort.removeprefix("-")] is _BY_LABEL
            and value.isascii()
            and "\0" not in value
            and not isinstance(feature_index, bool)
            and 0 <= feature_index <= LARGEST_INTEGER
        ):
            return value, feature_index
        case [str() as its_sort, float() | int() as value, int() as feature_index] if (
            its_sort == sort
            and _SORT_COLUMNS[sort.removeprefix("-")] is not _BY_LABEL
            and not isinstance(value, bool)
            and abs(value) < math.inf
            and abs(value) <= 1e300
            and not isinstance(feature_index, bool)
            and 0 <= feature_index <= LARGEST_INTEGER
        ):
            return float(value), feature_index
    raise wrong


def _unindexed(column: sa.Column[float]) -> sa.ColumnElement[float]:
    """`column` as something no index is chosen for, so that a list by maximum is read from the index by maximum."""
    return column + 0.0
