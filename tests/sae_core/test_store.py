"""The store on both databases: what is written comes back, whole or not at all, and lists page in order."""

import math
import random
import re
import sqlite3
import struct
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import fields, replace
from datetime import timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from sae_core import store_engine, store_pages, store_rows, store_search, store_writes
from sae_core.access_records import Viewer
from sae_core.errors import DiskFullError, InputError, NewerDatabaseError, NotFoundError, OlderDatabaseError, StoreError
from sae_core.records import TOP_BAND, Feature, FeatureRow, IndexRecords, PackedFeature, Vocabulary
from sae_core.schema import (
    FEATURE_SEARCH,
    REVISION,
    contexts,
    corpora,
    examples,
    feature_texts,
    features,
    indexes,
    labels,
    metadata,
    models,
)
from sae_core.search_terms import FIELDS, terms
from sae_core.store import Store
from sae_core.tokens_text import display_strings
from tests.factories import (
    N_FEATURES,
    NOW,
    make_label,
    make_labels,
    make_model,
    make_records,
    make_sae,
    make_store,
    make_vocabulary,
    token_ids,
)
from tests.packed import packed, packed_feature, plain, plain_feature

REPOSITORY = Path(__file__).parents[2]
SORTS: list[store_pages.Sort] = [
    "density", "-density", "max", "-max", "mean", "-mean", "cosine", "-cosine", "index", "-index",
]  # fmt: skip
LABEL_SORTS: list[store_pages.Sort] = ["label", "-label", "confidence", "-confidence"]


def count(store: Store, table: sa.Table) -> int:
    with store._database.reading() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def walk(store: Store, *, limit: int = 37, **arguments: Any) -> list[FeatureRow]:
    found: list[FeatureRow] = []
    after = None
    while True:
        page = store.features("demo", after=after, limit=limit, **arguments)
        found.extend(page.items)
        assert len(page.items) == limit or page.next is None
        if page.next is None:
            return found
        after = page.next


def everything(store: Store) -> object:
    return store.saes(), walk(store, alive=False), [store.feature("demo", number) for number in range(20)]


# Opening


def is_no_search_index(_object: object, name: str, *_rest: object) -> bool:
    """What a database adds of its own to find texts."""
    return not name.startswith(FEATURE_SEARCH) and name not in (
        "terms",
        "feature_texts_terms",
        "feature_texts_by_label",
    )


@pytest.mark.filterwarnings("ignore:.*expression-based index")
def test_migrated_tables_are_the_schema(database_url: str, store: Store) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with store._database.reading() as connection:
        opts = {"compare_type": True, "include_object": is_no_search_index}
        context = MigrationContext.configure(connection, opts=opts)
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == REVISION


def test_migrated_sqlite_has_the_very_same_statements(tmp_path: Path) -> None:
    def statements(url: str) -> set[str]:
        with sa.create_engine(url).connect() as connection:
            rows = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")
            return {" ".join(row[0].split()) for row in rows if "alembic" not in row[0]}

    Store.open(f"sqlite:///{tmp_path}/migrated.db").close()
    metadata.create_all(sa.create_engine(f"sqlite:///{tmp_path}/created.db"))
    assert statements(f"sqlite:///{tmp_path}/migrated.db") == statements(f"sqlite:///{tmp_path}/created.db")


def test_opening_again_keeps_what_is_there(database_url: str) -> None:
    make_store(database_url).close()
    store = Store.open(database_url)
    assert [summary.sae.slug for summary in store.saes()] == ["unindexed", "demo"]
    assert store.is_current()
    store.close()


