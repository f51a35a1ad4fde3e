"""Labels as vectors, for a search by meaning: what writes and ranks them, a function of an open connection each.

A vector (float16, of unit length) is that of the label by which its feature is called. It goes when that label changes,
and is made anew by whoever searches next, or by `saescope label --embed`; so no vector ever stands for another text.
All vectors of an SAE are of one model and revision, which stand in `label_embeddings`.

A search compares the query with every vector, block by block: exact, and for 100,000 labels of 384 numbers 77 MB to
read and 1.5 CPU seconds.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from sae_core.errors import ConfigError, NotFoundError
from sae_core.explain.records import EmbeddingModel, LabelVectors
from sae_core.schema import features, label_embeddings, label_vectors, labels
from sae_core.store_bulk import insert_rows
from sae_core.store_pages import Asked, is_confident
from sae_core.store_search import shown_labels

BLOCK = 4096  # vectors that are compared at a time
_IN_CHUNK = 1000
_ITEM_BYTES = 2


def vectors_of(connection: sa.Connection, sae_id: int) -> LabelVectors | None:
    """None where none were made."""
    row = connection.execute(_of(label_embeddings, sae_id)).mappings().one_or_none()
    if row is None:
        return None
    n_vectors = connection.scalar(sa.select(sa.func.count()).where(label_vectors.c.sae_id == sae_id)) or 0
    return LabelVectors(
        model=_model(row),
        n_vectors=n_vectors,
        n_missing=connection.scalar(sa.select(sa.func.count()).select_from(_missing(sae_id).subquery())) or 0,
        created_at=row["created_at"],
    )


def missing_texts(connection: sa.Connection, sae_id: int, *, limit: int | None) -> dict[int, str]:
    """The first labels that have no vector, by feature."""
    numbers = connection.scalars(_missing(sae_id).order_by(labels.c.feature_index).limit(limit)).all()
    return {
        number: text for some in _chunked(numbers) for number, text in shown_labels(connection, sae_id, some).items()
    }


def start_vectors(connection: sa.Connection, model: EmbeddingModel, *, sae_id: int) -> None:
    """From now on the SAE's labels are vectors of this model. Those of another one, or of another revision, go."""
    row = connection.execute(_of(label_embeddings, sae_id)).mappings().one_or_none()
    if row is not None and _model(row) == model:
        return
    for table in (label_vectors, label_embeddings):
        connection.execute(sa.delete(table).where(table.c.sae_id == sae_id))
    new = {"sae_id": sae_id, "model_name": model.model_name, "revision": model.revision, "width": model.width}
    connection.execute(sa.insert(label_embeddings).values(new | {"created_at": datetime.now(UTC)}))


def insert_vectors(
    connection: sa.Connection,
    model: EmbeddingModel,
    texts: Mapping[int, str],
    vectors: Sequence[bytes],
    *,
    sae_id: int,
) -> int:
    """Keeps the vectors of labels that are still what they were; returns how many.

    `vectors` are in the order of `texts`. Raises ConfigError if the SAE's vectors are of another model meanwhile.
    """
    row = connection.execute(_of(label_embeddings, sae_id)).mappings().one_or_none()
    if row is None or _model(row) != model:
        raise ConfigError("The labels were made vectors of by another model meanwhile; run the command again.")
    if any(len(vector) != model.width * _ITEM_BYTES for vector in vectors):
        raise ValueError("a vector of another width")
    rows = []
    for some in _chunked(list(zip(texts.items(), vectors, strict=True))):
        numbers = [number for (number, _), _ in some]
        now = shown_labels(connection, sae_id, numbers)
        kept = [(number, vector) for (number, text), vector in some if now.get(number) == text]
        _remove(connection, sae_id, [number for number, _ in kept])
        rows += [{"sae_id": sae_id, "feature_index": number, "vector": vector} for number, vector in kept]
    insert_rows(connection, label_vectors, rows)
    return len(rows)


@contextmanager
def following(connection: sa.Connection, sae_id: int, feature_indexes: Collection[int] | None = None) -> Iterator[None]:
    """Around a change of these features' labels, or of all: the vectors of those that then read otherwise go."""
    if connection.execute(_of(label_embeddings, sae_id)).first() is None:
        yield
        return
    if feature_indexes is not None and len(feature_indexes) > _IN_CHUNK:
        feature_indexes = None  # more than a query may name
    before = shown_labels(connection, sae_id, feature_indexes)
    yield
    now = shown_labels(connection, sae_id, feature_indexes)
    changed = [number for number in before if before[number] != now.get(number)]
    for some in _chunked(changed):
        _remove(connection, sae_id, some)


def ranked(
    connection: sa.Connection, query: bytes, asked: Asked, *, index_id: int, sae_id: int
) -> list[tuple[int, float]]:
    """The features whose labels are nearest to the query's vector, with their cosines, the nearest first; of equally
    near ones the lower number. Filters and limit are those that are asked for."""
    import numpy as np

    wanted = np.frombuffer(query, "<f2").astype(np.float32)
    numbers: list[Any] = []
    cosines: list[Any] = []
    for block in _blocks(connection, asked, index_id=index_id, sae_id=sae_id):
        vectors = np.frombuffer(b"".join(row.vector for row in block), "<f2").reshape(len(block), -1)
        if vectors.shape[1] != len(wanted):
            raise NotFoundError("The query's vector has another width than the labels'; embed the labels anew.")
        numbers.append(np.array([row.feature_index for row in block]))
        cosines.append(vectors.astype(np.float32) @ wanted)
    if not numbers:
        return []
    found, near = np.concatenate(numbers), np.concatenate(cosines)
    best = np.lexsort((found, -near))[: asked.limit]
    return [(int(found[i]), float(near[i])) for i in best]


def _blocks(connection: sa.Connection, asked: Asked, *, index_id: int, sae_id: int) -> Iterator[Sequence[Any]]:
    query = sa.select(label_vectors.c.feature_index, label_vectors.c.vector).where(label_vectors.c.sae_id == sae_id)
    at_least, at_most = asked.density(features.c.density)
    here = sa.select(features.c.feature_index).where(features.c.index_id == index_id, *at_least, *at_most)
    query = query.where(label_vectors.c.feature_index.in_(here))
    if asked.min_confidence is not None:
        query = query.where(is_confident(label_vectors.c.feature_index, asked.min_confidence, sae_id=sae_id))
    yield from connection.execute(query, execution_options={"yield_per": BLOCK}).partitions()


def _missing(sae_id: int) -> sa.Select[Any]:
    """The features that have a label and no vector."""
    its = label_vectors.alias("its_vector")
    made = sa.exists().where(its.c.sae_id == sae_id, its.c.feature_index == labels.c.feature_index)
    return sa.select(labels.c.feature_index).distinct().where(labels.c.sae_id == sae_id, ~made)


def _remove(connection: sa.Connection, sae_id: int, feature_indexes: Collection[int]) -> None:
    own = (label_vectors.c.sae_id == sae_id, label_vectors.c.feature_index.in_(feature_indexes))
    connection.execute(sa.delete(label_vectors).where(*own))


def _of(table: sa.Table, sae_id: int) -> sa.Select[Any]:
    return sa.select(table).where(table.c.sae_id == sae_id)


def _model(row: sa.RowMapping) -> EmbeddingModel:
    return EmbeddingModel(model_name=row["model_name"], revision=row["revision"], width=row["width"])


def _chunked(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[start : start + _IN_CHUNK] for start in range(0, len(items), _IN_CHUNK)]
