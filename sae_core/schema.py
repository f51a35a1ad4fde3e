"""The tables: models, corpora, contexts, saes, indexes, features, examples, labels, scores, maps, lists, probes,
steerings; and tokens, sessions, audit. Read and written by `store` alone.

    models ──< saes ──< indexes >── corpora ──< contexts
                │          └──< features, feature_texts, examples, samples, label_scores
                └──< labels, label_history, label_vectors, maps      lists ──< list_items      probes

Numbers by the hundred are packed, little-endian (`store_rows`), so an example costs tens of bytes. A change here needs
a new file in `migrations/versions` and its number in `REVISION`; a test compares the two.
"""

from datetime import UTC, datetime

from sqlalchemy import (
    DDL,
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    event,
    text,
)

REVISION = "0012"  # the newest file of migrations/versions


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC. SQLite keeps no time zone, so it is put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        return value if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
    }
)

models = Table(
    "models",
    metadata,
    Column("model_id", Integer, primary_key=True),
    Column("model_name", Text, nullable=False),
    Column("revision", Text, nullable=False),
    Column("architecture", Text, nullable=False),
    Column("n_layers", Integer, nullable=False),
    Column("d_model", Integer, nullable=False),
    Column("vocabulary", LargeBinary, nullable=False),  # compressed; megabytes, so only selected when needed
    Column("special_ids", LargeBinary, nullable=False),  # uint32, ascending
    Column("vocabulary_sha256", Text, nullable=False),  # of the two: the key of the cache in each process
    UniqueConstraint("model_name", "revision"),
)

