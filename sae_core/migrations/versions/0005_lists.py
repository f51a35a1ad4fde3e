"""Lists of features, with notes."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "lists",
        sa.Column("list_id", sa.Text, primary_key=True),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
    )
    op.create_table(
        "list_items",
        sa.Column("item_id", sa.Integer, primary_key=True),
        sa.Column("list_id", sa.Text, sa.ForeignKey("lists.list_id", ondelete="CASCADE"), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("slug", sa.Text, nullable=False),
        sa.Column("sae_created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("feature_index", sa.Integer, nullable=False),
        sa.Column("corpus", sa.Text),
        sa.Column("label", sa.Text),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("list_items_by_position", "list_items", ["list_id", "position"])
    op.create_index("list_items_by_feature", "list_items", ["slug", "feature_index"])
