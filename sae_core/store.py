"""The one way to the database: records in, records out. Between the index, which fills it, and the pages that read it.

A `Store` is used from many threads and processes at once. Every method is one transaction, so what it returns belongs
together and what it writes is there as a whole or not at all. Wherever `corpus` is asked for it is a corpus's name;
None stands for the newest index.
"""

import gc
import random
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Self

import sqlalchemy as sa

from sae_core.errors import NotFoundError
from sae_core.records import (
    Example,
    Feature,
    FeatureDetail,
    FeatureList,
    FeaturePage,
    FeaturePoint,
    FeatureRow,
    IndexInfo,
    IndexRecords,
    Label,
    ListItem,
    ListSummary,
    SAEInfo,
    SAESummary,
    Vocabulary,
)
from sae_core.schema import contexts, corpora, examples, features, indexes, labels, models, saes
from sae_core.search_terms import clean_text
from sae_core.store_check import problems
from sae_core.store_engine import Database
from sae_core.store_lists import (
    bare_items,
    insert_item,
    insert_list,
    list_summaries,
    move_item,
    one_summary,
    order_items,
    remove_item,
    remove_list,
    update_list,
    update_note,
)
from sae_core.store_pages import LARGEST_INTEGER, Asked, Sort, cursor_after, feature_number, page_rows
from sae_core.store_rows import (
    PackedExample,
    example_record,
    feature_record,
    index_record,
    label_record,
    named_features,
    sae_record,
    summary_record,
    unpacked_examples,
    vocabulary_record,
)
from sae_core.store_writes import insert_index, remove_label, remove_sae, upsert_labels, upsert_sae

CACHED_VOCABULARIES = 4  # about 10 MB each
EXAMPLES_IN_LISTS = 2
IN_CHUNK = 1000  # parameters of one query; SQLite takes 32,766