def test_opening_a_current_database_loads_neither_alembic_nor_torch_nor_numpy(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/saescope.db"
    Store.open(url).close()
    code = (
        "import sys; from sae_core.store import Store; Store.open(sys.argv[1]).is_current();"
        "print([name for name in ('alembic', 'torch', 'transformers', 'numpy', 'app') if name in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, url], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "[]"


def test_processes_opening_a_fresh_database_at_once(database_url: str) -> None:
    code = "import sys; from sae_core.store import Store; Store.open(sys.argv[1]).is_current()"
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", code, database_url]
    running = [subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[1] for process in running] == ["", "", ""]
    assert [process.returncode for process in running] == [0, 0, 0]
    store = Store.open(database_url)
    assert store.saes() == []
    store.close()


def test_an_index_from_before_revision_0002_is_kept_with_what_it_did_not_measure(database_url: str) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(REPOSITORY / "sae_core" / "migrations"))
    old = store_engine.Database(database_url)
    with old.writing() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    then = sa.MetaData()
    with old.reading() as connection:
        then.reflect(connection)
    info = make_records().info
    with old.writing() as connection:
        model_row = {
            "model_id": 1,
            "model_name": "m",
            "revision": "r",
            "architecture": "A",
            "n_layers": 2,
            "d_model": 4,
        }
        packed = {"vocabulary": b"", "special_ids": b"", "vocabulary_sha256": ""}
        connection.execute(sa.insert(then.tables["models"]).values(**model_row, **packed))
        sae_row = store_rows.sae_row(make_sae()) | {"sae_id": 1, "model_id": 1, "created_at": NOW}
        connection.execute(sa.insert(then.tables["saes"]).values(sae_row))
        corpus_row = store_rows.corpus_row(info.corpus) | {"corpus_id": 1}
        connection.execute(sa.insert(then.tables["corpora"]).values(corpus_row))
        row = store_rows.index_row(info, sae_id=1, corpus_id=1)
        known = {name: value for name, value in row.items() if name in then.tables["indexes"].c}
        assert "kl" not in known and "ce_recovered" in known
        connection.execute(sa.insert(then.tables["indexes"]).values(known))
    old.close()

    with pytest.raises(OlderDatabaseError, match="run `saescope db upgrade`"):
        Store.open(database_url)
    store = Store.open(database_url, upgrades=True)
    metrics = store.index("demo").metrics
    kept = ("l0", "fvu", "explained_variance", "ce_recovered", "dead_share", "dense_share", "dense_threshold")
    for field in fields(metrics):
        expected = getattr(info.metrics, field.name) if field.name in kept else None
        assert getattr(metrics, field.name) == expected, field.name
    with store._database.reading() as connection:
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one() == REVISION
    store.close()


def test_an_index_from_before_revision_0003_keeps_its_histograms_and_examples(database_url: str) -> None:
    """Bins that were equally wide, of which two edges were stored, and a row per example."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(REPOSITORY / "sae_core" / "migrations"))
    old = store_engine.Database(database_url)
    with old.writing() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
    then = sa.MetaData()
    with old.reading() as connection:
        then.reflect(connection)
    records = make_records(n_features=6)
    low_high = struct.pack("<2d", 0.0, 8.0)
    with old.writing() as connection:

        def insert(table: str, row: dict[str, Any]) -> None:
            known = {name: value for name, value in row.items() if name in then.tables[table].c}
            connection.execute(sa.insert(then.tables[table]).values(known))

        insert("models", store_rows.model_row(make_model(), make_vocabulary()) | {"model_id": 1})
        insert("saes", store_rows.sae_row(make_sae()) | {"sae_id": 1, "model_id": 1, "created_at": NOW})
        insert("corpora", store_rows.corpus_row(records.info.corpus) | {"corpus_id": 1})
        row = store_rows.index_row(records.info, sae_id=1, corpus_id=1) | {"index_id": 1}
        insert(
            "indexes", row | {"encoder_decoder_histogram": struct.pack("<2d", -1, 1) + struct.pack("<4I", 1, 2, 3, 4)}
        )
        for context in records.contexts:
            insert("contexts", store_rows.context_row(context, corpus_id=1) | {"token_ids": context.token_ids})
        for feature in (plain_feature(feature, make_vocabulary()) for feature in records.features):
            counts = struct.pack("<40I", *range(40)) if feature.n_active else b""
            histogram = {"histogram": low_high + counts if feature.n_active else b""}
            insert("features", store_rows.feature_row(packed_feature(feature), index_id=1) | histogram)
        for example in plain(records.examples):
            packed_columns = {
                "packed_positions": struct.pack(f"<{len(example.positions)}H", *example.positions),
                "packed_values": struct.pack(f"<{len(example.values)}e", *example.values),
            }
            insert("examples", example._asdict() | packed_columns | {"index_id": 1})
        row = store_rows.label_row(4, make_label("harpoons"), sae_id=1)
        insert("labels", row | {"search_text": "harpoons", "created_at": NOW})
        insert("feature_texts", {"index_id": 1, "feature_index": 2, "search_text": "mast\n中文"})
    old.close()

    store = Store.open(database_url, upgrades=True)
    histogram = store.index("demo").metrics.encoder_decoder_histogram
    assert histogram is not None
    assert (histogram.edges, histogram.counts) == ((-1, -0.5, 0, 0.5, 1), (1, 2, 3, 4))
    written = plain(records.examples)
    for feature in (plain_feature(feature, make_vocabulary()) for feature in records.features):
        detail = store.feature("demo", feature.feature_index)
        shown = detail.feature
        if feature.n_active:
            assert shown.histogram.counts == tuple(range(40))
            assert shown.histogram.edges == pytest.approx([i / 5 for i in range(41)])
            assert shown.band_edges == pytest.approx([feature.max_activation * i / 5 for i in range(6)])
        assert (shown.mean_square, shown.tokens_on, shown.coactive, shown.n_sampled) == (None, (), (), 0)
        own = [e for e in written if e.feature_index == feature.feature_index]
        assert [(e.band, e.rank, e.context_id, e.position, e.activation) for e in detail.examples] == [
            (e.band, e.rank, e.context_id, e.position, e.activation) for e in own
        ]
        for mine, theirs in zip(detail.examples, own, strict=True):
            active = {p: v for p, v in enumerate(mine.activations) if v}
            assert active == dict(zip(theirs.positions, theirs.values, strict=True))
            assert mine.copies == 0
    found = {q: [row.feature.feature_index for row in walk(store, q=q)] for q in ("harpoon", "mast", "文", '"mast 中"')}
    assert found == {"harpoon": [4], "mast": [2], "文": found["文"], '"mast 中"': []} and 2 in found["文"]
    of_features = (plain_feature(feature, make_vocabulary()) for feature in records.features)
    promoted = [f.feature_index for f in of_features if any(is_found("wife", [t.token]) for t in f.promoted_tokens)]
    assert sorted(row.feature.feature_index for row in walk(store, q="wife", within="promotes")) == promoted != []
    assert search_problems(store) == []
    store.delete_sae("demo")
    assert count(store, examples) == count(store, feature_texts) == 0
    store.close()


def test_newer_database(database_url: str) -> None:
    Store.open(database_url).close()
    engine = sa.create_engine(database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    with pytest.raises(NewerDatabaseError, match=r"later version of saescope \(9999\); upgrade"):
        Store.open(database_url)


@pytest.mark.parametrize(
    "url",
    [
        "saescope.db",
        "",
        "mysql://ana:s3cret@host/db",
        "postgresql://ana:s3cret@host:port/db",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite://relative.db",
        "sqlite:////no/such/folder/saescope.db",
        "postgresql://ana:s3cret@127.0.0.1:1/db",
        "postgres://ana:s3cret@127.0.0.1:1/db",
        "postgresql://ana@127.0.0.1:1/db?password=s3cret",
        "postgresql://ana@127.0.0.1:1/db?no_such_option=s3cret",
    ],
)
def test_bad_urls_say_what_to_do_and_no_secret(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        Store.open(url)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    assert any(verb in str(caught.value) for verb in ("write", "name", "check", "create"))


@pytest.mark.parametrize("content", [b"Once upon a time there was a text, not a database. " * 99, b"\0" * 5000])
def test_a_file_that_is_no_database(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "novel.db").write_bytes(content)
    with pytest.raises(StoreError, match="not an SQLite database; name another file"):
        Store.open(f"sqlite:///{tmp_path}/novel.db")
    assert (tmp_path / "novel.db").read_bytes() == content


def test_another_process_writes_for_too_long(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_engine, "LOCK_SECONDS", 0.2)
    one, other = Store.open(database_url), Store.open(database_url)
    one.add_sae(make_sae(), make_vocabulary())
    with one._database.writing(), pytest.raises(StoreError, match="in use by another process; try again"):
        other.add_labels("demo", make_labels())
    other.add_labels("demo", make_labels())
    one.close(), other.close()


def test_a_server_gone_away_is_a_store_error(database_url: str) -> None:
    store = Store.open(database_url)
    store._database._engine.dispose()
    store._database._engine = sa.create_engine("postgresql+psycopg://ana:s3cret@127.0.0.1:1/db")
    with pytest.raises(StoreError, match="check"):
        store.is_current()


# SAEs


def test_sae_round_trip(store: Store) -> None:
    sae = make_sae(k=None, created_at=NOW.astimezone(timezone(timedelta(hours=5, minutes=30))))
    store.add_sae(sae, make_vocabulary())
    summary = store.sae("demo")
    assert summary.sae == sae and summary.indexes == ()
    assert summary.sae.created_at.tzinfo is not None and summary.sae.created_at.utcoffset() == timedelta(0)
    assert store.saes() == [summary]
    assert store.vocabulary("demo") == make_vocabulary()


def test_the_same_sae_again_keeps_its_index_and_labels(store: Store) -> None:
    store.add_sae(make_sae(config={"sizes": (1, 2), "path": Path("a")}), make_vocabulary())
    store.add_index(make_records(n_features=20))
    store.add_labels("demo", make_labels())
    store.add_sae(make_sae(config={"sizes": (1, 2), "path": Path("a")}, weights_path="/moved"), make_vocabulary())
    assert store.sae("demo").sae.weights_path == "/moved"
    assert len(store.sae("demo").indexes) == 1
    assert store.labels("demo", [0]).keys() == {0}


def test_a_retrained_sae_replaces_the_old_one_and_all_that_was_its(store: Store) -> None:
    store.add_sae(make_sae(), make_vocabulary())
    store.add_sae(make_sae("other"), make_vocabulary())
    for slug in ("demo", "other"):
        store.add_index(make_records(slug, n_features=20))
        store.add_labels(slug, make_labels())
    later = make_sae(created_at=NOW + timedelta(days=1), model=make_model(revision="r2"))
    store.add_sae(later, make_vocabulary())
    assert store.sae("demo").sae == later and store.sae("demo").indexes == ()
    assert store.labels("demo", range(20)) == {}
    assert len(store.sae("other").indexes) == 1 and len(store.labels("other", range(20))) == 3
    assert count(store, features) == 20 and count(store, feature_texts) == 20
    assert count(store, models) == 2
    store.delete_sae("other")
    for table in (indexes, features, feature_texts, examples, labels, corpora, contexts):
        assert count(store, table) == 0, table.name
    assert count(store, models) == 1
    with pytest.raises(NotFoundError, match='no SAE "other"'):
        store.delete_sae("other")


def test_a_changed_vocabulary_is_not_hidden_by_the_cache(store: Store) -> None:
    store.add_sae(make_sae(), make_vocabulary())
    assert store.vocabulary("demo") == make_vocabulary()
    other = Vocabulary(tokens=(b"", b"\0\xff", b"x" * 70_000), special_ids=frozenset())
    second = Store.open(store._database.url.render_as_string(hide_password=False))
    second.add_sae(make_sae(), other)
    second.close()
    assert store.vocabulary("demo") == other


# Indexes


def test_index_round_trip(store: Store) -> None:
    store.add_sae(make_sae(), make_vocabulary())
    records = make_records(n_features=40)
    index_id = store.add_index(records)
    assert store.index("demo") == replace(records.info, index_id=index_id)
    assert store.index("demo", corpus="stories") == store.index("demo")
    assert store.sae("demo").indexes == (store.index("demo"),)
    by_id = {context.context_id: context for context in records.contexts}
    vocabulary = make_vocabulary()
    for feature in (plain_feature(feature, vocabulary) for feature in records.features):
        detail = store.feature("demo", feature.feature_index)
        assert_same_feature(detail.feature, feature)
        written = [example for example in plain(records.examples) if example.feature_index == feature.feature_index]
        assert [(e.band, e.rank) for e in detail.examples] == sorted((e.band, e.rank) for e in written)
        for example, expected_example in zip(detail.examples, written, strict=True):
            context = by_id[expected_example.context_id]
            ids = struct.unpack(f"<{len(context.token_ids) // 4}I", context.token_ids)
            assert example.token_ids == ids and example.source == context.source
            for name in ("position", "activation", "copies"):
                assert getattr(example, name) == getattr(expected_example, name)
            data = b"".join(vocabulary.tokens[number] for number in ids)
            assert "".join(example.tokens).replace("\ufffd", "") == data.decode("utf-8", errors="ignore")
            assert len(example.tokens) == len(example.activations) == len(ids)
            expected = [0.0] * len(ids)
            for position, value in zip(expected_example.positions, expected_example.values, strict=True):
                expected[position] = value
            assert list(example.activations) == expected


def assert_same_feature(found: Feature, written: Feature) -> None:
    assert found.histogram.counts == written.histogram.counts
    assert found.histogram.edges == pytest.approx(written.histogram.edges)
    assert found == replace(written, histogram=found.histogram)


def test_not_a_number_is_kept(store: Store) -> None:
    records = make_records(n_features=2)
    odd = [replace(feature, encoder_decoder_cosine=math.nan) for feature in records.features]
    unknown = dict.fromkeys(("cosine", "kl", "ce_loss", "ce_tokens", "encoder_decoder_histogram"))
    metrics = replace(records.info.metrics, fvu=math.nan, ce_recovered=None, ce_loss_with_sae=math.nan, **unknown)
    store.add_sae(make_sae(), make_vocabulary())
    store.add_index(replace(records, features=odd, info=replace(records.info, metrics=metrics)))
    assert math.isnan(store.feature("demo", 0).feature.encoder_decoder_cosine)
    found = store.index("demo").metrics
    assert math.isnan(found.fvu) and math.isnan(found.explained_variance)
    assert found.ce_recovered is None and found.ce_loss_with_sae is None
    assert [getattr(found, name) for name in unknown] == [None] * len(unknown)


def test_text_that_databases_choke_on(store: Store) -> None:
    records = make_records(n_features=2)
    sources = ["a\0b", "\udcff.txt", "中 '\"; DROP TABLE saes --"]
    odd = [replace(context, source=source) for context, source in zip(records.contexts, sources, strict=False)]
    example = plain(records.examples)[0]
    some = packed(example._replace(context_id=number) for number in range(3))
    nul = token_ids("\0")[0]
    promoted = struct.pack("<IfIf", nul, 1.0, 99_999, 0.5)
    first = replace(next(iter(records.features)), promoted_tokens=promoted)
    store.add_sae(make_sae(), make_vocabulary())
    store.add_index(replace(records, contexts=odd, features=[first], examples=some))
    detail = store.feature("demo", 0)
    assert [e.source for e in detail.examples] == ["a\ufffdb", "?.txt", "中 '\"; DROP TABLE saes --"]
    assert {token.token for token in detail.feature.promoted_tokens} == {"\0", "[99999]"}
    store.add_labels("demo", {0: make_label("nul \0 and \ud800")})
    assert store.labels("demo", [0])[0].text == "nul \ufffd and ?"
    assert len(store.features("demo", q="\0").items) == 1
    with pytest.raises(NotFoundError):
        store.sae("demo\0")
    for number in (-1, 2**31, 2**63, 10**30):
        with pytest.raises(NotFoundError, match=f"no feature {number};"):
            store.feature("demo", number)
        assert store.feature_stats("demo", [number]) == {}


def test_a_feature_that_begins_or_ends_a_context_with_half_a_character(store: Store) -> None:
    ids = token_ids("中😀 wife")
    assert len(ids) == 5  # two, two and one
    records = make_records(n_features=1)
    context = replace(next(iter(records.contexts)), token_ids=struct.pack("<5I", *ids[1:], ids[0]))
    example = plain(records.examples)[0]._replace(context_id=0, position=2, positions=(2,), values=(3.0,))
    store.add_sae(make_sae(), make_vocabulary())
    store.add_index(replace(records, contexts=[context], examples=packed([example])))
    (shown,) = store.feature("demo", 0).examples
    assert shown.tokens == ("\ufffd", "😀", "", " wife", "\ufffd")
    assert shown.activations == (0.0, 0.0, 3.0, 0.0, 0.0)
    assert len(store.features("demo", q="😀").items) == 1  # although the peak is the emoji's second token


def test_a_check_finds_what_was_changed(store: Store, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    weights = tmp_path / "weights" / "sae.safetensors"
    weights.write_bytes(b"weights")
    store.add_sae(make_sae(weights_path=str(weights.parent), d_sae=20), make_vocabulary())
    store.add_index(make_records(n_features=20))
    assert store.check() == []

    def damaged(statement: sa.Executable) -> str:
        with store._database.writing() as connection:
            connection.execute(statement)
        return " ".join(store.check())

    weights.write_bytes(b"others")
    assert "The weights of the SAE demo have changed" in " ".join(store.check())
    weights.unlink()
    assert f"The weights of the SAE demo are not in {weights.parent}" in " ".join(store.check())
    weights.write_bytes(b"weights")
    assert store.check() == []
    first = plain(make_records(n_features=20).examples)[0].context_id
    its = contexts.c.context_id == first
    said = damaged(sa.update(contexts).where(its).values(token_ids=struct.pack("<2I", 0, 300)))
    assert said.startswith("Contexts of the index of demo on stories are not as they were written; run `saescope index")
    said = damaged(sa.delete(contexts).where(its))
    assert "1 contexts that examples in the index of demo on stories point at are missing" in said
    for content, expected in (
        (b"\0\0", "Examples in the index of demo on stories are not as they were written"),
        (b"\xff\0", "The examples of feature 0 in the index of demo on stories cannot be read"),
    ):
        store.add_index(make_records(n_features=20))
        assert store.check() == []
        said = damaged(sa.update(examples).where(examples.c.feature_index == 0).values(packed=content))
        assert expected in said
    store.add_index(make_records(n_features=20))
    said = damaged(sa.delete(features).where(features.c.feature_index == 2))
    assert said.startswith("19 of 20 features are in the index of demo on stories")


def test_reindexing_replaces_only_the_same_sae_on_the_same_corpus_name(store: Store) -> None:
    for slug in ("demo", "other"):
        store.add_sae(make_sae(slug), make_vocabulary())
        store.add_index(make_records(slug, n_features=20))
    store.add_index(make_records(corpus="poems", n_features=20, n_contexts=10))
    assert count(store, corpora) == 2 and count(store, contexts) == 70  # "stories" stored once for two SAEs
    before = store.index("demo", corpus="stories")
    new_id = store.add_index(make_records(n_features=30, seed=5, created_at=NOW + timedelta(hours=1)))
    assert new_id != before.index_id
    assert [(i.corpus.name, i.seed) for i in store.sae("demo").indexes] == [("stories", 5), ("poems", 0)]
    assert count(store, features) == 30 + 20 + 20 and count(store, contexts) == 70
    assert len(store.feature_points("other")) == 20
    # Other text under the same name: both remain while "other" was indexed on the old text.
    store.add_index(make_records(n_features=30, n_contexts=50))
    assert count(store, corpora) == 3 and count(store, contexts) == 120
    assert (
        store.index("other").corpus.n_contexts == 60 and store.index("demo", corpus="stories").corpus.n_contexts == 50
    )
    store.add_index(make_records("other", n_features=30, n_contexts=50))
    assert count(store, corpora) == 2 and count(store, contexts) == 60


def test_an_index_that_brings_more_contexts_of_a_shared_corpus(store: Store) -> None:
    for slug, chosen in (("demo", slice(0, 40)), ("other", slice(20, 60))):
        records = make_records(slug, n_features=5)
        some = list(records.contexts)[chosen]
        ids = {context.context_id for context in some}
        store.add_sae(make_sae(slug), make_vocabulary())
        store.add_index(
            replace(
                records,
                contexts=iter(some),
                examples=packed(e for e in plain(records.examples) if e.context_id in ids),
            )
        )
    assert count(store, contexts) == 60


@pytest.mark.parametrize("ids", [(), (0,), (65_535, 7), (7, 65_536), (200_000,) * 3], ids=str)
def test_token_ids_come_back_from_as_few_bytes_as_they_need(ids: tuple[int, ...]) -> None:
    wide = struct.pack(f"<{len(ids)}I", *ids)
    stored = store_rows.stored_token_ids(wide)
    assert len(stored) == (4 * len(ids) if max(ids, default=0) > 65_535 else 2 * len(ids) + 1)
    assert store_rows.unpacked_token_ids(stored) == store_rows.unpacked_token_ids(wide) == ids
    assert store_rows.wide_token_ids(stored) == store_rows.wide_token_ids(wide) == wide


def test_contexts_that_an_older_version_stored_are_read_and_checked_as_before(store: Store) -> None:
    store.add_sae(make_sae(), make_vocabulary())
    store.add_index(make_records(n_features=10))
    shown, said = store.feature("demo", 3), store.check()
    with store._database.writing() as connection:
        for key, stored in connection.execute(sa.select(contexts.c.context_id, contexts.c.token_ids)).all():
            wide = {"token_ids": store_rows.wide_token_ids(stored)}
            connection.execute(sa.update(contexts).where(contexts.c.context_id == key).values(wide))
    assert store.feature("demo", 3) == shown
    assert store.check() == said


def failing_after(items: Any, n: int) -> Iterator[Any]:
    for number, item in enumerate(items):
        if number == n:
            raise RuntimeError("the index stopped")
        yield item


@pytest.mark.parametrize("part", ["contexts", "features", "examples"])
def test_an_index_that_fails_half_way_changes_nothing(store: Store, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writes, "CHUNK_ROWS", 10)
    store.add_sae(make_sae(), make_vocabulary())
    store.add_index(make_records(n_features=30))
    before = everything(store)
    new = make_records(n_features=30, seed=1, n_contexts=70)
    with pytest.raises(RuntimeError, match="the index stopped"):
        store.add_index(replace(new, **{part: failing_after(getattr(new, part), 25)}))
    assert everything(store) == before
    assert count(store, corpora) == 1 and count(store, contexts) == 60
    store.add_index(new)
    assert everything(store) != before


def test_readers_never_see_half_an_index(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writes, "CHUNK_ROWS", 50)
    writer, reader = Store.open(database_url), Store.open(database_url)
    writer.add_sae(make_sae(), make_vocabulary())
    writer.add_index(make_records(n_features=30))
    before = everything(reader)
    seen: list[bool] = []

    def watched(items: Any) -> Iterator[Any]:
        for number, item in enumerate(items):
            if number % 10 == 9:
                seen.append(everything(reader) == before)
            yield item

    new = make_records(n_features=30, seed=1)
    writer.add_index(replace(new, examples=watched(new.examples)))
    assert seen and all(seen)
    assert everything(reader) == everything(writer) != before
    writer.close(), reader.close()


def test_a_writer_that_is_killed_leaves_the_old_index_and_no_lock(database_url: str) -> None:
    store = make_store(database_url)
    before = everything(store)
    code = (
        "import sys, time\n"
        "from dataclasses import replace\n"
        "from sae_core.store import Store\n"
        "from tests.factories import make_records\n"
        "records = make_records(seed=9)\n"
        "def examples():\n"
        "    for number, own in enumerate(records.examples):\n"
        "        if number == 150:\n"
        "            print('half', flush=True)\n"
        "            time.sleep(60)\n"
        "        yield own\n"
        "Store.open(sys.argv[1]).add_index(replace(records, examples=examples()))\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, database_url], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "half\n"
    assert everything(store) == before  # readers do not wait for the writer
    writer.kill()
    writer.communicate()
    store.close()
    store = Store.open(database_url)
    assert everything(store) == before and search_problems(store) == []
    records = make_records(seed=9)
    store.add_index(records)
    shown = {
        row.feature.feature_index: row.feature.max_activation for row in walk(store, corpus="stories", alive=False)
    }
    assert shown == {feature.feature_index: feature.max_activation for feature in records.features}
    assert search_problems(store) == []
    store.close()


def test_a_full_disk(database_url: str) -> None:
    store = Store.open(database_url)
    store.add_sae(make_sae(), make_vocabulary())
    store.add_index(make_records(n_features=30))
    before = everything(store)
    fill_disk(store)
    with pytest.raises(DiskFullError, match="is full and nothing was changed; free some space"):
        store.add_index(make_records(n_features=300, seed=1))
    assert everything(store) == before
    store.close()
    again = Store.open(database_url)
    assert everything(again) == before
    again.close()


def fill_disk(store: Store) -> None:
    engine = store._database._engine
    if store._database.is_sqlite:
        engine.dispose()

        @sa.event.listens_for(engine, "connect")
        def limit(raw: sqlite3.Connection, _record: object) -> None:
            (pages,) = raw.execute("PRAGMA page_count").fetchone()
            raw.execute(f"PRAGMA max_page_count = {pages + 20}")

        return
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION disk_full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$"
        )
        connection.exec_driver_sql(
            "CREATE TRIGGER full_disk BEFORE INSERT ON examples FOR EACH ROW WHEN (NEW.feature_index > 20)"
            " EXECUTE FUNCTION disk_full()"
        )


# Reading


def test_unknown_names_say_what_to_do(demo_store: Store) -> None:
    calls: list[Callable[..., object]] = [
        demo_store.index,
        demo_store.features,
        demo_store.feature_points,
        demo_store.random_feature,
        lambda slug, **corpus: demo_store.feature(slug, 0, **corpus),
        lambda slug, **corpus: demo_store.feature_stats(slug, [0], **corpus),
        lambda slug, **corpus: demo_store.feature_rows(slug, [0], **corpus),
    ]
    for call in calls:
        with pytest.raises(NotFoundError, match='no SAE "nope"'):
            call("nope")
        with pytest.raises(NotFoundError, match="run `saescope index unindexed --corpus …`"):
            call("unindexed")
        with pytest.raises(NotFoundError, match='indexed on "poems", "stories", not on "news"'):
            call("demo", corpus="news")
    for call in (demo_store.sae, demo_store.vocabulary, lambda slug: demo_store.labels(slug, [])):
        with pytest.raises(NotFoundError, match='no SAE "nope"'):
            call("nope")


def test_the_newest_index_is_the_one_meant(demo_store: Store) -> None:
    assert demo_store.index("demo").corpus.name == "poems"
    assert [index.corpus.name for index in demo_store.sae("demo").indexes] == ["poems", "stories"]
    first = {name: demo_store.feature("demo", 0, corpus=name).examples[0].source for name in ("poems", "stories")}
    assert first["poems"].startswith("poems.txt") and first["stories"].startswith("stories.txt")
    assert demo_store.feature("demo", 0).examples[0].source == first["poems"]


def test_neighbours_skip_dead_features(demo_store: Store) -> None:
    assert (demo_store.feature("demo", 2).previous, demo_store.feature("demo", 2).following) == (1, 4)
    assert (demo_store.feature("demo", 4).previous, demo_store.feature("demo", 4).following) == (2, 5)
    dead = demo_store.feature("demo", 3)
    assert (dead.previous, dead.following, dead.examples) == (2, 4, ())
    assert demo_store.feature("demo", 0).previous is None
    assert demo_store.feature("demo", N_FEATURES - 1).following is None


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("alive", [True, False])
def test_pages_walk_every_feature_once_in_order(demo_store: Store, sort: store_pages.Sort, alive: bool) -> None:
    written = [f for f in make_records("demo", corpus="stories").features if f.density > 0 or not alive]
    keys: dict[str, Callable[[PackedFeature], tuple[float, ...]]] = {
        "density": lambda feature: (feature.density, feature.feature_index),
        "max": lambda feature: (feature.max_activation, feature.feature_index),
        "mean": lambda feature: (feature.mean_activation, feature.feature_index),
        "cosine": lambda feature: (feature.encoder_decoder_cosine, feature.feature_index),
        "index": lambda feature: (feature.feature_index,),
    }
    expected = sorted(written, key=keys[sort.lstrip("-")], reverse=sort.startswith("-"))
    assert len({f.density for f in written}) < len(written) / 2  # ties
    found = walk(demo_store, corpus="stories", sort=sort, alive=alive)
    assert [row.feature.feature_index for row in found] == [feature.feature_index for feature in expected]


def test_lists_by_label_have_those_that_have_one(store: Store) -> None:
    store.add_sae(make_sae(), make_vocabulary())
    store.add_index(make_records(n_features=60))
    rng = random.Random(4)
    named = {n: make_label(rng.choice("abcdé中") * rng.randrange(1, 90), author="ana") for n in range(0, 60, 2)}
    scored = {
        n: make_label("x", kind="automatic", author="me", score=rng.choice([None, 0.25, 0.5, 1.0])) for n in range(40)
    }
    store.add_labels("demo", named)
    store.add_labels("demo", scored)
    shown = {number: label.text for number, label in store.labels("demo", range(50)).items()}
    assert store.labels_as_text("demo", range(50)) == shown and {"x", named[0].text} <= set(shown.values())
    alive = {row.feature.feature_index for row in walk(store)}
    by_label = [row.feature for row in walk(store, sort="label", limit=7)]
    assert {f.feature_index for f in by_label} == alive & (named.keys() | scored.keys())
    shown = [f.label.text for f in by_label if f.label is not None]
    written = [" ".join(terms(text))[:64] for text in shown]
    assert written == sorted(written) and len(set(written)) > 5
    assert [row.feature for row in walk(store, sort="-label", limit=7)] == by_label[::-1]
    by_confidence = [row.feature.feature_index for row in walk(store, sort="-confidence", limit=7)]
    keys = sorted(((label.score, n) for n, label in scored.items() if label.score and n in alive), reverse=True)
    assert by_confidence == [n for _, n in keys]
    assert [row.feature.feature_index for row in walk(store, sort="confidence", limit=7)] == by_confidence[::-1]
    found = [row.feature.feature_index for row in walk(store, sort="-confidence", q="x", within="label", limit=7)]
    assert found == [n for _, n in keys if n % 2]


def test_a_cosine_that_is_no_number_is_in_no_list_by_cosine(store: Store) -> None:
    store.add_sae(make_sae(), make_vocabulary())
    records = make_records(n_features=9)
    odd = [replace(f, encoder_decoder_cosine=math.nan) if f.feature_index == 4 else f for f in records.features]
    store.add_index(replace(records, features=odd))
    for sort in ("cosine", "-cosine"):
        numbers = [row.feature.feature_index for row in walk(store, sort=sort, limit=2, alive=False)]
        assert sorted(numbers) == [0, 1, 2, 3, 5, 6, 7, 8]


def test_a_listed_feature_is_the_feature_with_its_two_top_examples(demo_store: Store) -> None:
    for row in walk(demo_store, alive=False)[:40]:
        detail = demo_store.feature("demo", row.feature.feature_index)
        for field in fields(row.feature):
            assert getattr(row.feature, field.name) == getattr(detail.feature, field.name)
        assert row.examples == tuple(example for example in detail.examples if example.band == TOP_BAND)[:2]


def test_density_filters(demo_store: Store) -> None:
    everyone = [row.feature for row in walk(demo_store)]
    low, high = everyone[200].density, everyone[50].density
    for sort in SORTS:
        found = {row.feature.feature_index for row in walk(demo_store, sort=sort, min_density=low, max_density=high)}
        assert found == {feature.feature_index for feature in everyone if low <= feature.density <= high}


SEARCHES = [
    "wife", "WIFE", " wife ", "strasse", "wi", "中", "😀", "語", "100%", "%", "a_b", "_", "_b", "<tag>", "é",
    "na", "海", "spouse", "中文", '"white"', "king wife", '"war of"', '"black war" day', 'ship "of"',
]  # fmt: skip
FRUITLESS = ["\\", "/", "nothing here", "ife", '"whit"', "文中x"]
_CUT = re.compile(r"[^\W_\u3040-\u30ff\u4e00-\u9fff]+|\S")


def cut(text: str) -> list[str]:
    return _CUT.findall(unicodedata.normalize("NFKC", text).casefold())


def is_found(q: str, texts: list[str]) -> bool:
    """All of its words, each as it begins (in quotes as it is), and what touches one after the other."""
    for quoted, plain_words in re.findall(r'"([^"]*)"|([^\s"]+)', q):
        words = cut(quoted or plain_words)
        *whole, last = words
        is_open = not quoted and (len(last) > 1 or not last.isascii())
        for text in texts:
            there = cut(text)
            places = range(len(there) - len(words) + 1)
            if any(
                there[at : at + len(whole)] == whole
                and (there[at + len(whole)] == last or (is_open and there[at + len(whole)].startswith(last)))
                for at in places
            ):
                break
        else:
            return False
    return True


def searched_texts(corpus: str) -> dict[str, dict[int, list[str]]]:
    """By field and feature: what a search looks in."""
    records, vocabulary = make_records(corpus=corpus), make_vocabulary()
    features_there = [plain_feature(feature, vocabulary) for feature in records.features]
    fields_there: dict[str, dict[int, list[str]]] = {
        "label": {number: [label.text] for number, label in make_labels().items()},
        "promotes": {f.feature_index: [t.token for t in f.promoted_tokens] for f in features_there},
        "fires_on": {f.feature_index: [t.token for t in f.tokens_on] for f in features_there},
        "examples": {},
    }
    ids = {c.context_id: [i for (i,) in struct.iter_unpack("<I", c.token_ids)] for c in records.contexts}
    for example in plain(records.examples):
        if example.band == TOP_BAND and example.rank < store_search.SEARCHED_EXAMPLES:
            first = max(0, example.position - store_search.SEARCHED_AROUND)
            some = ids[example.context_id][first : example.position + store_search.SEARCHED_AROUND + 1]
            shown = display_strings([vocabulary.tokens[i] for i in some if i not in vocabulary.special_ids])
            fields_there["examples"].setdefault(example.feature_index, []).append("".join(shown))
    for by_feature in fields_there.values():
        for feature in features_there:
            if not feature.n_active:
                by_feature.pop(feature.feature_index, None)
    return fields_there


@pytest.mark.parametrize("within", [None, *FIELDS])
def test_search_finds_what_a_slow_reading_of_the_texts_finds(demo_store: Store, within: str | None) -> None:
    by_field = searched_texts("stories")
    if within is not None:
        by_field = {within: by_field[within]}
    n_found = 0
    for q in SEARCHES + FRUITLESS:
        expected = [
            number
            for number in range(N_FEATURES)
            if is_found(q, [text for texts in by_field.values() for text in texts.get(number, [])])
        ]
        n_found += len(expected)
        if within is None:
            assert bool(expected) == (q in SEARCHES), q
        for sort, limit in (("index", 30), ("-max", 100), ("-density", 40), ("density", 50)):
            found = walk(demo_store, q=q, within=within, sort=sort, corpus="stories", limit=limit)
            numbers = [row.feature.feature_index for row in found]
            assert sorted(numbers) == expected, (q, sort)
            densities = [row.feature.density for row in found]
            if "density" in sort:
                assert densities == sorted(densities, reverse=sort == "-density")
    assert n_found


def test_search_within_a_range_of_densities(demo_store: Store) -> None:
    for q in ("wife", "wh", "中", "na"):
        everyone = [row.feature for row in walk(demo_store, q=q, alive=False)]
        low, high = everyone[2 * len(everyone) // 3].density, everyone[len(everyone) // 3].density
        for sort in SORTS:
            for arguments in ({"min_density": low}, {"max_density": high}, {"min_density": low, "max_density": high}):
                found = walk(demo_store, q=q, sort=sort, limit=20, **arguments)
                expected = [
                    f.feature_index
                    for f in everyone
                    if f.density > 0 and arguments.get("min_density", 0) <= f.density <= arguments.get("max_density", 1)
                ]
                assert sorted(row.feature.feature_index for row in found) == sorted(expected)
        assert walk(demo_store, q=q, min_density=1.5) == []
        assert walk(demo_store, q=q, max_density=-1.0) == []


def search_problems(store: Store) -> list[str]:
    return [problem for problem in store.check() if "Searches" in problem or "point" in problem]


def test_search_follows_labels(store: Store) -> None:
    store.add_sae(make_sae(), make_vocabulary())
    for corpus in ("stories", "poems"):
        store.add_index(make_records(corpus=corpus, n_features=30))

    def numbers(q: str, corpus: str, within: str = "label") -> list[int]:
        return sorted(row.feature.feature_index for row in walk(store, q=q, within=within, corpus=corpus))

    store.add_labels("demo", {4: make_label("harpoons"), 5: make_label("harpoon", kind="automatic")})
    for corpus in ("stories", "poems"):
        assert numbers("harpoon", corpus) == [4, 5]
    store.add_labels("demo", {5: make_label("oars"), 4: make_label("hidden", kind="automatic")})
    for corpus in ("stories", "poems"):
        assert (numbers("harpoon", corpus), numbers("oars", corpus), numbers("hidden", corpus)) == ([4], [5], [])
    store.add_index(make_records(corpus="poems", n_features=30, seed=3))
    for corpus in ("stories", "poems"):
        assert (numbers("harpoon", corpus), numbers("oars", corpus)) == ([4], [5])
    assert search_problems(store) == []
    store.delete_sae("demo")
    assert search_problems(store) == [] and count(store, feature_texts) == 0
    store.add_sae(make_sae(), make_vocabulary())
    store.add_index(make_records(corpus="poems", n_features=30))
    assert numbers("harpoon", "poems") == []


def test_an_automatic_label_of_a_new_index_is_found_in_the_other_ones(store: Store) -> None:
    store.add_sae(make_sae(), make_vocabulary())
    store.add_index(make_records(corpus="stories", n_features=9))
    records = make_records(corpus="poems", n_features=9)
    labelled = [replace(f, label=make_label("masts", kind="automatic", author="saescope")) for f in records.features]
    store.add_index(replace(records, features=labelled))
    found = [walk(store, q="mast", within="label", corpus=corpus) for corpus in ("stories", "poems")]
    assert len(found[0]) == len(found[1]) == 8  # the ninth is dead
    assert search_problems(store) == []


def test_features_by_the_confidence_of_their_label(demo_store: Store) -> None:
    assert [row.feature.feature_index for row in walk(demo_store, min_confidence=0.5, sort="index")] == [1, 2]
    assert [row.feature.feature_index for row in walk(demo_store, min_confidence=0.6)] == [1]
    for sort in SORTS + LABEL_SORTS:
        found = [row.feature.feature_index for row in walk(demo_store, min_confidence=0.5, sort=sort)]
        assert sorted(found) == [1, 2], sort
    assert [row.feature.feature_index for row in walk(demo_store, q="ship", within="label", min_confidence=0.6)] == [1]
    assert walk(demo_store, min_confidence=0.9) == []


def test_search_finds_labels_and_numbers(demo_store: Store) -> None:
    assert [row.feature.feature_index for row in walk(demo_store, q="SPOUSE")] == [0]
    assert 1 in [row.feature.feature_index for row in walk(demo_store, q="海")]
    assert [row.feature.feature_index for row in walk(demo_store, q=" 123 ")] == [123]  # a dead one
    assert [row.feature.feature_index for row in walk(demo_store, q="42", max_density=0)] == [42]
    by_text = walk(demo_store, q="2020")  # no feature has that number
    assert by_text and all("2020" not in str(row.feature.feature_index) for row in by_text)
    assert walk(demo_store, q="9" * 30) == []
    assert len(walk(demo_store, q="  ")) == len(walk(demo_store))


@pytest.mark.parametrize("sort", SORTS + LABEL_SORTS)
@pytest.mark.parametrize("cursor", [True, False])
def test_a_page_is_one_range_of_an_index(demo_store: Store, sort: store_pages.Sort, cursor: bool) -> None:
    after = demo_store.features("demo", sort=sort, limit=20 if sort in SORTS else 1).next if cursor else None
    assert cursor == (after is not None)
    index = demo_store.index("demo")
    assert index.index_id is not None
    asked = store_pages.Asked(
        sort=sort,
        q=None,
        within=None,
        min_density=0.001,
        max_density=0.9,
        min_confidence=None,
        alive=True,
        after=after,
        limit=50,
    )
    with demo_store._database.reading() as connection:
        statement = store_pages.page_statement(connection, asked, index_id=index.index_id, sae_id=1)
        assert statement is not None
        sql = str(statement.compile(connection.engine, compile_kwargs={"literal_binds": True})).replace("%", "%%")
        if demo_store._database.is_sqlite:
            plan = [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}")]
            assert len(plan) == (1 if sort in SORTS else 2)
            first = {"label": "SEARCH feature_texts USING INDEX", "confidence": "SEARCH labels USING COVERING INDEX"}
            assert plan[0].startswith(first.get(sort.removeprefix("-"), "SEARCH features USING INDEX"))
        else:  # so few rows that PostgreSQL would rather sort them: ask whether it can do without
            connection.exec_driver_sql("SET LOCAL enable_sort = off")
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            plan = [row[0] for row in connection.exec_driver_sql(f"EXPLAIN {sql}")]
            assert any("Index Scan" in line for line in plan) and not any("Sort" in line for line in plan)


def test_pages_read_only_the_rows_that_they_show(tmp_path: Path) -> None:
    """SQLite chooses its plans without looking at the data, so few rows tell what it does with many."""
    store = make_store(f"sqlite:///{tmp_path}/plans.db")
    asked: list[tuple[str, Any]] = []

    @sa.event.listens_for(store._database._engine, "before_cursor_execute")
    def note(_connection: object, _cursor: object, statement: str, parameters: Any, *_rest: object) -> None:
        if statement.startswith("SELECT"):
            asked.append((statement, parameters))

    store.feature("demo", 7)
    for sort in SORTS + LABEL_SORTS:
        store.features("demo", sort=sort, min_confidence=0.1)
    store.features("demo", q="wife")
    small = ("SCAN indexes", "SCAN CONSTANT ROW", "SCAN feature_search", "SCAN anon_1")
    with sqlite3.connect(tmp_path / "plans.db") as connection:
        for statement, parameters in asked:
            for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters):
                assert not row[-1].startswith("SCAN") or row[-1].startswith(small), statement
                if row[-1].startswith(("SEARCH labels", "SEARCH its_label")) and "AS sorted_by" not in statement:
                    assert "feature_index=?" in row[-1], statement
    store.close()


@pytest.mark.parametrize(
    "cursor", ["", "x", "!!!", "é", "W10", "WyItZGVuc2l0eSIsbnVsbCwwXQ", "\0", "A" * 100_000, "W1tb" * 9999]
)
def test_malformed_cursors(demo_store: Store, cursor: str) -> None:
    with pytest.raises(InputError, match="start at the first page"):
        demo_store.features("demo", after=cursor)


def test_a_cursor_belongs_to_its_order(demo_store: Store) -> None:
    cursor = demo_store.features("demo", sort="-density", limit=10).next
    assert cursor is not None and cursor.replace("-", "").replace("_", "").isalnum()
    with pytest.raises(InputError, match="of another order; start at the first page"):
        demo_store.features("demo", sort="density", after=cursor)


def test_bad_arguments(demo_store: Store) -> None:
    for arguments in (
        {"limit": 0},
        {"limit": 1001},
        {"sort": "name"},
        {"min_density": math.nan},
        {"q": "x" * 201},
        {"within": "x"},
    ):
        with pytest.raises(InputError):
            demo_store.features("demo", **arguments)  # type: ignore[arg-type]


def test_feature_points(demo_store: Store) -> None:
    written = make_records(corpus="poems", n_contexts=40, seed=1).features
    points = demo_store.feature_points("demo")
    assert [(p.feature_index, p.density, p.max_activation) for p in points] == [
        (f.feature_index, f.density, f.max_activation) for f in written
    ]


def test_random_feature_is_any_alive_one(store: Store) -> None:
    store.add_sae(make_sae(), make_vocabulary())
    store.add_index(make_records(n_features=6))
    found = [store.random_feature("demo") for _ in range(150)]
    assert set(found) == {0, 1, 2, 4, 5}
    assert min(found.count(number) for number in set(found)) > 10
    records = make_records(n_features=6)
    store.add_index(replace(records, features=[f for f in records.features if f.density == 0], examples=[]))
    with pytest.raises(NotFoundError, match="index it on another"):
        store.random_feature("demo")


def test_feature_rows_are_those_of_the_list(demo_store: Store) -> None:
    rows = demo_store.feature_rows("demo", {5, 3, 10**12, N_FEATURES, 0}, corpus="stories")
    listed = {
        row.feature.feature_index: row
        for row in demo_store.features("demo", corpus="stories", sort="index", alive=False, limit=10).items
    }
    assert rows == {number: listed[number] for number in (0, 3, 5)}


def test_feature_stats(demo_store: Store) -> None:
    stats = demo_store.feature_stats("demo", {5, 3, 10**12, N_FEATURES, 0}, corpus="stories")
    assert sorted(stats) == [0, 3, 5]
    for number, feature in stats.items():
        assert feature == demo_store.feature("demo", number, corpus="stories").feature
    assert len(demo_store.feature_stats("demo", range(5000))) == N_FEATURES


# Labels


def test_labels_round_trip(demo_store: Store) -> None:
    assert demo_store.labels("demo", range(N_FEATURES)) == make_labels()
    assert demo_store.labels("demo", [1, 7]) == {1: make_labels()[1]}
    assert demo_store.labels("unindexed", [1]) == {}
    detail = demo_store.feature("demo", 0)
    assert detail.feature.label == make_labels()[0]
    assert [near.label for near in detail.feature.nearest] == [make_labels()[1].text, make_labels()[2].text, None]


def test_a_persons_label_wins_and_outlives_automatic_ones(store: Store) -> None:
    store.add_sae(make_sae(), make_vocabulary())
    store.add_labels("demo", {1: make_label("mine")})
    store.add_labels("demo", {n: make_label("guess", kind="automatic", author="describer", score=0.5) for n in (1, 2)})
    assert {number: label.text for number, label in store.labels("demo", [1, 2]).items()} == {1: "mine", 2: "guess"}
    store.add_labels("demo", {1: make_label("mine, better", author="ben"), 2: make_label("corrected")})
    found = store.labels("demo", [1, 2])
    assert found == {1: make_label("mine, better", author="ben"), 2: make_label("corrected")}


def test_labels_are_checked_and_all_or_none(store: Store) -> None:
    store.add_sae(make_sae(), make_vocabulary())
    for wrong in ({1: make_label("  ")}, {1: make_label(kind="expert")}):
        with pytest.raises(InputError):
            store.add_labels("demo", {0: make_label()} | wrong)
    for number in (-1, N_FEATURES):
        with pytest.raises(NotFoundError, match="this SAE's features are 0 to 299"):
            store.add_labels("demo", {0: make_label(), number: make_label()})
    with pytest.raises(NotFoundError, match='no SAE "nope"'):
        store.add_labels("nope", {0: make_label()})
    assert store.labels("demo", range(N_FEATURES)) == {}


def test_an_index_of_an_unknown_sae(store: Store) -> None:
    records: IndexRecords = make_records("nope", n_features=5)
    with pytest.raises(NotFoundError, match='no SAE "nope"'):
        store.add_index(records)


def test_many_threads_read_and_write_one_store(store: Store) -> None:
    from concurrent.futures import ThreadPoolExecutor

    store.add_sae(make_sae(), make_vocabulary())
    store.add_index(make_records(n_features=30))

    def work(number: int) -> int:
        store.add_labels("demo", {number: make_label(f"label {number}")})
        store.features("demo", limit=5)
        return len(store.labels("demo", [number]))

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(work, range(30))) == [1] * 30
    assert len(store.labels("demo", range(30))) == 30


def test_commits_are_counted_whoever_makes_them(database_url: str) -> None:
    with closing(make_store(database_url)) as store, closing(Store.open(database_url)) as other:
        first = store.commits()
        if first is None:
            assert database_url.startswith("postgresql")
            return
        store.feature("demo", 0)
        assert store.commits() == first
        for writer in (store, other, store.seen_by(Viewer(name="ada", sees_everything=True, action="", request_id=""))):
            before = store.commits()
            writer.add_labels("demo", {0: make_label("again")})
            assert store.commits() != before


def test_reads_of_one_moment_do_not_see_what_is_written_meanwhile(database_url: str) -> None:
    with closing(make_store(database_url)) as store:
        with store.at_one_moment() as now:
            before = now.feature("demo", 0).labels
            store.add_labels("demo", {0: make_label("written meanwhile", kind="human")})
            assert now.labels_of_feature("demo", 0) == before
            assert store.labels_of_feature("demo", 0)[0].text == "written meanwhile"
            with pytest.raises(NotFoundError):
                now.feature("nowhere", 0)
            assert now.feature("demo", 0).labels == before
        assert store.feature("demo", 0).labels[0].text == "written meanwhile"
