"""What a search looks in, and how each database finds it: SQLite by FTS5, PostgreSQL by its full text, both the same.

`feature_texts` has a row per feature and index, each field as terms (`search_terms`). Its key `search_id` holds the
index and, below it, the feature's rank by density; so matches come out in the order of a list by density and the query
may stop after a page of them, however many there are.

SQLite: the virtual table `feature_search` indexes those rows without holding their text, and is told what changes
(`add`, `remove`, `refresh_labels`). PostgreSQL: the column `terms` follows from the fields by itself, and has an index.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import TSQUERY

from sae_core.labels import KINDS
from sae_core.records import PackedExamples, Vocabulary
from sae_core.schema import FEATURE_SEARCH, feature_texts, indexes, labels
from sae_core.search_terms import BREAK, FIELDS, Phrase, fts5_query, joined_terms, ts_query
from sae_core.store_bulk import insert_rows
from sae_core.store_rows import token_texts, top_places, unpacked_token_ids

RANK_BITS = 32
SEARCHED_EXAMPLES = 3  # of a feature's top examples
SEARCHED_AROUND = 5  # tokens on each side of their peaks
_CHUNK_ROWS = 5000
_fts5 = sa.table(FEATURE_SEARCH, sa.column("rowid", sa.Integer))


def search_ids(index_id: int) -> tuple[int, int]:
    """The first and the last key that a feature of this index can have."""
    return index_id << RANK_BITS, ((index_id + 1) << RANK_BITS) - 1


def is_match(wanted: Sequence[Phrase], field: str | None, *, dialect: str) -> tuple[Any, Any, Any]:
    """What to select from in place of `feature_texts`, its key, and the condition that a row is found."""
    if dialect == "sqlite":
        joined = _fts5.join(feature_texts, feature_texts.c.search_id == _fts5.c.rowid)
        return joined, _fts5.c.rowid, sa.literal_column(FEATURE_SEARCH).op("MATCH")(fts5_query(wanted, field))
    query = sa.cast(ts_query(wanted, field), TSQUERY)
    return feature_texts, feature_texts.c.search_id, sa.literal_column("feature_texts.terms").op("@@")(query)


class Texts:
    """The fields of an index's features, gathered while its records are stored."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._terms: dict[int, str] = {}  # of a token alone
        self._tokens: dict[int, tuple[str, str]] = {}
        self._densities: dict[int, float] = {}

    def add_feature(
        self, feature_index: int, *, density: float, promotes: Iterable[int], fires_on: Iterable[int]
    ) -> None:
        """A feature by its promoted tokens and those that it fires on."""
        self._densities[feature_index] = density
        self._tokens[feature_index] = (self._joined(promotes), self._joined(fires_on))

    def rows(self, shown: Mapping[int, str], around: Mapping[int, str], *, index_id: int) -> Iterator[dict[str, Any]]:
        """The rows of `feature_texts`, by feature, given their labels and the terms around their peaks.

        Ranks are those of a list by density, densest first; of equal ones the higher number comes first.
        """
        order = sorted(self._densities, key=lambda number: (self._densities[number], number), reverse=True)
        ranks = {number: rank for rank, number in enumerate(order)}
        first, _ = search_ids(index_id)
        for number, (promotes, fires_on) in self._tokens.items():
            yield {
                "search_id": first + ranks[number],
                "index_id": index_id,
                "feature_index": number,
                "label": joined_terms([shown.get(number, "")]),
                "promotes": promotes,
                "fires_on": fires_on,
                "examples": around.get(number, ""),
            }

    def around_peaks(self, examples: PackedExamples, token_ids: Callable[[int], bytes]) -> str:
        """The terms of the text around the peaks of the first top examples; `token_ids` of a context by its number."""
        texts = []
        for context_id, position in top_places(examples, most=SEARCHED_EXAMPLES):
            first = max(0, position - SEARCHED_AROUND)
            some = unpacked_token_ids(token_ids(context_id)[4 * first : 4 * (position + SEARCHED_AROUND + 1)])
            # The context's own special tokens are no text.
            shown = [i for i in some if i not in self._vocabulary.special_ids]
            texts.append("".join(token_texts(shown, vocabulary=self._vocabulary)))
        return joined_terms(texts)

    def _joined(self, token_ids: Iterable[int]) -> str:
        known = self._terms
        for token_id in token_ids:
            if token_id not in known:
                known[token_id] = joined_terms(token_texts([token_id], vocabulary=self._vocabulary))
        return BREAK.join(dict.fromkeys(known[token_id] for token_id in token_ids if known[token_id]))