class Store:
    """Open with `Store.open(url)`; close when done."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._vocabularies: OrderedDict[str, Vocabulary] = OrderedDict()  # by content, least recently used first
        self._vocabularies_lock = threading.Lock()

    @classmethod
    def open(cls, url: str, *, upgrades: bool = False) -> Self:
        """Open the database; an empty one gets its tables. `url`: sqlite:////full/path.db or postgresql://user:pw@host/name.

        Raises StoreError if it cannot be used, OlderDatabaseError if an older saescope wrote it and it is not to be
        upgraded, NewerDatabaseError if a later one did.
        """
        database = Database(url)
        try:
            database.migrate(upgrades=upgrades)
        except BaseException:
            database.close()
            raise
        return cls(database)

    def close(self) -> None:
        self._database.close()

    def ping(self) -> None:
        """Raises StoreError if the database does not answer."""
        with self._database.reading() as connection:
            connection.execute(sa.select(1))

    def check(self) -> list[str]:
        """What is wrong with what is stored, a sentence each: checksums, and what points at what."""
        with self._database.reading() as connection:
            return problems(connection)

    # Writes

    def add_sae(self, sae: SAEInfo, vocabulary: Vocabulary) -> None:
        """A new SAE under a known slug replaces the old one, its indexes and its labels; the same one keeps them."""
        with self._database.writing() as connection:
            upsert_sae(connection, sae, vocabulary)

    def add_index(self, records: IndexRecords) -> int:
        """Store a finished index, in place of an older one of the same SAE and corpus name; returns its id."""
        with _without_collector(), self._database.writing() as connection:
            sae = _sae_row(connection, records.info.slug)
            return insert_index(connection, records, sae_id=sae["sae_id"], vocabulary=self._vocabulary(connection, sae))

    def delete_sae(self, slug: str) -> None:
        with self._database.writing() as connection:
            remove_sae(connection, _sae_row(connection, slug)["sae_id"])

    def add_labels(self, slug: str, labels: Mapping[int, Label]) -> None:
        """Replaces labels of the same kind. A person's label stays, and is the one shown, beside an automatic one."""
        with self._database.writing() as connection:
            sae = _sae_row(connection, slug)
            upsert_labels(connection, labels, sae_id=sae["sae_id"], d_sae=sae["d_sae"])

    def delete_label(self, slug: str, feature_index: int) -> None:
        """Removes a person's label, so that the automatic one, if there is one, is shown again."""
        with self._database.writing() as connection:
            remove_label(connection, feature_index, sae_id=_sae_row(connection, slug)["sae_id"])

    # Lists: `store_lists` says what they promise

    def lists(self) -> list[ListSummary]:
        """All lists, last changed first."""
        with self._database.reading() as connection:
            return list_summaries(connection)

    def lists_with(self, slug: str, feature_index: int) -> list[ListSummary]:
        """The lists that hold this feature, last changed first."""
        with self._database.reading() as connection:
            return list_summaries(connection, holding=(_sae_row(connection, slug), feature_index))

    def feature_list(self, list_id: str) -> FeatureList:
        with self._database.reading() as connection:
            summary, items = one_summary(connection, list_id), bare_items(connection, list_id)
            return FeatureList(
                list_id=summary.list_id,
                title=summary.title,
                description=summary.description,
                author=summary.author,
                created_at=summary.created_at,
                updated_at=summary.updated_at,
                version=summary.version,
                items=self._shown(connection, items),
            )

    def add_list(self, *, title: str, description: str = "", author: str = "") -> str:
        """Returns the new list's id."""
        with self._database.writing() as connection:
            return insert_list(connection, title=title, description=description, author=author)

    def change_list(self, list_id: str, *, title: str, description: str, version: int | None = None) -> None:
        with self._database.writing() as connection:
            update_list(connection, list_id, title=title, description=description, version=version)

    def delete_list(self, list_id: str) -> None:
        with self._database.writing() as connection:
            remove_list(connection, list_id)

    def add_list_item(
        self,
        list_id: str,
        slug: str,
        feature_index: int,
        *,
        corpus: str | None = None,
        note: str = "",
        author: str = "",
    ) -> int:
        """Puts a feature that is indexed at the end of a list; returns the new item's id."""
        with self._database.writing() as connection:
            index = _index_row(connection, slug, corpus=corpus)
            if not _feature_rows(connection, index["index_id"], [feature_index]):
                raise _unknown_feature(index, feature_index)
            label = _labels(connection, index["sae_id"], [feature_index]).get(feature_index)
            return insert_item(
                connection,
                list_id,
                sae=_sae_row(connection, slug),
                feature_index=feature_index,
                corpus=corpus,
                label=label.text if label else None,
                note=note,
                author=author,
            )

    def change_list_note(
        self, list_id: str, item_id: int, *, note: str, author: str = "", version: int | None = None
    ) -> None:
        with self._database.writing() as connection:
            update_note(connection, list_id, item_id, note=note, author=author, version=version)

    def delete_list_item(self, list_id: str, item_id: int) -> None:
        with self._database.writing() as connection:
            remove_item(connection, list_id, item_id)

    def move_list_item(self, list_id: str, item_id: int, *, by: int) -> None:
        with self._database.writing() as connection:
            move_item(connection, list_id, item_id, by=by)

    def order_list(self, list_id: str, item_ids: Sequence[int], *, version: int) -> None:
        with self._database.writing() as connection:
            order_items(connection, list_id, item_ids, version=version)

    # Reads

    def saes(self) -> list[SAESummary]:
        """All SAEs, newest first."""
        with self._database.reading() as connection:
            rows = connection.execute(_SAES.order_by(saes.c.created_at.desc(), saes.c.slug)).mappings().all()
            by_slug: dict[str, list[IndexInfo]] = {row["slug"]: [] for row in rows}
            for row in connection.execute(_INDEXES).mappings():
                by_slug[row["slug"]].append(index_record(row))
            return [SAESummary(sae=sae_record(row), indexes=tuple(by_slug[row["slug"]])) for row in rows]

    def sae(self, slug: str) -> SAESummary:
        with self._database.reading() as connection:
            row = _sae_row(connection, slug)
            its_indexes = connection.execute(_INDEXES.where(saes.c.sae_id == row["sae_id"])).mappings()
            return SAESummary(sae=sae_record(row), indexes=tuple(index_record(index) for index in its_indexes))

    def index(self, slug: str, *, corpus: str | None = None) -> IndexInfo:
        with self._database.reading() as connection:
            return index_record(_index_row(connection, slug, corpus=corpus))

    def vocabulary(self, slug: str) -> Vocabulary:
        with self._database.reading() as connection:
            return self._vocabulary(connection, _sae_row(connection, slug))

    def feature(self, slug: str, feature_index: int, *, corpus: str | None = None) -> FeatureDetail:
        with self._database.reading() as connection:
            index = _index_row(connection, slug, corpus=corpus)
            vocabulary = self._vocabulary(connection, index)
            rows = _feature_rows(connection, index["index_id"], [feature_index])
            if not rows:
                raise _unknown_feature(index, feature_index)
            its_examples = _examples(connection, index, [feature_index], vocabulary=vocabulary)
            place = {"index_id": index["index_id"], "feature_index": feature_index}
            previous, following = connection.execute(_NEIGHBOURS_OF, place).one()
            return FeatureDetail(
                feature=_feature_records(connection, rows, index=index, vocabulary=vocabulary)[0],
                examples=tuple(its_examples.get(feature_index, ())),
                previous=previous,
                following=following,
                labels=_all_labels(connection, index["sae_id"], feature_index),
            )

    def features(
        self,
        slug: str,
        *,
        corpus: str | None = None,
        sort: Sort = "-density",
        q: str | None = None,
        within: str | None = None,
        min_density: float | None = None,
        max_density: float | None = None,
        min_confidence: float | None = None,
        alive: bool = True,
        after: str | None = None,
        limit: int = 50,
    ) -> FeaturePage:
        """One page of the feature list. `alive` leaves out dead features; `after` is the `next` of the page before.

        `q` is a feature's number, which finds that feature whatever the other filters, or words of which all must
        stand in its label, its promoted tokens, the tokens that it fires on or the text around the peaks of its top
        examples (`search_terms`): anywhere, or in the field `within`. `min_confidence` is that of its automatic label.
        """
        asked = Asked(
            sort=sort,
            q=q,
            within=within,
            min_density=min_density,
            max_density=max_density,
            min_confidence=min_confidence,
            alive=alive,
            after=after,
            limit=limit,
        )
        with self._database.reading() as connection:
            index = _index_row(connection, slug, corpus=corpus)
            number = feature_number(q)
            rows: Sequence[sa.RowMapping] = (
                [] if number is None else _feature_rows(connection, index["index_id"], [number])
            )
            if not rows:
                rows = page_rows(connection, asked, index_id=index["index_id"], sae_id=index["sae_id"])
            shown = rows[:limit]
            return FeaturePage(
                items=self._listed(connection, shown, index=index),
                next=cursor_after(shown[-1], sort=sort) if len(rows) > limit else None,
            )

    def feature_points(self, slug: str, *, corpus: str | None = None) -> list[FeaturePoint]:
        """All features, by feature index."""
        with self._database.reading() as connection:
            index = _index_row(connection, slug, corpus=corpus)
            query = sa.select(features.c.feature_index, features.c.density, features.c.max_activation)
            rows = connection.execute(
                query.where(features.c.index_id == index["index_id"]).order_by(features.c.feature_index)
            )
            return [FeaturePoint(feature_index=row[0], density=row[1], max_activation=row[2]) for row in rows]

    def random_feature(self, slug: str, *, corpus: str | None = None) -> int:
        """Any alive feature, each as likely as the next. Reads only the index by density."""
        with self._database.reading() as connection:
            index = _index_row(connection, slug, corpus=corpus)
            alive = (features.c.index_id == index["index_id"], features.c.density > 0)
            n_alive = connection.execute(sa.select(sa.func.count()).where(*alive)).scalar_one()
            if not n_alive:
                raise NotFoundError(f'No feature of the SAE "{slug}" is active on this corpus; index it on another.')
            query = sa.select(features.c.feature_index).where(*alive).order_by(features.c.density)
            return int(connection.execute(query.offset(random.randrange(n_alive)).limit(1)).scalar_one())

    def labels(self, slug: str, feature_indexes: Collection[int]) -> dict[int, Label]:
        """The labels of those of these features that have one."""
        with self._database.reading() as connection:
            return _labels(connection, _sae_row(connection, slug)["sae_id"], feature_indexes)

    def feature_stats(
        self, slug: str, feature_indexes: Collection[int], *, corpus: str | None = None
    ) -> dict[int, Feature]:
        """These features without their examples; those that the index does not know are left out."""
        with self._database.reading() as connection:
            index = _index_row(connection, slug, corpus=corpus)
            rows = _feature_rows(connection, index["index_id"], feature_indexes)
            vocabulary = self._vocabulary(connection, index)
            found = _feature_records(connection, rows, index=index, vocabulary=vocabulary)
            return {feature.feature_index: feature for feature in found}

    def feature_rows(
        self, slug: str, feature_indexes: Collection[int], *, corpus: str | None = None
    ) -> dict[int, FeatureRow]:
        """These features as lists show them, with their most telling examples; unknown ones are left out."""
        with self._database.reading() as connection:
            index = _index_row(connection, slug, corpus=corpus)
            rows = _feature_rows(connection, index["index_id"], feature_indexes)
            return {row.feature.feature_index: row for row in self._listed(connection, rows, index=index)}

    def _listed(
        self, connection: sa.Connection, rows: Sequence[sa.RowMapping], *, index: sa.RowMapping
    ) -> tuple[FeatureRow, ...]:
        vocabulary = self._vocabulary(connection, index)
        numbers = [row["feature_index"] for row in rows]
        top = _examples(connection, index, numbers, vocabulary=vocabulary, n_top=EXAMPLES_IN_LISTS)
        shown = _labels(connection, index["sae_id"], numbers)
        return tuple(
            FeatureRow(
                feature=summary_record(row, vocabulary=vocabulary, labels=shown),
                examples=tuple(top.get(row["feature_index"], ())),
            )
            for row in rows
        )

    def _shown(self, connection: sa.Connection, items: Sequence[ListItem]) -> tuple[ListItem, ...]:
        """The items of a list with what their places hold, a place at a time."""
        shown = {item.item_id: item for item in items}
        for slug, corpus in {(item.slug, item.corpus) for item in items if item.problem is None}:
            own = [item for item in items if (item.slug, item.corpus) == (slug, corpus) and item.problem is None]
            try:
                index = _index_row(connection, slug, corpus=corpus)
            except NotFoundError as error:
                shown.update((item.item_id, replace(item, problem=str(error))) for item in own)
                continue
            rows = _feature_rows(connection, index["index_id"], {item.feature_index for item in own})
            vocabulary = self._vocabulary(connection, index)
            known = _feature_records(connection, rows, index=index, vocabulary=vocabulary)
            found = {feature.feature_index: feature for feature in known}
            top = _examples(connection, index, found, vocabulary=vocabulary, n_top=EXAMPLES_IN_LISTS)
            measured_on = index_record(index).corpus
            for item in own:
                feature, its_examples = found.get(item.feature_index), tuple(top.get(item.feature_index, ()))
                shown[item.item_id] = (
                    replace(item, measured_on=measured_on, feature=feature, examples=its_examples)
                    if feature
                    else replace(item, problem=f'The index on "{measured_on.name}" does not have this feature.')
                )
        return tuple(shown.values())

    def _vocabulary(self, connection: sa.Connection, row: sa.RowMapping) -> Vocabulary:
        """Of the model that a row of `_SAES` or `_INDEXES` names."""
        key = row["vocabulary_sha256"]
        with self._vocabularies_lock:
            if key in self._vocabularies:
                self._vocabularies.move_to_end(key)
                return self._vocabularies[key]
        found = connection.execute(_VOCABULARY_OF, {"model_id": row["model_id"]})
        vocabulary = vocabulary_record(found.mappings().one())
        with self._vocabularies_lock:
            self._vocabularies[key] = vocabulary
            while len(self._vocabularies) > CACHED_VOCABULARIES:
                self._vocabularies.popitem(last=False)
        return vocabulary


