"""The queries that read: rows by the names that readers use, and records made of them.

Each is a function of an open connection. The store (`store`) gives them one transaction, so that what a page shows is
one moment of the database.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from sae_core.errors import NotFoundError
from sae_core.labels import KINDS
from sae_core.records import Example, Feature, Label, Vocabulary
from sae_core.schema import contexts, corpora, examples, features, indexes, labels, models, saes
from sae_core.search_terms import clean_text
from sae_core.store_engine import FOUND
from sae_core.store_pages import LARGEST_INTEGER
from sae_core.store_rows import (
    PackedExample,
    example_record,
    feature_record,
    label_record,
    named_features,
    token_texts,
    unpacked_examples,
    unpacked_token_ids,
)
from sae_core.store_viewer import is_hidden

IN_CHUNK = 1000  # parameters of one query; SQLite takes 32,766

SAES = sa.select(
    saes,
    models.c.model_name,
    models.c.revision,
    models.c.architecture.label("model_architecture"),
    models.c.n_layers,
    models.c.d_model,
    models.c.vocabulary_sha256,
).join(models)

INDEXES = (
    sa.select(
        indexes,
        *(column for column in corpora.c if column.name != "corpus_id"),
        saes.c.slug,
        saes.c.visibility,
        saes.c.d_sae,
        models.c.model_id,
        models.c.vocabulary_sha256,
    )
    .select_from(indexes)
    .join(corpora)
    .join(saes)
    .join(models)
    .order_by(indexes.c.created_at.desc(), indexes.c.index_id.desc())
)

# Made once: to put a query together costs SQLAlchemy more than to run it.
_SAE_OF = SAES.where(saes.c.slug == sa.bindparam("slug"))
_INDEXES_OF = INDEXES.where(saes.c.slug == sa.bindparam("slug"))
VOCABULARY_OF = sa.select(models.c.vocabulary, models.c.special_ids).where(
    models.c.model_id == sa.bindparam("model_id")
)
_some: sa.BindParameter[list[int]] = sa.bindparam("some", expanding=True)
_FEATURES_OF = (
    sa.select(features)
    .where(features.c.index_id == sa.bindparam("index_id"), features.c.feature_index.in_(_some))
    .order_by(features.c.feature_index)
)
# Not in any order: to have them sorted, SQLite would read all of an SAE's labels from the index by score.
_LABELS_OF = sa.select(labels).where(labels.c.sae_id == sa.bindparam("sae_id"), labels.c.feature_index.in_(_some))
_LABEL_TEXTS_OF = _LABELS_OF.with_only_columns(labels.c.feature_index, labels.c.kind, labels.c.text)
_RANKS = {kind: rank for rank, kind in enumerate(KINDS)}
_EXAMPLES_OF = sa.select(examples.c.feature_index, examples.c.packed).where(
    examples.c.index_id == sa.bindparam("index_id"), examples.c.feature_index.in_(_some)
)
_CONTEXTS_OF = sa.select(contexts).where(
    contexts.c.corpus_id == sa.bindparam("corpus_id"), contexts.c.context_id.in_(_some)
)
_here: sa.BindParameter[int] = sa.bindparam("feature_index")
_alive = sa.select(features.c.feature_index).where(
    features.c.index_id == sa.bindparam("index_id"), features.c.density > 0
)
NEIGHBOURS_OF = sa.select(
    _alive.where(features.c.feature_index < _here)
    .order_by(features.c.feature_index.desc())
    .limit(1)
    .scalar_subquery()
    .label("previous"),
    _alive.where(features.c.feature_index > _here)
    .order_by(features.c.feature_index)
    .limit(1)
    .scalar_subquery()
    .label("following"),
)


def sae_row_of(connection: sa.Connection, slug: str) -> sa.RowMapping:
    rows = _rows_of(connection, "sae", _SAE_OF, slug)
    if not rows or is_hidden(connection, rows[0]):
        raise NotFoundError(f'There is no SAE "{slug}"; check the spelling, or make one with `saescope train`.')
    return rows[0]


def index_rows_of(connection: sa.Connection, slug: str) -> Sequence[sa.RowMapping]:
    """Of all indexes of an SAE, the newest first; none where it is hidden."""
    rows = _rows_of(connection, "indexes", _INDEXES_OF, slug)
    return [] if rows and is_hidden(connection, rows[0]) else rows


def _rows_of(connection: sa.Connection, what: str, query: sa.Select[Any], slug: str) -> Sequence[sa.RowMapping]:
    """Read once in a transaction that only reads: they are of one moment, and most that a page asks for needs them."""
    found: dict[tuple[str, str], Sequence[sa.RowMapping]] = connection.get_execution_options().get(FOUND, {})
    if (what, slug) not in found:
        found[what, slug] = connection.execute(query, {"slug": clean_text(slug)}).mappings().all()
    return found[what, slug]


def index_row_of(connection: sa.Connection, slug: str, *, corpus: str | None) -> sa.RowMapping:
    rows = index_rows_of(connection, slug)
    if not rows:
        sae_row_of(connection, slug)
        raise NotFoundError(f'The SAE "{slug}" is not indexed yet; run `saescope index {slug} --corpus …`.')
    for row in rows:
        if corpus is None or row["name"] == corpus:
            return row
    known = ", ".join(f'"{row["name"]}"' for row in rows)
    raise NotFoundError(
        f'The SAE "{slug}" is indexed on {known}, not on "{corpus}"; run `saescope index {slug} --corpus …`.'
    )


def unknown_feature(index: sa.RowMapping, feature_index: int) -> NotFoundError:
    last = index["d_sae"] - 1
    return NotFoundError(f'The SAE "{index["slug"]}" has no feature {feature_index}; its features are 0 to {last}.')


def feature_rows_of(connection: sa.Connection, index_id: int, feature_indexes: Collection[int]) -> list[sa.RowMapping]:
    rows: list[sa.RowMapping] = []
    for some in _chunked(feature_indexes):
        rows.extend(connection.execute(_FEATURES_OF, {"index_id": index_id, "some": some}).mappings())
    return rows


def feature_records_of(
    connection: sa.Connection, rows: Sequence[sa.RowMapping], *, index: sa.RowMapping, vocabulary: Vocabulary
) -> list[Feature]:
    """With their labels and those of the features that they name."""
    named = {row["feature_index"] for row in rows}.union(*(named_features(row) for row in rows))
    found = labels_of(connection, index["sae_id"], named)
    return [feature_record(row, vocabulary=vocabulary, labels=found) for row in rows]


def labels_of(connection: sa.Connection, sae_id: int, feature_indexes: Collection[int]) -> dict[int, Label]:
    """The one that is shown: of the first of `KINDS` that there is."""
    found: dict[int, Label] = {}
    for some in _chunked(feature_indexes):
        for row in connection.execute(_LABELS_OF, {"sae_id": sae_id, "some": some}).mappings():
            known = found.get(row["feature_index"])
            if known is None or KINDS.index(row["kind"]) < KINDS.index(known.kind):
                found[row["feature_index"]] = label_record(row)
    return found


def labels_as_text_of(connection: sa.Connection, sae_id: int, feature_indexes: Collection[int]) -> dict[int, str]:
    """The same without all else that is known of a label."""
    found: dict[int, tuple[int, str]] = {}
    for some in _chunked(feature_indexes):
        for feature_index, kind, text in connection.execute(_LABEL_TEXTS_OF, {"sae_id": sae_id, "some": some}):
            ranked = _RANKS[kind], text
            found[feature_index] = min(found.get(feature_index, ranked), ranked)
    return {feature_index: text for feature_index, (_, text) in found.items()}


def all_labels_of(connection: sa.Connection, sae_id: int, feature_index: int) -> tuple[Label, ...]:
    """Of one feature, the one that is shown first."""
    rows = connection.execute(_LABELS_OF, {"sae_id": sae_id, "some": [feature_index]}).mappings()
    return tuple(sorted(map(label_record, rows), key=lambda label: KINDS.index(label.kind)))


def examples_of(
    connection: sa.Connection,
    index: sa.RowMapping,
    feature_indexes: Collection[int],
    *,
    vocabulary: Vocabulary,
    n_top: int | None = None,
) -> dict[int, list[Example]]:
    """The examples of these features by band and rank; with `n_top` only the first so many of the top band."""
    packed: list[PackedExample] = []
    for some in _chunked(feature_indexes):
        for row in connection.execute(_EXAMPLES_OF, {"index_id": index["index_id"], "some": some}):
            packed += unpacked_examples(row.feature_index, row.packed, n_top=n_top)
    its_contexts: dict[int, sa.RowMapping] = {}
    for some in _chunked({example.context_id for example in packed}):
        rows = connection.execute(_CONTEXTS_OF, {"corpus_id": index["corpus_id"], "some": some}).mappings()
        its_contexts.update((row["context_id"], row) for row in rows)
    found: dict[int, list[Example]] = {}
    for example in packed:
        shown = example_record(example, its_contexts[example.context_id], vocabulary=vocabulary)
        found.setdefault(example.feature_index, []).append(shown)
    return found


def context_text_of(connection: sa.Connection, index: sa.RowMapping, context_id: int, *, vocabulary: Vocabulary) -> str:
    """A context of the index's corpus, as it was before a start token was put in front of it."""
    asked = {"corpus_id": index["corpus_id"], "some": [context_id]}
    row = connection.execute(_CONTEXTS_OF, asked).mappings().one_or_none()
    if row is None:
        raise NotFoundError(
            f'No example of the SAE "{index["slug"]}" on "{index["name"]}" has the context {context_id}.'
        )
    texts = token_texts(unpacked_token_ids(row["token_ids"]), vocabulary=vocabulary)
    return "".join(texts[1 if index["prepend_bos"] else 0 :])


def _chunked(feature_indexes: Collection[int]) -> Iterator[list[int]]:
    """The possible ones among them, in order, in lists that fit a query."""
    possible = sorted({number for number in feature_indexes if 0 <= number <= LARGEST_INTEGER})
    for start in range(0, len(possible), IN_CHUNK):
        yield possible[start : start + IN_CHUNK]