def add(connection: sa.Connection, rows: Iterator[dict[str, Any]], *, index_id: int) -> None:
    """Stores the rows of a new index."""
    while chunk := list(islice(rows, _CHUNK_ROWS)):
        insert_rows(connection, feature_texts, chunk)
    if connection.dialect.name == "sqlite":
        _tell_fts5(connection, feature_texts.c.search_id.between(*search_ids(index_id)))
    else:  # or every search reads through what is not sorted in yet
        connection.exec_driver_sql("SELECT gin_clean_pending_list('feature_texts_terms')")


def remove(connection: sa.Connection, index_ids: Iterable[int]) -> None:
    """Forgets indexes that are about to be deleted."""
    for index_id in index_ids:
        own = feature_texts.c.search_id.between(*search_ids(index_id))
        if connection.dialect.name == "sqlite":
            _tell_fts5(connection, own, forgets=True)
        connection.execute(sa.delete(feature_texts).where(own))


def shown_labels(
    connection: sa.Connection, sae_id: int, feature_indexes: Collection[int] | None = None
) -> dict[int, str]:
    """What each labelled feature is called: by the first of `KINDS` that it has."""
    query = sa.select(labels.c.feature_index, labels.c.kind, labels.c.text).where(labels.c.sae_id == sae_id)
    if feature_indexes is not None:
        query = query.where(labels.c.feature_index.in_(feature_indexes))
    rows = sorted(connection.execute(query), key=lambda row: KINDS.index(row.kind), reverse=True)
    return {row.feature_index: row.text for row in rows}


def refresh_labels(connection: sa.Connection, sae_id: int, feature_indexes: Collection[int] | None = None) -> None:
    """Makes searches follow the labels as they are now, of these features or of all."""
    if feature_indexes is not None and len(feature_indexes) > _CHUNK_ROWS:
        feature_indexes = None  # more than a query may name
    shown = shown_labels(connection, sae_id, feature_indexes)
    query = sa.select(feature_texts.c.search_id, feature_texts.c.feature_index, feature_texts.c.label).join(
        indexes, indexes.c.index_id == feature_texts.c.index_id
    )
    query = query.where(indexes.c.sae_id == sae_id)
    if feature_indexes is not None:
        query = query.where(feature_texts.c.feature_index.in_(feature_indexes))
    changed = []
    for search_id, feature_index, old in connection.execute(query.order_by(feature_texts.c.search_id)):
        new = joined_terms([shown.get(feature_index, "")])
        if new != old:
            changed.append({"key": search_id, "new": new})
    if not changed:
        return
    one = feature_texts.c.search_id == sa.bindparam("key")
    is_sqlite = connection.dialect.name == "sqlite"
    if is_sqlite:
        _tell_fts5(connection, one, changed, forgets=True)
    connection.execute(sa.update(feature_texts).where(one).values(label=sa.bindparam("new")), changed)
    if is_sqlite:
        _tell_fts5(connection, one, changed)


def _tell_fts5(
    connection: sa.Connection, which: Any, each: list[dict[str, Any]] | None = None, *, forgets: bool = False
) -> None:
    """Adds rows of `feature_texts` to FTS5, or makes it forget them, which needs them as they were added."""
    columns: list[sa.ColumnElement[Any]] = [feature_texts.c.search_id, *(feature_texts.c[field] for field in FIELDS)]
    names = ["rowid", *FIELDS]
    if forgets:
        columns, names = [sa.literal_column("'delete'"), *columns], [FEATURE_SEARCH, *names]
    target = sa.table(FEATURE_SEARCH, *map(sa.column, names))
    rows = sa.select(*columns).where(which).order_by(feature_texts.c.search_id)
    connection.execute(sa.insert(target).from_select(names, rows), each)
