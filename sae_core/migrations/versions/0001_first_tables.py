"""The first tables. What each column means stands in `sae_core.schema`; this file is never changed."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "models",
        sa.Column("model_id", sa.Integer, primary_key=True),
        sa.Column("model_name", sa.Text, nullable=False),
        sa.Column("revision", sa.Text, nullable=False),
        sa.Column("architecture", sa.Text, nullable=False),
        sa.Column("n_layers", sa.Integer, nullable=False),
        sa.Column("d_model", sa.Integer, nullable=False),
        sa.Column("vocabulary", sa.LargeBinary, nullable=False),
        sa.Column("special_ids", sa.LargeBinary, nullable=False),
        sa.Column("vocabulary_sha256", sa.Text, nullable=False),
        sa.UniqueConstraint("model_name", "revision"),
    )
    op.create_table(
        "saes",
        sa.Column("sae_id", sa.Integer, primary_key=True),
        sa.Column("slug", sa.Text, nullable=False, unique=True),
        sa.Column("model_id", sa.Integer, sa.ForeignKey("models.model_id"), nullable=False),
        sa.Column("hook_name", sa.Text, nullable=False),
        sa.Column("layer", sa.Integer, nullable=False),
        sa.Column("architecture", sa.Text, nullable=False),
        sa.Column("d_in", sa.Integer, nullable=False),
        sa.Column("d_sae", sa.Integer, nullable=False),
        sa.Column("k", sa.Integer),
        sa.Column("n_training_tokens", sa.BigInteger, nullable=False),
        sa.Column("weights_path", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("config", sa.JSON, nullable=False),
    )
    op.create_table(
        "corpora",
        sa.Column("corpus_id", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("sources", sa.JSON, nullable=False),
        sa.Column("context_size", sa.Integer, nullable=False),
        sa.Column("prepend_bos", sa.Boolean, nullable=False),
        sa.Column("n_documents", sa.BigInteger, nullable=False),
        sa.Column("n_contexts", sa.BigInteger, nullable=False),
        sa.Column("n_tokens", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("name", "fingerprint"),
    )
    op.create_table(
        "contexts",
        sa.Column("corpus_id", sa.Integer, sa.ForeignKey("corpora.corpus_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("context_id", sa.Integer, primary_key=True),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("token_ids", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "indexes",
        sa.Column("index_id", sa.Integer, primary_key=True),
        sa.Column("sae_id", sa.Integer, sa.ForeignKey("saes.sae_id", ondelete="CASCADE"), nullable=False),
        sa.Column("corpus_id", sa.Integer, sa.ForeignKey("corpora.corpus_id"), nullable=False),
        sa.Column("l0", sa.Double, nullable=False),
        sa.Column("fvu", sa.Double),
        sa.Column("ce_recovered", sa.Double),
        sa.Column("dead_share", sa.Double, nullable=False),
        sa.Column("dense_share", sa.Double, nullable=False),
        sa.Column("dense_threshold", sa.Double, nullable=False),
        sa.Column("dtype", sa.Text, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "features",
        sa.Column("index_id", sa.Integer, sa.ForeignKey("indexes.index_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("feature_index", sa.Integer, primary_key=True),
        sa.Column("density", sa.Double, nullable=False),
        sa.Column("n_active", sa.BigInteger, nullable=False),
        sa.Column("max_activation", sa.Double, nullable=False),
        sa.Column("mean_activation", sa.Double, nullable=False),
        sa.Column("encoder_decoder_cosine", sa.Double),
        sa.Column("histogram", sa.LargeBinary, nullable=False),
        sa.Column("band_shares", sa.LargeBinary, nullable=False),
        sa.Column("promoted_tokens", sa.LargeBinary, nullable=False),
        sa.Column("suppressed_tokens", sa.LargeBinary, nullable=False),
        sa.Column("nearest", sa.LargeBinary, nullable=False),
    )
    op.create_index("features_by_density", "features", ["index_id", "density", "feature_index"])
    op.create_index(
        "features_by_max_activation", "features", ["index_id", "max_activation", "feature_index", "density"]
    )
    op.create_table(
        "feature_texts",
        sa.Column("index_id", sa.Integer, sa.ForeignKey("indexes.index_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("feature_index", sa.Integer, primary_key=True),
        sa.Column("search_text", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "examples",
        sa.Column("index_id", sa.Integer, sa.ForeignKey("indexes.index_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("feature_index", sa.Integer, primary_key=True),
        sa.Column("band", sa.SmallInteger, primary_key=True),
        sa.Column("rank", sa.Integer, primary_key=True),
        sa.Column("context_id", sa.Integer, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("activation", sa.Double, nullable=False),
        sa.Column("packed_positions", sa.LargeBinary, nullable=False),
        sa.Column("packed_values", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "labels",
        sa.Column("sae_id", sa.Integer, sa.ForeignKey("saes.sae_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("feature_index", sa.Integer, primary_key=True),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("score", sa.Double),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("search_text", sa.Text, nullable=False),
    )
