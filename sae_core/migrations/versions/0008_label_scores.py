"""Scores of labels and what they were measured on, history of people's labels, labels by language models."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def _of_index() -> sa.ForeignKey:
    return sa.ForeignKey("indexes.index_id", ondelete="CASCADE")


def upgrade() -> None:
    op.add_column("labels", sa.Column("certainty", sa.Double))
    op.add_column("labels", sa.Column("prompt_version", sa.Text))
    op.create_table(
        "label_history",
        sa.Column("history_id", sa.Integer, primary_key=True),
        sa.Column("sae_id", sa.Integer, sa.ForeignKey("saes.sae_id", ondelete="CASCADE"), nullable=False),
        sa.Column("feature_index", sa.Integer, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("replaced_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("label_history_by_feature", "label_history", ["sae_id", "feature_index"])
    op.create_table(
        "label_scores",
        sa.Column("index_id", sa.Integer, _of_index(), primary_key=True),
        sa.Column("feature_index", sa.Integer, primary_key=True),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("method", sa.Text, primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("scorer", sa.Text, nullable=False),
        sa.Column("prompt_version", sa.Text),
        sa.Column("balanced_accuracy", sa.Double, nullable=False),
        sa.Column("precision", sa.Double),
        sa.Column("recall", sa.Double, nullable=False),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("unparsed", sa.Integer, nullable=False),
        sa.Column("baseline", sa.Double),
        sa.Column("correlation", sa.Double),
        sa.Column("trials", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "samples",
        sa.Column("index_id", sa.Integer, _of_index(), primary_key=True),
        sa.Column("context_ids", sa.LargeBinary, nullable=False),
        sa.Column("starts", sa.LargeBinary, nullable=False),
        sa.Column("places", sa.LargeBinary, nullable=False),
        sa.Column("activations", sa.LargeBinary, nullable=False),
    )
