"""The names of deleted SAEs that were not public."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.create_table(
        "deleted_saes",
        sa.Column("slug", sa.Text, primary_key=True),
        sa.Column("visibility", sa.Text, nullable=False),
    )