saes = Table(
    "saes",
    metadata,
    Column("sae_id", Integer, primary_key=True),
    Column("slug", Text, nullable=False, unique=True),
    Column("model_id", ForeignKey("models.model_id"), nullable=False),
    Column("hook_name", Text, nullable=False),
    Column("layer", Integer, nullable=False),
    Column("architecture", Text, nullable=False),
    Column("d_in", Integer, nullable=False),
    Column("d_sae", Integer, nullable=False),
    Column("k", Integer),
    Column("n_training_tokens", BigInteger, nullable=False),
    Column("weights_path", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("config", JSON, nullable=False),
    Column("weights_sha256", Text),  # NULL: there was no such file when the SAE was entered, or before revision 0003
    Column("visibility", Text, nullable=False, server_default="public"),  # or unlisted, private: see store_access
)

# The same name may stand for other text tomorrow; contexts are shared by those who mean the same text by it.
corpora = Table(
    "corpora",
    metadata,
    Column("corpus_id", Integer, primary_key=True),
    Column("name", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("sources", JSON, nullable=False),
    Column("context_size", Integer, nullable=False),
    Column("prepend_bos", Boolean, nullable=False),
    Column("n_documents", BigInteger, nullable=False),
    Column("n_contexts", BigInteger, nullable=False),
    Column("n_tokens", BigInteger, nullable=False),
    UniqueConstraint("name", "fingerprint"),
)

contexts = Table(
    "contexts",
    metadata,
    Column("corpus_id", ForeignKey("corpora.corpus_id", ondelete="CASCADE"), primary_key=True),
    Column("context_id", Integer, primary_key=True),
    Column("source", Text, nullable=False),
    Column("token_ids", LargeBinary, nullable=False),  # uint32, or uint16 behind a byte (`stored_token_ids`)
)

indexes = Table(
    "indexes",
    metadata,
    Column("index_id", Integer, primary_key=True),
    Column("sae_id", ForeignKey("saes.sae_id", ondelete="CASCADE"), nullable=False),
    Column("corpus_id", ForeignKey("corpora.corpus_id"), nullable=False),
    Column("l0", Double, nullable=False),
    Column("fvu", Double),  # NULL: not a number
    Column("ce_recovered", Double),
    Column("dead_share", Double, nullable=False),
    Column("dense_share", Double, nullable=False),
    Column("dense_threshold", Double, nullable=False),
    Column("dtype", Text, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    # NULL in what follows: not measured, as in indexes made before revision 0002, or without a meaning.
    Column("cosine", Double),
    Column("reconstruction_bias", Double),
    Column("ce_loss", Double),
    Column("ce_loss_with_sae", Double),
    Column("ce_loss_with_zeros", Double),
    Column("kl", Double),
    Column("ce_tokens", BigInteger),
    Column("encoder_decoder_cosine", Double),
    Column("encoder_decoder_histogram", LargeBinary),  # as in features
    # NULL in indexes made before revision 0003; see store_check.
    Column("examples_sha256", Text),
    Column("contexts_sha256", Text),
    sqlite_autoincrement=True,  # an id is never used twice, so a link cannot come to mean another index
)

features = Table(
    "features",
    metadata,
    Column("index_id", ForeignKey("indexes.index_id", ondelete="CASCADE"), primary_key=True),
    Column("feature_index", Integer, primary_key=True),
    Column("density", Double, nullable=False),
    Column("n_active", BigInteger, nullable=False),
    Column("max_activation", Double, nullable=False),
    Column("mean_activation", Double, nullable=False),
    Column("encoder_decoder_cosine", Double),  # NULL: not a number, one of the directions is zero
    Column("histogram", LargeBinary, nullable=False),  # see store_rows: edges, then counts
    Column("band_shares", LargeBinary, nullable=False),  # float64
    Column("promoted_tokens", LargeBinary, nullable=False),  # (token_id uint32, weight float32), strongest first
    Column("suppressed_tokens", LargeBinary, nullable=False),
    Column("nearest", LargeBinary, nullable=False),  # (feature_index uint32, cosine float32), nearest first
    # NULL in what follows: not measured, as in indexes made before revision 0003.
    Column("mean_square", Double),
    Column("encoder_norm", Double),
    Column("decoder_norm", Double),
    Column("profile", LargeBinary),  # (first uint16, last uint16, density float32, share float32)
    Column("sampled_tokens", LargeBinary),  # as in store_rows
    Column("promoted_share", Double),
    Column("coactive", LargeBinary),  # (feature_index uint32, together uint32, jaccard float32), the strongest first
)
# Lists are read in index order, either way round; density last lets the other lists drop the dead without a look at the
# table.
Index("features_by_density", features.c.index_id, features.c.density, features.c.feature_index)
for name, column in (
    ("features_by_max_activation", features.c.max_activation),
    ("features_by_mean_activation", features.c.mean_activation),
    ("features_by_cosine", features.c.encoder_decoder_cosine),
):
    Index(name, features.c.index_id, column, features.c.feature_index, features.c.density)

# What a search looks in, as terms; see store_search, also for what each database adds to find it.
feature_texts = Table(
    "feature_texts",
    metadata,
    Column("search_id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("index_id", ForeignKey("indexes.index_id", ondelete="CASCADE"), nullable=False),
    Column("feature_index", Integer, nullable=False),
    Column("label", Text, nullable=False),
    Column("promotes", Text, nullable=False),
    Column("fires_on", Text, nullable=False),
    Column("examples", Text, nullable=False),  # around the peaks of the first top examples
    UniqueConstraint("index_id", "feature_index"),
)

LABEL_KEY = "substr(label, 1, 64)"  # of the whole label an index would not take
Index("feature_texts_by_label", feature_texts.c.index_id, text(LABEL_KEY), feature_texts.c.feature_index)

FEATURE_SEARCH = "feature_search"  # SQLite's index of those texts
for dialect, statement in (
    (
        "sqlite",
        "CREATE VIRTUAL TABLE feature_search USING fts5(label, promotes, fires_on, examples, content='feature_texts', "
        "content_rowid='search_id', tokenize='ascii', prefix='3 4', columnsize=0)",
    ),
    (
        "postgresql",
        "ALTER TABLE feature_texts ADD COLUMN terms tsvector GENERATED ALWAYS AS ("
        "to_tsvector('simple', label || ' t ' || promotes || ' t ' || fires_on || ' t ' || examples || "
        "replace(' ' || label, ' t', ' a') || replace(' ' || promotes, ' t', ' b') || "
        "replace(' ' || fires_on, ' t', ' c') || replace(' ' || examples, ' t', ' d'))) STORED",
    ),
    ("postgresql", "CREATE INDEX feature_texts_terms ON feature_texts USING gin (terms)"),
):
    _ddl: DDL = DDL(statement)  # type: ignore[no-untyped-call]
    event.listen(feature_texts, "after_create", _ddl.execute_if(dialect=dialect))

# One row a feature: its examples are columns of packed numbers, so that each costs tens of bytes (`store_rows`).
examples = Table(
    "examples",
    metadata,
    Column("index_id", ForeignKey("indexes.index_id", ondelete="CASCADE"), primary_key=True),
    Column("feature_index", Integer, primary_key=True),
    Column("packed", LargeBinary, nullable=False),
)

# One of each kind, so that a person's label outlives the next automatic run; readers prefer the person's (`labels`).
labels = Table(
    "labels",
    metadata,
    Column("sae_id", ForeignKey("saes.sae_id", ondelete="CASCADE"), primary_key=True),
    Column("feature_index", Integer, primary_key=True),
    Column("kind", Text, primary_key=True),  # as in labels.KINDS
    Column("text", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("score", Double),
    Column("created_at", UtcDateTime, nullable=False),
    # NULL in what follows: nobody asked a language model.
    Column("certainty", Double),
    Column("prompt_version", Text),
)
Index("labels_by_score", labels.c.sae_id, labels.c.kind, labels.c.score, labels.c.feature_index)

# Labels as vectors, for a search by meaning: `store_meaning`. By which model, and one of each label that is shown.
label_embeddings = Table(
    "label_embeddings",
    metadata,
    Column("sae_id", ForeignKey("saes.sae_id", ondelete="CASCADE"), primary_key=True),
    Column("model_name", Text, nullable=False),
    Column("revision", Text, nullable=False),
    Column("width", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

label_vectors = Table(
    "label_vectors",
    metadata,
    Column("sae_id", ForeignKey("saes.sae_id", ondelete="CASCADE"), primary_key=True),
    Column("feature_index", Integer, primary_key=True),
    Column("vector", LargeBinary, nullable=False),  # float16, of unit length
)

# What a person's label replaced, and persons' labels that are no more.
label_history = Table(
    "label_history",
    metadata,
    Column("history_id", Integer, primary_key=True),
    Column("sae_id", ForeignKey("saes.sae_id", ondelete="CASCADE"), nullable=False),
    Column("feature_index", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("replaced_at", UtcDateTime, nullable=False),
)
Index("label_history_by_feature", label_history.c.sae_id, label_history.c.feature_index)

# How well labels tell what a feature fires on, measured on the texts of one index; goes with it.
label_scores = Table(
    "label_scores",
    metadata,
    Column("index_id", ForeignKey("indexes.index_id", ondelete="CASCADE"), primary_key=True),
    Column("feature_index", Integer, primary_key=True),
    Column("kind", Text, primary_key=True),  # of the label
    Column("method", Text, primary_key=True),  # detection, fuzzing
    Column("text", Text, nullable=False),  # the label as it was tested
    Column("scorer", Text, nullable=False),  # who judged: a model's name, or saescope
    Column("prompt_version", Text),
    Column("balanced_accuracy", Double, nullable=False),
    Column("precision", Double),  # NULL: never said yes
    Column("recall", Double, nullable=False),
    Column("n", Integer, nullable=False),
    Column("unparsed", Integer, nullable=False),
    Column("baseline", Double),  # balanced accuracy of another feature's label on the same texts; NULL: none to try
    Column("correlation", Double),  # of predicted activations with the true ones; NULL: none were predicted
    Column("trials", LargeBinary, nullable=False),  # compressed JSON, see store_scores
    Column("created_at", UtcDateTime, nullable=False),
)

# Some contexts of an index with the activations of all features on them: where it is known what does not fire.
samples = Table(
    "samples",
    metadata,
    Column("index_id", ForeignKey("indexes.index_id", ondelete="CASCADE"), primary_key=True),
    Column("context_ids", LargeBinary, nullable=False),  # uint32
    Column("starts", LargeBinary, nullable=False),  # uint32: where the entries of each feature start, and their number
    Column("places", LargeBinary, nullable=False),  # uint32: number of the context among these << 16 | position
    Column("activations", LargeBinary, nullable=False),  # float16
)

# Decoder directions in the plane; they are the SAE's, so its indexes share one.
maps = Table(
    "maps",
    metadata,
    Column("sae_id", ForeignKey("saes.sae_id", ondelete="CASCADE"), primary_key=True),
    Column("places", LargeBinary, nullable=False),  # (x uint16, y uint16) of every feature
    Column("n_neighbours", Integer, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

# What people collect. It outlives the SAEs that it names, so an item holds their slugs and not their rows.
lists = Table(
    "lists",
    metadata,
    Column("list_id", Text, primary_key=True),  # as in its address: random, so that it cannot be guessed
    Column("title", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("version", Integer, nullable=False),  # goes up by one with every change but those of notes
)

list_items = Table(
    "list_items",
    metadata,
    Column("item_id", Integer, primary_key=True),
    Column("list_id", ForeignKey("lists.list_id", ondelete="CASCADE"), nullable=False),
    Column("position", Integer, nullable=False),  # ascending, with gaps
    Column("slug", Text, nullable=False),
    Column("sae_created_at", UtcDateTime, nullable=False),  # tells the SAE from a later one of the same slug
    Column("feature_index", Integer, nullable=False),
    Column("corpus", Text),  # NULL: whatever index is newest
    Column("label", Text),  # what the feature was called when it was added
    Column("note", Text, nullable=False),
    Column("author", Text, nullable=False),  # who added it, or changed the note last
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("version", Integer, nullable=False),  # goes up by one with every change of the note
    sqlite_autoincrement=True,  # an id is never used twice, so an old page cannot change another item
)
Index("list_items_by_position", list_items.c.list_id, list_items.c.position)
Index("list_items_by_feature", list_items.c.slug, list_items.c.feature_index)

# Texts that people share with what they picked out in them. As lists, they outlive their SAEs.
probes = Table(
    "probes",
    metadata,
    Column("probe_id", Text, primary_key=True),  # as in its address: random, so that it cannot be guessed
    Column("slug", Text, nullable=False),
    Column("sae_created_at", UtcDateTime, nullable=False),  # tells the SAE from a later one of the same slug
    Column("text", Text, nullable=False),
    Column("state", JSON, nullable=False),  # what was picked out, as the page's parameters
    Column("author", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)
Index("probes_by_created_at", probes.c.created_at)

# What people let a model write while features were pushed: what was asked, and what came of it. Never changed.
steerings = Table(
    "steerings",
    metadata,
    Column("steering_id", Text, primary_key=True),  # random, as that of a list
    Column("slug", Text, nullable=False),
    Column("sae_created_at", UtcDateTime, nullable=False),  # tells the SAE from a later one of the same slug
    Column("author", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("query", Text, nullable=False),  # of the page's address
    Column("report", JSON, nullable=False),
)

# SAEs that are deleted and were not public: what still bears their names (items of lists, shared probes, runs) stays as
# hidden as they were, and a new SAE of such a name begins so.
deleted_saes = Table(
    "deleted_saes",
    metadata,
    Column("slug", Text, primary_key=True),
    Column("visibility", Text, nullable=False),  # unlisted, private
)

# Who may come in: `store_access`. A token that was revoked stays, for those who read the audit trail.
tokens = Table(
    "tokens",
    metadata,
    Column("token_id", Integer, primary_key=True),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),  # reader, editor, admin
    Column("sha256", Text, nullable=False, unique=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("revoked_at", UtcDateTime),
    sqlite_autoincrement=True,
)

sessions = Table(
    "sessions",
    metadata,
    Column("sha256", Text, primary_key=True),
    Column("token_id", ForeignKey("tokens.token_id", ondelete="CASCADE"), nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("audit_id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("name", Text, nullable=False),  # of the token, or of the person at the command line
    Column("action", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    sqlite_autoincrement=True,
)
