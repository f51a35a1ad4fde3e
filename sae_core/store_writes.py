"""The store's writes, each a function of an open connection inside `Database.writing`, so nobody else writes meanwhile.

`insert_index` takes a finished index in the order of its records:

1. the corpus (an older row of the same name and fingerprint is shared), and away with the index this one replaces;
2. contexts, but for those another SAE's index has already stored;
3. features and their labels, but where somebody else has labelled them;
4. examples, and of each feature the terms that a search looks in (`store_search`).

Readers see the old state until the transaction commits.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import sqlalchemy as sa

from sae_core import store_meaning, store_search
from sae_core.access_records import Visibility
from sae_core.digests import Digest
from sae_core.labels import AUTHOR, KIND
from sae_core.records import (
    Context,
    CorpusInfo,
    IndexRecords,
    ModelInfo,
    PackedExamples,
    PackedFeature,
    SAEContents,
    SAEInfo,
    Vocabulary,
)
from sae_core.schema import (
    contexts,
    corpora,
    deleted_saes,
    examples,
    features,
    indexes,
    labels,
    list_items,
    models,
    probes,
    saes,
    steerings,
)
from sae_core.store_bulk import insert_rows
from sae_core.store_check import contexts_sha256, weights_digest
from sae_core.store_rows import (
    context_row,
    corpus_row,
    examples_row,
    feature_row,
    index_row,
    label_row,
    model_row,
    sae_row,
    tokens_fired_on,
    unpacked_pairs,
    unpacked_token_ids,
)
from sae_core.store_scores import insert_sample
from sae_core.store_search import Texts

CHUNK_ROWS = 5000


def upsert_sae(
    connection: sa.Connection, sae: SAEInfo, vocabulary: Vocabulary, *, visibility: Visibility = "public"
) -> None:
    """The same SAE again keeps its indexes and labels, also from another folder; a new one of that slug does not, but
    whoever did not see the old one does not see it either. `visibility`: of one whose slug is new."""
    row = sae_row(sae) | {
        "model_id": _upserted_model(connection, sae.model, vocabulary),
        "weights_sha256": weights_digest(sae.weights_path),
    }
    old = connection.execute(sa.select(saes).where(saes.c.slug == sae.slug)).mappings().one_or_none()
    row["visibility"] = _taken_over(connection, sae.slug) or visibility if old is None else old["visibility"]
    if old is not None:
        here = {name: row[name] for name in ("weights_path", "weights_sha256")} | {"sae_id": old["sae_id"]}
        if dict(old) | here == row | here:
            connection.execute(sa.update(saes).where(saes.c.sae_id == old["sae_id"]).values(row))
            return
        remove_sae(connection, old["sae_id"], keep_model=row["model_id"])
    connection.execute(sa.insert(saes).values(row))


def remove_sae(connection: sa.Connection, sae_id: int, *, keep_model: int | None = None) -> None:
    store_search.remove(
        connection, connection.scalars(sa.select(indexes.c.index_id).where(indexes.c.sae_id == sae_id)).all()
    )
    connection.execute(sa.delete(saes).where(saes.c.sae_id == sae_id))
    _remove_orphaned_corpora(connection)
    used = sa.select(saes.c.model_id)
    connection.execute(sa.delete(models).where(models.c.model_id.not_in(used), models.c.model_id != (keep_model or 0)))


def contents_of(connection: sa.Connection, sae: sa.RowMapping) -> SAEContents:
    """What the database has of an SAE, and of others that names it. `sae`: a row of `saes`."""
    sae_id, slug = sae["sae_id"], sae["slug"]

    def n(table: sa.Table, *where: sa.ColumnElement[bool]) -> int:
        return connection.execute(sa.select(sa.func.count()).select_from(table).where(*where)).scalar_one()

    its_names = (table.c.slug == slug for table in (list_items, probes, steerings))
    n_list_items, n_probes, n_steerings = map(n, (list_items, probes, steerings), its_names)
    return SAEContents(
        n_indexes=n(indexes, indexes.c.sae_id == sae_id),
        n_labels=n(labels, labels.c.sae_id == sae_id),
        n_human_labels=n(labels, labels.c.sae_id == sae_id, labels.c.kind == "human"),
        n_list_items=n_list_items,
        n_probes=n_probes,
        n_steerings=n_steerings,
    )


def delete_sae(connection: sa.Connection, sae: sa.RowMapping) -> None:
    """What is left that bears its name is as hidden as it was. `sae`: a row of `saes`."""
    remove_sae(connection, sae["sae_id"])
    if sae["visibility"] != "public":
        connection.execute(sa.insert(deleted_saes).values(slug=sae["slug"], visibility=sae["visibility"]))


def _taken_over(connection: sa.Connection, slug: str) -> Visibility | None:
    """The visibility of the deleted SAE whose name a new one takes; None if everybody found it, or there was none."""
    its = deleted_saes.c.slug == slug
    visibility: Visibility | None = connection.scalar(sa.select(deleted_saes.c.visibility).where(its))
    connection.execute(sa.delete(deleted_saes).where(its))
    return visibility


def insert_index(connection: sa.Connection, records: IndexRecords, *, sae_id: int, vocabulary: Vocabulary) -> int:
    corpus = records.info.corpus
    corpus_id = _upserted_corpus(connection, corpus)
    _remove_indexes(connection, sae_id=sae_id, corpus_name=corpus.name)
    row = index_row(records.info, sae_id=sae_id, corpus_id=corpus_id)
    index_id = _inserted_id(connection, indexes, row)
    token_ids = _inserted_contexts(connection, records.contexts, corpus_id=corpus_id)
    with store_meaning.following(connection, sae_id):  # labels too are made anew
        texts = _inserted_features(
            connection, records.features, sae_id=sae_id, index_id=index_id, vocabulary=vocabulary
        )
    sums = _inserted_examples(connection, records.examples, texts, token_ids, sae_id=sae_id, index_id=index_id)
    connection.execute(sa.update(indexes).where(indexes.c.index_id == index_id).values(sums))
    if records.sample is not None:
        insert_sample(connection, records.sample, index_id=index_id)
    store_search.refresh_labels(connection, sae_id)  # also in its indexes of other corpora
    _remove_orphaned_corpora(connection)
    if connection.dialect.name == "postgresql":  # or it sorts whole lists until its own analysis, a minute later
        connection.exec_driver_sql("ANALYZE features, feature_texts, examples, contexts, labels")
    return index_id


def _upserted_model(connection: sa.Connection, model: ModelInfo, vocabulary: Vocabulary) -> int:
    row = model_row(model, vocabulary)
    same = (models.c.model_name == row["model_name"], models.c.revision == row["revision"])
    model_id = connection.execute(sa.select(models.c.model_id).where(*same)).scalar_one_or_none()
    if model_id is None:
        return _inserted_id(connection, models, row)
    connection.execute(sa.update(models).where(models.c.model_id == model_id).values(row))
    return int(model_id)


def _upserted_corpus(connection: sa.Connection, corpus: CorpusInfo) -> int:
    row = corpus_row(corpus)
    same = (corpora.c.name == row["name"], corpora.c.fingerprint == row["fingerprint"])
    corpus_id = connection.execute(sa.select(corpora.c.corpus_id).where(*same)).scalar_one_or_none()
    if corpus_id is None:
        return _inserted_id(connection, corpora, row)
    connection.execute(sa.update(corpora).where(corpora.c.corpus_id == corpus_id).values(row))
    return int(corpus_id)


def _remove_indexes(connection: sa.Connection, *, sae_id: int, corpus_name: str) -> None:
    named = sa.select(corpora.c.corpus_id).where(corpora.c.name == corpus_name)
    own = (indexes.c.sae_id == sae_id, indexes.c.corpus_id.in_(named))
    store_search.remove(connection, connection.scalars(sa.select(indexes.c.index_id).where(*own)).all())
    connection.execute(sa.delete(indexes).where(*own))


def _remove_orphaned_corpora(connection: sa.Connection) -> None:
    connection.execute(sa.delete(corpora).where(corpora.c.corpus_id.not_in(sa.select(indexes.c.corpus_id))))


def _inserted_contexts(connection: sa.Connection, new: Iterable[Context], *, corpus_id: int) -> dict[int, bytes]:
    """The packed token ids of every context, by its id: a few hundred bytes each, for the peaks of the examples."""
    stored = set(connection.scalars(sa.select(contexts.c.context_id).where(contexts.c.corpus_id == corpus_id)))
    token_ids: dict[int, bytes] = {}
    for chunk in _chunks(new):
        token_ids.update((context.context_id, context.token_ids) for context in chunk)
        rows = [context_row(context, corpus_id=corpus_id) for context in chunk if context.context_id not in stored]
        insert_rows(connection, contexts, rows)
    return token_ids


def _inserted_features(
    connection: sa.Connection, new: Iterable[PackedFeature], *, sae_id: int, index_id: int, vocabulary: Vocabulary
) -> Texts:
    """What a search looks in of each feature, so far."""
    own = (labels.c.sae_id == sae_id, labels.c.kind == KIND)
    connection.execute(sa.delete(labels).where(*own, labels.c.author == AUTHOR))
    taken = set(connection.scalars(sa.select(labels.c.feature_index).where(*own)))
    texts = Texts(vocabulary)
    for chunk in _chunks(new):
        insert_rows(connection, features, [feature_row(feature, index_id=index_id) for feature in chunk])
        labelled = [
            label_row(feature.feature_index, feature.label, sae_id=sae_id)
            for feature in chunk
            if feature.label is not None and feature.feature_index not in taken
        ]
        insert_rows(connection, labels, labelled)
        for feature in chunk:
            texts.add_feature(
                feature.feature_index,
                density=feature.density,
                promotes=[token_id for token_id, _ in unpacked_pairs(feature.promoted_tokens)],
                fires_on=tokens_fired_on(feature.sampled_tokens),
            )
    return texts


def _inserted_examples(
    connection: sa.Connection,
    new: Iterable[PackedExamples],
    texts: Texts,
    token_ids: Mapping[int, bytes],
    *,
    sae_id: int,
    index_id: int,
) -> dict[str, str]:
    """Also what a search looks in. Returns the checksums of examples and contexts."""
    digest, pointed_at = Digest(), set[int]()
    around: dict[int, str] = {}
    for chunk in _chunks(new):
        rows = [examples_row(own, index_id=index_id) for own in chunk]
        insert_rows(connection, examples, rows)
        for own, row in zip(chunk, rows, strict=True):
            digest.add(row["feature_index"], row["packed"])
            pointed_at.update(unpacked_token_ids(own.context_ids))
            around[own.feature_index] = texts.around_peaks(own, token_ids.__getitem__)
    store_search.add(
        connection,
        texts.rows(store_search.shown_labels(connection, sae_id), around, index_id=index_id),
        index_id=index_id,
    )
    written = ((number, token_ids[number]) for number in sorted(pointed_at))
    return {"examples_sha256": digest.hex, "contexts_sha256": contexts_sha256(written)}


def _inserted_id(connection: sa.Connection, table: sa.Table, row: Mapping[str, Any]) -> int:
    key = connection.execute(sa.insert(table).values(row)).inserted_primary_key
    assert key is not None
    return int(key[0])


def _chunks(items: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, CHUNK_ROWS)):
        yield chunk
