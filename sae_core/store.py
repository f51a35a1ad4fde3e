"""The one way to the database: records in, records out. Between the index, which fills it, and the pages that read it.

A `Store` is used from many threads and processes at once. Every method is one transaction, so what it returns belongs
together and what it writes is there as a whole or not at all. Wherever `corpus` is asked for it is a corpus's name;
None stands for the newest index.
"""

import copy
import gc
import random
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa

from sae_core.access_records import VISIBILITIES, Viewer, Visibility
from sae_core.causal.records import SavedSteering, SteeringSummary
from sae_core.errors import ConfigError, NotFoundError
from sae_core.explain.records import EmbeddingModel, LabelScore, LabelVectors, PackedSample, ReplacedLabel, ScoreRow
from sae_core.records import (
    Example,
    Feature,
    FeatureDetail,
    FeatureList,
    FeatureMap,
    FeaturePage,
    FeaturePoint,
    FeatureRow,
    IndexInfo,
    IndexRecords,
    Label,
    LabelText,
    ListItem,
    ListSummary,
    Neighbours,
    SAEContents,
    SAEInfo,
    SAESummary,
    SharedProbe,
    Vocabulary,
)
from sae_core.schema import features, saes
from sae_core.store_access import Accounts
from sae_core.store_check import problems
from sae_core.store_engine import Database
from sae_core.store_labels import Merged, history_of, iter_labels, merge_labels, remove_label, upsert_labels
from sae_core.store_lists import (
    bare_items,
    insert_item,
    insert_items,
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
from sae_core.store_maps import label_texts_of, map_of, neighbours_of, upsert_map
from sae_core.store_meaning import insert_vectors, missing_texts, ranked, start_vectors, vectors_of
from sae_core.store_pages import Asked, Sort, cursor_after, feature_number, matching_numbers, page_rows
from sae_core.store_probes import insert_probe, newest_probes, probe_of, remove_probe
from sae_core.store_reads import (
    INDEXES,
    NEIGHBOURS_OF,
    SAES,
    VOCABULARY_OF,
    all_labels_of,
    context_text_of,
    examples_of,
    feature_records_of,
    feature_rows_of,
    index_row_of,
    index_rows_of,
    labels_as_text_of,
    labels_of,
    sae_row_of,
    unknown_feature,
)
from sae_core.store_rows import (
    index_record,
    sae_record,
    summary_record,
    vocabulary_record,
)
from sae_core.store_scores import sample_of, score_rows_of, scored_texts, scores_of, upsert_scores
from sae_core.store_steerings import insert_steering, newest_steerings, remove_steering, saved_steering
from sae_core.store_viewer import is_listed, visibilities
from sae_core.store_writes import contents_of, delete_sae, insert_index, upsert_sae

CACHED_VOCABULARIES = 4  # about 10 MB each
EXAMPLES_IN_LISTS = 2


class Store:
    """Open with `Store.open(url)`; close when done."""

    def __init__(self, database: Database, *, new_saes: Visibility = "public") -> None:
        self._database = database
        self._new_saes = new_saes
        self._vocabularies: OrderedDict[str, Vocabulary] = OrderedDict()  # by content, least recently used first
        self._vocabularies_lock = threading.Lock()

    @classmethod
    def open(cls, url: str, *, upgrades: bool = False, new_saes: Visibility = "public") -> Self:
        """Open the database; an empty one gets its tables. `url`: sqlite:////full/path.db or postgresql://user:pw@host/name.
        `new_saes`: the visibility of SAEs that are added under a new slug.

        Raises StoreError if it cannot be used, OlderDatabaseError if an older saescope wrote it and it is not to be
        upgraded, NewerDatabaseError if a later one did.
        """
        database = Database(url)
        try:
            database.migrate(upgrades=upgrades)
        except BaseException:
            database.close()
            raise
        return cls(database, new_saes=new_saes)

    def seen_by(self, viewer: Viewer) -> Self:
        """The same store as this viewer sees it: `store_viewer` says what is hidden, and notes what is written."""
        other = copy.copy(self)
        other._database = self._database.on_behalf_of(viewer)
        return other

    @contextmanager
    def at_one_moment(self) -> Iterator[Self]:
        """The same store, whose reads until the end of the block are of one moment and cost one transaction. It is not
        to leave its thread; what is written meanwhile, by itself too, is not seen."""
        with self._database.at_one_moment() as database:
            other = copy.copy(self)
            other._database = database
            yield other

    @property
    def accounts(self) -> Accounts:
        """Tokens, sessions, and the audit trail."""
        return Accounts(self._database)

    def close(self) -> None:
        self._database.close()

    def commits(self) -> int | None:
        """A number that is another one after every commit, by whatever process; None on PostgreSQL, which has none."""
        return self._database.commits()

    def is_current(self) -> bool:
        """Whether the database's tables are those of this version. Raises StoreError if it does not answer."""
        return self._database.is_current()

    def backup(self, path: Path) -> None:
        """The whole database in a new file, as it is at one moment. Raises ConfigError where it is not SQLite's."""
        self._database.backup(path)

    def check(self) -> list[str]:
        """What is wrong with what is stored, a sentence each: checksums, and what points at what."""
        with self._database.reading() as connection:
            return problems(connection)

    # Writes

    def add_sae(self, sae: SAEInfo, vocabulary: Vocabulary) -> None:
        """A new SAE under a known slug replaces the old one, its indexes and its labels; the same one keeps them."""
        with self._database.writing() as connection:
            upsert_sae(connection, sae, vocabulary, visibility=self._new_saes)

    def add_index(self, records: IndexRecords) -> int:
        """Store a finished index, in place of an older one of the same SAE and corpus name; returns its id."""
        with _without_collector(), self._database.writing() as connection:
            sae = sae_row_of(connection, records.info.slug)
            return insert_index(connection, records, sae_id=sae["sae_id"], vocabulary=self._vocabulary(connection, sae))

    def add_dashboard(
        self, sae: SAEInfo, vocabulary: Vocabulary, records: IndexRecords, labels: Iterable[tuple[int, Label]]
    ) -> Merged:
        """An SAE, its index and labels, all or nothing, in place of an older one of that slug, whose labels stay."""
        with _without_collector(), self._database.writing() as connection:
            known = connection.execute(SAES.where(saes.c.slug == sae.slug)).mappings().one_or_none()
            kept = [] if known is None else list(iter_labels(connection, known["sae_id"]))
            upsert_sae(connection, sae, vocabulary, visibility=self._new_saes)
            sae_id = sae_row_of(connection, sae.slug)["sae_id"]
            insert_index(connection, records, sae_id=sae_id, vocabulary=vocabulary)
            still = [(feature_index, label) for feature_index, label in kept if feature_index < sae.d_sae]
            merge_labels(connection, still, sae_id=sae_id, d_sae=sae.d_sae)
            return merge_labels(connection, labels, sae_id=sae_id, d_sae=sae.d_sae)

    def delete_sae(self, slug: str) -> None:
        """With its indexes, labels, scores and map. Items of lists, shared probes and steerings stay, and say so."""
        with self._database.writing() as connection:
            delete_sae(connection, sae_row_of(connection, slug))

    def sae_contents(self, slug: str) -> SAEContents:
        """What `delete_sae` would remove."""
        with self._database.reading() as connection:
            return contents_of(connection, sae_row_of(connection, slug))

    def set_visibility(self, slug: str, visibility: Visibility) -> None:
        """Who finds this SAE: everybody, those who have its address, or only those who see everything."""
        if visibility not in VISIBILITIES:
            raise ConfigError(f"The visibility {visibility!r} is unknown; give one of {', '.join(VISIBILITIES)}.")
        with self._database.writing() as connection:
            sae_id = sae_row_of(connection, slug)["sae_id"]
            connection.execute(sa.update(saes).where(saes.c.sae_id == sae_id).values(visibility=visibility))

    def add_labels(self, slug: str, labels: Mapping[int, Label]) -> None:
        """Replaces labels of the same kind. A person's label stays, and is the one shown, beside an automatic one."""
        with self._database.writing() as connection:
            sae = sae_row_of(connection, slug)
            upsert_labels(connection, labels, sae_id=sae["sae_id"], d_sae=sae["d_sae"])

    def merge_labels(self, slug: str, labels: Iterable[tuple[int, Label]]) -> Merged:
        """Puts labels beside those that are here, by the rules of `store_labels`; all of them or none."""
        with self._database.writing() as connection:
            sae = sae_row_of(connection, slug)
            return merge_labels(connection, labels, sae_id=sae["sae_id"], d_sae=sae["d_sae"])

    def all_labels(self, slug: str) -> list[tuple[int, Label]]:
        """Every label with its feature, by feature, a person's first."""
        with self._database.reading() as connection:
            return list(iter_labels(connection, sae_row_of(connection, slug)["sae_id"]))

    def delete_label(self, slug: str, feature_index: int) -> None:
        """Removes a person's label, so that the automatic one, if there is one, is shown again."""
        with self._database.writing() as connection:
            remove_label(connection, feature_index, sae_id=sae_row_of(connection, slug)["sae_id"])

    def add_scores(self, slug: str, scores: Sequence[LabelScore], *, corpus: str | None = None) -> None:
        """Scores of labels on the texts of an index, in place of older ones of the same labels and methods."""
        with self._database.writing() as connection:
            index = index_row_of(connection, slug, corpus=corpus)
            upsert_scores(connection, scores, index_id=index["index_id"])

    def start_label_vectors(self, slug: str, model: EmbeddingModel) -> None:
        """From now on the labels' vectors are of this model; those of another one, or of another revision, go."""
        with self._database.writing() as connection:
            start_vectors(connection, model, sae_id=sae_row_of(connection, slug)["sae_id"])

    def add_label_vectors(
        self, slug: str, model: EmbeddingModel, texts: Mapping[int, str], vectors: Sequence[bytes]
    ) -> int:
        """Vectors of labels by feature, in the same order; returns how many are still of what the feature is called."""
        with self._database.writing() as connection:
            return insert_vectors(connection, model, texts, vectors, sae_id=sae_row_of(connection, slug)["sae_id"])

    def add_map(self, slug: str, made: FeatureMap) -> None:
        """Replaces the SAE's map."""
        with self._database.writing() as connection:
            upsert_map(connection, made, sae=sae_row_of(connection, slug))

    # Lists: `store_lists` says what they promise

    def lists(self, *, limit: int | None = None) -> list[ListSummary]:
        """All lists, or so many, last changed first."""
        with self._database.reading() as connection:
            return list_summaries(connection, limit=limit)

    def lists_with(self, slug: str, feature_index: int) -> list[ListSummary]:
        """The lists that hold this feature, last changed first."""
        with self._database.reading() as connection:
            return list_summaries(connection, holding=(sae_row_of(connection, slug), feature_index))

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

    def add_steering(self, slug: str, *, query: str, report: Mapping[str, object], author: str = "") -> str:
        """Returns the new steering's id. `query`: what was asked, as the page's address has it; `report`: as JSON."""
        with self._database.writing() as connection:
            sae = sae_row_of(connection, slug)
            return insert_steering(connection, sae=sae, query=query, report=report, author=author)

    def steering(self, steering_id: str) -> SavedSteering:
        with self._database.reading() as connection:
            return saved_steering(connection, steering_id)

    def steerings(self, *, slug: str | None = None, limit: int = 50) -> list[SteeringSummary]:
        """The newest that were stored, of one SAE or of all."""
        with self._database.reading() as connection:
            return newest_steerings(connection, slug=slug, limit=limit)

    def delete_steering(self, steering_id: str) -> None:
        """Raises NotFoundError."""
        with self._database.writing() as connection:
            remove_steering(connection, steering_id)

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
            index = index_row_of(connection, slug, corpus=corpus)
            if not feature_rows_of(connection, index["index_id"], [feature_index]):
                raise unknown_feature(index, feature_index)
            label = labels_of(connection, index["sae_id"], [feature_index]).get(feature_index)
            return insert_item(
                connection,
                list_id,
                sae=sae_row_of(connection, slug),
                feature_index=feature_index,
                corpus=corpus,
                label=label.text if label else None,
                note=note,
                author=author,
            )

    def add_list_items(
        self,
        list_id: str,
        slug: str,
        feature_indexes: Sequence[int],
        *,
        corpus: str | None = None,
        note: str = "",
        author: str = "",
    ) -> int:
        """Puts features at the end of a list, in this order; returns how many were not in it already."""
        with self._database.writing() as connection:
            index = index_row_of(connection, slug, corpus=corpus)
            known = {row["feature_index"] for row in feature_rows_of(connection, index["index_id"], feature_indexes)}
            for feature_index in feature_indexes:
                if feature_index not in known:
                    raise unknown_feature(index, feature_index)
            found = labels_of(connection, index["sae_id"], feature_indexes)
            new = insert_items(
                connection,
                list_id,
                sae=sae_row_of(connection, slug),
                labels={number: found[number].text if number in found else None for number in feature_indexes},
                corpus=corpus,
                note=note,
                author=author,
            )
            return len(new)

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

    # Shared probes: `store_probes` says what they promise

    def probe(self, probe_id: str) -> SharedProbe:
        with self._database.reading() as connection:
            return probe_of(connection, probe_id)

    def probes(self, *, limit: int = 50) -> list[SharedProbe]:
        """The newest shared probes."""
        with self._database.reading() as connection:
            return newest_probes(connection, limit=limit)

    def add_probe(self, slug: str, *, text: str, state: Mapping[str, Any], author: str = "") -> str:
        """Returns the new shared probe's id."""
        with self._database.writing() as connection:
            return insert_probe(connection, sae=sae_row_of(connection, slug), text=text, state=state, author=author)

    def delete_probe(self, probe_id: str) -> None:
        with self._database.writing() as connection:
            remove_probe(connection, probe_id)

    # Reads

    def saes(self) -> list[SAESummary]:
        """All SAEs that the viewer may know of, newest first."""
        with self._database.reading() as connection:
            found = connection.execute(SAES.order_by(saes.c.created_at.desc(), saes.c.slug)).mappings()
            rows = [row for row in found if is_listed(connection, row["visibility"])]
            by_slug: dict[str, list[IndexInfo]] = {row["slug"]: [] for row in rows}
            for row in connection.execute(INDEXES).mappings():
                if row["slug"] in by_slug:
                    by_slug[row["slug"]].append(index_record(row))
            return [
                SAESummary(sae=sae_record(row), indexes=tuple(by_slug[row["slug"]]), visibility=row["visibility"])
                for row in rows
            ]

    def visibilities(self) -> dict[str, Visibility]:
        """Who finds each SAE, for what else bears its name; the deleted that not everybody found are there too."""
        with self._database.reading() as connection:
            return visibilities(connection)

    def sae(self, slug: str) -> SAESummary:
        with self._database.reading() as connection:
            row = sae_row_of(connection, slug)
            its_indexes = tuple(map(index_record, index_rows_of(connection, slug)))
            return SAESummary(sae=sae_record(row), indexes=its_indexes, visibility=row["visibility"])

    def index(self, slug: str, *, corpus: str | None = None) -> IndexInfo:
        with self._database.reading() as connection:
            return index_record(index_row_of(connection, slug, corpus=corpus))

    def vocabulary(self, slug: str) -> Vocabulary:
        with self._database.reading() as connection:
            return self._vocabulary(connection, sae_row_of(connection, slug))

    def feature(
        self, slug: str, feature_index: int, *, corpus: str | None = None, n_top: int | None = None
    ) -> FeatureDetail:
        """A feature with its examples, or with the first `n_top` of the top band only."""
        with self._database.reading() as connection:
            index = index_row_of(connection, slug, corpus=corpus)
            vocabulary = self._vocabulary(connection, index)
            rows = feature_rows_of(connection, index["index_id"], [feature_index])
            if not rows:
                raise unknown_feature(index, feature_index)
            its_examples = examples_of(connection, index, [feature_index], vocabulary=vocabulary, n_top=n_top)
            place = {"index_id": index["index_id"], "feature_index": feature_index}
            previous, following = connection.execute(NEIGHBOURS_OF, place).one()
            return FeatureDetail(
                feature=feature_records_of(connection, rows, index=index, vocabulary=vocabulary)[0],
                examples=tuple(its_examples.get(feature_index, ())),
                previous=previous,
                following=following,
                labels=all_labels_of(connection, index["sae_id"], feature_index),
            )

    def context_text(self, slug: str, context_id: int, *, corpus: str | None = None) -> str:
        """The text of a context that an example of this index points at."""
        with self._database.reading() as connection:
            index = index_row_of(connection, slug, corpus=corpus)
            return context_text_of(connection, index, context_id, vocabulary=self._vocabulary(connection, index))

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
        examples: bool = True,
    ) -> FeaturePage:
        """One page of the feature list. `alive` leaves out dead features; `after` is the `next` of the page before;
        `examples` gives the most telling ones of each.

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
            index = index_row_of(connection, slug, corpus=corpus)
            number = feature_number(q)
            rows: Sequence[sa.RowMapping] = (
                [] if number is None else feature_rows_of(connection, index["index_id"], [number])
            )
            if not rows:
                rows = page_rows(connection, asked, index_id=index["index_id"], sae_id=index["sae_id"])
            shown = rows[:limit]
            return FeaturePage(
                items=self._listed(connection, shown, index=index, n_top=EXAMPLES_IN_LISTS if examples else 0),
                next=cursor_after(shown[-1], sort=sort) if len(rows) > limit else None,
            )

    def label_vectors(self, slug: str) -> LabelVectors | None:
        """What is known of the labels' vectors; None where none were made."""
        with self._database.reading() as connection:
            return vectors_of(connection, sae_row_of(connection, slug)["sae_id"])

    def labels_without_vectors(self, slug: str, *, limit: int | None = None) -> dict[int, str]:
        """What features are called whose label has no vector, or has another one than its vector's."""
        with self._database.reading() as connection:
            return missing_texts(connection, sae_row_of(connection, slug)["sae_id"], limit=limit)

    def features_by_meaning(
        self,
        slug: str,
        query: bytes,
        *,
        corpus: str | None = None,
        min_density: float | None = None,
        max_density: float | None = None,
        min_confidence: float | None = None,
        alive: bool = True,
        limit: int = 50,
    ) -> tuple[tuple[FeatureRow, float], ...]:
        """The features whose labels are nearest to a vector (float16, as the labels'), with their cosines."""
        asked = Asked(
            sort="-density", q=None, within=None, min_density=min_density, max_density=max_density,
            min_confidence=min_confidence, alive=alive, after=None, limit=limit,
        )  # fmt: skip
        with self._database.reading() as connection:
            index = index_row_of(connection, slug, corpus=corpus)
            found = ranked(connection, query, asked, index_id=index["index_id"], sae_id=index["sae_id"])
            rows = feature_rows_of(connection, index["index_id"], [number for number, _ in found])
            by_number = {row.feature.feature_index: row for row in self._listed(connection, rows, index=index)}
            return tuple((by_number[number], cosine) for number, cosine in found)

    def feature_points(self, slug: str, *, corpus: str | None = None) -> list[FeaturePoint]:
        """All features, by feature index."""
        with self._database.reading() as connection:
            index = index_row_of(connection, slug, corpus=corpus)
            columns = (features.c[field.name] for field in fields(FeaturePoint))
            query = sa.select(*columns).where(features.c.index_id == index["index_id"])
            rows = connection.execute(query.order_by(features.c.feature_index))
            return [
                FeaturePoint(
                    feature_index=number, density=density, max_activation=highest, encoder_decoder_cosine=cosine
                )
                for number, density, highest, cosine in rows
            ]

    def neighbours(self, slug: str, *, corpus: str | None = None) -> Neighbours:
        """What a map is made from."""
        with self._database.reading() as connection:
            return neighbours_of(connection, index_row_of(connection, slug, corpus=corpus))

    def feature_map(self, slug: str) -> FeatureMap | None:
        """None where none was made yet."""
        with self._database.reading() as connection:
            return map_of(connection, sae_row_of(connection, slug)["sae_id"])

    def label_texts(self, slug: str) -> list[LabelText]:
        """What every feature is called that has a label, by feature index."""
        with self._database.reading() as connection:
            return label_texts_of(connection, sae_row_of(connection, slug))

    def matching_features(
        self, slug: str, q: str, *, corpus: str | None = None, within: str | None = None, limit: int
    ) -> list[int]:
        """The first of the features that `features` lists for this search, the dead included, densest first."""
        with self._database.reading() as connection:
            index = index_row_of(connection, slug, corpus=corpus)
            number = feature_number(q)
            if number is not None and feature_rows_of(connection, index["index_id"], [number]):
                return [number]
            return matching_numbers(connection, q, within, index_id=index["index_id"], limit=limit)

    def random_feature(self, slug: str, *, corpus: str | None = None) -> int:
        """Any alive feature, each as likely as the next. Reads only the index by density."""
        with self._database.reading() as connection:
            index = index_row_of(connection, slug, corpus=corpus)
            alive = (features.c.index_id == index["index_id"], features.c.density > 0)
            n_alive = connection.execute(sa.select(sa.func.count()).where(*alive)).scalar_one()
            if not n_alive:
                raise NotFoundError(f'No feature of the SAE "{slug}" is active on this corpus; index it on another.')
            query = sa.select(features.c.feature_index).where(*alive).order_by(features.c.density)
            return int(connection.execute(query.offset(random.randrange(n_alive)).limit(1)).scalar_one())

    def labels(self, slug: str, feature_indexes: Collection[int]) -> dict[int, Label]:
        """The labels of those of these features that have one."""
        with self._database.reading() as connection:
            return labels_of(connection, sae_row_of(connection, slug)["sae_id"], feature_indexes)

    def labels_as_text(self, slug: str, feature_indexes: Collection[int]) -> dict[int, str]:
        """What `labels` says, as texts alone: for hundreds of features at a time."""
        with self._database.reading() as connection:
            return labels_as_text_of(connection, sae_row_of(connection, slug)["sae_id"], feature_indexes)

    def labels_of_feature(self, slug: str, feature_index: int) -> tuple[Label, ...]:
        """All labels of a feature, the one that is shown first."""
        with self._database.reading() as connection:
            return all_labels_of(connection, sae_row_of(connection, slug)["sae_id"], feature_index)

    def label_history(self, slug: str, feature_index: int) -> tuple[ReplacedLabel, ...]:
        """What people's labels replaced, the last first."""
        with self._database.reading() as connection:
            return history_of(connection, sae_row_of(connection, slug)["sae_id"], feature_index)

    def scores(self, slug: str, feature_indexes: Collection[int], *, corpus: str | None = None) -> list[LabelScore]:
        """The scores of these features' labels, with every trial."""
        with self._database.reading() as connection:
            index = index_row_of(connection, slug, corpus=corpus)
            vocabulary = self._vocabulary(connection, index)
            return scores_of(connection, index, feature_indexes, vocabulary=vocabulary)

    def score_rows(self, slug: str, *, kind: str, method: str, corpus: str | None = None) -> list[ScoreRow]:
        """The scores of an index for one kind of label and one method, without their trials."""
        with self._database.reading() as connection:
            index_id = index_row_of(connection, slug, corpus=corpus)["index_id"]
            return score_rows_of(connection, index_id, kind=kind, method=method)

    def scored_texts(
        self, slug: str, *, corpus: str | None = None
    ) -> dict[tuple[int, str, str], tuple[str, str, str | None]]:
        """By feature, kind of label and method: the label as it was tested, who judged, what they were asked."""
        with self._database.reading() as connection:
            return scored_texts(connection, index_row_of(connection, slug, corpus=corpus)["index_id"])

    def sample(
        self, slug: str, *, corpus: str | None = None
    ) -> tuple[PackedSample, Mapping[int, tuple[int, ...]]] | None:
        """The contexts on which all activations are known, and their token ids; None in an older index."""
        with self._database.reading() as connection:
            return sample_of(connection, index_row_of(connection, slug, corpus=corpus))

    def feature_stats(
        self, slug: str, feature_indexes: Collection[int], *, corpus: str | None = None
    ) -> dict[int, Feature]:
        """These features without their examples; those that the index does not know are left out."""
        with self._database.reading() as connection:
            index = index_row_of(connection, slug, corpus=corpus)
            rows = feature_rows_of(connection, index["index_id"], feature_indexes)
            vocabulary = self._vocabulary(connection, index)
            found = feature_records_of(connection, rows, index=index, vocabulary=vocabulary)
            return {feature.feature_index: feature for feature in found}

    def feature_rows(
        self, slug: str, feature_indexes: Collection[int], *, corpus: str | None = None
    ) -> dict[int, FeatureRow]:
        """These features as lists show them, with their most telling examples; unknown ones are left out."""
        with self._database.reading() as connection:
            index = index_row_of(connection, slug, corpus=corpus)
            rows = feature_rows_of(connection, index["index_id"], feature_indexes)
            return {row.feature.feature_index: row for row in self._listed(connection, rows, index=index)}

    def listed_examples(
        self, slug: str, feature_indexes: Collection[int], *, corpus: str | None = None
    ) -> dict[int, list[Example]]:
        """The most telling examples of these features, as lists show them."""
        with self._database.reading() as connection:
            index = index_row_of(connection, slug, corpus=corpus)
            vocabulary = self._vocabulary(connection, index)
            return examples_of(connection, index, feature_indexes, vocabulary=vocabulary, n_top=EXAMPLES_IN_LISTS)

    def _listed(
        self,
        connection: sa.Connection,
        rows: Sequence[sa.RowMapping],
        *,
        index: sa.RowMapping,
        n_top: int = EXAMPLES_IN_LISTS,
    ) -> tuple[FeatureRow, ...]:
        vocabulary = self._vocabulary(connection, index)
        numbers = [row["feature_index"] for row in rows]
        top = examples_of(connection, index, numbers, vocabulary=vocabulary, n_top=n_top) if n_top else {}
        shown = labels_of(connection, index["sae_id"], numbers)
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
                index = index_row_of(connection, slug, corpus=corpus)
            except NotFoundError as error:
                shown.update((item.item_id, replace(item, problem=str(error))) for item in own)
                continue
            rows = feature_rows_of(connection, index["index_id"], {item.feature_index for item in own})
            vocabulary = self._vocabulary(connection, index)
            known = feature_records_of(connection, rows, index=index, vocabulary=vocabulary)
            found = {feature.feature_index: feature for feature in known}
            top = examples_of(connection, index, found, vocabulary=vocabulary, n_top=EXAMPLES_IN_LISTS)
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
        """Of the model that a row of `SAES` or `INDEXES` names."""
        key = row["vocabulary_sha256"]
        with self._vocabularies_lock:
            if key in self._vocabularies:
                self._vocabularies.move_to_end(key)
                return self._vocabularies[key]
        found = connection.execute(VOCABULARY_OF, {"model_id": row["model_id"]})
        vocabulary = vocabulary_record(found.mappings().one())
        with self._vocabularies_lock:
            self._vocabularies[key] = vocabulary
            while len(self._vocabularies) > CACHED_VOCABULARIES:
                self._vocabularies.popitem(last=False)
        return vocabulary


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