_SAES = sa.select(
    saes,
    models.c.model_name,
    models.c.revision,
    models.c.architecture.label("model_architecture"),
    models.c.n_layers,
    models.c.d_model,
    models.c.vocabulary_sha256,
).join(models)

_INDEXES = (
    sa.select(
        indexes,
        *(column for column in corpora.c if column.name != "corpus_id"),
        saes.c.slug,
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
_SAE_OF = _SAES.where(saes.c.slug == sa.bindparam("slug"))
_INDEXES_OF = _INDEXES.where(saes.c.slug == sa.bindparam("slug"))
_VOCABULARY_OF = sa.select(models.c.vocabulary, models.c.special_ids).where(
    models.c.model_id == sa.bindparam("model_id")
)
_some: sa.BindParameter[list[int]] = sa.bindparam("some", expanding=True)
_FEATURES_OF = (
    sa.select(features)
    .where(features.c.index_id == sa.bindparam("index_id"), features.c.feature_index.in_(_some))
    .order_by(features.c.feature_index)
)
_LABELS_OF = (
    sa.select(labels)
    .where(labels.c.sae_id == sa.bindparam("sae_id"), labels.c.feature_index.in_(_some))
    .order_by(labels.c.kind)  # "automatic", then "human", which wins
)
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
_NEIGHBOURS_OF = sa.select(
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


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keeps Python's collector of cycles from looking at all records again and again while they are made: a third of
    the time. None of them is in a cycle."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _sae_row(connection: sa.Connection, slug: str) -> sa.RowMapping:
    row = connection.execute(_SAE_OF, {"slug": clean_text(slug)}).mappings().one_or_none()
    if row is None:
        raise NotFoundError(f'There is no SAE "{slug}"; check the spelling, or make one with `saescope train`.')
    return row


def _index_row(connection: sa.Connection, slug: str, *, corpus: str | None) -> sa.RowMapping:
    rows = connection.execute(_INDEXES_OF, {"slug": clean_text(slug)}).mappings().all()
    if not rows:
        _sae_row(connection, slug)
        raise NotFoundError(f'The SAE "{slug}" is not indexed yet; run `saescope index {slug} --corpus …`.')
    for row in rows:
        if corpus is None or row["name"] == corpus:
            return row
    known = ", ".join(f'"{row["name"]}"' for row in rows)
    raise NotFoundError(
        f'The SAE "{slug}" is indexed on {known}, not on "{corpus}"; run `saescope index {slug} --corpus …`.'
    )


def _unknown_feature(index: sa.RowMapping, feature_index: int) -> NotFoundError:
    last = index["d_sae"] - 1
    return NotFoundError(f'The SAE "{index["slug"]}" has no feature {feature_index}; its features are 0 to {last}.')


def _feature_rows(connection: sa.Connection, index_id: int, feature_indexes: Collection[int]) -> list[sa.RowMapping]:
    rows: list[sa.RowMapping] = []
    for some in _chunked(feature_indexes):
        rows.extend(connection.execute(_FEATURES_OF, {"index_id": index_id, "some": some}).mappings())
    return rows


def _feature_records(
    connection: sa.Connection, rows: Sequence[sa.RowMapping], *, index: sa.RowMapping, vocabulary: Vocabulary
) -> list[Feature]:
    """With their labels and those of the features that they name."""
    named = {row["feature_index"] for row in rows}.union(*(named_features(row) for row in rows))
    found = _labels(connection, index["sae_id"], named)
    return [feature_record(row, vocabulary=vocabulary, labels=found) for row in rows]


def _labels(connection: sa.Connection, sae_id: int, feature_indexes: Collection[int]) -> dict[int, Label]:
    found: dict[int, Label] = {}
    for some in _chunked(feature_indexes):
        for row in connection.execute(_LABELS_OF, {"sae_id": sae_id, "some": some}).mappings():
            found[row["feature_index"]] = label_record(row)
    return found


def _all_labels(connection: sa.Connection, sae_id: int, feature_index: int) -> tuple[Label, ...]:
    """Of one feature, the one that is shown first."""
    rows = connection.execute(_LABELS_OF, {"sae_id": sae_id, "some": [feature_index]}).mappings().all()
    return tuple(map(label_record, reversed(rows)))


def _examples(
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


def _chunked(feature_indexes: Collection[int]) -> Iterator[list[int]]:
    """The possible ones among them, in order, in lists that fit a query."""
    possible = sorted({number for number in feature_indexes if 0 <= number <= LARGEST_INTEGER})
    for start in range(0, len(possible), IN_CHUNK):
        yield possible[start : start + IN_CHUNK]
