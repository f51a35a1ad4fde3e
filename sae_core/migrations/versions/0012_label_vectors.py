"""Labels as vectors, for a search by meaning."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.create_table(
        "label_embeddings",
        sa.Column("sae_id", sa.Integer, sa.ForeignKey("saes.sae_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("model_name", sa.Text, nullable=False),
        sa.Column("revision", sa.Text, nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "label_vectors",
        sa.Column("sae_id", sa.Integer, sa.ForeignKey("saes.sae_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("feature_index", sa.Integer, primary_key=True),
        sa.Column("vector", sa.LargeBinary, nullable=False),
    )
